"""From checkpoint to what the machine stores: the quantised model, and its bytes in memory.

`quantise` fixes every integer that the numerics depend on, once and independently of the machine's
configuration: the whole-model reference and the weight image both start from it. `pack` lays it out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from math import frexp, log2
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from tritloom.firmware.config import BIAS_CODES, PARAM_HEADER_BYTES, BuildConfig, ConfigError, ModelShape, round_up
from tritloom.firmware.image import Contents, Piece, whole
from tritloom.firmware.integer import BIAS_BITS, GROUPED_LOGIT_BITS, ROPE_BITS, UFloat, uf_from_float, uf_pack, uf_unpack
from tritloom.firmware.isa import Destination
from tritloom.firmware.layout import Block, MemoryMap, memory_map, stream_blocks
from tritloom.firmware.packing import SCALE_BITS, pack_matrix
from tritloom.firmware.programs import machine_program
from tritloom.gen.grouped_packing import embedding_rows, pack_grouped_codes
from tritloom.gen.models.checkpoint import MATRICES, SUB_NORMS, Checkpoint, matrix_shape
from tritloom.gen.models.codes import ZEROS, Codes, codes_of
from tritloom.gen.models.problems import CheckpointError
from tritloom.gen.models.rope import attention_factor, frequencies
from tritloom.gen.models.spec import BIASED, ModelSpec
from tritloom.gen.quantised import GroupedTable, HeadNorms, Layer, Layers, Parameters, QuantisedModel, Scales, Table
from tritloom.gen.scaling import Scaling, choose, measure, rescaled

Bytes = NDArray[np.uint8]
Item = TypeVar("Item", bound=np.generic)

LOG2_E = log2(np.e)
TABLE_ERROR = 0.1
"""How wrong int8 codes may be for half of a table's rows: a row's sum of errors over its sum of magnitudes. 0.01 is usual."""
TABLE_PIECE = 1 << 20
"""Bytes of a table's codes that are laid out at once."""
ROPE_ROWS = 1 << 14
"""Positions whose rotary rows are made at once."""
LEAST_TOP = 1 / 2
"""Greatest element of a normed vector, over its gains' rms, down to which a bias is added whole. The lower, the fewer bits has a bias
beside greater elements, and the fewer a matrix' scales beside great biases."""
KEPT_BYTES, KEPT_CODES_BYTES = 2 << 30, 1 << 29
"""A model whose layers take no more memory than this keeps them once read; than the second, if they are stored as codes, which are read
again as quickly as memory is had."""


# The quantised model -----------------------------------------------------------------------------


def _scalar(x: float) -> UFloat:
    """A float's UFloat exactly as a header stores it."""
    return uf_unpack(uf_pack(uf_from_float(x)))


def quantise_gains(gains: NDArray[np.float32]) -> tuple[NDArray[np.int16], int]:
    """int16 gains and their exponent: the largest magnitude lies in 2**14..2**15."""
    top = float(np.abs(gains).max())
    exponent = frexp(top)[1] - 15 if top else 0
    return np.clip(np.rint(np.ldexp(gains.astype(np.float64), -exponent)), -32767, 32767).astype(np.int16), exponent


def adjacent_pairs(rows: NDArray[Item], head_dim: int) -> NDArray[Item]:
    """Rows of whole heads reordered so that rotary pairs (i, i + head_dim/2) become (2i, 2i+1)."""
    inputs = rows.shape[-1]
    return rows.reshape(-1, 2, head_dim // 2, inputs).swapaxes(1, 2).reshape(-1, inputs)


def rotary_tables(spec: ModelSpec) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
    """Cosines and sines [context, head_dim/2], Q1.14."""
    f = frequencies(spec.rope_theta, spec.shape.head_dim, spec.rope_scaling)
    cos, sin = (np.empty((spec.shape.context, len(f)), np.int16) for _ in range(2))
    for start in range(0, len(cos), ROPE_ROWS):
        angle = np.arange(start, min(start + ROPE_ROWS, len(cos)))[:, None] * f
        cos[start : start + ROPE_ROWS] = np.rint(np.cos(angle) * (1 << ROPE_BITS))
        sin[start : start + ROPE_ROWS] = np.rint(np.sin(angle) * (1 << ROPE_BITS))
    return cos, sin


def _quantise_table(checkpoint: Checkpoint, name: str) -> Table:
    """int8 rows with absmax scales, the scales as u16 multiples of one UFloat."""
    s = checkpoint.spec.shape
    top = np.concatenate([np.abs(rows).max(-1) for _, rows in checkpoint.blocks(name)]).astype(np.float64) / 127
    if not top.any():
        raise CheckpointError(name, "every value is zero", "the checkpoint is damaged: download it again")
    scale = _scalar(top.max() / 65535)
    row_scale = np.where(top > 0, np.clip(np.rint(top / top.max() * 65535), 1, 65535), 0)
    inverse = np.where(row_scale > 0, 1 / (np.maximum(row_scale, 1) * float(scale.value())), 0)
    codes, missed = np.empty((s.vocab, s.hidden), np.int8), np.zeros(s.vocab)
    for start, rows in checkpoint.blocks(name):
        part = slice(start, start + len(rows))
        exact = rows * inverse[part, None]
        codes[part] = np.clip(np.rint(exact), -127, 127)
        missed[part] = np.abs(codes[part] - exact).sum(-1) / np.maximum(np.abs(exact).sum(-1), 1e-30)
    if (typical := np.median(missed[top > 0])) > TABLE_ERROR:
        raise CheckpointError(
            name, f"rows of {np.median(top[top > 0]) * 127:.2g} stand beside one of {top.max() * 127:.2g}: their codes would be wrong by "
            f"{typical:.0%}, for row scales have 16 bits", "train the model without such outliers")
    return Table(codes, row_scale.astype(np.uint16), scale)


def group_codes(scales: NDArray[np.floating]) -> tuple[NDArray[np.uint16], float]:
    """Scales of groups as u16 multiples of a power of two, and that: the greatest has 16 bits, and what is no less than 1/32 of it, being
    fp16 with 11, is exact."""
    halves = scales.dtype == np.float16
    # Of halves the greatest of the bits, which is quicker: those of what is not negative are in order.
    top = float(scales.view(np.uint16).max(initial=0).view(np.float16) if halves else scales.max(initial=0))
    unit = 2.0 ** (frexp(top)[1] - SCALE_BITS) if top else 1.0
    codes = scales.astype(np.float32 if halves else np.float64)
    codes *= codes.dtype.type(1 / unit)  # exact: a power of two, of halves 2**39 at most
    return np.minimum(np.rint(codes, out=codes), (1 << SCALE_BITS) - 1, out=codes).astype(np.uint16), unit


def _grouped_table(checkpoint: Checkpoint, name: str) -> GroupedTable:
    """The embedding or head of a model that is ternary by groups."""
    s = checkpoint.spec.shape
    table = np.empty((s.vocab, s.hidden // 4), np.uint8)
    scales = []
    for first, rows in checkpoint.grouped_blocks(name):
        table[first : first + len(rows.codes)] = rows.codes
        scales.append(rows.scales)
    codes, unit = group_codes(np.concatenate(scales))
    return GroupedTable(table, codes, _scalar(unit))


def _table(checkpoint: Checkpoint, name: str) -> Table | GroupedTable:
    return _grouped_table(checkpoint, name) if checkpoint.spec.shape.ternary_head else _quantise_table(checkpoint, name)


def _head_norms(checkpoint: Checkpoint, index: int, factor: float) -> HeadNorms:
    """Norms of a layer's queries, times `factor`, and keys."""
    spec = checkpoint.spec
    gains = [adjacent_pairs(checkpoint.norm(index, name)[:, None], spec.shape.head_dim)[:, 0] for name in ("q_norm", "k_norm")]
    (q, q_exponent), (k, k_exponent) = quantise_gains(gains[0] * np.float32(factor)), quantise_gains(gains[1])
    return HeadNorms(np.stack([q, k]), (q_exponent, k_exponent), _scalar(1 / spec.shape.head_dim), _scalar(spec.rms_eps))


def _parameters(spec: ModelSpec, count: int, gains: NDArray[np.float32] | None, *scales: float, power: int = 0,
                bias: NDArray[np.float32] | None = None) -> Parameters:
    """`power`: of two, that the gains are multiplied by; `bias`: of o or down."""
    codes, exponent = (None, 0) if gains is None else quantise_gains(gains)
    added = None if bias is None else quantise_gains(bias)
    of_bias = () if added is None else (2.0 ** added[1],)
    return Parameters(tuple(_scalar(x) for x in (*scales, *of_bias)), codes, exponent + power, _scalar(1 / count),
                      _scalar(spec.rms_eps), bias=None if added is None else added[0])


def _added(checkpoint: Checkpoint, s: ModelShape, index: int, name: str) -> NDArray[np.float32] | None:
    """The bias of o or down, where the machine adds one to the residual stream."""
    return checkpoint.bias(index, name) if BIASED[name] in s.biases else None


def power_of_one(gains: NDArray[np.floating]) -> int:
    """Power of two that the scales of codes behind a norm with these gains are multiplied by, so that `integer.bias_codes` has bits for
    them: those of a vector that reaches LEAST_TOP of the gains' rms still, its exponents more of those that reach more."""
    least = float(np.sqrt(np.mean(np.square(gains, dtype=np.float64)))) * LEAST_TOP / 127
    return 1 - BIAS_BITS - frexp(least)[1] if least else 0


def with_bias(codes: Codes, scales: NDArray[np.floating], bias: NDArray[np.floating]) -> tuple[Codes, NDArray[np.float64]]:
    """A matrix of codes [rows, inputs/4] with scales [rows, groups], and one more group of inputs: of those that stand for one, for a bias
    [rows]."""
    one = np.full((len(codes), codes.shape[1] // scales.shape[1]), ZEROS)
    one[:, : BIAS_CODES // 4] = (np.sign(bias).astype(np.int64) + 1)[:, None] * ZEROS  # four codes of a sign
    return np.concatenate([codes, one], 1), np.concatenate([scales, np.abs(bias)[:, None]], 1, dtype=np.float64)


def _grouped(checkpoint: Checkpoint, s: ModelShape, index: int, name: str, one: float) -> tuple[Codes, Scales, float]:
    """Codes of a matrix of the machine's shape `s`, those of the groups' scales and their unit. `one`: what the inputs that stand for one
    are worth, where it has a bias."""
    biased = BIASED[name] in s.biases and s.inputs_of(BIASED[name]) > matrix_shape(s, name)[1]
    bias = checkpoint.bias(index, name) if name in checkpoint.spec.biases else np.zeros(matrix_shape(s, name)[0])
    if checkpoint.spec.shape.group_size:
        matrix = checkpoint.grouped(index, name)
        if not biased:
            return matrix.codes, *group_codes(matrix.scales)
        codes, scales = with_bias(matrix.codes, matrix.scales, bias / one)
        return codes, *group_codes(scales)
    # One scale, which is exact as long as it is a code of the greatest scale's: a power of two.
    trits, scale = checkpoint.ternary(index, name)
    codes, groups = codes_of(trits), np.ones((len(trits), trits.shape[1] // s.group_size))
    if biased:
        codes, groups = with_bias(codes, groups, bias / one / scale)
    factors, unit = group_codes(groups)
    return codes, factors, unit * scale


def _quantise_layer(checkpoint: Checkpoint, s: ModelShape, index: int) -> Layer:
    spec, found, codes = checkpoint.spec, {}, {}
    norms = {name: checkpoint.norm(index, name) for name in ("input_layernorm", "post_attention_layernorm")}
    powers = {name: power_of_one(norms[norm]) if s.bias_inputs else 0
              for name, norm in (("qkv", "input_layernorm"), ("gate_up", "post_attention_layernorm"))}
    for name in MATRICES:
        if s.group_size:
            one = 2.0 ** -powers.get(BIASED[name], 0)
            matrix, codes[name], unit = _grouped(checkpoint, s, index, name, one)
            found[name] = matrix, unit * one * 2.0**s.scale_drop
        else:
            found[name] = checkpoint.ternary(index, name)
    (q, q_scale), (k, k_scale), (v, v_scale), (o, o_scale), (gate, gate_scale), (up, up_scale), (down, down_scale) = (
        found[name] for name in MATRICES
    )
    score_factor = s.head_dim**-0.5 * LOG2_E * attention_factor(spec.rope_scaling) ** 2  # of queries and of keys
    head_norms = _head_norms(checkpoint, index, score_factor) if s.head_norms else None
    score_scale = q_scale if head_norms else q_scale * score_factor
    attention_norm, ffn_norm = (checkpoint.norm(index, name) if s.sub_norms else None for name in SUB_NORMS)
    group_scales = {}
    if s.group_size:
        group_scales = {name.removesuffix("_proj"): codes[name] for name in ("o_proj", "gate_proj", "up_proj", "down_proj")}
        group_scales["qkv"] = np.concatenate([*(adjacent_pairs(codes[name], s.head_dim) for name in ("q_proj", "k_proj")), codes["v_proj"]])
    return Layer(
        group_scales=group_scales,
        qkv=np.concatenate([adjacent_pairs(q, s.head_dim), adjacent_pairs(k, s.head_dim), v]),
        o=o,
        gate=gate,
        up=up,
        down=down,
        qkv_parameters=dataclasses.replace(
            _parameters(spec, s.hidden, norms["input_layernorm"], score_scale, k_scale, v_scale, power=powers["qkv"]), heads=head_norms
        ),
        o_parameters=_parameters(spec, s.q_size, attention_norm, o_scale, bias=_added(checkpoint, s, index, "o_proj")),
        gate_up_parameters=_parameters(
            spec, s.hidden, norms["post_attention_layernorm"], gate_scale, up_scale, power=powers["gate_up"]
        ),
        down_parameters=_parameters(spec, s.ffn, ffn_norm, down_scale, bias=_added(checkpoint, s, index, "down_proj")),
    )


def quantise(checkpoint: Checkpoint, context: int | None = None) -> QuantisedModel:
    """The integers of a checkpoint, with the binary points of `gen.scaling`; of a large one layers are read whenever they are used.

    `context` shortens the KV cache. Raises CheckpointError for numbers that no binary point carries, ConfigError for a model that no
    machine computes.
    """
    model = as_trained(checkpoint, context)
    return with_scaling(model, choose(model, measure(model)))


def with_scaling(model: QuantisedModel, scaling: Scaling) -> QuantisedModel:
    """A model `as_trained` with binary points that were chosen for it."""
    spec = dataclasses.replace(model.spec, notes=(*model.spec.notes, *scaling.notes))
    return rescaled(dataclasses.replace(model, spec=spec), scaling)


def as_trained(checkpoint: Checkpoint, context: int | None = None) -> QuantisedModel:
    """`quantise` before binary points are chosen."""
    checkpoint = checkpoint.with_context(context)
    spec = checkpoint.spec.require_machine()  # with the machine's shape, which may have groups that the checkpoint has not
    embedding = _table(checkpoint, checkpoint.embedding_name)
    head = embedding if spec.tied_embeddings else _table(checkpoint, checkpoint.head_table)
    head_scale = head.scale
    if isinstance(head, GroupedTable):  # of the results' units, as logits have them
        head_scale = UFloat(head.scale.m, head.scale.e + (spec.shape.scale_drop - GROUPED_LOGIT_BITS))
    cos, sin = rotary_tables(spec)
    zero = _scalar(0)
    s = spec.shape
    return QuantisedModel(
        spec=spec,
        layers=Layers(spec.shape.layers, partial(_quantise_layer, checkpoint, s), keep=_keeps(checkpoint, s)),
        embedding=embedding,
        head=head,
        embedding_parameters=Parameters((embedding.scale,), None, 0, zero, zero),
        head_parameters=Parameters(
            (head_scale,), *quantise_gains(checkpoint.final_norm()), _scalar(1 / spec.shape.hidden), _scalar(spec.rms_eps)
        ),
        cos=cos,
        sin=sin,
        tokenizer=checkpoint.tokenizer.read_bytes(),
    )


def _keeps(checkpoint: Checkpoint, s: ModelShape) -> bool:
    """Whether layers are kept once read."""
    held = s.layers * s.hidden * (s.qkv_rows + s.q_size + 3 * s.ffn) // (4 if s.group_size else 1)
    if not checkpoint.spec.shape.group_size or held <= KEPT_CODES_BYTES:
        return held <= KEPT_BYTES
    stored = s.layers * sum(checkpoint.tensor(checkpoint.matrix_name(0, name)).data.nbytes for name in MATRICES)
    return held <= KEPT_BYTES and stored > 2 * held


# Bytes in memory ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Packed:
    """What one image holds."""

    config: BuildConfig
    spec: ModelSpec
    map: MemoryMap
    program: tuple[int, ...]
    contents: tuple[Contents, ...]

    @cached_property
    def sections(self) -> tuple[tuple[str, Bytes, int | None], ...]:
        """(name, bytes, address) of each section, the address None outside the machine's memory."""
        return tuple((each.name, each.bytes(), each.address) for each in self.contents)

    def memory(self) -> list[tuple[int, Bytes]]:
        """What to load where."""
        return [(address, data) for _, data, address in self.sections if address is not None]


def parameter_bytes(p: Parameters, mem_bytes: int, length: int = 0) -> Bytes:
    """A parameter block in whole beats, with room for `length` gains."""
    header = np.zeros(round_up(PARAM_HEADER_BYTES, mem_bytes) // 4, "<u4")
    header[0], header[1] = uf_pack(p.inverse_count), uf_pack(p.eps)
    for i, scale in enumerate(p.scales):
        header[2 + i] = uf_pack(scale)
    header[5] = (p.gain_exponent & 0xFFFF) << 16
    if p.heads is not None:
        header[5] |= p.heads.exponents[0] & 0xFFFF
        header[6], header[7] = uf_pack(p.heads.eps), (p.heads.exponents[1] & 0xFFFF)
    stored = p.stored_gains
    gains = np.zeros(round_up(2 * max(length, len(stored)), mem_bytes) // 2, "<i2")
    gains[: len(stored)] = stored
    return np.concatenate([header.view(np.uint8), gains.view(np.uint8)])


def interleave(gate: NDArray[Item], up: NDArray[Item], block: int) -> NDArray[Item]:
    """Rows in turns of `block` gate rows and `block` up rows."""
    inputs = gate.shape[-1]
    return np.stack([gate.reshape(-1, block, inputs), up.reshape(-1, block, inputs)], 1).reshape(-1, inputs)


def matrix_bytes(matrix: NDArray[np.int8 | np.uint8], config: BuildConfig, scales: Scales | None = None) -> Bytes:
    """A matrix's trits [rows, inputs] as the ternary engine consumes it, block after block; with `scales` [rows, groups] of its groups, its
    codes [rows, inputs/4]."""
    ends, layout = np.cumsum(config.blocks(len(matrix)))[:-1], (config.tables, config.rows_per_cycle, config.packing, config.mem_bytes)
    blocks = np.split(matrix, ends)
    if scales is None:
        return np.concatenate([pack_matrix(block, *layout).reshape(-1) for block in blocks])
    inputs = 4 * matrix.shape[1]
    beats = [config.matrix_beats(-(-len(block) // config.rows_per_cycle), inputs) for block in blocks]
    out = np.zeros((sum(beats), config.mem_bytes), np.uint8)
    for block, part, place in zip(blocks, np.split(scales, ends), np.split(out, np.cumsum(beats)[:-1]), strict=True):
        pack_grouped_codes(block.view(np.uint8), part, config.shape.group_size, *layout, place)
    return out.reshape(-1)


def grouped_table_bytes(codes: Codes, scales: Scales, config: BuildConfig) -> Bytes:
    """Rows of an embedding that is ternary by groups: of each group its scale, then its trits of two bits (0, 1, 3 for -1), in pieces of V
    trits; padded to beats."""
    scale_bytes = config.embedding_scale_pieces * config.embedding_piece_bits // 8
    return embedding_rows(codes, scales, scale_bytes, config.embedding_row_bytes).reshape(-1)


def table_bytes(table: Table, config: BuildConfig) -> Bytes:
    """Groups of an embedding or head table: a beat of u16 row scales, then the rows; zero rows at the end."""
    rows, m = config.group_rows, config.mem_bytes
    vocab, hidden = table.codes.shape
    groups = -(-vocab // rows)
    out = np.zeros((groups, config.head_group_bytes), np.uint8)
    scales = np.zeros(groups * rows, "<u2")
    scales[:vocab] = table.row_scale
    out[:, :m] = scales.reshape(groups, rows).view(np.uint8)
    body = out[:, m:].reshape(groups, rows, config.head_row_bytes)
    full = vocab // rows
    codes = table.codes.view(np.uint8)
    body[:full, :, :hidden] = codes[: full * rows].reshape(full, rows, hidden)
    if full < groups:
        body[full, : vocab - full * rows, :hidden] = codes[full * rows :]
    return out.reshape(-1)


def _table_pieces(table: Table | GroupedTable, config: BuildConfig) -> Iterator[Piece]:
    """The section of an embedding or head table."""
    rows, size = len(table.codes), table.codes.shape[-1]
    step = max(1, TABLE_PIECE // size // config.group_rows) * config.group_rows

    def make(some: slice) -> Bytes:
        if isinstance(table, Table):
            return table_bytes(Table(table.codes[some], table.row_scale[some], table.scale), config)
        return grouped_table_bytes(table.codes[some], table.scales[some], config)

    for first in range(0, rows, step):
        count = min(step, rows - first)
        grouped = isinstance(table, GroupedTable)
        length = count * config.embedding_row_bytes if grouped else -(-count // config.group_rows) * config.head_group_bytes
        yield length, partial(make, slice(first, first + count))


def rope_bytes(model: QuantisedModel, config: BuildConfig) -> Bytes:
    """Rotary rows: (cos, sin) pairs, padded to beats."""
    out = np.zeros((model.shape.context, config.rope_row_bytes), np.uint8)
    pairs = np.ascontiguousarray(np.stack([model.cos, model.sin], -1).reshape(model.shape.context, -1).astype("<i2"))
    out[:, : 2 * model.shape.head_dim] = pairs.view(np.uint8)
    return out.reshape(-1)


def _stream(model: QuantisedModel, config: BuildConfig) -> Iterator[Piece]:
    """The weight stream, block by block, in consumption order. A layer is read when the first block of it is made."""
    layers, layer_at = model.layers, lru_cache(maxsize=2)(model.layers.__getitem__)  # a block has parameters of the layer after it

    def parameters(index: int, block: Block) -> Bytes:
        if block.name != "next_parameters":
            return parameter_bytes(getattr(layer_at(index), block.name), config.mem_bytes)
        after = layer_at(index + 1).qkv_parameters if index + 1 < len(layers) else model.head_parameters
        return parameter_bytes(after, config.mem_bytes, block.gains)

    def matrix(index: int, name: str) -> Bytes:
        layer, q_size, v = layer_at(index), model.shape.q_size, config.vector_lanes
        scales = layer.group_scales
        if name == "gate_up":
            both = interleave(scales["gate"], scales["up"], v) if scales else None
            return matrix_bytes(interleave(layer.gate, layer.up, v), config, both)
        if name in ("q", "kv"):
            rows = slice(q_size) if name == "q" else slice(q_size, None)
            return matrix_bytes(layer.qkv[rows], config, scales["qkv"][rows] if scales else None)
        return matrix_bytes(getattr(layer, name), config, scales.get(name))

    def head(block: Block, rows: slice) -> Bytes:
        if isinstance(model.head, GroupedTable):
            return matrix_bytes(model.head.codes[rows], config, model.head.scales[rows])
        trits, scales = model.ternary_head[rows], _no_scales(config, block)
        return matrix_bytes(trits if scales is None else codes_of(trits), config, scales)

    def piece(block: Block, make: Callable[[], Bytes]) -> Piece:
        return block.beats * config.mem_bytes, make

    prologue, layer_blocks, epilogue = stream_blocks(config)
    yield piece(prologue[0], lambda: parameter_bytes(model.embedding_parameters, config.mem_bytes))
    yield piece(prologue[1], lambda: parameter_bytes(layer_at(0).qkv_parameters, config.mem_bytes))
    for index in range(len(layers)):
        for block in layer_blocks:
            matmul = block.dest == Destination.MATMUL
            yield piece(block, partial(matrix, index, block.name) if matmul else partial(parameters, index, block))
    if isinstance(model.head, Table) and not config.shortlist:
        yield from _table_pieces(model.head, config)
        return
    start = 0
    for block in epilogue:
        _no_scales(config, block)  # refused before anything is made
        yield piece(block, partial(head, block, slice(start, start + block.rows)))
        start += block.rows


def _no_scales(config: BuildConfig, block: Block) -> Scales | None:
    """Scales with which results are the plain sums, where an engine for scales by groups takes a short-list's head."""
    s = config.shape
    if not s.group_size or s.ternary_head:
        return None
    if s.scale_drop >= SCALE_BITS:
        raise ConfigError(f"a short-list beside scales by groups takes shorter vectors than {s.max_inputs}: leave shortlist out")
    return np.full((block.rows, block.inputs // s.group_size), 1 << s.scale_drop, np.uint16)


def check_shape(spec: ModelSpec, config: BuildConfig) -> None:
    ours, theirs = (dataclasses.asdict(shape) for shape in (spec.shape, config.shape))
    different = [f"{k} {ours[k]} (machine: {theirs[k]})" for k in ours if ours[k] != theirs[k]]
    if different:
        raise ConfigError(f"the machine is built for another shape than {spec.name}: {', '.join(different)}; build it for this model")


def pack(source: Checkpoint | QuantisedModel, config: BuildConfig, *, program: Sequence[int] | None = None) -> Packed:
    """Everything an image holds for `config`, whose context may be shorter than the model's. Its bytes are made when they are asked for.

    `program` is the firmware (the generation program unless given).
    """
    model = source if isinstance(source, QuantisedModel) else quantise(source, min(config.shape.context, source.spec.shape.context))
    spec = model.spec
    check_shape(spec, config)
    layout = memory_map(config, tied=spec.tied_embeddings)
    if config.memory == "onchip" and layout.total_bytes > config.onchip_bytes:
        raise ConfigError(
            f"{spec.name} needs {layout.total_bytes} bytes of on-chip memory, the machine has {config.onchip_bytes}: "
            f"lower the context ({config.shape.context}) or raise onchip_bytes"
        )
    words = tuple(machine_program(config, layout) if program is None else program)
    if len(words) > config.program_words:
        raise ConfigError(f"the firmware has {len(words)} words, the machine holds {config.program_words}: raise program_words")
    made: dict[str, Callable[[], Iterable[Piece]]] = {
        "weights": lambda: _stream(model, config),
        "rope": lambda: [(layout.regions["rope"].length, lambda: rope_bytes(model, config))],
        "head": lambda: _table_pieces(model.head, config),
        "embedding": lambda: _table_pieces(model.embedding, config),
    }
    contents = [Contents(name, tuple(made[name]()), region.base) for name, region in layout.regions.items() if region.loaded]
    for each in contents:
        if each.length != layout.regions[each.name].length:
            raise AssertionError(f"{each.name} has {each.length} bytes instead of {layout.regions[each.name].length}")

    def plain(name: str, data: bytes) -> Contents:
        return whole(name, np.frombuffer(data, np.uint8))

    contents += [
        plain("program", np.array(words, "<u8").tobytes()),
        plain("descriptors", np.array(layout.descriptor_words(), "<u8").tobytes()),
        plain("memory_map", layout.to_json().encode()),
        plain("tokenizer", model.tokenizer),
    ]
    return Packed(config, spec, layout, words, tuple(contents))
