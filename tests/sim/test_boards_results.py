"""Stored results of whole boards are of today's Verilog and pins, and agree with themselves. No clock is asked for here."""

import dataclasses
import json
from typing import Any

import pytest

from tritloom.boards.board import load
from tritloom.gen.tools.bitstream import Design, TimingFailure
from tritloom.sim.bench import boards, ledger, stored

pytest.importorskip("amaranth", reason="results are of this tree's Verilog")

if not stored.RESULTS.is_dir():
    pytest.skip("an installed package has no results", allow_module_level=True)


def entry_of(row):
    return json.loads(boards.path_of(row).read_text("utf-8"))


@pytest.mark.slow
@pytest.mark.parametrize("row", boards.ROWS, ids=lambda row: row.board)
def test_a_whole_board_is_today_s(row):
    """Run `make boards` when this fails, and `make ledger`: its Verilog, its pins, its image or the model of its pins changed since."""
    entry, result = entry_of(row), row.fitted()
    assert entry["configuration"] == result.config.to_dict()
    assert boards.state_of(entry["routed"], boards.design_digests(result.config, load(row.board))) == stored.CURRENT
    assert entry["projected"] == boards.projected(row, result, entry["routed"])
    assert ("decode" in entry) == row.decodes
    if row.decodes:
        assert boards.state_of(entry["decode"], boards.decode_digests(row, result)) == stored.CURRENT


def test_the_stored_digests_are_those_of_the_boards():
    """Of one, which is emitted; all are of these sources. Run `make digests` when this fails."""
    row = next(row for row in boards.ROWS if row.board == "tang-nano-20k")
    config, board, listed = row.fitted().config, load(row.board), stored.listed()["boards"]
    assert listed[boards.name_of(config, board)] == {"sources": boards.makers(board)} | boards.digests_of(Design.of(config, board), config)
    machines = [(row.fitted().config, load(row.board)) for row in boards.ROWS]
    assert {name: each["sources"] for name, each in listed.items()} == {boards.name_of(*each): boards.makers(each[1]) for each in machines}


@pytest.mark.parametrize("row", boards.ROWS, ids=lambda row: row.board)
def test_a_stored_board_agrees_with_itself(row):
    entry = entry_of(row)
    routed, board = entry["routed"], load(row.board)
    assert [seed["seed"] for seed in routed["seeds"]] == list(row.seeds)
    assert routed["command"] == row.command
    assert routed["clock_mhz"] * 1e6 == entry["configuration"]["clock_hz"]
    for seed in routed["seeds"]:
        assert seed["ok"] == (seed["fmax_mhz"] >= routed["clock_mhz"])
        assert seed["used"] == boards.used(seed["cells"], board)
        assert all(used <= available for used, available in seed["cells"].values() if available)
        assert all(0 < seed["used"][kind] <= routed["available"][kind] for kind in ("lut", "ff", "bram", "dsp"))
    assert entry["projected"]["error"] == boards.error(entry["projected"]["values"], routed)
    for part in ("routed", "decode")[: 1 + row.decodes]:
        assert "not installed" not in entry[part]["versions"].values()
    if row.decodes:
        decode = entry["decode"]
        speeds = boards.speeds(decode["cycles"], decode["bytes"], decode["peak_bytes_per_cycle"], decode["clock_mhz"] * 1e6)
        assert decode | speeds == decode and decode["equal"] and 0 < decode["peak_share"] < 1
        assert decode["digests"]["verilog"] == routed["digests"]["verilog"] and decode["clock_mhz"] == routed["clock_mhz"]


@pytest.fixture
def fake(monkeypatch):
    """A board whose Verilog is one line, and placement and routing that take no time; which seeds were placed."""
    row = boards.Row(board="colorlight-i9", model="stories-260k", seeds=(1, 2))
    made = []

    design = Design("module", "board", "here")

    def build(config: Any, out: Any, *, board: Any, seeds: Any, design: Any) -> Any:
        made.append(seeds)
        cells = {"TRELLIS_COMB": [100, 1000], "TRELLIS_RAMW": [5, 50]}
        report: Any = {"fmax_mhz": 80.0 - 20 * seeds[0], "ok": seeds[0] == 1, "utilisation": cells}
        if seeds[0] == 1:
            return report
        raise TimingFailure("slow", report)

    monkeypatch.setattr(boards, "build", build)
    monkeypatch.setattr(boards, "ROWS", (row,))
    monkeypatch.setattr(boards.Design, "of", lambda *_: design)
    monkeypatch.setattr(boards, "design_digests", lambda *_: boards.digests_of(design, row.fitted().config))
    return row, made


def test_what_holds_is_not_routed_again(tmp_path, fake):
    row, made = fake
    entry = boards.update(row, tmp_path)
    assert made == [(1,), (2,)] and entry == json.loads(boards.path_of(row, tmp_path).read_text("utf-8"))
    assert [(s["ok"], s["fmax_mhz"], s["used"]["lut"]) for s in entry["routed"]["seeds"]] == [(True, 60.0, 110), (False, 40.0, 110)]
    assert entry["projected"]["error"]["lut"] == round(entry["projected"]["values"]["lut"] / 110 - 1, 4)
    assert boards.update(row, tmp_path) == entry and len(made) == 2
    more = boards.update(dataclasses.replace(row, seeds=(2, 5)), tmp_path)
    assert [seed["seed"] for seed in more["routed"]["seeds"]] == [2, 5] and made[2:] == [(5,)]


@pytest.mark.parametrize("place, key, says", [("digests", "verilog", "stale: its Verilog changed"),
                                              ("digests", "constraints", "stale: where its pins are changed"), ("versions", "pyosys", "")])
def test_what_holds_no_more_is_marked_and_routed_again(tmp_path, fake, place, key, says):
    row, made = fake
    entry = boards.update(row, tmp_path)
    changed = json.loads(json.dumps(entry))
    changed["routed"][place][key] = "another"
    boards.path_of(row, tmp_path).write_text(json.dumps(changed), "utf-8")
    page = "".join(ledger._boards(tmp_path))
    assert "1 of 2 seeds meet it" in page and "| MHz | 60 | 40 |" in page and (says in page if says else "stale" not in page)
    assert boards.update(row, tmp_path) == entry and len(made) == 4
