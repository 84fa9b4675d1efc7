"""docs/driver.c, compiled and on a backend: what a driver in another language meets."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tritloom.firmware.programs.convention import NO_STOP_TOKEN
from tritloom.firmware.registers import PAGE_BYTES, PORTS, REGISTERS
from tritloom.gen.verilog.registers import to_c_header

SOURCE = Path(__file__).resolve().parents[1] / "docs" / "driver.c"
NAMES = {register.address: register.name for register in REGISTERS}
READ = ctypes.CFUNCTYPE(ctypes.c_uint32, ctypes.c_void_p, ctypes.c_uint32)
WRITE = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint32)
CALL = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class Device(ctypes.Structure):
    """struct device of docs/driver.c."""

    _fields_ = [("context", ctypes.c_void_p), ("read32", READ), ("write32", WRITE), ("flush", CALL), ("pause", CALL),
                ("stripe", ctypes.c_void_p * PORTS), ("base", ctypes.c_uint64 * PORTS), ("patience", ctypes.c_uint64)]


def build(folder: Path) -> ctypes.CDLL:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler is installed")
    (folder / "registers.h").write_text(to_c_header())
    command = [compiler, "-std=c99", "-Wall", "-Wextra", "-Werror", "-O2", f"-I{folder}", "-shared", "-fPIC", str(SOURCE)]
    subprocess.run([*command, "-o", str(folder / "driver.so")], check=True, timeout=100)
    library = ctypes.CDLL(str(folder / "driver.so"))
    for function in (library.tritloom_load, library.tritloom_generate, library.tritloom_reset):
        function.restype = ctypes.c_char_p
    return library


class Driver:
    """The C driver on `backend`, whose memory it sees through a window for each port. Its errors are RuntimeErrors."""

    def __init__(self, library, backend, total_bytes, *, patience=2000):
        self._library, self._backend = library, backend
        config = backend.config
        part, beats = config.mem_bytes // config.mem_ports, -(-total_bytes // config.mem_bytes)
        self._windows = np.zeros((config.mem_ports, beats, part), np.uint8)
        self.written = []
        """Names and values of the registers written, in order."""
        calls = READ(self._read), WRITE(self._write), CALL(self._flush), CALL(lambda _: self._pause())
        self._device = Device(None, *calls, patience=patience)
        self._bases, places = getattr(backend, "port_bases", ()), range(1 << 35, (1 << 35) + PORTS * PAGE_BYTES, PAGE_BYTES)
        for port, window in enumerate(self._windows):
            self._device.stripe[port], self._device.base[port] = window.ctypes.data, (self._bases or places)[port]

    def _read(self, _, address):
        return self._backend.read(NAMES[address])

    def _write(self, _, address, value):
        self.written.append((NAMES[address], value))
        # A memory that does not say where it lies begins at 0, wherever the driver sees it.
        self._backend.write(NAMES[address], 0 if NAMES[address].startswith("PORT_BASE") and not self._bases else value)

    def _flush(self, _):
        if self._backend.config.memory == "axi":
            self._backend.load(0, np.ascontiguousarray(self._windows.transpose(1, 0, 2)).reshape(-1))

    def _pause(self):
        self._backend.advance(5000)

    def _done(self, error):
        if error:
            raise RuntimeError(error.decode())

    def load(self, image: bytes):
        self._done(self._library.tritloom_load(ctypes.byref(self._device), image, ctypes.c_uint64(len(image))))

    def reset(self):
        self._done(self._library.tritloom_reset(ctypes.byref(self._device)))

    def generate(self, prompt, wanted, stop=NO_STOP_TOKEN):
        """Tokens, and their cycle stamps."""
        ids = (ctypes.c_uint32 * len(prompt))(*prompt)
        (tokens, stamps), count = [(ctypes.c_uint32 * wanted)() for _ in range(2)], ctypes.c_uint32()
        self._done(self._library.tritloom_generate(ctypes.byref(self._device), ids, len(prompt), wanted, stop, tokens, stamps,
                                                   ctypes.byref(count)))
        return list(tokens[: count.value]), list(stamps[: count.value])
