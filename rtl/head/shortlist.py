"""The short-list of an LM head: scan ternary logits as they leave the matrix engine, keep the greatest in a heap."""

from __future__ import annotations

from functools import reduce
from operator import or_

from amaranth import C, Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out

from tritloom.firmware.commands import SCAN
from tritloom.rtl.arith import index_shape
from tritloom.rtl.commands import command_layout
from tritloom.rtl.head.parameters import ShortListParameters
from tritloom.rtl.once import once
from tritloom.rtl.stream import Fifo, Slice

__all__ = ["ShortList"]


@once
class Picker(wiring.Component):
    """Hand out the bits of a word that are set, the lowest first.

    Latency: 1 cycle. Throughput: one bit per cycle.

    Parameters
    ----------
    width : int

    Members
    -------
    load, drop : In(1), bits : In(width)
        Take a word, or go on to the next bit of the last one.
    one : Out(width), number : Out
        The lowest bit, alone, and its number.
    some, more : Out(1)
        Whether there is one, and whether there is another above it.
    """

    def __init__(self, *, width: int):
        self._width = width
        super().__init__({"load": In(1), "drop": In(1), "bits": In(width), "one": Out(width), "number": Out(index_shape(width)),
                          "some": Out(1), "more": Out(1)})

    def elaborate(self, platform):
        m = Module()
        rest, source, lowest = Signal(self._width), Signal(self._width), Signal(self._width)
        m.d.comb += source.eq(Mux(self.load, self.bits, rest))
        # Whether bits up to here are set, and several of them, in log2 steps: no carry.
        some, many, step = list(source), [C(0, 1)] * self._width, 1
        while step < self._width:
            many = [many[i] | many[i - step] | (some[i] & some[i - step]) if i >= step else many[i] for i in range(self._width)]
            some = [some[i] | some[i - step] if i >= step else some[i] for i in range(self._width)]
            step *= 2
        m.d.comb += lowest.eq(Cat(bit & ~before for bit, before in zip(source, [C(0, 1), *some], strict=False)))
        with m.If(self.load | self.drop):
            m.d.sync += [
                self.one.eq(lowest), rest.eq(source & ~lowest), self.some.eq(some[-1]), self.more.eq(many[-1]),
                self.number.eq(Cat(Cat(lowest[i] for i in range(self._width) if i >> n & 1).any() for n in range(len(self.number)))),
            ]
        return m


class ShortList(wiring.Component):
    """Keep the `count` greatest of a vocabulary's ternary logits, then hand out their ids (`integer.short_list`, in this order).

    A command scans `rows` results of a slot from step `at` on, V a cycle, under the next ids; one with `first` begins an empty
    list at id 0 and drops whatever was left of another. Logits above the least one kept go through a queue into a heap,
    which works on while the next rows are multiplied. When `vocab` rows were scanned and the queue is empty, `count` ids
    leave: the least logit first, of equals the highest id.

    The heap: node 0, the least, in registers; its one child is node 1; node n > 0 has children 2n and 2n+1, which are
    one word of the memory. A new entry takes the place of the least and sinks. Ids come in rising order, so an
    entry that equals the least logit never enters.

    Throughput: a scan takes `result_reads` cycles per V rows, and `acc_read_latency` + 4 and one for each entry it queues for a word that
    has any; more while the queue is full. The heap drops an entry in a cycle, takes one in up to 2*log2(count) + 1
    (`ShortListParameters.entry_cycles`), and hands one out in as many; count/2 + 2 cycles empty it.

    Parameters
    ----------
    parameters : ShortListParameters

    Members
    -------
    cmd : In(stream of firmware.commands.SCAN)
        At least one row. Ready when no scan is under way.
    busy : Out(1)
        A scan is under way: the accumulators must stand.
    acc_read : Out {en, slot, addr, part, data}
    ids_o : Out(stream of ids)
    """

    def __init__(self, parameters: ShortListParameters):
        self.parameters, self._ternary = parameters, parameters.ternary
        ternary = parameters.ternary
        self._id = index_shape(parameters.vocab)
        # One bit more than a logit needs: the least value marks an empty entry, the greatest one that was handed out.
        self._entry = data.StructLayout({"id": self._id, "logit": signed(parameters.logit_bits + 1)})
        self._address = index_shape(ternary.result_words)
        super().__init__({
            "cmd": In(stream.Signature(command_layout(SCAN))),
            "busy": Out(1),
            "acc_read": Out(wiring.Signature({
                "en": Out(1), "slot": Out(ternary.slot_bits), "addr": Out(self._address), "part": Out(index_shape(ternary.result_reads)),
                "data": In(ternary.vector_lanes * ternary.acc_bits)})),
            "ids_o": Out(stream.Signature(self._id)),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.queue = queue = Fifo(self._entry, self.parameters.queue)
        m.submodules.entering = entering = Slice(self._entry)
        wiring.connect(m, entering.o, queue.i)
        least = Signal(self._entry)
        clear, cleared, ended = Signal(), Signal(), Signal()
        self._scan(m, entering.i, least.logit, clear, cleared, ended)
        # Both a cycle late: what was the last to enter is counted when `complete` rises.
        empty, complete = Signal(), Signal()
        m.d.sync += [empty.eq((queue.level == 0) & ~entering.o.valid), complete.eq(ended)]
        self._heap(m, queue.o, least, clear, cleared, empty, complete)
        return m

    def _scan(self, m, queue, least, clear, cleared, ended):
        """Read words ahead; at one with entries for the heap stop, queue them, and read again from the next."""
        width, logit_bits = self._ternary.vector_lanes, self.parameters.logit_bits
        lane_bits = (width - 1).bit_length()
        rows, base = Signal(16), Signal(range(self.parameters.vocab + 1))
        last_address, origin, address = Signal(self._address), Signal(self._address), Signal(self._address)
        issue, restart, part, last_part = Signal(), Signal(), self.acc_read.part, Signal()
        m.d.comb += [self.acc_read.en.eq(issue), self.acc_read.addr.eq(origin + address),
                     last_part.eq(part == self._ternary.result_reads - 1)]
        tag = data.StructLayout({"valid": 1, "address": self._address})

        # Stage n of `tags` belongs to the address given n cycles ago; then the word in a register, then what of it is above the least,
        # then the lowest of these, which goes into the queue, and the rest.
        tags = [Signal(tag, name=f"tag{n}") for n in range(self._ternary.acc_read_latency + 4)]
        word_layout = data.ArrayLayout(signed(self._ternary.acc_bits), width)
        words = [Signal(word_layout, name=f"word{n}", reset_less=True) for n in range(3)]
        m.d.comb += [tags[0].valid.eq(issue & last_part), tags[0].address.eq(address)]
        for before, after in zip(tags, tags[1:], strict=False):
            m.d.sync += [after.eq(before), after.valid.eq(before.valid & ~restart)]
        read, chosen = tags[-3], tags[-1]
        first_row = Signal(16 + lane_bits)
        m.d.comb += first_row.eq(read.address << lane_bits)
        above, queueing, found = Signal(width), Signal(), Signal()  # `queueing`: a register, high in QUEUE
        m.d.sync += [Value.cast(words[0]).eq(self.acc_read.data), words[1].eq(words[0])]
        m.d.sync += [above[i].eq(read.valid & ~restart & (words[0][i][:logit_bits].as_signed() > least) & (first_row + i < rows))
                     for i in range(width)]
        m.submodules.picker = picker = Picker(width=width)
        m.d.comb += [found.eq(chosen.valid & picker.some & ~queueing), picker.load.eq(~queueing & ~found), picker.bits.eq(above),
                     picker.drop.eq(queueing & queue.ready)]
        with m.If(picker.load):
            m.d.sync += words[2].eq(words[1])
        logit = reduce(or_, (words[2][i][:logit_bits] & bit.replicate(logit_bits) for i, bit in enumerate(picker.one)))
        stopped = Signal(self._address)
        m.d.comb += [queue.payload.id.eq(base + Cat(picker.number, stopped)), queue.payload.logit.eq(logit.as_signed())]

        def done():
            m.d.sync += [base.eq(base + rows), ended.eq(base + rows >= self.parameters.vocab)]
            m.next = "IDLE"

        m.d.comb += self.busy.eq(1)
        with m.FSM():
            with m.State("IDLE"):
                m.d.comb += [self.busy.eq(0), self.cmd.ready.eq(1)]
                m.d.sync += [self.acc_read.slot.eq(self.cmd.payload.slot), rows.eq(self.cmd.payload.rows), address.eq(0), part.eq(0),
                             origin.eq((self.cmd.payload.at * self._ternary.result_step) >> lane_bits),
                             last_address.eq((self.cmd.payload.rows - 1) >> lane_bits)]
                with m.If(self.cmd.valid):
                    m.next = "SCAN"
                    with m.If(self.cmd.payload.first):
                        m.d.sync += [base.eq(0), ended.eq(0)]
                        m.next = "CLEAR"
            with m.State("CLEAR"):
                m.d.comb += clear.eq(1)
                with m.If(cleared):
                    m.next = "SCAN"
            with m.State("SCAN"):
                m.d.comb += issue.eq(1)
                m.d.sync += [part.eq(Mux(last_part, 0, part + 1)), address.eq(address + last_part)]
                with m.If(found):
                    m.d.comb += restart.eq(1)
                    m.d.sync += [stopped.eq(chosen.address), queueing.eq(1)]
                    m.next = "QUEUE"
                with m.Elif(chosen.valid & (chosen.address == last_address)):
                    m.d.comb += restart.eq(1)
                    done()
            with m.State("QUEUE"):
                m.d.comb += [restart.eq(1), queue.valid.eq(1)]
                m.d.sync += [address.eq(stopped + 1), part.eq(0)]
                with m.If(~picker.more & queue.ready):
                    m.d.sync += queueing.eq(0)
                    m.next = "SCAN"
                    with m.If(stopped == last_address):
                        done()

    def _heap(self, m, entries, least, clear, cleared, empty, ended):
        count, bits = self.parameters.count, self.parameters.logit_bits
        m.submodules.heap = store = memory.Memory(shape=data.ArrayLayout(self._entry, 2), depth=max(2, count // 2), init=[])
        write, read = store.write_port(granularity=1), store.read_port(domain="comb")
        item = Signal(self._entry)
        hole, at_root = Signal(range(count)), Signal(init=1)  # `at_root`: a register, whether `hole` is node 0
        lost, handed_out = C(-(1 << bits), bits + 1), C((1 << bits) - 1, bits + 1)

        # The lesser child of the hole of the cycle before, which is the only one below node 0.
        child, side, second = Signal(self._entry), Signal(), Signal()
        m.d.comb += second.eq(at_root | self._less(read.data[1], read.data[0]))
        m.d.sync += [side.eq(second), child.eq(Mux(second, read.data[1], read.data[0]))]

        def put(entry):
            """Write the node at the hole."""
            m.d.comb += [write.addr.eq(hole >> 1), write.data[0].eq(entry), write.data[1].eq(entry),
                         write.en.eq(Mux(at_root, 0, Mux(hole[0], 2, 1)))]
            with m.If(at_root):
                m.d.sync += least.eq(entry)

        def to_root():
            m.d.sync += [hole.eq(0), at_root.eq(1)]

        left = Signal(range(count + 1))
        handing_out = Signal()

        def settle():
            """The item has its place: back to node 0."""
            put(item)
            to_root()
            m.next = "IDLE"
            with m.If(handing_out):
                m.next = "HAND OUT"

        m.d.comb += read.addr.eq(hole)
        with m.FSM():
            with m.State("IDLE"):
                m.d.sync += [item.eq(entries.payload), left.eq(count)]
                to_root()
                m.d.comb += entries.ready.eq(~clear)
                with m.If(clear):
                    m.next = "CLEAR"
                with m.Elif(entries.valid):
                    with m.If(entries.payload.logit > least.logit):
                        m.next = "SINK"
                with m.Elif(ended & empty & ~handing_out):
                    m.d.sync += handing_out.eq(1)
                    m.next = "HAND OUT"
            with m.State("SINK"):
                with m.If(self._less(child, item)):
                    put(child)
                    m.d.sync += [hole.eq(Mux(at_root, 1, Cat(side, hole))), at_root.eq(0)]
                    m.next = "FETCH"
                with m.Else():
                    settle()
            with m.State("FETCH"):
                m.next = "SINK"
                with m.If(hole >= count // 2):
                    settle()
            with m.State("HAND OUT"):
                m.d.comb += [self.ids_o.valid.eq((left != 0) & ~clear), self.ids_o.payload.eq(least.id)]
                m.d.sync += [item.logit.eq(handed_out), item.id.eq(0)]
                to_root()
                with m.If(clear):
                    m.next = "CLEAR"
                with m.Elif(self.ids_o.valid & self.ids_o.ready):
                    m.d.sync += left.eq(left - 1)
                    m.next = "SINK"
            with m.State("CLEAR"):
                m.d.comb += [entries.ready.eq(1), write.addr.eq(hole), write.en.eq(3)]
                m.d.comb += [write.data[i].logit.eq(lost) for i in range(2)]
                m.d.sync += [hole.eq(hole + 1), handing_out.eq(0), least.logit.eq(lost), least.id.eq(0)]
                with m.If(hole == max(1, count // 2) - 1):
                    m.d.sync += hole.eq(hole)
                    with m.If(empty):
                        m.d.comb += cleared.eq(1)
                        to_root()
                        m.next = "IDLE"

    def _less(self, a, b):
        """Whether entry a goes before b: a lesser logit, or an equal one of a higher id."""
        return Cat(~a.id, a.logit).as_signed() < Cat(~b.id, b.logit).as_signed()
