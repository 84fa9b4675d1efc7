"""Routing between the memory system and the units: weight beats by destination, reads and writes by client."""

from __future__ import annotations

from amaranth import Module, ResetInserter, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from tritloom.rtl.memory.interface import READ_BITS, read_request_layout, weight_layout, write_layout
from tritloom.rtl.stream import Fifo, LightSlice, Slice

__all__ = ["ReadArbiter", "WeightRouter", "WriteArbiter"]


class WeightRouter(wiring.Component):
    """Hand each weight beat to the unit its descriptor names.

    Latency: 1 cycle (`latency`).

    Throughput: one beat per cycle.

    Parameters
    ----------
    mem_bytes : int
    consumers : int
        Number of destinations, from 0.

    Members
    -------
    i : In(stream of weight_layout), o<n> : Out(stream of 8*mem_bytes bits)
    clear : In(1)
        Drop the beat held here; high while the memory system flushes.
    """

    latency = 1

    def __init__(self, *, mem_bytes: int, consumers: int):
        if not 1 <= consumers <= 4:
            raise ValueError(f"consumers must be from 1 to 4, not {consumers}")
        self._mem_bytes, self._consumers = mem_bytes, consumers
        super().__init__({"i": In(stream.Signature(weight_layout(mem_bytes))), "clear": In(1),
                          **{f"o{n}": Out(stream.Signature(8 * mem_bytes)) for n in range(consumers)}})

    def elaborate(self, platform):
        m = Module()
        beat = Slice(weight_layout(self._mem_bytes))
        m.submodules.slice = ResetInserter(self.clear)(beat)
        wiring.connect(m, wiring.flipped(self.i), beat.i)
        for n in range(self._consumers):
            o = getattr(self, f"o{n}")
            mine = beat.o.payload.dest == n
            m.d.comb += [o.payload.eq(beat.o.payload.data), o.valid.eq(beat.o.valid & mine)]
            with m.If(mine):
                m.d.comb += beat.o.ready.eq(o.ready)
        return m


class ReadArbiter(wiring.Component):
    """Share the data-read port between clients; data returns in order, to whoever asked.

    Client 0 goes first when several ask at once.

    Latency: 1 cycle from a request to the memory, none for data.

    Throughput: one request and one beat per cycle.

    Parameters
    ----------
    mem_bytes, clients : int
    outstanding : int
        Requests that may wait for data.

    Members
    -------
    request<n> : In(stream of read_request_layout), data<n> : Out(stream of 8*mem_bytes bits)
    memory_request : Out(stream), memory_data : In(stream)
    """

    def __init__(self, *, mem_bytes: int, clients: int, outstanding: int = 16):
        if clients < 1:
            raise ValueError(f"clients must be positive, not {clients}")
        self._mem_bytes, self._clients, self._outstanding = mem_bytes, clients, outstanding
        word = stream.Signature(8 * mem_bytes)
        super().__init__({
            **{f"request{n}": In(stream.Signature(read_request_layout())) for n in range(clients)},
            **{f"data{n}": Out(word) for n in range(clients)},
            "memory_request": Out(stream.Signature(read_request_layout())),
            "memory_data": In(word),
        })

    def elaborate(self, platform):
        m = Module()
        ticket = data.StructLayout({"client": range(max(2, self._clients)), "beats": READ_BITS})
        m.submodules.tickets = tickets = Fifo(ticket, self._outstanding)
        m.submodules.request = request = Slice(read_request_layout())
        wiring.connect(m, request.o, wiring.flipped(self.memory_request))

        open_ = tickets.i.ready & request.i.ready
        taken = Signal()
        m.d.comb += [tickets.i.valid.eq(taken), request.i.valid.eq(taken)]
        earlier = 0
        for n in range(self._clients):
            client = getattr(self, f"request{n}")
            m.d.comb += client.ready.eq(open_ & ~earlier)
            with m.If(client.valid & client.ready):
                m.d.comb += [taken.eq(1), request.i.payload.eq(client.payload),
                             tickets.i.payload.client.eq(n), tickets.i.payload.beats.eq(client.payload.beats)]
            earlier = earlier | client.valid

        left = Signal(READ_BITS)
        fresh = Signal(init=1)
        remaining = Signal(READ_BITS)
        m.d.comb += remaining.eq(left)
        with m.If(fresh):
            m.d.comb += remaining.eq(tickets.o.payload.beats)
        moved = self.memory_data.valid & self.memory_data.ready
        for n in range(self._clients):
            sink = getattr(self, f"data{n}")
            mine = tickets.o.valid & (tickets.o.payload.client == n)
            m.d.comb += [sink.payload.eq(self.memory_data.payload), sink.valid.eq(self.memory_data.valid & mine)]
            with m.If(mine):
                m.d.comb += self.memory_data.ready.eq(sink.ready)
        with m.If(moved):
            m.d.sync += [left.eq(remaining - 1), fresh.eq(remaining == 1)]
            m.d.comb += tickets.o.ready.eq(remaining == 1)
        return m


class WriteArbiter(wiring.Component):
    """Share the write port between clients; client 0 goes first.

    Latency: 1 cycle (`latency`). Throughput: one beat per two cycles, as fast as a port takes them.

    Members
    -------
    i<n> : In(stream of write_layout), o : Out(stream of write_layout)
    pending : Out(1)
        A write is held here and not yet taken by the memory.
    """

    latency = 1

    def __init__(self, *, mem_bytes: int, clients: int):
        if clients < 1:
            raise ValueError(f"clients must be positive, not {clients}")
        self._mem_bytes, self._clients = mem_bytes, clients
        layout = write_layout(mem_bytes)
        super().__init__({**{f"i{n}": In(stream.Signature(layout)) for n in range(clients)},
                          "o": Out(stream.Signature(layout)), "pending": Out(1)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.slice = chosen = LightSlice(write_layout(self._mem_bytes))
        wiring.connect(m, chosen.o, wiring.flipped(self.o))
        m.d.comb += self.pending.eq(self.o.valid)
        earlier = 0
        for n in range(self._clients):
            client = getattr(self, f"i{n}")
            m.d.comb += client.ready.eq(chosen.i.ready & ~earlier)
            with m.If(client.valid & client.ready):
                m.d.comb += [chosen.i.valid.eq(1), chosen.i.payload.eq(client.payload)]
            earlier = earlier | client.valid
        return m
