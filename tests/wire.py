"""A pseudo-terminal with a device at its end, and a backend as a machine behind the link."""

import os
import pty
import select
import threading
import tty

from tritloom.firmware.registers import REGISTERS
from tritloom.host.backends.protocol import DeviceError


class Machine:
    """A backend as the registers behind a link."""

    NAMES = {register.address: register.name for register in REGISTERS}

    def __init__(self, backend):
        self.backend = backend

    def wait(self, cycles):
        return self.backend.advance(cycles)

    def read(self, address):
        try:
            return self.backend.read(self.NAMES[address])
        except (DeviceError, KeyError):
            return None

    def write(self, address, value):
        try:
            self.backend.write(self.NAMES[address], value)
        except (DeviceError, KeyError):
            return False
        return True


class Wire(threading.Thread):
    """A pseudo-terminal; `device` (or nothing) answers at it."""

    def __init__(self, device):
        super().__init__(daemon=True)
        self.device = device
        self.near, far = pty.openpty()
        tty.setraw(far)
        self.path, self._far, self._end = os.ttyname(far), far, threading.Event()
        self.start()

    def run(self):
        while not self._end.is_set():
            if select.select([self.near], [], [], 0.05)[0]:
                answer = self.device(os.read(self.near, 4096))
                while answer:
                    answer = answer[os.write(self.near, answer) :]

    def stop(self):
        self._end.set()
        self.join()
        os.close(self.near)
        os.close(self._far)
