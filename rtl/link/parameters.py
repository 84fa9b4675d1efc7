"""The link's parameters: what it is built from, and what it instantiates."""

from __future__ import annotations

from dataclasses import dataclass

from tritloom.firmware.link import BUFFER_WORDS
from tritloom.rtl.parameters import MemoryUse, require, require_positive

__all__ = ["FRACTION_BITS", "LinkParameters"]

FRACTION_BITS = 5
"""A bit's length is counted in cycles / 2**FRACTION_BITS where whole cycles are not exact enough."""
LEAST_CYCLES = 8
"""Shortest bit, in cycles: what is sampled in its middle, a byte's turn through the CRC."""
TOLERANCE = 0.01
"""Error of the bit's length up to which whole cycles do."""


@dataclass(frozen=True, kw_only=True)
class LinkParameters:
    """Parameters of `rtl.link.link.UartLink`.

    clock_hz : int
        Frequency of the clock.
    baud : int
        Bits per second on both pins.
    """

    clock_hz: int
    baud: int = 3_000_000

    def __post_init__(self) -> None:
        require_positive(self, ("clock_hz", "baud"))
        require(self.clock_hz < 1 << 32, f"clock_hz must be below 2**32, not {self.clock_hz}")
        require(self.clock_hz / self.baud >= LEAST_CYCLES,
                f"baud must be at most clock_hz / {LEAST_CYCLES}, which is {self.clock_hz // LEAST_CYCLES}, not {self.baud}")

    @property
    def bit_length(self) -> tuple[int, int]:
        """Cycles of a bit, and what is added to them in 2**-FRACTION_BITS of a cycle: 0 where whole cycles are within `TOLERANCE`."""
        exact = self.clock_hz / self.baud
        if abs(round(exact) / exact - 1) <= TOLERANCE:
            return round(exact), 0
        whole, part = divmod(round(exact * (1 << FRACTION_BITS)), 1 << FRACTION_BITS)
        return whole, part

    def memories(self) -> tuple[MemoryUse, ...]:
        """What the unit instantiates."""
        return (MemoryUse(name="bridge.words", width=32, depth=2 * BUFFER_WORDS),)
