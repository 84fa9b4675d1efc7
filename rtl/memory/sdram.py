"""An open-page controller for SDR SDRAM behind an AXI4 port.

A beat of the port is one burst of the SDRAM. Bursts of the port are cut into pieces of at most 16 words, which pass three places in order:
they wait for their turn, their row is opened (`prepare`), and their column commands are issued. So the row of a piece is opened while the
words of the piece before it are read, and a refresh finds the SDRAM between two pieces.
"""

from __future__ import annotations

from functools import reduce
from operator import or_

from amaranth import C, Cat, Const, Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from tritloom.firmware.registers import PAGE_BYTES, PORT_ADDRESS_BITS
from tritloom.rtl.memory.axi import axi_members, axi_prefix
from tritloom.rtl.memory.parameters import SdramParameters
from tritloom.rtl.stream import Fifo

__all__ = ["SdramController", "pad_members"]

_INCR = 1
_SLVERR = 2
_PRECHARGE_ALL = 10
"""The address bit that makes a precharge one of all banks."""
_PATIENCE = 3
"""Pieces of reads that go before a write that waits."""


def pad_members(parameters: SdramParameters) -> dict:
    """Signature members towards the SDRAM's pads."""
    masks = {"dqm": Out(parameters.width // 8)} if parameters.masked else {}
    return {
        "cke": Out(1), "cs_n": Out(1), "ras_n": Out(1, init=1), "cas_n": Out(1, init=1), "we_n": Out(1, init=1),
        "ba": Out(parameters.bank_bits), "a": Out(parameters.row_bits), **masks, "dq_o": Out(parameters.width), "dq_oe": Out(1),
        "dq_i": In(parameters.width),
    }


def _spaced(m, name, *events):
    """High while something must wait: for (event, cycles) in `events`, until `cycles` cycles after `event`."""
    length = max(cycles for _, cycles in events) - 1
    if length < 1:
        return Const(0)
    hold = Signal(length, name=name)
    m.d.sync += hold.eq(reduce(or_, (event.replicate(max(cycles - 1, 0)) for event, cycles in events), hold[1:]))
    return hold[0]


class _Pieces(wiring.Component):
    """Cut the bursts of an address channel into pieces that end with a block of `1 << block_bits` beats.

    Latency: 1 cycle from `a` to `valid`.

    Members
    -------
    avalid, aready, aaddr, alen, asize, aburst : address channel
    valid : Out(1), ready : In(1)
    beat : Out, count : Out
        The piece: `count` + 1 beats from beat address `beat`.
    last : Out(1)
        The burst ends with it.
    bad : Out(1)
        The burst is none that the controller serves: several beats narrower than the port, or not incrementing.
    """

    def __init__(self, *, mem_bytes, beat_bits, block_bits):
        self._size, self._block = exact_log2(mem_bytes), block_bits
        super().__init__({
            "avalid": In(1), "aready": Out(1), "aaddr": In(PORT_ADDRESS_BITS), "alen": In(8), "asize": In(3), "aburst": In(2),
            "valid": Out(1), "ready": In(1), "beat": Out(beat_bits), "count": Out(block_bits), "last": Out(1), "bad": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        block, page = self._block, exact_log2(PAGE_BYTES) - self._size
        left = Signal(8)
        rest = ~self.beat[:block]
        m.d.comb += [
            self.aready.eq(~self.valid),
            self.last.eq((left[block:] == 0) & ((left[:block] <= rest) if block else 1)),
            self.count.eq(Mux(self.last, left[:block], rest)),
        ]
        with m.If(~self.valid):
            m.d.sync += [
                self.valid.eq(self.avalid),
                self.beat.eq(self.aaddr >> self._size),
                left.eq(self.alen),
                self.bad.eq((self.alen != 0) & ((self.asize != self._size) | (self.aburst != _INCR))),
            ]
        with m.Elif(self.ready):
            m.d.sync += [
                self.valid.eq(~self.last),
                self.beat[:page].eq(Cat(C(0, block), self.beat[block:page] + 1)),
                left.eq(left + ~Cat(rest, C(0, 8 - block))),
            ]
        return m


class SdramController(wiring.Component):
    """Serve AXI4 from an SDR SDRAM, which it initialises, keeps refreshed, and whose rows it leaves open.

    Byte addresses run through the columns of a row, then through the banks, then through the rows; address bits above the size of the
    memory are ignored. Pieces of reads and writes are served in the order in which they are taken, so a read sees each write whose
    response was given. Bursts are incrementing ones of whole beats, or single beats of any size; others are answered with SLVERR, and
    write nothing. Nor is a beat written of which not all bytes are to be, where the SDRAM has no masks: its burst is answered with SLVERR.

    A reset keeps the contents, but for a beat that is being written: the SDRAM is initialised anew, without another wait for its power.
    While the reset lasts, nothing is refreshed.

    Latency: READ leaves 4 cycles after `axi_arvalid` when the row is open; the beat comes `read_latency` + `burst` + 3 cycles later.

    Throughput: in reads of long runs, a beat each `burst` cycles, but for a refresh.

    Parameters
    ----------
    parameters : SdramParameters

    Members
    -------
    axi_... : AXI4 slave
        The signals of `rtl.memory.axi.axi_members`, flipped.
    ready : Out(1)
        The SDRAM is initialised.
    cke, cs_n, ras_n, cas_n, we_n, ba, a, dqm, dq_o, dq_oe : Out, dq_i : In
        Towards the pads; all outputs are registers, but `cs_n`, which is always low: without a command, the others say NOP. `dqm` only
        with masks.
    """

    def __init__(self, parameters: SdramParameters):
        self._parameters = parameters
        masters = axi_members(mem_bytes=parameters.mem_bytes, mem_ports=1)
        super().__init__({"axi_" + name.removeprefix(axi_prefix(0)): member.flip() for name, member in masters.items()}
                         | {"ready": Out(1)} | pad_members(parameters))

    def elaborate(self, platform):
        m = Module()
        p = self._parameters
        beat_bits = p.column_bits - exact_log2(p.burst) + p.bank_bits + p.row_bits
        piece = data.StructLayout({
            "column": p.column_bits - exact_log2(p.burst), "bank": p.bank_bits, "row": p.row_bits, "count": p.block_bits, "last": 1,
            "bad": 1, "write": 1,
        })  # fmt: skip

        # Which piece is next: reads first, but a write waits for a few of them only. Its data are here.
        m.submodules.reads = reads = _Pieces(mem_bytes=p.mem_bytes, beat_bits=beat_bits, block_bits=p.block_bits)
        m.submodules.writes = writes = _Pieces(mem_bytes=p.mem_bytes, beat_bits=beat_bits, block_bits=0)
        for pieces, channel in ((reads, "axi_ar"), (writes, "axi_aw")):
            for name in ("valid", "addr", "len", "size", "burst"):
                m.d.comb += getattr(pieces, f"a{name}").eq(getattr(self, channel + name))
            m.d.comb += getattr(self, f"{channel}ready").eq(pieces.aready)
        following, waiting = Signal(piece), Signal()
        current, active = Signal(piece), Signal()
        writable, patience = Signal(), Signal(range(_PATIENCE + 1))
        m.d.comb += [
            writable.eq(writes.valid & self.axi_wvalid & ~(active & current.write) & (~self.axi_bvalid | self.axi_bready)),
            writes.ready.eq(~waiting & writable & (~reads.valid | (patience == _PATIENCE))),
            reads.ready.eq(~waiting & ~writes.ready),
        ]
        with m.If(~waiting):
            m.d.sync += [
                waiting.eq(reads.valid | writes.ready),
                Cat(following.column, following.bank, following.row).eq(Mux(writes.ready, writes.beat, reads.beat)),
                following.count.eq(Mux(writes.ready, 0, reads.count)),
                following.last.eq(Mux(writes.ready, writes.last, reads.last)),
                following.bad.eq(Mux(writes.ready, writes.bad, reads.bad)),
                following.write.eq(writes.ready),
            ]
            with m.If(writes.ready):
                m.d.sync += patience.eq(0)
            with m.Elif(reads.valid & writable):
                m.d.sync += patience.eq(patience + 1)

        # When a refresh is due. Before the first command, the same interval is waited for several times.
        due, refresh_all = Signal(), Signal()
        powered = Signal(reset_less=True)
        timer, count = Signal(range(p.t_refi), init=p.t_refi - 1), Signal(range(max(p.start_intervals, p.start_refreshes + 1)))
        m.d.sync += timer.eq(timer - 1)
        with m.If(timer == 0):
            m.d.sync += [timer.eq(p.t_refi - 1), due.eq(powered), count.eq(count + ~self.ready)]
            with m.If(~powered & (count == p.start_intervals - 1)):
                m.d.sync += [powered.eq(1), count.eq(0)]

        # Prepare: open the row of the piece that follows.
        m.submodules.rows = rows = Memory(shape=p.row_bits, depth=1 << p.bank_bits, init=[])
        stored, store = rows.read_port(domain="comb"), rows.write_port()
        opened = Signal(1 << p.bank_bits)
        is_open = opened.bit_select(following.bank, 1)
        precharge, activate, refresh, mode = (Signal(name=name) for name in ("precharge", "activate", "refresh", "mode"))
        column, pass_on, room = Signal(), Signal(), Signal()
        last_bank = Signal(p.bank_bits)
        paced = _spaced(m, "pacing", (column, p.burst))
        kept = _spaced(m, "keeping", (activate, p.kept), (column & current.write, p.burst - 1 + p.t_wr))
        settling = _spaced(m, "settling", (precharge, p.t_rp), (activate, p.opening), (refresh, p.t_rfc), (mode, p.t_mrd))
        in_use = (active & (current.bank == following.bank)) | (paced & ((last_bank == following.bank) | refresh_all))
        free = ~active | (column & (current.count == 0)) if p.burst == 1 else ~active
        m.d.comb += [
            stored.addr.eq(following.bank),
            store.addr.eq(following.bank),
            store.data.eq(following.row),
            store.en.eq(activate),
        ]
        with m.FSM(name="prepare"):
            with m.State("LOOK"):
                m.d.sync += refresh_all.eq(due)
                with m.If(due):
                    with m.If(~active):
                        m.next = "PRECHARGE"
                with m.Elif(waiting & self.ready):
                    with m.If(~is_open):
                        m.next = "ACTIVATE"
                    with m.Elif(stored.data == following.row):
                        m.next = "PASS"
                    with m.Else():
                        m.next = "PRECHARGE"
            with m.State("PRECHARGE"):
                m.d.comb += precharge.eq(~kept & ~in_use & ~settling)
                with m.If(precharge):
                    m.d.sync += opened.eq(Mux(refresh_all, 0, opened & ~(1 << following.bank)))
                    with m.If(refresh_all):
                        m.next = "REFRESH"
                    with m.Else():
                        m.next = "ACTIVATE"
            with m.State("ACTIVATE"):
                m.d.comb += activate.eq(~settling)
                with m.If(activate):
                    m.d.sync += opened.eq(opened | (1 << following.bank))
                    m.next = "PASS"
            with m.State("PASS"):
                m.d.sync += refresh_all.eq(due)
                m.d.comb += pass_on.eq(~due & ~settling & free & (following.write | room))
                with m.If(pass_on):
                    m.d.sync += waiting.eq(0)
                    m.next = "LOOK"
                with m.Elif(due & ~active):
                    m.next = "PRECHARGE"
            with m.State("REFRESH"):
                m.d.comb += refresh.eq(~settling)
                with m.If(refresh):
                    m.d.sync += due.eq(0)
                    m.next = "LOOK"
                    with m.If(~self.ready & (count == p.start_refreshes)):
                        m.next = "MODE"
            with m.State("MODE"):
                m.d.comb += mode.eq(~settling)
                with m.If(mode):
                    m.d.sync += self.ready.eq(1)
                    m.next = "LOOK"

        # Column commands of the current piece. Two cycles of the data bus lie between words of the SDRAM's and ours.
        read, write = Signal(), Signal()
        turning = _spaced(m, "turning", (read, p.cas + p.burst + 1))
        m.d.comb += [
            column.eq(active & ~paced & ~(current.write & turning) & ~precharge & ~activate),
            read.eq(column & ~current.write),
            write.eq(column & current.write),
            self.axi_wready.eq(write),
        ]
        with m.If(column):
            m.d.sync += [
                active.eq(current.count != 0),
                current.count.eq(current.count - 1),
                current.column[: p.block_bits].eq(current.column[: p.block_bits] + 1),
                last_bank.eq(current.bank),
            ]
        with m.If(pass_on):
            m.d.sync += [active.eq(1), current.eq(following)]

        refused = current.bad if p.masked else current.bad | ~self.axi_wstrb.all()
        issued = write if p.masked else write & ~refused
        self._command(m, column=read | issued, write=issued, precharge=precharge, activate=activate, refresh=refresh, mode=mode,
                      current=current, following=following, refresh_all=refresh_all)
        self._write(m, write, current.last, refused)
        self._read(m, read, current, pass_on & ~following.write, following.count, room)
        return m

    def _command(self, m, *, column, write, precharge, activate, refresh, mode, current, following, refresh_all):
        """The registers of the command pins."""
        p = self._parameters
        settings = exact_log2(p.burst) | p.cas << 4
        m.d.sync += [
            self.ras_n.eq(~(precharge | activate | refresh | mode)),
            self.cas_n.eq(~(column | refresh | mode)),
            self.we_n.eq(~(precharge | write | mode)),
            self.ba.eq(Mux(column, current.bank, Mux(mode, 0, following.bank))),
            self.a.eq(Mux(column, Cat(C(0, exact_log2(p.burst)), current.column),
                          Mux(mode, settings, Mux(precharge, refresh_all << _PRECHARGE_ALL, following.row)))),
        ]
        clocked = Signal(reset_less=True)
        m.d.sync += clocked.eq(1)
        m.d.comb += self.cke.eq(clocked)

    def _write(self, m, write, last, refused):
        """The registers of data to the SDRAM: a beat, shifted out word by word. DQM is high until the SDRAM is initialised."""
        p = self._parameters
        words, driven = Signal(8 * p.mem_bytes), Signal(p.burst)
        m.d.comb += [self.dq_o.eq(words), self.dq_oe.eq(driven)]
        with m.If(write):
            m.d.sync += [words.eq(self.axi_wdata), driven.eq(-1)]
        with m.Else():
            m.d.sync += [words.eq(words >> p.width), driven.eq(driven >> 1)]
        if p.masked:
            masks = Signal(p.mem_bytes, init=-1)
            m.d.comb += self.dqm.eq(masks)
            m.d.sync += masks.eq(Mux(write, ~self.axi_wstrb | refused.replicate(p.mem_bytes),
                                     Cat(masks[p.width // 8 :], (~self.ready).replicate(p.width // 8))))
        else:  # of a burst, one beat may be refused
            earlier = Signal()
            with m.If(write):
                m.d.sync += earlier.eq((refused | earlier) & ~last)
            refused = refused | earlier
        with m.If(self.axi_bready):
            m.d.sync += self.axi_bvalid.eq(0)
        with m.If(write & last):
            m.d.sync += [self.axi_bvalid.eq(1), self.axi_bresp.eq(Mux(refused, _SLVERR, 0))]

    def _read(self, m, read, current, promised, beats, room):
        """Data from the SDRAM: words into a queue, for which room was kept, and from there into beats."""
        p = self._parameters
        coming, last, bad = (Signal(p.read_latency + p.burst, name=name) for name in ("coming", "coming_last", "coming_bad"))
        m.d.sync += [
            coming.eq(Cat(read, coming)),
            last.eq(Cat(current.last & (current.count == 0), last)),
            bad.eq(Cat(current.bad, bad)),
        ]
        word = data.StructLayout({"word": p.width, "last": 1, "bad": 1})
        m.submodules.queue = queue = Fifo(word, p.queue)
        m.d.comb += [
            queue.i.valid.eq(coming[p.read_latency :].any()),
            queue.i.payload.word.eq(self.dq_i),
            queue.i.payload.last.eq(last[-1]),
            queue.i.payload.bad.eq(bad[-1]),
        ]
        reserved, taken = Signal(range(p.queue // p.burst + 1)), self.axi_rvalid & self.axi_rready
        m.d.sync += reserved.eq(reserved + Mux(promised, beats + 1, 0) - taken)
        m.d.comb += room.eq(reserved <= (p.queue // p.burst) - (1 << p.block_bits))

        index = Signal(range(p.burst))
        m.d.comb += queue.o.ready.eq(~self.axi_rvalid | self.axi_rready)
        with m.If(queue.o.ready):
            m.d.sync += self.axi_rvalid.eq(0)
            with m.If(queue.o.valid):
                m.d.sync += [
                    self.axi_rdata.eq(Cat(self.axi_rdata, queue.o.payload.word) >> p.width),
                    self.axi_rlast.eq(queue.o.payload.last),
                    self.axi_rresp.eq(Mux(queue.o.payload.bad, _SLVERR, 0)),
                    self.axi_rvalid.eq(index == p.burst - 1),
                    index.eq(index + 1),
                ]
