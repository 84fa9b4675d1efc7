"""The short-list LM head: its integers, and how often it misses the int8 head's choice."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from synthetic import TINY, hugging_face, weights
from tritloom.firmware import integer
from tritloom.firmware.config import BuildConfig, ConfigError
from tritloom.firmware.errors import InputError
from tritloom.firmware.layout import flat_memory, head_row_blocks
from tritloom.gen.models import open_checkpoint
from tritloom.gen.models.shapes import memory_pieces
from tritloom.gen.pack import pack, quantise
from tritloom.gen.quantised import Table, ternary_rows
from tritloom.host.backends.emulator import EmulatorBackend
from tritloom.host.image import open_image, write_image
from tritloom.host.session import Session, sampling
from tritloom.sim.fidelity import short_list_quality
from tritloom.sim.integer_model import IntegerModel

MODELS = Path(__file__).parents[2] / "models"


def test_the_short_list_is_the_greatest_by_logit_then_lower_id():
    logits = np.array([3, 7, 7, -2, 7, 3, 0, 3])
    assert integer.short_list(logits, 4).tolist() == [0, 4, 2, 1]
    assert integer.short_list(logits, 8).tolist() == [3, 6, 7, 5, 0, 4, 2, 1]
    ranks = integer.ternary_ranks(np.broadcast_to(logits, (8, 8)), np.arange(8))
    assert integer.short_list(logits, 8)[::-1].tolist() == np.argsort(ranks).tolist()


def test_ternary_rows_round_to_nearest_of_the_mean():
    table = quantise(open_checkpoint(MODELS / "stories-260k")).head
    assert isinstance(table, Table)
    w = table.codes.astype(np.float64) * table.row_scale[:, None]
    assert np.array_equal(ternary_rows(table), np.clip(np.rint(w / np.abs(w).mean()), -1, 1))


@pytest.mark.parametrize("mode", [dict(), dict(top_k=3), dict(top_p=30000), dict(top_k=6, top_p=50000)], ids=str)
def test_sampling_does_not_depend_on_the_order_but_through_the_mass(mode):
    rng = np.random.default_rng(1)
    for heat in (integer.GREEDY.temperature_scale, integer.uf_from_float(1.0)):
        settings = integer.Sampling(heat, mode.get("top_k", 0), mode.get("top_p", 65536), 9)
        for position in range(20):
            logits, ids = rng.integers(-3, 4, 40) * 256, rng.permutation(100)[:40]
            order = np.argsort(ids)
            got = [integer.sample(logits[o], integer.uf_from_float(2.0**-6), settings, position, 8, ids[o]) for o in (order, order[::-1])]
            assert got[0] == got[1] or settings.top_p < 65536


@pytest.fixture(scope="module", params=[(2, True, 259, 7), (32, False, 259, 6), (256, True, 259, 6), (16, False, 40, 1)],
                ids=["two", "untied", "many", "one block"])
def machine(request, tmp_path_factory):
    """Image and model; a block has at most 48 rows."""
    shortlist, tied, vocab, blocks = request.param
    folder = tmp_path_factory.mktemp("shortlist")
    shape = dataclasses.replace(TINY, vocab=vocab)
    checkpoint = open_checkpoint(hugging_face(folder / "model", shape, weights(shape), tied=tied))
    config = BuildConfig(shape=shape, lanes=2, tables=5, rows_per_cycle=4, vector_lanes=4, attention_macs=8, mem_bytes=16,
                         sampler_candidates=8, shortlist=shortlist)
    assert sum(head_row_blocks(config)) == vocab and len(head_row_blocks(config)) == blocks
    packed = pack(checkpoint, config)
    write_image(folder / "image", config=config, spec=packed.spec.to_dict(), sections=packed.sections)
    return open_image(folder / "image"), quantise(checkpoint)


@pytest.mark.slow
@pytest.mark.parametrize("choice", [
    dict(temperature=0), dict(temperature=1.0, seed=1), dict(temperature=0.7, top_k=5), dict(temperature=1.5, top_p=0.8),
], ids=str)
def test_the_emulator_chooses_from_the_short_list(machine, choice):
    image, model = machine
    with Session(EmulatorBackend(image.config, image.map.total_bytes), image) as session:
        got = list(session.generate([5, 6, 7], 8, sampling=sampling(**choice)))
        got += session.generate([9], 4, sampling=sampling(**choice))
        with pytest.raises(InputError, match="checks no drafts"):
            session.generate([9], 4, drafts=1)
    reference = IntegerModel.of(model, image.config)
    expected = reference.generate([5, 6, 7], 8, sampling(**choice), 8)
    assert got == expected + reference.generate([expected[-1], 9], 4, sampling(**choice), 8)


def test_random_weights_fill_the_same_memory(machine):
    image, model = machine
    config, spec = image.config, model.spec
    random = flat_memory(memory_pieces(spec, config, image.map), image.map.total_bytes, fill=0xA5)
    real = flat_memory(image.memory(), image.map.total_bytes, fill=0xA5)
    beats = config.mem_bytes
    for region in image.map.regions.values():
        if region.loaded:
            part = slice(region.base, region.end)
            assert ((random[part] == 0xA5).reshape(-1, beats).all(-1) == (real[part] == 0xA5).reshape(-1, beats).all(-1)).all()


@pytest.mark.slow
def test_a_list_of_the_whole_vocabulary_misses_nothing():
    checkpoint = open_checkpoint(MODELS / "stories-260k")
    text = (MODELS / "validation.txt").read_text("utf-8")
    found = [short_list_quality(checkpoint, text, 300, k) for k in (2, 16, 512)]
    assert [f.missed > 0 for f in found] == [True, found[1].worst_rank >= 16, False]
    assert found[0].missed > found[1].missed and len({(f.worst_rank, f.mean_rank, f.tokens) for f in found}) == 1


@pytest.mark.parametrize("k", [1, 3, 48, -2, 1024])
def test_lengths_are_validated(k):
    shape = open_checkpoint(MODELS / "stories-260k").spec.shape
    with pytest.raises(ConfigError, match=r"shortlist .*\b(512|2)\b"):
        BuildConfig(shape=shape, attention_macs=16, vector_lanes=8, mem_bytes=32, shortlist=k)
