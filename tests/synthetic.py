"""Small checkpoints with random ternary weights, in every form that tritloom reads."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tritloom.firmware.config import ModelShape
from tritloom.gen.models import Problem, check
from tritloom.gen.models.checkpoint import MATRICES, NORMS, SUB_NORMS, norms_of
from tritloom.gen.models.groups import Grouped
from tritloom.sim.check.synthetic import (  # noqa: F401  what tests take from here
    GROUPED,
    TINY,
    Weights,
    bfloat16,
    biases,
    config_json,
    grouped_weights,
    hugging_face,
    hugging_face_tensors,
    packed_rows,
    qwen3_config,
    qwen3_names,
    save,
    unpacked,
    weights,
    write_tokenizer,
)

LLAMA = ModelShape(
    hidden=256, ffn=512, layers=1, heads=4, kv_heads=2, head_dim=64, vocab=40, context=64, activation="silu", sub_norms=False
)

def assert_problem(path: Path, subject: str, cause: str, **options: Any) -> Problem:
    """`check` reports it in one line, and `open_checkpoint` or reading raises the like."""
    report = check(path, **options)
    assert not report.ok
    found = [p for p in report.problems if subject in p.subject and cause in p.cause]
    assert found, report.problems
    assert found[0].fix and "\n" not in str(found[0])
    return found[0]


# GGUF --------------------------------------------------------------------------------------------

GGUF_NAMES = {
    "q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output", "gate_proj": "ffn_gate", "up_proj": "ffn_up",
    "down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "attn_sub_norm": "attn_sub_norm", "ffn_sub_norm": "ffn_sub_norm", "q_norm": "attn_q_norm", "k_norm": "attn_k_norm",
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
    write_gguf(path, gguf_values(shape, architecture), tensors)
    write_tokenizer(path.parent, shape.vocab)
    return path


def gguf_values(shape: ModelShape, architecture: str, eps: float = 1e-5) -> dict[str, Any]:
    """Metadata that every file has."""
    numbers = {
        "context_length": shape.context, "embedding_length": shape.hidden, "block_count": shape.layers, "feed_forward_length": shape.ffn,
        "attention.head_count": shape.heads, "attention.head_count_kv": shape.kv_heads, "attention.layer_norm_rms_epsilon": eps,
    }  # fmt: skip
    return {"general.architecture": architecture} | {f"{architecture}.{name}": value for name, value in numbers.items()}


GgufTensor = tuple[str, tuple[int, ...], int, bytes]
"""Name, shape with rows first, type number, bytes."""


def write_gguf(path: Path, values: dict[str, Any], tensors: list[GgufTensor]) -> Path:
    """A GGUF file of any types: integers are uint32, floats float32."""

    def text(s: str) -> bytes:
        return struct.pack("<Q", len(s.encode())) + s.encode()

    def value(v: Any) -> bytes:
        if isinstance(v, list):
            kind = struct.unpack("<I", value(v[0])[:4])[0]
            return struct.pack("<IIQ", 9, kind, len(v)) + b"".join(value(item)[4:] for item in v)
        if isinstance(v, str):
            return struct.pack("<I", 8) + text(v)
        if isinstance(v, bool):
            return struct.pack("<I?", 7, v)
        return struct.pack("<If", 6, v) if isinstance(v, float) else struct.pack("<II", 4, v)

    infos, data = b"", []
    at = 0
    for name, dims, kind, content in tensors:
        infos += text(name) + struct.pack("<I", len(dims)) + b"".join(struct.pack("<Q", d) for d in reversed(dims))
        infos += struct.pack("<IQ", kind, at)
        data.append(content + bytes(-len(content) % 32))
        at += len(data[-1])
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(values)) + b"".join(text(k) + value(v) for k, v in values.items()) + infos
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(head + bytes(-len(head) % 32) + b"".join(data))
    return path


# Ternary by groups ---------------------------------------------------------------------------------

def mlx(folder: Path, shape: ModelShape = GROUPED, w: Weights | None = None, *, tied: bool = True, flipped: bool = False,
        tensors: dict[str, NDArray[Any]] | None = None, config: dict[str, Any] | None = None) -> Path:  # fmt: skip
    """A folder as MLX writes it: scale · code + bias. `flipped`: codes count down, with scales below 0."""
    content: dict[str, Any] = {}
    for name, value in qwen3_names(shape, w or grouped_weights(shape), tied=tied).items():
        if not isinstance(value, Grouped):
            content[name] = value.astype(np.float16)
            continue
        codes = ((-value.trits if flipped else value.trits) + 1).astype(np.uint32).reshape(len(value.trits), -1, 16)
        content[name] = (codes << np.arange(0, 32, 2, dtype=np.uint32)).sum(-1, dtype=np.uint32)
        scales = -value.scales if flipped else value.scales
        content[name.replace(".weight", ".scales")], content[name.replace(".weight", ".biases")] = scales, -scales
    record = {"group_size": shape.group_size, "bits": 2}
    changes = {"quantization": record, "quantization_config": record} | (config or {})
    return save(folder, content | (tensors or {}), qwen3_config(shape, tied, **changes))


def two_bits(matrix: Grouped, size: int) -> bytes:
    """Blocks of `size`: the scale, then four codes a byte, the first in the low bits."""
    groups = matrix.in_groups("", size)
    codes = (groups.trits + 1).astype(np.uint8).reshape(-1, size // 4, 4)
    packed = codes[..., 0] | codes[..., 1] << 2 | codes[..., 2] << 4 | codes[..., 3] << 6
    return np.concatenate([groups.scales.reshape(-1, 1).view(np.uint8), packed], 1).tobytes()


def base_3(matrix: Grouped) -> bytes:
    """PTQ1_0's blocks, element by element as the format says."""
    digits = (matrix.in_groups("", 128).trits + 1).astype(np.int64).reshape(-1, 128)
    numbers = np.zeros((len(digits), 26), np.int64)
    for e in range(128):
        first, start, width = next(part for part in ((120, 24, 2), (80, 16, 8), (0, 0, 16)) if e >= part[0])
        byte, digit = start + (e - first) % width, (e - first) // width
        numbers[:, byte] += digits[:, e] * 3 ** (4 - digit)
    stored = -(-numbers * 256 // 243)
    return np.concatenate([stored.astype(np.uint8), matrix.in_groups("", 128).scales.reshape(-1, 1).view(np.uint8)], 1).tobytes()


def _as_float(number: int, dtype: Any) -> tuple[int, Any]:
    return number, lambda matrix: (bfloat16(matrix.floats()) if dtype is None else matrix.floats().astype(dtype)).tobytes()


GGUF_FORMS: dict[str, tuple[int, Any]] = {
    "Q2_0": (42, lambda matrix: two_bits(matrix, 64)), "PQ2_0": (142, lambda matrix: two_bits(matrix, 128)), "PTQ1_0": (143, base_3),
    "F32": _as_float(0, np.float32), "F16": _as_float(1, np.float16), "BF16": _as_float(30, None),
    "old Q2_0": (42, lambda matrix: two_bits(matrix, 128)),
}  # fmt: skip
"""Type number, and what makes bytes of a `Grouped`."""


def grouped_gguf(path: Path, shape: ModelShape = GROUPED, w: Weights | None = None, *, form: str = "PQ2_0", tied: bool = True,
                 forms: dict[str, str] | None = None, values: dict[str, Any] | None = None, architecture: str = "qwen3",
                 tensors: dict[str, GgufTensor | None] | None = None, vocabulary: bool = False) -> Path:  # fmt: skip
    """A GGUF file of `form`; `forms` are other ones of single tensors, `values` more metadata, `tensors` change entries (None removes)."""
    w = w or grouped_weights(shape)
    names = {"token_embd": w["embedding"], "output_norm": w["norm"]} | ({} if tied else {"output": w["head"]})
    heads = {"q_proj": shape.heads, "k_proj": shape.kv_heads}
    for layer in range(shape.layers):
        for name in (*MATRICES, *norms_of(shape)):
            value = w[layer, name]
            if architecture == "llama" and name in heads:
                value = Grouped(interleaved(value.codes, heads[name]), interleaved(value.scales, heads[name]))
            names[f"blk.{layer}.{GGUF_NAMES[name]}"] = value
    entries: dict[str, GgufTensor | None] = {}
    for name, value in names.items():
        if isinstance(value, Grouped):
            number, encode = GGUF_FORMS[(forms or {}).get(name, form)]
            entries[name] = (f"{name}.weight", value.trits.shape, number, encode(value))
        else:
            entries[name] = (f"{name}.weight", value.shape, 0, np.asarray(value, np.float32).tobytes())
    metadata = gguf_values(shape, architecture, 1e-6) | {f"{architecture}.rope.freq_base": 1e6}
    metadata |= {f"{architecture}.attention.{kind}_length": shape.head_dim for kind in ("key", "value")}
    if not vocabulary:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tokenizer(path.parent, shape.vocab)
    found = [entry for entry in (entries | (tensors or {})).values() if entry is not None]
    return write_gguf(path, metadata | {"tokenizer.ggml.eos_token_id": 2} | (values or {}), found)
