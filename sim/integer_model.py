"""The whole model in the machine's integers: what every configuration must compute, without any machine.

`IntegerModel` runs whole token sequences at once on `QuantisedModel`, straight from the checkpoint's
matrices: no firmware, no image, no packing. It and the emulator share only the element-wise definitions
of `tritloom.firmware.integer`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tritloom.firmware import integer
from tritloom.firmware.config import BuildConfig
from tritloom.firmware.integer import NO_GROUPS, UF_ONE, Groups, Int, Sampling, Saturations, UFloat, uf_mul
from tritloom.gen.quantised import GroupedTable, Parameters, QuantisedModel, Table


class _Codes(NamedTuple):
    """Codes [n, inputs], and the exponents [n, groups] of theirs."""

    codes: Int
    shifts: Int


def _norm_quantise(aligned: tuple[Int, Int], scale: UFloat, p: Parameters, groups: Groups) -> tuple[_Codes, UFloat]:
    gains = None if p.gains is None else p.gains.astype(np.int64)
    norm = *aligned, scale, gains, p.gain_exponent, p.inverse_count, p.eps
    if not groups.size:
        codes, scale = integer.norm_quantise(*norm)
        return _Codes(codes, np.zeros((len(codes), 1), np.int64)), scale
    codes, shifts, scale = integer.norm_quantise_groups(*norm, groups)
    return _Codes(codes, shifts), scale


def _with_one(given: _Codes, scale: UFloat, groups: Groups, seen: Saturations) -> _Codes:
    """Codes and those of a group that stands for one beside them, which meets a matrix' bias."""
    codes, shifts = integer.bias_codes(scale, groups.size, groups.most, seen)
    return _Codes(np.concatenate([given.codes, codes], -1), np.concatenate([given.shifts, shifts[:, None]], -1))


def _add_bias(x: Int, p: Parameters, seen: Saturations) -> Int:
    """The residual stream and the bias of o or down, where there is one."""
    return x if p.bias is None else integer.residual_add(x, p.bias.astype(np.int64), p.scales[1], seen)


def _concatenate(a: UFloat | None, b: UFloat) -> UFloat:
    return b if a is None else UFloat(np.concatenate([a.m, b.m], 1), np.concatenate([a.e, b.e], 1))


@dataclass
class _LayerCache:
    """Keys and values [kv_heads, length, head_dim] and their scales [kv_heads, length]."""

    keys: Int | None = None
    key_scale: UFloat | None = None
    values: Int | None = None
    value_scale: UFloat | None = None

    def append(self, keys: Int, key_scale: UFloat, values: Int, value_scale: UFloat) -> None:
        self.keys = keys if self.keys is None else np.concatenate([self.keys, keys], 1)
        self.values = values if self.values is None else np.concatenate([self.values, values], 1)
        self.key_scale = _concatenate(self.key_scale, key_scale)
        self.value_scale = _concatenate(self.value_scale, value_scale)


@dataclass
class IntegerModel:
    """A model with its KV cache; `forward` appends tokens. `shortlist`, for what `generate` chooses from, and `group_exponents`: as in
    `BuildConfig`.

    `saturations` counts as the machine does, which however leaves out the last layer of a prompt's tokens but the last."""

    model: QuantisedModel
    shortlist: int = 0
    group_exponents: int = 0
    position: int = 0
    saturations: Saturations = field(default_factory=Saturations)
    _cache: list[_LayerCache] = field(default_factory=list)
    _matrices: list[dict[str, NDArray[np.float32] | NDArray[np.float64]]] = field(default_factory=list)
    _head: NDArray[np.float64] | None = None
    _ternary_head: NDArray[np.float32] | None = None

    @classmethod
    def of(cls, model: QuantisedModel, config: BuildConfig) -> IntegerModel:
        """What a configuration's machine computes."""
        return cls(model, config.shortlist, config.group_exponents)

    def reset(self) -> None:
        """Forget every token."""
        self.position = 0
        self._cache = [_LayerCache() for _ in range(self.model.shape.layers)]

    def _matrix(self, layer: int, name: str) -> NDArray[np.float32] | NDArray[np.float64]:
        """In floating point, made once."""
        while len(self._matrices) <= layer:
            self._matrices.append({})
        kept = self._matrices[layer]
        if name not in kept:
            kept[name] = self.model.layers[layer].weights(name)
        return kept[name]

    @property
    def _groups(self) -> Groups:
        return Groups(self.model.shape.group_size, self.group_exponents)

    def _grouped(self, given: _Codes, weights: NDArray[np.floating]) -> Int:
        return integer.grouped_matmul(given.codes, weights, self.model.shape.scale_drop, given.shifts, self.group_exponents)

    def _linear(self, given: _Codes, layer: int, name: str) -> Int:
        weights = self._matrix(layer, name)
        return self._grouped(given, weights) if self.model.shape.group_size else integer.ternary_matmul(given.codes, weights)

    def forward(self, tokens: NDArray[np.integer] | list[int], last_only: bool = False) -> tuple[Int, UFloat]:
        """Integer logits [n, vocab] (or of the last token, [1, vocab]) after each of `tokens`, and their scale [n]."""
        codes, scale = self._head_inputs(tokens, last_only)
        return self._logits(codes), scale

    def head_codes(self, tokens: NDArray[np.integer] | list[int]) -> Int:
        """Codes [n, hidden] that an int8 head meets after each of `tokens`."""
        return self._head_inputs(tokens, last_only=False)[0].codes

    def _head_inputs(self, tokens: NDArray[np.integer] | list[int], last_only: bool) -> tuple[_Codes, UFloat]:
        """What the head meets after each of `tokens` (or the last), and the scale of their logits [n]."""
        s = self.model.shape
        ids = np.asarray(tokens, np.int64)
        n = len(ids)
        if not n:
            raise ValueError("no tokens to run")
        if not self._cache:
            self.reset()
        if self.position + n > s.context:
            raise ValueError(f"{self.position} + {n} positions exceed the context of {s.context}")
        positions = self.position + np.arange(n)
        table, unit = self.model.embedding, self.model.embedding_parameters.scales[0]
        if isinstance(table, GroupedTable):
            x = integer.embed_groups(table.rows(tokens), unit, self.saturations)
        else:
            x = integer.embed(table.codes[ids].astype(np.int64), table.row_scale[ids].astype(np.int64), unit, self.saturations)
        for index in range(s.layers):
            x = self._layer(index, x, positions)
        self.position += n
        if last_only:
            x = x[-1:]
        groups = self._groups if s.ternary_head else NO_GROUPS
        codes, scale = _norm_quantise(integer.align_residual(x), UF_ONE, self.model.head_parameters, groups)
        return codes, uf_mul(scale, self.model.head_parameters.scales[0])

    def _logits(self, given: _Codes) -> Int:
        """Integer logits [n, vocab] of the int8 head, or of one that is ternary by groups."""
        if not isinstance(self.model.head, GroupedTable):
            return self.logits(given.codes)
        if self._head is None:
            self._head = integer.grouped_weights(self.model.head.trits, self.model.head.scales)
        return integer.grouped_logits(self._grouped(given, self._head))

    def logits(self, codes: Int) -> Int:
        """Integer logits [n, vocab] of the int8 head, of codes [n, hidden]."""
        assert isinstance(self.model.head, Table)
        if self._head is None:
            self._head = self.model.head.codes.astype(np.float64)
        return integer.head_logits(codes, self._head, self.model.head.row_scale.astype(np.int64))

    def ternary_logits(self, codes: Int) -> Int:
        """Accumulators [n, vocab] of the ternary head."""
        if self._ternary_head is None:
            self._ternary_head = self.model.ternary_head.astype(np.float32)
        return integer.ternary_matmul(codes, self._ternary_head)

    def _choose(self, given: _Codes, scale: UFloat, sampling: Sampling, candidates: int) -> int:
        """The token after those so far, from one token's codes [1, hidden]."""
        noise = integer.noise_word(sampling.seed, self.position)
        if not self.shortlist:
            return integer.sample(self._logits(given)[0], scale, sampling, noise, candidates)
        codes = given.codes[0]
        head, ids = self.model.head, integer.short_list(self.ternary_logits(codes), self.shortlist)
        assert isinstance(head, Table)
        logits = integer.head_logits(codes, head.codes[ids], head.row_scale[ids].astype(np.int64))
        return integer.sample(logits, scale, sampling, noise, candidates, ids)

    def _inputs(self, x: Int, p: Parameters, name: str) -> tuple[_Codes, UFloat]:
        """Codes of the normed residual stream for qkv, or for gate and up."""
        codes, scale = _norm_quantise(integer.align_residual(x), UF_ONE, p, self._groups)
        if self.model.shape.bias_inputs:
            one = _with_one(codes, scale, self._groups, self.saturations)
            codes = one if name in self.model.shape.biases else codes
        return codes, scale

    def _layer(self, index: int, x: Int, positions: Int) -> Int:
        s, layer = self.model.shape, self.model.layers[index]
        n = len(x)
        codes, scale = self._inputs(x, layer.qkv_parameters, "qkv")
        q, k, v = np.split(self._linear(codes, index, "qkv"), [s.q_size, s.q_size + s.kv_size], -1)
        cos, sin = (table[positions].astype(np.int64)[:, None] for table in (self.model.cos, self.model.sin))

        def heads(acc: Int, w: UFloat, rotated: bool) -> tuple[Int, UFloat]:
            y = acc.reshape(n, -1, s.head_dim)
            y = integer.rotate(y, cos, sin) if rotated else y << integer.ROPE_BITS
            c, t = integer.quantise_heads(y.reshape(n, -1), s.head_dim, uf_mul(scale, w))
            return c.reshape(n, -1, s.head_dim), t

        def normed(acc: Int, w: UFloat, which: int) -> tuple[Int, UFloat]:
            norms = layer.qkv_parameters.heads
            assert norms is not None
            acc, gains = acc.reshape(n, -1, s.head_dim), norms.gains[which].astype(np.int64)
            y = integer.rotate_gained(acc, gains, cos, sin)
            return integer.normed_heads(acc, y, uf_mul(scale, w), norms.exponents[which], norms.inverse_count, norms.eps)

        w_q, w_k, w_v = layer.qkv_parameters.scales
        if s.head_norms:
            (qc, qs), (kc, ks), (vc, vs) = normed(q, w_q, 0), normed(k, w_k, 1), heads(v, w_v, False)
        else:
            (qc, qs), (kc, ks), (vc, vs) = heads(q, w_q, True), heads(k, w_k, True), heads(v, w_v, False)
        cache = self._cache[index]
        cache.append(kc.swapaxes(0, 1), UFloat(ks.m.T, ks.e.T), vc.swapaxes(0, 1), UFloat(vs.m.T, vs.e.T))
        assert cache.keys is not None and cache.values is not None and cache.key_scale is not None and cache.value_scale is not None
        m, e = integer.attention(qc, qs, cache.keys, cache.key_scale, cache.values, cache.value_scale, positions, self.saturations)
        codes, scale = _norm_quantise(integer.align_work(m.reshape(n, -1), e.reshape(n, -1)), UF_ONE, layer.o_parameters, self._groups)
        x = integer.residual_add(x, self._linear(codes, index, "o"), uf_mul(scale, layer.o_parameters.scales[0]), self.saturations)
        x = _add_bias(x, layer.o_parameters, self.saturations)

        codes, scale = self._inputs(x, layer.gate_up_parameters, "gate_up")
        s0, s1 = (uf_mul(scale, w) for w in layer.gate_up_parameters.scales)
        gate, up = self._linear(codes, index, "gate"), self._linear(codes, index, "up")
        if s.activation == "relu2":
            (m, e), work_scale = integer.gated_relu2(gate, up), uf_mul(uf_mul(s0, s0), s1)
        else:
            (m, e), work_scale = integer.gated_silu(gate, up, s0, self.saturations), s1
        codes, scale = _norm_quantise(integer.align_work(m, e), work_scale, layer.down_parameters, self._groups)
        x = integer.residual_add(x, self._linear(codes, index, "down"), uf_mul(scale, layer.down_parameters.scales[0]), self.saturations)
        return _add_bias(x, layer.down_parameters, self.saturations)

    def generate(self, prompt: list[int], tokens: int, sampling: Sampling = integer.GREEDY, candidates: int = 64) -> list[int]:
        """Tokens chosen after `prompt`, as the machine's generation program chooses them."""
        out: list[int] = []
        ids = prompt
        while len(out) < tokens:
            codes, scale = self._head_inputs(ids, last_only=True)
            ids = [self._choose(codes, UFloat(scale.m[0], scale.e[0]), sampling, candidates)]
            out += ids
        return out
