"""Steps that take long: who does them tells how far they are, who watches shows it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any, Protocol

from tritloom.system.files import cache

Update = Callable[..., Any]
"""Called with (done, total=1.0, text="")."""
LEAST_SECONDS = 2.0
"""Shorter steps found what they make in a cache: their time says nothing of the next."""


class Steps(Protocol):
    """Shows steps, and remarks for people."""

    def step(self, title: str, *, expected: float | None = None) -> AbstractContextManager[Update]:
        """A step that may take long, whose value is called with how far it is. `expected`: seconds it is known to take."""
        ...

    def note(self, text: str) -> None:
        """A remark."""
        ...


class Unseen:
    """Nobody watches."""

    @contextmanager
    def step(self, title: str, *, expected: float | None = None) -> Iterator[Update]:
        yield lambda *_, **__: None

    def note(self, text: str) -> None:
        pass


@contextmanager
def timed_step(steps: Steps, title: str) -> Iterator[Update]:
    """A step that says how long it took the last time."""
    path = cache("timings") / f"{title.replace(' ', '-').lower()}.txt"
    try:
        expected = float(path.read_text("utf-8"))
    except (OSError, ValueError):
        expected = None
    start = time.monotonic()
    with steps.step(title, expected=expected) as update:
        yield update
    elapsed = time.monotonic() - start
    if elapsed > LEAST_SECONDS:
        with suppress(OSError):  # only a hint
            path.write_text(f"{elapsed:.1f}\n", "utf-8")
