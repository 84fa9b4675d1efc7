"""The machine as an IP core: every signal that an AXI interconnect may ask for, and what tells Vivado which pins belong together."""

from __future__ import annotations

from collections.abc import Iterator

from amaranth import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from tritloom.firmware.config import BuildConfig
from tritloom.rtl.control.registers import axi_lite_members
from tritloom.rtl.memory.axi import axi_members, axi_prefix
from tritloom.rtl.top import Accelerator

__all__ = ["CONSTANTS", "Integration", "bus_of"]

BUFFERABLE, MODIFIABLE = 1, 2
CONSTANTS = {"id": (1, 0), "lock": (1, 0), "cache": (4, BUFFERABLE | MODIFIABLE), "prot": (3, 0), "qos": (4, 0)}
"""Width and value of what an address says besides: one ID, no exclusive access; normal memory that no cache holds, so that an
interconnect may join, split and resize bursts; unprivileged secure data, as the vendor's own masters say."""
CLOCK, RESET, SLAVE = "aclk", "aresetn", "s_axi"


def bus_of(name: str) -> str:
    """The bus that a pin belongs to: `m0_axi` of `m0_axi_araddr`."""
    return name[:name.index("axi_") + 3] if "axi_" in name else ""


def _added_members(mem_ports: int) -> dict:
    """Members that `Accelerator` does without."""
    masters = {axi_prefix(port) + name: member for port in range(mem_ports) for name, member in {
        **{f"{channel}{name}": Out(width) for channel in ("aw", "ar") for name, (width, _) in CONSTANTS.items()},
        "bid": In(1), "rid": In(1)}.items()}
    return {"s_axi_awprot": In(3), "s_axi_arprot": In(3)} | masters


class Integration(wiring.Component):
    """`Accelerator`, without the ports for simulation, as module `tritloom` of a system.

    All pins are synchronous to `aclk`. The masters read in INCR bursts that never cross 4 KiB, write single beats, and use one ID; they
    are never answered out of order, so `rid` and `bid` are not looked at. Nor are `s_axi_awprot` and `s_axi_arprot`: whoever reaches the
    registers may use them.

    `attributes` of the pins name buses, clock, reset and interrupt for Vivado's IP integrator. They leave the frequency to whoever drives
    `aclk`: a stated one must equal that of the clock generator to the last Hertz, or the design is refused.

    Parameters
    ----------
    config : BuildConfig

    Members
    -------
    aclk : In(1)
    aresetn : In(1)
        Active low, synchronous to `aclk`; low for at least 4 cycles.
    s_axi_... : AXI4-Lite slave, 12 address bits, 32 data bits
    m<i>_axi_... : AXI4 masters with memory "axi", 40 address bits, `mem_bytes / mem_ports` bytes of data
    irq : Out(1)
        High while a token waits, and from a program's end to the next START or RESET.
    """

    def __init__(self, config: BuildConfig):
        self.config = config
        self._ports = config.mem_ports if config.memory == "axi" else 0
        members = axi_lite_members() | {"irq": Out(1)}
        if self._ports:
            members |= axi_members(mem_bytes=config.mem_bytes, mem_ports=config.mem_ports)
        self._inner = tuple(members)
        super().__init__({CLOCK: In(1), RESET: In(1)} | members | _added_members(self._ports))

    def attributes(self) -> dict[str, dict[str, str]]:
        """Vivado's attributes, by pin."""
        return dict(self._attributes())

    def _attributes(self) -> Iterator[tuple[str, dict[str, str]]]:
        buses = [SLAVE, *(axi_prefix(port).rstrip("_") for port in range(self._ports))]
        info = "X_INTERFACE_INFO", "X_INTERFACE_PARAMETER"
        yield CLOCK, dict(zip(info, (
            f"xilinx.com:signal:clock:1.0 {CLOCK} CLK",
            f"ASSOCIATED_BUSIF {':'.join(buses)}, ASSOCIATED_RESET {RESET}"), strict=True))
        yield RESET, dict(zip(info, (f"xilinx.com:signal:reset:1.0 {RESET} RST", "POLARITY ACTIVE_LOW"), strict=True))
        yield "irq", dict(zip(info, ("xilinx.com:signal:interrupt:1.0 irq INTERRUPT", "SENSITIVITY LEVEL_HIGH"), strict=True))
        described = set()
        for name in self.signature.members:
            if bus := bus_of(name):
                attributes = {info[0]: f"xilinx.com:interface:aximm:1.0 {bus} {name.removeprefix(bus + '_').upper()}"}
                if bus not in described:
                    attributes[info[1]] = self._bus_parameters(bus)
                    described.add(bus)
                yield name, attributes

    def _bus_parameters(self, bus: str) -> str:
        if bus == SLAVE:
            return "PROTOCOL AXI4LITE, ADDR_WIDTH 12, DATA_WIDTH 32"
        width = 8 * self.config.mem_bytes // self._ports
        return (f"PROTOCOL AXI4, ADDR_WIDTH 40, DATA_WIDTH {width}, ID_WIDTH 1, SUPPORTS_NARROW_BURST 0, HAS_BURST 1, "
                "READ_WRITE_MODE READ_WRITE")

    def elaborate(self, platform):
        m = Module()
        m.submodules.machine = machine = Accelerator(self.config, observed=False)
        reset = Signal()
        m.d.comb += [reset.eq(~self.aresetn), machine.clk.eq(self.aclk), machine.rst.eq(reset)]
        for name in self._inner:
            source, sink = (machine, self) if machine.signature.members[name].flow == Out else (self, machine)
            m.d.comb += getattr(sink, name).eq(getattr(source, name))
        for port in range(self._ports):
            for channel in ("aw", "ar"):
                m.d.comb += [getattr(self, f"{axi_prefix(port)}{channel}{name}").eq(value) for name, (_, value) in CONSTANTS.items()]
        return m
