"""Stands in for the package pynq on a board: what the backend uses of it, with the signatures and semantics of pynq 4.0.0, and an
`axiboard.Board`'s machine behind it."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import numpy as np

import axiboard

RANGE = {"phys_addr": 0xA000_0000, "addr_range": 4096}


class PynqBuffer(np.ndarray):
    """Bytes of a port. A part of it knows where it begins."""

    owner: Any = None
    port: int
    device_address: int

    def __array_finalize__(self, obj: Any) -> None:
        if isinstance(obj, PynqBuffer):
            self.owner, self.port = obj.owner, obj.port
            self.device_address = obj.device_address + self.virtual_address - obj.virtual_address

    @property
    def virtual_address(self) -> int:
        return self.__array_interface__["data"][0]

    @property
    def physical_address(self) -> int:
        return self.device_address

    def flush(self) -> None:
        self.owner.flushed(self)

    def freebuffer(self) -> None:
        self.owner.freed.append(self.port)


class Pynq(types.SimpleNamespace):
    """The package: `Overlay`, `MMIO`, `allocate` and `Clocks`. `loaded`: bitstreams so far; `freed`: ports whose buffers were."""

    def __init__(self, board: axiboard.Board) -> None:
        super().__init__()
        self.board, self.loaded, self.freed, self.allocated = board, [], [], []
        self.cells = {"machine": RANGE}
        self.bases = list(axiboard.BASES)
        self.Clocks = types.SimpleNamespace(fclk0_mhz=board.config.clock_hz / 1e6)

    def Overlay(self, bitfile_name, dtbo=None, download=True, ignore_version=False, device=None, gen_cache=False):
        assert Path(bitfile_name).is_file() and Path(bitfile_name).with_suffix(".hwh").is_file()
        self.loaded.append(bitfile_name)
        return types.SimpleNamespace(ip_dict=self.cells)

    def MMIO(self, base_addr, length=4, device=None, **kwargs):
        assert {"phys_addr": base_addr, "addr_range": length} == RANGE
        board = self.board

        class Window:
            def read(self, offset=0, length=4, word_order="little"):
                return board.read(offset)

            def write(self, offset, data):
                if type(data) is not int:
                    raise ValueError("Data type must be int or bytes.")
                board.write(offset, data)

        return Window()

    def allocate(self, shape, dtype="u4", target=None, **kwargs):
        buffer = np.zeros(shape, dtype).view(PynqBuffer)
        buffer.owner, buffer.port = self, len(self.allocated)
        buffer.device_address = self.bases[buffer.port]
        self.allocated.append(buffer)
        return buffer

    def flushed(self, part: PynqBuffer) -> None:
        self.board.synchronised(part.port, part.device_address - self.bases[part.port], part.nbytes, np.asarray(part))
