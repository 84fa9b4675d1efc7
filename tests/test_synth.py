"""The synthesis helper: right counts on a design of known size, the cache, and failures that say why."""

import pytest

from tritloom.gen import synth
from tritloom.gen.synth import SynthesisError, resources, synthesise
from tritloom.rtl.tables import LookupLane

ADDER = """
module top(input clk, input [15:0] a, b, output reg [15:0] y);
  always @(posedge clk) y <= a + b;
endmodule
"""


@pytest.mark.parametrize("family, lut", [("xcup", 16), ("ice40", 16)])
def test_an_adder_costs_a_lut_and_a_flip_flop_a_bit(family, lut, tmp_path):
    cost = synthesise(ADDER, family, cache=tmp_path)
    assert (cost["ff"], cost["bram"], cost["dsp"], cost["lut_ram"]) == (16, 0, 0, 0)
    assert abs(cost["lut"] - lut) <= 2


def test_a_lane_spends_one_lut_a_bit_of_its_adders(tmp_path):
    """Deferred signs are free: 4 tables x 2 rows of 10 bits make adders of 11, 11, 12 and 16 bits a row."""
    lane = LookupLane(tables=4, rows_per_cycle=2, table_form="symmetric14", acc_bits=16)
    cost = synthesise(lane, "xcup", cache=tmp_path)
    assert cost["cells"]["RAM32M16"] == 8
    assert cost["lut"] - cost["lut_ram"] <= 2 * (11 + 11 + 12 + 16)


def test_the_cache_is_used(tmp_path, monkeypatch):
    first = synthesise(ADDER, "ice40", cache=tmp_path)
    monkeypatch.setattr(synth, "_run", None)
    assert synthesise(ADDER, "ice40", cache=tmp_path) == first


def test_costs_by_kind():
    cost = resources({"LUT6": 3, "INV": 1, "RAM32M16": 2, "RAMB18E2": 1, "FDRE": 5, "URAM288": 1, "CARRY4": 4}, "xcup")
    assert cost == {"lut": 20, "lut_ram": 16, "ff": 5, "bram": 0.5, "dsp": 0, "carry": 4, "other_ram": 1, "cells": cost["cells"]}
    assert resources({"CCU2C": 2, "TRELLIS_DPR16X4": 1, "LUT4": 1}, "ecp5")["lut"] == 11


def test_failures_say_why(tmp_path):
    with pytest.raises(SynthesisError, match="syntax error"):
        synthesise("module top(; endmodule", "xcup", cache=tmp_path)
    with pytest.raises(SynthesisError, match="did not finish within 0 s"):
        synthesise(ADDER, "xcup", cache=tmp_path, timeout_s=0.1)
    with pytest.raises(ValueError, match="family must be one of xcup, ecp5, gowin, ice40, not 'max10'"):
        synthesise(ADDER, "max10", cache=tmp_path)
