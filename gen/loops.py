"""Loops over codes of two bits, compiled: what NumPy does in many passes over memory.

They are compiled when this module is imported for the first time, in some four seconds, and kept; to import what is kept takes most of a
second, so whoever calls them imports it then. Integers are unsigned, and of 64 bits where they are computed with: numba makes floats of
signed and unsigned ones together, and looks whether signed places count from the end. Nothing looks whether places are in bounds: callers
do.
"""

from __future__ import annotations

import hashlib
import platform
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numba import njit, types
from numba.core import config
from numba.core.registry import cpu_target
from numpy.typing import NDArray

from tritloom.system.files import cache, scratch, seal, sound

__all__ = ["PAIR_BIAS", "add_products", "codes_of_base_3", "codes_of_blocks", "words_of_codes", "words_of_fives"]

STEPS = 64
"""Steps of all tiles that are made one after the other: the codes of these rows stay in the processor's cache."""
PRODUCT_ROWS = 1024
"""Rows that are multiplied one after the other, for which sums of four inputs are made: the fewer, the more often; the more, the more of
their own sums leave the cache."""
ZEROS = 0x5555555555555555
"""32 trits of zero; the low bits of 32 codes."""
PAIR_BIAS = 256
"""What is added to a sum of two inputs of 8 bits, so that it is not negative."""


# Reading ---------------------------------------------------------------------------------------------


def codes_of_blocks(blocks: NDArray[np.uint16], codes: NDArray[np.uint64], scales: NDArray[np.uint16]) -> bool:
    """Blocks [n, 1 + 4*words] of a scale and codes, to codes [n, words] and scales [n]. Whether a code is 3."""
    marks = np.uint64(0)
    for block in range(len(blocks)):
        scales[block] = blocks[block, 0]
        for word in range(codes.shape[1]):
            some = np.uint64(0)
            for i in range(4):
                some |= np.uint64(blocks[block, 1 + 4 * word + i]) << np.uint64(16 * i)
            codes[block, word] = some
            marks |= some & some >> np.uint64(1)
    return marks & np.uint64(ZEROS) != np.uint64(0)


def codes_of_base_3(blocks: NDArray[np.uint8], five: NDArray[np.uint64], codes: NDArray[np.uint8]) -> None:
    """PTQ1_0's blocks [n, 28] to codes [n, 32]. The digits of a byte are in bytes of `five` [256], two bits each. Digit i of 16 bytes are
    trits side by side, then those of 8 bytes, and four digits of the last 2."""
    for block in range(len(blocks)):
        for word in range(6):
            digits, to, step = np.uint64(0), word, 4
            if word >= 4:
                to, step = 16 + word, 2
            for i in range(4):
                digits |= five[blocks[block, 4 * word + i]] << np.uint64(2 * i)
            for digit in range(5):
                codes[block, to + step * digit] = digits & np.uint64(255)
                digits >>= np.uint64(8)
        digits = five[blocks[block, 24]] | five[blocks[block, 25]] << np.uint64(2)
        for half in range(2):
            codes[block, 30 + half] = (digits & np.uint64(15)) | (digits >> np.uint64(4) & np.uint64(0xF0))
            digits >>= np.uint64(16)


# Multiplying -----------------------------------------------------------------------------------------


def add_products(codes: NDArray[np.uint64], scales: NDArray[np.uint16], pairs: NDArray[np.uint64], out: NDArray[np.int64]) -> None:
    """Products of codes [rows, words] with eight vectors, each group's times its scale [rows, groups], added to out [rows, 8].

    pairs [words, 8, 2, 16, 2] : of the halves of a word's bytes, by their four bits, what two inputs of each vector times these two trits
                                 are, plus PAIR_BIAS: 16 bits each, in which the sums of a group (64 pairs at most) have room
    """
    rows, groups = scales.shape
    size = codes.shape[1] // groups
    bias = 16 * size * PAIR_BIAS
    flat = pairs.reshape(-1)
    sums = np.empty(8 * 256 * 2, np.uint64)  # of a word's bytes, by their eight bits
    of_rows = np.empty(2 * PRODUCT_ROWS, np.uint64)
    one, lane = np.uint64(1), np.uint64(0xFFFF)
    for first in range(0, rows, PRODUCT_ROWS):
        count = min(PRODUCT_ROWS, rows - first)
        for group in range(groups):
            of_rows[:] = np.uint64(0)
            for word in range(group * size, (group + 1) * size):
                for byte in range(8):
                    low = (word * 8 + byte) * 64
                    for high in range(low + 32, low + 64, 2):
                        place = 512 * byte + 16 * (high - low - 32)
                        for i in range(0, 32, 2):
                            sums[place + i] = flat[low + i] + flat[high]
                            sums[place + i + 1] = flat[low + i + 1] + flat[high + 1]
                column = codes[first : first + count, word]
                for row in range(count):
                    bits, place = column[row], np.uint64(2 * row)
                    a, b = of_rows[place], of_rows[place + one]
                    for byte in range(8):
                        entry = np.uint64(512 * byte) + ((bits & np.uint64(255)) << one)
                        a += sums[entry]
                        b += sums[entry + one]
                        bits >>= np.uint64(8)
                    of_rows[place], of_rows[place + one] = a, b
            for row in range(count):
                scale = np.int64(scales[first + row, group])
                for half in range(2):
                    four = of_rows[2 * row + half]
                    for n in range(4):
                        out[first + row, 4 * half + n] += scale * (np.int64(four & lane) - bias)
                        four >>= np.uint64(16)


# Weight words ----------------------------------------------------------------------------------------


def _put_three(bits: np.uint64, five: NDArray[np.uint8], out: NDArray[np.uint8], place: np.uint64) -> None:
    """Three bytes of trit5, of the bits of 15 codes: each of a triple, and of two trits behind the triples."""
    out[place] = five[bits & np.uint64(63) | bits >> np.uint64(12) & np.uint64(0x3C0)]
    out[place + np.uint64(1)] = five[bits >> np.uint64(6) & np.uint64(63) | bits >> np.uint64(16) & np.uint64(0x3C0)]
    out[place + np.uint64(2)] = five[bits >> np.uint64(12) & np.uint64(63) | bits >> np.uint64(20) & np.uint64(0x3C0)]


def words_of_fives(codes: NDArray[np.uint32], none: NDArray[np.uint32], tile: int, rows_per_cycle: int, ahead: int, size: int,
                   five: NDArray[np.uint8], left: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
    """Weight words of bytes of five trits, of codes [rows, inputs/16]: out [groups, ahead + tiles*steps, bytes], a group's tiles one after
    the other.

    none : codes [inputs/16] of the rows that are none, in the last step
    size : bytes of whole triples in a word; behind them are the trits that are left of the rows
    five, left [1024] : such a byte, of a triple and two trits more, and one of five trits left, by the bits of their codes
    """
    steps = -(-len(codes) // rows_per_cycle)
    tiles = (out.shape[1] - ahead) // steps
    flat = out.reshape(-1)
    chunks = max(1, tile // 16)
    chunk = np.uint64(2 * tile // chunks)  # bits that are taken at once; of the last ones some are left
    rest = np.uint64(2 * (tile % 3))
    mask, whole = (np.uint64(1) << chunk) - np.uint64(1), (np.uint64(1) << chunk - rest) - np.uint64(1)
    two, three, ten, thirty = np.uint64(2), np.uint64(3), np.uint64(10), np.uint64(30)
    for first in range(0, steps, STEPS):
        for t in range(len(out) * tiles):
            for step in range(first, min(first + STEPS, steps)):
                place = np.uint64((t // tiles * out.shape[1] + ahead + t % tiles * steps + step) * out.shape[2])
                end = place + np.uint64(size)
                bits, have, behind, more, over = np.uint64(0), np.uint64(0), end, np.uint64(0), np.uint64(0)
                for row in range(step * rows_per_cycle, (step + 1) * rows_per_cycle):
                    line, at = codes[row] if row < len(codes) else none, np.uint64(2 * tile * t)
                    for _ in range(chunks - 1):  # of 32 bits, beside less than 30
                        bits |= np.uint64(line[at >> np.uint64(5)]) << have
                        _put_three(bits, five, flat, place)
                        bits, have, place, at = bits >> thirty, have + two, place + three, at + chunk
                        if have >= thirty:
                            _put_three(bits, five, flat, place)
                            bits, have, place = bits >> thirty, have - thirty, place + three
                    some = np.uint64(line[at >> np.uint64(5)]) >> (at & np.uint64(31)) & mask
                    bits |= (some & whole) << have
                    have += chunk - rest
                    while have >= thirty:
                        _put_three(bits, five, flat, place)
                        bits, have, place = bits >> thirty, have - thirty, place + three
                    more |= some >> chunk - rest << over
                    over += rest
                    if over >= ten:
                        flat[behind] = left[more & np.uint64(1023)]
                        more, over, behind = more >> ten, over - ten, behind + np.uint64(1)
                bits |= np.uint64(ZEROS) << have
                both = bits >> np.uint64(18)
                while place < end:
                    flat[place] = five[bits & np.uint64(63) | (both & np.uint64(15)) << np.uint64(6)]
                    bits, both, place = bits >> np.uint64(6), both >> np.uint64(4), place + np.uint64(1)
                if over > np.uint64(0):
                    flat[behind] = left[(more | np.uint64(ZEROS) << over) & np.uint64(1023)]


def words_of_codes(codes: NDArray[np.uint32], none: NDArray[np.uint32], tile: int, rows_per_cycle: int, ahead: int,
                   three: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
    """The same of codes of five bits side by side, those of a row's triples; three [64]: codes, by the bits of a triple's."""
    steps = -(-len(codes) // rows_per_cycle)
    tiles = (out.shape[1] - ahead) // steps
    flat = out.reshape(-1)
    chunks = max(1, tile // 16)
    chunk = np.uint64(2 * tile // chunks)
    mask = (np.uint64(1) << chunk) - np.uint64(1)
    six, eight = np.uint64(6), np.uint64(8)
    for first in range(0, steps, STEPS):
        for t in range(len(out) * tiles):
            for step in range(first, min(first + STEPS, steps)):
                place = np.uint64((t // tiles * out.shape[1] + ahead + t % tiles * steps + step) * out.shape[2])
                made, ready = np.uint64(0), np.uint64(0)
                for row in range(step * rows_per_cycle, (step + 1) * rows_per_cycle):
                    line, at = codes[row] if row < len(codes) else none, np.uint64(2 * tile * t)
                    bits, have = np.uint64(0), np.uint64(0)
                    for i in range(1, chunks + 1):
                        bits |= (np.uint64(line[at >> np.uint64(5)]) >> (at & np.uint64(31)) & mask) << have
                        at, have = at + chunk, have + chunk
                        if i == chunks:  # zeros behind the last trits
                            bits |= np.uint64(ZEROS) << have
                            have = (have + np.uint64(5)) // six * six
                        while have >= six:
                            made |= np.uint64(three[bits & np.uint64(63)]) << ready
                            bits, have, ready = bits >> six, have - six, ready + np.uint64(5)
                            if ready >= eight:
                                flat[place] = made & np.uint64(255)
                                made, ready, place = made >> eight, ready - eight, place + np.uint64(1)
                if ready > np.uint64(0):
                    flat[place] = made


# Compiling -------------------------------------------------------------------------------------------


def _read(kind: Any, dimensions: int, aligned: bool = True) -> types.Array:
    return types.Array(kind, dimensions, "C", readonly=True, aligned=aligned)


def _written(kind: Any, dimensions: int) -> types.Array:
    return types.Array(kind, dimensions, "C")


_WORDS = (_read(types.uint32, 2), _read(types.uint32, 1), types.int64, types.int64, types.int64)
_SIGNATURES = {
    "codes_of_blocks": types.boolean(_read(types.uint16, 2, aligned=False), _written(types.uint64, 2), _written(types.uint16, 1)),
    "codes_of_base_3": types.void(_read(types.uint8, 2), _read(types.uint64, 1), _written(types.uint8, 2)),
    "add_products": types.void(_read(types.uint64, 2), _read(types.uint16, 2), _read(types.uint64, 5), _written(types.int64, 2)),
    "_put_three": types.void(types.uint64, _read(types.uint8, 1), _written(types.uint8, 1), types.uint64),
    "words_of_fives": types.void(*_WORDS, types.int64, _read(types.uint8, 1), _read(types.uint8, 1), _written(types.uint8, 3)),
    "words_of_codes": types.void(*_WORDS, _read(types.uint8, 1), _written(types.uint8, 3)),
}  # fmt: skip
"""What is compiled, callees before those who call them."""
_LOOPS = {name: globals()[name] for name in _SIGNATURES}


def _compile(folder: Path | None) -> None:
    """Compile all loops, or take what numba kept in `folder`, and have it keep them there."""
    others = config.CACHE_DIR  # type: ignore[attr-defined]
    config.CACHE_DIR = str(folder or "")  # type: ignore[attr-defined]
    try:
        for name, signature in _SIGNATURES.items():
            globals()[name] = njit(signature, cache=folder is not None, nogil=True)(_LOOPS[name])
    finally:
        config.CACHE_DIR = others  # type: ignore[attr-defined]


def _key() -> str:
    """Digest of all that decides what is compiled, and of what numba compares."""
    source = Path(__file__)
    processor = cpu_target.target_context.codegen().magic_tuple()  # type: ignore[attr-defined]
    parts = (source.read_text("utf-8"), str(source), str(source.stat().st_mtime_ns), numba.__version__, np.__version__,
             platform.python_version(), *map(str, processor))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


def _whole(place: Path) -> bool:
    try:
        (inside,) = place.iterdir()  # numba makes one folder for this file
    except (OSError, ValueError):
        return False
    return sound(inside)


def _fetch(place: Path, compile_in: Callable[[Path | None], None]) -> None:
    """`compile_in` the folder `place`, if it is there as it was sealed: numba trusts what it finds. Otherwise in a new one, which takes its
    place; in none where none can be written."""
    if _whole(place):
        with suppress(OSError):  # it is being cleared
            return compile_in(place)
    compiled = False
    with suppress(OSError), scratch(place.parent) as work:
        made = work / "loops"
        compile_in(made)
        compiled = True
        (inside,) = made.iterdir()
        seal(inside)
        if place.is_dir() and not _whole(place):
            shutil.rmtree(place)  # damaged
        made.rename(place)  # unless another process was first
    if not compiled:
        compile_in(None)


_fetch(cache("loops") / _key(), _compile)
