"""Waves of a simulated machine: every signal in every cycle, as a VCD file that GTKWave and Surfer open."""

from __future__ import annotations

import ctypes
import os
from io import FileIO
from pathlib import Path

__all__ = ["Waves"]


class _Waves(ctypes.Structure):
    """SimWaves of sim/waves.h."""

    _fields_ = [("file", ctypes.c_int32), ("error", ctypes.c_int32), ("bytes", ctypes.c_uint64), ("cycles", ctypes.c_uint64),
                ("top", ctypes.c_void_p)]


class Waves:
    """A VCD file at `path`, for one machine (`tritloom.sim.machine.Verilated`) that was compiled with waves.

    It is made together with the machine. Cycle n begins at n ns, with the clock low; the rising edge is half a ns later. After
    `close`, which any thread may call at any time, it is whole up to the last cycle that was simulated;
    of a cycle in which another thread closes it, the first half may be there.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._written = _Waves()
        self._file: FileIO | None = None
        self._library: ctypes.CDLL | None = None

    def begin(self, library: ctypes.CDLL) -> None:
        """Make the file; the machine that `library` creates next writes it. Raises `OSError`."""
        if not hasattr(library, "sim_waves"):
            raise ValueError("this machine was compiled without waves")
        if self._file:
            raise ValueError(f"{self.path} has the waves of another machine")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file, self._library = FileIO(self.path, "w"), library
        self._written.file = self._file.fileno()
        library.sim_waves(ctypes.byref(self._written))

    @property
    def bytes(self) -> int:
        """Size of the file."""
        return self._written.bytes

    @property
    def cycles(self) -> int:
        """Clock cycles in it."""
        return self._written.cycles

    @property
    def failed(self) -> bool:
        """Whether something could not be written: the waves end there."""
        return bool(self._written.error)

    @property
    def closed(self) -> bool:
        """Whether nothing more will be written."""
        return self._file is not None and self._file.closed

    def check(self) -> None:
        """Raise `OSError` if something could not be written."""
        if self.failed:
            raise OSError(self._written.error, os.strerror(self._written.error), str(self.path))

    def close(self) -> None:
        """Write what has not been written yet, and no more."""
        if self._file and self._library:
            self._library.sim_waves_close(ctypes.byref(self._written))
            self._file.close()
