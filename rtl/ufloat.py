"""Positive scales m * 2**e in hardware: the layout, normalisation, and the sequential divider and root.

Everything computes what `tritloom.firmware.integer` calls `uf_*`. The helpers that take a Module add
named combinational signals to it; registers are the caller's. A scale is `m` with its top bit set, or
zero (`m` = 0, `e` = -512).
"""

from __future__ import annotations

from amaranth import C, Cat, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from tritloom.rtl.once import once

__all__ = [
    "EXPONENT_BITS",
    "EXPONENT_MIN",
    "MANTISSA_BITS",
    "UFLOAT",
    "SerialDivider",
    "SerialSqrt",
    "UFloatMul",
    "UFloatNorm",
    "bit_length",
    "constant",
    "from_word",
    "leading_one",
    "shift_right",
    "to_word",
    "uf_norm",
    "uf_norm_product",
]

MANTISSA_BITS = 16
EXPONENT_BITS = 10
EXPONENT_MIN = -512

UFLOAT = data.StructLayout({"m": unsigned(MANTISSA_BITS), "e": signed(EXPONENT_BITS)})
"""A scale m * 2**e."""


def constant(m: int, e: int) -> data.Const:
    """Literal scale, for resets and constant operands."""
    return UFLOAT.const({"m": int(m), "e": int(e)})


def from_word(word: Value) -> data.View:
    """Scale held in a 32-bit memory word (m in 15:0, e in 31:16, of which 10 bits count)."""
    return data.View(UFLOAT, Cat(word[:MANTISSA_BITS], word[16 : 16 + EXPONENT_BITS]))


def to_word(scale) -> Value:
    """32-bit memory word of a scale: m in 15:0, e sign-extended in 31:16."""
    return Cat(scale.m, Value.cast(scale.e)[:EXPONENT_BITS], scale.e[-1].replicate(16 - EXPONENT_BITS))


def leading_one(m: Module, value: Value, name: str = "leading") -> tuple[Value, Value]:
    """Position of the highest set bit (meaningless for zero) and whether there is one; log depth."""
    value = Value.cast(value)
    level = [(C(0, 0), value[i]) for i in range(len(value))]
    while len(level) > 1:
        level.append((C(0, len(level[0][0])), C(0, 1))) if len(level) % 2 else None
        above = []
        for i in range(0, len(level), 2):
            (low, low_any), (high, high_any) = level[i], level[i + 1]
            position = Signal(len(low) + 1, name=f"{name}_position")
            found = Signal(name=f"{name}_any")
            m.d.comb += [position.eq(Cat(Mux(high_any, high, low), high_any)), found.eq(low_any | high_any)]
            above.append((position, found))
        level = above
    return level[0]


def bit_length(m: Module, value: Value, name: str = "length") -> Value:
    """Bits of an unsigned value, 0 for 0; log depth."""
    position, _ = leading_one(m, Cat(C(1, 1), value), name)
    return position


def shift_right(m: Module, value: Value, amount: Value, width: int, name: str = "shifted") -> Value:
    """Low `width` bits of value >> amount, arithmetic for signed values.

    Left shifts by L - n are written with it too, as (value << L) >> n: the shift operators of Amaranth
    widen to the left only, and simulators are quickest on them.

    Two bits of the amount at a time, the highest first: each step is one 6-input LUT a bit, and keeps only the bits
    that the steps behind it can still bring down.
    """
    value, amount = Value.cast(value), Value.cast(amount)
    steps = [(max(high - 2, 0), high) for high in range(len(amount), 0, -2)] or [(0, 0)]
    for low, high in steps:
        kept = width + (1 << low) - 1
        if kept < len(value):
            shape = unsigned(kept)
        else:
            shape = signed(len(value)) if value.shape().signed else unsigned(max(width, len(value)))
        shifted = Signal(shape, name=f"{name}_{low}" if low else name)
        m.d.comb += shifted.eq(value >> Cat(C(0, low), amount[low:high]))
        value = shifted
    return value[:width]


def uf_norm(m: Module, value: Value, length: Value, exponent: Value = 0, name: str = "norm") -> data.View:
    """Scale of the unsigned `value` * 2**exponent, truncated to 16 bits, given its bit length.

    One shifter and one adder deep: register `value` and `length` in front of it, the result behind it.
    """
    aligned = shift_right(m, Cat(C(0, MANTISSA_BITS), value), length, MANTISSA_BITS, f"{name}_aligned")
    result = Signal(UFLOAT, name=name)
    m.d.comb += [result.m.eq(aligned), result.e.eq(Mux(length == 0, EXPONENT_MIN, exponent + length - MANTISSA_BITS))]
    return result


def uf_norm_product(m: Module, product: Value, exponent: Value, name: str = "product_norm") -> data.View:
    """Scale of the 32-bit product of two scale mantissas, whose leading one is bit 31 or 30 unless it is zero."""
    result = Signal(UFLOAT, name=name)
    top = product[31]
    m.d.comb += [
        result.m.eq(Mux(top, product[16:32], product[15:31])),
        result.e.eq(Mux(top | product[30], exponent + 15 + top, EXPONENT_MIN)),
    ]
    return result


class UFloatMul(wiring.Component):
    """Multiply two scales (`integer.uf_mul`).

    Both operands must be normalised or zero. Never stalls.

    Latency: 2 cycles (`latency`): one register behind the multiplier, one behind the normalisation.

    Throughput: one product per cycle.

    Members
    -------
    valid : In, a, b : In(UFLOAT)
    o_valid : Out, o : Out(UFLOAT)
    """

    latency = 2

    def __init__(self):
        super().__init__({"valid": In(1), "a": In(UFLOAT), "b": In(UFLOAT), "o_valid": Out(1), "o": Out(UFLOAT)})

    def elaborate(self, platform):
        m = Module()
        product = Signal(2 * MANTISSA_BITS)
        exponent = Signal(signed(EXPONENT_BITS + 1))
        valid = Signal()
        m.d.sync += [product.eq(self.a.m * self.b.m), exponent.eq(self.a.e + self.b.e), valid.eq(self.valid)]
        m.d.sync += [self.o.eq(uf_norm_product(m, product, exponent)), self.o_valid.eq(valid)]
        return m


class UFloatNorm(wiring.Component):
    """Turn integers into scales (`integer.uf_norm`).

    Never stalls.

    Latency: 2 cycles (`latency`): the bit length, then the shift.

    Throughput: one value per cycle.

    Parameters
    ----------
    width : int
        Bits of the integer.

    Members
    -------
    valid : In, value : In(width), exponent : In(signed(12))
    o_valid : Out, o : Out(UFLOAT)
    """

    latency = 2

    def __init__(self, *, width: int):
        if width < 1:
            raise ValueError(f"width must be positive, not {width}")
        self._width = width
        super().__init__({"valid": In(1), "value": In(width), "exponent": In(signed(12)), "o_valid": Out(1), "o": Out(UFLOAT)})

    def elaborate(self, platform):
        m = Module()
        found = bit_length(m, self.value)
        length = Signal.like(found)
        value, exponent, valid = Signal(self._width), Signal(signed(12)), Signal()
        m.d.sync += [length.eq(found), value.eq(self.value), exponent.eq(self.exponent), valid.eq(self.valid)]
        m.d.sync += [self.o.eq(uf_norm(m, value, length, exponent)), self.o_valid.eq(valid)]
        return m


@once
class SerialDivider(wiring.Component):
    """Divide unsigned integers, one quotient bit per cycle (restoring).

    `numerator` must be below `denominator << quotient_bits`, else the quotient is meaningless (this
    includes division by zero). Operands are taken with `start` while idle; the quotient stands from
    `done` until the next start. A start while busy begins afresh.

    Latency: quotient_bits + 1 cycles from `start` to `done` (`latency`).

    Parameters
    ----------
    denominator_bits, quotient_bits : int

    Members
    -------
    start : In, numerator : In(denominator_bits + quotient_bits), denominator : In(denominator_bits)
    busy : Out, done : Out, quotient : Out(quotient_bits)
        `done` is high for one cycle.
    """

    def __init__(self, *, denominator_bits: int, quotient_bits: int):
        if denominator_bits < 1 or quotient_bits < 1:
            raise ValueError(f"denominator_bits and quotient_bits must be positive, not {denominator_bits} and {quotient_bits}")
        self._bits, self._quotient = denominator_bits, quotient_bits
        self.latency = quotient_bits + 1
        super().__init__(
            {
                "start": In(1),
                "numerator": In(denominator_bits + quotient_bits),
                "denominator": In(denominator_bits),
                "busy": Out(1),
                "done": Out(1),
                "quotient": Out(quotient_bits),
            }
        )

    def elaborate(self, platform):
        m = Module()
        remainder, denominator = Signal(self._bits), Signal(self._bits)
        count = Signal(range(self._quotient + 1))
        # The numerator's low bits leave `quotient` at the top while the result enters at the bottom.
        trial, difference = Signal(self._bits + 1), Signal(self._bits + 2)
        m.d.comb += [trial.eq(Cat(self.quotient[-1], remainder)), difference.eq(trial - denominator)]
        m.d.sync += self.done.eq(0)
        m.d.comb += self.busy.eq(count != 0)
        with m.If(self.start):
            m.d.sync += [Cat(self.quotient, remainder).eq(self.numerator), denominator.eq(self.denominator), count.eq(self._quotient)]
        with m.Elif(self.busy):
            fits = ~difference[-1]
            m.d.sync += [
                remainder.eq(Mux(fits, difference, trial)),
                self.quotient.eq(Cat(fits, self.quotient[:-1])),
                count.eq(count - 1),
                self.done.eq(count == 1),
            ]
        return m


class SerialSqrt(wiring.Component):
    """Take the integer square root, one bit per cycle (restoring; `integer.isqrt`).

    The radicand is taken with `start` while idle; the root stands from `done` until the next start.

    Latency: root_bits + 1 cycles from `start` to `done` (`latency`).

    Parameters
    ----------
    root_bits : int

    Members
    -------
    start : In, radicand : In(2 * root_bits)
    busy : Out, done : Out, root : Out(root_bits)
        `done` is high for one cycle.
    """

    def __init__(self, *, root_bits: int):
        if root_bits < 1:
            raise ValueError(f"root_bits must be positive, not {root_bits}")
        self._bits = root_bits
        self.latency = root_bits + 1
        super().__init__({"start": In(1), "radicand": In(2 * root_bits), "busy": Out(1), "done": Out(1), "root": Out(root_bits)})

    def elaborate(self, platform):
        m = Module()
        radicand = Signal(2 * self._bits)
        remainder = Signal(self._bits + 1)
        count = Signal(range(self._bits + 1))
        trial, difference = Signal(self._bits + 3), Signal(self._bits + 4)
        m.d.comb += [trial.eq(Cat(radicand[-2:], remainder)), difference.eq(trial - Cat(C(1, 2), self.root))]
        m.d.sync += self.done.eq(0)
        m.d.comb += self.busy.eq(count != 0)
        with m.If(self.start):
            m.d.sync += [radicand.eq(self.radicand), remainder.eq(0), self.root.eq(0), count.eq(self._bits)]
        with m.Elif(self.busy):
            fits = ~difference[-1]
            m.d.sync += [
                remainder.eq(Mux(fits, difference, trial)),
                self.root.eq(Cat(fits, self.root[:-1])),
                radicand.eq(radicand << 2),
                count.eq(count - 1),
                self.done.eq(count == 1),
            ]
        return m
