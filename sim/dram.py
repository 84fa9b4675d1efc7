"""Timing presets of the memory behind a simulated machine's AXI ports.

There are two models: a plain one, in which each port has a memory of its own that waits and then delivers a beat
per cycle (`MemoryTiming` alone: presets "ideal" and "ddr"), and a DDR4 channel with banks and rows which all ports
share (`MemoryTiming.dram`, sim/dram.h: presets "kv260", "kv260-optimistic", "kv260-pessimistic").

**The channel.** The controller cuts bursts into accesses of 64 bytes (8 transfers on 64 data lines). Of each port
it looks `window` accesses ahead, in order, and opens their rows; a row stays open until another one of its bank is
wanted. Among accesses whose row is open, the one that can have the data bus first gets it, so that hits pass other
ports' misses and bank groups alternate; equals take turns. A refresh closes all rows. Writes take the gaps, or go
first once one has waited `write_wait` cycles. Data return in order to each port, a beat per cycle; up to
`buffer_lines` accesses a port are read ahead of that.

**Numbers of the DRAM.** JEDEC JESD79-4, speed bin DDR4-2400R (17-17-17), 8 Gb devices of 16 bits as on the K26
module (two bank groups of four banks, rows of 2 KiB a device and so 8 KiB in all), clock 1200 MHz, peak 19.2 GB/s:
CL 17, CWL 12, tRCD = tRP = 14.16 ns, tRAS 32 ns, tRC 46.16 ns, tRRD_S 5.3 ns, tFAW 30 ns, tCCD_S 4 clocks,
tCCD_L 5 ns, tRTP 7.5 ns, tWR 15 ns, tWTR_L 7.5 ns, tREFI 7.8 us, tRFC 350 ns, each rounded up to clocks.

**Numbers of the processing system.** No document gives them in cycles; they are assumptions: 52 cycles of latency
besides the DRAM's own (an idle read of a closed row then takes 240 ns), up to 16 more for each burst, 16 bursts
outstanding a port. Bits of an address, from the lowest: byte of the access, bank group, column, bank, row: 16 KiB
in sequence lie in one pair of rows. The ports' stripes begin one bank apart (`stagger`), as a host that chooses
their base addresses can arrange. HP1 and HP2 reach the DDR controller through one of its ports (Zynq UltraScale+
TRM, UG1085), so that an access of either keeps `pair_gap` clocks from the one before.

**Calibration.** bitnet-kv260 measured 15.93 to 16.01 GB/s on long sequential reads over four 128-bit ports at
250 MHz: the ports' own rate, as the DRAM's peak is above it and data read ahead bridge a refresh. It also saw HP1 and
HP2 finish 9 to 33 % after HP0 and HP3, and 12.7 GB/s at worst. `buffer_lines` follows from the first (a refresh and
the precharge before it stop the DRAM for 91 cycles, and data are on their way for some 26 more), the pessimistic
`pair_gap` from the second (12 clocks are 6.4 GB/s for the pair, 12.8 GB/s for four ports that wait for each other).
`tritloom.sim.traffic.measure` gives the rates of a preset and tests/sim/test_dram.py holds them to these numbers. Four ports
that read the stripes of the same beats and so stay within 4 KiB of each other get 15.9 GB/s in the nominal preset, 16.0 and
12.8 in the others; ports that run freely meet in banks and get 15.5 to 15.9 in the nominal one.

**Random reads of 64 bytes.** Each of them opens a row. Four activations per tFAW are at most 4 * 64 B / 30 ns =
8.5 GB/s, with refreshes 8.1 GB/s, which the model reaches when it is given very many banks. Eight banks lower this:
each is busy for tRC = 46.7 ns, so that they would serve 11 GB/s if always busy, but requests of four ports in order find
their bank taken and hold up those behind them. A lower bound is no overlap within a port at all: four requests per
tRP + tRCD + CL + 4 clocks = 46 ns, of which 4 random requests find 3.3 different banks: 3.3 * 64 B / 46 ns = 4.6 GB/s,
4.4 with refreshes. The model gives 5.9.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from math import gcd

from tritloom.boards.board import DEFAULT_BOARD, load
from tritloom.firmware.errors import InputError
from tritloom.firmware.names import unknown

__all__ = ["DDR", "DDR4_2400", "IDEAL", "KV260", "KV260_OPTIMISTIC", "KV260_PESSIMISTIC", "LINE_BYTES", "PRESETS", "SEEN_AT_HZ", "Dram",
           "MemoryTiming", "SDR16", "SDR32", "DDR16", "TimingError", "preset"]

LINE_BYTES = 64
"""Bytes of one access to the channel."""


@dataclass(frozen=True, kw_only=True)
class Dram:
    """A DDR4 channel; times in DRAM clocks unless said otherwise. Mirrors SimDramParameters of sim/harness.h.

    `ticks_per_clock`, `ticks_per_cycle`: lengths of a DRAM clock and of a fabric cycle in a common unit;
    `bank_groups`, `banks`: groups, and banks in each; `row_lines`: accesses of 64 bytes in a row.

    `activate` tRCD, `precharge` tRP, `row_open` tRAS, `row_cycle` tRC, `activate_gap` tRRD_S, `four_activates` tFAW,
    `column_gap` tCCD_S, `column_gap_group` tCCD_L, `read_latency` CL, `write_latency` CWL; `read_to_write`,
    `write_to_read`: from one's column command to the other's; `read_to_close`, `write_to_close`: from the column
    command to the precharge; `refresh_interval` tREFI (0: never), `refresh` tRFC.

    `window`: accesses a port whose rows are opened ahead; `hit_limit`: accesses to an open row after which another
    row of the bank goes first; `write_wait`: cycles after which a write goes before reads; `buffer_lines`: accesses a
    port read and not yet delivered; `stagger`: banks between the beginnings of the ports' stripes; `pair_gap`: clocks
    between accesses of ports 1 and 2, if there are four ports (0: they do not share a way).
    """

    ticks_per_clock: int
    ticks_per_cycle: int
    bank_groups: int
    banks: int
    row_lines: int
    activate: int
    precharge: int
    row_open: int
    row_cycle: int
    activate_gap: int
    four_activates: int
    column_gap: int
    column_gap_group: int
    read_latency: int
    write_latency: int
    read_to_write: int
    write_to_read: int
    read_to_close: int
    write_to_close: int
    refresh_interval: int
    refresh: int
    window: int
    hit_limit: int
    write_wait: int
    buffer_lines: int
    stagger: int
    pair_gap: int

    def __post_init__(self) -> None:
        may_be_zero = ("refresh_interval", "refresh", "stagger", "pair_gap", "write_wait")
        for field in dataclasses.fields(self):
            value, low = getattr(self, field.name), int(field.name not in may_be_zero)
            if not isinstance(value, int) or value < low:
                raise ValueError(f"{field.name} must be an integer of at least {low}, not {value!r}")
        if self.refresh_interval and self.refresh + self.precharge >= self.refresh_interval:
            raise ValueError(f"refresh ({self.refresh}) and precharge ({self.precharge}) must be below refresh_interval "
                             f"({self.refresh_interval})")

    @property
    def bytes_per_cycle(self) -> float:
        """Most bytes the data bus carries in a fabric cycle, refreshes included."""
        busy = 1 - (self.refresh + self.precharge) / self.refresh_interval if self.refresh_interval else 1.0
        return busy * LINE_BYTES * self.ticks_per_cycle / (self.ticks_per_clock * self.column_gap)


@dataclass(frozen=True, kw_only=True)
class MemoryTiming:
    """What a memory port does with a burst: wait, then one beat per cycle, in order. All in clock cycles.

    `latency`: from an accepted read to its first beat, or from written data to its response.
    `jitter`: up to so many cycles more, drawn for each burst (a busy controller, a closed row).
    `refresh_interval`, `refresh_cycles`: every interval the memory delivers nothing for so long, all
    ports at once as they share one memory; 0 means never.
    `outstanding`: reads that a port accepts before it has delivered them.
    `dram`: the channel behind all ports; then `latency` and `jitter` are what is between the ports and it, and
    refreshes are the channel's.
    """

    latency: int
    jitter: int = 0
    refresh_interval: int = 0
    refresh_cycles: int = 0
    outstanding: int = 16
    dram: Dram | None = None

    def __post_init__(self) -> None:
        for name, low in (("latency", 1), ("jitter", 0), ("refresh_interval", 0), ("refresh_cycles", 0), ("outstanding", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < low:
                raise ValueError(f"{name} must be an integer of at least {low}, not {value!r}")
        if self.refresh_interval and self.refresh_cycles >= self.refresh_interval:
            raise ValueError(f"refresh_cycles ({self.refresh_cycles}) must be below refresh_interval ({self.refresh_interval})")
        if self.dram and self.refresh_interval:
            raise ValueError("refreshes of a modelled channel belong to dram: leave refresh_interval 0")

    @property
    def beat_rate(self) -> float:
        """Beats per cycle this memory can deliver at most; of a modelled channel, beats of 64 bytes over all ports."""
        if self.dram:
            return min(1.0, self.dram.bytes_per_cycle / LINE_BYTES)
        return 1 - self.refresh_cycles / self.refresh_interval if self.refresh_interval else 1.0


IDEAL = MemoryTiming(latency=4)
"""No wait but four cycles: shows what the machine alone does."""

DDR = MemoryTiming(latency=60, jitter=16, refresh_interval=1950, refresh_cycles=88)
"""DDR4 behind a hard controller, seen at 250 MHz: 240 ns latency (a read through the Zynq
UltraScale+ interconnect, unloaded), up to 64 ns more for row misses, and JEDEC's refresh every
7.8 us for 350 ns (8 Gb chips). The model assumes that the controller's peak is above the ports'
rate, so row misses cost time but no beats: 0.955 beats per cycle at most."""

DDR4_2400 = Dram(
    ticks_per_clock=5, ticks_per_cycle=24, bank_groups=2, banks=4, row_lines=128,
    activate=17, precharge=17, row_open=39, row_cycle=56, activate_gap=7, four_activates=36,
    column_gap=4, column_gap_group=6, read_latency=17, write_latency=12,
    read_to_write=17 + 4 + 2 - 12, write_to_read=12 + 4 + 9, read_to_close=9, write_to_close=12 + 4 + 18,
    refresh_interval=9360, refresh=420,
    window=4, hit_limit=8, write_wait=64, buffer_lines=48, stagger=1, pair_gap=9,
)  # fmt: skip
"""DDR4-2400R on 64 data lines in x16 devices of 8 Gb, for a fabric at 250 MHz."""

KV260 = MemoryTiming(latency=52, jitter=16, dram=DDR4_2400)
"""The KV260's memory behind HP0 to HP3, at 250 MHz."""

KV260_OPTIMISTIC = MemoryTiming(
    latency=40,
    dram=dataclasses.replace(DDR4_2400, bank_groups=4, activate_gap=4, four_activates=26, window=8, buffer_lines=64, pair_gap=0),
)
"""Devices of 8 bits (twice the banks, rows of 1 KiB a device: tRRD_S 3.3 ns, tFAW 21 ns), shorter ways, ports apart."""

KV260_PESSIMISTIC = MemoryTiming(
    latency=80, jitter=64, outstanding=8, dram=dataclasses.replace(DDR4_2400, window=2, buffer_lines=40, pair_gap=12)
)
"""Ports 1 and 2 a fifth slower, a controller that sees half as much, longer ways, half the reads outstanding."""

_SDR = Dram(
    ticks_per_clock=1, ticks_per_cycle=1, bank_groups=1, banks=4, row_lines=16, activate=2, precharge=2, row_open=3, row_cycle=4,
    activate_gap=1, four_activates=1, column_gap=32, column_gap_group=32, read_latency=2, write_latency=1, read_to_write=34,
    write_to_read=34, read_to_close=31, write_to_close=33, refresh_interval=390, refresh=4,
    window=2, hit_limit=64, write_wait=64, buffer_lines=2, stagger=0, pair_gap=0,
)  # fmt: skip

SDR16 = MemoryTiming(latency=8, dram=_SDR)
"""An SDR SDRAM of 16 bits at the machine's own clock of 50 MHz, each access as long as 64 bytes are: a sketch for a machine that is
simulated alone. Long reads get 1.97 bytes a cycle of 2, as from the controller that a board is built with (98.0 %,
tests/rtl/test_sdram.py), which sim/board.py simulates to the cycle."""

SDR32 = MemoryTiming(latency=8, dram=dataclasses.replace(
    _SDR, column_gap=16, column_gap_group=16, read_to_write=18, write_to_read=18, read_to_close=15, write_to_close=17,
    refresh_interval=780))
"""The same of 32 bits, with the refreshes of a chip of 64 Mbit: 3.98 bytes a cycle of 4, 3.94 from the controller (98.6 %)."""

DDR16 = MemoryTiming(latency=20, dram=dataclasses.replace(
    _SDR, column_gap=8, column_gap_group=8, read_to_write=12, write_to_read=14, read_to_close=8, write_to_close=12,
    refresh_interval=390, refresh=14))
"""DDR3 of 16 bits whose clock is twice the machine's: 64 bytes in 8 cycles. A sketch: what LiteDRAM adds is not measured."""

PRESETS = {"ideal": IDEAL, "ddr": DDR, "kv260": KV260, "kv260-optimistic": KV260_OPTIMISTIC, "kv260-pessimistic": KV260_PESSIMISTIC,
           "sdr16": SDR16, "sdr32": SDR32, "ddr16": DDR16}


class TimingError(InputError):
    """A timing that does not exist; the message names those that do."""


SEEN_AT_HZ = {"kv260": 250_000_000, "kv260-optimistic": 250_000_000, "kv260-pessimistic": 250_000_000}
"""Fabric clocks of presets whose cycles stand for time; the others are in cycles of whatever clock."""


def preset(name: str, clock_hz: int | None = None) -> MemoryTiming:
    """The timing called `name`, as a fabric at `clock_hz` sees it: a memory's latency and rate are in time, so that a slower fabric has
    fewer cycles of latency, and more of its beats. Raises `TimingError`."""
    if name not in PRESETS:
        raise TimingError(unknown("memory timing", name, PRESETS))
    timing, seen = PRESETS[name], SEEN_AT_HZ.get(name)
    if timing.dram is None or clock_hz is None or seen is None or clock_hz == seen:
        return timing
    clock, cycle = timing.dram.ticks_per_clock * clock_hz, timing.dram.ticks_per_cycle * seen
    common = gcd(clock, cycle)
    dram = dataclasses.replace(timing.dram, ticks_per_clock=clock // common, ticks_per_cycle=cycle // common)
    latency, jitter = (round(cycles * clock_hz / seen) for cycles in (timing.latency, timing.jitter))
    return dataclasses.replace(timing, latency=max(1, latency), jitter=jitter, dram=dram)


def timing_of(name: str | None, board: str = DEFAULT_BOARD) -> str:
    """The simulated memory's timing: the one named, else the board's. Raises `TimingError` before anything is compiled."""
    timing = load(board).timing if name is None else name
    preset(timing)
    return timing
