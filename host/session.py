"""A conversation with one device: load an image, give it prompts, take tokens.

    with Session(backend, open_image("story.img")) as session:
        for token in session.generate(prompt, 100, stop_ids=[1]):
            ...
        print(session.stats())

The device generates on its own; the host only fetches tokens. Every wait is bounded.
"""

from __future__ import annotations

import fcntl
import math
import os
import re
import tempfile
import time
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from tritloom.firmware.config import BuildConfig
from tritloom.firmware.errors import InputError
from tritloom.firmware.image import Image
from tritloom.firmware.integer import GREEDY, LOGIT_DROP, Sampling, noise_word, noise_words, uf_from_float
from tritloom.firmware.isa import Unit
from tritloom.firmware.programs import (
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
from tritloom.firmware.registers import FIFO_DEPTH, IDENTIFIER, MAP_VERSION, MEMORY_FAILED, PAGE_BYTES, REGISTER
from tritloom.host.backends.protocol import Backend, DeviceBusy, DeviceError, DeviceFault, DeviceTimeout
from tritloom.host.batch import Batch, Passes, Text
from tritloom.host.drafting import PromptLookup

MASK32 = 0xFFFFFFFF
STEP_CYCLES = 1 << 16
"""Device cycles between two looks at the device: short enough for Ctrl-C."""
PUSH_CYCLES = 1 << 10
"""The same while it reads words: short, for it waits for the next ones as soon as it has them all."""
PATIENCE = 64
"""A token may take so many times the cycles that its memory traffic alone needs."""
PATIENCE_CYCLES = 2_000_000
LONGEST = 64
"""A wait ends after so many times the patience, whatever the device reads or writes meanwhile."""
UNITS = ("VECTOR", "MATMUL", "DOT", "SAMPLER")
"""Units with a BUSY counter."""

CONTROL, STATUS, TOKEN_OUT, MEMORY_PORTS = (REGISTER[name] for name in ("CONTROL", "STATUS", "TOKEN_OUT", "MEMORY_PORTS"))
START, STOP, CLEAR, RESET = (CONTROL[name].mask for name in ("START", "STOP", "CLEAR", "RESET"))
UNSETTLED = STATUS["RUNNING"].mask | STATUS["RESETTING"].mask
"""What a device is before it takes CLEAR and START."""

Progress = Callable[[int, int], None]
"""Told (prompt tokens read, prompt tokens in all)."""


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


@dataclass(frozen=True)
class Stats:
    """What the last generation cost. Cycle counts are None on a device without time, and where there is nothing to count.

    `prefill_cycles`: from the start to the first token; `decode_cycles`: of each token after it; `memory_share`:
    beats of data moved per cycle, from the first token on (over everything when there is only one token);
    `weight_share`: the same of the weight stream alone; `busy`: cycles in which each unit was at work.
    """

    prompt_tokens: int
    tokens: int
    cycles: int | None
    prefill_cycles: int | None
    decode_cycles: tuple[int, ...]
    weight_beats: int
    data_beats: int
    memory_share: float | None
    weight_share: float | None
    saturations: int
    busy: dict[str, int]
    wall_s: float
    first_token_s: float | None
    passes: int | None = None
    """Passes over the weights that gave tokens, of a batch or with drafts; else None."""

    @property
    def decode_cycles_per_token(self) -> float | None:
        return sum(self.decode_cycles) / len(self.decode_cycles) if self.decode_cycles else None


@dataclass(frozen=True)
class _Counters:
    """The device's counters at one moment."""

    cycles: int
    weight_beats: int
    data_beats: int
    saturations: int
    busy: tuple[int, ...]

    @classmethod
    def read(cls, b: Backend) -> _Counters:
        return cls(
            cycles=b.read("CYCLES_LOW") | b.read("CYCLES_HIGH") << 32,
            weight_beats=b.read("WEIGHT_BEATS_LOW") | b.read("WEIGHT_BEATS_HIGH") << 32,
            data_beats=b.read("DATA_BEATS"),
            saturations=b.read("SATURATIONS"),
            busy=tuple(b.read(f"BUSY_{unit}") for unit in UNITS),
        )


@dataclass
class _Generation:
    """One run of a program: what it was given, what came of it, and when. `keeps`: the session's text goes on with it."""

    prompt: Sequence[int]
    new: int = 0
    passes: Passes | None = None
    keeps: bool = True
    taken: list[int] = field(default_factory=list)
    stamps: list[int] = field(default_factory=list)
    first: _Counters | None = None
    last: _Counters | None = None
    start_s: float = field(default_factory=time.monotonic)
    first_s: float | None = None
    end_s: float | None = None

    def token(self, token: int, stamp: int, b: Backend) -> None:
        if self.first is None:
            self.first, self.first_s = _Counters.read(b), time.monotonic()
        self.taken.append(token)
        self.stamps.append(stamp)

    def stats(self, b: Backend) -> Stats:
        now = self.last or _Counters.read(b)
        first = self.first if len(self.taken) > 1 else None
        cycles, weights, data = now.cycles, now.weight_beats, now.data_beats
        if first:
            cycles, weights, data = cycles - first.cycles, weights - first.weight_beats, (data - first.data_beats) & MASK32
        share = b.timed and cycles > 0
        return Stats(
            prompt_tokens=len(self.prompt),
            tokens=len(self.taken),
            cycles=now.cycles if b.timed else None,
            prefill_cycles=self.first.cycles - (self.first.cycles - self.stamps[0] & MASK32) if b.timed and self.first else None,
            decode_cycles=tuple(y - x & MASK32 for x, y in zip(self.stamps, self.stamps[1:], strict=False)) if b.timed else (),
            weight_beats=now.weight_beats,
            data_beats=now.data_beats,
            memory_share=(weights + data) / cycles if share else None,
            weight_share=weights / cycles if share else None,
            saturations=now.saturations,
            busy=dict(zip((unit.lower() for unit in UNITS), now.busy, strict=True)),
            wall_s=(self.end_s or time.monotonic()) - self.start_s,
            first_token_s=self.first_s - self.start_s if self.first_s else None,
            passes=self.passes.count if self.passes else None,
        )


class _Watch:
    """A bounded wait for one thing: `step` lets the device run for a while, and raises when it had time enough.

    That is the session's patience after the last beat that the device counted, and `LONGEST` times as much in all: a program
    that reads weights for ever comes to an end too.
    """

    def __init__(self, session: Session, what: str) -> None:
        self._session, self._what = session, what
        self._left = LONGEST * session.patience
        self._beats: tuple[int, int] | None = None
        self._renew()

    def _renew(self) -> None:
        self._cycles, self._deadline = min(self._session.patience, self._left), time.monotonic() + self._session.timeout_s

    def step(self, cycles: int = STEP_CYCLES) -> None:
        b = self._session.backend
        beats = b.read("WEIGHT_BEATS_LOW"), b.read("DATA_BEATS")
        if beats != self._beats:
            if self._beats is not None:
                self._renew()
            self._beats = beats
        if self._cycles <= 0 or time.monotonic() > self._deadline:
            s = self._session
            limit = f"{s.timeout_s:g} s" if self._cycles > 0 else f"{LONGEST * s.patience if self._left <= 0 else s.patience} cycles"
            raise DeviceTimeout(f"the {b.name} device did not come to {self._what} within {limit}; reset the session and try again",
                                s.state())
        passed = max(b.advance(min(cycles, self._cycles)), 1)
        self._cycles, self._left = self._cycles - passed, self._left - passed


def _listed(bits: int) -> str:
    """The numbers of the bits that are set: `0 and 2`."""
    return " and ".join(str(bit) for bit in range(bits.bit_length()) if bits >> bit & 1)


class _Lock:
    """At most one session per device: within this process by backend, among processes by the device's name."""

    _held: weakref.WeakSet[Any] = weakref.WeakSet()

    def __init__(self, backend: Backend) -> None:
        self._backend, self._file = backend, None
        if backend in self._held:
            raise DeviceBusy(f"the {backend.name} device already has a session: close that one first")
        if backend.device is not None:
            path = Path(tempfile.gettempdir()) / f"tritloom-{re.sub(r'[^A-Za-z0-9]+', '-', backend.device)}.lock"
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(self._file)
                raise DeviceBusy(f"another process has a session on {backend.device}: end that one first") from None
        self._held.add(backend)

    def release(self) -> None:
        self._held.discard(self._backend)
        if self._file is not None:
            os.close(self._file)
            self._file = None


class Session:
    """One user's hold on one device, with one model loaded.

    `backend`: the device; `image`: what to load, which must have been packed for this very device. `position`:
    tokens that the device remembers; generation goes on from there until `reset`. `timeout_s`: real time that
    the device may take without progress, `patience` the same in device cycles; a token taken or given is progress, and a beat read.
    """

    def __init__(self, backend: Backend, image: Image, *, timeout_s: float = 1800.0) -> None:
        self.backend, self.image, self.timeout_s = backend, image, timeout_s
        self.config = image.config
        self.position = 0
        self._pending: int | None = None
        """The newest token, which the device has not read yet."""
        self._active: _Generation | None = None
        self._batch: Batch | None = None
        self.pass_cycles: dict[int, float] = {}
        """Device cycles of a pass by its number of tokens, as drafts learn them."""
        self._failed = True  # until the first reset
        self._stats: Stats | None = None
        beats = image.map.token_beats + self.config.shape.layers * self.config.kv_layer_bytes // self.config.mem_bytes
        self.patience = PATIENCE * beats + PATIENCE_CYCLES
        self._lock = _Lock(backend)
        try:
            self._check_device()
            self.reset()
            self._load()
        except BaseException:
            self._lock.release()
            raise

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
            self._lock.release()

    # Loading -------------------------------------------------------------------------------------

    def _check_device(self) -> None:
        b = self.backend
        found = b.read("ID")
        if found != IDENTIFIER:
            raise DeviceError(f"the {b.name} device answers 0x{found:08x} instead of 0x{IDENTIFIER:08x}: no tritloom machine is there")
        version = b.read("VERSION")
        if version != MAP_VERSION:
            raise DeviceError(
                f"the {b.name} device has register map version {version}, this host knows {MAP_VERSION}: build the machine again"
            )
        self.image.require_digest(b.read("DIGEST"), b.config)

    def _load(self) -> None:
        b = self.backend
        self._place_ports()
        for address, data in self.image.memory():
            b.load(address, data)
        watch = _Watch(self, "the end of its memory's writes")
        while STATUS["UNIT_BUSY"].get(self._look()) & Unit.WRITES:
            watch.step()
        self._look()
        for name, words in (("PROGRAM", self.image.program), ("DESCRIPTOR", self.image.descriptors)):
            b.write(f"{name}_ADDRESS", 0)
            for word in words:
                b.write(f"{name}_LOW", word & MASK32)
                b.write(f"{name}_HIGH", word >> 32)

    def _place_ports(self) -> None:
        """Tell the device where its memory ports' stripes begin."""
        b = self.backend
        bases = getattr(b, "port_bases", ()) or [0] * self.config.mem_ports
        if self.config.memory != "axi":
            return
        if len(bases) != self.config.mem_ports or any(base % PAGE_BYTES or not 0 <= base <= MASK32 for base in bases):
            raise DeviceError(f"the {b.name} device must name an address below 4 GiB, a multiple of {PAGE_BYTES}, for each of its "
                              f"{self.config.mem_ports} memory ports, not {[hex(base) for base in bases]}")
        for port, base in enumerate(bases):
            b.write(f"PORT_BASE{port}", base)

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
        """Several texts together (host/batch.py), with all the device's caches. The session's own text is forgotten, and it has none
        until the batch is closed."""
        check_passes(self.config)
        if self._batch is not None or self._active is not None:
            raise DeviceBusy("a batch or a generation is under way: close it first")
        self._require_seen()
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
            self._require_seen()
            return
        try:
            late = self._halt()
            if late:
                raise late
            self._look()
        except DeviceError:
            self._failed = True
            raise
        finally:
            self._finish(completed=False)

    def reset(self) -> None:
        """Forget the text, and whatever went wrong: a device that does not stop is reset. Raises `DeviceTimeout` if its memory does not
        let it."""
        if self._active is not None:
            self._finish(completed=False)
        self._batch = None
        failed, self._failed = self._failed, True
        if not self._halt() and failed and STATUS["UNIT_BUSY"].get(self.backend.read("STATUS")):
            self._reset_units("idle units")
        self.backend.write("CONTROL", CLEAR)
        self.position, self._pending, self._stats, self._failed = 0, None, None, False

    def assume(self, position: int) -> None:
        """Go on as if the device had read `position` tokens: the cache is taken as it lies in the device's memory.

        For measuring at a depth without reading a text of that length first. The text so far is forgotten.
        """
        if not 0 <= position < self.config.shape.context:
            raise InputError(f"the position must be from 0 to {self.config.shape.context - 1}, not {position}")
        self._require_seen()
        self.reset()
        self.position = position

    def stats(self) -> Stats:
        """Of the generation under way, else of the last one."""
        if self._active is not None:
            return self._active.stats(self.backend)
        if self._stats is None:
            raise InputError("there are no statistics before the first generation: generate something")
        return self._stats

    def state(self) -> dict[str, Any]:
        """The device's state, for error messages; registers that cannot be read show why."""
        b, state = self.backend, {}

        def look(name: str, register: str) -> int | None:
            try:
                state[name] = b.read(register)
                return state[name]
            except Exception as error:  # whatever keeps the device from answering is part of its state
                state[name] = f"unreadable ({error})"
                return None

        status = look("status", "STATUS")
        if status is not None:
            del state["status"]
            for item in STATUS.fields:
                state[item.name.lower()] = item.get(status)
        for name, register in (("pc", "PC"), ("halt_code", "HALT_CODE"), ("tokens_waiting", "TOKEN_LEVEL"), ("cycles", "CYCLES_LOW"),
                               ("weight_beats", "WEIGHT_BEATS_LOW"), ("data_beats", "DATA_BEATS"), ("saturations", "SATURATIONS"),
                               *((f"busy_{unit.lower()}", f"BUSY_{unit}") for unit in UNITS)):  # fmt: skip
            look(name, register)
        ports = look("memory_ports", "MEMORY_PORTS")
        if ports is not None:
            del state["memory_ports"]
            state |= {f"ports_{item.name.lower()}": item.get(ports) for item in MEMORY_PORTS.fields}
        return state | {"position": self.position}

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
        generation = _Generation(tokens, new)
        if drafts:
            text = Text(list(tokens), new, self.position, 0, sampling, stop_ids, PromptLookup(tokens, drafts))
            known, entry, arguments = (), ENTRY_PASSES, {}
            items = self._exchange_passes(generation, lambda passes: None if text.done else passes.step([text]), progress)
        else:
            (temperature, limits), noise = sampling.words, noise_word(sampling.seed, self.position + len(tokens))
            known, entry = stop_ids[1:], ENTRY_GENERATION
            arguments = {ARG_PROMPT: len(tokens), ARG_TOKENS: new, ARG_POSITION: self.position,
                         ARG_STOP: stop_ids[0] if stop_ids else NO_STOP_TOKEN,
                         ARG_TEMPERATURE: temperature, ARG_LIMITS: limits,
                         ARG_NOISE: noise, ARG_NOISE_STEP: noise_words(sampling.seed)[1]}  # fmt: skip
            items = ((None, *item) for item in self._exchange(generation, progress))
        with closing(self._drive(generation, entry, arguments, items)) as run:
            for _, token in run:
                yield token
                if token in known:
                    self.stop()
                    return

    def run_batch(
        self, step: Callable[[Any], list[tuple[Any, int, int]] | None], prompt: Sequence[int]
    ) -> Generator[tuple[Any, int], None, None]:
        """(text, token) of pass after pass, until `step` makes none; `prompt`: all tokens read, for the statistics."""
        self._require_idle()
        generation = _Generation(prompt, keeps=False)
        items = self._exchange_passes(generation, step, None)
        with closing(self._drive(generation, ENTRY_PASSES, {}, items)) as run:
            for text, token in run:
                if not text.closed:
                    yield text, token

    def _require_seen(self) -> None:
        """Whatever went wrong in the device since it was looked at is said now, before it is forgotten."""
        if not self._failed:
            self._look()

    def _require_idle(self) -> None:
        if self._failed:
            raise DeviceError("the device failed before: reset the session")
        self._look()
        if self._active is not None:
            raise DeviceBusy("a generation is under way: take all its tokens or close it first")

    def _drive(
        self, generation: _Generation, entry: int, arguments: dict[int, int], items: Iterator[tuple[Any, int, int]]
    ) -> Generator[tuple[Any, int], None, None]:
        """Start the program at `entry` and hand on what comes of it: (text, token) of each of `items`, which have the cycle too."""
        self._active = generation
        try:
            b = self.backend
            b.write("CONTROL", CLEAR)
            for index, value in arguments.items():
                b.write(f"ARG{index}", value)
            b.write("ENTRY", entry)
            b.write("CONTROL", START)
            for text, token, stamp in items:
                generation.token(token, stamp, b)
                yield text, token
                if self._active is not generation:
                    return
            if self._active is generation:
                self._finish(completed=True)
        except GeneratorExit:
            if self._active is generation:
                self.stop()
            raise
        except BaseException as error:
            self._failed |= isinstance(error, DeviceError)
            if self._active is generation:
                with suppress(DeviceError):  # `_failed` keeps it; the first error is the one to report
                    self.stop()
            raise

    def _exchange(self, generation: _Generation, progress: Progress | None) -> Iterator[tuple[int, int]]:
        """Prompt tokens in; generated tokens out, with their cycle stamps, until the device has halted."""
        b, waiting, got = self.backend, deque(generation.prompt), 0
        goal = "a token" if generation.new else "the end of the prompt"
        watch, taken = _Watch(self, goal), -1
        while self._active is generation:
            status = self._look()
            running, room = STATUS["RUNNING"].get(status), STATUS["PROMPT_ROOM"].get(status)
            before, taken = taken, len(generation.prompt) - len(waiting) - (FIFO_DEPTH - room)
            for _ in range(min(room, len(waiting))):
                b.write("TOKEN_IN", waiting.popleft())
            if taken != before:
                watch = _Watch(self, goal)
                if progress:
                    progress(max(taken, 0), len(generation.prompt))
            while self._active is generation and b.read("TOKEN_LEVEL"):
                got += 1
                token, stamp = self._token(got, generation.new)
                yield token, stamp
                watch = _Watch(self, goal)
            if not running:
                self._check_end(status)
                return
            watch.step()

    def _exchange_passes(
        self, generation: _Generation, step: Callable[[Any], list[tuple[Any, int, int]] | None], progress: Progress | None
    ) -> Iterator[tuple[Any, int, int]]:
        """Tokens of pass after pass, with their texts and cycle stamps, until `step` makes none; then the program ends."""
        generation.passes = passes = Passes(self)
        while self._active is generation and (new := step(passes)) is not None:
            if progress:
                progress(min(passes.read, len(generation.prompt)), len(generation.prompt))
            yield from new
        if self._active is not generation:
            return
        self.push([0])
        watch = _Watch(self, "the end of its program")
        while STATUS["RUNNING"].get(status := self._look()):
            watch.step()
        self._check_end(status)

    def push(self, words: Sequence[int]) -> None:
        """Hand words to the program."""
        watch, at = _Watch(self, "room for a token"), 0
        while at < len(words):
            status = self._look()
            room = STATUS["PROMPT_ROOM"].get(status)
            for word in words[at : at + room]:
                self.backend.write("TOKEN_IN", word)
            at += room
            if room:
                watch = _Watch(self, "room for a token")
            elif not STATUS["RUNNING"].get(status):
                self._check_end(status)
                raise DeviceFault("the program ended before its last token", self.state())
            else:
                watch.step(PUSH_CYCLES)

    def pull(self, count: int) -> list[tuple[int, int]]:
        """The program's next `count` tokens and their cycle stamps."""
        b, watch, taken = self.backend, _Watch(self, "a token"), []
        while len(taken) < count:
            for _ in range(min(b.read("TOKEN_LEVEL"), count - len(taken))):
                taken.append(self._token(len(taken) + 1, count))
                watch = _Watch(self, "a token")
            if len(taken) < count:
                if not STATUS["RUNNING"].get(status := self._look()) and not b.read("TOKEN_LEVEL"):
                    self._check_end(status)
                    raise DeviceFault("the program ended before its last token", self.state())
                watch.step()
        return taken

    def _token(self, number: int, of: int) -> tuple[int, int]:
        """The token that waits, the `number`th of `of`, and its cycle stamp. It counts only if no error came before it."""
        b = self.backend
        stamp, word = b.read("TOKEN_CYCLE"), b.read("TOKEN_OUT")
        self._look()
        token = TOKEN_OUT["TOKEN"].get(word)
        valid = TOKEN_OUT["VALID"].get(word)
        if not valid or token >= self.config.shape.vocab or number > of:
            raise DeviceFault(f"the device sent {token if valid else 'nothing'} as token {number} of {of}", self.state())
        return token, stamp

    def _look(self) -> int:
        """STATUS. Raises `DeviceFault` if the memory has answered with an error."""
        try:
            status = self.backend.read("STATUS")
            if STATUS["MEMORY_ERROR"].get(status):
                self._raise_memory_error()
            return status
        except DeviceError:
            self._failed = True
            raise

    def _raise_memory_error(self) -> NoReturn:
        ports = self.backend.read("MEMORY_PORTS")
        which = "; ".join(f"{what} at port {_listed(MEMORY_PORTS[field].get(ports))}"
                          for what, field in (("reads", "READ_ERROR"), ("writes", "WRITE_ERROR")) if MEMORY_PORTS[field].get(ports))
        raise DeviceFault(f"the device's memory answered with an error ({which or 'no port says which'}): check the memory's size and "
                          "addresses, then reset the session", self.state())

    def _check_end(self, status: int) -> None:
        code = self.backend.read("HALT_CODE")
        if code == MEMORY_FAILED:
            self._raise_memory_error()
        if not STATUS["HALTED"].get(status) or code:
            raise DeviceFault(f"the program ended with code 0x{code:x} instead of 0", self.state())

    def _halt(self) -> DeviceTimeout | None:
        """Stop whatever program runs. A device that did not stop is reset: then the error that says so."""
        b = self.backend
        if not b.read("STATUS") & UNSETTLED:
            return None
        b.write("CONTROL", STOP)
        watch = _Watch(self, "a stop")
        try:
            while b.read("STATUS") & UNSETTLED:
                self._drop_tokens()
                watch.step()
        except DeviceTimeout as error:
            self._reset_units("a stop")
            return error
        return None

    def _drop_tokens(self) -> None:
        """Nobody wants the tokens that wait; while one does, the device has something to say."""
        for _ in range(min(self.backend.read("TOKEN_LEVEL"), FIFO_DEPTH)):
            self.backend.read("TOKEN_OUT")

    def _reset_units(self, missed: str) -> None:
        """Reset the device's units once its memory has answered what it was asked; they did not come to what was `missed`."""
        b = self.backend
        b.write("CONTROL", RESET | STOP)
        watch = _Watch(self, "the end of a reset")
        try:
            while b.read("STATUS") & UNSETTLED:
                watch.step()
        except DeviceTimeout as error:
            self._failed = True
            ports = b.read("MEMORY_PORTS")
            waits = "; ".join(f"{what} of port {_listed(MEMORY_PORTS[field].get(ports))}"
                              for what, field in (("reads", "READING"), ("writes", "WRITING")) if MEMORY_PORTS[field].get(ports))
            raise DeviceTimeout(f"the {b.name} device did not come to {missed}, nor to the end of a reset: "
                                + (f"its memory does not answer {waits}; check the memory, then load the device anew" if waits else
                                   "no transfer of its memory is under way; load the device anew"), error.state) from None

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
            generation.last = _Counters.read(self.backend)
            self._stats = generation.stats(self.backend)
        except DeviceError:
            self._stats, self._failed = None, True
