"""Several texts on one device: every pass over the weights serves a token or more of each.

    with session.batch() as batch:
        one = batch.add(prompt, 100, sampling=sampling(0.8, seed=1))
        batch.add(other_prompt, 50, stop_ids=[1], drafts=2)
        for text, token in batch:
            ...

Texts are added and closed at any time, also between two tokens. Each has a cache of its own, and is bit for bit what the
session would generate of it alone: neither the others nor guesses change it. A text that begins as another one does reads only the rest
of its prompt: the chunks that both have lie in the other's cache, which is not free before both are done, and are read once for all
texts that attend together. A new text waits for a cache where beginnings of finished ones hold them all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from tritloom.firmware.config import CHUNK, BuildConfig
from tritloom.firmware.errors import InputError
from tritloom.firmware.integer import GREEDY, Sampling
from tritloom.firmware.programs import segment_words
from tritloom.host.backends.protocol import DeviceError
from tritloom.host.drafting import Budget, PromptLookup

Session = Any
"""host.session.Session, which imports this module."""


@dataclass(eq=False)
class Text:
    """One text: what the device has to read of it, and what it has generated.

    `unread`: tokens that the device has not read, the first of them at `position`; `left`: tokens to generate; `tokens`: those
    generated; `cache`: which of the device's; `closed`: nobody wants more of it. `prompt`: what it begins with, if nothing stands
    before it; `begun`: it has a cache, and the device has read some of it or is about to. Its first `shared` positions, whole chunks, are
    those of another text and lie in the cache `prefix`.
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
    prompt: tuple[int, ...] = ()
    begun: bool = False
    shared: int = 0
    prefix: int = 0

    @property
    def done(self) -> bool:
        return not self.left

    def close(self) -> None:
        """Generate no more of it; its cache is free from the next pass on."""
        self.left, self.closed = 0, True


@dataclass(frozen=True)
class _Prefix:
    """The first `positions` positions of some texts, in the cache `cache`."""

    cache: int
    positions: int

    @classmethod
    def of(cls, text: Text, among: Sequence[Text]) -> _Prefix | None:
        """What a text shares with most of the others; the text in whose cache it lies shares it too."""
        if text.shared:
            return cls(text.prefix, text.shared)
        mine = [cls(t.prefix, t.shared) for t in among if t.shared and t.prefix == text.cache and t.shared <= text.position]
        return max(mine, key=lambda prefix: (mine.count(prefix), prefix.positions), default=None)


@dataclass
class _Segment:
    """What one pass does of a text: `count` of its unread tokens (`answers`: with them all are read), then guesses; `first`: the slot of
    the first token."""

    text: Text
    count: int
    answers: bool
    prefix: _Prefix | None = None
    drafts: list[int] = field(default_factory=list)
    first: int = 0

    @property
    def tokens(self) -> list[int]:
        return self.text.unread[: self.count] + self.drafts


@dataclass
class _Piece:
    """Tokens of a segment, as many as the dot engine has lanes or fewer, the first at `position`."""

    segment: _Segment
    position: int
    tokens: list[int]

    @property
    def shared(self) -> int:
        return self.segment.prefix.positions if self.segment.prefix else 0


def _chunks_read(pieces: Sequence[_Piece], config: BuildConfig) -> int:
    """Chunks of a key/value head that the dot engine reads for pieces that attend together: for one token its lanes take heads."""
    passes = config.shape.group if sum(len(piece.tokens) for piece in pieces) > 1 else -(-config.shape.group // config.dot_lanes)
    own = sum(-(-(piece.position - piece.shared + len(piece.tokens)) // CHUNK) for piece in pieces)
    return passes * (pieces[0].shared // CHUNK + own)


def _together(segments: Sequence[_Segment], config: BuildConfig) -> list[list[_Piece]]:
    """The pieces of all segments, in order; those that attend together stand in one list: as many with one prefix as the dot engine has
    lanes, unless it reads less for each alone, or no more if the first and the last are alone."""
    groups: list[list[_Piece]] = []
    for segment in segments:
        for at in range(0, len(segment.tokens), config.dot_lanes):
            piece = _Piece(segment, segment.text.position + at, segment.tokens[at : at + config.dot_lanes])
            before = groups[-1] if groups else []
            if before and before[0].segment.prefix == segment.prefix and sum(len(p.tokens) for p in [*before, piece]) <= config.dot_lanes:
                before.append(piece)
            else:
                groups.append([piece])

    def apart(pieces: list[_Piece]) -> list[list[_Piece]]:
        alone = [[piece] for piece in pieces]
        # The first one's queries are soon ready, and the last one's norm is soon done: the vector unit does the others' beside attention.
        some = [pieces[:1], pieces[1:-1], pieces[-1:]] if len(pieces) > 2 else [pieces]

        def read(groups: list[list[_Piece]]) -> int:
            return sum(_chunks_read(group, config) for group in groups)

        return min(some, [pieces], alone, key=read)

    return [part for pieces in groups for part in apart(pieces)]


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
        session.push([slots, first, *self._words(segments)])
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

    def _words(self, segments: Sequence[_Segment]) -> list[int]:
        """The segments as the program takes them."""
        config, layout, words = self._session.config, self._session.image.map, []
        for pieces in _together(segments, config):
            for piece in pieces:
                text, prefix = piece.segment.text, piece.segment.prefix
                own = layout.cache_base(config, text.cache) + piece.shared // CHUNK * 2 * config.kv_half_bytes
                words += segment_words(own, len(piece.tokens), piece.position, joins=piece is not pieces[-1], shared=piece.shared,
                                       prefix=layout.cache_base(config, prefix.cache) if prefix else 0, sampling=text.sampling)
                words += piece.tokens
        return words

    def _plan(self, texts: Sequence[Text]) -> list[_Segment]:
        """Every text has a token; prompts take what room is left, guesses the rest. Texts without an answer go first, and those of which
        only the last token is answered are next, so that the answers follow each other; among these, texts with one prefix."""
        session = self._session
        room = session.config.lanes - len(texts)
        segments = []
        for text in texts:
            count = min(len(text.unread), 1 + room)
            segments.append(_Segment(text, count, count == len(text.unread), _Prefix.of(text, texts)))
            room -= count - 1
        slots, answering = session.config.lanes - room, sum(segment.answers for segment in segments)
        for segment in segments:
            text = segment.text
            if text.lookup and segment.answers:
                most = min(room, text.left - 1, session.config.shape.context - text.position - segment.count)
                segment.drafts = text.lookup.draft(most, slots, answering, self._budget)
                room, slots, answering = room - len(segment.drafts), slots + len(segment.drafts), answering + len(segment.drafts)
        segments.sort(key=lambda s: (s.answers, -s.count, (s.prefix.cache, s.prefix.positions) if s.prefix else (-1, 0)))
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


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two texts begin with alike."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


class Batch:
    """Texts that a session generates together (`Session.batch` makes one)."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._texts: list[Text] = []
        self._users = [0] * session.config.sequences
        """Texts that have something in each cache."""
        self._read: list[int] = []
        """Prompt tokens of the texts added since the last iteration, for the statistics."""

    def __enter__(self) -> Batch:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        try:
            self.close()
        except DeviceError:
            if error is None:  # else the first error is the one to report
                raise

    @property
    def texts(self) -> tuple[Text, ...]:
        """Those that are not done."""
        return tuple(text for text in self._texts if not text.done)

    def add(self, prompt: Iterable[int], max_new_tokens: int, *, sampling: Sampling = GREEDY, stop_ids: Sequence[int] = (),
            drafts: int = 0, position: int = 0, like: Text | None = None, shared: int = 0) -> Text:
        """Another text, from the next pass on: up to `max_new_tokens` tokens after `prompt`, as `Session.generate` would make them.

        When its turn comes, it takes the longest beginning, in whole chunks of 16 tokens, that it has in common with a text under way
        from that one's cache (`Text.shared` says how many tokens) and reads the rest; the last token of a prompt is always read.
        While a text under way is still reading the prompt that both have, it waits for it: reading it twice would take longer.

        `position`: as if the device had read so many tokens before, with the cache as it lies, for measuring; `shared`, whole chunks:
        so many of these are those of the text `like`.

        It also waits while no cache is free because texts under way share the beginning of one that is done.

        Raises `InputError` for what the device cannot do; so when as many texts are under way as it has caches (`sequences` of its
        configuration).
        """
        session = self._session
        session.require_batch(self)
        tokens = session.checked(prompt, max_new_tokens, sampling, stop_ids, drafts, position)
        self._collect()
        # A text that begins in the middle begins now.
        if len(self._texts) == session.config.sequences or (position and self._free is None):
            raise InputError(f"all {session.config.sequences} caches of this machine are taken: close a text, or build the machine with "
                             "more `sequences`")
        lookup = PromptLookup(tokens, drafts) if drafts else None
        if shared % CHUNK or shared > position or (shared and not (like and like.begun)):
            raise InputError(f"a text shares whole chunks of {CHUNK} of its {position} positions with another one, not {shared}")
        text = Text(tokens, max_new_tokens, position, 0, sampling, tuple(stop_ids), lookup, prompt=() if position else tuple(tokens))
        if position and (cache := self._free) is not None:
            self._begin(text, cache, shared, like.cache if like else 0)
        self._texts.append(text)
        self._read += tokens
        return text

    def _collect(self) -> None:
        """Free the caches of texts that are done."""
        for text in self._texts:
            if text.done and text.begun:
                self._users[text.cache] -= 1
                if text.shared:
                    self._users[text.prefix] -= 1
        self._texts = [text for text in self._texts if not text.done]

    @property
    def _free(self) -> int | None:
        """A cache in which nobody has anything, if there is one."""
        return next((cache for cache, users in enumerate(self._users) if not users), None)

    def _begin(self, text: Text, cache: int, shared: int, prefix: int) -> None:
        """It gets `cache`; it has been read up to `shared`, or further, and has so much in the cache `prefix`."""
        text.begun, text.cache, text.shared, text.prefix, text.position = True, cache, shared, prefix, max(text.position, shared)
        self._users[cache] += 1
        if shared:
            self._users[prefix] += 1
            text.unread = text.unread[shared:] if text.prompt else text.unread

    def _ready(self, text: Text) -> bool:
        """Whether a pass may read some of it: it has begun, or begins now, unless there is no cache for it yet or a text under way is
        reading what both begin with."""
        if text.begun:
            return True
        cache = self._free
        if cache is None:
            return False
        best, coming = (0, 0), 0
        for other in self._texts:
            if not other.begun or not other.prompt:
                continue
            common = _common(text.prompt[:-1], [*other.prompt, *other.tokens])
            common = min(common, other.shared) if other.shared else common
            read = min(common, other.position) // CHUNK * CHUNK
            best = max(best, (read, other.prefix if other.shared else other.cache))
            coming = max(coming, min(common, len(other.prompt)) // CHUNK * CHUNK)
        if coming > best[0]:
            return False
        self._begin(text, cache, *best)
        return True

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
        turn: list[Text] = []
        for text in self._texts:
            if len(turn) < self._session.config.lanes and self._ready(text):
                turn.append(text)
        rest = [text for text in self._texts if text not in turn]
        self._texts = rest + turn if rest else turn
        return passes.step(turn)

    def close(self) -> None:
        """Stop all texts; the session may generate again."""
        for text in self._texts:
            text.close()
        self._session.end_batch(self)
