"""Where bursts come from: descriptor programs say what the weight stream is, requests what data is read; both are cut into bursts."""

from __future__ import annotations

from amaranth import Module, Mux, ResetInserter, Signal
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from tritloom.firmware.isa import DescriptorOp
from tritloom.rtl.memory.axi import burst_layout
from tritloom.rtl.memory.interface import memory_members
from tritloom.rtl.memory.parameters import ADDRESS_BITS, DESCRIPTORS, DEST_BITS, REQUEST_QUEUE, START_QUEUE, MemoryParameters
from tritloom.rtl.stream import Fifo

__all__ = ["DESCRIPTOR", "BurstSplitter", "DescriptorProgram", "Requester"]

RUN_BITS = 32
"""Width of the length of a run of weights, in beats."""

DESCRIPTOR = data.StructLayout({"op": 3, "dest": 2, "reserved0": 3, "target": 8, "reserved1": 16, "count": 32})
"""END: stop. BASE: the running address becomes `count` (bytes). STREAM: send `count` beats to `dest`. BACK: the running
address goes back by `count` beats, modulo all.
LOOP: the entries from `target` up to this one run `count` times in all; loops do not nest."""


def _run_layout(beat_bits: int) -> data.StructLayout:
    """Consecutive beats of the weight stream for one consumer."""
    return data.StructLayout({"beat": beat_bits, "beats": RUN_BITS, "dest": DEST_BITS})


class DescriptorProgram(wiring.Component):
    """Run descriptor programs and emit the runs of beats they describe.

    Latency: 4 cycles from `start` to the first entry's effect.

    Throughput: one entry every two cycles.

    Parameters
    ----------
    beat_bits : int
        Width of an address in beats; byte addresses of BASE are cut down to it.

    Members
    -------
    start : In(stream(8))
        Entry to begin at; a queue of 4.
    descriptor : In
        Write port of the program memory.
    o : Out(stream({"beat", "beats", "dest"}))
        Runs; one may be empty.
    active : Out(1)
        High while a program runs or waits.
    """

    def __init__(self, *, beat_bits):
        self._beat_bits = beat_bits
        super().__init__({
            "start": In(stream.Signature(8)),
            "descriptor": In(wiring.Signature({"addr": Out(8), "data": Out(64), "en": Out(1)})),
            "o": Out(stream.Signature(_run_layout(beat_bits))),
            "active": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.queue = queue = Fifo(8, START_QUEUE)
        m.submodules.entries = entries = memory.Memory(shape=64, depth=DESCRIPTORS, init=[])
        write = entries.write_port()
        read = entries.read_port()
        wiring.connect(m, wiring.flipped(self.start), queue.i)
        m.d.comb += [
            write.addr.eq(self.descriptor.addr),
            write.data.eq(self.descriptor.data),
            write.en.eq(self.descriptor.en),
        ]

        counter = Signal(8)
        running = Signal(self._beat_bits)
        turns_left = Signal(32)
        looping = Signal()
        entry = data.View(DESCRIPTOR, read.data)
        m.d.comb += [
            read.addr.eq(counter),
            read.en.eq(0),
            self.o.payload.beat.eq(running),
            self.o.payload.beats.eq(entry.count),
            self.o.payload.dest.eq(entry.dest),
        ]

        with m.FSM() as fsm:
            with m.State("idle"):
                m.d.comb += queue.o.ready.eq(1)
                m.d.sync += [counter.eq(queue.o.payload), looping.eq(0)]
                with m.If(queue.o.valid):
                    m.next = "fetch"
            with m.State("fetch"):
                m.d.comb += read.en.eq(1)
                m.next = "execute"
            with m.State("execute"):
                m.d.sync += counter.eq(counter + 1)
                m.next = "fetch"
                with m.Switch(entry.op):
                    with m.Case(DescriptorOp.BASE):
                        m.d.sync += running.eq(entry.count >> (ADDRESS_BITS - self._beat_bits))
                    with m.Case(DescriptorOp.BACK):
                        m.d.sync += running.eq(running - entry.count)
                    with m.Case(DescriptorOp.STREAM):
                        m.d.comb += self.o.valid.eq(1)
                        with m.If(~self.o.ready):
                            m.d.sync += counter.eq(counter)
                            m.next = "execute"
                        with m.Else():
                            m.d.sync += running.eq(running + entry.count)
                    with m.Case(DescriptorOp.LOOP):
                        m.d.sync += turns_left.eq(Mux(looping, turns_left, entry.count) - 1)
                        with m.If(Mux(looping, turns_left, entry.count) > 1):
                            m.d.sync += [looping.eq(1), counter.eq(entry.target)]
                        with m.Else():
                            m.d.sync += looping.eq(0)
                    with m.Default():
                        m.next = "idle"
        m.d.comb += self.active.eq((queue.level != 0) | ~fsm.ongoing("idle"))
        return m


class BurstSplitter(wiring.Component):
    """Cut runs of beats into bursts, no more of them than there is room for.

    No burst crosses a multiple of `boundary` beats. A burst waits until the beats requested and
    not yet released, with its own, are at most `credit`.

    Latency: 3 cycles from a run to its first burst.

    Throughput: one burst every two cycles, plus one cycle per run.

    Parameters
    ----------
    beat_bits : int
        Width of an address in beats.
    boundary : int
        Longest burst, and the multiple it does not cross; a power of two.
    credit : int
        Beats that may be outstanding or waiting, at least `boundary`.
    weight : int
        Mark the bursts carry.

    Members
    -------
    i : In(stream({"beat", "beats", "dest"})), o : Out(stream(burst_layout))
    release : In(1)
        A beat was consumed.
    active : Out(1)
        High while a run is not fully requested.
    """

    def __init__(self, *, beat_bits, boundary, credit, weight):
        if credit < boundary:
            raise ValueError(f"credit must be at least boundary ({boundary}), not {credit}")
        self._beat_bits = beat_bits
        self._boundary = boundary
        self._credit = credit
        self._weight = weight
        super().__init__({
            "i": In(stream.Signature(_run_layout(beat_bits))),
            "o": Out(stream.Signature(burst_layout(beat_bits, boundary.bit_length()))),
            "release": In(1),
            "active": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        beat = Signal(self._beat_bits)
        left = Signal.like(self.i.payload.beats)
        dest = Signal(2)
        size = Signal(range(self._boundary + 1))
        room = Signal(range(self._credit + 1), init=self._credit)
        spent = Signal.like(size)

        offset = beat[:exact_log2(self._boundary)]
        to_boundary = Signal.like(size)
        m.d.comb += to_boundary.eq(self._boundary - offset)
        m.d.sync += room.eq(room - spent + self.release)

        with m.If(self.o.ready):
            m.d.sync += self.o.valid.eq(0)
        with m.FSM() as fsm:
            with m.State("idle"):
                m.d.comb += self.i.ready.eq(1)
                m.d.sync += [beat.eq(self.i.payload.beat), left.eq(self.i.payload.beats), dest.eq(self.i.payload.dest)]
                with m.If(self.i.valid):
                    m.next = "measure"
            with m.State("measure"):
                m.d.sync += size.eq(Mux(left < to_boundary, left, to_boundary))
                m.next = "issue"
                with m.If(left == 0):
                    m.next = "idle"
            with m.State("issue"):
                with m.If((room >= size) & (~self.o.valid | self.o.ready)):
                    m.d.comb += spent.eq(size)
                    m.d.sync += [
                        self.o.valid.eq(1),
                        self.o.payload.beat.eq(beat),
                        self.o.payload.beats.eq(size),
                        self.o.payload.dest.eq(dest),
                        self.o.payload.weight.eq(self._weight),
                        beat.eq(beat + size),
                        left.eq(left - size),
                    ]
                    m.next = "measure"
        m.d.comb += self.active.eq(~fsm.ongoing("idle") | self.o.valid)
        return m


class Requester(wiring.Component):
    """Where bursts come from: the descriptor program for weights, the request queue for data."""

    def __init__(self, parameters: MemoryParameters):
        self._p = p = parameters
        shared = memory_members(p.mem_bytes)
        super().__init__({name: shared[name] for name in ("start", "descriptor", "read_request", "active")} | {
            "weight_burst": Out(stream.Signature(burst_layout(p.beat_bits, p.weight_burst.bit_length()))),
            "read_burst": Out(stream.Signature(burst_layout(p.beat_bits, p.read_burst.bit_length()))),
            "clear": In(1),
            "weight_release": In(1),
            "read_release": In(1),
        })

    def elaborate(self, platform):
        m, p = Module(), self._p
        clear = ResetInserter(self.clear)
        m.submodules.program = program = clear(DescriptorProgram(beat_bits=p.beat_bits))
        m.submodules.weight_splitter = weights = clear(BurstSplitter(
            beat_bits=p.beat_bits, boundary=p.weight_burst, credit=p.weight_fifo_beats, weight=1))
        m.submodules.queue = queue = Fifo(self.read_request.payload.shape(), REQUEST_QUEUE)
        m.submodules.read_splitter = reads = BurstSplitter(
            beat_bits=p.beat_bits, boundary=p.read_burst, credit=p.read_fifo_beats, weight=0)
        wiring.connect(m, wiring.flipped(self.descriptor), program.descriptor)
        wiring.connect(m, program.o, weights.i)
        wiring.connect(m, wiring.flipped(self.weight_burst), weights.o)
        wiring.connect(m, wiring.flipped(self.read_request), queue.i)
        wiring.connect(m, wiring.flipped(self.read_burst), reads.o)
        m.d.comb += [
            program.start.payload.eq(self.start.payload),
            program.start.valid.eq(self.start.valid & ~self.clear),
            self.start.ready.eq(program.start.ready & ~self.clear),
            reads.i.valid.eq(queue.o.valid),
            reads.i.payload.beat.eq(queue.o.payload.addr >> exact_log2(p.mem_bytes)),
            reads.i.payload.beats.eq(queue.o.payload.beats),
            queue.o.ready.eq(reads.i.ready),
            weights.release.eq(self.weight_release),
            reads.release.eq(self.read_release),
            self.active.eq(program.active | weights.active),
        ]
        return m
