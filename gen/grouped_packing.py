"""Matrices that are ternary by groups, from codes of two bits to the beats that the TLMM engine reads: those that
`firmware.packing.pack_grouped` makes of the same trits, which are never a byte each on the way.

A byte of trit5, and a code of index5, is a function of five or three trits, and so of the bits of their codes: a look-up each
(gen/loops.py).
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from tritloom.firmware.packing import (
    TRITS_A_BYTE,
    encode_triples,
    group_beats,
    grouped_word_bytes,
    pack_scales,
    pack_triples,
    tile_inputs,
    word_bytes,
)
from tritloom.gen.models.codes import LOW_BITS, ZEROS, Codes

Bytes = NDArray[np.uint8]
Scales = NDArray[np.uint16]


# Look-ups --------------------------------------------------------------------------------------------


def _trits(count: int) -> tuple[NDArray[np.int8], NDArray[np.bool_]]:
    """Trits [4**count, count] of `count` codes side by side, by their bits; and of which none is code 3."""
    codes = np.arange(4**count)[:, None] >> 2 * np.arange(count) & 3
    return np.minimum(codes, 2).astype(np.int8) - np.int8(1), (codes < 3).all(1)


@cache
def _three() -> Bytes:
    """index5's code of three trits, by the bits of their codes [64]; 0 where there are none."""
    trits, there = _trits(3)
    return np.where(there, encode_triples(trits), 0).astype(np.uint8)


@cache
def _five() -> Bytes:
    """A byte of trit5, of a triple and two trits more, by the bits of their codes [1024]."""
    trits, there = _trits(5)
    five = np.zeros((len(trits), 5, 3), np.int8)
    five[:, 0], five[:, 3, :2] = trits[:, :3], trits[:, 3:]
    return np.where(there, pack_triples(five, "trit5")[:, 0], 0).astype(np.uint8)


@cache
def _left() -> Bytes:
    """A byte of five trits that are left of rows, by the bits of their codes [1024]: digits are 0, 1, 2 for 0, +1, -1."""
    trits, there = _trits(5)
    return np.where(there, (trits % 3 * 3 ** np.arange(TRITS_A_BYTE)).sum(1), 0).astype(np.uint8)


# Words -----------------------------------------------------------------------------------------------


def pack_grouped_codes(
    codes: Codes, scales: Scales, group_size: int, tables: int, rows_per_cycle: int, packing: str, mem_bytes: int, out: Bytes | None = None
) -> Bytes:
    """Beats [beats, mem_bytes] of a matrix of codes [rows, inputs/4] with scales [rows, inputs/group_size], in `out` if there is one: zeros
    [beats, mem_bytes]. Raises ValueError for groups that are no power of two from 32 on, and for words that do not fit."""
    rows, groups = scales.shape
    if 4 * codes.shape[1] != groups * group_size or len(codes) != rows:
        raise ValueError(f"scales {scales.shape} are not those of codes {codes.shape} by groups of {group_size}")
    if group_size < 32 or group_size & group_size - 1:
        raise ValueError(f"groups of {group_size} inputs are no power of two from 32 on")
    size = grouped_word_bytes(tables, rows_per_cycle, group_size, packing)
    if size > mem_bytes:
        raise ValueError(f"a word of {size} bytes does not fit mem_bytes {mem_bytes}")
    tile, steps = tile_inputs(tables, group_size), -(-rows // rows_per_cycle)
    tiles, ahead = group_size // tile, group_beats(steps, rows_per_cycle, mem_bytes)
    beats = ahead + tiles * steps
    out = (np.zeros((groups * beats, mem_bytes), np.uint8) if out is None else out).reshape(groups, beats, mem_bytes)
    out[:, :ahead] = pack_scales(scales, steps, rows_per_cycle, mem_bytes)
    if rows:
        _pack_words(codes, tile, rows_per_cycle, packing, ahead, out)
    return out.reshape(-1, mem_bytes)


def _pack_words(codes: Codes, tile: int, rows_per_cycle: int, packing: str, ahead: int, out: Bytes) -> None:
    """Words [groups, ahead + tiles*steps, mem_bytes] of codes."""
    from tritloom.gen import loops

    none = np.full(codes.shape[1], ZEROS).view(np.uint32)
    layout = (np.ascontiguousarray(codes).view(np.uint32), none, tile, rows_per_cycle, ahead)
    if packing == "trit5":
        loops.words_of_fives(*layout, word_bytes(tile // 3 * rows_per_cycle, packing), _five(), _left(), out)
    else:
        loops.words_of_codes(*layout, _three(), out)


def embedding_rows(codes: Codes, scales: Scales, scale_bytes: int, row_bytes: int) -> Bytes:
    """Rows [rows, row_bytes] of an embedding: of each group its scale in `scale_bytes`, then its trits of two bits (0, 1, 3 for -1)."""
    rows, groups = scales.shape
    given = codes.reshape(rows, groups, -1).view("<u8")
    high = given >> np.uint64(1)
    none = ~(given | high) & LOW_BITS  # of code 0, which is -1
    found = ~given & LOW_BITS | none << np.uint64(1)
    fields = np.zeros((rows, groups, scale_bytes + codes.shape[1] // groups), np.uint8)
    fields[..., :2] = scales.astype("<u2", copy=False)[..., None].view(np.uint8)
    fields[..., scale_bytes:] = found.view(np.uint8)
    out = np.zeros((rows, row_bytes), np.uint8)
    out[:, : groups * fields.shape[-1]] = fields.reshape(rows, -1)
    return out
