"""The dot engine: attention over the int8 KV cache, and the LM head."""

from __future__ import annotations

from amaranth import Array, C, Cat, Module, Mux, Signal
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out

from tritloom.firmware.config import CHUNK, KV_SCALE_BYTES
from tritloom.firmware.isa import DotOp
from tritloom.rtl.arith import count_registered, index_shape
from tritloom.rtl.attention.dot import DotLane, accumulator_bits, delay, dot_bits, step_layout
from tritloom.rtl.attention.softmax import LOGIT, Finish, ScoreLane, SoftmaxControl, SoftmaxLane, work_layout
from tritloom.rtl.head.sampler import logit_layout
from tritloom.rtl.stream import Fifo, Slice
from tritloom.rtl.ufloat import UFLOAT, from_word

__all__ = ["COMMAND", "DotEngine", "PassControl", "WorkSequencer"]

COMMAND = data.StructLayout({"op": 2, "slot": 8, "count": 8, "position": 32, "kv_base": 32})
READ_REQUEST = data.StructLayout({"addr": 32, "beats": 16})

VALUE_SCALES, KEYS, VALUES, HEAD = range(4)
JOBS_AHEAD = 16
LOGIT_DEPTH = 16
IDS_DEPTH = 64
"""Ids of a short-list's rows on their way: those of all jobs ahead and of all logits queued, and some more."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def job_layout(lanes: int, group_rows: int = 0) -> data.StructLayout:
    """A read and what it is for: `kind`, visible `rows` less one, `last` of its pass, and what `step_layout` says.

    With a short-list, `head_row`: the place of a head row among the `group_rows` that share a beat of scales.
    """
    head_row = {"head_row": index_shape(group_rows)} if group_rows else {}
    return data.StructLayout({
        "kind": 2, "rows": 4, "remaining": range(CHUNK + lanes), "first": 1, "last": 1, "parity": 1, "bank": 1,
        "active": lanes, **head_row,
    })


class PassControl(wiring.Component):
    """Turn a command into passes over the cache: load the lanes' queries, request chunks, queue jobs.

    A pass takes some queries over all chunks of one key/value head: those that all lanes share, then those of each run of tokens
    that were joined, for its lanes alone. The runs stand in a table, the shared one first. Runs ahead of the jobs as far as
    their queue and the two banks of queries allow. Order of the reads, chunk after chunk (passes follow
    each other seamlessly): value scales, key half, then the value rows of the chunk before; so the
    softmax of a chunk overlaps the keys of the next.

    Parameters
    ----------
    As DotEngine, `slots` among them; `vector_words`: words of A bytes in a slot's buffer.

    Members
    -------
    cmd : In(stream of COMMAND), busy : Out(1), abandon : In(1)
        `abandon`: forget what was joined and not begun.
    begin : Out(1), start : Out(1)
        High for a cycle when a command, an ATTEND command begins: `slot`, `several` and `back` stand from here on.
    slot, count, several : Out
        The first slot, how many there are; whether lanes take slots.
    back : Out
        Positions between each lane's and the last one's of its run.
    vector_read : Out {slot, addr}, scale_read : Out {slot, head}
        Read the buffers; what was read goes where `load` says one cycle later.
    load : Out {en, lane, word, part, bank, head}
        `part`: which A/R bytes of what was read are the query's word; all are the hidden vector's (`head`).
    read_request : Out(stream), jobs : Out(stream)
    keys_done : In(1), pass_done : In(1), head_done : In(1)
        A pass's keys have all been used; a pass, the LM head is complete.
    candidates_i, ids_o : In(stream), Out(stream), with a short-list only
        Ids of the rows to read; the same ids as their jobs are queued.
    """

    def __init__(self, *, lanes: int, slots: int, mem_bytes: int, macs: int, rows: int, heads: int, kv_heads: int, head_dim: int,
                 hidden: int, vocab: int, context: int, group_rows: int, head_row_bytes: int, kv_scale_block_bytes: int,
                 kv_half_bytes: int, kv_head_bytes: int, short_list: int, vector_words: int):
        self._lanes, self._mem_bytes, self._heads, self._kv_heads = lanes, mem_bytes, heads, kv_heads
        self._head_dim, self._context, self._rows = head_dim, context, rows
        self._scale_bytes, self._half_bytes, self._head_bytes = kv_scale_block_bytes, kv_half_bytes, kv_head_bytes
        self._row_words, self._head_words = hidden // macs, head_dim * rows // macs
        self._short_list, self._group_rows, self._head_row_bytes = short_list, group_rows, head_row_bytes
        self._job = job_layout(lanes, group_rows if short_list else 0)
        lane, slot, ids = index_shape(lanes), index_shape(slots), stream.Signature(index_shape(vocab))
        super().__init__({
            "cmd": In(stream.Signature(COMMAND)), "busy": Out(1), "abandon": In(1),
            "begin": Out(1), "start": Out(1), "slot": Out(slot), "count": Out(range(lanes + 1)), "several": Out(1),
            "back": Out(range(CHUNK + lanes)).array(lanes),
            "vector_read": Out(wiring.Signature({"slot": Out(slot), "addr": Out(index_shape(vector_words))})),
            "scale_read": Out(wiring.Signature({"slot": Out(slot), "head": Out(index_shape(heads))})),
            "load": Out(wiring.Signature({"en": Out(1), "lane": Out(lane), "word": Out(index_shape(max(vector_words, self._head_words))),
                                          "part": Out(index_shape(rows)), "bank": Out(1), "head": Out(1)})),
            "read_request": Out(stream.Signature(READ_REQUEST)),
            "jobs": Out(stream.Signature(self._job)),
            "keys_done": In(1), "pass_done": In(1), "head_done": In(1),
        } | ({"candidates_i": In(ids), "ids_o": Out(ids)} if short_list else {}))

    def elaborate(self, platform):
        m = Module()
        m.submodules.requests = requests = Slice(READ_REQUEST)
        wiring.connect(m, requests.o, wiring.flipped(self.read_request))
        m.submodules.job_queue = queue = Fifo(self._job, JOBS_AHEAD)
        wiring.connect(m, queue.o, wiring.flipped(self.jobs))

        op, slots, ends = Signal(DotOp), Signal(range(self._lanes + 1)), Signal(range(self._lanes + 1))  # `ends`: count + slots
        position, kv_base = Signal(range(self._context + self._lanes)), Signal(32)
        joining, taking, shared = Signal(), Signal(), Signal()
        run, of_all = self._runs(m, op, position, slots, ends, kv_base, joining, taking, shared)
        remaining, active, lanes, all_lanes = Signal.like(position), Signal.like(slots), Signal.like(run.active), Signal()
        group = self._heads // self._kv_heads
        group_left = Signal(range(group + 1))
        kv_left = Signal(range(self._kv_heads + 1))
        head_offset, chunk_base = Signal(32), Signal(32)
        fresh, first, last_run, bank, parity = Signal(), Signal(), Signal(), Signal(), Signal()
        before = Signal(data.StructLayout({"valid": 1, "addr": 32, "job": self._job}))

        # Passes whose queries occupy a bank, and passes not yet written out.
        loaded, unfinished = Signal(2), Signal(4)
        started = Signal()
        m.d.sync += [loaded.eq(loaded + started - self.keys_done), unfinished.eq(unfinished + started - self.pass_done)]

        job = Signal(self._job)
        last_chunk, most = remaining < CHUNK, CHUNK + self._lanes - 1
        m.d.comb += [
            job.rows.eq(Mux(last_chunk, remaining, CHUNK - 1)),
            job.remaining.eq(Mux(all_lanes | (remaining >= most), most, remaining)),
            job.first.eq(first), job.last.eq(last_chunk & last_run), job.parity.eq(parity), job.bank.eq(bank),
            job.active.eq(Mux(all_lanes | ~self.several, Cat(i < active for i in range(self._lanes)), lanes)),
        ]
        request = requests.i.payload
        scale_beats = self._scale_bytes // self._mem_bytes

        def hand_over(kind, what, addr, beats):
            """Queue a job, and its read with it; returns whether both were taken."""
            m.d.comb += [queue.i.payload.eq(what), queue.i.payload.kind.eq(kind), request.addr.eq(addr), request.beats.eq(beats),
                         queue.i.valid.eq(requests.i.ready), requests.i.valid.eq(queue.i.ready)]
            return queue.i.ready & requests.i.ready

        loading = Signal()
        last_load = self._load(m, loading, op == DotOp.HEAD, active, bank)

        m.d.comb += self.busy.eq(1)
        with m.FSM():
            with m.State("IDLE"):
                m.d.comb += [self.busy.eq(0), self.cmd.ready.eq(1)]
                command = self.cmd.payload
                m.d.sync += [op.eq(command.op), slots.eq(command.count), ends.eq(self.count + command.count),
                             position.eq(command.position), kv_base.eq(command.kv_base)]
                with m.If(self.count == 0):
                    m.d.sync += [self.slot.eq(command.slot), *(back.eq(0) for back in self.back)]
                with m.If(self.abandon):
                    m.d.sync += [self.count.eq(0), shared.eq(0)]
                with m.Elif(self.cmd.valid):
                    m.next = "JOIN"
            with m.State("JOIN"):
                m.d.comb += joining.eq(1)
                m.next = "IDLE"
                with m.If((op == DotOp.ATTEND) | (op == DotOp.HEAD)):
                    m.next = "SETUP"
            with m.State("SETUP"):
                m.d.comb += [self.begin.eq(1), self.start.eq(op == DotOp.ATTEND)]
                m.d.sync += [head_offset.eq(0), kv_left.eq(self._kv_heads), group_left.eq(group), before.valid.eq(0), fresh.eq(1),
                             active.eq(self.count)]
                m.next = "PASS"
                with m.If(op == DotOp.HEAD):
                    m.next = "LOAD"
            with m.State("PASS"):  # of its runs, the next one
                m.d.sync += [active.eq(Mux(self.several, self.count, Mux(group_left < self._lanes, group_left, self._lanes))),
                             remaining.eq(run.position), chunk_base.eq(run.kv_base + head_offset), lanes.eq(run.active),
                             all_lanes.eq(of_all), last_run.eq(run.last), first.eq(fresh)]
                with m.If(~fresh | (loaded < 2)):
                    m.d.comb += [started.eq(fresh), taking.eq(1)]
                    m.d.sync += fresh.eq(0)
                    m.next = "VALUE_SCALES"
            with m.State("VALUE_SCALES"):
                with m.If(hand_over(VALUE_SCALES, job, chunk_base + self._half_bytes, scale_beats)):
                    m.next = "KEYS"
                    with m.If(first):
                        m.next = "LOAD"
            with m.State("LOAD"):
                m.d.comb += loading.eq(1)
                with m.If(last_load):
                    m.next = "KEYS"
                    with m.If(op == DotOp.HEAD):
                        m.next = "HEAD"
            with m.State("KEYS"):
                with m.If(hand_over(KEYS, job, chunk_base, scale_beats + self._row_beats(job.rows))):
                    m.next = "NEXT"
                    with m.If(before.valid):
                        m.next = "VALUES"
            with m.State("VALUES"):
                with m.If(hand_over(VALUES, before.job, before.addr, self._row_beats(before.job.rows))):
                    m.next = "NEXT"
            with m.State("NEXT"):
                m.d.sync += [
                    before.valid.eq(1), before.job.eq(job), before.addr.eq(chunk_base + self._half_bytes + self._scale_bytes),
                    parity.eq(~parity), first.eq(0), remaining.eq(remaining - CHUNK), chunk_base.eq(chunk_base + 2 * self._half_bytes),
                ]
                m.next = "VALUE_SCALES"
                with m.If(last_chunk):
                    m.next = "PASS"
                    with m.If(last_run):
                        m.d.sync += [bank.eq(~bank), fresh.eq(1), group_left.eq(group_left - Mux(self.several, 1, active))]
                        with m.If(group_left == Mux(self.several, 1, active)):
                            m.d.sync += [group_left.eq(group), kv_left.eq(kv_left - 1), head_offset.eq(head_offset + self._head_bytes)]
                            with m.If(kv_left == 1):
                                m.next = "LAST_VALUES"
            with m.State("LAST_VALUES"):
                with m.If(hand_over(VALUES, before.job, before.addr, self._row_beats(before.job.rows))):
                    m.next = "FINISH"
            if self._short_list:
                self._rows_of_candidates(m, hand_over, requests.i, run.kv_base, parity)
            else:
                with m.State("HEAD"):
                    m.d.comb += [queue.i.payload.kind.eq(HEAD), queue.i.valid.eq(1)]
                    with m.If(queue.i.ready):
                        m.next = "FINISH"
            with m.State("FINISH"):
                with m.If(Mux(op == DotOp.ATTEND, unfinished == 0, self.head_done)):
                    m.d.sync += [self.count.eq(0), shared.eq(0)]
                    m.next = "IDLE"
        return m

    def _runs(self, m, op, position, slots, ends, kv_base, joining, taking, shared):
        """The table of runs. `joining`: enter one; `taking`: the next one is read, round and round; `shared`: there is one of all
        lanes, which comes first. Returns what is read, and whether it is that one."""
        layout = data.StructLayout({"position": position.shape(), "kv_base": 32, "active": self._lanes, "last": 1})
        m.submodules.runs = table = memory.Memory(shape=layout, depth=self._lanes + 1, init=[])
        write, read = table.write_port(), table.read_port()
        entry, index = Signal(range(1, self._lanes + 2), init=1), Signal(range(self._lanes + 1))
        share = op == DotOp.SHARE
        mine = Cat((i >= self.count) & (i < ends) for i in range(self._lanes))
        last = Signal.like(position)
        m.d.comb += [
            last.eq(position + slots - 1), write.en.eq(joining), write.addr.eq(Mux(share, 0, entry)),
            write.data.position.eq(Mux(share, position, last)), write.data.kv_base.eq(kv_base), write.data.active.eq(mine),
            write.data.last.eq((op == DotOp.ATTEND) | (op == DotOp.HEAD)), read.addr.eq(index),
        ]
        m.d.sync += self.several.eq(self.count != 1)
        with m.If(self.count == 0):
            m.d.sync += entry.eq(1)
        with m.If(joining):
            m.d.sync += index.eq(~shared)
            with m.If(share):
                m.d.sync += shared.eq(1)
            with m.Else():
                m.d.sync += [self.count.eq(ends), entry.eq(entry + 1)]
                for i, back in enumerate(self.back):
                    with m.If(mine[i]):
                        m.d.sync += back.eq(ends - 1 - i)
        with m.Elif(taking):
            m.d.sync += index.eq(Mux(read.data.last, ~shared, index + 1))
        return read.data, index == 0

    def _rows_of_candidates(self, m, hand_over, requests, table, parity):
        """States that read a beat of scales and a row of the table for each candidate, and queue its job."""
        group_bits = (self._group_rows - 1).bit_length()
        group_bytes = self._mem_bytes + self._group_rows * self._head_row_bytes
        id_, left = Signal(self.ids_o.payload.shape()), Signal(range(self._short_list + 1))
        group_offset, row_offset, scale_address = Signal(32), Signal(32), Signal(32)
        job = Signal(self._job, name="candidate")
        m.d.comb += [job.head_row.eq(id_[:group_bits]), job.parity.eq(parity), job.last.eq(left == 1),
                     self.ids_o.payload.eq(id_)]
        with m.State("HEAD"):
            m.d.sync += left.eq(self._short_list)
            m.next = "CANDIDATE"
        with m.State("CANDIDATE"):
            m.d.comb += self.candidates_i.ready.eq(1)
            m.d.sync += id_.eq(self.candidates_i.payload)
            with m.If(self.candidates_i.valid):
                m.next = "OFFSETS"
        with m.State("OFFSETS"):
            m.d.sync += [group_offset.eq((id_ >> group_bits) * group_bytes), row_offset.eq(id_[:group_bits] * self._head_row_bytes)]
            m.next = "ADDRESS"
        with m.State("ADDRESS"):
            m.d.sync += [scale_address.eq(table + group_offset), row_offset.eq(row_offset + self._mem_bytes)]
            m.next = "ROW SCALE"
        with m.State("ROW SCALE"):
            m.d.comb += [requests.valid.eq(1), requests.payload.addr.eq(scale_address), requests.payload.beats.eq(1)]
            with m.If(requests.ready):
                m.d.sync += row_offset.eq(scale_address + row_offset)
                m.next = "ROW"
        with m.State("ROW"):
            with m.If(hand_over(HEAD, job, row_offset, self._head_row_bytes // self._mem_bytes)):
                m.d.comb += self.ids_o.valid.eq(1)
                m.d.sync += [parity.eq(~parity), left.eq(left - 1)]
                m.next = "CANDIDATE"
                with m.If(left == 1):
                    m.next = "FINISH"

    def _row_beats(self, rows):
        """Beats of `rows` + 1 rows of a head, as many of them side by side as there are."""
        beats = [-(-(n // self._rows + 1) * self._rows * self._head_dim // self._mem_bytes) for n in range(CHUNK)]
        return Array(C(n, max(beats).bit_length()) for n in beats)[rows]

    def _load(self, m, loading, is_head, active, bank):
        """While `loading`: read the lanes' vectors word by word; returns whether this is the last cycle."""
        lane, word = Signal(index_shape(self._lanes)), Signal.like(self.load.word)
        slot, head = self.vector_read.slot, self.scale_read.head
        part_bits = (self._rows - 1).bit_length()
        place = Signal(len(self.vector_read.addr) + part_bits)  # in words of A/R bytes
        after, pass_place = Signal.like(place), Signal.like(place)
        last_word, last = Signal(), Signal()
        m.d.comb += [
            last_word.eq(word == Mux(is_head, self._row_words - 1, self._head_words - 1)), last.eq(last_word & (lane + 1 == active)),
            self.scale_read.slot.eq(slot), self.vector_read.addr.eq(place[part_bits:]), after.eq(place + Mux(is_head, self._rows, 1)),
        ]
        with m.If(self.begin):
            m.d.sync += [place.eq(0), pass_place.eq(0), slot.eq(self.slot), head.eq(0)]
        with m.Elif(loading):
            m.d.sync += [word.eq(Mux(last_word, 0, word + 1)), place.eq(after)]
            with m.If(last_word):
                m.d.sync += lane.eq(Mux(last, 0, lane + 1))
                with m.If(~self.several):
                    m.d.sync += head.eq(head + 1)
                with m.Elif(last):
                    m.d.sync += [pass_place.eq(after), slot.eq(self.slot), head.eq(head + 1)]
                with m.Else():
                    m.d.sync += [place.eq(pass_place), slot.eq(slot + 1)]
        m.d.sync += [self.load.en.eq(loading), self.load.lane.eq(lane), self.load.word.eq(word), self.load.bank.eq(bank),
                     self.load.head.eq(is_head), self.load.part.eq(place[:part_bits])]
        return last


class WorkSequencer(wiring.Component):
    """Serve the jobs from the two byte streams: scales to their stores, rows to the multipliers in steps.

    Latency: 1 cycle from a beat to its first step.

    Throughput: one step (A bytes) per cycle; one cycle per beat of scales and per job.

    Parameters
    ----------
    As DotEngine; `step`: step_layout.

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
        A pass's outputs, which its last value completed, have left the lanes.
    shift : In(6).array(2).array(lanes), scale_one, scale_eight : Out(lanes)
        Right shift of each lane's output before a chunk's values; what a rescaling step does of it.
    logit_room : In(1), head_done : Out(1)
    """

    def __init__(self, *, lanes: int, macs: int, rows: int, mem_bytes: int, head_dim: int, hidden: int, vocab: int, group_rows: int,
                 kv_scale_block_bytes: int, short_list: int, step: data.StructLayout):
        self._lanes, self._macs, self._rows, self._mem_bytes = lanes, macs, rows, mem_bytes
        self._head_words, self._row_words, self._vocab, self._group_rows = head_dim * rows // macs, hidden // macs, vocab, group_rows
        self._scale_beats, self._short_list = kv_scale_block_bytes // mem_bytes, short_list
        self._head_rows = 1 if short_list else group_rows  # in a job, between two beats of scales
        job = job_layout(lanes, group_rows if short_list else 0)
        scales = wiring.Signature({"en": Out(1), "addr": Out(index_shape(self._scale_beats)), "parity": Out(1), "data": Out(8 * mem_bytes)})
        super().__init__({
            "jobs": In(stream.Signature(job)),
            "read_data": In(stream.Signature(8 * mem_bytes)), "weights_i": In(stream.Signature(8 * mem_bytes)),
            "step": Out(step), "bytes": Out(8 * macs),
            "key_scales": Out(scales), "value_scales": Out(scales),
            "scan": Out(1), "job": Out(job),
            "scan_busy": In(1), "scanned": In(2), "scored": In(2), "weights_ready": In(2), "weights_taken": Out(2),
            "outputs_released": In(1),
            "shift": In(6).array(2).array(lanes), "scale_one": Out(lanes), "scale_eight": Out(lanes),
            "logit_room": In(1), "head_done": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        job, is_head = self.job, Signal()

        # The stream in use, and its beat's next A bytes.
        subs = self._mem_bytes // self._macs
        sub, beat, valid, take = Signal(range(subs)), Signal(8 * self._mem_bytes), Signal(), Signal()
        streamed = C(0, 1) if self._short_list else is_head
        m.d.comb += [
            beat.eq(Mux(streamed, self.weights_i.payload, self.read_data.payload)),
            valid.eq(Mux(streamed, self.weights_i.valid, self.read_data.valid)),
            self.weights_i.ready.eq(take & streamed), self.read_data.ready.eq(take & ~streamed),
        ]
        m.d.comb += [self.key_scales.data.eq(beat), self.value_scales.data.eq(self.read_data.payload)]

        word, row, scale_beat = Signal.like(self.step.word), Signal.like(self.step.row), Signal(index_shape(self._scale_beats))
        parity, row_id = Signal(), Signal(range(self._vocab + self._group_rows))
        left = Array(Signal(6, name=f"left{i}") for i in range(self._lanes))
        eights = Cat(n[3:].any() for n in left)
        some = Cat(n.any() for n in left)
        stepping, outputs_held = Signal(), Signal()

        # `last_word`, `last_row`: registers, what `word` and `rows_left` are compared with.
        last_word, last_row, rows_left = Signal(), Signal(), Signal(range(max(CHUNK, self._group_rows)))

        def advance():
            m.d.sync += [word.eq(Mux(last_word, 0, word + 1)),
                         last_word.eq(Mux(last_word, Mux(is_head, self._row_words == 1, self._head_words == 1),
                                          word == Mux(is_head, self._row_words - 2, self._head_words - 2)))]

        m.d.comb += [self.key_scales.addr.eq(scale_beat), self.key_scales.parity.eq(parity),
                     self.value_scales.addr.eq(scale_beat), self.value_scales.parity.eq(parity)]

        step = Signal(self.step.shape())
        m.d.comb += [
            step.valid.eq(stepping), step.values.eq(job.kind == VALUES), step.first.eq(word == 0), step.last.eq(last_word),
            step.word.eq(word), step.bank.eq(job.bank), step.row.eq(row), step.parity.eq(parity), step.head.eq(is_head),
            step.emit.eq(C(bool(self._short_list), 1) | (row_id < self._vocab)), step.fresh.eq(job.first & (row == 0)),
            step.ends_half.eq(last_word & last_row),
            step.parts.eq(Cat(is_head | (row + i <= job.rows) for i in range(self._rows))),
            step.ends_pass.eq(last_word & last_row & job.last), step.remaining.eq(job.remaining), step.active.eq(job.active),
        ]
        head_piece, piece = (source.payload.word_select(sub, 8 * self._macs) for source in (self.weights_i, self.read_data))
        m.d.sync += [self.step.eq(step),
                     self.bytes.eq(Mux(streamed, head_piece, Mux(job.kind == VALUES, DotLane.by_element(piece, self._rows), piece))),
                     self.scale_one.eq(some & ~eights), self.scale_eight.eq(eights)]

        with m.If(self.outputs_released):
            m.d.sync += outputs_held.eq(0)
        with m.Elif(stepping & step.values & ~step.rescale & step.ends_pass):
            m.d.sync += outputs_held.eq(1)

        with m.FSM():
            with m.State("IDLE"):
                self._next_job(m, outputs_held, is_head, left, word, last_word, row, rows_left, last_row, scale_beat, parity, row_id)
            with m.State("SCALES"):
                last = scale_beat == Mux(is_head, 0, self._scale_beats - 1)
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
                        m.d.sync += [row.eq(Mux(last_row, 0, row + Mux(is_head, 1, self._rows))), row_id.eq(row_id + 1)]
                        m.d.sync += [rows_left.eq(Mux(last_row, self._head_rows - 1, rows_left - 1)),
                                     last_row.eq(Mux(last_row, self._head_rows == 1, rows_left == 1))]
                        with m.If(last_row):
                            m.next = "IDLE"
                            if self._short_list:
                                m.d.comb += self.head_done.eq(is_head & job.last)
                            else:
                                with m.If(is_head):
                                    m.d.sync += parity.eq(~parity)
                                    m.next = "SCALES"
                                    with m.If(row_id >= self._vocab - 1):
                                        m.d.comb += self.head_done.eq(1)
                                        m.next = "IDLE"
        return m

    def _next_job(self, m, outputs_held, is_head, left, word, last_word, row, rows_left, last_row, scale_beat, parity, row_id):
        job = self.jobs.payload
        mine = C(1, 2) << job.parity
        shifts = [Mux(job.parity, pair[1], pair[0]) for pair in self.shift]
        m.d.sync += [self.job.eq(job), word.eq(0), row.eq(0), scale_beat.eq(0), row_id.eq(0), parity.eq(job.parity)]
        rows = job.rows >> (self._rows - 1).bit_length()
        m.d.sync += [is_head.eq(job.kind == HEAD), rows_left.eq(rows), last_row.eq(rows == 0), last_word.eq(self._head_words == 1)]
        with m.If(job.kind == HEAD):
            m.d.sync += [rows_left.eq(self._head_rows - 1), last_row.eq(self._head_rows == 1), last_word.eq(self._row_words == 1)]
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
                    if self._short_list:
                        m.d.sync += row.eq(job.head_row)
                    m.next = "SCALES"


class DotEngine(wiring.Component):
    """Attend over the int8 KV cache, and compute the LM head's logits.

    ATTEND: tokens `slot` to `slot + count - 1`, at positions from `position`, attend to all positions up
    to their own; their query codes and scales lie in the engine's buffers, keys and values in memory from
    `kv_base` (firmware/config.py has the layout). For one token the lanes take query heads that share a
    key/value head; for several they take the tokens. Outputs leave as work elements. JOIN, before it: tokens of another
    cache take part; those of all runs are as many as there are lanes or fewer, in slots that follow each other.
    SHARE, before it: positions 0 to `position` at `kv_base`, whole chunks, come before those of each run, and are read once for all.
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
    lanes, slots, macs, rows, vector_lanes, mem_bytes : int
        Lanes, slots of the buffers (at least as many; numbers of slots are cut down to them), A, R, V, M.
    heads, kv_heads, head_dim, hidden, vocab, context : int
        The model's.
    group_rows, head_row_bytes, kv_scale_block_bytes, kv_half_bytes, kv_head_bytes : int
        Memory layout: head rows per beat of scales, bytes of a head row; bytes of a chunk's scales, of half a
        chunk, of a head's cache.
    short_list : int
        Candidates of which HEAD reads the rows; 0: it takes all rows from the weight stream.

    Members
    -------
    cmd : In(stream of COMMAND), busy : Out(1)
    abandon : In(1)
        Forget what was joined and not begun.
    activation_write : {valid, slot, addr, data}
        V codes; `addr` counts words of V codes. Not while busy.
    q_scale_write : {valid, slot, head, scale}
        Scale of a query head. Not while busy.
    weights_i : In(stream of 8*mem_bytes bits)
    read_request : Out(stream {addr, beats}), read_data : In(stream of 8*mem_bytes bits)
    work_write : {valid, slot, addr, data}, work_clear : Out(slots)
        Outputs; slots whose outputs begin anew.
    logits_o : Out(stream of sampler.logit_layout)
    candidates_i : In(stream of token ids), with a short-list
    saturated : Out(range(lanes + 1))
        Visible scores that were clamped, a few cycles before (`integer.Saturations`).
    """

    def __init__(self, *, lanes: int, slots: int, macs: int, rows: int, vector_lanes: int, mem_bytes: int, heads: int, kv_heads: int,
                 head_dim: int, hidden: int, vocab: int, context: int, group_rows: int, head_row_bytes: int, kv_scale_block_bytes: int,
                 kv_half_bytes: int, kv_head_bytes: int, short_list: int = 0):
        parameters = {"lanes": lanes, "slots": slots, "macs": macs, "rows": rows, "vector_lanes": vector_lanes, "mem_bytes": mem_bytes,
                      "heads": heads, "kv_heads": kv_heads, "head_dim": head_dim, "hidden": hidden, "vocab": vocab, "context": context}
        for name, value in parameters.items():
            _require(isinstance(value, int) and value > 0, f"{name} must be a positive integer, not {value!r}")
        for name in ("macs", "rows", "vector_lanes", "mem_bytes"):
            _require(parameters[name] & (parameters[name] - 1) == 0, f"{name} must be a power of two, not {parameters[name]}")
        _require(lanes <= slots, f"slots ({slots}) must be at least lanes ({lanes})")
        word = macs // rows
        _require(2 <= vector_lanes <= word and macs <= mem_bytes,
                 f"vector_lanes ({vector_lanes}), macs/rows ({word}), mem_bytes ({mem_bytes}) must not fall")
        _require(rows == 1 or 4 * rows <= mem_bytes, f"the scales of {rows} rows must lie in one beat of {mem_bytes} bytes")
        _require(4 <= mem_bytes <= 512, f"mem_bytes must be from 4 to 512, not {mem_bytes}")
        _require(heads % kv_heads == 0, f"heads ({heads}) must be a multiple of kv_heads ({kv_heads})")
        _require(head_dim % word == 0 and hidden % macs == 0,
                 f"macs/rows ({word}) must divide head_dim ({head_dim}), macs ({macs}) must divide hidden ({hidden})")
        _require(head_dim // word >= rows,
                 f"a head must have as many words of {word} bytes as there are rows ({rows}), not {head_dim // word}")
        _require(rows <= word, f"rows ({rows}) must not exceed macs/rows ({word})")
        _require(CHUNK * head_dim % mem_bytes == 0, f"mem_bytes ({mem_bytes}) must divide {CHUNK}*head_dim ({CHUNK * head_dim})")
        _require(group_rows == mem_bytes // 2, f"group_rows must be mem_bytes/2 ({mem_bytes // 2}), not {group_rows}")
        _require(head_row_bytes == -(-hidden // mem_bytes) * mem_bytes, f"head_row_bytes ({head_row_bytes}) must be hidden in whole beats")
        _require(kv_scale_block_bytes == -(-CHUNK * KV_SCALE_BYTES // mem_bytes) * mem_bytes,
                 f"kv_scale_block_bytes ({kv_scale_block_bytes}) must be {CHUNK * KV_SCALE_BYTES} in whole beats")
        _require(kv_half_bytes >= kv_scale_block_bytes + CHUNK * head_dim and kv_half_bytes % mem_bytes == 0,
                 f"kv_half_bytes ({kv_half_bytes}) must hold the scales and {CHUNK} rows, in whole beats")
        _require(0 <= short_list <= vocab, f"short_list must be from 0 to vocab ({vocab}), not {short_list}")
        self._p = parameters | {"group_rows": group_rows, "head_row_bytes": head_row_bytes, "short_list": short_list,
                                "kv_scale_block_bytes": kv_scale_block_bytes, "kv_half_bytes": kv_half_bytes,
                                "kv_head_bytes": kv_head_bytes}
        self._short_list = short_list
        self._lanes, self._slots, self._macs, self._vector_lanes, self._mem_bytes = lanes, slots, macs, vector_lanes, mem_bytes
        self._rows, self._word, self._heads, self._context = rows, word, heads, context
        self._head_words, self._row_words = head_dim // word, hidden // macs
        self._vector_words = -(-max(heads * head_dim, hidden) // macs)
        self._step = step_layout(words=max(self._head_words, self._row_words), rows=rows, group_rows=group_rows, lanes=lanes)
        slot = index_shape(slots)
        self.head_latency = 1 + DotLane.dot_latency(macs, rows) + 1 + Fifo.latency
        super().__init__({
            "cmd": In(stream.Signature(COMMAND)), "busy": Out(1), "abandon": In(1),
            "activation_write": In(wiring.Signature({
                "valid": Out(1), "slot": Out(slot), "addr": Out(index_shape(self._vector_words * macs // vector_lanes)),
                "data": Out(8 * vector_lanes)})),
            "q_scale_write": In(wiring.Signature({
                "valid": Out(1), "slot": Out(slot), "head": Out(index_shape(heads)), "scale": Out(UFLOAT)})),
            "weights_i": In(stream.Signature(8 * mem_bytes)),
            "read_request": Out(stream.Signature(READ_REQUEST)), "read_data": In(stream.Signature(8 * mem_bytes)),
            "work_write": Out(wiring.Signature({
                "valid": Out(1), "slot": Out(slot), "addr": Out(index_shape(heads * head_dim // vector_lanes)),
                "data": Out(work_layout(vector_lanes))})),
            "work_clear": Out(slots),
            "logits_o": Out(stream.Signature(logit_layout(vocab, slots))),
            "saturated": Out(range(lanes + 1)),
        } | ({"candidates_i": In(stream.Signature(index_shape(vocab)))} if short_list else {}))

    def _some(self, *names):
        return {name: self._p[name] for name in names}

    def elaborate(self, platform):
        m = Module()
        m.submodules.control = control = PassControl(vector_words=self._vector_words, **self._some(
            "lanes", "slots", "mem_bytes", "macs", "rows", "heads", "kv_heads", "head_dim", "hidden", "vocab", "context", "group_rows",
            "head_row_bytes", "kv_scale_block_bytes", "kv_half_bytes", "kv_head_bytes", "short_list"))
        m.submodules.sequencer = sequencer = WorkSequencer(step=self._step, **self._some(
            "lanes", "macs", "rows", "mem_bytes", "head_dim", "hidden", "vocab", "group_rows", "kv_scale_block_bytes", "short_list"))
        output_bits = accumulator_bits(self._context)
        m.submodules.finish = finish = Finish(
            word=self._word, head_words=self._head_words, output_bits=output_bits,
            address_words=self._heads * self._p["head_dim"] // self._vector_lanes,
            **self._some("lanes", "slots", "vector_lanes", "context"))
        chunk_layout = job_layout(self._lanes, self._p["group_rows"] if self._short_list else 0)
        m.submodules.softmax = softmax = SoftmaxControl(chunk=chunk_layout, side_by_side=self._rows)

        for port in ("cmd", "read_request"):
            wiring.connect(m, wiring.flipped(getattr(self, port)), getattr(control, port))
        for port in ("read_data", "weights_i"):
            wiring.connect(m, wiring.flipped(getattr(self, port)), getattr(sequencer, port))
        wiring.connect(m, control.jobs, sequencer.jobs)
        wiring.connect(m, finish.write, wiring.flipped(self.work_write))
        m.d.comb += [
            self.busy.eq(control.busy), control.abandon.eq(self.abandon),
            self.work_clear.eq(Mux(control.start, Cat((slot >= control.slot) & (slot < control.slot + control.count)
                                                      for slot in range(self._slots)), 0)),
            control.pass_done.eq(finish.pass_done),
            finish.clear.eq(control.start), finish.slot.eq(control.slot), finish.several.eq(control.several),
            sequencer.outputs_released.eq(finish.released), softmax.finish_busy.eq(finish.busy),
        ]

        # What is known of the two chunks in progress.
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
                                                 3 + DotLane.output_delay(self._rows), "outputs_done"))

        saturated = Signal(self._lanes)
        m.d.comb += self.saturated.eq(count_registered(m, list(saturated), "saturated_sum"))
        sum_bits = dot_bits(max(self._p["head_dim"], self._p["hidden"]))
        scores = []
        for i in range(self._lanes):
            m.submodules[f"dot{i}"] = dot = DotLane(
                macs=self._macs, rows=self._rows, head_words=self._head_words, vector_words=self._row_words,
                sum_bits=sum_bits, output_bits=output_bits, step=self._step)
            m.submodules[f"score{i}"] = score = ScoreLane(dot_bits=sum_bits, dot_delay=dot.latency - 2, step=self._step)
            m.submodules[f"softmax{i}"] = lane = SoftmaxLane(context=self._context, chunk=chunk_layout)
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
        """A row of a dot product per cycle, `valid` from the step with its last word on: the rows side by side follow each other."""
        if self._rows == 1:
            row = Signal.like(step, name="row0")
            m.d.comb += [row.eq(step), row.valid.eq(step.valid & step.last & ~step.values)]
            return row
        left, waiting, row = Signal(self._rows), Signal.like(step, name="waiting"), Signal.like(step, name="row0")
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
        word_bits = (self._vector_words - 1).bit_length()
        part_bits = (self._macs // self._vector_lanes - 1).bit_length()
        m.submodules.activations = store = memory.Memory(shape=8 * self._macs, depth=max(2, self._slots << word_bits), init=[])
        write, read = store.write_port(granularity=8 * self._vector_lanes), store.read_port()
        given = self.activation_write
        m.d.comb += [
            write.en.eq(Mux(given.valid, C(1) << given.addr[:part_bits], 0)),
            write.addr.eq(Cat(given.addr[part_bits:part_bits + word_bits], given.slot)),
            write.data.eq(given.data.replicate(self._macs // self._vector_lanes)),
            read.addr.eq(Cat(control.vector_read.addr[:word_bits], control.vector_read.slot)),
        ]
        head_bits = (self._heads - 1).bit_length()
        m.submodules.query_scales = scales = memory.Memory(shape=UFLOAT, depth=max(2, self._slots << head_bits), init=[])
        scale_write, scale_read = scales.write_port(), scales.read_port()
        given = self.q_scale_write
        m.d.comb += [
            scale_write.en.eq(given.valid), scale_write.addr.eq(Cat(given.head[:head_bits], given.slot)), scale_write.data.eq(given.scale),
            scale_read.addr.eq(Cat(control.scale_read.head[:head_bits], control.scale_read.slot)),
        ]
        return read.data, scale_read.data

    def _load_lane(self, m, control, index, dot, score, vector, query_scale, bank):
        """Pass what the load reads to the lane it is for: a query's word for each of the rows."""
        load = control.load
        if self._rows > 1:
            vector = Mux(load.head, vector, vector.word_select(load.part, 8 * self._word).replicate(self._rows))
        bank_bits = (self._head_words - 1).bit_length()
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
        given = sequencer.key_scales
        read = self._scale_store(m, "key_scales", given, Cat(given.addr[:self._beat_bits], given.parity), 2)
        row = rows[0]
        pack_bits = (self._mem_bytes // 4 - 1).bit_length()
        m.d.comb += read.addr.eq(Cat(Mux(row.head, 0, row.row[min(4, pack_bits):4])[:self._beat_bits], row.parity))
        index = Mux(rows[1].head, rows[1].row[1:], rows[1].row[:min(4, pack_bits)])[:pack_bits]
        word = Signal(32)
        m.d.sync += word.eq(read.data.word_select(index, 32))
        return from_word(word), Mux(rows[2].row[0], word[16:], word[:16])

    def _value_scales(self, m, sequencer, softmax, chunks, newly_scanned):
        """Go through a chunk's value scales once, for their exponents; keep them for the softmax one by one."""
        given = sequencer.value_scales
        read = self._scale_store(m, "value_beats", given, given.addr[:self._beat_bits], 1)
        pack_bits = (self._mem_bytes // 4 - 1).bit_length()
        valid, row, parity, last = Signal(), Signal(4), Signal(), Signal()
        m.d.comb += [last.eq(row == chunks[parity].rows), sequencer.scan_busy.eq(valid), read.addr.eq(row[min(4, pack_bits):])]
        with m.If(sequencer.scan):
            m.d.sync += [valid.eq(1), row.eq(0), parity.eq(sequencer.job.parity)]
        with m.Elif(valid):
            m.d.sync += [row.eq(row + 1), valid.eq(~last)]
        # Not one signal: `last` depends on `parity`, and simulators take signals whole.
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

    @property
    def _beat_bits(self):
        """Address bits of the beats of a chunk's scales."""
        return (self._p["kv_scale_block_bytes"] // self._mem_bytes - 1).bit_length()

    def _scale_store(self, m, name, given, address, banks):
        m.submodules[name] = store = memory.Memory(shape=8 * self._mem_bytes, depth=max(2, banks << self._beat_bits), init=[])
        write, read = store.write_port(), store.read_port()
        m.d.comb += [write.en.eq(given.en), write.addr.eq(address), write.data.eq(given.data)]
        return read

    def _logits(self, m, control, sequencer, scores):
        """Queue the rows' logits, of all lanes together; they leave one by one. A row may start while there is room for all on the way."""
        m.submodules.logits = queue = Fifo(data.ArrayLayout(LOGIT, self._lanes), LOGIT_DEPTH)
        on_the_way = Signal(range(LOGIT_DEPTH + 1))
        step = sequencer.step
        complete, row_leaves, last = Signal(), Signal(), Signal()  # `last`: lane + 1 == control.count
        row, lane = Signal(index_shape(self._p["vocab"])), Signal(index_shape(self._lanes))
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
        if self._short_list:
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
