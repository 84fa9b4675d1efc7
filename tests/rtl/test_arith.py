"""Shared arithmetic in Amaranth's simulator, against Python's integers."""

import pytest
from amaranth import Module, Signal, Value, signed, unsigned
from amaranth.sim import Simulator

from tritloom.rtl import arith


def outputs(shape, make, values):
    """What the combinational `make(value)`, a list of values, is for each of `values`; the shapes of what it is too."""
    m, value = Module(), Signal(shape)
    made = [Value.cast(each) for each in make(value)]
    results = [Signal(each.shape(), name=f"result{i}") for i, each in enumerate(made)]
    m.d.comb += [result.eq(each) for result, each in zip(results, made, strict=True)]
    got = []

    async def process(ctx):
        for number in values:
            ctx.set(value, number)
            await ctx.delay(1e-9)
            got.append([ctx.get(result) for result in results])

    simulator = Simulator(m)
    simulator.add_testbench(process)
    simulator.run()
    return got, [each.shape() for each in made]


EDGES = sorted({sign * ((1 << bit) + more) for bit in range(9) for more in (-1, 0, 1) for sign in (1, -1)})
SIGNED = [value for value in EDGES if -256 <= value < 256]


def test_saturate():
    got, _ = outputs(signed(9), lambda value: arith.saturate(value, 6), SIGNED)
    assert got == [[min(max(value, -32), 31), not -32 <= value < 32] for value in SIGNED]


def test_magnitude():
    got, (shape,) = outputs(signed(9), lambda value: [arith.magnitude(value)], [value for value in SIGNED if value > -256])
    assert got == [[abs(value)] for value in SIGNED if value > -256] and shape == unsigned(8)


def test_sign_extend():
    got, shapes = outputs(signed(9), lambda value: [arith.sign_extend(value, 14), arith.sign_extend(value, 9)], SIGNED)
    assert got == [[value, value] for value in SIGNED] and all(shape.signed for shape in shapes)


@pytest.mark.parametrize("shape, values", [(signed(9), SIGNED), (unsigned(9), range(0, 512, 7))])
def test_chunks(shape, values):
    """Pieces add up to the value, the top one with its sign."""
    got, shapes = outputs(shape, lambda value: arith.chunks(value, 4), values)
    assert [sum(piece << 4 * i for i, piece in enumerate(pieces)) for pieces in got] == list(values)
    assert [each.width for each in shapes] == [4, 4, 1]


def test_trees():
    """The greatest of eight signed values and the number of bits that are set, each after its latency."""
    m, values, bits = Module(), [Signal(signed(6), name=f"value{i}") for i in range(8)], Signal(5)
    greatest, latency = arith.reduce_registered(m, values, arith.larger, "greatest")
    count = arith.count_registered(m, list(bits), "count")
    assert latency == 3

    async def process(ctx):
        for turn in range(32):
            numbers = [(turn * 11 + i * i * 5) % 64 - 32 for i in range(8)]
            for value, number in zip(values, numbers, strict=True):
                ctx.set(value, number)
            ctx.set(bits, turn)
            await ctx.tick().repeat(latency)
            assert (ctx.get(greatest), ctx.get(count)) == (max(numbers), turn.bit_count())

    simulator = Simulator(m)
    simulator.add_clock(1e-6)
    simulator.add_testbench(process)
    simulator.run()
