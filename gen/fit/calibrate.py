"""Measure whole machines by synthesis and fit the cost model to them: `python -m tritloom.gen.fit.calibrate`.

CONFIGURATIONS are synthesised part by part (gen.tools.parts; unchanged parts come from the cache). docs/results/unit_costs.json keeps the
points; how far the projections of the new gen/fit/coefficients.json are from each (`compared`); and how far they are when the coefficients
are fitted without that point (`held_out`). A point keeps a digest of the design that was synthesised, and is measured again only once its
machine has another. Names given as arguments limit what is measured, for example `python -m tritloom.gen.fit.calibrate ecp5`; the other
points stay as they are stored. `boards` measures what stands around a machine, memory controller, link, and what joins them, of every board
that wires an SDR SDRAM. `--stored` measures nothing: it fits to the points that are there, which takes seconds.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from tritloom.firmware.config import BuildConfig, ConfigError
from tritloom.gen.fit import cost
from tritloom.gen.tools import parts
from tritloom.gen.tools.synthesis import SynthesisError
from tritloom.system.files import write_atomically

__all__ = ["CONFIGURATIONS", "POINTS", "calibrate", "compare", "fit_coefficients", "held_out", "measure"]

ROOT = Path(__file__).resolve().parents[2]
POINTS = ROOT / "docs" / "results" / "unit_costs.json"
BOARDS = "boards"
"""As an argument: measure what stands around a machine on the boards that say how they are wired."""
ALIKE = {"xc7": "xcup"}
"""Families whose logic Yosys maps as another's (LUTs of six inputs, carry chains, multipliers): they are fitted to the points of both, with
their own memories. So few machines of theirs are enough."""
ALLOWED = 0.10
"""Relative error of the whole machine's LUTs, block RAMs and multipliers that the model should stay within."""


NOTHING = dict.fromkeys((*cost.KINDS, "lut_ram", "bram"), 0.0)
"""Cost of a unit that a machine does not have."""


@dataclass(frozen=True)
class Configuration:
    """`model`: a published shape or a folder of models/; `board`: whose memory and clock; `settings`: what is not as `fit` has it."""

    name: str
    family: str
    model: str
    board: str
    context: int
    settings: dict[str, Any]

    def build(self) -> BuildConfig:
        from tritloom.gen.fit.fit import fit
        from tritloom.gen.models import open_checkpoint
        from tritloom.gen.models.shapes import SHAPES, published

        if self.model in SHAPES:
            spec = published(self.model, self.context)
        else:
            spec = open_checkpoint(ROOT / "models" / self.model, context=self.context).spec
        return fit(spec, self.board, **self.settings).config


_TINY: dict[str, Any] = {"vector_lanes": 2, "attention_macs": 2, "attention_rows": 1, "tables": 3, "rows_per_cycle": 2,
                         "sampler_candidates": 8}
_SERIAL: dict[str, Any] = {"lanes": 1, "vector_lanes": 1, "attention_macs": 4, "attention_rows": 1, "sampler_candidates": 16}
_WIDER: dict[str, Any] = {"lanes": 2, "mem_bytes": 8, "vector_lanes": 4, "attention_macs": 8}

CONFIGURATIONS = (
    Configuration("large, 16 lanes", "xcup", "bitnet_b1_58-large", "kv260", 2048, {"lanes": 16}),
    Configuration("large, 8 lanes", "xcup", "bitnet_b1_58-large", "kv260", 2048, {"lanes": 8}),
    Configuration("large, 8 texts", "xcup", "bitnet_b1_58-large", "kv260", 256, {"lanes": 8, "sequences": 8}),
    Configuration("large, 4 lanes, one group", "xcup", "bitnet_b1_58-large", "kv260", 2048,
                  {"lanes": 4, "groups": 1, "attention_lanes": 0, "block_rows": 0, "result_parts": 1, "ultra_ram": False}),
    Configuration("2B-4T, 16 lanes", "xcup", "bitnet-b1.58-2B-4T", "kv260", 4096, {"lanes": 16}),
    Configuration("99M, half as wide", "xcup", "TriLM-99M", "kv260", 2048,
                  {"lanes": 2, "mem_bytes": 32, "mem_ports": 2, "vector_lanes": 8}),
    Configuration("4m, 16 bytes", "xcup", "stories-4m", "sim", 512, {"lanes": 1, "mem_bytes": 16}),
    Configuration("large, short-list", "xcup", "bitnet_b1_58-large", "kv260", 2048, {"lanes": 16, "shortlist": 256}),
    Configuration("1.7B by groups", "xcup", "Ternary-Bonsai-1.7B", "kv260", 1024, {"lanes": 6, "attention_lanes": 2, "vector_lanes": 16}),
    Configuration("4m by groups, 16 bytes", "xcup", "stories-4m-g128", "sim", 512, {"lanes": 1, "mem_bytes": 16}),
    Configuration("4m, 16 bytes, short-list", "xcup", "stories-4m", "sim", 512, {"lanes": 1, "mem_bytes": 16, "shortlist": 64}),
    Configuration("4m, 16 bytes", "xc7", "stories-4m", "sim", 512, {"lanes": 1, "mem_bytes": 16}),
    Configuration("1m, 4 bytes", "xc7", "stories-1m", "sim", 512, {"lanes": 1, "mem_bytes": 4, **_TINY}),
    Configuration("260k, on chip", "ecp5", "stories-260k", "ecp5-85f", 512, {}),
    Configuration("260k, on chip, 2 lanes", "ecp5", "stories-260k", "ecp5-85f", 512, {"lanes": 2}),
    Configuration("4m, 4 bytes", "ecp5", "stories-4m", "sim", 512, {"lanes": 1, "mem_bytes": 4, **_TINY}),
    Configuration("4m, 8 bytes, 2 lanes", "ecp5", "stories-4m", "sim", 256, _WIDER),
    Configuration("4m by groups, 8 bytes", "ecp5", "stories-4m-g128", "ulx3s", 512, {"lanes": 1}),
    Configuration("4m by groups, 8 bytes, 2 lanes", "ecp5", "stories-4m-g128", "sim", 256, _WIDER),
    Configuration("4m, 4 bytes, short-list", "ecp5", "stories-4m", "sim", 512, {"lanes": 1, "mem_bytes": 4, **_TINY, "shortlist": 16}),
    Configuration("4m, 8 bytes, short-list", "ecp5", "stories-4m", "sim", 256, {**_WIDER, "shortlist": 64}),
    Configuration("1m, 8 bytes", "gowin", "stories-1m", "sim", 512, {"lanes": 1, "mem_bytes": 8, "vector_lanes": 4, "attention_macs": 4}),
    Configuration("1m, 4 bytes", "gowin", "stories-1m", "sim", 512, {"lanes": 1, "mem_bytes": 4, **_TINY}),
    Configuration("4m, 4 bytes, 2 lanes", "gowin", "stories-4m", "sim", 512, {"lanes": 2, "mem_bytes": 4, **_TINY}),
    Configuration("4m, 8 bytes, 2 lanes", "gowin", "stories-4m", "sim", 256, _WIDER),
    Configuration("1m, 4 bytes, 4 elements", "gowin", "stories-1m", "sim", 512,
                  {"lanes": 1, "mem_bytes": 4, "vector_lanes": 4, "attention_macs": 4, "tables": 3, "rows_per_cycle": 2}),
    Configuration("4m, 4 bytes, short-list", "gowin", "stories-4m", "sim", 512, {"lanes": 2, "mem_bytes": 4, **_TINY, "shortlist": 16}),
    Configuration("4m, 8 bytes, short-list", "gowin", "stories-4m", "sim", 256, {**_WIDER, "shortlist": 64}),
    Configuration("260k, on chip, 4 bytes, one element", "ecp5-small", "stories-260k", "ecp5-85f", 512, {"mem_bytes": 4, **_SERIAL}),
    Configuration("260k, on chip, 8 bytes, one element", "ecp5-small", "stories-260k", "ecp5-85f", 512, {"mem_bytes": 8, **_SERIAL}),
    Configuration("1m, 4 bytes, one element", "ecp5-small", "stories-1m", "ulx3s", 512, {"mem_bytes": 4, **_SERIAL}),
    Configuration("260k, on chip, 4 bytes, one element", "gowin-small", "stories-260k", "ecp5-85f", 512, {"mem_bytes": 4, **_SERIAL}),
    Configuration("1m, 4 bytes, one element", "gowin-small", "stories-1m", "ulx3s", 512, {"mem_bytes": 4, **_SERIAL}),
    Configuration("1m, 8 bytes, one element", "gowin-small", "stories-1m", "ulx3s", 512, {"mem_bytes": 8, **_SERIAL}),
    Configuration("260k, on chip", "ice40", "stories-260k", "ecp5-85f", 128, {"mem_bytes": 4, **_TINY}),
    Configuration("1m, 4 bytes", "ice40", "stories-1m", "sim", 256, {"lanes": 1, "mem_bytes": 4, **_TINY}),
    Configuration("1m, 4 bytes, 2 lanes", "ice40", "stories-1m", "sim", 256, {"lanes": 2, "mem_bytes": 4, **_TINY}),
    Configuration("4m, 8 bytes, 4 lanes", "ice40", "stories-4m", "sim", 256,
                  {"lanes": 4, "mem_bytes": 8, "vector_lanes": 4, "attention_macs": 4}),
    Configuration("1m, 4 bytes, short-list", "ice40", "stories-1m", "sim", 256, {"lanes": 1, "mem_bytes": 4, **_TINY, "shortlist": 16}),
    Configuration("4m, 8 bytes, short-list", "ice40", "stories-4m", "sim", 256, {**_WIDER, "shortlist": 64}),
    Configuration("260k, on chip, 8 bytes", "ice40", "stories-260k", "ecp5-85f", 64, {"lanes": 2, "mem_bytes": 8}),
)


def measure(what: Configuration, progress: Callable[[str], None] | None = None, known: dict[str, Any] | None = None) -> dict[str, Any]:
    """The point of a configuration: what each unit costs by synthesis. `known`, the stored one, if it is of the same design and Yosys."""
    config = what.build()
    tell = progress or (lambda text: None)
    tell("emitting")
    designs = parts.parts_of(config)
    made = {"config": config.to_dict(), "design": parts.digest_of(designs), "yosys": version("pyosys")}
    if known is not None and {name: known.get(name) for name in ("design", "yosys")} == {name: made[name] for name in ("design", "yosys")}:
        return known | made
    found = parts.synthesise(designs, what.family, lambda done, total, part: tell(f"{part} ({done + 1} of {total})"))
    units = {unit: dict(NOTHING) for unit in cost.UNITS}
    for name, spent in parts.by_unit(found).items():
        unit = units[name if name in units else "control"]
        for kind in unit:
            unit[kind] += spent[kind]
    return {"name": what.name, "family": what.family, "units": units, **made, "date": datetime.now(timezone.utc).date().isoformat()}


def measure_around(progress: Callable[[str], None] | None = None) -> list[dict[str, Any]]:
    """Points of what stands around a machine: of every board that says how it is wired, by synthesis for every family."""
    from tritloom.boards.board import load, names
    from tritloom.boards.sdram import SdramChip
    from tritloom.gen.verilog.board import sdram_of
    from tritloom.rtl.board import BoardTop
    from tritloom.rtl.link.parameters import LinkParameters

    found = []
    for name in names():
        board = load(name)
        if board.wiring is None or not isinstance(board.wiring.sdram, SdramChip):
            continue
        config = Configuration(name, board.family, "stories-260k", name, 512, {}).build()
        link = LinkParameters(clock_hz=config.clock_hz, baud=board.wiring.baud)
        designs = parts.parts_of_board(BoardTop(config, link=link, sdram=sdram_of(config, board)))
        for family in cost.FAMILIES:
            for unit, (grows, kept) in cost.surroundings(board, config).items():
                if progress:
                    progress(f"{family}, {unit} of {name}")
                spent, stored = parts.synthesise_alone(designs["top" if unit == "board" else unit], family), cost.stored(family, kept)
                found.append({"name": name, "family": family, "unit": unit, "terms": grows,
                              "cost": {kind: spent[kind] for kind in (*cost.KINDS, "bram")},
                              "memories": {"lut": stored.lut, "ff": stored.ff, "bram": stored.bram}})
    return found


def fit_around(points: list[dict[str, Any]]) -> cost.Coefficients:
    """Coefficients of what stands around a machine, as `fit_coefficients`."""
    table: cost.Coefficients = {}
    for family in sorted({p["family"] for p in points}):
        for unit in cost.AROUND:
            mine = [p for p in points if (p["family"], p["unit"]) == (family, unit)]
            for kind in cost.KINDS if mine else ():
                logic = [p["cost"][kind] - p["memories"].get(kind, 0) for p in mine]
                table.setdefault(family, {}).setdefault(unit, {})[kind] = _least_squares([p["terms"] for p in mine], logic)
    return table


def _least_squares(grown: list[dict[str, float]], measured: list[float], whole: list[float] | None = None) -> dict[str, float]:
    """Non-negative coefficient of each term, with the least squared error relative to what was `measured`, or to the `whole` of which that
    is a part."""
    from scipy.optimize import nnls

    names, wanted = list(grown[0]), np.array(measured, float)
    grows, unit = np.array([[terms[name] for name in names] for terms in grown], float), np.maximum(measured if whole is None else whole, 1)
    found, _ = nnls(grows / unit[:, None], wanted / unit)
    return dict(zip(names, [round(x, 3) for x in found.tolist()], strict=True))


def fit_coefficients(points: list[dict[str, Any]]) -> cost.Coefficients:
    """Non-negative coefficients with the least squared relative error, from measured points."""
    table: cost.Coefficients = {}
    families: set[str] = {p["family"] for p in points}
    for family in sorted(families | {family for family, like in ALIKE.items() if like in families}):
        both = family, ALIKE.get(family, family)
        mine = [(BuildConfig.from_dict(p["config"]), p["units"], p["family"]) for p in points if p["family"] in both]
        for unit in cost.UNITS:
            grown = [cost.terms(config)[unit] for config, _, _ in mine]
            by_groups = [config.shape.group_size > 0 for config, _, _ in mine]
            spent = [_memories_of(config, its, unit, units) for config, units, its in mine]
            for kind in cost.KINDS:
                logic = [units.get(unit, NOTHING)[kind] - kept.get(kind, 0) for (_, units, _), kept in zip(mine, spent, strict=True)]
                table.setdefault(family, {}).setdefault(unit, {})[kind] = _in_two_steps(grown, logic, by_groups)
    return table


def _in_two_steps(grown: list[dict[str, float]], measured: list[float], by_groups: list[bool]) -> dict[str, float]:
    """Coefficients of what every machine has, from those of models without groups; then, from what the others (`by_groups`) cost beyond
    that, those of `cost.OF_GROUPS`. So these change nothing for ordinary models."""
    names = [name for name in grown[0] if name not in cost.OF_GROUPS]
    both = list(zip(grown, measured, by_groups, strict=True))
    found = _least_squares([{name: terms[name] for name in names} for terms, _, others in both if not others],
                           [wanted for _, wanted, others in both if not others])
    more = [name for name in grown[0] if name in cost.OF_GROUPS]
    left = [(terms, wanted, sum(found[name] * terms[name] for name in names)) for terms, wanted, others in both if others]
    if not left or not more:
        return found | dict.fromkeys(more, 0.0)
    return found | _least_squares([{name: terms[name] for name in more} for terms, _, _ in left],
                                  [wanted - known for _, wanted, known in left], [wanted for _, wanted, _ in left])


def _memories_of(config: BuildConfig, family: str, unit: str, units: dict[str, dict[str, float]]) -> dict[str, float]:
    """LUTs and flip-flops of a point that memories are made of: LUT RAM is counted, flip-flops that are memories only projected."""
    if family in cost.LUTRAM:
        return {"lut": units.get(unit, NOTHING)["lut_ram"]}
    kept = cost.stored(family, cost.memories(config)[unit])
    return {"lut": kept.lut, "ff": kept.ff}


def compare(points: Iterable[dict[str, Any]], coefficients: cost.Coefficients = cost.COEFFICIENTS) -> list[dict[str, Any]]:
    """Projected against measured, whole machines: a row for each point and kind with the relative error of the projection."""
    rows = []
    for point in points:
        projected = cost.resources(BuildConfig.from_dict(point["config"]), point["family"], coefficients)
        for kind in ("lut", "ff", "bram", "dsp"):
            scale = cost.BLOCK_KIBIT[point["family"]] if kind == "bram" else 1
            measured = sum(unit[kind] for unit in point["units"].values()) * scale
            error = (projected[kind] - measured) / measured if measured else float(projected[kind] != 0)
            rows.append({"name": point["name"], "family": point["family"], "kind": kind, "measured": measured, "projected": projected[kind],
                         "error": round(error, 4)})
    return rows


def held_out(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """As `compare`, but each machine is projected with coefficients that were fitted to the family's other machines alone."""
    rows = []
    for point in points:
        family = point["family"]
        others = [p for p in points if p["family"] in (family, ALIKE.get(family)) and p is not point]
        rows += compare([point], fit_coefficients(others)) if others else []
    return rows


def calibrate(wanted: Iterable[str] = (), progress: Callable[[str], None] | None = None) -> tuple[list[dict[str, Any]], list[str]]:
    """Measure the configurations whose family or name is in `wanted` (all if none), fit, store.

    Returns the comparison, and of those that could not be synthesised why, and what to do; these keep the point that they have, if
    any. Raises ConfigError for what is no family and no name.
    """
    wanted = list(wanted)
    names = {c.family for c in CONFIGURATIONS} | {c.name for c in CONFIGURATIONS} | {BOARDS}
    unknown = [name for name in wanted if name not in names]
    if unknown:
        raise ConfigError(f"no configuration or family called {unknown[0]!r}: there are {', '.join(map(repr, sorted(names)))}")
    listed = {(c.name, c.family) for c in CONFIGURATIONS}
    kept = json.loads(POINTS.read_text(encoding="utf-8")) if POINTS.exists() else {"points": [], "around": []}
    around = kept["around"]
    if not wanted or BOARDS in wanted:
        around = measure_around(progress)
    points = [p for p in kept["points"] if (p["name"], p["family"]) in listed]
    failed: list[str] = []
    for what in CONFIGURATIONS:
        if wanted and what.name not in wanted and what.family not in wanted:
            continue
        older = next((p for p in points if (p["name"], p["family"]) == (what.name, what.family)), None)
        try:
            point = measure(what, lambda part, what=what: progress(f"{what.family}, {what.name}: {part}") if progress else None, older)
        except SynthesisError as error:  # the other points are good without it
            state = "its older point stays" if older else "it has no point"
            failed.append(f'{what.family}, {what.name}: {error}; {state}. Once mended: python -m tritloom.gen.fit.calibrate "{what.name}"')
            continue
        points = [p for p in points if (p["name"], p["family"]) != (what.name, what.family)] + [point]
        _store(points, around)  # what was measured stays whatever happens to the next
    return _store(points, around), failed


def _store(points: list[dict[str, Any]], around: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Write the coefficients and the points, with what the coefficients make of them. Families without points keep what they have."""
    command = "python -m tritloom.gen.fit.calibrate"
    for table in (fit_coefficients(points), fit_around(around)):
        for family, units in table.items():
            cost.COEFFICIENTS.setdefault(family, {}).update(units)
    fitted = cost.COEFFICIENTS
    compared = compare(points)
    found = {"points": points, "around": around, "compared": compared, "held_out": held_out(points)}
    for path, content in ((cost.FILE, {"coefficients": fitted}), (POINTS, found)):
        write_atomically(path.parent, {path.name: json.dumps({"command": command, **content}, indent=1) + "\n"})
    return compared


def main(arguments: list[str]) -> int:
    """Calibrate and print measured, projected, and the errors with the machine among the points and without it; exit status 1 if a
    projection is out of bounds or a machine not measured, 2 for a wrong name."""
    try:
        if arguments == ["--stored"]:
            kept = json.loads(POINTS.read_text(encoding="utf-8"))
            rows, failed = _store(kept["points"], kept["around"]), []
        else:
            rows, failed = calibrate(arguments, lambda text: print(text, file=sys.stderr, flush=True))
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    stored = json.loads(POINTS.read_text(encoding="utf-8"))["held_out"]
    unseen = {(item["family"], item["name"], item["kind"]): item["error"] for item in stored}
    for item in rows:
        mark = "" if item["kind"] == "ff" or abs(item["error"]) <= ALLOWED else "  out of bounds"
        alone = unseen.get((item["family"], item["name"], item["kind"]), float("nan"))
        numbers = f"{item['measured']:>10,.0f} {item['projected']:>10,.0f} {item['error']:+8.1%} {alone:+8.1%}"
        print(f"{item['family']:6} {item['name']:24} {item['kind']:5} {numbers}{mark}")
    for text in failed:
        print(f"not measured: {text}")
    return int(bool(failed) or any(item["kind"] != "ff" and abs(item["error"]) > ALLOWED for item in rows))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
