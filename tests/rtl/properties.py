"""What proofs claim and assume: the rules of streams and of AXI, each written once.

`claim` is `Assert` for what the design drives and `Assume` for what drives the design.
"""

from __future__ import annotations

from amaranth import Cat, Elaboratable, Module, Mux, Signal, Value
from amaranth.hdl import Assert, Assume


def steady(m: Module, claim: type[Assert] | type[Assume], valid, ready, *payload) -> Signal:
    """What is offered stays, unchanged, until it is taken. Returns whether it was offered in the cycle before and not taken."""
    offered = Cat(Value.cast(part) for part in payload)
    waited, before = Signal(), Signal(len(offered))
    m.d.sync += [waited.eq(valid & ~ready), before.eq(offered)]
    with m.If(waited):
        m.d.comb += claim(valid & (offered == before))
    return waited


def ordered(m: Module, enters, value, leaves, result, *, mark, capacity: int) -> Signal:
    """What enters leaves once, in order, as `result`; never more than `capacity` are inside. Returns how many are.

    In any one cycle, told by the free input `mark`, what enters is watched until it leaves: so it holds for all.
    """
    inside = Signal(range(capacity + 2))
    ahead, watched = Signal.like(inside), Signal()
    value, result = Value.cast(value), Value.cast(result)
    assert len(value) == len(result), "so that no bit is compared with nothing"
    expected = Signal(len(result))
    m.d.sync += inside.eq(inside + enters - leaves)
    m.d.comb += [Assert(inside <= capacity), Assert(~leaves | (inside != 0))]
    with m.If(~watched):
        m.d.sync += [watched.eq(enters & mark), expected.eq(value), ahead.eq(inside - leaves)]
    with m.Elif(leaves):
        m.d.sync += ahead.eq(ahead - 1)
        with m.If(ahead == 0):
            m.d.comb += Assert(result == expected)
            m.d.sync += watched.eq(0)
    return inside


def within(m: Module, cycles: int, waits) -> None:
    """`waits` is never high for more than `cycles` in a row."""
    waited = Signal(range(cycles + 2))
    m.d.sync += waited.eq(Mux(waits, waited + 1, 0))
    m.d.comb += Assert(~waits | (waited < cycles))


class StreamProperties(Elaboratable):
    """`dut` passes what enters at `i` to `o`: in order, nothing lost, nothing twice, whatever comes and whoever waits.

    `capacity`: payloads it holds at most; `room`: so many it always takes; `latency`: cycles until the first of them is offered.
    """

    def __init__(self, dut, *, capacity: int, room: int, latency: int) -> None:
        self.dut, self.capacity, self.room, self.latency = dut, capacity, room, latency
        self.mark = Signal()
        self.ports = [self.mark, dut.i.valid, dut.i.payload, dut.o.ready]

    def elaborate(self, platform):
        m = Module()
        m.submodules.dut = self.dut
        i, o = self.dut.i, self.dut.o
        inside = ordered(m, i.valid & i.ready, i.payload, o.valid & o.ready, o.payload, mark=self.mark, capacity=self.capacity)
        steady(m, Assert, o.valid, o.ready, o.payload)
        m.d.comb += Assert(~o.valid | (inside != 0))
        within(m, self.latency - 1, (inside != 0) & ~o.valid)
        with m.If(inside < self.room):
            m.d.comb += Assert(i.ready)
        if hasattr(self.dut, "level"):
            m.d.comb += Assert(self.dut.level == inside)
        return m


def queued(m: Module, pushes, value, pops, *, depth: int):
    """A model of a queue: the oldest value and how many there are. More than `depth` are a mistake."""
    value = Value.cast(value)
    entries, level = [Signal(len(value), name=f"entry_{i}") for i in range(depth)], Signal(range(depth + 2))
    m.d.sync += level.eq(level + pushes - pops)
    m.d.comb += Assert(level <= depth)
    at = Signal.like(level)
    m.d.comb += at.eq(level - pops)
    for i, entry in enumerate(entries):
        with m.If(pushes & (at == i)):
            m.d.sync += entry.eq(value)
        with m.Elif(pops):
            m.d.sync += entry.eq(entries[i + 1] if i + 1 < depth else 0)
    return entries[0], level


class AxiSlave(Elaboratable):
    """What AXI4 demands of both ends of a port: assumed of the memory, asserted of the master `dut`, which has its `ar..`, `r..` and
    `aw..`, `w..`, `b..` signals if told.

    Reads are answered in order, a beat at a time, as many as each burst asked for, the last one marked; writes are single beats. When
    anything is taken or answered is free. `outstanding`: bursts that the master may leave unanswered; `longest`: beats of a burst.
    """

    def __init__(self, dut, *, outstanding: int, longest: int = 1, reads: bool = False, writes: bool = False, data_bits: int = 1) -> None:
        self.dut, self.outstanding, self.longest, self.reads, self.writes = dut, outstanding, longest, reads, writes
        self.data = Signal(data_bits)  # the other bits are 0: a port does not look at them
        self.ports = [*((dut.arready, dut.rvalid, self.data, dut.rresp, dut.rlast) if reads else ()),
                      *((dut.awready, dut.wready, dut.bvalid, dut.bresp) if writes else ())]

    def elaborate(self, platform):
        m = Module()
        if self.reads:
            self._read(m)
        if self.writes:
            self._write(m)
        return m

    def _read(self, m: Module) -> None:
        a = self.dut
        m.d.comb += a.rdata.eq(self.data)
        steady(m, Assert, a.arvalid, a.arready, a.araddr, a.arlen, a.arsize, a.arburst)
        steady(m, Assume, a.rvalid, a.rready, self.data, a.rresp, a.rlast)
        with m.If(a.arvalid):  # within a page
            m.d.comb += Assert((a.arburst == 1) & (a.arlen < self.longest) & (a.araddr[:12] + ((a.arlen + 1) << a.arsize) <= 4096))
        beat, done = a.rvalid & a.rready, Signal(range(self.longest))
        length, waiting = queued(m, a.arvalid & a.arready, a.arlen[: len(done)], beat & a.rlast, depth=self.outstanding)
        m.d.comb += Assume(~a.rvalid | ((waiting != 0) & (a.rlast == (done == length))))
        with m.If(beat):
            m.d.sync += done.eq(Mux(a.rlast, 0, done + 1))

    def _write(self, m: Module) -> None:
        a = self.dut
        steady(m, Assert, a.awvalid, a.awready, a.awaddr, a.awlen, a.awsize, a.awburst)
        steady(m, Assert, a.wvalid, a.wready, a.wdata, a.wstrb, a.wlast)
        steady(m, Assume, a.bvalid, a.bready, a.bresp)
        with m.If(a.awvalid):
            m.d.comb += Assert((a.awburst == 1) & (a.awlen == 0))
        with m.If(a.wvalid):
            m.d.comb += Assert(a.wlast)
        for taken in (a.awvalid & a.awready, a.wvalid & a.wready):
            count = Signal(range(self.outstanding + 2))
            m.d.sync += count.eq(count + taken - (a.bvalid & a.bready))
            m.d.comb += [Assert(count <= self.outstanding), Assume(~a.bvalid | (count != 0))]


def granted(m: Module, clients, o, *, mark, capacity: int, room) -> tuple[Signal, Signal, Signal]:
    """One of the clients' streams at a time goes on to `o`, the first that offers; it does where there is `room`, a condition or how many
    may be inside. Returns whether one is taken, which, and how many are inside."""
    taken, chosen, value = Signal(), Signal(range(len(clients))), Signal(len(Value.cast(o.payload)))
    m.d.comb += taken.eq(Cat(client.valid & client.ready for client in clients).any())
    for n, client in reversed([*enumerate(clients)]):
        with m.If(client.valid):
            m.d.comb += [chosen.eq(n), value.eq(client.payload)]
    for n, client in enumerate(clients):
        with m.If(client.valid & client.ready):
            m.d.comb += Assert(chosen == n)
    inside = ordered(m, taken, value, o.valid & o.ready, o.payload, mark=mark, capacity=capacity)
    steady(m, Assert, o.valid, o.ready, o.payload)
    m.d.comb += Assert(taken | ~Cat(client.valid for client in clients).any() | ~(room & (inside < capacity)))
    within(m, 0, (inside != 0) & ~o.valid)
    return taken, chosen, inside


class AxiLiteMaster(Elaboratable):
    """What AXI4-Lite demands of both ends of a register port: assumed of the master, asserted of the slave `dut`, which has the `s_axi_..`
    signals. Every request is answered once, a write within `write_cycles` and a read within `read_cycles`, whoever waits for whom.

    `write`, `read`: the request that an answer belongs to; `answers_write`, `answers_read`: in the first cycle of an answer.
    """

    def __init__(self, dut, *, write_cycles: int, read_cycles: int) -> None:
        self.dut, self.write_cycles, self.read_cycles = dut, write_cycles, read_cycles
        self.address, self.word, self.strobes = Signal.like(dut.s_axi_awaddr), Signal(32), Signal(4)
        self.read_address = Signal.like(dut.s_axi_araddr)
        self.writing, self.reading = Signal(2), Signal()
        """Taken and not answered: of a write its address, its data; of a read its address."""
        self.answers_write, self.answers_read = Signal(), Signal()
        self.ports = [getattr(dut, f"s_axi_{name}") for name in (
            "awaddr", "awvalid", "wdata", "wstrb", "wvalid", "bready", "araddr", "arvalid", "rready")]

    def elaborate(self, platform):
        m = Module()
        a = self.dut
        steady(m, Assume, a.s_axi_awvalid, a.s_axi_awready, a.s_axi_awaddr)
        steady(m, Assume, a.s_axi_wvalid, a.s_axi_wready, a.s_axi_wdata, a.s_axi_wstrb)
        steady(m, Assume, a.s_axi_arvalid, a.s_axi_arready, a.s_axi_araddr)
        b_waited = steady(m, Assert, a.s_axi_bvalid, a.s_axi_bready, a.s_axi_bresp)
        r_waited = steady(m, Assert, a.s_axi_rvalid, a.s_axi_rready, a.s_axi_rresp, a.s_axi_rdata)
        m.d.comb += [self.answers_write.eq(a.s_axi_bvalid & ~b_waited), self.answers_read.eq(a.s_axi_rvalid & ~r_waited)]

        for index, channel in enumerate(("aw", "w")):
            valid, ready = getattr(a, f"s_axi_{channel}valid"), getattr(a, f"s_axi_{channel}ready")
            with m.If(valid & ready):
                m.d.comb += Assert(~self.writing[index] | (a.s_axi_bvalid & a.s_axi_bready))
                m.d.sync += self.writing[index].eq(1)
            with m.Elif(a.s_axi_bvalid & a.s_axi_bready):
                m.d.sync += self.writing[index].eq(0)
        with m.If(a.s_axi_awvalid & a.s_axi_awready):
            m.d.sync += self.address.eq(a.s_axi_awaddr)
        with m.If(a.s_axi_wvalid & a.s_axi_wready):
            m.d.sync += [self.word.eq(a.s_axi_wdata), self.strobes.eq(a.s_axi_wstrb)]
        m.d.comb += Assert(~a.s_axi_bvalid | self.writing.all())
        within(m, self.write_cycles, (self.writing.all() | (a.s_axi_awvalid & a.s_axi_wvalid)) & ~a.s_axi_bvalid)

        with m.If(a.s_axi_arvalid & a.s_axi_arready):
            m.d.comb += Assert(~self.reading | (a.s_axi_rvalid & a.s_axi_rready))
            m.d.sync += [self.reading.eq(1), self.read_address.eq(a.s_axi_araddr)]
        with m.Elif(a.s_axi_rvalid & a.s_axi_rready):
            m.d.sync += self.reading.eq(0)
        m.d.comb += Assert(~a.s_axi_rvalid | self.reading)
        within(m, self.read_cycles, (self.reading | a.s_axi_arvalid) & ~a.s_axi_rvalid)
        return m
