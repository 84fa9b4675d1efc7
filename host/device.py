"""A machine behind a backend: programs start and stop on it, words are pushed to them and tokens pulled. It knows nothing of texts.

Every wait is bounded.
"""

from __future__ import annotations

import fcntl
import os
import re
import tempfile
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from tritloom.firmware.image import Image
from tritloom.firmware.isa import Unit
from tritloom.firmware.registers import (
    FIFO_DEPTH,
    IDENTIFIER,
    MAP_VERSION,
    MEMORY_FAILED,
    PAGE_BYTES,
    PORT_ADDRESS_BITS,
    REGISTER,
)
from tritloom.host.backends.protocol import Backend, DeviceBusy, DeviceError, DeviceFault, DeviceTimeout

MASK32 = 0xFFFFFFFF
STEP_CYCLES = 1 << 16
"""Device cycles between two looks at the device: short enough for Ctrl-C."""
PUSH_CYCLES = 1 << 10
"""The same while it reads words: short, for it waits for the next ones as soon as it has them all."""
PATIENCE = 64
"""A token may take so many times the cycles that its memory traffic alone needs."""
PATIENCE_CYCLES = 2_000_000
LONGEST = 64
"""A wait ends after so many times the patience, whatever the device reads or writes meanwhile."""
UNITS = ("VECTOR", "MATMUL", "DOT", "SAMPLER")
"""Units with a BUSY counter."""

CONTROL, STATUS, TOKEN_OUT, MEMORY_PORTS = (REGISTER[name] for name in ("CONTROL", "STATUS", "TOKEN_OUT", "MEMORY_PORTS"))
START, STOP, CLEAR, RESET = (CONTROL[name].mask for name in ("START", "STOP", "CLEAR", "RESET"))
UNSETTLED = STATUS["RUNNING"].mask | STATUS["RESETTING"].mask
"""What a device is before it takes CLEAR and START."""

Progress = Callable[[int, int], None]
"""Told (words taken, words in all)."""


@dataclass(frozen=True)
class Counters:
    """The device's counters at one moment."""

    cycles: int
    weight_beats: int
    data_beats: int
    saturations: int
    busy: tuple[int, ...]

    @classmethod
    def read(cls, b: Backend) -> Counters:
        return cls(
            cycles=b.read("CYCLES_LOW") | b.read("CYCLES_HIGH") << 32,
            weight_beats=b.read("WEIGHT_BEATS_LOW") | b.read("WEIGHT_BEATS_HIGH") << 32,
            data_beats=b.read("DATA_BEATS"),
            saturations=b.read("SATURATIONS"),
            busy=tuple(b.read(f"BUSY_{unit}") for unit in UNITS),
        )


class _Watch:
    """A bounded wait for one thing: `step` lets the device run for a while, and raises when it had time enough.

    That is the device's patience after the last beat that the device counted, and `LONGEST` times as much in all: a program
    that reads weights for ever comes to an end too.
    """

    def __init__(self, device: Device, what: str) -> None:
        self._device, self._what = device, what
        self._left = LONGEST * device.patience
        self._beats: tuple[int, int] | None = None
        self._renew()

    def _renew(self) -> None:
        self._cycles, self._deadline = min(self._device.patience, self._left), time.monotonic() + self._device.timeout_s

    def step(self, cycles: int = STEP_CYCLES) -> None:
        b = self._device.backend
        beats = b.read("WEIGHT_BEATS_LOW"), b.read("DATA_BEATS")
        if beats != self._beats:
            if self._beats is not None:
                self._renew()
            self._beats = beats
        if self._cycles <= 0 or time.monotonic() > self._deadline:
            s = self._device
            limit = f"{s.timeout_s:g} s" if self._cycles > 0 else f"{LONGEST * s.patience if self._left <= 0 else s.patience} cycles"
            raise DeviceTimeout(f"the {b.name} device did not come to {self._what} within {limit}; reset the session and try again",
                                s.state())
        passed = max(b.advance(min(cycles, self._cycles)), 1)
        self._cycles, self._left = self._cycles - passed, self._left - passed


def _listed(bits: int) -> str:
    """The numbers of the bits that are set: `0 and 2`."""
    return " and ".join(str(bit) for bit in range(bits.bit_length()) if bits >> bit & 1)


class _Lock:
    """At most one session per device: within this process by backend, among processes by the device's name."""

    _held: weakref.WeakSet[Any] = weakref.WeakSet()

    def __init__(self, backend: Backend) -> None:
        self._backend, self._file = backend, None
        if backend in self._held:
            raise DeviceBusy(f"the {backend.name} device already has a session: close that one first")
        if backend.device is not None:
            path = Path(tempfile.gettempdir()) / f"tritloom-{re.sub(r'[^A-Za-z0-9]+', '-', backend.device)}.lock"
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(self._file)
                raise DeviceBusy(f"another process has a session on {backend.device}: end that one first") from None
        self._held.add(backend)

    def release(self) -> None:
        self._held.discard(self._backend)
        if self._file is not None:
            os.close(self._file)
            self._file = None


class Device:
    """One user's hold on a backend's machine, with an image loaded.

    `image`: what to load, which must have been packed for this very machine. `timeout_s`: real time that the machine may take without
    progress, `patience` the same in its cycles; a word taken, a token given and a beat moved are progress. `failed`: something went wrong,
    and it must be reset. `annotate`: what its user wants to see beside the machine's state in an error.
    """

    def __init__(self, backend: Backend, image: Image, *, timeout_s: float, annotate: Callable[[], Mapping[str, Any]] = dict) -> None:
        self.backend, self.image, self.timeout_s, self._annotate = backend, image, timeout_s, annotate
        self.config = image.config
        self.failed = True  # until the first reset
        beats = image.map.token_beats + self.config.shape.layers * self.config.kv_layer_bytes // self.config.mem_bytes
        self.patience = PATIENCE * beats + PATIENCE_CYCLES
        self._runs = 0
        """Counts starts and stops: whoever waits for a program sees that it is another one's turn."""
        self._lock = _Lock(backend)
        try:
            self._check()
            self.reset()
            self.load()
        except BaseException:
            self._lock.release()
            raise

    def release(self) -> None:
        """Let another user have the machine."""
        self._lock.release()

    def _check(self) -> None:
        b = self.backend
        found = b.read("ID")
        if found != IDENTIFIER:
            raise DeviceError(f"the {b.name} device answers 0x{found:08x} instead of 0x{IDENTIFIER:08x}: no tritloom machine is there")
        version = b.read("VERSION")
        if version != MAP_VERSION:
            raise DeviceError(
                f"the {b.name} device has register map version {version}, this host knows {MAP_VERSION}: build the machine again"
            )
        self.image.require_digest(b.read("DIGEST"), b.config)

    def load(self) -> None:
        """Load the image: memory, program, descriptors."""
        b = self.backend
        self._place_ports()
        for address, data in self.image.memory():
            b.load(address, data)
        watch = _Watch(self, "the end of its memory's writes")
        while STATUS["UNIT_BUSY"].get(self.status()) & Unit.WRITES:
            watch.step()
        self.status()
        for name, words in (("PROGRAM", self.image.program), ("DESCRIPTOR", self.image.descriptors)):
            b.write(f"{name}_ADDRESS", 0)
            for word in words:
                b.write(f"{name}_LOW", word & MASK32)
                b.write(f"{name}_HIGH", word >> 32)

    def _place_ports(self) -> None:
        """Tell the device where its memory ports' stripes begin."""
        b = self.backend
        bases = getattr(b, "port_bases", ()) or [0] * self.config.mem_ports
        if self.config.memory != "axi":
            return
        if len(bases) != self.config.mem_ports or any(base % PAGE_BYTES or base < 0 or base >> PORT_ADDRESS_BITS for base in bases):
            raise DeviceError(f"the {b.name} device must name an address of {PORT_ADDRESS_BITS} bits, a multiple of {PAGE_BYTES}, for "
                              f"each of its {self.config.mem_ports} memory ports, not {[hex(base) for base in bases]}")
        for port, base in enumerate(bases):
            b.write(f"PORT_BASE{port}", base & MASK32)
            b.write(f"PORT_BASE_HIGH{port}", base >> 32)

    # Programs ------------------------------------------------------------------------------------

    def start(self, entry: int, arguments: Mapping[int, int]) -> None:
        """Start the program at `entry`."""
        self._runs += 1
        b = self.backend
        b.write("CONTROL", CLEAR)
        for index, value in arguments.items():
            b.write(f"ARG{index}", value)
        b.write("ENTRY", entry)
        b.write("CONTROL", START)

    def exchange(self, words: Sequence[int], count: int, goal: str, progress: Progress | None) -> Iterator[tuple[int, int]]:
        """Words in; up to `count` tokens out, with their cycle stamps, until the program has halted. `goal`: what it is to come to."""
        b, run, waiting, got = self.backend, self._runs, deque(words), 0
        watch, taken = _Watch(self, goal), -1
        while self._runs == run:
            status = self.status()
            running, room = STATUS["RUNNING"].get(status), STATUS["PROMPT_ROOM"].get(status)
            before, taken = taken, len(words) - len(waiting) - (FIFO_DEPTH - room)
            for _ in range(min(room, len(waiting))):
                b.write("TOKEN_IN", waiting.popleft())
            if taken != before:
                watch = _Watch(self, goal)
                if progress:
                    progress(max(taken, 0), len(words))
            while self._runs == run and b.read("TOKEN_LEVEL"):
                got += 1
                yield self._token(got, count)
                watch = _Watch(self, goal)
            if not running:
                self._check_end(status)
                return
            watch.step()

    def finish(self) -> None:
        """Wait for the end of the program."""
        watch = _Watch(self, "the end of its program")
        while STATUS["RUNNING"].get(status := self.status()):
            watch.step()
        self._check_end(status)

    def stop(self) -> None:
        """Stop the program that runs. Raises `DeviceFault` if the memory has failed, `DeviceTimeout` if the machine had to be reset."""
        self._runs += 1
        try:
            late = self._halt()
            if late:
                raise late
            self.status()
        except DeviceError:
            self.failed = True
            raise

    def reset(self) -> None:
        """Forget whatever went wrong: a machine that does not stop is reset. Raises `DeviceTimeout` if its memory does not let it."""
        self._runs += 1
        failed, self.failed = self.failed, True
        if not self._halt() and failed and STATUS["UNIT_BUSY"].get(self.backend.read("STATUS")):
            self._reset_units("idle units")
        self.backend.write("CONTROL", CLEAR)
        self.failed = False

    def require_seen(self) -> None:
        """Whatever went wrong since the machine was looked at is said now, before it is forgotten."""
        if not self.failed:
            self.status()

    def push(self, words: Sequence[int]) -> None:
        """Hand words to the program."""
        watch, at = _Watch(self, "room for a token"), 0
        while at < len(words):
            status = self.status()
            room = STATUS["PROMPT_ROOM"].get(status)
            for word in words[at : at + room]:
                self.backend.write("TOKEN_IN", word)
            at += room
            if room:
                watch = _Watch(self, "room for a token")
            elif not STATUS["RUNNING"].get(status):
                self._check_end(status)
                raise DeviceFault("the program ended before its last token", self.state())
            else:
                watch.step(PUSH_CYCLES)

    def pull(self, count: int) -> list[tuple[int, int]]:
        """The program's next `count` tokens and their cycle stamps."""
        b, watch, taken = self.backend, _Watch(self, "a token"), []
        while len(taken) < count:
            for _ in range(min(b.read("TOKEN_LEVEL"), count - len(taken))):
                taken.append(self._token(len(taken) + 1, count))
                watch = _Watch(self, "a token")
            if len(taken) < count:
                if not STATUS["RUNNING"].get(status := self.status()) and not b.read("TOKEN_LEVEL"):
                    self._check_end(status)
                    raise DeviceFault("the program ended before its last token", self.state())
                watch.step()
        return taken

    def _token(self, number: int, of: int) -> tuple[int, int]:
        """The token that waits, the `number`th of `of`, and its cycle stamp. It counts only if no error came before it."""
        b = self.backend
        stamp, word = b.read("TOKEN_CYCLE"), b.read("TOKEN_OUT")
        self.status()
        token = TOKEN_OUT["TOKEN"].get(word)
        valid = TOKEN_OUT["VALID"].get(word)
        if not valid or token >= self.config.shape.vocab or number > of:
            raise DeviceFault(f"the device sent {token if valid else 'nothing'} as token {number} of {of}", self.state())
        return token, stamp

    def status(self) -> int:
        """STATUS. Raises `DeviceFault` if the memory has answered with an error."""
        try:
            status = self.backend.read("STATUS")
            if STATUS["MEMORY_ERROR"].get(status):
                self._raise_memory_error()
            return status
        except DeviceError:
            self.failed = True
            raise

    def _raise_memory_error(self) -> NoReturn:
        ports = self.backend.read("MEMORY_PORTS")
        which = "; ".join(f"{what} at port {_listed(MEMORY_PORTS[field].get(ports))}"
                          for what, field in (("reads", "READ_ERROR"), ("writes", "WRITE_ERROR")) if MEMORY_PORTS[field].get(ports))
        raise DeviceFault(f"the device's memory answered with an error ({which or 'no port says which'}): check the memory's size and "
                          "addresses, then reset the session", self.state())

    def _check_end(self, status: int) -> None:
        code = self.backend.read("HALT_CODE")
        if code == MEMORY_FAILED:
            self._raise_memory_error()
        if not STATUS["HALTED"].get(status) or code:
            raise DeviceFault(f"the program ended with code 0x{code:x} instead of 0", self.state())

    def _halt(self) -> DeviceTimeout | None:
        """Stop whatever program runs. A device that did not stop is reset: then the error that says so."""
        b = self.backend
        if not b.read("STATUS") & UNSETTLED:
            return None
        b.write("CONTROL", STOP)
        watch = _Watch(self, "a stop")
        try:
            while b.read("STATUS") & UNSETTLED:
                self._drop_tokens()
                watch.step()
        except DeviceTimeout as error:
            self._reset_units("a stop")
            return error
        return None

    def _drop_tokens(self) -> None:
        """Nobody wants the tokens that wait; while one does, the device has something to say."""
        for _ in range(min(self.backend.read("TOKEN_LEVEL"), FIFO_DEPTH)):
            self.backend.read("TOKEN_OUT")

    def _reset_units(self, missed: str) -> None:
        """Reset the device's units once its memory has answered what it was asked; they did not come to what was `missed`."""
        b = self.backend
        b.write("CONTROL", RESET | STOP)
        watch = _Watch(self, "the end of a reset")
        try:
            while b.read("STATUS") & UNSETTLED:
                watch.step()
        except DeviceTimeout as error:
            self.failed = True
            ports = b.read("MEMORY_PORTS")
            waits = "; ".join(f"{what} of port {_listed(MEMORY_PORTS[field].get(ports))}"
                              for what, field in (("reads", "READING"), ("writes", "WRITING")) if MEMORY_PORTS[field].get(ports))
            raise DeviceTimeout(f"the {b.name} device did not come to {missed}, nor to the end of a reset: "
                                + (f"its memory does not answer {waits}; check the memory, then load the device anew" if waits else
                                   "no transfer of its memory is under way; load the device anew"), error.state) from None

    def state(self) -> dict[str, Any]:
        """The device's state, for error messages; registers that cannot be read show why. With what `annotate` says."""
        b, state = self.backend, {}

        def look(name: str, register: str) -> int | None:
            try:
                state[name] = b.read(register)
                return state[name]
            except Exception as error:  # whatever keeps the device from answering is part of its state
                state[name] = f"unreadable ({error})"
                return None

        status = look("status", "STATUS")
        if status is not None:
            del state["status"]
            for item in STATUS.fields:
                state[item.name.lower()] = item.get(status)
        for name, register in (("pc", "PC"), ("halt_code", "HALT_CODE"), ("tokens_waiting", "TOKEN_LEVEL"), ("cycles", "CYCLES_LOW"),
                               ("weight_beats", "WEIGHT_BEATS_LOW"), ("data_beats", "DATA_BEATS"), ("saturations", "SATURATIONS"),
                               *((f"busy_{unit.lower()}", f"BUSY_{unit}") for unit in UNITS)):  # fmt: skip
            look(name, register)
        ports = look("memory_ports", "MEMORY_PORTS")
        if ports is not None:
            del state["memory_ports"]
            state |= {f"ports_{item.name.lower()}": item.get(ports) for item in MEMORY_PORTS.fields}
        return state | dict(self._annotate())
