"""Measured numbers: their rows, the share of every unit, the table and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tritloom.firmware.errors import InputError
from tritloom.firmware.isa import Unit
from tritloom.gen.source import Source
from tritloom.sim.bench import benchmarks, measure, report, results, stored
from tritloom.sim.bench.measure import CycleShares, Measured

RESULTS = Path(__file__).parents[2] / "docs" / "results"  # beside the tests: an installed package has none
SHAPE = Source(model=Path("TriLM-99M"))


def histogram():
    h = np.zeros((256, 2), np.uint64)
    h[0] = 5, 10
    h[Unit.MATMUL] = 100, 700
    h[Unit.VECTOR] = 60, 40
    h[Unit.VECTOR | Unit.WRITES] = 20, 0
    h[Unit.DOT] = 50, 15
    return h


SHARES = CycleShares.of(histogram())


def test_shares_count_every_cycle():
    assert SHARES.cycles == 1000
    assert SHARES.streaming == {"sequencer": 10, "matmul": 700, "vector": 40, "dot": 15}
    assert SHARES.idle == {"sequencer": 5, "matmul": 100, "vector": 60, "vector+writes": 20, "dot": 50}
    assert SHARES.names[0] == "matmul"


def test_idle_cycles_are_shared_among_the_units_that_work():
    assert SHARES.by_unit() == {"matmul": 100, "vector": 70, "dot": 50, "writes": 10, "sequencer": 5}


def test_rows_of_a_measured_generation():
    m = Measured(10, 5000, (990, 1010), SHARES, 0.765, 0.8, 250_000_000, 7000, 2.0, {"refresh": 0.04})
    rows = {r["measure"]: r for r in report.measured_rows("m", m, "command")}
    assert rows["m decode"]["value"] == 1000
    assert rows["m decode at 250 MHz"]["value"] == 250_000
    assert rows["m weight beats per cycle in decode"]["value"] == 0.765
    assert rows["m cycles without a weight beat: dot"]["value"] == 0.05
    assert rows["m memory waits in decode: refresh"]["value"] == 0.04
    assert rows["m simulation rate"]["value"] == 3500
    assert all(r["kind"] in report.KINDS and r["command"] == "command" for r in rows.values())


def test_table_names_every_unit():
    m = Measured(10, 5000, (1000,), SHARES, 0.765, 0.8, 250_000_000, 7000, 2.0, {"refresh": 0.04})
    text = report.table(report.measured_rows("m", m, "command"))
    assert all(unit in text for unit in ("matmul", "vector", "dot", "sequencer"))


@pytest.mark.parametrize("width", [40, 80, 140])
def test_a_table_fits_the_terminal_and_says_all(width):
    entry = json.loads((RESULTS / "kv260" / "bitnet_b1_58-large-decode-128-lanes16.json").read_text())
    rows = report.entry_rows(entry, "stale: its Verilog changed since then")
    text = report.table(rows, width)
    least = max(map(len, text.split()))
    assert all(len(line) <= max(width, 65, least) for line in text.splitlines())  # the names' 16 columns, and the numbers'
    said = " ".join(text.split())
    assert all(report.number(row["value"]) in said and row["unit"] in said for row in rows)
    assert said.count(entry["command"]) == said.count("stale: its Verilog") == said.count("memory kv260, random weights") == 1


def test_stored_results_are_chosen_by_board_and_model(monkeypatch):
    listed = [(path, json.loads(path.read_text()), stored.CURRENT) for path in stored.files(RESULTS)]
    monkeypatch.setattr(results, "stored", lambda folder: listed)
    found = {(entry["board"], entry["model"]) for _, entry, _ in listed}
    assert ("kv260", "stories-1m") not in found and len(found) > 3
    for board, model in ((None, None), ("kv260", None), (None, "stories-4m"), ("kv260", "bitnet_b1_58-large")):
        shown = {(entry["board"], entry["model"]) for entry, _ in report.stored_report(board, model).results}
        assert shown == {pair for pair in found if board in (None, pair[0]) and model in (None, pair[1])}
    for pair, words in ((("kv26", None), "no board called 'kv26' .*kv260"), ((None, "stories-4"), "no model called .* mean stories-4m")):
        with pytest.raises(InputError, match=words):
            report.stored_report(*pair)


def test_a_folder_is_told_from_the_published_shape_of_its_name(tmp_path):
    """Their results differ: a shape's weights are random."""
    (tmp_path / "TriLM-99M").mkdir()
    assert benchmarks.name_of(Source(model=tmp_path / "TriLM-99M")) == "TriLM-99M-local"
    assert benchmarks.name_of(SHAPE) == "TriLM-99M" and benchmarks.name_of(Source(model=tmp_path / "mine")) == "mine"


class Machine:
    """Stands for the simulation: every token is the histogram once."""

    axi_ports = 2

    def __init__(self):
        self.cycles, self.tokens = 0, 0

    def port_statistics(self, port):
        return type("Port", (), {"refresh_waits": 100 * self.tokens * port, "latency_waits": 0, "ready_waits": 50 * self.tokens})()

    def clear_statistics(self):
        self.tokens = 0

    def histogram(self):
        return histogram() * self.tokens


class FakeSession:
    """Stands for host.session.Session."""

    def __init__(self, machine):
        self.backend: Any = type("Backend", (), {"machine": machine, "name": "sim"})()
        self.config = type("Config", (), {"clock_hz": 100})()

    def generate(self, prompt, new):
        for token in range(new):
            self.backend.machine.tokens += 1
            self.backend.machine.cycles += 1000
            yield token

    def stats(self):
        numbers = {"prompt_tokens": 3, "prefill_cycles": 1000, "decode_cycles": (1000,) * 4, "weight_share": 0.7, "memory_share": 0.8}
        return type("Stats", (), numbers)()


def test_only_tokens_after_the_first_are_counted():
    seen = []
    session: Any = FakeSession(Machine())
    m = measure.measure_session(session, [1, 2, 3], 4, lambda *a: seen.append(a[:2]))
    assert m.shares.cycles == 4000
    assert m.waits == {"refresh": 0.05, "latency": 0, "ready": 0.05}
    assert m.cycles == 5000
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_a_device_without_a_clock_is_refused():
    session: Any = FakeSession(Machine())
    del type(session.backend).machine
    with pytest.raises(InputError, match="no clock"):
        measure.measure_session(session, [1], 1)


@pytest.mark.parametrize("arguments, words", [
    ({"unit": "adder", "synth": True}, "adder"), ({"unit": "tlmm"}, "--synth"), ({}, "--model"),
    ({"stored": True, "settings": {"lanes": 2}}, "leave them out with --stored"),
    ({"unit": "tlmm", "synth": True, "settings": {"shortlist": 256}}, "leave them out with --stored and --unit"),
    ({"source": SHAPE, "synth": True, "batch": 2}, "leave --prefill, --batch"),
    ({"source": SHAPE, "drafts": 2, "context": 8}, "leave --context"),
    ({"source": SHAPE, "prompt": "Tom", "context": 8}, "give --drafts N too"),
    ({"source": SHAPE, "batch": 2, "prefill": 8}, "give --context N too"),
    ({"source": SHAPE, "context": 40, "shared": 16}, "what the texts of --batch have in common"),
    ({"source": SHAPE, "context": 40, "batch": 2, "shared": 24}, "whole chunks of 16"),
    ({"source": SHAPE, "context": 40, "batch": 2, "shared": 48}, "at most the --context less 2"),
])
def test_what_cannot_be_measured_is_refused(arguments, words):
    with pytest.raises(InputError, match=words):
        benchmarks.report(**arguments)


@pytest.mark.needs("amaranth")
def test_tlmm_rows(monkeypatch):
    entry = {"family": "xcup", "form": "symmetric14", "tables": 16, "rows_per_cycle": 4, "lut_per_weight": 6.5, "lut_per_weight_built": 7.5,
             "lane": {"lut": 1248, "ff": 1000, "bram": 0}}
    monkeypatch.setattr("tritloom.gen.tools.synthesis.tlmm_table", lambda progress=None: [entry])
    rows = benchmarks.tlmm_synth()
    assert rows[0] == {"measure": "tlmm symmetric14 xcup T=16 Q=4 lane", "value": 6.5, "unit": "LUT/weight/cycle", "kind": "synthesised",
                       "command": "tritloom bench --unit tlmm --synth"}


@pytest.mark.parametrize("settings, missing", [
    ({"lanes": 4}, "--set lanes=5"), ({"lanes": 4, "sequences": 4}, "--set lanes=5 --set sequences=5"),
    ({"sequences": 4}, "--set sequences=5")])
def test_a_batch_for_which_the_machine_is_too_small_says_what_to_set(settings, missing):
    with pytest.raises(InputError, match=f"5 texts need as many lanes and caches.*: {missing}$"):
        benchmarks.whole_tokens(SHAPE, "kv260", context=128, batch=5, settings={"lanes": 8} | settings)
