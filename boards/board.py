"""What a board is: the record that every `boards/*.py` fills in, and how one is found by name."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from dataclasses import dataclass, field
from pathlib import Path

from tritloom.firmware.errors import InputError
from tritloom.firmware.names import unknown
from tritloom.firmware.registers import PORT_ADDRESS_BITS

MEMORIES = ("axi", "onchip")
TOOLCHAINS = ("verilator", "ecp5", "vivado", "verilog")
RESOURCES = ("lut", "ff", "bram", "uram", "dsp")
ADDRESS_LIMIT = 1 << PORT_ADDRESS_BITS
"""Bytes that a memory port's addresses reach."""


DEFAULT_BOARD = "sim"
NO_BOARDS = ("board", "sdram")
"""Modules of this package that describe no board."""


class BoardError(InputError):
    """A board that does not exist or cannot be loaded; the message names the remedy."""


@dataclass(frozen=True, kw_only=True)
class Board:
    """Data of one board.

    `family`: fabric for resource estimates (xcup, ecp5, gowin, ice40); `memory`: "axi" (`mem_ports` AXI4 masters
    that together carry `mem_bytes` per core cycle) or "onchip"; `timing`: preset of the simulated memory;
    `resources`: what the device has (lut, ff, dsp; bram and uram in Kibit), empty when unlimited; `toolchain`: "verilator"
    (simulation), "ecp5" (open bitstream), "verilog" (files for the vendor's tool); `parameters`: generator
    parameters that this board prescribes. `dram_bytes`: DRAM on the board (0: none, or not said); `window`: first address and bytes of the
    part of it in which a machine may have its memory, of what the memory ports reach (None: all of that).
    """

    name: str
    title: str
    family: str
    memory: str
    mem_bytes: int
    clock_hz: int
    mem_ports: int = 1
    timing: str = "ddr"
    device: str = ""
    package: str = ""
    speed: str = ""
    toolchain: str = "verilog"
    resources: dict[str, int] = field(default_factory=dict)
    parameters: dict[str, int | str] = field(default_factory=dict)
    dram_bytes: int = 0
    window: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.memory not in MEMORIES:
            raise BoardError(f"board {self.name}: memory must be one of {', '.join(MEMORIES)}, not {self.memory!r}")
        if self.toolchain not in TOOLCHAINS:
            raise BoardError(f"board {self.name}: toolchain must be one of {', '.join(TOOLCHAINS)}, not {self.toolchain!r}")
        numbers = {"mem_bytes": self.mem_bytes, "mem_ports": self.mem_ports, "clock_hz": self.clock_hz} | self.resources
        for name, value in numbers.items():
            if type(value) is not int or value <= 0:
                raise BoardError(f"board {self.name}: {name} must be a positive integer, not {value!r}")
        unknown = sorted(set(self.resources) - set(RESOURCES))
        if unknown:
            raise BoardError(f"board {self.name}: no resource is called {unknown[0]!r}; there are {', '.join(RESOURCES)}")
        if type(self.dram_bytes) is not int or not 0 <= self.dram_bytes:
            raise BoardError(f"board {self.name}: dram_bytes must be a number of bytes, or 0, not {self.dram_bytes!r}")
        base, length = self.window or (0, 1)
        if not (0 <= base < base + length <= ADDRESS_LIMIT and base % 4096 == 0) or (self.window and length > self.dram_bytes):
            raise BoardError(f"board {self.name}: window must be a multiple of 4096 and a number of bytes, within "
                             f"{PORT_ADDRESS_BITS}-bit addresses and the {self.dram_bytes} bytes of DRAM, not {self.window!r}")

    @property
    def real(self) -> bool:
        """Whether it is more than a simulation."""
        return self.toolchain != "verilator"

    @property
    def window_bytes(self) -> int:
        """Bytes of memory that a machine on this board may have."""
        return self.window[1] if self.window else min(self.dram_bytes or ADDRESS_LIMIT, ADDRESS_LIMIT)



def names() -> list[str]:
    """Names of the boards in the tree."""
    package = importlib.import_module("tritloom.boards")
    modules = (m.name for m in pkgutil.iter_modules(package.__path__) if m.name not in NO_BOARDS)
    return sorted(importlib.import_module(f"tritloom.boards.{m}").BOARD.name for m in modules)


def load(name: str) -> Board:
    """The board called `name`, or the BOARD of a Python file outside the tree when `name` is a path to one."""
    if name.endswith(".py"):
        path = Path(name)
        if not path.is_file():
            raise BoardError(f"no board file {name}: give a path to a Python file that defines BOARD")
        module_spec = importlib.util.spec_from_file_location(path.stem, path)
        assert module_spec is not None and module_spec.loader is not None
        module = importlib.util.module_from_spec(module_spec)
        try:
            module_spec.loader.exec_module(module)
        except BoardError:
            raise
        except (Exception, SystemExit) as error:
            raise BoardError(f"board file {name} does not run: {type(error).__name__}: {error}") from error
    else:
        if name not in names():
            raise BoardError(f"{unknown('board', name, names())}, or give the path of a board file")
        module = importlib.import_module(f"tritloom.boards.{name.replace('-', '_')}")
    board = getattr(module, "BOARD", None)
    if not isinstance(board, Board):
        raise BoardError(f"{name} does not define BOARD: it must be a tritloom.boards.board.Board")
    return board
