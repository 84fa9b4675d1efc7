"""Several texts on one device: every pass over the weights serves a token or more of each.

    with session.batch() as batch:
        one = batch.add(prompt, 100, sampling=sampling(0.8, seed=1))
        batch.add(other_prompt, 50, stop_ids=[1], drafts=2)
        for text, token in batch:
            ...

Texts are added and closed at any time, also between two tokens. Each has a cache of its own, and is bit for bit what the
session would generate of it alone: neither the others nor guesses change it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from tritloom.firmware.integer import GREEDY, Sampling
from tritloom.firmware.programs import segment_words
from tritloom.host.backend import InputError
from tritloom.host.drafting import Budget, PromptLookup

Session = Any
"""host.session.Session, which imports this module."""


@dataclass(eq=False)
class Text:
    """One text: what the device has to read of it, and what it has generated.

    `unread`: tokens that the device has not read, the first of them at `position`; `left`: tokens to generate; `tokens`: those
    generated; `cache`: which of the device's; `closed`: nobody wants more of it.
    """

    unread: list[int]
    left: int
    position: int = 0
    cache: int = 0
    sampling: Sampling = GREEDY
    stop_ids: tuple[int, ...] = ()
    lookup: PromptLookup | None = None
    tokens: list[int] = field(default_factory=list)
    closed: bool = False

    @property
    def done(self) -> bool:
        return not self.left

    def close(self) -> None:
        """Generate no more of it; its cache is free from the next pass on."""
        self.left, self.closed = 0, True


@dataclass
class _Segment:
    """What one pass does of a text: `count` of its unread tokens (`answers`: with them all are read), then guesses; `first`: the slot of
    the first token."""

    text: Text
    count: int
    answers: bool
    drafts: list[int] = field(default_factory=list)
    first: int = 0

    @property
    def tokens(self) -> list[int]:
        return self.text.unread[: self.count] + self.drafts


class Passes:
    """The device's program of passes (`firmware.programs`), started by the session, at work for some texts."""

    def __init__(self, session: Session) -> None:
        self._session, self._budget = session, Budget(session.pass_cycles)
        self._stamp: int | None = None
        """Cycle of the last answer of the pass before."""
        self.count = self.read = 0
        """Passes that gave tokens; tokens read, guesses left out."""

    def step(self, texts: Sequence[Text]) -> list[tuple[Text, int, int]]:
        """One pass for texts that are not done, as many as there are lanes: (text, token, cycle stamp) of the new tokens, which
        the texts have then."""
        session = self._session
        segments = self._plan(texts[: session.config.lanes])
        slots = sum(len(segment.tokens) for segment in segments)
        first = next((s.first + s.count - 1 for s in segments if s.answers), slots)
        words = [slots, first]
        for segment in segments:
            text = segment.text
            words += segment_words(session.image.map.cache_base(session.config, text.cache), text.position, len(segment.tokens),
                                   text.sampling.seed + text.position + 1, *text.sampling.words)  # fmt: skip
            words += segment.tokens
        session.push(words)
        answers = session.pull(slots - first)
        if answers:
            self.count += 1
            self._measure(slots, answers[-1][1])
        else:
            self._stamp = None
        result, right = [], 0
        for segment in segments:
            text = segment.text
            if segment.answers:
                new = self._take(segment, answers[segment.first + segment.count - 1 - first :])
                right += len(new) - 1
                result += [(text, token, stamp) for token, stamp in new]
            else:
                text.unread, text.position = text.unread[segment.count :], text.position + segment.count
        drafted = sum(len(segment.drafts) for segment in segments)
        self.read += slots - drafted
        if answers:
            self._budget.settle(slots - drafted, drafted, sum(segment.answers for segment in segments), right)
        return result

    def _plan(self, texts: Sequence[Text]) -> list[_Segment]:
        """Every text has a token; prompts take what room is left, guesses the rest. Texts without an answer go first, and those of which
        only the last token is answered are next, so that the answers follow each other."""
        session = self._session
        room = session.config.lanes - len(texts)
        segments = []
        for text in texts:
            count = min(len(text.unread), 1 + room)
            segments.append(_Segment(text, count, count == len(text.unread)))
            room -= count - 1
        slots, answering = session.config.lanes - room, sum(segment.answers for segment in segments)
        for segment in segments:
            text = segment.text
            if text.lookup and segment.answers:
                most = min(room, text.left - 1, session.config.shape.context - text.position - segment.count)
                segment.drafts = text.lookup.draft(most, slots, answering, self._budget)
                room, slots, answering = room - len(segment.drafts), slots + len(segment.drafts), answering + len(segment.drafts)
        segments.sort(key=lambda segment: (segment.answers, -segment.count))
        at = 0
        for segment in segments:
            segment.first, at = at, at + len(segment.tokens)
        return segments

    def _take(self, segment: _Segment, answers: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """The tokens that a text has from its answers: those that the guesses foresaw, and the one after."""
        text, drafts = segment.text, segment.drafts
        right = next((i for i, guess in enumerate(drafts) if guess != answers[i][0]), len(drafts))
        new = answers[: right + 1]
        end = next((i for i, (token, _) in enumerate(new, 1) if token in text.stop_ids), None)
        new = new[:end]
        text.position += segment.count + len(new) - 1
        text.unread = [new[-1][0]]
        text.left = 0 if end else text.left - len(new)
        for token, _ in new:
            text.tokens.append(token)
            if text.lookup:
                text.lookup.push(token)
        return new

    def _measure(self, slots: int, stamp: int) -> None:
        if self._stamp is not None and self._session.backend.timed:
            self._budget.measured(slots, stamp - self._stamp & 0xFFFFFFFF)
        self._stamp = stamp


class Batch:
    """Texts that a session generates together (`Session.batch` makes one)."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._texts: list[Text] = []
        self._free = list(range(session.config.sequences))
        self._read: list[int] = []
        """Prompt tokens of the texts added since the last iteration, for the statistics."""

    def __enter__(self) -> Batch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def texts(self) -> tuple[Text, ...]:
        """Those that are not done."""
        return tuple(text for text in self._texts if not text.done)

    def add(self, prompt: Iterable[int], max_new_tokens: int, *, sampling: Sampling = GREEDY, stop_ids: Sequence[int] = (),
            drafts: int = 0, position: int = 0) -> Text:
        """Another text, from the next pass on: up to `max_new_tokens` tokens after `prompt`, as `Session.generate` would make them.
        `position`: as if the device had read so many tokens before, with the cache as it lies, for measuring.

        Raises `InputError` for what the device cannot do; so when all caches are taken (`sequences` of its configuration).
        """
        session = self._session
        session.require_batch(self)
        tokens = session.checked(prompt, max_new_tokens, sampling, stop_ids, drafts, position)
        self._collect()
        if not self._free:
            raise InputError(f"all {session.config.sequences} caches of this machine are taken: close a text, or build the machine with "
                             "more `sequences`")
        lookup = PromptLookup(tokens, drafts) if drafts else None
        text = Text(tokens, max_new_tokens, position, self._free.pop(0), sampling, tuple(stop_ids), lookup)
        self._texts.append(text)
        self._read += tokens
        return text

    def _collect(self) -> None:
        """Free the caches of texts that are done."""
        for text in self._texts:
            if text.done:
                self._free.append(text.cache)
        self._texts = [text for text in self._texts if not text.done]

    def __iter__(self) -> Iterator[tuple[Text, int]]:
        """(text, token) as they come, until all texts are done. Iterate again after adding more, or after leaving the loop early: then
        what was left of the last pass stands in the texts' `tokens` only."""
        self._session.require_batch(self)
        try:
            yield from self._session.run_batch(self._pass, self._read)
        finally:
            self._read = []

    def _pass(self, passes: Passes) -> list[tuple[Text, int, int]] | None:
        """One pass, or None when all texts are done. More texts than lanes take turns."""
        self._collect()
        if not self._texts:
            return None
        lanes = self._session.config.lanes
        turn, rest = self._texts[:lanes], self._texts[lanes:]
        self._texts = rest + turn if rest else turn
        return passes.step(turn)

    def close(self) -> None:
        """Stop all texts; the session may generate again."""
        for text in self._texts:
            text.close()
        self._session.end_batch(self)
