"""Scales that slots keep between operations, and the operands of the scale unit."""

from __future__ import annotations

from amaranth import Array, Mux, Signal, signed
from amaranth.lib.memory import Memory

from tritloom.firmware import integer
from tritloom.firmware.isa import VectorOp
from tritloom.rtl.vector.coefficients import Coefficients
from tritloom.rtl.vector.command import Current
from tritloom.rtl.vector.parameters import HEAD_HEADER, LEFT_BITS, VectorParameters
from tritloom.rtl.vector.quantise import Quantiser
from tritloom.rtl.vector.scales import INNER, ONE, ScaleUnit
from tritloom.rtl.vector.stages import Kind
from tritloom.rtl.vector.work import WorkVector

__all__ = ["SlotScales"]


class SlotScales:
    """A scale of codes for each slot (NORMQ's, for the matrix that takes them), one of the work vector for each lane (GLU's), and how far
    each slot's residual stream is shifted left to be normalised.

    `left`, `top`: how the present slot's elements stand in their memory: the residual's are shifted left by `left`, the work
    vector's are aligned to the exponent `top`. `left_write`: port for a slot's new `left`.
    """

    def __init__(self, vector: VectorParameters, current: Current, scales: ScaleUnit):
        self.current, self.scales = current, scales
        self.codes = Memory(shape=INNER, depth=vector.slots, init=[])
        self.work = Memory(shape=INNER, depth=vector.lanes, init=[])
        self.lefts = Memory(shape=LEFT_BITS, depth=vector.slots, init=[])
        self.code_read, self.code_write = self.codes.read_port(), self.codes.write_port()
        self.work_read, self.work_write = self.work.read_port(), self.work.write_port()
        self.left_read = self.lefts.read_port()
        self.left, self.top, self.left_write = Signal(LEFT_BITS), Signal(signed(8)), self.lefts.write_port()

    def connect(self, m, work: WorkVector, coefficients: Coefficients, quantiser: Quantiser, *, head_kind, row_scale, logit_scale_write):
        """`head_kind`: of the head whose scale is computed; `row_scale`: of the embedding's row."""
        m.submodules.scales = self.scales
        self._memories(m, logit_scale_write)
        is_one = self._exponents(m, work, coefficients, head_kind)
        self._operands(m, coefficients, quantiser, is_one, head_kind, row_scale)

    def _memories(self, m, logit_scale_write):
        """Keep what NORMQ and GLU compute; the scale of the hidden vector goes to the sampler too."""
        current, scales = self.current, self.scales
        m.submodules.code_scale, m.submodules.work_scale, m.submodules.residual_left = self.codes, self.work, self.lefts
        m.d.comb += [port.addr.eq(current.slot) for port in (self.code_read, self.left_read, self.code_write)]
        m.d.comb += [port.addr.eq(current.lane) for port in (self.work_read, self.work_write)]
        m.d.comb += [
            self.code_write.data.eq(scales.t),
            self.code_write.en.eq(scales.done & current.is_op(VectorOp.NORMQ)),
            self.work_write.data.eq(scales.w),
            self.work_write.en.eq(scales.done & current.is_op(VectorOp.GLU)),
        ]
        m.d.comb += [
            logit_scale_write.valid.eq(scales.done & current.is_op(VectorOp.NORMQ) & current.command.dest.any()),
            logit_scale_write.slot.eq(current.slot),
            logit_scale_write.scale.m.eq(scales.w.m), logit_scale_write.scale.e.eq(scales.w.e),
        ]

    def _exponents(self, m, work, coefficients, head_kind):
        """Exponents of the squares and of y; returns whether the work vector's scale is one."""
        current, scales = self.current, self.scales
        exponent = Signal(signed(10))
        is_one = Signal()
        m.d.sync += [
            self.left.eq(self.left_read.data),
            self.top.eq(Array(work.maximum_exponent)[current.lane]),
            is_one.eq(Array(work.is_one)[current.lane]),
            exponent.eq(Mux(current.command.source, self.top, -8 - self.left)),
            scales.squares_exponent.eq((exponent + 6) << 1),
        ]
        with m.If(current.is_op(VectorOp.QKV)):
            m.d.sync += scales.exponent_y.eq(-integer.ROPE_BITS)
            for kind, value in zip((Kind.QUERY, Kind.KEY), coefficients.head_exponents, strict=False):
                with m.If(head_kind == kind):
                    m.d.sync += scales.exponent_y.eq(value)
            if coefficients.head_exponents:
                m.d.sync += scales.squares_exponent.eq(0)
        with m.Else():
            m.d.sync += scales.exponent_y.eq(exponent + Mux(current.command.norm, coefficients.gain_exponent, -integer.GAIN_ONE))
        return is_one

    def _operands(self, m, coefficients, quantiser, is_one, head_kind, row_scale):
        """What the scale unit computes with."""
        scales, given = self.scales, coefficients.scales
        with m.If(self.current.command.source & ~is_one):
            m.d.comb += scales.work.eq(self.work_read.data)
        with m.Else():
            m.d.comb += scales.work.eq(ONE)
        with m.Switch(head_kind):
            for kind, name in ((Kind.QUERY, "scale0"), (Kind.KEY, "scale1"), (Kind.VALUE, "scale2")):
                with m.Case(kind):
                    m.d.comb += scales.head_scale.eq(given[name])
        m.d.comb += [
            scales.code.eq(self.code_read.data),
            *(getattr(scales, name).eq(given[name]) for name in ("inverse_count", "eps", "scale0", "scale1")),
            scales.top.eq(quantiser.top),
            scales.squares.eq(quantiser.total),
            scales.row.eq(row_scale),
        ]
        if HEAD_HEADER in given:
            m.d.comb += scales.head_eps.eq(given[HEAD_HEADER])
