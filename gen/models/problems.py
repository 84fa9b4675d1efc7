"""What can be wrong with a checkpoint, in one line each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


class CheckpointError(Exception):
    """A checkpoint that cannot be used: `subject` (tensor, key or file), `cause`, and `fix`, in one line."""

    def __init__(self, subject: str, cause: str, fix: str) -> None:
        super().__init__(f"{subject}: {cause}; {fix}")
        self.subject, self.cause, self.fix = subject, cause, fix


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
    found: list[Problem] = field(default_factory=list)

    def add(self, subject: str, cause: str, fix: str) -> None:
        self.found.append(Problem(subject, cause, fix))

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
