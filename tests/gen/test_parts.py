"""A machine in parts: what is shared is counted as often as it occurs, and every part is synthesised once."""

import dataclasses
import re
from pathlib import Path

import pytest

from machines import TINY
from tritloom.firmware.errors import InputError
from tritloom.gen.source import Source
from tritloom.gen.tools import parts, synthesis
from tritloom.gen.tools import timing as depth
from tritloom.sim.bench import benchmarks, results, stored
from tritloom.sim.bench.page import page
from tritloom.sim.bench.report import stored_report

pytest.importorskip("amaranth")

CONFIG = dataclasses.replace(TINY, lanes=2)

SHAPE = Source(model=Path("TriLM-99M"))


@pytest.fixture(scope="module")
def found():
    return parts.parts_of(CONFIG)


def counted(design, family, **_):
    """One LUT for each cell of a module that is not its own: stands for the run of Yosys."""
    top = design[design.index("module \\top\n"):]
    cells = re.findall(r"^ *cell \\(\w[\w.]*) ", top[: top.index("\nend\n")], re.M)
    return {name: cells.count(name) for name in cells} | {"LUT6": 1}


def test_the_parts_are_the_units_and_what_lanes_share(found):
    assert {"top", "memory", "matmul", "vector", "dot", "sampler"} < set(found)
    assert {"lookup_lane", "table_builder"} < set(found["matmul"].holds) and "dot_lane" in found["dot"].holds
    assert not any("memory" in part.holds for name, part in found.items() if name != "top")


def test_shared_modules_are_counted_as_often_as_they_occur(found, monkeypatch):
    monkeypatch.setattr(synthesis, "cells_of", counted)
    counts = {(part.unit, part.name): part for part in parts.synthesise(found, "xcup")}
    assert counts["dot", "dot_lane"].count == 2 and counts["top", "top"].count == 1
    assert parts.totals(list(counts.values()))["lut"] == sum(part.count for part in counts.values())
    assert sum(unit["lut"] for unit in parts.by_unit(list(counts.values())).values()) == sum(part.count for part in counts.values())


def test_a_part_does_not_depend_on_the_others(found):
    """So that its result in the cache outlives their changes."""
    one, two = found, parts.parts_of(dataclasses.replace(CONFIG, sampler_candidates=8))
    changed = {name for name in one if one[name].design != two[name].design}
    assert "sampler" in changed and changed <= {"sampler", "registers", "top"}


@pytest.mark.slow
def test_the_synthesis_of_a_machine_is_stored(monkeypatch, tmp_path):
    monkeypatch.setattr(synthesis, "cells_of", counted)
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    for name in ("emitted", "known"):
        monkeypatch.setattr(stored, name, lambda config: "as measured")
    path = {"unit": "dot", "start": "a", "end": "b", "delay": 3.0, "logic": 1.0, "nets": 2.0, "cells": ["FDRE", "2xLUT6"], "count": 7}
    timing = {"period": 3.965, "failing": 0, "paths": [path], "units": {"dot": 3.0}, "delays": {}, "allowance": ""}
    monkeypatch.setattr(depth, "worst_paths", lambda config, fill: timing)
    measured = benchmarks.report(source=SHAPE, synth=True, board="kv260", context=256, settings={"lanes": 2}, store=True)
    whole = next(row for row in measured.rows if row["measure"].endswith("whole, lut"))
    assert whole["unit"] == "LUT of 117,120"
    assert measured.rows[-1]["measure"].endswith("path a to b (FDRE 2xLUT6), 7 of them") and measured.rows[-1]["unit"] == "ns of 3.965"
    assert whole["command"] == "tritloom bench --synth --model TriLM-99M --board kv260 --context 256 --set lanes=2"
    assert [path.name for path in (tmp_path / "kv260").iterdir()] == ["TriLM-99M-synthesis-context-256-lanes2.json"]
    monkeypatch.setattr(synthesis, "cells_of", None)
    again = benchmarks.report(source=SHAPE, synth=True, board="kv260", context=256, settings={"lanes": 2}, resume=True)
    assert [row["value"] for row in again.rows] == [row["value"] for row in measured.rows]
    assert [entry["what"] for entry, _ in again.results] == ["synthesis"]
    assert "Measured numbers" in page(again.rows, again.results)  # a page of rows alone: there are no cycles to draw
    assert {row.get("state") for row in stored_report().rows} == {row.get("state") for row in again.rows} != {None}
    monkeypatch.setattr(stored, "known", lambda config: "other")
    assert stored_report().rows[0].get("state", "").startswith("stale: its Verilog changed")
    with pytest.raises(InputError, match="measures no cycles"):
        benchmarks.report(source=SHAPE, synth=True, board="kv260", prefill=4)
