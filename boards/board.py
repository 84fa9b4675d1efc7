"""What a board is: the record that every `boards/*.py` fills in, and how one is found by name."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from dataclasses import dataclass, field
from pathlib import Path

from tritloom.boards.sdram import DdrChip, SdramChip
from tritloom.firmware.errors import InputError
from tritloom.firmware.names import unknown
from tritloom.firmware.registers import PORT_ADDRESS_BITS

MEMORIES = ("axi", "onchip")
TOOLCHAINS = ("verilator", "ecp5", "gowin", "vivado", "verilog")
RESOURCES = ("lut", "ff", "bram", "uram", "dsp")
ADDRESS_LIMIT = 1 << PORT_ADDRESS_BITS
"""Bytes that a memory port's addresses reach."""


DEFAULT_BOARD = "sim"
VENDOR_FILL = 0.6
"""Of the published designs for the KV260's device, one of 36 % closes 250 MHz with 0.1 ns to spare, those of 72 and 73 % with 0.01 and 0.05
after much work on their timing (docs/boards/kv260.md)."""
NO_BOARDS = ("board", "sdram")
"""Modules of this package that describe no board."""


class BoardError(InputError):
    """A board that does not exist or cannot be loaded; the message names the remedy."""


@dataclass(frozen=True, kw_only=True)
class Wiring:
    """What a board wires to the device's pins. A machine built with it runs by itself, and its host reaches it over the UART.

    `clock_pin`, `oscillator_hz`: the clock that comes in, from which a PLL makes the machine's. `uart_rx`, `uart_tx`: pins as the device
    sees them, at `baud` bits a second. `reset_pin`: a button that reads `reset_level` while it is pressed. `led_pins`: lit at `led_level`,
    in the order of `LEDS`. `tied`: pins that must be held at a level. `sdram`: the chip, and `sdram_pins`: its signals, the pins of each
    from bit 0 on (the chip's `signals`); those that the board itself holds at the level at which the chip listens are left out (`TIED`).
    `attributes`, `sdram_attributes`: what the tools are told of each pin, and of the SDRAM's besides; `signal_attributes`: of the pins of
    one of its signals. `programmer`: the board's name in openFPGALoader.
    """

    clock_pin: str
    oscillator_hz: int
    uart_rx: str
    uart_tx: str
    baud: int
    reset_pin: str
    reset_level: int = 1
    led_pins: tuple[str, ...] = ()
    led_level: int = 1
    tied: dict[str, int] = field(default_factory=dict)
    sdram: SdramChip | DdrChip | None = None
    sdram_pins: dict[str, tuple[str, ...]] = field(default_factory=dict)
    attributes: dict[str, str] = field(default_factory=dict)
    sdram_attributes: dict[str, str] = field(default_factory=dict)
    signal_attributes: dict[str, dict[str, str]] = field(default_factory=dict)
    programmer: str = ""

    def check(self, board: str) -> None:
        """Raises `BoardError` for pins that are missing, named twice, or of the wrong number."""
        chip = self.sdram
        found = {name: len(pins) for name, pins in self.sdram_pins.items()}
        wanted = {} if chip is None else {name: count for name, count in chip.signals.items() if name in found or name not in chip.TIED}
        if found != wanted:
            odd = next(name for name in {**wanted, **found} if wanted.get(name, 0) != found.get(name, 0))
            raise BoardError(f"board {board}: the SDRAM's signal {odd} has {wanted.get(odd, 0)} pins, not {found.get(odd, 0)}")
        pins = [self.clock_pin, self.uart_rx, self.uart_tx, self.reset_pin, *self.led_pins, *self.tied,
                *(pin for each in self.sdram_pins.values() for pin in each)]
        twice = sorted({pin for pin in pins if pins.count(pin) > 1 or not pin})
        if twice:
            raise BoardError(f"board {board}: pin {twice[0]!r} is wired {pins.count(twice[0])} times")
        for what, level in {"reset_level": self.reset_level, "led_level": self.led_level, **self.tied}.items():
            if level not in (0, 1):
                raise BoardError(f"board {board}: the level of {what} must be 0 or 1, not {level!r}")
        if self.oscillator_hz <= 0 or self.baud <= 0:
            raise BoardError(f"board {board}: oscillator_hz and baud must be positive, not {self.oscillator_hz!r} and {self.baud!r}")


LEDS = ("link", "work", "error", "memory", "alive")
"""What the LEDs of a board show, in the order of `Wiring.led_pins`, which may have fewer or more: a frame came lately; a program runs; the
memory answered with an error or a frame was damaged lately; the SDRAM is ready; the clock runs (it blinks)."""


@dataclass(frozen=True, kw_only=True)
class Board:
    """Data of one board.

    `family`: fabric for resource estimates (xcup, ecp5, gowin, ice40); `memory`: "axi" (`mem_ports` AXI4 masters
    that together carry `mem_bytes` per core cycle) or "onchip"; `timing`: preset of the simulated memory;
    `resources`: what the device has (lut, ff, dsp; bram and uram in Kibit), empty when unlimited; `toolchain`: "verilator" (simulation),
    "ecp5", "gowin" (open bitstream), "vivado" (a kit for a KV260), "verilog" (an IP core for the vendor's tool); `parameters`: generator
    parameters that this board prescribes. `dram_bytes`: DRAM on the board (0: none, or not said); `window`: first address and bytes of
    the part of it in which a machine may have its memory, of what the memory ports reach (None: all of that). `wiring`: what is wired to
    the device, where a whole board is built and not a machine alone. `clocks`: what else the board gives a machine, in Hz, if `clock_hz`
    is too fast for it.
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
    wiring: Wiring | None = None
    clocks: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.memory not in MEMORIES:
            raise BoardError(f"board {self.name}: memory must be one of {', '.join(MEMORIES)}, not {self.memory!r}")
        if self.toolchain not in TOOLCHAINS:
            raise BoardError(f"board {self.name}: toolchain must be one of {', '.join(TOOLCHAINS)}, not {self.toolchain!r}")
        numbers = {"mem_bytes": self.mem_bytes, "mem_ports": self.mem_ports, "clock_hz": self.clock_hz} | self.resources
        numbers |= {f"clocks[{n}]": clock for n, clock in enumerate(self.clocks)}
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
        if self.wiring is not None:
            self.wiring.check(self.name)
            chip = self.wiring.sdram
            if (self.memory == "axi") != (chip is not None) or (chip and (self.mem_ports != 1 or self.dram_bytes != chip.size_bytes)):
                raise BoardError(f"board {self.name}: what it wires has {f'an SDRAM of {chip.size_bytes} bytes' if chip else 'no SDRAM'}: "
                                 "memory, mem_ports (1) and dram_bytes must say the same")

    @property
    def fill(self) -> float:
        """Share of the device's LUTs that a machine takes unless more is asked for: where the vendor's tool closes the timing, in hands of
        whoever runs it, what it closes without help; the open tools' builds are tried here."""
        return VENDOR_FILL if self.toolchain in ("vivado", "verilog") else 1.0

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
