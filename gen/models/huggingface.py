"""Hugging Face folders: config.json, generation_config.json and safetensors; those that MLX converts have the same names."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from tritloom.firmware.config import ModelShape
from tritloom.gen.models.checkpoint import (
    MASTER,
    MATRICES,
    ROW_BLOCK,
    Checkpoint,
    Floats,
    Trits,
    absmean,
    activation_of,
    matrix_shape,
    other_activations,
    scale_of,
    shape_of,
    single_magnitude,
    unpack_rows,
)
from tritloom.gen.models.files import Tensor, read_json, there
from tritloom.gen.models.groups import Grouped, common_size, of_affine, of_floats
from tritloom.gen.models.others import known_as, said_otherwise
from tritloom.gen.models.problems import CheckpointError, Problem, Problems, shown
from tritloom.gen.models.records import Context, Ids, Layers, Record, Size, VocabularySize, read_record
from tritloom.gen.models.rope import RopeFields, hugging_face_rope
from tritloom.gen.models.sampling import SAMPLED_ROWS, float_fits, group_size
from tritloom.gen.models.spec import ModelSpec
from tritloom.gen.models.vocabulary import Vocabulary


def matrix_name(layer: int, name: str) -> str:
    return f"model.layers.{layer}.{'self_attn' if name[0] in 'qkvo' else 'mlp'}.{name}.weight"


class HuggingFaceCheckpoint(Checkpoint):
    embedding_name, final_norm_name, head_name = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"

    def __init__(self, spec: ModelSpec, tensors: dict[str, Tensor], find_tokenizer: Callable[[], Vocabulary]) -> None:
        super().__init__(spec, tensors, find_tokenizer)
        self.old_names = any(name.endswith(("inner_attn_ln.weight", "ffn_layernorm.weight")) for name in tensors)

    def matrix_name(self, layer: int, name: str) -> str:
        return matrix_name(layer, name)

    def norm_name(self, layer: int, name: str) -> str:
        sub = {
            "attn_sub_norm": ("self_attn.attn_sub_norm", "self_attn.inner_attn_ln"),
            "ffn_sub_norm": ("mlp.ffn_sub_norm", "mlp.ffn_layernorm"),
            "q_norm": ("self_attn.q_norm", "self_attn.q_norm"),
            "k_norm": ("self_attn.k_norm", "self_attn.k_norm"),
        }
        return f"model.layers.{layer}.{sub[name][self.old_names] if name in sub else name}.weight"

    def stored_matrix_shape(self, tensor: Tensor) -> tuple[int, ...]:
        return (4 * tensor.shape[0], *tensor.shape[1:]) if tensor.dtype == "U8" and tensor.shape else tensor.shape

    @property
    def quantises_activations(self) -> bool:
        return self.spec.scale_rule not in ("ternary", "stored")

    def known(self, name: str) -> bool:
        matrix = name.removesuffix("_scale")
        if name != matrix:
            return matrix in self.tensors and matrix.removesuffix(".weight").rpartition(".")[2] in MATRICES
        return name.endswith("rotary_emb.inv_freq") or (name == self.head_name and self.spec.tied_embeddings)

    def _groups(self, name: str, start: int, stop: int) -> Grouped:
        tensor, size = self.tensor(name), self.spec.shape.group_size
        if not tensor.floating:
            raise CheckpointError(name, f"stored as {tensor.dtype}, where floats that are ternary by groups are expected", MASTER)
        return of_floats(tensor.rows(start, stop), size)

    def ternary(self, layer: int, name: str) -> tuple[Trits, float]:
        tensor = self.tensor(self.matrix_name(layer, name))
        scale_name = tensor.name + "_scale"
        if tensor.dtype == "U8" or scale_name in self.tensors:
            stored = self.tensor(scale_name).floats().reshape(-1)
            if len(stored) != 1:
                raise CheckpointError(
                    scale_name, f"{len(stored)} scales, where one per matrix is supported", "use a model with a scale per tensor"
                )
            scale = scale_of(scale_name, float(stored[0]), self.spec.scale_rule == "divide")
            if tensor.dtype == "U8":
                return unpack_rows(tensor.name, tensor.data.reshape(tensor.shape)), scale
            w = self._finite(tensor.name, tensor.floats())
            if not np.isin(w, (-1, 0, 1)).all():
                raise CheckpointError(tensor.name, "not ternary, although it has a weight_scale", MASTER)
            return w.astype(np.int8), scale
        w = self._finite(tensor.name, tensor.floats())
        return (absmean if self.spec.scale_rule == "absmean" else single_magnitude)(tensor.name, w)


class MlxCheckpoint(HuggingFaceCheckpoint):
    """A folder as MLX converts it: uint32 codes, the first in the low bits, and `scales` and `biases` [rows, groups] beside them."""

    def _width(self, tensor: Tensor) -> int:
        """Bits of a code, by the inputs that a row must have."""
        s = self.spec.shape
        name = tensor.name.removesuffix(".weight").rpartition(".")[2]
        inputs = matrix_shape(s, name)[1] if name in MATRICES else s.hidden
        return 32 * tensor.shape[-1] // inputs

    def _stored_shape(self, tensor: Tensor) -> tuple[int, ...]:
        if tensor.dtype != "U32" or len(tensor.shape) != 2:
            return tensor.shape
        width = self._width(tensor)
        return (tensor.shape[0], 32 * tensor.shape[1] // width) if width in MLX_WIDTHS else tensor.shape

    stored_matrix_shape = stored_table_shape = _stored_shape

    def companions_of(self, name: str) -> tuple[str, ...]:
        if name not in self.tensors or self.tensors[name].dtype != "U32":
            return ()
        return tuple(f"{name.removesuffix('.weight')}.{part}" for part in MLX_PARTS)

    def companions(self) -> dict[str, tuple[int, ...]]:
        found: dict[str, tuple[int, ...]] = {}
        for name, tensor in self.tensors.items():
            if not (others := self.companions_of(name)) or len(tensor.shape) != 2:
                continue
            rows, inputs = self._stored_shape(tensor)
            scales = self.tensors.get(others[0])
            groups = scales.shape[-1] if scales is not None and scales.shape else 1
            if inputs % groups or inputs // groups not in MLX_GROUPS:
                groups = inputs // self.spec.shape.group_size if self.spec.shape.group_size else 1
            found |= dict.fromkeys(others, (rows, groups))
        return found

    def known(self, name: str) -> bool:
        return name == self.head_name.replace("weight", name.rpartition(".")[2]) and self.spec.tied_embeddings or super().known(name)

    def ternary(self, layer: int, name: str) -> tuple[Trits, float]:
        raise CheckpointError(self.matrix_name(layer, name), "has a scale for each group of inputs", "read it by groups")

    def _codes(self, name: str, start: int, stop: int) -> tuple[Tensor, Floats, Floats]:
        scales, biases = (self.tensor(other).rows(start, stop).floats() for other in self.companions_of(name))
        return self.tensor(name).rows(start, stop), scales, biases

    def _groups(self, name: str, start: int, stop: int) -> Grouped:
        if self.tensor(name).dtype != "U32":
            return super()._groups(name, start, stop)
        codes, scales, biases = self._codes(name, start, stop)
        return affine(codes, scales, biases).in_groups(name, self.spec.shape.group_size)

    def _rows(self, name: str, start: int, stop: int) -> Floats:
        """Rows of a table of 2, 4 or 8 bits."""
        if self.tensor(name).dtype != "U32":
            return super()._rows(name, start, stop)
        tensor, scales, biases = self._codes(name, start, stop)
        width = self._width(tensor)
        words = tensor.data.view("<u4").reshape(*tensor.shape, 1) >> np.arange(0, 32, width, dtype=np.uint32) & np.uint32((1 << width) - 1)
        groups = words.reshape(*scales.shape, -1).astype(np.float32)
        return (groups * scales[..., None] + biases[..., None]).reshape(len(scales), -1)


TWO_BITS = "take the model's 2-bit form"
MLX_WIDTHS, MLX_GROUPS, MLX_PARTS = (2, 4, 8), (32, 64, 128), ("scales", "biases")


def affine(codes: Tensor, scales: Floats, biases: Floats) -> Grouped:
    """Rows of a matrix of MLX's in its own groups. Raises CheckpointError unless it is ternary."""
    words, groups = codes.shape[1], scales.shape[1]
    if 16 * words % groups or 16 * words // groups not in MLX_GROUPS:
        raise CheckpointError(codes.name, f"{words} words and {groups} scales a row are not two bits a weight", TWO_BITS)
    return of_affine(codes.name, codes.data.view("<u4").reshape(codes.shape), scales, biases)


@dataclass(frozen=True)
class Family:
    """An architecture: whether it has sub-norms and norms of heads, matrices that always have a bias, and what model_type says beside its
    name, if anything (transformers goes by it alone). `stated`: what config.json must say, for transformers' defaults are of one model."""

    model_types: tuple[str, ...]
    sub_norms: bool = False
    head_norms: bool = False
    biases: tuple[str, ...] = ()
    stated: tuple[str, ...] = ()
    activation: str = "silu"
    theta: float = 10000.0


ATTENTION_BIASES, MLP_BIASES = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")
ARCHITECTURES = {
    "BitNetForCausalLM": Family(("bitnet",), sub_norms=True, activation="relu2", theta=500000.0),
    "BitnetForCausalLM": Family(("bitnet", "llama"), sub_norms=True),
    "LlamaForCausalLM": Family(("llama",)),
    "Qwen2ForCausalLM": Family(("qwen2",), biases=ATTENTION_BIASES[:3], stated=("num_key_value_heads", "max_position_embeddings")),
    "Qwen3ForCausalLM": Family(("qwen3",), head_norms=True, stated=("num_key_value_heads", "max_position_embeddings", "head_dim")),
}
"""Supported architectures."""

Eps = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]


class Kind(Record):
    architectures: Annotated[list[str], Field(min_length=1, max_length=16)]
    model_type: str | None = None


class Quantization(Record):
    quant_method: str = "bitnet"
    linear_class: str = "bitlinear"
    use_rms_norm: bool = False
    modules_to_not_convert: Annotated[list[str], Field(max_length=4096)] = []


class Config(RopeFields):
    """config.json, as far as it bears on what a machine computes."""

    hidden_act: str | None = None
    hidden_activation: str | None = None
    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: Layers
    num_attention_heads: Size
    num_key_value_heads: Size | None = None
    head_dim: Size | None = None
    vocab_size: VocabularySize
    max_position_embeddings: Context = 2048
    rms_norm_eps: Eps | None = None
    use_sliding_window: bool = False
    layer_types: Annotated[list[str], Field(max_length=4096)] = []
    quantization: Any = None
    attention_bias: bool = False
    mlp_bias: bool = False
    tie_word_embeddings: bool = False
    bos_token_id: Annotated[Ids, Field(min_length=1, max_length=1)] | None = None
    eos_token_id: Ids = []
    quantization_config: Quantization | None = None


class Generation(Record):
    """generation_config.json."""

    eos_token_id: Ids = []


def _kind(folder: Path, config: dict[str, Any], problems: Problems) -> str | None:
    """The architecture, if it is a supported one."""
    kind = read_record(Kind, config, problems, "config.json")
    if kind is None:
        return None
    architecture = kind.architectures[0]
    if (said := said_otherwise(config)) is not None:
        key, other = said
        problems.add(key, f"{shown(architecture)} has {other.what}", other.fix)
        return None
    if architecture not in ARCHITECTURES:
        other = known_as(architecture)
        why, fix = (f": it has {other.what}", other.fix) if other else ("", f"supported are {', '.join(ARCHITECTURES)}")
        problems.add("architectures", f"{shown(architecture)} is not supported{why}", fix)
        return None
    if kind.model_type is not None and kind.model_type not in ARCHITECTURES[architecture].model_types:
        problems.add("model_type", f"{shown(kind.model_type)} contradicts architecture {architecture}", "correct config.json")
    return architecture


def _scale_rule(config: Config, architecture: str, tensors: dict[str, Tensor] | None, problems: Problems) -> tuple[str, str]:
    """How matrices get their scales, and the form of the weights, in words."""
    if _is_mlx(config.quantization) or any(t.dtype == "U32" for t in (tensors or {}).values()):
        return "stored", _mlx_form(config, problems)
    quantization = config.quantization_config or Quantization()
    if quantization.quant_method != "bitnet":
        problems.add("quantization_config.quant_method", f"{shown(quantization.quant_method)} is not supported", "supported is bitnet")
    if quantization.use_rms_norm:
        problems.add(
            "quantization_config.use_rms_norm", "an extra norm before every matrix is not supported", "use a model with use_rms_norm false"
        )
    kept = [m for m in quantization.modules_to_not_convert if m not in ("lm_head", "model.embed_tokens", "embed_tokens")]
    if kept:
        problems.add(
            "quantization_config.modules_to_not_convert",
            f"leaves {', '.join(kept)} unquantised, which is not supported",
            "every matrix of a layer must be ternary",
        )
    linear_class = quantization.linear_class
    if linear_class not in ("bitlinear", "autobitlinear"):
        known = "supported are bitlinear, autobitlinear"
        problems.add("quantization_config.linear_class", f"{shown(linear_class)} is not supported", known)
    packed = any(t.dtype == "U8" for t in (tensors or {}).values()) or any(n.endswith(".weight_scale") for n in tensors or {})
    if packed and config.quantization_config is None:
        problems.add(
            "quantization_config",
            "missing, and without it nobody knows whether weight_scale multiplies or divides",
            "restore it in config.json: linear_class autobitlinear multiplies, bitlinear divides",
        )
    if packed:
        return ("multiply" if linear_class == "autobitlinear" else "divide"), f"packed, {linear_class}"
    if config.quantization_config is not None or ARCHITECTURES[architecture].sub_norms:
        return "absmean", "master weights, quantised on load"
    return "ternary", "unpacked ternary weights"


class Mlx(Record):
    """`quantization` of a config.json that MLX wrote; what single tensors have instead shows in their shapes."""

    mode: str = "affine"


def _is_mlx(record: Any) -> bool:
    """Whether a `quantization` record is one that MLX wrote."""
    return isinstance(record, dict) and "bits" in record and "group_size" in record


def _mlx_form(config: Config, problems: Problems) -> str:
    """The form of an MLX folder, in words."""
    if not _is_mlx(config.quantization):
        problems.add("quantization", "missing, although weights are packed in words of 32 bits as MLX does", "restore it in config.json")
        return "MLX"
    record = read_record(Mlx, config.quantization, problems, "config.json", "quantization.")
    if record is not None and record.mode != "affine":
        problems.add("quantization.mode", f"{shown(record.mode)} is not ternary", "take the model's 2-bit form (mode affine)")
    return "MLX, two bits a weight"


def _two_dimensional(tensors: dict[str, Tensor], names: Iterable[str], shape: ModelShape) -> list[Tensor]:
    """Those of a layer's matrices that are floats of the right shape."""
    found = [(name, tensors.get(matrix_name(0, name))) for name in names]
    return [tensor for name, tensor in found if tensor is not None and tensor.floating and tensor.shape == matrix_shape(shape, name)]


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tables hold the same values."""
    if a.shape != b.shape:
        return False
    if a.dtype != b.dtype and not (a.floating and b.floating):
        return False

    def equal(start: int) -> bool:
        parts = [table.rows(start, start + ROW_BLOCK) for table in (a, b)]
        first, second = (part.data if a.dtype == b.dtype else part.floats() for part in parts)
        same = np.array_equal(first, second)
        for part in parts:
            part.let_go()
        return same

    return all(equal(start) for start in (range(0, a.shape[0], ROW_BLOCK) if a.shape else ()))


def hugging_face_spec(folder: Path, tensors: dict[str, Tensor] | None, activation: str | None, problems: Problems) -> ModelSpec | None:
    """The model that a folder describes; `tensors` are None where there are no weights, which leaves open how they would be stored."""
    data = problems.catch(lambda: read_json(folder / "config.json", "give the folder of a Hugging Face model, with all its files"))
    architecture = _kind(folder, data, problems) if data is not None else None
    config = read_record(Config, data, problems, "config.json") if architecture is not None else None
    if data is None or config is None or architecture is None:
        return None
    family = ARCHITECTURES[architecture]
    named = {"hidden_act": config.hidden_act, "hidden_activation": config.hidden_activation}
    inside = data.get("text_config")
    named |= other_activations(data, *named)
    named |= other_activations({f"text_config.{key}": value for key, value in (inside if isinstance(inside, dict) else {}).items()})
    gate = activation_of(named, activation, family.activation, problems)
    for key in family.stated:
        if data.get(key) is None:
            problems.add(key, "missing", "restore it in config.json")
    if config.use_sliding_window or any(kind != "full_attention" for kind in config.layer_types):
        problems.add("use_sliding_window", "attention in a window is not supported", "use a model whose layers all see the whole context")
    rule, form = _scale_rule(config, architecture, tensors, problems)
    shape = shape_of(
        problems,
        "config.json",
        hidden=config.hidden_size,
        ffn=config.intermediate_size,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads or config.num_attention_heads,
        head_dim=config.head_dim,
        vocab=config.vocab_size,
        context=config.max_position_embeddings,
        activation=gate,
        sub_norms=family.sub_norms,
        head_norms=family.head_norms,
    )
    if shape is None:
        return None
    theta, scaling = hugging_face_rope(
        config, family.theta, shape.context, shape.head_dim, problems
    )
    generation: Generation | None = Generation()
    if there(path := folder / "generation_config.json") and (stated := problems.catch(lambda: read_json(path))) is not None:
        generation = read_record(Generation, stated, problems, path.name)
    if problems.found or generation is None:
        return None
    tables = HuggingFaceCheckpoint.head_name, HuggingFaceCheckpoint.embedding_name
    head, embedding = ((tensors or {}).get(name) for name in tables)
    own_head = head is not None and embedding is not None and not _same(head, embedding)
    tied = config.tie_word_embeddings and not own_head
    biases, notes = _biases(config, family, tensors), []
    if own_head and config.tie_word_embeddings:
        notes.append("config.json ties the head to the embedding, but the weights have a head of their own: that one is used")
    if tensors is not None:
        size, ternary_head = _grouping(tensors, shape, rule, tied, problems)
        if size:
            found = {"group_size": size, "ternary_head": ternary_head}
            form = f"{form.replace('unpacked ternary weights', 'unpacked')}, ternary in groups of {size}"
            shape = shape_of(problems, "config.json", **(dataclasses.asdict(shape) | found))
    if rule == "ternary" and shape is not None and not shape.group_size:
        notes.insert(0, "the checkpoint names no activation quantisation: this machine quantises activations to int8 per token")
    if problems.found or shape is None:
        return None
    return ModelSpec(
        name=folder.resolve().name,
        source=f"Hugging Face {architecture}, {form}",
        shape=shape,
        rms_eps=config.rms_norm_eps or (1e-5 if family.sub_norms else 1e-6),
        rope_theta=theta,
        rope_scaling=scaling,
        tied_embeddings=tied,
        bos_id=config.bos_token_id[0] if config.bos_token_id else None,
        eos_ids=tuple(sorted({*config.eos_token_id, *generation.eos_token_id})),
        scale_rule=rule,
        notes=tuple(notes),
        biases=biases,
    )


def _biases(config: Config, family: Family, tensors: dict[str, Tensor] | None) -> tuple[str, ...]:
    """Matrices that have a bias: by the architecture, else by config.json; but for BitNet's, also those of which the first layer has one,
    as Tequila's models have, whatever config.json says."""
    stated = {*(ATTENTION_BIASES if config.attention_bias else ()), *(MLP_BIASES if config.mlp_bias else ())}
    named = set(family.biases) or stated
    if not family.sub_norms:
        named |= {name for name in MATRICES if matrix_name(0, name).replace("weight", "bias") in (tensors or {})}
    return tuple(name for name in MATRICES if name in named)


def _grouping(tensors: dict[str, Tensor], shape: ModelShape, rule: str, tied: bool, problems: Problems) -> tuple[int, bool]:
    """Inputs that share a scale (0: all of a matrix), and whether embedding and head are ternary so too, by a few rows of them."""
    tables = [tensors[name] for name in (HuggingFaceCheckpoint.embedding_name, HuggingFaceCheckpoint.head_name)[: 1 if tied else 2]
              if name in tensors]  # fmt: skip
    if rule == "ternary":
        size = group_size(_two_dimensional(tensors, MATRICES, shape), problems)
        right = [table for table in tables if table.floating and table.shape == (shape.vocab, shape.hidden)]
        return size, bool(size and right) and right == tables and all(float_fits(table, size) for table in right)
    if rule != "stored":
        return 0, False
    quiet = Problems()
    samples = [quiet.catch(partial(_affine_sample, tensors, matrix_name(0, name), matrix_shape(shape, name)[1])) for name in MATRICES]
    known = [sample for sample in samples if sample is not None]
    if not known:
        problems.found += quiet.found or [Problem(matrix_name(0, MATRICES[0]), "missing, or not packed as MLX packs", TWO_BITS)]
        return 0, False
    if (size := common_size(known)) is None:
        problems.add(matrix_name(0, MATRICES[0]), f"has scales of its own for each {min(sample.group_size for sample in known)} inputs",
                     "supported are groups of 64 and 128")  # fmt: skip
        return 0, False
    found = [quiet.catch(partial(_affine_sample, tensors, table.name, shape.hidden)) for table in tables]
    return size, bool(found) and all(sample is not None and sample.fits(size) for sample in found)


def _affine_sample(tensors: dict[str, Tensor], name: str, inputs: int) -> Grouped | None:
    """The first rows of a matrix in MLX's form, or None for what its shape shows to be another. Raises CheckpointError."""
    parts = [tensors.get(each) for each in (name, *(f"{name.removesuffix('.weight')}.{part}" for part in MLX_PARTS))]
    if any(part is None or len(part.shape) != 2 or not part.shape[0] for part in parts):
        return None
    codes, scales, biases = (part.rows(0, 4 * SAMPLED_ROWS) for part in parts if part is not None)
    if codes.dtype != "U32" or scales.shape != biases.shape or not scales.shape[1] or 16 * codes.shape[1] % scales.shape[1]:
        return None
    if 16 * codes.shape[1] != inputs:
        raise CheckpointError(name, f"{codes.shape[1]} words of 32 bits for {inputs} weights are not two bits each", TWO_BITS)
    return affine(codes, scales.floats(), biases.floats())
