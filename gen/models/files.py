"""Files of a checkpoint: memory-mapped bytes, JSON records, and the tensors that containers hold."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tritloom.gen.models.problems import CheckpointError

AGAIN = "copy or download the file again"


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
