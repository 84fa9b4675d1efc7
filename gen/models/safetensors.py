"""safetensors files and folders of shards.

The rules are those of the format's own library: tensors fill the file without holes or overlaps, in the sizes that their types give.
"""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Annotated

from pydantic import Field

from tritloom.gen.models.files import AGAIN, Tensor, map_file, other_file, parse_json, read_json, there, truncated
from tritloom.gen.models.problems import CheckpointError, Problems, shown
from tritloom.gen.models.records import Record, read_record

HEADER_LIMIT = 8 << 20
ENTRIES = 1 << 14
"""Most tensors of a file, twenty times those of the largest model that is read; an entry of the header takes about 120 bytes."""
SHARDS = 4096
INDEX = "model.safetensors.index.json"
NOT_SAFETENSORS = "give a model.safetensors file"

BITS = {
    "F64": 64, "I64": 64, "U64": 64, "C64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16, "U16": 16,
    "I8": 8, "U8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip
"""Bits of a value, by the format's name of its type."""

Offset = Annotated[int, Field(ge=0, lt=1 << 62)]


class Entry(Record):
    """A tensor in the header: type, shape, and first and last byte (exclusive) after the header."""

    dtype: str
    shape: Annotated[list[Offset], Field(max_length=8)]
    data_offsets: Annotated[list[Offset], Field(min_length=2, max_length=2)]


class Notes(Record):
    notes: dict[str, str] = Field(alias="__metadata__")


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Tensors of one file: u64 header length, JSON header, data."""
    file = map_file(path)
    length = int.from_bytes(file[:8].tobytes(), "little")
    if len(file) < 9 or not 2 <= length <= HEADER_LIMIT or (8 + length <= len(file) and file[8] != ord("{")):
        raise other_file(path, file, "not a safetensors file", NOT_SAFETENSORS)
    base = 8 + length
    if base > len(file):
        raise truncated(path, f"the header wants {base} bytes, the file has {len(file)}")
    header = parse_json(file[8:base].tobytes(), f"header of {path}")
    if len(header) > ENTRIES:
        raise CheckpointError(str(path), f"damaged: {len(header)} tensors", AGAIN)
    problems = Problems()
    read_record(Notes, {"__metadata__": header.pop("__metadata__", {})}, problems, f"the header of {path.name}")
    entries = {name: read_record(Entry, entry, problems, f"the header of {path.name}", f"{name}.") for name, entry in header.items()}
    problems.raise_first()
    at, tensors = 0, {}
    for name, entry in sorted(entries.items(), key=lambda item: item[1].data_offsets if item[1] else []):
        assert entry is not None
        (start, stop), count = entry.data_offsets, prod(entry.shape)
        if entry.dtype not in BITS:
            raise CheckpointError(name, f"stored as {shown(entry.dtype)}, a type that safetensors does not have", AGAIN)
        if 8 * (stop - start) != count * BITS[entry.dtype]:
            raise CheckpointError(name, f"{stop - start} bytes do not hold {entry.dtype} {shown(entry.shape)}", AGAIN)
        if start != at:
            what = "overlaps another tensor" if start < at else f"leaves {start - at} bytes unused before it"
            raise CheckpointError(name, f"{what} in {path.name}", AGAIN)
        if base + stop > len(file):
            raise truncated(path, f"{name} ends at byte {base + stop}, the file has {len(file)}")
        tensors[name] = Tensor(name, entry.dtype, tuple(entry.shape), file[base + start : base + stop])
        at = stop
    if base + at != len(file):
        raise CheckpointError(str(path), f"{len(file) - base - at} bytes follow the last tensor", AGAIN)
    return {name: tensors[name] for name in header}


class Index(Record):
    weight_map: dict[str, str]


def without_weights(folder: Path) -> bool:
    """Whether a folder holds no weights at all, in whatever form or state."""
    return not any(folder.glob("*.safetensors*")) and not any(folder.glob("*.bin*")) and not there(folder / "model.safetensors")


def _shards(index: Path) -> dict[str, str]:
    """The index's file of each tensor, which lies in the index's folder."""
    problems = Problems()
    record = read_record(Index, read_json(index), problems, str(index))
    problems.raise_first()
    assert record is not None
    names = set(record.weight_map.values())
    if not 0 < len(names) <= SHARDS:
        raise CheckpointError(str(index), f"names {len(names)} files", AGAIN)
    for name in names:
        if name in (".", "..", "") or not name.isprintable() or "/" in name or "\\" in name:
            raise CheckpointError(str(index), f"names {shown(name)}, which is not a file of this folder", AGAIN)
    return record.weight_map


def read_safetensors_folder(folder: Path) -> dict[str, Tensor]:
    """Tensors of model.safetensors, or of every shard that model.safetensors.index.json names."""
    path, index = folder / "model.safetensors", folder / INDEX
    places = _shards(index) if there(index) else {}
    if places and set(places.values()) != {path.name} and there(path):
        raise CheckpointError(str(index), f"names other files than {path.name}, which is there too", "remove what is not this model's")
    if not places:
        if not there(path):
            other = [p.name for p in sorted(folder.glob("*.bin")) + sorted(folder.glob("*.safetensors"))]
            found = f" (found {', '.join(other[:3])})" if other else ""
            raise CheckpointError(str(path), f"no such file{found}", "download the model in safetensors form")
        return read_safetensors(path)
    shards, tensors = {name: read_safetensors(folder / name) for name in sorted(set(places.values()))}, dict[str, Tensor]()
    for name, shard in shards.items():
        for tensor in shard.values():
            if places.get(tensor.name) != name:
                raise CheckpointError(tensor.name, f"is in {name}, where the index does not place it", AGAIN)
            tensors[tensor.name] = tensor
    for tensor, name in places.items():
        if tensor not in tensors:
            raise CheckpointError(tensor, f"the index places it in {name}, which lacks it", AGAIN)
    return {tensor: tensors[tensor] for tensor in places}
