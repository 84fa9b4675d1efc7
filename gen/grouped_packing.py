"""Matrices that are ternary by groups, from codes of two bits to the beats that the TLMM engine reads: those that
`firmware.packing.pack_grouped` makes of the same trits, which are never a byte each on the way.

Pieces of weight words (five triples, say) are cut out of the codes with shifts, looked up, and joined with shifts, each for WORDS words at
a time, whose bits of the same place lie side by side in memory ("planes").
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from math import gcd

import numpy as np
from numpy.typing import NDArray

from tritloom.firmware.packing import (
    SCALE_BITS,
    TRITS_A_BYTE,
    encode_triples,
    group_beats,
    grouped_word_bytes,
    pack_triples,
    scale_steps,
    tile_inputs,
    word_bytes,
)
from tritloom.gen.models.codes import LOW_BITS, ZEROS, Codes

Bytes = NDArray[np.uint8]
Planes = NDArray[np.uint64]
Scales = NDArray[np.uint16]

WORDS, STEPS = 8192, 256
"""Weight words made at once, and of a tile: what is made on the way stays in the processor's cache."""
LOOKED_UP = 1 << 15
"""Pieces looked up at once."""


@dataclass(frozen=True)
class Lookup:
    """What a table says of some bits of a piece: of each (shift, mask), its bits shifted right and masked, joined."""

    bits: tuple[tuple[int, int], ...]
    table: Planes


@dataclass(frozen=True)
class Piece:
    """Bits of a weight word's rows side by side. `runs`: (row, first bit in it, bits, place in the piece), in order of places; `pad`: bits
    of trits that are none, which are zeros, above."""

    runs: tuple[tuple[int, int, int, int], ...]
    pad: int


@dataclass(frozen=True)
class Part:
    """Pieces of one kind and what they become: `fields` are the places in the word of the looked-up bits, `width` of them each."""

    pieces: tuple[Piece, ...]
    lookups: tuple[Lookup, ...]
    fields: tuple[int, ...]
    width: int


# Tables ----------------------------------------------------------------------------------------------


def _trits(keys: NDArray[np.integer], count: int) -> NDArray[np.int8]:
    """`count` trits of each key's codes; for what is no code, 0."""
    found = (keys[..., None] >> 2 * np.arange(count) & 3) - 1
    return np.where(found > 1, 0, found).astype(np.int8)


@cache
def _trit5() -> tuple[Lookup, ...]:
    """Five triples of six bits, a to e: each of the first three has a byte, with four bits of the other two."""
    key, found = np.arange(1 << 10), []
    of = _trits(key & 63, 3), _trits(key >> 6, 2)
    # of d the first two trits; the last, and e's first; e's other two
    for byte, (shift, places) in enumerate(((12, (0, 1)), (16, (2, 3)), (20, (4, 5)))):
        five = np.zeros((len(key), 5, 3), np.int8)
        five[:, byte] = of[0]
        five[:, 3:].reshape(len(key), 6)[:, places] = of[1]
        table = pack_triples(five, "trit5")[:, byte].astype(np.uint64) << np.uint64(8 * byte)
        found.append(Lookup(((6 * byte, 63), (shift, 15 << 6)), table))
    return tuple(found)


@cache
def _digits() -> tuple[Lookup, ...]:
    """Five trits as a number to the base 3: digits 0, 1 and 2 are 0, +1 and -1, the first the least."""
    key = np.arange(1 << 2 * TRITS_A_BYTE)
    table = (_trits(key, TRITS_A_BYTE) % 3 * 3 ** np.arange(TRITS_A_BYTE)).sum(-1).astype(np.uint64)
    return (Lookup(((0, len(key) - 1),), table),)


@cache
def _index5() -> tuple[Lookup, ...]:
    """Two triples as two codes of five bits."""
    codes = encode_triples(_trits(np.arange(64), 3)).astype(np.uint64)
    return (Lookup(((0, 4095),), (codes[:, None] << np.uint64(5) | codes).reshape(-1)),)


# Words -----------------------------------------------------------------------------------------------


def _piece(trits: Sequence[tuple[int, int] | None]) -> Piece:
    """Of (row, input) of each of its trits; None for one that is none."""
    runs: list[tuple[int, int, int, int]] = []
    pad = 0
    for place, trit in enumerate(trits):
        if trit is None:
            pad |= 1 << 2 * place
        elif runs and (runs[-1][0], runs[-1][1] + runs[-1][2]) == (trit[0], 2 * trit[1]) and runs[-1][3] + runs[-1][2] == 2 * place:
            runs[-1] = (*runs[-1][:2], runs[-1][2] + 2, runs[-1][3])
        else:
            runs.append((trit[0], 2 * trit[1], 2, 2 * place))
    return Piece(tuple(runs), pad)


def _part(trits: list[tuple[int, int] | None], size: int, lookups: tuple[Lookup, ...], first: int, width: int) -> Part:
    """Pieces of `size` trits each, whose fields of `width` bits begin at bit `first` of the word."""
    trits = [*trits, *[None] * (-len(trits) % size)]
    pieces = tuple(_piece(trits[i : i + size]) for i in range(0, len(trits), size))
    return Part(pieces, lookups, tuple(first + width * i for i in range(len(pieces))), width)


@lru_cache(maxsize=64)
def _parts(tile: int, rows: int, packing: str) -> tuple[Part, ...]:
    """How a word of `rows` rows of `tile` inputs is made."""
    whole = tile // 3 * 3
    if packing == "index5":
        inputs = range(whole + 3 * (tile % 3 > 0))
        return (_part([(row, i) if i < tile else None for row in range(rows) for i in inputs], 6, _index5(), 0, 10),)
    triples: list[tuple[int, int] | None] = [(row, i) for row in range(rows) for i in range(whole)]
    left: list[tuple[int, int] | None] = [(row, i) for row in range(rows) for i in range(whole, tile)]
    parts = _part(triples, 15, _trit5(), 0, 24), _part(left, TRITS_A_BYTE, _digits(), 8 * word_bytes(len(triples) // 3, packing), 8)
    return tuple(part for part in parts if part.pieces)


def _cut(planes: Planes, piece: Piece, out: Planes, work: Planes) -> None:
    """Write the piece's bits of all words; bits above them are anything. `planes` [rows, 64 bits, words]."""
    for number, (row, bit, bits, place) in enumerate(piece.runs):
        word, shift = divmod(bit, 64)
        to = work if number else out
        np.right_shift(planes[row, word], np.uint64(shift), out=to)
        if shift + bits > 64:
            np.bitwise_or(to, planes[row, word + 1] << np.uint64(64 - shift), out=to)
        if number + 1 < len(piece.runs) or piece.pad:
            np.bitwise_and(to, np.uint64((1 << bits) - 1), out=to)
        if number:
            np.left_shift(work, np.uint64(place), out=work)
            np.bitwise_or(out, work, out=out)
    if piece.pad:
        np.bitwise_or(out, np.uint64(piece.pad), out=out)


def _look_up(pieces: Planes, lookups: Iterable[Lookup]) -> None:
    """Put what the tables say of pieces [pieces, words] in their place."""
    key, other, found, result = (np.empty(pieces.shape, np.uint64) for _ in range(4))
    for number, lookup in enumerate(lookups):
        for part, (shift, mask) in enumerate(lookup.bits):
            to = other if part else key
            if shift:
                np.right_shift(pieces, np.uint64(shift), out=to)
            np.bitwise_and(to if shift else pieces, np.uint64(mask), out=to)
            if part:
                np.bitwise_or(key, other, out=key)
        np.take(lookup.table, key.view(np.int64), out=found if number else result, mode="clip")  # quicker than `raise`
        if number:
            np.bitwise_or(result, found, out=result)
    pieces[:] = result


def _join(fields: Iterable[tuple[int, int, Planes]], out: Planes) -> None:
    """Words [64 bits, words] of fields (first bit, bits, values [words])."""
    begun = [False] * len(out)
    for bit, bits, values in fields:
        word, shift = divmod(bit, 64)
        for at, part in ((word, values << np.uint64(shift)), *([(word + 1, values >> np.uint64(64 - shift))] if shift + bits > 64 else ())):
            if begun[at]:
                np.bitwise_or(out[at], part, out=out[at])
            else:
                out[at] = part
            begun[at] = True


def _rows_as_words(codes: Codes, tile: int) -> NDArray[np.unsignedinteger]:
    """Codes [rows, tiles, words of a tile], in as wide words as a tile fills."""
    if tile < 4:
        bits = 2 * tile
        codes = (codes[..., None] >> np.arange(0, 8, bits, dtype=np.uint8) & np.uint8((1 << bits) - 1)).reshape(len(codes), -1)
    size = max(1, min(8, tile // 4))
    return codes.view(f"<u{size}").reshape(len(codes), -1, max(1, tile // 32))


def pack_grouped_codes(
    codes: Codes, scales: Scales, group_size: int, tables: int, rows_per_cycle: int, packing: str, mem_bytes: int
) -> Bytes:
    """Beats [beats, mem_bytes] of a matrix of codes [rows, inputs/4] with scales [rows, inputs/group_size]."""
    rows, groups = scales.shape
    if 4 * codes.shape[1] != groups * group_size or len(codes) != rows:
        raise ValueError(f"scales {scales.shape} are not those of codes {codes.shape} by groups of {group_size}")
    tile, steps = tile_inputs(tables, group_size), -(-rows // rows_per_cycle)
    tiles, ahead = group_size // tile, group_beats(steps, rows_per_cycle, mem_bytes)
    out = np.zeros((groups, ahead + tiles * steps, mem_bytes), np.uint8)
    _pack_scales(scales, rows_per_cycle, out[:, :ahead])
    size, parts = grouped_word_bytes(tables, rows_per_cycle, group_size, packing), _parts(tile, rows_per_cycle, packing)
    whole = rows // rows_per_cycle
    ends = [(codes[: whole * rows_per_cycle], 0)] * (whole > 0)
    if whole < steps:  # the last step has rows that are none
        last = np.full((rows_per_cycle, codes.shape[1]), ZEROS)
        last[: rows - whole * rows_per_cycle] = codes[whole * rows_per_cycle :]
        ends.append((last, whole))
    for some, first in ends:
        given = _rows_as_words(some, tile).reshape(-1, rows_per_cycle, groups, tiles, max(1, tile // 32))
        place = out[:, ahead:].reshape(groups, tiles, steps, mem_bytes)[:, :, first : first + len(given)]
        count = min(len(given), STEPS)
        together = max(1, WORDS // (tiles * count))
        for step in range(0, len(given), count):
            for group in range(0, groups, together):
                _pack_words(given[step : step + count, :, group : group + together],
                            place[group : group + together, :, step : step + count], parts, size)
    return out.reshape(-1, mem_bytes)


def _pack_words(given: NDArray[np.unsignedinteger], place: Bytes, parts: tuple[Part, ...], size: int) -> None:
    """Words [groups, tiles, steps, mem_bytes] of codes [steps, rows, groups, tiles, words of a tile]."""
    steps, rows, groups, tiles, width = given.shape
    planes = np.empty((rows, width, groups, tiles, steps), np.uint64)
    planes[:] = given.transpose(1, 4, 2, 3, 0)
    planes = planes.reshape(rows, width, -1)
    count = planes.shape[-1]
    work, fields = np.empty(count, np.uint64), []
    for part in parts:
        pieces = np.empty((len(part.pieces), count), np.uint64)
        for piece, out in zip(part.pieces, pieces, strict=True):
            _cut(planes, piece, out, work)
        together = max(1, LOOKED_UP // count)
        for first in range(0, len(pieces), together):
            _look_up(pieces[first : first + together], part.lookups)
        fields += zip(part.fields, [part.width] * len(pieces), pieces, strict=True)
    words = np.empty((max(field // 64 + 1 + (field % 64 + bits > 64) for field, bits, _ in fields), count), np.uint64)
    _join(fields, words)
    unit = gcd(8, place.shape[-1])
    for at in range(-(-size // unit)):
        word, part_of = divmod(at * unit, 8)
        values = words[word].view(f"<u{unit}")[part_of // unit :: 8 // unit]
        place.view(f"<u{unit}")[..., at] = values.reshape(groups, tiles, steps)


def _pack_scales(scales: Scales, rows_per_cycle: int, out: Bytes) -> None:
    """Beats [groups, beats, mem_bytes] of the scales [rows, groups], those of `scale_steps` steps side by side in one or more."""
    mem_bytes, (rows, groups) = out.shape[-1], scales.shape
    size = scale_steps(rows_per_cycle, mem_bytes) * rows_per_cycle * SCALE_BITS // 8
    beats = -(-size // mem_bytes)
    words = np.zeros((groups, out.shape[1] // beats * size // 2), "<u2")
    words[:, :rows] = scales.T
    out.reshape(groups, -1, beats * mem_bytes)[..., :size] = words.view(np.uint8).reshape(groups, -1, size)


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
