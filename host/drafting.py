"""Guesses at what comes next, taken from the text itself."""

from __future__ import annotations

import math
from collections.abc import Iterable

LONGEST, SHORTEST = 4, 2
"""Lengths of the endings that are looked up, the longer ones first."""
MEMORY = 0.9
"""Weight of the past in the running share of right guesses: some ten guesses count."""
COST = 0.15
"""What a drafted token adds to a pass, as a share of it: an estimate, not measured. A draft is worth its cost if it is right more often."""


class PromptLookup:
    """Draft tokens by prompt look-up: what followed the same ending earlier in the text (Saxena, Prompt Lookup Decoding, 2023).

    Every token of the text is guessed, whether or not the guess is used, and a running share of the right guesses is
    kept, from the prompt on. So many tokens are drafted that the last of them is still worth its cost; a text that does
    not repeat itself is left alone.
    """

    def __init__(self, text: Iterable[int], most: int) -> None:
        self._text: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}
        self._most, self._right = most, 0.0
        self._start: int | None = None
        for token in text:
            self.push(token)

    def push(self, token: int) -> None:
        """The text goes on with `token`."""
        text = self._text
        if self._start is not None:
            self._right = MEMORY * self._right + (1 - MEMORY) * (text[self._start] == token)
        for n in range(SHORTEST, LONGEST + 1):
            if len(text) >= n:
                self._after[tuple(text[-n:])] = len(text)
        text.append(token)
        endings = (self._after.get(tuple(text[-n:])) for n in range(LONGEST, SHORTEST - 1, -1) if len(text) >= n)
        self._start = next((start for start in endings if start is not None), None)

    def draft(self, room: int) -> list[int]:
        """At most `room` tokens that may follow."""
        if self._start is None or self._right <= COST:
            return []
        worth = self._most if self._right >= 1 else int(math.log(COST) / math.log(self._right))
        return self._text[self._start : self._start + max(min(worth, self._most, room), 0)]
