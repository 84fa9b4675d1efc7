"""Scales in hardware against the integer functions, in Amaranth's simulator."""

import numpy as np
import pytest
from amaranth.sim import Simulator

from tritloom.firmware import integer
from tritloom.rtl.ufloat import SerialDivider, SerialSqrt, UFloatMul, UFloatNorm


def scales(rng, n, low=-200, high=200):
    m = rng.integers(1 << 15, 1 << 16, n)
    m[:4] = [0, 1 << 15, (1 << 16) - 1, 0]
    return integer.UFloat(m, np.where(m == 0, -512, rng.integers(low, high, n)))


def run(dut, process):
    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(process)
    simulator.run()


def pipeline(dut, drive, count):
    """Results of a pipeline without stalls; also checks the declared latency."""
    results, cycles = [], []

    async def process(ctx):
        for cycle in range(count + dut.latency + 2):
            if cycle < count:
                drive(ctx, cycle)
            ctx.set(dut.valid, cycle < count)
            await ctx.tick()
            if ctx.get(dut.o_valid):
                o = ctx.get(dut.o)
                results.append((o.m, o.e))
                cycles.append(cycle + 1)

    run(dut, process)
    assert cycles == [i + dut.latency for i in range(count)]
    return results


def test_mul():
    rng = np.random.default_rng(1)
    a, b = scales(rng, 200), scales(rng, 200)
    b = integer.UFloat(b.m[::-1], b.e[::-1])
    dut = UFloatMul()

    def drive(ctx, i):
        ctx.set(dut.a, {"m": int(a.m[i]), "e": int(a.e[i])})
        ctx.set(dut.b, {"m": int(b.m[i]), "e": int(b.e[i])})

    expected = integer.uf_mul(a, b)
    assert pipeline(dut, drive, 200) == list(zip(expected.m.tolist(), expected.e.tolist(), strict=True))


@pytest.mark.parametrize("width", [1, 9, 16, 17, 32, 40, 53])
def test_norm(width):
    rng = np.random.default_rng(width)
    values = [0, 1, (1 << width) - 1, 1 << (width - 1)] + [int(v) >> int(rng.integers(0, width)) for v in rng.integers(0, 1 << width, 100)]
    dut = UFloatNorm(width=width)

    def drive(ctx, i):
        ctx.set(dut.value, values[i])
        ctx.set(dut.exponent, i - 50)

    expected = integer.uf_norm(np.array(values), np.arange(len(values)) - 50)
    assert pipeline(dut, drive, len(values)) == list(zip(expected.m.tolist(), expected.e.tolist(), strict=True))


def serial(dut, operands, result):
    """Results of a sequential unit, one operand dictionary after the other; checks the declared latency."""
    results = []

    async def process(ctx):
        for fields in operands:
            for name, value in fields.items():
                ctx.set(getattr(dut, name), value)
            ctx.set(dut.start, 1)
            await ctx.tick()
            ctx.set(dut.start, 0)
            for name in fields:
                ctx.set(getattr(dut, name), 0)
            cycles = 1
            while not ctx.get(dut.done):
                await ctx.tick()
                cycles += 1
            assert cycles == dut.latency
            results.append(ctx.get(getattr(dut, result)))

    run(dut, process)
    return results


def test_divider():
    rng = np.random.default_rng(2)
    tops = [1 << 22, (1 << 23) - 1] + rng.integers(1 << 22, 1 << 23, 30).tolist()
    dut = SerialDivider(denominator_bits=23, quotient_bits=17)
    assert serial(dut, [{"numerator": 127 << 32, "denominator": t} for t in tops], "quotient") == [(127 << 32) // t for t in tops]
    tops = [1 << 15, (1 << 16) - 1] + rng.integers(1 << 15, 1 << 16, 30).tolist()
    numerators = [int(rng.integers(0, 1 << 17)) + (t // 3 << 17) for t in tops]
    assert serial(dut, [{"numerator": n, "denominator": t} for n, t in zip(numerators, tops, strict=True)], "quotient") \
        == [n // t for n, t in zip(numerators, tops, strict=True)]
    dut = SerialDivider(denominator_bits=16, quotient_bits=17)
    assert serial(dut, [{"numerator": 1 << 31, "denominator": t} for t in tops], "quotient") == [(1 << 31) // t for t in tops]


def test_sqrt():
    rng = np.random.default_rng(3)
    values = [0, 1, (1 << 34) - 1, 1 << 33, (1 << 33) - 1, 131071**2, 131071**2 - 1] + rng.integers(0, 1 << 34, 30).tolist()
    assert serial(SerialSqrt(root_bits=17), [{"radicand": v} for v in values], "root") == integer.isqrt(np.array(values)).tolist()
