"""cocotb side of test_top: the host's session drives the pins of a whole accelerator.

The bus models are cocotbext-axi's: an AXI4-Lite master for the host, a RAM behind every AXI4 port. So the machine's buses are
checked against someone else's reading of the standard.
"""

import cocotb
import numpy as np
from cocotb.clock import Clock
from cocotb.task import bridge, resume
from cocotb.triggers import FallingEdge, RisingEdge
from cocotbext.axi import AxiBus, AxiLiteBus, AxiLiteMaster, AxiRam

import streams
from tritloom.firmware.registers import REGISTER
from tritloom.host.image import open_image
from tritloom.host.session import Session


class PinBackend:
    """A device behind cocotb: registers over AXI4-Lite, memory written through the RAM models' back door."""

    name, device, timed = "cocotb", None, True

    def __init__(self, dut, config):
        self.dut, self.config = dut, config
        self.bus = AxiLiteMaster(AxiLiteBus.from_prefix(dut, "s_axi"), dut.clk, dut.rst)
        self.rams = [AxiRam(AxiBus.from_prefix(dut, f"m{port}_axi"), dut.clk, dut.rst, size=1 << 20) for port in range(config.mem_ports)]

    def read(self, register):
        return resume(self.bus.read_dword)(REGISTER[register].address)

    def write(self, register, value):
        resume(self.bus.write_dword)(REGISTER[register].address, value)

    def load(self, address, data):
        width, ports = self.config.mem_bytes, self.config.mem_ports
        beats = np.frombuffer(bytes(data), np.uint8).reshape(-1, ports, width // ports)
        for port, ram in enumerate(self.rams):
            ram.write(address // ports, beats[:, port].tobytes())

    def advance(self, limit):
        return resume(self.run)(limit)

    async def run(self, limit):
        for cycle in range(min(limit, 2000)):
            await RisingEdge(self.dut.clk)
            if self.dut.irq.value == 1:
                return cycle + 1
        return min(limit, 2000)

    def close(self):
        pass


@cocotb.test()
async def writes_a_story(dut):
    p = streams.parameters()
    image = open_image(p["image"])
    cocotb.start_soon(Clock(dut.clk, 2, unit="step").start(start_high=False))
    dut.rst.value = 1
    for _ in range(3):
        await FallingEdge(dut.clk)
    dut.rst.value = 0
    backend = PinBackend(dut, image.config)
    logits = []

    async def watch():
        while True:
            await FallingEdge(dut.clk)
            if dut.trace_logits_valid.value:
                data = int(dut.trace_logits_data.value) & (1 << 64) - 1
                logits.append(data - (data >> 63 << 64))

    cocotb.start_soon(watch())

    @bridge
    def generate():
        with Session(backend, image) as session:
            tokens = list(session.generate(p["prompt"], p["tokens"]))
            return tokens, session.stats().cycles

    tokens, cycles = await generate()
    streams.report(tokens=tokens, logits=logits, cycles=cycles)
