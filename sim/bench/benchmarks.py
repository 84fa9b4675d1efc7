"""What `tritloom bench` measures: a unit's synthesis, a machine's, tokens and texts of a model on the simulated RTL; or what is stored.

The measurements themselves are in sim/bench/measure.py and gen/tools; here a machine is prepared for them, their results are stored or
taken from the store, and made a report of.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tritloom.boards.board import DEFAULT_BOARD
from tritloom.boards.board import load as load_board
from tritloom.firmware.config import CHUNK
from tritloom.firmware.errors import InputError
from tritloom.gen.fit.fit import CONTEXT_FOR_SPEED, fit, predict, prompt_cycles
from tritloom.gen.fit.fitted import fitted
from tritloom.gen.models.shapes import SHAPES
from tritloom.gen.source import Source
from tritloom.gen.tools import parts, synthesis
from tritloom.gen.tools import timing as paths
from tritloom.host.session import Session, check_drafts, check_passes
from tritloom.host.tokenizer import Tokenizer
from tritloom.rtl.ternary.parameters import TABLE_FORMS
from tritloom.sim import prepare
from tritloom.sim.bench import measure, results, stored
from tritloom.sim.bench.measure import Measured
from tritloom.sim.bench.report import Report, Row, measured_rows, report_of, row, stored_report
from tritloom.sim.dram import timing_of
from tritloom.system.steps import Steps, Unseen

__all__ = ["drafted", "machine_synth", "mean_token", "report", "tlmm_synth", "whole_tokens"]

PROMPT = "Once upon a time, there was a little girl named Lily. She liked to play in the garden with her"
"""What the decode measurement starts from, unless told otherwise."""

SESSION_TIMEOUT_S = 6 * 3600.0
"""Real time that the simulation may take for a token."""

Progress = Callable[..., None]
"""Called with (done, total, text)."""


def name_of(source: Source) -> str:
    """What the results of a model are called: its folder's name, told from a published shape of that name."""
    name = source.path.name
    return name if name not in SHAPES or source.published else f"{name}-local"


# Synthesis ------------------------------------------------------------------------------------------------


def tlmm_synth(progress: Progress | None = None) -> list[Row]:
    """Cost of a TLMM lane in each table form on each fabric, with and without the pre-computation."""
    command = "tritloom bench --unit tlmm --synth"
    total, done = len(synthesis.SIZES) * len(TABLE_FORMS), itertools.count()
    measured = synthesis.tlmm_table(progress=(lambda text: progress(next(done), total, text)) if progress else None)
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
                  resume: bool = False, store: bool = False, folder: Path | None = None, steps: Steps | None = None) -> Report:
    """Synthesise the whole machine for `source` on `board`, part by part: what every unit costs, and the slowest paths.

    `context`: positions of the cache (the model's own by default). Unlike elsewhere, the machine need not fit the board. With
    `resume`, a stored result of the same configuration and code is taken instead.
    """
    steps = steps or Unseen()
    target, settings, name = load_board(board), settings or {}, name_of(source)
    config = fit(source.spec(context), target, **settings).config
    labels = settings | ({"context-": context} if context else {})
    file = results.result_path(board, name, "synthesis", labels, folder) if resume or store else None
    entry = results.load(file) if file and resume else None
    if entry is None or stored.configuration_of(entry) != config or _state(entry, steps) != stored.CURRENT:
        with steps.step("Generating Verilog"):
            made = stored.digests("synthesis", config)
        with steps.step("Synthesising the machine") as update:
            family = synthesis.SMALL[target.family] if config.serial else target.family  # `fit` refuses what has no such family
            found = parts.synthesise(parts.parts_of(config), family, lambda done, total, text: update(done, total, text))
        timing = None
        if target.family == paths.FAMILY:
            with steps.step("Following its paths"):
                timing = paths.worst_paths(config, parts.totals(found)["lut"] / target.resources.get("lut", math.inf))
        command = (f"tritloom bench --synth --model {source.path}{source.words} --board {board}"
                   f"{f' --context {context}' if context else ''}{_changes(settings)}")
        entry = results.record_synthesis(found, model=name, config=config, family=target.family, resources=target.resources,
                                         timing=timing, command=command, made=made)
        _keep(entry, file if store else None, steps)
        return report_of([(entry, "measured")])
    return report_of([(entry, f"stored on {entry['date']}")])


def _state(entry: dict[str, Any], steps: Steps) -> str:
    """Whether a stored result holds; where its machine must be emitted to know, it is: that takes less than to measure again."""
    with steps.step("Looking whether the stored result holds"):
        return stored.state_of(entry, emit=True)


def _keep(entry: dict[str, Any], file: Path | None, steps: Steps) -> None:
    """Store a result in `file`, in place of the one there, if there is a file to store it in."""
    if file is None:
        steps.note("not stored: --store keeps a result, in place of the one before")
    else:
        results.store(entry, file)
        steps.note(f"Stored: {file}")


def _changes(settings: dict[str, Any], timing: str | None = None) -> str:
    """The options that stand for what is not as the board has it."""
    return "".join(f" --set {key}={value}" for key, value in settings.items()) + (f" --timing {timing}" if timing else "")


# Tokens and texts -----------------------------------------------------------------------------------------


def mean_token(source: Source, board: str = "sim", tokens: int = 8, *, settings: dict[str, Any] | None = None,
               timing: str | None = None, progress: Progress | None = None) -> Report:
    """Run `tokens` tokens of decode through the simulated RTL; rows of cycles, memory use and where the idle beats went."""
    name, quiet = name_of(source), Unseen()
    tell = progress or (lambda *_: None)
    command = f"tritloom bench --model {source.path}{source.words} --board {board} --tokens {tokens}{_changes(settings or {}, timing)}"
    tell(0, tokens, "preparing the machine")
    timing = timing_of(timing, board)
    checkpoint = source.open()
    spec = checkpoint.spec
    if tokens >= spec.shape.context:
        raise InputError(f"{tokens} tokens go past the context of {spec.shape.context}: ask for at most {spec.shape.context - 1}")
    ids = Tokenizer.from_file(checkpoint.tokenizer, spec.bos_id).encode(PROMPT)[: max(1, spec.shape.context - tokens - 1)]
    config = fitted(spec, board, settings or {}).config
    image = prepare.image_of(source, checkpoint, config, quiet)
    backend = prepare.open_simulation(config, image.map.total_bytes, timing, quiet)
    made = stored.digests("decode", config, image, timing)
    try:
        with Session(backend, image) as session:
            measured = measure.measure_session(session, ids, tokens, progress, timeline=True)
    finally:
        backend.close()
    positions = len(ids) + (tokens + 1) // 2
    streamed = {"layers": image.map.layers_beats * config.mem_bytes, "head": measure.head_bytes(config, image.map),
             "cache": measure.cache_bytes(config, positions)}
    entry = results.record(_mean_token(measured, streamed, sum(streamed.values()), config.mem_bytes),
                           model=name, what="decode", count=positions, config=config, timing=timing, weights="checkpoint",
                           command=command, made=made)
    return Report(measured_rows(name, measured, command), [(entry, "measured")])


def _mean_token(m: Measured, streamed: dict[str, int], useful: int, beat_bytes: int) -> dict[str, Any]:
    """The `measured` part of an entry for a text's mean token, which streams `streamed`, together `useful` bytes."""
    tokens = len(m.decode_cycles)
    cycles = sum(m.decode_cycles) / tokens
    return {"cycles": cycles, "tokens": tokens, "tokens_per_s": m.clock_hz / cycles, "counted_cycles": m.shares.cycles,
            "busy_cycles": {name: [m.shares.streaming.get(name, 0), m.shares.idle.get(name, 0)] for name in m.shares.names},
            "bytes": streamed, "roofline_share": useful / (cycles * beat_bytes), "timeline": m.timeline}


def whole_tokens(source: Source, board: str, *, context: int | None = None, prefill: int | None = None, batch: int | None = None,
                 shared: int = 0, settings: dict[str, Any] | None = None, timing: str | None = None, resume: bool = False,
                 store: bool = False, folder: Path | None = None, steps: Steps | None = None) -> Report:
    """Measure a decode token at `context` positions and the first token after `prefill` prompt tokens, on the simulated RTL.
    With `batch`, instead of one decode token, a token each of so many texts at `context` positions, of which they have `shared` in common,
    beside the token of one.

    `source`: a checkpoint, or a shape without weights (random ones are made). sim/bench/measure.py says what exactly is
    measured. With `store`, results are stored below `folder` (docs/results of a clone); with `resume`, a stored result of the same
    configuration, code, memory model and timing is taken instead. `steps` shows how far it is.
    """
    steps = steps or Unseen()
    target, settings, name = load_board(board), settings or {}, name_of(source)
    timing = timing_of(timing, board)
    several = f"batch{batch}" + (f"-shared{shared}" if shared else "")
    wanted = [(what, count) for what, count in ((several if batch else "decode", context), ("prefill", prefill)) if count is not None]
    settings = {"sequences": batch} | settings if batch else settings
    weights = "random" if source.shape_only else "checkpoint"
    spec = source.spec()
    spec = spec.with_context(measure.capacity(max(2, *(count for _, count in wanted)), spec.shape.context))
    config = fitted(spec, board, settings).config
    if batch:
        check_passes(config)
    if batch and batch > min(config.lanes, config.sequences):
        raise InputError(f"{batch} texts need as many lanes and caches, this machine has {config.lanes} and {config.sequences}: "
                         + " ".join(f"--set {name}={batch}" for name in ("lanes", "sequences") if getattr(config, name) < batch))
    changes = _changes(settings, timing if timing != target.timing else None)
    labels = settings | ({"timing-": timing} if timing != target.timing else {})
    files = {what: results.result_path(board, name, f"{what}-{count}", labels, folder)
             for what, count in wanted if resume or store}

    entries: dict[str, dict[str, Any]] = {}
    states = {what: "measured" for what, _ in wanted}
    for what in states if resume else ():
        entry = results.load(files[what])
        if entry is None or entry["timing"] != timing or entry["weights"] != weights or stored.configuration_of(entry) != config:
            continue
        state = _state(entry, steps)
        if state == stored.CURRENT:
            entries[what], states[what] = entry, f"stored on {entry['date']}"
        else:
            states[what] = f"measured again, the stored result was {state}"
    missing = [(what, count) for what, count in wanted if what not in entries]
    if missing:
        if weights == "checkpoint":
            image = prepare.image_of(source, source.open(config.shape.context), config, steps)
        else:
            image = measure.RandomImage.of(spec, config)
        backend = prepare.open_simulation(config, image.map.total_bytes, timing, steps)
        made = {what: stored.digests(what, config, image, timing) for what, _ in missing}
        try:
            with steps.step("Loading the machine"):
                session = Session(measure.Watched(backend), image, timeout_s=SESSION_TIMEOUT_S)
            with session:
                for what, count in missing:
                    if what == "prefill":
                        expected = prompt_cycles(config, image.map, target, count)
                    else:
                        expected = predict(config, image.map, target, count)[0]["decode_cycles_per_token"]
                    title = f"Prefill of {count} tokens" if what == "prefill" else f"Decode at {count} positions"
                    with steps.step(title) as update:
                        if what == several:
                            measured = measure.batch(session, count, batch or 0, shared, expected=expected, progress=update, timeline=True)
                        else:
                            measured = getattr(measure, what)(session, count, expected=expected, progress=update, timeline=True)
                    together = (f" --batch {batch}" if batch else "") + (f" --shared {shared}" if shared else "")
                    asked = f"--prefill {count}" if what == "prefill" else f"--context {count}{together}"
                    command = f"tritloom bench --model {source.path}{source.words} --board {board} {asked}{changes}"
                    entries[what] = results.record(measured, model=name, what=what, count=count, config=config, timing=timing,
                                                   weights=weights, command=command, made=made[what])
                    _keep(entries[what], files[what] if store else None, steps)
        finally:
            backend.close()
    return report_of((entries[what], states[what]) for what, _ in wanted)


DRAFTS_PROMPT = "One day, a little girl named Lily"
"""An opening after which the stories' models do write again what they wrote; after others they stray from it sooner or later."""
REWRITTEN_TOKENS, OPENING_TOKENS = 96, 24
"""Of the story that is written twice, and of its second writing's beginning, which the prompt gives."""


def drafted(source: Source, board: str, drafts: int, *, tokens: int = 64, prompt: str | None = None,
            settings: dict[str, Any] | None = None, timing: str | None = None, store: bool = False, folder: Path | None = None,
            steps: Steps | None = None) -> Report:
    """Measure drafts on the simulated RTL: a text that goes on freely from `prompt`, and one that rewrites what the model wrote
    (`sim.bench.measure.rewriting`). With `store`, the results are stored below `folder`."""
    steps, settings, name = steps or Unseen(), settings or {}, name_of(source)
    target = load_board(board)
    timing = timing_of(timing, board)
    checkpoint = source.open()
    spec = checkpoint.spec
    config = fitted(spec, board, settings).config
    check_drafts(drafts, config)
    ids = Tokenizer.from_file(checkpoint.tokenizer, spec.bos_id).encode(prompt or DRAFTS_PROMPT)
    story, most = min(REWRITTEN_TOKENS, spec.shape.context // 3), spec.shape.context // 3
    if max(len(ids), tokens) > most:
        raise InputError(f"a prompt of {len(ids)} tokens and {tokens} tokens to write: at most {most} each fit the context written twice")
    labels = settings | {"drafts": drafts} | ({"timing-": timing} if timing != target.timing else {})
    kinds = ("ordinary", "rewrite")
    files = {kind: results.result_path(board, name, f"{kind}-{tokens}", labels, folder) for kind in kinds if store}
    image = prepare.image_of(source, checkpoint, config, steps)
    changes = (f' --prompt "{prompt}"' if prompt else "") + _changes(settings, timing if timing != target.timing else None)
    command = f"tritloom bench --model {source.path}{source.words} --board {board} --drafts {drafts} --tokens {tokens}{changes}"
    entries = []
    backend = prepare.open_simulation(config, image.map.total_bytes, timing, steps)
    made = stored.digests("drafts", config, image, timing)
    try:
        with Session(backend, image) as session:
            for kind in kinds:
                with steps.step(f"Writing, {kind}"):
                    text = ids
                    if kind == "rewrite":
                        text = measure.rewriting(session, ids, max(story - len(ids), 2), OPENING_TOKENS, spec.eos_ids[0])
                    found = measure.drafted(session, text, tokens, drafts, spec.eos_ids)
                entry = results.record(found | {"prompt": kind}, model=name, what=f"drafts-{kind}", count=tokens, config=config,
                                       timing=timing, weights="checkpoint", command=command, made=made)
                _keep(entry, files.get(kind), steps)
                entries.append((entry, "measured"))
    finally:
        backend.close()
    return report_of(entries)


# What is asked for ----------------------------------------------------------------------------------------


def report(*, unit: str | None = None, synth: bool = False, source: Source | None = None, board: str | None = None, tokens: int = 8,
           context: int | None = None, prefill: int | None = None, batch: int | None = None, shared: int | None = None,
           drafts: int | None = None, prompt: str | None = None, timing: str | None = None, resume: bool = False, stored: bool = False,
           store: bool = False, folder: Path | None = None,
           settings: dict[str, Any] | None = None, steps: Steps | None = None) -> Report:
    """What `tritloom bench` shows: a unit's synthesis, a model's decode on the simulated RTL, or stored results."""
    steps = steps or Unseen()
    if settings and (stored or unit is not None):
        raise InputError("--set and --head are of a machine: leave them out with --stored and --unit")
    if folder is not None and not (stored or store or resume):
        raise InputError("--results names the folder of stored results: give --store, --stored or --resume too")
    if store and (stored or unit is not None or prompt is not None or not (synth or drafts or context is not None or prefill is not None)):
        raise InputError("--store keeps whole tokens, a machine's synthesis, or texts with drafts after the usual prompt: give "
                         "--context N, --prefill N, --drafts N or --synth, and no --prompt, --unit or --stored")
    if stored:
        others = (unit, context, prefill, batch, shared, drafts, prompt, timing)
        if synth or resume or any(option is not None for option in others):
            raise InputError("--stored shows results and measures nothing: leave all but --board, --model, --results, --html and --json "
                             "out")
        return stored_report(board and Path(board).stem, name_of(source) if source else None, folder)
    if unit is not None:
        if unit != "tlmm" or not synth:
            raise InputError(f"no measurement of unit {unit}{'' if synth else ' without --synth'}: there is --unit tlmm --synth")
        with steps.step("Synthesising") as update:
            return Report(tlmm_synth(update))
    board = board or DEFAULT_BOARD
    if source is None:
        raise InputError("nothing to measure: give --model NAME, or --unit tlmm --synth")
    if synth:
        if any(option is not None for option in (prefill, batch, shared, drafts, timing)):
            raise InputError("--synth measures no cycles: leave --prefill, --batch, --shared, --drafts and --timing out")
        return machine_synth(source, board, context=context, settings=settings, resume=resume, store=store, folder=folder,
                             steps=steps)
    if drafts is not None and any(option is not None for option in (context, prefill, batch)):
        raise InputError("--drafts measures texts that are written: leave --context, --prefill and --batch out")
    if drafts is None and prompt is not None:
        raise InputError("--prompt is the text that --drafts goes on from: give --drafts N too")
    if batch is not None and context is None:
        raise InputError("--batch measures a token each of several texts at a depth: give --context N too")
    if shared and (batch is None or context is None or shared % CHUNK or shared > context - 2):
        raise InputError(f"--shared {shared} is what the texts of --batch have in common before the token that is measured: whole chunks "
                         f"of {CHUNK} positions, at most the --context less 2")
    if source.shape_only:
        if drafts is not None:
            raise InputError(f"{source.path} is a shape without weights, which writes no text: leave --drafts out, give --context N")
        if context is None and prefill is None:
            context = min(CONTEXT_FOR_SPEED, source.spec().shape.context - 1)
        steps.note(f"{source.path} has no weights: random ones are measured")
    if context is not None or prefill is not None:
        return whole_tokens(source, board, context=context, prefill=prefill, batch=batch, shared=shared or 0, settings=settings,
                            timing=timing, resume=resume, store=store, folder=folder, steps=steps)
    if resume:
        raise InputError("--resume takes up a stored measurement of whole tokens: give --context N or --prefill N")
    if drafts is not None:
        return drafted(source, board, drafts, tokens=tokens, prompt=prompt, settings=settings, timing=timing, store=store,
                       folder=folder, steps=steps)
    with steps.step("Measuring") as update:
        return mean_token(source, board, tokens, settings=settings, timing=timing, progress=update)
