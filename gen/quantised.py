"""A model in the machine's integers, whatever the machine: tables, matrices and parameter blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import overload

import numpy as np
from numpy.typing import NDArray

from tritloom.firmware.config import ModelShape
from tritloom.firmware.integer import UFloat
from tritloom.gen.models.spec import ModelSpec

Trits = NDArray[np.int8]


@dataclass(frozen=True)
class Parameters:
    """A parameter block: `scales` are scale0 to scale2; `gains` is None without a norm."""

    scales: tuple[UFloat, ...]
    gains: NDArray[np.int16] | None
    gain_exponent: int
    inverse_count: UFloat
    eps: UFloat

    @property
    def length(self) -> int:
        return 0 if self.gains is None else len(self.gains)


@dataclass(frozen=True)
class Table:
    """An embedding or head table: value = codes[id] * row_scale[id] * scale."""

    codes: NDArray[np.int8]
    row_scale: NDArray[np.uint16]
    scale: UFloat


@dataclass(frozen=True)
class Layer:
    """One layer's matrices [rows, inputs] and the parameter block before each.

    `qkv` is fused; rows of its q and k heads are ordered so that rotary pairs are adjacent. `gate` and `up`
    are apart: how they interleave is the configuration's.
    """

    qkv: Trits
    o: Trits
    gate: Trits
    up: Trits
    down: Trits
    qkv_parameters: Parameters
    o_parameters: Parameters
    gate_up_parameters: Parameters
    down_parameters: Parameters


class Layers(Sequence[Layer]):
    """`count` layers made by `read` when they are used; kept once made if `keep`."""

    def __init__(self, count: int, read: Callable[[int], Layer], *, keep: bool) -> None:
        self.keep = keep
        self._count, self._read = count, read
        self._kept: dict[int, Layer] = {}

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Layer: ...

    @overload
    def __getitem__(self, index: slice) -> list[Layer]: ...

    def __getitem__(self, index: int | slice) -> Layer | list[Layer]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"layer {index} of {len(self)}")
        index %= len(self)
        layer = self._kept.get(index) or self._read(index)
        if self.keep:
            self._kept[index] = layer
        return layer


@dataclass(frozen=True)
class QuantisedModel:
    """Every integer of a model. `head` is `embedding` itself when they are tied; `cos`, `sin` [context, head_dim/2] are Q1.14."""

    spec: ModelSpec
    layers: Layers
    embedding: Table
    head: Table
    embedding_parameters: Parameters
    head_parameters: Parameters
    cos: NDArray[np.int16]
    sin: NDArray[np.int16]
    tokenizer: bytes = b""

    @property
    def shape(self) -> ModelShape:
        return self.spec.shape

    @cached_property
    def ternary_head(self) -> Trits:
        """Trits [vocab, hidden] of the head for a short-list."""
        return ternary_rows(self.head)


def ternary_rows(table: Table) -> Trits:
    """round(w / mean|w|), clipped to -1..1, of the int8 rows times their row scales: in integers, with one mean for the whole table."""
    codes, scale = table.codes, table.row_scale.astype(np.int64)
    total = int((np.abs(codes, dtype=np.int16).sum(-1, dtype=np.int64) * scale).sum())
    least = total // (2 * codes.size)  # |w| above it rounds to 1; codes are integers, so each row has a least code
    beyond = least // np.maximum(scale, 1)
    return np.where(np.abs(codes, dtype=np.int16) > beyond[:, None], np.sign(codes), 0).astype(np.int8)
