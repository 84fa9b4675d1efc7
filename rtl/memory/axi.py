"""AXI4 masters for one memory port: a reader that never stalls the bus and a posted writer.

The members are plain signals named as AXI names them, so that a generated top level carries them
under the names that other tools expect.
"""

from __future__ import annotations

from amaranth import Const, Module, ResetInserter, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from tritloom.firmware.registers import PAGE_BYTES, PORT_ADDRESS_BITS
from tritloom.rtl.once import once
from tritloom.rtl.stream import Fifo, Slice

__all__ = ["PAGE_BYTES", "AxiReader", "AxiWriter", "axi_members", "axi_prefix", "burst_layout"]

_INCR = 1
_OKAY = 0


def _read_members(data_bytes: int) -> dict:
    return {
        "arvalid": Out(1), "arready": In(1), "araddr": Out(PORT_ADDRESS_BITS), "arlen": Out(8), "arsize": Out(3), "arburst": Out(2),
        "rvalid": In(1), "rready": Out(1), "rdata": In(8 * data_bytes), "rresp": In(2), "rlast": In(1),
    }


def _write_members(data_bytes: int) -> dict:
    return {
        "awvalid": Out(1), "awready": In(1), "awaddr": Out(PORT_ADDRESS_BITS), "awlen": Out(8), "awsize": Out(3), "awburst": Out(2),
        "wvalid": Out(1), "wready": In(1), "wdata": Out(8 * data_bytes), "wstrb": Out(data_bytes), "wlast": Out(1),
        "bvalid": In(1), "bready": Out(1), "bresp": In(2),
    }


def axi_prefix(port: int) -> str:
    """Prefix of port `port`'s signals: `m0_axi_` and so on."""
    return f"m{port}_axi_"


def axi_members(*, mem_bytes: int, mem_ports: int) -> dict:
    """Signature members of `mem_ports` AXI4 masters that together carry `mem_bytes` per beat."""
    data_bytes = mem_bytes // mem_ports
    members = _read_members(data_bytes) | _write_members(data_bytes)
    return {axi_prefix(port) + name: member for port in range(mem_ports) for name, member in members.items()}


def burst_layout(beat_bits: int, beats_bits: int) -> data.StructLayout:
    """A burst of `beats` from beat address `beat`, for the weight stream (with `dest`) or for a data read."""
    return data.StructLayout({"beat": beat_bits, "beats": beats_bits, "dest": 2, "weight": 1})


@once
class AxiReader(wiring.Component):
    """Turn bursts into AXI4 reads and sort the returned beats into a weight and a data FIFO.

    Whoever requests bursts holds credit for every beat, so the read channel never waits for a
    FIFO: `rready` falls only when no read is outstanding. Reads carry one ID and return in order;
    a queue of tags remembers whose each burst is.

    Latency: 2 cycles from `request` to `arvalid`; 2 cycles from a beat to its FIFO's output.

    Throughput: one beat per cycle, one burst per cycle.

    Parameters
    ----------
    data_bytes : int
        Width of the port, a power of two.
    beat_bits, beats_bits : int
        Widths of a burst's address (in beats) and length.
    weight_depth, data_depth : int
        Beats the two FIFOs hold.
    outstanding : int
        Bursts that may wait for their data.

    Members
    -------
    request : In(stream(burst_layout)), base : In(PORT_ADDRESS_BITS)
        Byte address of this port's stripe of the memory, a multiple of 4 KiB.
    weights : Out(stream), data : Out(stream)
        Beats in order; `weights` carries the burst's `dest` with each.
    clear : In(1)
        Empties the weight FIFO and drops arriving weight beats. `weights_outstanding` falls when none are left.
    weight_beat, data_beat : Out(1)
        A beat entered the respective FIFO.
    busy : Out(1)
        High from two cycles after a burst is accepted until its last beat has come.
    error : Out(1)
        A beat came with an error response.
    ar..., r... : AXI4
    """

    def __init__(self, *, data_bytes, beat_bits, beats_bits, weight_depth, data_depth, outstanding):
        self._size = exact_log2(data_bytes)
        self._weight_depth = weight_depth
        self._data_depth = data_depth
        self._outstanding = outstanding
        self._weight_layout = data.StructLayout({"data": 8 * data_bytes, "dest": 2})
        self._data_shape = 8 * data_bytes
        self._burst = burst_layout(beat_bits, beats_bits)
        super().__init__({
            "request": In(stream.Signature(self._burst)),
            "base": In(PORT_ADDRESS_BITS),
            "weights": Out(stream.Signature(self._weight_layout)),
            "data": Out(stream.Signature(self._data_shape)),
            "clear": In(1),
            "weights_outstanding": Out(1),
            "weight_beat": Out(1),
            "data_beat": Out(1),
            "busy": Out(1),
            "error": Out(1),
        } | _read_members(data_bytes))

    def elaborate(self, platform):
        m = Module()
        m.submodules.slice = request = Slice(self._burst)
        m.submodules.tags = tags = Fifo(data.StructLayout({"dest": 2, "weight": 1}), self._outstanding)
        m.submodules.weight_fifo = weight_fifo = ResetInserter(self.clear)(Fifo(self._weight_layout, self._weight_depth))
        m.submodules.data_fifo = data_fifo = Fifo(self._data_shape, self._data_depth)
        wiring.connect(m, wiring.flipped(self.request), request.i)
        wiring.connect(m, wiring.flipped(self.weights), weight_fifo.o)
        wiring.connect(m, wiring.flipped(self.data), data_fifo.o)

        # Requests: address and tag leave together.
        burst = request.o.payload
        free = ~self.arvalid | self.arready
        m.d.comb += [
            self.arsize.eq(self._size),
            self.arburst.eq(_INCR),
            request.o.ready.eq(free & tags.i.ready),
            tags.i.valid.eq(request.o.valid & free),
            tags.i.payload.dest.eq(burst.dest),
            tags.i.payload.weight.eq(burst.weight),
        ]
        with m.If(free):
            m.d.sync += self.arvalid.eq(request.o.valid & tags.i.ready)
        with m.If(request.o.valid & request.o.ready):
            m.d.sync += [
                self.araddr.eq(self.base + (burst.beat << self._size)),
                self.arlen.eq(burst.beats - 1),
            ]

        # Beats: the oldest tag tells where they go.
        tag = tags.o.payload
        beat = self.rvalid & self.rready
        m.d.comb += [
            self.rready.eq(tags.o.valid),
            tags.o.ready.eq(self.rvalid & self.rlast),
            self.weight_beat.eq(beat & tag.weight & ~self.clear),
            self.data_beat.eq(beat & ~tag.weight),
            self.error.eq(beat & (self.rresp != _OKAY)),
            weight_fifo.i.valid.eq(self.weight_beat),
            weight_fifo.i.payload.data.eq(self.rdata),
            weight_fifo.i.payload.dest.eq(tag.dest),
            data_fifo.i.valid.eq(self.data_beat),
            data_fifo.i.payload.eq(self.rdata),
        ]

        # Weight bursts between `request` and their last beat: the tag queue's, its output register's and the slice's two.
        waiting = Signal(range(self._outstanding + 4))
        entered = self.request.valid & self.request.ready & self.request.payload.weight
        left = beat & self.rlast & tag.weight
        m.d.sync += waiting.eq(waiting + entered - left)
        m.d.comb += self.weights_outstanding.eq(waiting != 0)
        m.d.sync += self.busy.eq(request.o.valid | self.arvalid | tags.level.any())
        return m


@once
class AxiWriter(wiring.Component):
    """Write single beats over AXI4 and count the responses that are due.

    Latency: 1 cycle from `i` to `awvalid` and `wvalid`.

    Throughput: one beat every two cycles.

    Parameters
    ----------
    data_bytes : int
        Width of the port, a power of two.
    beat_bits : int
        Width of an address in beats.
    outstanding : int
        Writes that may wait for their response.

    Members
    -------
    i : In(stream({"beat", "data", "strb"})), base : In(PORT_ADDRESS_BITS)
    hold : In(1)
        Accept no more, from two cycles later on.
    pending : Out(1)
        High from the cycle after a beat is accepted until its response has come.
    busy : Out(1)
        The same, a cycle later, and while an address or a beat is offered.
    error : Out(1)
        An error response came.
    aw..., w..., b... : AXI4
    """

    def __init__(self, *, data_bytes, beat_bits, outstanding=32):
        self._size = exact_log2(data_bytes)
        self._outstanding = outstanding
        super().__init__({
            "i": In(stream.Signature(data.StructLayout({"beat": beat_bits, "data": 8 * data_bytes, "strb": data_bytes}))),
            "base": In(PORT_ADDRESS_BITS),
            "hold": In(1),
            "pending": Out(1),
            "busy": Out(1),
            "error": Out(1),
        } | _write_members(data_bytes))

    def elaborate(self, platform):
        m = Module()
        due, room = Signal(range(self._outstanding + 1)), Signal()
        accept = self.i.valid & self.i.ready
        response = self.bvalid & self.bready
        m.d.comb += [
            self.awlen.eq(0),
            self.awsize.eq(self._size),
            self.awburst.eq(_INCR),
            self.wlast.eq(1),
            self.bready.eq(Const(1)),
            self.i.ready.eq(~self.awvalid & ~self.wvalid & room),
            self.pending.eq(due != 0),
            self.error.eq(response & (self.bresp != _OKAY)),
        ]
        m.d.sync += [due.eq(due + accept - response), room.eq((due != self._outstanding) & ~self.hold)]  # two cycles lie between beats
        m.d.sync += self.busy.eq(self.awvalid | self.wvalid | due.any())
        with m.If(self.awready):
            m.d.sync += self.awvalid.eq(0)
        with m.If(self.wready):
            m.d.sync += self.wvalid.eq(0)
        with m.If(accept):
            m.d.sync += [
                self.awvalid.eq(1),
                self.wvalid.eq(1),
                self.awaddr.eq(self.base + (self.i.payload.beat << self._size)),
                self.wdata.eq(self.i.payload.data),
                self.wstrb.eq(self.i.payload.strb),
            ]
        return m

