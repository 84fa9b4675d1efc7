"""Random ternary checkpoints in Hugging Face's form, of any shape."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tritloom.firmware.config import ModelShape
from tritloom.gen.models.checkpoint import MATRICES, NORMS, SUB_NORMS, matrix_shape, norm_length, norms_of
from tritloom.gen.models.groups import Grouped

TINY = ModelShape(hidden=32, ffn=48, layers=2, heads=4, kv_heads=2, head_dim=8, vocab=70, context=64, activation="relu2", sub_norms=True)

Weights = dict[str | tuple[int, str], Any]


def weights(shape: ModelShape, seed: int = 0) -> Weights:
    """(layer, matrix) -> (trits, scale); (layer, norm) -> gains; "embedding", "head", "norm" -> float32."""
    rng = np.random.default_rng(seed)
    out: Weights = {"embedding": rng.normal(size=(shape.vocab, shape.hidden)).astype(np.float32)}
    out["head"] = rng.normal(size=(shape.vocab, shape.hidden)).astype(np.float32)
    out["norm"] = rng.uniform(0.5, 2, shape.hidden).astype(np.float32)
    for layer in range(shape.layers):
        for name in MATRICES:
            trits = rng.integers(-1, 2, matrix_shape(shape, name)).astype(np.int8)
            out[layer, name] = trits, float(np.float16(rng.uniform(0.01, 0.1)))
        for name in NORMS:
            out[layer, name] = rng.uniform(0.5, 2, norm_length(shape, name)).astype(np.float32)
    return out


def biases(shape: ModelShape, names: tuple[str, ...], seed: int = 0) -> dict[str, Any]:
    """Tensors (float16) of the biases of these matrices by Hugging Face's names, some small and some large beside what they are added
    to."""
    rng = np.random.default_rng([seed, 29])
    return {f"model.layers.{layer}.{'self_attn' if name[0] in 'qkvo' else 'mlp'}.{name}.bias":
            (rng.normal(size=matrix_shape(shape, name)[0]) * 2.0 ** rng.integers(-6, 4)).astype(np.float16)
            for layer in range(shape.layers) for name in names}


def packed_rows(trits: NDArray[np.int8]) -> NDArray[np.uint8]:
    quarters = (trits + 1).astype(np.uint8).reshape(4, -1, trits.shape[1])
    return quarters[0] | quarters[1] << 2 | quarters[2] << 4 | quarters[3] << 6


def write_tokenizer(folder: Path, vocab: int) -> None:
    model = {"type": "WordLevel", "vocab": {f"w{i}": i for i in range(vocab)}, "unk_token": "w0"}
    (folder / "tokenizer.json").write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": model}))


def config_json(shape: ModelShape, **changes: Any) -> dict[str, Any]:
    config = {
        "architectures": ["BitNetForCausalLM" if shape.sub_norms else "LlamaForCausalLM"], "hidden_act": shape.activation,
        "hidden_size": shape.hidden, "intermediate_size": shape.ffn, "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads, "num_key_value_heads": shape.kv_heads, "head_dim": shape.head_dim,
        "vocab_size": shape.vocab, "max_position_embeddings": shape.context, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2,
        "quantization_config": {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "offline"},
    }  # fmt: skip
    return {k: v for k, v in (config | changes).items() if v is not None}


def hugging_face_tensors(
    shape: ModelShape, w: Weights, *, form: str = "multiply", old_names: bool = False, tied: bool = True
) -> dict[str, NDArray[Any]]:
    """`form`: multiply or divide (packed), ternary (unpacked floats)."""
    sub = {"attn_sub_norm": "inner_attn_ln", "ffn_sub_norm": "ffn_layernorm"} if old_names else {}
    out = {"model.embed_tokens.weight": w["embedding"], "model.norm.weight": w["norm"]}
    if not tied:
        out["lm_head.weight"] = w["head"]
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}."
        for name in MATRICES:
            trits, scale = w[layer, name]
            full = prefix + ("self_attn." if name[0] in "qkvo" else "mlp.") + name + ".weight"
            if form == "ternary":
                out[full] = trits.astype(np.float32) * np.float32(scale)
            else:
                out[full] = packed_rows(trits)
                out[full + "_scale"] = np.array([scale if form == "multiply" else 1 / scale], np.float32)
        for name in NORMS:
            if shape.sub_norms or name not in SUB_NORMS:
                where = {"attn_sub_norm": "self_attn.", "ffn_sub_norm": "mlp."}.get(name, "")
                out[f"{prefix}{where}{sub.get(name, name)}.weight"] = w[layer, name]
    return out


def hugging_face(folder: Path, shape: ModelShape = TINY, w: Weights | None = None, *, form: str = "multiply",
                 old_names: bool = False, tied: bool = True, config: dict[str, Any] | None = None,
                 tensors: dict[str, NDArray[Any] | None] | None = None) -> Path:  # fmt: skip
    """A model folder; `config` and `tensors` change entries (None removes them)."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = hugging_face_tensors(shape, w or weights(shape), form=form, old_names=old_names, tied=tied)
    content = {k: v for k, v in (content | (tensors or {})).items() if v is not None}
    save_file({k: np.ascontiguousarray(v) for k, v in content.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config_json(shape, **({"tie_word_embeddings": tied} | (config or {})))))
    write_tokenizer(folder, shape.vocab)
    return folder


# Ternary by groups ---------------------------------------------------------------------------------

GROUPED = ModelShape(hidden=256, ffn=384, layers=2, heads=4, kv_heads=2, head_dim=64, vocab=70, context=64, activation="silu",
                     sub_norms=False, group_size=128, head_norms=True, ternary_head=True)  # fmt: skip


def grouped_weights(shape: ModelShape = GROUPED, seed: int = 0, spread: int = 0) -> Weights:
    """As `weights`, with `Grouped` matrices, and also embedding and head if they are ternary; some groups are zeros.

    Scales are values of float16 and bfloat16, from 1/64 to 1/16, or down to 2**-spread of that.
    """
    rng = np.random.default_rng(seed)

    def matrix(rows: int, inputs: int) -> Grouped:
        trits = rng.integers(-1, 2, (rows, inputs)).astype(np.int8)
        groups = trits.reshape(rows, -1, shape.group_size)
        groups[rng.random(groups.shape[:2]) < 0.02] = 0
        scales = rng.integers(0x3C80, 0x3D80, groups.shape[:2]).astype(np.uint32) << 16  # bfloat16, 1/64 to 1/16
        scales = scales.view(np.float32)
        if spread:
            scales = scales * np.float32(2.0) ** -rng.integers(0, spread + 1, scales.shape).astype(np.float32)
        scales = scales.astype(np.float16)
        return Grouped.of(trits, np.where(groups.any(-1), scales, np.float16(0)))

    def table() -> Any:
        size = shape.vocab, shape.hidden
        return matrix(*size) if shape.ternary_head else rng.normal(size=size).astype(np.float16).astype(np.float32)

    out: Weights = {"embedding": table(), "head": table()}
    out["norm"] = rng.uniform(0.5, 2, shape.hidden).astype(np.float32)
    for layer in range(shape.layers):
        out |= {(layer, name): matrix(*matrix_shape(shape, name)) for name in MATRICES}
        out |= {(layer, name): rng.uniform(0.5, 2, norm_length(shape, name)).astype(np.float32) for name in norms_of(shape)}
    return out


def bfloat16(values: NDArray[np.floating]) -> NDArray[np.uint16]:
    """The bits of values that bfloat16 holds."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    assert not (bits & 0xFFFF).any()
    return (bits >> 16).astype(np.uint16)


def qwen3_names(shape: ModelShape, w: Weights, *, tied: bool = True) -> dict[str, Any]:
    """Hugging Face's names: `Grouped` matrices, and tables if they are ternary; float32 norms, and tables."""
    out = {"model.embed_tokens.weight": w["embedding"], "model.norm.weight": w["norm"]} | ({} if tied else {"lm_head.weight": w["head"]})
    for layer in range(shape.layers):
        for name in (*MATRICES, *norms_of(shape)):
            place = "self_attn." if name[0] in "qkvo" else "mlp." if name in MATRICES else ""
            out[f"model.layers.{layer}.{place}{name}.weight"] = w[layer, name]
    return out


def qwen3_config(shape: ModelShape, tied: bool, **changes: Any) -> dict[str, Any]:
    """Without norms of heads, Llama's."""
    kind = "Qwen3ForCausalLM" if shape.head_norms else "LlamaForCausalLM"
    config = {"architectures": [kind], "model_type": kind.removesuffix("ForCausalLM").lower(), "quantization_config": None,
              "attention_bias": False, "tie_word_embeddings": tied, "rope_theta": 1e6, "rms_norm_eps": 1e-6}  # fmt: skip
    return config_json(shape, **(config | changes))


def save(folder: Path, tensors: dict[str, NDArray[Any]], config: dict[str, Any], shards: int = 1) -> Path:
    """A model folder; uint16 tensors are bfloat16 ones."""
    folder.mkdir(parents=True, exist_ok=True)
    kinds = {"uint16": "BF16", "float16": "F16", "float32": "F32", "uint32": "U32", "uint8": "U8", "int8": "I8"}
    index, names = {}, list(tensors)
    for number in range(shards):
        file = "model.safetensors" if shards == 1 else f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        header, data = {}, b""
        for name in names[number::shards]:
            content = np.ascontiguousarray(tensors[name]).tobytes()
            header[name] = {"dtype": kinds[str(tensors[name].dtype)], "shape": list(tensors[name].shape),
                            "data_offsets": [len(data), len(data) + len(content)]}  # fmt: skip
            data += content
            index[name] = file
        text = json.dumps(header).encode()
        (folder / file).write_bytes(struct.pack("<Q", len(text)) + text + data)
    if shards > 1:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder, config["vocab_size"])
    return folder


def unpacked(folder: Path, shape: ModelShape = GROUPED, w: Weights | None = None, *, tied: bool = True, dtype: str = "float16",
             config: dict[str, Any] | None = None, tensors: dict[str, NDArray[Any]] | None = None, shards: int = 1) -> Path:  # fmt: skip
    """An ordinary folder whose values are scale · trit; `config` and `tensors` change entries."""
    content: dict[str, Any] = {}
    for name, value in qwen3_names(shape, w or grouped_weights(shape), tied=tied).items():
        values = value.floats() if isinstance(value, Grouped) else value.astype(np.float16).astype(np.float32)
        if dtype == "bfloat16":
            content[name] = bfloat16(values) if isinstance(value, Grouped) else values
        else:
            content[name] = values.astype(dtype)
    return save(folder, content | (tensors or {}), qwen3_config(shape, tied, **(config or {})), shards)
