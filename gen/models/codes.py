"""Ternary matrices at two bits a trit: what most containers store, and what is read, multiplied and packed without a byte for each trit."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Trits = NDArray[np.int8]
Codes = NDArray[np.uint8]
"""Trits + 1 [rows, inputs/4], four a byte, the first in its low bits; 3 is no code."""

ZEROS = np.uint8(0x55)
"""Four trits of 0."""
LOW_BITS = np.uint64(0x5555555555555555)
"""The low bit of each code of a word: also 32 trits of 0."""

_FOUR = ((np.arange(256)[:, None] >> np.array([0, 2, 4, 6]) & 3).astype(np.int8) - 1).view("<u4")[:, 0]
"""Four trits, the first in the lowest byte, of each byte of codes; code 3 comes out as 2."""


def trits_of(codes: Codes) -> Trits:
    """Trits int8 [rows, inputs]; code 3 comes out as 2."""
    return _FOUR.take(codes).view(np.int8)


def codes_of(trits: Trits) -> Codes:
    """Codes of trits [rows, inputs], inputs a multiple of 4."""
    four = np.ascontiguousarray(trits + np.int8(1)).view("<u4")
    four = four | four >> np.uint32(6)
    return (four | four >> np.uint32(12)).astype(np.uint8)


def words(codes: Codes) -> NDArray[np.uint64]:
    """The same [rows, inputs/32], 32 trits each."""
    return codes.view("<u8")


def used(codes: Codes, groups: int) -> NDArray[np.bool_]:
    """Which of a row's groups [rows, groups], each of a multiple of 32 inputs, hold a trit other than 0."""
    return (words(codes) != LOW_BITS).reshape(len(codes), groups, -1).any(-1)
