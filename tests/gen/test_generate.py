"""The files of a machine: complete or not there, named by their digest, and clean for the linter."""

import dataclasses
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from machines import TINY
from tritloom.gen.tools import yosys
from tritloom.gen.verilog import generate, waivers
from tritloom.system.files import write_atomically

VERILOG = "module top(clk, rst);\n  input clk;\n  wire clk;\n  input rst;\n  wire rst;\nendmodule\n"


@pytest.fixture
def emitted(monkeypatch):
    """Stands for the emission, which takes a minute: counts its calls."""
    calls = []

    def fake(config):
        calls.append(config.digest)
        return generate.header(config) + VERILOG

    monkeypatch.setattr(generate, "generate_verilog", fake)
    return calls


def test_a_failing_write_leaves_no_trace(tmp_path):
    files: Any = {"a": "new", "b": 3}
    (tmp_path / "a").write_text("old")
    with pytest.raises(TypeError):
        write_atomically(tmp_path, files)
    assert (os.listdir(tmp_path), (tmp_path / "a").read_text()) == (["a"], "old")
    with pytest.raises(TypeError):
        write_atomically(tmp_path / "folder", files)
    assert os.listdir(tmp_path) == ["a"]


def test_verilog_is_made_once_per_configuration_and_source(emitted, monkeypatch, tmp_path):
    other = dataclasses.replace(TINY, lanes=2)
    texts = [generate.cached_verilog(config, tmp_path / "cache") for config in (TINY, TINY, other)]
    assert texts[0] == texts[1] != texts[2]
    assert emitted == [TINY.digest, other.digest]
    monkeypatch.setattr(generate, "source_digest", lambda: "changed")
    generate.cached_verilog(TINY, tmp_path / "cache")
    assert len(emitted) == 3


@pytest.mark.needs("verilator")
def test_lint_finds_what_is_not_waived():
    verilog = "module top(input [3:0] a, output [1:0] b, output c);\n  assign b = a;\n  assign c = missing;\nendmodule\n"
    assert any("missing" in line for line in generate.lint(verilog))
    clean = "module top(input [3:0] a, output [3:0] b);\n  assign b = a;\nendmodule\n"
    assert generate.lint(clean) == []
    assert any("WIDTHTRUNC" in line for line in generate.lint(clean.replace("output [3:0]", "output [1:0]")))


CONNECTED = """module part(a, b);
  input [3:0] a;
  wire [3:0] a;
  output [1:0] b;
  wire [1:0] b;
  assign b = a[1:0];
endmodule

module top(a, b, c, d);
  input [3:0] a;
  wire [3:0] a;
  output b;
  wire b;
  output [1:0] c;
  wire [1:0] c;
  output [2:0] d;
  wire [2:0] d;
  wire [-1:0] \\$1 ;
  assign b = ! a;
  assign c = a;
  part part (
    .a(a),
    .b(d)
  );
endmodule
"""


@pytest.mark.needs("verilator")
def test_waivers_are_for_what_is_computed_not_for_what_is_connected():
    text = waivers.annotate(CONNECTED)
    found = re.findall(r"-(\w+): .*?:(\d+):", "\n".join(generate.lint(text)))
    places = {(rule, text.splitlines()[int(line) - 1].strip()) for rule, line in found}
    assert places == {("WIDTHTRUNC", "assign c = a;"), ("WIDTHTRUNC", ".b(d)")}
    plain = "\n".join(generate.lint(CONNECTED))
    assert set(re.findall(r"-(\w+): ", plain)) >= {"WIDTHTRUNC", "ASCRANGE", "DECLFILENAME", "UNUSEDSIGNAL"}


def test_waivers_are_comments():
    text = waivers.annotate(CONNECTED)
    assert [line for line in text.splitlines() if not line.lstrip().startswith(("//", "/*"))] == CONNECTED.splitlines()
    assert text == waivers.annotate(CONNECTED)


def test_every_waiver_has_a_reason():
    rules = waivers.EVERYWHERE | waivers.OPERATORS | waivers.RANGES
    assert all(len(reason.split()) > 4 for reason in rules.values())
    assert all(f"{rule}: {reason}" in (text := waivers.annotate("")) or f"{rule} */ // {reason}" in text for rule, reason in rules.items())


MACHINES = {
    "add/sub, on the chip": dict(table_form="addsub", packing="index5", memory="onchip", onchip_bytes=1 << 12),
    "full27, two ports, short-list, several texts": dict(table_form="full27", mem_ports=2, mem_bytes=8, tables=4, attention_macs=8,
                                                         attention_rows=2, lanes=2, shortlist=8, sequences=3),
    "two groups": dict(lanes=3, groups=2, attention_lanes=2, block_rows=16, result_parts=2, result_turns=2, ultra_ram=True),
}


@pytest.mark.needs("amaranth", "verilator")
@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.long if name in ("plain", "two groups") else ())
                                  for name in ("plain", *MACHINES)])
def test_a_machine_is_clean_for_the_linter_and_for_yosys(name, tmp_path, monkeypatch):
    """With no option of ours, as its user's tools read it."""
    text = generate.generate_verilog(dataclasses.replace(TINY, **MACHINES.get(name, {})))
    assert "// tritloom" in text and generate.lint(text) == []
    monkeypatch.chdir(tmp_path)  # below which YoWASP's Yosys would see it too
    Path("tritloom.v").write_text(text, encoding="utf-8")
    script = "read_verilog tritloom.v; hierarchy -check"
    run = subprocess.run([yosys.executable(), "-p", script], capture_output=True, text=True, timeout=300)
    told = {re.sub(r"memory .*", "memory", line) for line in run.stdout.splitlines() if "arning" in line}
    assert (run.returncode, told - {"Warning: Replacing memory"}) == (0, set()), run.stdout[-500:]
