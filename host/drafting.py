"""Guesses at what comes next, taken from the text itself."""

from __future__ import annotations

from collections.abc import Iterable

LONGEST, SHORTEST = 4, 2
"""Lengths of the endings that are looked up, the longer ones first."""


class PromptLookup:
    """Draft tokens by prompt look-up: what followed the same ending earlier in the text (Saxena, Prompt Lookup Decoding, 2023).

    The number of drafts follows their success: all that are asked for after a pass that took all of its drafts, else
    one more than the last pass took. A text that never repeats itself is so left alone after a single miss at a time.
    """

    def __init__(self, text: Iterable[int], most: int) -> None:
        self._text: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}
        self._most = self._limit = most
        for token in text:
            self.push(token)

    def push(self, token: int) -> None:
        """The text goes on with `token`."""
        text = self._text
        for n in range(SHORTEST, LONGEST + 1):
            if len(text) >= n:
                self._after[tuple(text[-n:])] = len(text)
        text.append(token)

    def draft(self, room: int) -> list[int]:
        """At most `room` tokens that may follow."""
        limit = min(self._limit, room)
        for n in range(LONGEST, SHORTEST - 1, -1):
            start = self._after.get(tuple(self._text[-n:])) if len(self._text) >= n else None
            if start is not None and limit > 0:
                return self._text[start : start + limit]
        return []

    def took(self, drafted: int, accepted: int) -> None:
        """Of `drafted` tokens the model would have chosen the first `accepted`."""
        if drafted:
            self._limit = self._most if accepted == drafted else min(accepted + 1, self._most)
