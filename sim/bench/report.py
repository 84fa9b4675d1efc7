"""Measured numbers: rows of {measure, value, unit, kind, command} and their table; sim/bench/page.py draws them.

`kind` says what stands behind a number: rtl-simulated, synthesised, routed, host-measured or projected.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from tritloom.firmware.config import CHUNK, ConfigError
from tritloom.firmware.isa import Unit
from tritloom.sim.bench.timeline import view

if TYPE_CHECKING:
    from tritloom.host.commands.common import Source
    from tritloom.host.console import Console
    from tritloom.host.session import Session

__all__ = ["KINDS", "BenchError", "CycleShares", "Report", "Row", "decode", "entry_rows", "measure_session",
           "machine_synth", "number", "report", "routed", "stored_report", "table", "tlmm_synth", "whole_tokens"]

KINDS = ("rtl-simulated", "synthesised", "routed", "host-measured", "projected")
PROMPT = "Once upon a time, there was a little girl named Lily. She liked to play in the garden with her"
"""What the decode measurement starts from, unless told otherwise."""

SESSION_TIMEOUT_S = 6 * 3600.0
"""Real time that the simulation may take for a token."""
LEAST_SHOWN = 0.001
"""Share of the cycles below which a combination of units gets no row; the stored result has all."""

Progress = Callable[..., None]
"""Called with (done, total, text)."""


class BenchError(ConfigError):
    """A measurement that does not exist; the message names those that do."""


class _Row(TypedDict):
    measure: str
    value: float
    unit: str
    kind: str
    command: str


class Row(_Row, total=False):
    state: str
    """Of a stored result: where it is from, and whether it is stale."""


def row(measure: str, value: float, unit: str, kind: str, command: str) -> Row:
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, not {kind!r}")
    return {"measure": measure, "value": float(value), "unit": unit, "kind": kind, "command": command}


@dataclass(frozen=True)
class Report:
    """Rows, and the results of the machine behind them, as sim/bench/measure.py keeps them, each with its state."""

    rows: list[Row]
    results: list[tuple[dict[str, Any], str]] = field(default_factory=list)


# Units ------------------------------------------------------------------------------------------------


def tlmm_synth(progress: Progress | None = None) -> list[Row]:
    """Cost of a TLMM lane in each table form on each fabric, with and without the pre-computation."""
    from tritloom.gen.tools.synthesis import SIZES, tlmm_table
    from tritloom.rtl.ternary.tables import TABLE_FORMS

    command = "tritloom bench --unit tlmm --synth"
    total, done = len(SIZES) * len(TABLE_FORMS), itertools.count()
    measured = tlmm_table(progress=(lambda text: progress(next(done), total, text)) if progress else None)
    result = []
    for entry in measured:
        name = f"tlmm {entry['form']} {entry['family']} T={entry['tables']} Q={entry['rows_per_cycle']}"
        result += [
            row(f"{name} lane", entry["lut_per_weight"], "LUT/weight/cycle", "synthesised", command),
            row(f"{name} lane and table builder", entry["lut_per_weight_built"], "LUT/weight/cycle", "synthesised", command),
            row(f"{name} lane LUTs", entry["lane"]["lut"], "LUT", "synthesised", command),
            row(f"{name} lane flip-flops", entry["lane"]["ff"], "FF", "synthesised", command),
        ]
        if entry["lane"]["bram"]:
            result.append(row(f"{name} lane block RAMs", entry["lane"]["bram"], "blocks", "synthesised", command))
    return result


def machine_synth(source: Source, board: str, *, context: int | None = None, settings: dict[str, Any] | None = None,
                  resume: bool = False, store: bool = False, results: Path | None = None, console: Console | None = None) -> Report:
    """Synthesise the whole machine for `source` on `board`, part by part: what every unit costs, and the slowest paths.

    `context`: positions of the cache (the model's own by default). Unlike elsewhere, the machine need not fit the board. With
    `resume`, a stored result of the same configuration and code is taken instead.
    """
    from tritloom.boards.board import load as load_board
    from tritloom.gen.fit.fit import fit
    from tritloom.gen.tools import parts
    from tritloom.gen.tools import timing as depth
    from tritloom.host.console import Console
    from tritloom.sim.bench import measure, stored

    console = console or Console(quiet=True)
    target, settings, name = load_board(board), settings or {}, source.path.name
    config = fit(source.spec(context), target, **settings).config
    labels = settings | ({"context-": context} if context else {})
    file = measure.result_path(board, name, "synthesis", labels, results) if resume or store else None
    entry = measure.load(file) if file and resume else None
    if entry is None or stored.configuration_of(entry) != config or _state(entry, console) != stored.CURRENT:
        with console.step("Generating Verilog"):
            made = stored.digests("synthesis", config)
        with console.step("Synthesising the machine") as update:
            found = parts.synthesise(parts.parts_of(config), target.family, lambda done, total, text: update(done, total, text))
        timing = None
        if target.family == depth.FAMILY:
            with console.step("Following its paths"):
                timing = depth.worst_paths(config)
        command = (f"tritloom bench --synth --model {source.path}{source.words} --board {board}"
                   f"{f' --context {context}' if context else ''}{_changes(settings)}")
        entry = measure.record_synthesis(found, model=name, config=config, family=target.family, resources=target.resources,
                                         timing=timing, command=command, made=made)
        _keep(entry, file if store else None, console)
        return _report([(entry, "measured")])
    return _report([(entry, f"stored on {entry['date']}")])


def _state(entry: dict[str, Any], console: Console) -> str:
    """Whether a stored result holds; where its machine must be emitted to know, it is: that takes less than to measure again."""
    from tritloom.sim.bench import stored

    with console.step("Looking whether the stored result holds"):
        return stored.state_of(entry, emit=True)


def _keep(entry: dict[str, Any], file: Path | None, console: Console) -> None:
    """Store a result in `file`, in place of the one there, if there is a file to store it in."""
    from tritloom.sim.bench import measure

    if file is None:
        console.note("not stored: --store keeps a result, in place of the one before")
    else:
        measure.store(entry, file)
        console.note(f"Stored: {file}")


def _changes(settings: dict[str, Any], timing: str | None = None) -> str:
    """The options that stand for what is not as the board has it."""
    return "".join(f" --set {key}={value}" for key, value in settings.items()) + (f" --timing {timing}" if timing else "")


# The machine --------------------------------------------------------------------------------------------


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


def measure_session(session: Session, prompt: Sequence[int], tokens: int, progress: Progress | None = None, *,
                    timeline: bool = False) -> Measured:
    """Generate `tokens` tokens after the first one and say where the cycles went. The session's backend must be the simulation.

    `timeline`: also record the last of them.
    """
    machine = getattr(session.backend, "machine", None)
    if machine is None:
        raise BenchError(f"backend {session.backend.name} has no clock: measure on the simulation")
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


def measured_rows(name: str, m: Measured, command: str) -> list[Row]:
    """Rows of a measured generation of model `name`."""
    per_token = sum(m.decode_cycles) / len(m.decode_cycles)
    kind = "rtl-simulated"
    streamed = sum(m.shares.streaming.values())
    result = [
        row(f"{name} prefill of {m.prompt_tokens} tokens", m.prefill_cycles, "cycles", kind, command),
        row(f"{name} decode", per_token, "cycles/token", kind, command),
        row(f"{name} decode at {m.clock_hz / 1e6:g} MHz", m.clock_hz / per_token, "tokens/s", kind, command),
        row(f"{name} weight beats per cycle in decode", streamed / m.shares.cycles, "of beat rate", kind, command),
        row(f"{name} memory beats per cycle in decode, cache included", m.memory_share, "of beat rate", kind, command),
    ]
    for unit, cycles in m.shares.by_unit().items():
        result.append(row(f"{name} cycles without a weight beat: {unit}", cycles / m.shares.cycles, "of cycles", kind, command))
    for reason, share in m.waits.items():
        result.append(row(f"{name} memory waits in decode: {reason}", share, "of cycles", kind, command))
    return [*result, row(f"{name} simulation rate", m.cycles / m.wall_s, "cycles/s", "host-measured", command),
            row(f"{name} simulation rate in decode", len(m.decode_cycles) / m.wall_s, "tokens/s", "host-measured", command)]


def decode(source: Source, board: str = "sim", tokens: int = 8, *, prompt: str = PROMPT, settings: dict[str, Any] | None = None,
           context: int | None = None, timing: str | None = None, progress: Progress | None = None) -> Report:
    """Run `tokens` tokens of decode through the simulated RTL; rows of cycles, memory use and where the idle beats went."""
    from tritloom.host.commands import common
    from tritloom.host.console import Console
    from tritloom.host.session import Session
    from tritloom.host.tokenizer import Tokenizer
    from tritloom.sim.bench import measure, stored

    path, quiet = source.path, Console(quiet=True)
    tell = progress or (lambda *_: None)
    command = f"tritloom bench --model {source.path}{source.words} --board {board} --tokens {tokens}{_changes(settings or {}, timing)}"
    tell(0, tokens, "preparing the machine")
    timing = common.timing_of(timing, board)
    checkpoint = source.open(context)
    spec = checkpoint.spec
    if tokens >= spec.shape.context:
        raise BenchError(f"{tokens} tokens go past the context of {spec.shape.context}: ask for at most {spec.shape.context - 1}")
    ids = Tokenizer.from_file(checkpoint.tokenizer, spec.bos_id).encode(prompt)[: max(1, spec.shape.context - tokens - 1)]
    config = common.fitted(spec, board, settings or {}).config
    image = common.image_of(source, checkpoint, config, quiet)
    backend = common.open_simulation(config, image.map.total_bytes, timing, quiet)
    made = stored.digests("decode", config, image, timing)
    try:
        with Session(backend, image) as session:
            measured = measure_session(session, ids, tokens, progress, timeline=True)
    finally:
        backend.close()
    positions = len(ids) + (tokens + 1) // 2
    parts = {"layers": image.map.layers_beats * config.mem_bytes, "head": measure.head_bytes(config, image.map),
             "cache": measure.cache_bytes(config, positions)}
    entry = measure.record(_mean_token(measured, parts, sum(parts.values()), config.mem_bytes),
                           model=path.name, what="decode", count=positions, config=config, timing=timing, weights="checkpoint",
                           command=command, made=made)
    return Report(measured_rows(path.name, measured, command), [(entry, "measured")])


def _mean_token(m: Measured, parts: dict[str, int], useful: int, beat_bytes: int) -> dict[str, Any]:
    """The `measured` part of an entry for a text's mean token, which streams `parts`, together `useful` bytes."""
    tokens = len(m.decode_cycles)
    cycles = sum(m.decode_cycles) / tokens
    return {"cycles": cycles, "tokens": tokens, "tokens_per_s": m.clock_hz / cycles, "counted_cycles": m.shares.cycles,
            "busy_cycles": {name: [m.shares.streaming.get(name, 0), m.shares.idle.get(name, 0)] for name in m.shares.names},
            "bytes": parts, "roofline_share": useful / (cycles * beat_bytes), "timeline": m.timeline}


def whole_tokens(source: Source, board: str, *, context: int | None = None, prefill: int | None = None, batch: int | None = None,
                 shared: int = 0, settings: dict[str, Any] | None = None, timing: str | None = None, resume: bool = False,
                 store: bool = False, results: Path | None = None, console: Console | None = None) -> Report:
    """Measure a decode token at `context` positions and the first token after `prefill` prompt tokens, on the simulated RTL.
    With `batch`, instead of one decode token, a token each of so many texts at `context` positions, of which they have `shared` in common,
    beside the token of one.

    `source`: a checkpoint, or a shape without weights (random ones are made). sim/bench/measure.py says what exactly is
    measured. With `store`, results are stored below `results` (docs/results of a clone); with `resume`, a stored result of the same
    configuration, code, memory model and timing is taken instead. `console` shows how far it is.
    """
    from tritloom.boards.board import load as load_board
    from tritloom.gen.fit.fit import predict, prompt_cycles
    from tritloom.host.commands import common
    from tritloom.host.console import Console
    from tritloom.host.session import Session, check_passes
    from tritloom.sim.bench import measure, stored

    console = console or Console(quiet=True)
    target, settings, path = load_board(board), settings or {}, source.path
    timing = common.timing_of(timing, board)
    several = f"batch{batch}" + (f"-shared{shared}" if shared else "")
    wanted = [(what, count) for what, count in ((several if batch else "decode", context), ("prefill", prefill)) if count is not None]
    settings = {"sequences": batch} | settings if batch else settings
    folder = not source.shape_only
    spec = source.spec()
    spec = spec.with_context(measure.capacity(max(2, *(count for _, count in wanted)), spec.shape.context))
    fitted = common.fitted(spec, board, settings)
    config, name = fitted.config, path.name
    if batch:
        check_passes(config)
    if batch and batch > min(config.lanes, config.sequences):
        raise BenchError(f"{batch} texts need as many lanes and caches, this machine has {config.lanes} and {config.sequences}: "
                         + " ".join(f"--set {name}={batch}" for name in ("lanes", "sequences") if getattr(config, name) < batch))
    changes = _changes(settings, timing if timing != target.timing else None)
    labels = settings | ({"timing-": timing} if timing != target.timing else {})
    files = {what: measure.result_path(board, name, f"{what}-{count}", labels, results)
             for what, count in wanted if resume or store}

    entries: dict[str, dict[str, Any]] = {}
    states = {what: "measured" for what, _ in wanted}
    for what in states if resume else ():
        entry = measure.load(files[what])
        if entry is None or entry["timing"] != timing or stored.configuration_of(entry) != config:
            continue
        state = _state(entry, console)
        if state == stored.CURRENT:
            entries[what], states[what] = entry, f"stored on {entry['date']}"
        else:
            states[what] = f"measured again, the stored result was {state}"
    missing = [(what, count) for what, count in wanted if what not in entries]
    if missing:
        if folder:
            image = common.image_of(source, source.open(config.shape.context), config, console)
        else:
            image = measure.RandomImage.of(spec, config)
        backend = common.open_simulation(config, image.map.total_bytes, timing, console)
        made = {what: stored.digests(what, config, image, timing) for what, _ in missing}
        try:
            with console.step("Loading the machine"):
                session = Session(measure.Watched(backend), image, timeout_s=SESSION_TIMEOUT_S)
            with session:
                for what, count in missing:
                    if what == "prefill":
                        expected = prompt_cycles(config, image.map, target, count)
                    else:
                        expected = predict(config, image.map, target, count)[0]["decode_cycles_per_token"]
                    title = f"Prefill of {count} tokens" if what == "prefill" else f"Decode at {count} positions"
                    with console.step(title) as update:
                        if what == several:
                            measured = measure.batch(session, count, batch or 0, shared, expected=expected, progress=update, timeline=True)
                        else:
                            measured = getattr(measure, what)(session, count, expected=expected, progress=update, timeline=True)
                    together = (f" --batch {batch}" if batch else "") + (f" --shared {shared}" if shared else "")
                    asked = f"--prefill {count}" if what == "prefill" else f"--context {count}{together}"
                    command = f"tritloom bench --model {source.path}{source.words} --board {board} {asked}{changes}"
                    entries[what] = measure.record(measured, model=name, what=what, count=count, config=config, timing=timing,
                                                   weights="checkpoint" if folder else "random", command=command, made=made[what])
                    _keep(entries[what], files[what] if store else None, console)
        finally:
            backend.close()
    return _report((entries[what], states[what]) for what, _ in wanted)


DRAFTS_PROMPT = "One day, a little girl named Lily"
"""An opening after which the stories' models do write again what they wrote; after others they stray from it sooner or later."""
REWRITTEN_TOKENS, OPENING_TOKENS = 96, 24
"""Of the story that is written twice, and of its second writing's beginning, which the prompt gives."""


def drafted(source: Source, board: str, drafts: int, *, tokens: int = 64, prompt: str | None = None,
            settings: dict[str, Any] | None = None, timing: str | None = None, store: bool = False, results: Path | None = None,
            console: Console | None = None) -> Report:
    """Measure drafts on the simulated RTL: a text that goes on freely from `prompt`, and one that rewrites what the model wrote
    (`sim.bench.measure.rewriting`). With `store`, the results are stored below `results`."""
    from tritloom.boards.board import load as load_board
    from tritloom.host.commands import common
    from tritloom.host.console import Console
    from tritloom.host.session import Session, check_drafts
    from tritloom.host.tokenizer import Tokenizer
    from tritloom.sim.bench import measure, stored

    console, settings, path = console or Console(quiet=True), settings or {}, source.path
    target = load_board(board)
    timing = common.timing_of(timing, board)
    checkpoint = source.open()
    spec = checkpoint.spec
    config = common.fitted(spec, board, settings).config
    check_drafts(drafts, config)
    ids = Tokenizer.from_file(checkpoint.tokenizer, spec.bos_id).encode(prompt or DRAFTS_PROMPT)
    story, most = min(REWRITTEN_TOKENS, spec.shape.context // 3), spec.shape.context // 3
    if max(len(ids), tokens) > most:
        raise BenchError(f"a prompt of {len(ids)} tokens and {tokens} tokens to write: at most {most} each fit the context written twice")
    labels = settings | {"drafts": drafts} | ({"timing-": timing} if timing != target.timing else {})
    kinds = ("ordinary", "rewrite")
    files = {kind: measure.result_path(board, path.name, f"{kind}-{tokens}", labels, results) for kind in kinds if store}
    image = common.image_of(source, checkpoint, config, console)
    changes = (f' --prompt "{prompt}"' if prompt else "") + _changes(settings, timing if timing != target.timing else None)
    command = f"tritloom bench --model {source.path}{source.words} --board {board} --drafts {drafts} --tokens {tokens}{changes}"
    entries = []
    backend = common.open_simulation(config, image.map.total_bytes, timing, console)
    made = stored.digests("drafts", config, image, timing)
    try:
        with Session(backend, image) as session:
            for kind in kinds:
                with console.step(f"Writing, {kind}"):
                    text = ids
                    if kind == "rewrite":
                        text = measure.rewriting(session, ids, max(story - len(ids), 2), OPENING_TOKENS, spec.eos_ids[0])
                    found = measure.drafted(session, text, tokens, drafts, spec.eos_ids)
                entry = measure.record(found | {"prompt": kind}, model=path.name, what=f"drafts-{kind}", count=tokens, config=config,
                                       timing=timing, weights="checkpoint", command=command, made=made)
                _keep(entry, files.get(kind), console)
                entries.append((entry, "measured"))
    finally:
        backend.close()
    return _report(entries)


def _report(results: Iterable[tuple[dict[str, Any], str]]) -> Report:
    listed = list(results)
    return Report([item for entry, state in listed for item in entry_rows(entry, state)], listed)


def entry_rows(entry: dict[str, Any], state: str) -> list[Row]:
    """Rows of a result that sim/bench/measure.py stored."""
    if entry["kind"] == "synthesised":
        rows = _synthesis_rows(entry)
    elif "drafts" in entry["measured"]:
        rows = _draft_rows(entry)
    else:
        rows = _cycle_rows(entry)
    for item in rows:
        item["state"] = state
    return rows


def _title(entry: dict[str, Any]) -> str:
    lanes, weights = entry["configuration"]["lanes"], ", random weights" if entry["weights"] == "random" else ""
    return f"{entry['model']} on {entry['board']} ({lanes} lane{'s' if lanes > 1 else ''}, memory {entry['timing']}{weights}), "


def _cycle_rows(entry: dict[str, Any]) -> list[Row]:
    """Rows of a token, a prompt, or a token each of several texts."""
    m, clock = entry["measured"], entry["clock_hz"]
    title = f"{_title(entry)}{entry['what']} {'of' if entry['what'] == 'prefill' else 'at'} {entry['count']}"
    per_token = "cycles/token" if entry["what"] == "decode" else "cycles"
    named = [("", m["cycles"], per_token), (f", at {clock / 1e6:g} MHz", m["tokens_per_s"], "tokens/s")]
    if "texts" in m:
        named += [(", one text alone", m["alone_cycles"], "cycles/token"), (", tokens for those of one text alone", m["speed_up"], "times")]
    if "first_token_s" in m:
        named.append((", time to the first token", m["first_token_s"], "s"))
    named += [(", share of the stream roofline", m["roofline_share"], "of beat rate")]
    named += [(f", beats {kind}", beats, "beats") for kind, beats in m["beats"].items()]
    named += [(f", cycles in which {units} worked", sum(pair), "cycles") for units, pair in m["busy_cycles"].items()
              if sum(pair) >= LEAST_SHOWN * m["counted_cycles"]]
    for unit, cycles in m["idle_by_unit"].items():
        named.append((f", cycles without a weight beat: {unit}", cycles / m["counted_cycles"], "of cycles"))
    for reason, cycles in m["port_waits"].items():
        named.append((f", slowest port's waits: {reason}", max(cycles) / m["counted_cycles"], "of cycles"))
    rows = [row(f"{title}{what}", value, unit, entry["kind"], entry["command"]) for what, value, unit in named]
    if m["simulated_cycles_per_s"]:
        rows.append(row(f"{title}, simulation rate", m["simulated_cycles_per_s"], "cycles/s", "host-measured", entry["command"]))
    return rows


def _synthesis_rows(entry: dict[str, Any]) -> list[Row]:
    """The machine in all beside the board's resources, then its units, then the parts that occur several times."""
    m, available = entry["measured"], entry["available"]
    title = f"{entry['model']} on {entry['board']} ({entry['configuration']['lanes']} lanes), synthesis"
    units = {"lut": "LUT", "lut_ram": "LUT as RAM", "ff": "FF", "dsp": "multipliers", "bram": "block RAMs", "uram": "UltraRAMs"}
    listed = [("whole", kind, value, units[kind] + (f" of {available[kind]:,}" if kind in available else ""))
              for kind, value in m["total"].items()]
    listed += [(f"unit {name}", kind, value, units[kind]) for name, cost in m["units"].items() for kind, value in cost.items() if value]
    listed += [(f"{part['unit']}: each of {part['count']} {part['name']}", kind, value, units[kind])
               for part in m["parts"] if part["count"] > 1 for kind, value in part["cost"].items() if value]
    rows = [row(f"{title}, {what}, {kind}", value, unit, entry["kind"], entry["command"]) for what, kind, value, unit in listed]
    if timing := m.get("timing"):
        unit = f"ns of {timing['period']:g}"
        slow = [(f"slowest path into {name}", delay) for name, delay in timing["units"].items()]
        slow += [(f"path {path['start']} to {path['end']} ({' '.join(path['cells'])}), {path['count']} of them", path["delay"])
                 for path in timing["paths"]]
        rows += [row(f"{title}, {what}", delay, unit, "projected", entry["command"]) for what, delay in slow]
    return rows


def _draft_rows(entry: dict[str, Any]) -> list[Row]:
    """Rows of a text with and without drafts."""
    m = entry["measured"]
    title = f"{_title(entry)}{entry['what']}, {m['tokens']} tokens after {m['prompt_tokens']}"
    rows = [row(f"{title}{what}", value, unit, entry["kind"], entry["command"]) for what, value, unit in (
        (", plain", m["plain_cycles"], "cycles/token"), (f", up to {m['drafts']} drafts", m["cycles"], "cycles/token"),
        (", plain cycles for those with drafts", m["speed_up"], "times"), (", tokens a pass", m["tokens"] / m["passes"], "tokens"),
        (", the same with the prompt", m["plain_cycles_with_prompt"] / m["cycles_with_prompt"], "times"))]
    return rows


def stored_report(board: str | None = None, results: Path | None = None) -> Report:
    """Every stored result; the rows' `state` says which are stale."""
    from tritloom.sim.bench import measure
    from tritloom.sim.bench.stored import CURRENT

    found = measure.stored(board, results)
    if not found:
        raise BenchError(f"no stored results{f' of board {board}' if board else ''}{f' in {results}' if results else ''}: "
                         "measure with --model NAME --board NAME --context N --store")
    return _report((entry, f"stored on {entry['date']}" if state == CURRENT else state) for _, entry, state in found)


def routed(report: str | Path, command: str = "tritloom build") -> list[Row]:
    """Rows of a build's report.json."""
    data = json.loads(Path(report).read_text(encoding="utf-8"))
    name = f"{data['board']} {data['digest']}"
    used = [row(f"{name} {kind}", count, f"of {available}", "routed", command) for kind, (count, available) in data["utilisation"].items()]
    return [row(f"{name} Fmax", data["fmax_mhz"], "MHz", "routed", command), *used]


def report(*, unit: str | None = None, synth: bool = False, source: Source | None = None, board: str = "sim", tokens: int = 8,
           context: int | None = None, prefill: int | None = None, batch: int | None = None, shared: int | None = None,
           drafts: int | None = None, prompt: str | None = None, timing: str | None = None, resume: bool = False, stored: bool = False,
           store: bool = False, results: Path | None = None,
           settings: dict[str, Any] | None = None, console: Console | None = None) -> Report:
    """What `tritloom bench` shows: a unit's synthesis, a model's decode on the simulated RTL, or stored results."""
    from tritloom.gen.fit.fit import CONTEXT_FOR_SPEED
    from tritloom.host.console import Console

    console = console or Console(quiet=True)
    if settings and (stored or unit is not None):
        raise BenchError("--set and --head are of a machine: leave them out with --stored and --unit")
    if results is not None and not (stored or store or resume):
        raise BenchError("--results names the folder of stored results: give --store, --stored or --resume too")
    if store and (stored or unit is not None or prompt is not None or not (synth or drafts or context is not None or prefill is not None)):
        raise BenchError("--store keeps whole tokens, a machine's synthesis, or texts with drafts after the usual prompt: give "
                         "--context N, --prefill N, --drafts N or --synth, and no --prompt, --unit or --stored")
    if stored:
        others = (source, unit, context, prefill, batch, shared, drafts, prompt, timing)
        if synth or resume or any(option is not None for option in others):
            raise BenchError("--stored shows all results and measures nothing: leave all but --results, --html and --json out")
        return stored_report(results=results)
    if unit is not None:
        if unit != "tlmm" or not synth:
            raise BenchError(f"no measurement of unit {unit}{'' if synth else ' without --synth'}: there is --unit tlmm --synth")
        with console.step("Synthesising") as update:
            return Report(tlmm_synth(update))
    if source is None:
        raise BenchError("nothing to measure: give --model NAME, or --unit tlmm --synth")
    if synth:
        if any(option is not None for option in (prefill, batch, shared, drafts, timing)):
            raise BenchError("--synth measures no cycles: leave --prefill, --batch, --shared, --drafts and --timing out")
        return machine_synth(source, board, context=context, settings=settings, resume=resume, store=store, results=results,
                             console=console)
    if drafts is not None and any(option is not None for option in (context, prefill, batch)):
        raise BenchError("--drafts measures texts that are written: leave --context, --prefill and --batch out")
    if drafts is None and prompt is not None:
        raise BenchError("--prompt is the text that --drafts goes on from: give --drafts N too")
    if batch is not None and context is None:
        raise BenchError("--batch measures a token each of several texts at a depth: give --context N too")
    if shared and (batch is None or context is None or shared % CHUNK or shared > context - 2):
        raise BenchError(f"--shared {shared} is what the texts of --batch have in common before the token that is measured: whole chunks "
                         f"of {CHUNK} positions, at most the --context less 2")
    if source.shape_only:
        if drafts is not None:
            raise BenchError(f"{source.path} is a shape without weights, which writes no text: leave --drafts out, give --context N")
        if context is None and prefill is None:
            context = min(CONTEXT_FOR_SPEED, source.spec().shape.context - 1)
        console.note(f"{source.path} has no weights: random ones are measured")
    if context is not None or prefill is not None:
        return whole_tokens(source, board, context=context, prefill=prefill, batch=batch, shared=shared or 0, settings=settings,
                            timing=timing, resume=resume, store=store, results=results, console=console)
    if resume:
        raise BenchError("--resume takes up a stored measurement of whole tokens: give --context N or --prefill N")
    if drafts is not None:
        return drafted(source, board, drafts, tokens=tokens, prompt=prompt, settings=settings, timing=timing, store=store,
                       results=results, console=console)
    with console.step("Measuring") as update:
        return decode(source, board, tokens, settings=settings, timing=timing, progress=update)


# For people ---------------------------------------------------------------------------------------------


def table(measured: Iterable[Row]) -> str:
    """Aligned text."""
    listed = list(measured)
    width = max((len(r["measure"]) for r in listed), default=0)

    def state(r: Row) -> str:
        text = r.get("state", "measured")
        return f" ({text})" if text != "measured" else ""

    return "\n".join(f"{r['measure']:<{width}}  {number(r['value']):>12} {r['unit']:<18} {r['kind']}{state(r)}" for r in listed)


def number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) and abs(value) >= 1000 else f"{value:,.6g}"
