"""Write quantised key and value rows, with their scales, into the cache."""

from __future__ import annotations

from amaranth import Array, C, Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from tritloom.rtl.stream import Fifo, LightSlice
from tritloom.rtl.ufloat import UFLOAT, to_word

__all__ = ["KvWriter", "write_layout"]

CHUNK = 16
SCALE_BYTES = 4


def write_layout(mem_bytes: int) -> data.StructLayout:
    return data.StructLayout({"addr": 32, "data": 8 * mem_bytes, "strb": mem_bytes})


def _ones(bits):
    """Whether all of the bits are ones; of no bits they are."""
    return bits.all() if len(bits) else C(1, 1)


class KvWriter(wiring.Component):
    """Turn one token's key rows, then its value rows, into memory writes, laid out as `layout.cache_rows` says.

    `begin` gives the address of the token's chunk (of the first head) and the token's place in it. Then
    words arrive, head by head, keys before values; the word with `last` ends a row and brings its scale.
    Words can't be held back: a row may only start when `free` was high as `reserve` was pulsed for it.

    Throughput: one word per cycle in, one beat per two cycles out.

    Parameters
    ----------
    vector_lanes, mem_bytes, kv_heads, head_dim, attention_macs, attention_rows : int
    kv_scale_block_bytes, kv_half_bytes, kv_head_bytes : int
        As in `BuildConfig`.
    rows, fifo_beats : int
        Rows that may be on their way, and their beats: memory takes few writes while weights stream.

    Members
    -------
    begin : In, chunk_address : In(32), row : In(4)
    reserve : In, free : Out
    valid, last, data, scale : In
    o : Out(stream of {addr, data, strb})
    busy : Out
        High while a row is on its way, up to its last write's transfer.
    """

    def __init__(
        self,
        *,
        vector_lanes: int,
        mem_bytes: int,
        kv_heads: int,
        head_dim: int,
        attention_macs: int,
        attention_rows: int,
        kv_scale_block_bytes: int,
        kv_half_bytes: int,
        kv_head_bytes: int,
        rows: int,
        fifo_beats: int,
    ):
        self._lanes, self._bytes, self._heads, self._dim = vector_lanes, mem_bytes, kv_heads, head_dim
        self._macs, self._rows, self._word = attention_macs, attention_rows, attention_macs // attention_rows
        self._waiting, self._fifo_beats = rows, fifo_beats
        self._scale_block, self._half, self._head = kv_scale_block_bytes, kv_half_bytes, kv_head_bytes
        super().__init__(
            {
                "begin": In(1),
                "chunk_address": In(32),
                "row": In(range(CHUNK)),
                "reserve": In(1),
                "free": Out(1),
                "valid": In(1),
                "last": In(1),
                "data": In(8 * vector_lanes),
                "scale": In(UFLOAT),
                "o": Out(stream.Signature(write_layout(mem_bytes))),
                "busy": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        beat_bits = (self._bytes - 1).bit_length()
        row_layout = data.StructLayout({"write": write_layout(self._bytes), "last": 1})
        scale_layout = data.StructLayout({"addr": 32, "word": 32})
        m.submodules.rows = rows = Fifo(row_layout, self._fifo_beats)
        m.submodules.scales = scales = Fifo(scale_layout, self._waiting)
        m.submodules.slice = out = LightSlice(write_layout(self._bytes))

        # Where the present row goes: `half` is its head's key or value half, `offset` the byte within.
        half, values, head = Signal(32), Signal(), Signal(range(self._heads))
        row, base = Signal.like(self.row), Signal(32)
        start, offset, word_done = Signal(range(self._half)), Signal(range(self._half)), Signal()
        starts = [divmod(i, self._rows) for i in range(CHUNK)]
        row_start = Array([self._scale_block + group * self._rows * self._dim + part * self._word for group, part in starts])
        with m.If(self.begin):
            m.d.sync += [
                base.eq(self.chunk_address),
                half.eq(self.chunk_address),
                values.eq(0),
                head.eq(0),
                row.eq(self.row),
                start.eq(row_start[self.row]),
                offset.eq(row_start[self.row]),
            ]
        with m.Elif(self.valid):
            with m.If(self.last):
                m.d.sync += offset.eq(start)
                with m.If(head == self._heads - 1):
                    m.d.sync += [head.eq(0), values.eq(1), half.eq(base + self._half)]
                with m.Else():
                    m.d.sync += [head.eq(head + 1), half.eq(half + self._head)]
            with m.Else():
                m.d.sync += offset.eq(offset + self._lanes + Mux(word_done, self._macs - self._word, 0))

        # Words gather in a beat, which leaves when it or the row is full.
        parts = self._bytes // self._lanes
        part = (offset[:beat_bits] >> (self._lanes - 1).bit_length())[: max(1, (parts - 1).bit_length())]
        # A word ends where its low bits are ones, the row's part of a beat where those between A and M are too.
        lane_bits, word_bits, macs_bits = ((n - 1).bit_length() for n in (self._lanes, self._word, self._macs))
        m.d.comb += word_done.eq(_ones(offset[lane_bits:word_bits]))
        complete = self.last | (word_done & _ones(offset[macs_bits:beat_bits]))
        beat, strobe = Signal(8 * self._bytes, reset_less=True), Signal(self._bytes)
        fresh, push, push_last = Signal(init=1), Signal(), Signal()
        address, scale_address, scale_word = Signal(32), Signal(32), Signal(32)
        m.d.sync += [push.eq(self.valid & complete), push_last.eq(self.valid & self.last)]
        scale_offset = Cat(C(0, 2), row)
        with m.If(self.valid):
            m.d.sync += [
                address.eq(half + Cat(C(0, beat_bits), offset[beat_bits:])),
                fresh.eq(complete),
                scale_address.eq(half + scale_offset),
                scale_word.eq(to_word(self.scale)),
            ]
            for i in range(parts):
                here = C(1, 1) if parts == 1 else part == i
                with m.If(here):
                    m.d.sync += beat.word_select(i, 8 * self._lanes).eq(self.data)
                m.d.sync += strobe.word_select(i, self._lanes).eq(
                    Mux(here, C(-1, self._lanes), Mux(fresh, 0, strobe.word_select(i, self._lanes)))
                )
        m.d.comb += [
            rows.i.valid.eq(push),
            rows.i.payload.last.eq(push_last),
            rows.i.payload.write.addr.eq(address),
            rows.i.payload.write.data.eq(beat),
            rows.i.payload.write.strb.eq(strobe),
            scales.i.valid.eq(push_last),
            scales.i.payload.addr.eq(scale_address),
            scales.i.payload.word.eq(scale_word),
        ]

        # A row's scale goes behind it: memory has their page open then.
        scale_next = Signal()
        with m.If(rows.o.valid & rows.o.ready):
            m.d.sync += scale_next.eq(rows.o.payload.last)
        with m.If(scales.o.valid & scales.o.ready):
            m.d.sync += scale_next.eq(0)
        scale_part = scales.o.payload.addr[2:beat_bits] if beat_bits > 2 else C(0, 1)
        m.d.comb += [
            rows.o.ready.eq(out.i.ready & ~scale_next),
            scales.o.ready.eq(out.i.ready & scale_next),
            out.i.valid.eq(Mux(scale_next, scales.o.valid, rows.o.valid)),
        ]
        with m.If(scale_next):
            m.d.comb += [
                out.i.payload.addr.eq(Cat(C(0, beat_bits), scales.o.payload.addr[beat_bits:])),
                out.i.payload.data.eq(scales.o.payload.word.replicate(self._bytes // SCALE_BYTES)),
                out.i.payload.strb.eq(C(15, SCALE_BYTES) << (scale_part << 2)),
            ]
        with m.Else():
            m.d.comb += out.i.payload.eq(rows.o.payload.write)
        wiring.connect(m, out.o, wiring.flipped(self.o))

        count = Signal(range(self._waiting + 1))
        m.d.sync += count.eq(count + self.reserve - (scales.o.valid & scales.o.ready))
        m.d.comb += [self.free.eq(count != self._waiting), self.busy.eq((count != 0) | self.o.valid)]
        return m
