"""How many inputs share a scale, by a few rows of a model's matrices: whoever reads a matrix later finds where it is otherwise."""

from __future__ import annotations

from collections.abc import Sequence

from tritloom.gen.models.checkpoint import MASTER, single_magnitude
from tritloom.gen.models.files import Tensor
from tritloom.gen.models.groups import float_size
from tritloom.gen.models.problems import CheckpointError, Problems

SAMPLED_ROWS = 16
"""Rows of a tensor that are looked at, at its beginning, in its middle and near its end."""


def sampled(tensor: Tensor) -> list[Tensor]:
    """A few rows of a matrix or a table."""
    rows = tensor.shape[0]
    return [tensor.rows(start, start + SAMPLED_ROWS) for start in sorted({0, rows // 2, rows - rows // 8 - 1})]


def _one_magnitude(tensor: Tensor) -> bool:
    values = tensor.floats()
    try:
        return not values.any() or single_magnitude(tensor.name, values) is not None
    except CheckpointError:
        return False


def group_size(matrices: Sequence[Tensor], problems: Problems) -> int:
    """Inputs that share a scale in matrices of floats that are ternary already: 0 where every one has one magnitude.

    What is wrong with one of several is left to whoever reads all of it; that none of them is ternary is a problem.
    """
    samples = [part for tensor in matrices for part in sampled(tensor)]
    single = [_one_magnitude(part) for part in samples]
    sizes = [float_size([part]) for part in samples]
    if samples and not any(single) and not any(sizes):
        problems.add(matrices[0].name, "not ternary, nor is any other matrix of its layer, whatever groups of inputs share a scale", MASTER)
    if all(one or size is None for one, size in zip(single, sizes, strict=True)):
        return 0
    return float_size(part for part, size in zip(samples, sizes, strict=True) if size is not None) or 0


def float_fits(table: Tensor, size: int) -> bool:
    """Whether a few rows of a table of floats are ternary in groups of `size`."""
    return size > 0 and (float_size(sampled(table)) or 0) >= size
