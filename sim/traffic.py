"""Rates of a memory model alone: ports that read as fast as they are served, without a machine.

`measure` compiles sim/traffic.cpp (about two seconds, then kept) and runs it.
"""

from __future__ import annotations

import ctypes
import hashlib
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tritloom.sim.compile import BuildError, compiler, default_build_dir
from tritloom.sim.dram import MemoryTiming
from tritloom.sim.machine import Parameters
from tritloom.system.files import replaced
from tritloom.system.processes import call

__all__ = ["Traffic", "measure"]

SOURCES = tuple(Path(__file__).with_name(name) for name in ("traffic.cpp", "dram.h", "harness.h"))
FLAGS = ("-std=gnu++17", "-O2", "-fPIC", "-shared")


@dataclass(frozen=True)
class Traffic:
    """What the ports got: `cycles` of the fabric, beats over all ports, mean cycles from a burst's request to its last
    beat, and what the channel did (accesses of 64 bytes, rows opened, rows closed for another one, refreshes)."""

    cycles: int
    beats: int
    mean_latency: float
    reads: int
    activates: int
    conflicts: int
    refreshes: int
    beat_bytes: int

    @property
    def bytes_per_cycle(self) -> float:
        return self.beats * self.beat_bytes / self.cycles

    def gigabytes_per_s(self, clock_hz: float = 250e6) -> float:
        return self.bytes_per_cycle * clock_hz / 1e9


class _Result(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in
                ("cycles", "beats", "latency_sum", "bursts", "reads", "writes", "activates", "conflicts", "refreshes")]


def measure(timing: MemoryTiming, *, ports: int = 4, beat_bytes: int = 16, burst_bytes: int = 1024, bursts: int = 4000,
            random: bool = False, lead: int | None = None, port_bytes: int = 1 << 28, seed: int = 1,
            build_dir: Path | None = None) -> Traffic:
    """`ports` ports read `bursts` bursts of `burst_bytes` each, in sequence or at random addresses of their stripe.

    `lead`: bursts that a port may be ahead of the slowest one (no limit unless given): the machine's ports read the
    stripes of the same beats, and run apart by what its FIFO holds.
    `timing` must model a channel (`dram`). Raises `ValueError` for sizes that do not divide, `BuildError` without a compiler.
    """
    if timing.dram is None:
        raise ValueError("only a timing with a channel (dram) has traffic to measure")
    if not 1 <= ports <= 64 or burst_bytes % beat_bytes or 64 % beat_bytes or port_bytes % burst_bytes:
        raise ValueError(f"ports must be 1 to 64, beats divide 64 bytes and bursts, not {ports} ports, {beat_bytes} of {burst_bytes} bytes")
    library = ctypes.CDLL(str(_library(build_dir or default_build_dir())))
    result, parameters = _Result(), Parameters.of(timing, port_bytes, seed)
    u32, u64, pointer = ctypes.c_uint32, ctypes.c_uint64, ctypes.c_void_p
    library.traffic.argtypes, library.traffic.restype = [pointer, u32, u32, u32, u64, u32, u64, pointer], None
    library.traffic(ctypes.byref(parameters), ports, beat_bytes, burst_bytes, bursts, int(random),
                    bursts if lead is None else lead, ctypes.byref(result))
    return Traffic(result.cycles, result.beats, result.latency_sum / max(result.bursts, 1), result.reads, result.activates,
                   result.conflicts, result.refreshes, beat_bytes)


def _library(base: Path) -> Path:
    command = [compiler(), *FLAGS]
    key = hashlib.sha256("\0".join([*command, *(p.read_text("utf-8") for p in SOURCES)]).encode()).hexdigest()[:16]
    target = base / f"traffic-{key}.so"
    if not target.exists():
        with replaced(target) as made:
            for source in SOURCES:
                shutil.copy(source, made.parent)
            done = call([*command, "-o", made, "traffic.cpp"], timeout_s=300, cwd=made.parent, stdout=subprocess.DEVNULL,
                        stderr=subprocess.PIPE, text=True)
            if done.returncode:
                raise BuildError(f"the memory model does not compile: {done.stderr.strip()[:300]}")
            for source in SOURCES:
                (made.parent / source.name).unlink()
    return target
