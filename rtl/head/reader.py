"""From the ternary engine's results to logits: the rows of a head that is ternary by groups."""

from __future__ import annotations

from amaranth import Cat, Module, Mux, Signal
from amaranth.lib import memory, stream, wiring
from amaranth.lib.wiring import In, Out

from tritloom.firmware.commands import SCAN
from tritloom.firmware.integer import GROUPED_LOGIT_BITS
from tritloom.rtl.arith import index_shape
from tritloom.rtl.commands import command_layout
from tritloom.rtl.head.parameters import HeadReaderParameters
from tritloom.rtl.head.sampler import logit_layout

__all__ = ["HeadReader"]


class HeadReader(wiring.Component):
    """Hand the results of a ternary head to the sampler, as logits (`integer.grouped_logits`).

    A command reads `rows` results of a slot from step `at` on, under the slot's next ids; one with `first` begins at id 0. While the
    logits of one word of V results leave, the next is read.

    Latency: `acc_read_latency` + `result_reads` + 3 cycles from a command to its first logit.

    Throughput: V logits in V cycles, or in `result_reads` + `acc_read_latency` + 2 if that is more.

    Parameters
    ----------
    parameters : HeadReaderParameters

    Members
    -------
    cmd : In(stream of firmware.commands.SCAN)
        At least one row. Ready when no other is under way.
    busy : Out(1)
        Results are read or logits wait to be taken: the accumulators must stand.
    acc_read : Out {en, slot, addr, part, data}
    logits_o : Out(stream(logit_layout))
    """

    def __init__(self, parameters: HeadReaderParameters):
        self.parameters, self._ternary = parameters, parameters.ternary
        ternary = parameters.ternary
        super().__init__({
            "cmd": In(stream.Signature(command_layout(SCAN))),
            "busy": Out(1),
            "acc_read": Out(wiring.Signature({
                "en": Out(1), "slot": Out(ternary.slot_bits), "addr": Out(index_shape(ternary.result_words)),
                "part": Out(index_shape(ternary.result_reads)), "data": In(ternary.vector_lanes * ternary.acc_bits)})),
            "logits_o": Out(stream.Signature(logit_layout(parameters.vocab, ternary.lanes))),
        })

    def elaborate(self, platform):
        m, ternary, command = Module(), self._ternary, self.cmd.payload
        width, bits, read = ternary.vector_lanes, ternary.acc_bits, self.acc_read
        lane_bits = (width - 1).bit_length()
        rows, words = Signal(16), Signal(16)  # to leave, to be read
        lane = read.slot[: ternary.lane_bits] if ternary.lane_bits else 0
        m.submodules.ids = ids = memory.Memory(shape=range(self.parameters.vocab + 1), depth=max(2, ternary.lanes), init=[])
        keep, kept = ids.write_port(), ids.read_port(domain="comb")
        place = Signal(range(self.parameters.vocab + 1))

        # Parts of a word are read one after the other; `coming` follows the last one until the word is there.
        reading, last_part = Signal(), Signal()
        coming = Signal(ternary.acc_read_latency)
        word, left = Signal(width * bits, reset_less=True), Signal(range(width + 1))
        ahead, full = Signal(width * bits, reset_less=True), Signal()
        arrives, takes = Signal(), Signal()
        m.d.comb += [
            last_part.eq(read.part == ternary.result_reads - 1), read.en.eq(reading), arrives.eq(coming[-1]),
            self.busy.eq(1),
            self.logits_o.valid.eq(left != 0),
            self.logits_o.payload.logit.eq(word[:bits].as_signed() << GROUPED_LOGIT_BITS),
            self.logits_o.payload.id.eq(place), self.logits_o.payload.slot.eq(lane),
            keep.addr.eq(lane), keep.data.eq(place), kept.addr.eq(command.slot[: ternary.lane_bits] if ternary.lane_bits else 0),
        ]
        m.d.sync += coming.eq(Cat(reading & last_part, coming[:-1]))
        with m.If(reading):
            m.d.sync += read.part.eq(Mux(last_part, 0, read.part + 1))
            with m.If(last_part):
                m.d.sync += [reading.eq(0), read.addr.eq(read.addr + 1), words.eq(words - 1)]
        with m.Elif((words != 0) & ~full & ~coming.any()):
            m.d.sync += reading.eq(1)

        leaves = self.logits_o.valid & self.logits_o.ready
        m.d.comb += takes.eq(full & ((left == 0) | (leaves & (left == 1))))
        with m.If(arrives):
            m.d.sync += [ahead.eq(read.data), full.eq(1)]
        with m.If(leaves):
            m.d.sync += [word.eq(word >> bits), left.eq(left - 1), place.eq(place + 1), rows.eq(rows - 1)]
        with m.If(takes):
            m.d.sync += [word.eq(ahead), full.eq(0), left.eq(Mux((rows - leaves) < width, rows - leaves, width))]
        with m.FSM():
            with m.State("IDLE"):
                m.d.comb += [self.busy.eq(0), self.cmd.ready.eq(1)]
                m.d.sync += [
                    read.slot.eq(command.slot), read.part.eq(0), rows.eq(command.rows), place.eq(Mux(command.first, 0, kept.data)),
                    read.addr.eq((command.at * ternary.result_step) >> lane_bits),
                ]
                with m.If(self.cmd.valid):
                    m.d.sync += words.eq((command.rows + width - 1) >> lane_bits)
                    m.next = "READ"
            with m.State("READ"):
                with m.If(rows == 0):
                    m.d.comb += keep.en.eq(1)
                    m.next = "IDLE"
        return m
