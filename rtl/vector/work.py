"""The work vectors: gated activations or attention outputs, one for each lane."""

from __future__ import annotations

from functools import reduce
from operator import or_

from amaranth import Array, Mux, Signal, Value, signed
from amaranth.lib import data
from amaranth.lib.memory import Memory

from tritloom.rtl.arith import larger, reduce_registered
from tritloom.rtl.vector.command import Current
from tritloom.rtl.vector.glu import WORK
from tritloom.rtl.vector.parameters import VectorParameters

__all__ = ["WorkVector", "storage"]


def storage(vector: VectorParameters) -> dict[str, str]:
    """Attributes of the large memories."""
    return {"ram_style": "ultra"} if vector.ultra else {}


class WorkVector:
    """The memory of the work vectors, with the greatest exponent of each.

    `maximum_exponent`: by lane, over the elements written since the vector's start; `is_one`: the vector's scale is one, as it is for
    attention outputs; `tracking`: the maximum does not include all written elements yet.
    """

    def __init__(self, vector: VectorParameters, current: Current):
        self._p, self.current = vector, current
        self.memory = Memory(
            shape=data.ArrayLayout(WORK, vector.vector_lanes), depth=vector.lanes * vector.work_words, init=[], attrs=storage(vector))
        self.base, self.write = Array([i * vector.work_words for i in range(vector.lanes)]), self.memory.write_port()
        self.tracking = Signal()
        self.maximum_exponent = [Signal(signed(8), init=-128, name=f"maximum_exponent{i}") for i in range(vector.lanes)]
        self.is_one = Signal(vector.lanes, init=-1, name="work_is_one")

    def connect(self, m, *, activated, tag, elements, begins, outputs, clear):
        """Write gated activations and attention outputs.

        `activated`: `elements` of the word that `tag` tells are gated activations; `begins`: the present lane's begin.
        `outputs`: attention outputs {valid, slot, addr, data}; `clear`: lanes whose outputs begin.
        """
        p = self._p
        bases = Array([i * p.work_words for i in range(p.lanes)])
        lane = outputs.slot.shape()
        write = Signal(data.StructLayout({"valid": 1, "slot": lane, "place": p.place_bits, "data": data.ArrayLayout(WORK, p.vector_lanes)}))
        m.d.sync += [
            write.valid.eq(activated | outputs.valid),
            write.slot.eq(Mux(activated, tag.slot[: p.token_bits] if p.token_bits else 0, outputs.slot)),
            write.place.eq(Mux(activated, tag.place, bases[outputs.slot] + outputs.addr)),
            Value.cast(write.data).eq(Mux(activated, Value.cast(elements), Value.cast(outputs.data))),
        ]
        m.d.comb += [self.write.en.eq(write.valid), self.write.addr.eq(write.place), self.write.data.eq(write.data)]
        self._track(m, write, begins, outputs, clear)

    def _track(self, m, write, begins, outputs, clear):
        """The greatest exponent of a word, some cycles later, joins its lane's; where a vector begins, it starts anew."""
        exponent, depth = reduce_registered(m, [write.data[k].e for k in range(self._p.vector_lanes)], larger, "work_exponent")
        valid, slot = [write.valid], [write.slot]
        for i in range(depth):
            valid.append(Signal(name=f"work_valid{i}"))
            slot.append(Signal(outputs.slot.shape(), name=f"work_slot{i}"))
            m.d.sync += [valid[-1].eq(valid[-2]), slot[-1].eq(slot[-2])]
        m.d.comb += self.tracking.eq(reduce(or_, valid) | outputs.valid)
        # Registered: the vector's first elements arrive many cycles later.
        begin = Signal()
        m.d.sync += begin.eq(begins)
        for i, maximum in enumerate(self.maximum_exponent):
            chosen = self.current.lane == i
            with m.If(clear[i] | (begin & chosen)):
                m.d.sync += maximum.eq(-128)
            with m.Elif(valid[-1] & (slot[-1] == i) & (exponent > maximum)):
                m.d.sync += maximum.eq(exponent)
            with m.If(clear[i]):
                m.d.sync += self.is_one[i].eq(1)
            with m.Elif(begin & chosen):
                m.d.sync += self.is_one[i].eq(0)
