"""Small checkpoints with random ternary weights, in every form that tritloom reads."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tritloom.firmware.config import ModelShape
from tritloom.gen.models.checkpoint import MATRICES, NORMS, SUB_NORMS
from tritloom.sim.check.synthetic import (  # noqa: F401  what tests take from here
    TINY,
    Weights,
    config_json,
    hugging_face,
    hugging_face_tensors,
    packed_rows,
    weights,
    write_tokenizer,
)

LLAMA = ModelShape(
    hidden=256, ffn=512, layers=1, heads=4, kv_heads=2, head_dim=64, vocab=40, context=64, activation="silu", sub_norms=False
)

# GGUF --------------------------------------------------------------------------------------------

GGUF_NAMES = {
    "q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output", "gate_proj": "ffn_gate", "up_proj": "ffn_up",
    "down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "attn_sub_norm": "attn_sub_norm", "ffn_sub_norm": "ffn_sub_norm",
}  # fmt: skip


def interleaved(rows: NDArray[Any], heads: int) -> NDArray[Any]:
    """llama.cpp's order of q and k rows."""
    return rows.reshape(heads, 2, -1, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


def gguf_matrix(shape: ModelShape, w: Weights, layer: int, name: str, architecture: str) -> tuple[NDArray[np.int8], float]:
    trits, scale = w[layer, name]
    heads = {"q_proj": shape.heads, "k_proj": shape.kv_heads}.get(name)
    return (interleaved(trits, heads) if heads and architecture == "llama" else trits), scale


def gguf(path: Path, shape: ModelShape = LLAMA, w: Weights | None = None, *, kind: str = "TQ2_0", architecture: str = "llama",
         fields: dict[str, str] | None = None) -> Path:  # fmt: skip
    """A GGUF file of the gguf package's writer; `fields` are more metadata."""
    pytest.importorskip("gguf")  # the plain package has none
    from gguf import GGMLQuantizationType, GGUFWriter
    from gguf.quants import quantize

    w = w or weights(shape)
    writer = GGUFWriter(path, architecture)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for name, value in (fields or {}).items():
        writer.add_string(name, value)
    writer.add_token_list([f"w{i}" for i in range(shape.vocab)])
    writer.add_tensor("token_embd.weight", w["embedding"].astype(np.float16))
    writer.add_tensor("output.weight", quantize(w["head"], GGMLQuantizationType.Q8_0), raw_dtype=GGMLQuantizationType.Q8_0)
    writer.add_tensor("output_norm.weight", w["norm"])
    for layer in range(shape.layers):
        for name in MATRICES:
            trits, scale = gguf_matrix(shape, w, layer, name, architecture)
            dtype = GGMLQuantizationType[kind]
            writer.add_tensor(
                f"blk.{layer}.{GGUF_NAMES[name]}.weight", quantize(trits.astype(np.float32) * np.float32(scale), dtype), raw_dtype=dtype
            )
        for name in NORMS:
            if shape.sub_norms or name not in SUB_NORMS:
                writer.add_tensor(f"blk.{layer}.{GGUF_NAMES[name]}.weight", w[layer, name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    write_tokenizer(path.parent, shape.vocab)
    return path


def i2s_bytes(trits: NDArray[np.int8], scale: float, block: int) -> bytes:
    """Codes of each block interleaved four to a byte, first quarter in the top bits; then the scale's tail."""
    codes = (trits + 1).astype(np.uint8).reshape(-1, 4, block // 4)
    data = codes[:, 0] << 6 | codes[:, 1] << 4 | codes[:, 2] << 2 | codes[:, 3]
    return data.tobytes() + struct.pack("<f", scale) + bytes(28)


def gguf_i2s(path: Path, shape: ModelShape, w: Weights, *, block: int, architecture: str = "bitnet-b1.58") -> Path:
    """A GGUF file with I2_S matrices, written by hand: the gguf package does not know the type."""

    def text(s: str) -> bytes:
        return struct.pack("<Q", len(s)) + s.encode()

    numbers = {
        "context_length": shape.context, "embedding_length": shape.hidden, "block_count": shape.layers, "feed_forward_length": shape.ffn,
        "attention.head_count": shape.heads, "attention.head_count_kv": shape.kv_heads,
    }  # fmt: skip
    values = [text("general.architecture") + struct.pack("<I", 8) + text(architecture)]
    values += [text(f"{architecture}.{k}") + struct.pack("<II", 4, v) for k, v in numbers.items()]
    values += [text(f"{architecture}.attention.layer_norm_rms_epsilon") + struct.pack("<If", 6, 1e-5)]
    tensors = [
        ("token_embd.weight", w["embedding"].shape, 0, w["embedding"].tobytes()),
        ("output_norm.weight", w["norm"].shape, 0, w["norm"].tobytes()),
    ]
    for layer in range(shape.layers):
        for name in MATRICES:
            trits, scale = gguf_matrix(shape, w, layer, name, architecture)
            tensors.append((f"blk.{layer}.{GGUF_NAMES[name]}.weight", trits.shape, 36, i2s_bytes(trits, scale, block)))
        for name in NORMS:
            tensors.append((f"blk.{layer}.{GGUF_NAMES[name]}.weight", w[layer, name].shape, 0, w[layer, name].tobytes()))
    infos, data = b"", b""
    for name, dims, kind, content in tensors:
        infos += text(name) + struct.pack("<I", len(dims)) + b"".join(struct.pack("<Q", d) for d in reversed(dims))
        infos += struct.pack("<IQ", kind, len(data))
        data += content + bytes(-len(content) % 32)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(values)) + b"".join(values) + infos
    path.write_bytes(head + bytes(-len(head) % 32) + data)
    write_tokenizer(path.parent, shape.vocab)
    return path
