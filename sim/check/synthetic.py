"""Random ternary checkpoints in Hugging Face's form, of any shape."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tritloom.firmware.config import ModelShape
from tritloom.gen.models.checkpoint import MATRICES, NORMS, SUB_NORMS, matrix_shape, norm_length

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
