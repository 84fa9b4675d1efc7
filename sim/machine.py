"""A generated machine as a native library (sim/compile.py makes it), run from Python.

The clock loop, the memory behind the AXI ports and all counting are C++ (harness.cpp); a call
from here runs up to millions of cycles.

Ports of the top module: `clk`, `rst`; all others may be absent: `s_axi_*` (AXI4-Lite, 12-bit
addresses), `m0_axi_*`, `m1_axi_*` ... (AXI4 masters), `irq`, `unit_busy` (8 bits), `weight_beat`,
and, of each of `firmware.isa.TraceUnit`, `trace_<unit>_valid`, `..._slot`, `..._index`, `..._data`, all of one width.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tritloom.firmware.errors import TritloomError
from tritloom.firmware.registers import WRITE_CYCLES
from tritloom.sim.bench.timeline import Timeline, counts
from tritloom.sim.dram import IDEAL, LINE_BYTES, Dram, MemoryTiming
from tritloom.sim.waves import Waves

__all__ = ["BusError", "DramStatistics", "Parameters", "PortStatistics", "SimulationError", "SimulationTimeout", "Verilated"]

CSR_CYCLES = WRITE_CYCLES + 1000
"""Cycles an AXI4-Lite access may take."""
RESET_CYCLES = 32
"""Cycles that the reset pin is held: no less than the latency of any ternary matmul (docs/driver.md)."""
ZERO_RESET_CYCLES = 4
"""The same after power-up, where registers begin with zeros."""
RESPONSES = {"okay": 0, "slverr": 2, "decerr": 3}
"""AXI responses."""
RUN_CHUNK = 1 << 20
"""Cycles per call into the library: between calls, interrupts and time limits are seen."""
TRACE_LIMIT = 1 << 30
"""Bytes of trace kept at most, unless told otherwise."""
WAVES_CHUNK = 1 << 8
"""The same of a machine that writes its waves, which is much slower."""
RECORD_CYCLES, RECORD_BINS = 16, 1 << 14
"""Cycles of a recording's bins at first, and bins at most."""
STOP_IRQ, STOP_ERROR = 1, 2


class SimulationError(TritloomError):
    """The simulated machine did something wrong."""


class SimulationTimeout(SimulationError):
    """A bounded wait ran out."""


class BusError(SimulationError):
    """A register access was answered with an error."""


@dataclass(frozen=True)
class PortStatistics:
    """What one memory port did. The three waits are cycles without a beat while reads were outstanding
    (refresh, latency), or with a beat that the machine did not take (ready)."""

    read_bursts: int
    read_beats: int
    write_bursts: int
    write_beats: int
    refresh_waits: int
    latency_waits: int
    ready_waits: int
    most_outstanding: int


@dataclass(frozen=True)
class DramStatistics:
    """What a modelled channel did: accesses of 64 bytes, rows opened, rows closed to open another one, refreshes."""

    reads: int
    writes: int
    activates: int
    conflicts: int
    refreshes: int


class _DramParameters(ctypes.Structure):
    _fields_ = [(field.name, ctypes.c_uint32) for field in dataclasses.fields(Dram)]


class Parameters(ctypes.Structure):
    """SimParameters of sim/harness.h."""

    _fields_ = [
        *((name, ctypes.c_uint64) for name in ("port_bytes", "seed")),
        *((name, ctypes.c_uint32) for name in ("latency", "jitter", "refresh_interval", "refresh_cycles", "outstanding")),
        ("dram", _DramParameters),
    ]

    @classmethod
    def of(cls, timing: MemoryTiming, port_bytes: int, seed: int) -> Parameters:
        dram = _DramParameters(*(dataclasses.astuple(timing.dram) if timing.dram else ()))
        t = timing
        return cls(port_bytes, seed, t.latency, t.jitter, t.refresh_interval, t.refresh_cycles, t.outstanding, dram)


class _Fault(ctypes.Structure):
    """SimFault of sim/harness.h."""

    _fields_ = [*((name, ctypes.c_uint64) for name in ("low", "high", "skip", "count", "stall")),
                *((name, ctypes.c_uint32) for name in ("write", "response"))]


class _PortStatistics(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in PortStatistics.__dataclass_fields__]


class _DramStatistics(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in DramStatistics.__dataclass_fields__]


class Verilated:
    """One simulated machine. Use as a context manager, or `close()` it.

    `library` is what `tritloom.sim.compile.compile_verilog` returned; `memory_bytes` the logical memory over all ports; `timing` a
    preset of `tritloom.sim.dram`; `seed` fixes the jitter and, of a library that was compiled `undefined`, the state before the first
    reset. `waves`: the file that this machine writes, if `library` was compiled with waves; it is closed with the machine. The machine
    starts reset.

    Every method that runs the clock is bounded and raises `SimulationTimeout` or `SimulationError`
    with the state it stopped in. The first bus protocol violation ends a run.
    """

    def __init__(self, library: Path, *, memory_bytes: int = 1 << 28, timing: MemoryTiming = IDEAL, seed: int = 1,
                 waves: Waves | None = None) -> None:
        self.folder = Path(library).parent
        self.ports: dict[str, Any] = json.loads((self.folder / "ports.json").read_text(encoding="utf-8"))
        self.timing = timing
        self._library = _load(Path(library))
        ports = max(self.axi_ports, 1)
        if memory_bytes <= 0 or memory_bytes % (ports * 4096):
            raise ValueError(f"memory_bytes must be a positive multiple of {ports * 4096}, not {memory_bytes}")
        if timing.dram and self.data_bytes > LINE_BYTES:
            raise ValueError(f"the modelled channel serves ports of at most {LINE_BYTES} bytes, not {self.data_bytes}: use timing ddr")
        parameters = Parameters.of(timing, memory_bytes // ports, seed)
        undefined = hasattr(self._library, "sim_undefined_seed")
        if undefined:
            self._library.sim_undefined_seed(1 + seed % 0x7FFFFFFF)
        self._recording: _Recording | None = None
        self._handle: int | None = None
        self.waves = waves
        if waves:
            waves.begin(self._library)
        self._handle = self._library.sim_create(ctypes.byref(parameters))
        if not self._handle:
            raise MemoryError(f"no address space for {memory_bytes} bytes of simulated memory")
        self.reset(RESET_CYCLES if undefined else ZERO_RESET_CYCLES)

    # Life ----------------------------------------------------------------------------------------

    @property
    def axi_ports(self) -> int:
        return self.ports["axi_ports"]

    @property
    def data_bytes(self) -> int:
        """Bytes of one AXI port's beat."""
        return self.ports["data_bytes"]

    @property
    def trace_words(self) -> int:
        """Words of a trace event; 0 if the machine has no trace ports."""
        return self.ports["trace_words"]

    def __enter__(self) -> Verilated:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self.close()

    def close(self) -> None:
        """Free the machine and its memory."""
        if self._handle:
            self._library.sim_destroy(self._handle)
            self._handle = None
            if self.waves:
                self.waves.close()

    def _machine(self) -> int:
        if not self._handle:
            raise SimulationError("the simulated machine is closed")
        return self._handle

    def reset(self, cycles: int = RESET_CYCLES) -> None:
        """Hold reset; the memory keeps its contents."""
        self._library.sim_reset(self._machine(), cycles)

    def set_port_base(self, port: int, base: int) -> None:
        """AXI address at which port `port`'s memory begins (0 unless told)."""
        self._library.sim_set_base(self._machine(), port, base)

    def fail(self, port: int = 0, *, write: bool = False, after: int = 0, count: int = 1, response: str = "slverr",
             stall: int | None = 0, within: tuple[int, int] | None = None) -> None:
        """Let bursts of a port fail from now on: with the `response` "slverr" or "decerr" (reads then give wrong data, writes write
        nothing), or with "okay" only late.

        `after`: bursts that are served well before; `count`: bursts that fail; `stall`: cycles that they wait longer, None: until `heal`;
        `within`: only bursts that begin between these logical addresses. A port has one such setting for reads and one for writes.
        """
        if not 0 <= port < self.axi_ports:
            raise IndexError(f"this machine has {self.axi_ports} memory port(s), not a port {port}")
        low, high = (address // self.axi_ports for address in within or (0, 1 << 63))
        fault = _Fault(low, high, after, count, (1 << 64) - 1 if stall is None else stall, write, RESPONSES[response])
        self._library.sim_fault(self._machine(), port, ctypes.byref(fault))

    def heal(self) -> None:
        """No more bursts fail, and those that wait are answered."""
        self._library.sim_heal(self._machine())

    # Clock and registers -------------------------------------------------------------------------

    @property
    def cycles(self) -> int:
        """Clock cycles since the machine was made."""
        return self._library.sim_cycles(self._machine())

    @property
    def irq(self) -> bool:
        return bool(self._library.sim_irq(self._machine()))

    def run(self, max_cycles: int, stop_mask: int = STOP_IRQ, *, timeout_s: float | None = None) -> int:
        """Run until `irq` is high (if `stop_mask` has STOP_IRQ) or `max_cycles` are over; return the cycles run.

        Raises `SimulationError` after a protocol violation, `SimulationTimeout` after `timeout_s` of real time.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        done = 0
        while done < max_cycles:
            chunk = min(WAVES_CHUNK if self.waves else RUN_CHUNK, max_cycles - done)
            if self._recording:
                chunk = min(chunk, self._recording.room(self.cycles))
            ran = self._library.sim_run(self._machine(), chunk, stop_mask | STOP_ERROR)
            done += ran
            if self._recording:
                self._recording.sample(self.cycles, self.histogram)
            self.check()
            if ran < chunk:
                break
            if deadline is not None and time.monotonic() > deadline:
                raise SimulationTimeout(f"not done after {timeout_s} s and {done} cycles: {self.state()}")
        return done

    def wait(self, max_cycles: int, *, timeout_s: float | None = None) -> int:
        """Run until `irq`; return the cycles it took. Raises `SimulationTimeout` if it does not come."""
        done = self.run(max_cycles, STOP_IRQ, timeout_s=timeout_s)
        if not self.irq:
            raise SimulationTimeout(f"no interrupt within {max_cycles} cycles: {self.state()}")
        return done

    def csr_write(self, address: int, value: int, *, max_cycles: int = CSR_CYCLES) -> None:
        status = self._library.sim_csr_write(self._machine(), address, value & 0xFFFFFFFF, max_cycles)
        self._csr_status(status, f"write of 0x{value & 0xFFFFFFFF:08x} to", address, max_cycles)

    def csr_read(self, address: int, *, max_cycles: int = CSR_CYCLES) -> int:
        value = ctypes.c_uint32()
        status = self._library.sim_csr_read(self._machine(), address, ctypes.byref(value), max_cycles)
        self._csr_status(status, "read of", address, max_cycles)
        return value.value

    def _csr_status(self, status: int, what: str, address: int, max_cycles: int) -> None:
        if status == 1:
            raise SimulationTimeout(f"{what} register 0x{address:03x} was not answered within {max_cycles} cycles: {self.state()}")
        if status == 2:
            raise BusError(f"{what} register 0x{address:03x} was answered with an error")
        if status == 4:
            raise SimulationError("this machine has no register port (s_axi_*)")
        self.check()

    # Memory --------------------------------------------------------------------------------------

    def mem_write(self, address: int, data: bytes | bytearray | memoryview | NDArray[Any]) -> None:
        """Write bytes at a logical address, at once and outside simulated time."""
        array = np.ascontiguousarray(np.frombuffer(data, np.uint8) if not isinstance(data, np.ndarray) else data).view(np.uint8).reshape(-1)
        self._mem_status(self._library.sim_mem_write(self._machine(), address, array.ctypes.data, array.size), address, array.size)

    def mem_read(self, address: int, length: int) -> bytes:
        """Read bytes at a logical address, at once and outside simulated time."""
        array = np.empty(length, np.uint8)
        self._mem_status(self._library.sim_mem_read(self._machine(), address, array.ctypes.data, length), address, length)
        return array.tobytes()

    def _mem_status(self, status: int, address: int, length: int) -> None:
        if status == 3:
            raise IndexError(f"{length} bytes at 0x{address:x} lie beyond the simulated memory")
        if status == 4:
            raise SimulationError("this machine has no memory ports (m0_axi_*)")

    # What happened -------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise `SimulationError` if a bus protocol was violated, `OSError` if waves could not be written."""
        if self.waves:
            self.waves.check()
        count = self._library.sim_error_count(self._machine())
        if count:
            first = self._library.sim_error(self._machine()).decode()
            raise SimulationError(f"{count} bus protocol violation(s), the first in {first}")

    def port_statistics(self, port: int = 0) -> PortStatistics:
        result = _PortStatistics()
        if self._library.sim_port_statistics(self._machine(), port, ctypes.byref(result)):
            raise IndexError(f"this machine has {self.axi_ports} memory port(s), not a port {port}")
        return PortStatistics(**{name: getattr(result, name) for name in PortStatistics.__dataclass_fields__})

    def dram_statistics(self) -> DramStatistics | None:
        """Of the channel that all ports share; None if the timing models none."""
        result = _DramStatistics()
        if self._library.sim_dram_statistics(self._machine(), ctypes.byref(result)):
            return None
        return DramStatistics(**{name: getattr(result, name) for name in DramStatistics.__dataclass_fields__})

    def histogram(self) -> NDArray[np.uint64]:
        """Cycles by `unit_busy` (first axis) and `weight_beat` (second), shape (256, 2)."""
        result = np.zeros((256, 2), np.uint64)
        self._library.sim_histogram(self._machine(), result.ctypes.data)
        return result

    def clear_statistics(self) -> None:
        """Begin to count anew, and to record if `record` was called."""
        self._library.sim_clear_statistics(self._machine())
        if self._recording:
            self.record()

    def record(self, on: bool = True, *, bins: int = RECORD_BINS) -> None:
        """From now on, keep the histogram's course in time, in `bins` bins at most; forget what was recorded before.

        Bins are as short as so many allow: whenever they are used up, they become twice as long, two by two.
        """
        if bins < 2:
            raise ValueError(f"bins must be at least 2, not {bins}")
        self._recording = _Recording(self.cycles, self.histogram(), bins) if on else None

    def recorded(self) -> Timeline:
        """What was recorded up to now, every cycle of it. Raises `SimulationError` if `record` was not called."""
        if not self._recording:
            raise SimulationError("nothing is recorded: call record() before the run")
        return Timeline.of([*self._recording.samples, counts(self.histogram())])

    def state(self) -> str:
        """One line for error messages."""
        ports = "; ".join(
            f"port {i}: {s.read_beats} beats of {s.read_bursts} bursts read, {s.write_beats} written"
            for i, s in ((i, self.port_statistics(i)) for i in range(self.axi_ports))
        )
        return f"cycle {self.cycles}, irq {int(self.irq)}" + (f"; {ports}" if ports else "")

    # Trace ---------------------------------------------------------------------------------------

    @property
    def trace_dtype(self) -> np.dtype[Any]:
        return np.dtype([("cycle", "<u8"), ("index", "<u4"), ("unit", "u1"), ("slot", "u1"), ("reserved", "<u2"),
                         ("data", "<i4", (self.trace_words,))])  # fmt: skip

    def trace_enable(self, on: bool = True, *, max_bytes: int = TRACE_LIMIT) -> None:
        """Record an event of each unit in each cycle in which its `trace_<unit>_valid` is high."""
        if on and not self.trace_words:
            raise SimulationError("this machine was built without trace ports")
        self._library.sim_trace_enable(self._machine(), int(on), max_bytes)

    def trace(self, *, clear: bool = False) -> NDArray[Any]:
        """The events recorded so far, as a structured array of `trace_dtype`. Raises if some were lost for lack of space."""
        lost = self._library.sim_trace_lost(self._machine())
        if lost:
            raise SimulationError(f"{lost} trace events did not fit: raise max_bytes or read the trace more often")
        start = ctypes.c_void_p()
        size = self._library.sim_trace(self._machine(), ctypes.byref(start))
        raw = ctypes.string_at(start, size) if size else b""
        if clear:
            self._library.sim_trace_clear(self._machine())
        return np.frombuffer(raw, self.trace_dtype)


class _Recording:
    """The histogram's counts at the edges of bins: the machine runs from edge to edge, and knows nothing of it."""

    def __init__(self, cycle: int, histogram: NDArray[np.uint64], bins: int) -> None:
        self.bins, self.length, self.edge = bins, RECORD_CYCLES, cycle + RECORD_CYCLES
        self.samples = [counts(histogram)]

    def room(self, cycle: int) -> int:
        """Cycles up to the next edge."""
        return max(1, self.edge - cycle)

    def sample(self, cycle: int, histogram: Callable[[], NDArray[np.uint64]]) -> None:
        """Take a sample if the edge is reached; register accesses may have gone past it."""
        if cycle < self.edge:
            return
        self.samples.append(counts(histogram()))
        if len(self.samples) > self.bins:
            del self.samples[1::2]
            self.length *= 2
        self.edge = cycle + self.length


def _load(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    handle, u32, u64, i32, pointer = ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint64, ctypes.c_int32, ctypes.c_void_p
    for name, result, arguments in (
        ("create", handle, [pointer]),
        ("destroy", None, [handle]),
        ("reset", None, [handle, u32]),
        ("set_base", None, [handle, u32, u64]),
        ("run", ctypes.c_int64, [handle, u64, u32]),
        ("csr_write", i32, [handle, u32, u32, u32]),
        ("csr_read", i32, [handle, u32, pointer, u32]),
        ("mem_write", i32, [handle, u64, pointer, u64]),
        ("mem_read", i32, [handle, u64, pointer, u64]),
        ("cycles", u64, [handle]),
        ("irq", u32, [handle]),
        ("port_statistics", i32, [handle, u32, pointer]),
        ("dram_statistics", i32, [handle, pointer]),
        ("histogram", None, [handle, pointer]),
        ("clear_statistics", None, [handle]),
        ("trace_enable", None, [handle, u32, u64]),
        ("trace", u64, [handle, pointer]),
        ("trace_lost", u64, [handle]),
        ("trace_clear", None, [handle]),
        ("fault", None, [handle, u32, ctypes.POINTER(_Fault)]),
        ("heal", None, [handle]),
        ("error_count", u64, [handle]),
        ("error", ctypes.c_char_p, [handle]),
    ):
        function = getattr(library, f"sim_{name}")
        function.restype, function.argtypes = result, arguments
    return library
