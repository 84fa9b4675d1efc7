"""A board at a serial port."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable

import numpy as np

from tritloom.firmware import link
from tritloom.firmware.config import BuildConfig
from tritloom.firmware.errors import InputError
from tritloom.firmware.registers import REGISTER
from tritloom.host.backends.protocol import Bytes, DeviceBusy, DeviceError
from tritloom.host.link import PATIENCE_S, Link, LinkError, Refused

BAUD = 3_000_000
LONGEST_WAIT_S = 0.05
"""Of one look at the board: short enough for Ctrl-C."""
NAMES = {register.address: name for name, register in REGISTER.items()}


class SerialPort:
    """A port of the system, by its path, for this process alone. Raises `InputError` or `DeviceBusy` in one line."""

    def __init__(self, path: str, baud: int, pace: float = 1) -> None:
        import serial

        self._pace = pace
        try:
            self._serial = serial.Serial(path, baud, timeout=0, write_timeout=2, exclusive=True)
        except (serial.SerialException, OSError, ValueError) as error:
            raise _explained(path, baud, error) from None
        try:
            self._serial.set_low_latency_mode(True)  # an answer is handed on at once, not after 16 ms
        except (OSError, ValueError, NotImplementedError, AttributeError):
            pass  # not every adapter can
        self._serial.reset_input_buffer()

    def write(self, data: bytes) -> None:
        self._serial.write(data)

    def read(self, timeout_s: float) -> bytes:
        self._serial.timeout = timeout_s * self._pace
        first = self._serial.read(1)
        return first + self._serial.read(self._serial.in_waiting) if first else first

    def close(self) -> None:
        try:
            self._serial.close()
        except OSError:
            pass  # it is gone


def _explained(path: str, baud: int, error: Exception) -> Exception:
    number = getattr(error, "errno", None)
    if "exclusively lock" in str(error) or number == errno.EBUSY:
        return DeviceBusy(f"another program has {path} open", "end it first")
    if number == errno.ENOENT:
        return PortMissing(f"there is no port {path}", "plug the board in, and see `python -m serial.tools.list_ports`")
    if number == errno.EACCES:
        return InputError(f"no permission to open {path}", "join its group (sudo usermod -aG dialout $USER) and log in again")
    return InputError(f"{path} cannot be opened at {baud} baud ({error})", "is it a serial port?")


class PortMissing(InputError):
    """There is no such port: perhaps not yet again."""


def serial_link(path: str, baud: int, pace: float = 1, patience_s: float = PATIENCE_S) -> Link:
    """The link to a board at a serial port. `pace`: times as long as a board's it may take, of one that is simulated."""
    return Link(lambda: SerialPort(path, baud, pace), name=path, baud=baud, patience_s=patience_s,
                clock=lambda: time.monotonic() / pace, sleep=lambda seconds: time.sleep(seconds * pace))


class UartBackend:
    """The machine of a board at a serial port, through the link of docs/link.md.

    `port`: path of the serial port. `baud`: what the board was built for. `pace`: as of `serial_link`. `progress`: told bytes of an image's
    section that the board has, and all of them, the latter once. `config`: what the board was built from, if known. `through`: a link that
    is open already, instead of a port.

    Writes are collected and travel with what is asked next, so an error of one may come with a later call. An adapter that is unplugged is
    waited for; the board goes on where it stopped, if it had power meanwhile.
    """

    name = "uart"
    timed = True

    def __init__(self, port: str, *, baud: int = BAUD, pace: float = 1, config: BuildConfig | None = None,
                 progress: Callable[[int, int], None] | None = None, through: Link | None = None) -> None:
        self.config, self.progress = config, progress
        self.device: str | None = None if through else os.path.realpath(port)
        self._link = through or serial_link(port, baud, pace)
        self._posted: list[tuple[int, ...]] = []
        self._room = link.REQUEST_WORDS

    @property
    def clock_hz(self) -> int:
        """Frequency of the board's clock, as the board says."""
        return self._link.clock_hz

    @property
    def statistics(self):
        """What the link has seen (`host.link.Statistics`)."""
        return self._link.statistics

    def read(self, register: str) -> int:
        address = _address(register, "wo")
        return self._ask(link.read_item(address))

    def write(self, register: str, value: int) -> None:
        self._post(link.write_item(_address(register, "ro"), value & 0xFFFFFFFF))
        if register == "CONTROL":
            self._send()

    def load(self, address: int, data: Bytes) -> None:
        words = np.frombuffer(bytes(data) + bytes(-len(data) % 4), "<u4")
        if address % 4:
            raise DeviceError(f"loading the memory: address 0x{address:x} is no multiple of 4")
        self.write("MEMORY_ADDRESS", address)
        self._send()
        at, total = 0, len(data)
        with _Named():
            while at < len(words):
                part = words[at : at + self._link.fill_words].tolist()
                self._link.fill(REGISTER["MEMORY_DATA"].address, part)
                at += len(part)
                if self.progress and at < len(words):
                    self.progress(max(4 * (at - self._link.words_under_way), 0), total)
            self._link.flush()
        if self.progress:
            self.progress(total, total)

    def advance(self, limit: int) -> int:
        cycles = min(limit, int(LONGEST_WAIT_S * self.clock_hz), (1 << link.WAIT_BITS) - 1)
        return self._ask(link.wait_item(cycles), cycles) & (1 << link.WAIT_BITS) - 1

    def close(self) -> None:
        try:
            with _Named():
                if self._posted:
                    self._link.write(self._take_posted())
                self._link.flush()
        except Refused:
            raise
        except LinkError:
            pass  # a link that is lost: whoever is still there has been told
        finally:
            self._link.close()

    def _post(self, item: tuple[int, ...]) -> None:
        if len(item) > self._room:
            self._send()
        self._posted.append(item)
        self._room -= len(item)

    def _take_posted(self) -> list[tuple[int, ...]]:
        posted, self._posted, self._room = self._posted, [], link.REQUEST_WORDS
        return posted

    def _send(self) -> None:
        """Send what was collected."""
        if self._posted:
            with _Named():
                self._link.write(self._take_posted())

    def _ask(self, item: tuple[int, ...], cycles: int = 0) -> int:
        """The value of an item, behind what was collected."""
        self._post(item)
        with _Named():
            return self._link.ask(self._take_posted(), cycles)[0]


class _Named:
    """Names the register in an error."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Refused) and error.address in NAMES:
            raise DeviceError(f"the board refused an access to {NAMES[error.address]}") from None


def _address(register: str, refused: str) -> int:
    if REGISTER[register].access == refused:
        raise DeviceError(f"register {register} is {refused}")
    return REGISTER[register].address
