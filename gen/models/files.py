"""Files of a checkpoint: memory-mapped bytes, JSON, and the tensors that containers hold.

Every byte that a reader takes comes through here, and a file that is not what its name says is named for what it is.
"""

from __future__ import annotations

import codecs
import json
import mmap
import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tritloom.gen.models.problems import CheckpointError, shown

AGAIN = "copy or download the file again"
JSON_BYTES = 64 << 20
"""Most bytes of a JSON file: the largest tokenizers in use take about half."""
JSON_ITEMS = 2 << 20
"""Most values in one, which bounds the time and the memory that reading takes: the largest tokenizers have half."""
JSON_DEPTH = 64
PARTS = (".incomplete", ".part", ".partial", ".crdownload", ".aria2", ".download", ".tmp")
"""What download tools append to the name of a file that is not whole yet."""
HEAD = 512
"""Bytes at a file's beginning that tell what it is."""

FOREIGN: tuple[tuple[bytes, str, str], ...] = (
    (rb"version https://git-lfs", "a Git LFS pointer, not the file it stands for", "fetch the file with `git lfs pull`, or download it"),
    (rb"\s*<(?i:!doctype|html|head|body)", "a web page saved under this name", "download the file itself; some models need a login first"),
    (rb"\s*<\?xml|\s*<Error>", "an XML answer saved under this name", "download the file again: its address may have run out"),
    (
        rb"\s*\{\s*\"(error|message|detail)\"|(Entry|Repository|Revision|File) [Nn]ot [Ff]ound|Not Found|Forbidden|Unauthorized"
        rb"|Invalid (username|credentials)|Access (to|denied)|Internal Server Error|Too Many Requests",
        "a server's refusal saved under this name",
        "check the model's name and your access, and download the file again",
    ),
    (rb"PK\x03\x04", "a zip archive or PyTorch checkpoint", "unpack it, or take the model in safetensors or GGUF form"),
    (rb"\x1f\x8b|\xfd7zXZ|BZh[1-9]|\x28\xb5\x2f\xfd", "a compressed file", "decompress it first"),
    (rb"\x80[\x02-\x05]", "a Python pickle", "take the model in safetensors or GGUF form"),
    (rb"lmgg|fmgg|tjgg|algg|ggml|ggjt|ggla", "an old GGML file", "convert the model to GGUF with current tools"),
)
"""Beginnings of what stands where a model's file should, what that is, and what to do."""


@dataclass(frozen=True)
class Tensor:
    """One stored tensor: rows first; `dtype` as the container names it; `data` its raw bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: NDArray[np.uint8]

    def floats(self) -> NDArray[np.float32]:
        """float32 values of a BF16, F16, F32 or F64 tensor; what float32 cannot hold comes out infinite."""
        if self.dtype == "BF16":
            return (self.data.view("<u2").astype(np.uint32) << 16).view(np.float32).reshape(self.shape)
        dtype = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}.get(self.dtype)
        if dtype is None:
            raise CheckpointError(
                self.name, f"stored as {self.dtype}, where floating point is expected", "convert it to bfloat16 or float32"
            )
        with np.errstate(over="ignore", invalid="ignore"):
            return self.data.view(dtype).astype(np.float32).reshape(self.shape)

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows start..stop-1 alone, as far as there are any (whole bytes a row)."""
        size, stop = len(self.data) // self.shape[0], min(stop, self.shape[0])
        return Tensor(self.name, self.dtype, (stop - start, *self.shape[1:]), self.data[start * size : stop * size])

    def let_go(self) -> None:
        """The file's pages that hold this tensor need not stay in memory: they come back when they are used. So reading a file takes no
        more memory than its largest tensor, however large the file is."""
        mapping = getattr(self.data, "_mmap", None)
        if mapping is None or not hasattr(mmap, "MADV_DONTNEED") or not len(self.data):
            return
        start = self.data.ctypes.data - np.frombuffer(mapping, np.uint8).ctypes.data
        first, last = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, (start + len(self.data)) // mmap.PAGESIZE * mmap.PAGESIZE
        if first < last:
            mapping.madvise(mmap.MADV_DONTNEED, first, last - first)

    @property
    def floating(self) -> bool:
        return self.dtype in ("BF16", "F16", "F32", "F64")


def unfinished(path: Path) -> Path | None:
    """A partial download of `path`, as its tool left it beside it."""
    if not path.name:  # the folder that one is in, or the root
        return None
    names = [path.with_name(path.name + part) for part in PARTS]
    names += sorted((path.parent / ".cache" / "huggingface" / "download").glob(f"{path.name}.*incomplete"))
    return next((name for name in names if name.is_file()), None)


def truncated(path: Path, where: str) -> CheckpointError:
    part = unfinished(path)
    return CheckpointError(str(path), f"truncated: {where}" + (f" (found {part.name} beside it)" if part else ""), AGAIN)


def there(path: Path) -> bool:
    """Whether a file that a model may lack is there, or was to be: a link to nothing, a download that is not finished, a folder of
    its name. Its reader then says what is wrong with it."""
    return os.path.lexists(path) or unfinished(path) is not None


def missing(path: Path) -> CheckpointError:
    """The error for a name under which no file can be read."""
    part = unfinished(path)
    if part is not None:
        return CheckpointError(str(path), f"no such file: its download is not finished (found {part.name})", "let the download end")
    if path.is_symlink():
        return CheckpointError(str(path), f"a link to {os.readlink(path)}, which is not there", AGAIN)
    if path.exists():
        return CheckpointError(str(path), "not a file", "check the path")
    return CheckpointError(str(path), "no such file", "check the path, or " + AGAIN)


def other_file(path: Path, data: NDArray[np.uint8], cause: str, fix: str) -> CheckpointError:
    """The error for a file whose bytes are not what they should be: named for what it is, if that shows, and else with `cause`."""
    head = data[:HEAD].tobytes()
    for pattern, found, remedy in FOREIGN:
        if re.match(pattern, head):
            return CheckpointError(str(path), found, remedy)
    if path.suffix in PARTS:
        return CheckpointError(str(path), "the download of this file is not finished", "let it end, or " + AGAIN)
    if len(head) >= 8 and not any(head):
        return CheckpointError(str(path), "begins with nothing but zeros: its download is not finished", AGAIN)
    return CheckpointError(str(path), cause, fix)


def map_file(path: Path) -> NDArray[np.uint8]:
    """The bytes of a file, memory-mapped. Raises CheckpointError if it is empty or cannot be read."""
    if not path.is_file():
        raise missing(path)
    try:
        if path.stat().st_size == 0:
            raise CheckpointError(str(path), "the file is empty", AGAIN)
        data = np.memmap(path, np.uint8, "r")
    except OSError as error:
        raise CheckpointError(str(path), f"cannot be read ({error.strerror})", "check the path and its permissions") from None
    return data


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) != len(pairs):
        name = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"key {shown(name)} twice in one object")
    return data


def _float(text: str) -> float:
    value = float(text)
    if value - value != 0:
        raise ValueError(f"number {text} is out of range")
    return value


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number")


def parse_json(data: bytes, subject: str, fix: str = AGAIN) -> dict[str, Any]:
    """A JSON object: finite numbers, no key twice, at most JSON_ITEMS values, JSON_DEPTH deep. Raises CheckpointError."""

    def fail(cause: str) -> CheckpointError:
        return CheckpointError(subject, cause, fix)

    if len(data) > JSON_BYTES or data.count(b",") + data.count(b"[") + data.count(b"{") > JSON_ITEMS:
        raise fail(f"larger than any such file ({len(data)} bytes of JSON)")
    if data.startswith((codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise CheckpointError(subject, "begins with a byte order mark", "save it as UTF-8 without one")
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_pairs, parse_float=_float, parse_constant=_constant)
    except RecursionError:
        raise fail(f"nested deeper than {JSON_DEPTH} levels") from None
    except ValueError as error:
        raise fail(f"not JSON ({error})") from None
    if not isinstance(value, dict):
        raise fail("not a JSON object")
    level: list[Any] = [value]
    for _ in range(JSON_DEPTH):
        level = [
            item
            for parent in level
            for item in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(item, (dict, list))
        ]  # fmt: skip
        if not level:
            return value
    raise fail(f"nested deeper than {JSON_DEPTH} levels")


def read_json(path: Path, advice: str = "") -> dict[str, Any]:
    """The object of a JSON file; `advice` is what to do when there is no such file."""
    if not path.is_file():
        error = missing(path)
        raise CheckpointError(error.subject, error.cause, advice) if advice and error.cause == "no such file" else error
    data = map_file(path)
    if len(data) > JSON_BYTES:
        raise other_file(path, data, f"larger than any such file ({len(data)} bytes)", AGAIN)
    try:
        return parse_json(data.tobytes(), str(path))
    except CheckpointError as error:
        raise other_file(path, data, error.cause, error.fix) from None
