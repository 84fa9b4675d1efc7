"""The device's side of the link in Python: what rtl/link does with bytes, without its time. And registers behind it that remember."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from tritloom.firmware import link
from tritloom.firmware.link import ANSWER_WORDS, Answer, Item, Operation, Status


class Port(Protocol):
    """Registers by address. What is refused reads None, or writes False."""

    def wait(self, cycles: int) -> int:
        """What passed, at most `cycles`, with WAIT_IRQ."""
        ...

    def read(self, address: int) -> int | None: ...

    def write(self, address: int, value: int) -> bool: ...


COUNTER, FIFO, REFUSED = 0x80, 0x84, 0x100


@dataclass
class Registers:
    """Words below 0x80; one that counts its reads; one that remembers all writes; from 0x100 on whatever is asked is refused."""

    words: dict[int, int] = field(default_factory=dict)
    reads: int = 0
    written: list[int] = field(default_factory=list)
    irq: bool = False
    lost: tuple[list[int], int] | None = None
    """What was written and read before the board was reset."""

    def reset(self) -> None:
        self.lost = self.written, self.reads
        self.words, self.written, self.reads = {}, [], 0

    def wait(self, cycles: int) -> int:
        return link.WAIT_IRQ if self.irq else cycles

    def read(self, address: int) -> int | None:
        if address >= REFUSED:
            return None
        if address == COUNTER:
            self.reads += 1
            return self.reads
        return self.words.get(address, 0)

    def write(self, address: int, value: int) -> bool:
        if address >= REFUSED:
            return False
        if address == FIFO:
            self.written.append(value)
        self.words[address] = value
        return True


class LinkDevice:
    """Takes bytes and gives the bytes of the answers."""

    def __init__(self, port: Port, clock_hz: int = 60_000_000, version: int = link.VERSION) -> None:
        self.port, self._hello = port, (link.hello_words(clock_hz)[0] - link.VERSION + version, clock_hz)
        self.reset()

    def reset(self) -> None:
        """The board is switched off and on."""
        self._frames = link.Deframer()
        self._session: int | None = None
        self.expected, self._begun, self._failed = 0, False, False
        self._kept: tuple[int, int, tuple[int, ...]] = (0, 0, ())

    def feed(self, data: bytes) -> bytes:
        return b"".join(link.frame(link.encode_answer(self._answer(link.decode_request(body)))) for body in self._frames.feed(data))

    def _answer(self, request: link.Request) -> Answer:
        status, count, values = self._execute(request)
        return Answer(request.session, request.sequence, status, count, self.expected, values)

    def _execute(self, request: link.Request) -> tuple[int, int, tuple[int, ...]]:
        ahead = request.sequence - self.expected & 0xFFFF
        if request.operation == Operation.HELLO:
            if self._session == request.session and self._begun:
                return Status.BEFORE, 0, ()
            self._session, self.expected, self._begun, self._failed = request.session, 0, False, False
            self._kept = Status.DONE, len(self._hello), self._hello
            return self._kept
        if self._session is None:
            return Status.NO_SESSION, 0, ()
        if request.session != self._session:
            return Status.OTHER_SESSION, 0, ()
        if self._failed or ahead == 0xFFFF:
            return self._kept
        if ahead:
            return Status.BEFORE if ahead >> 15 else Status.AHEAD, 0, ()
        values: list[int] = []
        status, at = self._accesses(request, values)
        self.expected = self.expected + 1 & 0xFFFF
        self._begun, self._failed = True, status != Status.DONE
        self._kept = (status, at, ()) if self._failed else (status, len(values), tuple(values))
        return self._kept

    def _accesses(self, request: link.Request, values: list[int]) -> tuple[Status, int]:
        """What became of them, and the word at which they ended."""
        if request.operation not in (Operation.FILL, Operation.LIST):
            return Status.MALFORMED, 0
        at = 0
        while at < len(request.words):
            word, address, kind = request.words[at], request.address & 0xFFF, Item.WRITE
            if request.operation == Operation.LIST:
                address, kind = word & 0xFFF, word >> link.ITEM_SHIFT
                if kind > Item.WAIT or kind != Item.WRITE and len(values) == ANSWER_WORDS:
                    return Status.MALFORMED, at
                if kind != Item.READ:
                    at += 1
                    if at == len(request.words):
                        return Status.MALFORMED, at
                    word = request.words[at]
            if kind == Item.READ:
                value = self.port.read(address)
                if value is None:
                    return Status.BUS_ERROR, at
                values.append(value)
            elif kind == Item.WRITE:
                if not self.port.write(address, word):
                    return Status.BUS_ERROR, at
            else:
                values.append(self.port.wait(word & (1 << link.WAIT_BITS) - 1))
            at += 1
        return Status.DONE, 0
