"""What the vector unit reads: parameter blocks from the weight stream; embeddings and rotary rows from memory."""

from __future__ import annotations

from amaranth import C, Cat, Mux, Signal

from tritloom.firmware.config import PARAM_HEADER_BYTES
from tritloom.firmware.isa import VectorOp
from tritloom.firmware.packing import SCALE_BITS as GROUP_SCALE_BITS
from tritloom.rtl.vector.coefficients import Coefficients
from tritloom.rtl.vector.command import Current, Words, slot_bases
from tritloom.rtl.vector.parameters import VectorParameters
from tritloom.rtl.vector.scales import Program, ScaleUnit

__all__ = ["Loads"]


class Loads:
    """Carries out PARAM, ROPE and EMBED up to the lane pipeline, and computes the addresses of all reads and of QKV's writes.

    An address grows by factor * addend, one bit of the factor a cycle. Memory beats are used V codes at a time (`codes`: an
    embedding's); coefficients are written a beat a cycle, or half a word if V of them fill two beats. Of an embedding first the beat with
    its row's scale is read (`row_scale`), then the row.

    `rope`: first word of the present slot's cosines and sines. `header`, `header_beat`: the weight stream brings a header.
    """

    def __init__(self, vector: VectorParameters, current: Current, words: Words, coefficients: Coefficients, scales: ScaleUnit, *,
                 weights, request, read):
        self._p = p = vector
        self.current, self.words, self.coefficients, self.scales = current, words, coefficients, scales
        self.weights, self.request, self.read = weights, request, read
        self.factor, self.addend = Signal(32), Signal(32, name="addend")
        self.rope = Signal(p.coefficient_bits)
        self.rope_base = slot_bases(p, p.whole_beats(p.head_words))
        self.id_bits = 0 if p.embedding_group else (p.group_rows - 1).bit_length()
        self.row_of_group = current.command.a[: self.id_bits] if self.id_bits else C(0, 1)
        # The row itself is read; before, its scale is.
        self.embed_row = Signal()
        # A beat, and how many of its pieces of V codes are left; registers that say whether none is, or one.
        self.piece_bits = (2 if p.embedding_group else 8) * p.vector_lanes
        self.pieces = 8 * p.mem_bytes // self.piece_bits
        self.beat, self.none_left = Signal(8 * p.mem_bytes, reset_less=True), Signal(init=1)
        self.one_left = Signal()
        self.left = Signal(range(self.pieces + 1))
        # One-hot flags of the states HEADER, COEFFICIENTS, ROW SCALE, SKIP, EMBED and REQUEST, registered: the state is not decoded in
        # the path to a beat's bits, nor to the memory.
        self.header, self.writing, self.fetching, self.skipping, self.embedding, self.requesting = (
            Signal(), Signal(), Signal(), Signal(), Signal(), Signal())
        self.from_weights, self.load = Signal(), Signal()
        self.take = Signal()
        # Pieces before an embedding row's scale; a ternary row has none, which a unit that is spread must not look for.
        self.never_skips = p.embedding_group > 0 and p.spread
        self.skip = C(0) if self.never_skips else Signal(range(self.pieces))
        # Of a ternary embedding: the scale of the present group, and how many pieces of the next one's, or words of V trits, are to come.
        self.group_scale, self.scale_pieces = Signal(GROUP_SCALE_BITS), Signal(range(p.embedding_scale_pieces + 1))
        self.group_words = Signal(range(p.embedding_group // p.vector_lanes + 1))
        self.loaded = Signal()
        self.header_beats = -(-PARAM_HEADER_BYTES // p.mem_bytes)
        self.header_beat = Signal(range(self.header_beats)) if self.header_beats > 1 else C(0, 1)
        # Which half of a word of coefficients a beat brings, where it takes two.
        self.wide = p.mem_bytes >= 2 * p.vector_lanes
        self.half = Signal()
        self.codes = Signal(p.code_bits * p.vector_lanes, name="code_in")
        self.scale_read, self.beats = Signal(), Signal(16)

    @property
    def row_scale(self):
        """The 16 bits of the embedding row's scale, when the pieces before it have been skipped; one for a ternary embedding, whose groups
        have their own."""
        p = self._p
        if p.embedding_group:
            return C(1, 16)
        index = self.current.command.a[: max(1, p.lane_bits - 1)] if p.vector_lanes > 2 and p.group_rows > 1 else C(0, 1)
        return self.beat[: 8 * p.vector_lanes].word_select(index, 16)

    def begin(self):
        """The statements that reset the buffer for a new command."""
        return [
            self.half.eq(0),
            self.left.eq(0),
            self.none_left.eq(1),
            self.one_left.eq(0),
            self.embed_row.eq(1 if self._p.embedding_group else 0),
            *([self.scale_pieces.eq(self._p.embedding_scale_pieces)] if self._p.embedding_group else []),
        ]

    def take_beats(self, m):
        """Take beats from the weight stream or from memory, and use them piece by piece."""
        p, beat, read, weights = self._p, self.beat, self.read, self.weights
        reading = self.embedding & ~self.none_left
        m.d.sync += self.from_weights.eq(self.current.is_op(VectorOp.PARAM))
        m.d.comb += [
            self.load.eq(((self.fetching | self.embedding) & self.none_left) | (self.embedding & self.one_left)),
            self.take.eq(reading if self.never_skips else reading | (self.skipping & (self.skip != 0))),
            weights.ready.eq(self.header | (self.writing & self.from_weights)),
            read.ready.eq((self.writing & ~self.from_weights) | self.load),
            self.codes.eq(Cat(self._scaled(k) for k in range(p.vector_lanes)) if p.embedding_group else beat[: 8 * p.vector_lanes]),
        ]
        self.beat_written = self.writing & Mux(self.from_weights, weights.valid, read.valid)
        m.d.comb += self.loaded.eq(self.load & read.valid)
        with m.If(self.loaded | self.beat_written):
            m.d.sync += beat.eq(Mux(self.from_weights, weights.payload, read.payload))
        with m.Elif(self.take):
            m.d.sync += beat.eq(beat >> self.piece_bits)
        with m.If(self.loaded):
            m.d.sync += [self.left.eq(self.pieces), self.none_left.eq(0), self.one_left.eq(self.pieces == 1)]
        with m.Elif(self.take):
            m.d.sync += [self.left.eq(self.left - 1), self.none_left.eq(self.one_left), self.one_left.eq(self.left == 2)]

    def _scaled(self, k):
        """The trit of lane k times its group's scale."""
        trit, scale = self.beat[2 * k : 2 * k + 2], self.group_scale
        width = len(scale) + 1
        return (Mux(trit[1], -scale, scale) & trit[0].replicate(width))[:width]

    def request_read(self, m):
        """Request what `address` says. Registers: the lengths stand when a read is requested."""
        p, current = self._p, self.current
        of_scale = current.is_op(VectorOp.EMBED) & ~self.embed_row
        embedding_row = p.embedding_row_bytes or p.head_row_bytes
        row_beats = Mux(current.is_op(VectorOp.EMBED), embedding_row // p.mem_bytes, p.rope_row_bytes // p.mem_bytes)
        m.d.sync += [self.scale_read.eq(of_scale), self.beats.eq(Mux(of_scale, 1, row_beats))]
        m.d.comb += [self.request.valid.eq(self.requesting), self.request.payload.addr.eq(current.address),
                     self.request.payload.beats.eq(self.beats)]

    def states(self, m):
        self._parameter_states(m)
        self._address_states(m)
        self._embedding_states(m)

    def _parameter_states(self, m):
        """PARAM: a header, then gains; ROPE ends in the same state."""
        current, word, beat_words = self.current, self.words.word, self._p.beat_words
        with m.State("HEADER"):
            with m.If(self.weights.valid):
                if self.header_beats > 1:
                    m.d.sync += self.header_beat.eq(self.header_beat + 1)
                with m.If(self.header_beat == self.header_beats - 1):
                    if self.header_beats > 1:
                        m.d.sync += self.header_beat.eq(0)
                    m.d.sync += [self.header.eq(0), self.writing.eq(current.words != 0)]
                    m.next = "COEFFICIENTS"
                    with m.If(current.words == 0):
                        m.d.sync += current.idle.eq(1)
                        m.next = "IDLE"
        with m.State("COEFFICIENTS"):
            write, written, half, wide = self.coefficients.write, self.beat_written, self.half, self.wide
            finish = (word + beat_words >= current.words) & (C(1, 1) if wide else half)
            m.d.sync += [
                write.addr.eq(Mux(self.from_weights, self.coefficients.bank_base[current.command.bank], self.rope) + word),
                write.mask.eq(written.replicate(2) if wide else Cat(written & ~half, written & half)),
            ]
            with m.If(written):
                m.d.sync += half.eq(~half)
                with m.If(C(1, 1) if wide else half):
                    m.d.sync += word.eq(word + beat_words)
                with m.If(finish):
                    m.d.sync += [self.writing.eq(0), current.idle.eq(1)]
                    m.next = "IDLE"

    def _address_states(self, m):
        """The address of a row, of the table or of the slots' chunk of the cache; then the request."""
        p, current = self._p, self.current
        with m.State("ADDRESS"):
            m.d.sync += [self.factor.eq(self.factor >> 1), self.addend.eq(self.addend << 1),
                         self.rope.eq(p.gain_words + self.rope_base[current.slot])]
            m.d.comb += current.step.eq(self.addend & self.factor[0].replicate(32))
            with m.If(self.factor == 0):
                m.d.sync += self.requesting.eq(1)
                m.next = "REQUEST"
                with m.If(current.is_op(VectorOp.QKV)):
                    m.d.sync += self.requesting.eq(0)
                    m.next = "SLOT ADDRESS"
        with m.State("REQUEST"):
            with m.If(self.request.ready):
                m.d.sync += [self.requesting.eq(0), self.writing.eq(current.is_op(VectorOp.ROPE)),
                             self.fetching.eq(current.is_op(VectorOp.EMBED) & self.embed_row)]
                m.next = "COEFFICIENTS"
                with m.If(current.is_op(VectorOp.EMBED)):
                    m.next = "ROW SCALE"
                with m.If(self.scale_read):
                    m.d.comb += current.step.eq(p.mem_bytes)
                    m.d.sync += [
                        self.embed_row.eq(1),
                        self.factor.eq(self.row_of_group),
                        self.addend.eq(p.head_row_bytes),
                    ]
                    m.next = "ADDRESS"

    def _embedding_states(self, m):
        """EMBED: the row's scale and with it the multiplier of the codes, then the codes."""
        p, scales = self._p, self.scales
        with m.State("ROW SCALE"):
            if not self.never_skips:
                m.d.sync += self.skip.eq(0 if p.embedding_group else self.row_of_group << 1 >> p.lane_bits)
            with m.If(~self.none_left):
                m.d.sync += [self.fetching.eq(0), self.skipping.eq(1)]
                m.next = "SKIP"
        with m.State("SKIP"):
            with m.If(self.skip == 0):
                m.d.comb += [scales.start.eq(1), scales.program.eq(Program.EMBED)]
                m.d.sync += self.skipping.eq(0)
                m.next = "EMBED SCALE"
            if not self.never_skips:
                with m.Else():
                    m.d.sync += self.skip.eq(self.skip - 1)
        with m.State("EMBED SCALE"):
            m.d.sync += self.words.place.eq(slot_bases(p, p.residual_words)[self.current.slot])
            with m.If(scales.done):
                if not p.embedding_group:  # the beat of the row's scale has been used; of a ternary embedding it is the row's first
                    m.d.sync += [self.left.eq(0), self.none_left.eq(1), self.one_left.eq(0)]
                m.d.sync += self.embedding.eq(1)
                m.next = "EMBED"
        with m.State("EMBED"):
            if p.embedding_group:
                self._embed_groups(m)
            else:
                with m.If(self.take):
                    self._embed_word(m)

    def _embed_word(self, m):
        self.words.issue(m)
        with m.If(self.words.at_last):
            m.d.sync += self.embedding.eq(0)
            m.next = "DRAIN"

    def _embed_groups(self, m):
        """Piece after piece: those of a group's scale, then its trits."""
        p = self._p
        with m.If(self.take & (self.scale_pieces != 0)):
            piece = self.beat[: min(self.piece_bits, GROUP_SCALE_BITS)]
            m.d.sync += [self.group_scale.eq(Cat(self.group_scale, piece)[-GROUP_SCALE_BITS:]),
                         self.scale_pieces.eq(self.scale_pieces - 1), self.group_words.eq(p.embedding_group // p.vector_lanes)]
        with m.Elif(self.take):
            m.d.sync += self.group_words.eq(self.group_words - 1)
            with m.If(self.group_words == 1):
                m.d.sync += self.scale_pieces.eq(p.embedding_scale_pieces)
            self._embed_word(m)
