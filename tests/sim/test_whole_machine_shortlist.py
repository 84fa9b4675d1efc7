"""The whole machine with a short-list: verilated RTL, emulator and integer model write the same tokens, vector by vector."""


import numpy as np
import pytest

from machines import MODEL, SMALL, simulated
from tritloom.firmware.config import BuildConfig
from tritloom.firmware.layout import head_row_blocks
from tritloom.gen.models import open_checkpoint
from tritloom.gen.pack import quantise
from tritloom.host.session import Session, sampling
from tritloom.sim.check.verify import compare
from tritloom.sim.integer_model import IntegerModel

pytest.importorskip("amaranth")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Image, machine and reference of stories-260k with two groups of two lanes and 16 candidates of 512 tokens, scanned in blocks."""
    checkpoint = open_checkpoint(MODEL, context=64)
    config = BuildConfig(shape=checkpoint.spec.shape, **SMALL, lanes=2, groups=2, attention_lanes=1, result_parts=2, block_rows=96,
                         attention_rows=2, shortlist=16)
    image, backend = simulated(checkpoint, config, tmp_path_factory.mktemp("machine"))
    yield image, backend, IntegerModel.of(quantise(checkpoint), config)
    backend.close()


def prompt(length):
    return np.random.default_rng(length).integers(3, 512, length).tolist()


@pytest.mark.parametrize("length, tokens, choice", [
    (1, 4, {}), (2, 3, {}), (9, 6, {}), (5, 6, dict(temperature=1.0, seed=1)), (3, 6, dict(temperature=0.7, top_k=5, seed=2)),
    (4, 6, dict(temperature=1.5, top_p=0.8, seed=3)),
], ids=str)
def test_tokens_and_vectors(built, length, tokens, choice):
    image, backend, reference = built
    assert len(head_row_blocks(image.config)) > 1
    found = compare(backend, image, reference, prompt(length), tokens, sampling=sampling(**choice))
    assert found.first_difference() is None and found.equal
    assert found.compared_tokens == tokens


def test_on_after_a_generation_that_was_stopped(built):
    image, backend, reference = built
    with Session(backend, image) as session:
        for taken in range(1, 4):
            tokens = session.generate(prompt(4), 20)
            for _ in range(taken):
                next(tokens)
            tokens.close()
            session.reset()
        got = list(session.generate(prompt(4), 3))
        got += session.generate(prompt(6), 3)
    reference.reset()
    expected = reference.generate(prompt(4), 3)
    assert got == expected + reference.generate([expected[-1], *prompt(6)], 3)
