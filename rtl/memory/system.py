"""The memory system: a prefetched weight stream, data reads and posted writes, over AXI4 or on-chip RAM.

A descriptor program, run ahead of the consumers, says what the weight stream is. Both forms have
the same logical ports; the on-chip form only lacks the bus.
"""

from __future__ import annotations

from amaranth import Cat, Module, Mux, ResetInserter, Signal
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from tritloom.firmware.isa import DescriptorOp
from tritloom.rtl.memory.axi import PAGE_BYTES, AxiReader, AxiWriter, axi_members, axi_prefix, burst_layout
from tritloom.rtl.stream import Fifo

__all__ = ["AxiMemory", "DESCRIPTOR", "DESCRIPTORS", "OnChipMemory", "memory_members", "weight_layout"]

ADDRESS_BITS = 32
"""Width of logical byte addresses."""

DESCRIPTORS = 256
"""Entries of the descriptor program memory."""

START_QUEUE = 4
"""Programs that may wait to be run."""

REQUEST_QUEUE = 8
"""Data reads that may wait."""

MAX_BURST = 64
"""Beats of the longest burst."""


DESCRIPTOR = data.StructLayout({"op": 3, "dest": 2, "reserved0": 3, "target": 8, "reserved1": 16, "count": 32})
"""END: stop. BASE: the running address becomes `count` (bytes). STREAM: send `count` beats to `dest`. BACK: the running
address goes back by `count` beats, modulo all.
LOOP: the entries from `target` up to this one run `count` times in all; loops do not nest."""


def weight_layout(mem_bytes: int) -> data.StructLayout:
    """A beat of the weight stream and who takes it: 0 vector unit, 1 ternary engine, 2 dot engine."""
    return data.StructLayout({"data": 8 * mem_bytes, "dest": 2})


def memory_members(mem_bytes: int, mem_ports: int = 1) -> dict:
    """Logical ports that both forms of the memory system share."""
    return {
        "weights_o": Out(stream.Signature(weight_layout(mem_bytes))),
        "start": In(stream.Signature(8)),
        "descriptor": In(wiring.Signature({"addr": Out(8), "data": Out(64), "en": Out(1)})),
        "flush": In(1),
        "flushing": Out(1),
        "active": Out(1),
        "read_request": In(stream.Signature(data.StructLayout({"addr": ADDRESS_BITS, "beats": 16}))),
        "read_data": Out(stream.Signature(8 * mem_bytes)),
        "write": In(stream.Signature(data.StructLayout({"addr": ADDRESS_BITS, "data": 8 * mem_bytes, "strb": mem_bytes}))),
        "writes_pending": Out(1),
        "weight_beat": Out(1),
        "data_beat": Out(1),
        "hold": In(1),
        "busy": Out(2 * mem_ports),
        "error": Out(2 * mem_ports),
    }


def _power_of_two(name: str, value: int, low: int, high: int) -> None:
    if not isinstance(value, int) or not low <= value <= high or value & (value - 1):
        raise ValueError(f"{name} must be a power of two from {low} to {high}, not {value!r}")


def _run_layout(beat_bits: int) -> data.StructLayout:
    return data.StructLayout({"beat": beat_bits, "beats": 32, "dest": 2})


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
        left = Signal(32)
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


class _Requester(wiring.Component):
    """Where bursts come from: the descriptor program for weights, the request queue for data."""

    def __init__(self, *, mem_bytes, weight_fifo_beats, read_fifo_beats, weight_burst, read_burst):
        beat_bits = ADDRESS_BITS - exact_log2(mem_bytes)
        self._beat_bits = beat_bits
        self._shift = exact_log2(mem_bytes)
        self._weight = {"beat_bits": beat_bits, "boundary": weight_burst, "credit": weight_fifo_beats, "weight": 1}
        self._read = {"beat_bits": beat_bits, "boundary": read_burst, "credit": read_fifo_beats, "weight": 0}
        shared = memory_members(mem_bytes)
        super().__init__({name: shared[name] for name in ("start", "descriptor", "read_request", "active")} | {
            "weight_burst": Out(stream.Signature(burst_layout(beat_bits, weight_burst.bit_length()))),
            "read_burst": Out(stream.Signature(burst_layout(beat_bits, read_burst.bit_length()))),
            "clear": In(1),
            "weight_release": In(1),
            "read_release": In(1),
        })

    def elaborate(self, platform):
        m = Module()
        clear = ResetInserter(self.clear)
        m.submodules.program = program = clear(DescriptorProgram(beat_bits=self._beat_bits))
        m.submodules.weight_splitter = weights = clear(BurstSplitter(**self._weight))
        m.submodules.queue = queue = Fifo(self.read_request.payload.shape(), REQUEST_QUEUE)
        m.submodules.read_splitter = reads = BurstSplitter(**self._read)
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
            reads.i.payload.beat.eq(queue.o.payload.addr >> self._shift),
            reads.i.payload.beats.eq(queue.o.payload.beats),
            queue.o.ready.eq(reads.i.ready),
            weights.release.eq(self.weight_release),
            reads.release.eq(self.read_release),
            self.active.eq(program.active | weights.active),
        ]
        return m


class _Memory(wiring.Component):
    """What both forms have in common: parameters, and the connection of the requester."""

    def __init__(self, *, mem_bytes, mem_ports, weight_fifo_beats, read_fifo_beats, burst_beats, members):
        _power_of_two("mem_bytes", mem_bytes, 4, 512)
        _power_of_two("mem_ports", mem_ports, 1, mem_bytes // 4)
        _power_of_two("weight_fifo_beats", weight_fifo_beats, 4, 65536)
        _power_of_two("read_fifo_beats", read_fifo_beats, 4, 4096)
        _power_of_two("burst_beats", burst_beats, 1, 256)
        self._mem_bytes = mem_bytes
        self._mem_ports = mem_ports
        self._weight_fifo_beats = weight_fifo_beats
        self._read_fifo_beats = read_fifo_beats
        longest = min(burst_beats, PAGE_BYTES * mem_ports // mem_bytes)
        self._weight_burst = min(longest, weight_fifo_beats // 2)
        self._read_burst = min(longest, read_fifo_beats // 2)
        self._beat_bits = ADDRESS_BITS - exact_log2(mem_bytes)
        super().__init__(memory_members(mem_bytes, mem_ports) | members)

    def _requester(self, m: Module) -> _Requester:
        requester = _Requester(
            mem_bytes=self._mem_bytes, weight_fifo_beats=self._weight_fifo_beats, read_fifo_beats=self._read_fifo_beats,
            weight_burst=self._weight_burst, read_burst=self._read_burst)
        m.submodules.requester = ResetInserter(self.hold)(requester)
        for name in ("start", "descriptor", "read_request"):
            wiring.connect(m, wiring.flipped(getattr(self, name)), getattr(requester, name))
        m.d.comb += [
            self.active.eq(requester.active),
            requester.clear.eq(self.flushing),
            requester.weight_release.eq(self.weights_o.valid & self.weights_o.ready),
            requester.read_release.eq(self.read_data.valid & self.read_data.ready),
        ]
        return requester


_CONTRACT = """
    The weight stream is what descriptor programs (`DESCRIPTOR`) say, prefetched as far as its FIFO
    has room. `flush` ends all programs, running and queued, and drops what was prefetched; while
    `flushing` is high no start is taken, then the stream is as after reset. Data reads go first and
    return strictly in order. A data read requested after `writes_pending` fell sees the data written.
    Consumers must take data they requested. All addresses are multiples of `mem_bytes`. Before a reset, `hold` is high until all of
    `busy` is low: so no transfer at a port is cut off.
"""

_MEMBERS = """
    weights_o : Out(stream({"data", "dest"}))
        Weight beats in the order of the programs.
    start : In(stream(8))
        Entry of the program to run next; a queue of 4.
    descriptor : In({"addr", "data", "en"})
        Write port of the program memory (256 entries).
    flush : In(1), flushing : Out(1)
        Pulse, and high from the next cycle until done.
    active : Out(1)
        High while anything a program described is not yet requested.
    read_request : In(stream({"addr", "beats"})), read_data : Out(stream)
        A queue of 8 requests.
    write : In(stream({"addr", "data", "strb"}))
        One beat each, posted.
    writes_pending : Out(1)
        High from the cycle after a beat was accepted until memory has it.
    weight_beat, data_beat : Out(1)
        A beat entered the weight FIFO; a beat entered the data FIFO.
    hold : In(1)
        Request and write no more, from four cycles later on; what comes back goes nowhere. Only a reset ends this.
    busy : Out(2 * ports)
        Reads under way, a bit for a port, then writes, the same.
    error : Out(2 * ports)
        Memory answered a read, or a write, with an error; in the same bits.
"""


class AxiMemory(_Memory):
    __doc__ = f"""Serve weights, data reads and writes from memory behind AXI4 ports.
{_CONTRACT}
    Logical beat b lies on every port i, at `port_base`_i + b*(mem_bytes/mem_ports), and holds bytes
    i*(mem_bytes/mem_ports) and up of the beat. Bursts are INCR, at most `burst_beats` long, and never
    cross 4 KiB. Ports run apart by what the FIFOs hold, so their stalls overlap.

    Latency: 8 cycles from `read_request` to `arvalid`, 2 from a beat to `read_data`.

    Throughput: one beat per cycle; a write every two cycles.

    Parameters
    ----------
    mem_bytes : int
        Bytes of a beat, over all ports.
    mem_ports : int
        AXI4 ports.
    weight_fifo_beats : int
        Weight beats prefetched.
    read_fifo_beats : int
        Data beats requested ahead of their consumer.
    burst_beats : int
        Longest burst.
    outstanding : int
        Bursts that may wait for data, per port.

    Members
    -------{_MEMBERS}
    port_base<i> : In(32)
        Byte address of port i's stripe, a multiple of 4 KiB.
    m<i>_axi_... : AXI4 (`axi_members`)
    """

    def __init__(self, *, mem_bytes, mem_ports, weight_fifo_beats, read_fifo_beats=64, burst_beats=MAX_BURST, outstanding=16):
        _power_of_two("outstanding", outstanding, 1, 64)
        self._outstanding = outstanding
        super().__init__(mem_bytes=mem_bytes, mem_ports=mem_ports, weight_fifo_beats=weight_fifo_beats,
                         read_fifo_beats=read_fifo_beats, burst_beats=burst_beats, members={
                             **{f"port_base{port}": In(32) for port in range(mem_ports)},
                             **axi_members(mem_bytes=mem_bytes, mem_ports=mem_ports)})

    def elaborate(self, platform):
        m = Module()
        requester = self._requester(m)
        readers = self._readers(m)
        writers = self._writers(m)
        self._issue(m, requester, readers)

        # Beats: taken from all ports at once.
        width = 8 * self._mem_bytes // self._mem_ports
        for o, parts in ((self.weights_o, [reader.weights for reader in readers]), (self.read_data, [reader.data for reader in readers])):
            m.d.comb += o.valid.eq(Cat(part.valid for part in parts).all())
            m.d.comb += [part.ready.eq(o.valid & o.ready) for part in parts]
        with m.If(self.flushing):
            m.d.comb += self.weights_o.valid.eq(0)
        m.d.comb += [
            self.weights_o.payload.data.eq(Cat(reader.weights.payload.data for reader in readers)),
            self.weights_o.payload.dest.eq(readers[0].weights.payload.dest),
            self.read_data.payload.eq(Cat(reader.data.payload for reader in readers)),
        ]

        # Writes: given to all ports at once that have bytes of it.
        ready = Cat(writer.i.ready for writer in writers).all()
        m.d.comb += [self.write.ready.eq(ready), self.writes_pending.eq(Cat(writer.pending for writer in writers).any())]
        for port, writer in enumerate(writers):
            m.d.comb += [
                writer.i.valid.eq(self.write.valid & ready & writer.i.payload.strb.any()),
                writer.i.payload.beat.eq(self.write.payload.addr >> exact_log2(self._mem_bytes)),
                writer.i.payload.data.eq(self.write.payload.data.word_select(port, width)),
                writer.i.payload.strb.eq(self.write.payload.strb.word_select(port, width // 8)),
            ]

        # Flush: until no weight burst is outstanding.
        with m.If(self.flush):
            m.d.sync += self.flushing.eq(1)
        with m.Elif(~Cat(reader.weights_outstanding for reader in readers).any()):
            m.d.sync += self.flushing.eq(0)
        m.d.comb += [
            self.weight_beat.eq(readers[0].weight_beat),
            self.data_beat.eq(readers[0].data_beat),
            self.busy.eq(Cat(unit.busy for unit in readers + writers)),
            self.error.eq(Cat(unit.error for unit in readers + writers)),
            *(writer.hold.eq(self.hold) for writer in writers),
        ]
        return m

    def _readers(self, m: Module) -> list[AxiReader]:
        readers = []
        for port in range(self._mem_ports):
            reader = AxiReader(
                data_bytes=self._mem_bytes // self._mem_ports, beat_bits=self._beat_bits,
                beats_bits=max(self._weight_burst, self._read_burst).bit_length(), weight_depth=self._weight_fifo_beats,
                data_depth=self._read_fifo_beats, outstanding=self._outstanding)
            m.submodules[f"reader{port}"] = reader
            m.d.comb += reader.clear.eq(self.flushing)
            self._attach(m, reader, port, ("ar", "r"))
            readers.append(reader)
        return readers

    def _writers(self, m: Module) -> list[AxiWriter]:
        writers = []
        for port in range(self._mem_ports):
            writer = AxiWriter(data_bytes=self._mem_bytes // self._mem_ports, beat_bits=self._beat_bits)
            m.submodules[f"writer{port}"] = writer
            self._attach(m, writer, port, ("aw", "w", "b"))
            writers.append(writer)
        return writers

    def _attach(self, m: Module, unit, port: int, channels: tuple[str, ...]) -> None:
        """Wire a unit's AXI signals to those of the port, and give it its base address."""
        m.d.comb += unit.base.eq(getattr(self, f"port_base{port}"))
        for name, member in self.signature.members.items():
            signal = name.removeprefix(axi_prefix(port))
            if name == signal or signal not in unit.signature.members or not signal.startswith(channels):
                continue
            outer, inner = getattr(self, name), getattr(unit, signal)
            m.d.comb += outer.eq(inner) if member.flow == Out else inner.eq(outer)

    def _issue(self, m: Module, requester: _Requester, readers: list[AxiReader]) -> None:
        """Give one burst to all ports when all can take it, data before weights."""
        ready = Cat(reader.request.ready for reader in readers).all()
        weight, read = requester.weight_burst, requester.read_burst
        m.d.comb += [read.ready.eq(ready), weight.ready.eq(ready & ~read.valid & ~self.flushing)]
        for reader in readers:
            m.d.comb += reader.request.valid.eq(ready & (read.valid | (weight.valid & ~self.flushing)))
            for field in ("beat", "beats", "dest", "weight"):
                m.d.comb += getattr(reader.request.payload, field).eq(
                    Mux(read.valid, getattr(read.payload, field), getattr(weight.payload, field)))


class OnChipMemory(_Memory):
    __doc__ = f"""Serve weights, data reads and writes from on-chip RAM.
{_CONTRACT}
    The RAM has one address: a write goes first, then a data beat, then a weight beat. It so fits
    memories with a single port as well.

    Latency: 9 cycles from `read_request` to `read_data`.

    Throughput: one beat per cycle, of whatever kind.

    Parameters
    ----------
    mem_bytes : int
        Bytes of a beat.
    size_bytes : int
        Bytes of the memory, a multiple of `mem_bytes`. Reads beyond it return anything, writes vanish or alias.
    weight_fifo_beats : int
        Weight beats prefetched.
    read_fifo_beats : int
        Data beats requested ahead of their consumer.
    init : iterable of int
        Beats the memory starts with.
    ram_style : str
        Attribute for the tool, such as "ultra" or "huge"; none if empty.

    Members
    -------{_MEMBERS}
    """

    def __init__(self, *, mem_bytes, size_bytes, weight_fifo_beats, read_fifo_beats=16, init=(), ram_style=""):
        if not isinstance(size_bytes, int) or size_bytes <= 0 or size_bytes % mem_bytes:
            raise ValueError(f"size_bytes must be a positive multiple of mem_bytes ({mem_bytes}), not {size_bytes!r}")
        self._depth = size_bytes // mem_bytes
        self._init = init
        self._ram_style = ram_style
        super().__init__(mem_bytes=mem_bytes, mem_ports=1, weight_fifo_beats=weight_fifo_beats, read_fifo_beats=read_fifo_beats,
                         burst_beats=16, members={})

    def elaborate(self, platform):
        m = Module()
        requester = self._requester(m)
        m.submodules.weight_fifo = weight_fifo = ResetInserter(self.flushing)(Fifo(weight_layout(self._mem_bytes), self._weight_fifo_beats))
        m.submodules.data_fifo = data_fifo = Fifo(8 * self._mem_bytes, self._read_fifo_beats)
        attributes = {"ram_style": self._ram_style} if self._ram_style else {}
        m.submodules.ram = ram = memory.Memory(shape=8 * self._mem_bytes, depth=self._depth, init=self._init, attrs=attributes)
        write_port = ram.write_port(granularity=8)
        read_port = ram.read_port()
        wiring.connect(m, wiring.flipped(self.read_data), data_fifo.o)
        m.d.comb += [
            self.weights_o.payload.eq(weight_fifo.o.payload),
            self.weights_o.valid.eq(weight_fifo.o.valid & ~self.flushing),
            weight_fifo.o.ready.eq(self.weights_o.ready),
        ]

        weight = self._walker(m, requester.weight_burst, self.flushing)
        read = self._walker(m, requester.read_burst, 0)

        # Cycle 0: one of the three gets the memory.
        write_beat = self.write.payload.addr >> exact_log2(self._mem_bytes)
        m.d.comb += [
            self.write.ready.eq(1),
            read.grant.eq(read.valid & ~self.write.valid),
            weight.grant.eq(weight.valid & ~self.write.valid & ~read.valid),
        ]
        address = Signal(range(max(self._depth, 2)))
        s1_write, s1_read, s1_weight = Signal(), Signal(), Signal()
        s1_data = Signal(8 * self._mem_bytes)
        s1_strb = Signal(self._mem_bytes)
        s1_dest = Signal(2)
        m.d.sync += [
            s1_write.eq(self.write.valid),
            s1_read.eq(read.grant),
            s1_weight.eq(weight.grant & ~self.flushing),
            s1_dest.eq(weight.dest),
            address.eq(Mux(self.write.valid, write_beat, Mux(read.valid, read.beat, weight.beat))),
        ]
        with m.If(self.write.valid):
            m.d.sync += [s1_data.eq(self.write.payload.data), s1_strb.eq(self.write.payload.strb)]

        # Cycle 1: the memory's own register.
        s2_read, s2_weight, s2_dest = Signal(), Signal(), Signal(2)
        m.d.comb += [
            write_port.addr.eq(address),
            write_port.data.eq(s1_data),
            write_port.en.eq(Mux(s1_write, s1_strb, 0)),
            read_port.addr.eq(address),
            read_port.en.eq(s1_read | s1_weight),
            self.writes_pending.eq(s1_write),
        ]
        m.d.sync += [s2_read.eq(s1_read), s2_weight.eq(s1_weight & ~self.flushing), s2_dest.eq(s1_dest)]

        # Cycle 2: into the FIFO that holds credit for it.
        m.d.comb += [
            self.weight_beat.eq(s2_weight & ~self.flushing),
            self.data_beat.eq(s2_read),
            weight_fifo.i.valid.eq(self.weight_beat),
            weight_fifo.i.payload.data.eq(read_port.data),
            weight_fifo.i.payload.dest.eq(s2_dest),
            data_fifo.i.valid.eq(self.data_beat),
            data_fifo.i.payload.eq(read_port.data),
        ]

        # Flush: the beats on their way are stopped in each cycle's register, so one cycle is enough.
        m.d.sync += self.flushing.eq(self.flush)
        return m

    def _walker(self, m: Module, bursts, clear):
        """Walk through bursts beat by beat: an object with `valid`, `beat`, `dest` and `grant`."""
        walker = Signal(data.StructLayout({"beat": self._beat_bits, "left": bursts.payload.beats.shape().width, "dest": 2}))
        grant = Signal()
        view = _Walker(walker.left != 0, walker.beat, walker.dest, grant)
        m.d.comb += bursts.ready.eq((walker.left == 0) | ((walker.left == 1) & grant))
        with m.If(grant):
            m.d.sync += [walker.beat.eq(walker.beat + 1), walker.left.eq(walker.left - 1)]
        with m.If(bursts.valid & bursts.ready):
            m.d.sync += [walker.beat.eq(bursts.payload.beat), walker.left.eq(bursts.payload.beats), walker.dest.eq(bursts.payload.dest)]
        with m.If(clear):
            m.d.sync += walker.left.eq(0)
        return view


class _Walker:
    def __init__(self, valid, beat, dest, grant):
        self.valid = valid
        self.beat = beat
        self.dest = dest
        self.grant = grant
