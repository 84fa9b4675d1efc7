"""A model in the machine's integers, whatever the machine: tables, matrices and parameter blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import overload

import numpy as np
from numpy.typing import NDArray

from tritloom.firmware.config import ModelShape
from tritloom.firmware.integer import UFloat, grouped_weights
from tritloom.gen.models.codes import Codes, Trits, trits_of, used
from tritloom.gen.models.spec import ModelSpec

Scales = NDArray[np.uint16]


@dataclass(frozen=True)
class HeadNorms:
    """Norms of queries and keys: gains [2, head_dim], rotary pairs adjacent, their exponents, and what every head's norm takes besides."""

    gains: NDArray[np.int16]
    exponents: tuple[int, int]
    inverse_count: UFloat
    eps: UFloat


@dataclass(frozen=True)
class Parameters:
    """A parameter block: `scales` are scale0 to scale2; `gains` is None without a norm; `heads`: of queries and keys, before qkv; `bias`
    [hidden]: what is added to the residual stream beside o's or down's product, times scale1."""

    scales: tuple[UFloat, ...]
    gains: NDArray[np.int16] | None
    gain_exponent: int
    inverse_count: UFloat
    eps: UFloat
    heads: HeadNorms | None = None
    bias: NDArray[np.int16] | None = None

    @property
    def stored_gains(self) -> NDArray[np.int16]:
        """All gains in the order in which they are stored."""
        parts = (self.gains, None if self.heads is None else self.heads.gains.reshape(-1), self.bias)
        return np.concatenate([np.zeros(0, np.int16), *(part for part in parts if part is not None)])


@dataclass(frozen=True)
class Table:
    """An embedding or head table: value = codes[id] * row_scale[id] * scale."""

    codes: NDArray[np.int8]
    row_scale: NDArray[np.uint16]
    scale: UFloat

    @cached_property
    def tops(self) -> NDArray[np.int64]:
        """Greatest magnitude of each row, in units of `scale`."""
        return self.row_scale.astype(np.int64) * np.abs(self.codes).max(-1)

    def rows(self, ids: NDArray[np.integer] | list[int]) -> NDArray[np.int64]:
        """Rows [n, hidden] in units of `scale`."""
        return self.codes[ids].astype(np.int64) * self.row_scale[ids].astype(np.int64)[:, None]


@dataclass(frozen=True)
class GroupedTable:
    """An embedding or head that is ternary by groups: value = trits[id] * its group's scales[id, group] * scale. `codes`: of the trits."""

    codes: Codes
    scales: Scales
    scale: UFloat

    @property
    def trits(self) -> Trits:
        """int8 [vocab, hidden]."""
        return trits_of(self.codes)

    @cached_property
    def tops(self) -> NDArray[np.int64]:
        """Greatest magnitude of each row, in units of `scale`."""
        return (self.scales * used(self.codes, self.scales.shape[1])).max(-1).astype(np.int64)

    def rows(self, ids: NDArray[np.integer] | list[int]) -> NDArray[np.int64]:
        """Rows [n, hidden] in units of `scale`."""
        return grouped_weights(trits_of(self.codes[ids]), self.scales[ids]).astype(np.int64)


@dataclass(frozen=True)
class Layer:
    """One layer's matrices [rows, inputs] and the parameter block before each.

    `qkv` is fused; rows of its q and k heads are ordered so that rotary pairs are adjacent. `gate` and `up`
    are apart: how they interleave is the configuration's. `group_scales`: of each matrix, [rows, groups], where they have any; the matrices
    are then codes [rows, inputs/4]. A bias of qkv, gate and up is one more group of inputs, `ModelShape.bias_inputs`: a row's bias is its
    scale and the sign of its first BIAS_CODES trits, in units in which `integer.bias_codes` stands for one.
    """

    qkv: Trits | Codes
    o: Trits | Codes
    gate: Trits | Codes
    up: Trits | Codes
    down: Trits | Codes
    qkv_parameters: Parameters
    o_parameters: Parameters
    gate_up_parameters: Parameters
    down_parameters: Parameters
    group_scales: dict[str, Scales] = field(default_factory=dict)

    def trits(self, name: str) -> Trits:
        """A matrix's trits, int8 [rows, inputs]."""
        return trits_of(getattr(self, name)) if self.group_scales else getattr(self, name)

    def weights(self, name: str) -> NDArray[np.float32] | NDArray[np.float64]:
        """A matrix as `integer.ternary_matmul` takes it, or with groups `integer.grouped_matmul`."""
        trits = self.trits(name)
        return grouped_weights(trits, self.group_scales[name]) if self.group_scales else trits.astype(np.float32)


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
    embedding: Table | GroupedTable
    head: Table | GroupedTable
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
        assert isinstance(self.head, Table)
        return ternary_rows(self.head)


def ternary_rows(table: Table) -> Trits:
    """round(w / mean|w|), clipped to -1..1, of the int8 rows times their row scales: in integers, with one mean for the whole table."""
    codes, scale = table.codes, table.row_scale.astype(np.int64)
    total = int((np.abs(codes, dtype=np.int16).sum(-1, dtype=np.int64) * scale).sum())
    least = total // (2 * codes.size)  # |w| above it rounds to 1; codes are integers, so each row has a least code
    beyond = least // np.maximum(scale, 1)
    return np.where(np.abs(codes, dtype=np.int16) > beyond[:, None], np.sign(codes), 0).astype(np.int8)
