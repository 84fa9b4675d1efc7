"""The serial unit: the core with its ports to the sequencer, the ternary matrices and the memory system."""

from __future__ import annotations

from amaranth import Cat, Module, Mux, Signal, signed
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from tritloom.firmware.commands import DOT, SAMPLE, VECTOR
from tritloom.rtl.arith import index_shape
from tritloom.rtl.commands import command_layout
from tritloom.rtl.memory.interface import read_request_layout, write_layout
from tritloom.rtl.serial.core import SerialCore
from tritloom.rtl.serial.microcode import External, Outlet
from tritloom.rtl.serial.parameters import SerialParameters
from tritloom.rtl.serial.program import DOT_CODES, SAMPLE_CODE, microprogram
from tritloom.rtl.ternary.tlmm import progress_signature

__all__ = ["SerialUnit"]


class SerialUnit(wiring.Component):
    """Execute the commands of the vector unit, the dot engine and the sampler, one after the other and an element at a time.

    It computes what `firmware.integer` says, for one lane, and follows whole matrices. The token of a SAMPLE is chosen by the HEAD that
    comes after it. Of several sequences each has a token of its own in a pass, so there is nothing to JOIN.

    Throughput: `SerialParameters.cycles`.

    Parameters
    ----------
    serial : SerialParameters

    Members
    -------
    vector, dot, sampler : In(stream of commands)
        They are taken in the order in which they come.
    busy : Out(3)
        Commands under way: those of the vector unit, of the dot engine, of the sampler (until its token is taken).
    writing : Out(1)
        A beat of keys or values waits to be written.
    abandon : In(1)
        While high: give up the sampler's command and its token.
    weights_i : In(stream), read_request : Out(stream), read_data : In(stream), write : Out(stream)
    acc_read, matrices, code_write
        Of `rtl.ternary.tlmm.TernaryMatmul`.
    token_o : Out(stream(32))
    saturated : Out(1)
        An element was clamped (`integer.Saturations`).
    stored : Out {valid, addr, data}
        What is written to the unit's memory, for the trace.
    """

    def __init__(self, serial: SerialParameters):
        self.serial = p = serial
        self.core = SerialCore(serial, microprogram(serial))
        beat = 8 * p.mem_bytes
        super().__init__({
            "vector": In(stream.Signature(command_layout(VECTOR))),
            "dot": In(stream.Signature(command_layout(DOT))),
            "sampler": In(stream.Signature(command_layout(SAMPLE))),
            "busy": Out(3), "writing": Out(1), "abandon": In(1),
            "weights_i": In(stream.Signature(beat)),
            "read_request": Out(stream.Signature(read_request_layout())),
            "read_data": In(stream.Signature(beat)),
            "write": Out(stream.Signature(write_layout(p.mem_bytes))),
            "acc_read": Out(wiring.Signature({
                "en": Out(1), "slot": Out(1), "addr": Out(index_shape(p.max_rows)), "part": Out(1), "data": In(p.acc_bits)})),
            "matrices": In(progress_signature(p.max_rows)),
            "code_write": Out(wiring.Signature({
                "valid": Out(1), "slot": Out(1), "addr": Out(index_shape(p.max_inputs)), "data": Out(8)})),
            "token_o": Out(stream.Signature(32)),
            "saturated": Out(1),
            "stored": Out(wiring.Signature({"valid": Out(1), "addr": Out(self.core.pointer_shape), "data": Out(signed(64))})),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.core = core = self.core
        out = core.outlet
        self._commands(m, core, out)
        self._streams(m, core, out)
        self._outlets(m, core, out)
        beyond = Signal()
        with m.If(out[Outlet.BEYOND]):
            m.d.sync += beyond.eq(core.less)
        m.d.comb += [
            self.acc_read.en.eq(core.fetch), self.acc_read.addr.eq(core.place), core.result.eq(self.acc_read.data),
            self.code_write.valid.eq(core.code), self.code_write.addr.eq(core.target), self.code_write.data.eq(core.value[:8]),
            self.saturated.eq(Mux(beyond, out[Outlet.ELEMENT], out[Outlet.CLAMPED])),
            self.stored.valid.eq(core.written), self.stored.addr.eq(core.target), self.stored.data.eq(core.value),
        ]
        return m

    def _commands(self, m, core, out):
        """A command is kept until it is done."""
        vector, dot, sampler = self.vector, self.dot, self.sampler
        pending, kind = Signal(), Signal(3)
        taken, code = Cat(port.valid & ~pending for port in (vector, dot, sampler)), Signal(4)
        # All of them have the registers of one instruction.
        words = {External.CODE: code, External.FLAGS: Cat(vector.payload.source, vector.payload.norm, vector.payload.dest),
                 External.RS: vector.payload.a, External.RT: vector.payload.b, External.RU: sampler.payload.limits,
                 External.IMM: Cat(vector.payload.length, vector.payload.bank)}
        m.d.comb += [port.ready.eq(~pending) for port in (vector, dot, sampler)]
        m.d.comb += code.eq(Mux(sampler.valid, SAMPLE_CODE, Mux(dot.valid, DOT_CODES + dot.payload.op, vector.payload.op)))
        # Matrices in progress up to the one that the command follows, itself included.
        before, due = Signal.like(self.matrices.under_way), Signal(signed(len(self.matrices.under_way) + 2))
        m.d.comb += due.eq(self.matrices.under_way - vector.payload.follow + 1)
        with m.If(taken.any()):
            m.d.sync += [pending.eq(1), kind.eq(taken), before.eq(Mux((vector.payload.follow != 0) & (due > 0), due, 0))]
            m.d.sync += [core.command[external - External.CODE].eq(word) for external, word in words.items()]
        with m.Elif(self.matrices.done & before.any()):
            m.d.sync += before.eq(before - 1)
        with m.If(out[Outlet.DONE]):
            m.d.sync += pending.eq(0)
        sampling = Signal()
        with m.If(taken[2]):
            m.d.sync += sampling.eq(1)
        with m.Elif(self.abandon | (self.token_o.valid & self.token_o.ready)):
            m.d.sync += sampling.eq(0)
        m.d.comb += [core.waiting.eq(Cat(pending, before == 0)),
                     self.busy.eq(Cat(pending & kind[0], pending & kind[1], sampling | (pending & kind[2])))]

    def _streams(self, m, core, out):
        """The stream whose bytes are taken."""
        chosen = core.from_weights
        m.d.comb += [
            core.beat.eq(Mux(chosen, self.weights_i.payload, self.read_data.payload)),
            core.beat_valid.eq(Mux(chosen, self.weights_i.valid, self.read_data.valid)),
            self.weights_i.ready.eq(core.beat_ready & chosen), self.read_data.ready.eq(core.beat_ready & ~chosen),
        ]

    def _outlets(self, m, core, out):
        """Requests, beats of keys and values byte by byte, tokens."""
        p, value = self.serial, core.value
        request, write, token = self.read_request, self.write, self.token_o
        with m.If(out[Outlet.READ_ADDRESS]):
            m.d.sync += request.payload.addr.eq(value)
        with m.If(request.valid & request.ready):
            m.d.sync += request.valid.eq(0)
        with m.If(out[Outlet.READ]):
            m.d.sync += [request.valid.eq(1), request.payload.beats.eq(value)]

        lane_bits = exact_log2(p.mem_bytes)
        address, beat = Signal(32), write.payload
        lane = address[:lane_bits]
        whole = out[Outlet.WRITE] & lane.all()
        with m.If(write.valid & write.ready):
            m.d.sync += [write.valid.eq(0), beat.strb.eq(0)]
        with m.If(out[Outlet.WRITE_ADDRESS]):
            m.d.sync += address.eq(value)
        with m.If(out[Outlet.WRITE]):
            m.d.sync += [beat.data.word_select(lane, 8).eq(value[:8]), beat.strb.bit_select(lane, 1).eq(1), address.eq(address + 1)]
            m.d.sync += beat.addr.eq(Cat(lane ^ lane, address[lane_bits:]))
        with m.If(whole | (out[Outlet.WRITE_REST] & beat.strb.any())):
            m.d.sync += write.valid.eq(1)
        m.d.comb += self.writing.eq(write.valid)

        with m.If(self.abandon | (token.valid & token.ready)):
            m.d.sync += token.valid.eq(0)
        with m.Elif(out[Outlet.TOKEN]):
            m.d.sync += [token.valid.eq(1), token.payload.eq(value)]
        m.d.comb += core.room.eq(~request.valid & ~write.valid & ~token.valid)
