"""The link in simulation: an AXI4-Lite slave of tests/link_model.py's registers, and bytes in and out."""

from __future__ import annotations

import random

import cocotb
from cocotb.clock import Clock
from cocotb.triggers import FallingEdge, ReadOnly

import streams
from link_model import Registers
from tritloom.firmware import link

INPUTS = ("awready", "wready", "bvalid", "bresp", "arready", "rvalid", "rresp", "rdata")
HIGH = streams.HIGH


def decoded(body):
    """An answer, which it must be."""
    answer = link.decode_answer(body)
    assert answer is not None, body.hex()
    return answer


class Slave:
    """Answers at the port as `registers` do; `stall` is the part of cycles in which it does nothing. `busy` for ever if `hang`."""

    def __init__(self, dut, bench, registers, stall=0.0):
        self.dut, self.registers, self.stall, self.chance = dut, registers, stall, random.Random(streams.seed())
        self.address = self.word = self.question = None
        self.hang = False
        self._moved: set[str] = set()
        for name in INPUTS:
            getattr(dut, f"s_axi_{name}").value = 0
        bench.each_cycle.append(self._sample)
        cocotb.start_soon(self._drive())

    def _port(self, name):
        return getattr(self.dut, f"s_axi_{name}")

    def _sample(self):
        self._moved |= {name for name in ("aw", "w", "b", "ar", "r")
                        if self._port(f"{name}valid").value == HIGH and self._port(f"{name}ready").value == HIGH}
        if "aw" in self._moved and self.address is None:
            self.address = int(self._port("awaddr").value)
        if "w" in self._moved and self.word is None:
            assert int(self._port("wstrb").value) == 15
            self.word = int(self._port("wdata").value)
        if "ar" in self._moved and self.question is None:
            self.question = int(self._port("araddr").value)

    async def _drive(self):
        while True:
            await FallingEdge(self.dut.clk)
            moved, self._moved = self._moved, set()
            moves = not self.hang and self.chance.random() >= self.stall
            for name, held in (("aw", self.address), ("w", self.word), ("ar", self.question)):
                self._port(f"{name}ready").value = int(moves and held is None and self.chance.random() >= self.stall)
            if "b" in moved:
                self._port("bvalid").value = 0
            elif moves and self.address is not None and self.word is not None:
                done = self.registers.write(self.address, self.word)
                self._port("bresp").value, self._port("bvalid").value = 0 if done else 2, 1
                self.address = self.word = None
            if "r" in moved:
                self._port("rvalid").value = 0
            elif moves and self.question is not None:
                value = self.registers.read(self.question)
                self._port("rresp").value, self._port("rvalid").value = (2, 1) if value is None else (0, 1)
                self._port("rdata").value = value or 0
                self.question = None


class Line:
    """The bytes of a bridge: `send` gives some, one every `gap` cycles, and `answers` has what came back."""

    def __init__(self, dut, bench, gap=10):
        self.dut, self.gap = dut, gap
        self.bytes: list[int] = []
        self.good = self.bad = 0
        self._frames, self._bench = link.Deframer(), bench
        self.answers: list[bytes] = []
        dut.valid.value = dut.error.value = dut.irq.value = 0
        dut.o__ready.value = 0
        bench.each_cycle.append(self._sample)

    def _sample(self):
        self.good += self.dut.good.value == HIGH
        self.bad += self.dut.bad.value == HIGH
        taken = self._bench.cycle % self.gap == 0
        if self.dut.o__valid.value == HIGH and self.dut.o__ready.value == HIGH:
            self.answers += self._frames.feed(bytes([int(self.dut.o__payload.value)]))
        self._next = taken

    async def _cycle(self):
        await FallingEdge(self.dut.clk)
        self.dut.o__ready.value = int(self._next)

    async def send(self, data):
        for byte in data:
            self.dut.data.value, self.dut.valid.value = byte, 1
            await self._cycle()
            self.dut.valid.value = 0
            for _ in range(self.gap - 1):
                await self._cycle()

    async def idle(self, cycles=60):
        """Until nothing has been sent for some cycles."""
        quiet = 0
        while quiet < cycles:
            await self._cycle()
            quiet = 0 if self.dut.o__valid.value == HIGH else quiet + 1

    async def ask(self, data, least=0, limit=20_000):
        """Answers to some bytes that came alone; there are `least` or more."""
        await self.send(data)
        for _ in range(limit):
            if len(self.answers) >= least:
                break
            await self._cycle()
        await self.idle()
        answers, self.answers = self.answers, []
        return [decoded(body) for body in answers]


async def begin(dut, stall=0.0):
    """A bridge with registers behind it."""
    registers = Registers()
    dut.valid.value = 0
    bench = await streams.start(dut)
    return Line(dut, bench), registers, Slave(dut, bench, registers, stall)


class RealTime:
    """What `streams.start` gives, but with a clock in real time, for a UART that knows of no clock."""

    def __init__(self, dut):
        self.dut, self.each_cycle, self.cycle = dut, [], 0

    async def begin(self, period_ns):
        dut = self.dut
        dut.rx.value, dut.irq.value, dut.rst.value = 1, 0, 1
        cocotb.start_soon(Clock(dut.clk, period_ns, unit="ns").start(start_high=False))
        for _ in range(3):
            await FallingEdge(dut.clk)
        dut.rst.value = 0
        cocotb.start_soon(self._loop())

    async def _loop(self):
        while True:
            await FallingEdge(self.dut.clk)
            self.cycle += 1
            await ReadOnly()
            for function in self.each_cycle:
                function()
