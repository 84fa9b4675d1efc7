"""Slowest paths of netlists small enough to add up by hand."""

import json
from pathlib import Path

import pytest

from tritloom.gen.tools import timing

ROOT = Path(__file__).resolve().parents[2]
CELLS = {
    "a": {"type": "FDRE", "connections": {"C": [2], "CE": ["1"], "R": ["0"], "D": [3], "Q": [4]}},
    "b": {"type": "FDRE", "connections": {"C": [2], "CE": ["1"], "R": ["0"], "D": [4], "Q": [5]}},
    "l0": {"type": "LUT2", "connections": {"I0": [4], "I1": [5], "O": [6]}},
    "l1": {"type": "LUT2", "connections": {"I0": [6], "I1": [5], "O": [3]}},
}
NAMES = {"unit.count7": {"bits": [4]}, "unit.held": {"bits": [5]}}
FILL = 0.5
ONE, TWO = (timing.net_delay(sinks, FILL) for sinks in (1, 2))
LUT, CLOCK = timing.DELAYS["LUT"], timing.DELAYS["clock to flip-flop"]


def test_a_path_is_its_cells_and_nets():
    found = timing.slowest({"cells": CELLS, "netnames": NAMES}, 250_000_000, FILL)
    assert found["period"] == pytest.approx(4 - timing.DELAYS["clock uncertainty"] - timing.DELAYS["clock skew"]) and found["failing"] == 0
    first = found["paths"][0]
    assert (first["start"], first["end"], first["unit"], first["cells"]) == ("unit.count#", "unit.count#", "unit", ["FDRE", "2xLUT2"])
    logic = CLOCK + 2 * LUT + timing.DELAYS["flip-flop setup"]
    assert first["logic"] == pytest.approx(logic, abs=1e-3)
    assert first["delay"] == pytest.approx(logic + 2 * ONE + TWO, abs=1e-3)
    full = timing.slowest({"cells": CELLS, "netnames": NAMES}, 10**9, 1.0)
    more = 3 * (1 - FILL) * timing.NET_PER_FILL
    assert full["failing"] == 1 and full["paths"][0]["delay"] == pytest.approx(first["delay"] + more, abs=1e-3)


def test_a_product_s_register_stands_in_the_multiplier():
    """Where nothing else takes the product; from a memory block the way is longer."""
    cells = {"m": {"type": "RAMB18E2", "connections": {"DOUTADOUT": [10]}}, "p": {"type": "DSP48E2", "connections": {"A": [10], "P": [3]}},
             "a": CELLS["a"]}
    d = timing.DELAYS
    logic = d["clock to block RAM"] + d["multiplier"] + d["multiplier's output register setup"]
    (path,) = timing.slowest({"cells": cells, "netnames": NAMES}, 10**8, FILL)["paths"]
    assert path["logic"] == pytest.approx(logic, abs=1e-3)
    assert path["nets"] == pytest.approx(ONE + timing.NET_AT_MEMORY, abs=1e-3)
    shared = cells | {"b": {"type": "FDRE", "connections": {"C": [2], "CE": ["1"], "R": ["0"], "D": [3], "Q": [5]}}}
    assert timing.slowest({"cells": shared, "netnames": NAMES}, 10**8, FILL)["paths"][0]["delay"] > path["delay"] + TWO


def test_the_estimate_is_calibrated_with_routed_designs():
    """As gen/tools/timing.py and docs/boards/kv260.md say."""
    data = json.loads(timing.ROUTED.read_text("utf-8"))
    clocks = [design["clock_mhz"] for design in data["designs"] for _ in design["paths"]]
    for (took, _), clock, slack in zip(timing.published(), clocks, [p["slack"] for d in data["designs"] for p in d["paths"]], strict=True):
        assert took + slack == pytest.approx(1000 / clock, abs=2e-3)  # what is copied adds up
    ratios = [took / estimate for took, estimate in timing.published()]
    fast, slow = ([ratio for ratio, mhz in zip(ratios, clocks, strict=True) if mhz == clock] for clock in (250, 200))
    assert len(fast) == 8 and len(slow) == 4 and 0.95 < sum(fast) / len(fast) < 1.05
    said = f"{min(fast):.0%}"[:-1], f"{max(fast):.0%}"[:-1], f"{min(slow):.0%}"[:-1], f"{max(slow):.0%}"[:-1]
    for text in (timing.__doc__, (ROOT / "docs" / "boards" / "kv260.md").read_text("utf-8") if (ROOT / "docs").exists() else None):
        assert text is None or [f"{low} to {high} %" in text for low, high in (said[:2], said[2:])] == [True, True]
    luts = [ns for d in data["designs"] for p in d["paths"] for cell, ns in p["cells"] if cell == "LUT"]
    assert timing.DELAYS["LUT"] == pytest.approx(sum(luts) / len(luts), abs=1e-3)
    skews = [p["skew"] for d in data["designs"] for p in d["paths"] if d["clock_mhz"] == 250]
    assert timing.DELAYS["clock skew"] == pytest.approx(sum(skews) / len(skews), abs=0.01)


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
    logic = CLOCK + 2 * LUT + d["carry, select to carry"] + d["carry through 4 bits"] + d["carry, carry to sum"] + d["flip-flop setup"]
    assert timing.slowest({"cells": cells, "netnames": NAMES}, 10**8, FILL)["paths"][0]["logic"] == pytest.approx(logic)


def test_an_unknown_cell_is_named():
    with pytest.raises(timing.synthesis.SynthesisError, match="no delays for cell MYSTERY"):
        timing.slowest({"cells": {"x": {"type": "MYSTERY", "connections": {}}}, "netnames": {}}, 10**8, FILL)
