"""The residual streams: their memory, the residual add (RESID, BIAS, EMBED), and what normalises them later."""

from __future__ import annotations

from functools import reduce
from operator import or_

from amaranth import Array, C, Cat, Mux, Signal, signed
from amaranth.lib import data
from amaranth.lib.memory import Memory

from tritloom.firmware.isa import VectorOp
from tritloom.rtl.arith import count_registered, saturate
from tritloom.rtl.ufloat import bit_length
from tritloom.rtl.vector.command import Current, Words
from tritloom.rtl.vector.parameters import VectorParameters
from tritloom.rtl.vector.results import Results
from tritloom.rtl.vector.scales import BIAS, Program, ScaleUnit
from tritloom.rtl.vector.stages import FIXED, FIXED_BITS, Kind, Stages, Y
from tritloom.rtl.vector.work import storage

__all__ = ["Residual"]


class Residual:
    """A residual stream for each slot, 32-bit fixed point; sums are rounded to the nearest and saturated.

    `fixed`: the word in stage FIXED: of RESID, BIAS and EMBED the new residual, of GLU with silu the gates.
    """

    def __init__(self, vector: VectorParameters, current: Current, stages: Stages, words: Words, results: Results, scales: ScaleUnit):
        self._p = p = vector
        self.bias_base = Array(p.bias_bases)
        self.current, self.stages, self.words, self.results, self.scales = current, stages, words, results, scales
        self.memory = Memory(
            shape=32 * p.vector_lanes, depth=p.lanes * p.groups * p.residual_words, init=[], attrs=storage(p))
        self.read, self.write = self.memory.read_port(), self.memory.write_port()
        self.fixed = Signal(data.ArrayLayout(signed(32), p.vector_lanes), reset_less=True)

    def states(self, m):
        words, results = self.words, self.results
        with m.State("RESIDUAL SCALE"):
            with m.If(self.scales.done):
                m.d.sync += results.reading.eq(1)
                m.next = "RESIDUAL"
        with m.State("RESIDUAL"):
            with m.If(results.last_part & results.going):
                words.issue(m)
                with m.If(words.at_last):
                    m.d.sync += results.reading.eq(0)
                    m.next = "RESIDUAL END"
        with m.State("RESIDUAL END"):
            with m.If(self.stages.quiet(1, Y)):
                m.next = "NEXT SLOT"
        if self._p.adds_biases:
            self._bias_states(m)

    def _bias_states(self, m):
        """BIAS: what stands behind the gains of the command's bank, a word a cycle."""
        words, coefficients = self.words, self.words.coefficients
        with m.State("BIAS SCALE"):
            with m.If(self.scales.done):
                m.next = "BIAS"
        with m.State("BIAS"):
            words.issue(m)
            m.d.comb += coefficients.address.eq(self.bias_base[self.current.command.bank] + words.word)
            with m.If(words.at_last):
                m.next = "RESIDUAL END"

    def begin_slot(self, m):
        """In SLOT: compute the multiplier of the results."""
        m.d.comb += [self.scales.start.eq(1), self.scales.program.eq(Program.RESIDUAL)]
        m.next = "RESIDUAL SCALE"

    def begin_bias(self, m):
        """In SLOT: compute the multiplier of a bias."""
        m.d.comb += [self.scales.start.eq(1), self.scales.program.eq(BIAS)]
        m.next = "BIAS SCALE"

    def add(self, m, shifted, addend, beyond, *, saturated, left_write, trace):
        """Stages 9 to 13: add, write, and find how far the slot's words can be shifted left.

        `shifted`: products in twice fixed point; `addend`: the residuals that they are added to; `beyond`: the products did not fit.
        """
        writing = self.current.is_op(*self.current.adding, VectorOp.EMBED)
        self._sum(m, shifted, addend, beyond, writing, saturated)
        written, tag = self.fixed, self.stages.stage[FIXED]
        valid = tag.valid & writing
        m.d.comb += [
            self.write.en.eq(valid),
            self.write.addr.eq(tag.place),
            self.write.data.eq(written),
            trace.valid.eq(valid),
            trace.slot.eq(tag.slot),
            trace.addr.eq(tag.word),
            trace.data.eq(written),
        ]
        self._find_left(m, writing, left_write)

    def _sum(self, m, shifted, addend, beyond, writing, saturated):
        """Stages 9 and 10: half of what was shifted, rounded to the nearest, plus the residual, saturated."""
        stage, lanes = self.stages.stage, self._p.vector_lanes
        overs = []
        for k, value in enumerate(shifted):
            total = Signal(signed(FIXED_BITS), name=f"total{k}", reset_less=True)
            # The 1 in the bit below the residual's lowest rounds to the nearest.
            m.d.sync += total.eq((value + Cat(C(1, 1), addend[k]).as_signed()) >> 1)
            clipped, over = saturate(total, 32)
            m.d.sync += self.fixed[k].eq(clipped)
            overs.append(over)
        before = stage[FIXED - 1]
        gate = self.current.is_op(VectorOp.GLU) & (before.kind == Kind.GATE) if self._p.silu else 0
        counted = before.valid & (writing | gate)
        clamped = Signal(lanes)
        m.d.sync += clamped.eq(Mux(counted, Cat(overs) | beyond.replicate(lanes), 0))
        m.d.comb += saturated.eq(count_registered(m, list(clamped), "saturated"))

    def _find_left(self, m, writing, left_write):
        """Stages 11 to 13: the left shift that fills 31 bits with the greatest magnitude of the slot."""
        stage, lanes, written = self.stages.stage, self._p.vector_lanes, self.fixed
        ones, running, left = Signal(31), Signal(31), Signal(5)
        m.d.sync += ones.eq(reduce(or_, (Mux(written[k][31], ~written[k][:31], written[k][:31]) for k in range(lanes))))
        with m.If(stage[FIXED + 1].valid):
            m.d.sync += running.eq(Mux(stage[FIXED + 1].first, 0, running) | ones)
        m.d.sync += left.eq(31 - bit_length(m, running, "residual_length"))
        tag = stage[FIXED + 3]
        m.d.comb += [
            left_write.addr.eq(tag.slot),
            left_write.data.eq(left),
            left_write.en.eq(tag.valid & tag.last & writing),
        ]
