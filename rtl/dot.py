"""The multipliers of one attention lane: dot products against rows, or weighted sums of rows."""

from __future__ import annotations

from math import ceil, log

from amaranth import Cat, Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import bits_for

from tritloom.firmware.config import CHUNK

__all__ = ["WEIGHT_BITS", "DotLane", "accumulator_bits", "delay", "dot_bits", "index_shape", "step_layout"]

WEIGHT_BITS = 17
"""Bits of probability * value scale, unsigned."""


def index_shape(count: int):
    """Shape of an index below `count`, at least one bit."""
    return unsigned(max(1, bits_for(count - 1)))


def dot_bits(inputs: int) -> int:
    """Signed bits of a dot product of int8 codes."""
    return (127 * 128 * inputs).bit_length() + 1


def accumulator_bits(context: int) -> int:
    """Signed bits of a sum of `context` value codes, each times a weight."""
    return 25 + context.bit_length()


def delay(m: Module, value, cycles: int, name: str):
    """`value` as it was `cycles` cycles ago."""
    for _ in range(cycles):
        after = Signal(value.shape(), name=name)
        m.d.sync += after.eq(value)
        value = after
    return value


def step_layout(*, words: int, rows: int, lanes: int) -> data.StructLayout:
    """What the multipliers do in a cycle: `macs` bytes of a row, with their place in the work.

    `values`: add the row, times its weight, to the output; else take its dot product. `rescale`: only shift
    the output word. `fresh`: the output word starts from zero. `first`, `last`: the row's first, last word.
    `head`: a row of the vocabulary, whose logit is wanted if `emit`. `ends_half`, `ends_pass`: the last of a
    chunk's keys, of a pass's values. `remaining`: positions from the chunk's first to the furthest lane's own,
    limited. `active`: lanes in use.
    """
    return data.StructLayout({
        "valid": 1, "values": 1, "rescale": 1, "fresh": 1, "first": 1, "last": 1, "word": index_shape(words), "bank": 1,
        "row": index_shape(max(rows, CHUNK)), "parity": 1, "head": 1, "emit": 1, "ends_half": 1, "ends_pass": 1,
        "remaining": range(CHUNK + lanes), "active": range(lanes + 1),
    })


class DotLane(wiring.Component):
    """Multiply streamed int8 rows by one lane's query, or by one weight per row, and sum.

    `macs` multipliers serve both uses. In a dot product the lane's own vector meets each row and an adder
    tree sums; for values each byte, times the row's weight, joins its element of the output in a memory.
    Rescaling shifts an output word right by 0, 1 or 8.

    Latency: `latency` cycles from the step with a row's last word to `dot`. A step sees the sums of every
    step before it.

    Throughput: one step per cycle; never stalls.

    Parameters
    ----------
    macs : int
        A, multipliers.
    head_words : int
        Words of A bytes in a head.
    vector_words : int
        Longest own vector in words: twice a head (two banks), or more for the lane that serves the LM head.
    sum_bits : int
        Width of a dot product.
    output_bits : int
        Width of an output element.
    step : data.StructLayout

    Members
    -------
    step : In, bytes : In(8*macs)
    scale_one, scale_eight : In(1)
        How far a rescaling step shifts: by 1, by 8.
    vector_write : {en, addr, data}, weight_write : {en, addr, data}
        Own vector, a word at a time; weights of two chunks.
    dot : Out(signed(sum_bits))
    read_en, read_word : In, output : Out(macs*output_bits)
        Read an output word while no step is in flight; data one cycle later.
    """

    def __init__(self, *, macs: int, head_words: int, vector_words: int, sum_bits: int, output_bits: int, step: data.StructLayout):
        if macs < 2 or macs & (macs - 1):
            raise ValueError(f"macs must be a power of two from 2, not {macs}")
        if head_words < 1:
            raise ValueError(f"head_words must be positive, not {head_words}")
        self._macs, self._head_words, self._output_bits, self._sum_bits = macs, head_words, output_bits, sum_bits
        self._bank_bits = (head_words - 1).bit_length()
        self._vector_words = max(vector_words, 2 << self._bank_bits)
        self.latency = 4 + self.tree_levels(macs)
        super().__init__({
            "step": In(step),
            "bytes": In(8 * macs),
            "scale_one": In(1),
            "scale_eight": In(1),
            "vector_write": In(wiring.Signature({"en": Out(1), "addr": Out(index_shape(self._vector_words)), "data": Out(8 * macs)})),
            "weight_write": In(wiring.Signature({"en": Out(1), "addr": Out(index_shape(2 * CHUNK)), "data": Out(WEIGHT_BITS)})),
            "dot": Out(signed(sum_bits)),
            "read_en": In(1),
            "read_word": In(index_shape(head_words)),
            "output": Out(macs * output_bits),
        })

    @staticmethod
    def tree_levels(macs: int) -> int:
        """Registered levels of the adder tree, four sums each."""
        return ceil(log(macs, 4) - 1e-9)

    def elaborate(self, platform):
        m = Module()
        macs = self._macs
        control = data.StructLayout({"valid": 1, "values": 1, "rescale": 1, "fresh": 1, "first": 1, "one": 1, "eight": 1,
                                     "word": self.step.word.shape()})
        s0 = Signal(control)
        m.d.comb += [s0[name].eq(self.step[name]) for name in ("valid", "values", "rescale", "fresh", "first", "word")]
        m.d.comb += [s0.one.eq(self.step.rescale & self.scale_one), s0.eight.eq(self.step.rescale & self.scale_eight)]
        s1, s2, s3 = (Signal(control, name=f"s{i}") for i in (1, 2, 3))
        m.d.sync += [s1.eq(s0), s2.eq(s1), s3.eq(s2)]

        # Cycle 0: fetch the vector's word and the row's weight.
        vector, weight = self._fetch(m)
        s1_bytes = Signal(8 * macs)
        with m.If(s0.valid):
            m.d.sync += s1_bytes.eq(self.bytes)

        # Cycle 1: choose the operands. Cycle 2: multiply.
        s2_a = Signal(data.ArrayLayout(signed(WEIGHT_BITS + 1), macs))
        s2_b = Signal(data.ArrayLayout(signed(8), macs))
        s3_product = Signal(data.ArrayLayout(signed(WEIGHT_BITS + 8), macs))
        with m.If(s1.valid):
            m.d.sync += s2_b.eq(s1_bytes)
            for i in range(macs):
                own = vector.word_select(i, 8).as_signed()
                m.d.sync += s2_a[i].eq(Mux(s1.rescale, 0, Mux(s1.values, weight, own)))
        with m.If(s2.valid):
            m.d.sync += [s3_product[i].eq(s2_a[i] * s2_b[i]) for i in range(macs)]

        self._accumulate(m, s2, s3, s3_product)
        self._sum(m, s3, s3_product)
        return m

    def _fetch(self, m):
        m.submodules.vector = store = memory.Memory(shape=8 * self._macs, depth=self._vector_words, init=[])
        write, read = store.write_port(), store.read_port()
        banked = Cat(self.step.word[:self._bank_bits], self.step.bank)
        m.d.comb += [
            write.en.eq(self.vector_write.en), write.addr.eq(self.vector_write.addr), write.data.eq(self.vector_write.data),
            read.en.eq(self.step.valid), read.addr.eq(Mux(self.step.head, self.step.word, banked)),
        ]
        m.submodules.weights = weights = memory.Memory(shape=WEIGHT_BITS, depth=2 * CHUNK, init=[])
        weight_write, weight_read = weights.write_port(), weights.read_port()
        m.d.comb += [
            weight_write.en.eq(self.weight_write.en), weight_write.addr.eq(self.weight_write.addr),
            weight_write.data.eq(self.weight_write.data),
            weight_read.en.eq(self.step.valid), weight_read.addr.eq(Cat(self.step.row[:4], self.step.parity)),
        ]
        return read.data, weight_read.data

    def _accumulate(self, m, s2, s3, product):
        """Cycle 3: add products to the output word read in cycle 2."""
        bits = self._output_bits
        word = Signal(data.ArrayLayout(signed(bits), self._macs))
        updated = Signal.like(word)
        for i in range(self._macs):
            scaled = Mux(s3.eight, word[i] >> 8, Mux(s3.one, word[i] >> 1, word[i]))
            m.d.comb += updated[i].eq(Mux(s3.fresh, 0, scaled) + product[i])
        store_it = s3.valid & s3.values
        if self._head_words == 1:
            with m.If(store_it):
                m.d.sync += word.eq(updated)
        else:
            m.submodules.outputs = store = memory.Memory(shape=self._macs * bits, depth=self._head_words, init=[])
            write, read = store.write_port(), store.read_port()
            m.d.comb += [
                write.en.eq(store_it), write.addr.eq(s3.word), write.data.eq(updated),
                read.en.eq((s2.valid & s2.values) | self.read_en), read.addr.eq(Mux(self.read_en, self.read_word, s2.word)),
                word.eq(read.data),
            ]
        m.d.comb += self.output.eq(word)

    def _sum(self, m, s3, product):
        """Cycle 3 on: the adder tree, then the sum over a row's words."""
        valid, first = s3.valid & ~s3.values, s3.first
        terms = [product[i][:16].as_signed() for i in range(self._macs)]
        level = 0
        while len(terms) > 1:
            above = []
            for i in range(0, len(terms), 4):
                part = terms[i:i + 4]
                total = Signal(signed(len(part[0]) + (len(part) - 1).bit_length()), name=f"level{level}_{i // 4}")
                with m.If(valid):
                    m.d.sync += total.eq(sum(part[1:], part[0]))
                above.append(total)
            valid, first = delay(m, valid, 1, f"level{level}_valid"), delay(m, first, 1, f"level{level}_first")
            terms, level = above, level + 1
        assert level == self.tree_levels(self._macs)
        with m.If(valid):
            m.d.sync += self.dot.eq(Mux(first, 0, self.dot) + terms[0])
