"""The link: UART pins to an AXI4-Lite master."""

from __future__ import annotations

from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from tritloom.rtl.control.registers import axi_lite_members
from tritloom.rtl.link.parameters import LinkParameters

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
        raise NotImplementedError("the link is being written")
