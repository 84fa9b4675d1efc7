"""Measured numbers: rows of {measure, value, unit, kind, command} and their table; sim/bench/page.py draws them.

`kind` says what stands behind a number: rtl-simulated, synthesised, routed, host-measured or projected.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from tritloom.firmware.errors import InputError
from tritloom.firmware.names import unknown
from tritloom.sim.bench import results
from tritloom.sim.bench.measure import Measured
from tritloom.sim.bench.stored import CURRENT

__all__ = ["KINDS", "Report", "Row", "entry_rows", "measured_rows", "number", "report_of", "routed", "row", "stored_report", "table"]

KINDS = ("rtl-simulated", "synthesised", "routed", "host-measured", "projected")
WIDTH, LEAST_NAME = 140, 16
"""Columns of a table where there is no terminal, and of its rows' names at least."""
LEAST_SHOWN = 0.001
"""Share of the cycles below which a combination of units gets no row; the stored result has all."""

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
    """Rows, and the results of the machine behind them, as sim/bench/results.py keeps them, each with its state."""

    rows: list[Row]
    results: list[tuple[dict[str, Any], str]] = field(default_factory=list)


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


def report_of(found: Iterable[tuple[dict[str, Any], str]]) -> Report:
    """Of results, each with its state."""
    listed = list(found)
    return Report([item for entry, state in listed for item in entry_rows(entry, state)], listed)


def entry_rows(entry: dict[str, Any], state: str) -> list[Row]:
    """Rows of a result that sim/bench/results.py stored."""
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


def stored_report(board: str | None = None, model: str | None = None, folder: Path | None = None) -> Report:
    """Every stored result, or those of a board, of a model; the rows' `state` says which are stale. Raises `InputError` for none."""
    found = results.stored(folder)
    for kind, name in (("board", board), ("model", model)):
        known = sorted({entry[kind] for _, entry, _ in found})
        found = [item for item in found if name in (None, item[1][kind])]
        if known and not found:
            raise InputError(f"of the stored results: {unknown(kind, name or '', known)}")
    if not found:
        raise InputError(f"no stored results{f' in {folder}' if folder else ''}: "
                         "measure with --model NAME --board NAME --context N --store")
    return report_of((entry, f"stored on {entry['date']}" if state == CURRENT else state) for _, entry, state in found)


def routed(report: str | Path, command: str = "tritloom build") -> list[Row]:
    """Rows of a build's report.json."""
    data = json.loads(Path(report).read_text(encoding="utf-8"))
    name = f"{data['board']} {data['digest']}"
    used = [row(f"{name} {kind}", count, f"of {available}", "routed", command) for kind, (count, available) in data["utilisation"].items()]
    return [row(f"{name} Fmax", data["fmax_mhz"], "MHz", "routed", command), *used]


# For people ---------------------------------------------------------------------------------------------


def table(measured: Iterable[Row], width: int | None = None) -> str:
    """Text of at most `width` columns (the terminal's), as long as no single word is longer: what rows have in common is said once."""
    width = width or shutil.get_terminal_size((WIDTH, 24)).columns
    parts = []
    for (command, state), group in itertools.groupby(measured, lambda r: (r["command"], r.get("state", "measured"))):
        listed = list(group)
        title = _common([r["measure"] for r in listed])
        head = [title] * bool(title) + [f"{command} ({state})" if state != "measured" else command]
        parts += ["\n".join(line for text in head for line in textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False))]
        parts[-1] += "\n" + "\n".join(_lines([(r["measure"][len(title) :].lstrip(", ") or "in all", r) for r in listed], width))
    return "\n\n".join(parts)


def _common(names: Sequence[str]) -> str:
    """The words with which all names begin."""
    shared = os.path.commonprefix([*names]) if names[1:] else ""
    if any(name[len(shared) :][:1] not in ("", ",") for name in names):
        shared = shared.rpartition(",")[0]
    return shared


def _lines(rows: Sequence[tuple[str, Row]], width: int) -> Iterator[str]:
    """Rows in columns; a name that is too long for its own is wrapped."""
    columns = [(number(r["value"]), r["unit"], r["kind"]) for _, r in rows]
    value, unit, kind = (max(len(cells[n]) for cells in columns) for n in range(3))
    left = min(max(len(name) for name, _ in rows), max(LEAST_NAME, width - value - unit - kind - 6))
    for (name, _), cells in zip(rows, columns, strict=True):
        first, *more = textwrap.wrap(name, left, break_on_hyphens=False)
        yield f"{first:<{left}}  {cells[0]:>{value}} {cells[1]:<{unit}} {cells[2]}".rstrip()
        yield from (f"  {line}" for line in more)


def number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) and abs(value) >= 1000 else f"{value:,.6g}"
