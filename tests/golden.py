"""PyTorch golden models of the machine's operations, and how far from them the machine may be.

Every function returns a `Near`: what PyTorch computes in double precision from the very numbers that the machine is given, and the
bound that docs/numbers.md ("Distance from PyTorch") derives from the formats' widths. No tolerance is tuned. The PyTorch functions
stand first, each under a name of its own: a test replaces one by a wrong one and sees the bound exceeded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tritloom.firmware import integer

LOG2_E = float(np.log2(np.e))

# PyTorch ---------------------------------------------------------------------------------------


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], weight, eps)


def head_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Of a query or key head; Qwen3 has the same norm there."""
    return rms_norm(x, weight, eps)


def normed_and_turned(x: Tensor, weight: Tensor, eps: float, cos: Tensor, sin: Tensor) -> Tensor:
    """Normed, and rotated then."""
    return rotary(head_norm(x, weight, eps), cos, sin)


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """transformers' form x * cos + rotate_half(x) * sin, whose pairs lie half a head apart, of interleaved pairs [..., head_dim]."""
    halves = torch.cat([x[..., 0::2], x[..., 1::2]], -1)
    first, second = halves.chunk(2, -1)
    turned = halves * torch.cat([cos, cos], -1) + torch.cat([-second, first], -1) * torch.cat([sin, sin], -1)
    return torch.stack(turned.chunk(2, -1), -1).flatten(-2)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(gate) * up


def gated_relu2(gate: Tensor, up: Tensor) -> Tensor:
    return F.relu(gate).square() * up


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v)


def head(x: Tensor, rows: Tensor, row_scale: Tensor) -> Tensor:
    return F.linear(x, rows * row_scale[:, None])


def log_softmax(logits: Tensor, temperature: float) -> Tensor:
    return F.log_softmax(logits / temperature, -1)


def gumbel(u: Tensor) -> Tensor:
    """Gumbel noise of uniform numbers."""
    return -torch.log(-torch.log(u))


# Bounds ----------------------------------------------------------------------------------------

U = 2.0**-15
"""A scale's truncation to a mantissa of 16 bits, relative: of a product, a reciprocal, a square root or a sum."""
CODE = 1 / 2 + 2.0**-9 + 2.0**-14
"""A code's distance from the quotient that it rounds: the rounding, the reciprocal of 17 bits, the operands of 24 bits."""
STEP = 2 * U + 2.0**-20 + 2.0**-22
"""A quantisation step's relative error: two truncations, that of 1/127, the maximum of 23 bits."""
WORK = 2.0**-22
"""A work element's truncation, and that of the alignment of elements to the greatest: 23 bits."""
SQUARE = 2.0**-16
"""The truncation of elements before they are squared, relative to the greatest."""
WEIGHT = 1.25 * 2.0**-15
"""An attention weight: the unit that the shift drops, half a unit of the table, shifted once at least."""
NEGLIGIBLE = 1 + 2.0**-8
"""Products of errors."""


class Near(NamedTuple):
    """A number is within `error` of `value`."""

    value: Tensor
    error: Tensor


class Scale(NamedTuple):
    """A scale is `value`, but for a relative error of `error`."""

    value: float
    error: float = 0.0

    def times(self, factor: float, error: float = 0.0) -> Scale:
        """One product in the machine."""
        return Scale(self.value * factor, self.error + error + U)


def used(got: Tensor, near: Near) -> float:
    """The share of the bound that is used: over 1 is a difference that the formats do not explain."""
    distance = (got - near.value).abs()
    return float(torch.where(distance == 0, 0.0, distance / near.error).max()) if got.numel() else 0.0


class Shares(dict[str, float]):
    """The greatest share of its bound that every operation used."""

    def compare(self, what: str, got: Tensor, near: Near) -> None:
        share = used(got, near)
        self[what] = max(self.get(what, 0.0), share if share == share else float("inf"))

    def check(self) -> None:
        """Print the shares (pytest -s shows them); none may be more than 1."""
        for what, share in self.items():
            print(f"golden: {what}: {share:.3f} of the bound")
        assert self and all(share <= 1 for share in self.values()), f"further from PyTorch than the formats explain: {self}"


def check(compare: Callable[[], Shares], wrong: dict[str, tuple[str, str, Callable]]) -> None:
    """What `compare` finds is within the bounds, and beyond them with each of the `wrong` functions: by the error's name the comparison
    that it must fail, the function's name, and the wrong function."""
    compare().check()
    for name, (what, function, made) in wrong.items():
        with patch(f"golden.{function}", made):
            share = compare()[what]
        assert share > 1, f"{what} with the error {name!r} uses only {share:.3f} of the bound"
        print(f"golden: {what}, {name}: {share:.3g} times the bound")


def tensor(values) -> Tensor:
    return torch.as_tensor(np.asarray(values), dtype=torch.float64)


def value(scale) -> float:
    """Of a packed scale (integer.uf_pack)."""
    return float(integer.uf_unpack(scale).value())


# Vector unit -----------------------------------------------------------------------------------


def quantise(y: Near, relative: float) -> tuple[Near, Scale]:
    """Codes times their scale, of a vector whose scale has the `relative` error besides, and the step between codes."""
    top = float((y.value.abs() + y.error).max())
    each = y.error + top / 127 * CODE
    step = Scale(float(y.value.abs().max()) / 127, relative + STEP + _share(float(y.error.max()), float(y.value.abs().max())))
    return Near(y.value, (each + (y.value.abs() + each) * (relative + STEP)) * NEGLIGIBLE), step


def codes(y: Near) -> Near:
    """Codes alone, in steps of PyTorch's greatest magnitude."""
    top = float(y.value.abs().max())
    if not top:
        return Near(y.value, y.error * 0)
    wanted = y.value / top * 127
    return Near(wanted, (CODE + (y.error + wanted.abs() / 127 * y.error.max()) / top * 127) * NEGLIGIBLE)


def norm(x: Near, relative: float, gains: Tensor | None, eps: float) -> tuple[Near, float]:
    """RMSNorm (with gains) of what is read with an error each and a relative one in common: the vector that is quantised, and the
    relative error of its scale."""
    top = float((x.value.abs() + x.error).max())
    each = x.error + WORK * top
    if gains is None:
        return Near(x.value, each), relative + U
    part = _share(float((each + SQUARE * top).norm()), float(x.value.norm()))
    mean = 5 * U + 2.0**-16 + 2.0**-31 + 2 * part + part * part
    root = (1 - mean) ** -0.5 - 1 if mean < 1 else float("inf")
    factor = float((x.value.square().mean() + eps).rsqrt())
    return Near(rms_norm(x.value, gains, eps), each * gains.abs() * factor), relative + root + 4 * U


def normed_head(x: Tensor, relative: float, gains: Tensor, unit: float, eps: float, cos: Tensor, sin: Tensor) -> tuple[Near, float]:
    """A query or key head x (exact but for a `relative` error in common) normed with gains of steps of `unit`, and rotated: the vector that
    is quantised, and the relative error of its scale. Cosine times gain is rounded to a step."""
    factor = float((x.square().mean() + eps).rsqrt())
    each = (x[0::2].abs() + x[1::2].abs()).repeat_interleave(2) * factor * unit / 2
    mean = 5 * U + 2.0**-16 + 2.0**-31 + 2 * relative + relative * relative
    return Near(normed_and_turned(x, gains, eps, cos, sin), each), relative + (1 - mean) ** -0.5 - 1 + 4 * U


def gate(gates: Tensor, ups: Tensor, activation: str, gate_scale: Scale, up_scale: Scale) -> tuple[Near, float]:
    """The gated activation of accumulators: with an error each, and a relative one in common."""
    g, u = gates * gate_scale.value, ups * up_scale.value
    if activation == "relu2":
        h = gated_relu2(g, u)
        return Near(h, h.abs() * WORK), 2 * gate_scale.error + up_scale.error + 2 * U
    g = g.clamp(-(2.0**15), 2.0**15)
    h = swiglu(g, u)
    argument = g.abs() * gate_scale.error + 2.0**-17 + _too_large(gate_scale)
    return Near(h, u.abs() * (1.1 * argument + 2.0**-15) + h.abs() * WORK), up_scale.error


def add(x: Tensor, accumulators: Tensor, scale: Scale) -> Near:
    """The residual stream after an addition."""
    more = accumulators * scale.value
    return Near((x + more).clamp(-(2.0**15), 2.0**15 - 2.0**-16), 2.0**-17 + more.abs() * scale.error + _too_large(scale))


def _too_large(scale: Scale) -> float:
    """Of 128 and more the shifter goes no further: all elements count as clamped (docs/numbers.md, "Overflow")."""
    return float("inf") if scale.value * (1 + scale.error) >= 128 else 0.0


def scaled(near: Near, factor: float) -> Near:
    """Times a scale whose product is truncated."""
    return Near(near.value * factor, (near.error * (1 + U) + near.value.abs() * U) * factor)


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


# Attention -------------------------------------------------------------------------------------


def attend(q: Tensor, q_scale: float, k: Tensor, k_scale: Tensor, v: Tensor, v_scale: Tensor) -> Near:
    """One query's output [head_dim]: codes q [head_dim], k and v [positions, head_dim] and their scales; q_scale holds
    head_dim**-0.5 * log2(e), as in the machine."""
    values = v * v_scale[:, None]
    wanted = attention((q * q_scale * len(q)**0.5 / LOG2_E)[None], k * k_scale[:, None], values)[0]
    score = k @ q * q_scale * k_scale
    shift = score.abs() * U + 2.0**-11
    p = torch.exp2(score - torch.ceil((score + shift).max()))
    off = p * (torch.exp2(shift) - 1) + WEIGHT
    unit = 2.0 ** (float(torch.frexp(v_scale).exponent[v_scale > 0].max()) - 17) if (v_scale > 0).any() else 0.0
    numerator = off @ (values - wanted).abs() + unit * (v.abs().sum(0) + 2) + wanted.abs() * 2.0**-14
    total = p.sum() - off.sum() - 2.0**-14
    return Near(wanted, (numerator / total + wanted.abs() * (2 * U + WORK)) * NEGLIGIBLE)


# Sampler ---------------------------------------------------------------------------------------

LOG2_TABLE = 2.0**-21 + LOG2_E * 2.0**-21 + 2.0**-31
"""The table's logarithm: half a unit of its 20 bits, the chord between 512 entries (log2(e) h**2 / 8), two truncations to 32 bits."""


def noise_error(u: Tensor) -> Tensor:
    """Of the machine's Gumbel noise of u, in base 2."""
    first = -torch.log2(u)
    relative = LOG2_TABLE / first.clamp(min=LOG2_E * 2.0**-10) + 2.0**-31 / first
    return torch.where(relative < 1, -torch.log2(1 - relative.clamp(max=1)), torch.inf) + LOG2_TABLE + 2.0**-16


def choice(token: int, logits: Tensor, scale: float, temperature: float, u: Tensor, top_k: int, top_p: float, candidates: int) -> float:
    """The share of its bound that the choice of `token` uses: how much less its noisy logit is than that of one that is surely kept,
    and how much of the mass of top_p is surely before it. logits [vocab], of `scale`; u [vocab]: the uniform numbers of the noise."""
    if not temperature:  # integers, compared exactly
        return 0.0 if token == int(torch.argmax(logits)) else float("inf")
    log_p = log_softmax(logits * scale, temperature) * LOG2_E
    step = 2.0**integer.LOGIT_DROP * scale / temperature * LOG2_E
    each, relative = step + 2.0**-16 + (37 if step >= 128 else 0), U + 2.0**-16
    order = torch.sort(-logits, stable=True).indices
    limited = bool(top_k) or top_p < 1
    kept = order[: min(top_k or candidates, candidates)] if limited else order
    surely, share = torch.ones(len(kept), dtype=torch.bool), 0.0
    rank = (kept == token).nonzero()
    if not len(rank):
        return float("inf")
    if top_p < 1:
        less = log_p.max() - log_p
        mass = torch.exp2(-less)
        off = torch.exp2(-less + less * relative + each + 2.0**-10) - mass + 2 * WEIGHT
        before, off_before = (torch.cumsum(part[order], 0)[: len(kept)] - part[kept] for part in (mass, off))
        excess = before - top_p * mass.sum()
        bound = off_before + top_p * (off.sum() + 2.0**-13)
        surely = excess + bound < 0
        share = max(0.0, float((excess / bound).nan_to_num(0)[rank]))
    noisy, error = log_p + gumbel(u) * LOG2_E, noise_error(u)
    rivals = kept[surely]
    bound = (log_p[rivals] - log_p[token]).abs() * relative + each + error[rivals] + error[token]
    return max([share, *((noisy[rivals] - noisy[token]) / bound).tolist()])


def uniform(noise: int, ids: np.ndarray) -> Tensor:
    """The uniform numbers of a position's noise for tokens; how they are distributed is tests/host/test_sampling.py's matter."""
    return tensor(integer.mix32(ids ^ integer.mix32(np.array(noise))) | 1) / 2.0**32


def improbability(counts: Tensor, p: Tensor) -> float:
    """The probability of a chi-square as great as that of `counts` where `p` holds; entries expected less than five times are one."""
    expected = p * counts.sum()
    rare = expected < 5
    observed, expected = (torch.cat([part[~rare], part[rare].sum()[None]]) for part in (counts, expected))
    observed, expected = observed[expected > 0], expected[expected > 0]
    return float(torch.special.gammaincc(tensor((len(observed) - 1) / 2), ((observed - expected).square() / expected).sum() / 2))
