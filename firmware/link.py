"""The protocol between a host and the link of a board (docs/link.md): its numbers, and its frames to bytes and back.

A frame is a body between two flags, with octet stuffing as in HDLC-like framing (RFC 1662); the body ends in the CRC-32 of what is before
it. All fields are little endian.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

VERSION = 1
"""Of the protocol: the low half of the first word of HELLO's answer, in every version."""
FLAG, ESCAPE, FLIP = 0x7E, 0x7D, 0x20
"""A frame's limits; what goes before a byte that is one of these two and travels XOR FLIP."""
BUFFER_WORDS = 256
"""Half of the device's memory: a request, and half of an answer's values behind it."""
ANSWER_WORDS = 64
"""Most values of an answer."""
REQUEST_WORDS = BUFFER_WORDS - ANSWER_WORDS // 2 - 3
"""Most words of a request: its header and CRC-32 take 3 more."""
WAIT_BITS = 24
"""Width of a count of cycles in a WAIT and its answer."""
WAIT_IRQ = 1 << 31
"""In the answer of a WAIT: `irq` is high."""
HEADER_BYTES, CRC_BYTES = 8, 4
LONGEST_BODY = HEADER_BYTES + 4 * REQUEST_WORDS + CRC_BYTES
"""Bytes; on the line at most twice as many, and the flags."""


class Operation(IntEnum):
    """What a request asks for."""

    HELLO = 1
    """Open a session."""
    FILL = 2
    """Write the words, in their order, to one register."""
    LIST = 3
    """Do the items, in their order: a word each, with a second one behind it as the kind says."""


class Item(IntEnum):
    """Kind of an item of LIST: bits 31:30 of its word. The register's address is in bits 11:0."""

    READ = 0
    """The register's value goes to the answer."""
    WRITE = 1
    """The second word is written to the register."""
    WAIT = 2
    """Wait until `irq` is high, or for as many cycles as the second word says; to the answer go the cycles that passed, and WAIT_IRQ."""


ITEM_SHIFT = 30


class Status(IntEnum):
    """What became of a request."""

    DONE = 0
    """It was executed, now or when it first came: the values are its own."""
    BEFORE = 1
    """It was executed before, and its values are no longer kept."""
    AHEAD = 2
    """It was dropped, one before it is missing."""
    NO_SESSION = 3
    """It was dropped, no session is open: the board was reset."""
    OTHER_SESSION = 4
    """It was dropped, another session was opened since."""
    BUS_ERROR = 5
    """The request before `expected` ended at its word number `count`: a register refused the access. The session takes no others."""
    MALFORMED = 6
    """The same, for what is no operation or item, or more values than an answer holds."""


@dataclass(frozen=True)
class Request:
    session: int
    sequence: int
    operation: int
    address: int = 0
    words: tuple[int, ...] = ()


@dataclass(frozen=True)
class Answer:
    """`session` and `sequence` are those of the request that is answered, `expected` is the sequence number of the next one. `count`: of
    the values, or after an error the word of the request at which it ended, the first one is 0."""

    session: int
    sequence: int
    status: int
    count: int
    expected: int
    values: tuple[int, ...] = ()


def read_item(address: int) -> tuple[int, ...]:
    """An item of LIST that reads a register."""
    return (Item.READ << ITEM_SHIFT | address,)


def write_item(address: int, value: int) -> tuple[int, ...]:
    """An item of LIST that writes a register."""
    return (Item.WRITE << ITEM_SHIFT | address, value)


def wait_item(cycles: int) -> tuple[int, ...]:
    """An item of LIST that waits for `irq`."""
    return (Item.WAIT << ITEM_SHIFT, cycles)


def hello_words(clock_hz: int) -> tuple[int, ...]:
    """The values of HELLO's answer."""
    return (VERSION | REQUEST_WORDS << 16 | ANSWER_WORDS << 24, clock_hz)


def frame(body: bytes) -> bytes:
    """What goes over the line: flag, body and CRC-32 with octets stuffed, flag."""
    body += zlib.crc32(body).to_bytes(CRC_BYTES, "little")
    stuffed = body.replace(bytes([ESCAPE]), bytes([ESCAPE, ESCAPE ^ FLIP])).replace(bytes([FLAG]), bytes([ESCAPE, FLAG ^ FLIP]))
    return bytes([FLAG]) + stuffed + bytes([FLAG])


class Deframer:
    """Bytes of the line to bodies without their CRC-32. `errors` counts frames that were no whole ones."""

    def __init__(self, longest: int = LONGEST_BODY) -> None:
        self.longest = longest
        self.errors = 0
        self._part = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The bodies that end in `data`."""
        *whole, rest = data.split(bytes([FLAG]))
        for part in whole:
            self._part += part
            stuffed, self._part = bytes(self._part), bytearray()
            if stuffed:
                body = self._body(stuffed)
                if body is None:
                    self.errors += 1
                else:
                    yield body
        self._part += rest
        del self._part[2 * self.longest + 1 :]  # one byte more than any frame has: it stays a wrong one

    def _body(self, stuffed: bytes) -> bytes | None:
        first, *escaped = stuffed.split(bytes([ESCAPE]))
        if not all(escaped):
            return None
        body = first + b"".join(bytes([part[0] ^ FLIP]) + part[1:] for part in escaped)
        if not HEADER_BYTES + CRC_BYTES <= len(body) <= self.longest or len(body) % 4:
            return None
        content = body[:-CRC_BYTES]
        return content if zlib.crc32(content) == int.from_bytes(body[-CRC_BYTES:], "little") else None


_REQUEST, _ANSWER = struct.Struct("<HHBxH"), struct.Struct("<HHBBH")


def _words(data: bytes) -> tuple[int, ...]:
    return struct.unpack(f"<{len(data) // 4}I", data)


def _bytes(words: Sequence[int]) -> bytes:
    return struct.pack(f"<{len(words)}I", *words)


def encode_request(request: Request) -> bytes:
    """The body of a request."""
    assert len(request.words) <= REQUEST_WORDS
    return _REQUEST.pack(request.session, request.sequence, request.operation, request.address) + _bytes(request.words)


def decode_request(body: bytes) -> Request:
    """A request's body."""
    return Request(*_REQUEST.unpack_from(body), words=_words(body[HEADER_BYTES:]))


def encode_answer(answer: Answer) -> bytes:
    """The body of an answer."""
    header = _ANSWER.pack(answer.session, answer.sequence, answer.status, answer.count, answer.expected)
    return header + _bytes(answer.values)


def decode_answer(body: bytes) -> Answer | None:
    """An answer's body; None if it cannot be one."""
    answer = Answer(*_ANSWER.unpack_from(body), values=_words(body[HEADER_BYTES:]))
    values = answer.count if answer.status == Status.DONE else 0
    return answer if answer.status <= max(Status) and len(answer.values) == values else None


def flatten(items: Iterable[Sequence[int]]) -> tuple[int, ...]:
    """The words of some items."""
    return tuple(word for item in items for word in item)
