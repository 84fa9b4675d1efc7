"""Parameters of the sequencer and of the host's registers: what they are built from, and what they instantiate."""

from __future__ import annotations

from dataclasses import dataclass

from tritloom.firmware.assembler import REGISTERS
from tritloom.firmware.config import BuildConfig
from tritloom.firmware.isa import SCRATCH_WORDS
from tritloom.firmware.registers import FIFO_DEPTH, PORTS
from tritloom.rtl.parameters import MemoryUse, require, require_positive, require_power_of_two
from tritloom.rtl.ternary.parameters import TernaryParameters

__all__ = ["RegisterParameters", "SequencerParameters"]


@dataclass(frozen=True, kw_only=True)
class SequencerParameters:
    """Parameters of `rtl.control.sequencer.Sequencer`.

    program_words : int
        Instructions the program memory holds, a power of two.
    lanes : int
        P: the scratch memory has SCRATCH_WORDS words for each.
    short_list : bool
        There is a unit for SCAN; else SCAN is no instruction.
    padded : bool
        MATMUL says how many rows of the last step are padding.
    spread : bool
        The units lie far away: a register is what says that one is ready, and another instruction follows a command a cycle later.
    """

    program_words: int
    lanes: int
    short_list: bool = False
    padded: bool = False
    spread: bool = False

    latency = 4
    """Cycles from `start` to the first instruction's command."""

    @property
    def command_cycles(self) -> int:
        """Cycles that a command takes whose unit is ready."""
        return 4 + self.spread

    def __post_init__(self) -> None:
        require_power_of_two(self, "program_words", 2)
        require_positive(self, ("lanes",))

    @classmethod
    def of(cls, config: BuildConfig) -> SequencerParameters:
        """Those of a configuration's machine."""
        return cls(program_words=config.program_words, lanes=config.lanes, short_list=config.shortlist > 0 or config.shape.ternary_head,
                   padded=TernaryParameters.of(config).padded, spread=config.ultra_units and config.shape.group_size > 0)

    @property
    def address_bits(self) -> int:
        """Width of an instruction's address."""
        return (self.program_words - 1).bit_length()

    @property
    def scratch_words(self) -> int:
        return SCRATCH_WORDS * self.lanes

    def memories(self) -> tuple[MemoryUse, ...]:
        """What the unit instantiates."""
        return (MemoryUse(name="program", width=64, depth=self.program_words),
                MemoryUse(name="registers", width=32, depth=REGISTERS, read_ports=4),
                MemoryUse(name="scratch", width=32, depth=self.scratch_words))


@dataclass(frozen=True, kw_only=True)
class RegisterParameters:
    """Parameters of `rtl.control.registers.ControlRegisters`.

    mem_bytes : int
        Bytes of a memory beat.
    mem_ports : int
        Memory ports; PORT_BASE and PORT_BASE_HIGH of others do not exist.
    program_words : int
        Instructions in the program memory.
    digest : int
        Digest of the configuration.
    spread : bool
        The machine spreads over a large device and has a fast clock: a token's read takes it out of its FIFO a cycle later.
    reset_cycles : int
        Cycles of a RESET before memory ports are looked at, and again that it lasts once they are idle. Words on their way through the
        ternary matmul have no reset of their own: a power of two, no less than its latency.
    """

    mem_bytes: int
    mem_ports: int
    program_words: int
    digest: int
    spread: bool = False
    reset_cycles: int = 16

    latency = 3
    """Cycles from a request to its response; MEMORY_DATA waits for the memory besides."""

    def __post_init__(self) -> None:
        require_power_of_two(self, "mem_bytes", 4)
        require(1 <= self.mem_ports <= PORTS, f"mem_ports must be from 1 to {PORTS}, not {self.mem_ports!r}")
        require_power_of_two(self, "program_words", 2)
        require(0 <= self.digest < 1 << 32, f"digest must be a 32-bit number, not {self.digest!r}")
        require_power_of_two(self, "reset_cycles", 2)

    @classmethod
    def of(cls, config: BuildConfig) -> RegisterParameters:
        """Those of a configuration's machine."""
        latency = TernaryParameters.of(config).latency
        return cls(mem_bytes=config.mem_bytes, mem_ports=config.mem_ports, program_words=config.program_words, digest=config.digest,
                   spread=config.ultra_units, reset_cycles=max(16, 1 << (latency - 1).bit_length()))

    def memories(self) -> tuple[MemoryUse, ...]:
        """What the unit instantiates."""
        return (MemoryUse(name="prompt", width=32, depth=FIFO_DEPTH - 1), MemoryUse(name="tokens", width=64, depth=FIFO_DEPTH - 1))
