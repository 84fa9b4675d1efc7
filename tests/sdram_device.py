"""sim/sdram.h from Python: compiled once, called through ctypes."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

from tritloom.rtl.memory.parameters import SdramParameters
from tritloom.sim.compile import compiler
from tritloom.system.files import scratch

BUILD = Path(__file__).resolve().parent.parent / "build" / "tests" / "sdram"
HEADER = Path(__file__).resolve().parent.parent / "sim" / "sdram.h"
WRAPPER = """
#include "sdram.h"
extern "C" {
Sdram *make(const SdramTiming *timing, uint64_t seed) { return new Sdram(*timing, seed); }
void drop(Sdram *device) { delete device; }
uint8_t *bytes(Sdram *device) { return device->bytes(); }
const char *violation(Sdram *device) { return device->violation().c_str(); }
uint64_t refreshed(Sdram *device) { return device->refreshed(); }
uint64_t step(Sdram *device, uint32_t pins, uint32_t a, uint32_t dqm, uint32_t dq, uint32_t oe) {
    SdramOutput out = device->step(pins & 1, pins >> 1 & 1, pins >> 2 & 1, pins >> 3 & 1, pins >> 4 & 1, pins >> 5, a, dqm, dq, oe);
    return out.dq | uint64_t(out.driving) << 32;
}
}
"""


@functools.cache
def library() -> ctypes.CDLL:
    text = HEADER.read_text(encoding="utf-8") + WRAPPER
    path = BUILD / f"{hashlib.sha256(text.encode()).hexdigest()[:12]}.so"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with scratch(path.parent) as folder:
            (folder / "wrapper.cpp").write_text(WRAPPER, encoding="utf-8")
            options = ["-std=gnu++17", "-Wall", "-Wextra", "-Werror", "-O1", "-fPIC", "-shared", f"-I{HEADER.parent}"]
            subprocess.run([compiler(), *options, "wrapper.cpp", "-o", "device.so"], cwd=folder, check=True)
            (folder / "device.so").rename(path)
    found = ctypes.CDLL(str(path))
    found.make.restype = ctypes.c_void_p
    found.bytes.restype = ctypes.POINTER(ctypes.c_uint8)
    found.violation.restype = ctypes.c_char_p
    found.refreshed.restype = found.step.restype = ctypes.c_uint64
    found.make.argtypes = [ctypes.c_void_p, ctypes.c_uint64]
    for function in (found.drop, found.bytes, found.violation, found.refreshed):
        function.argtypes = [ctypes.c_void_p]
    found.step.argtypes = [ctypes.c_void_p, *[ctypes.c_uint32] * 5]
    return found


@dataclass(frozen=True)
class Timing:
    """`SdramTiming`, in its order."""

    width: int
    row_bits: int
    column_bits: int
    bank_bits: int
    rcd: int
    rp: int
    ras: int
    rc: int
    rrd: int
    rfc: int
    wr: int
    mrd: int
    refi: int
    start: int
    refreshes: int
    cas_min: int
    ras_max: int
    postponed: int

    @classmethod
    def of(cls, p: SdramParameters, **others: int) -> Timing:
        """Exactly what a controller of these parameters must keep, one refresh late at most."""
        return replace(cls(p.width, p.row_bits, p.column_bits, p.bank_bits, p.t_rcd, p.t_rp, p.t_ras, p.t_rc, p.t_rrd, p.t_rfc, p.t_wr,
                           p.t_mrd, p.t_refi, p.start, p.start_refreshes, p.cas, 12 * p.t_refi, 1), **others)


class Device:
    """One SDRAM. `data` is its contents; `step` is the header's, with the driven word or None as its result."""

    def __init__(self, timing: Timing, seed: int = 1) -> None:
        self._library, fields = library(), list(vars(timing).values())
        self._device = self._library.make((ctypes.c_uint32 * len(fields))(*fields), seed)
        size = timing.width // 8 << (timing.row_bits + timing.column_bits + timing.bank_bits)
        start = ctypes.addressof(self._library.bytes(self._device).contents)
        self.data = memoryview((ctypes.c_uint8 * size).from_address(start)).cast("B")

    def __del__(self) -> None:
        self._library.drop(self._device)

    def step(self, *, cke: int = 1, cs_n: int = 0, ras_n: int = 1, cas_n: int = 1, we_n: int = 1, ba: int = 0, a: int = 0, dqm: int = 0,
             dq: int = 0, oe: int = 0) -> int | None:
        pins = cke | cs_n << 1 | ras_n << 2 | cas_n << 3 | we_n << 4 | ba << 5
        out = self._library.step(self._device, pins, a, dqm, dq, oe)
        return out & 0xFFFFFFFF if out >> 32 else None

    @property
    def violation(self) -> str:
        return self._library.violation(self._device).decode()

    @property
    def refreshed(self) -> int:
        return self._library.refreshed(self._device)
