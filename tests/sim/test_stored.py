"""Digests of what results were measured with: what they see, what they do not, and the results that are stale by them."""

import dataclasses
import json
import logging
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from machines import TINY
from tritloom.firmware import integer
from tritloom.firmware.layout import memory_map
from tritloom.firmware.programs import machine_program
from tritloom.gen import pack
from tritloom.gen.verilog import digests
from tritloom.sim.bench import current, stored

VERILOG = f"""/* made by hand */
(* top =  1  *)
module \\top.a//b (clk, o);  // a name with what looks like a comment
  output [31:0] o;
  assign o = 32'd{TINY.digest};
  initial $display("// %d", o);
endmodule
"""


# Verilog and sources ---------------------------------------------------------------------------


@pytest.mark.parametrize("change", [
    lambda text: "// waived: no reason\n" + text, lambda text: text.replace("\n", "\n\n"),
    lambda text: text.replace("made by", "thought\nof by"),
    lambda text: text.replace("  output", "  /* verilator lint_off WIDTH */\n  output").replace(";\n", ";  \n")])
def test_comments_and_blank_lines_do_not_count(change):
    assert change(VERILOG) != VERILOG and digests.verilog_digest(change(VERILOG), TINY) == digests.verilog_digest(VERILOG, TINY)


@pytest.mark.parametrize("change", [
    ("top =  1", "top =  0"), ("a//b", "a//c"), ('"// %d"', '"// %x"'), ("[31:0]", "[30:0]"), ("  assign", "// assign")])
def test_all_else_in_the_verilog_counts(change):
    assert digests.verilog_digest(VERILOG.replace(*change), TINY) != digests.verilog_digest(VERILOG, TINY)


def test_the_number_of_the_configuration_does_not_count():
    other = dataclasses.replace(TINY, clock_hz=1)
    assert digests.verilog_digest(VERILOG.replace(str(TINY.digest), str(other.digest)), other) == digests.verilog_digest(VERILOG, TINY)
    assert digests.verilog_digest(VERILOG.replace(str(TINY.digest), "5"), TINY) != digests.verilog_digest(VERILOG, TINY)


@pytest.fixture
def sources(monkeypatch, tmp_path):
    """A generator of four files, and the digest of it after a change."""
    files = {"rtl/top.py": 'from .stream import Fifo\n"""What follows."""\nWORDS = [f"{Fifo.WORDS:>{4}}"]\n',
             "rtl/stream.py": "class Fifo:\n    WORDS = 4\n", "firmware/isa.py": "OP = 1\n", "firmware/emulator.py": "STEPS = 1\n",
             "gen/verilog/generate.py": "def verilog():\n    from tritloom.firmware import isa\n    return isa.OP\n"}
    monkeypatch.setattr(digests, "ROOT", tmp_path)

    def after(name="rtl/top.py", old="", new=""):
        for file, text in files.items():
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / file).write_text(text.replace(old, new) if file == name else text)
        return digests.syntax_digest.__wrapped__()

    return after


@pytest.mark.parametrize("change", [
    ("rtl/stream.py", "4", "5"), ("firmware/isa.py", "1", "2"), ("rtl/top.py", "{4}", "{5}"), ("rtl/top.py", "WORDS =", "words =")])
def test_sources_that_make_the_verilog_count(sources, change):
    assert sources(*change) != sources()


@pytest.mark.parametrize("change", [
    ("firmware/emulator.py", "1", "2"), ("rtl/top.py", "What follows", "Words"), ("rtl/stream.py", "4", "4  # a few"),
    ("rtl/stream.py", "\n    WORDS", '\n    """Waits."""\n\n    WORDS')])
def test_other_sources_and_comments_do_not(sources, change):
    assert sources(*change) == sources()


# Results ---------------------------------------------------------------------------------------


@pytest.fixture
def place(monkeypatch, tmp_path):
    """Folders of results and caches of their own; counts the machines that are emitted."""
    emitted = []

    def emit(config, folder=None):
        emitted.append(config)
        return VERILOG

    monkeypatch.setenv("TRITLOOM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(stored, "RESULTS", tmp_path)
    monkeypatch.setattr(stored, "DIGESTS", tmp_path / "digests.json")
    monkeypatch.setattr(stored, "cached_verilog", emit)
    monkeypatch.setattr(current, "listed_digests", dict)
    return SimpleNamespace(path=tmp_path, emitted=emitted)


def entry(what, config=TINY):
    layout = memory_map(config)
    image: Any = SimpleNamespace(program=machine_program(config, layout), descriptors=layout.descriptor_words(), map=layout,
                                 spec={"tied_embeddings": True})
    made = stored.digests(what, config) if what == "synthesis" else stored.digests(what, config, image, "ideal")
    return ({"what": what, "timing": "ideal"} if what else {}) | {"date": "2026-01-01"} | json.loads(json.dumps(made))


NAMES = {"synthesis": {"verilog", "delays"}, "decode": {"verilog", "program", "descriptors", "layout", "memory"},
         "drafts-rewrite": set(stored.WORDS) - {"delays"}, None: set(stored.WORDS) - {"memory", "delays"}}


@pytest.mark.parametrize("what", NAMES)
def test_a_result_holds_until_something_that_decides_it_changes(place, what):
    measured = entry(what)
    assert set(measured["digests"]) == NAMES[what] and stored.state_of(measured) == stored.CURRENT and len(place.emitted) == 1
    for name in NAMES[what]:
        changed = measured | {"digests": measured["digests"] | {name: "other"}}
        assert stored.state_of(changed) == f"stale: {stored.WORDS[name]} changed since 2026-01-01"
        assert stored.state_of(measured | {"digests": {}}).startswith("stale: ")


def test_several_changes_are_all_named(place):
    measured = entry("decode")
    measured["digests"] |= {"program": "other", "verilog": "other", "memory": "other"}
    assert stored.state_of(measured) == "stale: its Verilog, its program and the memory's model changed since 2026-01-01"


def test_a_configuration_that_is_none_any_more_is_stale(place):
    measured = entry("synthesis")
    measured["configuration"]["wings"] = 2
    state = stored.state_of(measured)
    assert state.startswith("stale: its machine is none any more (") and "wings" in state


def test_a_field_more_changes_no_result(place):
    measured = entry("decode")
    del measured["configuration"]["shortlist"]
    assert stored.state_of(measured) == stored.CURRENT


def test_where_the_sources_changed_it_is_not_known_until_the_machine_is_emitted(place, monkeypatch):
    measured = entry("decode")
    monkeypatch.setattr(stored, "syntax_digest", lambda: "later")
    assert stored.state_of(measured) == "stale: whether its Verilog changed since 2026-01-01 is not known; `make digests` tells"
    assert stored.state_of(measured, emit=True) == stored.state_of(measured) == stored.CURRENT and len(place.emitted) == 2


def test_make_digests_emits_what_is_not_known_and_says_what_is_stale(place, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    (place.path / "kv260").mkdir()
    (place.path / "kv260" / "a.json").write_text(json.dumps(entry("decode")))
    other = entry(None, dataclasses.replace(TINY, lanes=2))
    other["digests"]["program"] = "other"
    (place.path / "random.json").write_text(json.dumps({"entries": [other]}))
    assert current.main(["1"]) == 0
    table = json.loads(stored.DIGESTS.read_text())
    assert len(table["verilog"]) == 2 and len(place.emitted) == 2
    assert "random.json 1: stale: its program changed" in caplog.text and "1 of 2 results are current" in caplog.text
    monkeypatch.setenv("TRITLOOM_CACHE", str(place.path / "empty"))  # a fresh clone: the file alone tells
    assert stored.state_of(json.loads((place.path / "kv260" / "a.json").read_text())) == stored.CURRENT
    assert current.main([]) == 0 and json.loads(stored.DIGESTS.read_text()) == table and len(place.emitted) == 2
    monkeypatch.setattr(stored, "syntax_digest", lambda: "later")
    assert stored.state_of(other | {"digests": {}}).startswith("stale: its program") and not stored._table()


# The reference ---------------------------------------------------------------------------------


SILU = integer.silu


def shifted(function):
    return lambda *args: function(*args) + 1


@pytest.mark.slow
@pytest.mark.parametrize(("name", "other"), [
    ("mix32", shifted(integer.mix32)), ("saturate", lambda v, *_, **__: v), ("silu", lambda z: SILU(z) + (z % 1009 == 0)),
    ("gated_relu2", lambda gate, up: integer.work_norm(gate * gate * up, 0)),
    ("short_list", lambda logits, count: np.argsort(-logits, kind="stable")[1 : count + 1][::-1])])
def test_the_reference_sees_other_arithmetic(monkeypatch, name, other):
    before = stored.reference()
    monkeypatch.setattr(integer, name, other)
    after = stored.reference.__wrapped__()
    assert after[0] != before[0] and after[1] == before[1]


def test_the_reference_sees_other_packing_alone(monkeypatch):
    before = stored.reference()
    matrix_bytes = pack.matrix_bytes
    monkeypatch.setattr(pack, "matrix_bytes", lambda trits, config, *scales: matrix_bytes(trits, config, *scales)[::-1])
    after = stored.reference.__wrapped__()
    assert after[0] == before[0] and after[1] != before[1]
