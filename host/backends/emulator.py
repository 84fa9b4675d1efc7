"""The emulator as a device: the machine's results in every bit, without its time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tritloom.firmware.config import BuildConfig
from tritloom.firmware.emulator import Emulator, EmulatorError, TraceEvent
from tritloom.firmware.errors import TritloomError
from tritloom.firmware.registers import FIFO_DEPTH
from tritloom.host.backends.protocol import Bytes, DeviceError
from tritloom.host.backends.soft import MASK32, SoftDevice

RUNAWAY = 64
"""The emulator counts as hung after so many instructions a layer and position of the prompt FIFO without a token in or out."""


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


class EmulatorBackend(SoftDevice):
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
