"""The scale unit's programs against the integer functions, in Amaranth's simulator: exponents far apart, odd, zero."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from amaranth.sim import Simulator

from tritloom.firmware import integer
from tritloom.firmware.integer import UFloat, uf_add, uf_mul, uf_norm, uf_recip, uf_sqrt
from tritloom.rtl.vector.scales import BIAS, Program, ScaleUnit

NAMES = ("code", "work", "scale0", "scale1", "head_scale", "inverse_count", "eps")
SQUARES_BITS = 44


def scale(rng, spread, centre=-20):
    """A scale of an exponent about `centre`; one in eight is zero."""
    zero = rng.integers(8) == 0
    return UFloat(np.array(0 if zero else rng.integers(1 << 15, 1 << 16)),
                  np.array(integer.EXPONENT_MIN if zero else rng.integers(centre - spread, centre + spread + 1)))


def expected(program, given):
    """t and w, None where they are not the program's."""
    t = uf_mul(uf_norm(given["top"]), integer.UF_INV127)
    t = UFloat(t.m, t.e + (given["exponent_y"] if t.m else 0))
    if program == Program.HEAD:
        return uf_mul(t, uf_mul(given["code"], given["head_scale"])), None
    if program == BIAS:
        return given["scale1"], None
    if program == Program.RESIDUAL:
        return uf_mul(given["code"], given["scale0"]), None
    if program == Program.EMBED:
        return uf_mul(uf_norm(given["row"]), given["scale0"]), None
    if program == Program.SILU:
        return uf_mul(given["code"], given["scale0"]), uf_mul(given["code"], given["scale1"])
    if program == Program.RELU2:
        gate = uf_mul(given["code"], given["scale0"])
        return None, uf_mul(uf_mul(gate, gate), uf_mul(given["code"], given["scale1"]))
    t = uf_mul(t, given["work"])
    if program == Program.NORM:
        mean = uf_mul(uf_norm(given["squares"], given["squares_exponent"]), given["inverse_count"])
        t = uf_mul(t, uf_recip(uf_sqrt(uf_add(uf_mul(mean, uf_mul(given["work"], given["work"])), given["eps"]))))
    return t, uf_mul(t, given["scale0"])


def cases(program) -> Iterator[dict[str, Any]]:
    rng = np.random.default_rng(program)
    for index in range(120 if program == Program.NORM else 30):
        spread = (2, 12, 60)[index % 3]
        given: dict[str, Any] = {name: scale(rng, spread) for name in NAMES}
        # The unit's scales have 12 bits of exponent: what no exponent of the machine's comes near.
        given["inverse_count"], given["work"] = scale(rng, 4, -24), scale(rng, min(spread, 12), -16)
        yield given | {
            "top": int(rng.integers(0, 1 << 39)) >> int(rng.integers(0, 40)), "squares_exponent": int(rng.integers(-40, 20)),
            "squares": int(rng.integers(0, 1 << SQUARES_BITS)) >> int(rng.integers(0, SQUARES_BITS + 1)),
            "row": int(rng.integers(0, 1 << 16)) >> int(rng.integers(0, 17)), "exponent_y": int(rng.integers(-30, 10)),
        }


@pytest.mark.slow
@pytest.mark.parametrize(("program", "held"), [
    *(pytest.param(program, False, id=program.name) for program in Program), pytest.param(BIAS, False, id="BIAS"),
    *(pytest.param(program, True, id=f"{program.name}-held", marks=() if program == Program.NORM else pytest.mark.long)
      for program in Program)])
def test_programs(program, held):
    dut, wrong = ScaleUnit(squares_bits=SQUARES_BITS, held=held, inverse=program == Program.NORM, biases=program == BIAS), []
    divides = program in (Program.QUANTISE, Program.NORM, Program.HEAD)

    async def process(ctx):
        ctx.set(dut.program, program)
        for index, given in enumerate(cases(program)):
            for name, value in given.items():
                ctx.set(getattr(dut, name), {"m": int(value.m), "e": int(value.e)} if name in NAMES else value)
            ctx.set(dut.start, 1)
            await ctx.tick()
            ctx.set(dut.start, 0)
            done, reciprocal = False, None if divides else 0
            for _ in range(300):
                done = done or bool(ctx.get(dut.done))
                if ctx.get(dut.divided):  # the root's reciprocal comes later
                    reciprocal = ctx.get(dut.reciprocal)
                if done and reciprocal is not None:
                    break
                await ctx.tick()
            assert done and reciprocal is not None, f"case {index} never ends"
            t, w = expected(program, given)
            for name, want in (("t", t), ("w", w), *([("u", uf_recip(t))] if program == Program.NORM and t is not None else [])):
                got = ctx.get(getattr(dut, name))
                if want is not None and (got.m, got.e) != (int(want.m), int(want.e)):
                    wrong.append(f"case {index}, {name}: got {got.m} * 2**{got.e}, expected {want}")
            if divides and given["top"]:
                length = given["top"].bit_length()
                assert ctx.get(dut.length) == length and reciprocal == (127 << 32) // (given["top"] << 23 >> length)

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(process)
    simulator.run()
    assert not wrong, "\n".join(wrong)
