"""The image: everything one machine needs for one model, in one memory-mappable file.

Little endian: a header (magic, version, configuration digest, file size, length and CRC-32 of the record),
the record (JSON: configuration, model, section table), then the sections, each at a multiple of 4096 bytes.
A section with an address is loaded there in the machine's memory. Every part is checked on opening.
`host.image` reads and writes the file.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tritloom.firmware.config import BuildConfig, ConfigError, round_up
from tritloom.firmware.errors import InputError
from tritloom.firmware.layout import MemoryMap, memory_map

Bytes = NDArray[np.uint8]

MAGIC = b"TRITLOOM"
VERSION = 2
"""Of the file and of what is in it: the machine's instructions and the order of the weights count too."""
HEADER = struct.Struct("<8sIIQII")
"""Magic, version, configuration digest, file size, record length, record CRC-32."""
SECTION_ALIGN = 4096
RECORD_LIMIT = 1 << 20
"""Bytes of a record; one has a few thousand."""
CRC_BLOCK, CRC_MOST = 16 << 20, (1 << 32) - 1
PACK_AGAIN = "pack the model again"
SELF_TEST = "self_test"
"""Name of the section that an image may have of `SelfTest`: JSON, not loaded."""


class ImageError(InputError):
    """An image that cannot be used; the message says what is wrong and what to do."""


@dataclass(frozen=True)
class Section:
    name: str
    offset: int
    length: int
    crc32: int
    address: int | None


@dataclass(frozen=True)
class SelfTest:
    """What the machine must do with the image: the tokens that greedily follow a prompt, by the emulator, and the cycles that a token is
    projected to take."""

    prompt: list[int]
    tokens: list[int]
    cycles_per_token: float

    def to_bytes(self) -> Bytes:
        """The section."""
        return np.frombuffer(json.dumps(vars(self)).encode(), np.uint8)


def _typed(record: Any, name: str, kind: type, least: int = 0) -> Any:
    """Field `name` of a record, of exactly this kind. Raises ValueError."""
    value: Any = record.get(name) if isinstance(record, dict) else None
    if type(value) is not kind or (kind is int and value < least):
        raise ValueError(f"{name} is missing or of another kind")
    return value


def _sections(records: list[Any], start: int, size: int) -> dict[str, Section]:
    """The section table, in the file's order. Raises ValueError unless sections lie apart from each other within `start`..`size`."""
    table: dict[str, Section] = {}
    for record in records:
        if not isinstance(record, dict):
            raise ValueError("a section is not a record")
        address = None if record.get("address", 0) is None else _typed(record, "address", int)
        name, (offset, length, crc) = _typed(record, "name", str), (_typed(record, key, int) for key in ("offset", "length", "crc32"))
        if name in table:
            raise ValueError(f"section {name!r:.60} twice")
        if offset < start or offset % SECTION_ALIGN or offset + length > size:
            raise ValueError(f"section {name!r:.60} lies outside the file or in another section")
        table[name], start = Section(name, offset, length, crc, address), offset + length
    return table


def _spec(spec: dict[str, Any], config: BuildConfig) -> dict[str, Any]:
    """The model's record, whose tokens are in the vocabulary. Raises ValueError."""
    ends, start = spec.get("eos_ids", []), spec.get("bos_id")
    named = [("eos_ids", token) for token in (ends if isinstance(ends, list) else [None])] + [("bos_id", start)] * (start is not None)
    for name, token in named:
        if type(token) is not int or not 0 <= token < config.shape.vocab:
            raise ValueError(f"{name}: token {token!r:.60} is not in the vocabulary")
    return spec


def crc32(data: Bytes, crc: int = 0) -> int:
    """CRC-32 of bytes that follow those whose CRC-32 is `crc`."""
    for start in range(0, len(data), CRC_BLOCK):
        crc = zlib.crc32(data[start : start + CRC_BLOCK].data, crc)
    return crc


Piece = tuple[int, Callable[[], Bytes]]
"""Bytes of a section that are made when they are asked for: how many, and what makes them."""


@dataclass(frozen=True)
class Contents:
    """A section that is to be written: its `pieces` stand one behind the other; `address` as in `Section`."""

    name: str
    pieces: tuple[Piece, ...]
    address: int | None = None

    @property
    def length(self) -> int:
        return sum(length for length, _ in self.pieces)

    def bytes(self) -> Bytes:
        """All of it."""
        out, at = np.empty(self.length, np.uint8), 0
        for length, make in self.pieces:
            out[at : at + length] = make()
            at += length
        return out


def whole(name: str, data: Bytes, address: int | None = None) -> Contents:
    """A section of bytes that are there."""
    data = np.ascontiguousarray(data, np.uint8)
    return Contents(name, ((len(data), lambda: data),), address)


@dataclass(frozen=True)
class Encoded:
    """An image as it is written: a file of `size` bytes, with sections at `offsets`, and before them what `header` makes of their CRCs. It
    is zero between them."""

    size: int
    sections: tuple[Contents, ...]
    offsets: tuple[int, ...]
    header: Callable[[Sequence[int]], bytes]

    def bytes(self) -> Bytes:
        """All of it."""
        out, checks = np.zeros(self.size, np.uint8), []
        for section, offset in zip(self.sections, self.offsets, strict=True):
            data = section.bytes()
            out[offset : offset + len(data)] = data
            checks.append(crc32(data))
        header = self.header(checks)
        out[: len(header)] = np.frombuffer(header, np.uint8)
        return out


def encode(*, config: BuildConfig, spec: dict[str, Any], sections: Iterable[Contents]) -> Encoded:
    """The image of `config` and `spec`, the model's record."""
    sections = tuple(sections)
    names = [section.name for section in sections]
    if len(set(names)) != len(names):
        raise ValueError(f"section names repeat: {', '.join(names)}")

    def record(first: int, checks: Sequence[int]) -> tuple[bytes, list[Section]]:
        table, at = [], first
        for section, crc in zip(sections, checks, strict=True):
            table.append(Section(section.name, at, section.length, crc, section.address))
            at = round_up(at + section.length, SECTION_ALIGN)
        body = {"config": config.to_dict(), "spec": spec, "sections": [vars(section) for section in table]}
        return json.dumps(body, separators=(",", ":")).encode(), table

    # Offsets and CRCs stand in the record whose length decides where sections begin: there is a page for the digits of the offsets, and
    # room for those of any CRCs.
    longest = [CRC_MOST] * len(sections)
    first = round_up(HEADER.size + len(record(0, longest)[0]) + SECTION_ALIGN, SECTION_ALIGN)
    table = record(first, longest)[1]

    def header(checks: Sequence[int]) -> bytes:
        body = record(first, checks)[0]
        return HEADER.pack(MAGIC, VERSION, config.digest, size, len(body), zlib.crc32(body)) + body

    size = table[-1].offset + table[-1].length if table else first
    return Encoded(size, sections, tuple(section.offset for section in table), header)


@dataclass(frozen=True)
class Image:
    """An image that can be used. `name`: what errors call it; `spec`: the model's record as plain data (names as in
    tritloom.gen.models.ModelSpec)."""

    name: str
    config: BuildConfig
    spec: dict[str, Any]
    table: dict[str, Section]
    map: MemoryMap
    data: Bytes

    @classmethod
    def decode(cls, data: Bytes, name: str, *, verify: bool = True) -> Image:
        """Check an image and look into it; `data` is the whole file, which may be mapped, and `name` what errors call it. Without `verify`
        the sections' CRCs are left out. Raises `ImageError`."""
        size = len(data)
        if data[:19].tobytes() == b"version https://git":
            raise ImageError(f"{name}: a Git LFS pointer, not the image it stands for; fetch it with `git lfs pull`")
        if data[: len(MAGIC)].tobytes() != MAGIC:
            raise ImageError(f"{name}: not a tritloom image; {PACK_AGAIN} or give another file")
        if size < HEADER.size:
            raise ImageError(f"{name}: truncated: {size} bytes are less than a header; copy it again, or {PACK_AGAIN}")
        _, version, digest, stated, length, crc = HEADER.unpack(data[: HEADER.size].tobytes())
        if version != VERSION:
            advice = "update tritloom" if version > VERSION else PACK_AGAIN
            raise ImageError(f"{name}: image version {version}, this tritloom reads version {VERSION}; {advice}")
        if size < stated:
            raise ImageError(f"{name}: truncated: {size} of {stated} bytes; copy it again, or {PACK_AGAIN}")
        if size > stated:
            raise ImageError(f"{name}: {size - stated} bytes follow its end; copy it again, or {PACK_AGAIN}")
        if length > min(RECORD_LIMIT, size - HEADER.size):
            raise ImageError(f"{name}: its record of {length} bytes is longer than any; copy it again, or {PACK_AGAIN}")
        body = data[HEADER.size : HEADER.size + length].tobytes()
        if zlib.crc32(body) != crc:
            raise ImageError(f"{name}: its record is damaged (CRC); copy it again, or {PACK_AGAIN}")
        try:
            content = json.loads(body)
            config = BuildConfig.from_dict(_typed(content, "config", dict))
            sections = _sections(_typed(content, "sections", list), HEADER.size + length, size)
            spec = _spec(_typed(content, "spec", dict), config)
            layout = memory_map(config, tied="embedding" not in sections)
        except (ConfigError, ValueError, RecursionError) as error:
            reason = str(error) or "nested too deeply"
            raise ImageError(f"{name}: its record cannot be read ({reason}); {PACK_AGAIN} with this tritloom") from None
        if config.digest != digest:
            raise ImageError(
                f"{name}: digest {digest:08x} is not its configuration's ({config.digest:08x}); {PACK_AGAIN} with this tritloom"
            )
        image = cls(name, config, spec, sections, layout, data)
        for section in sections.values():
            if verify and crc32(image.section(section.name)) != section.crc32:
                raise ImageError(f"{name}: section {section.name} is damaged (CRC); copy it again, or {PACK_AGAIN}")
        image._check_contents()
        return image

    def _check_contents(self) -> None:
        """Sections are where the memory map of the configuration has them, and as long; programs fit the machine."""
        wanted = {name: (region.base, region.length) for name, region in self.map.regions.items() if region.loaded}
        loaded = {s.name: (s.address, s.length) for s in self.table.values() if s.address is not None}
        for name in sorted(wanted.keys() | loaded.keys()):
            if wanted.get(name) != loaded.get(name):
                raise ImageError(f"{self.name}: section {name} is not where its configuration has it; {PACK_AGAIN} with this tritloom")
        descriptors = np.array(self.map.descriptor_words(), "<u8").tobytes()
        for name, expected in (("memory_map", self.map.to_json().encode()), ("descriptors", descriptors)):
            if self.section(name).tobytes() != expected:
                raise ImageError(f"{self.name}: section {name} is not its configuration's; {PACK_AGAIN} with this tritloom")
        length = len(self.section("program"))
        if length % 8 or not 0 < length // 8 <= self.config.program_words:
            raise ImageError(f"{self.name}: section program has {length} bytes; {PACK_AGAIN}")
        self.section("tokenizer")

    def section(self, name: str) -> Bytes:
        """Bytes of a section, mapped."""
        if name not in self.table:
            raise ImageError(f"{self.name}: has no section {name}; {PACK_AGAIN}")
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
    def self_test(self) -> SelfTest | None:
        """What was recorded for a self-test, if anything was. Raises `ImageError`."""
        if SELF_TEST not in self.table:
            return None
        try:
            record = json.loads(self.section(SELF_TEST).tobytes())
            prompt, tokens = (_typed(record, name, list) for name in ("prompt", "tokens"))
            if not prompt or not tokens or len(prompt) + len(tokens) - 1 > self.config.shape.context:
                raise ValueError(f"{len(prompt)} and {len(tokens)} tokens")
            for token in (*prompt, *tokens):
                if type(token) is not int or not 0 <= token < self.config.shape.vocab:
                    raise ValueError(f"token {token!r:.60} is not in the vocabulary")
            return SelfTest(prompt, tokens, _typed(record, "cycles_per_token", float))
        except (ValueError, RecursionError) as error:
            raise ImageError(f"{self.name}: section {SELF_TEST} cannot be read ({error}); {PACK_AGAIN} with this tritloom") from None

    @property
    def tokenizer(self) -> bytes:
        """Contents of tokenizer.json."""
        return self.section("tokenizer").tobytes()

    @property
    def bos_id(self) -> int | None:
        """Token that starts a text, if the model wants one."""
        return self.spec.get("bos_id")

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end a text."""
        ids = self.spec.get("eos_ids")
        if not isinstance(ids, list):
            raise ImageError(f"{self.name}: does not say which tokens end a text; {PACK_AGAIN}")
        return tuple(ids)

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
            f"{self.name}: packed for configuration {self.digest:08x}, the machine has {digest:08x}{where}; "
            "pack the model for this machine, or load the machine of this model"
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
