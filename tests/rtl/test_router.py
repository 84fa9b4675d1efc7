"""Routing between memory and units in Amaranth's simulator: everything arrives once, in order, at whoever it is for."""

import random

from amaranth.sim import Simulator

from seed import seed_from_environment
from tritloom.rtl.memory.router import ReadArbiter, WeightRouter, WriteArbiter


class Port:
    """One end of a stream: offers `values` or takes what comes, when a coin says so; an offer stands until it is taken."""

    def __init__(self, stream, choose, values=None, chance=0.5):
        self.stream, self.choose, self.values, self.chance = stream, choose, values, chance
        self.done, self.offering = [], False

    def drive(self, ctx):
        if self.values is None:
            ctx.set(self.stream.ready, self.choose.random() < self.chance)
            return
        self.offering = bool(self.values) and (self.offering or self.choose.random() < self.chance)
        ctx.set(self.stream.valid, self.offering)
        if self.offering:
            ctx.set(self.stream.payload, self.values[0])

    def look(self, ctx):
        if ctx.get(self.stream.valid) and ctx.get(self.stream.ready):
            payload = ctx.get(self.stream.payload)
            self.done.append(payload if isinstance(payload, int) else {name: getattr(payload, name) for name, _ in payload.shape()})
            if self.values is not None:
                self.values.pop(0)
                self.offering = False


def simulate(dut, ports, cycles, each_cycle=lambda: None):
    async def process(ctx):
        for _ in range(cycles):
            each_cycle()
            for port in ports:
                port.drive(ctx)
            for port in ports:
                port.look(ctx)
            await ctx.tick()

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(process)
    simulator.run()


def test_weights_go_to_their_destination():
    choose = random.Random(seed_from_environment())
    beats = [{"data": i, "dest": choose.randrange(3)} for i in range(200)]
    dut = WeightRouter(mem_bytes=4, consumers=3)
    units = [Port(getattr(dut, f"o{n}"), choose) for n in range(3)]
    simulate(dut, [Port(dut.i, choose, list(beats), 1), *units], 800)
    assert [unit.done for unit in units] == [[beat["data"] for beat in beats if beat["dest"] == n] for n in range(3)]


def test_reads_return_to_whoever_asked():
    """More requests than may wait, of one beat and of several; a beat is (address, number), as the memory counts them."""
    choose = random.Random(seed_from_environment())
    dut = ReadArbiter(mem_bytes=4, clients=2, outstanding=4)
    asked = [[{"addr": client * 1000 + i * 16, "beats": choose.choice((1, 1, 2, 5))} for i in range(60)] for client in range(2)]
    clients = [Port(getattr(dut, f"request{n}"), choose, list(asked[n]), 0.9) for n in range(2)]
    data = [Port(getattr(dut, f"data{n}"), choose) for n in range(2)]
    due: list[int] = []
    memory, beats = Port(dut.memory_request, choose, chance=0.7), Port(dut.memory_data, choose, due, 0.7)
    served = 0

    def serve():
        nonlocal served
        for request in memory.done[served:]:
            due.extend(request["addr"] + i for i in range(request["beats"]))
        served = len(memory.done)

    simulate(dut, [*clients, memory, beats, *data], 1500, serve)
    assert [each.done for each in data] == [[one["addr"] + i for one in requests for i in range(one["beats"])] for requests in asked]


def test_every_write_arrives():
    choose = random.Random(seed_from_environment())
    dut = WriteArbiter(mem_bytes=4, clients=2)
    given = [[{"addr": client * 1000 + i, "data": choose.getrandbits(32), "strb": choose.getrandbits(4)} for i in range(60)]
             for client in range(2)]
    memory = Port(dut.o, choose)
    simulate(dut, [*(Port(getattr(dut, f"i{n}"), choose, list(given[n])) for n in range(2)), memory], 800)
    assert [[write for write in memory.done if write["addr"] // 1000 == client] for client in range(2)] == given
