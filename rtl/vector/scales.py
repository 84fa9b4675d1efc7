"""The vector unit's scalar half: scale computations, one small program per vector operation."""

from __future__ import annotations

from enum import IntEnum
from typing import Any, NamedTuple

from amaranth import C, Cat, Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from tritloom.firmware import integer
from tritloom.rtl.ufloat import MANTISSA_BITS, SerialDivider, SerialSqrt, bit_length, shift_right
from tritloom.rtl.vector.parameters import SCALE_BITS

__all__ = ["BIAS", "HEAD_NORM", "INNER", "ONE", "Program", "ScaleUnit"]

INNER = data.StructLayout({"m": unsigned(MANTISSA_BITS), "e": signed(SCALE_BITS - MANTISSA_BITS)})
"""A scale with headroom in its exponent, as it stands inside the vector unit."""


def _inner(scale: integer.UFloat) -> data.Const:
    return INNER.const({"m": int(scale.m), "e": int(scale.e)})


ONE = _inner(integer.UF_ONE)
ZERO_EXPONENT = integer.EXPONENT_MIN


class Program(IntEnum):
    """What `ScaleUnit` computes; the letters are its registers t, u, w and inputs."""

    QUANTISE = 0
    NORM = 1
    HEAD = 2
    RESIDUAL = 3
    EMBED = 4
    RELU2 = 5
    SILU = 6


HEAD_NORM = len(Program)
"""One more program, of machines that norm query and key heads."""
BIAS = HEAD_NORM + 1
"""One more, of machines that add biases to the residual stream."""


class _Op(IntEnum):
    NORMALISE = 0
    MULTIPLY = 1
    ADD = 2
    SQRT = 3
    RECIPROCAL = 4


# (operation, first operand, second operand, destination). NORMALISE names an integer input instead;
# normalising `top` also starts the division for the code reciprocal. The product with inv127 takes `exponent_y`.
_SCALE_OF_MAXIMUM = [(_Op.NORMALISE, "top", None, "t"), (_Op.MULTIPLY, "t", "inv127", "t")]
_PROGRAMS = {
    Program.QUANTISE: [*_SCALE_OF_MAXIMUM, (_Op.MULTIPLY, "t", "work", "t"), (_Op.MULTIPLY, "t", "scale0", "w")],
    Program.NORM: [
        *_SCALE_OF_MAXIMUM,
        (_Op.MULTIPLY, "t", "work", "t"),
        (_Op.MULTIPLY, "work", "work", "w"),
        (_Op.NORMALISE, "squares", None, "u"),
        (_Op.MULTIPLY, "u", "inverse_count", "u"),
        (_Op.MULTIPLY, "u", "w", "u"),
        (_Op.ADD, "u", "eps", "u"),
        (_Op.SQRT, "u", None, "u"),
        (_Op.RECIPROCAL, "u", None, "u"),
        (_Op.MULTIPLY, "t", "u", "t"),
        (_Op.MULTIPLY, "t", "scale0", "w"),
    ],
    Program.HEAD: [*_SCALE_OF_MAXIMUM, (_Op.MULTIPLY, "code", "head_scale", "u"), (_Op.MULTIPLY, "t", "u", "t")],
    Program.RESIDUAL: [(_Op.MULTIPLY, "code", "scale0", "t")],
    Program.EMBED: [(_Op.NORMALISE, "row", None, "t"), (_Op.MULTIPLY, "t", "scale0", "t")],
    Program.RELU2: [
        (_Op.MULTIPLY, "code", "scale0", "t"),
        (_Op.MULTIPLY, "code", "scale1", "u"),
        (_Op.MULTIPLY, "t", "t", "t"),
        (_Op.MULTIPLY, "t", "u", "w"),
    ],
    Program.SILU: [(_Op.MULTIPLY, "code", "scale0", "t"), (_Op.MULTIPLY, "code", "scale1", "w")],
}


# The squares first: the next head's come soon.
_HEAD_NORM = [
    (_Op.NORMALISE, "squares", None, "u"),
    (_Op.MULTIPLY, "u", "head_inverse", "u"),
    *_SCALE_OF_MAXIMUM,
    (_Op.MULTIPLY, "code", "head_scale", "w"),
    (_Op.MULTIPLY, "t", "w", "t"),
    (_Op.MULTIPLY, "w", "w", "w"),
    (_Op.MULTIPLY, "u", "w", "u"),
    (_Op.ADD, "u", "head_eps", "u"),
    (_Op.SQRT, "u", None, "u"),
    (_Op.RECIPROCAL, "u", None, "u"),
    (_Op.MULTIPLY, "t", "u", "t"),
]


_BIAS = [(_Op.MULTIPLY, "scale1", "one", "t")]
_INVERSE = [(_Op.RECIPROCAL, "t", None, "u")]
"""Behind NORM, where codes stand for one."""


class _Step(NamedTuple):
    """The present step: its `number` in the table (`first`: of each program), its operation, whether it is its program's `final` one, and
    its operands; `destination`: which of `registers` takes the result."""

    number: Signal
    first: dict[int, int]
    op: Any
    final: Signal
    is_top: Signal
    takes_exponent: Signal
    destination: Signal
    registers: tuple[Any, ...]
    a: Any
    b: Any
    integer_operand: Signal
    integer_exponent: Signal


class _Normaliser(NamedTuple):
    """Registers around the normaliser.

    `a_held`, `b_held`: operands. `value` with `exponent` is normalised by its `length`, which is `found` a cycle before; `product` is
    normalised by one bit at most. `high_m`, `low_m`, `distance`: of an addition. `from_...`: where the `result` comes from that is written.
    """

    a_held: Any
    b_held: Any
    value: Signal
    exponent: Signal
    length: Signal
    product: Signal
    result: Any
    write: Signal
    found: Any
    high_m: Signal
    low_m: Signal
    distance: Signal
    difference: Signal
    gap: Signal
    lowered: Any
    odd: Any
    from_product: Signal
    from_length: Signal
    from_top: Signal


class ScaleUnit(wiring.Component):
    """Compute the scales of one slot or head, step by step.

    A program starts with `start` while not `busy`; its operands stay until `done`. A multiplication
    takes 3 cycles, a normalisation 3, an addition 6, a root or reciprocal about 22.

    Results: `t` and `w` (QUANTISE, NORM: t the code scale, w = t * scale0; HEAD, HEAD_NORM: t the head's scale;
    RESIDUAL, EMBED, BIAS: t the multiplier of the residual; RELU2: w the work scale; SILU: t the gate scale,
    w the work scale). QUANTISE, NORM, HEAD and HEAD_NORM also divide: after `divided`, `reciprocal` and
    `length` (bits of `top`) stand until the next program.

    Parameters
    ----------
    squares_bits : int
        Bits of the sum of squares.
    head_dim : int
        Elements of a head that HEAD_NORM norms; 0: there is no such program, nor `head_eps`.
    held : bool
        A step's destination is decoded in a cycle of its own, before its result is there.
    inverse : bool
        NORM ends with 1/t, which is `u`.
    biases : bool
        There is the program BIAS.

    Members
    -------
    start, program, top, squares, squares_exponent, row, exponent_y : In
    code, work, scale0, scale1, head_scale, head_eps, inverse_count, eps : In(INNER)
    busy, done, t, w, u, divided, reciprocal, length : Out
        `done` and `divided` are high for one cycle.
    """

    TOP_BITS = 39
    ALIGNED_BITS = 23
    RECIPROCAL_BITS = 17

    def __init__(self, *, squares_bits: int, head_dim: int = 0, held: bool = False, inverse: bool = False, biases: bool = False):
        if squares_bits < 1:
            raise ValueError(f"squares_bits must be positive, not {squares_bits}")
        self._width, self._head_dim, self._held = max(self.TOP_BITS, squares_bits), head_dim, held
        self._inverse, self._biases = inverse, biases
        super().__init__(
            ({"head_eps": In(INNER)} if head_dim else {}) | ({"u": Out(INNER)} if inverse else {}) | {
                "start": In(1),
                "program": In(range(BIAS + 1 if biases else len(Program) + bool(head_dim))),
                "top": In(self.TOP_BITS),
                "squares": In(squares_bits),
                "squares_exponent": In(signed(12)),
                "row": In(16),
                "exponent_y": In(signed(12)),
                **{name: In(INNER) for name in ("code", "work", "scale0", "scale1", "head_scale", "inverse_count", "eps")},
                "busy": Out(1),
                "done": Out(1),
                "t": Out(INNER),
                "w": Out(INNER),
                "divided": Out(1),
                "reciprocal": Out(self.RECIPROCAL_BITS),
                "length": Out(6),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.divider = divider = SerialDivider(denominator_bits=self.ALIGNED_BITS, quotient_bits=self.RECIPROCAL_BITS)
        m.submodules.root = root = SerialSqrt(root_bits=17)
        step = self._decode(m)
        normaliser = self._normalise(m, divider, root)
        dividing_top = Signal()
        m.d.comb += [self.reciprocal.eq(divider.quotient), self.divided.eq(divider.done & dividing_top)]
        m.d.sync += self.done.eq(0)
        self._states(m, step, normaliser, divider, root, dividing_top)
        with m.If(normaliser.from_top):
            m.d.sync += [dividing_top.eq(1), self.length.eq(normaliser.length)]
        with m.If(normaliser.write):
            for index, register in enumerate(step.registers):
                with m.If(step.destination == index):
                    m.d.sync += register.eq(normaliser.result)
        return m

    def _decode(self, m):
        """The programs as a table of steps, and what the present step is."""
        first, table = {}, []
        programs = _PROGRAMS | ({Program.NORM: [*_PROGRAMS[Program.NORM], *_INVERSE]} if self._inverse else {})
        programs |= ({HEAD_NORM: _HEAD_NORM} if self._head_dim else {}) | ({BIAS: _BIAS} if self._biases else {})
        for program, steps in programs.items():
            first[program] = len(table)
            table += [(*step, i == len(steps) - 1) for i, step in enumerate(steps)]
        step = Signal(range(len(table)))
        u = self.u if self._inverse else Signal(INNER)
        op, final, is_top, takes_exponent = Signal(_Op), Signal(), Signal(), Signal()
        destination = Signal(2)
        destinations = {"t": self.t, "u": u, "w": self.w}
        a, b = Signal(INNER), Signal(INNER)
        integer_operand, integer_exponent = Signal(self._width), Signal(signed(12))
        operands = {
            "t": self.t,
            "u": u,
            "w": self.w,
            "code": self.code,
            "work": self.work,
            "scale0": self.scale0,
            "scale1": self.scale1,
            "head_scale": self.head_scale,
            "inverse_count": self.inverse_count,
            "eps": self.eps,
            "inv127": _inner(integer.UF_INV127),
        }
        if self._biases:
            operands["one"] = ONE
        if self._head_dim:
            operands |= {"head_eps": self.head_eps, "head_inverse": _inner(integer.uf_from_float(1 / self._head_dim))}
        m.d.comb += integer_operand.eq(self.top)
        with m.Switch(step):
            for index, (operation, one, other, to, last) in enumerate(table):
                with m.Case(index):
                    m.d.comb += [op.eq(operation), final.eq(last), destination.eq(list(destinations).index(to))]
                    m.d.comb += [is_top.eq(one == "top"), takes_exponent.eq(other == "inv127")]
                    if operation == _Op.NORMALISE:
                        if one == "squares":
                            m.d.comb += [integer_operand.eq(self.squares), integer_exponent.eq(self.squares_exponent)]
                        elif one == "row":
                            m.d.comb += integer_operand.eq(self.row)
                    else:
                        m.d.comb += a.eq(operands[one])
                        if other is not None:
                            m.d.comb += b.eq(operands[other])
        if self._held:  # a step's result comes two cycles after its number or later
            decoded, destination = destination, Signal(2, name="destination_held")
            m.d.sync += destination.eq(decoded)
        return _Step(step, first, op, final, is_top, takes_exponent, destination, tuple(destinations.values()), a, b, integer_operand,
                     integer_exponent)

    def _normalise(self, m, divider, root):
        """Registered operands, and the one normaliser behind the multiplier, the adder, the root and the divider."""
        a_held, b_held = Signal(INNER), Signal(INNER)
        value, exponent, length = Signal(self._width), Signal(signed(13)), Signal(range(self._width + 1))
        product = Signal(2 * MANTISSA_BITS)
        result = Signal(INNER)
        write = Signal()
        found = bit_length(m, value)
        aligned = shift_right(m, Cat(C(0, self.ALIGNED_BITS), value), length, self.ALIGNED_BITS, "aligned")

        # Addition: the operand of the smaller exponent is shifted right by the distance.
        high_m, low_m, distance = Signal(MANTISSA_BITS), Signal(2 * MANTISSA_BITS), Signal(6)
        difference = Signal(signed(13))
        gap = Signal(13)
        m.d.comb += [difference.eq(a_held.e - b_held.e), gap.eq(Mux(difference[-1], -difference, difference))]
        lowered = shift_right(m, low_m, distance, 2 * MANTISSA_BITS, "lowered")

        odd = a_held.e[0]
        # One-hot flags of PRODUCT NORM, of ALIGN, and of ALIGN of `top`, registered: the state is not decoded in the normaliser's path.
        from_product, from_length, from_top = Signal(), Signal(), Signal()
        top = product[31]
        m.d.sync += [from_product.eq(0), from_length.eq(0), from_top.eq(0)]
        m.d.comb += [
            root.radicand.eq(Mux(odd, a_held.m << 17, a_held.m << 16)),
            divider.start.eq(from_top),
            divider.numerator.eq(Mux(from_top, 127 << 32, 1 << 31)),
            divider.denominator.eq(Mux(from_top, aligned, a_held.m)),
            write.eq(from_product | from_length),
        ]
        with m.If(from_product):
            m.d.comb += [
                result.m.eq(Mux(top, product[16:32], product[15:31])),
                result.e.eq(Mux(top | product[30], exponent + 15 + top, ZERO_EXPONENT)),
            ]
        with m.Else():
            m.d.comb += [
                result.m.eq(aligned[self.ALIGNED_BITS - MANTISSA_BITS :]),
                result.e.eq(Mux(length == 0, ZERO_EXPONENT, exponent + length - MANTISSA_BITS)),
            ]
        return _Normaliser(a_held, b_held, value, exponent, length, product, result, write, found, high_m, low_m, distance, difference, gap,
                           lowered, odd, from_product, from_length, from_top)

    def _states(self, m, step, normaliser, divider, root, dividing_top):
        """A step is read, computed and normalised; the last one of a program ends it."""
        n = normaliser

        def proceed():
            with m.If(step.final):
                m.d.sync += self.done.eq(1)
                m.next = "IDLE"
            with m.Else():
                m.d.sync += step.number.eq(step.number + 1)
                m.next = "READ"

        with m.FSM() as fsm:
            m.d.comb += self.busy.eq(~fsm.ongoing("IDLE"))
            with m.State("IDLE"):
                with m.Switch(self.program):
                    for program, index in step.first.items():
                        with m.Case(program):
                            m.d.sync += step.number.eq(index)
                with m.If(self.start):
                    m.next = "READ"
            with m.State("READ"):
                m.d.sync += [n.a_held.eq(step.a), n.b_held.eq(step.b)]
                m.d.sync += [n.value.eq(step.integer_operand), n.exponent.eq(step.integer_exponent)]
                with m.Switch(step.op):
                    with m.Case(_Op.NORMALISE):
                        m.next = "LENGTH"
                    with m.Case(_Op.MULTIPLY):
                        m.next = "PRODUCT"
                    with m.Case(_Op.ADD):
                        m.next = "COMPARE"
                    with m.Case(_Op.SQRT):
                        m.next = "ROOT START"
                    with m.Case(_Op.RECIPROCAL):
                        m.next = "DIVIDE START"
            with m.State("PRODUCT"):
                m.d.sync += [n.product.eq(n.a_held.m * n.b_held.m),
                             n.exponent.eq(n.a_held.e + n.b_held.e + Mux(step.takes_exponent, self.exponent_y, 0))]
                m.d.sync += n.from_product.eq(1)
                m.next = "PRODUCT NORM"
            with m.State("PRODUCT NORM"):
                proceed()
            with m.State("COMPARE"):
                swap = n.difference[-1]
                m.d.sync += [
                    n.high_m.eq(Mux(swap, n.b_held.m, n.a_held.m)),
                    n.low_m.eq(Cat(C(0, 16), Mux(swap, n.a_held.m, n.b_held.m))),
                    n.exponent.eq(Mux(swap, n.b_held.e, n.a_held.e) - 16),
                    n.distance.eq(Mux(n.gap[6:].any(), 63, n.gap[:6])),
                ]
                m.next = "LOWER"
            with m.State("LOWER"):
                m.d.sync += n.low_m.eq(n.lowered)
                m.next = "SUM"
            with m.State("SUM"):
                m.d.sync += n.value.eq(Cat(C(0, 16), n.high_m) + n.low_m)
                m.next = "LENGTH"
            with m.State("ROOT START"):
                m.d.comb += root.start.eq(1)
                m.next = "ROOT"
            with m.State("ROOT"):
                m.d.sync += [n.value.eq(root.root), n.exponent.eq((n.a_held.e - n.odd - 16) >> 1)]
                with m.If(root.done):
                    m.next = "LENGTH"
            with m.State("DIVIDE START"):
                # The division started by `top` ended during the root.
                m.d.comb += divider.start.eq(1)
                m.d.sync += dividing_top.eq(0)
                m.next = "DIVIDE"
            with m.State("DIVIDE"):
                m.d.sync += [n.value.eq(Mux(n.a_held.m == 0, 0, divider.quotient)), n.exponent.eq(-31 - n.a_held.e)]
                with m.If(divider.done):
                    m.next = "LENGTH"
            with m.State("LENGTH"):
                m.d.sync += [n.length.eq(n.found), n.from_length.eq(1), n.from_top.eq(step.is_top)]
                m.next = "ALIGN"
            with m.State("ALIGN"):
                proceed()
