"""Slices and the FIFO in Amaranth's simulator: order under every stall, capacity, the declared latency and throughput."""

import random

import pytest
from amaranth.sim import Simulator

from seed import seed_from_environment
from tritloom.rtl.stream import Fifo, LightSlice, Slice

UNITS = {"slice": lambda: Slice(8), "light": lambda: LightSlice(8), "fifo": lambda: Fifo(8, 4), "fifo of one": lambda: Fifo(8, 1)}


def passed(dut, count, may_send, may_take, cycles):
    """Numbers 0, 1, 2... through `dut`, offered from when `may_send(cycle)` until taken: (cycle, number) as they went in and came out."""
    sent, received = [], []

    async def process(ctx):
        offering = False
        for cycle in range(cycles):
            offering = len(sent) < count and (offering or may_send(cycle))
            ctx.set(dut.i.valid, offering)
            ctx.set(dut.i.payload, len(sent) if offering else 255)
            ctx.set(dut.o.ready, may_take(cycle))
            if offering and ctx.get(dut.i.ready):
                sent.append((cycle, len(sent)))
            if ctx.get(dut.o.valid) and ctx.get(dut.o.ready):
                received.append((cycle, ctx.get(dut.o.payload)))
            await ctx.tick()

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(process)
    simulator.run()
    return sent, received


def always(_):
    return True


def never(_):
    return False


@pytest.mark.parametrize("unit", UNITS)
def test_every_payload_leaves_in_order(unit):
    choose = random.Random(seed_from_environment())
    for send, take in ((0.5, 0.5), (1, 0.3), (0.3, 1), (1, 1)):
        sent, received = passed(UNITS[unit](), 100, lambda _, p=send: choose.random() < p, lambda _, p=take: choose.random() < p, 600)
        assert len(sent) == 100 and [number for _, number in received] == list(range(100))


@pytest.mark.parametrize("unit, holds", [("slice", 2), ("light", 1), ("fifo", 5), ("fifo of one", 2)])
def test_capacity(unit, holds):
    sent, _ = passed(UNITS[unit](), 100, always, never, 50)
    assert len(sent) == holds


@pytest.mark.parametrize("unit, between", [("slice", 1), ("light", 2), ("fifo", 1)])
def test_latency_and_throughput(unit, between):
    dut = UNITS[unit]()
    sent, received = passed(dut, 20, always, always, 100)
    assert [cycle for cycle, _ in received] == [dut.latency + between * i for i in range(20)]
    assert received[0][0] - sent[0][0] == dut.latency
