"""Bytes from and to the pins of a UART: 8 data bits, no parity, one stop bit."""

from __future__ import annotations

from amaranth import Cat, Const, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.cdc import FFSynchronizer
from amaranth.lib.wiring import In, Out

from tritloom.rtl.link.parameters import FRACTION_BITS, LinkParameters

__all__ = ["Receiver", "Transmitter"]


class _BitTimer:
    """Counts down `left` to 0, a bit's length at a time; the parts of a cycle are added up."""

    def __init__(self, m: Module, parameters: LinkParameters) -> None:
        self._m = m
        self._whole, self._part = parameters.bit_length
        self.left = Signal(range(self._whole + 1))
        self._parts = Signal(FRACTION_BITS)

    def start(self, cycles: int | None = None) -> list:
        """Begin with a bit, or with some cycles."""
        return [self.left.eq(self._whole - 1 if cycles is None else cycles), self._parts.eq(0)]

    def next(self) -> list:
        """Begin another bit."""
        total = Signal(FRACTION_BITS + 1)
        self._m.d.comb += total.eq(self._parts + self._part)
        return [self.left.eq(self._whole - 1 + total[-1]), self._parts.eq(total)]


class Receiver(wiring.Component):
    """Take bytes from a pin.

    A bit is what two of three samples about its middle say. A start bit that is gone in its middle is none.

    Latency: a byte is given in the middle of its stop bit.

    Parameters
    ----------
    parameters : LinkParameters

    Members
    -------
    rx : In(1)
        The pin, of no clock.
    data : Out(8), valid : Out(1)
        A byte, for one cycle.
    error : Out(1)
        For one cycle: the stop bit was 0.
    """

    def __init__(self, parameters: LinkParameters):
        self.parameters = parameters
        super().__init__({"rx": In(1, init=1), "data": Out(8), "valid": Out(1), "error": Out(1)})

    def elaborate(self, platform):
        m = Module()
        pin, earlier, level = Signal(init=1), Signal(2, init=0b11), Signal()
        m.submodules.pin = FFSynchronizer(self.rx, pin, init=1)
        m.d.sync += earlier.eq(Cat(pin, earlier[0]))
        m.d.comb += level.eq(pin & earlier[0] | pin & earlier[1] | earlier[0] & earlier[1])
        timer, bits = _BitTimer(m, self.parameters), Signal(9)
        m.d.comb += self.data.eq(bits[1:])
        m.d.sync += timer.left.eq(timer.left - 1)
        with m.FSM():
            with m.State("IDLE"):
                m.d.sync += timer.start(self.parameters.bit_length[0] // 2)
                with m.If(~pin):
                    m.next = "START"
            with m.State("START"):
                m.d.sync += bits.eq(1 << 8)  # comes out with the stop bit
                with m.If(timer.left == 0):
                    m.d.sync += timer.next()
                    m.next = "BITS"
                    with m.If(level):
                        m.next = "IDLE"
            with m.State("BITS"):
                with m.If(timer.left == 0):
                    m.d.sync += [*timer.next(), bits.eq(Cat(bits[1:], level))]
                    with m.If(bits[0]):
                        m.d.comb += [self.valid.eq(level), self.error.eq(~level)]
                        m.next = "HIGH"
            with m.State("HIGH"):
                with m.If(pin):
                    m.next = "IDLE"
        return m


class Transmitter(wiring.Component):
    """Send bytes to a pin.

    Throughput: a byte in ten bits and a cycle.

    Parameters
    ----------
    parameters : LinkParameters

    Members
    -------
    i : In(stream(8))
    tx : Out(1)
        The pin.
    """

    def __init__(self, parameters: LinkParameters):
        self.parameters = parameters
        super().__init__({"i": In(stream.Signature(8)), "tx": Out(1, init=1)})

    def elaborate(self, platform):
        m = Module()
        timer, bits, count = _BitTimer(m, self.parameters), Signal(9, init=-1), Signal(range(11))
        m.d.comb += self.i.ready.eq(count == 0)
        m.d.sync += timer.left.eq(timer.left - 1)
        with m.If(self.i.ready):
            m.d.sync += timer.start()
            with m.If(self.i.valid):
                m.d.sync += [self.tx.eq(0), bits.eq(Cat(self.i.payload, Const(1, 1))), count.eq(10)]
        with m.Elif(timer.left == 0):
            m.d.sync += [*timer.next(), self.tx.eq(Mux(count == 1, 1, bits[0])), bits.eq(Cat(bits[1:], Const(1, 1))), count.eq(count - 1)]
        return m
