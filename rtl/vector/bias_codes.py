"""Codes that stand for one, behind those of a normed vector: what meets the biases of the matrices that take it."""

from __future__ import annotations

from amaranth import C, Mux, Signal, signed
from amaranth.utils import exact_log2

from tritloom.firmware.config import BIAS_CODES
from tritloom.firmware.integer import BIAS_BITS
from tritloom.rtl.arith import index_shape
from tritloom.rtl.ufloat import MANTISSA_BITS
from tritloom.rtl.vector.command import Current
from tritloom.rtl.vector.parameters import VectorParameters
from tritloom.rtl.vector.scales import ScaleUnit

__all__ = ["BiasCodes"]

DIGIT_BITS = exact_log2(BIAS_CODES)


class BiasCodes:
    """Makes the codes of `integer.bias_codes` of the reciprocal that the scale unit leaves in `u`, and writes them a word a cycle.

    `clamped`: pulses where a vector's scale is so small that the number of code steps that make one has no room.
    """

    def __init__(self, vector: VectorParameters, current: Current, scales: ScaleUnit):
        self._p, self.current, self.scales = vector, current, scales
        self.words = vector.bias_inputs // vector.vector_lanes
        self.number, self.right, self.exponent = Signal(BIAS_BITS), Signal(signed(13)), Signal(max(1, vector.exponent_bits))
        self.word, self.writing, self.clamped = Signal(index_shape(self.words)), Signal(), Signal()

    @property
    def wanted(self):
        """The command's codes are those of a normed residual stream, and for matrices."""
        command = self.current.command
        return command.norm & ~command.source & ~command.dest.any()

    def begin(self, m):
        """When the scale unit is done: take the reciprocal."""
        u = self.scales.u
        m.d.sync += [self.number.eq(u.m[MANTISSA_BITS - BIAS_BITS :]), self.right.eq(-u.e - (MANTISSA_BITS - BIAS_BITS)), self.word.eq(0)]
        m.next = "ONE"

    def states(self, m):
        """ONE: shift the number to the right as far as the exponent does not. ONE CODES: a word of codes a cycle."""
        most, low = self._p.group_exponents, self.right < 0
        with m.State("ONE"):
            m.d.sync += self.exponent.eq(Mux(low, 0, Mux(self.right > most, most, self.right[: len(self.exponent)])))
            with m.If(low):
                m.d.sync += self.number.eq(-1)
                m.d.comb += self.clamped.eq(1)
            with m.If((self.right > most) & (self.number != 0)):
                m.d.sync += [self.number.eq(self.number >> 1), self.right.eq(self.right - 1)]
            with m.Else():
                m.next = "ONE CODES"
        with m.State("ONE CODES"):
            m.d.comb += self.writing.eq(1)
            m.d.sync += self.word.eq(self.word + 1)
            with m.If(self.word == self.words - 1):
                m.next = "NEXT SLOT"

    def connect(self, m, code_write):
        """Write codes when no others leave."""
        p = self._p
        each, rest = self.number[DIGIT_BITS:], self.number[:DIGIT_BITS]
        with m.If(self.writing):
            m.d.comb += [code_write.valid.eq(1), code_write.slot.eq(self.current.slot),
                         code_write.addr.eq(p.hidden // p.vector_lanes + self.word)]
            for lane in range(p.vector_lanes):
                more = Mux(self.word == BIAS_CODES // p.vector_lanes - 1, rest, 0) if lane == p.vector_lanes - 1 else C(0, 1)
                m.d.comb += code_write.data[8 * lane : 8 * (lane + 1)].eq(each + more)
            if p.group_exponents:
                m.d.comb += code_write.exponent.eq(self.exponent)
