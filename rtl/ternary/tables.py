"""The TLMM engine's lanes: tables of sums of three activations, look-ups, adder trees, partial sums; and the store of results."""

from __future__ import annotations

from amaranth import C, Cat, Module, Mux, Signal, signed
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out

from tritloom.rtl.once import once
from tritloom.rtl.ternary.parameters import ENTRY_BITS, SCALE_LATENCY, SELECT_BITS, Reduction, table_address_bits
from tritloom.rtl.ufloat import shift_right

__all__ = ["LookupLane", "PartialMemory", "ResultMemory", "TableBuilder", "entry_layout"]

def entry_layout(table_form: str, tables: int) -> data.ArrayLayout:
    """What a builder hands to a lane at once: one entry of every table, or all activations of a tile."""
    return data.ArrayLayout(signed(8), 3 * tables) if table_form == "addsub" else data.ArrayLayout(signed(ENTRY_BITS), tables)


def add_sub(left, right, subtract, width: int):
    """left + right, or left - right when `subtract`, in `width` bits: one carry chain, one LUT a bit.

    Written as left - ~(right ^ subtract) - 1 + subtract, with the last two made by a place below the
    lowest one. A minus keeps the operands where they are: the tools may swap those of a plus, and the
    exclusive or is only free on the side that does not feed the carry.
    """
    left, right = _extend(left, width), _extend(right, width)
    return (Cat(subtract, left) - Cat(~subtract, right ^ (~subtract).replicate(width)))[1 : width + 1]


def _extend(value, width: int):
    """Sign extend or cut to `width` bits (unsigned)."""
    value = Cat(value)
    return Cat(value, value[-1].replicate(width - len(value))) if len(value) < width else value[:width]


@once
class TableBuilder(wiring.Component):
    """Take a tile's activations and make the entries of all tables of a lane, one entry per cycle.

    Activations come as words of V, turned so that activation p stands at place p mod V of its word. Each entry is the
    one before plus or minus one of a table's three activations. For addsub there are no tables: the
    activations themselves are the entries.

    Latency: 1 cycle from `clear` or `operand` to `entries`; 1 cycle from `load` to its effect.

    Parameters
    ----------
    tables : int
        Tables side by side; a tile has three activations for each.
    table_form : "symmetric14", "full27" or "addsub"
    vector_lanes : int
        V.

    Members
    -------
    load : In(1), places : In(3*tables), word : In(8*V)
        Take those activations from the word whose bits in `places` are set.
    clear : In(1)
        Set all entries to zero; wins over `operand`.
    operand : In(2)
        0: keep; 1, 2, 3: add the table's first, second, third activation.
    subtract : In(1)
        Subtract instead.
    entries : Out(array)
    """

    def __init__(self, *, tables: int, table_form: str, vector_lanes: int):
        self._tables, self._form, self._lanes = tables, table_form, vector_lanes
        super().__init__({
            "load": In(1),
            "places": In(3 * tables),
            "word": In(8 * vector_lanes),
            "clear": In(1),
            "operand": In(2),
            "subtract": In(1),
            "entries": Out(entry_layout(table_form, tables)),
        })

    def elaborate(self, platform):
        m = Module()
        codes = Signal(data.ArrayLayout(signed(8), 3 * self._tables), reset_less=True)
        for place in range(3 * self._tables):
            with m.If(self.load & self.places[place]):
                m.d.sync += codes[place].eq(self.word.word_select(place % self._lanes, 8))
        if self._form == "addsub":
            m.d.comb += self.entries.eq(codes)
            return m
        for table in range(self._tables):
            entry = self.entries[table]
            step = Signal(signed(8), name=f"step_{table}")
            with m.Switch(self.operand):
                for which in range(3):
                    with m.Case(which + 1):
                        m.d.comb += step.eq(codes[3 * table + which])
            with m.If(self.clear):
                m.d.sync += entry.eq(0)
            with m.Elif(self.operand.any()):
                m.d.sync += entry.eq(add_sub(entry, step, self.subtract, ENTRY_BITS).as_signed())
        return m


@once
class LookupLane(wiring.Component):
    """Look up one token's partial sums and add them to its accumulators.

    Every cycle each of `rows_per_cycle` rows selects one entry from every table, and their sum, with
    the deferred signs spent in the adders, is added to the row's partial sum: times the row's scale, and before that
    over a power of two, if there are such. Tables have two halves: one is written while the other is read. For addsub,
    `table_write` loads the activation registers.

    Latency: `latency` cycles from `select` to `result`; `partial` is due `partial_latency` cycles after
    `select`, `scale` SCALE_LATENCY before it and `exponent` a cycle before that; a `negate` bit is due when its adder works (`Recoder`
    delays it so). `half` goes with `select`.

    Throughput: one look-up of every row and table per cycle.

    Parameters
    ----------
    tables, rows_per_cycle : int
    table_form : "symmetric14", "full27" or "addsub"
    acc_bits : int
        Width of an accumulator.
    scale_bits : int
        Width of a row's scale; 0: there are none.
    most : int
        With scales: the greatest exponent; 0: there are none.

    Members
    -------
    table_write : {en, address, data}
        Write one entry of every table; seen by selections from the next cycle on.
    select, negate : In
        As `Recoder` makes them.
    half : In(1)
        Half of the tables to read.
    scale : In(array of rows_per_cycle scales)
    exponent : In
        Sums are divided by 2 to the power of this; `result` is in units of 2**-most.
    partial : In(array of rows_per_cycle accumulators)
    result : Out(array of rows_per_cycle accumulators)
    """

    def __init__(self, *, tables: int, rows_per_cycle: int, table_form: str, acc_bits: int, scale_bits: int = 0, most: int = 0):
        self._tables, self._rows, self._form, self._acc_bits = tables, rows_per_cycle, table_form, acc_bits
        self._scale_bits, self._most = scale_bits, most
        self._reduction = reduction = Reduction(table_form, tables)
        self.partial_latency = reduction.total_latency + (SCALE_LATENCY if scale_bits else 0) + (most > 0)
        self.latency = self.partial_latency + 1
        sums = data.ArrayLayout(signed(acc_bits), rows_per_cycle)
        super().__init__({
            "table_write": In(wiring.Signature({
                "en": Out(1),
                "address": Out(table_address_bits(table_form)),
                "data": Out(entry_layout(table_form, tables)),
            })),
            "select": In(data.ArrayLayout(SELECT_BITS[table_form], rows_per_cycle * tables)),
            "negate": In(data.ArrayLayout(reduction.leaves, rows_per_cycle)),
            "half": In(1),
            "partial": In(sums),
            "result": Out(sums),
        } | ({"scale": In(data.ArrayLayout(scale_bits, rows_per_cycle))} if scale_bits else {})
            | ({"exponent": In(range(most + 1))} if most else {}))

    def elaborate(self, platform):
        m = Module()
        leaves = self._activations(m) if self._form == "addsub" else self._table_reads(m)
        for row in range(self._rows):
            total, negate = self._sum(m, row, leaves[row]), self.negate[row][0]
            if self._most:
                total, negate = self._shifted(m, row, total, negate)
            if self._scale_bits:
                total, negate = self._scaled(m, row, total, negate)
            m.d.sync += self.result[row].eq(self._add(self.partial[row], total, negate, self._acc_bits).as_signed())
        return m

    def _shifted(self, m, row, total, negate):
        """The row's sum over 2**exponent, exact, in units of the greatest exponent's, a cycle later; and whether that is subtracted."""
        shifted = Signal(signed(len(total) + self._most), name=f"shifted_{row}", reset_less=True)
        later = Signal(name=f"shifted_negate_{row}", reset_less=True)
        highest = Cat(C(0, self._most), total).as_signed()
        m.d.sync += [shifted.eq(shift_right(m, highest, self.exponent, len(shifted), f"shift_{row}")), later.eq(negate)]
        return shifted, later

    def _scaled(self, m, row, total, negate):
        """The row's sum times its scale, SCALE_LATENCY cycles later, and whether that is subtracted: a multiplier's two registers."""
        for cycle in range(SCALE_LATENCY):
            product = Signal(signed(len(total) + self._scale_bits * (cycle == 0)), name=f"product_{row}_{cycle}", reset_less=True)
            later = Signal(name=f"product_negate_{row}_{cycle}", reset_less=True)
            m.d.sync += [product.eq(total if cycle else total * self.scale[row]), later.eq(negate)]
            total, negate = product, later
        return total, negate

    def _table_reads(self, m):
        """Leaves from memories with a read port per row; the entry is there in the cycle after its selection."""
        leaves = [[] for _ in range(self._rows)]
        for table in range(self._tables):
            store = memory.Memory(shape=signed(ENTRY_BITS), depth=1 << table_address_bits(self._form), init=[])
            m.submodules[f"table_{table}"] = store
            write = store.write_port()
            m.d.comb += [
                write.en.eq(self.table_write.en),
                write.addr.eq(self.table_write.address),
                write.data.eq(self.table_write.data[table]),
            ]
            for row in range(self._rows):
                read = store.read_port()
                m.d.comb += read.addr.eq(Cat(self.select[row * self._tables + table], self.half))
                leaves[row].append(read.data)
        return leaves

    def _activations(self, m):
        """Leaves straight from the tile's activations, zero where the trit is zero."""
        active = Signal(entry_layout(self._form, self._tables), reset_less=True)
        with m.If(self.table_write.en):
            m.d.sync += active.eq(self.table_write.data)
        return [
            [
                Mux(self.select[row * self._tables + i // 3][i % 3], active[i], 0)[:8].as_signed()
                for i in range(3 * self._tables)
            ]
            for row in range(self._rows)
        ]

    def _sum(self, m, row, values):
        """Registered binary tree; an odd value out waits in a register."""
        positions = list(range(len(values)))
        level = 0
        while len(values) > 1:
            width = max(len(v) for v in values) + 1
            sums = []
            for i in range(0, len(values), 2):
                last = i + 1 == len(values)
                total = Signal(signed(len(values[i]) if last else width), name=f"sum_{row}_{level}_{i // 2}", reset_less=True)
                m.d.sync += total.eq(values[i] if last else self._add(
                    values[i], values[i + 1], self.negate[row][positions[i + 1]], width).as_signed())
                sums.append(total)
            values, positions, level = sums, positions[::2], level + 1
        return values[0]

    def _add(self, left, right, negate, width):
        if self._form == "full27":
            return (left.as_signed() + right.as_signed())[:width]
        return add_sub(left, right, negate, width)


@once
class PartialMemory(wiring.Component):
    """Hold one token's partial sums of a block of rows, Q rows at a time.

    Latency: `partial` two cycles after `read_step`.

    Throughput: one step read and one written per cycle.

    Parameters
    ----------
    rows_per_cycle : int
        Q.
    acc_bits, block_rows : int
        Width of a sum; rows of the longest block.
    start : int
        What sums begin with.

    Members
    -------
    read : In(1), read_step : In, fresh : In(1)
        Fetch the partial sums of a step; `start` if `fresh`.
    partial : Out(array of Q)
    write : In(1), write_step : In, write_data : In(array of Q)
    """

    def __init__(self, *, rows_per_cycle: int, acc_bits: int, block_rows: int, start: int = 0):
        self.steps = -(-block_rows // rows_per_cycle)
        self._width = rows_per_cycle * acc_bits
        self._start = sum(start << acc_bits * row for row in range(rows_per_cycle))
        sums, step = data.ArrayLayout(signed(acc_bits), rows_per_cycle), range(max(2, self.steps))
        super().__init__({
            "read": In(1), "read_step": In(step), "fresh": In(1), "partial": Out(sums),
            "write": In(1), "write_step": In(step), "write_data": In(sums),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.store = store = memory.Memory(shape=self._width, depth=max(2, self.steps), init=[])
        write, read = store.write_port(), store.read_port()
        fresh = Signal()
        m.d.comb += [
            write.en.eq(self.write), write.addr.eq(self.write_step), write.data.eq(self.write_data),
            read.en.eq(self.read), read.addr.eq(self.read_step),
        ]
        m.d.sync += [fresh.eq(self.fresh), self.partial.eq(read.data)]
        with m.If(fresh):
            m.d.sync += self.partial.eq(self._start)
        return m


@once
class ResultMemory(wiring.Component):
    """Hold the finished sums of some lanes: written Q rows of every lane at a time, read V rows of one lane at a time.

    With V > Q the rows lie in `banks` banks, step s in bank s mod `banks`; with fewer banks than V/Q a word of V rows is
    read in several parts, one after the other. The lanes share each bank, because the fabric's large memories are wide.

    Latency: `data` one cycle after `address`, of the last part if there are several.

    Throughput: one step written and one part read per cycle.

    Parameters
    ----------
    lanes : int
        Lanes that share the memory.
    rows_per_cycle, vector_lanes : int
        Q and V, powers of two.
    acc_bits, steps, banks : int
        Width of a sum, steps in all, banks (at most V/Q, a power of two).
    ultra : bool
        Ask for UltraRAM.

    Members
    -------
    write : In(1), write_step : In, write_data : In(array of lanes of Q sums)
    read : In(1), lane : In, address : In, part : In
        Part of the word of V rows at `address`.
    data : Out(array of V)
    """

    def __init__(self, *, lanes: int, rows_per_cycle: int, vector_lanes: int, acc_bits: int, steps: int, banks: int, ultra: bool = False):
        self._lanes, self._rows, self._vector, self._acc_bits, self._banks = lanes, rows_per_cycle, vector_lanes, acc_bits, banks
        self._steps, self._ultra = steps, ultra
        self.parts = max(1, vector_lanes // rows_per_cycle) // banks
        words = -(-steps * rows_per_cycle // vector_lanes)
        super().__init__({
            "write": In(1), "write_step": In(range(max(2, steps))),
            "write_data": In(data.ArrayLayout(data.ArrayLayout(signed(acc_bits), rows_per_cycle), lanes)),
            "read": In(1), "lane": In(range(max(2, lanes))), "address": In(range(max(2, words))), "part": In(range(max(2, self.parts))),
            "data": Out(data.ArrayLayout(signed(acc_bits), vector_lanes)),
        })

    def elaborate(self, platform):
        m = Module()
        bank_bits, part_bits = (self._banks - 1).bit_length(), (self.parts - 1).bit_length()
        words = max(1, self._rows // self._vector)
        word_bits = (words - 1).bit_length()
        width = self._rows * self._acc_bits
        lane, word = Signal.like(self.lane), Signal(max(1, word_bits))
        with m.If(self.read):
            m.d.sync += [lane.eq(self.lane), word.eq(self.address[:word_bits])]
        reads = []
        for bank in range(self._banks):
            store = memory.Memory(shape=width * self._lanes, depth=max(2, -(-self._steps // self._banks)), init=[],
                                  attrs={"ram_style": "ultra"} if self._ultra else {})
            m.submodules[f"bank_{bank}"] = store
            write, read = store.write_port(), store.read_port()
            m.d.comb += [
                write.en.eq(self.write & (self.write_step[:bank_bits] == bank)),
                write.addr.eq(self.write_step[bank_bits:]),
                write.data.eq(self.write_data),
                read.en.eq(self.read),
                read.addr.eq(Cat(self.part[:part_bits], self.address[word_bits:])),
            ]
            reads.append(_choose(m, f"lane_{bank}", [read.data[i * width : (i + 1) * width] for i in range(self._lanes)], lane))
        if words > 1:
            parts = [reads[0].word_select(i, self._vector * self._acc_bits) for i in range(words)]
            m.d.comb += self.data.eq(_choose(m, "word", parts, word))
        elif self.parts > 1:
            held = Signal((self.parts - 1) * width * self._banks, reset_less=True)
            now = Cat(held, *reads)
            m.d.sync += held.eq(now[width * self._banks :])
            m.d.comb += self.data.eq(now)
        else:
            m.d.comb += self.data.eq(Cat(reads))
        return m


def _choose(m, name, values, index):
    chosen = Signal(len(values[0]), name=f"{name}_chosen")
    with m.Switch(index):
        for i, value in enumerate(values):
            with m.Case(i) if i + 1 < len(values) else m.Default():
                m.d.comb += chosen.eq(value)
    return chosen
