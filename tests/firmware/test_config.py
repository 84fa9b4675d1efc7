"""What a configuration may be: numbers of any size are judged before anything is built."""

import dataclasses
import json
from typing import Any

import pytest

from synthetic import TINY
from tritloom.firmware.config import BIASES, LIMITS, SHAPE_LIMITS, BuildConfig, ConfigError, ModelShape

NUMBERS = [field.name for field in dataclasses.fields(BuildConfig) if field.type == "int"]
GOOD: dict[str, Any] = dict(shape=TINY, lanes=1, tables=5, rows_per_cycle=4, vector_lanes=4, attention_macs=8, mem_bytes=16)


def test_every_number_has_limits():
    assert set(LIMITS) == set(NUMBERS)
    assert {*SHAPE_LIMITS, "group_size"} == {field.name for field in dataclasses.fields(ModelShape) if field.type == "int"}


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_out_of_range_are_named(name):
    for value in (-1, 2 * LIMITS[name][1], 1 << 32, 10**18, 1 << 20_000, 1.5, "4", None, True):
        wrong: dict[str, Any] = GOOD | {name: value}
        with pytest.raises(ConfigError, match=name) as error:
            BuildConfig(**wrong)
        assert len(str(error.value)) < 300


@pytest.mark.parametrize("name, values", [
    ("vocab", (10**9, 1 << 20_000, 0)), ("hidden", (10**7,)), ("layers", (10**6,)), ("context", (10**9,)), ("ffn", (10**7, True)),
    ("group_size", (32, True, "64", -64)), ("head_norms", (1,)), ("ternary_head", (None,)),
    ("heads", (10**6, 1.0)), ("head_dim", (10**6, "64")), ("kv_heads", (10**6, 0)), ("sub_norms", (1,)), ("activation", (["silu"],)),
])
def test_models_of_absurd_size_are_refused(name, values):
    for value in values:
        with pytest.raises(ConfigError, match=f"shape.{name} must be"):
            dataclasses.replace(TINY, **{name: value})


@pytest.mark.parametrize("changes, words", [
    ({"weight_fifo_beats": 2}, "weight_fifo_beats must be from 4"), ({"read_fifo_beats": 8192}, "read_fifo_beats must be from 4 to 4096"),
    ({"program_words": 1}, "program_words must be from 2"), ({"onchip_bytes": 4096}, "leave it out, or give memory=onchip"),
    ({"shape": dataclasses.replace(TINY, ffn=33_000), "rows_per_cycle": 1}, "takes more than 65535 steps of 1 rows"),
    ({"shape": dataclasses.replace(TINY, ffn=33_000), "block_rows": 4}, "cuts 66000 rows into 16500 blocks: at most 1024"),
    ({"shape": dataclasses.replace(TINY, vocab=1 << 20), "block_rows": 4, "shortlist": 2}, "head's 1048576 rows into 262144 blocks"),
    ({"mem_bytes": 512, "mem_ports": 16}, "mem_ports must be from 1 to 8"),
])
def test_what_the_hardware_cannot_be_is_refused_here_and_not_in_the_middle_of_a_build(changes, words):
    with pytest.raises(ConfigError, match=words):
        BuildConfig(**GOOD | changes)


@pytest.mark.parametrize("text", ["[" * 10_000, '{"lanes": 1' + "0" * 5000 + "}", "[]", "7", "{", '{"shape": 7}'])
def test_what_is_no_configuration_is_said(text):
    with pytest.raises(ConfigError):
        BuildConfig.from_json(text)
    assert BuildConfig.from_json(json.dumps(BuildConfig(**GOOD).to_dict())) == BuildConfig(**GOOD)


def test_a_shape_s_later_fields_change_no_machine_from_before():
    plain = BuildConfig(**GOOD)
    assert f"{plain.digest:08x}" == "50d3180c"  # what it was before there were such fields
    assert not {"group_size", "head_norms", "ternary_head"} & set(plain.to_dict()["shape"]) and plain.to_dict()["shape"] == TINY.to_dict()
    wide = dataclasses.replace(TINY, hidden=64, heads=8, ffn=128, group_size=64, head_norms=True)
    grouped = dataclasses.replace(plain, shape=wide)
    assert grouped.to_dict()["shape"].items() >= {"group_size": 64, "head_norms": True}.items()
    assert BuildConfig.from_json(grouped.to_json()) == grouped
    exponents = dataclasses.replace(grouped, group_exponents=3)
    assert "group_exponents" not in grouped.to_dict() and exponents.to_dict()["group_exponents"] == 3 and exponents.digest != grouped.digest
    assert BuildConfig.from_json(exponents.to_json()) == exponents
    others = [dataclasses.replace(wide, **change) for change in ({"group_size": 0}, {"head_norms": False}, {"ternary_head": True})]
    assert len({grouped.digest, *(dataclasses.replace(plain, shape=shape).digest for shape in others)}) == 4
    biased = dataclasses.replace(grouped, shape=dataclasses.replace(wide, biases=("qkv", "down")))
    assert "biases" not in grouped.to_dict()["shape"] and biased.digest != grouped.digest
    assert BuildConfig.from_json(biased.to_json()) == biased


def test_a_bias_before_the_residual_stream_is_a_group_of_inputs():
    shape = dataclasses.replace(TINY, hidden=128, heads=16, ffn=256, group_size=64)
    assert shape.bias_inputs == 0 and shape.max_inputs == 256
    for biases, more, longest in ((("qkv",), (64, 0, 0, 0), 256), (("gate_up",), (0, 0, 64, 0), 256), (("o", "down"), (0, 0, 0, 0), 256),
                                  (("qkv", "o", "gate_up", "down"), (64, 0, 64, 0), 256)):
        biased = dataclasses.replace(shape, biases=biases)
        assert tuple(biased.inputs_of(name) - shape.inputs_of(name) for name in BIASES) == more and biased.max_inputs == longest
        gains = [biased.gains_before(name) - shape.gains_before(name) for name in BIASES]
        assert gains == [0, 128 * ("o" in biases), 0, 128 * ("down" in biases)]
    assert dataclasses.replace(shape, ffn=64, hidden=256, biases=("qkv",)).max_inputs == 320
    with pytest.raises(ConfigError, match="biases are of whole words: vector_lanes .128. must divide 64"):
        BuildConfig(shape=dataclasses.replace(shape, hidden=1024, head_dim=128, heads=1, kv_heads=1, biases=("qkv",)), tables=2,
                    vector_lanes=128, attention_macs=128, mem_bytes=128)


@pytest.mark.parametrize("changes, words", [
    ({"group_size": 64}, "shape.hidden .32. must be a multiple of shape.group_size .64."),
    ({"group_size": 128, "hidden": 128, "head_dim": 16, "ffn": 128}, "shape.q_size .64. must be a multiple"),
    ({"ternary_head": True}, "ternary_head is by groups"),
    ({"biases": ("qkv",)}, "shape.biases are of matrices with scales by groups"),
    ({"biases": ("o", "qkv")}, "shape.biases must be some of qkv, o, gate_up, down, in this order"),
    ({"biases": "qkv"}, "shape.biases must be some of"),
    ({"biases": ["head"]}, "shape.biases must be some of"),
])
def test_groups_are_whole(changes, words):
    with pytest.raises(ConfigError, match=words):
        dataclasses.replace(TINY, **changes)


def test_one_arithmetic_unit_names_what_it_does_not_take():
    shape = dataclasses.replace(TINY, hidden=128, heads=8, head_dim=128, ffn=128, group_size=64)
    for changes, what in (({"biases": ("o",)}, "biases"), ({}, "scales by groups"),
                          ({"group_size": 0, "head_norms": True}, "norms of heads")):
        with pytest.raises(ConfigError, match=f"vector_lanes 1 takes no models with {what}: give vector_lanes=2 or more"):
            BuildConfig(shape=dataclasses.replace(shape, **changes), vector_lanes=1, lanes=1, attention_macs=4)


def test_exponents_are_of_groups():
    with pytest.raises(ConfigError, match="leave group_exponents out"):
        BuildConfig(shape=TINY, group_exponents=1, vector_lanes=4, attention_macs=8)
    shape = dataclasses.replace(TINY, hidden=128, heads=8, head_dim=128, ffn=128, group_size=64)
    with pytest.raises(ConfigError, match="vector_lanes .128. must divide shape.group_size .64."):
        BuildConfig(shape=shape, group_exponents=1, vector_lanes=128, attention_macs=128, mem_bytes=128)
    with pytest.raises(ConfigError, match="group_exponents must be from 0 to 7, not 8"):
        BuildConfig(shape=shape, group_exponents=8)
