"""safetensors files and folders of shards: every offset is checked against the file before it is used."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path

from tritloom.gen.models.files import AGAIN, Tensor, map_file, read_json
from tritloom.gen.models.problems import CheckpointError

HEADER_LIMIT = 100 << 20

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


def without_weights(folder: Path) -> bool:
    """Whether a folder holds no weights at all, in whatever form."""
    return not any(folder.glob("*.safetensors*")) and not any(folder.glob("*.bin"))


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
