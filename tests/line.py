"""A line between `host.link.Link` and a device of tests/link_model.py, with faults, in a time of its own."""

from __future__ import annotations

import random
from collections import deque

from faults import damage
from link_model import LinkDevice, Registers
from tritloom.firmware import link


class Line:
    """A port. Bytes take 10 bits each and `latency_s` on their way; a part `rate` of them, both ways, suffers a fault of tests/faults.py.

    `now` is the time in s: it passes when somebody waits. `late_s`: answers come late by up to so much.
    """

    def __init__(self, device: LinkDevice, *, rate: float = 0.0, seed: int = 1, baud: int = 3_000_000, latency_s: float = 0.001,
                 late_s: float = 0.0) -> None:
        self.device, self.rate, self.baud, self.latency_s, self.late_s = device, rate, baud, latency_s, late_s
        self.now, self.faults, self.plugged, self._back = 0.0, 0, True, 0.0
        self._chance, self._free, self._coming = random.Random(seed), 0.0, deque()
        self.events: list = []
        """(bytes to the board from now on, what happens then): unplugging, reset."""
        self.carried = 0
        """Bytes to the board so far."""

    def open(self) -> Line:
        if not self.plugged:
            raise OSError("gone")
        self._coming.clear()
        return self

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.plugged = self.plugged or self.now >= self._back

    def reset(self) -> None:
        """The board loses power and has it back."""
        self.device.reset()
        if isinstance(self.device.port, Registers):
            self.device.port.reset()

    def unplug(self, seconds: float = 1.0) -> None:
        """The port is away for a while."""
        self.plugged, self._back = False, self.now + seconds

    def unplug_and_reset(self) -> None:
        self.unplug()
        self.reset()

    def unplug_for_good(self) -> None:
        self.unplug(3600)

    def die(self) -> None:
        """The board says nothing any more."""
        self.device.feed = lambda data: b""

    def take(self) -> None:
        """Another program opens a session."""
        self.device.feed(link.frame(bytes(0)) + link.frame(link.encode_request(link.Request(0x1234, 0, link.Operation.HELLO))))

    def _damaged(self, data: bytes) -> bytes:
        data, number = damage(data, self._chance, self.rate)
        self.faults += number
        return data

    def write(self, data: bytes) -> None:
        if not self.plugged:
            raise OSError("gone")
        while self.events and self.carried + len(data) >= self.events[0][0]:
            at, event = self.events.pop(0)
            part, data = data[: max(at - self.carried, 0)], data[max(at - self.carried, 0) :]
            self._carry(part)
            event()
            if not self.plugged:
                raise OSError("gone")
        self._carry(data)

    def _carry(self, data: bytes) -> None:
        self.carried += len(data)
        self._free = max(self._free, self.now) + 10 * len(data) / self.baud
        answers = self._damaged(self.device.feed(self._damaged(data)))
        if answers:
            late = self._chance.random() * self.late_s
            at = self._free + 2 * self.latency_s + 10 * len(answers) / self.baud + late
            self._coming.append((max([at, *(time for time, _ in self._coming)]), answers))

    def read(self, timeout_s: float) -> bytes:
        if not self.plugged:
            raise OSError("gone")
        end = self.now + timeout_s
        if not self._coming or self._coming[0][0] > end:
            self.now = end
            return b""
        at, answers = self._coming.popleft()
        self.now = max(self.now, at)
        return answers

    def close(self) -> None:
        self._coming.clear()
