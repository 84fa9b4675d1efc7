"""Stored long results are of this very code, and say what the README says."""

import json

import pytest

import random_machine
from tritloom.boards.board import load as load_board
from tritloom.gen.models import open_checkpoint
from tritloom.sim import equality, measure


def test_equality_was_measured_with_this_code():
    """Run `make equality` when this fails: the machine has changed since the stored run."""
    results = equality.load()
    stored = {(e["model"], e["machine"]): e for e in results["entries"]}
    assert set(stored) == set(equality.pairs())
    assert {e["code"] for e in stored.values()} == {equality.code_digest()}
    for (model, name), entry in stored.items():
        config = equality.machine(open_checkpoint(equality.ROOT / "models" / model), name)
        assert entry["digest"] == f"{config.digest:08x}", (model, name)


def test_every_stored_run_is_equal_and_long_enough():
    for entry in equality.load()["entries"]:
        assert entry["equal"], entry
        config = equality.machine(open_checkpoint(equality.ROOT / "models" / entry["model"]), entry["machine"])
        assert [run["prompt_tokens"] for run in entry["runs"]] == equality.prompt_lengths(config)
        for run in entry["runs"]:
            assert run["equal"] and run["generated_tokens"] >= 64


SYNTHESISED = [path for path, entry, _ in measure.stored() if entry["what"] == "synthesis"]


@pytest.mark.parametrize("path", SYNTHESISED, ids=lambda path: path.stem)
def test_every_machine_that_was_synthesised_is_of_this_code_and_fits_its_device(path):
    """Run the file's command when this fails: the code has changed, or no longer fits."""
    entry = json.loads(path.read_text("utf-8"))
    assert entry["code"] == equality.code_digest()
    total, available = entry["measured"]["total"], load_board(entry["board"]).resources
    assert all(total[kind] * size <= available[kind] for kind, size in {"lut": 1, "dsp": 1, "bram": 36, "uram": 288}.items())


@pytest.mark.parametrize("path", SYNTHESISED, ids=lambda path: path.stem)
def test_every_machine_that_was_synthesised_fits_its_clock(path):
    timing = json.loads(path.read_text("utf-8"))["measured"]["timing"]
    assert timing["failing"] == 0 and timing["paths"][0]["delay"] <= timing["period"]


@pytest.mark.parametrize("settings", ["", "-shortlist256", "-sequences8-vector_lanes8"])
def test_machines_for_the_peer_s_model_take_no_more_than_the_peer(settings):
    path = equality.ROOT / f"docs/results/kv260/bitnet_b1_58-large-synthesis{settings}.json"
    total = json.loads(path.read_text("utf-8"))["measured"]["total"]
    assert total["lut"] <= 98_000 and total["dsp"] <= 610 and total["bram"] <= 98.5 and total["uram"] <= 60  # TeLLMe v2's
    assert len(SYNTHESISED) >= 4


def test_random_machines_were_measured_with_this_code():
    """Run `make random` when this fails: the machine has changed since the stored run."""
    entries = random_machine.load()["entries"]
    assert {e["seed"] for e in entries} >= set(random_machine.SEEDS)
    for entry in entries:
        assert entry["code"] == equality.code_digest() and entry["difference"] is None, f"seed {entry['seed']}"
        now = random_machine.described(random_machine.case(entry["seed"]))
        assert {name: entry[name] for name in now} == now, f"seed {entry['seed']}"


def test_random_machines_are_of_every_kind():
    cases = [random_machine.case(seed) for seed in random_machine.SEEDS]
    assert {c.shape.head_dim for c in cases} >= set(random_machine.HEAD_DIMS)
    assert {c.shape.activation for c in cases} == {"relu2", "silu"} and {c.shape.sub_norms for c in cases} == {True, False}
    assert max(c.shape.vocab for c in cases) == 131_072
    assert {c.shape.heads == c.shape.kv_heads for c in cases} == {True, False}
    assert {c.config.groups for c in cases} == {1, 2} and {c.config.sequences for c in cases} == {1, 3, 4}
    assert {c.config.memory for c in cases} == {"axi", "onchip"} and max(c.config.mem_bytes for c in cases) == 512
    assert {(c.config.groups, c.config.result_turns) for c in cases} == {(1, 1), (1, 2), (2, 1), (2, 2)}
    assert any(c.config.shortlist for c in cases) and any(t["drafts"] for c in cases for t in c.texts)


@pytest.mark.parametrize("seed", [s for s in range(20) if s % 6 != 5])
def test_the_emulator_of_a_random_machine_writes_the_integer_model_s_texts(seed):
    assert random_machine.check(random_machine.case(seed), rtl=False) is None
