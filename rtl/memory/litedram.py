"""What brings up a LiteDRAM core before the machine uses it: no CPU and no host have a part in it."""

from __future__ import annotations

from amaranth import Array, Cat, Const, Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from tritloom.rtl.memory.axi import axi_members, axi_prefix
from tritloom.rtl.memory.parameters import Levelling, LiteDramParameters

__all__ = ["PATTERN_BEATS", "LiteDramStart", "pattern"]

_INCR = 1
_SETTLE = 15
"""Cycles after a write of levelling until it is in force: longer than a read takes to pass through the core's own registers."""
PATTERN_BEATS = 4


def pattern(mem_bytes: int) -> tuple[int, ...]:
    """Beats that are written and read to level: no byte lane has the same bits in two transfers that follow each other."""
    state, words = 0x2545F491, []
    for _ in range(PATTERN_BEATS):
        word = 0
        for byte in range(mem_bytes):
            state = (state * 1_103_515_245 + 12_345) & 0x7FFF_FFFF
            word |= (state >> 16 & 255) << (8 * byte)
        words.append(word)
    return tuple(words)


def _port_members(parameters: LiteDramParameters) -> dict:
    members = axi_members(mem_bytes=parameters.mem_bytes, mem_ports=1)
    return {name.removeprefix(axi_prefix(0)): member for name, member in members.items()}


class LiteDramStart(wiring.Component):
    """Initialise a LiteDRAM core, level its reads, then join the machine's memory port to it.

    Levelling: of each module, every tap of every slip is tried with `PATTERN_BEATS` beats that were written before, at address 0. The
    middle of the longest run of taps that read all of them stays. A module of which no tap does is an error, and memory stays closed.

    Latency: none between the ports, once `ready`.

    Parameters
    ----------
    parameters : LiteDramParameters

    Members
    -------
    wb_adr : Out(30), wb_dat_w : Out(32), wb_cyc : Out(1), wb_ack : In(1)
        Wishbone towards the core's control registers, which are only written; `adr` counts words.
    axi_... : AXI4 slave
        The machine's; takes no request until `ready`.
    core_... : AXI4 master
        Towards the core, without its signals of one value (`rtl.memory.axi.axi_members`).
    ready, error : Out(1)
        Memory may be used; levelling failed.
    """

    def __init__(self, parameters: LiteDramParameters):
        self.parameters = parameters
        self._ports = _port_members(parameters)
        super().__init__({f"axi_{name}": member.flip() for name, member in self._ports.items()} | self.outside(parameters)
                         | {"ready": Out(1), "error": Out(1)})

    @staticmethod
    def outside(parameters: LiteDramParameters) -> dict:
        """Signature members towards the core."""
        return {f"core_{name}": member for name, member in _port_members(parameters).items()} | {
            "wb_adr": Out(30), "wb_dat_w": Out(32), "wb_cyc": Out(1), "wb_ack": In(1)}

    def elaborate(self, platform):
        m = Module()
        p = self.parameters
        entry = data.StructLayout({"address": 14, "value": 32, "cycles": 24})
        m.submodules.program = program = Memory(shape=entry, depth=len(p.writes), init=[
            {"address": each.address >> 2, "value": each.value, "cycles": each.cycles} for each in p.writes])
        step, index = program.read_port(), Signal(range(len(p.writes) + 1))
        m.d.comb += step.addr.eq(index)

        # One write of a control register at a time, and the wait after it.
        writing, left = Signal(), Signal(24)
        free = ~writing & (left == 0)
        m.d.comb += self.wb_cyc.eq(writing)
        with m.If(writing & self.wb_ack):
            m.d.sync += writing.eq(0)
        with m.If(~writing & (left != 0)):
            m.d.sync += left.eq(left - 1)

        def write(address, value, cycles):
            return [writing.eq(1), self.wb_adr.eq(address), self.wb_dat_w.eq(value), left.eq(cycles)]

        own, module, move, idle = self._joined(m), Signal(4), None, free
        if p.levelling is not None:
            move, idle = self._moves(m, p.levelling, module, free, write)
        with m.FSM(name="start"):
            with m.State("FETCH"):
                m.next = "WRITE"
            with m.State("WRITE"):
                with m.If(free):
                    m.d.sync += [*write(step.data.address, step.data.value, step.data.cycles), index.eq(index + 1)]
                    m.next = "NEXT"
            with m.State("NEXT"):
                with m.If(free):
                    m.next = "FETCH"
                    with m.If(index == len(p.writes)):
                        m.next = "READY" if p.levelling is None else "FILL"
            if p.levelling is not None:
                self._level(m, p.levelling, own, module, move, idle)
            with m.State("READY"):
                m.d.sync += self.ready.eq(1)
        return m

    def _joined(self, m: Module) -> dict:
        """The machine's port joined to the core's once `ready`; before, the core's is driven by what is returned, by name."""
        own = {name: Signal(member.shape, name=f"own_{name}") for name, member in self._ports.items() if member.flow == Out}
        for name, member in self._ports.items():
            mine, core = getattr(self, f"axi_{name}"), getattr(self, f"core_{name}")
            if member.flow == Out:
                m.d.comb += core.eq(Mux(self.ready, mine, own[name]))
            elif name.endswith(("valid", "ready")):
                m.d.comb += mine.eq(core & self.ready)
            else:
                m.d.comb += mine.eq(core)
        size = exact_log2(self.parameters.mem_bytes)
        m.d.comb += [own[f"{channel}size"].eq(size) for channel in ("ar", "aw")]
        m.d.comb += [own[f"{channel}burst"].eq(_INCR) for channel in ("ar", "aw")]
        m.d.comb += [own["wstrb"].eq(-1), own["wlast"].eq(1), own["bready"].eq(1), own["rready"].eq(1)]
        return own

    def _level(self, m: Module, levels: Levelling, own: dict, module: Signal, move, idle) -> None:
        """The states from FILL on. Taps are tried in order; `run` of them up to this one read the pattern."""
        beats = Array(Const(word, 8 * self.parameters.mem_bytes) for word in pattern(self.parameters.mem_bytes))
        beat, sent = Signal(range(PATTERN_BEATS)), Signal(2)
        slip, tap = Signal(range(levels.slips)), Signal(range(levels.delays))
        best_slip, best_tap, settling = Signal.like(slip), Signal.like(tap), Signal()
        run, longest = Signal(range(levels.delays + 1)), Signal(range(levels.delays + 1))
        good, asked = Signal(), Signal()
        lanes = [Cat(lane for number, lane in enumerate(_bytes(self.core_rdata ^ beats[beat])) if number % levels.modules == each)
                 for each in range(levels.modules)]
        here = Array(lanes)[module] == 0
        m.d.comb += own["wdata"].eq(beats[beat])

        with m.State("FILL"):
            m.d.comb += [own["awaddr"].eq(beat << exact_log2(self.parameters.mem_bytes)),
                         own["awvalid"].eq(~sent[0]), own["wvalid"].eq(~sent[1])]
            m.d.sync += sent.eq(sent | Cat(self.core_awready, self.core_wready))
            with m.If(self.core_bvalid):
                m.d.sync += [sent.eq(0), beat.eq(beat + 1)]
                with m.If(beat == PATTERN_BEATS - 1):
                    m.next = "SELECT"
        with m.State("SELECT"):
            m.d.sync += [longest.eq(0), settling.eq(0)]
            m.next = "SLIP-RESET"
        with m.State("SLIP-RESET"):
            with m.If(idle):
                m.d.sync += [*move(levels.slip_reset), slip.eq(0)]
                m.next = "TAP-RESET"
        with m.State("TAP-RESET"):
            with m.If(idle):
                m.d.sync += [*move(levels.delay_reset), tap.eq(0), run.eq(0)]
                m.next = "TRY"
                with m.If(settling):
                    m.next = "SLIP-TO-BEST"
        with m.State("TRY"):
            m.d.comb += [own["arvalid"].eq(idle & ~asked), own["arlen"].eq(PATTERN_BEATS - 1)]
            with m.If(idle & self.core_arready):
                m.d.sync += asked.eq(1)
            with m.If(self.core_rvalid):
                m.d.sync += [beat.eq(beat + 1), good.eq(here & (good | (beat == 0)))]
                with m.If(beat == PATTERN_BEATS - 1):
                    m.d.sync += asked.eq(0)
                    m.next = "JUDGE"
        with m.State("JUDGE"):
            length = Signal.like(run)
            m.d.comb += length.eq(Mux(good, run + 1, 0))
            m.d.sync += run.eq(length)
            with m.If(length > longest):
                m.d.sync += [longest.eq(length), best_slip.eq(slip), best_tap.eq(tap - ((length - 1) >> 1))]
            with m.If(tap != levels.delays - 1):
                m.d.sync += [*move(levels.delay), tap.eq(tap + 1)]
                m.next = "TRY"
            with m.Elif(slip != levels.slips - 1):
                m.d.sync += [*move(levels.slip), slip.eq(slip + 1)]
                m.next = "TAP-RESET"
            with m.Else():
                m.d.sync += settling.eq(1)
                m.next = "SLIP-RESET"
        with m.State("SLIP-TO-BEST"):
            with m.If(idle):
                m.next = "TAP-TO-BEST"
                with m.If(slip != best_slip):
                    m.d.sync += [*move(levels.slip), slip.eq(slip + 1)]
                    m.next = "SLIP-TO-BEST"
        with m.State("TAP-TO-BEST"):
            with m.If(idle):
                with m.If(longest == 0):
                    m.d.sync += self.error.eq(1)
                with m.Elif(tap != best_tap):
                    m.d.sync += [*move(levels.delay), tap.eq(tap + 1)]
                with m.Else():
                    m.d.sync += module.eq(module + 1)
                    m.next = "SELECT"
                    with m.If(module == levels.modules - 1):
                        m.next = "READY"

    def _moves(self, m: Module, levels: Levelling, module: Signal, free, write):
        """Moves of `module`'s reads: a function of a control register's address, that gives the statements which begin one, and when none
        is under way. A module that is selected is halted, and after a move all are halted together so that they stay in step."""
        address, left = Signal(16), Signal(range(6))
        with m.If(free & (left != 0)):
            m.d.sync += left.eq(left - 1)
            with m.Switch(left):
                with m.Case(5):
                    m.d.sync += write(levels.select >> 2, 1 << module, 0)
                with m.Case(4):
                    m.d.sync += write(address >> 2, 1, 0)
                with m.Case(2):
                    m.d.sync += write(levels.select >> 2, (1 << levels.modules) - 1, 0)
                with m.Default():
                    m.d.sync += write(levels.select >> 2, 0, _SETTLE)
        return lambda register: [address.eq(register), left.eq(5)], free & (left == 0)


def _bytes(word):
    return [word.word_select(i, 8) for i in range(len(word) // 8)]
