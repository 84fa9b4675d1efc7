"""Requests to passes, and answers back to requests. No device is known here.

    scheduler = Scheduler(config, layout, timed=True)
    request = scheduler.add(prompt, 100)
    while (step := scheduler.next_pass()) is not None:
        answers = ...                                   # the device takes step.words and gives step.answers tokens, with their cycles
        for request, token, cycle in scheduler.settle(step, answers):
            ...

Every pass over the weights serves a token or more of each request; prompts take what room is left, drafts the rest. A request is bit for
bit what the device would generate of it alone: neither the others nor drafts change it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from tritloom.firmware.config import CHUNK, BuildConfig
from tritloom.firmware.errors import InputError
from tritloom.firmware.integer import GREEDY, Sampling
from tritloom.firmware.layout import MemoryMap
from tritloom.firmware.programs.convention import segment_words
from tritloom.host.drafting import Budget, PromptLookup
from tritloom.host.prefix import Caches, Prefix, longest_prefix
from tritloom.host.request import Request

MASK32 = 0xFFFFFFFF


@dataclass
class Segment:
    """What one pass does of a request: `count` of its unread tokens (`answers`: with them all are read), then drafts; `first`: the slot of
    the first token."""

    request: Request
    count: int
    answers: bool
    prefix: Prefix | None = None
    drafts: list[int] = field(default_factory=list)
    first: int = 0

    @property
    def tokens(self) -> list[int]:
        return self.request.unread[: self.count] + self.drafts


@dataclass
class Piece:
    """Tokens of a segment, as many as the dot engine has lanes or fewer, the first at `position`."""

    segment: Segment
    position: int
    tokens: list[int]

    @property
    def shared(self) -> int:
        return self.segment.prefix.positions if self.segment.prefix else 0


@dataclass(frozen=True)
class Pass:
    """One pass over the weights: `words` are what the device's program takes, `answers` the number of tokens that it gives, `slots` that of
    the tokens it reads, drafts included."""

    segments: list[Segment]
    words: list[int]
    slots: int
    answers: int


def chunks_read(pieces: Sequence[Piece], config: BuildConfig) -> int:
    """Chunks of a key/value head that the dot engine reads for pieces that attend together: for one token its lanes take heads."""
    passes = config.shape.group if sum(len(piece.tokens) for piece in pieces) > 1 else -(-config.shape.group // config.dot_lanes)
    own = sum(-(-(piece.position - piece.shared + len(piece.tokens)) // CHUNK) for piece in pieces)
    return passes * (pieces[0].shared // CHUNK + own)


def attention_groups(segments: Sequence[Segment], config: BuildConfig) -> list[list[Piece]]:
    """The pieces of all segments, in order; those in one list attend together.

    Group up to dot_lanes tokens with the same prefix; take the split with least cache traffic, on a tie the first and last alone.
    """
    groups: list[list[Piece]] = []
    for segment in segments:
        for at in range(0, len(segment.tokens), config.dot_lanes):
            piece = Piece(segment, segment.request.position + at, segment.tokens[at : at + config.dot_lanes])
            before = groups[-1] if groups else []
            if before and before[0].segment.prefix == segment.prefix and sum(len(p.tokens) for p in [*before, piece]) <= config.dot_lanes:
                before.append(piece)
            else:
                groups.append([piece])

    def split(pieces: list[Piece]) -> list[list[Piece]]:
        alone = [[piece] for piece in pieces]
        # The first one's queries are ready soon, and the last one's norm is done soon: the vector unit does the others' beside attention.
        ends_alone = [pieces[:1], pieces[1:-1], pieces[-1:]] if len(pieces) > 2 else [pieces]

        def traffic(groups: list[list[Piece]]) -> int:
            return sum(chunks_read(group, config) for group in groups)

        return min(ends_alone, [pieces], alone, key=traffic)

    return [part for pieces in groups for part in split(pieces)]


def pass_words(segments: Sequence[Segment], config: BuildConfig, layout: MemoryMap) -> list[int]:
    """The segments as the program takes them (`firmware.programs`)."""
    words: list[int] = []
    for pieces in attention_groups(segments, config):
        for piece in pieces:
            request, prefix = piece.segment.request, piece.segment.prefix
            own = layout.cache_base(config, request.cache) + piece.shared // CHUNK * 2 * config.kv_half_bytes
            words += segment_words(own, len(piece.tokens), piece.position, joins=piece is not pieces[-1], shared=piece.shared,
                                   prefix=layout.cache_base(config, prefix.cache) if prefix else 0, sampling=request.sampling)
            words += piece.tokens
    return words


def plan(requests: Sequence[Request], config: BuildConfig, layout: MemoryMap, budget: Budget) -> Pass:
    """The next pass of requests that are not done, as many as there are lanes or fewer.

    Every request has a token; prompts take what room is left, drafts the rest. Requests without an answer go first, and those of which
    only the last token is answered are next, so that the answers follow each other; among these, requests with one prefix.
    """
    room = config.lanes - len(requests)
    segments = []
    for request in requests:
        count = min(len(request.unread), 1 + room)
        segments.append(Segment(request, count, count == len(request.unread), Prefix.of(request, requests)))
        room -= count - 1
    slots, answers = config.lanes - room, sum(segment.answers for segment in segments)
    for segment in segments:
        request = segment.request
        if request.lookup and segment.answers:
            most = min(room, request.left - 1, config.shape.context - request.position - segment.count)
            segment.drafts = request.lookup.draft(most, slots, answers, budget)
            room, slots, answers = room - len(segment.drafts), slots + len(segment.drafts), answers + len(segment.drafts)
    segments.sort(key=lambda s: (s.answers, -s.count, (s.prefix.cache, s.prefix.positions) if s.prefix else (-1, 0)))
    at = 0
    for segment in segments:
        segment.first, at = at, at + len(segment.tokens)
    first = next((segment.first + segment.count - 1 for segment in segments if segment.answers), slots)
    return Pass(segments, [slots, first, *pass_words(segments, config, layout)], slots, slots - first)


def take(segment: Segment, answers: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The tokens that a request has from its answers, from its last token's on: those that the drafts foresaw, and the one after."""
    request, drafts = segment.request, segment.drafts
    right = next((i for i, draft in enumerate(drafts) if draft != answers[i][0]), len(drafts))
    new = list(answers[: right + 1])
    end = next((i for i, (token, _) in enumerate(new, 1) if token in request.stop_ids), None)
    new = new[:end]
    request.position += segment.count + len(new) - 1
    request.unread = [new[-1][0]]
    request.left = 0 if end else request.left - len(new)
    for token, _ in new:
        request.tokens.append(token)
        if request.lookup:
            request.lookup.push(token)
    return new


class Scheduler:
    """The requests on one device, and its KV caches.

    `layout`: where the caches lie; `pass_cycles`: device cycles of a pass by its number of tokens, as drafts learn them; `timed`: whether
    the device's cycles mean anything.
    """

    def __init__(self, config: BuildConfig, layout: MemoryMap, *, timed: bool, pass_cycles: dict[int, float] | None = None) -> None:
        self.config, self.layout, self.timed = config, layout, timed
        self.pass_cycles: dict[int, float] = {} if pass_cycles is None else pass_cycles
        self.caches = Caches(config.sequences)
        self._requests: list[Request] = []
        self.restart()

    def restart(self) -> None:
        """The program of passes begins anew: what passes have gained and read counts from here."""
        self._budget = Budget(self.pass_cycles)
        self._stamp: int | None = None
        """Cycle of the last answer of the pass before."""
        self.passes = self.read = 0
        """Passes that gave tokens; tokens read, drafts left out."""

    @property
    def requests(self) -> tuple[Request, ...]:
        """Those that are not done."""
        return tuple(request for request in self._requests if not request.done)

    def add(self, tokens: Sequence[int], max_new_tokens: int, *, sampling: Sampling = GREEDY, stop_ids: Sequence[int] = (),
            drafts: int = 0, position: int = 0, like: Request | None = None, shared: int = 0) -> Request:
        """A request from the next pass on; `host.session.Batch.add` has the arguments. Raises `InputError` if no cache is left."""
        self.collect()
        # A request that begins in the middle is admitted now.
        if len(self._requests) == self.config.sequences or (position and self.caches.free is None):
            raise InputError(f"all {self.config.sequences} caches of this machine are taken: close a text, or build the machine with "
                             "more `sequences`")
        if shared % CHUNK or shared > position or (shared and not (like and like.admitted)):
            raise InputError(f"a text shares whole chunks of {CHUNK} of its {position} positions with another one, not {shared}")
        lookup = PromptLookup(tokens, drafts) if drafts else None
        request = Request(list(tokens), max_new_tokens, position, sampling, tuple(stop_ids), lookup, () if position else tuple(tokens))
        if position and (cache := self.caches.free) is not None:
            self.caches.admit(request, cache, Prefix(like.cache if like else 0, shared))
        self._requests.append(request)
        return request

    def collect(self) -> None:
        """Free the caches of requests that are done."""
        for request in self._requests:
            if request.done:
                self.caches.release(request)
        self._requests = [request for request in self._requests if not request.done]

    def _admitted(self, request: Request) -> bool:
        """Whether a pass may read some of it: it has a cache, or gets one now, unless none is free or an admitted request is still reading
        what both begin with (reading it twice would take longer)."""
        if request.admitted:
            return True
        cache = self.caches.free
        if cache is None:
            return False
        prefix, coming = longest_prefix(request, self._requests)
        if coming > prefix.positions:
            return False
        self.caches.admit(request, cache, prefix)
        return True

    def next_pass(self) -> Pass | None:
        """What the device is to do next, or None when all requests are done. More requests than lanes take turns."""
        self.collect()
        if not self._requests:
            return None
        turn: list[Request] = []
        for request in self._requests:
            if len(turn) < self.config.lanes and self._admitted(request):
                turn.append(request)
        self._requests = [request for request in self._requests if request not in turn] + turn
        return plan(turn, self.config, self.layout, self._budget)

    def settle(self, done: Pass, answers: Sequence[tuple[int, int]]) -> list[tuple[Request, int, int]]:
        """(request, token, cycle) of what is new by a pass's answers, (token, cycle) each; the requests have them then."""
        skipped = done.slots - done.answers
        drafted = sum(len(segment.drafts) for segment in done.segments)
        if answers:
            self.passes += 1
            self._measure(done.slots, answers[-1][1])
        else:
            self._stamp = None
        result, right = [], 0
        for segment in done.segments:
            request = segment.request
            if segment.answers:
                new = take(segment, answers[segment.first + segment.count - 1 - skipped :])
                right += len(new) - 1
                result += [(request, token, stamp) for token, stamp in new]
            else:
                request.unread, request.position = request.unread[segment.count :], request.position + segment.count
        self.read += done.slots - drafted
        if answers:
            self._budget.settle(done.slots - drafted, drafted, sum(segment.answers for segment in done.segments), right)
        return result

    def _measure(self, slots: int, stamp: int) -> None:
        if self._stamp is not None and self.timed:
            self._budget.measured(slots, stamp - self._stamp & MASK32)
        self._stamp = stamp
