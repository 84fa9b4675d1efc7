"""Norms of query and key heads: their gains meet cosines and sines before the head does, their squares are summed as it is rotated."""

from __future__ import annotations

from amaranth import C, Cat, Mux, Signal, signed
from amaranth.lib import data
from amaranth.lib.memory import Memory

from tritloom.firmware.integer import ROPE_BITS
from tritloom.rtl.arith import index_shape
from tritloom.rtl.vector.coefficients import Coefficients
from tritloom.rtl.vector.command import Current
from tritloom.rtl.vector.loads import Loads
from tritloom.rtl.vector.parameters import VectorParameters
from tritloom.rtl.vector.stages import Kind

__all__ = ["HeadNorms", "exact_square"]

_READ, _PRODUCT, _ROUNDED = 3, 4, 5
"""Cycles from the address of a word of coefficients to the word, to its products, and to what is kept of them."""
LOW_BITS = 11
"""Of an accumulator that is squared, as two products of 18 bits at most on one side."""


class HeadNorms:
    """For a slot's queries and keys, cosines and sines times their gains (`integer.gained`), in a memory that the heads read.

    Of each word of V rotary factors three reads, one a cycle: the factors, the queries' gains, the keys'. Lane k needs cos * its own gain
    and sin * that of its pair's other element.

    `address`: a word of a head, of keys behind those of queries; `cosines`, `sines`: in stage OPERAND, what it was read for in stage 0.
    """

    def __init__(self, vector: VectorParameters, current: Current, coefficients: Coefficients, loads: Loads):
        self._p, self.current, self.coefficients, self.loads = vector, current, coefficients, loads
        words = vector.head_words
        self._factor = data.ArrayLayout(signed(16), vector.vector_lanes)
        self.address = Signal(index_shape(2 * words))
        self.cosines, self.sines = (Signal(self._factor, name=name, reset_less=True) for name in ("gained_cos", "gained_sin"))
        self._word, self._phase = Signal(index_shape(words)), Signal(2)
        self._reading, self._waited = Signal(), Signal(range(_ROUNDED + 1))

    def states(self, m):
        """HEAD GAINS: before a slot's heads."""
        p, words = self._p, self._p.head_words
        gains = self.coefficients.bank_base[self.current.command.bank] + p.hidden // p.vector_lanes
        with m.State("HEAD GAINS"):
            m.d.comb += self._reading.eq(self._waited == 0)
            with m.Switch(self._phase):
                with m.Case(0):
                    m.d.comb += self.coefficients.address.eq(self.loads.rope + self._word)
                with m.Case(1):
                    m.d.comb += self.coefficients.address.eq(gains + self._word)
                with m.Default():
                    m.d.comb += self.coefficients.address.eq(gains + words + self._word)
            with m.If(self._reading):
                m.d.sync += self._phase.eq(self._phase + 1)
                with m.If(self._phase == 2):
                    m.d.sync += [self._phase.eq(0), self._word.eq(self._word + 1)]
                    with m.If(self._word == words - 1):
                        m.d.sync += [self._word.eq(0), self._waited.eq(1)]
            with m.Else():
                m.d.sync += self._waited.eq(self._waited + 1)
                with m.If(self._waited == _ROUNDED):
                    m.d.sync += self._waited.eq(0)
                    m.next = "QKV"

    def connect(self, m):
        """Products of what is read, into the memory, and its reads for the heads."""
        p, lanes = self._p, self._p.vector_lanes
        read, factors = self.coefficients.read, Signal(self._factor, name="rotary", reset_less=True)
        tag = data.StructLayout({"valid": 1, "phase": 2, "word": len(self._word)})
        tags = [Signal(tag, name=f"gained_tag{n}") for n in range(_ROUNDED + 1)]
        m.d.comb += [tags[0].valid.eq(self._reading), tags[0].phase.eq(self._phase), tags[0].word.eq(self._word)]
        m.d.sync += [after.eq(before) for before, after in zip(tags, tags[1:], strict=False)]
        with m.If(tags[_READ].phase == 0):
            m.d.sync += factors.eq(read)
        m.submodules.turned = turned = Memory(shape=32 * lanes, depth=2 * p.head_words, init=[])
        write, found = turned.write_port(), turned.read_port()
        kept = Signal(32 * lanes, reset_less=True)
        for k in range(lanes):
            cosine, sine = factors[k & ~1], factors[k | 1]
            for n, (factor, gain) in enumerate(((cosine, read[k]), (sine, read[k ^ 1]))):
                product = Signal(signed(32), name=f"gained{k}_{n}", reset_less=True)
                m.d.sync += [product.eq(factor * gain),
                             kept[16 * (2 * k + n) : 16 * (2 * k + n + 1)].eq((product + (1 << (ROPE_BITS - 1))) >> ROPE_BITS)]
        last = tags[_ROUNDED]
        m.d.comb += [write.en.eq(last.valid & (last.phase != 0)), write.data.eq(kept),
                     write.addr.eq(last.word + Mux(last.phase == 2, p.head_words, 0))]
        address = Signal.like(self.address)
        m.d.sync += address.eq(self.address)
        m.d.comb += found.addr.eq(address)
        for k in range(lanes):
            word = found.data[32 * k : 32 * (k + 1)]
            m.d.sync += [self.cosines[k].eq(word[:16].as_signed()), self.sines[k].eq(word[16:].as_signed())]

    def place(self, kind, head_word):
        """The word of the memory for a word of a head of this kind."""
        return head_word + Mux(kind == Kind.KEY, self._p.head_words, 0)


def exact_square(m, value, name: str):
    """value**2 of a signed value, two cycles later."""
    low, high = value[:LOW_BITS], value[LOW_BITS:].as_signed()
    below = Signal(signed(len(value) + LOW_BITS), name=f"{name}_low", reset_less=True)
    above = Signal(signed(2 * len(value) - LOW_BITS), name=f"{name}_high", reset_less=True)
    total = Signal(2 * len(value) - 1, name=name, reset_less=True)
    m.d.sync += [below.eq(value * low), above.eq(value * high), total.eq(Cat(C(0, LOW_BITS), above).as_signed() + below)]
    return total
