"""Hugging Face folders: config.json, generation_config.json and safetensors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from tritloom.gen.models.checkpoint import (
    MASTER,
    MATRICES,
    ROW_BLOCK,
    Checkpoint,
    Trits,
    absmean,
    activation_of,
    other_activations,
    scale_of,
    shape_of,
    single_magnitude,
    unpack_rows,
)
from tritloom.gen.models.files import Tensor, read_json, there
from tritloom.gen.models.problems import CheckpointError, Problems, shown
from tritloom.gen.models.records import Context, Ids, Layers, Record, Size, VocabularySize, read_record
from tritloom.gen.models.rope import RopeFields, hugging_face_rope
from tritloom.gen.models.spec import ModelSpec
from tritloom.gen.models.vocabulary import Vocabulary


class HuggingFaceCheckpoint(Checkpoint):
    embedding_name, final_norm_name, head_name = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"

    def __init__(self, spec: ModelSpec, tensors: dict[str, Tensor], find_tokenizer: Callable[[], Vocabulary]) -> None:
        super().__init__(spec, tensors, find_tokenizer)
        self.old_names = any(name.endswith(("inner_attn_ln.weight", "ffn_layernorm.weight")) for name in tensors)

    def matrix_name(self, layer: int, name: str) -> str:
        return f"model.layers.{layer}.{'self_attn' if name[0] in 'qkvo' else 'mlp'}.{name}.weight"

    def norm_name(self, layer: int, name: str) -> str:
        sub = {
            "attn_sub_norm": ("self_attn.attn_sub_norm", "self_attn.inner_attn_ln"),
            "ffn_sub_norm": ("mlp.ffn_sub_norm", "mlp.ffn_layernorm"),
        }
        return f"model.layers.{layer}.{sub[name][self.old_names] if name in sub else name}.weight"

    def stored_matrix_shape(self, tensor: Tensor) -> tuple[int, ...]:
        return (4 * tensor.shape[0], *tensor.shape[1:]) if tensor.dtype == "U8" and tensor.shape else tensor.shape

    @property
    def quantises_activations(self) -> bool:
        return self.spec.scale_rule != "ternary"

    def known(self, name: str) -> bool:
        matrix = name.removesuffix("_scale")
        if name != matrix:
            return matrix in self.tensors and matrix.removesuffix(".weight").rpartition(".")[2] in MATRICES
        return name.endswith("rotary_emb.inv_freq") or (name == self.head_name and self.spec.tied_embeddings)

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


ARCHITECTURES = {"BitNetForCausalLM": True, "BitnetForCausalLM": True, "LlamaForCausalLM": False}
"""Supported architectures; whether they have sub-norms."""

MODEL_TYPES = {"BitNetForCausalLM": ("bitnet",), "BitnetForCausalLM": ("bitnet", "llama"), "LlamaForCausalLM": ("llama",)}
"""What model_type says beside each of them, if anything; transformers goes by it alone."""

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
    if architecture not in ARCHITECTURES:
        problems.add("architectures", f"{shown(architecture)} is not supported", f"supported are {', '.join(ARCHITECTURES)}")
        return None
    if kind.model_type is not None and kind.model_type not in MODEL_TYPES[architecture]:
        problems.add("model_type", f"{shown(kind.model_type)} contradicts architecture {architecture}", "correct config.json")
    return architecture


def _scale_rule(config: Config, architecture: str, tensors: dict[str, Tensor] | None, problems: Problems) -> tuple[str, str]:
    """How matrices get their scales, and the form of the weights, in words."""
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
    if config.quantization_config is not None or ARCHITECTURES[architecture]:
        return "absmean", "master weights, quantised on load"
    return "ternary", "unpacked ternary weights"


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tables hold the same values."""
    if a.shape != b.shape:
        return False
    if a.dtype == b.dtype or not (a.floating and b.floating):
        return a.dtype == b.dtype and bool(np.array_equal(a.data, b.data))
    starts = range(0, a.shape[0], ROW_BLOCK) if a.shape else ()
    return all(np.array_equal(a.rows(i, i + ROW_BLOCK).floats(), b.rows(i, i + ROW_BLOCK).floats()) for i in starts)


def hugging_face_spec(folder: Path, tensors: dict[str, Tensor] | None, activation: str | None, problems: Problems) -> ModelSpec | None:
    """The model that a folder describes; `tensors` are None where there are no weights, which leaves open how they would be stored."""
    data = problems.catch(lambda: read_json(folder / "config.json", "give the folder of a Hugging Face model, with all its files"))
    architecture = _kind(folder, data, problems) if data is not None else None
    config = read_record(Config, data, problems, "config.json") if architecture is not None else None
    if data is None or config is None or architecture is None:
        return None
    sub_norms = ARCHITECTURES[architecture]
    named = {"hidden_act": config.hidden_act, "hidden_activation": config.hidden_activation}
    inside = data.get("text_config")
    named |= other_activations(data, *named)
    named |= other_activations({f"text_config.{key}": value for key, value in (inside if isinstance(inside, dict) else {}).items()})
    gate = activation_of(named, activation, "relu2" if architecture == "BitNetForCausalLM" else "silu", problems)
    for key in ("attention_bias", "mlp_bias"):
        if getattr(config, key):
            problems.add(key, "biases are not supported", "use a model without biases")
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
        sub_norms=sub_norms,
    )
    if shape is None:
        return None
    theta, scaling = hugging_face_rope(
        config, 500000.0 if architecture == "BitNetForCausalLM" else 10000.0, shape.context, shape.head_dim, problems
    )
    generation: Generation | None = Generation()
    if there(path := folder / "generation_config.json") and (stated := problems.catch(lambda: read_json(path))) is not None:
        generation = read_record(Generation, stated, problems, path.name)
    if problems.found or generation is None:
        return None
    head, embedding = (tensors or {}).get(HuggingFaceCheckpoint.head_name), (tensors or {}).get(HuggingFaceCheckpoint.embedding_name)
    own_head = head is not None and embedding is not None and not _same(head, embedding)
    notes = []
    if rule == "ternary":
        notes.append("the checkpoint names no activation quantisation: this machine quantises activations to int8 per token")
    if own_head and config.tie_word_embeddings:
        notes.append("config.json ties the head to the embedding, but the weights have a head of their own: that one is used")
    return ModelSpec(
        name=folder.resolve().name,
        source=f"Hugging Face {architecture}, {form}",
        shape=shape,
        rms_eps=config.rms_norm_eps or (1e-5 if sub_norms else 1e-6),
        rope_theta=theta,
        rope_scaling=scaling,
        tied_embeddings=config.tie_word_embeddings and not own_head,
        bos_id=config.bos_token_id[0] if config.bos_token_id else None,
        eos_ids=tuple(sorted({*config.eos_token_id, *generation.eos_token_id})),
        scale_rule=rule,
        notes=tuple(notes),
    )
