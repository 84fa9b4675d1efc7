"""cocotb side of test_sdram.py: the controller between an AXI4 master and the model of an SDRAM."""

import random
from collections import deque
from typing import Any

import cocotb
from cocotb.triggers import FallingEdge
from cocotbext.axi import AxiBurstType, AxiBus, AxiMaster, AxiResp

import streams
from sdram_device import Device, Timing

PINS = ("cke", "cs_n", "ras_n", "cas_n", "we_n", "ba", "a", "dqm")
NOP = ("ras_n", "cas_n", "we_n")


class Sdram:
    """The device at the controller's pins. Words reach `dq_i` `delay` cycles after they stand at the pins."""

    def __init__(self, dut, bench, timing: dict[str, Any], delay):
        self.dut, self.device = dut, Device(Timing(**timing), streams.seed())
        self.pins = {name: getattr(dut, name) for name in PINS if hasattr(dut, name)}  # DQM may be tied
        self.delay, self.words = delay, deque([0] * 16, maxlen=16)
        self.random = random.Random(streams.seed())
        self.bench = bench
        bench.each_cycle.append(self.sample)
        cocotb.start_soon(self.drive())

    def sample(self):
        """Just before a rising edge."""
        pins = {name: int(pin.value) for name, pin in self.pins.items() if name not in ("ba", "a")}
        if not all(pins[name] for name in NOP):
            pins |= dict(ba=int(self.pins["ba"].value), a=int(self.pins["a"].value))
        if self.dut.dq_oe.value == streams.HIGH:
            pins |= dict(dq=int(self.dut.dq_o.value), oe=1)
        word = self.device.step(**pins)
        self.words.append(self.random.getrandbits(16) if word is None else word)
        assert self.device.violation == "", self.device.violation

    async def drive(self):
        """Just after it: what was driven from the edge before on, through the registers of the pads."""
        while True:
            await FallingEdge(self.dut.clk)
            self.dut.dq_i.value = self.words[-1 - self.delay]


async def begin(dut):
    """Bench and device, as soon as the controller is ready; what the device holds is known."""
    p = streams.parameters()
    for channel in ("arvalid", "awvalid", "wvalid", "rready", "bready"):
        getattr(dut, f"axi_{channel}").value = 0
    dut.dq_i.value = 0
    bench = await streams.start(dut, idle_limit=100_000)
    sdram = Sdram(dut, bench, p["timing"], p["delay"])
    while dut.ready.value != streams.HIGH:
        await FallingEdge(dut.clk)
    return bench, sdram


class Master:
    """Drives the five channels from lists: reads (address, beats), writes (address, beats of (data, strobe)), with stalls.

    A read is asked for only when no write to its bytes waits for its response, so what it must return is known then.
    """

    def __init__(self, dut, bench, mem_bytes, stall, seed):
        self.dut, self.bench, self.mem_bytes = dut, bench, mem_bytes
        self.size = mem_bytes.bit_length() - 1
        self.random = random.Random(f"{seed} master")
        self.may = {name: streams.stalls(stall, self.random) for name in ("ar", "aw", "w", "r", "b")}
        self.queue: dict[str, deque[Any]] = {name: deque() for name in ("ar", "aw", "w")}
        self.offered: dict[str, Any] = dict.fromkeys(("ar", "aw", "w"))
        self.ready = {"r": False, "b": False}
        self.beats, self.answers, self.cycles = [], [], []
        bench.each_cycle.append(self.sample)
        cocotb.start_soon(self.drive())

    def pin(self, name):
        return getattr(self.dut, f"axi_{name}")

    def read(self, address, beats, size=None, burst=1):
        self.queue["ar"].append(dict(addr=address, len=beats - 1, size=self.size if size is None else size, burst=burst))

    def write(self, address, words, size=None, burst=1):
        self.queue["aw"].append(dict(addr=address, len=len(words) - 1, size=self.size if size is None else size, burst=burst))
        self.queue["w"].extend(dict(data=data, strb=strobe, last=int(i == len(words) - 1)) for i, (data, strobe) in enumerate(words))

    async def drive(self):
        while True:
            for name, queue in self.queue.items():
                if self.offered[name] is None and queue and self.may[name](self.bench.cycle):
                    self.offered[name] = queue.popleft()
                    for field, value in self.offered[name].items():
                        self.pin(name + field).value = value
                self.pin(f"{name}valid").value = int(self.offered[name] is not None)
            for name in self.ready:
                self.ready[name] = self.may[name](self.bench.cycle)
                self.pin(f"{name}ready").value = int(self.ready[name])
            await FallingEdge(self.dut.clk)

    def sample(self):
        for name in self.offered:
            if self.offered[name] is not None and self.pin(f"{name}ready").value == streams.HIGH:
                self.offered[name] = None
        if self.ready["r"] and self.pin("rvalid").value == streams.HIGH:
            self.beats.append((int(self.dut.axi_rdata.value), int(self.dut.axi_rlast.value), int(self.dut.axi_rresp.value)))
            self.cycles.append(self.bench.cycle)
        if self.ready["b"] and self.pin("bvalid").value == streams.HIGH:
            self.answers.append(int(self.dut.axi_bresp.value))

    async def until(self, done, limit=200_000):
        for _ in range(limit):
            if done():
                return
            await FallingEdge(self.dut.clk)
        raise TimeoutError(f"{len(self.beats)} beats, {len(self.answers)} answers after {limit} cycles")


def apply(memory, address, words, mem_bytes):
    for i, (data, strobe) in enumerate(words):
        for byte in range(mem_bytes):
            if strobe >> byte & 1:
                memory[(address & -mem_bytes) + i * mem_bytes + byte] = data >> (8 * byte) & 255


def expected(memory, address, beats, mem_bytes):
    """Beats of a burst as (data, last, response)."""
    start = address & -mem_bytes
    return [(int.from_bytes(memory[start + i * mem_bytes : start + (i + 1) * mem_bytes], "little"), int(i == beats - 1), 0)
            for i in range(beats)]


@cocotb.test()
async def mixes(dut):
    """Rounds of bursts and strobed writes that are under way together; a round's reads and writes keep apart."""
    p = streams.parameters()
    bench, sdram = await begin(dut)
    memory, mem_bytes = bytearray(sdram.device.data), p["mem_bytes"]
    master = Master(dut, bench, mem_bytes, p["stall"], streams.seed())
    choose = random.Random(streams.seed())
    regions = [choose.randrange(0, len(memory), 4096) for _ in range(6)]
    for _ in range(p["rounds"]):
        choose.shuffle(regions)
        beats, answers, count = [], 0, choose.choice((1, 3, 12))
        for _ in range(count):
            if choose.random() < 0.6:
                length = choose.choice((1, 2, 3, choose.randint(1, 64), min(256, 4096 // mem_bytes)))
                region, unaligned = choose.choice(regions[:3]), choose.randrange(mem_bytes)
                address = region + choose.randrange(0, 4096 // mem_bytes - length + 1) * mem_bytes + unaligned
                master.read(address, length)
                beats += expected(memory, address, length, mem_bytes)
            if choose.random() < 0.6:
                words = [(choose.getrandbits(8 * mem_bytes), choose.getrandbits(mem_bytes) if p["masked"] else (1 << mem_bytes) - 1)
                         for _ in range(choose.choice((1, 1, 1, 5)))]
                address = choose.choice(regions[3:]) + choose.randrange(0, 4096 // mem_bytes - len(words)) * mem_bytes
                master.write(address, words)
                apply(memory, address, words, mem_bytes)
                answers += 1
        await master.until(lambda beats=beats, answers=answers: len(master.beats) == len(beats) and len(master.answers) == answers)
        assert master.beats == beats and master.answers == [0] * answers
        master.beats.clear()
        master.answers.clear()
    await streams.cycles(dut, 40)
    assert bytes(sdram.device.data) == memory
    streams.report(refreshed=sdram.device.refreshed, cycles=bench.cycle)


@cocotb.test()
async def reads_what_was_answered(dut):
    """A read that is asked for in the cycle after a write's response sees it, in an open row and after others."""
    p = streams.parameters()
    bench, sdram = await begin(dut)
    memory, mem_bytes = bytearray(sdram.device.data), p["mem_bytes"]
    master = Master(dut, bench, mem_bytes, "none", streams.seed())
    choose = random.Random(streams.seed())
    places = [choose.randrange(0, len(memory), mem_bytes) for _ in range(3)]
    for _ in range(p["rounds"]):
        address, words = choose.choice(places), [(choose.getrandbits(8 * mem_bytes), choose.getrandbits(mem_bytes))]
        master.write(address, words)
        apply(memory, address, words, mem_bytes)
        await master.until(lambda: master.answers)
        master.read(address, 1)
        await master.until(lambda: master.beats)
        assert master.beats == expected(memory, address, 1, mem_bytes)
        master.beats.clear()
        master.answers.clear()


@cocotb.test()
async def runs(dut):
    """Cycles from the first beat of a long sequential read to its last; with `every`, a write is offered after so many bursts, with
    `random`, a read of four beats elsewhere."""
    p = streams.parameters()
    bench, sdram = await begin(dut)
    mem_bytes, burst = p["mem_bytes"], min(64, 4096 // p["mem_bytes"])
    master = Master(dut, bench, mem_bytes, "none", streams.seed())
    choose = random.Random(streams.seed())
    beats, writes, start = [], 0, choose.randrange(0, len(sdram.device.data) // 2, 4096)
    memory = bytes(sdram.device.data)
    for number, address in enumerate(range(start, start + p["length"], burst * mem_bytes)):
        master.read(address, burst)
        beats += expected(memory, address, burst, mem_bytes)
        elsewhere = choose.randrange(len(memory) // 2 + start, len(memory) - 4096 + start, 4096) % len(memory)
        if p["random"] and number % p["random"] == 0:
            master.read(elsewhere, 4)
            beats += expected(memory, elsewhere, 4, mem_bytes)
        if p["every"] and number % p["every"] == 0:
            writes += 1
            master.write(elsewhere + 4096 - mem_bytes, [(0, 1)])
    await master.until(lambda: len(master.beats) == len(beats) and len(master.answers) == writes)
    assert master.beats == beats
    streams.report(cycles=master.cycles[-1] - master.cycles[0], words=(len(beats) - 1 + writes) * p["burst"], writes=writes)


@cocotb.test()
async def scattered(dut):
    """Cycles of single-beat writes, each to another row."""
    p = streams.parameters()
    bench, sdram = await begin(dut)
    mem_bytes = p["mem_bytes"]
    master = Master(dut, bench, mem_bytes, "none", streams.seed())
    memory, size = bytearray(sdram.device.data), len(sdram.device.data)
    choose = random.Random(streams.seed())
    for _ in range(p["writes"]):
        address, words = choose.randrange(0, size, mem_bytes), [(choose.getrandbits(8 * mem_bytes), (1 << mem_bytes) - 1)]
        master.write(address, words)
        apply(memory, address, words, mem_bytes)
    first = bench.cycle
    await master.until(lambda: len(master.answers) == p["writes"])
    streams.report(cycles=bench.cycle - first)
    await streams.cycles(dut, 40)
    assert bytes(sdram.device.data) == memory


class NoId:
    """Stands for an ID signal: none has any bits, so the master uses one ID."""

    class Bits(int):
        """No bits."""

        def __len__(self):
            return 0

    value = Bits()

    def __len__(self):
        return 0

    def setimmediatevalue(self, value):
        pass


@cocotb.test()
async def by_others(dut):
    """cocotbext-axi's master instead of ours."""
    p = streams.parameters()
    bench, sdram = await begin(dut)
    bus: Any = AxiBus.from_prefix(dut, "axi")
    for channel, name in ((bus.write.aw, "awid"), (bus.write.b, "bid"), (bus.read.ar, "arid"), (bus.read.r, "rid")):
        del channel._signals[name]
        setattr(channel, name, NoId())
    master: Any = AxiMaster(bus, dut.clk, dut.rst)
    size, choose = len(sdram.device.data), random.Random(streams.seed())
    memory = bytearray(sdram.device.data)
    for _ in range(p["rounds"]):
        address, length = choose.randrange(0, size - 2000), choose.choice((1, 7, 64, 1500))
        data = choose.randbytes(length)
        assert (await master.write(address, data)).resp == AxiResp.OKAY
        memory[address : address + length] = data
        read = await master.read(max(0, address - 100), length + 200)
        assert read.resp == AxiResp.OKAY and bytes(read.data) == memory[max(0, address - 100) :][: length + 200]
    await streams.cycles(dut, 40)
    assert bytes(sdram.device.data) == memory


@cocotb.test()
async def refuses(dut):
    """Bursts that it does not serve end with SLVERR, as long as they are, and write nothing; single beats may be narrow."""
    p = streams.parameters()
    bench, sdram = await begin(dut)
    memory, mem_bytes = bytearray(sdram.device.data), p["mem_bytes"]
    master = Master(dut, bench, mem_bytes, p["stall"], streams.seed())
    for burst, size in ((AxiBurstType.FIXED, None), (AxiBurstType.WRAP, None), (AxiBurstType.INCR, 0)):
        master.read(4096, 4, size, int(burst))
        master.write(4096, [(1, -1 & ((1 << mem_bytes) - 1))] * 4, size, int(burst))
    master.read(8192, 1, 0, 0)
    await master.until(lambda: len(master.beats) == 13 and len(master.answers) == 3)
    assert [(last, resp) for _, last, resp in master.beats[:12]] == [(0, 2), (0, 2), (0, 2), (1, 2)] * 3
    assert master.beats[12:] == expected(memory, 8192, 1, mem_bytes) and master.answers == [2, 2, 2]
    await streams.cycles(dut, 40)
    assert bytes(sdram.device.data) == memory


@cocotb.test()
async def refuses_parts(dut):
    """Without masks: a beat is written whole or not at all, and its burst is answered with SLVERR then."""
    p = streams.parameters()
    bench, sdram = await begin(dut)
    memory, mem_bytes = bytearray(sdram.device.data), p["mem_bytes"]
    master, whole = Master(dut, bench, mem_bytes, p["stall"], streams.seed()), (1 << mem_bytes) - 1
    bursts = [[whole], [whole - 1], [whole], [whole, 1, whole], [0], [whole, whole]]
    for number, strobes in enumerate(bursts):
        master.write(64 * number, [(number, strobe) for strobe in strobes])
        apply(memory, 64 * number, [(number, strobe if strobe == whole else 0) for strobe in strobes], mem_bytes)
    await master.until(lambda: len(master.answers) == len(bursts))
    assert master.answers == [0, 2, 0, 2, 2, 0]
    await streams.cycles(dut, 40)
    assert bytes(sdram.device.data) == memory


@cocotb.test()
async def resets(dut):
    """A reset in the middle of reads and writes: no rule of the SDRAM is broken, and what was written is still there."""
    p = streams.parameters()
    bench, sdram = await begin(dut)
    memory, mem_bytes = bytearray(sdram.device.data), p["mem_bytes"]
    for number in range(p["rounds"]):
        master = Master(dut, bench, mem_bytes, "none", streams.seed())
        for i in range(8):
            master.read(4096 * i, 64)
            master.write(65536 + 4096 * i, [(i, 0)])
        await streams.cycles(dut, 60 + 7 * number)
        bench.each_cycle.remove(master.sample)
        master.queue = {name: deque() for name in master.queue}
        master.offered = dict.fromkeys(master.offered)
        dut.rst.value = 1
        await streams.cycles(dut, 3)
        dut.rst.value = 0
        began = bench.cycle
        await streams.cycles(dut, 1)
        while dut.ready.value != streams.HIGH:
            await FallingEdge(dut.clk)
        assert bench.cycle - began < p["start"]
    master = Master(dut, bench, mem_bytes, "none", streams.seed())
    master.read(4096, 64)
    await master.until(lambda: len(master.beats) == 64)
    assert master.beats == expected(memory, 4096, 64, mem_bytes) and bytes(sdram.device.data) == memory
