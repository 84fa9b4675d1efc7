"""Binary points chosen from the checkpoint, so that its numbers fit the machine's fixed point; or why none does.

The residual stream, the gates of SiLU and attention's scores are fixed point with RESIDUAL_BITS, SILU_BITS and SCORE_BITS fraction bits.
A model whose numbers lie elsewhere is multiplied by powers of two that its scales take, with no change to the machine:

residual    everything that writes the stream (embedding, o_proj, down_proj) times 2**-k. A norm of it gives what it gave if its eps is
            times 2**-2k, so the factor ends there, exactly.
gates       a layer's gate_proj times 2**-j and its up_proj times 2**j, where SiLU is nearly homogeneous: with gates in the thousands
            but for 0.3 * 2**j, with gates in the thousandths but for a factor of 1 + z/2.
scores      a layer's q_proj, or the gains of its queries' norm, times 2**-j, where the scores are so large that attention sees one position
            only, which it still does.

How large they are, `measure` finds with a few tokens, in floating point, with the machine's codes. Ordinary models keep
their binary points.

Exponents. The vector unit keeps those of scales in 12 bits, and those that leave it (of queries, keys, values, logits) in 10. Scales
and gains come as float32 or less, from 2**-149 to 2**128. After a norm, a code's scale is at most gain * sqrt(n), and at least
gain * 2**-64 (a step of 24 bits, of a stream of 31 bits, whose rms is below 2**16), so in 2**-228..2**152; times a weight's scale
and an accumulator, in 2**-405..2**305, which 10 bits hold. 12 bits hold all
but the mean square of the gated activations, which `choose` checks.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tritloom.firmware.integer import RESIDUAL_BITS, UFloat, ternary_matmul
from tritloom.gen.models.codes import Codes, trits_of, words
from tritloom.gen.models.problems import CheckpointError
from tritloom.gen.quantised import HeadNorms, Layer, Layers, Parameters, QuantisedModel

Floats = NDArray[np.float64]

TOKENS = 8
"""Tokens that are tried: the start token, the greatest rows of the embedding, the least, and some between. In the shipped models what 8
find is within half a bit of what 16 do, and within 1.2 of what 64 do: RESIDUAL_TOP and the others leave 4."""
RESIDUAL_TOP, RESIDUAL_MOST = 27, 30
"""The greatest number of the residual stream that was seen should have so many bits: 4 are left for those that were not, 1 at the least."""
RESIDUAL_FINE, RESIDUAL_LEAST = 11, 8
"""And the greatest number of a token's vector, wherever a norm reads it, so many: the codes have 8."""
GATE_TOP, GATE_FINE = 11, -8
"""A gate's bits before the binary point where it is moved."""
GATE_MOST, GATE_LEAST = 14, -9
"""It is moved where the greatest gate that was seen has more bits before the point, or fewer."""
SCORE_TOP, SCORE_MOST = 10, 20
"""A score has 11 bits before the binary point, one of them for what was not seen. With more than SCORE_MOST bits, roundings of the float
model itself decide what attention sees."""
WORK_MOST, WORK_LEAST = 100, -80
"""An element of attention's output is below 2**150, and below 2**-105 it is zero: what was seen lies between these."""
EXPONENT_MOST = 2047 - 330
"""Of the mean square of the gated activations, without the elements' own exponents."""
LOGIT_LEAST = -110
"""A step of the head's codes is worth more: a temperature below host.session.LEAST_TEMPERATURE is greedy."""
SQUARED_MOST = 62
"""Bits of what a norm may read, so that float32, in which the model was made, holds its square."""
LIMITED = "no binary point carries it: train the model with smaller activations, or with norms before o_proj and down_proj"


@dataclass(frozen=True)
class Scaling:
    """Powers of two: the stream is 2**-residual of the model's, a layer's gates and scores are 2**-gates and 2**-scores of theirs."""

    residual: int
    gates: tuple[int, ...]
    scores: tuple[int, ...]

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the numbers should know."""
        if not any(self.scores):
            return ()
        layers = sum(score > 0 for score in self.scores)
        return (f"attention scores pass the machine's 2,048 (base 2) in {layers} layers: there they are 2^-{max(self.scores)} of the "
                f"model's or more, so that attention is less sharp",)


@dataclass
class Ranges:
    """Greatest magnitudes that were seen: of the residual stream anywhere, of a typical token's vector where a norm reads it (the least
    of these; `where` it was), of every layer's gates, scores (base 2), values and what its norms read, and of a step of the
    head's codes. `work`: the most that the exponent of a layer's gated activations' scale can be, up or down."""

    residual: float = 0.0
    fine: float = math.inf
    where: str = ""
    gates: list[float] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    normed: list[float] = field(default_factory=list)
    work: list[int] = field(default_factory=list)
    logits: float = 0.0

    def read(self, x: Floats, where: str) -> None:
        tops = np.abs(x).max(-1)
        typical = float(np.median(tops[tops > 0])) if tops.any() else math.inf
        if typical < self.fine:
            self.fine, self.where = typical, where


def _times(scale: UFloat, power: int) -> UFloat:
    """scale * 2**power."""
    return UFloat(scale.m, np.where(scale.m == 0, scale.e, scale.e + power))


# What is there --------------------------------------------------------------------------------------


def _tokens(model: QuantisedModel) -> list[int]:
    """Ids to try: TOKENS of them, or all."""
    rows = model.embedding.tops
    order = np.argsort(-rows, kind="stable")
    order = order[rows[order] > 0]
    between = np.linspace(0, len(rows) - 1, TOKENS // 2).astype(int)
    some = [*([] if model.spec.bos_id is None else [model.spec.bos_id]), *order[: TOKENS // 4], *order[::-1][: TOKENS // 8], *between]
    return list(dict.fromkeys(int(i) for i in some if 0 <= i < len(rows)))[: min(TOKENS, model.shape.context)]


def _codes(y: Floats) -> tuple[Floats, Floats]:
    """int8 codes of rows and what a step of each row's is worth."""
    step = np.abs(y).max(-1, keepdims=True) / 127
    return np.rint(np.divide(y, step, where=step > 0, out=np.zeros_like(y))), step


def _norm(x: Floats, p: Parameters) -> Floats:
    if p.gains is None:
        return x
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + float(p.eps.value())) * np.ldexp(p.gains.astype(np.float64), p.gain_exponent)


def _head_norm(y: Floats, p: HeadNorms, which: int) -> Floats:
    """Queries (`which` 0) or keys [n, heads * head_dim], each head normed."""
    x = y.reshape(len(y), -1, p.gains.shape[-1])
    gains = np.ldexp(p.gains[which].astype(np.float64), p.exponents[which])
    return (x / np.sqrt((x * x).mean(-1, keepdims=True) + float(p.eps.value())) * gains).reshape(y.shape)


def _linear(y: Floats, layer: Layer, name: str, drop: int, *scales: tuple[UFloat, int]) -> Floats:
    """Codes of y times a matrix, whose rows have as many scales as (scale, rows) say."""
    codes, step = _codes(y)
    of_rows = np.repeat([float(s.value()) for s, _ in scales], [rows for _, rows in scales])
    matrix, factors, inputs = getattr(layer, name), layer.group_scales.get(name), y.shape[-1]
    if factors is None:
        return ternary_matmul(codes.astype(np.int64), matrix) * step * of_rows
    bias: Floats | float = 0.0
    if 4 * matrix.shape[1] > inputs:  # one more group of inputs, which stand for one
        signs = trits_of(np.ascontiguousarray(matrix[:, inputs // 4 :]))[:, 0]
        bias = signs.astype(np.float64) * np.ldexp(factors[:, -1].astype(np.float64), -drop) * of_rows
        matrix, factors = matrix[:, : inputs // 4], factors[:, :-1]
    return _rounded(grouped_product(codes, matrix, factors), drop) * step * of_rows + bias


def _added(p: Parameters) -> Floats | float:
    """The bias of o or down."""
    return 0.0 if p.bias is None else p.bias.astype(np.float64) * float(p.scales[1].value())


def grouped_product(given: Floats, codes: Codes, scales: NDArray[np.uint16]) -> NDArray[np.int64]:
    """Exact sums [n, rows] of integers `given` [n, inputs], -127 to 127, times the trits of codes [rows, inputs/4] and their groups' scales
    [rows, groups], of 32, 64, 96 or 128 inputs each. Raises ValueError for other shapes."""
    from tritloom.gen import loops

    (n, inputs), (rows, groups) = given.shape, scales.shape
    if codes.shape != (rows, inputs // 4) or not groups or inputs % (32 * groups) or inputs > 128 * groups:
        raise ValueError(f"codes {codes.shape} with scales {scales.shape} are not a matrix of {inputs} inputs")
    codes, scales = np.ascontiguousarray(codes), np.ascontiguousarray(scales)
    out = np.zeros((-(-n // 8), rows, 8), np.int64)
    for first in range(0, n, 8):
        eight = np.zeros((8, inputs), np.int16)
        eight[: n - first] = given[first : first + 8]
        x = np.ascontiguousarray(eight.T).reshape(-1, 2, 2, 8)  # of a byte's halves two inputs each
        pairs = x[:, :, 0, None] * _PAIRS[:, :1] + x[:, :, 1, None] * _PAIRS[:, 1:] + np.int16(loops.PAIR_BIAS)
        loops.add_products(words(codes), scales, pairs.view(np.uint64).reshape(-1, 8, 2, 16, 2), out[first // 8])
    return out.transpose(0, 2, 1).reshape(-1, rows)[:n] if rows else np.zeros((n, 0), np.int64)


_PAIRS = (np.arange(16)[:, None] >> np.array([0, 2]) & 3).astype(np.int16) - np.int16(1)
"""Two trits, by the four bits of their codes."""


def _rounded(sums: NDArray[np.int64], drop: int) -> NDArray[np.int64]:
    """Sums without their `drop` low bits, rounded half up."""
    return (sums + (1 << drop >> 1)) >> drop


def _attention(q: Floats, k: Floats, v: Floats, group: int) -> tuple[Floats, float]:
    """Causal attention of q [n, heads, d] over k, v [n, kv_heads, d], base-2 scores as they come; and the greatest score's magnitude."""
    n = len(q)
    k, v = k.repeat(group, 1), v.repeat(group, 1)
    scores = np.where(np.tri(n, dtype=bool), np.einsum("nhd,mhd->hnm", q, k), -np.inf)
    weights = np.exp2(scores - scores.max(-1, keepdims=True))
    found = float(np.abs(scores[np.isfinite(scores)]).max())
    return np.einsum("hnm,mhd->nhd", weights / weights.sum(-1, keepdims=True), v).reshape(n, -1), found


def measure(model: QuantisedModel) -> Ranges:
    """The model in floating point on some of its tokens, with the machine's weights and codes."""
    s, found = model.shape, Ranges()
    ids = _tokens(model)
    if not ids:
        return found
    n = len(ids)
    angles = [table[:n, None].astype(np.float64) / (1 << 14) for table in (model.cos, model.sin)]
    table = model.embedding
    unit = float(model.embedding_parameters.scales[0].value())
    x = table.rows(ids).astype(np.float64) * unit
    found.residual = float(table.tops.max() * unit)

    def rotated(y: Floats) -> Floats:
        y = y.reshape(n, -1, s.head_dim)
        (cos, sin), a, b = angles, y[..., 0::2], y[..., 1::2]
        return np.stack([a * cos - b * sin, b * cos + a * sin], -1).reshape(y.shape)

    for index, layer in enumerate(model.layers):
        found.read(x, f"what layer {index}'s attention reads")
        normed = [x]
        p = layer.qkv_parameters
        qkv = _linear(_norm(x, p), layer, "qkv", s.scale_drop, *zip(p.scales, (s.q_size, s.kv_size, s.kv_size), strict=True))
        q, k, v = np.split(qkv, [s.q_size, s.q_size + s.kv_size], -1)
        if p.heads is not None:
            q, k = (_head_norm(y, p.heads, which) for which, y in enumerate((q, k)))
        y, top = _attention(rotated(q), rotated(k), v.reshape(n, -1, s.head_dim), s.group)
        found.scores.append(top)
        found.values.append(float(np.abs(v).max()))
        normed.append(y)
        p = layer.o_parameters
        x = x + _linear(_norm(y, p), layer, "o", s.scale_drop, (p.scales[0], s.hidden)) + _added(p)
        found.residual = max(found.residual, float(np.abs(x).max()))
        found.read(x, f"what layer {index}'s gates read")
        normed.append(x)
        p = layer.gate_up_parameters
        y = _norm(x, p)
        gate, up = (_linear(y, layer, name, s.scale_drop, (p.scales[i], s.ffn)) for i, name in enumerate(("gate", "up")))
        found.gates.append(float(np.abs(gate).max()))
        silu = gate / (1 + np.exp(-np.maximum(gate, -700)))
        y = (silu if s.activation == "silu" else np.maximum(gate, 0) ** 2) * up
        normed.append(y)
        down = layer.down_parameters
        x = x + _linear(_norm(y, down), layer, "down", s.scale_drop, (down.scales[0], s.hidden)) + _added(down)
        found.residual = max(found.residual, float(np.abs(x).max()))
        found.normed.append(max(float(np.abs(each).max()) for each in normed))
        found.work.append(_work_bits(p, s.activation, s.hidden))
    found.read(x, "what the final norm reads")
    found.logits = float(np.abs(_norm(x, model.head_parameters)).max()) / 127 * float(model.head_parameters.scales[0].value())
    return found


# What to do about it --------------------------------------------------------------------------------


def _bits(value: float) -> int:
    """Least n with value < 2**n."""
    return math.frexp(value)[1]


def _residual(found: Ranges, name: str) -> int:
    if not found.residual or not math.isfinite(found.fine):
        return 0
    top, fine = _bits(found.residual) + RESIDUAL_BITS, _bits(found.fine) + RESIDUAL_BITS
    least, most = top - RESIDUAL_TOP, fine - RESIDUAL_FINE
    if least <= 0 <= most:
        return 0
    if least <= most:
        return (least + most) // 2
    least = max(top - RESIDUAL_MOST, most)
    if fine - least < RESIDUAL_LEAST:
        raise CheckpointError(name, f"the residual stream reaches {found.residual:.2g}, but {found.where} is {found.fine:.2g}: "
                                    f"32 bits do not hold both", LIMITED)
    return least


def _work_bits(p: Parameters, activation: str, hidden: int) -> int:
    """`Ranges.work` of the parameters before gate_proj and up_proj."""
    gate, up = (abs(_bits(float(s.value()))) for s in p.scales[:2])
    code = max(abs(p.gain_exponent + 15) + _bits(hidden), abs(p.gain_exponent) + 64)
    return 3 * code + 2 * gate + up if activation == "relu2" else code + up


def choose(model: QuantisedModel, found: Ranges) -> Scaling:
    """Binary points for what was seen; a CheckpointError says what none can carry."""
    name, activation = model.spec.name, model.shape.activation

    def refuse(cause: str) -> None:
        raise CheckpointError(name, cause, LIMITED)

    gates, scores = [], []
    for i, (gate, score, value, normed) in enumerate(zip(found.gates, found.scores, found.values, found.normed, strict=True)):
        if not math.isfinite(normed) or _bits(normed) > SQUARED_MOST:
            refuse(f"the activations of layer {i} are so large that their squares overflow float32")
        if _bits(score) > SCORE_MOST:
            refuse(f"the attention scores of layer {i} reach {score:.2g} (base 2), and the machine's 2,048")
        if value and not WORK_LEAST < _bits(value) < WORK_MOST:
            refuse(f"the values of layer {i} reach {value:.2g}, beyond the machine's exponents")
        scores.append(max(0, _bits(score) - SCORE_TOP))
        move = 0
        if activation == "silu" and gate and _bits(gate) > GATE_MOST:
            move = _bits(gate) - GATE_TOP
        elif activation == "silu" and gate and _bits(gate) < GATE_LEAST:
            move = _bits(gate) - GATE_FINE
        gates.append(move)
        if model.shape.sub_norms and 2 * (found.work[i] + abs(move)) > EXPONENT_MOST:
            refuse(f"the scales of layer {i}'s gate_proj and up_proj and the gains before them are beyond the machine's exponents")
    if found.logits and _bits(found.logits) < LOGIT_LEAST:
        refuse(f"the logits are steps of {found.logits:.2g}")
    return Scaling(_residual(found, name), tuple(gates), tuple(scores))


def rescaled(model: QuantisedModel, scaling: Scaling) -> QuantisedModel:
    """The model with its scales times the powers of two."""
    k = scaling.residual

    def of(p: Parameters, *powers: int, reads: bool = False) -> Parameters:
        scales = tuple(_times(s, power) for s, power in zip(p.scales, (*powers, 0, 0, 0), strict=False))
        return dataclasses.replace(p, scales=scales, eps=_times(p.eps, -2 * k) if reads else p.eps)

    def of_layer(index: int) -> Layer:
        layer = model.layers[index]
        i, j = scaling.scores[index], scaling.gates[index]
        heads = layer.qkv_parameters.heads
        if heads is None:
            qkv = of(layer.qkv_parameters, -i, reads=True)
        else:  # queries are normed: their gains take it
            heads = dataclasses.replace(heads, exponents=(heads.exponents[0] - i, heads.exponents[1]))
            qkv = dataclasses.replace(of(layer.qkv_parameters, reads=True), heads=heads)
        return dataclasses.replace(
            layer,
            qkv_parameters=qkv,
            o_parameters=of(layer.o_parameters, -k, -k),
            gate_up_parameters=of(layer.gate_up_parameters, -j, j, reads=True),
            down_parameters=of(layer.down_parameters, -k, -k),
        )

    return dataclasses.replace(
        model,
        layers=Layers(len(model.layers), of_layer, keep=model.layers.keep),
        embedding_parameters=of(model.embedding_parameters, -k),
        head_parameters=of(model.head_parameters, reads=True),
    )
