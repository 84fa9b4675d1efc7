"""Measure tokens, prompts and texts on the simulated RTL, cycle by cycle.

**Decode at a context of N**: the generation program starts at position N-2 with one token, with the cache as it lies in
memory. The pass at N-2 gives a token, then the pass at N-1, which reads N positions of the cache, gives the next. The cycles
of decode are those between the two tokens leaving the machine: all layers, the head and the choice of the token, with
the prefetch of weights across both ends as in a long text (the machine is asked for a third token and stopped).

**Prefill of N tokens**: from the start of the program to the first token out, with a prompt of N tokens from
position 0, in as many passes as the lanes make of it, the head once.

**Decode of N texts**: as decode, but of N texts with caches of their own, all at the same position; the pass in between gives N
tokens. They may share their first positions, in whole chunks. One text's decode on the same machine is measured beside it.

**Drafts**: a text is generated without and with drafts; both from the first token out to the last one. Two prompts: one from
which the model goes on freely, and `rewriting`, which makes it repeat what it wrote.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tritloom.firmware.config import CHUNK, BuildConfig
from tritloom.firmware.errors import InputError
from tritloom.firmware.image import Image
from tritloom.firmware.isa import Unit
from tritloom.firmware.layout import MemoryMap, memory_map
from tritloom.firmware.programs import machine_program
from tritloom.gen.models import ModelSpec
from tritloom.gen.models.shapes import memory_pieces
from tritloom.host.session import Session
from tritloom.sim.backends import SimBackend
from tritloom.sim.bench.timeline import view
from tritloom.sim.machine import DramStatistics, PortStatistics

__all__ = ["CycleShares", "Measured", "RandomImage", "Watched", "batch", "cache_bytes", "capacity", "decode", "drafted", "head_bytes",
           "measure_session", "prefill", "rewriting"]

LEAST_CAPACITY = 256

Tell = Callable[..., None]
"""Told (cycles done, cycles expected)."""


def capacity(positions: int, most: int) -> int:
    """Positions that the measured machine's cache holds: a power of two, so that contexts share a machine, and one position
    more than measured, as the token after the measured one begins too. `most`: what the model allows. Raises `InputError`."""
    if not 2 <= positions < most:
        raise InputError(f"the context to measure must be from 2 to {most - 1} for this model, not {positions}")
    return min(most, max(LEAST_CAPACITY, 1 << positions.bit_length()))


class RandomImage(Image):
    """What a session loads for a model of which only the shape is known: random weights, made while they are loaded."""

    @classmethod
    def of(cls, spec: ModelSpec, config: BuildConfig) -> RandomImage:
        layout = memory_map(config, tied=spec.tied_embeddings)
        image = cls(spec.name, config, spec.to_dict(), {}, layout, np.zeros(0, np.uint8))
        object.__setattr__(image, "_made", spec)
        return image

    def memory(self) -> Iterator[tuple[int, Any]]:  # type: ignore[override]
        return memory_pieces(self._made, self.config, self.map)  # type: ignore[attr-defined]

    @property
    def program(self) -> list[int]:
        return machine_program(self.config, self.map)

    @property
    def descriptors(self) -> list[int]:
        return self.map.descriptor_words()


class Watched(SimBackend):
    """The machine of another simulated backend; tells how many cycles it has run since `watch`."""

    def __init__(self, backend: SimBackend) -> None:
        super().__init__(backend.machine, backend.config, backend.port_bases)
        self._tell, self._from, self._expected = None, 0, 1.0

    def watch(self, expected: float, tell: Tell | None) -> None:
        """From now on, tell of the cycles run; `expected` are to come."""
        self._tell, self._from, self._expected = tell, self.machine.cycles, max(expected, 1.0)

    def advance(self, limit: int) -> int:
        passed = super().advance(limit)
        if self._tell:
            self._tell(min(self.machine.cycles - self._from, 0.99 * self._expected), self._expected)
        return passed


@dataclass(frozen=True)
class CycleShares:
    """Cycles by what was at work: `streaming` while a weight beat arrived, `idle` while none did.

    Keys are names of the busy units joined by +, or "sequencer" when none was busy.
    """

    streaming: dict[str, int]
    idle: dict[str, int]

    @classmethod
    def of(cls, histogram: NDArray[np.integer]) -> CycleShares:
        """From cycles by busy units (bits of firmware.isa.Unit) and weight beat, shape (n, 2)."""
        result: tuple[dict[str, int], dict[str, int]] = {}, {}
        for busy, beat in np.argwhere(histogram):
            name = "+".join((unit.name or "").lower() for unit in Unit if busy & unit) or "sequencer"
            kind = result[0 if beat else 1]
            kind[name] = kind.get(name, 0) + int(histogram[busy, beat])
        return cls(*result)

    @property
    def cycles(self) -> int:
        return sum(self.streaming.values()) + sum(self.idle.values())

    @property
    def names(self) -> list[str]:
        """All keys, most cycles first."""
        total = {name: self.streaming.get(name, 0) + self.idle.get(name, 0) for name in {**self.streaming, **self.idle}}
        return sorted(total, key=lambda name: -total[name])

    def by_unit(self) -> dict[str, float]:
        """Idle cycles by unit; a cycle in which several units work is shared among them."""
        result: dict[str, float] = {}
        for name, cycles in self.idle.items():
            units = name.split("+")
            for unit in units:
                result[unit] = result.get(unit, 0.0) + cycles / len(units)
        return dict(sorted(result.items(), key=lambda item: -item[1]))


@dataclass(frozen=True)
class _Mark:
    """Everything counted up to a moment."""

    cycle: int
    histogram: np.ndarray[Any, Any]
    weight_beats: int
    data_beats: int
    ports: np.ndarray[Any, Any]
    dram: np.ndarray[Any, Any] | None
    saturations: int
    seconds: float

    @classmethod
    def take(cls, session: Session) -> _Mark:
        b, machine = session.backend, session.backend.machine  # type: ignore[attr-defined]
        dram = machine.dram_statistics()
        ports = np.array([list(asdict(machine.port_statistics(port)).values()) for port in range(machine.axi_ports)], np.int64)
        return cls(machine.cycles, machine.histogram().astype(np.int64), b.read("WEIGHT_BEATS_LOW") | b.read("WEIGHT_BEATS_HIGH") << 32,
                   b.read("DATA_BEATS"), ports, None if dram is None else np.array(list(asdict(dram).values()), np.int64),
                   b.read("SATURATIONS"), time.monotonic())


def _between(first: _Mark, last: _Mark, cycles: int, session: Session) -> dict[str, Any]:
    """What happened between two marks, which are `cycles` apart but for the reading of registers."""
    shares = CycleShares.of(last.histogram - first.histogram)
    names = list(PortStatistics.__dataclass_fields__)
    ports = dict(zip(names, (last.ports - first.ports).T.tolist(), strict=True)) if len(last.ports) else {}
    dram = None
    if last.dram is not None and first.dram is not None:
        dram = dict(zip(DramStatistics.__dataclass_fields__, (last.dram - first.dram).tolist(), strict=True))
    seconds = last.seconds - first.seconds
    config = session.config
    return {
        "cycles": cycles,
        "tokens_per_s": config.clock_hz / cycles,
        "beats": {"weights": last.weight_beats - first.weight_beats, "data": last.data_beats - first.data_beats & 0xFFFFFFFF,
                  "written": max(ports.get("write_beats", [0]))},
        "busy_cycles": {name: [shares.streaming.get(name, 0), shares.idle.get(name, 0)] for name in shares.names},
        "idle_by_unit": {name: round(value, 1) for name, value in shares.by_unit().items()},
        "counted_cycles": shares.cycles,
        "port_waits": {name.removesuffix("_waits"): ports[name] for name in names if name.endswith("_waits")} if ports else {},
        "dram": dram,
        "saturations": last.saturations - first.saturations,
        "simulated_s": round(seconds, 1),
        "simulated_cycles_per_s": round((last.cycle - first.cycle) / seconds) if seconds else None,
    }


class _Record:
    """Records a session's machine from now to `end`, if `on`."""

    def __init__(self, session: Session, on: bool) -> None:
        self._machine = session.backend.machine if on else None  # type: ignore[attr-defined]
        if self._machine:
            self._machine.record()

    def end(self, layers: int = 0) -> dict[str, Any]:
        """The part of the result: nothing, or the timeline."""
        if not self._machine:
            return {}
        recorded = self._machine.recorded()
        self._machine.record(False)
        return {"timeline": view(recorded, layers)}


def cache_bytes(config: BuildConfig, positions: int) -> int:
    """Bytes of the cache that hold `positions` positions of all layers, in whole chunks, as the machine reads them."""
    s = config.shape
    return s.layers * s.kv_heads * ceil(positions / CHUNK) * 2 * config.kv_half_bytes


def head_bytes(config: BuildConfig, layout: MemoryMap) -> int:
    """Bytes of final norm and head that a token reads: the int8 rows, or a ternary head and the rows of its short-list."""
    return layout.epilogue_beats * config.mem_bytes + config.shortlist_bytes


def decode(session: Session, context: int, *, expected: float = 0.0, progress: Tell | None = None,
           timeline: bool = False) -> dict[str, Any]:
    """Measure the decode token at position `context`-1; the module says what exactly.

    `expected`: cycles a token may take, for `progress`, which a `Watched` backend tells. `timeline`: also keep who worked when.
    """
    session.assume(context - 2)
    if isinstance(session.backend, Watched):
        session.backend.watch(2 * expected, progress)
    run = session.generate([1], 3)
    next(run)
    first = _Mark.take(session)
    record = _Record(session, timeline)
    next(run)
    course = record.end(session.config.shape.layers)
    last = _Mark.take(session)
    cycles = session.stats().decode_cycles[0]
    run.close()
    result = _between(first, last, cycles, session) | course
    config, layout = session.config, session.image.map
    useful = layout.token_beats * config.mem_bytes + config.shortlist_bytes + cache_bytes(config, context)
    result["bytes"] = {"layers": layout.layers_beats * config.mem_bytes, "head": head_bytes(config, layout),
                       "cache": cache_bytes(config, context)}
    result["roofline_share"] = useful / (cycles * config.mem_bytes)
    return result


def prefill(session: Session, tokens: int, *, expected: float = 0.0, progress: Tell | None = None,
            timeline: bool = False) -> dict[str, Any]:
    """Measure the time to the first token after a prompt of `tokens` tokens; `expected` cycles in all, the rest as in `decode`."""
    session.reset()
    if isinstance(session.backend, Watched):
        session.backend.watch(expected, progress)
    prompt = np.random.default_rng(1).integers(0, session.config.shape.vocab, tokens).tolist()
    first = _Mark.take(session)
    record = _Record(session, timeline)
    run = session.generate(prompt, 1)
    next(run)
    course = record.end()
    last = _Mark.take(session)
    cycles = session.stats().prefill_cycles
    run.close()
    assert cycles is not None
    # The counters were cleared by the start.
    result = _between(_Mark(first.cycle, first.histogram, 0, 0, first.ports, first.dram, 0, first.seconds), last, cycles, session) | course
    config, layout = session.config, session.image.map
    most = config.groups * config.lanes
    ends = [min(start + most, tokens) for start in range(0, tokens, most)]
    passes = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    beats = sum(layout.pass_beats(count > config.lanes, head=end == tokens) for count, end in zip(passes, ends, strict=True))
    streamed = (beats - layout.epilogue_beats) * config.mem_bytes
    reads = sum(cache_bytes(config, end) for end in ends)
    result["tokens_per_s"] = tokens * config.clock_hz / cycles
    result["first_token_s"] = cycles / config.clock_hz
    result["bytes"] = {"layers": streamed, "head": head_bytes(config, layout),
                       "cache": reads}
    result["roofline_share"] = (sum(result["bytes"].values())) / (cycles * config.mem_bytes)
    return result


def batch(session: Session, context: int, texts: int, shared: int = 0, *, expected: float = 0.0, progress: Tell | None = None,
          timeline: bool = False) -> dict[str, Any]:
    """Measure the pass that gives `texts` texts, of which the first `shared` positions are the same, the token at position
    `context`-1, and one text's decode; the rest as in `decode`."""
    alone = decode(session, context, expected=expected)
    config, layout = session.config, session.image.map
    if isinstance(session.backend, Watched):
        heads, caches = ceil(texts / config.dot_lanes) - 1, (texts - 1) * cache_bytes(config, context)
        again = heads * layout.epilogue_beats + caches // config.mem_bytes
        session.backend.watch(2 * (alone["cycles"] + again), progress)
    with session.batch() as several:
        first_text = several.add([1], 3, position=context - 2)
        for _ in range(texts - 1):
            several.add([1], 3, position=context - 2, like=first_text, shared=shared)
        run = iter(several)
        for _ in range(texts):
            next(run)
        first = _Mark.take(session)
        record = _Record(session, timeline)
        for _ in range(texts):
            next(run)
        course = record.end(session.config.shape.layers)
        last = _Mark.take(session)
        cycles = sum(session.stats().decode_cycles[texts - 1 : 2 * texts - 1])
    result = _between(first, last, cycles, session) | course
    runs = ceil(texts / config.dot_lanes) if shared else 0  # the prefix is read once in each
    cache = texts * (cache_bytes(config, context) - cache_bytes(config, shared)) + runs * cache_bytes(config, shared)
    result |= {"texts": texts, "shared": shared, "tokens_per_s": texts * config.clock_hz / cycles, "alone_cycles": alone["cycles"],
               "speed_up": texts * alone["cycles"] / cycles}
    result["bytes"] = {"layers": layout.layers_beats * config.mem_bytes, "head": layout.epilogue_beats * config.mem_bytes, "cache": cache}
    result["roofline_share"] = (layout.token_beats * config.mem_bytes + cache) / (cycles * config.mem_bytes)
    return result


def drafted(session: Session, prompt: Sequence[int], tokens: int, drafts: int, stop_ids: Sequence[int] = ()) -> dict[str, Any]:
    """Measure up to `tokens` tokens after `prompt` without drafts and with up to `drafts`, which must give the same text."""
    found = []
    for count in (0, drafts):
        session.reset()
        start = time.monotonic()
        text = list(session.generate(prompt, tokens, stop_ids=stop_ids, drafts=count))
        found.append((text, sum(session.stats().decode_cycles), session.stats(), time.monotonic() - start))
    (text, plain, stats, _), (other, cycles, with_drafts, seconds) = found
    if text != other:
        raise AssertionError("the text with drafts differs from the text without")
    if len(text) < 2:
        raise InputError("the text ends with its first token: measure with another prompt")
    steps, clock = len(text) - 1, session.config.clock_hz
    return {"cycles": cycles / steps, "plain_cycles": plain / steps, "speed_up": plain / cycles, "tokens": len(text), "drafts": drafts,
            "prompt_tokens": len(prompt), "passes": with_drafts.passes, "tokens_per_s": steps * clock / cycles,
            "cycles_with_prompt": with_drafts.cycles, "plain_cycles_with_prompt": stats.cycles, "saturations": with_drafts.saturations,
            "simulated_s": round(seconds, 1)}


def rewriting(session: Session, prompt: Sequence[int], tokens: int, opening: int, stop_id: int) -> list[int]:
    """A prompt after which a model writes again what it has written: its own story of up to `tokens` tokens after `prompt`, the end of
    the text, and the story's first `opening` tokens."""
    session.reset()
    story = [*prompt, *session.generate(prompt, tokens, stop_ids=[stop_id], drafts=session.config.lanes - 1)]
    story = story[:-1] if story[-1] == stop_id else story
    return [*story, stop_id, *story[:opening]]


# A text -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """A generation: the session's statistics, and its cycles after the first token."""

    prompt_tokens: int
    prefill_cycles: int
    decode_cycles: tuple[int, ...]
    shares: CycleShares
    weight_share: float
    memory_share: float
    clock_hz: int
    cycles: int
    wall_s: float
    waits: dict[str, float]
    """Of decode's cycles: no beat although the machine waits for one (refresh, latency), or a beat it does not take yet (ready)."""
    timeline: dict[str, Any] | None = None
    """Of the last token, if it was asked for: who worked when (sim/bench/timeline.py)."""


def measure_session(session: Session, prompt: Sequence[int], tokens: int, progress: Tell | None = None, *,
                    timeline: bool = False) -> Measured:
    """Generate `tokens` tokens after the first one and say where the cycles went. The session's backend must be the simulation.

    `timeline`: also record the last of them.
    """
    machine = getattr(session.backend, "machine", None)
    if machine is None:
        raise InputError(f"backend {session.backend.name} has no clock: measure on the simulation")
    start_cycles, start = machine.cycles, time.monotonic()
    run = session.generate(list(prompt), tokens + 1)
    next(run)
    machine.clear_statistics()
    course = None
    if timeline and tokens == 1:
        machine.record()
    for done, _ in enumerate(run, 1):
        if timeline and done == tokens - 1:
            machine.record()
        if done == tokens:
            if timeline:
                course = view(machine.recorded(), session.config.shape.layers)
            shares = CycleShares.of(machine.histogram())
            waits = _waits(machine, shares.cycles)
        if progress:
            progress(done, tokens, f"token {done} of {tokens}")
    stats = session.stats()
    return Measured(
        stats.prompt_tokens, stats.prefill_cycles or 0, stats.decode_cycles, shares, stats.weight_share or 0.0, stats.memory_share or 0.0,
        session.config.clock_hz, machine.cycles - start_cycles, time.monotonic() - start, waits, course,
    )


def _waits(machine: Any, cycles: int) -> dict[str, float]:
    ports = [machine.port_statistics(port) for port in range(machine.axi_ports)]
    named = {"refresh": "refresh_waits", "latency": "latency_waits", "ready": "ready_waits"}
    return {name: sum(getattr(p, field) for p in ports) / len(ports) / cycles for name, field in named.items()} if ports else {}
