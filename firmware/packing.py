"""Ternary weights as the TLMM engine reads them: triples of trits as 5-bit codes, codes as packed words.

A code is sign and magnitude: bits 3:0 index one of the 14 triples whose first non-zero trit is +1
(0 is the zero triple), bit 4 negates it. `SERPENTINE` orders the triples so that neighbours differ
in one trit by one step, which lets the hardware build a table with one addition per entry.

Two packings of a word of n codes, both little endian:

`index5`
    code i in bits 5i..5i+4.
`trit5`
    five codes c0..c4 in three bytes. Byte b has c_b in its low 5 bits and, in its high 3 bits, the
    b-th pair of the six trits of c3 and c4 (value 3*d(first) + d(second), d(0, +1, -1) = 0, 1, 2). The
    pair value 8 has no room there: bits 3:1, which no code has all set, become 111 and the code's
    own bits 3:1 move to the high bits. A rest of r < 5 codes takes min(r, 3) bytes; a fourth code's
    trits stand in the pairs of the first two.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "SCALE_BITS", "SERPENTINE", "TRIPLES", "TRITS_A_BYTE", "decode_codes", "encode_triples", "group_beats", "grouped_word_bytes",
    "pack_codes", "pack_grouped", "pack_matrix", "pack_scales", "pack_triples", "result_bits", "scale_drop", "scale_steps",
    "scaled_sum_bits", "tile_inputs", "unpack_codes", "unpack_grouped", "unpack_matrix", "word_bytes",
]

Trits = NDArray[np.int8]
Bytes = NDArray[np.uint8]
Scales = NDArray[np.uint16]

SCALE_BITS = 16
"""Bits of a group's scale."""
TRITS_A_BYTE = 5
PACKED_TRITS = 1 << 19
"""About so many trits are packed at a time."""
RESULT_BITS = 23
"""Width of a row's result where its groups have scales: what the vector unit takes."""

SERPENTINE: tuple[tuple[int, int, int], ...] = (
    (0, 0, 0), (0, 0, 1), (0, 1, 1), (0, 1, 0), (0, 1, -1), (1, 1, -1), (1, 1, 0),
    (1, 1, 1), (1, 0, 1), (1, 0, 0), (1, 0, -1), (1, -1, -1), (1, -1, 0), (1, -1, 1),
)
"""The triple of each magnitude index; each differs from the one before in one trit by one."""

NEGATE = 16
VALID_CODES = tuple(range(14)) + tuple(range(17, 30))


def _triples() -> Trits:
    table = np.zeros((32, 3), np.int8)
    table[:14] = SERPENTINE
    table[NEGATE:] = -table[:NEGATE]
    return table


TRIPLES: Trits = _triples()
"""Trits of every 5-bit code [32, 3]; unused codes read as zeros."""


def _key(trits: NDArray[np.integer]) -> NDArray[np.integer]:
    """Number 0..26 of a triple [..., 3]."""
    return (trits[..., 0] * 9 + trits[..., 1] * 3 + trits[..., 2]) + 13


def _code_of_key() -> Bytes:
    table = np.zeros(27, np.uint8)
    for code in VALID_CODES:
        table[_key(TRIPLES[code].astype(int))] = code
    return table


_CODE_OF_KEY = _code_of_key()
_ZERO_KEY = 13
_KEY_OF_CODE = (_key(TRIPLES.astype(int))).astype(np.uint8)
_DIGIT = np.array([0, 1, 2], np.uint8)  # indexed by trit: 0, +1 and (from the end) -1
_POWERS = 3 ** np.arange(5)
_PAIR_TRITS = np.array([(a, b) for a in (0, 1, -1) for b in (0, 1, -1)] + [(0, 0)] * 7, np.int8)
# Pair number (0..8) of a code's trits (0, 1) and (1, 2), and the digits needed to join two codes.
_DIGITS_OF_CODE = _DIGIT[TRIPLES]
_CODE_OF_DIGITS = np.zeros((3, 3, 3), np.uint8)
for _code in VALID_CODES:
    _CODE_OF_DIGITS[tuple(_DIGITS_OF_CODE[_code])] = _code


def _byte_of() -> Bytes:
    """Byte [code, pair] of trit5."""
    code, pair = np.arange(32)[:, None], np.arange(9)[None, :]
    escaped = (code & 0x11) | 0x0E | ((code >> 1 & 7) << 5)
    return np.where(pair == 8, escaped, code | (pair & 7) << 5).astype(np.uint8)


_BYTE = _byte_of()


def _of_keys() -> list[Bytes]:
    """Of trit5, by the number of a triple: its byte beside each pair [27 * 9]; 3 * (its last digit) and its first digit; its first pair and
    its last."""
    digits = np.array([_DIGITS_OF_CODE[code] for code in _CODE_OF_KEY], np.uint8)
    first, middle, last = digits.T
    return [_BYTE[_CODE_OF_KEY].reshape(-1), 3 * last, first, 3 * first + middle, 3 * middle + last]


_BYTE_OF_KEY, _LAST_OF_KEY, _FIRST_OF_KEY, _LEADING_OF_KEY, _TRAILING_OF_KEY = _of_keys()
_byte = np.arange(256)
_ESCAPED = (_byte & 0x0E) == 0x0E
_CODE_OF_BYTE: Bytes = np.where(_ESCAPED, (_byte & 0x11) | (_byte >> 5) << 1, _byte & 0x1F).astype(np.uint8)
_PAIR_OF_BYTE: Bytes = np.where(_ESCAPED, 8, _byte >> 5).astype(np.uint8)


def _check_packing(packing: str) -> None:
    if packing not in ("index5", "trit5"):
        raise ValueError(f"packing must be index5 or trit5, not {packing!r}")


def word_bytes(codes: int, packing: str) -> int:
    """Bytes of a packed word of `codes` codes."""
    _check_packing(packing)
    return -(-5 * codes // 8) if packing == "index5" else 3 * (codes // 5) + min(codes % 5, 3)


def tile_inputs(tables: int, group_size: int) -> int:
    """Inputs of a tile: one to a place, or, with groups, as many of a group as there are places for, halved until they fit."""
    while group_size > 3 * tables:
        group_size //= 2
    return group_size or 3 * tables


def scaled_sum_bits(inputs: int) -> int:
    """Signed width of a sum of `inputs` codes, each times a trit and a scale."""
    return (127 * (2**SCALE_BITS - 1) * inputs).bit_length() + 1


def scale_drop(inputs: int) -> int:
    """Low bits that are rounded off a row's scaled sum of at most `inputs` codes, so that RESULT_BITS hold any result."""
    most, drop = 127 * (2**SCALE_BITS - 1) * inputs, 0
    while most + (1 << drop >> 1) >> drop >= 1 << (RESULT_BITS - 1):
        drop += 1
    return drop


def result_bits(inputs: int, group_size: int, drop: int) -> int:
    """Signed width of a row's result: of a sum of `inputs` codes, or of their scaled sum without its `drop` low bits."""
    most = 127 * inputs if not group_size else 127 * (2**SCALE_BITS - 1) * inputs + (1 << drop >> 1) >> drop
    return most.bit_length() + 1


def scale_steps(rows_per_cycle: int, mem_bytes: int) -> int:
    """Steps whose scales a beat has room for; 1 if a step's scales take several beats."""
    return max(1, 8 * mem_bytes // (SCALE_BITS * rows_per_cycle))


def grouped_word_bytes(tables: int, rows_per_cycle: int, group_size: int, packing: str) -> int:
    """Bytes of a weight word of a matrix with groups: whole triples as codes; trit5 has what is left of the rows, one or two trits of
    each, as five trits a byte behind them."""
    whole, rest = divmod(tile_inputs(tables, group_size), 3)
    if packing == "trit5" and rest:
        return word_bytes(whole * rows_per_cycle, packing) + -(-rest * rows_per_cycle // TRITS_A_BYTE)
    return word_bytes((whole + (rest > 0)) * rows_per_cycle, packing)


def group_beats(steps: int, rows_per_cycle: int, mem_bytes: int) -> int:
    """Beats of a group's scales for `steps` steps of rows."""
    parts = -(-SCALE_BITS * rows_per_cycle // (8 * mem_bytes))
    return -(-steps // scale_steps(rows_per_cycle, mem_bytes)) * parts


def encode_triples(trits: NDArray[np.integer]) -> Bytes:
    """5-bit codes [...] of triples [..., 3] of trits -1, 0, 1."""
    return _CODE_OF_KEY[_key(np.asarray(trits, np.int8))]


def decode_codes(codes: NDArray[np.integer]) -> Trits:
    """Triples [..., 3] of codes [...]."""
    return TRIPLES[codes]


def pack_codes(codes: NDArray[np.integer], packing: str) -> Bytes:
    """Packed words [..., word_bytes] of codes [..., n]."""
    codes = np.asarray(codes, np.uint8)
    _check_packing(packing)
    return _pack_index5(codes) if packing == "index5" else _pack_trit5(_KEY_OF_CODE[codes])


def pack_triples(trits: NDArray[np.integer], packing: str) -> Bytes:
    """Packed words [..., word_bytes] of triples [..., n, 3] of trits: what `pack_codes` makes of their codes."""
    trits = np.asarray(trits, np.int8)
    keys = trits[..., 0] * np.int8(9)
    keys += trits[..., 1] * np.int8(3)
    keys += trits[..., 2]
    keys += np.int8(_ZERO_KEY)
    _check_packing(packing)
    return _pack_index5(_CODE_OF_KEY[keys]) if packing == "index5" else _pack_trit5(keys.view(np.uint8))


def _pack_trit5(keys: Bytes) -> Bytes:
    """Words of the triples with these numbers [..., n]. Five of them are three bytes, each found in one table by a triple and a pair."""
    n = keys.shape[-1]
    if n % 5:
        keys = np.concatenate([keys, np.full((*keys.shape[:-1], -n % 5), _ZERO_KEY, np.uint8)], -1)
    a, b, c, d, e = np.ascontiguousarray(np.moveaxis(keys.reshape(*keys.shape[:-1], -1, 5), -1, 0))
    nine, out = np.uint8(9), np.empty((*a.shape, 3), np.uint8)
    out[..., 0] = _BYTE_OF_KEY.take(a * nine + _LEADING_OF_KEY.take(d))
    out[..., 1] = _BYTE_OF_KEY.take(b * nine + _LAST_OF_KEY.take(d) + _FIRST_OF_KEY.take(e))
    out[..., 2] = _BYTE_OF_KEY.take(c * nine + _TRAILING_OF_KEY.take(e))
    return out.reshape(*out.shape[:-2], -1)[..., : word_bytes(n, "trit5")]


def unpack_codes(words: Bytes, n: int, packing: str) -> Bytes:
    """Codes [..., n] of packed words [..., word_bytes or more]."""
    words = np.asarray(words, np.uint8)[..., : word_bytes(n, packing)]
    if packing == "index5":
        bits = np.unpackbits(words, axis=-1, bitorder="little")[..., : 5 * n]
        return (bits.reshape(*bits.shape[:-1], n, 5) << np.arange(5, dtype=np.uint8)).sum(-1, dtype=np.uint8)
    if words.shape[-1] % 3:
        words = np.concatenate([words, np.zeros((*words.shape[:-1], -words.shape[-1] % 3), np.uint8)], -1)
    words = words.reshape(*words.shape[:-1], -1, 3)
    digits = _DIGIT[_PAIR_TRITS[_PAIR_OF_BYTE[words]]]  # [..., 3 bytes, 2]
    out = np.empty((*words.shape[:-1], 5), np.uint8)
    out[..., :3] = _CODE_OF_BYTE[words]
    out[..., 3] = _CODE_OF_DIGITS[digits[..., 0, 0], digits[..., 0, 1], digits[..., 1, 0]]
    out[..., 4] = _CODE_OF_DIGITS[digits[..., 1, 1], digits[..., 2, 0], digits[..., 2, 1]]
    return out.reshape(*out.shape[:-2], -1)[..., :n]


def _pack_index5(codes: Bytes) -> Bytes:
    n = codes.shape[-1]
    if n % 8:
        codes = np.concatenate([codes, np.zeros((*codes.shape[:-1], -n % 8), np.uint8)], -1)
    group = codes.reshape(*codes.shape[:-1], -1, 8).astype(np.uint64)
    value = np.zeros(group.shape[:-1], np.uint64)
    for i in range(8):
        value |= group[..., i] << np.uint64(5 * i)
    out = np.ascontiguousarray(value.astype("<u8"))[..., None].view(np.uint8)[..., :5]
    return out.reshape(*out.shape[:-2], -1)[..., : word_bytes(n, "index5")]


def pack_matrix(trits: NDArray[np.integer], tables: int, rows_per_cycle: int, packing: str, mem_bytes: int) -> Bytes:
    """Beats [beats, mem_bytes] of a matrix [rows, inputs] in the order the TLMM engine consumes them.

    Tiles of tables*3 inputs outside, steps of rows_per_cycle rows inside; a beat has one word, its
    codes row by row. Rows and inputs are padded with zeros.
    """
    size = word_bytes(tables * rows_per_cycle, packing)
    if size > mem_bytes:
        raise ValueError(f"a word of {size} bytes does not fit mem_bytes {mem_bytes}")
    rows, inputs = trits.shape
    trits = np.asarray(trits, np.int8)
    span = tables * 3
    tiles, steps = -(-inputs // span), -(-rows // rows_per_cycle)
    beats = np.zeros((tiles, steps, mem_bytes), np.uint8)
    for tile in range(tiles):
        block = np.zeros((steps * rows_per_cycle, span), np.int8)
        part = trits[:, tile * span : (tile + 1) * span]
        block[:rows, : part.shape[1]] = part
        beats[tile, :, :size] = pack_triples(block.reshape(steps, rows_per_cycle * tables, 3), packing)
    return beats.reshape(tiles * steps, mem_bytes)


def unpack_matrix(beats: Bytes, rows: int, inputs: int, tables: int, rows_per_cycle: int, packing: str) -> Trits:
    """Matrix [rows, inputs] of the beats `pack_matrix` made of it."""
    tiles, steps = -(-inputs // (tables * 3)), -(-rows // rows_per_cycle)
    if len(beats) != tiles * steps:
        raise ValueError(f"a matrix of {rows}x{inputs} has {tiles * steps} beats, not {len(beats)}")
    codes = unpack_codes(beats, tables * rows_per_cycle, packing)
    trits = decode_codes(codes).reshape(tiles, steps * rows_per_cycle, tables * 3)
    return np.ascontiguousarray(trits.transpose(1, 0, 2).reshape(steps * rows_per_cycle, -1)[:rows, :inputs])


def pack_grouped(trits: NDArray[np.integer], scales: Scales, group_size: int, tables: int, rows_per_cycle: int, packing: str,
                 mem_bytes: int) -> Bytes:
    """Beats [beats, mem_bytes] of a matrix [rows, inputs] with scales [rows, inputs/group_size], as the TLMM engine consumes them.

    Group after group: the scales of all steps, those of `scale_steps` steps side by side in a beat; then the group's tiles of `tile_inputs`
    inputs, a word a step: whole triples row by row as codes, and behind them what is left of the rows. Rows are padded with zeros.
    """
    rows, inputs = trits.shape
    if inputs % group_size or scales.shape != (rows, inputs // group_size):
        raise ValueError(f"scales {scales.shape} are not those of a matrix of {rows}x{inputs} by groups of {group_size}")
    tile, steps, groups = tile_inputs(tables, group_size), -(-rows // rows_per_cycle), inputs // group_size
    tiles, ahead = group_size // tile, group_beats(steps, rows_per_cycle, mem_bytes)
    out = np.zeros((groups, ahead + tiles * steps, mem_bytes), np.uint8)
    out[:, :ahead] = pack_scales(scales, steps, rows_per_cycle, mem_bytes)
    size = grouped_word_bytes(tables, rows_per_cycle, group_size, packing)
    words = out[:, ahead:].reshape(groups * tiles, steps, mem_bytes)
    # A few steps at a time, in caches; the last ones have rows that are none.
    some = max(1, PACKED_TRITS // (rows_per_cycle * inputs))
    for first in range(0, steps, some):
        count = min(some, steps - first)
        part = trits[first * rows_per_cycle : (first + count) * rows_per_cycle]
        if len(part) < count * rows_per_cycle:
            part = np.concatenate([part, np.zeros((count * rows_per_cycle - len(part), inputs), np.int8)])
        part = part.reshape(count, rows_per_cycle, groups * tiles, tile).transpose(2, 0, 1, 3)
        words[:, first : first + count, :size] = _pack_tiles(np.ascontiguousarray(part), packing)
    out[:, ahead:] = words.reshape(groups, tiles * steps, mem_bytes)
    return out.reshape(-1, mem_bytes)


def _pack_tiles(trits: Trits, packing: str) -> Bytes:
    """Words [..., bytes] of steps of tiles [..., rows, inputs]."""
    *several, rows, inputs = trits.shape
    rest = inputs % 3
    if packing != "trit5" or not rest:
        if rest:
            trits = np.concatenate([trits, np.zeros((*several, rows, 3 - rest), np.int8)], -1)
        return pack_triples(trits.reshape(*several, -1, 3), packing)
    whole = pack_triples(trits[..., : inputs - rest].reshape(*several, -1, 3), packing)
    digits = np.zeros((*several, rows * rest + -rows * rest % TRITS_A_BYTE), np.uint8)
    digits[..., : rows * rest] = _DIGIT[trits[..., inputs - rest :].reshape(*several, -1)]
    digits = digits.reshape(*several, -1, TRITS_A_BYTE)
    last = digits[..., TRITS_A_BYTE - 1].copy()
    for place in reversed(range(TRITS_A_BYTE - 1)):
        last *= np.uint8(3)
        last += digits[..., place]
    return np.concatenate([whole, last], -1)


def _unpack_tile(words: Bytes, rows: int, inputs: int, packing: str) -> Trits:
    """A tile [steps, rows, inputs] of its words."""
    steps, rest, whole = len(words), inputs % 3, inputs // 3
    if packing != "trit5" or not rest:
        whole += rest > 0
        return decode_codes(unpack_codes(words, rows * whole, packing)).reshape(steps, rows, -1)[..., :inputs]
    size = word_bytes(rows * whole, packing)
    trits = decode_codes(unpack_codes(words[:, :size], rows * whole, packing)).reshape(steps, rows, -1)
    bytes_ = words[:, size : size + -(-rest * rows // TRITS_A_BYTE), None].astype(int)
    digits = (bytes_ // _POWERS % 3).reshape(steps, -1)[:, : rest * rows].reshape(steps, rows, rest)
    return np.concatenate([trits, np.array([0, 1, -1], np.int8)[digits]], -1)


def pack_scales(scales: Scales, steps: int, rows_per_cycle: int, mem_bytes: int) -> Bytes:
    """Beats [groups, beats, mem_bytes] of the scales [rows, groups] of each group."""
    rows, groups = scales.shape
    together = scale_steps(rows_per_cycle, mem_bytes)
    words = np.zeros((groups, -(-steps // together) * together * rows_per_cycle), "<u2")
    words[:, :rows] = scales.T
    size = together * rows_per_cycle * SCALE_BITS // 8
    out = np.zeros((groups, words.shape[1] * 2 // size, -(-size // mem_bytes) * mem_bytes), np.uint8)
    out[..., :size] = words.view(np.uint8).reshape(groups, -1, size)
    return out.reshape(groups, -1, mem_bytes)


def unpack_grouped(beats: Bytes, rows: int, inputs: int, group_size: int, tables: int, rows_per_cycle: int,
                   packing: str) -> tuple[Trits, Scales]:
    """Matrix [rows, inputs] and scales [rows, inputs/group_size] of the beats that `pack_grouped` made of them."""
    tile, steps, mem_bytes = tile_inputs(tables, group_size), -(-rows // rows_per_cycle), beats.shape[-1]
    size = scale_steps(rows_per_cycle, mem_bytes) * rows_per_cycle * SCALE_BITS // 8
    ahead, tiles, groups = group_beats(steps, rows_per_cycle, mem_bytes), group_size // tile, inputs // group_size
    if len(beats) != groups * (ahead + tiles * steps):
        raise ValueError(f"a matrix of {rows}x{inputs} has {groups * (ahead + tiles * steps)} beats, not {len(beats)}")
    trits, scales = np.empty((rows, inputs), np.int8), np.empty((rows, groups), np.uint16)
    for group, part in enumerate(beats.reshape(groups, -1, mem_bytes)):
        words = part[:ahead].reshape(-1, -(-size // mem_bytes) * mem_bytes)[:, :size]
        scales[:, group] = np.ascontiguousarray(words).view("<u2").reshape(-1)[:rows]
        for n in range(tiles):
            start = group * group_size + n * tile
            words = part[ahead + n * steps : ahead + (n + 1) * steps]
            trits[:, start : start + tile] = _unpack_tile(words, rows_per_cycle, tile, packing).reshape(-1, tile)[:rows]
    return trits, scales
