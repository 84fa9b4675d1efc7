"""GGUF files: metadata, tensors and their block formats; every offset is checked against the file before it is used."""

from __future__ import annotations

import struct
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tritloom.gen.models.files import AGAIN, Tensor, map_file
from tritloom.gen.models.problems import CheckpointError

GGUF_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
GGUF_STRING, GGUF_ARRAY = 8, 9
I2_S = 36
"""bitnet.cpp's type number, unknown to the gguf package: 2-bit codes, then a 32-byte tail with the scale."""
I2_S_TAIL = 32


class _Cursor:
    """Sequential reads that end in a CheckpointError, never beyond the file."""

    def __init__(self, path: Path, file: NDArray[np.uint8]) -> None:
        self.path, self.file, self.at = path, file, 0

    def bytes(self, count: int) -> bytes:
        if self.at + count > len(self.file):
            raise CheckpointError(str(self.path), f"truncated: the header goes on after its {len(self.file)} bytes", AGAIN)
        self.at += count
        return self.file[self.at - count : self.at].tobytes()

    def scalar(self, code: str) -> Any:
        return struct.unpack("<" + code, self.bytes(struct.calcsize("<" + code)))[0]

    def string(self) -> str:
        return self.bytes(self.scalar("Q")).decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        if kind == GGUF_STRING:
            return self.string()
        if kind == GGUF_ARRAY:
            item, count = self.scalar("I"), self.scalar("Q")
            if item in GGUF_SCALARS:
                dtype = np.dtype("<" + GGUF_SCALARS[item])
                return np.frombuffer(self.bytes(count * dtype.itemsize), dtype).tolist()
            return [self.value(item) for _ in range(count)]
        if kind not in GGUF_SCALARS:
            raise CheckpointError(str(self.path), f"unknown metadata type {kind}", "re-create the file with current tools")
        return self.scalar(GGUF_SCALARS[kind])


def read_gguf(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Metadata and tensors of a GGUF file, version 2 or 3."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    file = map_file(path)
    cursor = _Cursor(path, file)
    if file[:4].tobytes() != b"GGUF":
        raise CheckpointError(str(path), "not a GGUF file", "give a .gguf file or the folder of a Hugging Face model")
    cursor.at = 4
    version = cursor.scalar("I")
    if version not in (2, 3):
        raise CheckpointError(str(path), f"GGUF version {version}", "convert it to version 3, little endian")
    tensor_count, value_count = cursor.scalar("Q"), cursor.scalar("Q")
    metadata: dict[str, Any] = {}
    for _ in range(value_count):
        key = cursor.string()
        metadata[key] = cursor.value(cursor.scalar("I"))
    entries = []
    for _ in range(tensor_count):
        name = cursor.string()
        dims = [cursor.scalar("Q") for _ in range(cursor.scalar("I"))]
        entries.append((name, tuple(reversed(dims)), cursor.scalar("I"), cursor.scalar("Q")))
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise CheckpointError("general.alignment", f"must be a positive integer, not {alignment!r}", AGAIN)
    base = -(-cursor.at // alignment) * alignment
    tensors = {}
    for name, shape, kind, offset in entries:
        if kind == I2_S:
            dtype, size = "I2_S", prod(shape) // 4 + I2_S_TAIL
        else:
            try:
                block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
            except (ValueError, KeyError):
                raise CheckpointError(name, f"tensor type number {kind} is unknown", "convert the model to TQ2_0") from None
            dtype, size = GGMLQuantizationType(kind).name, prod(shape) // block * block_bytes
            if shape and shape[-1] % block:
                raise CheckpointError(name, f"rows of {shape[-1]} are not whole {dtype} blocks of {block}", AGAIN)
        if base + offset + size > len(file):
            raise CheckpointError(str(path), f"truncated: {name} ends at byte {base + offset + size}, the file has {len(file)}", AGAIN)
        tensors[name] = Tensor(name, dtype, shape, file[base + offset : base + offset + size])
    return metadata, tensors


def gguf_floats(tensor: Tensor) -> NDArray[np.float32]:
    """float32 values of any GGUF tensor whose type the gguf package decodes."""
    if tensor.floating:
        return tensor.floats()
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    try:
        rows = tensor.data.reshape(*tensor.shape[:-1], -1)
        return dequantize(np.asarray(rows), GGMLQuantizationType[tensor.dtype]).astype(np.float32)
    except (KeyError, NotImplementedError):
        raise CheckpointError(tensor.name, f"values of type {tensor.dtype} cannot be read", "convert it to F16, Q8_0 or Q6_K") from None


def tq_trits(tensor: Tensor) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Trits [rows, inputs] and block scales of a TQ1_0 or TQ2_0 tensor. Code 3 of TQ2_0 comes out as 2."""
    blocks = tensor.data.reshape(-1, 54 if tensor.dtype == "TQ1_0" else 66)
    count = len(blocks)
    if tensor.dtype == "TQ2_0":
        fields = blocks[:, :64].reshape(count, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8).reshape(4, 1) & 3
        trits = fields.reshape(count, 256).astype(np.int8) - 1
    else:
        # A byte holds digits d0..d4 as ceil(256/243 * sum d_i 3**(4-i)): multiplying by 3**i (mod 256) puts d_i on top.
        powers = np.array([1, 3, 9, 27, 81], np.uint8)
        parts = []
        for start, width, digits in ((0, 32, 5), (32, 16, 5), (48, 4, 4)):
            shifted = blocks[:, None, start : start + width] * powers[:digits, None]
            parts.append((shifted.astype(np.uint16) * 3 >> 8).reshape(count, -1))
        trits = np.concatenate(parts, 1).astype(np.int8) - 1
    return trits.reshape(tensor.shape), blocks[:, -2:].copy().view("<f2").astype(np.float32).reshape(-1)


def i2s_trits(tensor: Tensor, block: int) -> tuple[NDArray[np.int8], float]:
    """Trits and scale of an I2_S tensor with interleaved blocks of `block` weights. Code 3 comes out as 2."""
    codes, scale = tensor.data[:-I2_S_TAIL], float(tensor.data[-I2_S_TAIL : -I2_S_TAIL + 4].copy().view("<f4")[0])
    if prod(tensor.shape) % block:
        raise CheckpointError(
            tensor.name, f"{prod(tensor.shape)} weights are not whole I2_S blocks of {block}", "choose the other I2_S layout"
        )
    fields = codes.reshape(-1, 1, block // 4) >> np.array([6, 4, 2, 0], np.uint8).reshape(4, 1) & 3
    return fields.reshape(tensor.shape).astype(np.int8) - 1, scale
