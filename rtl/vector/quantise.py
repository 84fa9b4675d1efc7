"""Absmax quantisation of a stream of segments in two passes (`integer.quantise`)."""

from __future__ import annotations

from amaranth import Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from tritloom.rtl.arith import add, larger, magnitude, reduce_registered

__all__ = ["Quantiser"]

Y_BITS = 40
SQUARE_BITS = 35
NORMAL_BITS = 24


class Quantiser(wiring.Component):
    """Find the maximum of a segment, and with its reciprocal turn the same segment into int8 codes.

    `y` passes twice. In the first pass (`valid`, not `second`) the greatest |y| of the words from
    `first` to `last` and the sum of their `squares` are taken: with `found`, `top` holds the maximum
    until the next `found`; `total` keeps the sum until the next first pass. In the second pass every
    word leaves as codes. `reciprocal` is that of the segment whose word is at `y`. `squares` comes one cycle before its
    `y`, and `normal`, the word's y shifted left until the maximum has 23 bits, `normal_delay` cycles after it.

    Latency: `latency` cycles from `y` to `codes`, `found_latency` from the last word to `found`.

    Throughput: one word per cycle, never stalls.

    Parameters
    ----------
    vector_lanes : int
        Elements per word, a power of two.
    max_elements : int
        Longest segment.
    head_squares : tuple
        Bits of a square of a head's elements, and their number; zeros where heads have no sum of squares.
    peaks : bool
        Whether there is `peak`.

    Members
    -------
    valid, first, last, second, y, squares, normal, reciprocal : In
    found, top, total, codes : Out
    peak : Out {valid, first, data}
        The greatest |y| of each word of a first pass.
    """

    normal_delay = 2
    latency = normal_delay + 2

    def __init__(self, *, vector_lanes: int, max_elements: int, head_squares: tuple[int, int] = (0, 0), peaks: bool = False):
        self._lanes, self._peaks = vector_lanes, peaks
        head_bits, head_elements = head_squares
        square_bits = max(SQUARE_BITS, head_bits)
        self.total_bits = max(SQUARE_BITS - 1 + max_elements.bit_length(), head_bits + head_elements.bit_length())
        self.found_latency = 3 + (vector_lanes - 1).bit_length()
        super().__init__(
            {
                "valid": In(1),
                "first": In(1),
                "last": In(1),
                "second": In(1),
                "y": In(data.ArrayLayout(signed(Y_BITS), vector_lanes)),
                "squares": In(data.ArrayLayout(square_bits, vector_lanes)),
                "normal": In(data.ArrayLayout(signed(NORMAL_BITS), vector_lanes)),
                "reciprocal": In(17),
                "found": Out(1),
                "top": Out(Y_BITS - 1),
                "total": Out(self.total_bits),
                "codes": Out(data.ArrayLayout(signed(8), vector_lanes)),
            } | ({"peak": Out(wiring.Signature({"valid": Out(1), "first": Out(1), "data": Out(Y_BITS - 1)}))} if peaks else {})
        )

    def elaborate(self, platform):
        m = Module()

        # First pass. Cycle 1: magnitudes; cycles 2 to depth + 1: tree; cycle depth + 2: running maximum.
        magnitudes = [Signal(Y_BITS - 1, name=f"magnitude_{k}", reset_less=True) for k in range(self._lanes)]
        for k, value in enumerate(magnitudes):
            m.d.sync += value.eq(magnitude(self.y[k]))
        peak, depth = reduce_registered(m, magnitudes, larger, "peak")
        squares, _ = reduce_registered(m, [self.squares[k] for k in range(self._lanes)], add, "squares_sum")

        tag = [Signal(3, name=f"tag_{i}") for i in range(depth + 3)]
        counts = self.valid & ~self.second
        m.d.comb += tag[0].eq(Mux(counts, self.first << 1 | self.last << 2 | 1, 0))
        for before, after in zip(tag, tag[1:], strict=False):
            m.d.sync += after.eq(before)

        # The adder tree of squares ends two cycles before the tree of maxima: it has no magnitude stage, and its input comes a cycle early.
        running = Signal(Y_BITS - 1)
        at_squares, at_peak, at_end = (tag[depth - 1] if depth else tag[0]), tag[depth + 1], tag[depth + 2]
        with m.If(at_squares[0]):
            m.d.sync += self.total.eq(Mux(at_squares[1], 0, self.total) + squares)
        with m.If(at_peak[0]):
            m.d.sync += running.eq(Mux(at_peak[1] | (peak > running), peak, running))
        if self._peaks:
            m.d.comb += [self.peak.valid.eq(at_peak[0]), self.peak.first.eq(at_peak[1]), self.peak.data.eq(peak)]
        m.d.sync += self.found.eq(at_end[0] & at_end[2])
        with m.If(at_end[0] & at_end[2]):
            m.d.sync += self.top.eq(running)

        # Second pass. Cycle 3: product with the reciprocal; cycle 4: rounded code.
        reciprocal = [Signal(17, name=f"reciprocal_{i}") for i in range(self.normal_delay)]
        m.d.sync += [after.eq(before) for before, after in zip([self.reciprocal, *reciprocal], reciprocal, strict=False)]
        for k in range(self._lanes):
            product = Signal(signed(42), name=f"product_{k}", reset_less=True)
            m.d.sync += [product.eq(self.normal[k] * reciprocal[-1]), self.codes[k].eq(product[32:40] + product[31])]
        return m
