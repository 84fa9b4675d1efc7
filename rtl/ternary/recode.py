"""From packed weight words to table look-ups: one recoder serves every lane of the TLMM engine."""

from __future__ import annotations

import numpy as np
from amaranth import C, Cat, Module, Mux, Signal, Value
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from tritloom.firmware.packing import TRIPLES, TRITS_A_BYTE, encode_triples, grouped_word_bytes, tile_inputs, word_bytes
from tritloom.rtl.ternary.parameters import RECODE_LATENCY, SELECT_BITS, Reduction

__all__ = ["Recoder"]

_NONZERO = [sum(int(t != 0) << i for i, t in enumerate(triple)) for triple in TRIPLES]
_NEGATIVE = [sum(int(t < 0) << i for i, t in enumerate(triple)) for triple in TRIPLES]


def _lookup(m: Module, name: str, table: list[int], width: int, index: Value) -> Signal:
    """Constant table read by `index`."""
    entry = Signal(width, name=name)
    with m.Switch(index):
        for i, value in enumerate(table):
            if value:
                with m.Case(i):
                    m.d.comb += entry.eq(value)
    return entry


class Recoder(wiring.Component):
    """Recode packed weight words into what the lanes' look-ups and adder trees need.

    A word holds `rows_per_cycle * tables` codes (firmware/packing.py). For each comes out the
    selection of a triple's value without its sign; the signs come out as one bit per leaf of each
    row's adder tree, telling the adder to which the leaf is the right operand to subtract, each
    delayed to the cycle in which that adder works. All lanes share these bits.

    Latency: `latency` cycles from `word` to `select`; `negate` bits follow their adder (`Reduction`).

    Throughput: one word per cycle.

    Parameters
    ----------
    tables, rows_per_cycle : int
        Triples per row and rows per word.
    table_form : "symmetric14", "full27" or "addsub"
        What the lanes are made of.
    packing : "index5" or "trit5"
        Layout of a word.
    group_size : int
        Inputs that share a scale; 0: there are none, and words are whole codes.

    Members
    -------
    word : In(8 * word bytes)
        Packed word, taken when `enable` is high.
    enable : In(1)
    select : Out(array of rows_per_cycle*tables)
        Code row*tables + table: 4-bit magnitude (symmetric14), 5-bit code (full27), 3 bits "trit is not zero" (addsub).
    negate : Out(array of rows_per_cycle, one bit per leaf)
        Bit r > 0: subtract in the adder that joins leaf r. Bit 0: subtract the row's total. Zero for full27.
    """

    latency = RECODE_LATENCY

    def __init__(self, *, tables: int, rows_per_cycle: int, table_form: str, packing: str, group_size: int = 0):
        self._tables, self._rows = tables, rows_per_cycle
        self._form, self._packing = table_form, packing
        inputs = tile_inputs(tables, group_size)
        self._whole, self._rest = (inputs // 3, inputs % 3) if group_size and packing == "trit5" else (tables, 0)
        if group_size and packing != "trit5":
            self._whole = -(-inputs // 3)
        size = word_bytes(tables * rows_per_cycle, packing)
        if group_size:
            size = grouped_word_bytes(tables, rows_per_cycle, group_size, packing)
        self._reduction = Reduction(table_form, tables)
        super().__init__({
            "word": In(8 * size),
            "enable": In(1),
            "select": Out(data.ArrayLayout(SELECT_BITS[table_form], rows_per_cycle * tables)),
            "negate": Out(data.ArrayLayout(self._reduction.leaves, rows_per_cycle)),
        })

    def elaborate(self, platform):
        m = Module()
        # Cycle 1: the word is registered.
        word = Signal(self.word.shape(), reset_less=True)
        with m.If(self.enable):
            m.d.sync += word.eq(self.word)

        # Cycle 2: codes.
        codes = [Signal(5, name=f"code_{i}", reset_less=True) for i in range(self._rows * self._tables)]
        unpacked = self._index5(word) if self._packing == "index5" else self._trit5(m, word)
        if self._whole != self._tables:
            unpacked = self._rows_of(m, word, unpacked)
        m.d.sync += [code.eq(value) for code, value in zip(codes, unpacked, strict=True)]

        # Cycle 3: selections and signs.
        for row in range(self._rows):
            signs = []
            for table in range(self._tables):
                code = codes[row * self._tables + table]
                select = self.select[row * self._tables + table]
                if self._form == "symmetric14":
                    m.d.sync += select.eq(code[:4])
                    signs.append(code[4])
                elif self._form == "full27":
                    m.d.sync += select.eq(code)
                else:
                    m.d.sync += select.eq(_lookup(m, "nonzero", _NONZERO, 3, code))
                    signs += list(_lookup(m, "negative", _NEGATIVE, 3, code))
            if signs:
                self._spread_signs(m, self.negate[row], signs)
        return m

    def _spread_signs(self, m, negate, signs):
        """Each adder's bit, delayed until its operands are there."""
        for leaf in range(self._reduction.leaves):
            bit = signs[leaf] ^ signs[self._reduction.partner(leaf)] if leaf else signs[0]
            for _ in range(1 + self._reduction.entry_latency + self._reduction.level(leaf)):
                delayed = Signal(reset_less=True, name=f"negate_{leaf}")
                m.d.sync += delayed.eq(bit)
                bit = delayed
            m.d.comb += negate[leaf].eq(bit)

    def _rows_of(self, m, word, whole):
        """The codes of all tables, row by row: of whole triples, of what is left of a row, and none for tables without inputs."""
        codes, size = [], word_bytes(self._rows * self._whole, self._packing)
        for row in range(self._rows):
            codes += whole[row * self._whole : (row + 1) * self._whole]
            if self._rest:
                digits = []
                for n in range(row * self._rest, (row + 1) * self._rest):
                    byte = word[8 * (size + n // TRITS_A_BYTE) :][:8]
                    digits.append(_lookup(m, "left_digit", [v // 3 ** (n % TRITS_A_BYTE) % 3 for v in range(256)], 2, byte))
                combined = [_code(*(v >> 2 * k & 3 for k in range(self._rest)), *[0] * (3 - self._rest))
                            if all(v >> 2 * k & 3 < 3 for k in range(self._rest)) else 0 for v in range(1 << 2 * self._rest)]
                codes.append(_lookup(m, "left", combined, 5, Cat(digits)))
            codes += [C(0, 5)] * ((row + 1) * self._tables - len(codes))
        return codes

    def _index5(self, word):
        return [word[5 * i : 5 * i + 5] for i in range(self._rows * self._whole)]

    def _trit5(self, m, word):
        """Three codes stand in their bytes; two more in the pairs of trits above them."""
        codes = []
        remaining = self._rows * self._whole
        for start in range(0, 8 * word_bytes(remaining, self._packing), 24):
            group = word[start : min(start + 24, 8 * word_bytes(self._rows * self._whole, self._packing))]
            pairs = []
            for b in range(0, len(group), 8):
                low, high = group[b : b + 5], group[b + 5 : b + 8]
                escape = low[1:4].all()
                codes.append(Cat(low[0], Mux(escape, high, low[1:4]), low[4]))
                pairs.append(Cat(Mux(escape, C(0, 3), high), escape))
            if remaining > 3:
                middle = _lookup(m, "first_digit", [p // 3 for p in range(9)], 2, pairs[1])
                codes.append(_lookup(m, "joined", _JOIN_FIRST, 5, Cat(pairs[0], middle)))
            if remaining > 4:
                middle = _lookup(m, "last_digit", [p % 3 for p in range(9)], 2, pairs[1])
                codes.append(_lookup(m, "joined", _JOIN_LAST, 5, Cat(pairs[2], middle)))
            remaining -= 5
        return codes


def _code(*digits: int) -> int:
    """Code of a triple of digits 0, 1, 2 (trits 0, +1, -1)."""
    return int(encode_triples(np.array([(0, 1, -1)[d] for d in digits])))


def _join(code_of) -> list[int]:
    """Table indexed by a pair's value (4 bits) and a digit above it."""
    return [code_of(p, d) if p < 9 and d < 3 else 0 for d in range(4) for p in range(16)]


_JOIN_FIRST = _join(lambda pair, digit: _code(pair // 3, pair % 3, digit))
_JOIN_LAST = _join(lambda pair, digit: _code(digit, pair // 3, pair % 3))
