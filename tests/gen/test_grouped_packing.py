"""Codes of two bits become the very beats that the contract makes of the same trits."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tritloom.firmware.packing import grouped_word_bytes, pack_grouped
from tritloom.gen.grouped_packing import pack_grouped_codes
from tritloom.gen.models.codes import codes_of, trits_of, used

pytestmark = pytest.mark.needs("numba")


def matrix(seed, rows, groups, group_size):
    rng = np.random.default_rng(seed)
    trits = rng.integers(-1, 2, (rows, groups * group_size), np.int8)
    return trits, rng.integers(0, 1 << 16, (rows, groups)).astype(np.uint16)


@given(st.integers(1, 90), st.integers(1, 4), st.sampled_from([64, 128]), st.integers(1, 50), st.sampled_from([1, 2, 3, 4, 5, 8, 9]),
       st.sampled_from(["index5", "trit5"]), st.sampled_from([2, 4, 16, 64, 256]), st.integers(0, 2**32 - 1))
@settings(max_examples=200, deadline=None)
def test_beats_are_the_contract_s(rows, groups, group_size, tables, rows_per_cycle, packing, mem_bytes, seed):
    while grouped_word_bytes(tables, rows_per_cycle, group_size, packing) > mem_bytes and tables > 1:
        tables //= 2
    if grouped_word_bytes(tables, rows_per_cycle, group_size, packing) > mem_bytes:
        rows_per_cycle = 1
    trits, scales = matrix(seed, rows, groups, group_size)
    layout = (scales, group_size, tables, rows_per_cycle, packing, mem_bytes)
    assert np.array_equal(pack_grouped_codes(codes_of(trits), *layout), pack_grouped(trits, *layout))


def test_steps_of_a_long_matrix():
    trits, scales = matrix(1, 1003, 3, 128)
    layout = (scales, 128, 22, 5, "trit5", 64)
    assert np.array_equal(pack_grouped_codes(codes_of(trits), *layout), pack_grouped(trits, *layout))


def test_scales_of_another_matrix_are_refused():
    trits, scales = matrix(0, 4, 2, 64)
    with pytest.raises(ValueError, match="are not those of codes"):
        pack_grouped_codes(codes_of(trits), scales[:, :1], 64, 22, 5, "trit5", 64)


def test_what_would_be_written_elsewhere_is_refused():
    trits, scales = matrix(0, 33, 2, 128)
    with pytest.raises(ValueError, match="a word of 52 bytes does not fit mem_bytes 50"):
        pack_grouped_codes(codes_of(trits), scales, 128, 40, 4, "trit5", 50)
    with pytest.raises(ValueError, match="groups of 96"):
        pack_grouped_codes(codes_of(trits[:, :192]), scales, 96, 8, 4, "trit5", 64)


def test_no_rows():
    trits, scales = matrix(0, 0, 2, 128)
    layout = (scales, 128, 22, 4, "trit5", 64)
    assert pack_grouped_codes(codes_of(trits), *layout).shape == pack_grouped(trits, *layout).shape == (0, 64)


def test_codes_hold_their_trits():
    trits, _ = matrix(3, 50, 3, 64)
    trits[7, 64:128] = 0
    codes = codes_of(trits)
    assert codes.dtype == np.uint8 and codes.shape == (50, 48) and (trits_of(codes) == trits).all()
    assert codes[0, 0] == sum(int(trit + 1) << 2 * place for place, trit in enumerate(trits[0, :4]))
    assert [tuple(place) for place in np.argwhere(~used(codes, 3))] == [(7, 1)]
    assert (trits_of(np.array([[0xFF]], np.uint8)) == 2).all()
