"""Vector unit: everything between the ternary matrices, element by element.

It owns the residual stream, the work vector (activated gates, attention outputs), the norm gains, the
rotary rows and every per-token scale.
"""

from __future__ import annotations

from functools import reduce
from operator import or_

from amaranth import Array, C, Cat, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from tritloom.firmware import integer
from tritloom.firmware.config import KEPT_BITS, PARAM_HEADER_BYTES
from tritloom.firmware.isa import VectorOp
from tritloom.rtl.arith import count_registered, index_shape, larger, reduce_registered, saturate, sign_extend
from tritloom.rtl.ternary.tlmm import progress_signature
from tritloom.rtl.ufloat import UFLOAT, bit_length, shift_right
from tritloom.rtl.vector.glu import WORK, GatedUnit
from tritloom.rtl.vector.kv_writer import KvWriter, write_layout
from tritloom.rtl.vector.quantise import NORMAL_BITS, SQUARE_BITS, Y_BITS, Quantiser
from tritloom.rtl.vector.scales import INNER, ONE, Program, ScaleUnit

__all__ = ["COMMAND", "VectorUnit"]

COMMAND = data.StructLayout({
    "op": 3, "source": 1, "norm": 1, "dest": 2, "slot": 8, "count": 8, "length": 16, "bank": 2, "follow": 3, "a": 32, "b": 32,
})

CHUNK = 16
ACTIVATION_BITS = 24
ALIGNER_BITS = 55
"""Width of the aligning shifter: a residual enters 23 bits up, shifts right by at most 31, and 24 bits leave."""

# Stages of the lane pipeline, counted from the cycle in which a word's addresses are issued.
OPERAND, ALIGNED, Y, CODE, FIXED = 3, 4, 6, 10, 10
LATE_READ = 6
"""Stage in which a residual word is read that an accumulator is added to."""
FIXED_LEFT = 8
"""How far y is shifted left at most on its way to fixed point."""
FIXED_BITS = Y_BITS + FIXED_LEFT


class Kind:
    """What a word in the lane pipeline is: the head it belongs to, or its half of a gate and up pair."""

    QUERY, KEY, VALUE = 0, 1, 2
    GATE, UP = 0, 1


class VectorUnit(wiring.Component):
    """Execute the vector operations of `firmware.isa.VectorOp` for one token slot after the other.

    PARAM loads a header of scales and `length` gains from the weight stream into one of four banks, one for
    each matrix of a layer; the others take theirs from `bank`. EMBED and ROPE read memory. GLU may take a part of the pairs, from word `a`
    on, whose results stand from word `b` on; the part from 0 on comes first. QKV may take the queries only, or the keys and values.
    NORMQ, RESID, QKV and GLU run over slots `slot` to `slot + count - 1`, `length` elements each (RESID and
    NORMQ of the residual: the whole of it). All compute what `firmware.integer` says.

    With `follow` n, RESID, QKV and GLU read results of the n-th matrix commanded before them: RESID and QKV each word once it is
    written, GLU when all are.

    Slots are lanes of `groups` groups: slot = group * 2**ceil(log2(lanes)) + lane. Each has a residual stream of its own;
    slots of a lane share the work vector.

    Throughput, V = vector_lanes (measured in tests/test_vector.py): NORMQ 2*length/V + 60 cycles a slot
    (with norm at least length/V + 100: the scale), RESID length/V + 15, GLU 2*length/V + 20,
    QKV 25 a head, or 2*head_dim/V + 10 if that is more, and 50. Where an accumulator word comes in several parts, RESID, GLU
    and the first pass of QKV take so many times the cycles for their words.

    Parameters
    ----------
    lanes, groups : int
        Lanes, and groups of them.
    vector_lanes, mem_bytes, hidden, ffn, heads, kv_heads, head_dim, activation, acc_bits : int (str)
    attention_macs, attention_rows, group_rows, head_row_bytes, head_group_bytes, rope_row_bytes : int
    kv_scale_block_bytes, kv_half_bytes, kv_head_bytes, kv_write_rows, write_fifo_beats : int
        As in `BuildConfig`.
    sub_norms : bool
        Whether there are gains for the attention's output and the gated activations.
    acc_read_latency, acc_parts : int
        Cycles from the last part of `acc_read.addr` to `acc_read.data`, 1 or 2; parts of a word.
    ultra : bool
        Keep residual streams and work vectors in UltraRAM.

    Members
    -------
    cmd : In(stream of COMMAND), busy : Out, writing : Out
        `writing`: keys or values wait to be written, which is no matter of the next command.
    weights_i : In(stream), read_request : Out(stream), read_data : In(stream), kv_write : Out(stream)
    acc_read : Out {en, slot, addr, part, data}
    matrices : In of tlmm.progress_signature
    code_write, activation_write : Out {valid, slot, addr, data}
    q_scale_write : Out {valid, slot, head, scale}
    work_write : In {valid, slot, addr, data}, work_clear : In(lanes)
        Attention outputs by lane; lanes whose work vectors begin anew.
    logit_scale_write : Out {valid, slot, scale}, x_trace : Out {valid, slot, addr, data}
    saturated : Out(range(V + 1))
        Elements that were clamped, a few cycles before (`integer.Saturations`): of the residual stream, and gates of SiLU.
    """

    def __init__(
        self,
        *,
        lanes: int,
        groups: int,
        vector_lanes: int,
        mem_bytes: int,
        hidden: int,
        ffn: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        activation: str,
        acc_bits: int,
        attention_macs: int,
        attention_rows: int,
        group_rows: int,
        head_row_bytes: int,
        head_group_bytes: int,
        rope_row_bytes: int,
        kv_scale_block_bytes: int,
        kv_half_bytes: int,
        kv_head_bytes: int,
        kv_write_rows: int,
        write_fifo_beats: int,
        sub_norms: bool,
        acc_read_latency: int = 1,
        acc_parts: int = 1,
        ultra: bool = False,
    ):
        for name, value in (
            ("lanes", lanes),
            ("groups", groups),
            ("acc_parts", acc_parts),
            ("hidden", hidden),
            ("ffn", ffn),
            ("heads", heads),
            ("kv_heads", kv_heads),
            ("head_dim", head_dim),
        ):
            if value < 1:
                raise ValueError(f"{name} must be positive, not {value}")
        for name, value in (("vector_lanes", vector_lanes), ("mem_bytes", mem_bytes)):
            if value < 2 or value & (value - 1):
                raise ValueError(f"{name} must be a power of two of at least 2, not {value}")
        if vector_lanes > mem_bytes or mem_bytes < 4:
            raise ValueError(f"mem_bytes must be at least 4 and vector_lanes ({vector_lanes}), not {mem_bytes}")
        for name, value in (("hidden", hidden), ("ffn", ffn), ("head_dim", head_dim)):
            if value % vector_lanes:
                raise ValueError(f"vector_lanes ({vector_lanes}) must divide {name} ({value})")
        if not 9 <= acc_bits <= ACTIVATION_BITS:
            raise ValueError(f"acc_bits must be from 9 to {ACTIVATION_BITS}, not {acc_bits}")
        if acc_read_latency not in (1, 2):
            raise ValueError(f"acc_read_latency must be 1 or 2, not {acc_read_latency}")
        if acc_parts not in (1, 2):
            raise ValueError(f"acc_parts must be 1 or 2, not {acc_parts}")
        self._token_lanes, self._groups, self._lanes, self._bytes = lanes, groups, vector_lanes, mem_bytes
        self._lane_bits = (vector_lanes - 1).bit_length()
        self._heads, self._kv_heads, self._activation, self._acc = heads, kv_heads, activation, acc_bits
        self._acc_latency, self._acc_parts, self._ultra = acc_read_latency, acc_parts, ultra
        self._group_rows, self._head_row, self._head_group, self._rope_row = group_rows, head_row_bytes, head_group_bytes, rope_row_bytes
        self._kv = dict(
            kv_heads=kv_heads,
            head_dim=head_dim,
            attention_macs=attention_macs,
            attention_rows=attention_rows,
            kv_scale_block_bytes=kv_scale_block_bytes,
            kv_half_bytes=kv_half_bytes,
            kv_head_bytes=kv_head_bytes,
            rows=kv_write_rows,
            fifo_beats=write_fifo_beats,
        )
        self._max_inputs = max(hidden, heads * head_dim, ffn)
        max_rows = max((heads + 2 * kv_heads) * head_dim, hidden, 2 * ffn)
        self._x_words, self._h_words = hidden // vector_lanes, max(ffn, heads * head_dim) // vector_lanes
        # Words of V coefficients that a beat brings; vectors of them begin at multiples.
        self._beat_words = max(1, mem_bytes // (2 * vector_lanes))
        bank_words = [self._whole_beats(n // vector_lanes)
                      for n in (hidden, heads * head_dim if sub_norms else 0, hidden, ffn if sub_norms else 0)]
        self._bank_bases = [sum(bank_words[:i]) for i in range(len(bank_words))]
        self._gain_words, self._rope_words = sum(bank_words), head_dim // vector_lanes
        self._token_bits = (lanes - 1).bit_length()
        self._slot = slot = unsigned(max(1, self._token_bits + (groups - 1).bit_length()))
        self._slots = 1 << slot.width
        self._word = index_shape(max_rows // vector_lanes)
        self._place = index_shape(max(lanes * groups * self._x_words, lanes * self._h_words))
        lane = index_shape(lanes)
        code_word = {"valid": Out(1), "slot": Out(slot), "addr": Out(index_shape(self._max_inputs // vector_lanes)),
                     "data": Out(8 * vector_lanes)}
        activations = code_word | {"addr": Out(index_shape(max(hidden, heads * head_dim) // vector_lanes))}
        super().__init__(
            {
                "cmd": In(stream.Signature(COMMAND)),
                "busy": Out(1),
                "writing": Out(1),
                "weights_i": In(stream.Signature(8 * mem_bytes)),
                "read_request": Out(stream.Signature(data.StructLayout({"addr": 32, "beats": 16}))),
                "read_data": In(stream.Signature(8 * mem_bytes)),
                "acc_read": Out(
                    wiring.Signature(
                        {
                            "en": Out(1),
                            "slot": Out(slot),
                            "addr": Out(self._word),
                            "part": Out(index_shape(acc_parts)),
                            "data": In(vector_lanes * acc_bits),
                        }
                    )
                ),
                "matrices": In(progress_signature(max_rows // vector_lanes)),
                "code_write": Out(wiring.Signature(code_word)),
                "activation_write": Out(wiring.Signature(activations)),
                "q_scale_write": Out(
                    wiring.Signature({"valid": Out(1), "slot": Out(slot), "head": Out(index_shape(heads)), "scale": Out(UFLOAT)})
                ),
                "kv_write": Out(stream.Signature(write_layout(mem_bytes))),
                "work_write": In(
                    wiring.Signature(
                        {
                            "valid": Out(1),
                            "slot": Out(lane),
                            "addr": Out(index_shape(self._h_words)),
                            "data": Out(data.ArrayLayout(WORK, vector_lanes)),
                        }
                    )
                ),
                "work_clear": In(lanes),
                "logit_scale_write": Out(wiring.Signature({"valid": Out(1), "slot": Out(self._slot), "scale": Out(UFLOAT)})),
                "saturated": Out(range(vector_lanes + 1)),
                "x_trace": Out(
                    wiring.Signature(
                        {"valid": Out(1), "slot": Out(slot), "addr": Out(index_shape(self._x_words)), "data": Out(32 * vector_lanes)}
                    )
                ),
            }
        )

    def elaborate(self, platform):
        m = Module()
        self._registers()
        self._sequence(m)
        self._slot_scales(m)
        self._load(m)
        self._lane_pipeline(m)
        self._shifter(m)
        self._fixed_point(m)
        self._quantisation(m)
        self._gating(m)
        return m

    # Registers shared by the parts ------------------------------------------------------------------

    def _registers(self):
        lanes = self._lanes
        self.command = Signal(COMMAND)
        # A register for each operation: the command's is decoded once.
        self.operation = {op: Signal(init=op == 0, name=f"is_{op.name.lower()}") for op in VectorOp}
        self.slot, self.remaining = Signal(self._slot), Signal(8)
        self.position, self.address = Signal(32), Signal(32)
        self.words = Signal(range(self._max_inputs // lanes + 1))
        self.parameters = {name: Signal(INNER, name=name) for name in ("inverse_count", "eps", "scale0", "scale1", "scale2")}
        self.gain_exponent = Signal(signed(12))
        self.lane = self.slot[: self._token_bits] if self._token_bits else C(0, 1)
        self.part, self.last_part = Signal(index_shape(self._acc_parts)), Signal()
        self.kept_place = Signal(KEPT_BITS + index_shape(self._rope_words).width)

        # A word's tag travels with it through the lane pipeline; tag 0 is the issue itself.
        tag = data.StructLayout(
            {"valid": 1, "first": 1, "last": 1, "second": 1, "kind": 2, "slot": self._slot, "word": self._word, "place": self._place}
        )
        self.gated = GatedUnit(vector_lanes=lanes, activation=self._activation, acc_bits=self._acc)
        self.quantiser = Quantiser(vector_lanes=lanes, max_elements=self._max_inputs)
        depth = max(OPERAND + self.gated.latency, FIXED + 3, Y + self.quantiser.found_latency)
        self.stage = [Signal(tag, name=f"stage{i}") for i in range(depth + 1)]
        self.acc_address, self.coefficient_address = Signal(self._word), Signal(index_shape(self._coefficient_words))
        self.code_in = Signal(8 * lanes)
        self.coefficient_write = Signal(
            data.StructLayout({"mask": 2, "addr": index_shape(self._coefficient_words), "data": 16 * lanes * self._beat_words})
        )

        self.scales = ScaleUnit(squares_bits=self.quantiser.total_bits)
        # Two-pass bookkeeping: a maximum found but not taken; a division running; its result waiting for the second pass.
        self.found, self.dividing, self.pending = Signal(), Signal(), Signal()
        self.pending_length, self.pending_reciprocal, self.pending_scale = Signal(6), Signal(17), Signal(INNER)
        self.reciprocal_of_y = Signal(17)
        self.head_kind = Signal(2)
        self.tracking = Signal()
        self.maximum_exponent = [Signal(signed(8), init=-128, name=f"maximum_exponent{i}") for i in range(self._token_lanes)]
        self.work_is_one = Signal(self._token_lanes, init=-1)

    @property
    def _coefficient_words(self):
        return self._gain_words + self._token_lanes * self._groups * self._whole_beats(self._rope_words)

    def _whole_beats(self, words):
        """Words of coefficients in the beats that bring `words` of them."""
        return words + -words % self._beat_words

    def _bases(self, words):
        """Where each slot's vector of `words` words begins."""
        lanes = 1 << self._token_bits
        return Array([(i // lanes * self._token_lanes + i % lanes) * words for i in range(self._slots)])

    def _is(self, *ops):
        return reduce(or_, (self.operation[op] for op in ops))

    def _quiet(self, first, last):
        """No valid word in stages `first` to `last`."""
        return ~reduce(or_, (tag.valid for tag in self.stage[first : last + 1]))

    # Control ----------------------------------------------------------------------------------------

    def _sequence(self, m):
        stage, command, scales = self.stage, self.command, self.scales
        issue = stage[0]
        for before, after in zip(stage, stage[1:], strict=False):
            m.d.sync += after.eq(before)
        m.submodules.kv = kv = KvWriter(vector_lanes=self._lanes, mem_bytes=self._bytes, **self._kv)
        wiring.connect(m, kv.o, wiring.flipped(self.kv_write))
        m.d.comb += self.writing.eq(kv.busy)
        self.kv = kv

        word, place = Signal(self._word), Signal(self._place)
        # `reading`, `again`: registers, high in the states that read results, and in a head's second pass.
        reading, again, allowed, going = Signal(), Signal(), Signal(), Signal()
        base = Signal(self._place)
        x_base, rope_base = self._bases(self._x_words), self._bases(self._whole_beats(self._rope_words))
        h_base = Array([i * self._h_words for i in range(self._token_lanes)])
        gain_base = Array(self._bank_bases)
        m.d.comb += [
            issue.slot.eq(self.slot),
            issue.word.eq(word),
            issue.place.eq(place),
            self.acc_read.slot.eq(self.slot),
            self.acc_read.addr.eq(self.acc_address),
            self.acc_read.part.eq(self.part),
            self.acc_address.eq(word),
            self.acc_read.en.eq(reading & (going | again)),
            # The parts of a word are read one after the other.
            going.eq(allowed | (self.part != 0)),
            self.last_part.eq(self.part == self._acc_parts - 1),
        ]
        with m.If(self.acc_read.en):
            m.d.sync += self.part.eq(Mux(self.last_part, 0, self.part + 1))
        last_word, last = Signal(), Signal.like(self.words)
        m.d.sync += last.eq(self.words - 1)
        m.d.comb += last_word.eq(word == last)

        def issue_word(second=0):
            m.d.comb += [
                issue.valid.eq(1),
                issue.first.eq(word == 0),
                issue.last.eq(last_word),
                issue.second.eq(second),
                self.coefficient_address.eq(gain_base[command.bank] + word),
            ]
            m.d.sync += [word.eq(word + 1), place.eq(place + 1)]

        def rewind():
            m.d.sync += [word.eq(0), place.eq(base)]

        # A maximum that was found starts its scale program as soon as the last quotient was taken.
        start_segment = Signal()
        m.d.comb += start_segment.eq(self.found & ~scales.busy & ~self.dividing & ~self.pending)
        with m.If(self.quantiser.found):
            m.d.sync += self.found.eq(1)
        outstanding, first_kind, program = Signal(), Signal(2), Signal(Program)
        m.d.sync += program.eq(Mux(self._is(VectorOp.QKV), Program.HEAD, Mux(command.norm, Program.NORM, Program.QUANTISE)))
        with m.If(start_segment):
            m.d.sync += [self.found.eq(0), self.dividing.eq(1), outstanding.eq(0), self.head_kind.eq(first_kind)]
            m.d.comb += [scales.start.eq(1), scales.program.eq(program)]
        with m.If(scales.divided):
            m.d.sync += [
                self.dividing.eq(0),
                self.pending.eq(1),
                self.pending_length.eq(scales.length),
                self.pending_reciprocal.eq(scales.reciprocal),
                self.pending_scale.eq(scales.t),
            ]

        # Addresses: `address` grows by factor * addend, one bit of the factor per cycle.
        factor, addend = Signal(32), Signal(32)
        id_bits = (self._group_rows - 1).bit_length()
        row_of_group = self.command.a[:id_bits] if id_bits else C(0, 1)
        embed_row = Signal()

        # Memory beats in pieces of V codes; coefficients are written a beat a cycle (or half a word, if V of them fill two beats).
        wide = self._bytes >= 2 * self._lanes
        beat, left = Signal(8 * self._bytes, reset_less=True), Signal(range(self._bytes // self._lanes + 1))
        # Registers that are high in HEADER, COEFFICIENTS, REQUEST, ROW SCALE, SKIP and EMBED: no state is decoded on the way to a beat's
        # bits, nor to the memory.
        header, writing_beat, fetching, skipping, embedding, requesting = Signal(), Signal(), Signal(), Signal(), Signal(), Signal()
        # Registers too: of the beat no piece is left, or one.
        none_left, one_left = Signal(init=1), Signal()
        from_weights, load, take = Signal(), Signal(), Signal()
        skip = Signal(range(self._bytes // self._lanes))
        m.d.sync += from_weights.eq(self._is(VectorOp.PARAM))
        m.d.comb += [
            load.eq(((fetching | embedding) & none_left) | (embedding & one_left)),
            take.eq((embedding & ~none_left) | (skipping & (skip != 0))),
            self.weights_i.ready.eq(header | (writing_beat & from_weights)),
            self.read_data.ready.eq((writing_beat & ~from_weights) | load),
            self.code_in.eq(beat[: 8 * self._lanes]),
        ]
        loaded = Signal()
        beat_written = writing_beat & Mux(from_weights, self.weights_i.valid, self.read_data.valid)
        m.d.comb += loaded.eq(load & self.read_data.valid)
        with m.If(loaded | beat_written):
            m.d.sync += beat.eq(Mux(from_weights, self.weights_i.payload, self.read_data.payload))
        with m.Elif(take):
            m.d.sync += beat.eq(beat >> 8 * self._lanes)
        with m.If(loaded):
            m.d.sync += [left.eq(self._bytes // self._lanes), none_left.eq(0), one_left.eq(self._bytes == self._lanes)]
        with m.Elif(take):
            m.d.sync += [left.eq(left - 1), none_left.eq(one_left), one_left.eq(left == 2)]
        header_beats = -(-PARAM_HEADER_BYTES // self._bytes)
        header_beat = Signal(range(header_beats)) if header_beats > 1 else C(0, 1)
        self.header, self.header_beat, self.beat = header, header_beat, beat
        half = Signal()

        # GLU issues the gate of pair `word` and the up of pair `up`, some pairs behind.
        silu = self._activation == "silu"
        lead = (FIXED - 2 if silu else 0) + self.gated.lead
        behind = (lead - self._acc_parts) // (2 * self._acc_parts)
        self.up_delay = lead - self._acc_parts - 2 * self._acc_parts * behind
        odd, up = Signal(), Signal(index_shape(self._h_words))
        pair = Signal(range(self._h_words + behind + 1))
        gate_word, up_word = Signal(self._word), Signal(self._word)
        glu_first, glu_end = command.a[: len(up)], Signal.like(pair)
        gluing, complete = Signal(), Signal()  # `gluing`: a register, high in GLU
        gating, upping = complete & (pair < glu_end), complete & (pair >= glu_first + behind)
        m.d.comb += complete.eq(self.last_part & going)
        with m.If(gluing & complete):
            m.d.sync += [odd.eq(~odd), pair.eq(pair + odd), gate_word.eq(gate_word + (odd << 1))]
        with m.If(gluing & odd & upping):
            m.d.sync += [up.eq(up + 1), up_word.eq(up_word + 2), place.eq(place + 1)]

        # QKV: heads through the first and the second pass, up to `last_head`.
        total, q_words = self._heads + 2 * self._kv_heads, self._heads * self._rope_words
        head1, head2, word1, word2 = Signal(range(total + 1)), Signal(range(total + 1)), Signal(self._word), Signal(self._word)
        queries_only, others_only = command.dest[0], command.dest[1]
        last_head = Signal.like(head1)
        m.d.comb += last_head.eq(Mux(queries_only, self._heads, total))
        head_word = Signal(index_shape(self._rope_words))
        rope = Signal(index_shape(self._coefficient_words))

        def kind_of(head):
            return Mux(head < self._heads, Kind.QUERY, Mux(head < self._heads + self._kv_heads, Kind.KEY, Kind.VALUE))

        def issue_head(head, running, second):
            # The first pass keeps the words if they come in parts, so that the second need not read them again.
            kept = bool(second) and self._acc_parts > 1
            # What the first pass has read is there: the second must not wait, for its scale is not kept.
            complete = C(1, 1) if kept else self.last_part & (going | second)
            m.d.comb += [
                issue.valid.eq(complete),
                issue.first.eq(head_word == 0),
                issue.second.eq(second),
                issue.kind.eq(kind_of(head)),
                issue.word.eq(running),
                self.acc_address.eq(running),
                self.coefficient_address.eq(rope + head_word),
                self.kept_place.eq(Cat(head_word, head[:KEPT_BITS])),
            ]
            with m.If(complete):
                m.d.sync += [running.eq(running + 1), head_word.eq(head_word + 1)]
                with m.If(head_word == self._rope_words - 1):
                    m.d.comb += issue.last.eq(1)
                    m.d.sync += [head_word.eq(0), head.eq(head + 1), reading.eq(0), again.eq(0)]
                    m.next = "QKV"

        given = self.cmd.payload
        # What may be read in the next cycle: anything, or of the matrix in progress what it has written. Addresses grow by one a cycle
        # at most. GLU cannot stop between a gate and its up.
        before = Signal.like(self.matrices.under_way)
        reach = Mux(self._is(VectorOp.QKV), word1, word)
        written = self.matrices.begun & ~self._is(VectorOp.GLU) & (self.matrices.words > reach + 1)
        slot_begins = Signal()
        m.d.sync += allowed.eq(~slot_begins & ((before == 0) | ((before == 1) & written)))
        due = Signal(signed(len(before) + 2))
        m.d.comb += due.eq(self.matrices.under_way - given.follow + 1)
        with m.If(self.matrices.done & (before != 0)):
            m.d.sync += before.eq(before - 1)

        idle = Signal(init=1)  # a register, high in IDLE
        m.d.sync += self.coefficient_write.mask.eq(0)
        m.d.comb += [self.busy.eq(~idle), self.cmd.ready.eq(idle)]
        # Of an embedding first the scale is read, then the row. Registers: they stand when a read is requested.
        scale_read, beats, of_scale = Signal(), Signal(16), self._is(VectorOp.EMBED) & ~embed_row
        row_beats = Mux(self._is(VectorOp.EMBED), self._head_row // self._bytes, self._rope_row // self._bytes)
        m.d.sync += [scale_read.eq(of_scale), beats.eq(Mux(of_scale, 1, row_beats))]
        m.d.comb += [self.read_request.valid.eq(requesting), self.read_request.payload.addr.eq(self.address),
                     self.read_request.payload.beats.eq(beats)]
        m.d.comb += [kv.chunk_address.eq(self.address), kv.row.eq(self.position[:4])]
        with m.FSM():
            with m.State("IDLE"):
                m.d.sync += [is_op.eq(given.op == op) for op, is_op in self.operation.items()]
                m.d.sync += [
                    command.eq(given),
                    self.slot.eq(given.slot),
                    self.remaining.eq(given.count),
                    self.position.eq(given.a),
                    self.address.eq(given.b),
                    self.words.eq(given.length >> self._lane_bits),
                    word.eq(0),
                    half.eq(0),
                    left.eq(0),
                    none_left.eq(1),
                    one_left.eq(0),
                    embed_row.eq(0),
                    before.eq(Mux((given.follow != 0) & (due > 0), due, 0)),
                ]
                with m.If(self.cmd.valid):
                    m.d.sync += idle.eq(0)
                    with m.Switch(given.op):
                        with m.Case(VectorOp.PARAM):
                            m.d.sync += header.eq(1)
                            m.next = "HEADER"
                        with m.Case(VectorOp.EMBED):
                            m.d.sync += [factor.eq(given.a >> id_bits), addend.eq(self._head_group), self.words.eq(self._x_words)]
                            m.next = "ADDRESS"
                        with m.Case(VectorOp.ROPE):
                            m.d.sync += [factor.eq(given.a), addend.eq(self._rope_row), self.words.eq(self._rope_words)]
                            m.next = "ADDRESS"
                        with m.Case(VectorOp.QKV):
                            m.d.sync += [factor.eq(Mux(given.dest[0], 0, given.a >> 4)), addend.eq(2 * self._kv["kv_half_bytes"])]
                            m.next = "ADDRESS"
                        with m.Default():
                            m.next = "SLOT ADDRESS"
                    with m.If((given.count == 0) & (given.op >= VectorOp.NORMQ)):
                        m.d.sync += idle.eq(1)
                        m.next = "IDLE"

            # Parameters.
            with m.State("HEADER"):
                with m.If(self.weights_i.valid):
                    if header_beats > 1:
                        m.d.sync += header_beat.eq(header_beat + 1)
                    with m.If(header_beat == header_beats - 1):
                        if header_beats > 1:
                            m.d.sync += header_beat.eq(0)
                        m.d.sync += [header.eq(0), writing_beat.eq(self.words != 0)]
                        m.next = "COEFFICIENTS"
                        with m.If(self.words == 0):
                            m.d.sync += idle.eq(1)
                            m.next = "IDLE"
            with m.State("COEFFICIENTS"):
                finish = (word + self._beat_words >= self.words) & (C(1, 1) if wide else half)
                m.d.sync += [
                    self.coefficient_write.addr.eq(Mux(from_weights, gain_base[command.bank], rope) + word),
                    self.coefficient_write.mask.eq(beat_written.replicate(2) if wide else Cat(beat_written & ~half, beat_written & half)),
                ]
                with m.If(beat_written):
                    m.d.sync += half.eq(~half)
                    with m.If(C(1, 1) if wide else half):
                        m.d.sync += word.eq(word + self._beat_words)
                    with m.If(finish):
                        m.d.sync += [writing_beat.eq(0), idle.eq(1)]
                        m.next = "IDLE"

            # Reads from memory.
            with m.State("ADDRESS"):
                m.d.sync += [factor.eq(factor >> 1), addend.eq(addend << 1), rope.eq(self._gain_words + rope_base[self.slot])]
                with m.If(factor[0]):
                    m.d.sync += self.address.eq(self.address + addend)
                with m.If(factor == 0):
                    m.d.sync += requesting.eq(1)
                    m.next = "REQUEST"
                    with m.If(self._is(VectorOp.QKV)):
                        m.d.sync += requesting.eq(0)
                        m.next = "SLOT ADDRESS"
            with m.State("REQUEST"):
                with m.If(self.read_request.ready):
                    m.d.sync += [requesting.eq(0), writing_beat.eq(self._is(VectorOp.ROPE)),
                                 fetching.eq(self._is(VectorOp.EMBED) & embed_row)]
                    m.next = "COEFFICIENTS"
                    with m.If(self._is(VectorOp.EMBED)):
                        m.next = "ROW SCALE"
                    with m.If(scale_read):
                        m.d.sync += [
                            embed_row.eq(1),
                            self.address.eq(self.address + self._bytes),
                            factor.eq(row_of_group),
                            addend.eq(self._head_row),
                        ]
                        m.next = "ADDRESS"

            # Embedding.
            with m.State("ROW SCALE"):
                m.d.sync += skip.eq(row_of_group << 1 >> self._lane_bits)
                with m.If(~none_left):
                    m.d.sync += [fetching.eq(0), skipping.eq(1)]
                    m.next = "SKIP"
            with m.State("SKIP"):
                with m.If(skip == 0):
                    m.d.comb += [scales.start.eq(1), scales.program.eq(Program.EMBED)]
                    m.d.sync += skipping.eq(0)
                    m.next = "EMBED SCALE"
                with m.Else():
                    m.d.sync += skip.eq(skip - 1)
            with m.State("EMBED SCALE"):
                m.d.sync += place.eq(x_base[self.slot])
                with m.If(scales.done):
                    m.d.sync += [left.eq(0), none_left.eq(1), one_left.eq(0), embedding.eq(1)]
                    m.next = "EMBED"
            with m.State("EMBED"):
                with m.If(take):
                    issue_word()
                    with m.If(last_word):
                        m.d.sync += embedding.eq(0)
                        m.next = "DRAIN"

            # One slot after the other.
            with m.State("SLOT ADDRESS"):
                m.d.sync += [
                    base.eq(
                        Mux(self._is(VectorOp.RESID) | (self._is(VectorOp.NORMQ) & ~command.source), x_base[self.slot], h_base[self.lane])
                    ),
                    rope.eq(self._gain_words + rope_base[self.slot]),
                ]
                with m.If(~self.tracking & self._quiet(FIXED + 1, FIXED + 3)):
                    m.next = "SLOT"
            with m.State("SLOT"):
                rewind()
                m.d.comb += slot_begins.eq(1)
                m.d.sync += [head.eq(Mux(others_only, self._heads, 0)) for head in (head1, head2)]
                m.d.sync += [running.eq(Mux(others_only, q_words, 0)) for running in (word1, word2)]
                m.d.sync += [pair.eq(glu_first), odd.eq(0), up.eq(glu_first)]
                m.d.sync += [glu_end.eq(glu_first + self.words), gate_word.eq(command.b), up_word.eq(command.b + 1)]
                with m.If(self._is(VectorOp.GLU)):
                    m.d.sync += place.eq(base + glu_first)
                with m.If(self._is(VectorOp.NORMQ)):
                    m.next = "FIRST PASS"
                with m.Elif(self._is(VectorOp.RESID)):
                    m.d.comb += [scales.start.eq(1), scales.program.eq(Program.RESIDUAL)]
                    m.next = "RESIDUAL SCALE"
                with m.Elif(self._is(VectorOp.QKV)):
                    m.d.comb += kv.begin.eq(1)
                    m.next = "QKV"
                with m.Else():
                    m.d.comb += [scales.start.eq(1), scales.program.eq(Program.SILU if silu else Program.RELU2)]
                    m.next = "GATE SCALE" if silu else "GLU"
                    if not silu:
                        m.d.sync += [reading.eq(1), gluing.eq(1)]
            with m.State("NEXT SLOT"):
                m.d.sync += [self.remaining.eq(self.remaining - 1), self.slot.eq(self.slot + 1), self.position.eq(self.position + 1)]
                with m.If(self.position[:4] == 15):
                    m.d.sync += self.address.eq(self.address + 2 * self._kv["kv_half_bytes"])
                m.next = "SLOT ADDRESS"
                with m.If(self.remaining == 1):
                    m.next = "DRAIN"

            with m.State("FIRST PASS"):
                issue_word()
                with m.If(last_word):
                    rewind()
                    m.next = "WAIT RECIPROCAL"
            with m.State("WAIT RECIPROCAL"):
                with m.If(self.pending):
                    m.d.sync += self.pending.eq(0)
                    m.next = "SECOND PASS"
            with m.State("SECOND PASS"):
                issue_word(second=1)
                with m.If(last_word):
                    m.next = "NORMQ END"
            with m.State("NORMQ END"):
                with m.If(self._quiet(1, CODE - 1) & ~scales.busy & ~scales.done):
                    m.next = "NEXT SLOT"

            with m.State("RESIDUAL SCALE"):
                with m.If(scales.done):
                    m.d.sync += reading.eq(1)
                    m.next = "RESIDUAL"
            with m.State("RESIDUAL"):
                with m.If(self.last_part & going):
                    issue_word()
                    with m.If(last_word):
                        m.d.sync += reading.eq(0)
                        m.next = "RESIDUAL END"
            with m.State("RESIDUAL END"):
                with m.If(self._quiet(1, Y)):
                    m.next = "NEXT SLOT"

            with m.State("QKV"):
                with m.If(self.pending & ((kind_of(head2) == Kind.QUERY) | kv.free)):
                    m.d.comb += kv.reserve.eq(kind_of(head2) != Kind.QUERY)
                    m.d.sync += [self.pending.eq(0), reading.eq(self._acc_parts == 1), again.eq(1)]
                    m.next = "HEAD SECOND PASS"
                with m.Elif(~outstanding & (head1 != last_head)):
                    m.d.sync += [outstanding.eq(1), first_kind.eq(kind_of(head1)), reading.eq(1)]
                    m.next = "HEAD FIRST PASS"
                with m.Elif((head2 == last_head) & self._quiet(1, CODE)):
                    m.next = "NEXT SLOT"
            with m.State("HEAD FIRST PASS"):
                issue_head(head1, word1, 0)
            with m.State("HEAD SECOND PASS"):
                issue_head(head2, word2, 1)

            if silu:
                with m.State("GATE SCALE"):
                    with m.If(scales.done):
                        m.d.sync += [reading.eq(1), gluing.eq(1)]
                        m.next = "GLU"
            with m.State("GLU"):
                with m.If(~odd):
                    m.d.comb += [issue.valid.eq(gating), issue.kind.eq(Kind.GATE), self.acc_address.eq(gate_word)]
                with m.Else():
                    m.d.comb += [issue.valid.eq(upping), issue.kind.eq(Kind.UP), self.acc_address.eq(up_word)]
                    with m.If(upping & (up == glu_end - 1)):
                        m.d.sync += [reading.eq(0), gluing.eq(0)]
                        m.next = "GLU END"
            with m.State("GLU END"):
                with m.If(~scales.busy & ~scales.done):
                    m.next = "NEXT SLOT"

            with m.State("DRAIN"):
                with m.If(self._quiet(1, len(stage) - 1) & ~self.tracking & ~scales.busy & ~scales.done):
                    m.d.sync += idle.eq(1)
                    m.next = "IDLE"

    # Scales -----------------------------------------------------------------------------------------

    def _slot_scales(self, m):
        scales, parameters = self.scales, self.parameters
        m.submodules.scales = scales
        m.submodules.code_scale = code_scale = Memory(shape=INNER, depth=self._slots, init=[])
        m.submodules.work_scale = work_scale = Memory(shape=INNER, depth=self._token_lanes, init=[])
        m.submodules.residual_left = residual_left = Memory(shape=5, depth=self._slots, init=[])
        code_read, work_read, left_read = code_scale.read_port(), work_scale.read_port(), residual_left.read_port()
        code_write, work_write, self.left_write = code_scale.write_port(), work_scale.write_port(), residual_left.write_port()
        m.d.comb += [port.addr.eq(self.slot) for port in (code_read, left_read, code_write)]
        m.d.comb += [port.addr.eq(self.lane) for port in (work_read, work_write)]
        m.d.comb += [
            code_write.data.eq(scales.t),
            code_write.en.eq(scales.done & self._is(VectorOp.NORMQ)),
            work_write.data.eq(scales.w),
            work_write.en.eq(scales.done & self._is(VectorOp.GLU)),
        ]
        m.d.comb += [
            self.logit_scale_write.valid.eq(scales.done & self._is(VectorOp.NORMQ) & self.command.dest.any()),
            self.logit_scale_write.slot.eq(self.slot),
            self.logit_scale_write.scale.m.eq(scales.w.m), self.logit_scale_write.scale.e.eq(scales.w.e),
        ]

        # How the slot's activations stand in their memory: shifted left by `left`, or under the exponent `top`.
        self.left, self.top = Signal(5), Signal(signed(8))
        exponent = Signal(signed(10))
        is_one = Signal()
        from_work = self.command.source
        m.d.sync += [
            self.left.eq(left_read.data),
            self.top.eq(Array(self.maximum_exponent)[self.lane]),
            is_one.eq(Array(self.work_is_one)[self.lane]),
            exponent.eq(Mux(from_work, self.top, -8 - self.left)),
            scales.squares_exponent.eq((exponent + 6) << 1),
        ]
        with m.If(self._is(VectorOp.QKV)):
            m.d.sync += scales.exponent_y.eq(-integer.ROPE_BITS)
        with m.Else():
            m.d.sync += scales.exponent_y.eq(exponent + Mux(self.command.norm, self.gain_exponent, -integer.GAIN_ONE))
        with m.If(from_work & ~is_one):
            m.d.comb += scales.work.eq(work_read.data)
        with m.Else():
            m.d.comb += scales.work.eq(ONE)
        with m.Switch(self.head_kind):
            for kind, name in ((Kind.QUERY, "scale0"), (Kind.KEY, "scale1"), (Kind.VALUE, "scale2")):
                with m.Case(kind):
                    m.d.comb += scales.head_scale.eq(parameters[name])
        scale_index = self.command.a[: max(1, self._lane_bits - 1)] if self._lanes > 2 and self._group_rows > 1 else C(0, 1)
        m.d.comb += [
            scales.code.eq(code_read.data),
            *(getattr(scales, name).eq(parameters[name]) for name in ("inverse_count", "eps", "scale0", "scale1")),
            scales.top.eq(self.quantiser.top),
            scales.squares.eq(self.quantiser.total),
            scales.row.eq(self.beat[: 8 * self._lanes].word_select(scale_index, 16)),
        ]

    # Parameters, gains and rotary rows ----------------------------------------------------------------

    def _load(self, m):
        for index, (name, value) in enumerate([*self.parameters.items(), ("gain_exponent", self.gain_exponent)]):
            m.submodules[name] = banks = Memory(shape=len(Value.cast(value)), depth=len(self._bank_bases), init=[])
            bank_write, bank_read = banks.write_port(), banks.read_port()
            word = self.weights_i.payload[index * 32 % (8 * self._bytes) :][:32]
            given = Signal.like(value, name=f"given_{name}")
            if name == "gain_exponent":
                m.d.comb += given.eq(word[16:])
            else:
                m.d.comb += [given.m.eq(word[:16]), given.e.eq(word[16:])]
            m.d.comb += [
                bank_write.en.eq(self.header & self.weights_i.valid & (self.header_beat == index * 4 // self._bytes)),
                bank_write.addr.eq(self.command.bank),
                bank_write.data.eq(given),
                bank_read.addr.eq(self.command.bank),
                Value.cast(value).eq(bank_read.data),
            ]
        # Word after word in turn in as many memories as a beat has words.
        bank_bits = (self._beat_words - 1).bit_length()
        address = Signal.like(self.coefficient_address)
        place = address[:bank_bits]
        m.d.sync += address.eq(self.coefficient_address)
        words = []
        for i in range(self._beat_words):
            m.submodules[f"coefficients{i}"] = memory = Memory(
                shape=16 * self._lanes, depth=max(2, self._coefficient_words // self._beat_words), init=[]
            )
            write, read = memory.write_port(granularity=8 * self._lanes), memory.read_port()
            m.d.comb += [
                write.addr.eq(self.coefficient_write.addr >> bank_bits),
                write.data.eq(self.coefficient_write.data.word_select(i, 16 * self._lanes)),
                write.en.eq(self.coefficient_write.mask),
                read.addr.eq(address >> bank_bits),
            ]
            words.append(read.data)
        beat = self.beat[: 16 * self._lanes * self._beat_words] if self._bytes >= 2 * self._lanes else self.beat.replicate(2)
        m.d.comb += self.coefficient_write.data.eq(beat)
        self.coefficients = Signal(data.ArrayLayout(signed(16), self._lanes), reset_less=True)
        chosen = Signal(max(1, bank_bits))
        m.d.sync += [chosen.eq(place), Value.cast(self.coefficients).eq(Array(words)[chosen])]

    # Lanes --------------------------------------------------------------------------------------------

    def _lane_pipeline(self, m):
        lanes, stage, command = self._lanes, self.stage, self.command
        attrs = {"ram_style": "ultra"} if self._ultra else {}
        m.submodules.x = x = Memory(shape=32 * lanes, depth=self._token_lanes * self._groups * self._x_words, init=[], attrs=attrs)
        m.submodules.h = h = Memory(shape=data.ArrayLayout(WORK, lanes), depth=self._token_lanes * self._h_words, init=[], attrs=attrs)
        x_read, h_read = x.read_port(), h.read_port()
        self.x_write, self.h_write = x.write_port(), h.write_port()
        adding = self._is(VectorOp.RESID)
        m.d.comb += [x_read.addr.eq(Mux(adding, stage[LATE_READ].place, stage[0].place)), h_read.addr.eq(stage[0].place)]

        # Stage 2: what the memories gave.
        self.residual = Signal(data.ArrayLayout(signed(32), lanes), reset_less=True)
        # What RESID adds to, zero for the others: a register with a reset spares a gate a bit.
        self.addend = Signal(data.ArrayLayout(signed(32), lanes))
        self.acc = Signal(data.ArrayLayout(signed(self._acc), lanes), reset_less=True)
        work = Signal(data.ArrayLayout(WORK, lanes), reset_less=True)
        codes = [Signal(data.ArrayLayout(signed(8), lanes), name=f"codes{i}", reset_less=True) for i in (1, 2)]
        m.d.sync += [
            Value.cast(self.residual).eq(x_read.data),
            Value.cast(self.addend).eq(Mux(adding, x_read.data, 0)),
            work.eq(h_read.data),
            Value.cast(codes[0]).eq(self.code_in),
            codes[1].eq(codes[0]),
        ]
        given = Signal(lanes * self._acc)
        m.d["sync" if self._acc_latency == 1 else "comb"] += given.eq(self.acc_read.data)
        if self._acc_parts > 1:
            m.submodules.kept = kept = Memory(shape=lanes * self._acc, depth=1 << len(self.kept_place), init=[])
            kept_write, kept_read = kept.write_port(), kept.read_port()
            s1_place, s2_place = Signal.like(self.kept_place), Signal.like(self.kept_place)
            again = Signal.like(given)
            second = stage[2].second & self._is(VectorOp.QKV)
            m.d.sync += [s1_place.eq(self.kept_place), s2_place.eq(s1_place), again.eq(kept_read.data)]
            m.d.comb += [
                kept_write.en.eq(stage[2].valid & ~second),
                kept_write.addr.eq(s2_place),
                kept_write.data.eq(given),
                kept_read.addr.eq(self.kept_place),
                Value.cast(self.acc).eq(Mux(second, again, given)),
            ]
        else:
            m.d.comb += Value.cast(self.acc).eq(given)

        # Stage 3: one word for the aligning shifter. Stage 4: operands, 24 bits. Stage 5: products.
        is_norm, is_qkv = self._is(VectorOp.NORMQ), self._is(VectorOp.QKV)
        unrotated = stage[OPERAND].kind == Kind.VALUE
        raw = [Signal(signed(ALIGNER_BITS), name=f"raw{k}", reset_less=True) for k in range(lanes)]
        self.product = [Signal(signed(ACTIVATION_BITS + 17), name=f"product{k}", reset_less=True) for k in range(lanes)]
        self.y = Signal(data.ArrayLayout(signed(Y_BITS), lanes), reset_less=True)
        second_products = []
        for k in range(lanes):
            amount, distance = Signal(5, name=f"amount{k}", reset_less=True), Signal(9, name=f"distance{k}")
            m.d.comb += distance.eq(sign_extend(self.top, 9) - sign_extend(work[k].e, 9))
            with m.If(is_norm & ~command.source):
                m.d.sync += [raw[k].eq(Cat(C(0, ALIGNER_BITS - 32), self.residual[k])), amount.eq(~self.left)]
            with m.Elif(is_norm):
                m.d.sync += [raw[k].eq(sign_extend(work[k].m, ALIGNER_BITS)), amount.eq(Mux(distance[5:].any(), 31, distance[:5]))]
            with m.Else():
                m.d.sync += [
                    raw[k].eq(sign_extend(Mux(self._is(VectorOp.EMBED), sign_extend(codes[1][k], self._acc), self.acc[k]), ALIGNER_BITS)),
                    amount.eq(0),
                ]
            aligned = Signal(signed(ACTIVATION_BITS), name=f"aligned{k}")
            m.d.comb += aligned.eq(shift_right(m, raw[k], amount, ACTIVATION_BITS, f"align{k}"))

            # u * c is the product of all operations; the other one is a * sin of the pair's partner, or a square.
            u, c = Signal(signed(ACTIVATION_BITS), name=f"u{k}", reset_less=True), Signal(signed(18), name=f"c{k}", reset_less=True)
            v, d = Signal(signed(ACTIVATION_BITS), name=f"v{k}", reset_less=True), Signal(signed(18), name=f"d{k}", reset_less=True)
            cos, sin = self.coefficients[k & ~1], self.coefficients[k | 1]
            m.d.sync += u.eq(aligned)
            with m.If(is_norm):
                m.d.sync += [
                    c.eq(Mux(command.norm, self.coefficients[k], 1 << integer.GAIN_ONE)),
                    v.eq(sign_extend(aligned[6:], ACTIVATION_BITS)),
                    d.eq(aligned[6:]),
                ]
            with m.Elif(is_qkv):
                m.d.sync += [c.eq(Mux(unrotated, 1 << integer.ROPE_BITS, cos)), v.eq(raw[k ^ 1]), d.eq(Mux(unrotated, 0, sin))]
            with m.Else():
                m.d.sync += c.eq(self.scales.t.m)
            second = Signal(signed(ACTIVATION_BITS + 18), name=f"second{k}", reset_less=True)
            m.d.sync += [self.product[k].eq(u * c), second.eq(v * d)]
            second_products.append(second)

            # Stage 6: y.
            turned = Mux(is_qkv, second, 0)
            m.d.sync += self.y[k].eq(self.product[k] + turned if k & 1 else self.product[k] - turned)
        m.d.comb += [self.quantiser.squares[k].eq(second_products[k][:SQUARE_BITS]) for k in range(lanes)]

    def _shifter(self, m):
        """Stages 7 and 8: y shifted left by FIXED_LEFT + 16 - amount; first by a multiple of 4, then by the rest.

        Quantising operations shift left by 23 less the length of the maximum, and use the low NORMAL_BITS. The others
        leave a bit below fixed point, to round: they shift left by 1 + e + RESIDUAL_BITS, which is at most FIXED_LEFT, and
        of whose lower values nothing but the sign is left from -Y_BITS + 1 on.
        """
        wanted = Signal(signed(14))
        amount, fine = Signal(6), Signal(2)
        # Whether the shift to the left is not enough, of the word in stages 6 to 9.
        self.beyond = [Signal(name=f"beyond{i}") for i in range(4)]
        m.d.sync += Cat(self.beyond).eq(Cat(wanted < 0, self.beyond[:-1]))
        m.d.comb += wanted.eq(7 - integer.RESIDUAL_BITS - self.scales.t.e)
        m.d.sync += fine.eq(amount)
        with m.If(~self._is(VectorOp.QKV, VectorOp.NORMQ)):
            m.d.sync += amount.eq(16 + Mux(wanted < 0, 0, Mux(wanted > FIXED_BITS - 1, FIXED_BITS - 1, wanted)))
        with m.Elif(self.stage[Y - 1].valid & self.stage[Y - 1].first & self.stage[Y - 1].second):
            m.d.sync += amount.eq(self.pending_length + 1)
        self.shifted = []
        for k in range(self._lanes):
            coarse = Signal(signed(FIXED_BITS + 3), name=f"coarse{k}", reset_less=True)
            shifted = Signal(signed(FIXED_BITS), name=f"shifted{k}", reset_less=True)
            # The multiple of 16 comes last: most of what it can bring down is zeros or the sign.
            near = Signal(signed(FIXED_LEFT + 16 + Y_BITS), name=f"near{k}")
            m.d.comb += near.eq(Cat(C(0, FIXED_LEFT + 16), self.y[k]).as_signed() >> Cat(C(0, 2), amount[2:4]))
            m.d.sync += [
                coarse.eq((near >> Cat(C(0, 4), amount[4:]))[: len(coarse)].as_signed()),
                shifted.eq(shift_right(m, coarse, fine, FIXED_BITS, f"fine_shift{k}").as_signed()),
            ]
            self.shifted.append(shifted)
            m.d.comb += self.quantiser.normal[k].eq(shifted[:NORMAL_BITS].as_signed())

    def _fixed_point(self, m):
        """Stages 9 and 10: half of what was shifted, rounded, plus the residual, saturated; for RESID, EMBED and silu."""
        lanes, stage = self._lanes, self.stage
        writing = self._is(VectorOp.RESID, VectorOp.EMBED)
        self.fixed = Signal(data.ArrayLayout(signed(32), lanes), reset_less=True)
        overs = []
        for k, shifted in enumerate(self.shifted):
            total = Signal(signed(FIXED_BITS), name=f"total{k}", reset_less=True)
            # The one below the residual rounds.
            m.d.sync += total.eq((shifted + Cat(C(1, 1), self.addend[k]).as_signed()) >> 1)
            value, over = saturate(total, 32)
            m.d.sync += self.fixed[k].eq(value)
            overs.append(over)
        counted = stage[FIXED - 1].valid & (
            writing | (self._is(VectorOp.GLU) & (stage[FIXED - 1].kind == Kind.GATE) if self._activation == "silu" else 0)
        )
        clamped = Signal(lanes)
        m.d.sync += clamped.eq(Mux(counted, Cat(overs) | self.beyond[-1].replicate(lanes), 0))
        m.d.comb += self.saturated.eq(count_registered(m, list(clamped), "saturated"))

        written, tag = self.fixed, stage[FIXED]
        valid = tag.valid & writing
        m.d.comb += [
            self.x_write.en.eq(valid),
            self.x_write.addr.eq(tag.place),
            self.x_write.data.eq(written),
            self.x_trace.valid.eq(valid),
            self.x_trace.slot.eq(tag.slot),
            self.x_trace.addr.eq(tag.word),
            self.x_trace.data.eq(written),
        ]
        # Stages 11 to 13: the left shift that fills 31 bits with the greatest magnitude of the slot.
        ones, running, left = Signal(31), Signal(31), Signal(5)
        m.d.sync += ones.eq(reduce(or_, (Mux(written[k][31], ~written[k][:31], written[k][:31]) for k in range(lanes))))
        with m.If(stage[FIXED + 1].valid):
            m.d.sync += running.eq(Mux(stage[FIXED + 1].first, 0, running) | ones)
        m.d.sync += left.eq(31 - bit_length(m, running, "residual_length"))
        tag = stage[FIXED + 3]
        m.d.comb += [
            self.left_write.addr.eq(tag.slot),
            self.left_write.data.eq(left),
            self.left_write.en.eq(tag.valid & tag.last & writing),
        ]

    def _quantisation(self, m):
        """Stages 6 to 10 of quantising operations, and where codes go."""
        stage, quantiser = self.stage, self.quantiser
        m.submodules.quantiser = quantiser
        is_qkv, is_norm = self._is(VectorOp.QKV), self._is(VectorOp.NORMQ)
        tag = stage[Y]
        scale, scale_out = Signal(INNER), Signal(UFLOAT)
        with m.If(stage[Y - 1].valid & stage[Y - 1].first & stage[Y - 1].second):
            m.d.sync += [
                self.reciprocal_of_y.eq(self.pending_reciprocal),
                scale.eq(self.pending_scale),
            ]
        m.d.comb += [
            quantiser.valid.eq(tag.valid & (is_qkv | is_norm)),
            quantiser.first.eq(tag.first),
            quantiser.last.eq(tag.last),
            quantiser.second.eq(tag.second),
            quantiser.y.eq(self.y),
            quantiser.reciprocal.eq(self.reciprocal_of_y),
        ]

        before, tag = stage[CODE - 1], stage[CODE]
        with m.If(before.valid & before.first & before.second):
            m.d.sync += [scale_out.m.eq(scale.m), scale_out.e.eq(scale.e)]
        valid = tag.valid & tag.second
        query = is_qkv & (tag.kind == Kind.QUERY)
        head = Signal(index_shape(self._heads))
        with m.If(~is_qkv):
            m.d.sync += head.eq(0)
        with m.Elif(valid & tag.last & query):
            m.d.sync += head.eq(Mux(head == self._heads - 1, 0, head + 1))
        m.d.comb += [
            self.code_write.valid.eq(valid & is_norm & ~self.command.dest[0]),
            self.activation_write.valid.eq(valid & (query | (is_norm & self.command.dest.any()))),
            self.q_scale_write.valid.eq(valid & query & tag.last),
            self.q_scale_write.slot.eq(tag.slot),
            self.q_scale_write.head.eq(head),
            self.q_scale_write.scale.eq(scale_out),
            self.kv.valid.eq(valid & is_qkv & ~query),
            self.kv.last.eq(tag.last),
            self.kv.data.eq(quantiser.codes),
            self.kv.scale.eq(scale_out),
        ]
        for port in (self.code_write, self.activation_write):
            m.d.comb += [port.slot.eq(tag.slot), port.addr.eq(tag.word), port.data.eq(quantiser.codes)]

    def _gating(self, m):
        """Gated products into the work memory, which the dot engine writes too; greatest exponent of each slot."""
        lanes, stage, gated = self._lanes, self.stage, self.gated
        m.submodules.gated = gated
        is_glu = self._is(VectorOp.GLU)
        gate_stage, up_stage = stage[FIXED if self._activation == "silu" else 2], stage[2 + self.up_delay]
        up = self.acc
        for _ in range(self.up_delay):
            later = Signal(up.shape(), name="later_up", reset_less=True)
            m.d.sync += later.eq(up)
            up = later
        m.d.comb += [
            gated.gate_valid.eq(gate_stage.valid & is_glu & (gate_stage.kind == Kind.GATE)),
            gated.up_valid.eq(up_stage.valid & is_glu & (up_stage.kind == Kind.UP)),
            gated.gate.eq(self.fixed if self._activation == "silu" else self.acc),
            gated.up.eq(up),
        ]
        done = stage[2 + self.up_delay + gated.latency]
        from_gate = done.valid & is_glu & (done.kind == Kind.UP)
        bases = Array([i * self._h_words for i in range(self._token_lanes)])
        lane = self.work_write.slot.shape()
        write = Signal(data.StructLayout({"valid": 1, "slot": lane, "place": self._place, "data": data.ArrayLayout(WORK, lanes)}))
        m.d.sync += [
            write.valid.eq(from_gate | self.work_write.valid),
            write.slot.eq(Mux(from_gate, done.slot[: self._token_bits] if self._token_bits else 0, self.work_write.slot)),
            write.place.eq(Mux(from_gate, done.place, bases[self.work_write.slot] + self.work_write.addr)),
            Value.cast(write.data).eq(Mux(from_gate, Value.cast(gated.o), Value.cast(self.work_write.data))),
        ]
        m.d.comb += [self.h_write.en.eq(write.valid), self.h_write.addr.eq(write.place), self.h_write.data.eq(write.data)]

        exponent, depth = reduce_registered(m, [write.data[k].e for k in range(lanes)], larger, "work_exponent")
        valid, slot = [write.valid], [write.slot]
        for i in range(depth):
            valid.append(Signal(name=f"work_valid{i}"))
            slot.append(Signal(lane, name=f"work_slot{i}"))
            m.d.sync += [valid[-1].eq(valid[-2]), slot[-1].eq(slot[-2])]
        m.d.comb += self.tracking.eq(reduce(or_, valid) | self.work_write.valid)
        # A slot's work begins a cycle after its scale: its first elements are many cycles away.
        begin = Signal()
        m.d.sync += begin.eq(self.scales.start & is_glu & (self.command.a[:16] == 0))
        for i, maximum in enumerate(self.maximum_exponent):
            chosen = self.lane == i
            with m.If(self.work_clear[i] | (begin & chosen)):
                m.d.sync += maximum.eq(-128)
            with m.Elif(valid[-1] & (slot[-1] == i) & (exponent > maximum)):
                m.d.sync += maximum.eq(exponent)
            with m.If(self.work_clear[i]):
                m.d.sync += self.work_is_one[i].eq(1)
            with m.Elif(begin & chosen):
                m.d.sync += self.work_is_one[i].eq(0)
