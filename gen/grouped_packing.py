"""Matrices that are ternary by groups, from codes of two bits to the beats that the TLMM engine reads: those that
`firmware.packing.pack_grouped` makes of the same trits, which are never a byte each on the way.

A byte of trit5, and a code of index5, is a function of five or three trits, and so of the number that they are to the base 3. Numbers are
sums of what each trit adds to them: KEY trits side by side are looked up at once, for WORDS weight words at a time, in a table of what
they add to eight bytes of a word. One more look-up of each byte makes what is stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache

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
Scales = NDArray[np.uint16]

KEY = 6
"""Trits that are looked up at once: the 729 numbers that there are of a table's 4,096 stay in the processor's nearest cache."""
WORDS, STEPS = 16384, 256
"""Weight words made at once, and of a tile: what is made on the way stays in the processor's cache."""


@dataclass(frozen=True)
class Sum:
    """What some trits of a row, the `key`-th KEY of them, add to eight bytes of a word, the `at`-th eight: of each key, in a table."""

    key: int
    at: int
    table: NDArray[np.uint64]


@dataclass(frozen=True)
class Plan:
    """How weight words are made: `sums` of each row; `numbers`: bytes that are looked up in a table of 256, behind which are bytes that are
    stored as they are, `size` in all. `joined`: what is looked up are codes of five bits, which are stored side by side."""

    sums: tuple[tuple[Sum, ...], ...]
    table: bytes
    numbers: int
    size: int
    joined: bool


# Tables ----------------------------------------------------------------------------------------------


def _trits(numbers: NDArray[np.integer], count: int) -> NDArray[np.int8]:
    """Trits of numbers to the base 3, whose digits are trit + 1, the first the least."""
    return (numbers[:, None] // 3 ** np.arange(count) % 3 - 1).astype(np.int8)


@cache
def _table(packing: str) -> bytes:
    """What is stored for each number: of trit5 a byte for a triple and two trits more, of index5 a triple's code."""
    table = np.zeros(256, np.uint8)
    if packing == "index5":
        table[:27] = encode_triples(_trits(np.arange(27), 3))
    else:
        trits = _trits(np.arange(243), 5)
        five = np.zeros((243, 5, 3), np.int8)
        five[:, 0], five[:, 3, :2] = trits[:, :3], trits[:, 3:]
        table[:243] = pack_triples(five, packing)[:, 0]
    return table.tobytes()


def _numbers(tile: int, rows: int, packing: str) -> tuple[list[list[tuple[int, int] | None]], int, int]:
    """Of each byte the (row, input) of its trits, None for a trit that is none; how many are numbers that are looked up; bytes in all."""
    whole = tile // 3 * 3
    if packing == "index5":
        inputs = range(whole + 3 * (tile % 3 > 0))
        trits = [(row, i) if i < tile else None for row in range(rows) for i in inputs]
        trits += [None] * (-len(trits) % 24)  # eight codes are joined
        return [trits[i : i + 3] for i in range(0, len(trits), 3)], len(trits) // 3, len(trits) // 3
    trits = [(row, i) for row in range(rows) for i in range(whole)]
    size = word_bytes(len(trits) // 3, packing)
    padded: list[tuple[int, int] | None] = [*trits, *[None] * (-len(trits) % 15)]
    found = []
    for i in range(0, len(padded), 15):
        found += [[*padded[i + 3 * byte : i + 3 * byte + 3], *padded[i + 9 + 2 * byte : i + 11 + 2 * byte]] for byte in range(3)]
    left = [(row, i) for row in range(rows) for i in range(whole, tile)]
    found[size:] = [list(left[i : i + TRITS_A_BYTE]) for i in range(0, len(left), TRITS_A_BYTE)]
    return found, size, len(found)


@lru_cache(maxsize=8)
def _plan(tile: int, rows: int, packing: str) -> Plan:
    """How a word of `rows` rows of `tile` inputs is made."""
    numbers, count, size = _numbers(tile, rows, packing)
    adds: dict[tuple[int, int, int], NDArray[np.uint64]] = {}  # of a row, a key in it and eight bytes: of each trit's codes
    none = np.zeros(-(-size // 8), np.uint64)  # what trits that are none add
    for byte, trits in enumerate(numbers):
        digits = np.array([0, 1, 2, 0] if byte < count else [2, 0, 1, 0], np.uint64)  # those left over have digits 0, 1, 2 for 0, +1, -1
        at, place = divmod(byte, 8)
        for power, trit in enumerate(trits):
            digit = digits * np.uint64(3**power) << np.uint64(8 * place)
            if trit is None:
                none[at] += digit[1]
            else:
                row, i = trit
                adds.setdefault((row, i // KEY, at), np.zeros((min(KEY, tile - i // KEY * KEY), 4), np.uint64))[i % KEY] += digit
    sums: list[list[Sum]] = [[] for _ in range(rows)]
    for (row, which, at), of in sorted(adds.items()):
        table = np.zeros(1, np.uint64)
        for codes in of:
            table = (table + codes[:, None]).reshape(-1)
        table += none[at]
        none[at] = 0
        sums[row].append(Sum(which, at, table))
    return Plan(tuple(map(tuple, sums)), _table(packing), count, size, packing == "index5")


# Words -----------------------------------------------------------------------------------------------


def _wide(codes: Codes, tile: int) -> NDArray[np.unsignedinteger]:
    """Codes [rows, tiles, words of a tile], in as wide words as a tile fills."""
    if tile < 4:
        bits = 2 * tile
        codes = (codes[..., None] >> np.arange(0, 8, bits, dtype=np.uint8) & np.uint8((1 << bits) - 1)).reshape(len(codes), -1)
    return codes.view(f"<u{max(1, min(8, tile // 4))}").reshape(len(codes), -1, max(1, tile // 32))


def _joined(codes: Bytes) -> Bytes:
    """Codes of five bits [words, codes], a multiple of 8, side by side."""
    eight = codes.view("<u8")
    for bits, low in ((5, 0x001F001F001F001F), (10, 0x000003FF000003FF), (20, 0xFFFFF)):
        eight = eight & np.uint64(low) | eight >> np.uint64(8 * bits // 5 - bits) & np.uint64(low << bits)
    return eight[..., None].view(np.uint8)[..., :5].reshape(len(codes), -1)


def pack_grouped_codes(
    codes: Codes, scales: Scales, group_size: int, tables: int, rows_per_cycle: int, packing: str, mem_bytes: int, out: Bytes | None = None
) -> Bytes:
    """Beats [beats, mem_bytes] of a matrix of codes [rows, inputs/4] with scales [rows, inputs/group_size], in `out` if there is one: zeros
    [beats, mem_bytes]."""
    rows, groups = scales.shape
    if 4 * codes.shape[1] != groups * group_size or len(codes) != rows:
        raise ValueError(f"scales {scales.shape} are not those of codes {codes.shape} by groups of {group_size}")
    tile, steps = tile_inputs(tables, group_size), -(-rows // rows_per_cycle)
    tiles, ahead = group_size // tile, group_beats(steps, rows_per_cycle, mem_bytes)
    beats = ahead + tiles * steps
    out = (np.zeros((groups * beats, mem_bytes), np.uint8) if out is None else out).reshape(groups, beats, mem_bytes)
    _pack_scales(scales, rows_per_cycle, out[:, :ahead])
    size, plan = grouped_word_bytes(tables, rows_per_cycle, group_size, packing), _plan(tile, rows_per_cycle, packing)
    whole = rows // rows_per_cycle
    ends = [(codes[: whole * rows_per_cycle], 0)] * (whole > 0)
    if whole < steps:  # the last step has rows that are none
        last = np.full((rows_per_cycle, codes.shape[1]), ZEROS)
        last[: rows - whole * rows_per_cycle] = codes[whole * rows_per_cycle :]
        ends.append((last, whole))
    for some, first in ends:
        given = _wide(some, tile).reshape(-1, rows_per_cycle, groups, tiles, max(1, tile // 32))
        place = out[:, ahead:].reshape(groups, tiles, steps, mem_bytes)[:, :, first : first + len(given)]
        count = min(len(given), STEPS)
        together = max(1, WORDS // (tiles * count))
        for step in range(0, len(given), count):
            for group in range(0, groups, together):
                _pack_words(given[step : step + count, :, group : group + together],
                            place[group : group + together, :, step : step + count, :size], plan)
    return out.reshape(-1, mem_bytes)


def _pack_words(given: NDArray[np.unsignedinteger], place: Bytes, plan: Plan) -> None:
    """Words [groups, tiles, steps, bytes] of codes [steps, rows, groups, tiles, words of a tile]."""
    steps, rows, groups, tiles, width = given.shape
    count, eights = groups * tiles * steps, -(-plan.size // 8)
    wide, key, added = np.empty((width, count), np.uint64), np.empty(count, np.uint64), np.empty(count, np.uint64)
    sums, begun = np.empty((eights, count), np.uint64), [False] * eights
    for row in range(rows):
        wide.reshape(width, groups, tiles, steps)[:] = given[:, row].transpose(3, 1, 2, 0)
        have = -1
        for each in plan.sums[row]:
            if each.key != have:
                have, (word, bit) = each.key, divmod(2 * KEY * each.key, 64)
                np.right_shift(wide[word], np.uint64(bit), out=key)
                if bit + 2 * KEY > 64 and word + 1 < width:
                    np.bitwise_or(key, wide[word + 1] << np.uint64(64 - bit), out=key)
                np.bitwise_and(key, np.uint64(len(each.table) - 1), out=key)
            to = added if begun[each.at] else sums[each.at]
            np.take(each.table, key.view(np.int64), out=to, mode="wrap")  # the quickest: none is beyond
            if begun[each.at]:
                np.add(sums[each.at], added, out=sums[each.at])
            begun[each.at] = True
    numbers = bytearray(8 * eights * count)
    np.frombuffer(numbers, np.uint64).reshape(count, eights)[:] = sums.T
    words = np.frombuffer(numbers.translate(plan.table), np.uint8).reshape(count, -1)[:, : plan.size]
    if plan.joined:
        words = _joined(words)
    place[:] = words[:, : place.shape[-1]].reshape(place.shape)
    if plan.numbers < plan.size:
        stored = np.frombuffer(numbers, np.uint8).reshape(count, -1)[:, plan.numbers : plan.size]
        place[..., plan.numbers :] = stored.reshape(*place.shape[:-1], -1)


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
