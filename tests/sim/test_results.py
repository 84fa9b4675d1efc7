"""Stored long results hold for this very tree, and say what the README says."""

import hashlib
import json

import pytest
from filelock import FileLock

from tritloom.boards.board import load as load_board
from tritloom.firmware.config import BIASES, BuildConfig
from tritloom.gen.fit.fit import Clock, slowest_path
from tritloom.gen.verilog.digests import syntax_digest, verilog_digest
from tritloom.gen.verilog.generate import generate_verilog
from tritloom.sim.bench import results, stored
from tritloom.sim.check import equality, random_machines

pytest.importorskip("amaranth", reason="results are of this tree's Verilog")

def test_the_stored_digests_are_of_these_sources():
    """Run `make digests` when this fails: it tells which results still hold."""
    data = json.loads(stored.DIGESTS.read_text("utf-8"))
    assert data["sources"] == syntax_digest() and set(data["verilog"]) == set(stored.machines())


@pytest.mark.parametrize("number", [0, 1])
def test_the_stored_digests_are_those_of_the_verilog(number):
    """Of two small machines; `make digests` makes all."""
    name, config = list(stored.machines().items())[number]
    assert json.loads(stored.DIGESTS.read_text("utf-8"))["verilog"][name] == verilog_digest(generate_verilog(config), config)


@pytest.mark.parametrize("pair", equality.pairs(), ids=", ".join)
def test_equality_holds_for_this_tree(pair):
    """Run `make equality` when this fails: what was compared has changed since."""
    entries = {(entry["model"], entry["machine"]): entry for entry in equality.load()["entries"]}
    assert set(entries) == set(equality.pairs())
    assert equality.holds(entries[pair]) == stored.CURRENT


def test_one_process_at_a_time_writes_the_results(tmp_path, monkeypatch):
    path, entry = tmp_path / "new" / "equality.json", {"model": "b", "machine": "sim"}
    equality.store(entry, path)
    monkeypatch.setattr(equality, "LOCK_S", 0)
    with FileLock(path.with_suffix(".lock")), pytest.raises(TimeoutError, match=r"equality\.lock"):
        equality.store(entry | {"model": "a"}, path)
    equality.store(entry | {"model": "a"}, path)
    equality.store(entry | {"equal": True}, path)
    assert equality.load(path)["entries"] == [entry | {"model": "a"}, entry | {"equal": True}]


def test_every_stored_run_is_equal_and_long_enough():
    for entry in equality.load()["entries"]:
        assert entry["equal"], entry
        for run in entry["runs"]:
            assert run["equal"] and run["generated_tokens"] >= 64


SYNTHESISED = [path for path, entry in results.entries() if entry["what"] == "synthesis"]


@pytest.mark.parametrize("path", SYNTHESISED, ids=lambda path: path.stem)
def test_every_machine_that_was_synthesised_is_today_s_and_fits_its_device(path):
    """Run the file's command when this fails: the machine is another one, or no longer fits."""
    entry = json.loads(path.read_text("utf-8"))
    assert stored.state_of(entry) == stored.CURRENT
    total, available = entry["measured"]["total"], load_board(entry["board"]).resources
    assert all(total[kind] * size <= available[kind] for kind, size in {"lut": 1, "dsp": 1, "bram": 36, "uram": 288}.items())


@pytest.mark.parametrize("path", SYNTHESISED, ids=lambda path: path.stem)
def test_the_estimate_of_a_machine_that_was_synthesised_is_as_fit_says(path):
    """What `fit` takes unless told otherwise leaves a tenth of the clock's period; of what takes more of the device it warns."""
    entry = json.loads(path.read_text("utf-8"))
    board, hz, timing = load_board(entry["board"]), entry["configuration"]["clock_hz"], entry["measured"]["timing"]
    fill = entry["measured"]["total"]["lut"] / entry["available"]["lut"]
    config = BuildConfig.from_dict(entry["configuration"])
    clock = Clock.of(hz, slowest_path(board, config, entry["measured"]["total"]["lut"]))
    assert clock.slack_ns is not None and timing["period"] - timing["paths"][0]["delay"] >= clock.slack_ns - 1e-3
    assert timing["failing"] == 0 or clock.slack_ns < 0
    assert fill > board.fill or hz == board.clock_hz or clock.spare >= 0.1


@pytest.mark.parametrize("settings", ["-lanes16", "-lanes16-shortlist256", "-lanes8-sequences8-vector_lanes8"])
def test_machines_for_the_peer_s_model_take_no_more_than_the_peer(settings):
    path = equality.ROOT / f"docs/results/kv260/bitnet_b1_58-large-synthesis{settings}.json"
    total = json.loads(path.read_text("utf-8"))["measured"]["total"]
    assert total["lut"] <= 98_000 and total["dsp"] <= 610 and total["bram"] <= 98.5 and total["uram"] <= 60  # TeLLMe v2's
    assert len(SYNTHESISED) >= 4


def test_random_machines_hold_for_this_tree():
    """Run `make random` when this fails: what was compared has changed since."""
    entries = random_machines.load()["entries"]
    assert {e["seed"] for e in entries} >= set(random_machines.SEEDS)
    for entry in entries:
        assert (random_machines.holds(entry), entry["difference"]) == (stored.CURRENT, None), f"seed {entry['seed']}"


def test_seeds_give_the_cases_that_they_gave():
    """What is drawn for models with scales by groups changes nothing for others."""
    seeds = (*range(20), *range(random_machines.SERIAL, random_machines.SERIAL + 10))
    drawn = [(c.shape.to_dict(), c.config.to_dict(), c.timing, c.prompts, c.texts) for c in map(random_machines.case, seeds)]
    assert hashlib.sha256(repr(drawn).encode()).hexdigest()[:16] == "3b8433e0abdc1d84"


def test_random_machines_with_groups_are_of_every_kind():
    cases = [random_machines.case(random_machines.GROUPED + i) for i in range(6)]
    assert {c.shape.group_size for c in cases} == {64, 128} and {c.shape.activation for c in cases} == {"relu2", "silu"}
    assert {(c.shape.head_norms, c.shape.ternary_head) for c in cases} == {(a, b) for a in (True, False) for b in (True, False)}
    assert {(c.config.groups, c.config.result_turns) for c in cases} == {(1, 1), (1, 2), (2, 1), (2, 2)}
    assert {c.config.memory for c in cases} == {"axi", "onchip"} and {c.config.sequences for c in cases} == {1, 3, 4}
    assert any(c.config.shortlist for c in cases) and any(t["drafts"] for c in cases if c.shape.ternary_head for t in c.texts)
    assert {c.config.result_parts for c in cases} == {1, 2} and {c.shape.layers for c in cases} == {1, 2}
    assert {c.config.group_exponents for c in cases} == {0, 1, 3, 7}


def test_random_machines_with_biases_are_of_every_kind():
    cases = [random_machines.case(random_machines.BIASED + i) for i in range(4)]
    assert [c.shape.biases for c in cases] == [("qkv",), BIASES, ("o", "down"), ("qkv", "gate_up", "down")]
    assert {c.shape.activation for c in cases} == {"relu2", "silu"} and {c.config.ultra_units for c in cases} == {True, False}
    assert {c.shape.head_norms for c in cases} == {c.shape.ternary_head for c in cases} == {True, False}
    assert {c.shape.group_size for c in cases} == {64, 128} and {c.config.group_exponents for c in cases} == {0, 1, 3, 7}
    far = [c.config for c in cases if c.config.ultra_units]
    assert {(c.rows_per_cycle, c.result_parts, c.vector_lanes) for c in far} == {(3, 2, 8)} and far[0].shape.bias_inputs
    short = cases[3].config  # the scan of a short-list steps over results that leave two at a time
    assert short.shortlist and short.rows_per_cycle == 3 and not short.ultra_units


def test_random_machines_are_of_every_kind():
    cases = [random_machines.case(seed) for seed in random_machines.SEEDS if seed < random_machines.GROUPED]
    assert {c.shape.head_dim for c in cases} >= set(random_machines.HEAD_DIMS)
    assert {c.shape.activation for c in cases} == {"relu2", "silu"} and {c.shape.sub_norms for c in cases} == {True, False}
    assert max(c.shape.vocab for c in cases) == 131_072
    assert {c.shape.heads == c.shape.kv_heads for c in cases} == {True, False}
    assert {c.config.groups for c in cases} == {1, 2} and {c.config.sequences for c in cases} == {1, 3, 4}
    assert {c.config.memory for c in cases} == {"axi", "onchip"} and max(c.config.mem_bytes for c in cases) == 512
    assert {(c.config.groups, c.config.result_turns) for c in cases} == {(1, 1), (1, 2), (2, 1), (2, 2)}
    assert any(c.config.shortlist for c in cases) and any(t["drafts"] for c in cases for t in c.texts)
    outside = [c for c in cases if c.config.memory == "axi"]
    assert {c.timing.outstanding == 1 for c in outside} == {bool(c.timing.dram) for c in outside} == {True, False}
    assert any(0 < c.config.block_rows <= 3 * c.config.rows_per_cycle and c.config.weight_fifo_beats <= 16 for c in outside)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [pytest.param(seed, marks=pytest.mark.long if seed % 2 else ()) for seed in (
    *(s for s in range(20) if s % 6 != 5), *range(random_machines.GROUPED, random_machines.GROUPED + 12))])
def test_the_emulator_of_a_random_machine_writes_the_integer_model_s_texts(seed):
    assert random_machines.check(random_machines.case(seed), rtl=False) is None
