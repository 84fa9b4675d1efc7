"""The specification's operations for models that are ternary by groups, against exact integers and float64 formulas."""

from fractions import Fraction

import numpy as np
import pytest

from tritloom.firmware import config, integer
from tritloom.firmware.integer import UFloat
from tritloom.firmware.packing import RESULT_BITS, result_bits, scale_drop, scaled_sum_bits

U = 2.0**-15
"""A scale's truncation to 16 bits, relative (tests/golden.py)."""
CODE = 1 / 2 + 2.0**-9 + 2.0**-14
"""A code's distance from the quotient that it rounds."""


def pairs(rng, *shape, least=-(1 << 22), most=1 << 22):
    return rng.integers(least + 1, most, shape)


@pytest.mark.parametrize("group_size, inputs, rows", [(64, 64, 3), (64, 320, 7), (128, 1024, 5), (128, 6144, 2)])
def test_grouped_matmul_is_exact(group_size, inputs, rows):
    rng = np.random.default_rng(inputs)
    codes = rng.integers(-127, 128, (4, inputs))
    trits = rng.integers(-1, 2, (rows, inputs)).astype(np.int8)
    scales = (rng.integers(0, 1 << 16, (rows, inputs // group_size)) >> rng.integers(0, 17, (rows, 1))).astype(np.uint16)
    trits[0], scales[0], codes[0] = 1, 65535, 127
    codes[1] = -127
    for drop in (0, 1, scale_drop(inputs)):
        got = integer.grouped_matmul(codes, integer.grouped_weights(trits, scales), drop)
        for n, row in np.ndindex(4, rows):
            exact = sum(int(c) * int(t) * int(scales[row, i // group_size])
                        for i, (c, t) in enumerate(zip(codes[n], trits[row], strict=True)))
            assert got[n, row] == (exact + (1 << drop >> 1)) >> drop, (n, row, drop)
            assert abs(exact) < 1 << (scaled_sum_bits(inputs) - 1)
    assert np.abs(got).max() < 1 << (result_bits(inputs, group_size, scale_drop(inputs)) - 1)
    assert result_bits(inputs, group_size, scale_drop(inputs)) <= RESULT_BITS


@pytest.mark.parametrize("inputs", [64, 128, 4096, 6144, 12288, 16513, 16514, 1 << 17])
def test_no_more_bits_are_dropped_than_must_be(inputs):
    """The greatest sum fits the results, and would not with a bit more."""
    most, drop = 127 * 65535 * inputs, scale_drop(inputs)
    assert (most + (1 << drop >> 1)) >> drop < 1 << (RESULT_BITS - 1)
    assert drop == 0 or (most + (1 << drop - 1 >> 1)) >> (drop - 1) >= 1 << (RESULT_BITS - 1)
    assert most.bit_length() + 1 == scaled_sum_bits(inputs)


def test_a_half_is_rounded_up():
    weights = integer.grouped_weights(np.ones((1, 64), np.int8), np.ones((1, 1), np.uint16))
    codes = np.zeros((4, 64), np.int64)
    codes[:, 0] = [2, -2, 6, -6]
    assert integer.grouped_matmul(codes, weights, 2)[:, 0].tolist() == [1, 0, 2, -1]


@pytest.mark.parametrize("size, count, most", [(64, 3, 3), (128, 5, 7), (64, 1, 1)])
def test_exponents_shift_codes_up_as_far_as_their_group_allows(size, count, most):
    """No code passes 127; one more would let one pass, but for the digits that are left out; values are as near as the code's step."""
    rng = np.random.default_rng([size, count, most])
    y = rng.integers(-(1 << 38), 1 << 38, (50, size * count)) >> rng.integers(0, 2 * most + 4, (50, count)).repeat(size, -1)
    y[0, :size] = 0
    y[1], y[2] = 0, 1 << 20
    groups = integer.Groups(size, most)
    shifts = integer.group_exponents(y, groups)
    codes, scale = integer.quantise(y, y.shape[-1], shifts)
    assert shifts.shape == (50, count) and shifts.min() == 0 and (shifts.max() == most or count == 1) and np.abs(codes).max() == 127
    assert not codes[1].any() and (shifts[1:3] == 0).all() and (codes[2] == 127).all()
    step = scale.value() / 2.0 ** shifts.repeat(size, -1)
    assert (np.abs(codes * step - y) <= step * (0.5 + 2.0**-7) + np.abs(y) * 2.0**-14).all()
    top = np.abs(y.reshape(50, count, size)).max(-1)
    could = (top << shifts + 1) * (1 + 2.0**-integer.GROUP_DIGITS) <= top.max(-1, keepdims=True)
    assert (shifts[could & (top > 0)] == most).all()
    assert (integer.quantise(y, y.shape[-1], shifts * 0)[0] == integer.quantise(y, y.shape[-1])[0]).all()


@pytest.mark.parametrize("most", [1, 7])
def test_sums_of_shifted_codes_are_exact(most):
    rng = np.random.default_rng(most)
    codes, shifts = rng.integers(-127, 128, (4, 384)), rng.integers(0, most + 1, (4, 3))
    trits, scales = rng.integers(-1, 2, (20, 384), np.int8), rng.integers(0, 1 << 16, (20, 3)).astype(np.uint16)
    got = integer.grouped_matmul(codes, integer.grouped_weights(trits, scales), 13, shifts, most)
    for i, row in np.ndindex(got.shape):
        parts = [int(codes[i, n]) * int(trits[row, n]) * int(scales[row, n // 128]) for n in range(384)]
        exact = sum(Fraction(part, 1 << int(shifts[i, n // 128])) for n, part in enumerate(parts))
        assert got[i, row] == (exact + 2**12) // 2**13


def test_gained_rounds_the_product():
    rng = np.random.default_rng(1)
    table, gains = rng.integers(-16384, 16385, (9, 8)), rng.integers(-32767, 32768, 16)
    got = integer.gained(table, gains)
    for n, pair, one in np.ndindex(9, 8, 2):
        exact = Fraction(int(table[n, pair]) * int(gains[2 * pair + one]), 1 << integer.ROPE_BITS)
        assert got[n, pair, one] == (exact + Fraction(1, 2)).__floor__()
    assert np.abs(got).max() < 1 << 15


@pytest.mark.parametrize("head_dim", [8, 64, 128])
def test_rotate_gained_turns_what_has_gains(head_dim):
    """Each product of the four is off by half a unit of the rounded factor: an accumulator's magnitude, twice."""
    rng = np.random.default_rng(head_dim)
    acc, gains = pairs(rng, 5, head_dim), rng.integers(-32767, 32768, head_dim)
    angle = rng.uniform(-np.pi, np.pi, (5, head_dim // 2))
    cos, sin = (np.rint(f(angle) * (1 << integer.ROPE_BITS)).astype(np.int64) for f in (np.cos, np.sin))
    got = integer.rotate_gained(acc, gains, cos, sin)
    exact = integer.rotate(acc * gains, cos, sin) / (1 << integer.ROPE_BITS)
    bound = (np.abs(acc[..., 0::2]) + np.abs(acc[..., 1::2])).repeat(2, -1) / 2
    assert (np.abs(got - exact) <= bound).all() and np.abs(got).max() < 1 << 39
    ones = np.full(head_dim, 1 << integer.ROPE_BITS)
    assert (integer.rotate_gained(acc, ones, cos, sin) == integer.rotate(acc, cos, sin)).all()


@pytest.mark.parametrize("heads, head_dim", [(1, 32), (4, 64), (3, 128)])
@pytest.mark.parametrize("epsilon", [0.0, 1e-6, 1.0])
def test_normed_heads_are_rms_norms(heads, head_dim, epsilon):
    rng = np.random.default_rng([heads, head_dim])
    n = 6
    acc = pairs(rng, n, heads, head_dim) >> rng.integers(0, 20, (n, heads, 1))
    gains = rng.integers(-32767, 32768, head_dim)
    angle = rng.uniform(-np.pi, np.pi, (n, 1, head_dim // 2))
    cos, sin = (np.rint(f(angle) * (1 << integer.ROPE_BITS)).astype(np.int64) for f in (np.cos, np.sin))
    s = UFloat(rng.integers(1 << 15, 1 << 16, n), rng.integers(-40, -30, n))
    y, exponent = integer.rotate_gained(acc, gains, cos, sin), -14
    codes, scale = integer.normed_heads(acc, y, s, exponent, integer.uf_from_float(1 / head_dim), integer.uf_from_float(epsilon))
    x = acc * s.value()[:, None, None]
    rms = np.sqrt((x * x).mean(-1, keepdims=True) + epsilon)
    wanted = y * 2.0**exponent * s.value()[:, None, None] / rms
    step = np.abs(wanted).max(-1, keepdims=True) / 127
    # Scales: y's step (2 U and the maximum's bits), times s, and times 1/rms, half of five products and sums below the root, and four more.
    relative = 2 * U + U + (5 * U + 2**-16) / 2 + 4 * U + 2.0**-20
    got = codes * scale.value()[..., None]
    assert (np.abs(got - wanted) <= (step * CODE + (np.abs(wanted) + step) * relative) * (1 + 2**-8)).all()
    assert np.abs(codes).max(-1).min() == 127


def test_a_head_of_zeros_has_the_scale_zero():
    zeros, one = np.zeros((1, 2, 8), np.int64), UFloat(np.array([40000]), np.array([-20]))
    codes, scale = integer.normed_heads(zeros, zeros, one, -14, integer.uf_from_float(1 / 8), integer.uf_from_float(1e-6))
    assert not codes.any() and not scale.m.any() and (scale.e == integer.EXPONENT_MIN).all()


@pytest.mark.parametrize("size, most", [(64, 0), (64, 3), (128, 7)])
def test_codes_that_stand_for_one(size, most):
    """Times the vector's scale their sum is one, cut off at 12 bits as long as exponents reach."""
    mantissas = np.array([32768, 32769, 40000, 50001, 65535])
    for exponent in range(-50, 10):
        s, seen = integer.UFloat(mantissas, np.full(5, exponent)), integer.Saturations()
        codes, shifts = integer.bias_codes(s, size, most, seen)
        assert codes.shape == (5, size) and shifts.shape == (5,) and 0 <= codes.min() and codes.max() <= 127
        assert set(shifts) <= set(range(most + 1))
        total = codes[:, : config.BIAS_CODES].sum(-1)
        one = total * 2.0**-shifts * s.value()
        step = 2.0**-shifts * s.value()  # of the greatest exponent, or the 12th bit of one
        fits = s.value() > 2.0**-12
        assert seen.count == (~fits).sum() and (total[~fits] == 4095).all() and not shifts[~fits].any()
        assert (one[fits] <= 1).all() and (1 - one[fits] < step[fits] + 2**-14).all()
        assert (total[fits & (shifts < most)] >= 2048).all()
        # All but one code of the rest are the same, which hardware writes without counting.
        assert (codes[:, :63] == total[:, None] // 64).all() and (codes[:, 63] == total // 64 + total % 64).all()
    assert not integer.bias_codes(integer.UFloat(np.array([0]), np.array([-512])), size, most)[0].any()


def test_embed_groups_rounds_to_the_residual_stream():
    rng = np.random.default_rng(3)
    elements = rng.integers(-1, 2, (5, 64)) * rng.integers(0, 1 << 16, (5, 64))
    unit = integer.uf_from_float(2.0 / 65535)
    got, seen = integer.embed_groups(elements, unit), integer.Saturations()
    wanted = elements * float(unit.value()) * 2.0**integer.RESIDUAL_BITS
    assert (np.abs(got - wanted) <= 0.5 + np.abs(wanted) * U).all()
    top = integer.embed_groups(elements, integer.uf_from_float(60.0), seen)
    assert seen.count and np.abs(top).max() == 1 << 31


def test_gates_beyond_62_bits_are_exact():
    """Results by groups have 23 bits, whatever the length of the vectors."""
    rng, most = np.random.default_rng(5), (1 << RESULT_BITS - 1) - 1
    gate, up = (rng.integers(-most, most + 1, (3, 50)) >> rng.integers(0, 12, (3, 50)) for _ in range(2))
    gate[0, 0], up[0, 0], up[1] = most, -most, -1 - np.abs(up[1]) // 2
    m, e = integer.gated_relu2(gate, up)
    for i in np.ndindex(gate.shape):
        v = max(int(gate[i]), 0) ** 2 * int(up[i])
        assert abs(v).bit_length() <= 66
        exponent = int(e[i])
        assert m[i] == (v >> exponent if exponent > 0 else v << -exponent) if v else (m[i], e[i]) == (0, -128)
        assert not v or (int(m[i]) if v > 0 else ~int(m[i])).bit_length() == integer.MANTISSA_BITS


def test_grouped_logits_fit_the_head():
    most = (1 << RESULT_BITS - 1) - 1
    assert integer.grouped_logits(np.array([most, -most])).tolist() == [most << 16, -(most << 16)]
    assert (most << integer.GROUPED_LOGIT_BITS).bit_length() < 44
