"""What the parameter records of all units have in common: the memories that a unit publishes, and checks.

A room of rtl/ has its records in `parameters.py`: frozen, keyword-only dataclasses that validate themselves, with `of(config)`,
`memories()`, and latencies and cycles as plain functions of the record. The hardware is built from the record, and gen/fit asks the same
record what a machine costs and how fast it is. None of these modules imports Amaranth: `tritloom fit` runs without it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

__all__ = ["FIFO_LATENCY", "MemoryUse", "index_bits", "require", "require_positive", "require_power_of_two"]

FIFO_LATENCY = 2
"""Cycles from the input to the output of an empty `rtl.stream.Fifo`."""


@dataclass(frozen=True, kw_only=True)
class MemoryUse:
    """Memories that a unit instantiates (`amaranth.lib.memory.Memory`); tests/rtl/test_memories.py compares with what is elaborated.

    name : str
        Path of submodules below the unit, without their numbers: `lane.table` for lane_0.table_0, lane_0.table_1 and so on. A
        `rtl.stream.Fifo` is one memory of its own name.
    width, depth : int
        Bits of a word, words.
    count : int
        Memories of this kind.
    read_ports, write_parts : int
        Read ports of each; parts of a word that can be written alone.
    kind : "ram", "rom", "async" or "ultra"
        Written and read at the clock's edge; never written; read without a clock; RAM that asks for UltraRAM.
    """

    name: str
    width: int
    depth: int
    count: int = 1
    read_ports: int = 1
    write_parts: int = 1
    kind: Literal["ram", "rom", "async", "ultra"] = "ram"


def require(condition: bool, message: str) -> None:
    """Raise ValueError unless `condition` holds."""
    if not condition:
        raise ValueError(message)


def require_positive(record: object, names: Iterable[str]) -> None:
    """Raise ValueError unless the named fields are integers from 1 up."""
    for name in names:
        value = getattr(record, name)
        require(type(value) is int and value > 0, f"{name} must be a positive integer, not {value!r}")


def require_power_of_two(record: object, name: str, least: int = 1, most: int | None = None) -> None:
    """Raise ValueError unless the named field is a power of two from `least` to `most`."""
    value = getattr(record, name)
    limits = f" from {least}" if most is None else f" from {least} to {most}"
    require(type(value) is int and least <= value and (most is None or value <= most) and value & (value - 1) == 0,
            f"{name} must be a power of two{limits if least > 1 or most is not None else ''}, not {value!r}")


def index_bits(count: int) -> int:
    """Width of an index below `count`, at least one bit."""
    return max(1, (count - 1).bit_length())
