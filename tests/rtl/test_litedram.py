"""What brings up a LiteDRAM core, against a stand-in: control registers, reads that are right at some taps only."""

import random

import pytest
from amaranth.sim import Simulator

from tritloom.rtl.memory.litedram import PATTERN_BEATS, LiteDramStart, pattern
from tritloom.rtl.memory.parameters import Levelling, LiteDramParameters, Write

LEVELS = Levelling(select=0x800, delay_reset=0x804, delay=0x808, slip_reset=0x80C, slip=0x810, modules=2, delays=8, slips=4)
WRITES = (Write(address=0x1000, value=0xC, cycles=50), Write(address=0x100C, value=0x320), Write(address=0x1000, value=1, cycles=20))
BEAT = 16


class Core:
    """A core's control registers and memory. `window`: for each module the slip and the first and last tap at which its bytes are read."""

    def __init__(self, window, seed):
        self.window, self.random = window, random.Random(seed)
        self.writes, self.times, self.selected, self.memory, self.reading = [], [], 0, {}, []
        self.slip, self.tap = [1] * len(window), [3] * len(window)  # wherever they were
        self.together, self.halted = False, False

    def control(self, cycle, address, value):
        self.writes.append((address, value))
        self.times.append(cycle)
        if address == LEVELS.select:
            self.together |= self.halted and value == 0  # all of them went on at once
            self.selected, self.halted = value, value == (1 << len(self.window)) - 1
        for module in range(len(self.window)):
            if self.selected >> module & 1 and address >= LEVELS.delay_reset:
                self.together = False
                if address in (LEVELS.slip_reset, LEVELS.delay_reset):
                    (self.slip if address == LEVELS.slip_reset else self.tap)[module] = 0
                elif address in (LEVELS.slip, LEVELS.delay):
                    (self.slip if address == LEVELS.slip else self.tap)[module] += 1

    def read(self, beat):
        word = self.memory[beat]
        for module, (slip, first, last) in enumerate(self.window):
            if self.selected or not self.together or self.slip[module] != slip or not first <= self.tap[module] <= last:
                word ^= 1 << 8 * self.random.choice(range(module, BEAT, len(self.window)))
        return word


def run(parameters, core, cycles=6000):
    """Cycles until ready, or None; the master's port asks for something all the time."""
    dut, found = LiteDramStart(parameters), []

    async def bench(ctx):
        ctx.set(dut.axi_arvalid, 1)
        queue = []
        for cycle in range(cycles):
            if ctx.get(dut.ready):
                found.append(cycle)
                break
            assert not ctx.get(dut.axi_arready)
            ack = ctx.get(dut.wb_cyc) and core.random.random() < 0.5
            if ack:
                core.control(cycle, 4 * ctx.get(dut.wb_adr), ctx.get(dut.wb_dat_w))
            ctx.set(dut.wb_ack, int(ack))
            takes = core.random.random() < 0.5
            for name in ("awready", "wready", "arready"):
                ctx.set(getattr(dut, f"core_{name}"), int(takes))
            if takes and ctx.get(dut.core_wvalid):
                core.memory[ctx.get(dut.core_awaddr) // BEAT] = ctx.get(dut.core_wdata)
            ctx.set(dut.core_bvalid, int(bool(takes and ctx.get(dut.core_wvalid))))
            if takes and ctx.get(dut.core_arvalid):
                queue += [core.read(beat) for beat in range(ctx.get(dut.core_arlen) + 1)]
            valid = bool(queue) and core.random.random() < 0.5
            ctx.set(dut.core_rvalid, int(valid))
            ctx.set(dut.core_rdata, queue.pop(0) if valid else core.random.getrandbits(8 * BEAT))
            await ctx.tick()
        found.append(ctx.get(dut.error))
        ctx.set(dut.core_arready, 1)
        await ctx.delay(1e-9)
        found.append((ctx.get(dut.axi_arready), ctx.get(dut.core_arvalid)))

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    return found


def test_without_levelling_the_writes_are_all():
    core = Core([], 1)
    ready, error, port = run(LiteDramParameters(mem_bytes=BEAT, writes=WRITES), core)
    assert core.writes == [(each.address, each.value) for each in WRITES] and not error and port == (1, 1)
    assert core.times[1] - core.times[0] > WRITES[0].cycles and ready - core.times[2] > WRITES[2].cycles


@pytest.mark.parametrize("window, best", [
    ([(2, 3, 6), (1, 0, 7)], [(2, 5), (1, 4)]), ([(0, 7, 7), (3, 0, 0)], [(0, 7), (3, 0)]), ([(3, 0, 2), (0, 2, 6)], [(3, 1), (0, 4)]),
])
def test_each_module_is_set_to_the_middle_of_what_reads(window, best):
    core = Core(window, 1)
    ready, error, port = run(LiteDramParameters(mem_bytes=BEAT, writes=WRITES, levelling=LEVELS), core)
    assert list(zip(core.slip, core.tap, strict=True)) == best and core.selected == 0 and not error and port == (1, 1)
    assert [core.memory[beat] for beat in range(PATTERN_BEATS)] == list(pattern(BEAT))


def test_a_module_that_never_reads_is_an_error_and_memory_stays_closed():
    error, port = run(LiteDramParameters(mem_bytes=BEAT, writes=WRITES, levelling=LEVELS), Core([(2, 3, 6), (4, 0, 7)], 1))
    assert error and port == (0, 0)


def test_the_pattern_tells_transfers_apart():
    for bytes_ in (4, 16, 32):
        lanes = [[word >> 8 * byte & 255 for word in pattern(bytes_) for byte in range(lane, bytes_, 2)] for lane in (0, 1)]
        assert all(a != b for lane in lanes for a, b in zip(lane, lane[1:], strict=False))


@pytest.mark.parametrize("changes, words", [
    (dict(writes=()), "writes must not be empty"), (dict(writes=(Write(address=2, value=0),)), "a word's address"),
    (dict(mem_bytes=3), "mem_bytes"), (dict(levelling=Levelling(**vars(LEVELS) | {"modules": 3})), "bytes of each of 3 modules"),
])
def test_what_cannot_be(changes, words):
    with pytest.raises(ValueError, match=words):
        LiteDramParameters(**dict(mem_bytes=BEAT, writes=WRITES) | changes)
