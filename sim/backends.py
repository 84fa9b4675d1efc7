"""The verilated machine as a device of the host."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from tritloom.firmware.config import BuildConfig, round_up
from tritloom.firmware.registers import REGISTER
from tritloom.host.backends.protocol import Bytes, DeviceError
from tritloom.sim import dram
from tritloom.sim.compile import compile_verilog
from tritloom.sim.dram import MemoryTiming
from tritloom.sim.machine import SimulationError, Verilated
from tritloom.sim.waves import Waves

PAGE = 4096


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
        undefined: bool = False,
        waves: Waves | None = None,
        build_dir: Path | None = None,
        progress: Callable[[float, str], None] | None = None,
    ) -> SimBackend:
        """Compile `verilog` (or find it compiled) and put `memory_bytes` behind it. `seed` fixes the jitter of the memory and, if the
        machine's state is `undefined` before its first reset, that state. `waves`: the file that the machine
        writes."""
        library = compile_verilog(verilog, f"{config.digest:08x}", build_dir, undefined=undefined, waves=waves is not None,
                                  progress=progress)
        size = round_up(max(memory_bytes, 1), PAGE * config.mem_ports)
        preset = dram.preset(timing, config.clock_hz) if isinstance(timing, str) else timing
        machine = Verilated(library, memory_bytes=size, timing=preset, seed=seed, waves=waves)
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
