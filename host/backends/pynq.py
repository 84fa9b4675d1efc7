"""A machine beside the processor that runs this, on a board with PYNQ: its `Overlay` loads the bitstream and sets the clock, `MMIO` has the
registers, `allocate` the memory."""

from __future__ import annotations

import importlib
import time
from pathlib import Path
from typing import Any

import numpy as np

from tritloom.firmware.config import BuildConfig
from tritloom.firmware.registers import REGISTER
from tritloom.host.backends.axi import AxiBackend, Buffer, Registers, Waiting, check_place, check_rate
from tritloom.host.backends.protocol import DeviceError

CELL = "machine"
"""The machine's name in the kit's block design."""
POLL_S = 0.001
"""Between two looks at the machine: PYNQ knows only interrupts that come over a controller of its own."""
RUNNING = REGISTER["STATUS"]["RUNNING"]


class PynqBackend(AxiBackend):
    """The machine of a bitstream, which is loaded. `bitstream`: the .bit file, beside which its .hwh lies.

    Raises `DeviceError` where PYNQ is not installed, for a bitstream that has no machine, and as `AxiBackend` does.
    """

    name = "pynq"

    def __init__(self, config: BuildConfig, memory_bytes: int, bitstream: Path) -> None:
        self._bitstream = bitstream
        super().__init__(config, memory_bytes)

    def attach(self) -> tuple[Registers, Waiting, str]:
        try:
            pynq: Any = importlib.import_module("pynq")  # the board's own
        except ImportError:
            raise DeviceError("the package pynq is missing", "run this with the Python of PYNQ, or take --backend axi") from None
        for file in (self._bitstream, self._bitstream.with_suffix(".hwh")):
            if not file.is_file():
                raise DeviceError(f"{file}: missing", "copy vivado/out/tritloom.bit and tritloom.hwh of the kit, into one folder")
        self._pynq = pynq
        self._overlay = pynq.Overlay(str(self._bitstream.resolve()))
        check_rate(pynq.Clocks.fclk0_mhz * 1e6, self.config.clock_hz, "give --overlay the bitstream of this image's kit")
        cells = self._overlay.ip_dict
        if CELL not in cells:
            raise DeviceError(f"{self._bitstream} has no cell {CELL} (there are: {', '.join(sorted(cells)) or 'none'})",
                              "give --overlay the bitstream of the kit")
        registers = _Registers(pynq.MMIO(cells[CELL]["phys_addr"], cells[CELL]["addr_range"]))
        return registers, _Polling(registers), f"pynq {CELL}"

    def stripe(self, port: int, size: int) -> Buffer:
        try:
            allocated = self._pynq.allocate((size,), "u1")
        except (MemoryError, RuntimeError) as error:
            raise DeviceError(f"{size} bytes of contiguous memory for port {port} are not to be had ({error})",
                              "cma= on the kernel's command line, as the kit's plan.txt says") from None
        buffer = _Buffer(f"of port {port}", allocated)
        try:
            check_place(buffer.name, buffer.physical, size)
        except DeviceError:
            buffer.close()
            raise
        return buffer


class _Registers:
    """PYNQ's window."""

    def __init__(self, window: Any) -> None:
        self._window = window

    def read(self, offset: int) -> int:
        return self._window.read(offset)

    def write(self, offset: int, value: int) -> None:
        self._window.write(offset, int(value))  # it takes no other kind

    def close(self) -> None:
        """PYNQ unmaps it."""


class _Polling:
    """Waits until the machine has something to say."""

    def __init__(self, registers: Registers) -> None:
        self._registers = registers

    def wait(self, seconds: float) -> bool:
        end = time.monotonic() + seconds
        while True:
            status, waiting = (self._registers.read(REGISTER[name].address) for name in ("STATUS", "TOKEN_LEVEL"))
            if waiting or not RUNNING.get(status):
                return True
            left = end - time.monotonic()
            if left <= 0:
                return False
            time.sleep(min(POLL_S, left))

    def close(self) -> None:
        """Nothing to do."""


class _Buffer:
    """A buffer of PYNQ (`axi.Buffer`)."""

    def __init__(self, name: str, allocated: Any) -> None:
        self.name, self._allocated, self.physical = name, allocated, allocated.physical_address
        self.bytes = np.asarray(allocated)

    def sync_for_device(self, start: int, size: int) -> None:
        self._allocated[start : start + size].flush()

    def close(self) -> None:
        del self.bytes
        self._allocated.freebuffer()
