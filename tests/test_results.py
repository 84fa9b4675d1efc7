"""Stored long results are of this very code, and say what the README says."""

from tritloom.sim import equality


def test_equality_was_measured_with_this_code():
    """Run `make equality` when this fails: the machine has changed since the stored run."""
    results = equality.load()
    stored = {(e["model"], e["machine"]): e for e in results["entries"]}
    assert set(stored) == set(equality.pairs())
    assert {e["code"] for e in stored.values()} == {equality.code_digest()}


def test_every_stored_run_is_equal_and_long_enough():
    for entry in equality.load()["entries"]:
        assert entry["equal"], entry
        assert {1, 2, equality.LONG_PROMPT} <= {run["prompt_tokens"] for run in entry["runs"]}
        for run in entry["runs"]:
            assert run["equal"] and run["generated_tokens"] >= 64
