"""Ternary weights with a scale for each group of consecutive inputs of a row: the record, and what containers store, decoded.

Every decoder is exact and refuses, with place and count, what is not ternary. Trits stay at two bits each (`codes`). Rows are taken STEP
weights at a time, so that what is made on the way stays in the processor's cache.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tritloom.gen.models.codes import ZEROS, Codes, Trits, codes_of, trits_of, used
from tritloom.gen.models.files import Tensor
from tritloom.gen.models.problems import CheckpointError

Scales = NDArray[np.float16]
Bits = NDArray[np.unsignedinteger]

SIZES = (128, 64)
"""Inputs that may share a scale, the larger first: whatever a container stores, the largest that the weights allow is taken."""
BLOCKS = {"Q2_0": (64, 18), "PQ2_0": (128, 34), "PTQ1_0": (128, 28)}
"""GGUF types: weights and bytes of a block, which is a group."""
STEP = 1 << 19
AGAIN = "the file is damaged or laid out another way: download it again"
TRAINED = "take a model that was trained with ternary weights, in the form in which it was published"


@dataclass(frozen=True, eq=False)
class Grouped:
    """A ternary matrix, or rows of one: `codes` of its trits [rows, inputs/4]; `scales` float16 [rows, groups], not negative, each of
    which multiplies `group_size` consecutive trits of its row.

    A group of zeros has the scale that its container stores (0 in `-unpacked` form, which stores none). So two forms of one model are
    equal if their trits are, and their scales wherever a trit of the group is not zero: `same`.
    """

    codes: Codes
    scales: Scales

    @classmethod
    def of(cls, trits: Trits, scales: Scales) -> Grouped:
        """A matrix of trits int8 [rows, inputs], -1 to 1."""
        return cls(codes_of(trits), scales)

    @property
    def trits(self) -> Trits:
        """int8 [rows, inputs]."""
        return trits_of(self.codes)

    @property
    def group_size(self) -> int:
        return 4 * self.codes.shape[1] // self.scales.shape[1]

    @property
    def used(self) -> NDArray[np.bool_]:
        """Groups [rows, groups] that hold a trit other than 0."""
        return used(self.codes, self.scales.shape[1])

    def floats(self) -> NDArray[np.float32]:
        """The weights [rows, inputs], exactly."""
        trits = self.trits
        return (trits.reshape(*self.scales.shape, -1) * self.scales.astype(np.float32)[..., None]).reshape(trits.shape)

    def same(self, other: Grouped) -> bool:
        """Whether both are the same matrix in groups of one size: bit for bit, scales of groups of zeros aside."""
        if self.codes.shape != other.codes.shape or self.scales.shape != other.scales.shape or not np.array_equal(self.codes, other.codes):
            return False
        used = self.used
        return bool(np.array_equal(self.scales.view(np.uint16)[used], other.scales.view(np.uint16)[used]))

    def in_groups(self, name: str, size: int) -> Grouped:
        """The same matrix in groups of `size`. Raises CheckpointError where groups that become one have different scales."""
        have = self.group_size
        if size == have:
            return self
        if size < have:
            return Grouped(self.codes, np.repeat(self.scales, have // size, 1))
        scales, odd = self._merged(size)
        if odd.any():
            row, group = _first(odd)
            what = f"{int(odd.sum())} groups of {size} inputs have scales of their own for each {have}, unlike other rows of the model"
            raise CheckpointError(name, f"{what} (the first is group {group} of row {row})", AGAIN)
        return Grouped(self.codes, scales)

    def fits(self, size: int) -> bool:
        """Whether `in_groups` can give groups of `size`."""
        have, inputs = self.group_size, 4 * self.codes.shape[1]
        return inputs % size == 0 and (have % size == 0 or (size % have == 0 and not self._merged(size)[1].any()))

    def _merged(self, size: int) -> tuple[Scales, NDArray[np.bool_]]:
        """Scales [rows, inputs/size] of larger groups, and which of them cannot be: groups of zeros have any scale."""
        parts = self.scales.view(np.uint16).reshape(len(self.scales), -1, size // self.group_size)
        if (parts[..., 1:] == parts[..., :1]).all():
            return parts[..., 0].view(np.float16), np.zeros(parts.shape[:2], np.bool_)
        used = self.used.reshape(parts.shape)
        first = np.take_along_axis(parts, used.argmax(-1)[..., None], -1)
        return first[..., 0].view(np.float16), (used & (parts != first)).any(-1)


def common_size(samples: Iterable[Grouped]) -> int | None:
    """The largest size of groups that all of these have, or None."""
    samples = list(samples)
    return next((size for size in SIZES if all(each.fits(size) for each in samples)), None)


def _first(bad: NDArray[np.bool_]) -> tuple[int, int]:
    """Row and column of the first place that is marked."""
    row, column = np.unravel_index(int(bad.argmax()), bad.shape)
    return int(row), int(column)


def _steps(rows: int, inputs: int) -> Iterator[slice]:
    step = max(1, STEP // inputs)
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def checked(name: str, codes: Codes, scales: Scales) -> Grouped:
    """The record, its scales checked; trits under a scale of 0 become 0, which they stand for."""
    bits = scales.view(np.uint16)
    if bits.max(initial=0) < 0x7C00 and bits.min(initial=1):
        return Grouped(codes, scales)
    if (bad := (bits >= 0x7C00) & (bits != 0x8000)).any():
        row, group = _first(bad)
        what = f"{int(bad.sum())} scales are negative or not finite"
        raise CheckpointError(name, f"{what}, the first is {scales[row, group]} (group {group} of row {row})", AGAIN)
    codes.reshape(*scales.shape, -1)[bits & 0x7FFF == 0] = ZEROS
    return Grouped(codes, (bits & np.uint16(0x7FFF)).view(np.float16))


def halves(name: str, scales: NDArray[np.floating]) -> Scales:
    """Scales as float16, which must hold them exactly. Raises CheckpointError."""
    with np.errstate(over="ignore", invalid="ignore"):
        found = scales.astype(np.float16)
        bad = found.astype(scales.dtype) != scales
    if bad.any() and (bad := bad & np.isfinite(scales)).any():
        row, group = _first(bad)
        what = f"{int(bad.sum())} scales are no float16 values, the first is {scales[row, group]:.9g} (group {group} of row {row})"
        raise CheckpointError(name, what, "convert the model from the form that it was published in")
    return found


# Two bits a weight -----------------------------------------------------------------------------------

def no_code_3(name: str, codes: NDArray[np.uint8]) -> None:
    """Codes uint8 [rows, inputs/4], the first in the low bits, hold none that is 3. Raises CheckpointError."""
    marks = codes & codes >> 1 & 0x55
    if marks.any():
        row, byte = _first(marks != 0)
        inside = next(i for i in range(4) if marks[row, byte] >> 2 * i & 1)
        count = int(np.bitwise_count(marks).sum())
        where = f"the first in row {row}, column {4 * byte + inside}"
        raise CheckpointError(name, f"not ternary: holds code 3, which stands for +2, {count} times, {where}", TRAINED)


def _two_bits(tensor: Tensor, rows: int, inputs: int, block: int) -> tuple[Codes, Scales]:
    from tritloom.gen.loops import codes_of_blocks

    blocks = tensor.data.view("<u2").reshape(-1, 1 + block // 8)
    codes, scales = np.empty((len(blocks), block // 32), "<u8"), np.empty(len(blocks), "<u2")
    found_3 = codes_of_blocks(blocks, codes, scales)
    found = codes.view(np.uint8).reshape(rows, inputs // 4)
    if found_3:
        no_code_3(tensor.name, found)
    return found, scales.view("<f2").reshape(rows, -1)


# Base 3 ----------------------------------------------------------------------------------------------


def _digits() -> NDArray[np.uint64]:
    """Codes of the digits of each byte, one in the low bits of each byte of a word, the first in the lowest [256]. A byte holds digits as
    ceil(256/243 * number): the first is 1 from 86 on, 2 from 171 on, and 3 times the byte has the next one in its place."""
    left, found = np.arange(256).astype(np.uint8), np.zeros(256, np.uint64)
    for digit in range(5):
        found |= ((left >= 86).astype(np.uint64) + (left >= 171)) << np.uint64(8 * digit)
        left *= 3
    return found


def _base_3(tensor: Tensor, rows: int, inputs: int) -> tuple[Codes, Scales]:
    """PTQ1_0: blocks of 26 bytes of digits and a scale."""
    from tritloom.gen.loops import codes_of_base_3

    blocks = tensor.data.view(np.uint8).reshape(-1, 28)
    codes = np.empty((len(blocks), 32), np.uint8)
    codes_of_base_3(blocks, _digits(), codes)
    return codes.reshape(rows, inputs // 4), np.ascontiguousarray(blocks[:, 26:]).view("<f2").reshape(rows, -1)


def of_blocks(tensor: Tensor) -> Grouped:
    """A Q2_0, PQ2_0 or PTQ1_0 tensor [rows, inputs] in its groups. Raises CheckpointError for code 3 and for scales that are none."""
    rows, inputs = tensor.shape
    base_3 = tensor.dtype == "PTQ1_0"
    return checked(tensor.name, *(_base_3(tensor, rows, inputs) if base_3 else _two_bits(tensor, rows, inputs, BLOCKS[tensor.dtype][0])))


# Floats that are ternary already ---------------------------------------------------------------------

_FORMATS: dict[str, tuple[str, int]] = {"F16": ("<u2", 0x7C00), "BF16": ("<u2", 0x7F80), "F32": ("<u4", 0x7F800000)}
"""Type of a value's bits, and those of infinity: magnitudes are compared as integers."""


def _magnitudes(tensor: Tensor, inputs: int) -> tuple[Bits, str]:
    """A tensor's bits [rows, inputs], and the name of their format."""
    if tensor.dtype in _FORMATS:
        return tensor.data.view(_FORMATS[tensor.dtype][0]).reshape(-1, inputs), tensor.dtype
    with np.errstate(over="ignore"):
        return tensor.floats().view(np.uint32).reshape(-1, inputs), "F32"


def of_floats(tensor: Tensor, size: int) -> Grouped:
    """A tensor [rows, inputs] of floats that are ternary in groups of `size`. Raises CheckpointError where they are not."""
    rows, inputs = tensor.shape
    bits, form = _magnitudes(tensor, inputs)
    groups = inputs // size
    infinity = _FORMATS[form][1]
    sign = bits.dtype.type(1 << 8 * bits.itemsize - 1)
    codes, top = np.empty((rows, inputs // 4), np.uint8), np.empty((rows, groups), bits.dtype)
    for part in _steps(rows, inputs):
        given = bits[part]
        size_of = (given & ~sign).reshape(-1, groups, size)
        size_of.max(-1, out=top[part])
        others = (size_of != top[part][..., None]) & (size_of != 0)
        if others.any():
            raise _not_ternary(tensor.name, part.start, size_of, top[part], others.reshape(-1, inputs), infinity, size)
        negative = given > sign
        codes[part] = codes_of((size_of != 0).reshape(negative.shape).view(np.int8) - negative.view(np.int8) * np.int8(2))
    if (top >= infinity).any():
        bad = int((top >= infinity).sum())
        raise CheckpointError(tensor.name, f"values of {bad} groups are NaN or infinite", AGAIN)
    if form == "F16":
        return Grouped(codes, top.view("<f2").astype(np.float16, copy=False))
    scales = (top.astype(np.uint32) << 16 if form == "BF16" else top.astype(np.uint32, copy=False)).view(np.float32)
    return Grouped(codes, halves(tensor.name, scales))


def _not_ternary(name: str, start: int, size_of: Bits, top: Bits, others: NDArray[np.bool_], infinity: int, size: int) -> CheckpointError:
    if (top >= infinity).any():
        return CheckpointError(name, f"{int((size_of >= infinity).sum())} values are NaN or infinite", AGAIN)
    row, column = _first(others)
    what = f"not ternary in groups of {size}: {int(others.sum())} values from row {start} on are neither 0 nor as large as their group's"
    return CheckpointError(name, f"{what} largest, the first in row {start + row}, column {column}", TRAINED)


def float_size(samples: Iterable[Tensor]) -> int | None:
    """The largest size of groups in which all of these floats are ternary, or None."""
    samples = list(samples)
    return next((size for size in SIZES if all(_ternary_in(each, size) for each in samples)), None)


def _ternary_in(tensor: Tensor, size: int) -> bool:
    inputs = tensor.shape[1]
    if inputs % size:
        return False
    bits, _ = _magnitudes(tensor, inputs)
    found = (bits & ~bits.dtype.type(1 << 8 * bits.itemsize - 1)).reshape(-1, inputs // size, size)
    return bool(((found == found.max(-1, keepdims=True)) | (found == 0)).all())


# MLX -------------------------------------------------------------------------------------------------


def of_affine(name: str, codes: NDArray[np.uint32], scales: NDArray[np.float32], biases: NDArray[np.float32]) -> Grouped:
    """MLX's two bits a weight, uint32 [rows, inputs/16] with the first in the low bits: weight = scale · code + bias, a group each.

    It is ternary where the bias is -scale times a code and all codes of the group are that one or next to it. `scales` and `biases`:
    float32 [rows, groups], as exact as they are stored. Raises CheckpointError where a group is not ternary.
    """
    packed = codes.astype("<u4").view(np.uint8)
    if not (np.isfinite(scales).all() and np.isfinite(biases).all()):
        bad = ~(np.isfinite(scales) & np.isfinite(biases))
        row, group = _first(bad)
        what = f"scale or bias of {int(bad.sum())} groups is NaN or infinite"
        raise CheckpointError(name, f"{what}, the first is group {group} of row {row}", AGAIN)
    found = halves(name, np.abs(scales))
    usual = (biases == -scales) & (scales > 0)
    if usual.all():
        no_code_3(name, packed)
        return Grouped(packed, found)
    groups = (trits_of(packed) + np.int8(1)).reshape(*scales.shape, -1)  # codes, a byte each
    with np.errstate(divide="ignore", invalid="ignore"):
        zero = np.where(scales == 0, 0, -biases / scales)
    exact = (zero == np.rint(zero)) & (np.abs(zero) <= 4) & (scales * zero == -biases)
    values = groups - np.where(exact, zero, 0).astype(np.int8)[..., None]
    values[scales == 0] = 0
    bad = ~exact | (np.abs(values).max(-1) > 1)
    if bad.any():
        row, group = _first(bad)
        used = sorted({float(v) for v in np.unique(groups[row, group]) * scales[row, group] + biases[row, group]})
        what = f"not ternary: {int(bad.sum())} groups hold other values than 0 and one magnitude, the first is group {group} of row {row}"
        raise CheckpointError(name, f"{what} ({', '.join(f'{v:.4g}' for v in used)})", TRAINED)
    values *= np.where(scales < 0, -1, 1).astype(np.int8)[..., None]
    return Grouped.of(values.reshape(len(codes), -1), found)
