"""Shapes and arithmetic that units share: indices, registered reduction trees, saturation, split products."""

from __future__ import annotations

from collections.abc import Callable

from amaranth import C, Cat, Module, Mux, Signal, Value, unsigned
from amaranth.utils import bits_for

__all__ = [
    "DSP_UNSIGNED_BITS", "add", "chunks", "count_registered", "index_shape", "larger", "magnitude", "reduce_registered", "saturate",
    "sign_extend",
]  # fmt: skip

DSP_UNSIGNED_BITS = 17
"""Unsigned bits that fit the narrow port of a signed 18-bit multiplier."""


def index_shape(count: int):
    """Shape of an index below `count`, at least one bit."""
    return unsigned(max(1, bits_for(count - 1)))


def reduce_registered(m: Module, values: list[Value], combine: Callable[[Value, Value], Value], name: str) -> tuple[Value, int]:
    """Combine a power of two of values pairwise with a register behind each level; returns the result and its latency."""
    level, latency = list(values), 0
    while len(level) > 1:
        above = []
        for low, high in zip(level[0::2], level[1::2], strict=True):
            result = combine(low, high)
            register = Signal(result.shape(), name=f"{name}_{latency}", reset_less=True)
            m.d.sync += register.eq(result)
            above.append(register)
        level, latency = above, latency + 1
    return level[0], latency


def add(a: Value, b: Value) -> Value:
    return a + b


def larger(a: Value, b: Value) -> Value:
    return Mux(a > b, a, b)


def count_registered(m: Module, bits: list[Value], name: str) -> Value:
    """How many of `bits` are set, some cycles later: with a register behind each level of the sum."""
    padded = [*bits, *([C(0, 1)] * ((1 << (len(bits) - 1).bit_length()) - len(bits)))]
    return reduce_registered(m, padded, add, name)[0]


def magnitude(value: Value) -> Value:
    """Absolute value of a signed value; unsigned, without its sign bit (the least value of its width must not occur).

    The one's complement and an increment: one LUT a bit, where a negation and a choice take two.
    """
    return ((value ^ value[-1].replicate(len(value))).as_unsigned() + value[-1])[: len(value) - 1]


def saturate(value: Value, bits: int) -> tuple[Value, Value]:
    """Signed value clamped to signed `bits`, and whether it had to be."""
    value = Value.cast(value)
    sign = value[-1]
    over = value[bits - 1 :].any() & ~value[bits - 1 :].all()
    clamped = Mux(sign, C(1 << (bits - 1), bits), C((1 << (bits - 1)) - 1, bits))
    return Mux(over, clamped, value[:bits]).as_signed(), over


def chunks(value: Value, bits: int = DSP_UNSIGNED_BITS) -> list[Value]:
    """`value` in pieces of `bits`, lowest first; all but a signed value's top piece are unsigned."""
    value = Value.cast(value)
    pieces: list[Value] = [value[i : i + bits] for i in range(0, len(value), bits)]
    if value.shape().signed:
        pieces[-1] = pieces[-1].as_signed()
    return pieces


def sign_extend(value: Value, width: int) -> Value:
    """Signed value in exactly `width` bits, of which it needs no more.

    Amaranth writes an extension as a list of copies of the sign bit, which simulators take bit by bit; a
    choice of constants is the same wires and much less work for them.
    """
    value = Value.cast(value)
    more = width - len(value)
    if more <= 0:
        return value[:width].as_signed()
    return Cat(value, Mux(value[-1], C(-1, more), C(0, more))).as_signed()
