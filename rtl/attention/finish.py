"""The end of a pass: each lane's output divided by its total."""

from __future__ import annotations

from amaranth import C, Cat, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from tritloom.firmware.integer import PROBABILITY_BITS, WEIGHT_DROP
from tritloom.rtl.arith import index_shape
from tritloom.rtl.attention.dot import delay
from tritloom.rtl.attention.parameters import AttentionParameters, accumulator_bits
from tritloom.rtl.attention.softmax import EXPONENT_SHAPE, total_bits
from tritloom.rtl.ufloat import SerialDivider

__all__ = ["Finish", "work_layout"]

WORK_MANTISSA = 24


def work_layout(vector_lanes: int) -> data.ArrayLayout:
    """V work elements m * 2**e."""
    return data.ArrayLayout(data.StructLayout({"m": signed(WORK_MANTISSA), "e": signed(8)}), vector_lanes)


class Finish(wiring.Component):
    """Divide each lane's output by its total and stream it out as work elements.

    The reciprocals are taken by one serial divider per lane as soon as the totals stand; the outputs
    follow, V/2 elements a cycle, lane after lane, when the last values are in.

    Latency: about 40 cycles for the reciprocals, `stream_latency` from an output word to its elements.

    Throughput: V/2 elements per cycle; they leave V together.

    Parameters
    ----------
    attention : AttentionParameters

    Members
    -------
    clear : In(1), slot : In, several : In(1)
        A command begins; its first slot; whether lanes are slots (else heads of one slot).
    start : In(1), total, exponent : In, active : In
        Take the totals; of the lanes up to the last active one. Only when not busy.
    outputs_done : In(1)
        High for a cycle when the pass's last values are in.
    busy : Out(1), released : Out(1)
        Totals cannot be taken yet; high for a cycle when the outputs are not needed any more.
    read_en, read_word : Out, outputs : In
        To the lanes' output memories.
    write : Out {valid, slot, addr, data}
    pass_done : Out(1)
        With a pass's last write.
    """

    stream_latency = 10

    def __init__(self, attention: AttentionParameters):
        self._p = p = attention
        self._output_bits, self._total_bits = accumulator_bits(p.context), total_bits(p.context)
        slot, address = index_shape(p.slots), index_shape(p.heads * p.head_dim // p.vector_lanes)
        super().__init__({
            "clear": In(1), "slot": In(slot), "several": In(1),
            "start": In(1), "active": In(p.lanes), "outputs_done": In(1), "busy": Out(1), "released": Out(1),
            "total": In(self._total_bits).array(p.lanes), "exponent": In(EXPONENT_SHAPE).array(p.lanes),
            "read_en": Out(1), "read_word": Out(index_shape(p.head_words)),
            "outputs": In(p.word * self._output_bits).array(p.lanes),
            "write": Out(wiring.Signature({"valid": Out(1), "slot": Out(slot), "addr": Out(address),
                                           "data": Out(work_layout(p.vector_lanes))})),
            "pass_done": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        complete = Signal()
        active = Signal.like(self.active)
        shifts = self._total_bits - PROBABILITY_BITS
        count = Signal(range(max(shifts, 2)))
        normalise, divide, divided = Signal(), Signal(), Signal()
        inverses, bases = self._reciprocals(m, normalise, divide, divided)

        with m.If(self.outputs_done):
            m.d.sync += complete.eq(1)
        m.d.comb += self.busy.eq(1)
        with m.FSM():
            with m.State("IDLE"):
                m.d.comb += self.busy.eq(0)
                m.d.sync += [active.eq(self.active), count.eq(shifts - 1)]
                with m.If(self.start):
                    m.next = "NORMALISE"
            with m.State("NORMALISE"):
                m.d.comb += normalise.eq(1)
                m.d.sync += count.eq(count - 1)
                with m.If(count == 0):
                    m.next = "START"
            with m.State("START"):
                m.d.comb += divide.eq(1)
                m.next = "DIVIDE"
            with m.State("DIVIDE"):
                with m.If(divided):
                    m.next = "WAIT"
            with m.State("WAIT"):
                with m.If(complete):
                    m.d.sync += complete.eq(0)
                    m.next = "STREAM"
            with m.State("STREAM"):
                m.d.comb += self.read_en.eq(1)
                lane, sub, last_of_lane, last = self._walk(m, active)
                with m.If(last):
                    m.d.comb += self.released.eq(1)
                    m.next = "IDLE"
        self._stream(m, lane, sub, last_of_lane, last, inverses, bases)
        return m

    def _reciprocals(self, m, normalise, divide, divided):
        """Per lane: inverse mantissa, and exponent of the work mantissa's lowest bit before normalisation."""
        p = self._p
        inverses, bases = [], []
        for i in range(p.lanes):
            total, base = Signal(self._total_bits, name=f"total{i}"), Signal(signed(12), name=f"base{i}")
            m.submodules[f"divider{i}"] = divider = SerialDivider(denominator_bits=16, quotient_bits=17)
            inverse, exponent = Signal(16, name=f"inverse{i}"), Signal(signed(12), name=f"exponent{i}")
            m.d.comb += [divider.start.eq(divide), divider.numerator.eq(1 << 31), divider.denominator.eq(total[-16:])]
            # total * 2**shift: a scale of exponent total_bits - 16 - shift, whose reciprocal is quotient * 2**(-31 - that).
            with m.If(self.start):
                m.d.sync += [total.eq(self.total[i]),
                             base.eq(self.exponent[i] + (WEIGHT_DROP - 31 - self._total_bits + 16))]
            with m.Elif(normalise & ~total[-1]):
                m.d.sync += [total.eq(total << 1), base.eq(base + 1)]
            # A quotient of 2**16 has one bit too many.
            with m.If(divider.done):
                m.d.sync += [inverse.eq(Mux(divider.quotient[16], 1 << 15, divider.quotient)), exponent.eq(base + divider.quotient[16])]
            if i == 0:
                m.d.comb += divided.eq(divider.done)
            inverses.append(inverse)
            bases.append(exponent)
        return inverses, bases

    def _walk(self, m, active):
        """Address generator: lanes, their output words, groups of V/2 elements."""
        p = self._p
        parts = 2 * p.word // p.vector_lanes
        lane, word, sub = Signal(index_shape(p.lanes)), self.read_word, Signal(index_shape(parts))
        last_of_word, last_of_lane, last = Signal(), Signal(), Signal()
        m.d.comb += [last_of_word.eq(sub == parts - 1), last_of_lane.eq(last_of_word & (word == p.head_words - 1)),
                     last.eq(last_of_lane & ~(active >> lane)[1:].any())]
        m.d.sync += sub.eq(Mux(last_of_word, 0, sub + 1))
        with m.If(last_of_word):
            m.d.sync += word.eq(Mux(last_of_lane, 0, word + 1))
        with m.If(last_of_lane):
            m.d.sync += lane.eq(Mux(last, 0, lane + 1))
        return lane, sub, last_of_lane, last

    def _stream(self, m, lane, sub, last_of_lane, last, inverses, bases):
        p = self._p
        width, v = self._output_bits, p.vector_lanes // 2
        product_bits = width + 16
        # Cycle 0: the memories are read. Cycle 1: choose V/2 elements of a lane.
        s1_lane, s1_sub = delay(m, lane, 1, "lane"), delay(m, sub, 1, "sub")
        s2_value = Signal(data.ArrayLayout(signed(width), v))
        s2_inverse, s2_base = Signal(16), Signal(signed(12))
        with m.Switch(s1_lane):
            for i in range(p.lanes):
                with m.Case(i):
                    m.d.sync += [s2_value.eq(self.outputs[i].word_select(s1_sub, v * width)),
                                 s2_inverse.eq(inverses[i]), s2_base.eq(bases[i])]
        # Cycle 2: multiply halves. Cycle 3: add. Cycles 4 to 7: normalise. Cycle 8: the exponent. Cycle 9: its limits.
        base = delay(m, s2_base, 6, "base")
        for i in range(v):
            low, high = Signal(33, name=f"low{i}"), Signal(signed(width - 17 + 17), name=f"high{i}")
            product = Signal(signed(product_bits), name=f"product{i}")
            m.d.sync += [low.eq(s2_value[i][:17] * s2_inverse), high.eq(s2_value[i][17:].as_signed() * s2_inverse),
                         product.eq(Cat(C(0, 17), high).as_signed() + low)]
            mantissa, left, nonzero = self._normalise(m, product, i)
            exponent = Signal(signed(13), name=f"exponent{i}")
            s9_mantissa, s9_nonzero = Signal(signed(WORK_MANTISSA), name=f"mantissa{i}"), Signal(name=f"nonzero{i}")
            m.d.sync += [exponent.eq(base - left + (product_bits - WORK_MANTISSA)), s9_mantissa.eq(mantissa), s9_nonzero.eq(nonzero)]
            element = self.write.data[v + i]
            m.d.sync += self.write.data[i].eq(element)
            with m.If(s9_nonzero & (exponent >= -127)):
                m.d.sync += [element.m.eq(s9_mantissa), element.e.eq(Mux(exponent > 127, 127, exponent))]
            with m.Else():
                m.d.sync += [element.m.eq(0), element.e.eq(-128)]
        # The lower half of V elements waits for the upper one.
        m.d.comb += [
            self.write.valid.eq(delay(m, self.read_en & sub[0], self.stream_latency, "write_valid")),
            self.pass_done.eq(delay(m, self.read_en & last, self.stream_latency, "pass_done")),
        ]
        self._address(m, delay(m, self.read_en & last_of_lane, self.stream_latency, "lane_done"))

    def _normalise(self, m, value, index):
        """Shift out redundant sign bits in four cycles: the top bits, the shift, and whether the value was not zero."""
        count = []
        nonzero = value != 0
        value = value.as_unsigned()
        span = (len(value) - 1).bit_length()
        for level in reversed(range(span)):
            redundant = Signal(name=f"redundant{index}_{level}")
            # The bits that can still become part of the mantissa.
            keep = min(len(value), WORK_MANTISSA + (1 << level) - 1)
            top = value[len(value) - (1 << level) - 1:] if (1 << level) < len(value) else value
            m.d.comb += redundant.eq(top.all() | ~top.any())
            shifted = Cat(C(0, 1 << level), value)[:len(value)]
            value = Mux(redundant, shifted, value)[len(value) - keep:]
            count = [redundant, *count]
            if level not in (3, 1):
                state = Signal(data.StructLayout({"value": keep, "count": len(count), "nonzero": 1}), name=f"norm{index}_{level}")
                m.d.sync += state.eq(Cat(value, *count, nonzero))
                value, count, nonzero = state.value, list(state.count), state.nonzero
        assert span == 6, "levels 5, 4, 3 and 2, 1 and 0"
        return value.as_signed(), Cat(*count), nonzero

    def _address(self, m, lane_done):
        """Address of the elements: consecutive heads of one slot, or the same head of consecutive slots."""
        address, start, slot = self.write.addr, Signal.like(self.write.addr), self.write.slot
        with m.If(self.clear):
            m.d.sync += [address.eq(0), start.eq(0), slot.eq(self.slot)]
        with m.Elif(self.write.valid):
            m.d.sync += address.eq(address + 1)
            with m.If(self.several & lane_done):
                m.d.sync += [address.eq(start), slot.eq(slot + 1)]
                with m.If(self.pass_done):
                    m.d.sync += [address.eq(address + 1), start.eq(address + 1), slot.eq(self.slot)]
