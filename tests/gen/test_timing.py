"""Slowest paths of netlists small enough to add up by hand."""

import pytest

from tritloom.gen.tools import timing

CELLS = {
    "a": {"type": "FDRE", "connections": {"C": [2], "CE": ["1"], "R": ["0"], "D": [3], "Q": [4]}},
    "b": {"type": "FDRE", "connections": {"C": [2], "CE": ["1"], "R": ["0"], "D": [4], "Q": [5]}},
    "l0": {"type": "LUT2", "connections": {"I0": [4], "I1": [5], "O": [6]}},
    "l1": {"type": "LUT2", "connections": {"I0": [6], "I1": [5], "O": [3]}},
}
NAMES = {"unit.count7": {"bits": [4]}, "unit.held": {"bits": [5]}}
NET = timing.NET + timing.NET_PER_SINK
LUT, CLOCK = timing.DELAYS["LUT"], timing.DELAYS["clock to flip-flop"]


def test_a_path_is_its_cells_and_nets():
    found = timing.slowest({"cells": CELLS, "netnames": NAMES}, 250_000_000)
    assert found["period"] == 3.965 and found["failing"] == 0
    first = found["paths"][0]
    assert (first["start"], first["end"], first["unit"], first["cells"]) == ("unit.count#", "unit.count#", "unit", ["FDRE", "2xLUT2"])
    assert first["logic"] == pytest.approx(CLOCK + 2 * LUT)
    assert first["delay"] == pytest.approx(CLOCK + 2 * LUT + 3 * NET + timing.NET_PER_SINK)
    assert timing.slowest({"cells": CELLS, "netnames": NAMES}, 900_000_000)["failing"] == 1


def test_a_carry_costs_little_a_bit_and_nothing_for_its_nets():
    cells = dict(CELLS)
    carry, before = ["0"], 6
    for i in range(3):
        outputs = [100 + 8 * i + bit for bit in range(8)]
        cells[f"c{i}"] = {"type": "CARRY4", "connections": {
            "CYINIT": ["0"], "CI": carry, "DI": ["0"] * 4, "S": [before, "0", "0", "0"], "CO": outputs[:4], "O": outputs[4:]}}
        carry, before = [outputs[3]], "0"
    cells["l1"] = {"type": "LUT2", "connections": {"I0": [outputs[7]], "I1": [5], "O": [3]}}
    d = timing.DELAYS
    logic = CLOCK + 2 * LUT + d["carry, select to carry"] + d["carry through 4 bits"] + d["carry, carry to sum"]
    assert timing.slowest({"cells": cells, "netnames": NAMES}, 10**8)["paths"][0]["logic"] == pytest.approx(logic)


def test_an_unknown_cell_is_named():
    with pytest.raises(timing.synthesis.SynthesisError, match="no delays for cell MYSTERY"):
        timing.slowest({"cells": {"x": {"type": "MYSTERY", "connections": {}}}, "netnames": {}}, 10**8)
