"""cocotb side of test_memory.py: an AXI4 memory with stalls everywhere, and what is asked of the memory system."""

import itertools
import random
from collections import deque

import cocotb
from cocotb.triggers import FallingEdge

import streams
from tritloom.firmware.isa import Descriptor, DescriptorOp

PAGE = 4096


def contents(seed, size):
    return bytearray(random.Random(seed).randbytes(size))


def interpret(descriptors, entry, beat_bytes):
    """(byte address, dest) of every beat of the program at `entry`."""
    address, turns = 0, 0
    while True:
        d = Descriptor.decode(descriptors[entry])
        entry += 1
        if d.op == DescriptorOp.END:
            return
        if d.op == DescriptorOp.BASE:
            address = d.value
        if d.op == DescriptorOp.BACK:
            address -= d.value * beat_bytes
        if d.op == DescriptorOp.STREAM:
            for _ in range(d.value):
                yield address, int(d.dest)
                address += beat_bytes
        if d.op == DescriptorOp.LOOP:
            turns += 1
            entry, turns = (d.target, turns) if turns < d.value else (entry, 0)


class AxiSlave:
    """One port's memory. Accepts, delivers and answers when `may` says; writes when it answers."""

    def __init__(self, dut, bench, prefix, memory, base, latency, stall, width):
        self.dut, self.bench, self.prefix = dut, bench, prefix
        self.memory, self.base, self.latency, self.width = memory, base, latency, width
        self.random = random.Random(f"{streams.seed()} {prefix}")
        self.may = streams.stalls(stall, self.random)
        self.reads, self.addresses, self.data, self.answers = deque(), deque(), deque(), deque()
        self.offered = None
        self.responses = {"r": 0, "b": 0}
        self.open = True
        self.last = {}
        self.out = {"arready": 0, "awready": 0, "wready": 0, "rvalid": 0, "bvalid": 0}
        self.bursts, self.writes = [], 0
        bench.each_cycle.append(self.sample)
        cocotb.start_soon(self.loop())

    def pin(self, name):
        return getattr(self.dut, self.prefix + name)

    def drive(self, name, value):
        self.out[name] = value
        self.pin(name).value = value

    async def loop(self):
        while True:
            for name in ("arready", "awready", "wready"):
                self.drive(name, int(self.open and self.may(self.bench.cycle)))
            if not self.out["rvalid"]:
                self.offer()
            if not self.out["bvalid"]:
                self.answer()
            await FallingEdge(self.dut.clk)

    def answer(self):
        ready = self.open and self.answers and self.answers[0][0] <= self.bench.cycle and self.may(self.bench.cycle)
        if ready:
            _, address, data, strobe = self.answers[0]
            for i in range(self.width):
                if strobe >> i & 1:
                    self.memory[address + i] = data >> 8 * i & 255
        self.pin("bresp").value = self.responses["b"] if ready else self.random.getrandbits(2)
        self.drive("bvalid", int(bool(ready)))

    def offer(self):
        ready = self.open and self.reads and self.reads[0][0] <= self.bench.cycle and self.may(self.bench.cycle)
        if ready:
            _, addresses = self.reads[0]
            self.pin("rdata").value = int.from_bytes(self.memory[addresses[0] : addresses[0] + self.width], "little")
            self.pin("rlast").value = int(len(addresses) == 1)
        else:
            self.pin("rdata").value = self.random.getrandbits(8 * self.width)
            self.pin("rlast").value = self.random.getrandbits(1)
        self.pin("rresp").value = self.responses["r"] if ready else self.random.getrandbits(2)
        self.drive("rvalid", int(bool(ready)))

    def sample(self):
        """Before the rising edge: what was transferred, and whether the master may do that."""
        self.stable("ar", ("araddr", "arlen"))
        self.stable("aw", ("awaddr",))
        self.stable("w", ("wdata", "wstrb"))
        if self.moved("ar"):
            self.reads.append((self.bench.cycle + self.latency, self.burst("ar")))
        if self.moved("aw"):
            self.addresses.append(self.burst("aw"))
            self.writes += 1
        if self.moved("w"):
            assert self.pin("wlast").value == streams.HIGH
            self.data.append((int(self.pin("wdata").value), int(self.pin("wstrb").value)))
        while self.addresses and self.data:
            self.answers.append((self.bench.cycle + self.latency, self.addresses.popleft()[0], *self.data.popleft()))
        if self.out["rvalid"] and self.pin("rready").value == streams.HIGH:
            self.out["rvalid"] = 0
            self.reads[0][1].pop(0)
            if not self.reads[0][1]:
                self.reads.popleft()
        if self.out["bvalid"] and self.pin("bready").value == streams.HIGH:
            self.out["bvalid"] = 0
            self.answers.popleft()
            self.bench.moved()

    def moved(self, channel):
        return self.pin(channel + "valid").value == streams.HIGH and self.out[channel + "ready"]

    def stable(self, channel, names):
        valid = self.pin(channel + "valid").value == streams.HIGH
        payload = [int(self.pin(name).value) for name in names] if valid else None
        held = self.last.get(channel)
        assert held is None or held == payload, f"{self.prefix}{channel}: changed while waiting, {held} to {payload}"
        self.last[channel] = payload if valid and not self.out[channel + "ready"] else None

    def burst(self, channel):
        address, length = int(self.pin(channel + "addr").value), int(self.pin(channel + "len").value) + 1
        assert 1 << int(self.pin(channel + "size").value) == self.width and self.pin(channel + "burst").value == 1
        assert length <= 64 and address // PAGE == (address + length * self.width - 1) // PAGE, f"{address:#x} {length}"
        assert 0 <= address - self.base <= len(self.memory) - length * self.width
        self.bursts.append(length)
        return [address - self.base + i * self.width for i in range(length)]


class Bench:
    """The device, its memory and the bytes that should be in it."""

    def __init__(self, dut):
        self.dut, self.p = dut, streams.parameters()
        self.beat = self.p["mem_bytes"]
        self.bytes = contents(self.p["memory_seed"], self.p["size"])

    async def start(self):
        dut, p = self.dut, self.p
        for name in ("flush", "descriptor__en", "hold"):
            getattr(dut, name).value = 0
        if p["ports"]:
            for name in ("arready", "awready", "wready", "rvalid", "bvalid"):
                for i in range(p["ports"]):
                    getattr(dut, f"m{i}_axi_{name}").value = 0
        self.bench = await streams.start(dut, idle_limit=3000)
        width = self.beat // max(p["ports"], 1)
        self.slaves = []
        for i in range(p["ports"]):
            base = (3 + i) * 0x10000
            getattr(dut, f"port_base{i}").value = base
            stripe = bytearray(b"".join(self.bytes[b + i * width : b + (i + 1) * width] for b in range(0, len(self.bytes), self.beat)))
            self.slaves.append(AxiSlave(dut, self.bench, f"m{i}_axi_", stripe, base, p["latency"], p["axi_stall"], width))
        for index, word in enumerate(p["descriptors"]):
            dut.descriptor__addr.value = index
            dut.descriptor__data.value = word
            dut.descriptor__en.value = 1
            await FallingEdge(dut.clk)
        dut.descriptor__en.value = 0
        if not p["ports"]:
            await self.write(range(0, len(self.bytes), self.beat))

    async def write(self, addresses):
        await streams.send(self.dut, "write", [{"addr": a, "data": self.word(a), "strb": (1 << self.beat) - 1} for a in addresses])
        await self.written()

    async def written(self):
        for _ in range(3000):
            if self.dut.writes_pending.value == 0:
                assert not any(slave.addresses or slave.data or slave.answers for slave in self.slaves), "a write is not answered"
                return
            await FallingEdge(self.dut.clk)
        raise TimeoutError("writes_pending stays high")

    def word(self, address):
        return int.from_bytes(self.bytes[address : address + self.beat], "little")

    def stream(self, entry):
        return [{"data": self.word(a), "dest": dest} for a, dest in interpret(self.p["descriptors"], entry, self.beat)]

    async def quiet(self, cycles=60):
        for _ in range(cycles):
            await FallingEdge(self.dut.clk)
            assert self.dut.weights_o__valid.value == 0, "a stray weight beat"
        assert self.dut.active.value == 0 and self.dut.flushing.value == 0

    async def flush(self):
        self.dut.flush.value = 1
        self.bench.monitors["weights_o"].held = None  # a flush takes back what was offered
        await FallingEdge(self.dut.clk)
        self.dut.flush.value = 0
        for cycle in range(2000):
            self.bench.monitors["weights_o"].held = None
            if self.dut.flushing.value == 0:
                return cycle
            assert self.dut.weights_o__valid.value == 0 and self.dut.start__ready.value == 0
            await FallingEdge(self.dut.clk)
        raise TimeoutError("flushing stays high")


def compare(what, got, expected):
    for index, (a, b) in enumerate(zip(got, expected, strict=True)):
        assert a == b, f"{what} {index}: got {a}, expected {b}"


async def quietly(bench, cycles):
    """Some cycles in which nothing need move."""
    for _ in range(cycles):
        bench.moved()
        await streams.cycles(bench.dut)


@cocotb.test()
async def delivers(dut):
    """Weight programs, data reads and writes at once; twice."""
    b = Bench(dut)
    await b.start()
    p, pick = b.p, random.Random(streams.seed())
    for _ in range(2):
        expected = [beat for entry in p["starts"] for beat in b.stream(entry)]
        requests = []
        while len(requests) < p["requests"]:
            beats, beat = pick.choice((0, 1, 2, 3, 17, 40)), pick.randrange(p["size"] // b.beat)
            if (beat + beats) * b.beat <= p["written_from"]:
                requests.append({"addr": beat * b.beat, "beats": beats})
        wanted = [b.word(r["addr"] + i * b.beat) for r in requests for i in range(r["beats"])]
        writes = []
        for _ in range(20):
            address, strobe = pick.randrange(p["written_from"], p["size"], b.beat), pick.getrandbits(b.beat)
            new = pick.randbytes(b.beat)
            writes.append({"addr": address, "data": int.from_bytes(new, "little"), "strb": strobe})
            for i in range(b.beat):
                if strobe >> i & 1:
                    b.bytes[address + i] = new[i]
        started = streams.send(dut, "start", p["starts"])
        asked = streams.send(dut, "read_request", requests, stall=p["stall"])
        await quietly(b.bench, p.get("late", 0))
        weights = streams.receive(dut, "weights_o", len(expected), stall=p["stall"])
        read = streams.receive(dut, "read_data", len(wanted), stall=p["stall"])
        await streams.send(dut, "write", writes, stall=p["stall"])
        await b.written()
        compare("read beat", await read, wanted)
        compare("weight beat", await weights, expected)
        await asked
        await started
        touched = sorted({w["addr"] for w in writes})
        back = streams.receive(dut, "read_data", len(touched), stall=p["stall"])
        await streams.send(dut, "read_request", [{"addr": a, "beats": 1} for a in touched])
        compare("written beat", await back, [b.word(a) for a in touched])
        await b.quiet()
    streams.report(bursts=[length for slave in b.slaves for length in slave.bursts])


@cocotb.test()
async def flushes(dut):
    """A flush at any moment leaves nothing behind; data reads go on through it."""
    b = Bench(dut)
    await b.start()
    p, pick = b.p, random.Random(streams.seed())
    for _ in range(p["flushes"]):
        entries = [pick.choice(p["starts"]) for _ in range(3)]
        first = b.stream(entries[0])
        some = pick.randrange(min(len(first), 100) + 1)
        started = streams.send(dut, "start", entries)
        if some:
            compare("beat before the flush", await streams.receive(dut, "weights_o", some, stall=p["stall"]), first[:some])
        await started
        await streams.cycles(dut, pick.randrange(40))
        read = streams.receive(dut, "read_data", 20)
        asked = streams.send(dut, "read_request", [{"addr": 0, "beats": 20}])
        await streams.cycles(dut, pick.randrange(10))
        await b.flush()
        again = b.stream(p["starts"][0])
        started = streams.send(dut, "start", p["starts"][:1])
        compare("beat after the flush", await streams.receive(dut, "weights_o", len(again), stall=p["stall"]), again)
        compare("read beat", await read, [b.word(i * b.beat) for i in range(20)])
        await asked
        await started
        await b.quiet()


@cocotb.test()
async def flushes_at_the_first_burst(dut):
    """A flush in each cycle about the first burst of a stream: none of it comes afterwards."""
    b = Bench(dut)
    await b.start()
    start, again = b.p["starts"]
    for cycles in range(16):
        await streams.send(dut, "start", [start])
        await streams.cycles(dut, cycles)
        await b.flush()
        await streams.send(dut, "start", [again])
        compare("beat after the flush", await streams.receive(dut, "weights_o", len(b.stream(again))), b.stream(again))
    await b.quiet()


@cocotb.test()
async def streams_at_full_rate(dut):
    """Without stalls a long stream moves one beat per cycle, once begun."""
    b = Bench(dut)
    await b.start()
    expected = b.stream(b.p["starts"][0])
    started = streams.send(dut, "start", b.p["starts"][:1])
    got = await streams.receive(dut, "weights_o", len(expected))
    compare("weight beat", got, expected)
    begun = await started
    read = streams.receive(dut, "read_data", 40)
    asked = await streams.send(dut, "read_request", [{"addr": 64 * b.beat, "beats": 40}])
    data = await read
    streams.report(weights=[got.cycles[0] - begun[0], got.cycles[-1] - got.cycles[0] + 1, len(expected)],
                   data=[data.cycles[0] - asked[0], data.cycles[-1] - data.cycles[0] + 1])


@cocotb.test()
async def reports_errors(dut):
    """Every port and channel has its bit, high with an error response and at no other time."""
    b = Bench(dut)
    await b.start()
    ports, seen = b.p["ports"], set()

    def look():
        seen.update(bit for bit in range(2 * ports) if int(dut.error.value) >> bit & 1)

    b.bench.each_cycle.append(look)
    for response, port, channel in itertools.product((0, 2, 3), range(ports), ("r", "b", "weights")):
        b.slaves[port].responses[channel[0].replace("w", "r")] = response
        if channel == "r":
            read = streams.receive(dut, "read_data", 20)
            await streams.send(dut, "read_request", [{"addr": 0, "beats": 20}])
            await read
        elif channel == "b":
            await b.write(range(b.p["written_from"], b.p["size"], b.beat))
        else:
            read = streams.receive(dut, "weights_o", len(b.stream(14)))
            await streams.send(dut, "start", [14])
            await read
        assert seen == ({port + ports * (channel == "b")} if response else set()), (response, port, channel, seen)
        seen.clear()
        b.slaves[port].responses = {"r": 0, "b": 0}


@cocotb.test()
async def holds(dut):
    """Before a reset: whatever was begun at the ports ends once the memory answers, and nothing begins."""
    b = Bench(dut)
    await b.start()
    p, pick = b.p, random.Random(streams.seed())
    streams.send(dut, "start", p["starts"])
    streams.send(dut, "read_request", [{"addr": 0, "beats": 40}] * 6)
    streams.send(dut, "write", [{"addr": p["written_from"], "data": 0, "strb": (1 << b.beat) - 1}] * 40)
    for name in ("weights_o", "read_data"):
        if pick.getrandbits(1):
            streams.receive(dut, name, 200)
    await streams.cycles(dut, pick.randrange(60))
    for slave in b.slaves:
        slave.open = False
    await streams.cycles(dut, pick.randrange(100))
    dut.hold.value = 1
    del b.bench.monitors["weights_o"], b.bench.monitors["read_data"]
    await streams.cycles(dut, 8)

    def waiting():
        reads = [bool(slave.reads or slave.pin("arvalid").value) for slave in b.slaves]
        return reads + [bool(slave.answers or slave.addresses or slave.data or slave.pin("awvalid").value or slave.pin("wvalid").value)
                        for slave in b.slaves]

    stuck = waiting()
    assert [bool(int(dut.busy.value) >> bit & 1) for bit in range(2 * p["ports"])] == stuck
    begun = [(len(slave.reads), len(slave.answers)) for slave in b.slaves]
    writes = [slave.writes + int(slave.pin("awvalid").value) for slave in b.slaves]
    await streams.cycles(dut, 100)
    assert waiting() == stuck and begun == [(len(slave.reads), len(slave.answers)) for slave in b.slaves]
    for slave in b.slaves:
        slave.open = True
    for _ in range(1500):
        if int(dut.busy.value) == 0:
            break
        await FallingEdge(dut.clk)
    assert not any(waiting()) and writes == [slave.writes for slave in b.slaves]
    before = [len(slave.bursts) for slave in b.slaves]
    await streams.cycles(dut, 200)
    assert int(dut.busy.value) == 0 and before == [len(slave.bursts) for slave in b.slaves]
    streams.report(stuck=stuck)
