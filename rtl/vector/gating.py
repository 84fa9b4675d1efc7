"""GLU: gates and ups from the matrices' results, through the gated unit, into the work vector."""

from __future__ import annotations

from amaranth import Signal

from tritloom.firmware.isa import VectorOp
from tritloom.rtl.arith import index_shape
from tritloom.rtl.vector.command import Current, Words
from tritloom.rtl.vector.glu import GatedUnit
from tritloom.rtl.vector.parameters import VectorParameters
from tritloom.rtl.vector.results import Results
from tritloom.rtl.vector.scales import Program, ScaleUnit
from tritloom.rtl.vector.stages import ACCUMULATORS, FIXED, Kind, Stages
from tritloom.rtl.vector.work import WorkVector

__all__ = ["Gating"]


class Gating:
    """Alternates between the gate of pair `pair` and the up of pair `up`, which lags by `behind` pairs: the activated gate is ready when
    its up arrives."""

    def __init__(self, vector: VectorParameters, current: Current, stages: Stages, words: Words, results: Results, scales: ScaleUnit,
                 gated: GatedUnit):
        self._p = p = vector
        self.current, self.stages, self.words, self.results, self.scales, self.gated = current, stages, words, results, scales, gated
        # Cycles from a gate's issue to its up's: whole pairs as a lag of the up's issue, the rest as delay registers.
        self.results_at = ACCUMULATORS + p.spread
        self.gates_at = FIXED + p.spread if p.silu else self.results_at  # late ups find their gates a cycle later
        lead = self.gates_at - self.results_at + gated.lead
        self.behind = (lead - p.acc_parts) // (2 * p.acc_parts)
        self.up_delay = lead - p.acc_parts - 2 * p.acc_parts * self.behind
        # `odd`: the next word is an up; `active`: registered flag of the state GLU; `complete`: all parts of a word have been read.
        self.odd, self.active, self.gate_word = Signal(), Signal(), Signal(p.word_bits)
        self.pair = Signal(range(p.work_words + self.behind + 1))
        self.up = Signal(index_shape(p.work_words))
        self.up_word = Signal(p.word_bits)
        self.complete = Signal()
        self.first, self.end = current.command.a[: len(self.up)], Signal.like(self.pair, name="glu_end")
        self.gating, self.upping = self.complete & (self.pair < self.end), self.complete & (self.pair >= self.first + self.behind)

    def count(self, m):
        """Go on to the next gate or up when all parts of a word have been read."""
        m.d.comb += self.complete.eq(self.results.last_part & self.results.going)
        with m.If(self.active & self.complete):
            m.d.sync += [self.odd.eq(~self.odd), self.pair.eq(self.pair + self.odd), self.gate_word.eq(self.gate_word + (self.odd << 1))]
        with m.If(self.active & self.odd & self.upping):
            m.d.sync += [self.up.eq(self.up + 1), self.up_word.eq(self.up_word + 2), self.words.place.eq(self.words.place + 1)]

    def rewind(self, m):
        """Begin at the command's first pair."""
        command = self.current.command
        m.d.sync += [self.pair.eq(self.first), self.odd.eq(0), self.up.eq(self.first)]
        m.d.sync += [self.end.eq(self.first + self.current.words), self.gate_word.eq(command.b), self.up_word.eq(command.b + 1)]
        with m.If(self.current.is_op(VectorOp.GLU)):
            m.d.sync += self.words.place.eq(self.words.base + self.first)

    def begin_slot(self, m):
        """In SLOT: compute the scales; gates that are fixed point wait for theirs."""
        m.d.comb += [self.scales.start.eq(1), self.scales.program.eq(Program.SILU if self._p.silu else Program.RELU2)]
        m.next = "GATE SCALE" if self._p.silu else "GLU"
        if not self._p.silu:
            m.d.sync += [self.results.reading.eq(1), self.active.eq(1)]

    def states(self, m):
        issue, results, scales = self.stages.issue, self.results, self.scales
        if self._p.silu:
            with m.State("GATE SCALE"):
                with m.If(scales.done):
                    m.d.sync += [results.reading.eq(1), self.active.eq(1)]
                    m.next = "GLU"
        with m.State("GLU"):
            with m.If(~self.odd):
                m.d.comb += [issue.valid.eq(self.gating), issue.kind.eq(Kind.GATE), results.address.eq(self.gate_word)]
            with m.Else():
                m.d.comb += [issue.valid.eq(self.upping), issue.kind.eq(Kind.UP), results.address.eq(self.up_word)]
                with m.If(self.upping & (self.up == self.end - 1)):
                    m.d.sync += [results.reading.eq(0), self.active.eq(0)]
                    m.next = "GLU END"
        with m.State("GLU END"):
            with m.If(~scales.busy & ~scales.done):
                m.next = "NEXT SLOT"

    def connect(self, m, work: WorkVector, *, accumulators, fixed, outputs, clear):
        """Accumulators (with silu, gates in fixed point, `fixed`) through the gated unit into the work vector."""
        gated, stage, silu = self.gated, self.stages.stage, self._p.silu
        m.submodules.gated = gated
        is_glu = self.current.is_op(VectorOp.GLU)
        gate_stage, up_stage = stage[self.gates_at], stage[self.results_at + self.up_delay]
        if silu and self._p.spread:
            later_gate = Signal(fixed.shape(), reset_less=True)
            m.d.sync += later_gate.eq(fixed)
            fixed = later_gate
        up = accumulators
        for _ in range(self.up_delay):
            later = Signal(up.shape(), name="later_up", reset_less=True)
            m.d.sync += later.eq(up)
            up = later
        m.d.comb += [
            gated.gate_valid.eq(gate_stage.valid & is_glu & (gate_stage.kind == Kind.GATE)),
            gated.up_valid.eq(up_stage.valid & is_glu & (up_stage.kind == Kind.UP)),
            gated.gate.eq(fixed if silu else accumulators),
            gated.up.eq(up),
        ]
        done = stage[self.results_at + self.up_delay + gated.latency]
        # The slice that starts at pair 0 comes first, and resets the lane's greatest exponent.
        begins = self.scales.start & is_glu & (self.current.command.a[:16] == 0)
        work.connect(m, activated=done.valid & is_glu & (done.kind == Kind.UP), tag=done, elements=gated.o, begins=begins, outputs=outputs,
                     clear=clear)
