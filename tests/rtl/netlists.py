"""Units as synthesised netlists of ECP5 cells (tests/netlist.py), each under tests of its RTL. `make netlist` runs all of them,
test_netlist.py the smallest."""

from collections.abc import Callable

import pytest
import test_attention
import test_memory
import test_registers
import test_sampler
import test_sequencer
import test_shortlist
import test_tlmm
import test_vector

import harness
from netlist import as_netlist

UNITS: dict[str, Callable[[], object]] = {
    "sequencer": lambda: test_sequencer.test_programs(test_sequencer.PARAMETERS),
    "registers": lambda: [test_registers.test_bank(case) for case in ("registers", "tokens", "control")],
    "sampler": lambda: test_sampler.test_extremes(),
    "short-list": lambda: test_shortlist.test_lists(5, 4, 16, 8, 2),
    "tlmm": lambda: test_tlmm.test_shapes(1, 4, 4, 1, "full27", "trit5"),
    "memory, AXI": lambda: test_memory.test_delivers_the_bytes_described("axi1", "random", "random", 3),
    "memory, on-chip": lambda: test_memory.test_delivers_the_bytes_described("onchip", "random", "none", 3),
    "dot engine": lambda: test_attention.test_engine("narrow"),
    "vector unit": lambda: test_vector.test_programs("narrow", "none", 2, 1),
}
"""A test of every kind of unit, of a small instance."""


@pytest.mark.parametrize("unit", UNITS)
def test_the_netlist_does_as_the_rtl(unit, monkeypatch):
    monkeypatch.setattr(harness, "translate", as_netlist)
    UNITS[unit]()
