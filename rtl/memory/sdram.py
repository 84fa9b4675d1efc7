"""An open-page controller for SDR SDRAM behind an AXI4 port."""

from __future__ import annotations

from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from tritloom.rtl.memory.axi import axi_members, axi_prefix
from tritloom.rtl.memory.parameters import SdramParameters

__all__ = ["SdramController", "pad_members"]


def pad_members(parameters: SdramParameters) -> dict:
    """Signature members towards the SDRAM's pads."""
    return {
        "cke": Out(1), "cs_n": Out(1), "ras_n": Out(1), "cas_n": Out(1), "we_n": Out(1), "ba": Out(parameters.bank_bits),
        "a": Out(parameters.row_bits), "dqm": Out(parameters.width // 8), "dq_o": Out(parameters.width), "dq_oe": Out(1),
        "dq_i": In(parameters.width),
    }


class SdramController(wiring.Component):
    """Serve AXI4 from an SDR SDRAM.

    Members
    -------
    axi_... : AXI4 slave
        The signals of `rtl.memory.axi.axi_members`, flipped.
    ready : Out(1)
        The SDRAM is initialised.
    cke, cs_n, ras_n, cas_n, we_n, ba, a, dqm, dq_o, dq_oe : Out, dq_i : In
        Towards the pads; all outputs are registers.
    """

    def __init__(self, parameters: SdramParameters):
        self._parameters = parameters
        masters = axi_members(mem_bytes=parameters.mem_bytes, mem_ports=1)
        super().__init__({"axi_" + name.removeprefix(axi_prefix(0)): member.flip() for name, member in masters.items()}
                         | {"ready": Out(1)} | pad_members(parameters))

    def elaborate(self, platform):
        raise NotImplementedError
