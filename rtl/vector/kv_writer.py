"""Write quantised key and value rows, with their scales, into the cache."""

from __future__ import annotations

from amaranth import Array, C, Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from tritloom.firmware.config import CHUNK, KV_SCALE_BYTES
from tritloom.rtl.memory.interface import write_layout
from tritloom.rtl.stream import Fifo, LightSlice
from tritloom.rtl.ufloat import UFLOAT, to_word
from tritloom.rtl.vector.parameters import VectorParameters

__all__ = ["KvWriter"]

SCALE_LAYOUT = data.StructLayout({"addr": 32, "word": 32})


def _row_layout(vector: VectorParameters) -> data.StructLayout:
    return data.StructLayout({"write": write_layout(vector.mem_bytes), "last": 1})


def _ones(bits):
    """Whether all of the bits are ones; of no bits they are."""
    return bits.all() if len(bits) else C(1, 1)


class KvWriter(wiring.Component):
    """Turn one token's key rows, then its value rows, into memory writes, laid out as `layout.cache_rows` says.

    `begin` gives the address of the token's chunk (of the first head) and the token's place in it. Then
    words arrive, head by head, keys before values; the word with `last` ends a row and brings its scale.
    Words can't be held back: a row may only start if `free` was high in the cycle in which `reserve` was pulsed for it.

    Throughput: one word per cycle in, one beat per two cycles out.

    Parameters
    ----------
    vector : VectorParameters
        `kv_write_rows` rows may wait to be written, in `write_fifo_beats` beats: memory takes few writes while weights stream.

    Members
    -------
    begin : In, chunk_address : In(32), row : In(4)
        A token's rows follow: address of its chunk, of the first head, and its place in the chunk.
    reserve : In, free : Out
    valid, last, data, scale : In
    o : Out(stream of write_layout)
    busy : Out
        High while a row is on its way, up to its last write's transfer.
    """

    def __init__(self, vector: VectorParameters):
        self._p = vector
        super().__init__({
            "begin": In(1), "chunk_address": In(32), "row": In(range(CHUNK)),
            "reserve": In(1), "free": Out(1),
            "valid": In(1), "last": In(1), "data": In(8 * vector.vector_lanes), "scale": In(UFLOAT),
            "o": Out(stream.Signature(write_layout(vector.mem_bytes))),
            "busy": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        p = self._p
        m.submodules.rows = rows = Fifo(_row_layout(p), p.write_fifo_beats)
        m.submodules.scales = scales = Fifo(SCALE_LAYOUT, p.kv_write_rows)
        m.submodules.slice = out = LightSlice(write_layout(p.mem_bytes))

        half, row, offset, word_done = self._place(m)
        self._gather(m, rows, scales, half, row, offset, word_done)
        self._send(m, rows, scales, out)

        count = Signal(range(p.kv_write_rows + 1))
        m.d.sync += count.eq(count + self.reserve - (scales.o.valid & scales.o.ready))
        m.d.comb += [self.free.eq(count != p.kv_write_rows), self.busy.eq((count != 0) | self.o.valid)]
        return m

    def _place(self, m):
        """Address of the present word: its head's key or value half, the row in the chunk, the byte within the half; and, driven by
        `_gather`, whether the word completes one of A/R bytes."""
        p = self._p
        word = p.attention_macs // p.attention_rows
        half, values, head = Signal(32), Signal(), Signal(range(p.kv_heads))
        row, base = Signal.like(self.row), Signal(32)
        start, offset, word_done = Signal(range(p.kv_half_bytes)), Signal(range(p.kv_half_bytes)), Signal()
        starts = [divmod(i, p.attention_rows) for i in range(CHUNK)]
        row_start = Array([p.kv_scale_block_bytes + group * p.attention_rows * p.head_dim + part * word for group, part in starts])
        with m.If(self.begin):
            m.d.sync += [
                base.eq(self.chunk_address), half.eq(self.chunk_address), values.eq(0), head.eq(0),
                row.eq(self.row), start.eq(row_start[self.row]),
                offset.eq(row_start[self.row]),
            ]
        with m.Elif(self.valid):
            with m.If(self.last):
                m.d.sync += offset.eq(start)
                with m.If(head == p.kv_heads - 1):
                    m.d.sync += [head.eq(0), values.eq(1), half.eq(base + p.kv_half_bytes)]
                with m.Else():
                    m.d.sync += [head.eq(head + 1), half.eq(half + p.kv_head_bytes)]
            with m.Else():
                m.d.sync += offset.eq(offset + p.vector_lanes + Mux(word_done, p.attention_macs - word, 0))
        return half, row, offset, word_done

    def _gather(self, m, rows, scales, half, row, offset, word_done):
        """Gather words in a beat, which leaves when it or the row is full."""
        p = self._p
        lanes = p.vector_lanes
        parts = p.mem_bytes // lanes
        # A word is complete when the low bits of the offset are all ones, and the row's part of a beat when those between A and M are too.
        lane_bits, word_bits, macs_bits, beat_bits = (
            (n - 1).bit_length() for n in (lanes, p.attention_macs // p.attention_rows, p.attention_macs, p.mem_bytes))
        part = (offset[:beat_bits] >> lane_bits)[: max(1, (parts - 1).bit_length())]
        m.d.comb += word_done.eq(_ones(offset[lane_bits:word_bits]))
        complete = self.last | (word_done & _ones(offset[macs_bits:beat_bits]))
        beat, strobe = Signal(8 * p.mem_bytes, reset_less=True), Signal(p.mem_bytes)
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
                    m.d.sync += beat.word_select(i, 8 * lanes).eq(self.data)
                m.d.sync += strobe.word_select(i, lanes).eq(Mux(here, C(-1, lanes), Mux(fresh, 0, strobe.word_select(i, lanes))))
        write = rows.i.payload.write
        m.d.comb += [
            rows.i.valid.eq(push), rows.i.payload.last.eq(push_last),
            write.addr.eq(address), write.data.eq(beat), write.strb.eq(strobe),
            scales.i.valid.eq(push_last), scales.i.payload.addr.eq(scale_address), scales.i.payload.word.eq(scale_word),
        ]

    def _send(self, m, rows, scales, out):
        """Send a row's beats, and its scale behind them, while their page is open in memory."""
        beat_bits = (self._p.mem_bytes - 1).bit_length()
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
                out.i.payload.data.eq(scales.o.payload.word.replicate(self._p.mem_bytes // KV_SCALE_BYTES)),
                out.i.payload.strb.eq(C(15, KV_SCALE_BYTES) << (scale_part << 2)),
            ]
        with m.Else():
            m.d.comb += out.i.payload.eq(rows.o.payload.write)
        wiring.connect(m, out.o, wiring.flipped(self.o))
