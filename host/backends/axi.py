"""A machine beside the processor that runs this, such as a KV260's: registers by UIO, memory by u-dma-buf, and an interrupt.

`root` is where /dev, /proc and /sys are: elsewhere in tests.
"""

from __future__ import annotations

import mmap
import os
import select
import struct
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tritloom.firmware.config import BuildConfig
from tritloom.firmware.registers import ADDRESS_BITS, PAGE_BYTES, PORT_ADDRESS_BITS, REGISTER
from tritloom.host.backends.protocol import Bytes, DeviceError
from tritloom.host.device import UNSETTLED

__all__ = ["AxiBackend", "Buffer", "Interrupt", "Registers", "Stripe", "Waiting", "Window", "check_clock", "check_place", "check_rate",
           "find_uio", "fabric_clock", "open_stripe", "stripe_bytes", "stripe_place"]

NAME = "tritloom"
"""Of the node of the registers in the device tree; buffers have a port's number behind it."""
INSTALL = "sudo kria/install.sh, of the kit"
REINSTALL = f"sudo kria/remove.sh, then {INSTALL}; with PYNQ, start again"
CLOCK = "sys/kernel/debug/clk/pl0_ref/clk_rate"
CLOCK_TOLERANCE = 0.01
CHUNK = 16 << 20
"""Bytes that are copied between two looks at Ctrl-C."""
TO_DEVICE = 1
"""DMA_TO_DEVICE, as u-dma-buf numbers directions."""


class Registers(Protocol):
    """Words at byte offsets."""

    def read(self, offset: int) -> int: ...

    def write(self, offset: int, value: int) -> None: ...

    def close(self) -> None: ...


class Window:
    """Registers in the address space of this process: those of a UIO device.

    Each access is one of 32 bits through a memoryview. An array of ctypes reads the old word before it stores the new one, which a
    write-only register answers with an error.
    """

    def __init__(self, path: Path) -> None:
        file = os.open(path, os.O_RDWR | os.O_SYNC)
        try:
            self._map = mmap.mmap(file, 1 << ADDRESS_BITS, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        finally:
            os.close(file)
        self._words = memoryview(self._map).cast("I")

    def read(self, offset: int) -> int:
        return self._words[offset >> 2]

    def write(self, offset: int, value: int) -> None:
        self._words[offset >> 2] = value

    def close(self) -> None:
        self._words.release()
        self._map.close()


class Interrupt:
    """A UIO device's interrupt, which its driver masks when it comes. `file`: the opened device."""

    def __init__(self, file: int) -> None:
        self._file = file

    def wait(self, seconds: float) -> bool:
        """Whether it came within some time."""
        os.write(self._file, struct.pack("I", 1))  # unmask
        ready, _, _ = select.select([self._file], [], [], seconds)
        if ready:
            os.read(self._file, 4)
        return bool(ready)

    def close(self) -> None:
        os.close(self._file)


class Waiting(Protocol):
    def wait(self, seconds: float) -> bool: ...

    def close(self) -> None: ...


class Buffer(Protocol):
    """Memory of a port: where the port sees it, and its bytes as this process does, through its caches."""

    name: str
    physical: int
    bytes: NDArray[np.uint8]

    def sync_for_device(self, start: int, size: int) -> None: ...

    def close(self) -> None: ...


@dataclass
class Stripe:
    """A buffer of u-dma-buf (`Buffer`)."""

    name: str
    physical: int
    bytes: NDArray[np.uint8]
    folder: Path
    _map: mmap.mmap = field(repr=False)

    def sync_for_device(self, start: int, size: int) -> None:
        """Write back what the processor's caches hold of a part."""
        for name, value in (("sync_offset", start), ("sync_size", size), ("sync_direction", TO_DEVICE), ("sync_for_device", 1)):
            (self.folder / name).write_text(f"{value}\n", encoding="ascii")

    def close(self) -> None:
        del self.bytes
        self._map.close()


def _number(path: Path) -> int:
    return int(path.read_text(encoding="ascii").strip(), 0)


def stripe_bytes(config: BuildConfig, memory_bytes: int) -> int:
    """Bytes behind one memory port of a model that needs `memory_bytes` over all."""
    return -(-memory_bytes // config.mem_bytes) * (config.mem_bytes // config.mem_ports)


def find_uio(root: Path) -> tuple[Path, int]:
    """The UIO device of the registers, and their physical address. Raises `DeviceError`."""
    seen = []
    for folder in sorted((root / "sys/class/uio").glob("uio*")):
        name = (folder / "name").read_text(encoding="utf-8").strip()
        if name == NAME:
            return root / "dev" / folder.name, _number(folder / "maps/map0/addr")
        seen.append(name)
    raise DeviceError(f"no UIO device is called {NAME} (there are: {', '.join(seen) or 'none'})", INSTALL)


def stripe_place(root: Path, port: int, size: int) -> tuple[int, int]:
    """Bytes and physical address of a memory port's buffer, of which `size` bytes are needed. Raises `DeviceError` if it is missing, too
    small, or where no port can reach it."""
    name = f"{NAME}{port}"
    folder = root / "sys/class/u-dma-buf" / name
    if not folder.is_dir():
        raise DeviceError(f"the buffer {name} is missing", f"sudo modprobe u-dma-buf, cma= as the kit's plan.txt says, then {INSTALL}")
    have, physical = _number(folder / "size"), _number(folder / "phys_addr")
    if have < size:
        raise DeviceError(f"the buffer {name} has {have} bytes, the model needs {size}",
                          f"build the kit for this model and context, then {INSTALL}")
    check_place(name, physical, have)
    return have, physical


def check_place(name: str, physical: int, size: int) -> None:
    """Raises `DeviceError` for a buffer where no memory port can have one."""
    if physical % PAGE_BYTES or physical + size > 1 << PORT_ADDRESS_BITS:
        raise DeviceError(f"the buffer {name} lies at {physical:#x}, not at a multiple of {PAGE_BYTES} within {PORT_ADDRESS_BITS} bits",
                          REINSTALL)


def open_stripe(root: Path, port: int, size: int) -> Stripe:
    """A memory port's buffer. Raises as `stripe_place` does."""
    have, physical = stripe_place(root, port, size)
    name = f"{NAME}{port}"
    file = os.open(root / "dev" / name, os.O_RDWR)
    try:
        mapped = mmap.mmap(file, have, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
    finally:
        os.close(file)
    return Stripe(name, physical, np.frombuffer(mapped, np.uint8), root / "sys/class/u-dma-buf" / name, mapped)


def fabric_clock(root: Path) -> int | None:
    """The rate of pl_clk0 in Hertz, as the clock driver knows it; None where it cannot be read (debugfs is root's)."""
    try:
        return _number(root / CLOCK)
    except OSError:
        return None


def check_clock(root: Path, wanted: int) -> int | None:
    """The rate of pl_clk0 in Hertz, if it can be read. Raises `DeviceError` if it is not the one `wanted`."""
    rate = fabric_clock(root)
    if rate is not None:
        check_rate(rate, wanted, f"{INSTALL}: the overlay sets it")
    return rate


def check_rate(rate: float, wanted: int, mend: str) -> None:
    """Raises `DeviceError` for a clock in Hertz that is not the one `wanted`."""
    if abs(rate - wanted) > CLOCK_TOLERANCE * wanted:
        raise DeviceError(f"the fabric's clock is {rate / 1e6:g} MHz, the machine was built for {wanted / 1e6:g}", mend)


class AxiBackend:
    """The machine on this board's fabric, by UIO and u-dma-buf. `memory_bytes`: what the model needs, over all ports.

    Raises `DeviceError` for registers or buffers that are not there, buffers that do not suffice or overlap, and a fabric clock that is
    not the configuration's.
    """

    name = "axi"
    timed = True

    def __init__(self, config: BuildConfig, memory_bytes: int, *, root: Path = Path("/")) -> None:
        if config.memory != "axi":
            raise DeviceError(f"the machine of board {config.board} has its memory on the chip: this backend is for memory behind ports")
        self.config: BuildConfig = config
        self._root = root
        self._part = config.mem_bytes // config.mem_ports
        self._stripes: list[Buffer] = []
        self._registers: Registers | None = None
        self._interrupt: Waiting | None = None
        try:
            self._registers, self._interrupt, self.device = self.attach()
            size = stripe_bytes(config, memory_bytes)
            for port in range(config.mem_ports):
                self._stripes.append(self.stripe(port, size))
            self._check_places()
            for stripe in self._stripes:
                stripe.sync_for_device(0, len(stripe.bytes))  # nothing of before is written over the machine's own later
        except OSError as error:
            self.close()
            raise DeviceError(f"{error.filename or 'the machine'}: {error.strerror}; run as root, or give this user the devices "
                              "(docs/boards/kv260.md, step 7)") from None
        except BaseException:
            self.close()
            raise
        self.port_bases: Sequence[int] = [stripe.physical for stripe in self._stripes]

    def attach(self) -> tuple[Registers, Waiting, str]:
        """The machine's registers, its interrupt, and what names it among processes."""
        check_clock(self._root, self.config.clock_hz)
        path, _ = find_uio(self._root)
        interrupt = self.interrupt(path)
        try:
            return self.window(path), interrupt, str(path)
        except BaseException:
            interrupt.close()
            raise

    def window(self, path: Path) -> Registers:
        return Window(path)

    def interrupt(self, path: Path) -> Waiting:
        return Interrupt(os.open(path, os.O_RDWR))

    def stripe(self, port: int, size: int) -> Buffer:
        """The buffer of a memory port, of `size` bytes at least."""
        return open_stripe(self._root, port, size)

    def _check_places(self) -> None:
        placed = sorted(self._stripes, key=lambda stripe: stripe.physical)
        for one, other in zip(placed, placed[1:], strict=False):
            if one.physical + len(one.bytes) > other.physical:
                raise DeviceError(f"the buffers {one.name} and {other.name} overlap at {other.physical:#x}", REINSTALL)

    def _offset(self, register: str, refused: str) -> int:
        """Where a register is. What the machine would refuse is refused here: on this bus it would kill the process, or the board."""
        if self._registers is None:
            raise DeviceError(f"the {self.name} device is closed")
        entry = REGISTER[register]
        number = register[len("PORT_BASE"):].removeprefix("_HIGH") if register.startswith("PORT_BASE") else ""
        if entry.access == refused or number and int(number) >= self.config.mem_ports:
            raise DeviceError(f"register {register} cannot be {'read' if refused == 'wo' else 'written'} on this machine")
        return entry.address

    def read(self, register: str) -> int:
        offset = self._offset(register, "wo")
        assert self._registers is not None
        return self._registers.read(offset)

    def write(self, register: str, value: int) -> None:
        offset = self._offset(register, "ro")
        assert self._registers is not None
        state = REGISTER["STATUS"]
        if REGISTER[register].halted and self.read("STATUS") & UNSETTLED:
            raise DeviceError(f"writing {register}: refused while a program runs")
        if register == "TOKEN_IN":
            status = self.read("STATUS")
            if state["RESETTING"].get(status) or not state["PROMPT_ROOM"].get(status):
                raise DeviceError("writing TOKEN_IN: refused, the FIFO is full or a reset is under way")
        self._registers.write(offset, value & 0xFFFFFFFF)

    def load(self, address: int, data: Bytes) -> None:
        if self._registers is None:
            raise DeviceError(f"the {self.name} device is closed")
        array = np.frombuffer(data, np.uint8)
        room = min(len(stripe.bytes) for stripe in self._stripes) // self._part * self.config.mem_bytes
        if address + len(array) > room:
            raise DeviceError(f"loading the memory: {len(array)} bytes at 0x{address:x} lie beyond its {room}")
        for at, piece in _pieces(address, array, self.config.mem_bytes):
            beat, within = divmod(at, self.config.mem_bytes)
            if within or len(piece) % self.config.mem_bytes:
                self._load_bytes(at, piece)
                continue
            parts = piece.reshape(-1, self.config.mem_ports, self._part)
            for port, stripe in enumerate(self._stripes):
                stripe.bytes[beat * self._part : (beat + len(parts)) * self._part].reshape(-1, self._part)[:] = parts[:, port]
        if len(array):
            first, last = address // self.config.mem_bytes, (address + len(array) - 1) // self.config.mem_bytes
            for stripe in self._stripes:
                stripe.sync_for_device(first * self._part, (last + 1 - first) * self._part)

    def _load_bytes(self, address: int, data: NDArray[np.uint8]) -> None:
        """A part of a beat."""
        for at, value in enumerate(data.tolist(), address):
            beat, within = divmod(at, self.config.mem_bytes)
            port, place = divmod(within, self._part)
            self._stripes[port].bytes[beat * self._part + place] = value

    def advance(self, limit: int) -> int:
        """Wait for the interrupt, as long as so many cycles take."""
        if self._interrupt is None:
            raise DeviceError(f"the {self.name} device is closed")
        start = time.monotonic()
        self._interrupt.wait(limit / self.config.clock_hz)
        return max(1, int((time.monotonic() - start) * self.config.clock_hz))

    def close(self) -> None:
        if self._interrupt is not None:
            self._interrupt.close()
            self._interrupt = None
        for stripe in self._stripes:
            stripe.close()
        self._stripes = []
        if self._registers is not None:
            self._registers.close()
            self._registers = None


def _pieces(address: int, data: NDArray[np.uint8], beat: int) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Data in pieces: whole beats, but for what comes before the first and after the last of them."""
    head = min(-address % beat, len(data))
    whole = (len(data) - head) // beat * beat
    if head:
        yield address, data[:head]
    for at in range(head, head + whole, CHUNK):
        yield address + at, data[at : min(at + CHUNK, head + whole)]
    if head + whole < len(data):
        yield address + head + whole, data[head + whole :]
