"""Shared stream building blocks: register slices and a FIFO, both with `amaranth.lib.stream` ports."""

from __future__ import annotations

from amaranth import Module, Shape, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.fifo import SyncFIFOBuffered
from amaranth.lib.wiring import In, Out

from tritloom.rtl.parameters import FIFO_LATENCY

__all__ = ["Fifo", "LightSlice", "Slice"]


class _Register(wiring.Component):
    """A register between the ends of a stream: payloads leave in order, unchanged.

    Latency: 1 cycle (`latency`).

    Parameters
    ----------
    shape : shape-like
        Shape of the payload.

    Members
    -------
    i : In(stream), o : Out(stream)
    """

    latency = 1

    def __init__(self, shape):
        self._shape = shape
        super().__init__({"i": In(stream.Signature(shape)), "o": Out(stream.Signature(shape))})


class Slice(_Register):
    """Cut every combinational path between two ends of a stream.

    `ready` and `valid` are both driven by registers. Parameters and members are `_Register`'s.

    Latency: 1 cycle (`latency`).

    Throughput: one payload per cycle.
    """

    def elaborate(self, platform):
        m = Module()
        held = Signal(self._shape)
        full = Signal()
        m.d.comb += self.i.ready.eq(~full)
        with m.If(~self.o.valid | self.o.ready):
            m.d.sync += [self.o.valid.eq(self.i.valid | full), full.eq(0)]
            with m.If(full):
                m.d.sync += self.o.payload.eq(held)
            with m.Else():
                m.d.sync += self.o.payload.eq(self.i.payload)
        with m.Elif(self.i.valid & self.i.ready):
            m.d.sync += full.eq(1)
        with m.If(~full):  # whether it is needed or not: `o.ready` decides about one bit only
            m.d.sync += held.eq(self.i.payload)
        return m


class LightSlice(_Register):
    """Cut every combinational path between two ends of a stream, at half the rate and without a second register.

    For wide payloads that never come every cycle: it spares a LUT a bit. `ready` and `valid` are both driven by one register. Parameters
    and members are `_Register`'s.

    Latency: 1 cycle (`latency`).

    Throughput: one payload per two cycles.
    """

    def elaborate(self, platform):
        m = Module()
        m.d.comb += self.i.ready.eq(~self.o.valid)
        with m.If(self.o.valid):
            m.d.sync += self.o.valid.eq(~self.o.ready)
        with m.Else():
            m.d.sync += [self.o.valid.eq(self.i.valid), self.o.payload.eq(self.i.payload)]
        return m


class Fifo(wiring.Component):
    """Queue stream payloads in a memory with a registered read.

    Built on block RAM or LUTRAM, as the tool chooses by depth. Holds `depth` payloads in the
    memory and one more in the output register.

    Latency: 2 cycles from `i` to `o` when empty (`latency`).

    Throughput: one payload per cycle.

    Parameters
    ----------
    shape : shape-like
        Shape of the payload.
    depth : int
        Payloads the memory holds; powers of two are the cheapest.

    Members
    -------
    i : In(stream), o : Out(stream)
    level : Out
        Payloads held, output register included.
    """

    latency = FIFO_LATENCY

    def __init__(self, shape, depth):
        if not isinstance(depth, int) or depth < 1:
            raise ValueError(f"depth must be a positive integer, not {depth!r}")
        self._width = Shape.cast(shape).width
        self._depth = depth
        super().__init__({
            "i": In(stream.Signature(shape)),
            "o": Out(stream.Signature(shape)),
            "level": Out(range(depth + 2)),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.fifo = fifo = SyncFIFOBuffered(width=self._width, depth=self._depth + 1)
        m.d.comb += [
            fifo.w_data.eq(Value.cast(self.i.payload)),
            fifo.w_en.eq(self.i.valid),
            self.i.ready.eq(fifo.w_rdy),
            Value.cast(self.o.payload).eq(fifo.r_data),
            self.o.valid.eq(fifo.r_rdy),
            fifo.r_en.eq(self.o.ready),
            self.level.eq(fifo.level),
        ]
        return m
