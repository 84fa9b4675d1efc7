"""Hugging Face folders: config.json, generation_config.json and safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tritloom.gen.models.checkpoint import MASTER, Checkpoint, Trits, absmean, scale_of, single_magnitude, unpack_rows
from tritloom.gen.models.fields import end_tokens, number, shape_of
from tritloom.gen.models.files import Tensor, read_json
from tritloom.gen.models.problems import CheckpointError, Problems
from tritloom.gen.models.spec import ROPE_SCALINGS, ModelSpec


class HuggingFaceCheckpoint(Checkpoint):
    embedding_name, final_norm_name, head_name = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"

    def __init__(self, spec: ModelSpec, tensors: dict[str, Tensor], tokenizer: Path) -> None:
        super().__init__(spec, tensors, tokenizer)
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
        return (4 * tensor.shape[0], *tensor.shape[1:]) if tensor.dtype == "U8" else tensor.shape

    def known(self, name: str) -> bool:
        matrix = name.removesuffix(".weight_scale") + ".weight"
        return (name.endswith(".weight_scale") and matrix in self.tensors) or name.endswith("rotary_emb.inv_freq") or name == self.head_name

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


def _rope(config: dict[str, Any], problems: Problems) -> tuple[float, dict[str, Any] | None]:
    """Rotary base and scaling, in the old (rope_theta, rope_scaling) or new (rope_parameters) form."""
    record = dict(config.get("rope_parameters") or {}) | dict(config.get("rope_scaling") or {})
    default = 500000.0 if config["architectures"][0] == "BitNetForCausalLM" else 10000.0
    theta = record.pop("rope_theta", None) or config.get("rope_theta") or default
    kind = record.get("rope_type", record.get("type", "default"))
    if kind == "default" or (kind == "linear" and record.get("factor") == 1):
        scaling = None
    elif kind in ROPE_SCALINGS:
        scaling = {k: v for k, v in record.items() if k != "type"} | {"rope_type": kind}
        keys = ("factor",) if kind == "linear" else ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
        for key in keys:
            if not isinstance(scaling.get(key), (int, float)):
                problems.add(f"rope_scaling.{key}", f"missing, but {kind} scaling needs it", "correct config.json")
    else:
        problems.add("rope_scaling", f"type {kind!r} is not supported", f"supported are default, {', '.join(ROPE_SCALINGS)}")
        scaling = None
    if config.get("partial_rotary_factor", 1) not in (1, 1.0) or record.get("partial_rotary_factor", 1) not in (1, 1.0):
        problems.add(
            "partial_rotary_factor", "only part of a head would be rotated, which is not supported", "use a model that rotates whole heads"
        )
    return float(theta), scaling


def hugging_face_spec(folder: Path, tensors: dict[str, Tensor] | None, problems: Problems) -> ModelSpec | None:
    config = problems.catch(lambda: read_json(folder / "config.json"))
    if config is None:
        return None
    architecture = (config.get("architectures") or [None])[0]
    if architecture not in ARCHITECTURES:
        problems.add("architectures", f"{architecture!r} is not supported", f"supported are {', '.join(ARCHITECTURES)}")
        return None
    activation = config.get("hidden_act", "relu2" if architecture == "BitNetForCausalLM" else "silu")
    if activation not in ("relu2", "silu"):
        problems.add("hidden_act", f"{activation!r} is not supported", "supported are relu2, silu (both gated)")
    for key in ("attention_bias", "mlp_bias"):
        if config.get(key):
            problems.add(key, "biases are not supported", "use a model without biases")
    hidden, heads = number(config, "hidden_size", problems), number(config, "num_attention_heads", problems)
    head_dim = config.get("head_dim")
    if head_dim is None and hidden and heads:
        head_dim = hidden // heads
        if hidden % heads:
            problems.add("hidden_size", f"{hidden} is not a multiple of {heads} heads and no head_dim is given", "correct config.json")
    theta, scaling = _rope(config, problems)
    eps = number(config, "rms_norm_eps", problems, 1e-5 if ARCHITECTURES[architecture] else 1e-6, float)

    quantization = config.get("quantization_config") or {}
    method = quantization.get("quant_method", "bitnet")
    if method != "bitnet":
        problems.add("quantization_config.quant_method", f"{method!r} is not supported", "supported is bitnet")
    if quantization.get("use_rms_norm"):
        problems.add(
            "quantization_config.use_rms_norm", "an extra norm before every matrix is not supported", "use a model with use_rms_norm false"
        )
    kept = [m for m in quantization.get("modules_to_not_convert") or [] if m not in ("lm_head", "model.embed_tokens", "embed_tokens")]
    if kept:
        problems.add(
            "quantization_config.modules_to_not_convert",
            f"leaves {', '.join(kept)} unquantised, which is not supported",
            "every matrix of a layer must be ternary",
        )
    linear_class = quantization.get("linear_class", "bitlinear")
    if linear_class not in ("bitlinear", "autobitlinear"):
        problems.add("quantization_config.linear_class", f"{linear_class!r} is not supported", "supported are bitlinear, autobitlinear")
    packed = any(t.dtype == "U8" for t in (tensors or {}).values()) or any(n.endswith(".weight_scale") for n in tensors or {})
    if packed and not quantization:
        problems.add(
            "quantization_config",
            "missing, and without it nobody knows whether weight_scale multiplies or divides",
            "restore it in config.json: linear_class autobitlinear multiplies, bitlinear divides",
        )
    if packed:
        rule, form = ("multiply" if linear_class == "autobitlinear" else "divide"), f"packed, {linear_class}"
    elif quantization or ARCHITECTURES[architecture]:
        rule, form = "absmean", "master weights, quantised on load"
    else:
        rule, form = "ternary", "unpacked ternary weights"
    notes = ()
    if rule == "ternary":
        notes = ("the checkpoint names no activation quantisation: this machine quantises activations to int8 per token",)

    shape = shape_of(
        problems,
        hidden=hidden,
        ffn=number(config, "intermediate_size", problems),
        layers=number(config, "num_hidden_layers", problems),
        heads=heads,
        kv_heads=number(config, "num_key_value_heads", problems, heads),
        head_dim=head_dim,
        vocab=number(config, "vocab_size", problems),
        context=number(config, "max_position_embeddings", problems, 2048),
        activation=activation,
        sub_norms=ARCHITECTURES[architecture],
    )
    if shape is None or problems.found:
        return None
    generation = {}
    if (folder / "generation_config.json").is_file():
        generation = problems.catch(lambda: read_json(folder / "generation_config.json")) or {}
    bos = config.get("bos_token_id")
    return ModelSpec(
        name=folder.resolve().name,
        source=f"Hugging Face {architecture}, {form}",
        shape=shape,
        rms_eps=float(eps),
        rope_theta=theta,
        rope_scaling=scaling,
        tied_embeddings=bool(config.get("tie_word_embeddings", False)),
        bos_id=bos[0] if isinstance(bos, list) else bos,
        eos_ids=end_tokens(config.get("eos_token_id"), generation.get("eos_token_id")),
        scale_rule=rule,
        notes=notes,
    )
