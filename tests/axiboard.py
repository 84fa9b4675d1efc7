"""A board's Linux made of files: /sys and /dev with buffers and registers, behind which a machine works (an emulator or the RTL)."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tritloom.firmware.registers import REGISTER
from tritloom.host.backends import axi

NAMES = {register.address: register.name for register in REGISTER.values()}
BASES = [0x6000_0000, 0x8_1000_0000, 0x5000_0000, 0x4000_0000]


class Board:
    """The tree in `root`, with buffers of `size` bytes for each port of `machine`'s configuration.

    The machine sees of a buffer's file what was synchronised, and only that. `waits`: how often the interrupt was waited for.
    """

    def __init__(self, root: Path, machine, memory_bytes: int, bases: Sequence[int] = BASES, *, clock_hz: int | None = None,
                 name: str = "tritloom") -> None:
        self.root, self.machine, self.config, self.waits, self.closed = root, machine, machine.config, 0, 0
        c = self.config
        self.part, beats = c.mem_bytes // c.mem_ports, -(-memory_bytes // c.mem_bytes)
        self.memory = np.zeros((beats, c.mem_ports, self.part), np.uint8)
        self.file("sys/class/uio/uio0/name", "other")
        self.file("sys/class/uio/uio1/name", name)
        self.file("sys/class/uio/uio1/maps/map0/addr", "0xa0000000")
        self.file("sys/kernel/debug/clk/pl0_ref/clk_rate", str(clock_hz or c.clock_hz))
        self.file("proc/meminfo", "MemTotal: 4046000 kB\nCmaTotal: 1024000 kB\nCmaFree: 64000 kB\n")
        self.file("proc/loadavg", "0.10 0.20 0.30 1/100 4711")
        for port in range(c.mem_ports):
            self.buffer(port, bases[port], beats * self.part)

    def file(self, path: str, text: str) -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(text + "\n")

    def buffer(self, port: int, physical: int, size: int) -> None:
        self.file(f"sys/class/u-dma-buf/tritloom{port}/phys_addr", hex(physical))
        self.file(f"sys/class/u-dma-buf/tritloom{port}/size", str(size))
        device = self.root / "dev" / f"tritloom{port}"
        device.parent.mkdir(exist_ok=True)
        device.write_bytes(b"")
        os.truncate(device, size)

    def open(self, memory_bytes: int, config=None) -> Backend:
        return Backend(self, config or self.config, memory_bytes)

    def synchronised(self, port: int, start: int, size: int, content=None) -> None:
        """The machine sees what the processor's caches held of a part of a buffer: `content`, or the file's."""
        assert start % self.part == 0
        if content is None:
            content = np.fromfile(self.root / "dev" / f"tritloom{port}", np.uint8, size, offset=start)
        first, last = start // self.part, min((start + size) // self.part, len(self.memory))
        self.memory[first:last, port] = content.reshape(-1, self.part)[: last - first]
        self.machine.load(first * self.config.mem_bytes, np.ascontiguousarray(self.memory[first:last]).reshape(-1))

    # Registers and interrupt.

    def read(self, offset: int) -> int:
        return self.machine.read(NAMES[offset])

    def write(self, offset: int, value: int) -> None:
        self.machine.write(NAMES[offset], value)

    def wait(self, seconds: float) -> bool:
        self.waits += 1
        self.machine.advance(max(1, round(seconds * self.config.clock_hz)))
        return True

    def close(self) -> None:
        self.closed += 1


class Driver:
    """u-dma-buf's files of a buffer, as its sysfs folder. Each keeps what was written last; sync_for_device acts at once, with what the
    others hold when it is written."""

    def __init__(self, board: Board, port: int, size: int) -> None:
        self._board, self._port, self._bytes = board, port, size
        self.values = {"sync_offset": 0, "sync_size": size, "sync_direction": 0}

    def __truediv__(self, name: str) -> DriverFile:
        return DriverFile(self, name)

    def store(self, name: str, value: int) -> None:
        if name == "sync_for_device":
            assert (value, self.values["sync_direction"]) == (1, axi.TO_DEVICE)
            self._board.synchronised(self._port, self.values["sync_offset"], self.values["sync_size"])
        elif not 0 <= value <= (2 if name == "sync_direction" else self._bytes):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), name)
        else:
            assert name in self.values
            self.values[name] = value


class DriverFile:
    def __init__(self, driver: Driver, name: str) -> None:
        self._driver, self._name = driver, name

    def write_text(self, text: str, encoding: str) -> None:
        self._driver.store(self._name, int(text))


class Backend(axi.AxiBackend):
    """`AxiBackend` whose registers and interrupt are a `Board`'s."""

    def __init__(self, board: Board, config, memory_bytes: int) -> None:
        self._board = board
        super().__init__(config, memory_bytes, root=board.root)

    def window(self, path, offset=0):
        assert path == self._board.root / "dev/uio1"
        return self._board

    def interrupt(self, path):
        return self._board

    def stripe(self, port, size):
        stripe: Any = super().stripe(port, size)
        driver: Any = Driver(self._board, port, len(stripe.bytes))
        stripe.folder = driver
        return stripe

    def advance(self, limit):
        super().advance(limit)
        return limit  # simulated time passes as it is asked for
