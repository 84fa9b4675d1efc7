"""Requests are executed on an AXI4-Lite port, exactly once, and answered."""

from __future__ import annotations

from amaranth import Array, Cat, Const, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from tritloom.firmware.link import ANSWER_WORDS, BUFFER_WORDS, ITEM_SHIFT, WAIT_BITS, Item, Operation, Status, hello_words
from tritloom.firmware.registers import ADDRESS_BITS
from tritloom.rtl.control.registers import axi_lite_members
from tritloom.rtl.link.frames import Deframer, Framer
from tritloom.rtl.link.parameters import LinkParameters
from tritloom.rtl.parameters import index_bits

__all__ = ["Bridge"]

_WORDS = BUFFER_WORDS - ANSWER_WORDS // 2
"""Of a request, header and CRC included; the last ones of both buffers are an answer's values."""
_INDEX = index_bits(BUFFER_WORDS)
_HEADER = 2
"""Words."""


class Bridge(wiring.Component):
    """Execute requests that come as bytes, and answer them (docs/link.md).

    There are two buffers: while a request is executed and answered, another one comes; what comes besides is dropped. A request is executed
    only when it is here as a whole, of the open session and the expected one. The last answer is kept.

    Throughput: 4 cycles a word and those of the slave.

    Parameters
    ----------
    parameters : LinkParameters

    Members
    -------
    data : In(8), valid : In(1), error : In(1)
        Bytes, each for one cycle; an error in place of one.
    o : Out(stream(8))
        Bytes of answers.
    s_axi_... : AXI4-Lite master
    irq : In(1)
    good, bad : Out(1)
        For one cycle: a request came, or what is none.
    """

    def __init__(self, parameters: LinkParameters):
        self.parameters = parameters
        super().__init__({name: member.flip() for name, member in axi_lite_members().items()} | {
            "data": In(8), "valid": In(1), "error": In(1), "o": Out(stream.Signature(8)), "irq": In(1), "good": Out(1), "bad": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.words = words = Memory(shape=32, depth=2 * BUFFER_WORDS, init=[])
        m.submodules.deframer = deframer = Deframer(_WORDS)
        full, incoming, current, lengths = Signal(2), Signal(), Signal(), Array(Signal(_INDEX, name=f"length_{i}") for i in range(2))
        m.d.comb += [deframer.data.eq(self.data), deframer.valid.eq(self.valid), deframer.error.eq(self.error),
                     deframer.room.eq(~full.bit_select(incoming, 1)), self.good.eq(deframer.good), self.bad.eq(deframer.bad)]
        with m.If(deframer.good):
            m.d.sync += [full.bit_select(incoming, 1).eq(1), lengths[incoming].eq(deframer.length), incoming.eq(~incoming)]

        # One memory: the requests' words are written when they come, an answer's values when none comes.
        index, place, value, store, sending = Signal(_INDEX), Signal(range(ANSWER_WORDS + 1)), Signal(32), Signal(), Signal()
        store_at = Cat(place[: _INDEX - 3], Const(0b111, 3), place[_INDEX - 3])
        write, word = words.write_port(), words.read_port()
        m.d.comb += [
            write.en.eq(deframer.write | store),
            write.addr.eq(Mux(deframer.write, Cat(deframer.index, incoming), store_at)),
            write.data.eq(Mux(deframer.write, deframer.word, value)),
            word.addr.eq(Mux(sending, store_at, Cat(index, current))),
        ]
        free = ~deframer.write
        m.submodules.framer = framer = Framer()
        wiring.connect(m, framer.o, wiring.flipped(self.o))

        session, sequence, operation, address = Signal(16), Signal(16), Signal(8), Signal(ADDRESS_BITS)
        live, opened, expected, begun, failed = Signal(), Signal(16), Signal(16), Signal(), Signal()
        kept = Signal(data.StructLayout({"status": 3, "count": 8}))
        fresh = Signal(3)  # status of what was not executed now; DONE: the answer is the kept one
        ahead, known = Signal(16), Signal()
        m.d.comb += [ahead.eq(sequence - expected), known.eq(live & (session == opened))]

        def answer(status):
            m.d.sync += fresh.eq(status)
            m.next = "ANSWER"

        def fail(status):
            m.d.sync += [kept.status.eq(status), kept.count.eq(index - _HEADER), failed.eq(1)]
            m.next = "KEPT"

        def put(payload):
            """An answer's next value, in a cycle in which the memory is free."""
            m.d.comb += [value.eq(payload), store.eq(free)]
            with m.If(free):
                m.d.sync += place.eq(place + 1)

        passed, kind = Signal(WAIT_BITS), Signal(2)
        m.d.comb += [self.s_axi_awaddr.eq(address), self.s_axi_araddr.eq(address), self.s_axi_wdata.eq(word.data),
                     self.s_axi_wstrb.eq(0b1111), self.s_axi_bready.eq(1)]
        for valid, ready in ((self.s_axi_awvalid, self.s_axi_awready), (self.s_axi_wvalid, self.s_axi_wready),
                             (self.s_axi_arvalid, self.s_axi_arready)):
            with m.If(ready):
                m.d.sync += valid.eq(0)

        def begin_write():
            m.d.sync += [self.s_axi_awvalid.eq(1), self.s_axi_wvalid.eq(1)]
            m.next = "WRITE"

        with m.FSM():
            with m.State("IDLE"):
                m.d.sync += place.eq(0)
                with m.If(full.bit_select(current, 1)):
                    m.d.sync += index.eq(index + 1)
                    m.next = "SESSION"
            with m.State("SESSION"):  # the header's first word is here
                m.d.sync += [Cat(session, sequence).eq(word.data), index.eq(index + 1)]
                m.next = "OPERATION"
            with m.State("OPERATION"):
                m.d.sync += [operation.eq(word.data[:8]), address.eq(word.data[16:])]
                m.next = "DECIDE"
            with m.State("DECIDE"):
                m.next = "FETCH"
                with m.If(operation == Operation.HELLO):
                    with m.If(known & begun):
                        answer(Status.BEFORE)
                    with m.Else():
                        m.d.sync += [live.eq(1), opened.eq(session), expected.eq(0), begun.eq(0), failed.eq(0)]
                        m.next = "HELLO"
                with m.Elif(~live):
                    answer(Status.NO_SESSION)
                with m.Elif(~known):
                    answer(Status.OTHER_SESSION)
                with m.Elif(failed | ahead.all()):  # the one before the expected one
                    answer(Status.DONE)
                with m.Elif(ahead[-1]):
                    answer(Status.BEFORE)
                with m.Elif(ahead.any()):
                    answer(Status.AHEAD)
                with m.Elif((operation != Operation.FILL) & (operation != Operation.LIST)):
                    fail(Status.MALFORMED)
            hello = hello_words(self.parameters.clock_hz)
            for state, payload, then in zip(("HELLO", "CLOCK"), hello, ("CLOCK", "HELLO DONE"), strict=True):
                with m.State(state):
                    put(payload)
                    with m.If(free):
                        m.next = then
            with m.State("HELLO DONE"):
                m.d.sync += [kept.status.eq(Status.DONE), kept.count.eq(place)]
                answer(Status.DONE)
            with m.State("FETCH"):  # the word is here in the next cycle
                with m.If(index == lengths[current]):
                    m.d.sync += [kept.status.eq(Status.DONE), kept.count.eq(place)]
                    m.next = "KEPT"
                with m.Elif(operation == Operation.FILL):
                    begin_write()
                with m.Else():
                    m.next = "ITEM"
            with m.State("ITEM"):
                m.d.sync += [address.eq(word.data), kind.eq(word.data[ITEM_SHIFT:])]
                m.next = "OPERAND"
                with m.Switch(word.data[ITEM_SHIFT:]):
                    with m.Case(Item.READ):
                        m.d.sync += self.s_axi_arvalid.eq(~place[-1])
                        m.next = "READ"
                    with m.Case(Item.WRITE, Item.WAIT):
                        m.d.sync += index.eq(index + 1)
                    with m.Default():
                        fail(Status.MALFORMED)
                with m.If(place[-1] & (word.data[ITEM_SHIFT:] != Item.WRITE)):
                    fail(Status.MALFORMED)
            with m.State("OPERAND"):
                m.d.sync += passed.eq(0)
                with m.If(index == lengths[current]):
                    fail(Status.MALFORMED)
                with m.Elif(kind == Item.WRITE):
                    begin_write()
                with m.Else():
                    m.next = "WAIT"
            with m.State("WRITE"):
                with m.If(self.s_axi_bvalid):
                    m.d.sync += index.eq(index + 1)
                    m.next = "FETCH"
                    with m.If(self.s_axi_bresp.any()):
                        fail(Status.BUS_ERROR)
            with m.State("READ"):
                with m.If(self.s_axi_rvalid):
                    put(self.s_axi_rdata)
                    m.d.comb += self.s_axi_rready.eq(free)
                    with m.If(free):
                        m.d.sync += index.eq(index + 1)
                        m.next = "FETCH"
                        with m.If(self.s_axi_rresp.any()):
                            fail(Status.BUS_ERROR)
            with m.State("WAIT"):
                with m.If(self.irq | (passed == word.data[:WAIT_BITS])):
                    put(Cat(passed, Const(0, 31 - WAIT_BITS), self.irq))
                    with m.If(free):
                        m.d.sync += index.eq(index + 1)
                        m.next = "FETCH"
                with m.Else():
                    m.d.sync += passed.eq(passed + 1)
            with m.State("KEPT"):
                m.d.sync += [expected.eq(expected + 1), begun.eq(1)]
                answer(Status.DONE)
            with m.State("ANSWER"):
                m.d.sync += [full.bit_select(current, 1).eq(0), current.eq(~current), index.eq(0), place.eq(0)]
                m.next = "SEND"
            with m.State("SEND"):
                m.d.comb += sending.eq(1)
                status, count = Mux(fresh == Status.DONE, kept.status, fresh), Mux(fresh == Status.DONE, kept.count, 0)
                header = Cat(session, sequence, status, Const(0, 5), count, expected)
                with m.If(self._send(m, framer.i, header, word.data, Mux(status == Status.DONE, count, 0), place)):
                    m.next = "IDLE"
        return m

    def _send(self, m: Module, octets, header, word, values, place):
        """The answer's bytes, in state SEND. Returns whether its last one is taken."""
        at = Signal(range(12))  # bytes of the header, then those of a word over and over
        bytes_of = [*(header[i : i + 8] for i in range(0, 64, 8)), *(word[i : i + 8] for i in range(0, 32, 8))]
        # The word is here, then its byte stands in a register: the framer decides by its bits whether it takes it.
        read, settled, octet = Signal(), Signal(), Signal(8)
        m.d.sync += [read.eq(~octets.ready), settled.eq(read & ~octets.ready), octet.eq(Array(bytes_of)[at])]
        m.d.comb += [octets.payload.data.eq(octet), octets.valid.eq(settled),
                     octets.payload.last.eq(Mux(at == 11, place + 1 == values, (at == 7) & ~values.any()))]
        with m.If(octets.ready):
            m.d.sync += at.eq(at + 1)
            with m.If(at == 11):
                m.d.sync += [at.eq(8), place.eq(place + 1)]
            with m.If(octets.payload.last):
                m.d.sync += at.eq(0)
        return octets.ready & octets.payload.last
