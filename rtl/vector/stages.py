"""Stages of the lane pipeline, and the tags of the words in it."""

from __future__ import annotations

from functools import reduce
from operator import or_

from amaranth import Signal
from amaranth.lib import data

from tritloom.rtl.vector.glu import GatedUnit
from tritloom.rtl.vector.parameters import VectorParameters
from tritloom.rtl.vector.quantise import Y_BITS, Quantiser

__all__ = ["ACCUMULATORS", "CODE", "FIXED", "FIXED_BITS", "FIXED_LEFT", "LATE_READ", "OPERAND", "Y", "Kind", "Stages"]

# Pipeline stages, counted from the cycle in which a word's addresses are issued: results (late ones a stage later), the aligning shifter's
# input, the sum of products, int8 codes, fixed point.
ACCUMULATORS, OPERAND, Y, CODE, FIXED = 2, 3, 6, 10, 10
LATE_READ = 6
"""Stage in which a residual word is read that an accumulator is added to."""

FIXED_LEFT = 8
"""How far y is shifted left at most on its way to fixed point."""
FIXED_BITS = Y_BITS + FIXED_LEFT


class Kind:
    """What a word in the lane pipeline is: the head it belongs to, or its half of a gate and up pair."""

    QUERY, KEY, VALUE = 0, 1, 2
    GATE, UP = 0, 1


class Stages:
    """The tag of the word in each stage; stage 0 is the issue itself.

    `first`, `last`: of the vector or head; `second`: of its second pass; `word`: index within the slot's vector; `place`: address
    in the memory of residual streams or of work vectors.
    """

    def __init__(self, vector: VectorParameters, gated: GatedUnit, quantiser: Quantiser):
        tag = data.StructLayout({
            "valid": 1, "first": 1, "last": 1, "second": 1, "kind": 2, "slot": vector.slot_bits, "word": vector.word_bits,
            "place": vector.place_bits,
        })
        depth = max(OPERAND + vector.spread + gated.latency, FIXED + 3, Y + quantiser.found_latency)
        self.stage = [Signal(tag, name=f"stage{i}") for i in range(depth + 1)]
        self.issue = self.stage[0]

    def advance(self, m):
        """Move every tag on by a stage."""
        for before, after in zip(self.stage, self.stage[1:], strict=False):
            m.d.sync += after.eq(before)

    def quiet(self, first: int, last: int | None = None):
        """Whether no valid word is in stages `first` to `last` (or the last one of all)."""
        return ~reduce(or_, (tag.valid for tag in self.stage[first : len(self.stage) if last is None else last + 1]))
