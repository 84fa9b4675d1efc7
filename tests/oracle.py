"""Drafts that are right or wrong where a test wants them to be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from unittest.mock import patch

from tritloom.host.drafting import PromptLookup


@contextmanager
def foretold(text: Sequence[int], wrong: int = 1 << 30) -> Iterator[None]:
    """Sessions draft `text` (prompt and what follows), but wrongly at every place divisible by `wrong`."""

    class Prophet(PromptLookup):
        def draft(self, room: int, *_: object) -> list[int]:
            at = len(self._text)
            return [token ^ (i % wrong == 0) for i, token in enumerate(text[at : at + min(room, self._most)], at)]

    with patch("tritloom.host.scheduler.PromptLookup", Prophet):
        yield
