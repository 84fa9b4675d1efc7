"""The synthesis helper: right counts on a design of known size, the cache, and failures that say why."""

import subprocess

import pytest

from tritloom.gen.tools import synthesis, yosys
from tritloom.gen.tools.synthesis import SynthesisError, resources, synthesise
from tritloom.rtl.ternary.tables import LookupLane

ADDER = """
module top(input clk, input [15:0] a, b, output reg [15:0] y);
  always @(posedge clk) y <= a + b;
endmodule
"""

SQUARER = """
module top(input clk, input [13:0] a, output reg [27:0] y);
  reg [27:0] product;
  always @(posedge clk) begin product <= a * a; y <= product; end
endmodule
"""
MULTIPLIER = """
module top(input clk, input signed [15:0] a, b, output reg signed [31:0] y);
  reg signed [15:0] ra, rb; reg signed [31:0] product;
  always @(posedge clk) begin ra <= a; rb <= b; product <= ra * rb; y <= product; end
endmodule
"""
PRODUCTS = """
module top(input clk, input signed [15:0] a, b, input [13:0] c, input signed [19:0] d,
           output reg signed [31:0] ab, output reg [27:0] cc, output reg signed [35:0] ad);
  reg signed [15:0] ra, rb; reg signed [19:0] rd; reg signed [31:0] pab; reg [27:0] pcc; reg signed [35:0] pad;
  always @(posedge clk) begin
    ra <= a; rb <= b; pab <= ra * rb; ab <= pab;
    pcc <= c * c; cc <= pcc;
    rd <= d; pad <= ra * rd; ad <= pad;
  end
endmodule
"""
BENCH = """
module bench(input clk);
  reg [65:0] s = 66'h2_1234_5678_9abc_def1;
  reg [3:0] n = 0;
  wire [95:0] given, expected;
  always @(posedge clk) begin
    s <= {s[0], s[65:1]} * 66'd6364136223846793005 + 1;
    n <= n + (n != 15);
    if (n > 4) assert (given == expected);
  end
  mapped one(clk, s[15:0], s[31:16], s[45:32], s[65:46], given[31:0], given[59:32], given[95:60]);
  source two(clk, s[15:0], s[31:16], s[45:32], s[65:46], expected[31:0], expected[59:32], expected[95:60]);
endmodule
"""


@pytest.mark.slow
@pytest.mark.parametrize("family, lut", [("xcup", 16), ("ice40", 16)])
def test_an_adder_costs_a_lut_and_a_flip_flop_a_bit(family, lut, tmp_path):
    cost = synthesise(ADDER, family, cache=tmp_path)
    assert (cost["ff"], cost["bram"], cost["dsp"], cost["lut_ram"]) == (16, 0, 0, 0)
    assert abs(cost["lut"] - lut) <= 2


@pytest.mark.slow
def test_a_lane_spends_one_lut_a_bit_of_its_adders(tmp_path):
    """Deferred signs are free: 4 tables x 2 rows of 10 bits make adders of 11, 11, 12 and 16 bits a row."""
    lane = LookupLane(tables=4, rows_per_cycle=2, table_form="symmetric14", acc_bits=16)
    cost = synthesise(lane, "xcup", cache=tmp_path)
    assert cost["cells"]["RAM32M16"] == 8
    assert cost["lut"] - cost["lut_ram"] <= 2 * (11 + 11 + 12 + 16)


@pytest.mark.slow
@pytest.mark.parametrize("design, ff", [(SQUARER, 56), (MULTIPLIER, 96)], ids=["squarer", "multiplier"])
def test_products_with_two_output_registers_are_counted(design, ff, tmp_path):
    """With Yosys's own `synth_ice40 -dsp` the one crashes, and nothing is left of the other."""
    cost = synthesise(design, "ice40", cache=tmp_path)
    assert (cost["dsp"], cost["ff"]) == (1, ff)


@pytest.mark.parametrize("wrong", [False, True])
def test_mapped_products_are_the_source_s(wrong, tmp_path):
    """Signed, squared and wider than a multiplier: 200 words through the netlist of iCE40 cells and through the source."""
    assert synthesis.cells_of(PRODUCTS, "ice40", read="read_verilog", cache=tmp_path)["SB_MAC16"] == 4
    netlist = synthesis.netlist_of(PRODUCTS, "ice40", read="read_verilog", cache=tmp_path)
    source = PRODUCTS.replace("c * c", "c * c + (c > 1000)") if wrong else PRODUCTS
    for name, text in (("mapped.il", netlist), ("source.v", source), ("bench.v", BENCH)):
        (tmp_path / name).write_text(text, encoding="utf-8")
    script = ("read_rtlil mapped.il; rename top mapped; read_verilog -defer -D ICE40_U +/ice40/cells_sim.v; "
              "read_verilog -overwrite source.v; rename top source; read_verilog -formal bench.v; "
              "hierarchy -top bench; proc; flatten; opt_clean; async2sync; opt; "
              "sim -clock clk -n 200 -zinit -assert bench")
    done = subprocess.run([yosys.executable(), "-q", "-p", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == int(wrong), done.stderr
    assert not wrong or "Assertion" in done.stderr


@pytest.mark.slow
def test_the_cache_is_used(tmp_path, monkeypatch):
    first = synthesise(ADDER, "ice40", cache=tmp_path)
    monkeypatch.setattr(synthesis, "_run", None)
    assert synthesise(ADDER, "ice40", cache=tmp_path) == first


def test_costs_by_kind():
    cost = resources({"LUT6": 3, "INV": 1, "RAM32M16": 2, "RAMB18E2": 1, "FDRE": 5, "URAM288": 1, "CARRY4": 4}, "xcup")
    assert cost == {"lut": 20, "lut_ram": 16, "ff": 5, "bram": 0.5, "dsp": 0, "carry": 4, "other_ram": 1, "cells": cost["cells"]}
    cost = resources({"LUT6": 3, "RAM32M": 2, "RAM128X1D": 1, "RAMB18E1": 1, "RAMB36E1": 1, "DSP48E1": 2}, "xc7")
    assert (cost["lut"], cost["lut_ram"], cost["bram"], cost["dsp"]) == (15, 12, 1.5, 2)
    assert resources({"CCU2C": 2, "TRELLIS_DPR16X4": 1, "LUT4": 1}, "ecp5")["lut"] == 11


def test_failures_say_why(tmp_path):
    with pytest.raises(SynthesisError, match="syntax error") as caught:
        synthesise("module top(; endmodule", "xcup", cache=tmp_path)
    assert "\n" not in str(caught.value) and len(list(tmp_path.glob("*.log"))) == 1
    with pytest.raises(SynthesisError, match="did not finish within 0 s"):
        synthesise(ADDER, "xcup", cache=tmp_path, timeout_s=0.1)
    with pytest.raises(ValueError, match="family must be one of xcup, xc7, ecp5, gowin, ice40, ecp5-small, gowin-small, not 'max10'"):
        synthesise(ADDER, "max10", cache=tmp_path)


def test_yosys_in_folders_with_blanks(tmp_path, monkeypatch):
    folder = tmp_path / "a folder"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    (folder / "top.v").write_text("module top(input a, output b);\n  assign b = a;\nendmodule\n")
    (folder / "all.ys").write_text(f'read_verilog "{folder / "top.v"}"\n')
    for given in ([str(folder / "top.v")], [str(folder / "all.ys")], ["-s", str(folder / "all.ys")]):
        command = [yosys.executable(), "-q", "-l", str(folder / "log"), *given, "-p", "select -assert-count 1 top/w:a"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "") and "top" in (folder / "log").read_text()
    done = subprocess.run([yosys.executable(), "-s", str(folder / "none.ys")], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr == f"{folder / 'none.ys'}: No such file or directory\n"
