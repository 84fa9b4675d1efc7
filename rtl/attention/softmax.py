"""Scores and the streaming softmax, for the lanes of the dot engine.

Base 2 throughout: scores have SCORE_BITS fraction, the running maximum is an integer, so that every
rescale is a shift. `tritloom.firmware.integer` (attention_chunk, attention_finish) says what is computed.
"""

from __future__ import annotations

from amaranth import C, Cat, Module, Mux, Shape, Signal, signed, unsigned
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out

from tritloom.firmware.config import CHUNK, LOGIT_BITS
from tritloom.firmware.integer import (
    EXP2_TABLE,
    EXPONENT_MIN,
    PROBABILITY_BITS,
    RUNNING_MAX_MIN,
    SCORE_BITS,
    WEIGHT_DROP,
)
from tritloom.rtl.arith import index_shape
from tritloom.rtl.attention.dot import delay
from tritloom.rtl.attention.parameters import SCORE_WIDTH, WEIGHT_BITS
from tritloom.rtl.once import once
from tritloom.rtl.ufloat import UFLOAT, shift_right

__all__ = ["LOGIT", "ScoreLane", "SoftmaxControl", "SoftmaxLane", "total_bits"]

MAXIMUM_SHAPE = signed(13)
EXPONENT_SHAPE = signed(10)
LOGIT = signed(LOGIT_BITS)
ROW_ADDRESS = 2 * CHUNK


def total_bits(context: int) -> int:
    """Bits of a sum of `context` probabilities."""
    return PROBABILITY_BITS + 1 + context.bit_length()


def _index_of(lanes):
    return index_shape(Shape.cast(lanes).width)


def _is_on(lane, active):
    return active.bit_select(lane, 1)


def _visible(row, back, remaining, lane, active):
    return ((row + back) <= remaining) & _is_on(lane, active)


@once
class ScoreLane(wiring.Component):
    """Turn one lane's dot products into scores: times the query's and the key's scale, rounded, saturated.

    Keeps the scores of two chunks and their maxima over the visible rows. Products with the 16-bit row
    scales of the LM head (`head`) leave as logits.

    Latency: `latency` cycles from `row` to the score's entry into the store, `logit_latency` to `logit`.

    Throughput: one row per cycle; never stalls.

    Parameters
    ----------
    dot_bits : int
        Width of a dot product.
    dot_delay : int
        Cycles from `row` to its dot product, at least 3.
    step : data.StructLayout

    Members
    -------
    lane : In
        Constant: the lane's number.
    row : In(step layout), valid : In(1)
        A row has been streamed.
    key_scale : In(UFLOAT), query_scale : In(UFLOAT), row_scale : In(16)
        Scales, with `row`.
    back : In
        Positions between this lane's and the furthest lane's.
    dot : In
    read_addr : In, score : Out
        Read a score; data one cycle later.
    top : Out
        Greatest visible score of both chunks.
    scored : Out(2)
        High for a cycle when a chunk's scores are complete from the next cycle on.
    logit_valid : Out(1), logit : Out(LOGIT)
    saturated : Out(1)
    """

    def __init__(self, *, dot_bits: int, dot_delay: int, step: data.StructLayout):
        if dot_delay < 3:
            raise ValueError(f"dot_delay must be 3 or more, not {dot_delay}")
        self._dot_bits, self._dot_delay = dot_bits, dot_delay
        self.logit_latency = dot_delay + 1
        self.latency = dot_delay + 6
        super().__init__({
            "lane": In(_index_of(step["active"].shape)), "row": In(step), "valid": In(1),
            "key_scale": In(UFLOAT), "query_scale": In(UFLOAT), "row_scale": In(16),
            "back": In(step["remaining"].shape),
            "dot": In(signed(dot_bits)),
            "read_addr": In(range(ROW_ADDRESS)), "score": Out(signed(SCORE_WIDTH)),
            "top": Out(signed(SCORE_WIDTH)).array(2),
            "scored": Out(2),
            "logit_valid": Out(1), "logit": Out(LOGIT),
            "saturated": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        mantissa, amount = self._scale(m)

        # What the score's write needs of its row.
        control = data.StructLayout({"valid": 1, "row": 4, "parity": 1, "visible": 1, "last": 1})
        s0 = Signal(control)
        row = self.row
        m.d.comb += [
            s0.valid.eq(self.valid & ~row.head), s0.row.eq(row.row), s0.parity.eq(row.parity), s0.last.eq(row.ends_half),
            s0.visible.eq(_visible(row.row[:4], self.back, row.remaining, self.lane, row.active)),
        ]

        # Cycle `dot_delay`: dot times mantissa.
        product = Signal(signed(self._dot_bits + 16))
        m.d.sync += product.eq(self.dot * mantissa)
        m.d.comb += [
            self.logit.eq(product),
            self.logit_valid.eq(delay(m, self.valid & row.head & row.emit, self.logit_latency, "logit_valid")),
        ]

        # Then ((product << 8 >> amount) + 1) >> 1, shifted in two steps; 24 bits are enough to see saturation.
        extended = Cat(C(0, 8), product).as_signed()
        fine, coarse = Signal(extended.shape()), Signal(extended.shape())
        clipped, score = Signal(signed(SCORE_WIDTH + 2)), Signal(signed(SCORE_WIDTH))
        m.d.sync += fine.eq(shift_right(m, extended, amount[:3], len(extended), "fine"))
        coarse_amount = delay(m, amount[3:], 1, "coarse_amount")
        m.d.sync += coarse.eq(shift_right(m, fine, Cat(C(0, 3), coarse_amount), len(extended), "coarse"))
        m.d.sync += clipped.eq(_clip(coarse, SCORE_WIDTH + 2))
        rounded = Signal(signed(SCORE_WIDTH + 2))
        m.d.comb += rounded.eq((clipped + 1) >> 1)
        m.d.sync += score.eq(_clip(rounded, SCORE_WIDTH))
        overflow = Signal()
        m.d.sync += overflow.eq(~_fits(rounded, SCORE_WIDTH))

        s1 = delay(m, s0, self.latency - 1, "score_control")
        m.submodules.scores = store = memory.Memory(shape=signed(SCORE_WIDTH), depth=ROW_ADDRESS, init=[])
        write, read = store.write_port(), store.read_port()
        m.d.comb += [
            write.en.eq(s1.valid), write.addr.eq(Cat(s1.row, s1.parity)), write.data.eq(score),
            read.addr.eq(self.read_addr), self.score.eq(read.data),
            self.saturated.eq(s1.valid & s1.visible & overflow),
        ]
        for parity in range(2):
            m.d.comb += self.scored[parity].eq(s1.valid & s1.last & (s1.parity == parity))
            top = self.top[parity]
            with m.If(s1.valid & (s1.parity == parity)):
                with m.If(s1.visible & ((s1.row == 0) | (score > top))):
                    m.d.sync += top.eq(score)
                with m.Elif(s1.row == 0):
                    m.d.sync += top.eq(-(1 << (SCORE_WIDTH - 1)))
        return m

    def _scale(self, m):
        """Mantissa of query scale * key scale, due with the dot product, and the right shift, due a cycle later."""
        # Cycle 0: multiply mantissas.
        s1_product, s1_exponent = Signal(32), Signal(signed(11))
        m.d.sync += [s1_product.eq(self.query_scale.m * self.key_scale.m), s1_exponent.eq(self.query_scale.e + self.key_scale.e)]
        # Cycle 1: normalise. Exponents keep all their bits, so that no product can wrap.
        s2_mantissa, s2_exponent = Signal(16), Signal(signed(12))
        top = s1_product[31]
        m.d.sync += [s2_mantissa.eq(Mux(top, s1_product[16:], s1_product[15:31])), s2_exponent.eq(s1_exponent + 15 + top)]
        head, row_scale = delay(m, self.row.head, 2, "head"), delay(m, self.row_scale, 2, "row_scale")
        # Cycle 2: the shift, one less than needed: the last bit rounds.
        needed = Signal(signed(13))
        m.d.comb += needed.eq(8 - SCORE_BITS - 1 - s2_exponent)
        s3_mantissa, s3_amount = Signal(16), Signal(6)
        m.d.sync += [s3_mantissa.eq(Mux(head, row_scale, s2_mantissa)),
                     s3_amount.eq(Mux(needed < 0, 0, Mux(needed > 61, 61, needed)))]
        return delay(m, s3_mantissa, self._dot_delay - 3, "mantissa"), delay(m, s3_amount, self._dot_delay - 2, "amount")


def _fits(value, bits):
    """Whether a signed value fits signed `bits`."""
    top = value[bits - 1:]
    return top.all() | ~top.any()


def _clip(value, bits):
    """A signed value clamped to signed `bits`."""
    limit = Cat((~value[-1]).replicate(bits - 1), value[-1])
    return Mux(_fits(value, bits), value[:bits], limit).as_signed()


class SoftmaxControl(wiring.Component):
    """Sequence the softmax of all lanes, a chunk at a time.

    Starts a chunk when its scores and value scales are ready; at the end of a pass hands the totals to `Finish`.

    Latency: `weight_latency` cycles from a chunk's start to its first weight; one more row per cycle.

    Parameters
    ----------
    chunk : data.StructLayout
        {rows (less one), remaining, first, last, active}
    side_by_side : int
        R, rows whose weights the values need at once.

    Members
    -------
    ready : In(1), chunk : In
        The chunk of `parity` may start; what it is.
    finish_busy : In(1)
    parity : Out(1)
    begin, measure, relate, apply, settle : Out(1)
        Steps of the running maximum's update.
    row_valid : Out(1), row : Out(4)
    started : Out(1)
        High for a cycle as soon as values may be streamed.
    hand_over : Out(1), done : Out(1)
        The pass's totals stand; the chunk is done with.
    """

    def __init__(self, *, chunk: data.StructLayout, side_by_side: int):
        self._side_by_side = side_by_side
        super().__init__({
            "ready": In(1), "chunk": In(chunk), "finish_busy": In(1), "parity": Out(1),
            "begin": Out(1), "measure": Out(1), "relate": Out(1), "apply": Out(1), "settle": Out(1),
            "row_valid": Out(1), "row": Out(4), "started": Out(1), "hand_over": Out(1), "done": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        wait = Signal(range(SoftmaxLane.total_latency))
        m.d.sync += self.settle.eq(self.apply)
        enough = self._side_by_side - 1
        first_rows = (self.row == enough) | ((self.row < enough) & (self.row == self.chunk.rows)) if enough else self.row == 0
        m.d.comb += self.started.eq(delay(m, self.row_valid & first_rows, SoftmaxLane.weight_latency - 2, "started"))
        with m.FSM():
            with m.State("IDLE"):
                m.d.sync += [self.row.eq(0), wait.eq(SoftmaxLane.total_latency - 2)]
                m.d.comb += self.begin.eq(self.ready & self.chunk.first)
                with m.If(self.ready):
                    m.next = "MEASURE"
            with m.State("MEASURE"):
                m.d.comb += self.measure.eq(1)
                m.next = "RELATE"
            with m.State("RELATE"):
                m.d.comb += self.relate.eq(1)
                m.next = "APPLY"
            with m.State("APPLY"):
                m.d.comb += self.apply.eq(1)
                m.next = "ROWS"
            with m.State("ROWS"):
                m.d.comb += self.row_valid.eq(1)
                m.d.sync += self.row.eq(self.row + 1)
                with m.If(self.row == self.chunk.rows):
                    m.next = "DRAIN"
            with m.State("DRAIN"):
                m.d.sync += wait.eq(wait - 1)
                with m.If(wait == 0):
                    m.next = "DONE"
            with m.State("DONE"):
                with m.If(~self.chunk.last | ~self.finish_busy):
                    m.d.comb += [self.done.eq(1), self.hand_over.eq(self.chunk.last)]
                    m.d.sync += self.parity.eq(~self.parity)
                    m.next = "IDLE"
        return m


@once
class SoftmaxLane(wiring.Component):
    """Keep one lane's running maximum, value exponent and total; turn scores into weights.

    Latency: `weight_latency` cycles from a row to its weight, `total_latency` to the total that has it.

    Parameters
    ----------
    context : int
    chunk : data.StructLayout

    Members
    -------
    lane : In
        Constant: the lane's number.
    control : In(...)
        SoftmaxControl's outputs.
    chunk : In, back : In
        As in ScoreLane.
    scan : {valid, row, parity, remaining, active, exponent}
        The value scales' exponents, one row per cycle, before the chunk starts.
    top : In
        Greatest visible score of the chunk.
    score : In, value_scale : In(UFLOAT)
        Due one cycle after the row.
    weight_write : Out {en, addr, data}
    shift : Out(6).array(2)
        Right shift of the output that either chunk needs.
    total, exponent : Out
    """

    weight_latency = 6
    total_latency = 5

    def __init__(self, *, context: int, chunk: data.StructLayout):
        remaining, active = chunk["remaining"].shape, chunk["active"].shape
        super().__init__({
            "lane": In(_index_of(active)),
            "parity": In(1), "begin": In(1), "measure": In(1), "relate": In(1), "apply": In(1), "settle": In(1),
            "row_valid": In(1), "row": In(4),
            "chunk": In(chunk), "back": In(remaining),
            "scan": In(wiring.Signature({
                "valid": Out(1), "row": Out(4), "parity": Out(1), "remaining": Out(remaining), "active": Out(active),
                "exponent": Out(EXPONENT_SHAPE)})),
            "top": In(signed(SCORE_WIDTH)), "score": In(signed(SCORE_WIDTH)), "value_scale": In(UFLOAT),
            "weight_write": Out(wiring.Signature({"en": Out(1), "addr": Out(index_shape(ROW_ADDRESS)), "data": Out(WEIGHT_BITS)})),
            "shift": Out(6).array(2),
            "total": Out(total_bits(context)), "exponent": Out(EXPONENT_SHAPE),
        })

    def elaborate(self, platform):
        m = Module()
        maximum = self._update(m)

        # Row cycle 0: read the score. Cycle 1: distance to the maximum.
        s0_visible = _visible(self.row, self.back, self.chunk.remaining, self.lane, self.chunk.active)
        s2_distance = Signal(unsigned(SCORE_WIDTH + 2))
        m.d.sync += s2_distance.eq(Cat(C(0, SCORE_BITS), maximum).as_signed() - self.score)
        # Cycle 2: look up 2**-fraction.
        m.submodules.table = table = memory.Memory(shape=PROBABILITY_BITS + 1, depth=len(EXP2_TABLE), init=EXP2_TABLE.tolist())
        lookup = table.read_port()
        m.d.comb += lookup.addr.eq(s2_distance[:SCORE_BITS])
        s3_whole, s3_visible = Signal(4), Signal()
        s2_visible = delay(m, s0_visible, 2, "visible")
        m.d.sync += [s3_whole.eq(s2_distance[SCORE_BITS:]), s3_visible.eq(s2_visible & ~s2_distance[SCORE_BITS + 4:].any())]
        # Cycle 3: shift by the integer part; distances of 16 or more give zero.
        s4_probability = Signal(PROBABILITY_BITS + 1)
        m.d.sync += s4_probability.eq(Mux(s3_visible, shift_right(m, lookup.data, s3_whole, PROBABILITY_BITS + 1, "power"), 0))
        s3_scale = delay(m, self.value_scale, 2, "value_scale")
        s4_mantissa, s4_below = Signal(16), Signal(signed(11))
        m.d.sync += [s4_mantissa.eq(s3_scale.m), s4_below.eq(self.exponent - s3_scale.e)]
        # Cycle 4: the weight's product, and the total.
        s5_product, s5_shift = Signal(32), Signal(5)
        m.d.sync += [s5_product.eq(s4_probability * s4_mantissa),
                     s5_shift.eq(Mux(s4_below < 0, 0, Mux(s4_below > 31, 31, s4_below)))]
        s4_valid = delay(m, self.row_valid, 4, "row_valid")
        with m.If(s4_valid):
            m.d.sync += self.total.eq(self.total + s4_probability)
        # Cycle 5: align the weight. Cycle 6: store it.
        s6_weight = Signal(WEIGHT_BITS)
        m.d.sync += s6_weight.eq(shift_right(m, s5_product[WEIGHT_DROP:WEIGHT_DROP + WEIGHT_BITS], s5_shift, WEIGHT_BITS, "weight"))
        m.d.comb += [
            self.weight_write.en.eq(delay(m, s4_valid, 2, "weight_valid")),
            self.weight_write.addr.eq(delay(m, Cat(self.row, self.parity), 6, "weight_row")),
            self.weight_write.data.eq(s6_weight),
        ]
        return m

    def _update(self, m):
        """Update the running maximum and exponent with a chunk's, and rescale the total and the output."""
        maximum, next_maximum = Signal(MAXIMUM_SHAPE), Signal(MAXIMUM_SHAPE)
        next_exponent, rise = Signal(EXPONENT_SHAPE), Signal(unsigned(10))
        total_shift = Signal(6)
        even, odd = self._scan(m)
        greatest = Mux(self.parity, odd, even)
        ceiling = Signal(MAXIMUM_SHAPE)
        m.d.comb += ceiling.eq((self.top + ((1 << SCORE_BITS) - 1)) >> SCORE_BITS)
        climb, reach, begun = Signal(13), Signal(11), Signal()
        m.d.comb += [climb.eq(next_maximum - maximum), reach.eq(total_shift + rise)]
        with m.If(self.begin):
            m.d.sync += [maximum.eq(RUNNING_MAX_MIN), self.exponent.eq(EXPONENT_MIN), self.total.eq(0), begun.eq(0)]
        with m.If(self.measure):
            m.d.sync += [next_maximum.eq(Mux(ceiling > maximum, ceiling, maximum)),
                         next_exponent.eq(Mux(greatest > self.exponent, greatest, self.exponent))]
        with m.If(self.relate):
            m.d.sync += [total_shift.eq(Mux(climb[6:].any(), 63, climb)), rise.eq(next_exponent - self.exponent)]
        with m.If(self.apply):
            m.d.sync += [maximum.eq(next_maximum), self.exponent.eq(next_exponent), begun.eq(begun | _is_on(self.lane, self.chunk.active)),
                         self.total.eq(shift_right(m, self.total, total_shift[:3], len(self.total), "total_fine"))]
            for parity in range(2):
                with m.If(self.parity == parity):
                    m.d.sync += self.shift[parity].eq(Mux(begun, Mux(reach[6:].any(), 63, reach), 0))
        with m.If(self.settle):
            m.d.sync += self.total.eq(shift_right(m, self.total, Cat(C(0, 3), total_shift[3:]), len(self.total), "total_coarse"))
        return maximum

    def _scan(self, m):
        """Greatest exponents among the visible rows of both chunks."""
        scan = self.scan
        visible, valid = Signal(), Signal()
        row, parity, exponent = Signal(4), Signal(), Signal(EXPONENT_SHAPE)
        m.d.sync += [visible.eq(_visible(scan.row, self.back, scan.remaining, self.lane, scan.active)), valid.eq(scan.valid),
                     row.eq(scan.row), parity.eq(scan.parity), exponent.eq(scan.exponent)]
        greatest = [Signal(EXPONENT_SHAPE, name=f"greatest{i}") for i in range(2)]
        for i in range(2):
            with m.If(valid & (parity == i)):
                with m.If(visible & ((row == 0) | (exponent > greatest[i]))):
                    m.d.sync += greatest[i].eq(exponent)
                with m.Elif(row == 0):
                    m.d.sync += greatest[i].eq(EXPONENT_MIN)
        return greatest
