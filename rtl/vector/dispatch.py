"""Commands in, and what runs when: one state machine, whose states the operations bring."""

from __future__ import annotations

from amaranth import Mux

from tritloom.firmware.isa import VectorOp
from tritloom.rtl.vector.command import Current, Words, slot_bases
from tritloom.rtl.vector.gating import Gating
from tritloom.rtl.vector.loads import Loads
from tritloom.rtl.vector.norm import Norm
from tritloom.rtl.vector.parameters import VectorParameters
from tritloom.rtl.vector.passes import TwoPasses
from tritloom.rtl.vector.qkv import Qkv
from tritloom.rtl.vector.residual import Residual
from tritloom.rtl.vector.results import Results
from tritloom.rtl.vector.scales import ScaleUnit
from tritloom.rtl.vector.stages import FIXED, Stages
from tritloom.rtl.vector.work import WorkVector

__all__ = ["Dispatch"]


class Dispatch:
    """Takes commands, goes through their slots, and hands each slot to its operation.

    PARAM, EMBED and ROPE are `Loads`'; NORMQ, RESID, BIAS, QKV and GLU go from SLOT ADDRESS to SLOT, to the operation's states and over
    NEXT SLOT to the next slot; EMBED and they end in DRAIN.
    """

    def __init__(self, vector: VectorParameters, *, current: Current, stages: Stages, words: Words, results: Results, passes: TwoPasses,
                 scales: ScaleUnit, work: WorkVector, loads: Loads, norm: Norm, residual: Residual, qkv: Qkv, gating: Gating):
        self._p = vector
        self.current, self.stages, self.words, self.results, self.passes = current, stages, words, results, passes
        self.scales, self.work, self.loads = scales, work, loads
        self.norm, self.residual, self.qkv, self.gating = norm, residual, qkv, gating

    def connect(self, m, *, cmd, busy, kv_write, writing):
        current, qkv, given = self.current, self.qkv, cmd.payload
        self.stages.advance(m)
        qkv.connect_writer(m, kv_write, writing)
        self.words.connect(m)
        self.results.read(m, self.words.word)
        self.words.compare(m)
        self.passes.compute_scales(m)
        self.loads.take_beats(m)
        self.gating.count(m)
        qkv.limit(m)
        self.results.follow(m, given, self.words.word, qkv.word1)
        m.d.sync += self.loads.coefficients.write.mask.eq(0)
        m.d.comb += [busy.eq(~current.idle), cmd.ready.eq(current.idle)]
        self.loads.request_read(m)
        m.d.comb += [qkv.writer.chunk_address.eq(current.address), qkv.writer.row.eq(current.position[:4])]
        if self._p.spread:
            m.d.sync += qkv.writer.begin.eq(0)
        # In every cycle, so that no register waits for what decides whether it changes.
        m.d.sync += current.address.eq(current.address + current.step)
        with m.FSM() as states:
            self._take_command(m, cmd)
            self.loads.states(m)
            self._take_slot(m)
            self.norm.states(m)
            self.residual.states(m)
            if qkv.head_norms is not None:
                qkv.head_norms.states(m)
            qkv.states(m)
            self.gating.states(m)
            self._drain(m)
        if self._p.spread:  # Yosys takes a register for each state only if it is told that it may
            states.state.attrs["fsm_encoding"] = "auto"

    def _take_command(self, m, cmd):
        """IDLE: take a command; one for no slots ends at once."""
        p, current, loads, given = self._p, self.current, self.loads, cmd.payload
        with m.State("IDLE"):
            m.d.sync += [is_op.eq(given.op == op) for op, is_op in current.operation.items()]
            m.d.sync += [
                current.command.eq(given),
                current.slot.eq(given.slot),
                current.remaining.eq(given.count),
                current.position.eq(given.a),
                current.address.eq(given.b),
                current.words.eq(given.length >> p.lane_bits),
                self.words.word.eq(0),
                *loads.begin(),
                self.results.begin(given),
            ]
            with m.If(cmd.valid):
                m.d.sync += current.idle.eq(0)
                with m.Switch(given.op):
                    with m.Case(VectorOp.PARAM):
                        m.d.sync += loads.header.eq(1)
                        m.next = "HEADER"
                    with m.Case(VectorOp.EMBED):
                        m.d.sync += [loads.factor.eq(given.a >> loads.id_bits),
                                     loads.addend.eq(p.embedding_row_bytes if p.embedding_group else p.head_group_bytes),
                                     current.words.eq(p.residual_words)]
                        m.next = "ADDRESS"
                    with m.Case(VectorOp.ROPE):
                        m.d.sync += [loads.factor.eq(given.a), loads.addend.eq(p.rope_row_bytes), current.words.eq(p.head_words)]
                        m.next = "ADDRESS"
                    with m.Case(VectorOp.QKV):
                        m.d.sync += [loads.factor.eq(Mux(given.dest[0], 0, given.a >> 4)), loads.addend.eq(2 * p.kv_half_bytes)]
                        m.next = "ADDRESS"
                    with m.Default():
                        m.next = "SLOT ADDRESS"
                with m.If((given.count == 0) & (given.op >= VectorOp.NORMQ)):
                    m.d.sync += current.idle.eq(1)
                    m.next = "IDLE"

    def _take_slot(self, m):
        """Of NORMQ, RESID, BIAS, QKV and GLU, one slot after the other: find its vectors, begin, and go on to the next one."""
        p, current, words = self._p, self.current, self.words
        x_base = slot_bases(p, p.residual_words)
        with m.State("SLOT ADDRESS"):
            of_residual = current.is_op(*current.adding) | (current.is_op(VectorOp.NORMQ) & ~current.command.source)
            m.d.sync += [
                words.base.eq(Mux(of_residual, x_base[current.slot], self.work.base[current.lane])),
                self.loads.rope.eq(p.gain_words + self.loads.rope_base[current.slot]),
            ]
            # What the slot before has written may be read, and its maximum exponent is known.
            with m.If(~self.work.tracking & self.stages.quiet(FIXED + 1, FIXED + 3)):
                m.next = "SLOT"
        with m.State("SLOT"):
            words.rewind(m)
            m.d.comb += self.results.slot_begins.eq(1)
            self.qkv.rewind(m)
            self.gating.rewind(m)
            with m.If(current.is_op(VectorOp.NORMQ)):
                m.next = "FIRST PASS"
            with m.Elif(current.is_op(VectorOp.RESID)):
                self.residual.begin_slot(m)
            if p.adds_biases:
                with m.Elif(current.is_op(VectorOp.BIAS)):
                    self.residual.begin_bias(m)
            with m.Elif(current.is_op(VectorOp.QKV)):
                m.d["sync" if p.spread else "comb"] += self.qkv.writer.begin.eq(1)  # its address stands, its words come much later
                m.next = "QKV" if self.qkv.head_norms is None else "HEAD GAINS"
            with m.Else():
                self.gating.begin_slot(m)
        with m.State("NEXT SLOT"):
            m.d.sync += [current.remaining.eq(current.remaining - 1), current.slot.eq(current.slot + 1),
                         current.position.eq(current.position + 1)]
            with m.If(current.position[:4] == 15):
                m.d.comb += current.step.eq(2 * p.kv_half_bytes)
            m.next = "SLOT ADDRESS"
            with m.If(current.remaining == 1):
                m.next = "DRAIN"

    def _drain(self, m):
        """Wait until everything has been written."""
        scales = self.scales
        with m.State("DRAIN"):
            with m.If(self.stages.quiet(1) & ~self.work.tracking & ~scales.busy & ~scales.done):
                m.d.sync += self.current.idle.eq(1)
                m.next = "IDLE"
