"""The files of a machine: complete or not there, named by their digest, and clean for the linter."""

import dataclasses
import json
import os

import pytest

from tritloom.firmware.config import BuildConfig, ModelShape
from tritloom.gen import generate

TINY = BuildConfig(
    shape=ModelShape(hidden=32, ffn=64, layers=2, heads=2, kv_heads=1, head_dim=16, vocab=64, context=64, activation="relu2",
                     sub_norms=True),
    lanes=1, tables=2, rows_per_cycle=2, vector_lanes=4, attention_macs=4, mem_bytes=4, weight_fifo_beats=16, sampler_candidates=4)

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


def test_writes_all_files_of_a_machine(emitted, tmp_path):
    steps = []
    paths = generate.write_machine(TINY, tmp_path / "new" / "machine", lambda *step: steps.append(step))
    assert sorted(p.name for p in paths) == ["config.json", "registers.h", "registers.json", "tritloom.v"]
    assert sorted(os.listdir(tmp_path / "new" / "machine")) == sorted(p.name for p in paths)
    files = {p.name: p.read_text(encoding="utf-8") for p in paths}
    assert BuildConfig.from_json(files["config.json"]) == TINY
    assert f"configuration {TINY.digest:08x}" in files["tritloom.v"].splitlines()[0]
    assert generate.package_version() in files["tritloom.v"].splitlines()[0]
    assert json.loads(files["registers.json"])["registers"]
    assert "#define TRITLOOM_" in files["registers.h"]
    assert steps[0][0] == 0.0 and steps[-1][0] == 1.0


def test_a_failure_leaves_the_folder_as_it_was(monkeypatch, tmp_path):
    def fail(config):
        raise KeyboardInterrupt

    monkeypatch.setattr(generate, "generate_verilog", fail)
    with pytest.raises(KeyboardInterrupt):
        generate.write_machine(TINY, tmp_path / "new")
    assert os.listdir(tmp_path) == []


def test_a_failing_write_leaves_no_trace(tmp_path):
    (tmp_path / "a").write_text("old")
    with pytest.raises(TypeError):
        generate.write_atomically(tmp_path, {"a": "new", "b": 3})
    assert (os.listdir(tmp_path), (tmp_path / "a").read_text()) == (["a"], "old")
    with pytest.raises(TypeError):
        generate.write_atomically(tmp_path / "folder", {"a": "new", "b": 3})
    assert os.listdir(tmp_path) == ["a"]


def test_verilog_is_made_once_per_configuration_and_source(emitted, monkeypatch, tmp_path):
    other = dataclasses.replace(TINY, lanes=2)
    texts = [generate.cached_verilog(config, tmp_path / "cache") for config in (TINY, TINY, other)]
    assert texts[0] == texts[1] != texts[2]
    assert emitted == [TINY.digest, other.digest]
    monkeypatch.setattr(generate, "source_digest", lambda: "changed")
    generate.cached_verilog(TINY, tmp_path / "cache")
    assert len(emitted) == 3


def test_lint_finds_what_is_not_waived():
    verilog = "module top(input [3:0] a, output [1:0] b, output c);\n  assign b = a;\n  assign c = missing;\nendmodule\n"
    assert any("missing" in line for line in generate.lint(verilog))
    clean = "module top(input [3:0] a, output [1:0] b);\n  assign b = a;\nendmodule\n"
    assert generate.lint(clean) == []
    assert any("WIDTHTRUNC" in line for line in generate.lint(clean, waivers={}))


def test_every_waiver_has_a_reason():
    assert all(len(reason.split()) > 4 for reason in generate.WAIVERS.values())


@pytest.mark.slow
def test_a_machine_is_clean_for_the_linter():
    text = generate.generate_verilog(TINY)
    assert text.startswith("// tritloom")
    assert generate.lint(text) == []
