"""A device that only pretends."""

from __future__ import annotations

from collections.abc import Sequence

from tritloom.firmware.config import BuildConfig
from tritloom.firmware.programs.convention import ARG_PROMPT, ARG_STOP, ARG_TOKENS
from tritloom.firmware.registers import FIFO_DEPTH
from tritloom.host.backends.protocol import Bytes
from tritloom.host.backends.soft import SoftDevice


class NullBackend(SoftDevice):
    """Accepts everything and answers with `answer`, over and over; for tests and timing of the host.

    A prompt token and a generated token take `token_cycles` each. `hang`: never answers.
    """

    name = "null"
    timed = True

    def __init__(self, config: BuildConfig, answer: Sequence[int] = (0,), *, token_cycles: int = 1000, hang: bool = False) -> None:
        super().__init__(config)
        self.answer, self.token_cycles, self.hang = tuple(answer), token_cycles, hang
        self._now = self._unread = self._left = self._given = 0

    def load(self, address: int, data: Bytes) -> None:
        pass

    def _start(self) -> None:
        self._now, self._given = 0, 0
        self._unread, self._left = self.registers[f"ARG{ARG_PROMPT}"], self.registers[f"ARG{ARG_TOKENS}"]

    def _stop(self) -> None:
        self._left = self._unread = 0

    def advance(self, limit: int) -> int:
        if not self.running:
            return 0
        if self.hang or (self._unread and not self.prompt) or len(self.tokens) >= FIFO_DEPTH:
            return limit
        self._now += self.token_cycles
        self._count("CYCLES", self._now)
        if self._unread:
            self._unread -= 1
            self.prompt.popleft()
        if not self._unread and self._left:
            token = self.answer[self._given % len(self.answer)]
            self.tokens.append((token, self._now))
            self._given += 1
            self._left = 0 if token == self.registers[f"ARG{ARG_STOP}"] else self._left - 1
        if not self._unread and not self._left:
            self._halt(0)
        return self.token_cycles
