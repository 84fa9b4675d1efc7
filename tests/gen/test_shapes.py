"""Published shapes and the random weights that stand for them."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from synthetic import GROUPED, LLAMA, TINY
from tritloom.firmware.config import BIASES, BuildConfig, ConfigError, round_up
from tritloom.firmware.layout import memory_map
from tritloom.gen.fit.fit import fit
from tritloom.gen.models.shapes import SHAPES, memory_pieces, published
from tritloom.host.backends.emulator import EmulatorBackend
from tritloom.host.session import Session
from tritloom.sim.bench.measure import RandomImage

LAYERS_MB = {"bitnet_b1_58-large": 135.9, "bitnet-b1.58-2B-4T": 416.8, "bitnet_b1_58-3B": 644.3, "Falcon3-1B-1.58bit": 226.5,
             "TriLM-99M": 9.6}
"""Ternary weights of all layers at 1.6 bits."""


def small(shape=TINY, *, tied=True, **changes):
    spec = dataclasses.replace(SHAPES["TriLM-99M"], shape=shape, tied_embeddings=tied)
    values: dict[str, Any] = dict(lanes=1, tables=5, rows_per_cycle=4, vector_lanes=4, attention_macs=8, mem_bytes=16) | changes
    return spec, BuildConfig(shape=shape, **values)


@pytest.mark.parametrize("name, megabytes", LAYERS_MB.items())
def test_sizes(name, megabytes):
    s = published(name).shape
    weights = s.layers * s.hidden * (s.qkv_rows + s.q_size + 3 * s.ffn)
    assert round(weights * 1.6 / 8e6, 1) == megabytes


@pytest.mark.parametrize("name", [name for name, spec in SHAPES.items() if not spec.shape.group_size])
def test_every_shape_has_a_machine_for_the_kv260(name):
    config = fit(published(name, 256), "kv260").config
    assert config.shape.context == 256 and config.shape.layers == SHAPES[name].shape.layers


@pytest.mark.parametrize("name, megabytes", [("Ternary-Bonsai-1.7B", 370.9), ("Ternary-Bonsai-4B", 867), ("Ternary-Bonsai-8B", 1632)])
def test_shapes_with_groups(name, megabytes):
    """Their weights at 1.6 bits and a scale a group, and as a machine's memory holds them."""
    spec = published(name, 256)
    s = spec.shape
    assert s.group_size == 128 and s.head_norms and s.ternary_head and spec.no_machine is None
    weights = s.layers * s.hidden * (s.qkv_rows + s.q_size + 3 * s.ffn) + s.vocab * s.hidden
    assert weights * (1.6 + 16 / 128) / 8e6 == pytest.approx(megabytes, rel=6e-3)  # a token's, embedding row aside
    config = BuildConfig(shape=s, lanes=1, tables=11, rows_per_cycle=4, vector_lanes=8, attention_macs=32, mem_bytes=64, mem_ports=4)
    regions = memory_map(config, tied=spec.tied_embeddings).regions
    assert set(regions) == {"weights", "embedding", "rope", "kv"}  # the head is among the weights, tied or not
    assert regions["weights"].length == pytest.approx(weights * (64 / (32 * 4) + 2 / 128), rel=2e-3)  # 32 inputs of four rows a beat
    assert regions["embedding"].length == s.vocab * round_up(s.hidden * (2 * 128 + 16) // 1024, 64)


def test_unknown_models_contexts_and_shapes_are_refused():
    with pytest.raises(ConfigError, match="no model called 'gpt'.*bitnet_b1_58-large"):
        published("gpt")
    with pytest.raises(ConfigError, match="from 1 to the model's 2048"):
        published("bitnet_b1_58-large", 4000)
    with pytest.raises(ConfigError, match="attention_macs/attention_rows .32. must divide head_dim .100."):
        fit(published("bitnet_b1_58-3B", 256), "kv260", attention_macs=32, attention_rows=1)


GROUPS = [
    (GROUPED, True), (GROUPED, False), (dataclasses.replace(GROUPED, group_size=64, ternary_head=False, head_norms=False), False),
    (dataclasses.replace(GROUPED, ffn=512, sub_norms=True, activation="relu2", head_norms=False), True),
    (dataclasses.replace(LLAMA, head_norms=True), True),
    (dataclasses.replace(GROUPED, biases=BIASES), True),
    (dataclasses.replace(GROUPED, ternary_head=False, sub_norms=True, biases=("gate_up", "down")), False),
]
"""Small shapes with groups, head norms, ternary heads and biases, or only some of these."""


@pytest.mark.needs("numba")
@pytest.mark.parametrize("shape, tied", [(TINY, True), (LLAMA, False), *GROUPS])
def test_pieces_fill_the_memory_once(shape, tied):
    spec, config = small(shape, tied=tied)
    layout = memory_map(config, tied=tied)
    filled = np.zeros(layout.total_bytes, np.uint8)
    for address, data in memory_pieces(spec, config, layout):
        assert data.dtype == np.uint8 and address % config.mem_bytes == 0
        filled[address : address + len(data)] += 1
    expected = np.zeros_like(filled)
    for region in layout.regions.values():
        expected[region.base : region.end] = 1
    assert (filled == expected).all()


@pytest.mark.needs("numba")
@pytest.mark.parametrize("shape, tied", [(TINY, True), (LLAMA, False), *GROUPS])
def test_a_machine_runs_on_random_weights_and_nothing_saturates(shape, tied):
    spec, config = small(shape, tied=tied)
    image = RandomImage.of(spec, config)
    with Session(EmulatorBackend(config, image.map.total_bytes), image) as session:
        session.assume(40)
        assert len(list(session.generate([1], 3))) == 3 and session.position == 43
        assert session.stats().saturations == 0
