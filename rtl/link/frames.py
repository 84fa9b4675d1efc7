"""Frames: octet stuffing and CRC-32 (firmware/link.py has the numbers)."""

from __future__ import annotations

from amaranth import Array, Cat, Const, Module, Mux, ResetInserter, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.crc.catalog import CRC32_ETHERNET
from amaranth.lib.wiring import In, Out

from tritloom.firmware.link import BUFFER_WORDS, CRC_BYTES, ESCAPE, FLAG, FLIP, HEADER_BYTES
from tritloom.rtl.parameters import index_bits

__all__ = ["Deframer", "Framer"]

_BYTES = 4 * BUFFER_WORDS


class _Crc(wiring.Component):
    """CRC-32 of bytes, a bit a cycle: a third of the LUTs of a byte a cycle, and a byte takes 80 cycles on the line or more.

    Members
    -------
    start : In(1)
        Begin anew.
    data : In(8), valid : In(1)
        A byte; the one before must have come 8 cycles earlier.
    busy : Out(1)
        The last byte is not in `crc` yet.
    crc : Out(32)
    match : Out(1)
        The last four bytes are the CRC of those before.
    """

    def __init__(self):
        super().__init__({"start": In(1), "data": In(8), "valid": In(1), "busy": Out(1), "crc": Out(32), "match": Out(1)})

    def elaborate(self, platform):
        m = Module()
        crc = CRC32_ETHERNET(1).create()
        m.submodules.crc = ResetInserter(self.start)(crc)  # its own `start` costs a LUT a bit
        bits = Signal(9)
        m.d.comb += [
            self.busy.eq(bits[1:].any()), crc.data.eq(bits[0]), crc.valid.eq(self.busy),
            self.crc.eq(crc.crc), self.match.eq(crc.match_detected),
        ]
        m.d.sync += bits.eq(bits >> 1)
        with m.If(self.valid):
            m.d.sync += bits.eq(Cat(self.data, Const(1, 1)))  # the one on top ends it
        return m


class Deframer(wiring.Component):
    """Find frames in bytes, and give their words.

    A frame that is longer than a buffer, has an error or comes without room is dropped whole.

    Parameters
    ----------
    words : int
        Words that a buffer takes, a multiple of 32: 7/8 of 2^n.

    Members
    -------
    data : In(8), valid : In(1), error : In(1)
        Bytes, each for one cycle; an error in place of one.
    room : In(1)
        There is a buffer.
    word : Out(32), index : Out, write : Out(1)
        The word of this number, for one cycle.
    good, bad : Out(1)
        For one cycle: a whole frame has ended, something else has.
    length : Out
        The whole frame's words without its CRC.
    """

    def __init__(self, words: int):
        self._words = words
        bits = index_bits(words)
        if words * 8 != 7 << bits:
            raise ValueError(f"words must be 7/8 of a power of two, not {words}")
        super().__init__({
            "data": In(8), "valid": In(1), "error": In(1), "room": In(1),
            "word": Out(32), "index": Out(bits), "write": Out(1), "good": Out(1), "bad": Out(1), "length": Out(bits),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.crc = crc = _Crc()
        count, rest, escaped, wrong = Signal(index_bits(4 * self._words)), Signal(24), Signal(), Signal()
        byte, full, whole = Signal(8), Signal(), Signal()
        m.d.comb += [
            byte.eq(self.data ^ Mux(escaped, FLIP, 0)), crc.data.eq(byte), full.eq(count[-3:].all()),
            self.word.eq(Cat(rest, byte)), self.index.eq(count[2:]), self.length.eq(count[2:] - CRC_BYTES // 4),
            whole.eq(crc.match & (count[:2] == 0) & (count >= HEADER_BYTES + CRC_BYTES) & ~wrong & ~escaped),
        ]
        with m.If(self.error):
            m.d.sync += wrong.eq(1)
        with m.If(self.valid):
            with m.If(self.data == FLAG):
                m.d.comb += [self.good.eq(whole), self.bad.eq(~whole & ((count != 0) | wrong | escaped)), crc.start.eq(1)]
                m.d.sync += [count.eq(0), wrong.eq(0), escaped.eq(0)]
            with m.Elif(self.data == ESCAPE):
                m.d.sync += escaped.eq(1)
                with m.If(escaped):
                    m.d.sync += wrong.eq(1)
            with m.Else():
                m.d.comb += [crc.valid.eq(1), self.write.eq(count[:2].all() & self.room & ~full)]
                m.d.sync += [escaped.eq(0), rest.eq(Cat(rest[8:], byte))]
                with m.If(full | ~self.room):
                    m.d.sync += wrong.eq(1)
                with m.Else():
                    m.d.sync += count.eq(count + 1)
        return m


class Framer(wiring.Component):
    """Make frames of bytes: a flag, the bytes and their CRC-32 with octets stuffed, a flag.

    Parameters
    ----------
    None.

    Members
    -------
    i : In(stream of data, last)
    o : Out(stream(8))
        What goes over the line, which takes more than 8 cycles a byte.
    """

    def __init__(self):
        super().__init__({"i": In(stream.Signature(data.StructLayout({"data": 8, "last": 1}))), "o": Out(stream.Signature(8))})

    def elaborate(self, platform):
        m = Module()
        m.submodules.crc = crc = _Crc()
        place, escaped, byte, sent, stuffed = Signal(range(CRC_BYTES)), Signal(), Signal(8), Signal(), Signal()
        m.d.comb += [crc.data.eq(self.i.payload.data), stuffed.eq(((byte == FLAG) | (byte == ESCAPE)) & ~escaped)]

        def send(valid):
            """Offer `byte`, or the escape before it; `sent` when it is away."""
            m.d.comb += [self.o.valid.eq(valid), self.o.payload.eq(Mux(stuffed, ESCAPE, byte ^ Mux(escaped, FLIP, 0))),
                         sent.eq(self.o.valid & self.o.ready & ~stuffed)]
            with m.If(self.o.valid & self.o.ready):
                m.d.sync += escaped.eq(stuffed)

        with m.FSM():
            with m.State("OPEN"):
                m.d.comb += [self.o.payload.eq(FLAG), self.o.valid.eq(self.i.valid), crc.start.eq(1)]
                with m.If(self.o.valid & self.o.ready):
                    m.next = "BODY"
            with m.State("BODY"):
                m.d.comb += [byte.eq(self.i.payload.data), self.i.ready.eq(sent), crc.valid.eq(sent)]
                send(self.i.valid)
                with m.If(sent & self.i.payload.last):
                    m.next = "CRC"
            with m.State("CRC"):
                m.d.comb += byte.eq(Array(crc.crc[8 * i : 8 * i + 8] for i in range(CRC_BYTES))[place])
                send(~crc.busy)
                with m.If(sent):
                    m.d.sync += place.eq(place + 1)
                    with m.If(place == CRC_BYTES - 1):
                        m.next = "CLOSE"
            with m.State("CLOSE"):
                m.d.comb += [self.o.payload.eq(FLAG), self.o.valid.eq(1)]
                with m.If(self.o.ready):
                    m.next = "OPEN"
        return m
