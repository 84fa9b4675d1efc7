"""Devices without a board: the verilated machine, the emulator, and one that only pretends."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tritloom.firmware.config import BuildConfig, round_up
from tritloom.firmware.emulator import Emulator, EmulatorError, TraceEvent
from tritloom.firmware.errors import TritloomError
from tritloom.firmware.programs import ARG_PROMPT, ARG_STOP, ARG_TOKENS
from tritloom.firmware.registers import FIFO_DEPTH, IDENTIFIER, MAP_VERSION, MEMORY_FAILED, REGISTER
from tritloom.host.backend import Bytes, DeviceError
from tritloom.sim import dram
from tritloom.sim.compile import compile_verilog
from tritloom.sim.dram import MemoryTiming
from tritloom.sim.machine import SimulationError, Verilated

__all__ = ["EmulatorBackend", "NullBackend", "SimBackend"]

MASK32 = 0xFFFFFFFF
PAGE = 4096
RUNAWAY = 64
"""The emulator counts as hung after so many instructions a layer and position of the prompt FIFO without a token in or out."""

CONTROL, STATUS, MEMORY_PORTS = (REGISTER[name] for name in ("CONTROL", "STATUS", "MEMORY_PORTS"))
MEMORY_PORTS_BITS = sum(1 << item.low for item in MEMORY_PORTS.fields)
"""A port's bits of MEMORY_PORTS, those of port 0."""


class SimBackend:
    """The RTL, run by Verilator in this process. `machine`: with its memory; `config`: what it was generated from; `port_bases`: where
    each memory port's stripe begins, in bytes (at 0 unless told)."""

    name = "sim"
    device = None
    timed = True

    def __init__(self, machine: Verilated, config: BuildConfig, port_bases: Sequence[int] = ()) -> None:
        self.machine, self.config, self.port_bases = machine, config, tuple(port_bases)
        for port, base in enumerate(self.port_bases):
            machine.set_port_base(port, base)

    @classmethod
    def build(
        cls,
        config: BuildConfig,
        verilog: str,
        *,
        memory_bytes: int,
        timing: str | MemoryTiming = "ddr",
        seed: int = 1,
        build_dir: Path | None = None,
        progress: Callable[[float, str], None] | None = None,
    ) -> SimBackend:
        """Compile `verilog` (or find it compiled) and put `memory_bytes` behind it."""
        library = compile_verilog(verilog, f"{config.digest:08x}", build_dir, progress=progress)
        size = round_up(max(memory_bytes, 1), PAGE * config.mem_ports)
        preset = dram.preset(timing) if isinstance(timing, str) else timing
        machine = Verilated(library, memory_bytes=size, timing=preset, seed=seed)
        return cls(machine, config, [port * (size // config.mem_ports) for port in range(machine.axi_ports)])

    def read(self, register: str) -> int:
        try:
            return self.machine.csr_read(REGISTER[register].address)
        except SimulationError as error:
            raise DeviceError(f"reading {register}: {error}") from None

    def write(self, register: str, value: int) -> None:
        try:
            self.machine.csr_write(REGISTER[register].address, value)
        except SimulationError as error:
            raise DeviceError(f"writing {register}: {error}") from None

    def load(self, address: int, data: Bytes) -> None:
        array = np.frombuffer(data, np.uint8)
        if self.machine.axi_ports:
            try:
                self.machine.mem_write(address, array)
            except IndexError as error:
                raise DeviceError(f"loading the memory: {error}") from None
            return
        words = np.frombuffer(array.tobytes() + bytes(-len(array) % 4), "<u4")
        self.write("MEMORY_ADDRESS", address)
        for word in words.tolist():
            self.write("MEMORY_DATA", word)

    def advance(self, limit: int) -> int:
        try:
            return self.machine.run(limit)
        except SimulationError as error:
            raise DeviceError(str(error)) from None

    def close(self) -> None:
        self.machine.close()


class _SoftDevice:
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


class _Runaway(TritloomError):
    """The program neither took nor gave a token for too long."""


class _Program(list[int]):
    """A program that knows which word was fetched last, and gives up when `budget` words were fetched."""

    pc = budget = 0

    def __getitem__(self, index: Any) -> Any:
        self.pc = index
        self.budget -= 1
        if self.budget < 0:
            raise _Runaway
        return super().__getitem__(index)


class EmulatorBackend(_SoftDevice):
    """The emulator behind the machine's registers. One instruction counts as one cycle, so times mean nothing.

    `memory_bytes`: of the machine's memory; `trace`: told every vector that a unit produces. `fails_at`: the memory answers with an
    error at so many beats of the weight stream since the last CLEAR.
    """

    fails_at: int | None = None

    name = "emulator"

    def __init__(self, config: BuildConfig, memory_bytes: int, *, trace: Callable[[TraceEvent], None] | None = None) -> None:
        super().__init__(config)
        self.memory = np.zeros(memory_bytes, np.uint8)
        self.trace = trace
        self._emulator: Emulator | None = None
        self._steps: Iterator[int | None] | None = None
        self._before = (0, 0, 0)

    def load(self, address: int, data: Bytes) -> None:
        array = np.frombuffer(data, np.uint8)
        if address + len(array) > len(self.memory):
            raise DeviceError(f"loading the memory: {len(array)} bytes at 0x{address:x} lie beyond its {len(self.memory)}")
        self.memory[address : address + len(array)] = array
        self._emulator = None  # it remembers decoded weights

    def write(self, register: str, value: int) -> None:
        if register == "MEMORY_DATA":
            address = self.registers["MEMORY_ADDRESS"]
            self.load(address, (value & MASK32).to_bytes(4, "little"))
            self.registers["MEMORY_ADDRESS"] = address + 4
            return
        super().write(register, value)

    def _start(self) -> None:
        r = self.registers
        if self._emulator is None:
            self._emulator = Emulator(self.config, self.memory, trace=self.trace)
        machine = self._emulator
        machine.program, machine.descriptors = _Program(self.program), list(self.descriptors)
        machine.prompt = self.prompt
        machine.arguments = [r[f"ARG{i}"] for i in range(8)]
        self._before = (machine.instructions - self._cycles, machine.weight_beats - r["WEIGHT_BEATS_LOW"] - (r["WEIGHT_BEATS_HIGH"] << 32),
                        machine.saturations.count - r["SATURATIONS"])  # fmt: skip
        self._steps = machine.run(r["ENTRY"])

    def _stop(self) -> None:
        self._steps = None

    @property
    def _cycles(self) -> int:
        return self.registers["CYCLES_LOW"] | self.registers["CYCLES_HIGH"] << 32

    def advance(self, limit: int) -> int:
        """Run up to the next token, want of a prompt token, or halt."""
        machine = self._emulator
        if not self.running or machine is None or self._steps is None or len(self.tokens) >= FIFO_DEPTH:
            return limit if self.running else 0
        before = machine.instructions
        program = machine.program
        assert isinstance(program, _Program)
        program.budget = RUNAWAY * (self.config.shape.layers + 4) * 2 * FIFO_DEPTH
        try:
            token = next(self._steps)
        except StopIteration:
            self._steps = None
            self._halt(machine.halt_code or 0)
        except _Runaway:
            self._steps = None
        except EmulatorError as error:
            self._steps = None
            raise DeviceError(f"emulator at instruction {program.pc}: {error}") from None
        else:
            if self.fails_at is not None and machine.weight_beats - self._before[1] >= self.fails_at:
                self.fails_at = None
                self._update(machine, program.pc)
                self.memory_fails()
            elif token is not None:
                self.tokens.append((token, machine.instructions - self._before[0]))
            elif not self.prompt:
                self._update(machine, program.pc)
                return limit
        self._update(machine, program.pc)
        return machine.instructions - before

    def _update(self, machine: Emulator, pc: int) -> None:
        cycles, beats, saturations = self._before
        self._count("CYCLES", machine.instructions - cycles)
        self._count("WEIGHT_BEATS", machine.weight_beats - beats)
        self.registers["SATURATIONS"] = machine.saturations.count - saturations & MASK32
        self.registers["PC"] = pc


class NullBackend(_SoftDevice):
    """Accepts everything and answers with `answer`, over and over; for tests and timing of the host.

    A prompt token and a generated token take `token_cycles` each. `hang`: never answers.
    """

    name = "null"
    timed = True

    def __init__(self, config: BuildConfig, answer: Sequence[int] = (0,), *, token_cycles: int = 1000, hang: bool = False) -> None:
        super().__init__(config)
        self.answer, self.token_cycles, self.hang = tuple(answer), token_cycles, hang
        self._now = self._unread = self._left = self._given = 0

    def load(self, address: int, data: Bytes) -> None:
        pass

    def _start(self) -> None:
        self._now, self._given = 0, 0
        self._unread, self._left = self.registers[f"ARG{ARG_PROMPT}"], self.registers[f"ARG{ARG_TOKENS}"]

    def _stop(self) -> None:
        self._left = self._unread = 0

    def advance(self, limit: int) -> int:
        if not self.running:
            return 0
        if self.hang or (self._unread and not self.prompt) or len(self.tokens) >= FIFO_DEPTH:
            return limit
        self._now += self.token_cycles
        self._count("CYCLES", self._now)
        if self._unread:
            self._unread -= 1
            self.prompt.popleft()
        if not self._unread and self._left:
            token = self.answer[self._given % len(self.answer)]
            self.tokens.append((token, self._now))
            self._given += 1
            self._left = 0 if token == self.registers[f"ARG{ARG_STOP}"] else self._left - 1
        if not self._unread and not self._left:
            self._halt(0)
        return self.token_cycles
