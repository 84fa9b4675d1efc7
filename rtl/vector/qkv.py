"""QKV: rotary embedding and quantisation of query, key and value heads, and the writing of keys and values into the cache."""

from __future__ import annotations

from amaranth import C, Cat, Mux, Signal
from amaranth.lib import wiring

from tritloom.firmware import integer
from tritloom.firmware.config import KEPT_BITS
from tritloom.rtl.vector.coefficients import Coefficients
from tritloom.rtl.vector.command import Current
from tritloom.rtl.vector.head_norms import HeadNorms
from tritloom.rtl.vector.kv_writer import KvWriter
from tritloom.rtl.vector.loads import Loads
from tritloom.rtl.vector.parameters import VectorParameters
from tritloom.rtl.vector.passes import TwoPasses
from tritloom.rtl.vector.results import Results
from tritloom.rtl.vector.stages import CODE, Kind, Stages

__all__ = ["Qkv"]


class Qkv:
    """Takes each head twice through the lanes, the first pass of the next head beside the scale of the one before.

    `head1`, `head2`: the next head's number in the first and the second pass; `word1`, `word2`: the next word's index among the results;
    `head_word`: within the head. `kept_place`: where the first pass keeps a word that comes in parts for the second.
    """

    def __init__(self, vector: VectorParameters, current: Current, stages: Stages, results: Results, coefficients: Coefficients,
                 loads: Loads, passes: TwoPasses, head_norms: HeadNorms | None):
        self._p = p = vector
        self.current, self.stages, self.results, self.coefficients = current, stages, results, coefficients
        self.loads, self.passes, self.head_norms = loads, passes, head_norms
        self.writer = KvWriter(p)
        self.total = p.heads + 2 * p.kv_heads
        self.queries_only, self.others_only = current.command.dest[0], current.command.dest[1]
        self.head1, self.head2, self.word1, self.word2 = (
            Signal(range(self.total + 1)), Signal(range(self.total + 1)), Signal(p.word_bits), Signal(p.word_bits))
        self.last_head = Signal.like(self.head1)
        self.head_word = Signal(p.head_word_bits)
        self.kept_place = Signal(KEPT_BITS + p.head_word_bits)

    def connect_writer(self, m, writes, writing):
        m.submodules.kv = self.writer
        wiring.connect(m, self.writer.o, wiring.flipped(writes))
        m.d.comb += writing.eq(self.writer.busy)

    def limit(self, m):
        """Heads of the command: the queries only, or the keys and values too."""
        m.d.comb += self.last_head.eq(Mux(self.queries_only, self._p.heads, self.total))

    def rewind(self, m):
        """Begin at the command's first head."""
        p = self._p
        m.d.sync += [head.eq(Mux(self.others_only, p.heads, 0)) for head in (self.head1, self.head2)]
        m.d.sync += [running.eq(Mux(self.others_only, p.heads * p.head_words, 0)) for running in (self.word1, self.word2)]

    def kind_of(self, head):
        p = self._p
        return Mux(head < p.heads, Kind.QUERY, Mux(head < p.heads + p.kv_heads, Kind.KEY, Kind.VALUE))

    def states(self, m):
        results, passes, writer = self.results, self.passes, self.writer
        with m.State("QKV"):
            with m.If(passes.pending & ((self.kind_of(self.head2) == Kind.QUERY) | writer.free)):
                m.d.comb += writer.reserve.eq(self.kind_of(self.head2) != Kind.QUERY)
                m.d.sync += [passes.pending.eq(0), results.reading.eq(self._p.acc_parts == 1), results.again.eq(1)]
                m.next = "HEAD SECOND PASS"
            with m.Elif(~passes.outstanding & (self.head1 != self.last_head)):
                m.d.sync += [passes.outstanding.eq(1), passes.first_kind.eq(self.kind_of(self.head1)), results.reading.eq(1)]
                m.next = "HEAD FIRST PASS"
            with m.Elif((self.head2 == self.last_head) & self.stages.quiet(1, CODE)):
                m.next = "NEXT SLOT"
        with m.State("HEAD FIRST PASS"):
            self._issue(m, self.head1, self.word1, 0)
        with m.State("HEAD SECOND PASS"):
            self._issue(m, self.head2, self.word2, 1)

    def _issue(self, m, head, running, second):
        """Issue a head's words in one of the passes. The first keeps words that come in parts, so that the second need not read them
        again. The second must not wait, for its scale is not kept: what the first has read is there."""
        issue, results, head_word = self.stages.issue, self.results, self.head_word
        kept = bool(second) and self._p.acc_parts > 1
        complete = C(1, 1) if kept else results.last_part & (results.going | second)
        m.d.comb += [
            issue.valid.eq(complete),
            issue.first.eq(head_word == 0),
            issue.second.eq(second),
            issue.kind.eq(self.kind_of(head)),
            issue.word.eq(running),
            results.address.eq(running),
            self.coefficients.address.eq(self.loads.rope + head_word),
            self.kept_place.eq(Cat(head_word, head[:KEPT_BITS])),
        ]
        if self.head_norms is not None:
            m.d.comb += self.head_norms.address.eq(self.head_norms.place(self.kind_of(head), head_word))
        with m.If(complete):
            m.d.sync += [running.eq(running + 1), head_word.eq(head_word + 1)]
            with m.If(head_word == self._p.head_words - 1):
                m.d.comb += issue.last.eq(1)
                m.d.sync += [head_word.eq(0), head.eq(head + 1), results.reading.eq(0), results.again.eq(0)]
                m.next = "QKV"

    # Operands of the lanes -------------------------------------------------------------------------

    def factors(self, unrotated, k, coefficients):
        """What the element of lane k and its pair's partner are multiplied by; values are not rotated."""
        norms = self.head_norms
        cos, sin = (norms.cosines[k], norms.sines[k]) if norms is not None else (coefficients[k & ~1], coefficients[k | 1])
        return Mux(unrotated, 1 << integer.ROPE_BITS, cos), Mux(unrotated, 0, sin)
