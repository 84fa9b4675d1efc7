"""Timing presets of the memory behind a simulated machine's AXI ports."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["DDR", "IDEAL", "PRESETS", "MemoryTiming", "preset"]


@dataclass(frozen=True, kw_only=True)
class MemoryTiming:
    """What a memory port does with a burst: wait, then one beat per cycle, in order. All in clock cycles.

    `latency`: from an accepted read to its first beat, or from written data to its response.
    `jitter`: up to so many cycles more, drawn for each burst (a busy controller, a closed row).
    `refresh_interval`, `refresh_cycles`: every interval the memory delivers nothing for so long, all
    ports at once as they share one memory; 0 means never.
    `outstanding`: reads that a port accepts before it has delivered them.
    """

    latency: int
    jitter: int = 0
    refresh_interval: int = 0
    refresh_cycles: int = 0
    outstanding: int = 16

    def __post_init__(self) -> None:
        for name, low in (("latency", 1), ("jitter", 0), ("refresh_interval", 0), ("refresh_cycles", 0), ("outstanding", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < low:
                raise ValueError(f"{name} must be an integer of at least {low}, not {value!r}")
        if self.refresh_interval and self.refresh_cycles >= self.refresh_interval:
            raise ValueError(f"refresh_cycles ({self.refresh_cycles}) must be below refresh_interval ({self.refresh_interval})")

    @property
    def beat_rate(self) -> float:
        """Beats per cycle this memory can deliver at most."""
        return 1 - self.refresh_cycles / self.refresh_interval if self.refresh_interval else 1.0


IDEAL = MemoryTiming(latency=4)
"""No wait but four cycles: shows what the machine alone does."""

DDR = MemoryTiming(latency=60, jitter=16, refresh_interval=1950, refresh_cycles=88)
"""DDR4 behind a hard controller, seen at 250 MHz: 240 ns latency (a read through the Zynq
UltraScale+ interconnect, unloaded), up to 64 ns more for row misses, and JEDEC's refresh every
7.8 us for 350 ns (8 Gb chips). The model assumes that the controller's peak is above the ports'
rate, so row misses cost time but no beats: 0.955 beats per cycle at most."""

PRESETS = {"ideal": IDEAL, "ddr": DDR}


def preset(name: str) -> MemoryTiming:
    """The timing called `name`."""
    if name not in PRESETS:
        raise ValueError(f"memory timing must be one of {', '.join(PRESETS)}, not {name!r}")
    return PRESETS[name]
