"""The host's end of the link, against the model of the device: exactly once, whatever the line does."""

import json
import random

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import link_faults
import upload
from line import Line
from link_model import COUNTER, FIFO, REFUSED, LinkDevice, Registers
from tritloom.firmware import link
from tritloom.host.backends.protocol import DeviceBusy
from tritloom.host.link import Link, LinkError, Refused

WORDS = st.lists(st.integers(0, 2**32 - 1) | st.sampled_from([0x7E7D7E7D, 0x7D7D7D7D]), max_size=link.REQUEST_WORDS)
UNTIMED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""The machine may be busy with other tests."""


def opened(line, seed=1, **options):
    return Link(line.open, name="/dev/board", baud=line.baud, clock=line.clock, sleep=line.sleep, chance=random.Random(seed), **options)


def board(**options):
    registers = Registers()
    line = Line(LinkDevice(registers), **options)
    return registers, line


@UNTIMED
@given(WORDS, st.integers(0, 2**16 - 1), st.integers(0, 255), st.data())
def test_frames_come_as_they_went(words, number, operation, draw):
    request = link.Request(number, number ^ 0x7D, operation, number ^ 0x7E, tuple(words))
    data = link.frame(link.encode_request(request))
    assert data.count(link.FLAG) == 2 and len(data) <= 2 * (link.LONGEST_BODY + 1)
    cut = draw.draw(st.integers(0, len(data)))
    frames = link.Deframer()
    bodies = [*frames.feed(data[:cut]), *frames.feed(data[cut:])]
    assert [link.decode_request(body) for body in bodies] == [request] and frames.errors == 0


@UNTIMED
@given(st.binary(max_size=2000), st.integers(1, 9))
def test_garbage_is_no_frame(data, parts):
    frames = link.Deframer()
    step = len(data) // parts + 1
    assert not [body for at in range(0, len(data), step) for body in frames.feed(data[at : at + step])]


def work(host, registers, chance, requests):
    """Random requests; asserts that each was done once, in order. Returns what was written."""
    sent = []
    for _ in range(requests):
        words = [chance.getrandbits(32) for _ in range(chance.randrange(1, 60))]
        kind = chance.random()
        if kind < 0.6:
            host.fill(FIFO, words)
            sent += words
        elif kind < 0.8:
            host.write([link.write_item(FIFO, word) for word in words])
            sent += words
        else:
            before = registers.reads
            read = link.read_item(COUNTER)
            values = host.ask([link.write_item(FIFO, words[0]), read, link.wait_item(1000), read], 1000)
            sent.append(words[0])
            assert values[0::2] == (before + 1, before + 2) and registers.written == sent
    host.flush()
    assert registers.written == sent


@settings(max_examples=25, deadline=None, phases=[Phase.generate], suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 2**32), st.sampled_from([0.0, 1e-3, 4e-3]), st.sampled_from([0.0, 0.02, 0.3]))
def test_everything_is_done_once_and_in_order(seed, rate, late_s):
    registers, line = board(rate=rate, seed=seed, late_s=late_s)
    host = opened(line, patience_s=60)
    work(host, registers, random.Random(seed), 40)
    assert rate > 0 or host.statistics.resent == 0 or late_s


def test_sequence_numbers_wrap():
    registers, line = board(rate=1e-3)
    host = opened(line)
    host._next = line.device.expected = 0xFFF0
    work(host, registers, random.Random(1), 60)


@pytest.mark.parametrize("latency_s", [0.0005, 0.008])
def test_an_upload_fills_the_line(latency_s):
    registers, line = board(latency_s=latency_s)
    host = opened(line)
    words, start = [random.Random(1).getrandbits(32) for _ in range(50_000)], line.now
    for at in range(0, len(words), host.fill_words):
        host.fill(FIFO, words[at : at + host.fill_words])
    host.flush()
    assert registers.written == words and host.statistics.resent == 0
    assert 4 * len(words) / ((line.now - start) * line.baud / 10) > 0.95


@pytest.mark.parametrize("at, event", [*((at, Line.unplug) for at in (1, 200, 1000, 5003, 20_000)), (1, Line.unplug_and_reset),
                                       (1000, Line.unplug_and_reset), (5003, Line.unplug_and_reset)])
def test_an_upload_goes_on_after_unplugging(at, event):
    """Before the board has said that it executed anything, nothing is lost with its power either."""
    registers, line = board()
    host = opened(line)
    line.events.append((line.carried + at, lambda: event(line)))
    words = list(range(10_000))
    for start in range(0, len(words), 200):
        host.fill(FIFO, words[start : start + 200])
    host.flush()
    assert registers.written == words and host.statistics.reconnections == 1


def test_after_a_refused_access_an_unplugged_board_may_have_lost_what_was_loaded():
    """The session is a new one, in which the board has executed nothing: it cannot tell."""
    registers, line = board()
    host = opened(line)
    host.fill(FIFO, [1, 2])
    with pytest.raises(Refused):
        host.ask([link.read_item(REFUSED)])
    line.events.append((line.carried + 10, line.unplug_and_reset))
    with pytest.raises(LinkError, match="nothing tells whether the board has kept what was loaded: start again"):
        host.ask([link.read_item(0)])


def test_who_is_interrupted_leaves_a_link_that_works(monkeypatch):
    """Ctrl-C as an answer with values comes, which is lost: nothing is sent behind that request before it is answered again."""
    registers, line = board()
    host, read = opened(line), line.read

    def interrupted(timeout_s):
        if read(timeout_s):
            monkeypatch.setattr(line, "read", read)
            raise KeyboardInterrupt
        return b""

    monkeypatch.setattr(line, "read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        host.ask([link.read_item(COUNTER)])
    assert host.ask([link.read_item(COUNTER)]) == (2,)
    host.fill(FIFO, [1, 2, 3])
    host.flush()
    assert registers.written == [1, 2, 3] and registers.reads == 2


def test_a_port_that_is_back_and_fails_again_is_closed_and_opened_again(monkeypatch):
    """Whoever opens a port closes it: else its own lock would keep it out."""
    registers, line = board()
    opens, closes, fails = [], [], [OSError("write timeout")] * 2
    real_open, write = line.open, line.write

    def open_port():
        if len(opens) > len(closes):
            raise DeviceBusy("another program has it open")
        port = real_open()
        opens.append(1)
        return port

    def failing(data):
        if len(opens) > 1 and fails:
            raise fails.pop()
        write(data)

    monkeypatch.setattr(line, "close", lambda: closes.append(1))
    host = Link(open_port, name="/dev/board", baud=line.baud, clock=line.clock, sleep=line.sleep)
    monkeypatch.setattr(line, "write", failing)
    host.fill(FIFO, [7])
    host.flush()
    line.events.append((line.carried + 100, line.unplug))
    host.fill(FIFO, list(range(200)))
    host.flush()
    assert registers.written == [7, *range(200)] and not fails and len(opens) == len(closes) + 1


@pytest.mark.parametrize("event, message", [
    (Line.reset, "was reset or lost power: what was loaded is lost"),
    (Line.unplug_and_reset, "lost power or was taken: what was loaded is lost"),
    (Line.unplug_for_good, "was unplugged: plug it in"),
    (Line.take, "another program"),
    (Line.die, "has not answered for [34]"),
])
def test_what_ends_a_session_is_said_and_stays(event, message):
    registers, line = board()
    host = opened(line)
    line.events.append((line.carried + 20_000, lambda: event(line)))
    words = list(range(10_000))
    with pytest.raises(LinkError, match=message):
        for start in range(0, len(words), 200):
            host.fill(FIFO, words[start : start + 200])
        host.flush()
    done = registers.written
    assert done == words[: len(done)] and len(done) < len(words)
    with pytest.raises(LinkError, match=message):
        host.ask([link.read_item(COUNTER)])
    assert registers.reads == 0


def test_a_refused_access_ends_what_is_under_way_only():
    registers, line = board(rate=1e-3)
    host = opened(line)
    for items in ([link.read_item(COUNTER), link.write_item(REFUSED + 4, 1)], [link.wait_item(5), link.read_item(REFUSED + 4)]):
        host.fill(FIFO, [1, 2])
        host.write([link.write_item(0, 3)])
        with pytest.raises(Refused, match="register at 0x104 refused"):
            host.ask(items)
        assert host.ask([link.read_item(0)]) == (3,)
    assert registers.written == [1, 2, 1, 2]


@pytest.mark.parametrize("device, message", [
    (None, "no board answers on /dev/board at 3000000 baud: check cable.* tritloom doctor tries other rates"),
    ("echo", "what is sent to /dev/board comes back: an echo, not a board: check that it is the board's port"),
    (bytes(range(100, 130)), "bytes came from /dev/board, but no answer of a board.*baud rate is 3000000"),
    (LinkDevice(Registers(), version=9), "speaks version 9 of the link's protocol, this host version 1: build and flash"),
])
def test_what_is_no_board_is_said(device, message):
    line = Line(LinkDevice(Registers()))
    if isinstance(device, LinkDevice):
        line.device = device
    else:
        line.device.feed = lambda data: data if device == "echo" else device or b""
    with pytest.raises(LinkError, match=message) as error:
        opened(line)
    assert "\n" not in str(error.value)


def test_the_stored_run_is_of_this_link():
    """Run `make link-faults` when this fails: what host or model do is another."""
    record = json.loads(link_faults.RESULTS.read_text("utf-8"))
    assert record["first"] == 0 and record["faults"] >= link_faults.FAULTS
    assert set(record["ends"]) == {"done", *(end for ends in link_faults.ENDS.values() for end in ends)}
    assert record["behaviour"] == link_faults.behaviour()


def test_the_stored_upload_is_of_this_link():
    """Run `make upload` when this fails: what host or model do is another."""
    record = json.loads(upload.RESULTS.read_text("utf-8"))
    assert record["check"] == upload.check()
    assert all(run["bytes"] > 7_000_000 and run["line_rate_share"] > 0.85 for run in record["runs"])


def test_what_is_wrong_is_seen(monkeypatch):
    """A device that executes a request again when it comes again is found."""
    class Twice(LinkDevice):
        def _execute(self, request):
            if request.operation == link.Operation.FILL and request.session == self._session and request.sequence + 1 == self.expected:
                self._accesses(request, [])
            return super()._execute(request)

    monkeypatch.setattr(link_faults, "LinkDevice", Twice)
    with pytest.raises(link_faults.Wrong):
        for number in range(20):
            link_faults.run(number)
