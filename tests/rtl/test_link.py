"""The link: bytes to accesses of registers and back."""

import random
from pathlib import Path

import cocotb
import pytest
from amaranth.sim import Simulator
from cocotb.triggers import Timer
from cocotb_link import RealTime, Slave, begin, decoded
from cocotbext.uart import UartSink, UartSource

import faults
import harness
import inventory
import streams
from link_model import COUNTER, FIFO, REFUSED, LinkDevice, Registers
from tritloom.firmware import link
from tritloom.firmware.link import ANSWER_WORDS, REQUEST_WORDS, Operation, Request, Status
from tritloom.rtl.link.bridge import Bridge
from tritloom.rtl.link.link import UartLink
from tritloom.rtl.link.parameters import LinkParameters
from tritloom.rtl.link.uart import Receiver

PARAMETERS = LinkParameters(clock_hz=24_000_000)


def encode(*request, **fields):
    return link.frame(link.encode_request(Request(*request, **fields)))


def fill(session, sequence, address, words):
    return encode(session, sequence, Operation.FILL, address, tuple(words))


def listed(session, sequence, *items):
    return encode(session, sequence, Operation.LIST, 0, link.flatten(items))


@cocotb.test()
async def requests(dut):
    """Every operation, item and status, and words that need stuffing; each answer as the model's."""
    line, registers, _ = await begin(dut, streams.parameters()["stall"])
    model = LinkDevice(other := Registers(), PARAMETERS.clock_hz)

    async def both(data):
        (answer,) = await line.ask(data, 1)
        expected = [decoded(body) for body in link.Deframer().feed(model.feed(data))]
        assert [answer] == expected
        assert registers == other
        return answer

    read, write, wait = link.read_item, link.write_item, link.wait_item
    hello = encode(7, 0, Operation.HELLO)
    assert (await both(fill(7, 0, FIFO, [1]))).status == Status.NO_SESSION
    assert (await both(hello)).values == (link.VERSION | REQUEST_WORDS << 16 | ANSWER_WORDS << 24, 24_000_000)
    assert (await both(hello)).status == Status.DONE
    awkward = [0x7E7D7E7D, 0x7D5D7D5E, 0, 0xFFFFFFFF, 0x7E7E7E7E]
    assert (await both(fill(7, 0, FIFO, awkward))).status == Status.DONE and registers.written == awkward
    assert (await both(hello)).status == Status.BEFORE
    assert (await both(fill(7, 0, FIFO, awkward))).status == Status.DONE and registers.written == awkward
    assert (await both(fill(7, 2, FIFO, [2]))).status == Status.AHEAD
    assert (await both(fill(8, 1, FIFO, [2]))).status == Status.OTHER_SESSION
    items = [write(0x10, 0x7E), read(0x10), read(COUNTER), wait(30), read(COUNTER), write(FIFO, 3)]
    for _ in range(2):  # the second time it is not executed
        assert (await both(listed(7, 1, *items))).values == (0x7E, 1, 30, 2)
    assert (await both(fill(7, 0, FIFO, awkward))).status == Status.BEFORE
    dut.irq.value = registers.irq = other.irq = True
    assert (await both(listed(7, 2, wait(1 << 20)))).values == (link.WAIT_IRQ,)
    assert (await both(listed(7, 3, *[read(COUNTER)] * ANSWER_WORDS))).count == ANSWER_WORDS
    assert (await both(fill(7, 4, FIFO, range(1000, 1000 + REQUEST_WORDS)))).status == Status.DONE
    assert (await both(fill(7, 5, FIFO, []))).status == Status.DONE
    # What ends a session.
    for session, (status, at, bad) in enumerate((
        (Status.BUS_ERROR, 1, lambda s: listed(s, 0, write(REFUSED, 1), write(FIFO, 99))),
        (Status.BUS_ERROR, 2, lambda s: listed(s, 0, write(FIFO, 5), read(REFUSED), write(FIFO, 99))),
        (Status.BUS_ERROR, 0, lambda s: fill(s, 0, REFUSED + 4, [9, 8])),
        (Status.MALFORMED, 0, lambda s: encode(s, 0, 9)),
        (Status.MALFORMED, 1, lambda s: listed(s, 0, read(0), (3 << 30,))),
        (Status.MALFORMED, 2, lambda s: listed(s, 0, read(0), (1 << 30 | FIFO,))),
        (Status.MALFORMED, ANSWER_WORDS, lambda s: listed(s, 0, *[read(COUNTER)] * ANSWER_WORDS, read(COUNTER))),
        (Status.MALFORMED, ANSWER_WORDS, lambda s: listed(s, 0, *[read(COUNTER)] * ANSWER_WORDS, wait(1))),
    ), 20):  # fmt: skip
        assert (await both(encode(session, 0, Operation.HELLO))).status == Status.DONE
        for data in (bad(session), bad(session), fill(session, 1, FIFO, [77]), fill(session, 0, FIFO, [77])):
            answer = await both(data)
            assert (answer.status, answer.count, answer.expected) == (status, at, 1)
    assert 99 not in registers.written and 77 not in registers.written


@cocotb.test()
async def faulty(dut):
    """Bytes with faults: what the model takes is executed, and nothing else."""
    line, registers, _ = await begin(dut)
    model = LinkDevice(other := Registers(), PARAMETERS.clock_hz)
    chance = random.Random(streams.seed())
    injected = accepted = 0
    sequence, session = 0, 5
    await line.ask(encode(session, 0, Operation.HELLO), 1)
    model.feed(encode(session, 0, Operation.HELLO))
    while injected < streams.parameters()["faults"]:
        if chance.random() < 0.5:
            data = fill(session, sequence, FIFO, [chance.getrandbits(32) for _ in range(chance.randrange(6))])
        else:
            data = listed(session, sequence, link.read_item(COUNTER), link.write_item(FIFO, 0x7E7D0000 + sequence))
        data, number = faults.damage(data, chance, rate=0.08)
        injected += number
        got = await line.ask(data)
        assert got == [decoded(body) for body in link.Deframer().feed(model.feed(data))]
        assert registers == other
        accepted += sum(answer.status == Status.DONE for answer in got)
        sequence = model.expected
    streams.report(injected=injected, accepted=accepted)


@cocotb.test()
async def overruns(dut):
    """While the slave hangs two requests wait, and others are dropped; an error of a byte drops its frame."""
    line, registers, slave = await begin(dut)
    await line.ask(encode(9, 0, Operation.HELLO), 1)
    slave.hang = True
    for i in range(4):
        await line.send(fill(9, i, FIFO, [i]))
    assert (line.good, line.bad) == (3, 2)
    slave.hang = False
    assert [(answer.sequence, answer.status) for answer in await line.ask(b"", 2)] == [(0, Status.DONE), (1, Status.DONE)]
    data = fill(9, 2, FIFO, [2])
    await line.send(data[:9])
    dut.error.value = 1
    await streams.cycles(dut)
    dut.error.value = 0
    assert await line.ask(data[9:]) == [] and registers.written == [0, 1]
    longest = link.frame(bytes(4 * REQUEST_WORDS + 12))
    assert await line.ask(longest) == [] and line.bad == 4
    (answer,) = await line.ask(data, 1)
    assert answer.status == Status.DONE and registers.written == [0, 1, 2]


@cocotb.test()
async def upload(dut):
    """Requests of the longest kind, one behind the other, at ten cycles a byte."""
    line, registers, _ = await begin(dut)
    chance = random.Random(streams.seed())
    words = [chance.getrandbits(32) for _ in range(3 * REQUEST_WORDS)]
    await line.ask(encode(9, 0, Operation.HELLO), 1)
    frames = [fill(9, i, FIFO, words[i * REQUEST_WORDS : (i + 1) * REQUEST_WORDS]) for i in range(3)]
    assert [answer.status for answer in await line.ask(b"".join(frames), 3)] == [Status.DONE] * 3
    assert registers.written == words and line.bad == 0
    streams.report(bytes_of_payload=4 * len(words), bytes_on_the_line=sum(map(len, frames)))


@cocotb.test()
async def pins(dut):
    """Somebody else's UART at the pins; a clock whose cycles do not divide a bit; LEDs; a reset loses the session."""
    bench, registers, frames = RealTime(dut), Registers(), link.Deframer()
    slave = Slave(dut, bench, registers)
    await bench.begin(40)
    source, sink = UartSource(dut.rx, baud=3_000_000), UartSink(dut.tx, baud=3_000_000)

    async def ask(data):
        source.write_nowait(data)
        bodies = []
        while not bodies:
            bodies = [*frames.feed(bytes(await sink.read()))]
        return decoded(bodies[0])

    await Timer(3, "us")
    dut.rx.value = 0  # a spike is no start bit
    await Timer(80, "ns")
    dut.rx.value = 1
    await Timer(3, "us")
    assert (await ask(encode(3, 0, Operation.HELLO))).values[1] == 25_000_000
    words = [0x7E7D7D7E, 0x55AA00FF, 0xFFFFFFFF, 0]
    assert (await ask(fill(3, 0, FIFO, words))).status == Status.DONE and registers.written == words
    waits = cocotb.start_soon(ask(listed(3, 1, link.wait_item(1 << 20), link.read_item(COUNTER))))
    await Timer(150, "us")
    assert registers.reads == 0
    dut.irq.value = 1
    passed, count = (await waits).values
    assert passed & link.WAIT_IRQ and 1000 < passed & 0xFFFFFF < 3000 and count == 1
    assert slave.word is None
    dut.rx.value = 0  # a break, as of a wrong baud rate
    await Timer(20, "us")
    dut.rx.value = 1
    await Timer(5, "us")
    assert (await ask(fill(3, 2, FIFO, [6]))).status == Status.DONE
    dut.rst.value = 1
    await Timer(400, "ns")
    dut.rst.value = 0
    assert (await ask(fill(3, 3, FIFO, [7]))).status == Status.NO_SESSION and registers.written == [*words, 6]


def unit():
    return harness.unit(Bridge, PARAMETERS)


@pytest.mark.parametrize("stall", [0, 0.5])
def test_every_request_is_answered_as_by_the_model(stall):
    harness.run(unit(), "link_bridge", __name__, testcase="requests", parameters={"stall": stall})


def test_faults_are_seen():
    result = harness.run(unit(), "link_bridge", __name__, testcase="faulty", parameters={"faults": 300})
    assert result["injected"] >= 300 and result["accepted"] > 20


def test_what_comes_without_room_is_dropped():
    harness.run(unit(), "link_bridge", __name__, testcase="overruns")


def test_an_upload_fills_the_line():
    result = harness.run(unit(), "link_bridge", __name__, testcase="upload")
    assert result["bytes_of_payload"] / result["bytes_on_the_line"] > 0.95


def test_pins():
    link = harness.unit(UartLink, LinkParameters(clock_hz=25_000_000))
    harness.run(link, "uart_link", __name__, testcase="pins")


def test_a_byte_has_its_stop_bit():
    """Bits 3 % too long or too short are read; where the stop bit is 0 there is an error and no byte."""
    receiver, seen = Receiver(LinkParameters(clock_hz=60_000_000)), []
    bytes_ = ((0x00, 1), (0xA5, 1), (0x5A, 0), (0xFF, 1), (0x00, 0), (0x7E, 1))
    sent = [(byte, stop, length) for length in (19.4, 20.6) for byte, stop in bytes_]

    async def line(context):
        for byte, stop, length in sent:
            levels, cycles = [0, *(byte >> i & 1 for i in range(8)), stop, 1, 1], 0
            for place, level in enumerate(levels, 1):
                context.set(receiver.rx, level)
                while cycles < round(place * length):
                    await context.tick()
                    cycles += 1
                    got, error = bool(context.get(receiver.valid)), bool(context.get(receiver.error))
                    if got or error:
                        seen.append((got, error, context.get(receiver.data)))

    simulator = Simulator(receiver)
    simulator.add_clock(1e-6)
    simulator.add_testbench(line)
    simulator.run()
    assert seen == [(True, False, byte) if stop else (False, True, byte) for byte, stop, _ in sent]


@pytest.mark.parametrize("fields, message", [
    (dict(clock_hz=0), "clock_hz must be a positive integer, not 0"),
    (dict(clock_hz=20_000_000), "baud must be at most clock_hz / 8, which is 2500000, not 3000000"),
    (dict(clock_hz=1 << 32), "clock_hz must be below"),
])
def test_parameters_are_checked(fields, message):
    with pytest.raises(ValueError, match=message):
        LinkParameters(**fields)


@pytest.mark.parametrize("clock_hz", [25_000_000, 48_000_000, 50_000_000, 60_000_000, 62_500_000, 66_666_666, 100_000_000])
def test_a_bit_is_as_long_as_it_should_be(clock_hz):
    whole, part = LinkParameters(clock_hz=clock_hz).bit_length
    assert abs((whole + part / 32) / (clock_hz / 3e6) - 1) <= 0.01


def test_memories_are_published():
    assert inventory.published(PARAMETERS.memories()) == inventory.instantiated(UartLink(PARAMETERS))


def test_the_examples_of_the_docs():
    """Frames of docs/link.md, as the model answers them."""
    class Machine(Registers):
        def wait(self, cycles):
            return link.WAIT_IRQ | 1000

    registers = Machine(words={0x14: 0x400002}, irq=True)
    device, text = LinkDevice(registers), (Path(__file__).parents[2] / "docs" / "link.md").read_text("utf-8")
    lines = [line.strip().partition(" ") for line in text.splitlines() if line.startswith(("    > 7e", "    < 7e"))]
    assert len(lines) == 6
    for (_, _, request), (_, _, answer) in zip(lines[::2], lines[1::2], strict=True):
        assert device.feed(bytes.fromhex(request)) == bytes.fromhex(answer)
    assert registers.words[0x18] == 1 and registers.words[0x84] == 0x11223344
