"""Guesses at what comes next, taken from the text itself, and whether they are worth their cost."""

from __future__ import annotations

from collections.abc import Iterable

LONGEST, SHORTEST = 4, 2
"""Lengths of the endings that are looked up, the longer ones first."""
MEMORY = 0.9
"""Weight of the past in the running share of right guesses: some ten guesses count."""
COST = 0.15
"""What a token more adds to a pass, as a share of a pass of one token, until it has been measured."""
SLACK = 0.02
"""Guesses may lose so much of the time that the text would have taken without them."""
CREEP = 1.02
"""A pass may seem to take so many times the cycles that it last took at best: longer for a longer text, but not for a slow host."""


class Budget:
    """What passes cost by their number of tokens, as measured, and what the drafts of a generation have gained by now.

    `cycles`: cycles of a pass by its number of tokens, kept from one generation to the next. Where nothing is measured, and on a
    device without time, passes are counted instead of cycles.
    """

    def __init__(self, cycles: dict[int, float]) -> None:
        self._cycles = cycles
        self._plain = self._gain = 0.0

    def measured(self, tokens: int, cycles: int) -> None:
        """A pass of `tokens` tokens took `cycles` cycles."""
        self._cycles[tokens] = min(cycles, CREEP * self._cycles.get(tokens, cycles))

    def cost(self, tokens: int) -> float:
        """Of a pass of `tokens` tokens: as measured, else on the line through the shortest and the longest measured pass."""
        known = self._cycles
        if tokens in known:
            return known[tokens]
        if not known:
            return 1 + COST * (tokens - 1)
        least, most = min(known), max(known)
        step = max((known[most] - known[least]) / (most - least), 0) if most > least else COST * known[least] / (1 + COST * (least - 1))
        return max(known[least] + step * (tokens - least), known[least] / 2)

    def loss(self, tokens: int, drafts: int) -> float:
        """What `drafts` guesses beside `tokens` tokens cost if all are wrong."""
        return max(self.cost(tokens + drafts) - self.cost(tokens), 0)

    def affords(self, tokens: int, drafts: int) -> bool:
        """Whether the generation may lose them and stay within SLACK of the time without guesses."""
        return self._gain - self.loss(tokens, drafts) >= -SLACK * self._plain

    def settle(self, tokens: int, drafts: int, answers: int, right: int) -> None:
        """A pass of `tokens` tokens and `drafts` guesses is over: `answers` tokens came of it and, of the guesses, `right` more."""
        plain = self.cost(tokens)
        self._plain += plain
        self._gain += right * plain / answers - self.loss(tokens, drafts)


class PromptLookup:
    """Draft tokens by prompt look-up: what followed the same ending earlier in the text (Saxena, Prompt Lookup Decoding, 2023).

    Every token of the text is guessed, whether or not the guess is used, and a running share of the right guesses is
    kept, from the prompt on. So many tokens are drafted as make the most tokens for the cycles, by that share, and as the
    budget affords: a text that does not repeat itself is left alone.
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

    def draft(self, room: int, tokens: int, answers: int, budget: Budget) -> list[int]:
        """At most `room` tokens that may follow, to be checked in a pass of `tokens` tokens and `answers` answers without them."""
        if self._start is None:
            return []
        guesses = self._text[self._start : self._start + max(min(self._most, room), 0)]
        best, worth, expected, chance = 0, answers / budget.cost(tokens), float(answers), 1.0
        for n in range(1, len(guesses) + 1):
            chance *= self._right
            expected += chance
            if expected / budget.cost(tokens + n) > worth and budget.affords(tokens, n):
                best, worth = n, expected / budget.cost(tokens + n)
        return guesses[:best]
