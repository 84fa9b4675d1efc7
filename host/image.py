"""The image file: everything one machine needs for one model, in one memory-mappable file.

Little endian: a header (magic, version, configuration digest, file size, length and CRC-32 of the record),
the record (JSON: configuration, model, section table), then the sections, each at a multiple of 4096 bytes.
A section with an address is loaded there in the machine's memory. Every part is checked on opening.
"""

from __future__ import annotations

import json
import os
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tritloom.firmware.config import BuildConfig, ConfigError, round_up
from tritloom.firmware.layout import MemoryMap

Bytes = NDArray[np.uint8]

MAGIC = b"TRITLOOM"
VERSION = 2
"""Of the file and of what is in it: the machine's instructions and the order of the weights count too."""
HEADER = struct.Struct("<8sIIQII")
"""Magic, version, configuration digest, file size, record length, record CRC-32."""
SECTION_ALIGN = 4096
CRC_BLOCK = 16 << 20
PACK_AGAIN = "pack the model again"


class ImageError(Exception):
    """An image that cannot be used; the message says what is wrong and what to do."""


@dataclass(frozen=True)
class Section:
    name: str
    offset: int
    length: int
    crc32: int
    address: int | None


def _crc32(data: Bytes) -> int:
    crc = 0
    for start in range(0, len(data), CRC_BLOCK):
        crc = zlib.crc32(data[start : start + CRC_BLOCK].data, crc)
    return crc


def write_image(
    path: str | Path,
    *,
    config: BuildConfig,
    spec: dict[str, Any],
    sections: Iterable[tuple[str, Bytes, int | None]],
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write an image in one step: the file at `path` is either the old one or the whole new one.

    `sections` are (name, bytes, address or None); `progress` is told (bytes written, bytes in all).
    """
    path = Path(path)
    contents = [(name, np.ascontiguousarray(data, np.uint8), address) for name, data, address in sections]
    names = [name for name, _, _ in contents]
    if len(set(names)) != len(names):
        raise ValueError(f"section names repeat: {', '.join(names)}")
    checks = [_crc32(data) for _, data, _ in contents]

    def record(first: int) -> tuple[bytes, list[Section]]:
        table, at = [], first
        for (name, data, address), crc in zip(contents, checks, strict=True):
            table.append(Section(name, at, len(data), crc, address))
            at = round_up(at + len(data), SECTION_ALIGN)
        body = {"config": config.to_dict(), "spec": spec, "sections": [vars(section) for section in table]}
        return json.dumps(body, separators=(",", ":")).encode(), table

    # Offsets stand in the record whose length decides them: a page is left for their digits.
    first = round_up(HEADER.size + len(record(0)[0]) + SECTION_ALIGN, SECTION_ALIGN)
    body, table = record(first)
    size = table[-1].offset + table[-1].length if table else HEADER.size + len(body)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(HEADER.pack(MAGIC, VERSION, config.digest, size, len(body), zlib.crc32(body)))
            file.write(body)
            for section, (_, data, _) in zip(table, contents, strict=True):
                file.seek(section.offset)
                for start in range(0, len(data), CRC_BLOCK):
                    file.write(data[start : start + CRC_BLOCK].data)
                if progress:
                    progress(section.offset + section.length, size)
            file.truncate(size)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


@dataclass(frozen=True)
class Image:
    """An open image. `spec` is the model's record as plain data (names as in tritloom.gen.models.ModelSpec)."""

    path: Path
    config: BuildConfig
    spec: dict[str, Any]
    table: dict[str, Section]
    data: Bytes

    @classmethod
    def open(cls, path: str | Path, *, verify: bool = True) -> Image:
        """Map an image and check it; without `verify` the sections' CRCs are left out."""
        path = Path(path)
        if not path.is_file():
            raise ImageError(f"{path}: no such image; pack one from a model")
        size = path.stat().st_size
        data: Bytes = np.memmap(path, np.uint8, "r") if size else np.zeros(0, np.uint8)
        if data[: len(MAGIC)].tobytes() != MAGIC:
            raise ImageError(f"{path}: not a tritloom image; {PACK_AGAIN} or give another file")
        if size < HEADER.size:
            raise ImageError(f"{path}: truncated: {size} bytes are less than a header; copy it again, or {PACK_AGAIN}")
        _, version, digest, stated, length, crc = HEADER.unpack(data[: HEADER.size].tobytes())
        if version != VERSION:
            advice = "update tritloom" if version > VERSION else PACK_AGAIN
            raise ImageError(f"{path}: image version {version}, this tritloom reads version {VERSION}; {advice}")
        if size < stated:
            raise ImageError(f"{path}: truncated: {size} of {stated} bytes; copy it again, or {PACK_AGAIN}")
        body = data[HEADER.size : HEADER.size + length].tobytes()
        if zlib.crc32(body) != crc:
            raise ImageError(f"{path}: its record is damaged (CRC); copy it again, or {PACK_AGAIN}")
        try:
            content = json.loads(body)
            config = BuildConfig.from_dict(content["config"])
        except (json.JSONDecodeError, KeyError, ConfigError) as error:
            raise ImageError(f"{path}: its configuration cannot be read ({error}); {PACK_AGAIN} with this tritloom") from None
        if config.digest != digest:
            raise ImageError(
                f"{path}: digest {digest:08x} is not its configuration's ({config.digest:08x}); {PACK_AGAIN} with this tritloom"
            )
        image = cls(path, config, content["spec"], {s["name"]: Section(**s) for s in content["sections"]}, data)
        for section in image.table.values():
            if section.offset + section.length > size:
                raise ImageError(f"{path}: truncated in section {section.name}; copy it again, or {PACK_AGAIN}")
            if verify and _crc32(image.section(section.name)) != section.crc32:
                raise ImageError(f"{path}: section {section.name} is damaged (CRC); copy it again, or {PACK_AGAIN}")
        return image

    def section(self, name: str) -> Bytes:
        """Bytes of a section, mapped."""
        if name not in self.table:
            raise ImageError(f"{self.path}: has no section {name}; {PACK_AGAIN}")
        s = self.table[name]
        return self.data[s.offset : s.offset + s.length]

    def memory(self) -> list[tuple[int, Bytes]]:
        """What to load where in the machine's memory."""
        return [(s.address, self.section(s.name)) for s in self.table.values() if s.address is not None]

    @property
    def program(self) -> list[int]:
        """Firmware words."""
        return self.section("program").view("<u8").tolist()

    @property
    def descriptors(self) -> list[int]:
        """Words of the weight streamer's program."""
        return self.section("descriptors").view("<u8").tolist()

    @property
    def map(self) -> MemoryMap:
        return MemoryMap.from_json(self.section("memory_map").tobytes().decode())

    @property
    def tokenizer(self) -> bytes:
        """Contents of tokenizer.json."""
        return self.section("tokenizer").tobytes()

    @property
    def bos_id(self) -> int | None:
        """Token that starts a text, if the model wants one."""
        bos = self.spec.get("bos_id")
        return None if bos is None else self._token("bos_id", bos)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end a text."""
        ids = self.spec.get("eos_ids")
        if not isinstance(ids, list):
            raise ImageError(f"{self.path}: does not say which tokens end a text; {PACK_AGAIN}")
        return tuple(self._token("eos_ids", each) for each in ids)

    def _token(self, what: str, value: Any) -> int:
        if type(value) is not int or not 0 <= value < self.config.shape.vocab:
            raise ImageError(f"{self.path}: {what} {value!r} is no token of {self.config.shape.vocab}; {PACK_AGAIN}")
        return value

    @property
    def digest(self) -> int:
        return self.config.digest

    def require_digest(self, digest: int, machine: BuildConfig | None = None) -> None:
        """Refuse a machine of another configuration; with its configuration, name the fields that differ."""
        if digest == self.digest:
            return
        fields = differing_fields(self.config, machine) if machine is not None and machine.digest == digest else []
        where = ": " + ", ".join(f"{name} {ours!r} (machine: {theirs!r})" for name, ours, theirs in fields) if fields else ""
        raise ImageError(
            f"{self.path}: packed for configuration {self.digest:08x}, the machine has {digest:08x}{where}; pack the model for this machine"
        )


def differing_fields(a: BuildConfig, b: BuildConfig) -> list[tuple[str, Any, Any]]:
    """(name, value in a, value in b) of every field in which two configurations differ."""

    def walk(prefix: str, x: dict[str, Any], y: dict[str, Any]) -> list[tuple[str, Any, Any]]:
        found: list[tuple[str, Any, Any]] = []
        for key in x:
            if isinstance(x[key], dict):
                found += walk(f"{prefix}{key}.", x[key], y[key])
            elif x[key] != y[key]:
                found.append((prefix + key, x[key], y[key]))
        return found

    return walk("", a.to_dict(), b.to_dict())
