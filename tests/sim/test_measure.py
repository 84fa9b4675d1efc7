"""Measuring whole tokens: what is measured, and the results kept of it."""

import json
import shlex
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import oracle
from machines import MODEL, SMALL, simulated
from tritloom.firmware.config import BuildConfig, ConfigError
from tritloom.firmware.errors import InputError
from tritloom.gen.fit.fit import fit
from tritloom.gen.models import open_checkpoint
from tritloom.gen.models.shapes import SHAPES, published
from tritloom.gen.source import Source
from tritloom.host.commands.common import settings_of
from tritloom.host.session import Session
from tritloom.sim import prepare
from tritloom.sim.bench import benchmarks, measure, results, stored
from tritloom.sim.bench.report import stored_report, table
from tritloom.sim.bench.timeline import unpack

pytest.importorskip("amaranth")

ROOT = Path(__file__).parents[2]
SHAPE = Source(model=Path("TriLM-99M"))


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    """The machine of test_whole_machine.py, with a memory that never varies."""
    checkpoint = open_checkpoint(MODEL, context=128)
    config = BuildConfig(shape=checkpoint.spec.shape, **SMALL, lanes=3, sequences=3)
    image, backend = simulated(checkpoint, config, tmp_path_factory.mktemp("measure"), timing="ideal")
    with Session(backend, image) as session:
        yield session
    backend.close()


def prompt(length):
    return np.random.default_rng(length).integers(3, 512, length).tolist()


def test_decode_is_the_token_that_a_text_of_that_length_would_take(session):
    session.reset()
    list(session.generate(prompt(38), 4))
    usual = session.stats().decode_cycles[1]  # its pass is at position 39
    found = measure.decode(session, 40)
    assert found["cycles"] == pytest.approx(usual, rel=0.002)
    assert sum(map(sum, found["busy_cycles"].values())) == found["counted_cycles"] == pytest.approx(found["cycles"], abs=200)
    assert found["beats"]["weights"] == pytest.approx(session.image.map.token_beats, abs=64)
    assert 0 < found["roofline_share"] < 1 and found["dram"] is None and found["saturations"] == 0
    longer = measure.decode(session, 120, timeline=True)
    assert longer["cycles"] > found["cycles"]
    whole, layer = (unpack(longer["timeline"][name]) for name in ("whole", "layer"))
    assert whole.cycles.sum() == pytest.approx(longer["counted_cycles"], abs=200) and len(whole.cycles) <= 240
    assert whole.rows[0].sum() == pytest.approx(longer["beats"]["weights"], abs=64)
    assert 0 < layer.cycles.sum() < whole.cycles.sum() / session.config.shape.layers


def test_prefill_is_what_a_session_says(session):
    session.reset()
    next(session.generate(prompt(7), 1))
    usual = session.stats().prefill_cycles
    found = measure.prefill(session, 7)
    assert found["cycles"] == pytest.approx(usual, rel=0.02) and found["tokens_per_s"] == 7 * 250e6 / found["cycles"]
    expected = 2 * session.image.map.pass_beats(False, head=False) + session.image.map.token_beats  # three lanes, seven tokens
    assert found["beats"]["weights"] == expected


def test_a_token_each_of_several_texts(session):
    alone = measure.decode(session, 40)
    found = measure.batch(session, 40, 3)
    assert found["alone_cycles"] == pytest.approx(alone["cycles"], rel=0.002)
    assert found["cycles"] == pytest.approx(found["counted_cycles"], abs=200)
    assert found["beats"]["weights"] == pytest.approx(session.image.map.token_beats, abs=64), "weights are read once"
    assert found["speed_up"] == 3 * found["alone_cycles"] / found["cycles"] and 1 < found["speed_up"] < 3
    assert found["tokens_per_s"] == 3 * 250e6 / found["cycles"]


def test_texts_that_share_positions(session):
    apart, shared = (measure.batch(session, 40, 3, positions) for positions in (0, 32))
    assert shared["shared"] == 32 and shared["bytes"]["cache"] * 3 < apart["bytes"]["cache"] * 2
    assert shared["cycles"] < 1.01 * apart["cycles"], "two heads have one cache: their lanes share it rather than the texts"


def test_drafts_against_none(session):
    ids = prompt(7)
    session.reset()
    text = list(session.generate(ids, 12))
    with oracle.foretold(ids + text):
        found = measure.drafted(session, ids, 12, 2)
    assert found["tokens"] == 12 and found["passes"] == 4 and found["speed_up"] > 1.5
    assert found["cycles"] == pytest.approx(found["plain_cycles"] / found["speed_up"])
    repeated = measure.rewriting(session, ids, 20, 5, stop_id=1)
    story = repeated[: repeated.index(1)]
    assert story[:7] == ids and repeated[len(story) :] == [1, *story[:5]]


def test_positions_beyond_the_context_are_refused(session):
    with pytest.raises(InputError, match="from 0 to 127"):
        session.assume(128)
    with pytest.raises(InputError, match="from 2 to 127"):
        measure.capacity(128, 128)
    assert [measure.capacity(n, 4096) for n in (2, 128, 255, 256, 4000)] == [256, 256, 256, 512, 4096]


# Results ---------------------------------------------------------------------------------------------


@pytest.fixture
def verilog(monkeypatch):
    """The digest that every machine's Verilog has now: no machine is emitted for it."""
    now = ["as measured"]
    monkeypatch.setattr(stored, "emitted", lambda config: now[0])
    monkeypatch.setattr(stored, "known", lambda config: now[0])
    return now


@pytest.fixture
def entry(session, verilog):
    measured = measure.decode(session, 40)
    fixed: dict[str, Any] = dict(model="m", what="decode", count=40, timing="ideal", weights="random", command="c")
    return results.record(measured, config=session.config, made=stored.digests("decode", session.config, session.image, "ideal"), **fixed)


def test_results_are_kept_whole_and_know_their_machine(entry, verilog, tmp_path, monkeypatch):
    path = tmp_path / "kv260" / "m-decode-40.json"
    assert results.load(path) is None
    results.store(entry, path)
    assert results.load(path) == json.loads(json.dumps(entry)) and list(path.parent.iterdir()) == [path]
    assert stored.state_of(entry) == stored.CURRENT
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    assert {r.get("state") for r in stored_report().rows} == {f"stored on {entry['date']}"}
    verilog[0] = "other"
    assert stored.state_of(entry).startswith("stale: its Verilog changed since 2")
    rows = stored_report().rows
    assert rows[0].get("state", "").startswith("stale") and "(stale: its Verilog" in table(rows)
    path.write_text("{}")
    with pytest.raises(InputError, match="not a stored measurement"):
        stored_report()


def test_resume_takes_what_is_stored_and_measures_what_is_stale(entry, verilog, tmp_path, monkeypatch):
    class Started(Exception):
        pass

    def start(*_):
        raise Started

    monkeypatch.setattr(results, "RESULTS", tmp_path)
    monkeypatch.setattr(prepare, "open_simulation", start)
    config = bench_config("TriLM-99M", lanes=1)
    made = stored.digests("decode", config, measure.RandomImage.of(published("TriLM-99M", 256), config), "kv260")
    kept = results.record(entry["measured"], model="TriLM-99M", what="decode", count=40, config=config, timing="kv260", weights="random",
                          command="the command", made=made)
    results.store(kept, results.result_path("kv260", "TriLM-99M", "decode-40", {"lanes": 1}))
    options: dict[str, Any] = dict(context=40, settings={"lanes": 1}, resume=True)
    rows = benchmarks.whole_tokens(SHAPE, "kv260", **options).rows
    assert rows[0]["value"] == entry["measured"]["cycles"] and rows[0]["command"] == "the command"
    others: list[dict[str, Any]] = [
        {"resume": False}, {"settings": {"lanes": 2}}, {"timing": "kv260-pessimistic"}, {"context": 41}, {"prefill": 3}]
    for changes in others:
        with pytest.raises(Started):
            benchmarks.whole_tokens(SHAPE, "kv260", **(options | changes))
    verilog[0] = "other"
    with pytest.raises(Started):
        benchmarks.whole_tokens(SHAPE, "kv260", **options)


def test_results_are_stored_on_request_alone(entry, verilog, tmp_path, monkeypatch):
    """And where an installed package is told to; the tree's own are in docs/results."""
    class Backend:
        def close(self):
            pass

    monkeypatch.setattr(prepare, "open_simulation", lambda *_: Backend())
    monkeypatch.setattr(measure, "Watched", lambda backend: backend)
    monkeypatch.setattr("tritloom.sim.bench.benchmarks.Session", lambda *_, **__: nullcontext())
    monkeypatch.setattr(measure, "decode", lambda *_, **__: entry["measured"])
    monkeypatch.setattr(results, "RESULTS", tmp_path / "docs")
    (tmp_path / "docs").mkdir()
    options: dict[str, Any] = dict(context=40, settings={"lanes": 1})
    benchmarks.whole_tokens(SHAPE, "kv260", **options)
    assert not [*(tmp_path / "docs").rglob("*.json")]
    benchmarks.whole_tokens(SHAPE, "kv260", **options, store=True)
    benchmarks.whole_tokens(SHAPE, "kv260", **options, store=True, folder=tmp_path / "mine")
    assert [path.relative_to(tmp_path).parts[0] for path in sorted(tmp_path.rglob("*.json"))] == ["docs", "mine"]
    assert stored_report(folder=tmp_path / "mine").results[0][0]["count"] == 40
    monkeypatch.setattr(results, "RESULTS", tmp_path / "site-packages")
    storing: list[dict[str, Any]] = [dict(store=True), dict(resume=True)]
    for more in storing:
        with pytest.raises(InputError, match="give --results DIR"):
            benchmarks.whole_tokens(SHAPE, "kv260", **options, **more)
    unkept: list[dict[str, Any]] = [
        dict(stored=True), dict(unit="tlmm", synth=True), dict(source=SHAPE), dict(source=SHAPE, drafts=2, prompt="Tom")]
    for wrong in unkept:
        with pytest.raises(InputError, match="--store keeps"):
            benchmarks.report(store=True, **wrong)
    with pytest.raises(InputError, match="give --store"):
        benchmarks.report(source=SHAPE, context=40, folder=tmp_path)
    measured: list[dict[str, Any]] = [dict(context=40), dict(synth=True), dict(timing="ddr")]
    for wrong in measured:
        with pytest.raises(InputError, match="--stored shows results"):
            benchmarks.report(stored=True, **wrong)
    with pytest.raises(InputError, match=f"no stored results in {tmp_path / 'none'}: "):
        benchmarks.report(stored=True, folder=tmp_path / "none")


def bench_config(name, **settings):
    return fit(published(name, 256), "kv260", **settings).config


@pytest.mark.parametrize("options, words", [
    (dict(source=Source(model=Path("gpt")), context=40), "no model called 'gpt'"), (dict(source=SHAPE, context=4096), "from 2 to 2047"),
    (dict(source=SHAPE, context=40, timing="fast"), "choose ideal, ddr, kv260"),
])
def test_what_cannot_be_measured_is_refused(options, words):
    with pytest.raises((ConfigError, InputError), match=words):
        benchmarks.report(board="kv260", **options)


def test_the_command_of_a_stored_result_makes_its_machine():
    """So that `make results` measures what the file says."""
    checked = 0
    for path, entry in results.entries():
        words = shlex.split(entry["command"])
        given = settings_of(value for option, value in pairwise(words) if option == "--set")
        model, config = Path(entry["model"]), BuildConfig.from_dict(entry["configuration"])
        spec = published(model.name) if model.name in SHAPES else open_checkpoint(ROOT / "models" / model).spec
        settings = {"sequences": int(words[words.index("--batch") + 1])} | given if "--batch" in words else given
        assert fit(spec.with_context(config.shape.context), entry["board"], **settings).config == config, path.name
        checked += 1
    assert checked >= 24


def test_stored_results_are_readable_and_say_whether_they_are_stale():
    """A stale result does not fail: it is shown as stale until it is measured again."""
    for path, entry, state in results.stored():
        assert state == stored.CURRENT or state.startswith("stale: "), path
        assert path.parent.name == entry["board"] and stored.configuration_of(entry) is not None
        simulated = entry["kind"] == "rtl-simulated"
        assert (simulated or entry["kind"] == "synthesised") and entry["command"].startswith("tritloom bench")
        assert entry["versions"]["verilator" if simulated else "pyosys"]
        assert not simulated or entry["measured"]["saturations"] == 0
        if state != stored.CURRENT:
            print(f"{path.name}: {state}")
