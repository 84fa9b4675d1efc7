"""The memory system on the chip."""

from __future__ import annotations

from collections.abc import Iterable

from amaranth import Module, Mux, ResetInserter, Signal
from amaranth.lib import data, memory, wiring
from amaranth.utils import exact_log2

from tritloom.rtl.memory.interface import weight_layout
from tritloom.rtl.memory.parameters import OnChipParameters
from tritloom.rtl.memory.system import MemorySystem
from tritloom.rtl.stream import Fifo

__all__ = ["OnChipMemory"]


class OnChipMemory(MemorySystem):
    """Serve weights, data reads and writes from on-chip RAM, as `MemorySystem` says.

    The RAM has one address: a write goes first, then a data beat, then a weight beat. It so fits
    memories with a single port as well. Reads beyond it return anything, writes vanish or alias.

    Latency: 9 cycles from `read_request` to `read_data`.

    Throughput: one beat per cycle, of whatever kind.

    Parameters
    ----------
    parameters : OnChipParameters
    init : iterable of int
        Beats the memory starts with.

    Members
    -------
    ... : MemorySystem
    """

    def __init__(self, parameters: OnChipParameters, init: Iterable[int] = ()):
        self._p, self._init = parameters, init
        super().__init__(parameters, {})

    def elaborate(self, platform):
        m = Module()
        requester = self._requester(m)
        m.submodules.weight_fifo = weight_fifo = ResetInserter(self.flushing)(
            Fifo(weight_layout(self._p.mem_bytes), self._p.weight_fifo_beats))
        m.submodules.data_fifo = data_fifo = Fifo(8 * self._p.mem_bytes, self._p.read_fifo_beats)
        attributes = {"ram_style": "ultra"} if self._p.ultra else {}
        m.submodules.ram = ram = memory.Memory(shape=8 * self._p.mem_bytes, depth=self._p.depth, init=self._init, attrs=attributes)
        write_port = ram.write_port(granularity=8)
        read_port = ram.read_port()
        wiring.connect(m, wiring.flipped(self.read_data), data_fifo.o)
        m.d.comb += [
            self.weights_o.payload.eq(weight_fifo.o.payload),
            self.weights_o.valid.eq(weight_fifo.o.valid & ~self.flushing),
            weight_fifo.o.ready.eq(self.weights_o.ready),
        ]

        weight = self._walk(m, requester.weight_burst, self.flushing)
        read = self._walk(m, requester.read_burst, 0)

        # Cycle 0: one of the three gets the memory.
        write_beat = self.write.payload.addr >> exact_log2(self._p.mem_bytes)
        m.d.comb += [
            self.write.ready.eq(1),
            read.grant.eq(read.valid & ~self.write.valid),
            weight.grant.eq(weight.valid & ~self.write.valid & ~read.valid),
        ]
        address = Signal(range(max(self._p.depth, 2)))
        s1_write, s1_read, s1_weight = Signal(), Signal(), Signal()
        s1_data = Signal(8 * self._p.mem_bytes)
        s1_strb = Signal(self._p.mem_bytes)
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

    def _walk(self, m: Module, bursts, clear):
        """Walk through bursts beat by beat: an object with `valid`, `beat`, `dest` and `grant`."""
        walker = Signal(data.StructLayout({"beat": self._p.beat_bits, "left": bursts.payload.beats.shape().width, "dest": 2}))
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
