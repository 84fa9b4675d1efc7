"""The command that the vector unit carries out, and the words that it issues for it."""

from __future__ import annotations

from functools import reduce
from operator import or_

from amaranth import Array, C, Signal

from tritloom.firmware.commands import VECTOR
from tritloom.firmware.isa import VectorOp
from tritloom.rtl.commands import command_layout
from tritloom.rtl.vector.coefficients import Coefficients
from tritloom.rtl.vector.parameters import VectorParameters
from tritloom.rtl.vector.stages import Stages

__all__ = ["Current", "Words", "slot_bases"]


def slot_bases(vector: VectorParameters, words: int) -> Array:
    """Where each slot's vector of `words` words begins."""
    lanes = 1 << vector.token_bits
    return Array([(i // lanes * vector.lanes + i % lanes) * words for i in range(vector.slots)])


class Current:
    """The command in progress and the slot it has come to.

    `remaining`: slots left; `position`: of the slot's token in its text; `address`: in memory, of what is read or written;
    `step`: added to it in this cycle; `words`: in the vector of a slot; `lane`: the slot's lane; `idle`: no command is in progress.
    """

    def __init__(self, vector: VectorParameters):
        self.command = Signal(command_layout(VECTOR))
        # A register for each operation: the command's is decoded once.
        operations = [op for op in VectorOp if op != VectorOp.BIAS or vector.adds_biases]
        self.operation = {op: Signal(init=op == 0, name=f"is_{op.name.lower()}") for op in operations}
        # Those that add to what the residual stream is already.
        self.adding = tuple(op for op in (VectorOp.RESID, VectorOp.BIAS) if op in operations)
        self.slot, self.remaining = Signal(vector.slot_bits), Signal(8)
        self.position, self.address, self.step = Signal(32), Signal(32), Signal(32)
        longest = max(vector.max_inputs, vector.hidden + vector.head_gains, *vector.bank_lengths)
        self.words = Signal(range(longest // vector.vector_lanes + 1))
        self.lane = self.slot[: vector.token_bits] if vector.token_bits else C(0, 1)
        self.idle = Signal(init=1)

    def is_op(self, *ops: VectorOp):
        """Whether the command's operation is one of `ops`."""
        return reduce(or_, (self.operation[op] for op in ops))


class Words:
    """Issues the words of a slot's vector one after the other, with their coefficients of the command's bank.

    `word`: the next word's index; `place`: its address in the memory of residual streams or work vectors, from `base` on.
    """

    def __init__(self, vector: VectorParameters, current: Current, stages: Stages, coefficients: Coefficients):
        self.current, self.stages, self.coefficients = current, stages, coefficients
        self.word, self.place = Signal(vector.word_bits), Signal(vector.place_bits)
        self.base = Signal(vector.place_bits)
        self.at_last, self.last = Signal(), Signal.like(current.words)

    def connect(self, m):
        """Tag what is issued with the present slot, word and place."""
        issue = self.stages.issue
        m.d.comb += [
            issue.slot.eq(self.current.slot),
            issue.word.eq(self.word),
            issue.place.eq(self.place),
        ]

    def compare(self, m):
        """Know the vector's last word."""
        m.d.sync += self.last.eq(self.current.words - 1)
        m.d.comb += self.at_last.eq(self.word == self.last)

    def issue(self, m, second: int = 0):
        """Issue the next word, of the first or the second pass."""
        issue = self.stages.issue
        m.d.comb += [
            issue.valid.eq(1),
            issue.first.eq(self.word == 0),
            issue.last.eq(self.at_last),
            issue.second.eq(second),
            self.coefficients.address.eq(self.coefficients.bank_base[self.current.command.bank] + self.word),
        ]
        m.d.sync += [self.word.eq(self.word + 1), self.place.eq(self.place + 1)]

    def rewind(self, m):
        """Go back to the vector's first word."""
        m.d.sync += [self.word.eq(0), self.place.eq(self.base)]
