"""A board whose pins are simulated: its outermost module, its SDRAM, and the other end of its UART (board.cpp).

`SimulatedBoard` is that board, whose clock runs while somebody waits for its bytes. `Terminal` puts it behind a pseudo-terminal, so that
any program that knows serial ports talks to it.
"""

from __future__ import annotations

import ctypes
import os
import random
import select
import time
import tty
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from tritloom.boards.board import LEDS, Board, BoardError
from tritloom.boards.sdram import DdrChip, SdramChip
from tritloom.firmware.config import BuildConfig
from tritloom.gen.verilog.board import board_verilog
from tritloom.host.backends.uart import UartBackend
from tritloom.host.link import Link
from tritloom.sim.compile import BOARD, compile_verilog
from tritloom.sim.machine import SimulationError

__all__ = ["BoardBackend", "SimulatedBoard", "SimulatedPort", "Terminal", "simulated_link"]

CELLS = Path(__file__).with_name("cells")
CHUNK = 20_000
"""Cycles between two looks at what the host sends, and at interrupts."""
RAS_MAX_NS = 100_000
"""Longest that a row stays open (tRAS max. of all the chips)."""
PATIENCE_S, TIMER_S = 0.5, 0.002
"""Of the board's time that a simulated board may be silent, and that an answer may take: no USB adapter is between."""
POSTPONED = 8
"""Refreshes that JEDEC lets a controller owe."""


class _Timing(ctypes.Structure):
    """SdramTiming of sim/sdram.h."""

    _fields_ = [(name, ctypes.c_uint32) for name in (
        "width", "row_bits", "column_bits", "bank_bits", "rcd", "rp", "ras", "rc", "rrd", "rfc", "wr", "mrd", "refi", "start", "refreshes",
        "cas_min", "ras_max", "postponed")]


class _Parameters(ctypes.Structure):
    """Parameters of sim/board.cpp."""

    _fields_ = [("seed", ctypes.c_uint64), ("bit_cycles_256", ctypes.c_uint32), ("reset_level", ctypes.c_uint32), ("sdram", _Timing)]


def _timing(chip: SdramChip | DdrChip | None, clock_hz: int) -> _Timing:
    """The times of the data sheet in cycles, whatever the controller was built from. DDR3 is simulated by its core's own model."""
    if not isinstance(chip, SdramChip):
        return _Timing()

    def cycles(ns: float) -> int:
        return -(-round(ns * clock_hz) // 10**9)

    times = [cycles(ns) for ns in (chip.t_rcd, chip.t_rp, chip.t_ras, chip.t_rc, chip.t_rrd, chip.t_rfc)]
    cas = min(latency for latency, limit_hz in chip.cas_hz.items() if clock_hz <= limit_hz)
    return _Timing(chip.width, chip.row_bits, chip.column_bits, chip.bank_bits, *times, max(cycles(chip.t_wr), chip.wr_cycles),
                   max(cycles(chip.t_mrd), chip.mrd_cycles), int(chip.t_refresh * clock_hz / 10**9 / chip.refreshes), cycles(chip.t_start),
                   chip.start_refreshes, cas, RAS_MAX_NS * clock_hz // 10**9, POSTPONED)


class SimulatedBoard:
    """`board` with the machine of `config` built in, switched on. Use as a context manager, or `close()` it.

    `verilog`: module `board`, where it is not to be the board's own. `baud`: the rate at which the host's end of the UART runs (the board's
    own unless told otherwise). The contents of its memory are random at first, by `seed`. Every wait is bounded. Raises `SimulationError`
    at the first violation of the SDRAM's timing.
    """

    def __init__(self, config: BuildConfig, board: Board, *, verilog: str | None = None, seed: int = 1, baud: int | None = None,
                 build_dir: Path | None = None, progress: Callable[[float, str], None] | None = None) -> None:
        wiring = board.wiring
        if wiring is None:
            raise BoardError(f"board {board.name} says nothing of its pins: its file needs `wiring`")
        design = board_verilog(config, board, simulated=True).text if verilog is None else verilog
        text = design + (CELLS / f"{board.family}.v").read_text(encoding="utf-8")
        library = compile_verilog(text, f"board-{config.digest:08x}", build_dir, top="board", harness=BOARD, progress=progress)
        self.wiring = wiring
        self.config, self.board, self.clock_hz, self.baud = config, board, config.clock_hz, baud or wiring.baud
        self._library = _load(library)
        parameters = _Parameters(seed, round(256 * config.clock_hz / self.baud), wiring.reset_level,
                                 _timing(wiring.sdram, config.clock_hz))
        self._handle: int | None = self._library.board_create(ctypes.byref(parameters))

    def __enter__(self) -> SimulatedBoard:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the board and its memory."""
        if self._handle:
            self._library.board_destroy(self._handle)
            self._handle = None

    def _board(self) -> int:
        if not self._handle:
            raise SimulationError("the simulated board is closed")
        return self._handle

    @property
    def cycles(self) -> int:
        """Clock cycles since it was switched on."""
        return self._library.board_cycles(self._board())

    @property
    def leds(self) -> dict[str, bool]:
        """Which of the LEDs that the board has are lit."""
        bits = self._library.board_leds(self._board())
        return {name: bits >> n & 1 == self.wiring.led_level for n, (name, _) in enumerate(zip(LEDS, self.wiring.led_pins, strict=False))}

    @property
    def framing_errors(self) -> int:
        """Bytes of the board without a stop bit."""
        return self._library.board_framing_errors(self._board())

    def run(self, cycles: int, *, until_sent: bool = False) -> int:
        """Let so many cycles pass, or fewer if something was sent; returns how many. Can be interrupted."""
        done = 0
        while done < cycles:
            chunk = min(cycles - done, CHUNK)
            ran = self._library.board_run(self._board(), chunk, until_sent)
            done += ran
            violation = self._library.board_violation(self._board()).decode("ascii")
            if violation:
                raise SimulationError(f"the SDRAM's timing was violated: {violation}")
            if ran < chunk:
                break
        return done

    def press(self, pressed: bool) -> None:
        """Press the reset button, or let it go."""
        self._library.board_press(self._board(), pressed)

    def connect(self, connected: bool) -> None:
        """Plug the host's cable in, or out: what is on its way is lost."""
        self._library.board_connect(self._board(), connected)

    def send(self, data: bytes) -> None:
        """Bytes for the board; they go onto the line as it runs."""
        self._library.board_send(self._board(), bytes(data), len(data))

    @property
    def unsent(self) -> int:
        """Bytes that have not begun to go onto the line."""
        return self._library.board_unsent(self._board())

    def received(self) -> bytes:
        """What the board has sent since the last call."""
        buffer = ctypes.create_string_buffer(1 << 16)
        count = self._library.board_receive(self._board(), buffer, len(buffer))
        return buffer.raw[:count]

    def memory(self) -> Any:
        """The SDRAM's bytes, as a ctypes array: to look at what was written, and to load an image without its time on the line. Raises
        `BoardError` if there is none."""
        if not isinstance(self.wiring.sdram, SdramChip):
            raise BoardError(f"board {self.board.name} has no SDRAM at pins that are simulated")
        size = ctypes.c_uint64()
        address = self._library.board_memory(self._board(), ctypes.byref(size))
        return (ctypes.c_uint8 * size.value).from_address(ctypes.cast(address, ctypes.c_void_p).value or 0)


class Terminal:
    """A pseudo-terminal at whose other end a board is. `path`: the port to open."""

    def __init__(self, board: SimulatedBoard) -> None:
        self.board = board
        self._master, self._slave = os.openpty()
        tty.setraw(self._slave)
        os.set_blocking(self._master, False)
        self.path = os.ttyname(self._slave)

    def close(self) -> None:
        """Close both ends."""
        os.close(self._master)
        os.close(self._slave)

    def step(self, cycles: int = CHUNK) -> None:
        """Take what the host has written, let the board run, hand on what it sent."""
        if self.board.unsent < 1 << 14 and select.select([self._master], [], [], 0)[0]:
            self.board.send(os.read(self._master, 1 << 12))
        self.board.run(cycles)
        with suppress(BlockingIOError):  # bytes that nobody reads are lost, as on any UART
            os.write(self._master, self.board.received())

    def serve(self, seconds: float, *, idle_s: float = 0.0) -> None:
        """Go on for so long. `idle_s`: rest so long, time and again, when nothing happens."""
        quiet, end = 0, time.monotonic() + seconds
        while time.monotonic() < end:
            before = self.board.unsent
            self.step()
            quiet = 0 if self.board.unsent or before else quiet + 1
            if idle_s and quiet > 1000:
                time.sleep(idle_s)


class SimulatedPort:
    """The serial port of a board that is simulated in this process: its clock runs while somebody reads (`host.link.Port`)."""

    def __init__(self, board: SimulatedBoard) -> None:
        self.board = board

    def write(self, data: bytes) -> None:
        """Bytes for the board."""
        self.board.send(data)

    def read(self, timeout_s: float) -> bytes:
        """What it sends within the time, of its own clock."""
        self.board.run(max(1, int(timeout_s * self.board.clock_hz)), until_sent=True)
        return self.board.received()

    def close(self) -> None:
        """Nothing to do."""


def simulated_link(board: SimulatedBoard, patience_s: float = PATIENCE_S) -> Link:
    """The link to a simulated board, through its UART; time is that of the board's clock. So is the session's number: what is sent takes
    the same cycles whenever the same is done."""
    return Link(lambda: SimulatedPort(board), name=f"{board.board.title}, simulated", baud=board.baud, patience_s=patience_s,
                timer_s=TIMER_S, clock=lambda: board.cycles / board.clock_hz, chance=random.Random(board.cycles),
                sleep=lambda seconds: None if board.run(int(seconds * board.clock_hz)) else None)


class BoardBackend(UartBackend):
    """The machine of a simulated board, reached as the real one is."""

    def __init__(self, board: SimulatedBoard, *, patience_s: float = PATIENCE_S) -> None:
        self.board = board
        link = simulated_link(board, patience_s)
        super().__init__(link.name, config=board.config, through=link)

    def close(self) -> None:
        """Switch the board off."""
        super().close()
        self.board.close()


def _load(path: Path) -> Any:
    library = ctypes.CDLL(str(path))
    for name, result, arguments in (
        ("create", ctypes.c_void_p, [ctypes.c_void_p]), ("destroy", None, [ctypes.c_void_p]),
        ("run", ctypes.c_uint64, [ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint32]),
        ("send", None, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint64]), ("unsent", ctypes.c_uint64, [ctypes.c_void_p]),
        ("receive", ctypes.c_uint64, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint64]),
        ("press", None, [ctypes.c_void_p, ctypes.c_uint32]), ("connect", None, [ctypes.c_void_p, ctypes.c_uint32]),
        ("cycles", ctypes.c_uint64, [ctypes.c_void_p]), ("leds", ctypes.c_uint32, [ctypes.c_void_p]),
        ("framing_errors", ctypes.c_uint32, [ctypes.c_void_p]),
        ("memory", ctypes.c_void_p, [ctypes.c_void_p, ctypes.POINTER(ctypes.c_uint64)]), ("violation", ctypes.c_char_p, [ctypes.c_void_p]),
    ):
        function = getattr(library, f"board_{name}")
        function.restype, function.argtypes = result, arguments
    return library
