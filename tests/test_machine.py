"""The whole machine: verilated RTL, emulator and integer model write the same tokens, vector by vector.

One small machine is compiled for all tests here; `make equality` runs more machines and models, for longer.
"""

from pathlib import Path

import numpy as np
import pytest

import oracle
from tritloom.firmware.config import BuildConfig
from tritloom.firmware.integer import GREEDY
from tritloom.gen.generate import cached_verilog
from tritloom.gen.models import open_checkpoint
from tritloom.gen.pack import pack, quantise
from tritloom.host.backend import DeviceError, InputError
from tritloom.host.image import Image, write_image
from tritloom.host.session import Session, sampling
from tritloom.sim.backends import EmulatorBackend, SimBackend
from tritloom.sim.integer_model import IntegerModel
from tritloom.sim.verify import TraceReader, compare, first_difference

MODEL = Path(__file__).parents[1] / "models" / "stories-260k"
CONTEXT = 128


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Image, machine and reference of stories-260k: two groups of three lanes, of which two attend at a time; results read in two parts
    and written in two turns, matrices in blocks, gate and up's in places of blocks before; two keys side by side, two memory ports."""
    folder = tmp_path_factory.mktemp("machine")
    checkpoint = open_checkpoint(MODEL, context=CONTEXT)
    config = BuildConfig(shape=checkpoint.spec.shape, lanes=3, groups=2, attention_lanes=2, tables=5, rows_per_cycle=4, block_rows=64,
                         result_parts=2, result_turns=2, vector_lanes=8, attention_macs=16, attention_rows=2, mem_bytes=16, mem_ports=2,
                         weight_fifo_beats=64, sampler_candidates=8, sequences=3)
    packed = pack(checkpoint, config)
    write_image(folder / "image", config=config, spec=checkpoint.spec.to_dict(), sections=packed.sections)
    build = Path(__file__).parents[1] / "build"
    backend = SimBackend.build(config, cached_verilog(config, build / "verilog"), memory_bytes=packed.map.total_bytes,
                               build_dir=build / "verilated")
    yield Image.open(folder / "image"), backend, IntegerModel(quantise(checkpoint))
    backend.close()


def prompt(length):
    return np.random.default_rng(length).integers(3, 512, length).tolist()


@pytest.mark.parametrize("length, tokens", [(1, 4), (2, 2), (3, 3), (4, 3), (6, 2), (40, 6)])
def test_greedy(built, length, tokens):
    image, backend, reference = built
    found = compare(backend, image, reference, prompt(length), tokens)
    assert found.first_difference() is None and found.equal
    assert found.compared_tokens == tokens


@pytest.mark.parametrize("choice", [
    dict(temperature=1.0, seed=1), dict(temperature=0.7, top_k=5, seed=2), dict(temperature=1.5, top_p=0.8, seed=3),
], ids=str)
def test_sampling(built, choice):
    image, backend, reference = built
    found = compare(backend, image, reference, prompt(5), 6, sampling=sampling(**choice))
    assert found.first_difference() is None and found.equal


def test_a_generation_goes_on_where_the_last_one_ended(built):
    image, backend, reference = built
    first, second = prompt(6), prompt(7)
    with Session(backend, image) as session:
        got = list(session.generate(first, 3))
        got += session.generate(second, 3)
    reference.reset()
    expected = reference.generate(first, 3)
    assert got == expected + reference.generate([expected[-1], *second], 3)


@pytest.mark.parametrize(("drafts", "wrong", "passes"), [(1, 1000, 6), (2, 5, 5)])
def test_drafts_change_nothing_but_the_number_of_passes(built, drafts, wrong, passes):
    image, backend, reference = built
    reference.reset()
    expected = reference.generate(prompt(4), 12)
    with Session(backend, image) as session, oracle.foretold(prompt(4) + expected, wrong):
        got = list(session.generate(prompt(4), 12, drafts=drafts))
        assert session.stats().passes == passes
        got += session.generate(prompt(3), 3)
    assert got == expected + reference.generate([expected[-1], *prompt(3)], 3)


def test_drafts_change_nothing_of_a_sampled_text(built):
    image, backend, reference = built
    choice = sampling(temperature=1.2, top_p=0.9, seed=7)
    reference.reset()
    expected = reference.generate(prompt(4), 10, choice, image.config.sampler_candidates)
    with Session(backend, image) as session, oracle.foretold(prompt(4) + expected, 5):
        assert list(session.generate(prompt(4), 10, sampling=choice, drafts=2)) == expected
        assert session.stats().passes == 4


def test_texts_together_are_those_of_each_alone(built):
    """Joining, leaving, sampling and drafts at once, every vector of the RTL beside the emulator's."""
    image, backend, reference = built
    wanted = [dict(prompt=prompt(5), max_new_tokens=6),
              dict(prompt=prompt(1), max_new_tokens=3, sampling=sampling(temperature=0.9, seed=1)),
              dict(prompt=3 * prompt(2), max_new_tokens=7, drafts=2, sampling=sampling(top_k=4, seed=2)),
              dict(prompt=prompt(3), max_new_tokens=4, sampling=sampling(temperature=1.4, top_p=0.8, seed=3))]

    def together(device):
        with Session(device, image) as session, session.batch() as batch:
            texts = [batch.add(**each) for each in wanted[:2]]
            for text, _ in batch:
                if len(texts) < len(wanted) and len(batch.texts) < 3 and len(text.tokens) > 1:
                    texts.append(batch.add(**wanted[len(texts)]))
            return [text.tokens for text in texts]

    alone = []
    for each in wanted:
        reference.reset()
        choice = each.get("sampling", GREEDY)
        alone.append(reference.generate(each["prompt"], each["max_new_tokens"], choice, image.config.sampler_candidates))
    events, machine = [], backend.machine
    with oracle.foretold(wanted[2]["prompt"] + alone[2], 4):
        assert together(EmulatorBackend(image.config, image.map.total_bytes, trace=events.append)) == alone
        machine.trace_enable(True)
        machine.trace(clear=True)
        assert together(backend) == alone
    machine.trace_enable(False)
    difference = first_difference(events, TraceReader(machine.trace(), image.config.vector_lanes))
    machine.trace(clear=True)
    assert difference is None, str(difference)


def test_a_batch_goes_on_after_an_early_break(built):
    image, backend, reference = built
    with Session(backend, image) as session, session.batch() as batch:
        texts = [batch.add(prompt(4), 5), batch.add(prompt(2), 6, sampling=sampling(top_k=3, seed=4))]
        for _ in batch:
            break
        list(batch)
        got = [text.tokens for text in texts]
    expected = []
    for ids, count, choice in ((prompt(4), 5, GREEDY), (prompt(2), 6, sampling(top_k=3, seed=4))):
        reference.reset()
        expected.append(reference.generate(ids, count, choice, image.config.sampler_candidates))
    assert got == expected


def test_a_stopped_generation_leaves_a_working_machine(built):
    image, backend, reference = built
    with Session(backend, image) as session:
        tokens = session.generate(prompt(4), 20)
        next(tokens)
        tokens.close()
        session.reset()
        got = list(session.generate(prompt(4), 3))
    reference.reset()
    assert got == reference.generate(prompt(4), 3)


def test_the_stop_token_ends_a_generation(built):
    image, backend, reference = built
    reference.reset()
    expected = reference.generate(prompt(3), 8)
    stop = expected[4]
    with Session(backend, image) as session:
        got = list(session.generate(prompt(3), 8, stop_ids=[stop]))
        assert got == expected[: expected.index(stop) + 1]
        assert list(session.generate(prompt(2), 1)), "prefetched weights were dropped"


def test_the_last_position_of_the_context(built):
    image, backend, reference = built
    ids = prompt(CONTEXT - 1)
    found = compare(backend, image, reference, ids, 2)
    assert found.equal
    with Session(backend, image) as session, pytest.raises(InputError, match="go past the context of 128"):
        session.generate(ids, 3)


def test_a_stalled_memory_changes_cycles_and_nothing_else(built):
    image, backend, reference = built
    counts = {}
    with Session(backend, image) as session:
        for seed in range(2):
            session.reset()
            session.generate(prompt(5), 3)
            tokens = list(session.generate(prompt(5), 3))
            counts[seed] = session.stats().cycles, tokens
    assert counts[0][1] == counts[1][1]


def test_the_emulator_refuses_what_the_machine_cannot_do(built):
    image, *_ = built
    software = EmulatorBackend(image.config, image.map.total_bytes)
    with Session(software, image) as session:
        software.program[0] = 16 | 4 << 24  # RESID takes parameters from bank 0, which has none
        with pytest.raises(DeviceError, match="takes parameters from bank 0, which has none"):
            list(session.generate(prompt(2), 1))
