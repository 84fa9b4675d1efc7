"""Read the results of the ternary matrices, following those that are in progress."""

from __future__ import annotations

from amaranth import Mux, Signal, signed

from tritloom.firmware.isa import VectorOp
from tritloom.rtl.arith import index_shape
from tritloom.rtl.vector.command import Current
from tritloom.rtl.vector.parameters import VectorParameters

__all__ = ["Results"]


class Results:
    """The read port of the matrices' results, and when it may be used.

    `reading`: high in the states that read results; `again`: high in a head's second pass, whose results are known to be written.
    `address`, `part`: the word that is read, and which of its parts; `allowed`: the next word may be read; `going`: it may, or its
    first part has been; `last_part`: this is the word's last part. `slot_begins`: driven by `Dispatch`.
    """

    def __init__(self, vector: VectorParameters, current: Current, port, matrices):
        self.parts, self.current, self.port, self.matrices = vector.acc_parts, current, port, matrices
        self.address, self.part, self.last_part = Signal(vector.word_bits), Signal(index_shape(vector.acc_parts)), Signal()
        self.reading, self.again, self.allowed, self.going = Signal(), Signal(), Signal(), Signal()
        # Matrices in progress up to the one that the command follows, itself included.
        self.before = Signal.like(matrices.under_way)
        self.slot_begins = Signal()
        self.due = Signal(signed(len(self.before) + 2))

    def read(self, m, word):
        """Read word after word, the parts of each one after the other."""
        port = self.port
        m.d.comb += [
            port.slot.eq(self.current.slot),
            port.addr.eq(self.address),
            port.part.eq(self.part),
            self.address.eq(word),
            port.en.eq(self.reading & (self.going | self.again)),
            self.going.eq(self.allowed | (self.part != 0)),
            self.last_part.eq(self.part == self.parts - 1),
        ]
        with m.If(port.en):
            m.d.sync += self.part.eq(Mux(self.last_part, 0, self.part + 1))

    def follow(self, m, given, word, head_word):
        """Allow a read in the next cycle if the followed matrix is done, or, for RESID and QKV, if it has written the word already.

        Addresses (`word`, of QKV `head_word`) grow by one a cycle at most. GLU waits for whole matrices, as it cannot stop between
        a gate and its up. `given`: the next command.
        """
        current, matrices, before = self.current, self.matrices, self.before
        reach = Mux(current.is_op(VectorOp.QKV), head_word, word)
        written = matrices.begun & ~current.is_op(VectorOp.GLU) & (matrices.words > reach + 1)
        m.d.sync += self.allowed.eq(~self.slot_begins & ((before == 0) | ((before == 1) & written)))
        m.d.comb += self.due.eq(matrices.under_way - given.follow + 1)
        with m.If(matrices.done & (before != 0)):
            m.d.sync += before.eq(before - 1)

    def begin(self, given):
        """The statement that takes the matrix to follow from a command."""
        return self.before.eq(Mux((given.follow != 0) & (self.due > 0), self.due, 0))
