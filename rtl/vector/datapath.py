"""The lanes' multipliers: operands of every operation, products, and the shift to codes or fixed point."""

from __future__ import annotations

from amaranth import C, Cat, Mux, Signal, Value, signed
from amaranth.lib import data
from amaranth.lib.memory import Memory

from tritloom.firmware import integer
from tritloom.firmware.isa import VectorOp
from tritloom.rtl.arith import sign_extend
from tritloom.rtl.ufloat import shift_right
from tritloom.rtl.vector.command import Current
from tritloom.rtl.vector.glu import WORK
from tritloom.rtl.vector.head_norms import exact_square
from tritloom.rtl.vector.norm import Norm
from tritloom.rtl.vector.parameters import ACTIVATION_BITS, ALIGNER_BITS, VectorParameters
from tritloom.rtl.vector.qkv import Qkv
from tritloom.rtl.vector.quantise import NORMAL_BITS, SQUARE_BITS, Y_BITS, Quantiser
from tritloom.rtl.vector.residual import Residual
from tritloom.rtl.vector.scales import ScaleUnit
from tritloom.rtl.vector.stages import ACCUMULATORS, FIXED_BITS, FIXED_LEFT, LATE_READ, OPERAND, Kind, Stages, Y
from tritloom.rtl.vector.work import WorkVector

__all__ = ["Datapath"]

FACTOR_BITS = 18
PRODUCT_BITS = ACTIVATION_BITS + FACTOR_BITS


class Datapath:
    """V lanes of y = u * c - v * d (odd lanes: +): an element times its gain, an element and its pair's partner times cosine and sine,
    an accumulator, code or bias times a scale's mantissa.

    Stage 2: `residual`, `accumulators`, work elements and codes as the memories gave them; `addend`: what RESID and BIAS add to. Late
    results are accumulators in stage 3. Stage 6: `y`.
    Stage 8: `shifted`, y in twice fixed point or, for the quantiser, shifted left until the greatest one has 23 bits.
    `beyond`: the word in stage 9 was too great for fixed point.
    """

    def __init__(self, vector: VectorParameters, current: Current, stages: Stages):
        self._p = p = vector
        self.current, self.stage, lanes = current, stages.stage, vector.vector_lanes
        self.residual = Signal(data.ArrayLayout(signed(32), lanes), reset_less=True)
        # Zero for the operations that add to nothing: a register with a reset spares a gate a bit.
        self.addend = Signal(data.ArrayLayout(signed(32), lanes))
        self.accumulators = Signal(data.ArrayLayout(signed(p.acc_bits), lanes), name="acc", reset_less=True)
        # From UltraRAMs, far away, accumulators come late: the lanes choose the results that are read now (`_late`, where `_fresh`) last of
        # all, after what is `_early`. With `spread` that is after the aligning shifter, which would not move them.
        self._late, self._early, self._fresh = [], [], Signal(name="fresh")
        self.work = Signal(data.ArrayLayout(WORK, lanes), reset_less=True)
        self.codes = [Signal(data.ArrayLayout(signed(p.code_bits), lanes), name=f"codes{i}", reset_less=True) for i in (1, 2)]
        self.raw = [Signal(signed(ALIGNER_BITS), name=f"raw{k}", reset_less=True) for k in range(lanes)]
        self.product = [Signal(signed(ACTIVATION_BITS + FACTOR_BITS - 1), name=f"product{k}", reset_less=True) for k in range(lanes)]
        self.y = Signal(data.ArrayLayout(signed(Y_BITS), lanes), reset_less=True)
        # Of the word in stages 6 to 9.
        self._beyond = [Signal(name=f"beyond{i}") for i in range(4)]
        self.beyond = self._beyond[-1]
        self.shifted = [Signal(signed(FIXED_BITS), name=f"shifted{k}", reset_less=True) for k in range(lanes)]

    def fetch(self, m, residual: Residual, work: WorkVector, *, code, result, kept_place):
        """Stage 2: what the memories gave. `code`: of an embedding; `result`: of the matrices."""
        adding, stage = self.current.is_op(*self.current.adding), self.stage
        m.submodules.x, m.submodules.h = residual.memory, work.memory
        x_read, h_read = residual.read, work.memory.read_port()
        m.d.comb += [x_read.addr.eq(Mux(adding, stage[LATE_READ].place, stage[0].place)), h_read.addr.eq(stage[0].place)]
        m.d.sync += [
            Value.cast(self.residual).eq(x_read.data),
            Value.cast(self.addend).eq(Mux(adding, x_read.data, 0)),
            self.work.eq(h_read.data),
            Value.cast(self.codes[0]).eq(code),
            self.codes[1].eq(self.codes[0]),
        ]
        self._take_results(m, result, kept_place)

    def _take_results(self, m, result, kept_place):
        """Accumulators from the matrices; those that come in parts are kept for a head's second pass."""
        p, at = self._p, ACCUMULATORS + self._p.spread
        given = Signal(p.vector_lanes * p.acc_bits, reset_less=p.spread)
        m.d["sync" if p.acc_read_latency == 1 or p.spread else "comb"] += given.eq(result)
        if p.ultra:
            self._late = [given.word_select(k, p.acc_bits).as_signed() for k in range(p.vector_lanes)]
        of_results = self.current.is_op(VectorOp.RESID, VectorOp.QKV, VectorOp.GLU) if p.ultra else None
        if p.acc_parts == 1:
            m.d.comb += Value.cast(self.accumulators).eq(given)
            if of_results is not None:
                self._mark_fresh(m, of_results)
            return
        m.submodules.kept = kept = Memory(shape=p.vector_lanes * p.acc_bits, depth=1 << len(kept_place), init=[])
        kept_write, kept_read = kept.write_port(), kept.read_port()
        s1_place, s2_place = Signal.like(kept_place), Signal.like(kept_place)
        again = Signal.like(given)
        second = self.stage[at].second & self.current.is_op(VectorOp.QKV)
        m.d.sync += [s1_place.eq(kept_place), s2_place.eq(s1_place), again.eq(kept_read.data)]
        place = s2_place
        if p.spread:
            place = Signal.like(kept_place, name="s3_place")
            m.d.sync += place.eq(s2_place)
        m.d.comb += [
            kept_write.en.eq(self.stage[at].valid & ~second),
            kept_write.addr.eq(place),
            kept_write.data.eq(given),
            kept_read.addr.eq(kept_place),
            Value.cast(self.accumulators).eq(given if p.spread else Mux(second, again, given)),
        ]
        if of_results is not None:
            self._early = [again.word_select(k, p.acc_bits).as_signed() for k in range(p.vector_lanes)]
            self._mark_fresh(m, of_results & ~(self.stage[1].second & self.current.is_op(VectorOp.QKV)))

    def _mark_fresh(self, m, fresh):
        """Whether the word of stage 1 is of results that are read now, when it is in the stage of accumulators."""
        if self._p.spread:
            before = Signal(name="fresh_before")
            m.d.sync += before.eq(fresh)
            fresh = before
        m.d.sync += self._fresh.eq(fresh)

    def multiply(self, m, coefficients, qkv: Qkv, *, left, top, multiplier, squares):
        """Stage 3: one word for the aligning shifter. Stage 4: operands, 24 bits. Stage 5: products. Stage 6: y.

        `left`, `top`: how the slot's elements stand in memory; `multiplier`: mantissa of RESID's, EMBED's and GLU's scale; `squares`: of
        the quantiser.
        """
        is_norm, is_qkv = self.current.is_op(VectorOp.NORMQ), self.current.is_op(VectorOp.QKV)
        unrotated = self.stage[OPERAND].kind == Kind.VALUE
        second_products = []
        elements = self.raw
        if self._p.spread:
            elements = [Mux(self._fresh, sign_extend(late, ALIGNER_BITS), raw).as_signed()
                        for late, raw in zip(self._late, self.raw, strict=True)]
        for k in range(self._p.vector_lanes):
            aligned = self._align(m, k, is_norm, left, top, multiplier)
            if self._p.spread:
                aligned = Mux(self._fresh, self._late[k], aligned)

            # u * c is the product of all operations; the other one is a * sin of the pair's partner, or a square.
            u, c = Signal(signed(ACTIVATION_BITS), name=f"u{k}", reset_less=True), Signal(signed(18), name=f"c{k}", reset_less=True)
            v, d = Signal(signed(ACTIVATION_BITS), name=f"v{k}", reset_less=True), Signal(signed(18), name=f"d{k}", reset_less=True)
            m.d.sync += u.eq(aligned)
            with m.If(is_norm):
                factor, squared = Norm.factors(aligned, coefficients[k], self.current.command.norm)
                m.d.sync += [c.eq(factor), v.eq(sign_extend(squared, ACTIVATION_BITS)), d.eq(squared)]
            with m.Elif(is_qkv):
                cos, sin = qkv.factors(unrotated, k, coefficients)
                m.d.sync += [c.eq(cos), v.eq(elements[k ^ 1]), d.eq(sin)]
            if self._p.adds_biases:
                with m.Elif(self.current.is_op(VectorOp.BIAS)):
                    m.d.sync += c.eq(coefficients[k])
            with m.Else():
                m.d.sync += c.eq(multiplier)
            second = Signal(signed(PRODUCT_BITS), name=f"second{k}", reset_less=True)
            m.d.sync += [self.product[k].eq(u * c), second.eq(v * d)]
            second_products.append(second)
            turned = Mux(is_qkv, second, 0)
            m.d.sync += self.y[k].eq(self.product[k] + turned if k & 1 else self.product[k] - turned)
        for k in range(self._p.vector_lanes):
            square = second_products[k][:SQUARE_BITS]
            if self._p.head_norms:
                square = Mux(is_qkv, exact_square(m, elements[k][: self._p.acc_bits].as_signed(), f"square{k}"), square)
            m.d.comb += squares[k].eq(square)

    def _align(self, m, k, is_norm, left, top, multiplier):
        """A lane's element, accumulator or code, and its right shift; of a bias the `multiplier`."""
        work, raw, acc_bits = self.work[k], self.raw[k], self._p.acc_bits
        amount, distance = Signal(5, name=f"amount{k}", reset_less=True), Signal(9, name=f"distance{k}")
        m.d.comb += distance.eq(sign_extend(top, 9) - sign_extend(work.e, 9))
        with m.If(is_norm & ~self.current.command.source):
            operand, shift = Norm.residual_operand(self.residual[k], left)
            m.d.sync += [raw.eq(operand), amount.eq(shift)]
        with m.Elif(is_norm):
            operand, shift = Norm.work_operand(work.m, distance)
            m.d.sync += [raw.eq(operand), amount.eq(shift)]
        if self._p.adds_biases:
            with m.Elif(self.current.is_op(VectorOp.BIAS)):
                m.d.sync += [raw.eq(multiplier), amount.eq(0)]
        with m.Else():
            code = sign_extend(self.codes[1][k], acc_bits)
            early = self._early[k] if self._early else code if self._late else self.accumulators[k]
            m.d.sync += [
                raw.eq(sign_extend(Mux(self.current.is_op(VectorOp.EMBED), code, early), ALIGNER_BITS)),
                amount.eq(0),
            ]
        if self._late and not self._p.spread:
            with m.If(self._fresh):
                m.d.sync += raw.eq(sign_extend(self._late[k], ALIGNER_BITS))
        aligned = Signal(signed(ACTIVATION_BITS), name=f"aligned{k}")
        m.d.comb += aligned.eq(shift_right(m, raw, amount, ACTIVATION_BITS, f"align{k}"))
        return aligned

    def shift(self, m, scales: ScaleUnit, quantiser: Quantiser, length, exponent):
        """Stages 7 and 8: y shifted left by FIXED_LEFT + 16 - amount; first by a multiple of 4, then by the rest.

        Quantising operations shift left by 23 less the length of the maximum (`length`), and by the `exponent` of the word's group (None
        where groups have none), and use the low NORMAL_BITS. The others
        leave a bit below fixed point, to round: they shift left by 1 + e + RESIDUAL_BITS, which is at most FIXED_LEFT, and
        of whose lower values nothing but the sign is left from -Y_BITS + 1 on.
        """
        wanted = Signal(signed(14))
        amount, fine = Signal(6), Signal(2)
        before = self.stage[Y - 1]
        m.d.sync += Cat(self._beyond).eq(Cat(wanted < 0, self._beyond[:-1]))
        m.d.comb += wanted.eq(7 - integer.RESIDUAL_BITS - scales.t.e)
        m.d.sync += fine.eq(amount)
        with m.If(~self.current.is_op(VectorOp.QKV, VectorOp.NORMQ)):
            m.d.sync += amount.eq(16 + Mux(wanted < 0, 0, Mux(wanted > FIXED_BITS - 1, FIXED_BITS - 1, wanted)))
        if exponent is None:
            with m.Elif(before.valid & before.first & before.second):
                m.d.sync += amount.eq(length + 1)
        else:
            with m.Elif(before.valid & (before.first | self.current.is_op(VectorOp.NORMQ)) & before.second):
                m.d.sync += amount.eq(length + 1 - exponent)
        for k, shifted in enumerate(self.shifted):
            coarse = Signal(signed(FIXED_BITS + 3), name=f"coarse{k}", reset_less=True)
            # The multiple of 16 comes last: most of what it can bring down is zeros or the sign.
            near = Signal(signed(FIXED_LEFT + 16 + Y_BITS), name=f"near{k}")
            m.d.comb += near.eq(Cat(C(0, FIXED_LEFT + 16), self.y[k]).as_signed() >> Cat(C(0, 2), amount[2:4]))
            m.d.sync += [
                coarse.eq((near >> Cat(C(0, 4), amount[4:]))[: len(coarse)].as_signed()),
                shifted.eq(shift_right(m, coarse, fine, FIXED_BITS, f"fine_shift{k}").as_signed()),
            ]
            m.d.comb += quantiser.normal[k].eq(shifted[:NORMAL_BITS].as_signed())
