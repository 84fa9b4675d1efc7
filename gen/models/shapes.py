"""Published ternary models by their dimensions, and random weights for them: for measuring without a checkpoint.

How many cycles a machine takes does not depend on what the weights are, so one random layer stands for all.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tritloom.firmware.config import CHUNK, KV_SCALE_BYTES, BuildConfig, ConfigError, ModelShape
from tritloom.firmware.integer import GROUPED_LOGIT_BITS, UFloat, uf_from_float, uf_pack, uf_unpack
from tritloom.firmware.layout import MemoryMap, stream_blocks
from tritloom.firmware.names import unknown
from tritloom.gen.models import ModelSpec
from tritloom.gen.models.codes import codes_of
from tritloom.gen.pack import (
    LOG2_E,
    Bytes,
    Parameters,
    Table,
    grouped_table_bytes,
    interleave,
    matrix_bytes,
    parameter_bytes,
    quantise_gains,
    rotary_tables,
    table_bytes,
)
from tritloom.gen.quantised import HeadNorms

__all__ = ["SHAPES", "memory_pieces", "published"]

PIECE_BYTES = 16 << 20
"""Size of the pieces in which tables are made."""
GROUP_SCALES = 20_000, 65_535
"""Least and most of random scales of groups."""


def _spec(name: str, source: str, hidden: int, layers: int, heads: tuple[int, int, int], ffn: int, vocab: int, theta: float,
          activation: str, sub_norms: bool, context: int, tied: bool, **more: Any) -> ModelSpec:
    """`more`: further fields of the shape."""
    shape = ModelShape(hidden=hidden, ffn=ffn, layers=layers, heads=heads[0], kv_heads=heads[1], head_dim=heads[2], vocab=vocab,
                       context=context, activation=activation, sub_norms=sub_norms, **more)
    return ModelSpec(name=name, source=f"dimensions of {source}, random weights", shape=shape, rms_eps=1e-5, rope_theta=theta,
                     tied_embeddings=tied, scale_rule="stored", notes=("random weights: for measuring speed only",))


_BONSAI: dict[str, Any] = {"group_size": 128, "head_norms": True, "ternary_head": True}
"""Qwen3 with a scale for each 128 inputs, in embedding and head too."""


SHAPES: dict[str, ModelSpec] = {
    spec.name: spec
    for spec in (
        _spec("bitnet_b1_58-large", "1bitLLM/bitnet_b1_58-large", 1536, 24, (16, 16, 96), 4096, 32002, 1e4, "silu", True, 2048, True),
        _spec("bitnet_b1_58-3B", "1bitLLM/bitnet_b1_58-3B", 3200, 26, (32, 32, 100), 8640, 32002, 1e4, "silu", True, 2048, True),
        _spec("bitnet-b1.58-2B-4T", "microsoft/bitnet-b1.58-2B-4T", 2560, 30, (20, 5, 128), 6912, 128256, 5e5, "relu2", True, 4096, True),
        _spec("Falcon3-1B-1.58bit", "tiiuae/Falcon3-1B-Instruct-1.58bit", 2048, 18, (8, 4, 256), 8192, 131072, 1000042.0, "silu", False,
              8192, False),
        _spec("Llama3-8B-1.58", "HF1BitLLM/Llama3-8B-1.58-100B-tokens", 4096, 32, (32, 8, 128), 14336, 128256, 5e5, "silu", False, 8192,
              False),
        _spec("TriLM-99M", "SpectraSuite/TriLM_99M_Unpacked", 512, 16, (8, 8, 64), 1280, 50304, 1e4, "silu", False, 2048, False),
        _spec("Ternary-Bonsai-1.7B", "prism-ml/Ternary-Bonsai-1.7B-unpacked", 2048, 28, (16, 8, 128), 6144, 151936, 1e6, "silu", False,
              32768, True, **_BONSAI),
        _spec("Ternary-Bonsai-4B", "prism-ml/Ternary-Bonsai-4B-unpacked", 2560, 36, (32, 8, 128), 9728, 151936, 1e6, "silu", False,
              32768, True, **_BONSAI),
        _spec("Ternary-Bonsai-8B", "prism-ml/Ternary-Bonsai-8B-unpacked", 4096, 36, (32, 8, 128), 12288, 151936, 1e6, "silu", False,
              65536, False, **_BONSAI),
    )
}
"""By name, with the longest context that each was trained for."""


def published(name: str, context: int | None = None) -> ModelSpec:
    """The model called `name` with a cache of `context` positions. Raises `ConfigError` for unknown names and too long contexts."""
    if name not in SHAPES:
        raise ConfigError(f"{unknown('model', name, SHAPES)}, or give the folder of a checkpoint, such as `tritloom models` lists")
    return SHAPES[name].with_context(context)


def memory_pieces(spec: ModelSpec, config: BuildConfig, layout: MemoryMap, seed: int = 0) -> Iterator[tuple[int, Bytes]]:
    """(address, uint8 bytes) pieces of the whole memory of `spec` with random weights, cache included.

    One layer is packed and given for every layer; tables are made PIECE_BYTES at a time. Scales are those of a trained
    model in size: matrix products have about unit variance, so that nothing saturates.
    """
    rng = np.random.default_rng(seed)
    prologue, layer_blocks, epilogue = stream_blocks(config)
    s, m, at = spec.shape, config.mem_bytes, layout.weights_base
    unit = _trit_scale(s.group_size) if s.ternary_head else 2 / (127 * 65535)
    table_scale, head_scale = _scalar(unit), _scalar(unit * 2.0 ** (s.scale_drop - GROUPED_LOGIT_BITS if s.ternary_head else 0))
    yield at, parameter_bytes(Parameters((table_scale,), None, 0, _scalar(0), _scalar(0)), m)
    at += prologue[0].beats * m
    layer = _layer(spec, config, rng)
    yield at, layer["qkv_parameters"]
    at += prologue[1].beats * m
    head = Parameters((head_scale,), *_gains(rng, s.hidden), _scalar(1 / s.hidden), _scalar(spec.rms_eps))
    for index in range(s.layers):
        for block in layer_blocks:
            if block.name == "next_parameters":
                yield at, layer["qkv_parameters"] if index + 1 < s.layers else parameter_bytes(head, m, length=block.gains)
            else:
                yield at, layer[block.name]
            at += block.beats * m
    for block in epilogue:
        if config.shortlist or s.ternary_head:
            yield at, _matrix(config, block.rows, s.hidden, rng)
        elif at != layout.head_base:
            raise AssertionError(f"the head begins at {at:#x} instead of {layout.head_base:#x}")
        at += block.beats * m
    if at != layout.regions["weights"].end:
        raise AssertionError(f"the weight stream ends at {at:#x} instead of {layout.regions['weights'].end:#x}")
    if s.ternary_head:
        yield from _grouped_table(config, layout.embedding_base, rng)
    else:
        yield from _table(spec, config, layout.head_base, table_scale, rng)
        if not spec.tied_embeddings:
            yield from _table(spec, config, layout.embedding_base, table_scale, rng)
    yield layout.rope_base, _rope(spec, config)
    cache = _cache_layer(config, rng)
    for index in range(s.layers):
        yield layout.kv_base + index * config.kv_layer_bytes, cache


def _scalar(x: float) -> UFloat:
    """A float's UFloat exactly as a header stores it."""
    return uf_unpack(uf_pack(uf_from_float(x)))


def _gains(rng: np.random.Generator, length: int) -> tuple[NDArray[np.int16], int]:
    return quantise_gains(rng.uniform(0.5, 1.5, length).astype(np.float32))


def _trit_scale(group_size: int) -> float:
    """What gives random trits, times random scales of their groups if they have any, a mean square of one."""
    least, most = GROUP_SCALES
    return (2 / 3 * ((least * least + least * most + most * most) / 3 if group_size else 1)) ** -0.5


def _group_scales(rng: np.random.Generator, rows: int, groups: int) -> NDArray[np.uint16]:
    return rng.integers(*GROUP_SCALES, (rows, groups), np.uint16, endpoint=True)


def _matrix(config: BuildConfig, rows: int, inputs: int, rng: np.random.Generator, trits: NDArray[np.int8] | None = None) -> Bytes:
    """A matrix of random trits, unless given, and of random scales if the shape has groups."""
    size = config.shape.group_size
    trits = rng.integers(-1, 2, (rows, inputs), np.int8) if trits is None else trits
    return matrix_bytes(codes_of(trits), config, _group_scales(rng, rows, inputs // size)) if size else matrix_bytes(trits, config)


def _layer(spec: ModelSpec, config: BuildConfig, rng: np.random.Generator) -> dict[str, Bytes]:
    """Bytes of each block of a layer, by name."""
    s, m = spec.shape, config.mem_bytes
    score_scale, wide = s.head_dim**-0.5 * LOG2_E, s.inputs_of("gate_up")

    def trits(rows: int, inputs: int) -> NDArray[np.int8]:
        return rng.integers(-1, 2, (rows, inputs), np.int8)

    def parameters(inputs: int, norm: bool, *factors: float, heads: HeadNorms | None = None, biased: bool = False) -> Bytes:
        gains, exponent = _gains(rng, inputs) if norm else (None, 0)
        one = _trit_scale(s.group_size) * 2.0**s.scale_drop * inputs**-0.5
        bias, unit = _gains(rng, s.hidden) if biased else (None, 0)
        scales = tuple(_scalar(scale) for scale in (*(factor * one for factor in factors), *([2.0**unit] if biased else [])))
        return parameter_bytes(Parameters(scales, gains, exponent, _scalar(1 / inputs), _scalar(spec.rms_eps), heads, bias), m)

    head_norms = _head_norms(spec, rng, score_scale) if s.head_norms else None
    return {
        "qkv_parameters": parameters(s.hidden, True, 1.0 if head_norms else score_scale, 1.0, 1.0, heads=head_norms),
        "kv": _matrix(config, 2 * s.kv_size, s.inputs_of("qkv"), rng),
        "q": _matrix(config, s.q_size, s.inputs_of("qkv"), rng),
        "o_parameters": parameters(s.q_size, s.sub_norms, 1.0, biased="o" in s.biases),
        "o": _matrix(config, s.hidden, s.inputs_of("o"), rng),
        "gate_up_parameters": parameters(s.hidden, True, 1.0, 1.0),
        "gate_up": _matrix(config, 2 * s.ffn, wide, rng, interleave(trits(s.ffn, wide), trits(s.ffn, wide), config.vector_lanes)),
        "down_parameters": parameters(s.ffn, s.sub_norms, 1.0, biased="down" in s.biases),
        "down": _matrix(config, s.hidden, s.inputs_of("down"), rng),
    }


def _head_norms(spec: ModelSpec, rng: np.random.Generator, score_scale: float) -> HeadNorms:
    """Norms of queries, times `score_scale`, and of keys."""
    d = spec.shape.head_dim
    (q, q_exponent), (k, k_exponent) = (quantise_gains((rng.uniform(0.5, 1.5, d) * factor).astype(np.float32))
                                        for factor in (score_scale, 1.0))
    return HeadNorms(np.stack([q, k]), (q_exponent, k_exponent), _scalar(1 / d), _scalar(spec.rms_eps))


def _table(spec: ModelSpec, config: BuildConfig, base: int, scale: UFloat, rng: np.random.Generator) -> Iterator[tuple[int, Bytes]]:
    s = spec.shape
    step = max(1, PIECE_BYTES // config.head_group_bytes) * config.group_rows
    for start in range(0, s.vocab, step):
        count = min(step, s.vocab - start)
        codes = rng.integers(-127, 128, (count, s.hidden), np.int8)
        rows = Table(codes, rng.integers(30000, 65536, count).astype(np.uint16), scale)
        yield base + start // config.group_rows * config.head_group_bytes, table_bytes(rows, config)


def _grouped_table(config: BuildConfig, base: int, rng: np.random.Generator) -> Iterator[tuple[int, Bytes]]:
    """The embedding of a model that is ternary by groups."""
    s = config.shape
    step = max(1, PIECE_BYTES // config.embedding_row_bytes)
    for start in range(0, s.vocab, step):
        count = min(step, s.vocab - start)
        trits = rng.integers(-1, 2, (count, s.hidden), np.int8)
        yield (base + start * config.embedding_row_bytes,
               grouped_table_bytes(codes_of(trits), _group_scales(rng, count, s.hidden // s.group_size), config))


def _rope(spec: ModelSpec, config: BuildConfig) -> Bytes:
    """Rotary rows, as gen/pack.py lays them out."""
    context = spec.shape.context
    out = np.zeros((context, config.rope_row_bytes), np.uint8)
    pairs = np.ascontiguousarray(np.stack(rotary_tables(spec), -1).reshape(context, -1).astype("<i2"))
    out[:, : 2 * spec.shape.head_dim] = pairs.view(np.uint8)
    return out.reshape(-1)


def _cache_layer(config: BuildConfig, rng: np.random.Generator) -> Bytes:
    """One layer's cache: random codes, every scale 1/64."""
    s = config.shape
    halves = np.zeros((s.kv_heads * s.chunks * 2, config.kv_half_bytes), np.uint8)
    scale = np.frombuffer(int(uf_pack(uf_from_float(1 / 64))).to_bytes(KV_SCALE_BYTES, "little"), np.uint8)
    halves[:, : CHUNK * KV_SCALE_BYTES] = np.tile(scale, CHUNK)
    rows = halves[:, config.kv_scale_block_bytes :]
    rows[:] = rng.integers(-127, 128, rows.shape, np.int8).view(np.uint8)
    return halves.reshape(-1)
