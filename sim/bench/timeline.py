"""Who worked when: cycles by unit in consecutive bins of time, and their short form in a stored result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tritloom.firmware.isa import Unit

__all__ = ["NONE", "ROWS", "WEIGHTS", "Timeline", "counts", "pack", "unpack", "view"]

WEIGHTS, NONE = "weights", "sequencer"
ROWS = (WEIGHTS, *((unit.name or "").lower() for unit in Unit), NONE)
"""What is counted in a bin: weight beats, busy cycles of each unit, cycles in which no unit was busy."""
VIEW_BINS = 240
"""Bins of a stored view, at most."""

_UNITS = np.array([[bool(busy & unit) for unit in Unit] for busy in range(256)])
_COUNTED = np.zeros((len(ROWS), 256, 2), np.int64)
_COUNTED[0, :, 1] = 1
_COUNTED[1:-1] = _UNITS.T[:, :, None]
_COUNTED[-1, 0] = 1
_COUNTED = np.vstack([_COUNTED.reshape(len(ROWS), -1), np.ones((1, 512), np.int64)])


def counts(histogram: NDArray[np.integer]) -> NDArray[np.int64]:
    """The counts of `ROWS`, and all cycles at the end, of cycles by busy units and weight beat, shape (256, 2)."""
    return _COUNTED @ histogram.astype(np.int64).reshape(-1)


@dataclass(frozen=True)
class Timeline:
    """Bins one after the other: `cycles` of each, and of these the cycles of each of `ROWS`, shape (len(ROWS), bins)."""

    cycles: NDArray[np.int64]
    rows: NDArray[np.int64]

    @classmethod
    def of(cls, samples: Sequence[NDArray[np.int64]]) -> Timeline:
        """From `counts` at the bins' edges, the first and the last among them."""
        steps = np.diff(np.array(samples), axis=0) if len(samples) > 1 else np.zeros((0, len(ROWS) + 1), np.int64)
        steps = steps[steps[:, -1] > 0]
        return cls(steps[:, -1], steps[:, :-1].T)

    def folded(self, bins: int) -> Timeline:
        """The same in `bins` bins at most."""
        edges = np.arange(0, len(self.cycles), max(1, -(-len(self.cycles) // bins)))
        if not len(edges):
            return self
        return Timeline(np.add.reduceat(self.cycles, edges), np.add.reduceat(self.rows, edges, axis=1))

    def part(self, start: float, end: float) -> tuple[int, Timeline]:
        """The bins that begin in cycles `start` to `end`, and the cycle in which the first of them begins."""
        begins = np.cumsum(self.cycles) - self.cycles
        chosen = (begins >= start) & (begins < end)
        return int(begins[chosen][0]) if chosen.any() else 0, Timeline(self.cycles[chosen], self.rows[:, chosen])


def view(timeline: Timeline, layers: int = 0) -> dict[str, Any]:
    """What a result keeps: the whole in bins, and a layer in the middle, if it has `layers` layers before its head."""
    result = {"whole": pack(timeline.folded(VIEW_BINS))}
    if layers and timeline.rows[ROWS.index("matmul")].any():
        number = layers // 2
        end, length = _layers(timeline, layers)
        start, part = timeline.part(end - (layers - number) * length, end - (layers - number - 1) * length)
        result["layer"] = {"number": number + 1, "start": start} | pack(part.folded(VIEW_BINS))
    return result


def _layers(timeline: Timeline, layers: int) -> tuple[int, float]:
    """Cycle in which the last layer ends, and the length of one.

    The ternary engine works only for layers. Each writes its keys and values once, so the length is between the first times of writing;
    where those cannot be told apart, it is a part of all the time up to the end.
    """
    ends = np.cumsum(timeline.cycles)
    end = int(ends[timeline.rows[ROWS.index("matmul")] > 0][-1])
    writing = ends[timeline.rows[ROWS.index("writes")] > 0]
    first = writing[np.diff(writing, prepend=-end) > end / (2 * layers)]
    return end, (first[-1] - first[0]) / (layers - 1) if len(first) == layers > 1 else end / layers


def pack(timeline: Timeline) -> dict[str, Any]:
    """As text: counts one after the other, `n*times` where one repeats."""
    rows = zip(ROWS, timeline.rows.tolist(), strict=True)
    return {"cycles": _pack(timeline.cycles.tolist()), "rows": {name: _pack(row) for name, row in rows}}


def unpack(packed: dict[str, Any]) -> Timeline:
    """The inverse of `pack`. Raises `ValueError` for anything else."""
    try:
        cycles = np.array(_unpack(packed["cycles"]), np.int64)
        rows = [_unpack(packed["rows"][name]) for name in ROWS]
    except (KeyError, TypeError, AttributeError):
        raise ValueError("not a timeline") from None
    if any(len(row) != len(cycles) for row in rows):
        raise ValueError("a timeline's rows must be of one length")
    return Timeline(cycles, np.array(rows, np.int64).reshape(len(ROWS), len(cycles)))


def _pack(values: list[int]) -> str:
    runs: list[list[int]] = []
    for value in values:
        if runs and runs[-1][0] == value:
            runs[-1][1] += 1
        else:
            runs.append([value, 1])
    return " ".join(f"{value}*{times}" if times > 1 else str(value) for value, times in runs)


def _unpack(text: str) -> list[int]:
    result: list[int] = []
    for run in text.split():
        value, _, times = run.partition("*")
        result += [int(value)] * int(times or 1)
    return result
