"""Models in GGUF files, of llama.cpp's and bitnet.cpp's architectures."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from tritloom.firmware.config import ModelShape
from tritloom.gen.models.checkpoint import (
    MATRICES,
    Checkpoint,
    Floats,
    Trits,
    activation_of,
    matrix_shape,
    other_activations,
    scale_of,
    shape_of,
    single_magnitude,
)
from tritloom.gen.models.files import AGAIN, Tensor
from tritloom.gen.models.gguf_file import Metadata, gguf_floats, i2s_trits, tq_trits
from tritloom.gen.models.groups import BLOCKS, Grouped, common_size, float_size, of_blocks, of_floats
from tritloom.gen.models.others import ROTATED, ROTATION, known_as
from tritloom.gen.models.problems import CheckpointError, Problems, shown
from tritloom.gen.models.records import Context, Id, Layers, Record, Size, VocabularySize, read_record
from tritloom.gen.models.rope import GgufRope, gguf_rope
from tritloom.gen.models.sampling import float_fits, group_size, sampled
from tritloom.gen.models.spec import ModelSpec
from tritloom.gen.models.vocabulary import Vocabulary

I2S_BLOCKS = {"x86": 128, "arm": 64}
_GGUF_NAMES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
GGUF_MATRICES: dict[str, str] = dict(zip(MATRICES, _GGUF_NAMES, strict=True))
GGUF_NORMS = {
    "q_norm": "attn_q_norm",
    "k_norm": "attn_k_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "attn_sub_norm": "attn_sub_norm",
    "ffn_sub_norm": "ffn_sub_norm",
}
@dataclass(frozen=True)
class GgufFamily:
    """An architecture: the activation where the file names none (None: that leaves it open), whether it has sub-norms and norms of heads,
    whether q and k rows are permuted for interleaved rotary pairs, whether matrices may have biases, and whether it was trained with
    activations rounded to int8."""

    activation: str | None = "silu"
    sub_norms: bool = False
    head_norms: bool = False
    permuted: bool = False
    biases: bool = True
    int8: bool = False


GGUF_ARCHITECTURES = {
    "llama": GgufFamily(permuted=True),
    "bitnet": GgufFamily(None, sub_norms=True, biases=False, int8=True),
    "bitnet-b1.58": GgufFamily("relu2", sub_norms=True, biases=False, int8=True),
    "bitnet-25": GgufFamily("relu2", sub_norms=True, biases=False, int8=True),
    "qwen2": GgufFamily(),
    "qwen3": GgufFamily(head_norms=True),
}


class GgufCheckpoint(Checkpoint):
    embedding_name, final_norm_name, head_name = "token_embd.weight", "output_norm.weight", "output.weight"

    def __init__(
        self, spec: ModelSpec, tensors: dict[str, Tensor], find_tokenizer: Callable[[], Vocabulary], architecture: str, i2s_block: int
    ) -> None:
        super().__init__(spec, tensors, find_tokenizer)
        self.architecture, self.i2s_block = architecture, i2s_block
        self.permuted = GGUF_ARCHITECTURES[architecture].permuted

    def matrix_name(self, layer: int, name: str) -> str:
        return f"blk.{layer}.{GGUF_MATRICES[name]}.weight"

    def norm_name(self, layer: int, name: str) -> str:
        return f"blk.{layer}.{GGUF_NORMS[name]}.weight"

    @property
    def quantises_activations(self) -> bool:
        return GGUF_ARCHITECTURES[self.architecture].int8

    def known(self, name: str) -> bool:
        matrix = name.removesuffix(".scale")
        if name != matrix:
            return matrix + ".weight" in self.tensors and matrix.rpartition(".")[2] in GGUF_MATRICES.values()
        return name == ROPE_FACTORS and self.architecture == "llama"

    def floats(self, tensor: Tensor) -> Floats:
        return gguf_floats(tensor)

    def ternary(self, layer: int, name: str) -> tuple[Trits, float]:
        tensor = self.tensor(self.matrix_name(layer, name))
        trits, scale = self._ternary(tensor)
        extra = tensor.name.removesuffix(".weight") + ".scale"
        if extra in self.tensors:
            factors = self.tensors[extra].floats().reshape(-1)
            if len(factors) != 1:
                raise CheckpointError(extra, f"{len(factors)} scales for one matrix", "use a model with a scale per tensor")
            scale = scale_of(extra, scale * float(factors[0]))
        return self._in_order(name, trits), scale

    def _in_order(self, name: str, rows: NDArray[Any]) -> NDArray[Any]:
        if self.permuted and name in ("q_proj", "k_proj"):
            width = rows.shape[1]
            rows = rows.reshape(-1, self.spec.shape.head_dim // 2, 2, width).swapaxes(1, 2).reshape(-1, width)
        return np.ascontiguousarray(rows)

    def _groups(self, name: str, start: int, stop: int) -> Grouped:
        tensor, size = self.tensor(name).rows(start, stop), self.spec.shape.group_size
        if tensor.dtype in BLOCKS:
            return of_blocks(tensor).in_groups(name, size)
        if tensor.floating or tensor.dtype == "Q8_0":
            return of_floats(tensor if tensor.floating else decoded(tensor), size)
        raise CheckpointError(name, f"stored as {tensor.dtype}, beside matrices that are ternary in groups of {size}",
                              f"supported there are {', '.join(BLOCKS)} and unpacked ternary floats")  # fmt: skip

    def _ternary(self, tensor: Tensor) -> tuple[Trits, float]:
        if tensor.dtype == "I2_S":
            trits, scale = i2s_trits(tensor, self.i2s_block)
            scales = np.array([scale], np.float32)
        elif tensor.dtype in ("TQ1_0", "TQ2_0"):
            trits, scales = tq_trits(tensor)
            zero = ~trits.reshape(len(scales), -1).any(-1)
            scales = scales[~zero] if not zero.all() else scales[:0]
        elif tensor.floating:
            return single_magnitude(tensor.name, self._finite(tensor.name, tensor.floats()))
        else:
            raise CheckpointError(
                tensor.name,
                f"stored as {tensor.dtype}, which is not ternary",
                "supported are TQ1_0, TQ2_0, I2_S, Q2_0, PQ2_0, PTQ1_0 and unpacked ternary floats",
            )
        if (trits > 1).any():
            raise CheckpointError(tensor.name, "not ternary: holds code 3", "the file is damaged or laid out another way: convert it again")
        if len(scales) == 0:
            raise CheckpointError(tensor.name, "every weight is zero", "the checkpoint is damaged: convert it again")
        for scale in scales[[0, int(np.argmin(scales)), int(np.argmax(scales))]]:
            scale_of(tensor.name, float(scale))
        if scales.min() != scales.max():
            raise CheckpointError(
                tensor.name,
                f"{len(np.unique(scales))} different block scales, where one per matrix is supported",
                "the weights were not ternary before conversion: convert from the ternary checkpoint",
            )
        return trits, float(scales[0])


ROPE_FACTORS = "rope_freqs.weight"


class Fields(GgufRope):
    """Metadata of the model's architecture, by their names after it."""

    context: Context = Field(alias="context_length")
    hidden: Size = Field(alias="embedding_length")
    layers: Layers = Field(alias="block_count")
    ffn: Size = Field(alias="feed_forward_length")
    heads: Size = Field(alias="attention.head_count")
    kv_heads: Size | None = Field(None, alias="attention.head_count_kv")
    key_length: Size | None = Field(None, alias="attention.key_length")
    value_length: Size | None = Field(None, alias="attention.value_length")
    vocab: VocabularySize | None = Field(None, alias="vocab_size")
    eps: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False, alias="attention.layer_norm_rms_epsilon")]
    hidden_activation: str | None = None
    hidden_act: str | None = None


class Tokens(Record):
    bos: Id | None = Field(None, alias="tokenizer.ggml.bos_token_id")
    eos: Id | None = Field(None, alias="tokenizer.ggml.eos_token_id")


_READ = {field.alias or name for name, field in Fields.model_fields.items()}
_HARMLESS = {"tensor_data_layout", "rope.scaling.finetuned", "attention.layer_norm_epsilon"}


def _defined() -> set[str]:
    """Names of an architecture's fields that GGUF defines."""
    from gguf import Keys

    return {value.removeprefix("{arch}.") for group in (Keys.LLM, Keys.Attention, Keys.Rope)
            for name, value in vars(group).items() if name.isupper() and value.startswith("{arch}.")}


_NEUTRAL: dict[str, Any] = {"attention.causal": True, "logit_scale": 1.0, "residual_scale": 1.0, "embedding_scale": 1.0,
                            "rope.scaling.yarn_attn_factor": 1.0}  # fmt: skip
"""What changes nothing, beside 0 and false, which are `off` in every other field."""


def _check_fields(keys: dict[str, Any], problems: Problems) -> None:
    """Fields that GGUF defines and that would change what the model computes are not passed over."""
    for name in sorted(_defined() - _READ - _HARMLESS & set(keys)):
        value = keys[name]
        if value != _NEUTRAL.get(name, 0) and value != 0:
            problems.add(name, f"{shown(value)} is not supported", "use a model without it")


def _rope_factors(tensors: dict[str, Tensor], architecture: str, problems: Problems) -> list[float]:
    """Factors of the pairs' angles, which llama.cpp knows for llama models only; it refuses the tensor in others."""
    if ROPE_FACTORS not in tensors:
        return []
    if architecture != "llama":
        problems.add(ROPE_FACTORS, f"rotary factors are not part of architecture {architecture!r}", "convert the model again")
        return []
    factors = problems.catch(lambda: tensors[ROPE_FACTORS].floats().reshape(-1))
    return [] if factors is None else factors.astype(float).tolist()


def decoded(tensor: Tensor) -> Tensor:
    """The same values as float32."""
    values = np.ascontiguousarray(gguf_floats(tensor), "<f4")
    return Tensor(tensor.name, "F32", tensor.shape, values.reshape(-1).view(np.uint8))


def _grouping(tensors: dict[str, Tensor], shape: ModelShape, problems: Problems) -> tuple[int, bool]:
    """Inputs that share a scale (0: all of a matrix), and whether embedding and head are ternary so too, by a few rows of them.

    Files of groups of 64 (Q2_0) have models of 128 too, each scale twice: then these are the groups.
    """
    quiet = Problems()

    def samples(name: str, rows: int, inputs: int) -> list[Grouped]:
        tensor = tensors.get(name)
        if tensor is None or tensor.shape != (rows, inputs) or tensor.dtype not in BLOCKS:
            return []
        return [found for part in sampled(tensor) if (found := quiet.catch(partial(of_blocks, part))) is not None]

    layers = sorted({0, shape.layers - 1})
    names = [(f"blk.{layer}.{GGUF_MATRICES[name]}.weight", *matrix_shape(shape, name)) for layer in layers for name in MATRICES]
    known = [found for name, rows, inputs in names for found in samples(name, rows, inputs)]
    floating = [t for name, *size in names if (t := tensors.get(name)) is not None and t.floating and t.shape == tuple(size)]
    if known:
        sizes = [size for tensor in floating for part in sampled(tensor) if (size := float_size([part])) is not None]
        size = min([common_size(known) or 0, *sizes])
        if not size:
            problems.add(names[0][0], "has inputs that are no whole groups of 64", "the file is damaged: convert the model again")
    else:
        problems.found += quiet.found[:1]
        size = group_size(floating, problems) if len(floating) == len(names) else 0
    if not size:
        return 0, False
    tables = [tensors[name] for name in (GgufCheckpoint.embedding_name, GgufCheckpoint.head_name) if name in tensors]
    ternary = [
        all(found.fits(size) for found in samples(table.name, shape.vocab, shape.hidden)) if table.dtype in BLOCKS
        else table.floating and float_fits(table, size) for table in tables
    ]  # fmt: skip
    return size, bool(tables) and all(ternary)


def gguf_architecture(metadata: Metadata, problems: Problems) -> str | None:
    """The architecture, if it is a supported one."""
    architecture = metadata.get("general.architecture")
    if (key := next((key for key in metadata if key.startswith(ROTATION)), None)) is not None:
        problems.add(key, f"{shown(architecture)} has {ROTATED.what}", ROTATED.fix)
        return None
    if not isinstance(architecture, str) or architecture not in GGUF_ARCHITECTURES:
        other = known_as(architecture) if isinstance(architecture, str) else None
        why, fix = (f": it has {other.what}", other.fix) if other else ("", f"supported are {', '.join(GGUF_ARCHITECTURES)}")
        problems.add("general.architecture", f"{shown(architecture)} is not supported{why}", fix)
        return None
    return architecture


def gguf_spec(
    path: Path, metadata: Metadata, tensors: dict[str, Tensor], activation: str | None, problems: Problems
) -> ModelSpec | None:
    """The model that a file describes."""
    architecture = gguf_architecture(metadata, problems)
    if architecture is None:
        return None
    family = GGUF_ARCHITECTURES[architecture]
    keys = {k.removeprefix(architecture + "."): v for k, v in metadata.items() if k.startswith(architecture + ".")}
    fields, tokens = read_record(Fields, keys, problems, path.name), read_record(Tokens, metadata, problems, path.name)
    if fields is None or tokens is None:
        return None
    _check_fields(keys, problems)
    named = {"hidden_activation": fields.hidden_activation, "hidden_act": fields.hidden_act}
    named |= other_activations(metadata, *(f"{architecture}.{name}" for name in named))
    gate = activation_of(named, activation, family.activation, problems)
    biases = tuple(name for name in MATRICES if f"blk.0.{GGUF_MATRICES[name]}.bias" in tensors)
    if not family.biases and (bias := next((name for name in tensors if name.endswith(".bias")), None)):
        problems.add(bias, "biases are not supported", "use a model without biases")
    embedding = tensors.get(GgufCheckpoint.embedding_name)
    vocab, notes = fields.vocab or (embedding.shape[0] if embedding else None), []
    tokens_listed = metadata.get("tokenizer.ggml.tokens")
    if embedding is not None and vocab != (rows := embedding.shape[0]) and isinstance(tokens_listed, list) and len(tokens_listed) == rows:
        notes.append(f"the file says {vocab:,} tokens, but it lists {rows:,} and has as many rows: these count, as in llama.cpp")
        vocab = rows
    if vocab is None:
        problems.add(GgufCheckpoint.embedding_name, "missing", AGAIN)
        return None
    shape = shape_of(
        problems,
        path.name,
        hidden=fields.hidden,
        ffn=fields.ffn,
        layers=fields.layers,
        heads=fields.heads,
        kv_heads=fields.kv_heads or fields.heads,
        head_dim=fields.key_length,
        vocab=vocab,
        context=fields.context,
        activation=gate,
        sub_norms=family.sub_norms,
        head_norms=family.head_norms,
    )
    if shape is None:
        return None
    if fields.value_length not in (None, shape.head_dim):
        problems.add("attention.value_length", f"{fields.value_length}, where keys have {shape.head_dim}", "use another model")
    factors = _rope_factors(tensors, architecture, problems)
    theta, scaling = gguf_rope(fields, factors, shape.context, shape.head_dim, problems, path.name)
    if problems.found:
        return None
    size, ternary_head = _grouping(tensors, shape, problems)
    if size:
        shape = shape_of(problems, path.name, **(dataclasses.asdict(shape) | {"group_size": size, "ternary_head": ternary_head}))
    if problems.found or shape is None:
        return None
    ends = tuple(f".{name}.weight" for name in GGUF_MATRICES.values())
    kinds = Counter(tensor.dtype for name, tensor in tensors.items() if name.endswith(ends))
    dtype = kinds.most_common(1)[0][0] if kinds else "unknown"
    notes += ["block scales are fp16"] if dtype in ("TQ1_0", "TQ2_0") else []
    if not family.int8 and not size:
        notes.append("the file names no activation quantisation: this machine quantises activations to int8 per token")
    return ModelSpec(
        name=path.stem,
        source=f"GGUF {architecture}, {dtype}{f', ternary in groups of {size}' if size else ''}",
        shape=shape,
        rms_eps=fields.eps,
        rope_theta=theta,
        rope_scaling=scaling,
        tied_embeddings=GgufCheckpoint.head_name not in tensors,
        bos_id=tokens.bos,
        eos_ids=() if tokens.eos is None else (tokens.eos,),
        scale_rule="stored",
        notes=tuple(notes),
        biases=biases,
    )
