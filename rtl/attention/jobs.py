"""Jobs: beats of scales to their stores, beats of rows to the multipliers step by step."""

from __future__ import annotations

from amaranth import Array, C, Cat, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from tritloom.firmware.config import CHUNK
from tritloom.rtl.arith import index_shape
from tritloom.rtl.attention.dot import DotLane
from tritloom.rtl.attention.layouts import HEAD, KEYS, VALUE_SCALES, VALUES, job_layout, step_layout
from tritloom.rtl.attention.parameters import AttentionParameters

__all__ = ["WorkSequencer"]


class WorkSequencer(wiring.Component):
    """Serve jobs from the two byte streams: write scales to their memories, stream rows to the multipliers step by step.

    Latency: 1 cycle from a beat to its first step.

    Throughput: one step (A bytes) per cycle; one cycle per beat of scales and per job.

    Parameters
    ----------
    attention : AttentionParameters

    Members
    -------
    jobs : In(stream), read_data : In(stream), weights_i : In(stream)
    step : Out, bytes : Out
    key_scales, value_scales : Out {en, addr, data}
        Beats of scales; key scales also those of head rows.
    scan : Out(1), job : Out
        High for a cycle when value scales are in; the job in progress.
    scan_busy : In(1), scanned, scored : In(2)
        Chunks, by parity, still held by the softmax.
    weights_ready : In(2), weights_taken : Out(2)
        Chunks whose values may be streamed.
    outputs_released : In(1)
        The outputs of a finished pass have left the lanes.
    shift : In(6).array(2).array(lanes), scale_one, scale_eight : Out(lanes)
        Right shift of each lane's output before a chunk's values; how much of it a rescaling step applies.
    logit_room : In(1), head_done : Out(1)
    """

    def __init__(self, attention: AttentionParameters):
        self._p = p = attention
        lanes, mem_bytes, step, job = p.lanes, p.mem_bytes, step_layout(p), job_layout(p)
        scales = wiring.Signature({"en": Out(1), "addr": Out(index_shape(p.scale_beats)), "parity": Out(1), "data": Out(8 * mem_bytes)})
        super().__init__({
            "jobs": In(stream.Signature(job)),
            "read_data": In(stream.Signature(8 * mem_bytes)), "weights_i": In(stream.Signature(8 * mem_bytes)),
            "step": Out(step), "bytes": Out(8 * p.macs),
            "key_scales": Out(scales), "value_scales": Out(scales),
            "scan": Out(1), "job": Out(job),
            "scan_busy": In(1), "scanned": In(2), "scored": In(2), "weights_ready": In(2), "weights_taken": Out(2),
            "outputs_released": In(1),
            "shift": In(6).array(2).array(lanes), "scale_one": Out(lanes), "scale_eight": Out(lanes),
            "logit_room": In(1), "head_done": Out(1),
        })

    def elaborate(self, platform):
        p = self._p
        m = Module()
        job, is_head = self.job, Signal()

        # The selected stream: its beat, and which A bytes of it come next.
        subs = p.mem_bytes // p.macs
        sub, beat, valid, take = Signal(range(subs)), Signal(8 * p.mem_bytes), Signal(), Signal()
        streamed = C(0, 1) if p.short_list else is_head
        m.d.comb += [
            beat.eq(Mux(streamed, self.weights_i.payload, self.read_data.payload)),
            valid.eq(Mux(streamed, self.weights_i.valid, self.read_data.valid)),
            self.weights_i.ready.eq(take & streamed), self.read_data.ready.eq(take & ~streamed),
        ]
        m.d.comb += [self.key_scales.data.eq(beat), self.value_scales.data.eq(self.read_data.payload)]

        word, row, scale_beat = Signal.like(self.step.word), Signal.like(self.step.row), Signal(index_shape(p.scale_beats))
        parity, row_id = Signal(), Signal(range(p.vocab + p.group_rows))
        left = Array(Signal(6, name=f"left{i}") for i in range(p.lanes))
        eights = Cat(n[3:].any() for n in left)
        some = Cat(n.any() for n in left)
        stepping, outputs_held = Signal(), Signal()

        # `last_word`, `last_row`: registered comparisons of `word` and `rows_left` with their last values.
        last_word, last_row, rows_left = Signal(), Signal(), Signal(range(max(CHUNK, p.group_rows)))

        def advance():
            m.d.sync += [word.eq(Mux(last_word, 0, word + 1)),
                         last_word.eq(Mux(last_word, Mux(is_head, p.row_words == 1, p.head_words == 1),
                                          word == Mux(is_head, p.row_words - 2, p.head_words - 2)))]

        m.d.comb += [self.key_scales.addr.eq(scale_beat), self.key_scales.parity.eq(parity),
                     self.value_scales.addr.eq(scale_beat), self.value_scales.parity.eq(parity)]

        step = Signal(self.step.shape())
        m.d.comb += [
            step.valid.eq(stepping), step.values.eq(job.kind == VALUES), step.first.eq(word == 0), step.last.eq(last_word),
            step.word.eq(word), step.bank.eq(job.bank), step.row.eq(row), step.parity.eq(parity), step.head.eq(is_head),
            step.emit.eq(C(bool(p.short_list), 1) | (row_id < p.vocab)), step.fresh.eq(job.first & (row == 0)),
            step.ends_half.eq(last_word & last_row),
            step.parts.eq(Cat(is_head | (row + i <= job.rows) for i in range(p.rows))),
            step.ends_pass.eq(last_word & last_row & job.last), step.remaining.eq(job.remaining), step.active.eq(job.active),
        ]
        head_piece, piece = (source.payload.word_select(sub, 8 * p.macs) for source in (self.weights_i, self.read_data))
        m.d.sync += [self.step.eq(step),
                     self.bytes.eq(Mux(streamed, head_piece, Mux(job.kind == VALUES, DotLane.by_element(piece, p.rows), piece))),
                     self.scale_one.eq(some & ~eights), self.scale_eight.eq(eights)]

        with m.If(self.outputs_released):
            m.d.sync += outputs_held.eq(0)
        with m.Elif(stepping & step.values & ~step.rescale & step.ends_pass):
            m.d.sync += outputs_held.eq(1)

        with m.FSM():
            with m.State("IDLE"):
                self._next_job(m, outputs_held, is_head, left, word, last_word, row, rows_left, last_row, scale_beat, parity, row_id)
            with m.State("SCALES"):
                last = scale_beat == Mux(is_head, 0, p.scale_beats - 1)
                m.d.comb += take.eq(1)
                with m.If(valid):
                    m.d.comb += [self.value_scales.en.eq(job.kind == VALUE_SCALES), self.key_scales.en.eq(job.kind != VALUE_SCALES)]
                    m.d.sync += scale_beat.eq(Mux(last, 0, scale_beat + 1))
                    with m.If(last):
                        m.next = "ROWS"
                        with m.If(job.kind == VALUE_SCALES):
                            m.d.comb += self.scan.eq(1)
                            m.next = "IDLE"
            with m.State("RESCALE"):
                m.d.comb += step.rescale.eq(1)
                with m.If(some.any()):
                    m.d.comb += stepping.eq(1)
                    advance()
                    with m.If(last_word):
                        for n in left:
                            m.d.sync += n.eq(Mux(n[3:].any(), n - 8, Mux(n.any(), n - 1, 0)))
                with m.Else():
                    m.next = "ROWS"
            with m.State("ROWS"):
                room = ~is_head | (word != 0) | self.logit_room
                half_done = last_word & last_row
                beat_done = (sub == subs - 1) | half_done | (is_head & last_word)
                m.d.comb += [take.eq(room & beat_done), stepping.eq(room & valid)]
                with m.If(stepping):
                    advance()
                    m.d.sync += sub.eq(Mux(beat_done, 0, sub + 1))
                    with m.If(last_word):
                        m.d.sync += [row.eq(Mux(last_row, 0, row + Mux(is_head, 1, p.rows))), row_id.eq(row_id + 1)]
                        m.d.sync += [rows_left.eq(Mux(last_row, p.head_rows - 1, rows_left - 1)),
                                     last_row.eq(Mux(last_row, p.head_rows == 1, rows_left == 1))]
                        with m.If(last_row):
                            m.next = "IDLE"
                            if p.short_list:
                                m.d.comb += self.head_done.eq(is_head & job.last)
                            else:
                                with m.If(is_head):
                                    m.d.sync += parity.eq(~parity)
                                    m.next = "SCALES"
                                    with m.If(row_id >= p.vocab - 1):
                                        m.d.comb += self.head_done.eq(1)
                                        m.next = "IDLE"
        return m

    def _next_job(self, m, outputs_held, is_head, left, word, last_word, row, rows_left, last_row, scale_beat, parity, row_id):
        p = self._p
        job = self.jobs.payload
        mine = C(1, 2) << job.parity
        shifts = [Mux(job.parity, pair[1], pair[0]) for pair in self.shift]
        m.d.sync += [self.job.eq(job), word.eq(0), row.eq(0), scale_beat.eq(0), row_id.eq(0), parity.eq(job.parity)]
        rows = job.rows >> (p.rows - 1).bit_length()
        m.d.sync += [is_head.eq(job.kind == HEAD), rows_left.eq(rows), last_row.eq(rows == 0), last_word.eq(p.head_words == 1)]
        with m.If(job.kind == HEAD):
            m.d.sync += [rows_left.eq(p.head_rows - 1), last_row.eq(p.head_rows == 1), last_word.eq(p.row_words == 1)]
        m.d.sync += [n.eq(shift) for n, shift in zip(left, shifts, strict=True)]
        with m.If(self.jobs.valid):
            with m.Switch(job.kind):
                with m.Case(VALUE_SCALES):
                    with m.If(~self.scan_busy & ~(self.scanned & mine).any()):
                        m.d.comb += self.jobs.ready.eq(1)
                        m.next = "SCALES"
                with m.Case(KEYS):
                    with m.If(~(self.scored & mine).any()):
                        m.d.comb += self.jobs.ready.eq(1)
                        m.next = "SCALES"
                with m.Case(VALUES):
                    with m.If((self.weights_ready & mine).any() & ~(job.first & outputs_held)):
                        m.d.comb += [self.jobs.ready.eq(1), self.weights_taken.eq(mine)]
                        m.next = "ROWS"
                        with m.If(~job.first & Cat(shifts).any()):
                            m.next = "RESCALE"
                with m.Case(HEAD):
                    m.d.comb += self.jobs.ready.eq(1)
                    if p.short_list:
                        m.d.sync += row.eq(job.head_row)
                    m.next = "SCALES"
