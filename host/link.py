"""The host's end of the link to a board (docs/link.md): requests go out, and each is executed exactly once or an error says why not."""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from tritloom.firmware import link
from tritloom.firmware.errors import InputError
from tritloom.firmware.link import REQUEST_WORDS, Answer, Operation, Request, Status
from tritloom.host.backends.protocol import DeviceBusy, DeviceFault

WINDOW = 16
"""Requests under way: 14 KB, three times what 3 Mbaud carry in the 16 ms of a USB adapter."""
PATIENCE_S = 3.0
"""A board may be silent for so long."""
TIMER_S = 0.1
"""An answer may take so long besides the time on the line; twice as long after each time without one."""
LONGEST_TIMER_S = 1.0
LEAST_WORDS = 16
"""A line with errors gets shorter requests, down to these."""
SESSIONS = 8
"""Numbers that are tried for a session: one may be that of a session that is open."""
REGROW = 32
"""Requests answered in a row until they get longer again."""


class LinkError(DeviceFault):
    """The link to the board does not do what it should."""


class NoAnswer(LinkError):
    """Nothing at the port answers as a board does."""


class Port(Protocol):
    """Bytes to and from a board. Both raise OSError when the port is gone."""

    def write(self, data: bytes) -> None: ...

    def read(self, timeout_s: float) -> bytes:
        """What has come, or comes within the time; empty if nothing does."""
        ...

    def close(self) -> None: ...


@dataclass
class Statistics:
    """Of a link since it was opened."""

    requests: int = 0
    resent: int = 0
    answers: int = 0
    broken_answers: int = 0
    timeouts: int = 0
    reconnections: int = 0


@dataclass
class _Flight:
    """A request that is not answered yet. `valued`: it is only through its own answer that it is."""

    sequence: int
    request: Request
    data: bytes
    valued: bool
    cycles: int


class Link:
    """A session with a board.

    `open_port` opens the port, again when it was gone. `patience_s`: the board may be silent for so long; `reconnect_s`: an unplugged port
    may be away for so long. `timer_s`: an answer may take so long besides the time on the line, at first.
    `clock` tells the time in s, `sleep` lets some pass. Raises `LinkError` if there is no board, or one of another
    protocol. A session that was lost (the board was reset, another program took it) stays lost: whatever is asked raises the same error.
    """

    def __init__(self, open_port: Callable[[], Port], *, name: str, baud: int, patience_s: float = PATIENCE_S,
                 timer_s: float = TIMER_S, reconnect_s: float = 10.0,
                 clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep,
                 chance: random.Random | None = None) -> None:
        self.name, self.baud, self.statistics = name, baud, Statistics()
        self._open_port, self._patience_s, self._reconnect_s, self._clock, self._sleep = open_port, patience_s, reconnect_s, clock, sleep
        self._least_timer_s = timer_s
        self._chance = chance or random.SystemRandom()
        self._lost: LinkError | None = None
        self._executed = False
        """Whether the board is known to have executed anything: it may be worth keeping."""
        self._words = REQUEST_WORDS
        self._frames = link.Deframer()
        self._flight: deque[_Flight] = deque()
        self._values: tuple[int, ...] | None = None
        self._port = open_port()
        try:
            self._begin()
        except BaseException:
            self._port.close()
            raise

    def close(self) -> None:
        self._port.close()

    # Sessions ------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Open a session of its own."""
        self._flight.clear()
        self._next, self._timer_s, self._streak, self._ahead, self._known = 0, self._least_timer_s, 0, -1, False
        for _ in range(SESSIONS):
            self._session = self._chance.randrange(1 << 16)
            answer = self._hello()
            if answer.status == Status.DONE:
                break  # else it is open already: somebody's with the same number
        else:  # no board has each of them open; what comes back reads like that
            raise self._error(f"what is sent to {self.name} comes back: an echo, not a board", "check that it is the board's port")
        version = answer.values[0] & 0xFFFF
        if version != link.VERSION:
            raise self._error(f"the board speaks version {version} of the link's protocol, this host version {link.VERSION}",
                              "build and flash the board with this release")
        words, answers = answer.values[0] >> 16 & 0xFF, answer.values[0] >> 24
        if (words, answers) != (REQUEST_WORDS, link.ANSWER_WORDS):
            raise self._error(f"the board takes requests of {words} words and answers with {answers}, not {REQUEST_WORDS} and "
                              f"{link.ANSWER_WORDS}", "build and flash the board with this release")
        self.clock_hz = answer.values[1]

    def _hello(self) -> Answer:
        """The answer to HELLO for the session."""
        data, end = link.frame(link.encode_request(Request(self._session, 0, Operation.HELLO))), self._clock() + self._patience_s
        came = 0
        while self._clock() < end:
            self._port.write(data)
            self.statistics.requests += 1
            until = self._clock() + self._least_timer_s
            while (left := until - self._clock()) > 0:
                received = self._port.read(left)
                came += len(received)
                for answer in self._answers(received):
                    hello = answer.status == Status.BEFORE or answer.status == Status.DONE and not answer.expected
                    if answer.session == self._session and answer.sequence == 0 and hello:
                        return answer
        if came:
            raise NoAnswer(f"{came} bytes came from {self.name}, but no answer of a board", self.state(),
                           f"check that it is the board's port and that the board's baud rate is {self.baud}")
        raise NoAnswer(f"no board answers on {self.name} at {self.baud} baud", self.state(),
                       "check cable and port, and that the board has its bitstream (tritloom flash); tritloom doctor tries other rates")

    def _error(self, what: str, mend: str) -> LinkError:
        return LinkError(what, self.state(), mend)

    def _lose(self, what: str, mend: str) -> LinkError:
        self._lost = self._error(what, mend)
        return self._lost

    def state(self) -> Mapping[str, Any]:
        """The link's state, for error messages."""
        return {"port": self.name, "baud": self.baud, "under_way": len(self._flight), **asdict(self.statistics)}

    # Requests ------------------------------------------------------------------------------------

    @property
    def fill_words(self) -> int:
        """Words that a request should have now."""
        return self._words

    @property
    def words_under_way(self) -> int:
        """Words of requests that are not answered yet."""
        return sum(len(flight.request.words) for flight in self._flight)

    def fill(self, address: int, words: Sequence[int]) -> None:
        """Write words, at most REQUEST_WORDS, to a register in their order. Errors may come with a later call."""
        self._send(Operation.FILL, address, tuple(words))

    def write(self, items: Sequence[Sequence[int]]) -> None:
        """Do items that have no value. Errors may come with a later call."""
        self._send(Operation.LIST, 0, link.flatten(items))

    def ask(self, items: Sequence[Sequence[int]], cycles: int = 0) -> tuple[int, ...]:
        """Do items, and return their values. They wait for `cycles` of the board at most."""
        self._send(Operation.LIST, 0, link.flatten(items), valued=True, cycles=cycles)
        self.flush()
        assert self._values is not None
        return self._values

    def flush(self) -> None:
        """Wait until everything is executed."""
        while self._flight:
            self._wait()

    def _send(self, operation: Operation, address: int, words: tuple[int, ...], valued: bool = False, cycles: int = 0) -> None:
        if self._lost:
            raise self._lost
        if self._flight and self._flight[-1].valued:  # whoever asked was interrupted: nothing goes behind it before it is answered
            self.flush()
        while len(self._flight) >= WINDOW:
            self._wait()
        request = Request(self._session, self._next, operation, address, words)
        data = link.frame(link.encode_request(request))
        if not self._flight:
            self._progress()
        self._flight.append(_Flight(self._next, request, data, valued, cycles))
        self._next = self._next + 1 & 0xFFFF
        self.statistics.requests += 1
        self._write(data)

    def _progress(self) -> None:
        """Something was executed, or is the first."""
        self._timer_s, self._ahead = self._least_timer_s, -1
        self._since = self._timed = self._clock()

    def _write(self, data: bytes) -> None:
        try:
            self._port.write(data)
        except OSError:
            self._reconnect()

    def _busy_s(self) -> float:
        """Time that the requests under way take on the line and on the board."""
        return sum(20 * len(flight.data) / self.baud + flight.cycles / self.clock_hz for flight in self._flight)

    def _wait(self) -> None:
        """Wait for an answer, and send again when there is none."""
        if self._lost:
            raise self._lost
        busy_s = self._busy_s()
        now = self._clock()
        if now > self._since + self._patience_s + busy_s:
            raise self._lose(f"the board on {self.name} has not answered for {now - self._since:.1f} s",
                             "check cable and power, then start again")
        left = self._timed + self._timer_s + busy_s - now
        if left <= 0:
            self.statistics.timeouts += 1
            self._timer_s = min(2 * self._timer_s, LONGEST_TIMER_S)
            self._resend()
            return
        try:
            received = self._port.read(left)
        except OSError:
            self._reconnect()
            return
        for answer in self._answers(received):
            if answer.session == self._session and self._flight:
                self._take(answer)

    def _answers(self, data: bytes) -> list[Answer]:
        before = self._frames.errors
        answers = [answer for body in self._frames.feed(data) if (answer := link.decode_answer(body))]
        self.statistics.broken_answers += self._frames.errors - before
        self.statistics.answers += len(answers)
        return answers

    def _resend(self) -> None:
        """Send everything under way again."""
        self._words, self._streak = max(self._words // 2, LEAST_WORDS), 0
        self._timed = self._clock()
        self.statistics.resent += len(self._flight)
        self._write(b"".join(flight.data for flight in self._flight))

    def _take(self, answer: Answer) -> None:
        """Note what an answer to this session says."""
        if answer.status == Status.NO_SESSION:
            raise self._lose(f"the board on {self.name} was reset or lost power: what was loaded is lost", "start again")
        if answer.status == Status.OTHER_SESSION:
            raise self._lose(f"another program has taken the board on {self.name}", "end it, then start again")
        done = answer.expected - self._flight[0].sequence & 0xFFFF
        if done > len(self._flight):
            return  # an old one
        if answer.status in (Status.BUS_ERROR, Status.MALFORMED):
            if done:
                self._refused(self._flight[done - 1], answer)
            return
        for _ in range(done):
            flight = self._flight[0]
            if flight.valued:
                if answer.status != Status.DONE or answer.sequence != flight.sequence:
                    break
                self._values = answer.values
            self._flight.popleft()
            self._executed = self._known = True
            self._progress()
            self._streak += 1
        if self._streak >= REGROW:
            self._words, self._streak = min(2 * self._words, REQUEST_WORDS), 0
        if answer.status == Status.AHEAD and self._flight:
            at = answer.sequence - self._flight[0].sequence & 0xFFFF
            if at < len(self._flight):
                again = self._ahead < 0 or at <= self._ahead  # what was sent again is missing, too
                self._ahead = at
                if again:
                    self._resend()

    def _refused(self, flight: _Flight, answer: Answer) -> None:
        """A request has failed; those behind it were not executed. Go on in a new session."""
        self._executed = True
        request, at = flight.request, answer.count
        address = request.address if request.operation == Operation.FILL else self._address(request.words, at)
        error = Refused(address, answer.status == Status.MALFORMED, self.state())
        try:
            self._begin()
        except OSError:
            self._reconnect()
        except LinkError as lost:
            self._lost = lost
        raise error

    @staticmethod
    def _address(words: Sequence[int], at: int) -> int:
        """The register of the item that has word `at`."""
        place = 0
        while place < len(words):
            two = words[place] >> link.ITEM_SHIFT != link.Item.READ
            if at <= place + two:
                return words[place] & 0xFFF
            place += 1 + two
        return 0

    def _reconnect(self) -> None:
        """The port is gone: when it is back, go on where it stopped, if the board still has the session."""
        self._port.close()
        end = self._clock() + self._reconnect_s
        while True:
            if self._clock() > end:
                raise self._lose(f"{self.name} was unplugged", "plug it in, then start again")
            with suppress(OSError, InputError, LinkError, DeviceBusy):  # it is not there, or not ready, yet
                self._port = self._open_port()
                self._frames = link.Deframer()
                try:
                    answer = self._hello()
                    break
                except BaseException:
                    self._port.close()
                    raise
            self._sleep(0.1)
        self.statistics.reconnections += 1
        if answer.status == Status.DONE and self._known:  # it has forgotten what it executed
            raise self._lose(f"{self.name} was unplugged and the board lost power or was taken: what was loaded is lost", "start again")
        if answer.status == Status.DONE and self._executed:  # that was in an earlier session, of which this one tells nothing
            raise self._lose(f"{self.name} was unplugged, and nothing tells whether the board has kept what was loaded", "start again")
        if self._flight:
            self._progress()
            self._resend()


class Refused(LinkError):
    """A register refused an access: `address` is its own, None if the board did not know what it was asked."""

    def __init__(self, address: int, malformed: bool, state: Mapping[str, Any]) -> None:
        self.address = None if malformed else address
        what, mend = ("the board does not know what it was asked", "build and flash the board with this release") if malformed else (
            f"the register at {address:#05x} refused an access", "")
        super().__init__(what, state, mend)
