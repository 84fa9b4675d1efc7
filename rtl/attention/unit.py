"""The dot engine: attention over the int8 KV cache, and the LM head.

`control` turns commands into passes and jobs, `jobs` serves these from the two byte streams, `dot` has the multipliers of a lane, `softmax`
its scores and weights, `finish` the division at the end of a pass.
"""

from __future__ import annotations

from amaranth import Array, C, Cat, Module, Mux, Signal
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out

from tritloom.firmware.commands import DOT
from tritloom.firmware.config import CHUNK
from tritloom.rtl.arith import count_registered, index_shape
from tritloom.rtl.attention.control import PassControl
from tritloom.rtl.attention.dot import DotLane, delay, dot_bits
from tritloom.rtl.attention.finish import Finish, work_layout
from tritloom.rtl.attention.jobs import WorkSequencer
from tritloom.rtl.attention.layouts import job_layout, step_layout
from tritloom.rtl.attention.parameters import IDS_DEPTH, LOGIT_DEPTH, AttentionParameters, accumulator_bits
from tritloom.rtl.attention.softmax import LOGIT, ScoreLane, SoftmaxControl, SoftmaxLane
from tritloom.rtl.commands import command_layout
from tritloom.rtl.head.sampler import logit_layout
from tritloom.rtl.memory.interface import read_request_layout
from tritloom.rtl.stream import Fifo
from tritloom.rtl.ufloat import UFLOAT, from_word

__all__ = ["DotEngine"]


class DotEngine(wiring.Component):
    """Attend over the int8 KV cache, and compute the LM head's logits.

    ATTEND: tokens `slot` to `slot + count - 1`, at positions from `position`, attend to all positions up
    to their own; their query codes and scales lie in the engine's buffers, keys and values in memory from
    `kv_base` (firmware/config.py has the layout). For one token the lanes take query heads that share a
    key/value head; for several they take the tokens. Outputs leave as work elements. JOIN, before it: tokens of another
    cache take part; those of all runs are as many as there are lanes or fewer, in slots that follow each other.
    SHARE, before it: positions 0 to `position` at `kv_base`, whole chunks, are a prefix of every run, and are read once for all.
    HEAD: the codes of `count` slots from `slot`, at most one per lane, against the rows of the weight stream. The logits leave row by
    row, in the order of the slots. With a short-list, of one slot, against the rows of `short_list` candidates in the table at
    `kv_base`, in their order.

    Memory beyond what is visible may hold anything.

    Latency: `head_latency` cycles from a head row's last beat to its logit.

    Throughput: `macs` bytes per cycle: 2 * head_dim/macs cycles for each visible position and pass, plus
    three cycles and four beats of scales or fewer per chunk. Softmax and division overlap the streaming.
    HEAD takes hidden/macs cycles per row, or `count` where that is more: logits leave one by one.

    Parameters
    ----------
    attention : AttentionParameters

    Members
    -------
    cmd : In(stream of firmware.commands.DOT), busy : Out(1)
    abandon : In(1)
        Drop runs that were joined and not begun.
    activation_write : {valid, slot, addr, data}
        V codes; `addr` counts words of V codes. Not while busy.
    q_scale_write : {valid, slot, head, scale}
        Scale of a query head. Not while busy.
    weights_i : In(stream of 8*mem_bytes bits)
    read_request : Out(stream {addr, beats}), read_data : In(stream of 8*mem_bytes bits)
    work_write : {valid, slot, addr, data}, work_clear : Out(slots)
        Outputs; slots whose outputs start from element 0.
    logits_o : Out(stream of sampler.logit_layout)
    candidates_i : In(stream of token ids), with a short-list
    saturated : Out(range(lanes + 1))
        Visible scores that were clamped, a few cycles before (`integer.Saturations`).
    """

    def __init__(self, attention: AttentionParameters):
        self._p = p = attention
        v, slot, beats = p.vector_lanes, index_shape(p.slots), stream.Signature(8 * p.mem_bytes)
        self.head_latency = 1 + DotLane.dot_latency(p.macs, p.rows) + 1 + Fifo.latency
        super().__init__({
            "cmd": In(stream.Signature(command_layout(DOT))), "busy": Out(1), "abandon": In(1),
            "activation_write": In(wiring.Signature({
                "valid": Out(1), "slot": Out(slot), "addr": Out(index_shape(p.vector_words * p.macs // v)), "data": Out(8 * v)})),
            "q_scale_write": In(wiring.Signature({
                "valid": Out(1), "slot": Out(slot), "head": Out(index_shape(p.heads)), "scale": Out(UFLOAT)})),
            "weights_i": In(beats),
            "read_request": Out(stream.Signature(read_request_layout())), "read_data": In(beats),
            "work_write": Out(wiring.Signature({
                "valid": Out(1), "slot": Out(slot), "addr": Out(index_shape(p.heads * p.head_dim // v)), "data": Out(work_layout(v))})),
            "work_clear": Out(p.slots),
            "logits_o": Out(stream.Signature(logit_layout(p.vocab, p.slots))),
            "saturated": Out(range(p.lanes + 1)),
        } | ({"candidates_i": In(stream.Signature(index_shape(p.vocab)))} if p.short_list else {}))

    def elaborate(self, platform):
        m = Module()
        p = self._p
        m.submodules.control = control = PassControl(p)
        m.submodules.sequencer = sequencer = WorkSequencer(p)
        output_bits = accumulator_bits(p.context)
        m.submodules.finish = finish = Finish(p)
        chunk_layout = job_layout(p)
        m.submodules.softmax = softmax = SoftmaxControl(chunk=chunk_layout, side_by_side=p.rows)

        for port in ("cmd", "read_request"):
            wiring.connect(m, wiring.flipped(getattr(self, port)), getattr(control, port))
        for port in ("read_data", "weights_i"):
            wiring.connect(m, wiring.flipped(getattr(self, port)), getattr(sequencer, port))
        wiring.connect(m, control.jobs, sequencer.jobs)
        wiring.connect(m, finish.write, wiring.flipped(self.work_write))
        m.d.comb += [
            self.busy.eq(control.busy), control.abandon.eq(self.abandon),
            self.work_clear.eq(Mux(control.start, Cat((slot >= control.slot) & (slot < control.slot + control.count)
                                                      for slot in range(p.slots)), 0)),
            control.pass_done.eq(finish.pass_done),
            finish.clear.eq(control.start), finish.slot.eq(control.slot), finish.several.eq(control.several),
            sequencer.outputs_released.eq(finish.released), softmax.finish_busy.eq(finish.busy),
        ]

        # The two chunks in progress, by parity: value scales scanned, keys scored, weights ready.
        chunks = Array(Signal(chunk_layout, name=f"chunk{i}") for i in range(2))
        chunk = Signal(chunk_layout)
        scanned, scored, weights_ready = Signal(2), Signal(2), Signal(2)
        newly_scanned, newly_scored, newly_ready, done = Signal(2), Signal(2), Signal(2), Signal(2)
        mine = C(1, 2) << softmax.parity
        m.d.comb += [
            chunk.eq(chunks[softmax.parity]), softmax.chunk.eq(chunk),
            done.eq(Mux(softmax.done, mine, 0)), newly_ready.eq(Mux(softmax.started, mine, 0)),
            softmax.ready.eq((scanned & scored & mine).any()),
            control.keys_done.eq((newly_scored[0] & chunks[0].last) | (newly_scored[1] & chunks[1].last)),
            sequencer.scanned.eq(scanned), sequencer.scored.eq(scored), sequencer.weights_ready.eq(weights_ready),
            finish.start.eq(softmax.hand_over), finish.active.eq(chunk.active),
        ]
        m.d.sync += [scanned.eq((scanned & ~done) | newly_scanned), scored.eq((scored & ~done) | newly_scored),
                     weights_ready.eq((weights_ready & ~sequencer.weights_taken) | newly_ready)]
        for i in range(2):
            with m.If(sequencer.scan & (sequencer.job.parity == i)):
                m.d.sync += chunks[i].eq(sequencer.job)

        vector, query_scale = self._buffers(m, control)
        rows = [self._rows_one_by_one(m, sequencer.step)]
        for i in range(2):
            rows.append(delay(m, rows[-1], 1, f"row{i + 1}"))
        key_scale, row_scale = self._key_scales(m, sequencer, rows)
        scan, value_scale = self._value_scales(m, sequencer, softmax, chunks, newly_scanned)
        step = sequencer.step
        m.d.comb += finish.outputs_done.eq(delay(m, step.valid & step.values & ~step.rescale & step.ends_pass,
                                                 3 + DotLane.output_delay(p.rows), "outputs_done"))

        saturated = Signal(p.lanes)
        m.d.comb += self.saturated.eq(count_registered(m, list(saturated), "saturated_sum"))
        sum_bits = dot_bits(max(p.head_dim, p.hidden))
        scores = []
        for i in range(p.lanes):
            m.submodules[f"dot{i}"] = dot = DotLane(
                macs=p.macs, rows=p.rows, head_words=p.head_words, vector_words=p.row_words,
                sum_bits=sum_bits, output_bits=output_bits, step=step_layout(p))
            m.submodules[f"score{i}"] = score = ScoreLane(dot_bits=sum_bits, dot_delay=dot.latency - 2, step=step_layout(p))
            m.submodules[f"softmax{i}"] = lane = SoftmaxLane(context=p.context, chunk=chunk_layout)
            self._load_lane(m, control, i, dot, score, vector, query_scale, rows[2].bank)
            wiring.connect(m, lane.weight_write, dot.weight_write)
            m.d.comb += [
                score.lane.eq(i), lane.lane.eq(i),
                dot.step.eq(sequencer.step), dot.bytes.eq(sequencer.bytes),
                dot.scale_one.eq(sequencer.scale_one[i]), dot.scale_eight.eq(sequencer.scale_eight[i]),
                dot.read_en.eq(finish.read_en), dot.read_word.eq(finish.read_word), finish.outputs[i].eq(dot.output),
                score.row.eq(rows[2]), score.valid.eq(rows[2].valid),
                score.key_scale.eq(key_scale), score.row_scale.eq(row_scale),
                score.back.eq(control.back[i]), lane.back.eq(control.back[i]),
                score.dot.eq(dot.dot), saturated[i].eq(score.saturated),
                score.read_addr.eq(Cat(softmax.row, softmax.parity)), lane.score.eq(score.score),
                lane.top.eq(Mux(softmax.parity, score.top[1], score.top[0])),
                lane.chunk.eq(chunk), lane.value_scale.eq(value_scale),
                sequencer.shift[i][0].eq(lane.shift[0]), sequencer.shift[i][1].eq(lane.shift[1]),
                finish.total[i].eq(lane.total), finish.exponent[i].eq(lane.exponent),
            ]
            m.d.comb += [getattr(lane, name).eq(getattr(softmax, name))
                         for name in ("parity", "begin", "measure", "relate", "apply", "settle", "row_valid", "row")]
            m.d.comb += [getattr(lane.scan, name).eq(value) for name, value in scan.items()]
            scores.append(score)
        m.d.comb += newly_scored.eq(scores[0].scored)
        self._logits(m, control, sequencer, scores)
        return m

    def _rows_one_by_one(self, m, step):
        """Serialise the rows side by side: one row a cycle, from the step with their last word on."""
        p = self._p
        if p.rows == 1:
            row = Signal.like(step, name="row0")
            m.d.comb += [row.eq(step), row.valid.eq(step.valid & step.last & ~step.values)]
            return row
        left, waiting, row = Signal(p.rows), Signal.like(step, name="waiting"), Signal.like(step, name="row0")
        arriving = step.valid & step.last & ~step.values
        others = Signal.like(left)
        m.d.comb += [
            row.eq(Mux(arriving, step, waiting)), row.valid.eq(arriving | left.any()),
            others.eq(Mux(arriving, Mux(step.head, 0, step.parts[1:]), left)),
            row.ends_half.eq(Mux(arriving, step.ends_half, waiting.ends_half) & (Mux(arriving, others, left[1:]) == 0)),
        ]
        m.d.sync += [waiting.eq(row), waiting.row.eq(row.row + 1), left.eq(Mux(arriving, others, left >> 1))]
        with m.If(arriving):
            m.d.sync += waiting.ends_half.eq(step.ends_half)
        with m.Else():
            m.d.sync += waiting.ends_half.eq(waiting.ends_half)
        return row

    def _buffers(self, m, control):
        """Activations and query scales of all slots: written by the vector unit, read by the load."""
        p = self._p
        word_bits = (p.vector_words - 1).bit_length()
        part_bits = (p.macs // p.vector_lanes - 1).bit_length()
        m.submodules.activations = store = memory.Memory(shape=8 * p.macs, depth=max(2, p.slots << word_bits), init=[])
        write, read = store.write_port(granularity=8 * p.vector_lanes), store.read_port()
        given = self.activation_write
        m.d.comb += [
            write.en.eq(Mux(given.valid, C(1) << given.addr[:part_bits], 0)),
            write.addr.eq(Cat(given.addr[part_bits:part_bits + word_bits], given.slot)),
            write.data.eq(given.data.replicate(p.macs // p.vector_lanes)),
            read.addr.eq(Cat(control.vector_read.addr[:word_bits], control.vector_read.slot)),
        ]
        head_bits = (p.heads - 1).bit_length()
        m.submodules.query_scales = scales = memory.Memory(shape=UFLOAT, depth=max(2, p.slots << head_bits), init=[])
        scale_write, scale_read = scales.write_port(), scales.read_port()
        given = self.q_scale_write
        m.d.comb += [
            scale_write.en.eq(given.valid), scale_write.addr.eq(Cat(given.head[:head_bits], given.slot)), scale_write.data.eq(given.scale),
            scale_read.addr.eq(Cat(control.scale_read.head[:head_bits], control.scale_read.slot)),
        ]
        return read.data, scale_read.data

    def _load_lane(self, m, control, index, dot, score, vector, query_scale, bank):
        """Write what the load reads to its lane's vector memory: a query's word once for each of the rows side by side."""
        p = self._p
        load = control.load
        if p.rows > 1:
            vector = Mux(load.head, vector, vector.word_select(load.part, 8 * p.word).replicate(p.rows))
        bank_bits = (p.head_words - 1).bit_length()
        taken = load.en & (load.lane == index)
        scales = [Signal(UFLOAT, name=f"query_scale{index}_{i}") for i in range(2)]
        for i in range(2):
            with m.If(taken & (load.bank == i)):
                m.d.sync += scales[i].eq(query_scale)
        m.d.comb += [
            dot.vector_write.en.eq(taken), dot.vector_write.data.eq(vector),
            dot.vector_write.addr.eq(Mux(load.head, load.word, Cat(load.word[:bank_bits], load.bank))),
            score.query_scale.eq(Mux(bank, scales[1], scales[0])),
        ]

    def _key_scales(self, m, sequencer, rows):
        """The scale of each row, with rows[2]: a key's, or a head row's 16 bits."""
        p = self._p
        given = sequencer.key_scales
        read = self._scale_store(m, "key_scales", given, Cat(given.addr[:p.beat_bits], given.parity), 2)
        row = rows[0]
        pack_bits = (p.mem_bytes // 4 - 1).bit_length()
        m.d.comb += read.addr.eq(Cat(Mux(row.head, 0, row.row[min(4, pack_bits):4])[:p.beat_bits], row.parity))
        index = Mux(rows[1].head, rows[1].row[1:], rows[1].row[:min(4, pack_bits)])[:pack_bits]
        word = Signal(32)
        m.d.sync += word.eq(read.data.word_select(index, 32))
        return from_word(word), Mux(rows[2].row[0], word[16:], word[:16])

    def _value_scales(self, m, sequencer, softmax, chunks, newly_scanned):
        """Scan a chunk's value scales once for the greatest exponent, and keep them for the softmax's weights."""
        p = self._p
        given = sequencer.value_scales
        read = self._scale_store(m, "value_beats", given, given.addr[:p.beat_bits], 1)
        pack_bits = (p.mem_bytes // 4 - 1).bit_length()
        valid, row, parity, last = Signal(), Signal(4), Signal(), Signal()
        m.d.comb += [last.eq(row == chunks[parity].rows), sequencer.scan_busy.eq(valid), read.addr.eq(row[min(4, pack_bits):])]
        with m.If(sequencer.scan):
            m.d.sync += [valid.eq(1), row.eq(0), parity.eq(sequencer.job.parity)]
        with m.Elif(valid):
            m.d.sync += [row.eq(row + 1), valid.eq(~last)]
        # Separate signals: `last` depends on `parity`, and simulators see a loop if both are fields of one signal.
        s1 = Signal(data.StructLayout({"valid": 1, "row": 4, "parity": 1, "last": 1}), name="scan1")
        m.d.sync += [s1.valid.eq(valid), s1.row.eq(row), s1.parity.eq(parity), s1.last.eq(last)]
        s2 = delay(m, s1, 1, "scan2")
        word = Signal(32)
        m.d.sync += word.eq(read.data.word_select(s1.row[:min(4, pack_bits)], 32))
        scale = from_word(word)
        finished = delay(m, s2.valid & s2.last, 1, "scan_last")
        m.d.comb += newly_scanned.eq(Mux(finished, C(1, 2) << delay(m, s2.parity, 1, "scan_parity"), 0))

        m.submodules.value_scales = store = memory.Memory(shape=UFLOAT, depth=2 * CHUNK, init=[])
        write, scale_read = store.write_port(), store.read_port()
        m.d.comb += [
            write.en.eq(s2.valid), write.addr.eq(Cat(s2.row, s2.parity)), write.data.eq(scale),
            scale_read.addr.eq(Cat(softmax.row, softmax.parity)),
        ]
        scan = {"valid": s2.valid, "row": s2.row, "parity": s2.parity, "exponent": scale.e,
                "remaining": chunks[s2.parity].remaining, "active": chunks[s2.parity].active}
        return scan, scale_read.data

    def _scale_store(self, m, name, given, address, banks):
        p = self._p
        m.submodules[name] = store = memory.Memory(shape=8 * p.mem_bytes, depth=max(2, banks << p.beat_bits), init=[])
        write, read = store.write_port(), store.read_port()
        m.d.comb += [write.en.eq(given.en), write.addr.eq(address), write.data.eq(given.data)]
        return read

    def _logits(self, m, control, sequencer, scores):
        """Queue each row's logits of all lanes; they leave one by one. A row may start while the queue has room for all in flight."""
        p = self._p
        m.submodules.logits = queue = Fifo(data.ArrayLayout(LOGIT, p.lanes), LOGIT_DEPTH)
        on_the_way = Signal(range(LOGIT_DEPTH + 1))
        step = sequencer.step
        complete, row_leaves, last = Signal(), Signal(), Signal()  # `last`: lane + 1 == control.count
        row, lane = Signal(index_shape(p.vocab)), Signal(index_shape(p.lanes))
        logit = self.logits_o.payload
        m.d.comb += [
            queue.i.valid.eq(scores[0].logit_valid), queue.i.payload.eq(Cat(score.logit for score in scores)),
            sequencer.logit_room.eq(on_the_way < LOGIT_DEPTH - 1),
            control.head_done.eq(complete & (on_the_way == 0)),
            self.logits_o.valid.eq(queue.o.valid),
            logit.logit.eq(queue.o.payload[lane]), logit.id.eq(row), logit.slot.eq(control.slot + lane),
            queue.o.ready.eq(self.logits_o.ready & last), row_leaves.eq(queue.o.valid & queue.o.ready),
        ]
        m.d.sync += on_the_way.eq(on_the_way + (step.valid & step.head & step.emit & step.first) - row_leaves)
        m.d.sync += last.eq(lane + 1 == control.count)
        with m.If(control.begin | row_leaves):
            m.d.sync += [lane.eq(0), last.eq(control.count == 1)]
        with m.Elif(self.logits_o.valid & self.logits_o.ready):
            m.d.sync += [lane.eq(lane + 1), last.eq(lane + 2 == control.count)]
        if p.short_list:
            m.submodules.ids = ids = Fifo(row.shape(), IDS_DEPTH)
            wiring.connect(m, wiring.flipped(self.candidates_i), control.candidates_i)
            wiring.connect(m, control.ids_o, ids.i)
            m.d.comb += [row.eq(ids.o.payload), ids.o.ready.eq(row_leaves)]
        else:
            with m.If(control.begin):
                m.d.sync += row.eq(0)
            with m.Elif(row_leaves):
                m.d.sync += row.eq(row + 1)
        head_done = delay(m, sequencer.head_done, 3, "head_done")
        with m.If(control.begin):
            m.d.sync += complete.eq(0)
        with m.Elif(head_done):
            m.d.sync += complete.eq(1)
