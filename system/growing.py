"""Large files that are made piece by piece in a folder that stays, so that another process goes on where one was interrupted."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import takewhile
from pathlib import Path
from typing import Any, BinaryIO

from tritloom.system import files
from tritloom.system.files import scratch

__all__ = ["JOURNAL", "PARTIAL", "Growing", "clear", "discard", "growing"]

WRITTEN_BYTES = 1 << 20
"""Bytes that are written at once."""
PARTIAL = ".partial"
JOURNAL = "journal"


class Growing:
    """A file that is made of pieces, in their order. A journal beside it has a line for each piece that is written, with its CRC-32, so
    that another process finds what is whole and goes on behind it.

    `noted` is what `note` wrote: what was decided before the first piece.
    """

    def __init__(self, file: BinaryIO, journal: BinaryIO, key: str) -> None:
        self._file, self._journal = file, journal
        self.noted: Any = None
        self.others = False
        """Whether pieces of another key were there, which are gone."""
        self._left, self._written = [], 0
        journal.seek(0)
        lines = list(takewhile(lambda line: _parsed(line) is not None, journal.read().split(b"\n")[:-1]))
        found = [_parsed(line) for line in lines]
        if found[:1] == [key]:
            journal.truncate(sum(len(line) + 1 for line in lines))  # what follows is torn
            self.noted, self._left = (found[1] if len(found) > 1 else None), found[2:]
        else:
            self.others = len(found) > 2
            journal.truncate(0)
            file.truncate(0)
            self._line(key)

    def note(self, what: Any) -> Any:
        """Write down what is decided before the first piece, as JSON; give it."""
        self.noted = what
        self._line(what)
        return what

    def piece(self, offset: int, length: int, crc: int, make: Callable[[], Any]) -> tuple[int, bool]:
        """Put the piece of `length` bytes at `offset` in its place: it is there, or `make` gives its bytes. Gives the CRC-32, begun with
        `crc`, and whether it was there."""
        if self._left:
            stored, after = self._left.pop(0), self._stored(offset, length, crc)
            if after is not None and stored == [offset, length, after]:
                self._written += 1
                return after, True
            self._cut(offset)
        data = memoryview(make()).cast("B")
        if len(data) != length:
            raise AssertionError(f"a piece has {len(data)} bytes instead of {length}")
        self._file.seek(offset)
        after = crc
        for start in range(0, length, WRITTEN_BYTES):
            part = data[start : start + WRITTEN_BYTES]
            after = zlib.crc32(part, after)
            _write(self._file, part)
        _begin(self._file, offset, length)
        self._line([offset, length, after])
        self._written += 1
        return after, False

    def end(self, head: bytes, size: int) -> None:
        """Write what is known at the end and stands at the beginning, and give the file its size."""
        self._file.seek(0)
        _write(self._file, memoryview(head))
        self._file.truncate(size)
        os.fsync(self._file.fileno())

    def _stored(self, offset: int, length: int, crc: int) -> int | None:
        self._file.seek(offset)
        for start in range(0, length, WRITTEN_BYTES):
            part = self._file.read(min(WRITTEN_BYTES, length - start))
            if len(part) < min(WRITTEN_BYTES, length - start):
                return None
            crc = zlib.crc32(part, crc)
        return crc

    def _cut(self, offset: int) -> None:
        """Forget the pieces from here on."""
        self._left = []
        self._journal.seek(0)
        lines = self._journal.read().split(b"\n")[: 2 + self._written]
        self._journal.truncate(sum(len(line) + 1 for line in lines))
        self._file.truncate(offset)

    def _line(self, what: Any) -> None:
        _write(self._journal, memoryview(json.dumps(what).encode() + b"\n"))


def _write(file: BinaryIO, data: memoryview) -> None:
    """Write all of it: a full disk takes a part, and says so afterwards."""
    while data:
        data = data[file.write(data) :]


def _begin(file: BinaryIO, offset: int, length: int) -> None:
    """Let the disk take these bytes now, for which `end` would wait. What it has need not stay in memory."""
    if hasattr(os, "posix_fadvise"):
        with suppress(OSError):  # only a hint
            os.posix_fadvise(file.fileno(), offset, length, os.POSIX_FADV_DONTNEED)


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


@contextmanager
def growing(path: Path, key: str | None = None) -> Iterator[Growing]:
    """What will be at `path` at the end of the block, made piece by piece.

    With a `key`, which says what it is made of, the pieces of a block that fails stay in the folder NAME.partial, and the next one of the
    same key goes on behind them; one of another key removes them. While another process makes the file, and without a key, nothing stays.
    """
    path = Path(path)
    missing = [each for each in (path.parent, *path.parent.parents) if not each.exists()]
    folder, grown = path.with_name(path.name + PARTIAL), None
    with ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            journal = _held(folder) if key is not None else None
            if journal is None:
                folder = stack.enter_context(scratch(path.parent))
                journal = open(folder / JOURNAL, "a+b", buffering=0)
            stack.enter_context(journal)
            place = os.open(folder / path.name, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o666)
            grown = Growing(stack.enter_context(open(place, "r+b", buffering=0)), journal, key or "")
            yield grown
            os.replace(folder / path.name, path)
            shutil.rmtree(folder, ignore_errors=True)
        except BaseException as error:
            if grown is None or grown.noted is None:
                shutil.rmtree(folder, ignore_errors=True)
            if isinstance(error, OSError) and (error.filename is None or str(folder) in str(error.filename)):
                error.filename = str(path)
            stack.close()
            for each in missing:
                with suppress(OSError):
                    each.rmdir()
            raise


def _held(folder: Path) -> BinaryIO | None:
    """The journal in a folder, made if needed, locked by this process; None if another one has it."""
    while True:
        folder.mkdir(exist_ok=True)
        try:
            journal = open(folder / JOURNAL, "a+b", buffering=0)
        except FileNotFoundError:  # another process ended and removed the folder
            continue
        try:
            fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            journal.close()
            return None
        except OSError:
            return journal  # no locks on this file system
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(journal.fileno()), os.stat(folder / JOURNAL)):
                return journal
        journal.close()


def discard(folder: Path) -> None:
    """Remove a folder of pieces, unless a process is making them."""
    try:
        with open(folder / JOURNAL, "rb") as journal:
            fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
    except BlockingIOError:
        pass
    except OSError:
        shutil.rmtree(folder, ignore_errors=True)


def clear(root: Path, kind: str) -> None:
    """`files.clear`, which also keeps what a running process is making piece by piece: beside that whole files are removed alone."""
    partials = list((root / kind).glob(f"*{PARTIAL}"))
    for folder in partials:
        discard(folder)
    if not any(folder.exists() for folder in partials):
        files.clear(root, kind)
        return
    files.sweep(root / kind)
    for path in (root / kind).iterdir():
        if path.is_file():
            path.unlink()
