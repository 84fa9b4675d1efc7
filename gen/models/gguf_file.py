"""GGUF files, split ones too: metadata, tensors and their block formats. Every count and offset is checked before it is used."""

from __future__ import annotations

import re
import struct
from math import isfinite, prod
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from tritloom.gen.models.files import AGAIN, Tensor, map_file, other_file, there, truncated
from tritloom.gen.models.groups import BLOCKS, of_blocks
from tritloom.gen.models.problems import CheckpointError, Problems, shown
from tritloom.gen.models.records import Record, read_record

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
UINT32, STRING, ARRAY = 4, 8, 9
I2_S = 36
"""bitnet.cpp's type number, unknown to the gguf package: 2-bit codes, then a 32-byte tail with the scale."""
I2_S_TAIL = 32
GROUPS = {42: "Q2_0", 142: "PQ2_0", 143: "PTQ1_0"}
"""Type numbers of ternary weights with a scale a group (`groups.BLOCKS`), which the gguf package may not know."""
Q2_0 = 42
OTHERS_AS_Q2_0 = (
    (128, 34, "weights in groups of 128, as old files have them under type 42, where Q2_0 has groups of 64",
     "take the model's PQ2_0 file (type 142), or its Q2_0 file of today"),
    (256, 42, "STQ1_0 weights under type 42, which is Q2_0's", "take the model's TQ2_0 file"),
)  # fmt: skip
"""What some files have under Q2_0's number: weights and bytes of a block, what it is, and what to do."""
ENTRIES = 1 << 14
"""Most tensors, and most metadata values, of a file."""
ITEMS = 1 << 22
"""Most items of all lists, of which a text counts as four: the largest vocabularies in use, with their merges, have two thirds."""
NAME_BYTES = 1 << 10
DIMENSIONS = 4
SPLIT_NAME = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")

Metadata = dict[str, Any]
_LENGTH = struct.Struct("<Q").unpack_from


class _Cursor:
    """Sequential reads that end in a CheckpointError, never beyond the file."""

    def __init__(self, path: Path, file: NDArray[np.uint8]) -> None:
        self.path, self.file, self.at, self.left = path, file, 0, ITEMS

    def bytes(self, count: int) -> bytes:
        if self.at + count > len(self.file):
            raise truncated(self.path, f"the header goes on after its {len(self.file)} bytes")
        self.at += count
        return self.file[self.at - count : self.at].tobytes()

    def scalar(self, code: str) -> Any:
        return struct.unpack("<" + code, self.bytes(struct.calcsize("<" + code)))[0]

    def count(self, most: int, what: str) -> int:
        value = self.scalar("Q")
        if value > most:
            raise CheckpointError(str(self.path), f"damaged: {value} {what}", AGAIN)
        return value

    def name(self) -> str:
        """Name of a value or a tensor: UTF-8."""
        data = self.bytes(self.count(NAME_BYTES, "bytes in a name"))
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            raise CheckpointError(str(self.path), f"damaged: the name {shown(data)} is not UTF-8", AGAIN) from None

    def string(self) -> str:
        """A text; bytes that are not UTF-8 are kept as lone surrogates."""
        return self.bytes(self.scalar("Q")).decode("utf-8", "surrogateescape")

    def strings(self, count: int) -> list[str]:
        """So many texts; their number may be in the hundreds of thousands."""
        buffer, size, at, found = memoryview(self.file.data), len(self.file), self.at, []
        for _ in range(count):
            length = _LENGTH(buffer, at)[0] if at + 8 <= size else size
            start, at = at + 8, at + 8 + length
            if at > size:
                raise truncated(self.path, f"the header goes on after its {size} bytes")
            found.append(str(buffer[start:at], "utf-8", "surrogateescape"))
        self.at = at
        return found

    def number(self, kind: int, key: str) -> Any:
        if kind not in SCALARS:
            raise CheckpointError(key, f"stored as metadata type {kind}, which is unknown", "convert the model again with current tools")
        value = self.scalar(SCALARS[kind])
        if isinstance(value, float) and not isfinite(value):
            raise CheckpointError(key, f"{value} is not a number", AGAIN)
        return value

    def value(self, kind: int, key: str) -> Any:
        if kind == STRING:
            return self.string()
        if kind != ARRAY:
            return self.number(kind, key)
        item = self.scalar("I")
        weight = 4 if item == STRING else 1
        count = self.count(self.left // weight, f"items in {key}")
        self.left -= weight * count
        if item == STRING:
            return self.strings(count)
        if item == ARRAY:
            raise CheckpointError(key, "a list of lists, which no model needs", "convert the model again with current tools")
        if item not in SCALARS:
            raise CheckpointError(key, f"a list of metadata type {item}, which is unknown", "convert the model again with current tools")
        dtype = np.dtype("<" + SCALARS[item])
        values = np.frombuffer(self.bytes(count * dtype.itemsize), dtype)
        if dtype.kind == "f" and not np.isfinite(values).all():
            raise CheckpointError(key, "holds values that are not numbers", AGAIN)
        return values.tolist()


def _size(name: str, kind: int, shape: tuple[int, ...]) -> tuple[str, int]:
    """(type's name, bytes) of a tensor."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    if kind == I2_S:
        if prod(shape) % 4:
            raise CheckpointError(name, f"{prod(shape)} weights are not whole bytes of I2_S", AGAIN)
        return "I2_S", prod(shape) // 4 + I2_S_TAIL
    try:
        dtype = GROUPS[kind] if kind in GROUPS else GGMLQuantizationType(kind).name
        block, block_bytes = BLOCKS[dtype] if kind in GROUPS else GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    except (ValueError, KeyError):
        raise CheckpointError(name, f"tensor type number {kind} is unknown", "convert the model to TQ2_0") from None
    if shape[-1] % block:
        raise CheckpointError(name, f"rows of {shape[-1]} are not whole {dtype} blocks of {block}", AGAIN)
    return dtype, prod(shape) // block * block_bytes


def _other_q2_0(entries: list[tuple[int, int, str, str, tuple[int, ...]]], end: int, alignment: int) -> None:
    """Raise CheckpointError for a Q2_0 tensor that has room for another format's blocks alone. `entries`: offset, bytes, name, type and
    shape of each tensor; `end`: bytes of the data."""
    entries = sorted(entries)
    for index, (offset, size, name, dtype, shape) in enumerate(entries):
        room = (entries[index + 1][0] if index + 1 < len(entries) else end) - offset
        if dtype != "Q2_0" or room >= size:
            continue
        for block, block_bytes, what, fix in OTHERS_AS_Q2_0:
            other = prod(shape) // block * block_bytes
            if shape[-1] % block == 0 and other <= room < other + alignment:
                raise CheckpointError(name, f"{room} bytes for {prod(shape)} weights: {what}", fix)


def _read_part(path: Path) -> tuple[Metadata, dict[str, Tensor]]:
    """Metadata and tensors of one file, version 2 or 3."""
    file = map_file(path)
    cursor = _Cursor(path, file)
    if file[:4].tobytes() != b"GGUF":
        raise other_file(path, file, "not a GGUF file", "give a .gguf file or the folder of a Hugging Face model")
    cursor.at = 4
    version = cursor.scalar("I")
    if version in (2 << 24, 3 << 24):
        raise CheckpointError(str(path), "a big-endian GGUF file", "convert the model again, little endian")
    if version not in (2, 3):
        raise CheckpointError(str(path), f"GGUF version {version}", "convert it to version 3, little endian")
    tensor_count, value_count = cursor.count(ENTRIES, "tensors"), cursor.count(ENTRIES, "metadata values")
    metadata: Metadata = {}
    for _ in range(value_count):
        key = cursor.name()
        if key in metadata:
            raise CheckpointError(key, f"twice in the metadata of {path.name}", AGAIN)
        kind = cursor.scalar("I")
        if key == "general.alignment" and kind != UINT32:
            raise CheckpointError(key, f"must be of metadata type {UINT32}, not {kind}", AGAIN)
        metadata[key] = cursor.value(kind, key)
    entries = []
    for _ in range(tensor_count):
        name, dimensions = cursor.name(), cursor.scalar("I")
        if not 1 <= dimensions <= DIMENSIONS:
            raise CheckpointError(name, f"has {dimensions} dimensions", AGAIN)
        shape = tuple(reversed([cursor.scalar("Q") for _ in range(dimensions)]))
        if not all(shape):
            raise CheckpointError(name, f"has shape {list(shape)}", AGAIN)
        dtype, size = _size(name, cursor.scalar("I"), shape)
        entries.append((cursor.scalar("Q"), size, name, dtype, shape))
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 20 or alignment & alignment - 1:
        raise CheckpointError("general.alignment", f"must be a power of two, not {shown(alignment)}", AGAIN)
    base, end = -(-cursor.at // alignment) * alignment, 0
    _other_q2_0(entries, len(file) - base, alignment)
    tensors: dict[str, Tensor] = {}
    for offset, size, name, dtype, shape in sorted(entries):
        if name in tensors:
            raise CheckpointError(name, f"twice in {path.name}", AGAIN)
        if offset % alignment:
            raise CheckpointError(name, f"begins at byte {offset} of the data, which is no multiple of {alignment}", AGAIN)
        if offset < end:
            raise CheckpointError(name, f"overlaps another tensor in {path.name}", AGAIN)
        if base + offset + size > len(file):
            raise truncated(path, f"{name} ends at byte {base + offset + size}, the file has {len(file)}")
        if offset > -(-end // alignment) * alignment:
            raise CheckpointError(name, f"begins at byte {offset} of the data; the tensors before it end at {end}", AGAIN)
        end = offset + size
        tensors[name] = Tensor(name, dtype, shape, file[base + offset : base + end])
    return metadata, {name: tensors[name] for _, _, name, _, _ in entries}


class Split(Record):
    """How a file is split: its number from 0, the number of files, and of tensors in all of them."""

    number: Annotated[int, Field(ge=0, alias="split.no")] = 0
    count: Annotated[int, Field(ge=1, le=99999, alias="split.count")] = 1
    tensors: Annotated[int | None, Field(ge=0, alias="split.tensors.count")] = None


def _split(path: Path, metadata: Metadata) -> Split:
    problems = Problems()
    split = read_record(Split, metadata, problems, path.name)
    problems.raise_first()
    assert split is not None
    return split


def read_gguf(path: Path) -> tuple[Metadata, dict[str, Tensor]]:
    """Metadata and tensors of a GGUF file, or of all the files that it is split into: `path` is then the first."""
    metadata, tensors = _read_part(path)
    split = _split(path, metadata)
    if split.count == 1:
        return metadata, tensors
    name = SPLIT_NAME.fullmatch(path.name)
    if name is None or int(name["count"]) != split.count or int(name["number"]) != split.number + 1:
        raise CheckpointError(
            str(path),
            f"file {split.number + 1} of a model in {split.count} files, under another name",
            f"name them NAME-00001-of-{split.count:05d}.gguf and so on, and give the first",
        )
    parts = [path.with_name(f"{name['stem']}-{number:05d}-of-{split.count:05d}.gguf") for number in range(1, split.count + 1)]
    if split.number:
        raise CheckpointError(str(path), f"file {split.number + 1} of a model in {split.count} files", f"give the first, {parts[0]}")
    for number, part in enumerate(parts[1:], 1):
        if not there(part):
            raise CheckpointError(str(part), f"no such file: the model is in {split.count} files", "download all of them")
        more, others = _read_part(part)
        found = _split(part, more)
        if (found.number, found.count) != (number, split.count):
            raise CheckpointError(str(part), f"says that it is file {found.number + 1} of {found.count}", AGAIN)
        if twice := next((tensor for tensor in others if tensor in tensors), None):
            raise CheckpointError(twice, f"is in {part.name} and in an earlier file", AGAIN)
        tensors |= others
    if split.tensors not in (None, len(tensors)):
        raise CheckpointError(str(path), f"{split.count} files hold {len(tensors)} tensors, not {split.tensors}", AGAIN)
    return metadata, tensors


def gguf_floats(tensor: Tensor) -> NDArray[np.float32]:
    """float32 values of any GGUF tensor whose type the gguf package decodes."""
    if tensor.floating:
        return tensor.floats()
    if tensor.dtype in BLOCKS:
        rows = Tensor(tensor.name, tensor.dtype, (prod(tensor.shape[:-1]), tensor.shape[-1]), tensor.data)
        return of_blocks(rows).floats().reshape(tensor.shape)
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    try:
        rows = tensor.data.reshape(*tensor.shape[:-1], -1)
        with np.errstate(all="ignore"):  # what is not finite is found by whoever asked
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
