"""The control and status registers: their one declaration.

The hardware bank (rtl/control/registers.py), the host's names, the C header, the JSON export and docs/registers.md
all come from `REGISTERS`. Addresses are bytes; registers are 32 bits wide.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tritloom.firmware.assembler import ARGUMENTS
from tritloom.firmware.config import MOST_PORTS

ADDRESS_BITS = 12
IDENTIFIER = int.from_bytes(b"TRIT", "little")
"""Value of ID: reads as the text TRIT in a memory dump."""
MAP_VERSION = 4
"""Value of VERSION."""
FIFO_DEPTH = 64
"""Tokens in each of the two token FIFOs."""
PORTS = MOST_PORTS
"""Memory ports with a base address."""
PORT_ADDRESS_BITS = 40
"""Width of a memory port's addresses."""
PAGE_BYTES = 4096
"""Memory ports' stripes begin at multiples of it, so that no burst crosses one."""
WRITE_CYCLES = 4096
"""Cycles that a write of MEMORY_DATA may wait for the memory."""
UNKNOWN_INSTRUCTION = 0xFFFFFFFF
"""HALT_CODE after a word that is no instruction."""
MEMORY_FAILED = 0xFFFFFFFE
"""HALT_CODE of a program that an error of the memory has ended."""


@dataclass(frozen=True)
class Field:
    name: str
    low: int
    width: int
    doc: str

    @property
    def mask(self) -> int:
        return (1 << self.width) - 1 << self.low

    def get(self, word: int) -> int:
        return (word & self.mask) >> self.low


@dataclass(frozen=True)
class Register:
    """`access`: "ro" (writes fail), "rw", or "wo" (reads fail). `halted`: writes fail while a program runs, and during a reset.
    Bits below `low` read 0, whatever is written."""

    name: str
    address: int
    access: str
    doc: str
    width: int = 32
    reset: int = 0
    fields: tuple[Field, ...] = field(default=())
    halted: bool = False
    low: int = 0

    def __getitem__(self, name: str) -> Field:
        for item in self.fields:
            if item.name == name:
                return item
        raise KeyError(f"register {self.name} has no field {name!r}")


def _counter(name: str, address: int, doc: str) -> tuple[Register, Register]:
    return (Register(f"{name}_LOW", address, "ro", f"{doc}, bits 31:0; reading it holds {name}_HIGH"),
            Register(f"{name}_HIGH", address + 4, "ro", f"{doc}, bits 63:32 as of the last read of {name}_LOW"))


def _loader(name: str, address: int, what: str) -> tuple[Register, ...]:
    return (Register(f"{name}_ADDRESS", address, "rw", f"{what} to write next; advances by one per write"),
            Register(f"{name}_LOW", address + 4, "rw", "bits 31:0 of the word to write"),
            Register(f"{name}_HIGH", address + 8, "wo", f"bits 63:32: writes the word and advances {name}_ADDRESS", halted=True))


REGISTERS: tuple[Register, ...] = (
    Register("ID", 0x000, "ro", "the text TRIT, least significant byte first", reset=IDENTIFIER),
    Register("VERSION", 0x004, "ro", "version of the register map and instruction set", reset=MAP_VERSION),
    Register("DIGEST", 0x008, "ro", "digest of the configuration the machine was built from"),
    Register("CONTROL", 0x010, "wo", "commands; bits written as 1 act once", fields=(
        Field("START", 0, 1, "run the program from ENTRY; ignored while one runs"),
        Field("STOP", 1, 1, "end the program before its next instruction, finish commands, drop prefetched weights"),
        Field("CLEAR", 2, 1, "zero the counters, empty the token FIFOs, forget errors; ignored while a program runs"),
        Field("RESET", 3, 1, "let transfers at the memory ports end, then reset every unit and empty the token FIFOs; HALTED, STOPPED, "
                             "HALT_CODE and PC become 0; what was loaded, what was written to registers, counters and errors stay"),
    )),
    Register("STATUS", 0x014, "ro", "state of the machine", fields=(
        Field("RUNNING", 0, 1, "a program runs, or is being stopped"),
        Field("HALTED", 1, 1, "the last program ended by HALT, or by an error of the memory"),
        Field("STOPPED", 2, 1, "the last program ended by STOP"),
        Field("FLUSHING", 3, 1, "prefetched weights are being dropped"),
        Field("MEMORY_ERROR", 4, 1, "the memory answered with an error since the last CLEAR: a running program ends, and pushes no token"),
        Field("RESETTING", 5, 1, "a RESET is under way; until it ends, START and CLEAR are ignored and TOKEN_IN fails"),
        Field("UNIT_BUSY", 8, 8, "busy units, in the bits of WAIT"),
        Field("PROMPT_ROOM", 16, 16, "tokens TOKEN_IN takes now"),
    )),
    Register("ENTRY", 0x018, "rw", "address of a program's first instruction"),
    Register("HALT_CODE", 0x01C, "ro", f"operand of the last HALT; {UNKNOWN_INSTRUCTION:#x} after an unknown instruction, "
                                   f"{MEMORY_FAILED:#x} after an error of the memory"),
    Register("PC", 0x020, "ro", "address of the instruction under way"),
    Register("TOKEN_IN", 0x030, "wo", "push a prompt token; fails when STATUS.PROMPT_ROOM is 0"),
    Register("TOKEN_LEVEL", 0x034, "ro", "tokens waiting in TOKEN_OUT"),
    Register("TOKEN_CYCLE", 0x038, "ro", "low 32 bits of CYCLES when the token now at TOKEN_OUT was pushed"),
    Register("TOKEN_OUT", 0x03C, "ro", "pop a token; reading changes it", fields=(
        Field("TOKEN", 0, 31, "low 31 bits of what OUT pushed"),
        Field("VALID", 31, 1, "0: none was waiting"),
    )),
    *(Register(f"ARG{i}", 0x040 + 4 * i, "rw", f"argument {i} of programs") for i in range(ARGUMENTS)),
    *_loader("PROGRAM", 0x060, "program memory word"),
    *_loader("DESCRIPTOR", 0x070, "weight streamer entry"),
    Register("MEMORY_ADDRESS", 0x080, "rw", "byte address MEMORY_DATA writes next, a multiple of 4; advances by 4 per write"),
    Register("MEMORY_DATA", 0x084, "wo", f"write 32 bits to the accelerator's memory; waits for the memory, and fails after {WRITE_CYCLES} "
                                       "cycles", halted=True),
    Register("MEMORY_PORTS", 0x088, "ro", "what each memory port does, a bit for a port", fields=(
        Field("READING", 0, PORTS, "reads are under way"),
        Field("WRITING", 8, PORTS, "writes are under way"),
        Field("READ_ERROR", 16, PORTS, "a read was answered with an error since the last CLEAR"),
        Field("WRITE_ERROR", 24, PORTS, "a write was answered with an error since the last CLEAR"),
    )),
    *(Register(f"PORT_BASE{i}", 0x0C0 + 4 * i, "rw", f"byte address of memory port {i}'s stripe, a multiple of {PAGE_BYTES}: lower bits "
                                                     "read 0", halted=True, low=PAGE_BYTES.bit_length() - 1)
      for i in range(PORTS)),
    *(Register(f"PORT_BASE_HIGH{i}", 0x0E0 + 4 * i, "rw", f"bits {PORT_ADDRESS_BITS - 1}:32 of that address",
               width=PORT_ADDRESS_BITS - 32, halted=True) for i in range(PORTS)),
    *_counter("CYCLES", 0x100, "cycles in which a program ran"),
    *_counter("WEIGHT_BEATS", 0x108, "beats of the weight stream read from memory"),
    Register("DATA_BEATS", 0x110, "ro", "beats of data read from memory"),
    Register("SATURATIONS", 0x114, "ro", "elements clamped: residual stream, gates of SiLU, visible attention scores (numbers.md)"),
    Register("BUSY_VECTOR", 0x118, "ro", "cycles the vector unit was busy while a program ran"),
    Register("BUSY_MATMUL", 0x11C, "ro", "cycles the ternary matmul was busy while a program ran"),
    Register("BUSY_DOT", 0x120, "ro", "cycles the dot engine was busy while a program ran"),
    Register("BUSY_SAMPLER", 0x124, "ro", "cycles the sampler was busy while a program ran"),
)

REGISTER = {register.name: register for register in REGISTERS}
"""By name."""

def _check() -> None:
    addresses = [register.address for register in REGISTERS]
    assert len(REGISTER) == len(REGISTERS) and len(set(addresses)) == len(addresses), "names and addresses are unique"
    for register in REGISTERS:
        assert register.address % 4 == 0 and register.address < 1 << ADDRESS_BITS, register.name
        assert register.access in ("ro", "rw", "wo"), register.name
        assert sum(item.mask for item in register.fields) < 1 << register.width, register.name
        assert not register.reset & (1 << register.low) - 1, register.name


_check()
