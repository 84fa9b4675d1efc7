"""What can be wrong with a checkpoint, in one line each."""

from __future__ import annotations

import reprlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tritloom.firmware.errors import InputError

LONGEST = 240
"""Characters of a file's own text that a message repeats at most."""

_repr = reprlib.Repr()
_repr.maxlevel, _repr.maxlist, _repr.maxdict, _repr.maxtuple, _repr.maxstring, _repr.maxother = 2, 4, 4, 4, 60, 60


def shown(value: Any) -> str:
    """A value of a file for a message: short, whatever its size and depth."""
    return _repr.repr(value)


def plain(text: str) -> str:
    """A file's own text for a message: one line that no terminal interprets."""
    short = text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in short)


class CheckpointError(InputError):
    """A checkpoint that cannot be used: `subject` (tensor, key or file), `cause`, and `fix`, in one line."""

    def __init__(self, subject: str, cause: str, fix: str) -> None:
        self.subject, self.cause, self.fix = plain(subject), plain(cause), fix
        super().__init__(f"{self.subject}: {self.cause}; {fix}")


@dataclass(frozen=True)
class Problem:
    """One thing wrong: `subject` is a tensor, a key or a file."""

    subject: str
    cause: str
    fix: str

    def __str__(self) -> str:
        return f"{self.subject}: {self.cause}; {self.fix}"


@dataclass
class Problems:
    """Everything found wrong so far."""

    found: list[Problem] = field(default_factory=list)

    def add(self, subject: str, cause: str, fix: str) -> None:
        self.found.append(Problem(plain(subject), plain(cause), fix))

    def catch(self, action: Callable[[], Any]) -> Any:
        """The action's result, or None with its CheckpointError noted."""
        try:
            return action()
        except CheckpointError as error:
            self.add(error.subject, error.cause, error.fix)
            return None

    def raise_first(self) -> None:
        """The first problem as a CheckpointError, if there is one."""
        if self.found:
            first = self.found[0]
            raise CheckpointError(first.subject, first.cause, first.fix)
