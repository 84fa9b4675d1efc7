"""Proofs of the memory system's parts on small parameters, and that a part with a mistake is refuted."""

import pytest
from amaranth import Array, C, Cat, Elaboratable, Module, Mux, ResetInserter, Signal
from amaranth.asserts import AnyConst
from amaranth.hdl import Assert, Assume
from properties import AxiSlave, granted, ordered, queued, steady, within

import formal
from tritloom.rtl.memory import axi, interface, router, weight_stream

pytestmark = [pytest.mark.formal, pytest.mark.filterwarnings("ignore::amaranth.hdl.UnusedElaboratable")]


class SplitterProperties(Elaboratable):
    """Bursts cover exactly the runs, each up to the next boundary or the run's end, and never ask for more than there is room for."""

    def __init__(self, code, *, beat_bits=4, boundary=4, credit=5):
        self.boundary, self.credit = boundary, credit
        self.dut = dut = code.BurstSplitter(beat_bits=beat_bits, boundary=boundary, credit=credit, weight=1)
        self.ports = [dut.i.valid, dut.i.payload, dut.o.ready, dut.release]

    def elaborate(self, platform):
        m = Module()
        m.submodules.dut = dut = self.dut
        i, o, burst = dut.i, dut.o, dut.o.payload
        waited, fresh = steady(m, Assert, o.valid, o.ready, burst), Signal()
        m.d.comb += fresh.eq(o.valid & ~waited)

        # What is left of the run that was taken last, as its bursts are offered.
        beat, left, dest = Signal.like(i.payload.beat), Signal.like(i.payload.beats), Signal.like(i.payload.dest)
        with m.If(i.valid & i.ready):
            m.d.comb += Assert((left == 0) & ~fresh)
            m.d.sync += [beat.eq(i.payload.beat), left.eq(i.payload.beats), dest.eq(i.payload.dest)]
        with m.Elif(fresh):
            to_boundary = self.boundary - beat % self.boundary
            m.d.comb += Assert((left != 0) & (burst.beat == beat) & (burst.beats == Mux(left < to_boundary, left, to_boundary)) &
                               (burst.dest == dest) & burst.weight)
            m.d.sync += [beat.eq(beat + burst.beats), left.eq(left - burst.beats)]
        m.d.comb += Assert(dut.active | ((left == 0) & ~o.valid))

        # Credit: beats that were offered and not yet released; those of a burst that still waits cannot be.
        out = Signal(range(2 * self.credit))
        m.d.sync += out.eq(out + Mux(fresh, burst.beats, 0) - dut.release)
        m.d.comb += [Assume(~dut.release | (out > Mux(waited, burst.beats, 0))), Assert(out + Mux(fresh, burst.beats, 0) <= self.credit)]
        # All of it comes back: when nothing is out, what is left is soon offered.
        within(m, 3, ~o.valid & (left != 0) & (out == 0))
        return m


class WriterProperties(Elaboratable):
    """Every beat is offered once, as its address and its data, in order, and counted until it is answered; `hold` ends it all."""

    def __init__(self, code, *, outstanding=2):
        self.outstanding = outstanding
        self.dut = dut = code.AxiWriter(data_bytes=1, beat_bits=2, outstanding=outstanding)
        self.slave = AxiSlave(dut, outstanding=outstanding, writes=True)
        self.marks = Signal(2)
        self.ports = [*self.slave.ports, self.marks, dut.i.valid, dut.i.payload, dut.base, dut.hold]

    def elaborate(self, platform):
        m = Module()
        m.submodules.dut, m.submodules.slave = self.dut, self.slave
        dut, i = self.dut, self.dut.i
        enters, answered = i.valid & i.ready, dut.bvalid & dut.bready
        address, word = Signal.like(dut.awaddr), Cat(i.payload.data, i.payload.strb)
        m.d.comb += address.eq(dut.base + i.payload.beat)
        ordered(m, enters, address, dut.awvalid & dut.awready, dut.awaddr, mark=self.marks[0], capacity=1)
        ordered(m, enters, word, dut.wvalid & dut.wready, Cat(dut.wdata, dut.wstrb), mark=self.marks[1], capacity=1)
        due = Signal(range(self.outstanding + 2))
        m.d.sync += due.eq(due + enters - answered)
        under_way = (due != 0) | dut.awvalid | dut.wvalid
        m.d.comb += [Assert(due <= self.outstanding), Assert(dut.pending == (due != 0)), Assert(dut.bready),
                     Assert(dut.error == (answered & (dut.bresp != 0)))]
        before = Signal()
        m.d.sync += before.eq(under_way)
        m.d.comb += Assert(dut.busy == before)
        within(m, 2, ~i.ready & ~under_way & ~dut.hold)
        held = Signal(2)
        m.d.sync += held.eq(Cat(dut.hold, held))
        with m.If(held.all() & dut.hold):
            m.d.comb += Assert(~i.ready)
        return m


class ReaderProperties(Elaboratable):
    """Every burst is asked for once, in order; every beat goes where its burst says, and is never kept waiting on the bus, as long as
    whoever asks has room for the beats. `clear` drops what was asked for the weights, and nothing else."""

    def __init__(self, code, *, depth=2, outstanding=1, longest=2):
        self.depth, self.longest, self.outstanding = depth, longest, outstanding
        self.dut = dut = code.AxiReader(data_bytes=1, beat_bits=2, beats_bits=longest.bit_length(), weight_depth=depth, data_depth=depth,
                                        outstanding=outstanding)
        self.slave = AxiSlave(dut, outstanding=outstanding + 1, longest=longest, reads=True)
        self.marks = Signal(3)
        self.ports = [*self.slave.ports, self.marks, dut.request.valid, dut.request.payload, dut.clear, dut.weights.ready, dut.data.ready]

    def elaborate(self, platform):
        m = Module()
        m.submodules.dut, m.submodules.slave = dut, _ = self.dut, self.slave
        asked, burst = dut.request.valid & dut.request.ready, dut.request.payload
        m.d.comb += [dut.base[12:].eq(AnyConst(20)), Assume((burst.beats != 0) & (burst.beats <= self.longest - burst.beat % self.longest))]
        beat, weights, others = dut.rvalid & dut.rready, dut.weights.valid & dut.weights.ready, dut.data.valid & dut.data.ready

        address, length = Signal.like(dut.araddr), Signal.like(dut.arlen)
        m.d.comb += [address.eq(dut.base + burst.beat), length.eq(burst.beats - 1)]
        ordered(m, asked, Cat(address, length), dut.arvalid & dut.arready, Cat(dut.araddr, dut.arlen), mark=self.marks[0], capacity=3)
        oldest, waiting = queued(m, asked, Cat(burst.weight, burst.dest), beat & dut.rlast, depth=self.outstanding + 3)
        of_weights, dest = oldest[0], oldest[1:]
        m.d.comb += [Assert(~dut.rvalid | dut.rready), Assert(dut.error == (beat & (dut.rresp != 0))),
                     Assert(dut.weight_beat == (beat & of_weights & ~dut.clear)), Assert(dut.data_beat == (beat & ~of_weights))]
        within(m, 2, (waiting != 0) & ~dut.busy)
        within(m, 2, (waiting == 0) & dut.busy)
        within(m, 3, dut.request.valid & (waiting == 0) & ~dut.request.ready)

        for name, stream, enters, leaves, value, dropped in (
                ("weights", dut.weights, beat & of_weights, weights, Cat(dut.rdata, dest), dut.clear),
                ("data", dut.data, beat & ~of_weights, others, dut.rdata, C(0))):
            part = Module()
            mine = asked & (burst.weight == (name == "weights"))
            room = Signal(range(-self.longest, self.depth + 1), init=self.depth, name=f"{name}_room")
            part.d.sync += room.eq(room - Mux(mine, burst.beats, 0) + leaves)
            part.d.comb += Assume(~mine | (burst.beats <= room))
            inside = ordered(part, enters, value, leaves, stream.payload, mark=self.marks[1 + (name == "data")], capacity=self.depth)
            within(part, 1, (inside != 0) & ~stream.valid)
            steady(part, Assert, stream.valid, stream.ready, stream.payload)
            m.submodules[name] = ResetInserter(dropped)(part)

        # Weight bursts asked for, and what the memory system does with `clear` until none are left.
        due = Signal(range(self.outstanding + 4))
        unfinished, requests = Signal(), asked & burst.weight
        m.d.sync += [due.eq(due + requests - (beat & dut.rlast & of_weights)), unfinished.eq(dut.clear & dut.weights_outstanding)]
        m.d.comb += [Assert(dut.weights_outstanding == (due != 0)), Assume(dut.clear | ~unfinished), Assume(~(dut.clear & requests))]
        return m


class WriteArbiterProperties(Elaboratable):
    """What clients write leaves in the order in which it was taken; a client waits for earlier ones and for room only."""

    def __init__(self, code, *, clients=3):
        self.dut = dut = code.WriteArbiter(mem_bytes=1, clients=clients)
        self.clients = [getattr(dut, f"i{n}") for n in range(clients)]
        self.mark = Signal()
        self.ports = [self.mark, dut.o.ready, *(part for i in self.clients for part in (i.valid, i.payload))]

    def elaborate(self, platform):
        m = Module()
        m.submodules.dut = dut = self.dut
        _, _, inside = granted(m, self.clients, dut.o, mark=self.mark, capacity=1, room=1)
        m.d.comb += Assert(dut.pending == (inside != 0))
        return m


class ReadArbiterProperties(Elaboratable):
    """Requests go on in the order in which they were taken; each gets all its beats, and nobody else does."""

    def __init__(self, code, *, clients=2, outstanding=2):
        self.outstanding = outstanding
        self.dut = dut = code.ReadArbiter(mem_bytes=1, clients=clients, outstanding=outstanding)
        self.requests = [getattr(dut, f"request{n}") for n in range(clients)]
        self.sinks = [getattr(dut, f"data{n}") for n in range(clients)]
        self.mark = Signal()
        self.ports = [self.mark, dut.memory_request.ready, dut.memory_data.valid, dut.memory_data.payload,
                      *(part for request in self.requests for part in (request.valid, request.payload)),
                      *(sink.ready for sink in self.sinks)]

    def elaborate(self, platform):
        m = Module()
        m.submodules.dut = dut = self.dut
        o, word = dut.memory_request, dut.memory_data
        m.d.comb += [Assume(request.payload.beats != 0) for request in self.requests]
        last, done, at_memory = Signal(), Signal.like(o.payload.beats), Signal(range(self.outstanding + 2))
        room = Signal()
        taken, chosen, _ = granted(m, self.requests, o, mark=self.mark, capacity=2, room=room)
        beats = Array(request.payload.beats for request in self.requests)[chosen]
        oldest, waiting = queued(m, taken, Cat(chosen, beats), last, depth=self.outstanding + 1)
        client, length = oldest[: len(chosen)], oldest[len(chosen):]
        m.d.comb += room.eq(waiting < self.outstanding)

        # The memory answers what it took.
        beat = word.valid & word.ready
        steady(m, Assume, word.valid, word.ready, word.payload)
        m.d.sync += at_memory.eq(at_memory + (o.valid & o.ready) - last)
        m.d.comb += [Assume(~word.valid | (at_memory != 0)), last.eq(beat & (done + 1 == length))]
        with m.If(beat):
            m.d.sync += done.eq(Mux(last, 0, done + 1))
        for n, sink in enumerate(self.sinks):
            m.d.comb += [Assert(sink.valid == (word.valid & (client == n))), Assert(~sink.valid | (sink.payload == word.payload))]
        m.d.comb += Assert(~word.valid | (word.ready == Array(sink.ready for sink in self.sinks)[client]))
        return m


SMALL = [(weight_stream, "RUN_BITS", 5), (interface, "READ_BITS", 2), (router, "READ_BITS", 2), (interface, "ADDRESS_BITS", 2)]
"""Widths that the parts do not have as parameters."""
PARTS = {
    "splitter": (weight_stream, SplitterProperties),
    "writer": (axi, WriterProperties),
    "reader": (axi, ReaderProperties),
    "write arbiter": (router, WriteArbiterProperties),
    "read arbiter": (router, ReadArbiterProperties),
}
MISTAKES = [
    ("splitter", "to_boundary.eq(self._boundary - offset)", "to_boundary.eq(self._boundary)"),
    ("splitter", "room.eq(room - spent + self.release)", "room.eq(room - spent)"),
    ("splitter", "range(self._credit + 1), init=self._credit)", "range(self._credit + 2), init=self._credit + 1)"),
    ("splitter", "(room >= size) & (~self.o.valid | self.o.ready)", "(room >= size)"),
    ("splitter", "beat.eq(beat + size)", "beat.eq(beat + 1)"),
    ("splitter", "self.active.eq(~fsm.ongoing(\"idle\") | self.o.valid)", "self.active.eq(~fsm.ongoing(\"idle\"))"),
    ("writer", "self.i.ready.eq(~self.awvalid & ~self.wvalid & room)", "self.i.ready.eq(~self.awvalid & room)"),
    ("writer", "with m.If(self.wready):", "with m.If(self.awready):"),
    ("writer", "room.eq((due != self._outstanding) & ~self.hold)", "room.eq(due != self._outstanding)"),
    ("writer", "room.eq((due != self._outstanding) & ~self.hold)", "room.eq(~self.hold)"),
    ("writer", "due.eq(due + accept - response)", "due.eq(due + accept)"),
    ("writer", "self.pending.eq(due != 0)", "self.pending.eq(due > 1)"),
    ("writer", "self.busy.eq(self.awvalid | self.wvalid | due.any())", "self.busy.eq(self.awvalid | self.wvalid)"),
    ("writer", "self.error.eq(response & (self.bresp != _OKAY))", "self.error.eq(0)"),
    ("reader", "free = ~self.arvalid | self.arready", "free = 1"),
    ("reader", "request.o.ready.eq(free & tags.i.ready)", "request.o.ready.eq(free)"),
    ("reader", "self.arvalid.eq(request.o.valid & tags.i.ready)", "self.arvalid.eq(request.o.valid)"),
    ("reader", "self.arlen.eq(burst.beats - 1)", "self.arlen.eq(burst.beats)"),
    ("reader", "tags.o.ready.eq(self.rvalid & self.rlast)", "tags.o.ready.eq(self.rvalid)"),
    ("reader", "self.weight_beat.eq(beat & tag.weight & ~self.clear)", "self.weight_beat.eq(beat & tag.weight)"),
    ("reader", "weight_fifo = ResetInserter(self.clear)(Fifo(self._weight_layout, self._weight_depth))",
               "weight_fifo = Fifo(self._weight_layout, self._weight_depth)"),
    ("reader", "data_fifo = Fifo(self._data_shape, self._data_depth)", "data_fifo = Fifo(self._data_shape, self._data_depth - 1)"),
    ("reader", "left = beat & self.rlast & tag.weight", "left = beat & self.rlast"),
    ("reader", "waiting = Signal(range(self._outstanding + 4))", "waiting = Signal(1)"),
    ("reader", "self.busy.eq(request.o.valid | self.arvalid | tags.level.any())", "self.busy.eq(request.o.valid | self.arvalid)"),
    ("reader", "self.error.eq(beat & (self.rresp != _OKAY))", "self.error.eq(0)"),
    ("write arbiter", "client.ready.eq(chosen.i.ready & ~earlier)", "client.ready.eq(chosen.i.ready)"),
    ("write arbiter", "self.pending.eq(self.o.valid)", "self.pending.eq(0)"),
    ("read arbiter", "client.ready.eq(open_ & ~earlier)", "client.ready.eq(open_)"),
    ("read arbiter", "open_ = tickets.i.ready & request.i.ready", "open_ = request.i.ready"),
    ("read arbiter", "tickets.o.ready.eq(remaining == 1)", "tickets.o.ready.eq(1)"),
    ("read arbiter", "fresh.eq(remaining == 1)", "fresh.eq(0)"),
    ("read arbiter", "tickets.i.payload.client.eq(n)", "tickets.i.payload.client.eq(0)"),
]


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    for module, name, value in SMALL:
        monkeypatch.setattr(module, name, value)


def broken(code, right, wrong):
    copy = formal.broken(code, right, wrong)
    for module, name, value in SMALL:
        if module is code:
            setattr(copy, name, value)
    return copy


@pytest.mark.parametrize("part", PARTS)
def test_holds_for_all_time(part, tmp_path):
    code, properties = PARTS[part]
    formal.prove(claims := properties(code), claims.ports, tmp_path)


@pytest.mark.parametrize("part, right, wrong", MISTAKES)
def test_a_mistake_is_found(part, right, wrong, tmp_path):
    code, properties = PARTS[part]
    claims = properties(broken(code, right, wrong))
    assert formal.refutation(claims, claims.ports, tmp_path)
