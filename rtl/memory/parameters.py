"""The memory system's parameters: what it is built from, and what it instantiates."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from tritloom.firmware.config import BuildConfig
from tritloom.firmware.registers import PAGE_BYTES
from tritloom.rtl.parameters import MemoryUse, require, require_positive, require_power_of_two

__all__ = ["ADDRESS_BITS", "AxiParameters", "DESCRIPTORS", "Levelling", "LiteDramParameters", "MemoryParameters", "OnChipParameters",
           "READ_QUEUE", "REQUEST_QUEUE", "RoutingParameters", "SdramParameters", "START_QUEUE", "WRITE_CYCLES", "Write",
           "memory_parameters"]

ADDRESS_BITS = 32
"""Width of logical byte addresses."""
DESCRIPTORS = 256
"""Entries of the descriptor program memory."""
START_QUEUE = 4
"""Programs that may wait to be run."""
REQUEST_QUEUE = 8
"""Data reads that may wait."""
READ_QUEUE = 4
"""Beats that may wait on their way to the dot engine."""
DEST_BITS = 2
"""Width of a weight beat's destination."""
WRITE_CYCLES = {"axi": 14, "onchip": 2}
"""Cycles that writing a beat of keys or values takes: heads lie far apart, and DRAM may open a row for each."""


@dataclass(frozen=True, kw_only=True)
class MemoryParameters:
    """What both forms of the memory system have in common.

    mem_bytes : int
        Bytes of a beat, over all ports.
    mem_ports : int
        Ports that a beat is striped over.
    weight_fifo_beats, read_fifo_beats : int
        Beats requested ahead of their consumer, of weights and of data.
    burst_beats : int
        Longest burst, in beats.
    """

    mem_bytes: int
    mem_ports: int = 1
    weight_fifo_beats: int
    read_fifo_beats: int
    burst_beats: int

    def __post_init__(self) -> None:
        require_power_of_two(self, "mem_bytes", 4, 512)
        require_power_of_two(self, "mem_ports", 1, self.mem_bytes // 4)
        require_power_of_two(self, "weight_fifo_beats", 4, 65536)
        require_power_of_two(self, "read_fifo_beats", 4, 4096)
        require_power_of_two(self, "burst_beats", 1, 256)

    @property
    def port_bytes(self) -> int:
        """Bytes of a beat at one port."""
        return self.mem_bytes // self.mem_ports

    @property
    def beat_bits(self) -> int:
        """Width of an address in beats."""
        return ADDRESS_BITS - (self.mem_bytes - 1).bit_length()

    @property
    def _longest_burst(self) -> int:
        """No burst crosses 4 KiB at its port."""
        return min(self.burst_beats, PAGE_BYTES // self.port_bytes)

    @property
    def weight_burst(self) -> int:
        """Longest burst of weights, in beats: half of what their FIFO holds, so that one can be asked for while another comes."""
        return min(self._longest_burst, self.weight_fifo_beats // 2)

    @property
    def read_burst(self) -> int:
        """Longest burst of data, in beats."""
        return min(self._longest_burst, self.read_fifo_beats // 2)

    def memories(self) -> tuple[MemoryUse, ...]:
        """What the unit instantiates."""
        return (MemoryUse(name="requester.program.entries", width=64, depth=DESCRIPTORS),
                MemoryUse(name="requester.program.queue", width=8, depth=START_QUEUE),
                MemoryUse(name="requester.queue", width=ADDRESS_BITS + 16, depth=REQUEST_QUEUE))


@dataclass(frozen=True, kw_only=True)
class AxiParameters(MemoryParameters):
    """Parameters of `rtl.memory.axi_memory.AxiMemory`.

    outstanding : int
        Bursts that may wait for data, per port.
    """

    read_fifo_beats: int = 64
    burst_beats: int = 64
    outstanding: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        require_power_of_two(self, "outstanding", 1, 64)

    @classmethod
    def of(cls, config: BuildConfig) -> AxiParameters:
        """Those of a configuration's machine."""
        return cls(mem_bytes=config.mem_bytes, mem_ports=config.mem_ports, weight_fifo_beats=config.weight_fifo_beats,
                   read_fifo_beats=config.read_fifo_beats)

    def memories(self) -> tuple[MemoryUse, ...]:
        """What the unit instantiates."""
        port = 8 * self.port_bytes
        return (*super().memories(),
                MemoryUse(name="reader.weight_fifo", width=port + DEST_BITS, depth=self.weight_fifo_beats, count=self.mem_ports),
                MemoryUse(name="reader.data_fifo", width=port, depth=self.read_fifo_beats, count=self.mem_ports),
                MemoryUse(name="reader.tags", width=DEST_BITS + 1, depth=self.outstanding, count=self.mem_ports))


@dataclass(frozen=True, kw_only=True)
class OnChipParameters(MemoryParameters):
    """Parameters of `rtl.memory.onchip.OnChipMemory`.

    size_bytes : int
        Bytes of the memory, a multiple of `mem_bytes`.
    ultra : bool
        Ask for UltraRAM.
    """

    size_bytes: int
    read_fifo_beats: int = 16
    burst_beats: int = 16
    ultra: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.mem_ports == 1, f"on-chip memory has one port, not {self.mem_ports}")
        require(isinstance(self.size_bytes, int) and self.size_bytes > 0 and self.size_bytes % self.mem_bytes == 0,
                f"size_bytes must be a positive multiple of mem_bytes ({self.mem_bytes}), not {self.size_bytes!r}")

    @classmethod
    def of(cls, config: BuildConfig) -> OnChipParameters:
        """Those of a configuration's machine."""
        return cls(mem_bytes=config.mem_bytes, size_bytes=config.onchip_bytes, weight_fifo_beats=config.weight_fifo_beats,
                   read_fifo_beats=config.read_fifo_beats, ultra=config.ultra_ram)

    @property
    def depth(self) -> int:
        """Beats of the memory."""
        return self.size_bytes // self.mem_bytes

    def memories(self) -> tuple[MemoryUse, ...]:
        """What the unit instantiates."""
        beat = 8 * self.mem_bytes
        return (*super().memories(),
                MemoryUse(name="ram", width=beat, depth=self.depth, write_parts=self.mem_bytes, kind="ultra" if self.ultra else "ram"),
                MemoryUse(name="weight_fifo", width=beat + DEST_BITS, depth=self.weight_fifo_beats),
                MemoryUse(name="data_fifo", width=beat, depth=self.read_fifo_beats))


def memory_parameters(config: BuildConfig) -> AxiParameters | OnChipParameters:
    """Those of a configuration's machine, in the form that it has."""
    return AxiParameters.of(config) if config.memory == "axi" else OnChipParameters.of(config)


@dataclass(frozen=True, kw_only=True)
class RoutingParameters:
    """What lies between the memory system and the units (`rtl.memory.router`, `rtl.top`).

    mem_bytes : int
        Bytes of a beat.
    clients : int
        Units that read data.
    outstanding : int
        Data reads that may wait for data.
    """

    mem_bytes: int
    clients: int = 2
    outstanding: int = 16

    @classmethod
    def of(cls, config: BuildConfig) -> RoutingParameters:
        """Those of a configuration's machine."""
        return cls(mem_bytes=config.mem_bytes)

    def memories(self) -> tuple[MemoryUse, ...]:
        """What is instantiated."""
        client_bits = max(1, (self.clients - 1).bit_length())
        return (MemoryUse(name="reads.tickets", width=client_bits + 16, depth=self.outstanding),
                MemoryUse(name="dot_reads", width=8 * self.mem_bytes, depth=READ_QUEUE))


@dataclass(frozen=True, kw_only=True)
class SdramParameters:
    """Parameters of `rtl.memory.sdram.SdramController`. Times are in cycles of the one clock of core and SDRAM.

    mem_bytes : int
        Bytes of an AXI beat; a beat is one burst of the SDRAM, of 1, 2, 4 or 8 words.
    width : int
        Bits of the SDRAM's data bus: 16 or 32.
    row_bits, column_bits, bank_bits : int
        Geometry. Chips with more columns or rows than these are used in part.
    cas : int
        CAS latency, 2 or 3.
    read_latency : int
        Cycles from the one in which READ stands at the controller's outputs to the one in which the first word stands at `dq_i`.
    t_rcd, t_rp, t_ras, t_rc, t_rrd, t_rfc, t_mrd, t_wr : int
        Least times as data sheets name them; `t_wr` counts from the last word written.
    t_refi : int
        Cycles between refreshes.
    start : int
        Cycles of NOP before the first command.
    start_refreshes : int
        Refreshes before the mode register is set.
    masked : bool
        Bytes can be masked: the board wires DQM. Where it does not, beats are written whole.
    """

    mem_bytes: int
    width: int
    row_bits: int
    column_bits: int
    bank_bits: int = 2
    cas: int
    read_latency: int
    t_rcd: int
    t_rp: int
    t_ras: int
    t_rc: int
    t_rrd: int
    t_rfc: int
    t_mrd: int
    t_wr: int
    t_refi: int
    start: int
    start_refreshes: int = 8
    masked: bool = True

    def __post_init__(self) -> None:
        require_positive(self, ("row_bits", "column_bits", "bank_bits", "t_rcd", "t_rp", "t_ras", "t_rc", "t_rrd", "t_rfc", "t_mrd", "t_wr",
                                "t_refi", "start", "start_refreshes"))
        require(self.width in (16, 32), f"width must be 16 or 32, not {self.width!r}")
        require_power_of_two(self, "mem_bytes", self.width // 8, self.width)
        require(self.cas in (2, 3), f"cas must be 2 or 3, not {self.cas!r}")
        require(type(self.read_latency) is int and self.cas <= self.read_latency <= 12,
                f"read_latency must be an integer from cas ({self.cas}) to 12, not {self.read_latency!r}")
        require(self.column_bits <= 10 < self.row_bits,
                f"A10 selects all banks: column_bits must be at most 10 and row_bits at least 11, not {self.column_bits}, "
                f"{self.row_bits}")
        require(self.t_refi >= 8 * (self.t_rp + self.t_rfc + self.t_rcd) + 64,
                f"t_refi leaves no time between refreshes: {self.t_refi} cycles")

    @classmethod
    def of(cls, chip: Any, clock_hz: int, *, mem_bytes: int, pad_latency: int, masked: bool = True) -> SdramParameters:
        """For a chip (`boards.sdram.SdramChip`) at a clock. `pad_latency`: cycles that the pads' registers add to reads, there and back."""
        def cycles(ns: float) -> int:
            return max(1, math.ceil(round(ns * clock_hz / 1e9, 6)))

        cas = next((cas for cas, limit_hz in sorted(chip.cas_hz.items()) if clock_hz <= limit_hz), None)
        require(cas is not None, f"{chip.name} takes at most {max(chip.cas_hz.values()) / 1e6:g} MHz, not {clock_hz / 1e6:g} MHz")
        return cls(
            mem_bytes=mem_bytes, width=chip.width, row_bits=chip.row_bits, column_bits=chip.column_bits, bank_bits=chip.bank_bits,
            cas=cas, read_latency=cas + pad_latency,  # pyright: ignore[reportArgumentType, reportOptionalOperand]
            t_rcd=cycles(chip.t_rcd), t_rp=cycles(chip.t_rp), t_ras=cycles(chip.t_ras),
            t_rc=cycles(chip.t_rc), t_rrd=cycles(chip.t_rrd), t_rfc=cycles(chip.t_rfc),
            t_mrd=max(cycles(chip.t_mrd), chip.mrd_cycles), t_wr=max(cycles(chip.t_wr), chip.wr_cycles),
            t_refi=int(chip.t_refresh * clock_hz / 1e9) // chip.refreshes, start=cycles(chip.t_start), start_refreshes=chip.start_refreshes,
            masked=masked)

    @property
    def burst(self) -> int:
        """Words of a beat."""
        return 8 * self.mem_bytes // self.width

    @property
    def size_bytes(self) -> int:
        """Bytes of the memory."""
        return self.width // 8 << (self.row_bits + self.column_bits + self.bank_bits)

    @property
    def block_bits(self) -> int:
        """A piece of a burst lies within an aligned block of this many beats, as a power of two: 16 words."""
        return 4 - (self.burst - 1).bit_length()

    @property
    def queue(self) -> int:
        """Words that wait for the reader: two blocks, so that one is read while the other is fetched."""
        return 32

    @property
    def kept(self) -> int:
        """Cycles from ACTIVE to the next PRECHARGE: with tRP they make tRC, too."""
        return max(self.t_ras, self.t_rc - self.t_rp)

    @property
    def opening(self) -> int:
        """Cycles from ACTIVE until the piece is passed on, a cycle before its first column command and three before the next ACTIVE."""
        return max(self.t_rcd - 1, self.t_rrd - 3, 1)

    @property
    def start_intervals(self) -> int:
        """Intervals of the refreshes before the first command."""
        return -(-self.start // self.t_refi) + 1

    def memories(self) -> tuple[MemoryUse, ...]:
        """What the unit instantiates."""
        return (MemoryUse(name="rows", width=self.row_bits, depth=1 << self.bank_bits, kind="async"),
                MemoryUse(name="queue", width=self.width + 2, depth=self.queue))


@dataclass(frozen=True, kw_only=True)
class Write:
    """`value` to the control register at byte address `address`, then a wait of `cycles`."""

    address: int
    value: int
    cycles: int = 0


@dataclass(frozen=True, kw_only=True)
class Levelling:
    """How reads are levelled: byte addresses of the control registers that choose a module (a byte of the data bus) and move its reads.

    `select`: a bit for each of `modules`, which moves and stands still while it is set. `delay_reset`, `delay`: back to the first of
    `delays` taps, one tap on. `slip_reset`, `slip`: the same of whole bits, of which there are `slips`.
    """

    select: int
    delay_reset: int
    delay: int
    slip_reset: int
    slip: int
    modules: int
    delays: int
    slips: int


@dataclass(frozen=True, kw_only=True)
class LiteDramParameters:
    """Parameters of `rtl.memory.litedram.LiteDramStart`.

    mem_bytes : int
        Bytes of a beat.
    writes : tuple of Write
        The core's own initialisation, up to its controller's start.
    levelling : Levelling or None
        None: the core's reads need none.
    """

    mem_bytes: int
    writes: tuple[Write, ...]
    levelling: Levelling | None = None

    def __post_init__(self) -> None:
        require_power_of_two(self, "mem_bytes", 4, 64)
        require(bool(self.writes), "writes must not be empty: at least the controller is to be started")
        for each in self.writes:
            require(0 <= each.address < 1 << 16 and each.address % 4 == 0 and 0 <= each.value < 1 << 32 and 0 <= each.cycles < 1 << 24,
                    f"writes must have a word's address of 16 bits, 32 bits and less than 2**24 cycles, not {each!r}")
        if self.levelling is not None:
            require_positive(self.levelling, ("modules", "delays", "slips"))
            require(self.mem_bytes % self.levelling.modules == 0,
                    f"mem_bytes ({self.mem_bytes}) must hold as many bytes of each of {self.levelling.modules} modules")

    def memories(self) -> tuple[MemoryUse, ...]:
        """What the unit instantiates."""
        return (MemoryUse(name="program", width=70, depth=len(self.writes), kind="rom"),)
