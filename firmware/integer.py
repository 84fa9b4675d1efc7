"""What each operation of the machine computes: the bit-exact specification, in int64 NumPy.

The RTL equals these functions in every bit; docs/numbers.md explains the formats. All functions are
vectorised over leading dimensions and independent of the generator's parameters (lanes, tables, ...).

Formats
    UFloat      positive scale m * 2**e, m unsigned 16 bits with its top bit set (or zero: m=0, e=-512)
    residual    int32 fixed point with RESIDUAL_BITS fraction bits
    work        element m * 2**e, m signed 24 bits, e signed 8 bits, times one UFloat per token
    codes       int8 in -127..127, times one UFloat per token (activations) or per token and head
"""

from __future__ import annotations

from dataclasses import dataclass
from math import frexp
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tritloom.firmware.config import BIAS_CODES, CHUNK

Int = NDArray[np.int64]

RESIDUAL_BITS = 16
GAIN_ONE = 14
"""Without gains (plain quantisation) y = a * 2**GAIN_ONE and the gain exponent is -GAIN_ONE."""
ROPE_BITS = 14
SCORE_BITS = 10
PROBABILITY_BITS = 15
WEIGHT_DROP = 14
"""Bits dropped from probability * value-scale before it multiplies value codes."""
LOGIT_DROP = 8
GROUPED_LOGIT_BITS = 16
"""How far the results of a ternary head by groups are shifted left to be logits."""
SILU_BITS = 16
LOG2_BITS = 32
LOG2_TABLE_BITS = 20
NOISE_BITS = 16
"""Fraction bits of base-2 logits and of the noise added to them."""
EXPONENT_MIN = -512
MANTISSA_BITS = 23
"""Magnitude bits of aligned activations and work mantissas (24 bits with sign)."""
RUNNING_MAX_MIN = -4096
BIAS_BITS = 12
"""Bits of the number of code steps that make one, which meets a matrix' bias."""
GROUP_DIGITS = 3
"""Bits behind the leading one of a group's maximum that its exponent is found with."""


class UFloat(NamedTuple):
    """Arrays of scales m * 2**e."""

    m: Int
    e: Int

    def value(self) -> NDArray[np.float64]:
        return np.ldexp(np.asarray(self.m, np.float64), np.asarray(self.e, np.int64).astype(np.int32))

    def __getitem__(self, index):  # type: ignore[override]
        return UFloat(self.m[index], self.e[index])


def bit_length(v: Int) -> Int:
    """Bits of v >= 0 (0 for 0), exact to 62 bits."""
    v = np.asarray(v, np.int64)
    big = v >= (1 << 31)
    return np.frexp(np.where(big, v >> 31, v).astype(np.float64))[1].astype(np.int64) + 31 * big


def shift_right(v: Int, n: Int | int) -> Int:
    """Arithmetic shift right by n (left when n is negative)."""
    n = np.asarray(n, np.int64)
    return (v >> np.minimum(np.maximum(n, 0), 62)) << np.minimum(np.maximum(-n, 0), 62)


# Scales --------------------------------------------------------------------------------------


def uf_norm(v: Int, e: Int | int = 0) -> UFloat:
    """Scale of the integer v >= 0 times 2**e, truncated to 16 bits."""
    v = np.asarray(v, np.int64)
    drop = bit_length(v) - 16
    zero = v == 0
    return UFloat(shift_right(v, drop), np.where(zero, EXPONENT_MIN, np.asarray(e, np.int64) + drop))


def uf_from_float(x: float) -> UFloat:
    """Nearest scale to a positive float (used offline only)."""
    if x == 0:
        return UFloat(np.array(0), np.array(EXPONENT_MIN))
    if not 0 < x < float("inf"):
        raise ValueError(f"a scale must be positive and finite, not {x}")
    f, e = frexp(x)
    m = round(f * 65536)
    if m == 65536:
        m, e = 32768, e + 1
    return UFloat(np.array(m), np.array(e - 16))


UF_ONE = uf_from_float(1.0)
UF_INV127 = uf_from_float(1 / 127)


def uf_mul(a: UFloat, b: UFloat) -> UFloat:
    return uf_norm(a.m * b.m, a.e + b.e)


def uf_add(a: UFloat, b: UFloat) -> UFloat:
    """Sum; the smaller-exponent operand is aligned by truncation to 16 extra bits. Zero has the least exponent."""
    swap = a.e < b.e
    hm, he = np.where(swap, b.m, a.m), np.where(swap, b.e, a.e)
    lm, le = np.where(swap, a.m, b.m), np.where(swap, a.e, b.e)
    return uf_norm((hm << 16) + ((lm << 16) >> np.minimum(he - le, 33)), he - 16)


def uf_recip(a: UFloat) -> UFloat:
    """floor(2**31 / m), normalised. The reciprocal of zero is zero."""
    zero = a.m == 0
    q = np.where(zero, 0, (1 << 31) // np.where(zero, 1, a.m))
    return uf_norm(q, -31 - a.e)


def isqrt(v: Int) -> Int:
    """floor(sqrt(v)) for 0 <= v < 2**52, exact."""
    v = np.asarray(v, np.int64)
    r = np.sqrt(v.astype(np.float64)).astype(np.int64)
    r -= r * r > v
    return r + ((r + 1) * (r + 1) <= v)


def uf_sqrt(a: UFloat) -> UFloat:
    """Square root: m (doubled for odd e) times 2**16, integer root (17 bits), normalised."""
    odd = a.e & 1
    return uf_norm(isqrt((a.m << odd) << 16), (a.e - odd - 16) >> 1)


def uf_pack(a: UFloat) -> NDArray[np.uint32]:
    """Memory word: m in bits 15:0, e as s16 in bits 31:16."""
    return ((np.asarray(a.e, np.int64) & 0xFFFF) << 16 | np.asarray(a.m, np.int64)).astype(np.uint32)


def uf_unpack(word: NDArray[np.uint32] | int) -> UFloat:
    w = np.asarray(word, np.int64)
    e = (w >> 16) & 0xFFFF
    return UFloat(w & 0xFFFF, e - ((e >> 15) << 16))


def scale_to_fixed(v: Int, s: UFloat, bits: int) -> Int:
    """round(v * s * 2**bits): ((v*m << 8) + half) >> k, k = 8 - (e + bits) clamped to 1..62."""
    k = np.minimum(np.maximum(8 - (s.e + bits), 1), 62)
    return (((v * s.m) << 8) + (np.int64(1) << (k - 1))) >> k


@dataclass
class Saturations:
    """How many elements were clamped, which is what the register SATURATIONS counts (docs/numbers.md, "Overflow")."""

    count: int = 0


Flags = NDArray[np.bool_] | bool


def saturate(v: Int, bits: int, seen: Saturations | None = None, counts: Flags = True, beyond: Flags = False) -> Int:
    """Clamp to signed `bits`. `seen` is told how many elements that is: those that change, and all `beyond`, of those that count."""
    clamped = np.clip(v, -(1 << (bits - 1)), (1 << (bits - 1)) - 1)
    if seen is not None:
        seen.count += int((((clamped != v) | beyond) & counts).sum())
    return clamped


def beyond_shift(s: UFloat, bits: int) -> NDArray[np.bool_]:
    """Whether `scale_to_fixed` would have to shift left further than it does: then an element is less than it should be."""
    return s.e + bits > 7


# Quantisation --------------------------------------------------------------------------------


class Groups(NamedTuple):
    """Groups of `size` consecutive codes with an exponent each, from 0 to `most`. Without: NO_GROUPS."""

    size: int
    most: int


NO_GROUPS = Groups(0, 0)


def group_exponents(y: Int, groups: Groups) -> Int:
    """How far the codes of each group are shifted up: exponents [..., n/size] of y [..., n].

    With L bits of a group's maximum, M of the whole vector's, and their leading 1 + GROUP_DIGITS bits l and m: M - L, less 1 if l >= m, and
    from 0 to `most`. So the group's maximum, shifted up, is not above the vector's.
    """
    top = np.abs(y).reshape(*y.shape[:-1], -1, groups.size).max(-1)

    def leading(v: Int) -> Int:
        return shift_right(v, bit_length(v) - (1 + GROUP_DIGITS))

    most = top.max(-1, keepdims=True)
    return np.clip(bit_length(most) - bit_length(top) - (leading(top) >= leading(most)), 0, groups.most)


def quantise(y: Int, segment: int, shifts: Int | None = None) -> tuple[Int, UFloat]:
    """int8 codes of 40-bit y, one absmax per `segment` consecutive elements of the last axis.

    Per segment: L = 39 - bits(max|y|); yn = (y << L) >> 16 (24 bits); R = floor(127 * 2**32 / maxn)
    (17 bits); code = (yn * R + 2**31) >> 32. Returns codes [..., n] and the scale max/127 [..., n/segment]
    in units of y. With `shifts` [..., m], of m equal groups of the only segment's elements, yn is shifted left by as much more.
    """
    shape = y.shape
    y = y.reshape(*shape[:-1], shape[-1] // segment, segment)
    top = np.abs(y).max(-1)
    left = 39 - bit_length(top)
    topn = (top << left) >> 16
    recip = (127 << 32) // np.maximum(topn, 1)
    further = left[..., None] if shifts is None else left[..., None] + shifts.repeat(segment // shifts.shape[-1], -1)[..., None, :]
    yn = (y << further) >> 16
    codes = np.where(top[..., None] == 0, 0, (yn * recip[..., None] + (1 << 31)) >> 32)
    return codes.reshape(shape), uf_mul(uf_norm(topn, 16 - left), UF_INV127)


def align_residual(x: Int) -> tuple[Int, Int]:
    """24-bit aligned activations and their exponent from residual [..., n]."""
    left = 31 - bit_length(np.bitwise_or.reduce(np.where(x < 0, ~x, x), axis=-1))
    return (x << left[..., None]) >> 8, 8 - left - RESIDUAL_BITS


def align_work(m: Int, e: Int) -> tuple[Int, Int]:
    """24-bit aligned activations and their exponent (the greatest of non-zero elements) from work elements."""
    top = np.where(m == 0, -128, e).max(-1)
    return m >> np.minimum(np.clip(top[..., None] - e, 0, None), 31), top


def norm_quantise(a: Int, exponent: Int, scale: UFloat, gains: Int | None, gain_exponent: int,
                  inverse_count: UFloat, eps: UFloat) -> tuple[Int, UFloat]:
    """RMSNorm (when gains are given) fused with absmax quantisation of aligned activations [..., n].

    The element's value is a * 2**exponent * scale. y = a * gain (or a << GAIN_ONE). Codes come from y
    alone; the scale takes 1/rms, with rms**2 = scale**2 * 2**(2*exponent) * sum(a**2)/n + eps, where
    the sum is over (a >> 6)**2.
    """
    codes, _, s = norm_quantise_groups(a, exponent, scale, gains, gain_exponent, inverse_count, eps, NO_GROUPS)
    return codes, s


def norm_quantise_groups(a: Int, exponent: Int, scale: UFloat, gains: Int | None, gain_exponent: int,
                         inverse_count: UFloat, eps: UFloat, groups: Groups) -> tuple[Int, Int, UFloat]:
    """`norm_quantise` to codes whose groups have exponents: codes, exponents [..., groups] (one 0 without groups), scale. A code of a
    group with exponent k counts 2**-k."""
    if gains is None:
        y, exponent_y = a << GAIN_ONE, exponent - GAIN_ONE
    else:
        y, exponent_y = a * gains, exponent + gain_exponent
    count = y.shape[-1] // groups.size if groups.size else 1
    shifts = group_exponents(y, groups) if groups.most else np.zeros((*y.shape[:-1], count), np.int64)
    codes, s = quantise(y, y.shape[-1], shifts)
    s = UFloat(s.m[..., 0], s.e[..., 0] + np.where(s.m[..., 0] == 0, 0, exponent_y))
    s = uf_mul(s, scale)
    if gains is not None:
        b = a >> 6
        mean = uf_mul(uf_norm((b * b).sum(-1), 2 * (exponent + 6)), inverse_count)
        mean = uf_add(uf_mul(mean, uf_mul(scale, scale)), eps)
        s = uf_mul(s, uf_recip(uf_sqrt(mean)))
    return codes, shifts, s


def bias_codes(s: UFloat, size: int, most: int, seen: Saturations | None = None) -> tuple[Int, Int]:
    """A group of codes [..., size] that stands for one beside a vector of scale s [...], and its exponent [...], from 0 to `most`.

    1/s, cut off, is n * 2**-exponent with n of BIAS_BITS bits; where it has more, n is the greatest there is, and `seen` is told. Of the
    first BIAS_CODES codes the last one takes n modulo BIAS_CODES, all others of the group have n / BIAS_CODES: the first BIAS_CODES sum
    to n. A scale of zero gives zeros.
    """
    one = uf_recip(s)
    right = -one.e - (16 - BIAS_BITS)
    exponent = np.clip(right, 0, most)
    beyond = right < 0
    n = np.where(beyond, (1 << BIAS_BITS) - 1, one.m >> np.minimum(16 - BIAS_BITS + np.maximum(right - exponent, 0), 62))
    if seen is not None:
        seen.count += int(beyond.sum())
    codes = np.repeat((n // BIAS_CODES)[..., None], size, -1)
    codes[..., BIAS_CODES - 1] += n % BIAS_CODES
    return codes, exponent


# Linear layers and what follows them ------------------------------------------------------------


def ternary_matmul(codes: Int, trits: NDArray[np.int8] | NDArray[np.floating]) -> Int:
    """Accumulators codes [..., inputs] x trits [rows, inputs] -> [..., rows]; float32 products are exact below 2**24."""
    assert trits.shape[-1] * 128 < 1 << 24
    return (codes.astype(np.float32) @ trits.astype(np.float32, copy=False).T).astype(np.int64)


def grouped_weights(trits: NDArray[np.int8], scales: NDArray[np.uint16]) -> NDArray[np.float64]:
    """Trits [rows, inputs] times their groups' scales [rows, inputs/group_size]: what `grouped_matmul` takes."""
    return trits * scales.astype(np.float64).repeat(trits.shape[-1] // scales.shape[-1], -1)


def grouped_matmul(codes: Int, weights: NDArray[np.floating], drop: int, shifts: Int | None = None, most: int = 0) -> Int:
    """Results codes [..., inputs] x weights [rows, inputs] -> [..., rows] without their `drop` low bits, rounded half up; float64 sums are
    exact below 2**53, and these below 2**45.

    With `shifts` [..., m], which the codes of m equal groups of inputs are shifted up by, of `most` at most: the sum is exact to `most`
    bits more, and those go too.
    """
    assert weights.shape[-1] < 1 << 22
    if shifts is not None:
        codes, drop = codes << (most - shifts).repeat(codes.shape[-1] // shifts.shape[-1], -1), drop + most
    return ((codes.astype(np.float64) @ weights.T).astype(np.int64) + (1 << drop >> 1)) >> drop


def residual_add(x: Int, acc: Int, s: UFloat, seen: Saturations | None = None) -> Int:
    """Residual + accumulators * scale [...], saturated to 32 bits."""
    s = UFloat(s.m[..., None], s.e[..., None])
    return saturate(x + scale_to_fixed(acc, s, RESIDUAL_BITS), 32, seen, beyond=beyond_shift(s, RESIDUAL_BITS))


def embed(codes: Int, row_scale: Int, embedding_scale: UFloat, seen: Saturations | None = None) -> Int:
    """Residual from embedding codes [..., n] with u16 row scales [...]."""
    return residual_add(np.zeros_like(codes), codes, uf_mul(uf_norm(row_scale), embedding_scale), seen)


def embed_groups(codes: Int, embedding_scale: UFloat, seen: Saturations | None = None) -> Int:
    """Residual from the embedding's trits times their groups' scales [..., n]."""
    return residual_add(np.zeros_like(codes), codes, uf_mul(UF_ONE, embedding_scale), seen)


def rotate(acc: Int, cos: Int, sin: Int) -> Int:
    """Rotary embedding of interleaved pairs: acc [..., head_dim], cos/sin [..., head_dim/2] Q1.14."""
    a, b = acc[..., 0::2], acc[..., 1::2]
    return np.stack([a * cos - b * sin, b * cos + a * sin], -1).reshape(acc.shape)


def gained(table: Int, gains: Int) -> Int:
    """Cosines or sines Q1.14 [..., head_dim/2], each times both gains int16 of its pair [head_dim]: [..., head_dim/2, 2], rounded half
    up."""
    return (table[..., None] * gains.reshape(-1, 2) + (1 << (ROPE_BITS - 1))) >> ROPE_BITS


def rotate_gained(acc: Int, gains: Int, cos: Int, sin: Int) -> Int:
    """`rotate` of acc [..., head_dim] times gains [head_dim], which cosines and sines take: in units of the gains, no fraction bits
    more."""
    a, b = acc[..., 0::2], acc[..., 1::2]
    c, s = gained(cos, gains), gained(sin, gains)
    return np.stack([a * c[..., 0] - b * s[..., 1], b * c[..., 1] + a * s[..., 0]], -1).reshape(acc.shape)


def normed_heads(acc: Int, y: Int, s: UFloat, exponent: int, inverse_count: UFloat, eps: UFloat) -> tuple[Int, UFloat]:
    """Codes and scales per head of y [..., heads, head_dim] times 2**exponent / rms, with rms**2 = mean of (acc * s)**2, plus eps.

    `s` [...] is the scale of the accumulators acc [..., heads, head_dim]. The sum of their squares is exact.
    """
    codes, t = quantise(y, y.shape[-1])
    t = UFloat(t.m[..., 0], t.e[..., 0] + np.where(t.m[..., 0] == 0, 0, exponent))
    s = UFloat(s.m[..., None], s.e[..., None])
    mean = uf_add(uf_mul(uf_mul(uf_norm((acc * acc).sum(-1)), inverse_count), uf_mul(s, s)), eps)
    return codes, uf_mul(uf_mul(t, s), uf_recip(uf_sqrt(mean)))


def quantise_heads(y: Int, head_dim: int, s: UFloat) -> tuple[Int, UFloat]:
    """Codes and scales per head of y [..., heads*head_dim] (ROPE_BITS fraction) times the scale s [...]."""
    codes, t = quantise(y, head_dim)
    t = UFloat(t.m, t.e - np.where(t.m == 0, 0, ROPE_BITS))
    return codes, uf_mul(t, UFloat(s.m[..., None], s.e[..., None]))


def work_norm(v: Int, e: Int | int) -> tuple[Int, Int]:
    """Work element of v * 2**e: mantissa of 23 magnitude bits (one's complement), exponent in -127..127."""
    drop = bit_length(np.where(v < 0, ~v, v)) - MANTISSA_BITS
    m, e = shift_right(v, drop), e + drop
    zero = (v == 0) | (e < -127)
    return np.where(zero, 0, m), np.where(zero, -128, np.minimum(e, 127))


def gated_relu2(gate: Int, up: Int) -> tuple[Int, Int]:
    """relu(gate)**2 * up as work elements; their token scale is (s*w_gate)**2 * (s*w_up). Exact also beyond 62 bits, which only results of
    more than 20 bits reach."""
    g = np.maximum(gate, 0)
    m, e = work_norm(g * g * up, 0)
    for i in zip(*np.nonzero(2 * bit_length(g) + bit_length(np.abs(up)) > 62), strict=True):
        v = int(g[i]) ** 2 * int(up[i])
        drop = (v if v >= 0 else ~v).bit_length() - MANTISSA_BITS
        m[i], e[i] = v >> drop, drop
    return m, e


def _silu_tail() -> Int:
    x = np.arange(1025) / 64
    return np.rint(x / (1 + np.exp(x)) * 2**SILU_BITS).astype(np.int64)


SILU_TAIL = _silu_tail()
"""x / (1 + e**x) at x = i/64, with SILU_BITS fraction: silu(z) = relu(z) - tail(|z|)."""


def silu(z: Int) -> Int:
    """silu of fixed point with SILU_BITS fraction, by linear interpolation of the tail below 16."""
    az = np.minimum(np.abs(z), (1 << 20) - 1)
    i, f = az >> 10, az & 1023
    tail = SILU_TAIL[i] + (((SILU_TAIL[i + 1] - SILU_TAIL[i]) * f + 512) >> 10)
    return np.maximum(z, 0) - tail


def gated_silu(gate: Int, up: Int, gate_scale: UFloat, seen: Saturations | None = None) -> tuple[Int, Int]:
    """silu(gate * s) * up as work elements; their token scale is s*w_up (the 2**-16 is in the exponent)."""
    s = UFloat(gate_scale.m[..., None], gate_scale.e[..., None])
    z = saturate(scale_to_fixed(gate, s, SILU_BITS), 32, seen, beyond=beyond_shift(s, SILU_BITS))
    return work_norm(silu(z) * up, -SILU_BITS)


# Attention -------------------------------------------------------------------------------------

EXP2_TABLE: Int = np.rint(2.0**PROBABILITY_BITS * 2.0 ** (-np.arange(1 << SCORE_BITS) / (1 << SCORE_BITS))).astype(np.int64)
"""2**(-f) for a fraction f of SCORE_BITS bits."""


def exp2_negative(d: Int) -> Int:
    """2**-d for d >= 0 in SCORE_BITS fixed point, with PROBABILITY_BITS fraction."""
    return EXP2_TABLE[d & ((1 << SCORE_BITS) - 1)] >> np.minimum(d >> SCORE_BITS, 31)


class AttentionState(NamedTuple):
    """Running softmax of one query: integer maximum, value exponent, sum, un-normalised output."""

    maximum: Int
    exponent: Int
    total: Int
    output: Int

    @classmethod
    def start(cls, shape: tuple[int, ...], head_dim: int) -> AttentionState:
        return cls(np.full(shape, RUNNING_MAX_MIN, np.int64), np.full(shape, EXPONENT_MIN, np.int64),
                   np.zeros(shape, np.int64), np.zeros((*shape, head_dim), np.int64))


def attention_chunk(state: AttentionState, q: Int, q_scale: UFloat, k: Int, k_scale: UFloat,
                    v: Int, v_scale: UFloat, visible: NDArray[np.bool_], seen: Saturations | None = None) -> AttentionState:
    """One chunk of at most CHUNK positions.

    q [..., d]; k, v [..., c, d]; k_scale, v_scale [..., c]; visible [..., c]. q_scale holds
    head_dim**-0.5 * log2(e). A chunk in which a query sees nothing leaves its state as it was.
    """
    any_visible = visible.any(-1)
    dot = np.einsum("...d,...cd->...c", q.astype(np.float64), k.astype(np.float64)).astype(np.int64)
    s = uf_mul(UFloat(q_scale.m[..., None], q_scale.e[..., None]), k_scale)
    score = saturate(scale_to_fixed(dot, s, SCORE_BITS), 22, seen, visible)
    top = np.where(visible, score, -(1 << 21)).max(-1)
    maximum = np.where(any_visible, np.maximum(state.maximum, (top + (1 << SCORE_BITS) - 1) >> SCORE_BITS), state.maximum)
    exponent = np.maximum(state.exponent, np.where(visible, v_scale.e, EXPONENT_MIN).max(-1))
    shift_total = np.minimum(maximum - state.maximum, 63)
    shift_output = np.minimum(shift_total + exponent - state.exponent, 63)
    p = np.where(visible, exp2_negative(np.where(visible, (maximum[..., None] << SCORE_BITS) - score, 0)), 0)
    w = (p * v_scale.m) >> (WEIGHT_DROP + np.clip(exponent[..., None] - v_scale.e, 0, 31))
    w = np.where(visible, w, 0)
    total = (state.total >> shift_total) + p.sum(-1)
    added = np.einsum("...c,...cd->...d", w.astype(np.float64), v.astype(np.float64)).astype(np.int64)
    output = (state.output >> shift_output[..., None]) + added
    return AttentionState(maximum, exponent, total, output)


def attention_finish(state: AttentionState) -> tuple[Int, Int]:
    """Work elements of output / total; their token scale is one."""
    inverse = uf_recip(uf_norm(state.total))
    e = inverse.e + WEIGHT_DROP + state.exponent
    return work_norm(state.output * inverse.m[..., None], e[..., None])


def attention(q: Int, q_scale: UFloat, k: Int, k_scale: UFloat, v: Int, v_scale: UFloat, position: Int,
              seen: Saturations | None = None) -> tuple[Int, Int]:
    """Causal attention of queries [n, heads, d] at `position` [n] over a cache k, v [kv_heads, length, d],
    scales [kv_heads, length]. Returns work elements [n, heads, d]."""
    n, heads, d = q.shape
    kv_heads, length, _ = k.shape
    group = heads // kv_heads
    q = q.reshape(n, kv_heads, group, d)
    qs = UFloat(q_scale.m.reshape(n, kv_heads, group), q_scale.e.reshape(n, kv_heads, group))
    state = AttentionState.start((n, kv_heads, group), d)
    for start in range(0, min(length, int(position.max()) + 1), CHUNK):
        c = slice(start, min(start + CHUNK, length))
        visible = (np.arange(c.start, c.stop) <= position[:, None])[:, None, None, :]
        state = attention_chunk(
            state, q, qs, k[:, c][None, :, None], UFloat(k_scale.m[:, c], k_scale.e[:, c])[None, :, None],
            v[:, c][None, :, None], UFloat(v_scale.m[:, c], v_scale.e[:, c])[None, :, None],
            np.broadcast_to(visible, (n, kv_heads, group, c.stop - c.start)), seen)
    m, e = attention_finish(state)
    return m.reshape(n, heads, d), e.reshape(n, heads, d)


# Head and sampler --------------------------------------------------------------------------------


def head_logits(codes: Int, rows: NDArray[np.int8] | NDArray[np.float64], row_scale: Int) -> Int:
    """Integer logits [..., vocab] of codes [..., hidden]: dot product with int8 rows times the row's u16 scale."""
    return (codes.astype(np.float64) @ rows.astype(np.float64, copy=False).T).astype(np.int64) * row_scale


def grouped_logits(results: Int) -> Int:
    """Integer logits of a ternary head's results by groups, which have fewer bits than those of int8 rows."""
    return results << GROUPED_LOGIT_BITS


def short_list(logits: Int, count: int) -> Int:
    """Ids of the `count` greatest ternary logits [vocab], of equals the lowest ids; the least first, of equals the highest id."""
    return np.argsort(-logits, kind="stable")[:count][::-1]


def ternary_ranks(logits: Int, ids: Int) -> Int:
    """Place from 0 of each token `ids` [n] in the order of ternary logits [n, vocab]: the greatest first, of equals the lowest id."""
    at = np.take_along_axis(logits, ids[..., None], -1)
    return ((logits > at) | ((logits == at) & (np.arange(logits.shape[-1]) < ids[..., None]))).sum(-1)


def sampling_logits(logits: Int, s: UFloat) -> Int:
    """Base-2 logits with NOISE_BITS fraction: (logit >> LOGIT_DROP) * s; s = code scale * head scale * 2**LOGIT_DROP * log2(e)/temperature.

    59 bits hold any of them. The shift's limit changes no choice: where it holds s back, a step of the dropped logit is 64 or more, and
    two tokens' noise differs by less than 37.
    """
    return scale_to_fixed(logits >> LOGIT_DROP, s, NOISE_BITS)


def mix32(h: Int) -> Int:
    """Finaliser of MurmurHash3 (public domain, A. Appleby) on 32-bit integers."""
    x = np.asarray(h, np.uint64) & np.uint64(0xFFFFFFFF)
    x ^= x >> np.uint64(16)
    x = (x * np.uint64(0x85EBCA6B)) & np.uint64(0xFFFFFFFF)
    x ^= x >> np.uint64(13)
    x = (x * np.uint64(0xC2B2AE35)) & np.uint64(0xFFFFFFFF)
    return (x ^ (x >> np.uint64(16))).astype(np.int64)


LOG2_TABLE: Int = np.rint(np.log2(1 + np.arange(513) / 512) * 2**LOG2_TABLE_BITS).astype(np.int64)


def log2_fixed(v: Int) -> Int:
    """log2 of an integer 1 <= v < 2**38 with LOG2_BITS fraction: table of 512 with linear interpolation on 22 bits.

    The interpolation's low bits are kept, so that -log2(u) keeps its relative precision for u next to one.
    """
    n = bit_length(v) - 1
    f = ((v << (37 - n)) >> 6) & 0x7FFFFFFF
    i, r = f >> 22, f & 0x3FFFFF
    more = LOG2_BITS - LOG2_TABLE_BITS
    return (n << LOG2_BITS) + (LOG2_TABLE[i] << more) + (((LOG2_TABLE[i + 1] - LOG2_TABLE[i]) * r) >> (22 - more))


def noise_words(seed: int) -> tuple[int, int]:
    """What a seed (32 bits) makes the noise of: the word of position 0, and the step from a position's to the next one's, modulo 2**32.

    No two seeds have a stretch of words in common, at the same positions or others: their steps differ, or (two seeds to each step)
    their words for positions less than 2**31 apart do.
    """
    mixed = int(mix32(np.array(seed)))
    step = (2 * mixed + 1) & 0xFFFFFFFF
    offset = (mixed & 0x80000000) | int(mix32(np.array(step))) >> 1
    return step * offset & 0xFFFFFFFF, step


def noise_word(seed: int, position: int) -> int:
    """What the noise of the token at `position` is made of."""
    start, step = noise_words(seed)
    return (start + step * position) & 0xFFFFFFFF


def gumbel(noise: int, token: Int) -> Int:
    """Gumbel noise in base 2 (NOISE_BITS fraction) for each token id: -log2(-log2(u)), u = mix32(id ^ mix32(noise)); from -5 to 31."""
    u = mix32(np.asarray(token, np.int64) ^ mix32(np.array(noise))) | 1
    return ((32 << LOG2_BITS) - log2_fixed((32 << LOG2_BITS) - log2_fixed(u))) >> (LOG2_BITS - NOISE_BITS)


class Sampling(NamedTuple):
    """Sampler settings.

    `temperature_scale`: UFloat of 2**LOGIT_DROP * log2(e) / temperature, or zero for greedy; `top_k`: 0 is off;
    `top_p`: probability mass in 1/65536, 65536 is off; `seed`: 32 bits.
    """

    temperature_scale: UFloat
    top_k: int
    top_p: int
    seed: int

    @property
    def words(self) -> tuple[int, int]:
        """`temperature` and `limits` as the sampler takes them: the packed scale; top_k in bits 15:0, top_p - 1 (at least 0) in 31:16."""
        return int(uf_pack(self.temperature_scale)), self.top_k | max(self.top_p - 1, 0) << 16

    @classmethod
    def of_words(cls, temperature: int, limits: int) -> Sampling:
        """The settings of `words`, which have no seed."""
        return cls(uf_unpack(temperature), limits & 0xFFFF, (limits >> 16) + 1, 0)


GREEDY = Sampling(UFloat(np.array(0), np.array(EXPONENT_MIN)), 0, 65536, 0)


def sample(logits: Int, logit_scale: UFloat, sampling: Sampling, noise: int, candidates: int, ids: Int | None = None) -> int:
    """The next token from integer logits [n] of the tokens `ids` [n], in the order in which they come (the vocabulary unless given).
    `noise`: `noise_word` of the seed and the token's position.

    Greedy: the greatest logit, lowest id first. Otherwise Gumbel-max over base-2 logits z: over all of
    them, or, with top_k or top_p, over the list of the `candidates` greatest logits sorted by logit, then id, cut
    after top_k entries and after the entry with which the list's mass reaches top_p of the total mass.
    The total is a running sum in the order given with an integer running maximum m: total = (total >> (m' - m)) + 2**(z - m').
    """
    ids = np.arange(len(logits)) if ids is None else ids
    if sampling.temperature_scale.m == 0:
        return int(ids[logits == logits.max()].min())
    z = sampling_logits(logits, uf_mul(logit_scale, sampling.temperature_scale))
    if not sampling.top_k and sampling.top_p >= 65536:
        noisy = z + gumbel(noise, ids)
        return int(ids[noisy == noisy.max()].min())
    order = np.lexsort((ids, -logits))[: min(sampling.top_k or candidates, candidates)]
    zs = z[order]
    if sampling.top_p < 65536:
        maximum, total = sampling_mass(z)
        p = exp2_negative(((maximum << NOISE_BITS) - zs) >> (NOISE_BITS - SCORE_BITS))
        mass = np.cumsum(p)
        enough = (mass << 16) >= sampling.top_p * total
        order = order[: int(np.argmax(enough)) + 1] if enough.any() else order
    return int(ids[order[np.argmax(z[order] + gumbel(noise, ids[order]))]])


def sampling_mass(z: Int) -> tuple[int, int]:
    """Integer maximum and total mass (PROBABILITY_BITS fraction) of base-2 logits z (NOISE_BITS fraction), in their order."""
    running = np.maximum.accumulate((z + (1 << NOISE_BITS) - 1) >> NOISE_BITS)
    p = exp2_negative(((running << NOISE_BITS) - z) >> (NOISE_BITS - SCORE_BITS))
    total, maximum = 0, int(running[0])
    breaks = [0, *(np.flatnonzero(np.diff(running)) + 1).tolist(), len(z)]
    for a, b in zip(breaks, breaks[1:], strict=False):
        total = (total >> min(int(running[a]) - maximum, 63)) + int(p[a:b].sum())
        maximum = int(running[a])
    return maximum, total
