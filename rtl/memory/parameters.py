"""The memory system's parameters: what it is built from, and what it instantiates."""

from __future__ import annotations

from dataclasses import dataclass

from tritloom.firmware.config import BuildConfig
from tritloom.firmware.registers import PAGE_BYTES
from tritloom.rtl.parameters import MemoryUse, require, require_power_of_two

__all__ = ["ADDRESS_BITS", "AxiParameters", "DESCRIPTORS", "MemoryParameters", "OnChipParameters", "READ_QUEUE", "REQUEST_QUEUE",
           "RoutingParameters", "START_QUEUE", "WRITE_CYCLES", "memory_parameters"]

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
