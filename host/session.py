"""A conversation with one device: load an image, give it prompts, take tokens.

    with Session(backend, open_image("story.img")) as session:
        for token in session.generate(prompt, 100, stop_ids=[1]):
            ...
        print(session.stats())

The device generates on its own; the host only fetches tokens. Every wait is bounded.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from typing import Any

from tritloom.firmware.config import BuildConfig
from tritloom.firmware.errors import InputError
from tritloom.firmware.image import Image
from tritloom.firmware.integer import GREEDY, LOGIT_DROP, Sampling, noise_word, noise_words, uf_from_float
from tritloom.firmware.programs.convention import (
    ARG_LIMITS,
    ARG_NOISE,
    ARG_NOISE_STEP,
    ARG_POSITION,
    ARG_PROMPT,
    ARG_STOP,
    ARG_TEMPERATURE,
    ARG_TOKENS,
    ENTRY_GENERATION,
    ENTRY_PASSES,
    NO_STOP_TOKEN,
)
from tritloom.host.backends.protocol import Backend, DeviceBusy, DeviceError
from tritloom.host.device import MASK32, Counters, Device, Progress
from tritloom.host.request import Request
from tritloom.host.scheduler import Scheduler
from tritloom.host.stats import Generation, Stats

LEAST_TEMPERATURE = 2.0**-126
"""Below it a temperature is greedy: two different integer logits are then so far apart that no noise reverses their order, for they
are steps of 2**-120 or more (gen/scaling.py refuses models of finer ones)."""


def sampling(temperature: float | None = None, top_k: int | None = None, top_p: float | None = None, seed: int | None = None) -> Sampling:
    """Sampler settings. No temperature means greedy, or 1 where top_k or top_p is given; one below LEAST_TEMPERATURE is greedy."""
    if temperature is None:
        temperature = 1.0 if top_k or top_p is not None else 0.0
    if not (math.isfinite(temperature) and 0 <= temperature <= 1000):
        raise InputError(f"the temperature must be from 0 (greedy) to 1000, not {temperature}")
    if top_k is not None and not 0 <= top_k < 1 << 16:
        raise InputError(f"top-k must be from 0 (off) to {(1 << 16) - 1}, not {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise InputError(f"top-p must be above 0 and at most 1 (off), not {top_p}")
    if seed is not None and not 0 <= seed <= MASK32:
        raise InputError(f"the seed must be from 0 to {MASK32}, not {seed}")
    if temperature < LEAST_TEMPERATURE:
        return GREEDY
    scale = uf_from_float((1 << LOGIT_DROP) * math.log2(math.e) / temperature)
    return Sampling(scale, top_k or 0, 65536 if top_p is None else max(1, round(top_p * 65536)), seed or 0)


def check_passes(config: BuildConfig) -> None:
    """Raises `InputError` for a machine that has no program of passes."""
    if config.shortlist:
        raise InputError("a machine with a short-list takes one text and checks no drafts: build it with shortlist=0")


def check_drafts(drafts: int, config: BuildConfig) -> None:
    """Raises `InputError` for drafts that a machine of `config` cannot check."""
    if drafts:
        check_passes(config)
    lanes = config.lanes
    if not 0 <= drafts < lanes:
        raise InputError(f"drafts must be from 0 to {lanes - 1} on this machine of {lanes} lanes, not {drafts}")


class Session:
    """One user's hold on one device, with one model loaded.

    `backend`: the device; `image`: what to load, which must have been packed for this very device. `position`:
    tokens that the device remembers; generation goes on from there until `reset`. `timeout_s`: real time that
    the device may take without progress (`host.device`).
    """

    def __init__(self, backend: Backend, image: Image, *, timeout_s: float = 1800.0) -> None:
        self.backend, self.image, self.config = backend, image, image.config
        self.position = 0
        self._pending: int | None = None
        """The newest token, which the device has not read yet."""
        self._active: Generation | None = None
        self._batch: Batch | None = None
        self._stats: Stats | None = None
        self.pass_cycles: dict[int, float] = {}
        """Device cycles of a pass by its number of tokens, as drafts learn them."""
        self.device = Device(backend, image, timeout_s=timeout_s, annotate=lambda: {"position": self.position})

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        try:
            self.close()
        except DeviceError:
            if error is None:  # else the first error is the one to report
                raise

    def close(self) -> None:
        """Stop the device and let go of it (the backend stays open). Raises `DeviceFault` for an error that nobody has seen yet."""
        try:
            self.stop()
        finally:
            self.device.release()

    # Requests ------------------------------------------------------------------------------------

    def prefill(self, prompt: Iterable[int], *, progress: Progress | None = None) -> None:
        """Let the device read a prompt. Its last token waits for the next call, which may then generate without a prompt."""
        tokens = self._tokens(prompt)
        self._check_room(tokens, 1)
        for _ in self._run(self._place, tokens[:-1], 0, GREEDY, (), progress, 0):
            raise DeviceError("the device generated a token when it should only read")
        self._pending = tokens[-1]

    def generate(
        self,
        prompt: Iterable[int] = (),
        max_new_tokens: int = 1,
        *,
        sampling: Sampling = GREEDY,
        stop_ids: Sequence[int] = (),
        drafts: int = 0,
        progress: Progress | None = None,
    ) -> Generator[int, None, None]:
        """Tokens that follow `prompt` and all that the device has read before, as they come.

        Ends after `max_new_tokens` or with the first of `stop_ids` (which is among the tokens). The request is
        checked now; the device starts with the first token asked for. Closing the iterator early stops the
        device and forgets what was not taken. With `drafts`, up to so many tokens are guessed by prompt look-up and
        checked in one pass over the weights: the text is the same, sooner where it repeats itself.
        """
        tokens = self.checked(prompt, max_new_tokens, sampling, stop_ids, drafts)
        return self._run(self._place, tokens, max_new_tokens, sampling, tuple(stop_ids), progress, drafts)

    def checked(
        self, prompt: Iterable[int], max_new_tokens: int, sampling: Sampling, stop_ids: Sequence[int], drafts: int, position: int = 0
    ) -> list[int]:
        """The tokens to read, the first at `position` or where the session's text ends. Raises `InputError` where the device cannot."""
        tokens = self._tokens(prompt)
        if max_new_tokens < 1:
            raise InputError(f"the number of tokens to generate must be at least 1, not {max_new_tokens}")
        self._check_room(tokens, max_new_tokens, position)
        for token in stop_ids:
            self._check_token(token, "stop token")
        if sampling.top_k > self.config.sampler_candidates:
            raise InputError(f"top-k {sampling.top_k} is more than the machine's {self.config.sampler_candidates} candidates: lower it")
        check_drafts(drafts, self.config)
        return tokens

    def batch(self) -> Batch:
        """Several texts together, with all the device's caches. The session's own text is forgotten, and it has none
        until the batch is closed."""
        check_passes(self.config)
        if self._batch is not None or self._active is not None:
            raise DeviceBusy("a batch or a generation is under way: close it first")
        self.device.require_seen()
        self.reset()
        self._batch = Batch(self)
        return self._batch

    def require_batch(self, batch: object) -> None:
        if self._batch is not batch:
            raise InputError("the batch is closed: open another one")

    def end_batch(self, batch: object) -> None:
        """Stop what runs of it, and close it."""
        if self._batch is batch:
            self._batch = None
            self.stop()

    def stop(self) -> None:
        """End the generation under way, if any. What was taken of it stays part of the text.

        Raises `DeviceFault` if the memory has failed, and `DeviceTimeout` if the device did not stop and had to be reset: then the
        session must be reset too.
        """
        if self._active is None:
            self.device.require_seen()
            return
        try:
            self.device.stop()
        finally:
            self._finish(completed=False)

    def reset(self) -> None:
        """Forget the text, and whatever went wrong: a device that does not stop is reset. Raises `DeviceTimeout` if its memory does not
        let it."""
        if self._active is not None:
            self._finish(completed=False)
        self._batch = None
        self.device.reset()
        self.position, self._pending, self._stats = 0, None, None

    def assume(self, position: int) -> None:
        """Go on as if the device had read `position` tokens: the cache is taken as it lies in the device's memory.

        For measuring at a depth without reading a text of that length first. The text so far is forgotten.
        """
        if not 0 <= position < self.config.shape.context:
            raise InputError(f"the position must be from 0 to {self.config.shape.context - 1}, not {position}")
        self.device.require_seen()
        self.reset()
        self.position = position

    def stats(self) -> Stats:
        """Of the generation under way, else of the last one."""
        if self._active is not None:
            return self._active.stats(self.backend)
        if self._stats is None:
            raise InputError("there are no statistics before the first generation: generate something")
        return self._stats

    @property
    def remaining(self) -> int:
        """Tokens that the context still takes, the newest one that the device has not read left out: 0 when it is full."""
        return max(self.config.shape.context - self.position - (self._pending is not None), 0)

    @property
    def _place(self) -> tuple[int, int | None]:
        return self.position, self._pending

    # Checks --------------------------------------------------------------------------------------

    def _tokens(self, prompt: Iterable[int]) -> list[int]:
        """The tokens to read: the pending one, then the prompt."""
        tokens = [int(token) for token in prompt]
        for token in tokens:
            self._check_token(token, "prompt token")
        tokens = tokens if self._pending is None else [self._pending, *tokens]
        if not tokens:
            raise InputError("the prompt is empty: give at least one token")
        return tokens

    def _check_token(self, token: int, what: str) -> None:
        if not 0 <= token < self.config.shape.vocab:
            raise InputError(f"{what} {token} is outside the vocabulary of {self.config.shape.vocab}: use this model's tokenizer")

    def _check_room(self, tokens: Sequence[int], new: int, position: int = 0) -> None:
        context, position = self.config.shape.context, position or self.position
        after = f" after {position} positions" if position else ""
        if position + len(tokens) > context:
            raise InputError(
                f"the prompt of {len(tokens)} tokens{after} is longer than the context of {context}: shorten it or reset the session"
            )
        room = context - position - len(tokens) + 1
        if new > room:
            raise InputError(
                f"{new} tokens after a prompt of {len(tokens)}{after} go past the context of {context}: ask for at most {room}"
            )

    # Running -------------------------------------------------------------------------------------

    def _run(
        self,
        place: tuple[int, int | None],
        tokens: Sequence[int],
        new: int,
        sampling: Sampling,
        stop_ids: tuple[int, ...],
        progress: Progress | None,
        drafts: int,
    ) -> Generator[int, None, None]:
        """The generation, checked and asked for when the text ended at `place`."""
        if not tokens:
            return
        if self._batch is not None:
            raise DeviceBusy("a batch is open: close it first")
        self._require_idle()
        if place != self._place:
            raise InputError("the text has changed since this generation was asked for: ask again")
        generation = Generation(tokens, new)
        if drafts:
            scheduler = self.scheduler()
            scheduler.add(tokens, new, sampling=sampling, stop_ids=stop_ids, drafts=drafts, position=self.position)
            known, entry, arguments = (), ENTRY_PASSES, {}
            items = self._passes(generation, scheduler, progress)
        else:
            (temperature, limits), noise = sampling.words, noise_word(sampling.seed, self.position + len(tokens))
            known, entry = stop_ids[1:], ENTRY_GENERATION
            arguments = {ARG_PROMPT: len(tokens), ARG_TOKENS: new, ARG_POSITION: self.position,
                         ARG_STOP: stop_ids[0] if stop_ids else NO_STOP_TOKEN,
                         ARG_TEMPERATURE: temperature, ARG_LIMITS: limits,
                         ARG_NOISE: noise, ARG_NOISE_STEP: noise_words(sampling.seed)[1]}  # fmt: skip
            goal = "a token" if new else "the end of the prompt"
            items = ((None, *item) for item in self.device.exchange(tokens, new, goal, progress))
        with closing(self._drive(generation, entry, arguments, items)) as run:
            for _, token in run:
                yield token
                if token in known:
                    self.stop()
                    return

    def scheduler(self) -> Scheduler:
        """For passes on this device."""
        return Scheduler(self.config, self.image.map, timed=self.backend.timed, pass_cycles=self.pass_cycles)

    def run_batch(self, scheduler: Scheduler, prompt: Sequence[int]) -> Generator[tuple[Request, int], None, None]:
        """(request, token) of pass after pass, until the scheduler makes none; `prompt`: all tokens read, for the statistics."""
        self._require_idle()
        generation = Generation(prompt, keeps=False)
        with closing(self._drive(generation, ENTRY_PASSES, {}, self._passes(generation, scheduler, None))) as run:
            for request, token in run:
                if not request.closed:
                    yield request, token

    def _require_idle(self) -> None:
        if self.device.failed:
            raise DeviceError("the device failed before: reset the session")
        self.device.status()
        if self._active is not None:
            raise DeviceBusy("a generation is under way: take all its tokens or close it first")

    def _drive(
        self, generation: Generation, entry: int, arguments: dict[int, int], items: Iterator[tuple[Any, int, int]]
    ) -> Generator[tuple[Any, int], None, None]:
        """Start the program at `entry` and hand on what comes of it: (request, token) of each of `items`, which have the cycle too."""
        self._active = generation
        try:
            self.device.start(entry, arguments)
            for request, token, stamp in items:
                generation.token(token, stamp, self.backend)
                yield request, token
                if self._active is not generation:
                    return
            if self._active is generation:
                self._finish(completed=True)
        except GeneratorExit:
            if self._active is generation:
                self.stop()
            raise
        except BaseException as error:
            self.device.failed |= isinstance(error, DeviceError)
            if self._active is generation:
                with suppress(DeviceError):  # `failed` keeps it; the first error is the one to report
                    self.stop()
            raise

    def _passes(self, generation: Generation, scheduler: Scheduler, progress: Progress | None) -> Iterator[tuple[Request, int, int]]:
        """(request, token, cycle stamp) of pass after pass, until the scheduler makes none; then the program ends."""
        generation.scheduler = scheduler
        scheduler.restart()
        while self._active is generation and (step := scheduler.next_pass()) is not None:
            self.device.push(step.words)
            new = scheduler.settle(step, self.device.pull(step.answers))
            if progress:
                progress(min(scheduler.read, len(generation.prompt)), len(generation.prompt))
            yield from new
        if self._active is generation:
            self.device.push([0])
            self.device.finish()

    def _finish(self, *, completed: bool) -> None:
        """Take stock of the generation that has ended: the text is what was taken of it."""
        generation, self._active = self._active, None
        assert generation is not None
        generation.end_s = time.monotonic()
        taken = generation.taken
        if generation.keeps and (taken or completed):
            self.position += len(generation.prompt) + max(len(taken) - 1, 0)
            self._pending = taken[-1] if taken else None
        try:
            generation.last = Counters.read(self.backend)
            self._stats = generation.stats(self.backend)
        except DeviceError:
            self._stats, self.device.failed = None, True


class Batch:
    """Several texts on one device: every pass over the weights serves a token or more of each (`Session.batch` makes one).

        with session.batch() as batch:
            one = batch.add(prompt, 100, sampling=sampling(0.8, seed=1))
            batch.add(other_prompt, 50, stop_ids=[1], drafts=2)
            for request, token in batch:
                ...

    Requests are added and closed at any time, also between two tokens. Each is bit for bit what the session would generate of it alone.
    A text that begins as another one does reads only the rest of its prompt (`host.prefix`). A new text waits for a cache where beginnings
    of finished ones hold them all.
    """

    def __init__(self, session: Session) -> None:
        self._session, self._scheduler = session, session.scheduler()
        self._read: list[int] = []
        """Prompt tokens of the requests added since the last iteration, for the statistics."""

    def __enter__(self) -> Batch:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        try:
            self.close()
        except DeviceError:
            if error is None:  # else the first error is the one to report
                raise

    @property
    def requests(self) -> tuple[Request, ...]:
        """Those that are not done."""
        return self._scheduler.requests

    def add(self, prompt: Iterable[int], max_new_tokens: int, *, sampling: Sampling = GREEDY, stop_ids: Sequence[int] = (),
            drafts: int = 0, position: int = 0, like: Request | None = None, shared: int = 0) -> Request:
        """Another text, from the next pass on: up to `max_new_tokens` tokens after `prompt`, as `Session.generate` would make them.

        When its turn comes, it takes the longest beginning, in whole chunks of 16 tokens, that it has in common with a text under way
        from that one's cache (`Request.shared` says how many tokens) and reads the rest; the last token of a prompt is always read.
        While a text under way is still reading the prompt that both have, it waits for it: reading it twice would take longer.

        `position`: as if the device had read so many tokens before, with the cache as it lies, for measuring; `shared`, whole chunks:
        so many of these are those of the request `like`.

        It also waits while no cache is free because texts under way share the beginning of one that is done.

        Raises `InputError` for what the device cannot do; so when as many texts are under way as it has caches (`sequences` of its
        configuration).
        """
        session = self._session
        session.require_batch(self)
        tokens = session.checked(prompt, max_new_tokens, sampling, stop_ids, drafts, position)
        request = self._scheduler.add(tokens, max_new_tokens, sampling=sampling, stop_ids=stop_ids, drafts=drafts, position=position,
                                      like=like, shared=shared)
        self._read += tokens
        return request

    def __iter__(self) -> Iterator[tuple[Request, int]]:
        """(request, token) as they come, until all requests are done. Iterate again after adding more, or after leaving the loop early:
        then what was left of the last pass stands in the requests' `tokens` only."""
        self._session.require_batch(self)
        try:
            yield from self._session.run_batch(self._scheduler, self._read)
        finally:
            self._read = []

    def close(self) -> None:
        """Stop all texts; the session may generate again."""
        for request in self._scheduler.requests:
            request.close()
        self._session.end_batch(self)
