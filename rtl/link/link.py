"""The link: UART pins to an AXI4-Lite master."""

from __future__ import annotations

from amaranth import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from tritloom.rtl.control.registers import axi_lite_members
from tritloom.rtl.link.bridge import Bridge
from tritloom.rtl.link.parameters import LinkParameters
from tritloom.rtl.link.uart import Receiver, Transmitter

__all__ = ["UartLink"]


class UartLink(wiring.Component):
    """Give a host at a UART the registers (docs/link.md).

    Parameters
    ----------
    parameters : LinkParameters

    Members
    -------
    rx : In(1), tx : Out(1)
        The pins.
    s_axi_... : AXI4-Lite master
        To the slave's members of these names.
    irq : In(1)
        What WAIT waits for.
    led_link, led_error : Out(1)
        There was a good frame, or one that was dropped, within the last tenth of a second.
    """

    def __init__(self, parameters: LinkParameters):
        self.parameters = parameters
        super().__init__({name: member.flip() for name, member in axi_lite_members().items()} | {
            "rx": In(1, init=1), "tx": Out(1, init=1), "irq": In(1), "led_link": Out(1), "led_error": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.receiver = receiver = Receiver(self.parameters)
        m.submodules.transmitter = transmitter = Transmitter(self.parameters)
        m.submodules.bridge = bridge = Bridge(self.parameters)
        m.d.comb += [receiver.rx.eq(self.rx), self.tx.eq(transmitter.tx), bridge.data.eq(receiver.data), bridge.valid.eq(receiver.valid),
                     bridge.error.eq(receiver.error), bridge.irq.eq(self.irq)]
        wiring.connect(m, bridge.o, transmitter.i)
        for name, member in axi_lite_members().items():
            inner, outer = getattr(bridge, name), getattr(self, name)
            m.d.comb += outer.eq(inner) if member.flow == In else inner.eq(outer)
        blink = Signal((self.parameters.clock_hz // 16).bit_length())
        m.d.sync += blink.eq(blink + 1)
        for event, led in ((bridge.good, self.led_link), (bridge.bad, self.led_error)):
            seen = Signal(name=f"seen_{led.name}")
            with m.If(blink == 0):
                m.d.sync += [led.eq(seen), seen.eq(0)]
            with m.If(event):
                m.d.sync += seen.eq(1)
        return m
