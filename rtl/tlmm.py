"""The TLMM engine: ternary matrix times the activations of P token lanes, by table look-up."""

from __future__ import annotations

from amaranth import Cat, Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import bits_for

from tritloom.firmware.packing import SERPENTINE, word_bytes
from tritloom.rtl.recode import Recoder, Reduction
from tritloom.rtl.shared import once
from tritloom.rtl.tables import (
    TABLE_FORMS,
    AccumulatorMemory,
    LookupLane,
    TableBuilder,
    table_address_bits,
)

__all__ = ["CodeMemory", "TableControl", "TernaryMatmul"]

PARTIAL_READ_LATENCY = 2
ROW_RETURNS_AFTER = 4
"""Cycles from the fetch of a partial sum to the first fetch that sees its update."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _power_of_two(value: int) -> bool:
    return value > 0 and value & (value - 1) == 0


def index_shape(count: int):
    """Shape of an index below `count`, at least one bit."""
    return unsigned(max(1, bits_for(count - 1)))


@once
class CodeMemory(wiring.Component):
    """Hold one token's activations; written V at a time, read one at a time.

    Latency: `code` one cycle after `index`.

    Throughput: a word written and a code read per cycle.

    Parameters
    ----------
    vector_lanes, max_inputs : int
        V (a power of two) and the longest vector.
    index_bits : int
        Width of `index`; indices beyond the vector read as anything.

    Members
    -------
    write : {en, address, data}
        Write a word of V codes.
    index : In, code : Out(signed(8))
    """

    def __init__(self, *, vector_lanes: int, max_inputs: int, index_bits: int):
        self._lanes = vector_lanes
        self.words = -(-max_inputs // vector_lanes)
        super().__init__({
            "write": In(wiring.Signature({
                "en": Out(1), "address": Out(index_shape(self.words)), "data": Out(8 * vector_lanes)})),
            "index": In(index_bits),
            "code": Out(signed(8)),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.store = store = memory.Memory(shape=8 * self._lanes, depth=max(2, self.words), init=[])
        write, read = store.write_port(), store.read_port()
        byte_bits = (self._lanes - 1).bit_length()
        byte = Signal(byte_bits)
        m.d.sync += byte.eq(self.index[:byte_bits])
        m.d.comb += [
            write.en.eq(self.write.en),
            write.addr.eq(self.write.address),
            write.data.eq(self.write.data),
            read.addr.eq(self.index[byte_bits:]),
            self.code.eq(read.data.word_select(byte, 8)),
        ]
        return m


class TableControl(wiring.Component):
    """Load and build the tables of one tile after the other, ahead of their use.

    Shared by all lanes. For each tile: fetch its activations, wait for a free half of the tables, write
    every entry in the order in which each is the one before plus or minus one activation. For addsub
    the loaded activations are the result, and the next tile waits until they were copied.

    Latency: 3*tables cycles to load a tile; then 14 (symmetric14), 28 (full27) or no cycles to build.

    Parameters
    ----------
    tables, max_inputs, index_bits : int
    table_form : "symmetric14", "full27" or "addsub"

    Members
    -------
    start : In(1), inputs : In
        Begin with tile 0 of a vector. Only when idle.
    release : In(1)
        A tile's tables are not needed any more.
    prepared : Out(1)
        High for a cycle when a tile's tables may be read from the second cycle after it.
    index : Out
        Activation to fetch; it is due one cycle later.
    shift, clear, operand, subtract : Out
        To the builders.
    write_en, write_address : Out
        To the lanes' tables.
    """

    def __init__(self, *, tables: int, table_form: str, max_inputs: int, index_bits: int):
        self._tables, self._form = tables, table_form
        super().__init__({
            "start": In(1),
            "inputs": In(range(max_inputs + 1)),
            "release": In(1),
            "prepared": Out(1),
            "index": Out(index_bits),
            "shift": Out(1),
            "clear": Out(1),
            "operand": Out(2),
            "subtract": Out(1),
            "write_en": Out(1),
            "write_address": Out(table_address_bits(table_form)),
        })

    def elaborate(self, platform):
        m = Module()
        span = 3 * self._tables
        left = Signal.like(self.inputs)
        count = Signal(range(span))
        loading = Signal()
        free = Signal(2, init=1 if self._form == "addsub" else 2)
        claim, building, built = Signal(), Signal(), Signal()
        m.d.sync += free.eq(free + self.release - claim)

        def next_tile():
            m.d.comb += self.prepared.eq(1)
            m.d.sync += left.eq(left - span)
            with m.If(left <= span):
                m.next = "IDLE"
            with m.Else():
                m.next = first

        first = "CLAIM" if self._form == "addsub" else "LOAD"
        with m.FSM():
            with m.State("IDLE"):
                m.d.sync += [self.index.eq(0), left.eq(self.inputs)]
                with m.If(self.start):
                    m.next = first
            with m.State("LOAD"):
                m.d.comb += loading.eq(1)
                m.d.sync += [self.index.eq(self.index + 1), count.eq(count + 1)]
                with m.If(count == span - 1):
                    m.d.sync += count.eq(0)
                    if self._form == "addsub":
                        next_tile()
                    else:
                        m.next = "CLAIM"
            with m.State("CLAIM"):
                with m.If(free != 0):
                    m.d.comb += claim.eq(1)
                    m.next = "LOAD" if self._form == "addsub" else "BUILD"
            if self._form != "addsub":
                with m.State("BUILD"):
                    m.d.comb += building.eq(1)
                    with m.If(built):
                        next_tile()
        if self._form != "addsub":
            self._build(m, building, built)
        m.d.sync += self.shift.eq(loading)
        return m

    def _build(self, m, building, built):
        """While building, each cycle writes one entry and makes the next. The outputs are registered."""
        last = len(SERPENTINE) - 1
        entry, negative, half = Signal(range(last + 1)), Signal(), Signal()
        with m.If(building):
            m.d.sync += entry.eq(entry + 1)
            with m.If(entry == last):
                m.d.sync += entry.eq(0)
                if self._form == "full27":
                    m.d.sync += negative.eq(~negative)
                    m.d.comb += built.eq(negative)
                else:
                    m.d.comb += built.eq(1)
            with m.If(built):
                m.d.sync += half.eq(~half)

        operand, subtract = Signal(2), Signal()
        with m.Switch(entry):
            for i in range(last):
                step = [b - a for a, b in zip(SERPENTINE[i], SERPENTINE[i + 1], strict=True)]
                which = next(n for n in range(3) if step[n])
                with m.Case(i):
                    m.d.comb += [operand.eq(which + 1), subtract.eq((step[which] < 0) ^ negative)]
        m.d.sync += [
            self.clear.eq(~building | (entry == last)),
            self.operand.eq(operand),
            self.subtract.eq(subtract),
            self.write_en.eq(building),
            self.write_address.eq(Cat(entry, negative, half) if self._form == "full27" else Cat(entry, half)),
        ]


class TernaryMatmul(wiring.Component):
    """Multiply a ternary matrix, streamed as packed words, by the int8 activations of all lanes.

    A command takes ceil(inputs / (3*tables)) * steps words: for each tile of 3*tables inputs, `steps`
    words of `rows_per_cycle` rows (firmware/packing.py makes them). Activations are read from the code
    memory while the command runs. Afterwards lane l's accumulator of row r is the sum over the inputs
    of trit[r] * code[l], and stays until the next command's first word. Padding rows and inputs must
    have zero trits; codes beyond `inputs` may be anything.

    Latency: `latency` cycles from a word to its accumulators; `start_latency` from a command to the first
    word taken; `acc_read_latency` from `acc_read.addr` to `acc_read.data`.

    Throughput: one word per cycle while tables are ready. Loading and building a tile's tables takes
    `tile_cycles` and overlaps the streaming of the tile before: tiles of fewer steps wait for tables.

    Parameters
    ----------
    lanes, tables, rows_per_cycle : int
        P, T, and Q (a power of two).
    table_form : "symmetric14", "full27" or "addsub"
        How a triple's value is found.
    packing : "index5" or "trit5"
        Layout of a weight word.
    mem_bytes : int
        Bytes of a beat; a word lies in the low bytes.
    max_inputs, max_rows : int
        Largest matrix.
    acc_bits : int
        Accumulator width; must hold 127 * max_inputs.
    vector_lanes : int
        V (a power of two): codes per code word, rows per accumulator word.

    Members
    -------
    cmd : In(stream of {inputs, steps})
        Both at least 1; steps = ceil(rows / rows_per_cycle). Ready when idle.
    busy : Out(1)
        From the cycle after a command until its last accumulator is written.
    weights_i : In(stream of 8*mem_bytes bits)
    code_write : {valid, slot, addr, data}
        Write a V-code word of lane `slot`. Not while busy.
    acc_read : {slot, addr, data}
        Read a V-row word of lane `slot`. Not while busy.
    """

    acc_read_latency = 2

    def __init__(self, *, lanes: int, tables: int, rows_per_cycle: int, table_form: str, packing: str, mem_bytes: int,
                 max_inputs: int, max_rows: int, acc_bits: int, vector_lanes: int):
        for name, value in (("lanes", lanes), ("tables", tables), ("rows_per_cycle", rows_per_cycle), ("mem_bytes", mem_bytes),
                            ("max_inputs", max_inputs), ("max_rows", max_rows), ("acc_bits", acc_bits), ("vector_lanes", vector_lanes)):
            _require(isinstance(value, int) and value > 0, f"{name} must be a positive integer, not {value!r}")
        _require(_power_of_two(rows_per_cycle), f"rows_per_cycle must be a power of two, not {rows_per_cycle}")
        _require(_power_of_two(vector_lanes) and vector_lanes > 1, f"vector_lanes must be a power of two from 2, not {vector_lanes}")
        _require(table_form in TABLE_FORMS, f"table_form must be one of {', '.join(TABLE_FORMS)}, not {table_form!r}")
        self.word_bytes = word_bytes(tables * rows_per_cycle, packing)
        _require(self.word_bytes <= mem_bytes, f"a word of {self.word_bytes} bytes does not fit mem_bytes {mem_bytes}")
        needed = (127 * max_inputs).bit_length() + 1
        _require(acc_bits >= needed, f"acc_bits must be {needed} or more for {max_inputs} inputs, not {acc_bits}")

        self._lanes, self._tables, self._form, self._packing = lanes, tables, table_form, packing
        self._lane_parameters = {"tables": tables, "rows_per_cycle": rows_per_cycle, "table_form": table_form, "acc_bits": acc_bits}
        self._memory_parameters = {
            "rows_per_cycle": rows_per_cycle, "vector_lanes": vector_lanes, "acc_bits": acc_bits, "max_rows": max_rows}
        self._max_inputs, self._vector_lanes = max_inputs, vector_lanes
        self._index_bits = bits_for(-(-max_inputs // (3 * tables)) * 3 * tables + vector_lanes)

        reduction = Reduction(table_form, tables)
        self._partial_due = Recoder.latency + reduction.total_latency
        self._result_due = self._partial_due + 1
        load_cycles = 3 * tables
        if table_form == "addsub":  # loaded again only once the activations were copied
            self.start_latency, self.tile_cycles = load_cycles + 2, load_cycles + 4
        else:
            build_cycles = len(SERPENTINE) * (2 if table_form == "full27" else 1)
            self.start_latency, self.tile_cycles = load_cycles + build_cycles + 2, load_cycles + build_cycles + 1
        self.latency = self._result_due + 1
        steps = -(-max_rows // rows_per_cycle)
        super().__init__({
            "cmd": In(stream.Signature(data.StructLayout({"inputs": bits_for(max_inputs), "steps": bits_for(steps)}))),
            "busy": Out(1),
            "weights_i": In(stream.Signature(8 * mem_bytes)),
            "code_write": In(wiring.Signature({
                "valid": Out(1), "slot": Out(index_shape(lanes)),
                "addr": Out(index_shape(-(-max_inputs // vector_lanes))), "data": Out(8 * vector_lanes)})),
            "acc_read": In(wiring.Signature({
                "slot": Out(index_shape(lanes)), "addr": Out(index_shape(-(-max_rows // vector_lanes))),
                "data": In(vector_lanes * acc_bits)})),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.recoder = recoder = Recoder(
            tables=self._tables, rows_per_cycle=self._lane_parameters["rows_per_cycle"], table_form=self._form, packing=self._packing)
        m.submodules.table_control = control = TableControl(
            tables=self._tables, table_form=self._form, max_inputs=self._max_inputs, index_bits=self._index_bits)

        accepted = Signal()
        m.d.comb += [
            accepted.eq(self.cmd.valid & self.cmd.ready),
            self.cmd.ready.eq(~self.busy),
            control.start.eq(accepted),
            control.inputs.eq(self.cmd.payload.inputs),
        ]
        flags = self._stream_words(m, accepted, control.prepared)
        m.d.comb += [recoder.word.eq(self.weights_i.payload), recoder.enable.eq(self.weights_i.valid & self.weights_i.ready)]

        # Tables are read by the word that reaches the selections; the tile's last word frees them.
        half = Signal()
        selecting, arriving = flags[Recoder.latency], flags[Recoder.latency - 1]
        copy = Signal()
        m.d.comb += copy.eq(arriving.valid & arriving.first_step)
        with m.If(selecting.valid & selecting.last_step):
            m.d.sync += half.eq(~half)
        if self._form == "addsub":
            m.d.comb += control.release.eq(copy)
        else:
            m.d.comb += control.release.eq(selecting.valid & selecting.last_step)

        fetching = flags[self._partial_due - PARTIAL_READ_LATENCY]
        writing = flags[self._result_due]
        accumulators = [AccumulatorMemory(**self._memory_parameters) for _ in range(self._lanes)]
        fetch_step = Signal.like(accumulators[0].read_step)
        with m.If(fetching.valid):
            m.d.sync += fetch_step.eq(Mux(fetching.last_step, 0, fetch_step + 1))
        write_step = fetch_step
        for _ in range(self._result_due - self._partial_due + PARTIAL_READ_LATENCY):
            delayed = Signal.like(fetch_step, name="write_step")
            m.d.sync += delayed.eq(write_step)
            write_step = delayed

        drained = []
        for slot, accumulator in enumerate(accumulators):
            m.submodules[f"codes_{slot}"] = codes = CodeMemory(
                vector_lanes=self._vector_lanes, max_inputs=self._max_inputs, index_bits=self._index_bits)
            m.submodules[f"builder_{slot}"] = builder = TableBuilder(tables=self._tables, table_form=self._form)
            m.submodules[f"lane_{slot}"] = lane = LookupLane(**self._lane_parameters)
            m.submodules[f"accumulators_{slot}"] = accumulator
            m.d.comb += [
                codes.write.en.eq(self.code_write.valid & (self.code_write.slot == slot)),
                codes.write.address.eq(self.code_write.addr),
                codes.write.data.eq(self.code_write.data),
                codes.index.eq(control.index),
                builder.shift.eq(control.shift),
                builder.code.eq(codes.code),
                builder.clear.eq(control.clear),
                builder.operand.eq(control.operand),
                builder.subtract.eq(control.subtract),
                lane.table_write.en.eq(copy if self._form == "addsub" else control.write_en),
                lane.table_write.address.eq(control.write_address),
                lane.table_write.data.eq(builder.entries),
                lane.select.eq(recoder.select),
                lane.negate.eq(recoder.negate),
                lane.half.eq(half),
                lane.partial.eq(accumulator.partial),
                accumulator.read.eq(fetching.valid),
                accumulator.read_step.eq(fetch_step),
                accumulator.fresh.eq(fetching.first_tile),
                accumulator.write.eq(writing.valid),
                accumulator.write_step.eq(write_step),
                accumulator.write_data.eq(lane.result),
                accumulator.drain_address.eq(self.acc_read.addr),
            ]
            drained.append(accumulator.drain_data)

        with m.If(accepted):
            m.d.sync += self.busy.eq(1)
        with m.Elif(writing.valid & writing.last_word):
            m.d.sync += self.busy.eq(0)
        self._read_accumulators(m, drained)
        return m

    def _stream_words(self, m, accepted, prepared):
        """Take words tile by tile as tables get ready; return what each word is, per cycle after it was taken."""
        span = 3 * self._tables
        command = self.cmd.payload
        steps, step, inputs = (Signal.like(command.steps, name="steps"), Signal.like(command.steps, name="step"),
                               Signal.like(command.inputs, name="inputs"))
        ready_tiles, spacing = Signal(2), Signal(range(ROW_RETURNS_AFTER))
        first_step, first_tile = Signal(init=1), Signal()
        taken, last_step = Signal(), Signal()
        m.d.comb += [
            self.weights_i.ready.eq(~first_step | ((ready_tiles != 0) & (spacing == 0))),
            taken.eq(self.weights_i.valid & self.weights_i.ready),
            last_step.eq(step == 0),
        ]
        m.d.sync += ready_tiles.eq(ready_tiles + prepared - (taken & first_step))
        with m.If(spacing != 0):
            m.d.sync += spacing.eq(spacing - 1)
        with m.If(accepted):
            m.d.sync += [
                steps.eq(command.steps - 1), step.eq(command.steps - 1), inputs.eq(command.inputs),
                first_step.eq(1), first_tile.eq(1),
            ]
        with m.If(taken):
            m.d.sync += [step.eq(step - 1), first_step.eq(last_step)]
            with m.If(first_step):
                m.d.sync += spacing.eq(ROW_RETURNS_AFTER - 1)
            with m.If(last_step):
                m.d.sync += [step.eq(steps), inputs.eq(inputs - span), first_tile.eq(0)]

        layout = data.StructLayout({name: 1 for name in ("valid", "first_step", "last_step", "first_tile", "last_word")})
        flags = [Signal(layout, name=f"word_{i}") for i in range(self._result_due + 1)]
        m.d.comb += [
            flags[0].valid.eq(taken),
            flags[0].first_step.eq(first_step),
            flags[0].last_step.eq(last_step),
            flags[0].first_tile.eq(first_tile),
            flags[0].last_word.eq(last_step & (inputs <= span)),
        ]
        for before, after in zip(flags, flags[1:], strict=False):
            m.d.sync += after.eq(before)
        return flags

    def _read_accumulators(self, m, drained):
        """Choose a lane's word, registered."""
        slot = Signal.like(self.acc_read.slot)
        m.d.sync += slot.eq(self.acc_read.slot)
        with m.Switch(slot):
            for i, word in enumerate(drained):
                with m.Case(i) if i + 1 < len(drained) else m.Default():
                    m.d.sync += self.acc_read.data.eq(word)
