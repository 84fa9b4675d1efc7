"""The machine whose arithmetic is shared in time: verilated RTL, emulator and integer model write the same tokens, vector by vector."""

import itertools
from typing import Any

import numpy as np
import pytest

import harness
from machines import MODEL, simulated
from tritloom.boards.board import load
from tritloom.firmware.assembler import assemble
from tritloom.firmware.config import BuildConfig, ConfigError
from tritloom.firmware.isa import Unit
from tritloom.gen.fit.cost import SLOWEST_PATH_NS, resources
from tritloom.gen.fit.fit import cycles_per_pass, fit
from tritloom.gen.models import open_checkpoint
from tritloom.gen.pack import quantise
from tritloom.host.backends.emulator import EmulatorBackend
from tritloom.host.device import RESET, START, STATUS, STOP
from tritloom.host.session import Session, sampling
from tritloom.sim.check.verify import TraceReader, compare, first_difference
from tritloom.sim.integer_model import IntegerModel

CONTEXT = 64
SERIAL: dict[str, Any] = dict(lanes=1, vector_lanes=1, attention_macs=4, mem_bytes=4, tables=3, rows_per_cycle=2, sampler_candidates=8)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Image, machine and reference of stories-260k, whose caches hold two texts."""
    checkpoint = open_checkpoint(MODEL, context=CONTEXT)
    config = BuildConfig(shape=checkpoint.spec.shape, **SERIAL, sequences=2)
    image, backend = simulated(checkpoint, config, tmp_path_factory.mktemp("machine"))
    yield image, backend, IntegerModel(quantise(checkpoint))
    backend.close()


def prompt(length):
    return np.random.default_rng(length).integers(3, 512, length).tolist()


@pytest.mark.parametrize(("length", "tokens"), [(3, 2), pytest.param(17, 3, marks=pytest.mark.long)])
def test_greedy(built, length, tokens):
    image, backend, reference = built
    found = compare(backend, image, reference, prompt(length), tokens)
    assert found.first_difference() is None and found.equal
    assert found.compared_tokens == tokens


@pytest.mark.parametrize("choice", [
    pytest.param(dict(temperature=1.0, seed=1), marks=pytest.mark.long), pytest.param(dict(temperature=0.7, top_k=5, seed=2),
                                                                                      marks=pytest.mark.long),
    dict(temperature=1.5, top_p=0.8, seed=3), pytest.param(dict(temperature=2.0, top_k=3, top_p=0.4, seed=4), marks=pytest.mark.long),
], ids=str)
def test_sampling(built, choice):
    image, backend, reference = built
    found = compare(backend, image, reference, prompt(2), 3, sampling=sampling(**choice))
    assert found.first_difference() is None and found.equal


@pytest.mark.long
def test_texts_that_begin_alike(built):
    """Two texts share their first chunk of keys and values; every vector is compared."""
    image, backend, reference = built
    wanted: list[dict[str, Any]] = [
        dict(prompt=[*prompt(17), word], max_new_tokens=2, sampling=sampling(temperature=1.2, seed=word)) for word in (5, 6)]

    def together(device):
        with Session(device, image) as session, session.batch() as batch:
            texts = [batch.add(**each) for each in wanted]
            for _ in batch:
                pass
            return [text.tokens for text in texts]

    expected = []
    for each in wanted:
        reference.reset()
        expected.append(reference.generate(each["prompt"], 2, each["sampling"], image.config.sampler_candidates))
    events = []
    assert together(EmulatorBackend(image.config, image.map.total_bytes, trace=events.append)) == expected
    machine = backend.machine
    machine.trace_enable(True)
    machine.trace(clear=True)
    assert together(backend) == expected
    machine.trace_enable(False)
    assert first_difference(events, TraceReader(machine.trace(clear=True), 1)) is None


@pytest.mark.long
def test_cycles_are_as_projected(built):
    """A token's cycles, and a prompt's, within a tenth of what `fit` says."""
    image, backend, _ = built
    with Session(backend, image) as session:
        list(session.generate(prompt(30), 3))
        measured = session.stats()
    config, position = image.config, 32
    token = sum(cycles_per_pass(config, position, 1, answers=1).values())
    assert measured.decode_cycles[-1] == pytest.approx(token, rel=0.1)
    passes = sum(sum(cycles_per_pass(config, n, 1, answers=int(n == 30)).values()) for n in range(1, 31))
    assert measured.prefill_cycles == pytest.approx(passes, rel=0.1)


@pytest.mark.long
@pytest.mark.parametrize("unit", [Unit.VECTOR, Unit.MATMUL, Unit.DOT, Unit.SAMPLER, Unit.WRITES], ids=str)
def test_a_reset_from_every_unit(built, unit):
    """The memory stops answering while a unit is busy, before or after a STOP; a reset waits for it, then the machine works."""
    image, backend, reference = built
    machine, status = backend.machine, lambda: backend.read("STATUS")
    pick = np.random.default_rng(harness.seed_from_environment() + unit)
    with Session(backend, image) as session:
        for write, stop in itertools.product((False, True), (False, True)):
            session.reset()
            tokens = session.generate(prompt(2), 20)
            next(tokens)
            machine.run(int(pick.integers(1, 5000)), 0)
            assert any(STATUS["UNIT_BUSY"].get(status()) & unit for _ in range(100_000))
            machine.fail(0, write=write, count=1 << 40, response="okay", stall=None)
            machine.run(int(pick.choice((0, 20, 5000))), 0)
            if stop:
                backend.write("CONTROL", STOP)
                machine.run(3000, 0)
            backend.write("CONTROL", RESET)
            machine.run(2000, 0)
            machine.heal()
            machine.run(3000, 0)
            assert status() & 0xFFFF == 0 and backend.read("MEMORY_PORTS") == 0
        session.reset()
        reference.reset()
        assert list(session.generate(prompt(2), 2)) == reference.generate(prompt(2), 2)


def test_a_stop_from_every_command(built):
    """Programs that wait for what never comes, and for what comes."""
    image, backend, reference = built
    machine = backend.machine
    for text, stop in itertools.product(("li r1, 1\n dot.head count=r1\n wait dot", "sample noise=r1\n token r2",
                                         "li r1, 1\n vector.param length=3 count=r1\n wait vector"), (False, True)):
        backend.write("PROGRAM_ADDRESS", 0)
        for word in assemble(text):
            backend.write("PROGRAM_LOW", word & 0xFFFFFFFF)
            backend.write("PROGRAM_HIGH", word >> 32)
        backend.write("ENTRY", 0)
        backend.write("CONTROL", START)
        machine.run(3000, 0)
        if stop:
            backend.write("CONTROL", STOP)
            machine.run(3000, 0)
        backend.write("CONTROL", RESET)
        machine.run(3000, 0)
        assert backend.read("STATUS") & 0xFFFF == 0 and backend.read("TOKEN_LEVEL") == 0, text
    with Session(backend, image) as session:
        tokens = session.generate(prompt(4), 9)
        next(tokens)
        tokens.close()
        session.reset()
        reference.reset()
        assert list(session.generate(prompt(3), 2)) == reference.generate(prompt(3), 2)


def test_fit_takes_one_lane_for_it():
    """By name: a board's lanes are as many as it says, but one here; other machines are refused."""
    spec = open_checkpoint(MODEL, context=CONTEXT).spec
    found = fit(spec, load("ecp5-85f"), vector_lanes=1)
    assert found.fits and found.config.serial and found.config.lanes == 1
    assert 0 < found.predicted["lut"] < 9000
    assert found.clock.slowest_path_ns == SLOWEST_PATH_NS["ecp5-small"][0][2] > SLOWEST_PATH_NS["ecp5"][0][2]
    with pytest.raises(ConfigError, match="vector_lanes 1 shares one arithmetic unit in time, which takes lanes=1, not 2"):
        fit(spec, load("ecp5-85f"), vector_lanes=1, lanes=2)
    with pytest.raises(ConfigError, match="no costs of machines with vector_lanes=1 on 'xcup'"):
        resources(found.config, "xcup")
