"""Tensor files, memory-mapped: safetensors (with shards) and GGUF.

Both readers take nothing for granted: every offset is checked against the file before it is used.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


class CheckpointError(Exception):
    """A checkpoint that cannot be used: `subject` (tensor, key or file), `cause`, and `fix`, in one line."""

    def __init__(self, subject: str, cause: str, fix: str) -> None:
        super().__init__(f"{subject}: {cause}; {fix}")
        self.subject, self.cause, self.fix = subject, cause, fix


AGAIN = "copy or download the file again"
HEADER_LIMIT = 100 << 20


@dataclass(frozen=True)
class Tensor:
    """One stored tensor: rows first; `dtype` as the container names it; `data` its raw bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: NDArray[np.uint8]

    def floats(self) -> NDArray[np.float32]:
        """float32 values of a BF16, F16, F32 or F64 tensor."""
        if self.dtype == "BF16":
            return (self.data.view("<u2").astype(np.uint32) << 16).view(np.float32).reshape(self.shape)
        dtype = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}.get(self.dtype)
        if dtype is None:
            raise CheckpointError(
                self.name, f"stored as {self.dtype}, where floating point is expected", "convert it to bfloat16 or float32"
            )
        return self.data.view(dtype).astype(np.float32).reshape(self.shape)

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows start..stop-1 alone (whole bytes a row)."""
        size = len(self.data) // self.shape[0]
        return Tensor(self.name, self.dtype, (stop - start, *self.shape[1:]), self.data[start * size : stop * size])

    @property
    def floating(self) -> bool:
        return self.dtype in ("BF16", "F16", "F32", "F64")


def map_file(path: Path) -> NDArray[np.uint8]:
    if not path.is_file():
        raise CheckpointError(str(path), "no such file", "check the path, or " + AGAIN)
    if path.stat().st_size == 0:
        raise CheckpointError(str(path), "the file is empty", AGAIN)
    return np.memmap(path, np.uint8, "r")


def read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(str(path), "no such file", "give the folder of a Hugging Face model, with all its files")
    try:
        data = json.loads(path.read_text("utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(str(path), f"not JSON ({error})", AGAIN) from None
    if not isinstance(data, dict):
        raise CheckpointError(str(path), "not a JSON object", AGAIN)
    return data


SAFETENSORS_BYTES = {
    "F64": 8,
    "I64": 8,
    "U64": 8,
    "F32": 4,
    "I32": 4,
    "U32": 4,
    "F16": 2,
    "BF16": 2,
    "I16": 2,
    "U16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Tensors of one file: u64 header length, JSON header, data."""
    file = map_file(path)
    length = int.from_bytes(file[:8].tobytes(), "little")
    if len(file) < 8 or not 2 <= length <= HEADER_LIMIT:
        raise CheckpointError(str(path), "not a safetensors file", "give a model.safetensors file")
    if 8 + length > len(file):
        raise CheckpointError(str(path), f"truncated: the header wants {8 + length} bytes, the file has {len(file)}", AGAIN)
    try:
        header = json.loads(file[8 : 8 + length].tobytes())
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise CheckpointError(str(path), "not a safetensors file (its header is not JSON)", "give a model.safetensors file") from None
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        try:
            dtype, shape, (start, stop) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        except (KeyError, TypeError, ValueError):
            raise CheckpointError(name, f"damaged entry in the header of {path.name}", AGAIN) from None
        if 8 + length + stop > len(file):
            raise CheckpointError(str(path), f"truncated: {name} ends at byte {8 + length + stop}, the file has {len(file)}", AGAIN)
        if not 0 <= start <= stop:
            raise CheckpointError(name, f"damaged entry in the header of {path.name}", AGAIN)
        if dtype in SAFETENSORS_BYTES and prod(shape) * SAFETENSORS_BYTES[dtype] != stop - start:
            raise CheckpointError(name, f"{stop - start} bytes do not hold {dtype} {list(shape)}", AGAIN)
        tensors[name] = Tensor(name, dtype, shape, file[8 + length + start : 8 + length + stop])
    return tensors


def read_safetensors_folder(folder: Path) -> dict[str, Tensor]:
    """Tensors of model.safetensors, or of every shard that model.safetensors.index.json names."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        path = folder / "model.safetensors"
        if not path.is_file():
            other = [p.name for p in sorted(folder.glob("*.bin")) + sorted(folder.glob("*.safetensors"))]
            found = f" (found {', '.join(other[:3])})" if other else ""
            raise CheckpointError(str(path), f"no such file{found}", "download the model in safetensors form")
        return read_safetensors(path)
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise CheckpointError(str(index), "has no weight_map", AGAIN)
    shards = {name: read_safetensors(folder / name) for name in sorted(set(weight_map.values()))}
    for tensor, shard in weight_map.items():
        if tensor not in shards[shard]:
            raise CheckpointError(tensor, f"the index places it in {shard}, which lacks it", AGAIN)
    return {tensor: shards[shard][tensor] for tensor, shard in weight_map.items()}


# GGUF --------------------------------------------------------------------------------------------

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
