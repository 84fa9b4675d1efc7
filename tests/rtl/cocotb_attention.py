"""cocotb side of test_attention: a memory that answers reads, and a scoreboard of work elements and logits."""

import random

import cocotb

import streams


@cocotb.test()
async def attends(dut):
    p = streams.parameters()
    bench = await streams.start(dut, idle_limit=4000)
    watch = Watch(dut, bench)
    memory = Memory(dut, bench)
    cocotb.start_soon(memory.drive())
    results = []
    for job in p["jobs"]:
        await fill(dut, job)
        memory.begin(job)
        watch.begin()
        commands = [*job.get("before", ()), job]
        command = streams.send(dut, "cmd", [{name: each[name] for name in ("op", "slot", "count", "position", "kv_base")}
                                            for each in commands])
        if job.get("abandoned"):
            await command
            dut.abandon.value = 1
            await streams.cycles(dut, 3)
            dut.abandon.value = 0
            results.append({})
            continue
        if job["op"] == 1:
            beats = streams.send(dut, "weights_i", [int(beat, 16) for beat in job["beats"]], stall=job["stall"])
            if "candidates" in job:
                streams.send(dut, "candidates_i", job["candidates"], stall=job["stall"])
            rows = len(job.get("candidates", range(p["vocab"])))
            logits = await streams.receive(dut, "logits_o", rows * job["count"], stall=job["logit_stall"])
            taken = await beats or [0]
            accepted = await command
            results.append({"logits": list(logits), "cycles": taken[-1] - taken[0] + 1})
        else:
            accepted = await command
            results.append({})
        idle = await watch.idle()
        results[-1] |= {"writes": watch.writes, "saturated": watch.saturated, "clears": watch.clears, "beats": memory.beats}
        results[-1].setdefault("cycles", idle - accepted[0] - 1)
        assert not memory.pending, "data was requested and not taken"
    streams.report(results=results)


async def fill(dut, job):
    """Write activations and query scales of all slots."""
    for port, writes in (("activation_write", job["activations"]), ("q_scale_write", job["query_scales"])):
        valid = getattr(dut, f"{port}__valid")
        for write in writes:
            valid.value = 1
            for name, value in write.items():
                getattr(dut, f"{port}__{name}").value = int(value, 16) if isinstance(value, str) else value
            await streams.cycles(dut)
        valid.value = 0


class Memory:
    """Answers read requests in order, beats from the cycle after the request on unless stalled."""

    def __init__(self, dut, bench):
        self.dut, self.bench = dut, bench
        self.width = len(dut.read_data__payload) // 8
        self.random = random.Random(streams.seed())
        self.content, self.pending, self.beats = b"", [], 0
        self.may_move, self.may_accept = lambda cycle: True, lambda cycle: False
        bench.each_cycle.append(self.sample)

    def begin(self, job):
        self.content, self.beats = bytes.fromhex(job.get("memory", "")), 0
        self.base = job.get("base", job.get("kv_base"))
        self.may_move = streams.stalls(job["stall"], self.random)
        self.may_accept = streams.stalls(job["stall"], self.random)

    def sample(self):
        dut = self.dut
        if dut.read_data__valid.value == streams.HIGH and dut.read_data__ready.value == streams.HIGH:
            self.pending.pop(0)
            self.beats += 1
            self.offering = False
            self.bench.moved()
        if dut.read_request__valid.value == streams.HIGH and dut.read_request__ready.value == streams.HIGH:
            word = streams.unpack(self.bench.layouts["read_request"], int(dut.read_request__payload.value))
            at = word["addr"] - self.base
            assert 0 <= at and at + word["beats"] * self.width <= len(self.content), f"read outside of the cache: {word}"
            assert at % self.width == 0 and word["beats"] > 0, f"not in whole beats: {word}"
            self.pending += [self.content[at + i * self.width : at + (i + 1) * self.width] for i in range(word["beats"])]
            self.bench.moved()

    offering = False

    async def drive(self):
        dut = self.dut
        while True:
            cycle = self.bench.cycle
            if not self.offering:
                self.offering = bool(self.pending) and self.may_move(cycle)
                dut.read_data__valid.value = int(self.offering)
                dut.read_data__payload.value = (int.from_bytes(self.pending[0], "little") if self.offering
                                                else self.random.getrandbits(8 * self.width))
            dut.read_request__ready.value = int(len(self.pending) < 200 and self.may_accept(cycle))
            await streams.cycles(dut)


class Watch:
    """Collects what leaves on the plain ports."""

    def __init__(self, dut, bench):
        self.dut, self.bench = dut, bench
        self.begin()
        bench.each_cycle.append(self.sample)

    def begin(self):
        self.writes, self.saturated, self.clears, self.busy = [], 0, [], []

    def sample(self):
        dut = self.dut
        self.busy.append(int(dut.busy.value))
        self.saturated += int(dut.saturated.value)
        if int(dut.work_clear.value):
            self.clears.append(int(dut.work_clear.value))
        if dut.work_write__valid.value == streams.HIGH:
            assert self.busy[-1], "work written while not busy"
            slot = getattr(dut, "work_write__slot", None)
            word = hex(int(dut.work_write__data.value))
            self.writes.append([int(slot.value) if slot is not None else 0, int(dut.work_write__addr.value), word])

    async def idle(self):
        """Wait until the unit is not busy; returns the cycle."""
        await streams.cycles(self.dut)
        for _ in range(20_000):
            if not self.busy[-1]:
                return self.bench.cycle - 1
            await streams.cycles(self.dut)
        raise TimeoutError(f"busy for ever\n{self.bench.state()}")
