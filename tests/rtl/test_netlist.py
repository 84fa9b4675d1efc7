"""The smallest unit's netlist in every run of the tests; `make netlist` runs all of them and a whole machine."""

import pytest
from netlists import test_the_netlist_does_as_the_rtl as does_as_the_rtl

import netlist
from tritloom.sim.bench import stored


@pytest.mark.compiles
def test_the_netlist_of_the_sequencer_does_as_its_rtl(monkeypatch):
    does_as_the_rtl("sequencer", monkeypatch)


def test_the_stored_machine_is_today_s():
    """Run `make netlist` when this fails: the machine, the tools or the models of the cells are others."""
    (entry,) = netlist.read()["entries"]
    assert netlist.holds(entry) == stored.CURRENT
    assert entry["equal"] and entry["generated_tokens"] >= netlist.TOKENS and entry["cells"]["LUT4"] > 1000


@pytest.mark.slow
@pytest.mark.parametrize("row", netlist.BOARDS, ids=lambda row: row.board)
def test_a_stored_board_is_today_s(row):
    """Run `make netlist` when this fails: the board, its tools or the models of what it is made of are others."""
    (entry,) = (entry for entry in netlist.read()["boards"] if entry["board"] == row.board)
    assert netlist.board_holds(entry) == stored.CURRENT
    assert entry["equal"] and len(entry["tokens"]) == netlist.BOARD_TOKENS and entry["cells"]["LUT4"] > 1000
