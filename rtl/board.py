"""A machine with all that a board needs around it: a controller for its SDRAM and a link to its host."""

from __future__ import annotations

from amaranth import C, Cat, ClockSignal, Module, ResetInserter, ResetSignal, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from tritloom.firmware.config import BuildConfig
from tritloom.rtl.control.registers import axi_lite_members
from tritloom.rtl.link.link import UartLink
from tritloom.rtl.link.parameters import LinkParameters
from tritloom.rtl.memory.axi import axi_members, axi_prefix
from tritloom.rtl.memory.litedram import LiteDramStart
from tritloom.rtl.memory.parameters import LiteDramParameters, SdramParameters
from tritloom.rtl.memory.sdram import SdramController, pad_members
from tritloom.rtl.top import Accelerator

__all__ = ["BoardTop"]


class BoardTop(wiring.Component):
    """The machine of `config`, its memory and its link, all in one clock domain.

    Parameters
    ----------
    config : BuildConfig
    link : LinkParameters
    sdram : SdramParameters, LiteDramParameters or None
        None: the machine's memory is on the chip.

    Members
    -------
    uart_rx : In(1), uart_tx : Out(1)
    leds : Out(5)
        Lit when 1, in the order of `boards.board.LEDS`.
    reset_o : Out(1), reset_i : In(1)
        The reset of the machine's units, by way of a buffer of the device if it has one.
    sdram_... : `rtl.memory.sdram.pad_members`, with an SDRAM
    wb_..., core_... : as `rtl.memory.litedram.LiteDramStart` has them, with a LiteDRAM core
    """

    def __init__(self, config: BuildConfig, *, link: LinkParameters, sdram: SdramParameters | LiteDramParameters | None):
        self._config, self._link, self._sdram = config, link, sdram
        self._outside = {}
        if isinstance(sdram, SdramParameters):
            self._outside = {f"sdram_{name}": member for name, member in pad_members(sdram).items()}
        elif sdram is not None:
            self._outside = LiteDramStart.outside(sdram)
        super().__init__({"uart_rx": In(1), "uart_tx": Out(1), "leds": Out(5), "reset_o": Out(1), "reset_i": In(1)} | self._outside)

    def elaborate(self, platform):
        m = Module()
        m.submodules.machine = machine = Accelerator(self._config, observed=False, reset_outside=True)
        link, silent = UartLink(self._link), Signal()  # whoever is answered finds a memory
        m.submodules.link = ResetInserter(silent)(link) if isinstance(self._sdram, LiteDramParameters) else link
        m.d.comb += [
            machine.clk.eq(ClockSignal()), machine.rst.eq(ResetSignal()),
            link.rx.eq(self.uart_rx), self.uart_tx.eq(link.tx), link.irq.eq(machine.irq),
            self.reset_o.eq(machine.reset_o), machine.reset_i.eq(self.reset_i),
        ]
        for name, member in axi_lite_members().items():
            source, sink = (machine, link) if member.flow == Out else (link, machine)
            m.d.comb += getattr(sink, name).eq(getattr(source, name))
        ready, failed = (C(1), C(0)) if self._sdram is None else self._memory(m, machine, self._sdram)
        m.d.comb += silent.eq(~(ready | failed))

        blink = Signal(range(self._config.clock_hz))
        m.d.sync += blink.eq(blink + 1)
        m.d.comb += self.leds.eq(Cat(link.led_link, machine.running, link.led_error | machine.failed | failed, ready, blink[-1]))
        return m

    def _memory(self, m: Module, machine: Accelerator, parameters: SdramParameters | LiteDramParameters) -> tuple:
        """The memory behind the machine's port. Returns whether it is initialised, and whether that failed."""
        plain = isinstance(parameters, SdramParameters)
        m.submodules.sdram = sdram = SdramController(parameters) if plain else LiteDramStart(parameters)
        for name, member in axi_members(mem_bytes=parameters.mem_bytes, mem_ports=1).items():
            outer, inner = getattr(sdram, "axi_" + name.removeprefix(axi_prefix(0))), getattr(machine, name)
            m.d.comb += outer.eq(inner) if member.flow == Out else inner.eq(outer)
        for name, member in self._outside.items():
            outer, inner = getattr(self, name), getattr(sdram, name.removeprefix("sdram_"))
            m.d.comb += outer.eq(inner) if member.flow == Out else inner.eq(outer)
        return sdram.ready, C(0) if plain else sdram.error
