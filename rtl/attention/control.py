"""Passes over the cache: which queries meet which rows, in what order these are read."""

from __future__ import annotations

from amaranth import Array, C, Cat, Module, Mux, Signal
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out

from tritloom.firmware.commands import DOT
from tritloom.firmware.config import CHUNK
from tritloom.firmware.isa import DotOp
from tritloom.rtl.arith import index_shape
from tritloom.rtl.attention.layouts import HEAD, KEYS, VALUE_SCALES, VALUES, job_layout, run_layout
from tritloom.rtl.attention.parameters import JOBS_AHEAD, AttentionParameters
from tritloom.rtl.commands import command_layout
from tritloom.rtl.memory.interface import read_request_layout
from tritloom.rtl.stream import Fifo, Slice

__all__ = ["PassControl"]


class _Command:
    """The command that was taken last, and its runs. `joining`: it is written to their table; `taking`: a pass takes the next one;
    `shared`: a prefix has been shared."""

    def __init__(self, p: AttentionParameters):
        self.op, self.slots = Signal(DotOp), Signal(range(p.lanes + 1))
        self.ends = Signal(range(p.lanes + 1))  # count + slots
        self.position, self.joining, self.taking = Signal(range(p.context + p.lanes)), Signal(), Signal()
        self.kv_base = Signal(32)
        self.shared = Signal()


class _Pass:
    """Where the passes stand.

    `fresh`: a pass begins with the next run, and then is counted (`started`); `first`, `last_run`: the chunk is the first of its
    pass, its run the last; `remaining`: the run's last position, less those of the chunks before; `chunk_base`: where the chunk lies;
    `lanes`, `all_lanes`: the run is of these; `active`: lanes of the pass. `group_left`, `kv_left`: heads to come, of the group and in all;
    `head_offset`: where this one's cache lies. `before`: the chunk before, whose values are not read yet. `loading`: queries are read.
    """

    def __init__(self, p: AttentionParameters, job: data.StructLayout, command: _Command, run: data.View):
        self.remaining, self.active, self.lanes, self.all_lanes = (
            Signal.like(command.position), Signal.like(command.slots), Signal.like(run.active), Signal())
        self.group_left = Signal(range(p.group + 1))
        self.kv_left = Signal(range(p.kv_heads + 1))
        self.chunk_base = Signal(32)
        self.head_offset, self.fresh, self.first, self.last_run, self.bank, self.parity = (
            Signal(32), Signal(), Signal(), Signal(), Signal(), Signal())
        self.before = Signal(data.StructLayout({"valid": 1, "addr": 32, "job": job}))
        self.started = Signal()
        self.loading = Signal()


class PassControl(wiring.Component):
    """Turn a command into passes over the cache: load the lanes' queries, request chunks, queue jobs.

    A pass takes some queries over all chunks of one key/value head: those that all lanes share, then those of each run of tokens
    that were joined, for its lanes alone. The runs stand in a table, the shared one first. Works ahead until the job queue or both
    query banks are full. Each chunk's reads are its value scales, its keys with their scales, then the value rows of the chunk
    before, without a gap between passes: the softmax of a chunk overlaps the keys of the next.

    Parameters
    ----------
    attention : AttentionParameters

    Members
    -------
    cmd : In(stream of firmware.commands.DOT), busy : Out(1), abandon : In(1)
        `abandon`: drop runs that were joined and not begun.
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
        A pass's keys have all been used; a pass is complete; the LM head is complete.
    candidates_i, ids_o : In(stream), Out(stream), with a short-list only
        Ids of the rows to read; the same ids as their jobs are queued.
    """

    def __init__(self, attention: AttentionParameters):
        self._p = p = attention
        lanes, rows, heads, short_list, vector_words = p.lanes, p.rows, p.heads, p.short_list, p.vector_words
        self._job = job_layout(p)
        lane, slot, ids = index_shape(lanes), index_shape(p.slots), stream.Signature(index_shape(p.vocab))
        super().__init__({
            "cmd": In(stream.Signature(command_layout(DOT))), "busy": Out(1), "abandon": In(1),
            "begin": Out(1), "start": Out(1), "slot": Out(slot), "count": Out(range(lanes + 1)), "several": Out(1),
            "back": Out(range(CHUNK + lanes)).array(lanes),
            "vector_read": Out(wiring.Signature({"slot": Out(slot), "addr": Out(index_shape(vector_words))})),
            "scale_read": Out(wiring.Signature({"slot": Out(slot), "head": Out(index_shape(heads))})),
            "load": Out(wiring.Signature({"en": Out(1), "lane": Out(lane), "word": Out(index_shape(max(vector_words, p.head_words))),
                                          "part": Out(index_shape(rows)), "bank": Out(1), "head": Out(1)})),
            "read_request": Out(stream.Signature(read_request_layout())),
            "jobs": Out(stream.Signature(self._job)),
            "keys_done": In(1), "pass_done": In(1), "head_done": In(1),
        } | ({"candidates_i": In(ids), "ids_o": Out(ids)} if short_list else {}))

    def elaborate(self, platform):
        m, p = Module(), self._p
        m.submodules.requests = requests = Slice(read_request_layout())
        wiring.connect(m, requests.o, wiring.flipped(self.read_request))
        m.submodules.job_queue = queue = Fifo(self._job, JOBS_AHEAD)
        wiring.connect(m, queue.o, wiring.flipped(self.jobs))

        command = _Command(p)
        run, of_all = self._runs(m, command)
        now = _Pass(p, self._job, command, run)
        # Passes whose queries occupy a bank, and passes not yet written out.
        loaded, unfinished = Signal(2), Signal(4)
        m.d.sync += [loaded.eq(loaded + now.started - self.keys_done), unfinished.eq(unfinished + now.started - self.pass_done)]
        job, last_chunk = self._job_of_chunk(m, now)
        request = requests.i.payload

        def hand_over(kind, what, addr, beats):
            """Queue a job, and its read with it; returns whether both were taken."""
            m.d.comb += [queue.i.payload.eq(what), queue.i.payload.kind.eq(kind), request.addr.eq(addr), request.beats.eq(beats),
                         queue.i.valid.eq(requests.i.ready), requests.i.valid.eq(queue.i.ready)]
            return queue.i.ready & requests.i.ready

        last_load = self._load(m, now.loading, command.op == DotOp.HEAD, now.active, now.bank)
        m.d.comb += self.busy.eq(1)
        with m.FSM():
            self._take_command(m, command, now)
            self._begin_run(m, command, now, run, of_all, loaded)
            self._read_chunk(m, command, now, job, last_load, hand_over)
            self._next_chunk(m, now, job, last_chunk, hand_over)
            if p.short_list:
                self._rows_of_candidates(m, hand_over, requests.i, run.kv_base, now.parity)
            else:
                self._rows_of_head(m, queue.i)
            self._finish(m, command, unfinished)
        return m

    def _take_command(self, m, command, now):
        """IDLE, JOIN: note runs, one a command, until one begins. SETUP: before the first pass."""
        p = self._p
        with m.State("IDLE"):
            m.d.comb += [self.busy.eq(0), self.cmd.ready.eq(1)]
            given = self.cmd.payload
            m.d.sync += [command.op.eq(given.op), command.slots.eq(given.count), command.ends.eq(self.count + given.count),
                         command.position.eq(given.position), command.kv_base.eq(given.kv_base)]
            with m.If(self.count == 0):
                m.d.sync += [self.slot.eq(given.slot), *(back.eq(0) for back in self.back)]
            with m.If(self.abandon):
                m.d.sync += [self.count.eq(0), command.shared.eq(0)]
            with m.Elif(self.cmd.valid):
                m.next = "JOIN"
        with m.State("JOIN"):
            m.d.comb += command.joining.eq(1)
            m.next = "IDLE"
            with m.If((command.op == DotOp.ATTEND) | (command.op == DotOp.HEAD)):
                m.next = "SETUP"
        with m.State("SETUP"):
            m.d.comb += [self.begin.eq(1), self.start.eq(command.op == DotOp.ATTEND)]
            m.d.sync += [now.head_offset.eq(0), now.kv_left.eq(p.kv_heads), now.group_left.eq(p.group), now.before.valid.eq(0),
                         now.fresh.eq(1), now.active.eq(self.count)]
            m.next = "PASS"
            with m.If(command.op == DotOp.HEAD):
                m.next = "LOAD"

    def _begin_run(self, m, command, now, run, of_all, loaded):
        """PASS: the pass's next run; a pass begins when one of the two banks is free."""
        p = self._p
        with m.State("PASS"):
            m.d.sync += [now.active.eq(Mux(self.several, self.count, Mux(now.group_left < p.lanes, now.group_left, p.lanes))),
                         now.remaining.eq(run.position), now.chunk_base.eq(run.kv_base + now.head_offset), now.lanes.eq(run.active),
                         now.all_lanes.eq(of_all), now.last_run.eq(run.last), now.first.eq(now.fresh)]
            with m.If(~now.fresh | (loaded < 2)):
                m.d.comb += [now.started.eq(now.fresh), command.taking.eq(1)]
                m.d.sync += now.fresh.eq(0)
                m.next = "VALUE_SCALES"

    def _read_chunk(self, m, command, now, job, last_load, hand_over):
        """VALUE_SCALES, KEYS, VALUES: a chunk's reads. LOAD: the queries, beside the first ones, or the head's hidden vectors."""
        scale_beats = self._p.scale_beats
        with m.State("VALUE_SCALES"):
            with m.If(hand_over(VALUE_SCALES, job, now.chunk_base + self._p.kv_half_bytes, scale_beats)):
                m.next = "KEYS"
                with m.If(now.first):
                    m.next = "LOAD"
        with m.State("LOAD"):
            m.d.comb += now.loading.eq(1)
            with m.If(last_load):
                m.next = "KEYS"
                with m.If(command.op == DotOp.HEAD):
                    m.next = "HEAD"
        with m.State("KEYS"):
            with m.If(hand_over(KEYS, job, now.chunk_base, scale_beats + self._row_beats(job.rows))):
                m.next = "NEXT"
                with m.If(now.before.valid):
                    m.next = "VALUES"
        with m.State("VALUES"):
            with m.If(self._values(now, hand_over)):
                m.next = "NEXT"

    def _next_chunk(self, m, now, job, last_chunk, hand_over):
        """NEXT: on to the next chunk, run, pass, key/value head. LAST_VALUES: of the last chunk of all."""
        p = self._p
        taken = Mux(self.several, 1, now.active)  # of the heads that are left
        with m.State("NEXT"):
            m.d.sync += [
                now.before.valid.eq(1), now.before.job.eq(job),
                now.before.addr.eq(now.chunk_base + p.kv_half_bytes + p.kv_scale_block_bytes),
                now.parity.eq(~now.parity), now.first.eq(0), now.remaining.eq(now.remaining - CHUNK),
                now.chunk_base.eq(now.chunk_base + 2 * p.kv_half_bytes),
            ]
            m.next = "VALUE_SCALES"
            with m.If(last_chunk):
                m.next = "PASS"
                with m.If(now.last_run):
                    m.d.sync += [now.bank.eq(~now.bank), now.fresh.eq(1), now.group_left.eq(now.group_left - taken)]
                    with m.If(now.group_left == taken):
                        m.d.sync += [now.group_left.eq(p.group), now.kv_left.eq(now.kv_left - 1),
                                     now.head_offset.eq(now.head_offset + p.kv_head_bytes)]
                        with m.If(now.kv_left == 1):
                            m.next = "LAST_VALUES"
        with m.State("LAST_VALUES"):
            with m.If(self._values(now, hand_over)):
                m.next = "FINISH"

    def _values(self, now, hand_over):
        """Hand over the value rows of the chunk before."""
        return hand_over(VALUES, now.before.job, now.before.addr, self._row_beats(now.before.job.rows))

    def _rows_of_head(self, m, jobs):
        """HEAD: one job for all rows, which come with the weights."""
        with m.State("HEAD"):
            m.d.comb += [jobs.payload.kind.eq(HEAD), jobs.valid.eq(1)]
            with m.If(jobs.ready):
                m.next = "FINISH"

    def _finish(self, m, command, unfinished):
        """FINISH: wait until everything has left."""
        with m.State("FINISH"):
            with m.If(Mux(command.op == DotOp.ATTEND, unfinished == 0, self.head_done)):
                m.d.sync += [self.count.eq(0), command.shared.eq(0)]
                m.next = "IDLE"

    def _job_of_chunk(self, m, now):
        """The job of the present chunk; returns it, and whether the chunk is the last of its run."""
        p = self._p
        job = Signal(self._job)
        last_chunk, most = now.remaining < CHUNK, CHUNK + p.lanes - 1
        m.d.comb += [
            job.rows.eq(Mux(last_chunk, now.remaining, CHUNK - 1)),
            job.remaining.eq(Mux(now.all_lanes | (now.remaining >= most), most, now.remaining)),
            job.first.eq(now.first), job.last.eq(last_chunk & now.last_run), job.parity.eq(now.parity), job.bank.eq(now.bank),
            job.active.eq(Mux(now.all_lanes | ~self.several, Cat(i < now.active for i in range(p.lanes)), now.lanes)),
        ]
        return job, last_chunk

    def _runs(self, m, command):
        """The table of runs. `joining`: write one; `taking`: advance to the next run, wrapping; `shared`: the first one is the shared
        prefix. Returns the entry, and whether it is the shared prefix."""
        p = self._p
        m.submodules.runs = table = memory.Memory(shape=run_layout(p), depth=p.lanes + 1, init=[])
        write, read = table.write_port(), table.read_port()
        entry, index = Signal(range(1, p.lanes + 2), init=1), Signal(range(p.lanes + 1))
        share = command.op == DotOp.SHARE
        mine = Cat((i >= self.count) & (i < command.ends) for i in range(p.lanes))
        last = Signal.like(command.position)
        m.d.comb += [
            last.eq(command.position + command.slots - 1), write.en.eq(command.joining), write.addr.eq(Mux(share, 0, entry)),
            write.data.position.eq(Mux(share, command.position, last)), write.data.kv_base.eq(command.kv_base), write.data.active.eq(mine),
            write.data.last.eq((command.op == DotOp.ATTEND) | (command.op == DotOp.HEAD)), read.addr.eq(index),
        ]
        m.d.sync += self.several.eq(self.count != 1)
        with m.If(self.count == 0):
            m.d.sync += entry.eq(1)
        with m.If(command.joining):
            m.d.sync += index.eq(~command.shared)
            with m.If(share):
                m.d.sync += command.shared.eq(1)
            with m.Else():
                m.d.sync += [self.count.eq(command.ends), entry.eq(entry + 1)]
                for i, back in enumerate(self.back):
                    with m.If(mine[i]):
                        m.d.sync += back.eq(command.ends - 1 - i)
        with m.Elif(command.taking):
            m.d.sync += index.eq(Mux(read.data.last, ~command.shared, index + 1))
        return read.data, index == 0

    def _rows_of_candidates(self, m, hand_over, requests, table, parity):
        """States that read a beat of scales and a row of the table for each candidate, and queue its job."""
        p = self._p
        group_bits = (p.group_rows - 1).bit_length()
        group_bytes = p.mem_bytes + p.group_rows * p.head_row_bytes
        id_, left = Signal(self.ids_o.payload.shape()), Signal(range(p.short_list + 1))
        group_offset, row_offset, scale_address = Signal(32), Signal(32), Signal(32)
        job = Signal(self._job, name="candidate")
        m.d.comb += [job.head_row.eq(id_[:group_bits]), job.parity.eq(parity), job.last.eq(left == 1),
                     self.ids_o.payload.eq(id_)]
        with m.State("HEAD"):
            m.d.sync += left.eq(p.short_list)
            m.next = "CANDIDATE"
        with m.State("CANDIDATE"):
            m.d.comb += self.candidates_i.ready.eq(1)
            m.d.sync += id_.eq(self.candidates_i.payload)
            with m.If(self.candidates_i.valid):
                m.next = "OFFSETS"
        with m.State("OFFSETS"):
            m.d.sync += [group_offset.eq((id_ >> group_bits) * group_bytes), row_offset.eq(id_[:group_bits] * p.head_row_bytes)]
            m.next = "ADDRESS"
        with m.State("ADDRESS"):
            m.d.sync += [scale_address.eq(table + group_offset), row_offset.eq(row_offset + p.mem_bytes)]
            m.next = "ROW SCALE"
        with m.State("ROW SCALE"):
            m.d.comb += [requests.valid.eq(1), requests.payload.addr.eq(scale_address), requests.payload.beats.eq(1)]
            with m.If(requests.ready):
                m.d.sync += row_offset.eq(scale_address + row_offset)
                m.next = "ROW"
        with m.State("ROW"):
            with m.If(hand_over(HEAD, job, row_offset, p.head_row_bytes // p.mem_bytes)):
                m.d.comb += self.ids_o.valid.eq(1)
                m.d.sync += [parity.eq(~parity), left.eq(left - 1)]
                m.next = "CANDIDATE"
                with m.If(left == 1):
                    m.next = "FINISH"

    def _row_beats(self, rows):
        """Beats of `rows` + 1 rows of a head, as many of them side by side as there are."""
        p = self._p
        beats = [-(-(n // p.rows + 1) * p.rows * p.head_dim // p.mem_bytes) for n in range(CHUNK)]
        return Array(C(n, max(beats).bit_length()) for n in beats)[rows]

    def _load(self, m, loading, is_head, active, bank):
        """While `loading`: read the lanes' vectors word by word; returns whether this is the last cycle."""
        p = self._p
        lane, word = Signal(index_shape(p.lanes)), Signal.like(self.load.word)
        slot, head = self.vector_read.slot, self.scale_read.head
        part_bits = (p.rows - 1).bit_length()
        place = Signal(len(self.vector_read.addr) + part_bits)  # in words of A/R bytes
        after, pass_place = Signal.like(place), Signal.like(place)
        last_word, last = Signal(), Signal()
        m.d.comb += [
            last_word.eq(word == Mux(is_head, p.row_words - 1, p.head_words - 1)), last.eq(last_word & (lane + 1 == active)),
            self.scale_read.slot.eq(slot), self.vector_read.addr.eq(place[part_bits:]), after.eq(place + Mux(is_head, p.rows, 1)),
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
