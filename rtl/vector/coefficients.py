"""Coefficients and scales on chip: gains of norms, cosines and sines of the tokens' positions, a layer's scales by bank."""

from __future__ import annotations

from amaranth import Array, Signal, Value, signed
from amaranth.lib import data
from amaranth.lib.memory import Memory

from tritloom.rtl.vector.parameters import GAIN_EXPONENT_BITS, HEAD_HEADER, HEADER, VectorParameters
from tritloom.rtl.vector.scales import INNER

__all__ = ["Coefficients"]


class Coefficients:
    """Memories of scales, one word a bank, and of coefficients, V a word: gains by bank, then each slot's cosines and sines.

    `scales`: those of the command's bank, and the exponent of its gains (`gain_exponent`); with norms of heads also `head_exponents` of the
    gains of queries and keys. `write`: a beat of coefficients for the
    next cycle, of which `mask` says which halves of its words are written. `address`: the word to read, whose coefficients are
    in `read` three cycles later. `bank_base`: first word of each bank of gains.
    """

    def __init__(self, vector: VectorParameters):
        self._p = p = vector
        self.bank_base, self.address = Array(p.bank_bases), Signal(p.coefficient_bits)
        self.scales = {name: Signal(INNER, name=name) for name in HEADER}
        self.gain_exponent = Signal(signed(GAIN_EXPONENT_BITS))
        self.head_exponents = []
        if p.head_norms:
            self.scales[HEAD_HEADER] = Signal(INNER, name=HEAD_HEADER)
            self.head_exponents = [Signal(signed(GAIN_EXPONENT_BITS), name=f"{kind}_exponent") for kind in ("query", "key")]
        self.write = Signal(
            data.StructLayout({"mask": 2, "addr": p.coefficient_bits, "data": 16 * p.vector_lanes * p.beat_words}),
            name="coefficient_write")
        self.read = Signal(data.ArrayLayout(signed(16), p.vector_lanes), name="coefficients", reset_less=True)

    def connect(self, m, *, bank, beat, header, header_beat, weights):
        """`header`, `header_beat`: the weight stream brings a header, and which of its beats. `beat`: of coefficients, for `write`."""
        self._scales(m, bank, header, header_beat, weights)
        self._coefficients(m, beat)

    def _scales(self, m, bank, header, header_beat, weights):
        """Take each scale from its place in a header; the bank's are read all the time."""
        p, exponent_at = self._p, len(HEADER)
        placed = [(index, 0, name, self.scales[name]) for index, name in enumerate(HEADER)]
        placed.append((exponent_at, 16, "gain_exponent", self.gain_exponent))
        if p.head_norms:
            placed.append((exponent_at + 1, 0, HEAD_HEADER, self.scales[HEAD_HEADER]))
            placed += [(exponent_at + 2 * n, 0, value.name, value) for n, value in enumerate(self.head_exponents)]
        for index, low, name, value in placed:
            m.submodules[name] = banks = Memory(shape=len(Value.cast(value)), depth=len(p.bank_bases), init=[])
            bank_write, bank_read = banks.write_port(), banks.read_port()
            word = weights.payload[index * 32 % (8 * p.mem_bytes) :][:32]
            given = Signal.like(value, name=f"given_{name}")
            if "exponent" in name:
                m.d.comb += given.eq(word[low : low + 16])
            else:
                m.d.comb += [given.m.eq(word[:16]), given.e.eq(word[16:])]
            m.d.comb += [
                bank_write.en.eq(header & weights.valid & (header_beat == index * 4 // p.mem_bytes)),
                bank_write.addr.eq(bank),
                bank_write.data.eq(given),
                bank_read.addr.eq(bank),
                Value.cast(value).eq(bank_read.data),
            ]

    def _coefficients(self, m, beat):
        """Word after word in turn in as many memories as a beat has words."""
        p = self._p
        bank_bits = (p.beat_words - 1).bit_length()
        address = Signal.like(self.address)
        place = address[:bank_bits]
        m.d.sync += address.eq(self.address)
        words = []
        for i in range(p.beat_words):
            m.submodules[f"coefficients{i}"] = memory = Memory(
                shape=16 * p.vector_lanes, depth=max(2, p.coefficient_words // p.beat_words), init=[]
            )
            write, read = memory.write_port(granularity=8 * p.vector_lanes), memory.read_port()
            m.d.comb += [
                write.addr.eq(self.write.addr >> bank_bits),
                write.data.eq(self.write.data.word_select(i, 16 * p.vector_lanes)),
                write.en.eq(self.write.mask),
                read.addr.eq(address >> bank_bits),
            ]
            words.append(read.data)
        whole = p.mem_bytes >= 2 * p.vector_lanes
        m.d.comb += self.write.data.eq(beat[: 16 * p.vector_lanes * p.beat_words] if whole else beat.replicate(2))
        chosen = Signal(max(1, bank_bits))
        m.d.sync += [chosen.eq(place), Value.cast(self.read).eq(Array(words)[chosen])]
