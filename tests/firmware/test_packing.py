"""Ternary weight codes and packings: inverses of each other, and as docs/numbers.md lays them out."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tritloom.firmware import packing
from tritloom.firmware.config import BuildConfig, ModelShape

SHAPE = ModelShape(hidden=64, ffn=128, layers=1, heads=2, kv_heads=1, head_dim=32, vocab=64, context=64,
                   activation="silu", sub_norms=False)


def random_trits(seed, *shape):
    return np.random.default_rng(seed).integers(-1, 2, shape, np.int8)


def test_codes_enumerate_all_triples():
    triples = np.array([(a, b, c) for a in (-1, 0, 1) for b in (-1, 0, 1) for c in (-1, 0, 1)], np.int8)
    codes = packing.encode_triples(triples)
    assert sorted(codes) == list(packing.VALID_CODES)
    assert (packing.decode_codes(codes) == triples).all()


def test_serpentine_neighbours_differ_by_one_step():
    steps = np.abs(np.diff(packing.SERPENTINE, axis=0))
    assert (steps.sum(1) == 1).all()
    for triple in packing.SERPENTINE[1:]:
        assert next(t for t in triple if t) == 1


@given(st.integers(1, 90), st.sampled_from(["index5", "trit5"]), st.integers(0, 2**32 - 1))
@settings(max_examples=150, deadline=None)
def test_words_round_trip(n, form, seed):
    codes = packing.encode_triples(random_trits(seed, 7, n, 3))
    words = packing.pack_codes(codes, form)
    assert words.shape == (7, packing.word_bytes(n, form))
    assert (packing.unpack_codes(words, n, form) == codes).all()
    wider = np.concatenate([words, np.full((7, 5), 0xA5, np.uint8)], 1)
    assert (packing.unpack_codes(wider, n, form) == codes).all()


@pytest.mark.parametrize("form", ["index5", "trit5"])
def test_zero_bytes_are_zero_weights(form):
    assert not packing.pack_codes(np.zeros((1, 13), np.uint8), form).any()
    assert not packing.unpack_codes(np.zeros((1, 64), np.uint8), 52, form).any()


def test_index5_is_little_endian():
    codes = np.array([1, 2, 3, 17, 29, 4, 5, 6, 7], np.uint8)
    value = sum(int(c) << 5 * i for i, c in enumerate(codes))
    assert packing.pack_codes(codes, "index5").tobytes() == value.to_bytes(6, "little")


def test_trit5_bytes_as_documented():
    """The RTL's decoder, written out: escape, pairs and the five codes of three bytes."""
    digit = {0: 0, 1: 1, -1: 2}
    codes = packing.encode_triples(random_trits(5, 500, 5, 3))
    for word, five in zip(packing.pack_codes(codes, "trit5"), codes, strict=True):
        six = [digit[int(t)] for t in packing.decode_codes(five[3:]).reshape(-1)]
        for b, byte in enumerate(int(x) for x in word):
            low, high = byte & 31, byte >> 5
            escape = low >> 1 & 7 == 7
            assert (low & 17 | high << 1 if escape else low) == five[b]
            assert (8 if escape else high) == 3 * six[2 * b] + six[2 * b + 1]


@given(st.integers(1, 40), st.integers(1, 70), st.integers(1, 6), st.sampled_from([1, 2, 4, 8]),
       st.sampled_from(["index5", "trit5"]), st.integers(0, 2**32 - 1))
@settings(max_examples=100, deadline=None)
def test_matrix_round_trip(rows, inputs, tables, rows_per_cycle, form, seed):
    trits = random_trits(seed, rows, inputs)
    beats = packing.pack_matrix(trits, tables, rows_per_cycle, form, 64)
    assert beats.shape == (-(-inputs // (3 * tables)) * -(-rows // rows_per_cycle), 64)
    assert (packing.unpack_matrix(beats, rows, inputs, tables, rows_per_cycle, form) == trits).all()


def test_matrix_order():
    """Beat tile*steps + step, code row*tables + table: a single trit is found where the contract puts it."""
    for row, column in ((0, 0), (5, 7), (10, 39), (3, 30)):
        trits = np.zeros((11, 40), np.int8)
        trits[row, column] = -1
        beats = packing.pack_matrix(trits, 5, 2, "index5", 8)
        codes = packing.unpack_codes(beats, 10, "index5")
        (beat,), (code,) = np.nonzero(codes)[:1], np.nonzero(codes)[1:]
        tile, inside = divmod(column, 15)
        assert beat == [tile * 6 + row // 2]
        assert code == [row % 2 * 5 + inside // 3]
        assert codes[beat, code] == packing.encode_triples(np.eye(3, dtype=np.int8)[inside % 3] * -1)


@pytest.mark.parametrize("form", ["index5", "trit5"])
@pytest.mark.parametrize("tables, rows", [(13, 4), (16, 2), (5, 1), (3, 8), (1, 1)])
def test_word_size_agrees_with_configuration(form, tables, rows):
    config = BuildConfig(shape=SHAPE, tables=tables, rows_per_cycle=rows, packing=form, mem_bytes=64)
    assert packing.word_bytes(tables * rows, form) == config.word_bytes


@given(st.integers(1, 40), st.integers(1, 4), st.sampled_from([64, 128]), st.integers(1, 50), st.sampled_from([1, 2, 4, 5, 8]),
       st.sampled_from(["index5", "trit5"]), st.sampled_from([8, 16, 64, 256]), st.integers(0, 2**32 - 1))
@settings(max_examples=100, deadline=None)
def test_grouped_round_trip(rows, groups, group_size, tables, rows_per_cycle, form, mem_bytes, seed):
    tables = max(1, min(tables, 8 * mem_bytes // (5 * rows_per_cycle) // 2))
    trits = random_trits(seed, rows, groups * group_size)
    scales = np.random.default_rng(seed).integers(0, 1 << 16, (rows, groups)).astype(np.uint16)
    layout = (group_size, tables, rows_per_cycle, form)
    beats = packing.pack_grouped(trits, scales, *layout, mem_bytes)
    steps, tile = -(-rows // rows_per_cycle), packing.tile_inputs(tables, group_size)
    assert tile <= 3 * tables and group_size % tile == 0 and (tile == group_size or 2 * tile > 3 * tables)
    assert beats.shape == (groups * (packing.group_beats(steps, rows_per_cycle, mem_bytes) + group_size // tile * steps), mem_bytes)
    got, found = packing.unpack_grouped(beats, rows, groups * group_size, *layout)
    assert (got == trits).all() and (found == scales).all()
    with pytest.raises(ValueError, match="beats, not"):
        packing.unpack_grouped(np.tile(beats, (groups + 1, 1))[: groups * (len(beats) // groups + 1)], rows, groups * group_size, *layout)


@pytest.mark.parametrize("steps, rows_per_cycle, mem_bytes, together, beats", [
    (1, 4, 32, 4, 1), (4, 4, 32, 4, 1), (5, 4, 32, 4, 2), (100, 1, 8, 4, 25), (10, 2, 4, 1, 10), (3, 8, 8, 1, 6), (3, 5, 16, 1, 3),
    (13, 5, 64, 6, 3), (7, 5, 8, 1, 14),
])
def test_beats_of_scales(steps, rows_per_cycle, mem_bytes, together, beats):
    """As many steps' scales side by side as fit, or a step's in several beats."""
    assert packing.scale_steps(rows_per_cycle, mem_bytes) == together
    assert packing.group_beats(steps, rows_per_cycle, mem_bytes) == beats


def test_order_of_groups():
    """A group's scales, then its tiles; then the next group's."""
    trits, scales = np.zeros((5, 256), np.int8), np.arange(1, 11, dtype=np.uint16).reshape(5, 2)
    trits[3, 130] = 1
    beats = packing.pack_grouped(trits, scales, 128, 22, 2, "index5", 32)  # 64 inputs a tile, two tiles a group, three steps
    assert len(beats) == 2 * (1 + 2 * 3)
    assert beats[0].view("<u2")[:6].tolist() == [1, 3, 5, 7, 9, 0] and beats[7].view("<u2")[:6].tolist() == [2, 4, 6, 8, 10, 0]
    assert np.nonzero(beats.any(-1))[0].tolist() == [0, 7, 9]  # row 3 is in the second step, column 130 in the first tile
    codes = packing.unpack_codes(beats[9], 44, "index5")
    assert np.nonzero(codes)[0].tolist() == [22] and packing.decode_codes(codes[22]).tolist() == [0, 0, 1]


def test_scales_of_another_matrix_are_refused():
    for inputs, shape in ((100, (4, 1)), (128, (4, 1)), (128, (3, 2))):
        with pytest.raises(ValueError, match="are not those of a matrix"):
            packing.pack_grouped(random_trits(0, 4, inputs), np.ones(shape, np.uint16), 64, 5, 2, "trit5", 16)


def test_too_wide_a_word_is_refused():
    with pytest.raises(ValueError, match="does not fit mem_bytes 16"):
        packing.pack_matrix(random_trits(0, 4, 4), 13, 4, "trit5", 16)
    with pytest.raises(ValueError, match="packing must be"):
        packing.word_bytes(5, "base3")
