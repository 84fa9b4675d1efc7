"""The smallest unit's netlist in every run of the tests; `make netlist` runs all of them and a whole machine."""

import pytest
from netlists import test_the_netlist_does_as_the_rtl as does_as_the_rtl


@pytest.mark.compiles
def test_the_netlist_of_the_sequencer_does_as_its_rtl(monkeypatch):
    does_as_the_rtl("sequencer", monkeypatch)
