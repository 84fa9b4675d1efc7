"""The multipliers of one attention lane: dot products against rows, or weighted sums of rows."""

from __future__ import annotations

from math import ceil, log

from amaranth import C, Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out

from tritloom.firmware.config import CHUNK
from tritloom.rtl.arith import index_shape, sign_extend
from tritloom.rtl.attention.parameters import WEIGHT_BITS
from tritloom.rtl.once import once

__all__ = ["DotLane", "delay", "dot_bits"]

LOW_BITS = WEIGHT_BITS - 8
"""Bits of a weight below those that share their multiplier input with the codes of the lane's own vector."""
PRODUCT_BITS = WEIGHT_BITS + 8

KEEP_ALL, KEEP_FIRST_BIT, KEEP_EIGHTH_BIT, KEEP_NONE = range(4)
"""What stays of an output word: the bits from the lowest, the first, the eighth on; nothing."""


def dot_bits(inputs: int) -> int:
    """Signed bits of a dot product of int8 codes."""
    return (127 * 128 * inputs).bit_length() + 1


def delay(m: Module, value, cycles: int, name: str):
    """`value` as it was `cycles` cycles ago."""
    for _ in range(cycles):
        after = Signal(value.shape(), name=name)
        m.d.sync += after.eq(value)
        value = after
    return value


@once
class DotLane(wiring.Component):
    """Multiply streamed int8 rows by one lane's query, or by a weight per row, and sum.

    `macs` multipliers serve both uses; a step brings a word of macs/rows bytes of each of `rows` rows side by side.
    In a dot product the lane's own vector meets each row and an adder tree per row sums; of the LM head a step
    brings `macs` bytes of one row, and the trees' sums are added. For values each byte, times its row's weight, joins
    its element of the output in a memory. Rescaling shifts an output word right by 0, 1 or 8.

    The products of `rows` neighbouring multipliers are added first, in both uses: these are bytes of one row in a dot
    product, but the rows' bytes of one element among values, whose bytes come in that order (`by_element`).

    Latency: `latency` cycles from the step with the rows' last word to `dot`, which then shows the rows one per
    cycle. A step sees the sums of every step before it.

    Throughput: one step per cycle; never stalls.

    Parameters
    ----------
    macs : int
        A, multipliers.
    rows : int
        R, keys or values side by side; a power of two.
    head_words : int
        Words of A/R bytes in a head, at least R.
    vector_words : int
        Words of A bytes in the hidden vector.
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
        Own vector, a word at a time (a query's word as often as there are rows); weights of two chunks.
    dot : Out(signed(sum_bits))
    read_en, read_word : In, output : Out(macs/rows*output_bits)
        Read an output word while no step is in flight; data one cycle later.
    """

    def __init__(self, *, macs: int, rows: int, head_words: int, vector_words: int, sum_bits: int, output_bits: int,
                 step: data.StructLayout):
        if macs < 2 or macs & (macs - 1):
            raise ValueError(f"macs must be a power of two from 2, not {macs}")
        if rows < 1 or rows & (rows - 1) or 2 * rows > macs or rows * rows > macs:
            raise ValueError(f"rows must be a power of two up to macs/2 ({macs // 2}) and to macs/rows, not {rows}")
        if head_words < rows:
            raise ValueError(f"head_words must be {rows} or more, one per row, not {head_words}")
        self._macs, self._rows, self._head_words, self._output_bits, self._sum_bits = macs, rows, head_words, output_bits, sum_bits
        self._width = macs // rows
        self._bank_bits = (head_words - 1).bit_length()
        self._vector_words = max(vector_words, 2 << self._bank_bits)
        self.latency = self.dot_latency(macs, rows)
        word = self._width
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
            "output": Out(word * output_bits),
        })

    @staticmethod
    def tree_levels(terms: int) -> int:
        """Registered levels of an adder tree, four sums each."""
        return ceil(log(terms, 4) - 1e-9)

    @staticmethod
    def by_element(value: Value, rows: int) -> Value:
        """Bytes of rows side by side, reordered: those of an element are neighbours."""
        width = len(value) // (8 * rows)
        return Cat(value.word_select(part * width + i, 8) for i in range(width) for part in range(rows))

    @classmethod
    def dot_latency(cls, macs: int, rows: int) -> int:
        return 4 + cls.tree_levels(rows) + cls.tree_levels(macs // rows // rows) + (rows > 1)

    @classmethod
    def output_delay(cls, rows: int) -> int:
        """Cycles that joining the rows' products adds on the way to the output."""
        return cls.tree_levels(rows)

    def elaborate(self, platform):
        m = Module()
        macs = self._macs
        control = data.StructLayout({"valid": 1, "values": 1, "first": 1, "last": 1, "head": 1, "keep": 2, "weighted": self._rows,
                                     "word": self.step.word.shape()})
        stages = [Signal(control, name="s0")]
        s0 = stages[0]
        m.d.comb += [s0[name].eq(self.step[name]) for name in ("valid", "values", "first", "last", "head", "word")]
        m.d.comb += [s0.weighted.eq(Mux(self.step.values & ~self.step.rescale, self.step.parts, 0)),
                     s0.keep.eq(Mux(self.step.fresh, KEEP_NONE, Mux(~self.step.rescale, KEEP_ALL, Mux(
                         self.scale_eight, KEEP_EIGHTH_BIT, Mux(self.scale_one, KEEP_FIRST_BIT, KEEP_ALL)))))]
        for i in range(1, 4 + self.output_delay(self._rows)):
            stages.append(delay(m, stages[-1], 1, f"s{i}"))
        _, s1, s2, s3, *_ = stages

        # Cycle 0: fetch the vector's word and the rows' weights.
        vector, weights = self._fetch(m)
        s1_bytes = Signal(8 * macs)
        with m.If(s0.valid):
            m.d.sync += s1_bytes.eq(self.bytes)

        # Cycle 1: select the operands. Cycle 2: multiply. The lane's own vector shares the multiplier's input with the weights' top bits;
        # the low bits are the weights' alone, and zero in a dot product.
        s2_low = [Signal(LOW_BITS, name=f"s2_low{part}") for part in range(self._rows)]
        s2_high = Signal(data.ArrayLayout(signed(WEIGHT_BITS + 1 - LOW_BITS), macs))
        s2_b = Signal(data.ArrayLayout(signed(8), macs))
        s3_product = Signal(data.ArrayLayout(signed(PRODUCT_BITS), macs))
        with m.If(s1.valid):
            m.d.sync += s2_b.eq(s1_bytes)
            for part, low in enumerate(s2_low):
                m.d.sync += low.eq(Mux(s1.weighted[part], weights[part], 0))
            for i in range(macs):
                own, weight = vector.word_select(i, 8), weights[i % self._rows][LOW_BITS:]
                m.d.sync += s2_high[i].eq(Cat(Mux(s1.values, Mux(s1.weighted[i % self._rows], weight, 0), own),
                                              ~s1.values & own[-1]).as_signed())
        with m.If(s2.valid):
            m.d.sync += [s3_product[i].eq(Cat(s2_low[i % self._rows], s2_high[i]).as_signed() * s2_b[i]) for i in range(macs)]

        # Cycle 3: add the products of R neighbours.
        joined = [[s3_product[i + part] for part in range(self._rows)] for i in range(0, macs, self._rows)]
        for level in range(self.output_delay(self._rows)):
            joined = [_level(m, terms, stages[3 + level].valid, f"joined{level}_{i}") for i, terms in enumerate(joined)]
        joined = [total for total, in joined]
        self._accumulate(m, stages, joined)
        self._sum(m, stages[-1], joined)
        return m

    def _fetch(self, m):
        m.submodules.vector = store = memory.Memory(shape=8 * self._macs, depth=self._vector_words, init=[])
        write, read = store.write_port(), store.read_port()
        banked = Cat(self.step.word[:self._bank_bits], self.step.bank)
        m.d.comb += [
            write.en.eq(self.vector_write.en), write.addr.eq(self.vector_write.addr), write.data.eq(self.vector_write.data),
            read.en.eq(self.step.valid), read.addr.eq(Mux(self.step.head, self.step.word, banked)),
        ]
        weights_layout = data.ArrayLayout(WEIGHT_BITS, self._rows)
        m.submodules.weights = weights = memory.Memory(shape=weights_layout, depth=2 * CHUNK // self._rows, init=[])
        weight_write, weight_read = weights.write_port(granularity=1), weights.read_port()
        bits = (self._rows - 1).bit_length()
        given = self.weight_write
        m.d.comb += [
            weight_write.en.eq(Mux(given.en, C(1, self._rows) << given.addr[:bits], 0)), weight_write.addr.eq(given.addr[bits:]),
            Value.cast(weight_write.data).eq(given.data.replicate(self._rows)),
            weight_read.en.eq(self.step.valid), weight_read.addr.eq(Cat(self.step.row[bits:4], self.step.parity)),
        ]
        return read.data, weight_read.data

    def _accumulate(self, m, stages, terms):
        """Add the joined products to the output word read a cycle before."""
        bits, width = self._output_bits, self._width
        before, now = stages[-2:]
        word = Signal(data.ArrayLayout(signed(bits), width))
        updated = Signal.like(word)
        for i, term in enumerate(terms):
            # Three bits of the word, two of `keep` and one of the term: one 6-input LUT before the carry.
            kept = Mux(now.keep[1], Mux(now.keep[0], 0, word[i] >> 8), Mux(now.keep[0], word[i] >> 1, word[i]))
            m.d.comb += updated[i].eq(sign_extend(term, bits) + kept)
        store_it = now.valid & now.values
        if self._head_words == 1:
            with m.If(store_it):
                m.d.sync += word.eq(updated)
        else:
            m.submodules.outputs = store = memory.Memory(shape=width * bits, depth=self._head_words, init=[])
            write, read = store.write_port(), store.read_port()
            m.d.comb += [
                write.en.eq(store_it), write.addr.eq(now.word), write.data.eq(updated),
                read.en.eq((before.valid & before.values) | self.read_en), read.addr.eq(Mux(self.read_en, self.read_word, before.word)),
                word.eq(read.data),
            ]
        m.d.comb += self.output.eq(word)

    def _sum(self, m, now, terms):
        """A tree for each row, the sum over its words, then the rows one by one or, of the head, together."""
        valid, first, done, head = now.valid & ~now.values, now.first, now.last, now.head
        groups, bits = len(terms) // self._rows, LOW_BITS + 16 + (self._rows - 1).bit_length()
        rows = [[terms[part * groups + i][LOW_BITS:bits].as_signed() for i in range(groups)] for part in range(self._rows)]
        for level in range(self.tree_levels(groups)):
            rows = [_level(m, terms, valid, f"level{level}_{part}") for part, terms in enumerate(rows)]
            valid, first, done, head = (delay(m, flag, 1, f"level{level}_{name}")
                                        for flag, name in ((valid, "valid"), (first, "first"), (done, "done"), (head, "head")))
        sums = [self.dot] if self._rows == 1 else [Signal.like(self.dot, name=f"sum{part}") for part in range(self._rows)]
        with m.If(valid):
            for total, (term,) in zip(sums, rows, strict=True):
                m.d.sync += total.eq(Mux(first, 0, total) + term)
        if self._rows > 1:
            complete, of_head = delay(m, valid & done, 1, "complete"), delay(m, head, 1, "of_head")
            waiting = [Signal.like(self.dot, name=f"waiting{part}") for part in range(1, self._rows)]
            m.d.sync += [self.dot.eq(waiting[0]), *(here.eq(there) for here, there in zip(waiting, waiting[1:], strict=False))]
            with m.If(complete):
                m.d.sync += [self.dot.eq(Mux(of_head, sum(sums[1:], sums[0]), sums[0])),
                             *(here.eq(total) for here, total in zip(waiting, sums[1:], strict=True))]


def _level(m: Module, terms: list, valid, name: str) -> list:
    """Registered sums of four terms each, updated when `valid`."""
    above = []
    for i in range(0, len(terms), 4):
        part = terms[i:i + 4]
        total = Signal(signed(len(part[0]) + (len(part) - 1).bit_length()), name=f"{name}_{i // 4}")
        while len(part) > 1:
            part = [_add(*pair) for pair in zip(part[::2], part[1::2], strict=True)]
        with m.If(valid):
            m.d.sync += total.eq(part[0])
        above.append(total)
    return above


def _add(a: Value, b: Value) -> Value:
    """Sum of two signed values of one width, one bit wider.

    Extended by hand: synthesis would turn a tree of plain sums into carry-save adders, which take twice the LUTs.
    """
    width = len(a) + 1
    return (sign_extend(a, width) + sign_extend(b, width))[:width].as_signed()
