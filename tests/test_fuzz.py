"""Mutated files in the suite: a few hundred by number, some by hypothesis, and whether the stored long run is of these readers."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fuzz

pytestmark = pytest.mark.slow

EDITS = st.lists(st.tuples(st.sampled_from(sorted(fuzz.EDITS)), st.integers(0, 2**32 - 1)), min_size=1, max_size=4)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return fuzz.Corpus(Path(tmp_path_factory.mktemp("fuzz")))


def test_the_files_that_are_mutated_are_good(corpus):
    assert {kind for kind in corpus.kinds if corpus.outcome(kind, []) is None} == set()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(data=st.data())
def test_any_edits_end_in_a_reading_or_a_refusal(corpus, data):
    corpus.outcome(data.draw(st.sampled_from(corpus.kinds)), data.draw(EDITS))


def test_what_is_wrong_is_seen(corpus, monkeypatch):
    """The comparison with other programs' readings finds a reader that reads otherwise."""
    from tritloom.gen.models.gguf import GgufCheckpoint

    right = GgufCheckpoint.ternary
    monkeypatch.setattr(GgufCheckpoint, "ternary", lambda self, *what: (-right(self, *what)[0], right(self, *what)[1]))
    with pytest.raises(fuzz.Wrong, match="holds other weights"):
        corpus.outcome("GGUF TQ2_0", [])


def test_the_stored_run_is_of_these_readers(corpus):
    """Run `make fuzz` when this fails: what is accepted, or what is read from it, is another."""
    record = json.loads(fuzz.RESULTS.read_text("utf-8"))
    assert (record["files"], record["first"], record["failures"]) == (fuzz.FILES, 0, [])
    assert record["longest_s"] < fuzz.SECOND_LIMIT and record["peak_bytes"] < 1 << 30
    assert set(record["kinds"]) == set(corpus.kinds) and all(kind["accepted"] and kind["refused"] for kind in record["kinds"].values())
    assert record["behaviour"] == fuzz.behaviour(corpus)
