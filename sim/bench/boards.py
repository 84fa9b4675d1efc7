"""Whole boards that open tools reach: placed and routed, and simulated at their pins (`make boards`).

docs/results/boards/ has a file for each of ROWS, of three parts: `routed`, what came of every seed; `projected`, what `fit` says of the
same machine, with the relative error to the mean of the seeds; and `decode`, what the board writes when its pins are simulated. A routed
result depends on the Verilog and on where its pins are, a decoded one also on the image and on the model of what is at the pins.

`python -m tritloom.sim.bench.boards [BOARD ...]` makes anew what holds no more, or was made with other versions of the tools, and all
projections. A seed takes some ten minutes, the simulation as long; each is stored as it ends, and what was routed before is in the cache.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from tritloom.boards.board import Board, load
from tritloom.boards.sdram import SdramChip
from tritloom.firmware.config import BuildConfig
from tritloom.firmware.image import Image
from tritloom.firmware.layout import memory_map
from tritloom.firmware.programs import machine_program
from tritloom.gen.fit.cost import BLOCK_KIBIT
from tritloom.gen.fit.fit import FitResult
from tritloom.gen.fit.fitted import fitted
from tritloom.gen.source import Source
from tritloom.gen.tools.bitstream import Design, TimingFailure, build, check_board
from tritloom.gen.verilog.digests import digest, plain, syntax_digest, verilog_digest
from tritloom.host.backends.emulator import EmulatorBackend
from tritloom.host.session import Session
from tritloom.sim.bench import stored
from tritloom.sim.bench.measure import cache_bytes
from tritloom.sim.bench.results import versions
from tritloom.sim.board import CELLS, BoardBackend, SimulatedBoard
from tritloom.sim.compile import BOARD
from tritloom.sim.prepare import image_of
from tritloom.system.files import cache, scratch, write_atomically
from tritloom.system.steps import Unseen

__all__ = ["CELLS_OF", "ROWS", "Row", "decode", "decode_digests", "design_digests", "digests_of", "error", "listed_digests", "makers",
           "name_of", "path_of", "projected", "route", "speeds", "state_of", "unrouted", "update", "used"]

CELLS_OF = {
    "ecp5": {"lut": {"TRELLIS_COMB": 1, "TRELLIS_RAMW": 2}, "ff": {"TRELLIS_FF": 1}, "bram": {"DP16KD": 1}, "dsp": {"MULT18X18D": 1}},
    "gowin": {"lut": {"LUT4": 1, "ALU": 1, "RAM16SDP4": 4}, "ff": {"DFF": 1}, "bram": {"BSRAM": 1},
              "dsp": {"MULT18X18": 1, "MULT9X9": 0.5, "MULTALU18X18": 1, "MULTADDALU18X18": 1, "MULTALU36X18": 2, "MULT36X36": 4}},
}  # fmt: skip
"""By family, nextpnr's cells of what `fit` counts: the write port of an ECP5's LUT RAM takes the place of two LUTs."""
WORDS = stored.WORDS | {"constraints": "where its pins are", "pins": "the model of what is at its pins"}
"""What digests are of, as `state_of` calls it."""
MAKER = "gen/tools/bitstream.py"
PROMPT, TOKENS = (1, 50), 3
"""What is decoded at the pins, and how many tokens follow it: the mean is of all but the first of these."""
START_S = 0.001
"""Of the board's time, in which its SDRAM is initialised."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A model on a board; `settings`: fields of the configuration that are fixed; `decodes`: it is simulated, too."""

    board: str
    model: str
    settings: dict[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = (1,)
    decodes: bool = False

    @property
    def source(self) -> Source:
        return Source(model=stored.ROOT / "models" / self.model)

    @property
    def command(self) -> str:
        """That routes it, with a `--seed` each."""
        fixed = "".join(f" --set {name}={value}" for name, value in self.settings.items())
        return f"tritloom build --model models/{self.model} --board {self.board}{fixed}"

    def fitted(self) -> FitResult:
        """The machine, with what is projected of it."""
        return fitted(self.source.spec(), self.board, self.settings)


ROWS = (
    Row(board="ulx3s", model="stories-27m", settings={"clock_hz": 60_000_000}, seeds=(1, 2, 3), decodes=True),
    Row(board="ulx3s", model="stories-260k", settings={"clock_hz": 45_000_000, "mem_bytes": 4, "attention_macs": 4, "vector_lanes": 1}),
    Row(board="ulx3s", model="stories-4m-g128", decodes=True),
    Row(board="tang-nano-20k", model="stories-1m", decodes=True),
    Row(board="colorlight-i5", model="stories-1m"),
)  # fmt: skip


def path_of(row: Row, folder: Path = stored.RESULTS) -> Path:
    """Its file below a folder laid out as docs/results is."""
    return folder / stored.BOARDS / f"{row.board}-{row.model}.json"


# What a result depends on ------------------------------------------------------------------------


def digests_of(design: Design, config: BuildConfig) -> dict[str, str]:
    """Of the Verilog of a whole board and of its constraints."""
    return {"verilog": verilog_digest(design.text, config), "constraints": digest(design.pins or "")}


def makers(board: Board) -> str:
    """Digest of the sources of a whole board."""
    return syntax_digest((MAKER, f"boards/{board.name.replace('-', '_')}.py"))


def design_digests(config: BuildConfig, board: Board) -> dict[str, str]:
    """The same of a machine on a board, which is emitted for it unless these sources have made it before, here or for
    docs/results/digests.json."""
    sources, name = makers(board), name_of(config, board)
    kept = cache("digests") / sources / name
    if not kept.is_file():
        listed = dict(stored.listed().get("boards", {}).get(name, {}))
        if listed.pop("sources", None) == sources:
            return listed
        write_atomically(kept.parent, {kept.name: json.dumps(digests_of(Design.of(config, board), config))})
    return json.loads(kept.read_text("utf-8"))


def name_of(config: BuildConfig, board: Board) -> str:
    return f"{config.digest:08x}-{board.name}"


def listed_digests() -> dict[str, dict[str, str]]:
    """Those of all rows with the sources that they are of, as docs/results/digests.json has them."""
    machines = [(row.fitted().config, load(row.board)) for row in ROWS]
    return {name_of(config, board): {"sources": makers(board)} | design_digests(config, board) for config, board in machines}


def decode_digests(row: Row, result: FitResult) -> dict[str, str]:
    """Of the same, of what the machine is told, and of the model of what is at its pins."""
    config, board = result.config, load(row.board)
    layout = memory_map(config, tied=row.source.spec().tied_embeddings)
    models = [path.read_text("utf-8") for path in (*BOARD.paths, CELLS / f"{board.family}.v")]
    pins = digest(*map(plain, models), repr(board.wiring and board.wiring.sdram))
    told = stored.of_image(machine_program(config, layout), layout.descriptor_words(), layout)
    return design_digests(config, board) | told | dict(zip(("reference", "packing"), stored.reference(), strict=True)) | {"pins": pins}


def state_of(part: dict[str, Any], now: dict[str, str]) -> str:
    """`stored.CURRENT`, or "stale: ..." with what has changed since a part of a result was made."""
    return stored.stale_by(part["digests"], now, part["date"], WORDS) or stored.CURRENT


# The parts of a result ----------------------------------------------------------------------------


def unrouted(row: Row, config: BuildConfig, digests: dict[str, str]) -> dict[str, Any]:
    """What is known before a seed is placed."""
    board = load(row.board)
    return {"kind": "routed", "command": row.command, "date": _today(), "device": f"{board.device} {board.package} speed {board.speed}",
            "clock_mhz": config.clock_hz / 1e6, "seeds": [], "available": _available(board), "versions": _tools(board), "digests": digests}


def route(row: Row, config: BuildConfig, design: Design, seed: int) -> dict[str, Any]:
    """Place and route with a seed."""
    board = load(row.board)
    with scratch(cache("scratch")) as folder:
        try:
            report = build(config, folder, board=board, seeds=(seed,), design=design)
        except TimingFailure as failure:
            report = failure.report
    return {"seed": seed, "fmax_mhz": report["fmax_mhz"], "ok": report["ok"], "used": used(report["utilisation"], board),
            "cells": report["utilisation"]}


def used(utilisation: dict[str, list[int]], board: Board) -> dict[str, float]:
    """What `fit` counts, of nextpnr's cells."""
    cells = CELLS_OF[board.family]
    return {kind: sum(utilisation.get(cell, [0])[0] * each for cell, each in named.items()) for kind, named in cells.items()}


def _available(board: Board) -> dict[str, int]:
    blocks = {"bram": board.resources["bram"] // BLOCK_KIBIT[board.family]}
    return {kind: board.resources[kind] for kind in ("lut", "ff", "dsp")} | blocks


def _tools(board: Board) -> dict[str, str]:
    return versions("pyosys", *check_board(board).packages)


def projected(row: Row, result: FitResult, routed: dict[str, Any]) -> dict[str, Any]:
    """What `fit` says; a clock only of fabrics of which paths are known."""
    said = {kind: result.predicted[kind] for kind in ("lut", "ff", "dsp")}
    said["bram"] = result.predicted["bram"] / BLOCK_KIBIT[load(row.board).family]
    if result.clock.slowest_path_ns:
        said["fmax_mhz"] = round(1000 / result.clock.slowest_path_ns, 2)
    return {"kind": "projected", "command": row.command.replace(" build ", " fit "), "values": said,
            "error": error(said, routed)}


def error(said: dict[str, float], routed: dict[str, Any]) -> dict[str, float]:
    """Of each projected number, relative to the mean of the seeds."""
    seeds = routed["seeds"]
    means = {name: float(np.mean([seed[name] if name in seed else seed["used"][name] for seed in seeds])) for name in said}
    return {name: round(value / means[name] - 1, 4) for name, value in said.items() if means[name]}


class _Filled(BoardBackend):
    """Its image is put into the SDRAM directly: over the line it would take longer than all the rest."""

    def load(self, address: int, data: Any) -> None:
        memory, new = np.frombuffer(self.board.memory(), np.uint8), np.frombuffer(data, np.uint8)
        memory[address : address + len(new)] = new


def decode(row: Row, result: FitResult, image: Image) -> dict[str, Any]:
    """Let the board write TOKENS after PROMPT, as its pins are simulated, and compare them with the emulator's."""
    config, board = result.config, load(row.board)
    chip = board.wiring.sdram if board.wiring else None
    assert isinstance(chip, SdramChip)
    digests = decode_digests(row, result)
    simulated = SimulatedBoard(config, board)
    simulated.run(int(START_S * config.clock_hz))
    with Session(_Filled(simulated), image) as session:
        tokens = list(session.generate(list(PROMPT), TOKENS))
        cycles = session.stats().decode_cycles
    with Session(EmulatorBackend(config, image.map.total_bytes), image) as session:
        expected = list(session.generate(list(PROMPT), TOKENS))
    needed = image.map.token_beats * config.mem_bytes + cache_bytes(config, len(PROMPT) + TOKENS)
    return {"kind": "rtl-simulated", "command": "make boards", "date": _today(), "prompt": list(PROMPT), "tokens": tokens,
            "equal": tokens == expected, "cycles": list(cycles), "bytes": needed, "peak_bytes_per_cycle": chip.width // 8,
            "clock_mhz": config.clock_hz / 1e6, **speeds(cycles, needed, chip.width // 8, config.clock_hz),
            "versions": versions("verilator"), "digests": digests}


def speeds(cycles: Sequence[int], needed: int, peak: int, clock_hz: float) -> dict[str, float]:
    """Of tokens that took so many cycles and each needed so many bytes of a memory that gives `peak` a cycle: mean, and share of that."""
    mean = sum(cycles) / len(cycles)
    return {"cycles_per_token": round(mean), "peak_share": round(needed / peak / mean, 4), "tokens_per_s": round(clock_hz / mean, 2)}


def _today() -> str:
    return datetime.now(timezone.utc).date().isoformat()


# All of them --------------------------------------------------------------------------------------


def update(row: Row, folder: Path = stored.RESULTS) -> dict[str, Any]:
    """Make anew what holds no more of a row's result, and store it seed by seed and part by part."""
    say = logging.getLogger(__name__).info
    path, result, board = path_of(row, folder), row.fitted(), load(row.board)
    config = result.config
    entry = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    entry |= {"board": row.board, "model": row.model, "configuration": config.to_dict()}

    def holds(name: str, now: dict[str, str], tools: dict[str, str]) -> bool:
        return name in entry and state_of(entry[name], now) == stored.CURRENT and entry[name]["versions"] == tools

    def keep() -> None:
        entry["projected"] = projected(row, result, entry["routed"])
        write_atomically(path.parent, {path.name: json.dumps(entry, indent=1) + "\n"})

    digests = design_digests(config, board)
    if not holds("routed", digests, _tools(board)):
        entry["routed"] = unrouted(row, config, digests)
    routed = entry["routed"]
    done = {seed["seed"]: seed for seed in routed["seeds"] if seed["seed"] in row.seeds}
    if missing := [seed for seed in row.seeds if seed not in done]:
        design = Design.of(config, board)
        for seed in missing:
            say("%s: seed %d is placed and routed", path.stem, seed)
            done[seed] = route(row, config, design, seed)
            routed |= {"date": _today(), "seeds": [done[each] for each in row.seeds if each in done]}
            keep()
    keep()
    if row.decodes and not holds("decode", decode_digests(row, result), versions("verilator")):
        say("%s: tokens at the simulated pins", path.stem)
        entry["decode"] = decode(row, result, image_of(row.source, row.source.open(), config, Unseen()))
        keep()
    return entry


def main(arguments: Sequence[str]) -> int:
    """Exit status 1 for a name that is no board of ROWS."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if unknown := set(arguments) - {row.board for row in ROWS}:
        logging.getLogger(__name__).error("no such row: %s", ", ".join(sorted(unknown)))
        return 1
    for row in ROWS:
        if not arguments or row.board in arguments:
            update(row)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
