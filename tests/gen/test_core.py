"""The IP core that `tritloom generate` writes: complete or not there, clean, and taken by others' tools."""

import dataclasses
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from machines import TINY
from tritloom.firmware.config import BuildConfig
from tritloom.firmware.registers import MAP_VERSION
from tritloom.gen import verilator
from tritloom.gen.kit import core
from tritloom.gen.tools import yosys
from tritloom.gen.verilog import contents, generate

PORTS = """module tritloom(b, a);
  input [3:0] a;
  wire [3:0] a;
  output b;
  wire b;
  wire c;
  assign b = a[0];
endmodule
"""
TWO_PORTS = dict(table_form="full27", mem_ports=2, mem_bytes=8, tables=4, attention_macs=8, attention_rows=2, lanes=2, ultra_ram=True)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The core of a small machine."""
    folder = tmp_path_factory.mktemp("core")
    core.write_core(TINY, folder)
    return folder


@pytest.fixture
def emitted(monkeypatch):
    """Stands for the emission, which takes seconds."""
    monkeypatch.setattr(core, "generate_core", lambda config: generate.header(config) + PORTS)


def test_writes_all_files_of_a_core(emitted, tmp_path):
    steps = []
    paths = core.write_core(TINY, tmp_path / "new" / "core", lambda *step: steps.append(step))
    files = {p.name: p.read_text(encoding="utf-8") for p in paths}
    assert sorted(os.listdir(tmp_path / "new" / "core")) == sorted(files) == [
        "config.json", "package_ip.tcl", "registers.h", "registers.json", "tritloom.core", "tritloom.v", "tritloom_tb.cpp"]
    assert BuildConfig.from_json(files["config.json"]) == TINY
    assert f"configuration {TINY.digest:08x}" in files["tritloom.v"].splitlines()[0]
    assert all(f"{TINY.digest:08x}" in files[name] for name in ("package_ip.tcl", "tritloom.core", "tritloom_tb.cpp"))
    assert not [name for name, text in files.items() if re.search(r"@[a-z_]+@", text)]
    assert steps[0][0] == 0.0 and steps[-1][0] == 1.0


def test_a_failure_leaves_the_folder_as_it_was(monkeypatch, tmp_path):
    def fail(config):
        raise KeyboardInterrupt

    monkeypatch.setattr(core, "generate_core", fail)
    with pytest.raises(KeyboardInterrupt):
        core.write_core(TINY, tmp_path / "new")
    assert os.listdir(tmp_path) == []


def test_ports_are_declared_in_the_header():
    text = core.with_port_declarations(PORTS, "tritloom", {"a": {"INFO": "x A"}, "b": {}})
    assert text == ('module tritloom (\n  (* INFO = "x A" *)\n  input wire [3:0] a,\n  output wire b\n);\n  wire c;\n  assign b = a[0];\n'
                    "endmodule\n")
    with pytest.raises(ValueError, match="does not have the ports .'c'"):
        core.with_port_declarations(PORTS, "tritloom", dict.fromkeys("abc", {}))


def test_names_with_brackets_are_plain():
    assert core.without_brackets("wire \\a[0] ;\nassign \\a[0] = b[0];") == "wire \\a_at_0 ;\nassign \\a_at_0 = b[0];"
    with pytest.raises(ValueError, match="two names"):
        core.without_brackets("wire \\a[0] ; wire \\a_at_0 ;")


def test_zero_contents_are_left_out_but_words_that_stay_zero():
    zero = "  initial begin\n    \\a.b [0] = 8'h00;\n    \\a.b [1] = 8'h00;\n  end\n"
    other = "  initial begin\n    m[0] = 8'h00;\n    m[1] = 8'h10;\n  end\n"
    assert contents.without_zero_contents("x\n" + zero + other + "y\n") == "x\n" + other + "y\n"
    registers = "  initial begin\n    registers[0] = 32'd0;\n    registers[1] = 32'd0;\n  end\n"
    assert contents.without_zero_contents(registers) == "  initial begin\n    registers[0] = 32'd0;\n  end\n"


@pytest.mark.needs("amaranth", "verilator")
@pytest.mark.slow
@pytest.mark.parametrize("changes", [
    {}, pytest.param(TWO_PORTS, marks=pytest.mark.long), dict(memory="onchip", onchip_bytes=1 << 12)],
    ids=["one port", "two ports", "on chip"])
def test_a_core_is_clean_and_says_what_it_is(changes, monkeypatch):
    config = dataclasses.replace(TINY, **changes)
    text = core.generate_core(config)
    with monkeypatch.context() as patched:
        patched.setattr(core, "_emitted", None)
        assert core.generate_core(config) == text  # it is kept
    assert generate.lint(text, top="tritloom") == []
    header = text[text.index("module tritloom ("):]
    ports = dict(re.findall(r"^  (?:input|output) wire (?:\[(?:\d+):0\] )?((\w+?_axi|\w+)\w*)", header[:header.index(");")], re.M))
    assert "_at_" in text and not re.search(r"\\\S+\[", text)
    masters = config.mem_ports if config.memory == "axi" else 0
    buses = {"s_axi", *(f"m{i}_axi" for i in range(masters))}
    assert set(ports.values()) == buses | {"aclk", "aresetn", "irq"}
    assert f"ASSOCIATED_BUSIF {':'.join(['s_axi', *sorted(buses - {'s_axi'})])}, ASSOCIATED_RESET aresetn" in header
    named = dict(re.findall(r'X_INTERFACE_INFO = "xilinx.com:interface:aximm:1.0 (\w+ \w+)" \*\)\n(?:  \(\*.*\n)?.*?(\w+),?\n', header))
    assert {f"{bus}_{signal.lower()}": name for bus, _, signal in map(str.partition, named, " " * len(named))
            for name in [named[f"{bus} {signal}"]]} == {name: name for name in ports if "_axi_" in name}
    for port in range(masters):
        signals = ("addr", "id", "len", "size", "burst", "lock", "cache", "prot", "qos")
        assert {f"m{port}_axi_{channel}{signal}" for channel in ("ar", "aw") for signal in signals} <= set(ports)
        assert f"output wire [39:0] m{port}_axi_araddr" in header and f"assign m{port}_axi_arcache = 4'h3;" in header
    # Word by word: only what a table says, and r0.
    assert all(re.search(r"= \d+'[dh]0*[1-9a-f]", block) or "registers[0] = 32'd0;" in block and block.count(";") == 1
               for block in re.findall(r"initial begin\n.*?\n *end", text, re.S))
    assert "registers[0] = 32'd0;" in text
    assert not re.search(r"\btrace_|unit_busy;|weight_beat;", "\n".join(ports))


TCL_SHIM = """#!{python}
# Yosys with a Tcl interpreter, which the package has not: every command of a script goes to it, in order.
import subprocess, sys, tkinter
options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
tcl, script = tkinter.Tcl(), []
def call(*words): script.append(" ".join(words))
def unknown(*words):
    if words[0] != "yosys": call(*words)
tcl.createcommand("record", unknown)
tcl.eval("proc unknown args {{ record {{*}}$args }}")
tcl.eval(open(options["-p"].split()[1]).read())
script.insert(-1, "blackbox =A:whitebox")  # the last step of a synthesis that is not cut short
sys.exit(subprocess.call([{yosys!r}, "-q", "-l", options["-l"], "-p", "; ".join(script)]))
"""


def fusesoc(target, folder, tmp_path, *, tools=None):
    command = [Path(sys.executable).parent / "fusesoc", "--cores-root", folder, "run", f"--target={target}", "--build-root",
               tmp_path / "build", "tritloom:ip:tritloom"]
    environment = verilator.environment(slow="-O0", fast="-O0") | {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}
    if tools:
        environment["PATH"] = f"{tools}{os.pathsep}{environment['PATH']}"
    return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.needs("fusesoc", "amaranth", "verilator")
@pytest.mark.long
@pytest.mark.compiles
def test_fusesoc_lints_the_core_and_its_testbench_reads_who_it_is(written, tmp_path):
    run = fusesoc("lint", written, tmp_path)
    assert run.returncode == 0 and "%Warning" not in run.stdout + run.stderr, run.stdout + run.stderr
    run = fusesoc("sim", written, tmp_path)
    assert run.returncode == 0, run.stdout + run.stderr
    assert f"ID: 0x54495254\nVERSION: 0x{MAP_VERSION:08x}\nDIGEST: 0x{TINY.digest:08x}\n" in run.stdout
    other = subprocess.run([next((tmp_path / "build").glob("**/Vtritloom")), "1"], capture_output=True, text=True, timeout=60)
    assert other.returncode == 1 and f"DIGEST: 0x{TINY.digest:08x}, WRONG" in other.stdout


@pytest.mark.needs("fusesoc", "amaranth", "pyosys")
@pytest.mark.long
def test_fusesoc_synthesises_the_core(written, tmp_path):
    """Up to where memories and multipliers are known: the rest, to LUTs, takes minutes."""
    pytest.importorskip("tkinter", reason="the stand-in for a Yosys with Tcl asks Python's own Tcl")
    shim = tmp_path / "tools" / "yosys"
    shim.parent.mkdir()
    shim.write_text(TCL_SHIM.format(python=sys.executable, yosys=str(yosys.executable())))
    shim.chmod(0o755)
    folder = tmp_path / "core"
    shutil.copytree(written, folder)
    text = (folder / "tritloom.core").read_text()
    (folder / "tritloom.core").write_text(text.replace("-noclkbuf]", "-noclkbuf, -run, 'begin:map_ffram']"))
    run = fusesoc("synth", folder, tmp_path, tools=shim.parent)
    assert run.returncode == 0, run.stdout + run.stderr
    text = next((tmp_path / "build").glob("**/*.json")).read_text()
    assert all(f'"type": "{cell}"' in text for cell in ("RAM32M16", "DSP48E2")) and '"m0_axi_araddr"' in text
