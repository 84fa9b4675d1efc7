"""NORMQ: RMSNorm and quantisation of a slot's residual stream or work vector, in two passes.

Where it rounds: elements are aligned by cutting off low bits (`residual_operand`, `work_operand`), squares leave out SQUARED_DROP of them,
the scale is computed step by step (`scales.Program.NORM`), and codes are rounded to the nearest (`quantise.Quantiser`). Whatever is
changed here must be changed in `firmware.integer` first, which says what is computed.
"""

from __future__ import annotations

from amaranth import C, Cat, Mux

from tritloom.firmware import integer
from tritloom.rtl.arith import sign_extend
from tritloom.rtl.vector.bias_codes import BiasCodes
from tritloom.rtl.vector.command import Words
from tritloom.rtl.vector.parameters import ALIGNER_BITS
from tritloom.rtl.vector.passes import TwoPasses
from tritloom.rtl.vector.scales import ScaleUnit
from tritloom.rtl.vector.stages import CODE, Stages

__all__ = ["Norm"]

SQUARED_DROP = 6
"""Low bits of an aligned element that its square leaves out."""


class Norm:
    """Passes the vector through the lanes twice: for its maximum and the sum of squares, then for its codes, and those that stand for one
    (`one`) behind them, where there are any."""

    def __init__(self, stages: Stages, words: Words, passes: TwoPasses, scales: ScaleUnit, one: BiasCodes | None):
        self.stages, self.words, self.passes, self.scales, self.one = stages, words, passes, scales, one

    def states(self, m):
        words, scales = self.words, self.scales
        with m.State("FIRST PASS"):
            words.issue(m)
            with m.If(words.at_last):
                words.rewind(m)
                m.next = "WAIT RECIPROCAL"
        with m.State("WAIT RECIPROCAL"):
            with m.If(self.passes.pending):
                m.d.sync += self.passes.pending.eq(0)
                m.next = "SECOND PASS"
        with m.State("SECOND PASS"):
            words.issue(m, second=1)
            with m.If(words.at_last):
                m.next = "NORMQ END"
        with m.State("NORMQ END"):
            with m.If(self.stages.quiet(1, CODE - 1) & ~scales.busy & ~scales.done):
                m.next = "NEXT SLOT"
                if self.one is not None:
                    with m.If(self.one.wanted):
                        self.one.begin(m)
        if self.one is not None:
            self.one.states(m)

    # Operands of the lanes -------------------------------------------------------------------------

    @staticmethod
    def residual_operand(residual, left):
        """A residual for the aligning shifter, and its right shift: what was shifted left by `left` fills ACTIVATION_BITS, and the bits
        below are cut off."""
        return Cat(C(0, ALIGNER_BITS - 32), residual), ~left

    @staticmethod
    def work_operand(mantissa, distance):
        """A work element for the aligning shifter, and its right shift: it is aligned to the vector's greatest exponent, `distance` away,
        and the bits below are cut off."""
        return sign_extend(mantissa, ALIGNER_BITS), Mux(distance[5:].any(), 31, distance[:5])

    @staticmethod
    def factors(aligned, gain, with_gain):
        """What an aligned element is multiplied by, its gain or one, and what of it is squared."""
        return Mux(with_gain, gain, 1 << integer.GAIN_ONE), aligned[SQUARED_DROP:]
