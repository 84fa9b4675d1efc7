"""The registers of a machine, kept in Python."""

from __future__ import annotations

from collections import deque

from tritloom.firmware.config import BuildConfig
from tritloom.firmware.registers import FIFO_DEPTH, IDENTIFIER, MAP_VERSION, MEMORY_FAILED, REGISTER
from tritloom.host.backends.protocol import Bytes, DeviceError

MASK32 = 0xFFFFFFFF

CONTROL, STATUS, MEMORY_PORTS = (REGISTER[name] for name in ("CONTROL", "STATUS", "MEMORY_PORTS"))
MEMORY_PORTS_BITS = sum(1 << item.low for item in MEMORY_PORTS.fields)
"""A port's bits of MEMORY_PORTS, those of port 0."""


class SoftDevice:
    """The registers of a machine, kept in Python. Subclasses run programs: `_start`, `_stop`, `advance`."""

    name = ""
    device = None
    timed = False

    def __init__(self, config: BuildConfig) -> None:
        self.config: BuildConfig = config
        self.registers = {r.name: r.reset for r in REGISTER.values()} | {"ID": IDENTIFIER, "VERSION": MAP_VERSION, "DIGEST": config.digest}
        self.program: list[int] = []
        self.descriptors: list[int] = []
        self.prompt: deque[int] = deque()
        self.tokens: deque[tuple[int, int]] = deque()
        """Tokens waiting for the host, with their cycle stamps."""
        self.running = self.halted = self.stopped = False
        self.errors = 0
        """MEMORY_PORTS' errors."""
        self._closed = False

    def read(self, register: str) -> int:
        self._check(register, "wo")
        if register == "STATUS":
            fields = {"RUNNING": self.running, "HALTED": self.halted, "STOPPED": self.stopped, "MEMORY_ERROR": bool(self.errors),
                      "PROMPT_ROOM": FIFO_DEPTH - len(self.prompt)}
            return sum(int(value) << STATUS[name].low for name, value in fields.items())
        if register == "MEMORY_PORTS":
            return self.errors
        if register == "TOKEN_LEVEL":
            return len(self.tokens)
        if register == "TOKEN_CYCLE":
            return self.tokens[0][1] & MASK32 if self.tokens else 0
        if register == "TOKEN_OUT":
            return self.tokens.popleft()[0] | 1 << 31 if self.tokens else 0
        return self.registers[register]

    def write(self, register: str, value: int) -> None:
        self._check(register, "ro")
        value &= (1 << REGISTER[register].width) - (1 << REGISTER[register].low)
        kind, _, part = register.rpartition("_")
        if REGISTER[register].halted and self.running:
            raise DeviceError(f"writing {register}: refused while a program runs")
        if register == "CONTROL":
            self._control(value)
        elif register == "TOKEN_IN":
            if len(self.prompt) >= FIFO_DEPTH:
                raise DeviceError("writing TOKEN_IN: the FIFO is full")
            self.prompt.append(value)
        elif part == "HIGH" and kind in ("PROGRAM", "DESCRIPTOR"):
            self._store(kind, self.registers[f"{kind}_LOW"] | value << 32)
        else:
            self.registers[register] = value

    def _check(self, register: str, refused: str) -> None:
        if self._closed:
            raise DeviceError(f"the {self.name} device is closed")
        if REGISTER[register].access == refused:
            raise DeviceError(f"register {register} is {REGISTER[register].access}")

    def memory_fails(self, port: int = 0, *, write: bool = False) -> None:
        """The memory answers a read or a write at a port with an error, now."""
        self.errors |= MEMORY_PORTS["WRITE_ERROR" if write else "READ_ERROR"].mask & MEMORY_PORTS_BITS << port
        if self.running:
            self._stop()
            self._halt(MEMORY_FAILED)

    def _control(self, value: int) -> None:
        if value & CONTROL["RESET"].mask:
            self._stop()
            self.running = self.halted = self.stopped = False
            self.prompt.clear()
            self.tokens.clear()
            return
        if value & CONTROL["STOP"].mask and self.running:
            self._stop()
            self.running, self.halted, self.stopped = False, False, True
        if value & CONTROL["CLEAR"].mask and not self.running:
            self.prompt.clear()
            self.tokens.clear()
            self.errors = 0
            for name in REGISTER:
                if name.startswith(("CYCLES", "WEIGHT_BEATS", "DATA_BEATS", "SATURATIONS", "BUSY")):
                    self.registers[name] = 0
        if value & CONTROL["START"].mask and not self.running:
            self.running, self.halted, self.stopped = True, False, False
            self._start()
            if self.errors:
                self._stop()
                self._halt(MEMORY_FAILED)

    def _store(self, kind: str, word: int) -> None:
        words = self.program if kind == "PROGRAM" else self.descriptors
        address = self.registers[f"{kind}_ADDRESS"]
        words.extend([0] * (address + 1 - len(words)))
        words[address] = word
        self.registers[f"{kind}_ADDRESS"] = address + 1

    def _count(self, name: str, value: int) -> None:
        self.registers[f"{name}_LOW"], self.registers[f"{name}_HIGH"] = value & MASK32, value >> 32 & MASK32

    def _halt(self, code: int) -> None:
        self.running, self.halted = False, True
        self.registers["HALT_CODE"] = code

    def _start(self) -> None:
        raise NotImplementedError

    def _stop(self) -> None:
        raise NotImplementedError

    def load(self, address: int, data: Bytes) -> None:
        raise NotImplementedError

    def advance(self, limit: int) -> int:
        raise NotImplementedError

    def close(self) -> None:
        self._closed = True
