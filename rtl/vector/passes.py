"""Quantisation in two passes: the maximum of a vector or head, its scale, then its codes and where they go."""

from __future__ import annotations

from amaranth import Mux, Signal
from amaranth.utils import exact_log2

from tritloom.firmware.isa import VectorOp
from tritloom.rtl.arith import index_shape
from tritloom.rtl.ufloat import UFLOAT
from tritloom.rtl.vector.command import Current
from tritloom.rtl.vector.group_exponents import GroupExponents
from tritloom.rtl.vector.kv_writer import KvWriter
from tritloom.rtl.vector.parameters import VectorParameters
from tritloom.rtl.vector.quantise import Y_BITS, Quantiser
from tritloom.rtl.vector.scales import HEAD_NORM, INNER, Program, ScaleUnit
from tritloom.rtl.vector.stages import CODE, Kind, Stages, Y

__all__ = ["TwoPasses"]


class TwoPasses:
    """Control of two-pass quantisation, of NORMQ's vector or of QKV's heads.

    When a maximum has been found (`found`), its scale program starts as soon as the previous quotient has been used (`dividing`: a
    division is in progress); the quotient is held for the second pass (`pending`). A head's first pass may overlap the second pass of the
    head before: `outstanding` is high until its maximum has been used, `first_kind` is its kind, and `head_kind` is the kind of the head
    whose scale is being computed. `exponents`: of groups of codes, where the machine has them.
    """

    def __init__(self, vector: VectorParameters, current: Current, stages: Stages, quantiser: Quantiser, scales: ScaleUnit):
        self._p = vector
        self.exponents = GroupExponents(
            group_words=vector.code_group // vector.vector_lanes, groups=vector.code_groups, most=vector.group_exponents,
            peak_bits=Y_BITS - 1) if vector.group_exponents else None
        self.current, self.stage, self.quantiser, self.scales = current, stages.stage, quantiser, scales
        self.found, self.dividing, self.pending = Signal(), Signal(), Signal()
        self.pending_length, self.pending_reciprocal, self.pending_scale = Signal(6), Signal(17), Signal(INNER)
        self.outstanding, self.first_kind = Signal(), Signal(2)
        self.program = Signal(range(HEAD_NORM + 1) if vector.head_norms else Program)
        self.head_kind = Signal(2)
        self.start_segment = Signal()
        # With norms of heads: the program under way is one of theirs.
        self.waits = Signal()
        # Reciprocal of the maximum for the word in stage Y.
        self.reciprocal_of_y = Signal(17)

    def compute_scales(self, m):
        """Start the scale program of a maximum, and keep its quotient."""
        scales, start = self.scales, self.start_segment
        may = self.found & ~scales.busy & ~self.dividing & ~self.pending
        m.d.comb += start.eq(may & ~self.waits if self._p.head_norms else may)
        with m.If(self.quantiser.found):
            m.d.sync += self.found.eq(1)
        of_vector = Mux(self.current.command.norm, Program.NORM, Program.QUANTISE)
        of_head = Mux(self.first_kind == Kind.VALUE, Program.HEAD, HEAD_NORM) if self._p.head_norms else Program.HEAD
        m.d.sync += self.program.eq(Mux(self.current.is_op(VectorOp.QKV), of_head, of_vector))
        if self._p.head_norms:
            self._wait_for_norm(m)
        with m.If(start):
            m.d.sync += [self.found.eq(0), self.dividing.eq(1), self.outstanding.eq(0), self.head_kind.eq(self.first_kind)]
            m.d.comb += [scales.start.eq(1), scales.program.eq(self.program)]
        with m.If(scales.divided):
            m.d.sync += [
                self.dividing.eq(0),
                self.pending.eq(~self.waits if self._p.head_norms else 1),
                self.pending_length.eq(scales.length),
                self.pending_reciprocal.eq(scales.reciprocal),
                self.pending_scale.eq(scales.t),
            ]

    def _wait_for_norm(self, m):
        """The scale of a head that is normed is known only at the end of its program, long after the quotient, of which the divider does
        not keep anything."""
        scales, normed = self.scales, Signal()
        with m.If(self.start_segment):
            m.d.sync += normed.eq(self.program == HEAD_NORM)
        m.d.comb += self.waits.eq(normed)
        with m.If(scales.done & normed):
            m.d.sync += [self.pending.eq(1), self.pending_scale.eq(scales.t), normed.eq(0)]

    def connect(self, m, y, *, code_write, activation_write, q_scale_write, kv: KvWriter):
        """Quantise `y`, stages Y to CODE, and send the codes on."""
        m.submodules.quantiser = self.quantiser
        if self.exponents is not None:
            self._find_exponents(m, self.exponents, code_write)
        is_qkv, is_norm = self.current.is_op(VectorOp.QKV), self.current.is_op(VectorOp.NORMQ)
        scale, scale_out = Signal(INNER), Signal(UFLOAT)
        self._quantise(m, y, is_qkv, is_norm, scale)

        before, tag = self.stage[CODE - 1], self.stage[CODE]
        with m.If(before.valid & before.first & before.second):
            m.d.sync += [scale_out.m.eq(scale.m), scale_out.e.eq(scale.e)]
        valid = tag.valid & tag.second
        query = is_qkv & (tag.kind == Kind.QUERY)
        head = self._query_head(m, is_qkv, valid & tag.last & query)
        dest, codes = self.current.command.dest, self.quantiser.codes
        m.d.comb += [
            code_write.valid.eq(valid & is_norm & ~dest[0]),
            activation_write.valid.eq(valid & (query | (is_norm & dest.any()))),
            q_scale_write.valid.eq(valid & query & tag.last),
            q_scale_write.slot.eq(tag.slot),
            q_scale_write.head.eq(head),
            q_scale_write.scale.eq(scale_out),
            kv.valid.eq(valid & is_qkv & ~query),
            kv.last.eq(tag.last),
            kv.data.eq(codes),
            kv.scale.eq(scale_out),
        ]
        for port in (code_write, activation_write):
            m.d.comb += [port.slot.eq(tag.slot), port.addr.eq(tag.word), port.data.eq(codes)]

    def _find_exponents(self, m, exponents: GroupExponents, code_write):
        """Give the exponents of groups to the shift to codes, a stage before it, and with the codes to the matrices."""
        m.submodules.group_exponents = exponents
        peak, dest = self.quantiser.peak, self.current.command.dest
        for_matrices = ~dest[0] if self._p.embedding_group else ~dest.any()
        asking = self.stage[Y - 1 - exponents.latency]
        m.d.comb += [
            exponents.valid.eq(peak.valid), exponents.first.eq(peak.first), exponents.peak.eq(peak.data),
            exponents.group.eq(asking.word >> exact_log2(self._p.code_group // self._p.vector_lanes)),
            exponents.enable.eq(self.current.is_op(VectorOp.NORMQ) & for_matrices),
        ]
        late = exponents.exponent
        for n in range(CODE - (Y - 1)):
            later = Signal.like(late, name=f"exponent_{n}", reset_less=True)
            m.d.sync += later.eq(late)
            late = later
        m.d.comb += code_write.exponent.eq(late)

    def _quantise(self, m, y, is_qkv, is_norm, scale):
        """Pass on the words of both passes; with the first one of the second pass its quotient and `scale` are taken."""
        quantiser, tag, before = self.quantiser, self.stage[Y], self.stage[Y - 1]
        with m.If(before.valid & before.first & before.second):
            m.d.sync += [
                self.reciprocal_of_y.eq(self.pending_reciprocal),
                scale.eq(self.pending_scale),
            ]
        m.d.comb += [
            quantiser.valid.eq(tag.valid & (is_qkv | is_norm)),
            quantiser.first.eq(tag.first),
            quantiser.last.eq(tag.last),
            quantiser.second.eq(tag.second),
            quantiser.y.eq(y),
            quantiser.reciprocal.eq(self.reciprocal_of_y),
        ]

    def _query_head(self, m, is_qkv, done):
        """Number of the query head whose codes leave."""
        heads = self._p.heads
        head = Signal(index_shape(heads))
        with m.If(~is_qkv):
            m.d.sync += head.eq(0)
        with m.Elif(done):
            m.d.sync += head.eq(Mux(head == heads - 1, 0, head + 1))
        return head
