"""Mutated files in the suite: a few hundred by number, some by hypothesis, and whether the stored long run is of these readers."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fuzz
import synthetic
from tritloom.gen.models import check, open_checkpoint
from tritloom.gen.models.checkpoint import MATRICES

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


def test_models_with_groups_end_in_a_reading_or_a_refusal(tmp_path):
    """Edits of files in every form that is ternary by groups: what is accepted is ternary; all else is a line."""
    shape = dataclasses.replace(synthetic.GROUPED, hidden=128, ffn=128, heads=2, kv_heads=1, layers=1, vocab=40)
    for form in ("Q2_0", "PQ2_0", "PTQ1_0", "F16", "old Q2_0"):
        synthetic.grouped_gguf(tmp_path / form / "m.gguf", shape, form=form, tied=False)
    synthetic.mlx(tmp_path / "mlx", shape)
    synthetic.unpacked(tmp_path / "unpacked", shape, shards=2)
    sources = [{file.name: file.read_bytes() for file in folder.iterdir()} for folder in sorted(tmp_path.iterdir())]
    accepted, case = 0, tmp_path / "case"
    for number in range(700):
        case.mkdir()
        for name, data in fuzz.edited(sources[number % len(sources)], fuzz.random_edits(number)).items():
            (case / name).write_bytes(data)
        path = case / "m.gguf" if "m.gguf" in sources[number % len(sources)] else case
        report = check(path)
        for problem in report.problems:
            fuzz.one_line(str(problem))
        if report.ok:
            checkpoint, accepted = open_checkpoint(path), accepted + 1
            for name in MATRICES if checkpoint.spec.shape.group_size else ():
                found = checkpoint.grouped(0, name)
                assert np.isin(found.trits, (-1, 0, 1)).all() and np.isfinite(found.scales).all() and (found.scales >= 0).all()
        shutil.rmtree(case)
    assert 20 < accepted < 300


def test_the_stored_run_is_of_these_readers(corpus):
    """Run `make fuzz` when this fails: what is accepted, or what is read from it, is another."""
    record = json.loads(fuzz.RESULTS.read_text("utf-8"))
    assert (record["files"], record["first"], record["failures"]) == (fuzz.FILES, 0, [])
    assert record["longest_s"] < fuzz.SECOND_LIMIT and record["peak_bytes"] < 1 << 30
    assert set(record["kinds"]) == set(corpus.kinds) and all(kind["accepted"] and kind["refused"] for kind in record["kinds"].values())
    assert record["behaviour"] == fuzz.behaviour(corpus)
