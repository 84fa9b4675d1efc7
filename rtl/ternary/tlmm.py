"""The TLMM engine: ternary matrix times the activations of P token lanes, by table look-up."""

from __future__ import annotations

from amaranth import Array, C, Cat, Module, Mux, Signal, unsigned
from amaranth.hdl import Assert
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import bits_for

from tritloom.firmware.config import RESULT_LANES
from tritloom.firmware.packing import SERPENTINE, word_bytes
from tritloom.rtl.arith import index_shape
from tritloom.rtl.stream import Fifo
from tritloom.rtl.ternary.recode import Recoder, Reduction
from tritloom.rtl.ternary.tables import TABLE_FORMS, LookupLane, PartialMemory, ResultMemory, TableBuilder, table_address_bits

__all__ = ["TableControl", "TernaryMatmul", "WordControl", "progress_signature"]

PARTIAL_READ_LATENCY = 2
ROW_RETURNS_AFTER = 4
"""Cycles from the fetch of a partial sum to the first fetch that sees its update."""
COMMANDS = 4
"""Commands that may wait."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _power_of_two(value: int) -> bool:
    return value > 0 and value & (value - 1) == 0


def progress_signature(words: int) -> wiring.Signature:
    """How far the matrices are.

    under_way, done : Out
        Commands taken and not finished; high for a cycle once one is no longer counted among them.
    begun, words : Out
        Whether the first of them has written results, and the address after the last whole word of V rows that it has written, of
        `words` at most.
    """
    return wiring.Signature({"under_way": Out(range(COMMANDS + 4)), "done": Out(1), "begun": Out(1), "words": Out(range(words + 1))})


class TableControl(wiring.Component):
    """Load and build the tables of one tile after the other, ahead of their use.

    Shared by all lanes. For each tile: fetch the activations of the lanes in use, one lane after the other and V
    activations a cycle, wait for a free half of the tables, write every entry in the order in which each is the one before
    plus or minus one activation. For addsub the loaded activations are the result, and the next tile waits until they
    were copied. Commands follow each other without a gap.

    Latency: `words` cycles a lane to load a tile; then 14 (symmetric14), 28 (full27) or no cycles to build.

    Parameters
    ----------
    lanes, tables, max_inputs, vector_lanes : int
        P, T, longest vector, V.
    bases : list of int
        First word of each slot's activations.
    slot_bits : int
    table_form : "symmetric14", "full27" or "addsub"

    Members
    -------
    cmd : In(stream of {inputs, slot, count})
        Begin with tile 0 of the vectors of `count` slots from `slot`.
    release : In(1)
        A tile's tables are not needed any more.
    prepared : Out(1)
        High for a cycle when a tile's tables may be read from the second cycle after it.
    address : Out
        Word of activations to read.
    turn : Out
        By how many places to turn what was read a cycle before.
    load : Out(lanes), places : Out(3*tables)
        The lane, and the activations of a tile, that are in the turned word; a cycle after `turn`.
    clear, operand, subtract : Out
        To the builders.
    write_en, write_address : Out
        To the lanes' tables.
    """

    def __init__(self, *, lanes: int, tables: int, table_form: str, max_inputs: int, vector_lanes: int, bases: list[int], slot_bits: int):
        self._lanes, self._tables, self._form, self._vector_lanes, self._bases = lanes, tables, table_form, vector_lanes, bases
        self.words = (3 * tables + vector_lanes - 2) // vector_lanes + 1
        words = -(-max_inputs // vector_lanes) + self.words
        super().__init__({
            "cmd": In(stream.Signature(data.StructLayout({
                "inputs": bits_for(max_inputs), "slot": slot_bits, "count": bits_for(lanes)}))),
            "release": In(1),
            "prepared": Out(1),
            "address": Out(bits_for(bases[-1] + words)),
            "turn": Out(index_shape(vector_lanes)),
            "load": Out(lanes),
            "places": Out(3 * tables),
            "clear": Out(1),
            "operand": Out(2),
            "subtract": Out(1),
            "write_en": Out(1),
            "write_address": Out(table_address_bits(table_form)),
        })

    def elaborate(self, platform):
        m = Module()
        span = 3 * self._tables
        left, word = Signal(self.cmd.payload.inputs.shape()), Signal(index_shape(self.words))
        first_slot, last_slot, slot = (Signal.like(self.cmd.payload.slot, name=name) for name in ("first_slot", "last_slot", "slot"))
        lane = slot[: (self._lanes - 1).bit_length()]
        tile_word, turn = Signal.like(self.address), Signal.like(self.turn)
        loading, last_lane, last_word = Signal(), Signal(), Signal()
        free = Signal(2, init=1 if self._form == "addsub" else 2)
        claim, building, built = Signal(), Signal(), Signal()
        bases = Array(self._bases)
        m.d.sync += free.eq(free + self.release - claim)
        m.d.comb += [last_lane.eq(slot == last_slot), last_word.eq(word == self.words - 1)]

        def next_tile():
            m.d.comb += self.prepared.eq(1)
            m.d.sync += [left.eq(left - span), Cat(turn, tile_word).eq(Cat(turn, tile_word) + span)]
            with m.If(left <= span):
                m.next = "IDLE"
            with m.Else():
                m.next = first

        # The address of a lane's first word of the tile, kept a cycle ahead.
        address = Signal.like(self.address)
        m.d.comb += self.address.eq(address)
        first = "CLAIM" if self._form == "addsub" else "START"
        with m.FSM():
            with m.State("IDLE"):
                m.d.comb += self.cmd.ready.eq(1)
                m.d.sync += [tile_word.eq(0), turn.eq(0), left.eq(self.cmd.payload.inputs), first_slot.eq(self.cmd.payload.slot),
                             last_slot.eq(self.cmd.payload.slot + self.cmd.payload.count - 1)]
                with m.If(self.cmd.valid):
                    m.next = first
            with m.State("START"):
                m.d.sync += [address.eq(bases[first_slot] + tile_word), slot.eq(first_slot), word.eq(0)]
                m.next = "LOAD"
            with m.State("LOAD"):
                m.d.comb += loading.eq(1)
                m.d.sync += [address.eq(address + 1), word.eq(word + 1)]
                with m.If(last_word):
                    m.d.sync += [address.eq(bases[(slot + 1)[: len(slot)]] + tile_word), word.eq(0), slot.eq(slot + 1)]
                    with m.If(last_lane):
                        if self._form == "addsub":
                            next_tile()
                        else:
                            m.next = "CLAIM"
            with m.State("CLAIM"):
                with m.If(free != 0):
                    m.d.comb += claim.eq(1)
                    m.next = "START" if self._form == "addsub" else "BUILD"
            if self._form != "addsub":
                with m.State("BUILD"):
                    m.d.comb += building.eq(1)
                    with m.If(built):
                        next_tile()
        if self._form != "addsub":
            self._build(m, building, built)

        # Cycle 1: turn what was read. Cycle 2: what is in it, for whom.
        carry = Cat(place + turn >= self._vector_lanes for place in range(self._vector_lanes))
        s1_load, s1_word, s1_carry = Signal(self._lanes), Signal.like(word), Signal(self._vector_lanes)
        m.d.sync += [self.turn.eq(turn), s1_word.eq(word), s1_carry.eq(carry),
                     s1_load.eq(Mux(loading, C(1, self._lanes) << lane, 0)), self.load.eq(s1_load)]
        for place in range(span):
            later = s1_carry[place % self._vector_lanes]
            m.d.sync += self.places[place].eq(s1_word == place // self._vector_lanes + later)
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


def _command_layout(max_inputs: int, max_steps: int, places: int, lanes: int, groups: int) -> data.StructLayout:
    slot_bits = (lanes - 1).bit_length() + (groups - 1).bit_length()
    return data.StructLayout({"inputs": bits_for(max_inputs), "steps": bits_for(max_steps), "slot": max(1, slot_bits),
                              "count": bits_for(lanes), "at": index_shape(places)})


class WordControl(wiring.Component):
    """Take the words of commands tile by tile, as tables get ready, and say what each word is while it passes the lanes.

    A step's partial sum that is fetched must have been written: a step is taken ROW_RETURNS_AFTER cycles or more after the same
    step of the tile before. Tiles of fewer steps therefore wait after their last step, however the words of either come:
    the steps of a tile are at least a cycle apart, so that the first one's wait covers them all.

    Latency: none; `words[n]` is what was taken n cycles before.

    Throughput: a word a cycle; between commands a cycle is lost.

    Parameters
    ----------
    span : int
        Inputs of a tile.
    max_inputs, max_steps, places : int
        Longest vector, steps of the longest block, steps of all results.
    lanes, groups : int
        Lanes of a group, and groups.
    upper_lane : int or None
        First lane whose results are written in a second turn.
    depth : int
        Cycles that a word is followed for.

    Members
    -------
    cmd : In(stream of {inputs, steps, slot, count, at})
        As TernaryMatmul's.
    prepared : In(1)
        A tile's tables may be read from the second cycle after this one.
    valid : In(1), ready : Out(1)
        A word is there, and is taken.
    words : Out(array of depth+1)
        Whether there is a word; whether it is of its tile's first or last step, of its command's first or last tile, for lanes
        from `upper_lane` on; its step, its place in the results, its group.
    """

    def __init__(self, *, span: int, max_inputs: int, max_steps: int, places: int, lanes: int, groups: int, upper_lane: int | None,
                 depth: int):
        self._span, self._upper_lane, self._lane_bits = span, upper_lane, (lanes - 1).bit_length()
        flags = ("valid", "first_step", "last_step", "first_tile", "last_tile", "upper")
        self.word = data.StructLayout({name: 1 for name in flags} | {
            "step": bits_for(max_steps), "place": index_shape(places), "group": bits_for(groups - 1)})
        super().__init__({
            "cmd": In(stream.Signature(_command_layout(max_inputs, max_steps, places, lanes, groups))),
            "prepared": In(1),
            "valid": In(1),
            "ready": Out(1),
            "words": Out(data.ArrayLayout(self.word, depth + 1)),
        })

    def elaborate(self, platform):
        m = Module()
        command = self.cmd.payload
        steps, step, inputs = (Signal.like(command.steps, name="steps"), Signal.like(command.steps, name="step"),
                               Signal.like(command.inputs, name="inputs"))
        place, at = Signal.like(command.at, name="place"), Signal.like(command.at, name="at")
        group = Signal.like(self.words[0].group, name="group")
        active, ready_tiles = Signal(), Signal(2)
        wait, spacing = Signal(range(ROW_RETURNS_AFTER)), Signal(range(ROW_RETURNS_AFTER))
        first_step, first_tile, last_tile = Signal(init=1), Signal(), Signal()
        upper, pause = Signal(), Signal()
        taken, last_step = Signal(), Signal()
        m.d.comb += [
            self.ready.eq(active & ~pause & (~first_step | ((ready_tiles != 0) & (spacing == 0)))),
            taken.eq(self.valid & self.ready),
            last_step.eq(step == steps), last_tile.eq(inputs <= self._span),
            self.cmd.ready.eq(~active),
        ]
        m.d.sync += ready_tiles.eq(ready_tiles + self.prepared - (taken & first_step))
        with m.If(spacing != 0):
            m.d.sync += spacing.eq(spacing - 1)
        with m.If(self.cmd.valid & self.cmd.ready):
            m.d.sync += [
                active.eq(1), steps.eq(command.steps - 1), step.eq(0), inputs.eq(command.inputs), at.eq(command.at), place.eq(command.at),
                group.eq(command.slot[self._lane_bits :]), first_step.eq(1), first_tile.eq(1),
                wait.eq(Mux(command.steps < ROW_RETURNS_AFTER, ROW_RETURNS_AFTER - command.steps, 0)),
            ]
            if self._upper_lane is not None:
                m.d.sync += upper.eq(command.slot[: self._lane_bits] + command.count > self._upper_lane)
        m.d.sync += pause.eq(taken & last_tile & upper)
        with m.If(taken):
            m.d.sync += [step.eq(step + 1), place.eq(place + 1), first_step.eq(last_step)]
            with m.If(last_step):
                m.d.sync += [step.eq(0), place.eq(at), inputs.eq(inputs - self._span), first_tile.eq(0), active.eq(~last_tile),
                             spacing.eq(wait)]

        words = [Signal(self.word, name=f"word_{i}", reset_less=i > 0) for i in range(len(self.words))]
        m.d.comb += [words[0][name].eq(value) for name, value in (
            ("valid", taken), ("first_step", first_step), ("last_step", last_step), ("first_tile", first_tile), ("last_tile", last_tile),
            ("upper", upper), ("step", step), ("place", place), ("group", group))]
        for before, after in zip(words, words[1:], strict=False):
            m.d.sync += after.eq(before)
        m.d.comb += [out.eq(word) for out, word in zip(self.words, words, strict=True)]
        if platform == "formal":  # what a proof by induction must know of the registers
            with m.If(active):
                m.d.comb += [Assert(step <= steps), Assert(first_step == (step == 0)),
                             Assert(wait == Mux(steps < ROW_RETURNS_AFTER - 1, ROW_RETURNS_AFTER - 1 - steps, 0))]
        return m


class TernaryMatmul(wiring.Component):
    """Multiply a ternary matrix, streamed as packed words, by the int8 activations of all lanes.

    A command takes ceil(inputs / (3*tables)) * steps words: for each tile of 3*tables inputs, `steps` words of
    `rows_per_cycle` rows (firmware/packing.py makes them). Its rows are a block of a matrix: they become the results of
    rows from `at` on of `count` slots from `slot`. A slot's result is the sum over the inputs of
    trit[row] * code[slot], and stays until it is written again; partial sums are kept apart, so that results may be read and
    the activations of other slots written while a command runs. Padding rows and inputs must have zero trits; codes
    beyond `inputs` may be anything.

    Slots are lanes of `groups` groups: slot = group * 2**ceil(log2(lanes)) + lane. A command's slots are one group's.

    Latency: `latency` cycles from a word to its results; `start_latency(count)` from a command to the first
    word taken; `acc_read_latency` from the last part of `acc_read.addr` to `acc_read.data`.

    Throughput: one word per cycle while tables are ready. Loading and building a tile's tables takes
    `tile_cycles(count)` and overlaps the streaming of the tile before, also of another command's: tiles of fewer
    steps wait for tables. Between commands a cycle is lost. With two result turns, the last tile of a command for lanes of the
    upper half takes two cycles a word.

    Parameters
    ----------
    lanes, groups, tables, rows_per_cycle : int
        P, groups of slots, T, and Q (a power of two).
    table_form : "symmetric14", "full27" or "addsub"
        How a triple's value is found.
    packing : "index5" or "trit5"
        Layout of a weight word.
    mem_bytes : int
        Bytes of a beat; a word lies in the low bytes.
    max_inputs, max_rows, block_rows : int
        Longest vector, rows of the results, rows of the longest block.
    acc_bits : int
        Width of a sum; must hold 127 * max_inputs.
    vector_lanes : int
        V (a power of two): codes per code word, rows per result word.
    result_banks : int
        Banks of the results, at most V/Q: as many parts of a word of V rows can be read at once.
    result_turns : int
        1, or 2: the lower half of the lanes' results is written, and a cycle later the upper half, to a memory of half the width.
    ultra : bool
        Keep codes and results in UltraRAM.

    Members
    -------
    cmd : In(stream of {inputs, steps, slot, count, at})
        inputs, steps, count at least 1; steps = ceil(rows / rows_per_cycle); `at` in steps. A queue of 4.
    busy : Out(1)
        From the cycle after a command until the last result of all commands is written.
    weights_i : In(stream of 8*mem_bytes bits)
    code_write : {valid, slot, addr, data}
        Write a V-code word of a slot that no command under way reads.
    progress : Out of progress_signature
    acc_read : {en, slot, addr, part, data}
        Read a V-row word of a slot: its `parts` parts one after the other while `en`.
    """

    acc_read_latency = 2

    def __init__(self, *, lanes: int, groups: int, tables: int, rows_per_cycle: int, table_form: str, packing: str, mem_bytes: int,
                 max_inputs: int, max_rows: int, block_rows: int, acc_bits: int, vector_lanes: int, result_banks: int,
                 result_turns: int = 1, ultra: bool = False):
        for name, value in (("lanes", lanes), ("tables", tables), ("rows_per_cycle", rows_per_cycle), ("mem_bytes", mem_bytes),
                            ("max_inputs", max_inputs), ("max_rows", max_rows), ("acc_bits", acc_bits), ("vector_lanes", vector_lanes),
                            ("block_rows", block_rows), ("groups", groups), ("result_banks", result_banks)):
            _require(isinstance(value, int) and value > 0, f"{name} must be a positive integer, not {value!r}")
        _require(_power_of_two(rows_per_cycle), f"rows_per_cycle must be a power of two, not {rows_per_cycle}")
        _require(_power_of_two(vector_lanes) and vector_lanes > 1, f"vector_lanes must be a power of two from 2, not {vector_lanes}")
        _require(table_form in TABLE_FORMS, f"table_form must be one of {', '.join(TABLE_FORMS)}, not {table_form!r}")
        parts = max(1, vector_lanes // rows_per_cycle)
        _require(_power_of_two(result_banks) and result_banks <= parts,
                 f"result_banks must be a power of two up to {parts}, not {result_banks}")
        _require(1 <= result_turns <= min(2, lanes), f"result_turns must be 1, or 2 with two lanes or more, not {result_turns!r}")
        self.word_bytes = word_bytes(tables * rows_per_cycle, packing)
        _require(self.word_bytes <= mem_bytes, f"a word of {self.word_bytes} bytes does not fit mem_bytes {mem_bytes}")
        needed = (127 * max_inputs).bit_length() + 1
        _require(acc_bits >= needed, f"acc_bits must be {needed} or more for {max_inputs} inputs, not {acc_bits}")

        self._lanes, self._groups, self._tables, self._form, self._packing = lanes, groups, tables, table_form, packing
        self._rows, self._acc_bits, self._vector_lanes = rows_per_cycle, acc_bits, vector_lanes
        self._banks, self._turns, self._ultra = result_banks, result_turns, ultra
        self._turn_lanes = -(-lanes // result_turns)
        self._max_inputs, self._block_rows = max_inputs, block_rows
        self._lane_parameters = {"tables": tables, "rows_per_cycle": rows_per_cycle, "table_form": table_form, "acc_bits": acc_bits}
        self._code_words = -(-max_inputs // vector_lanes)
        self._lane_bits, self._group_bits = (lanes - 1).bit_length(), (groups - 1).bit_length()
        # Results of a group: whole words of V rows.
        self._steps = -(-max(max_rows, vector_lanes) // rows_per_cycle)
        self._steps += -self._steps % parts
        self.parts = parts // result_banks

        reduction = Reduction(table_form, tables)
        partial_due = Recoder.latency + reduction.total_latency
        self.partial_fetch = partial_due - PARTIAL_READ_LATENCY
        self.partial_write = partial_due + 1
        self._load_words = (3 * tables + vector_lanes - 2) // vector_lanes + 1
        self._written = self.partial_write + result_turns - 1
        self.latency = self._written + 1
        sizes = {"max_inputs": max_inputs, "max_steps": -(-block_rows // rows_per_cycle), "places": self._steps,
                 "lanes": lanes, "groups": groups}
        self.word_parameters = sizes | {"span": 3 * tables, "upper_lane": self._turn_lanes if result_turns > 1 else None,
                                        "depth": self._written}
        slot = unsigned(max(1, self._lane_bits + self._group_bits))
        super().__init__({
            "cmd": In(stream.Signature(_command_layout(**sizes))),
            "busy": Out(1),
            "progress": Out(progress_signature(-(-max_rows // vector_lanes))),
            "weights_i": In(stream.Signature(8 * mem_bytes)),
            "code_write": In(wiring.Signature({
                "valid": Out(1), "slot": Out(slot), "addr": Out(index_shape(self._code_words)), "data": Out(8 * vector_lanes)})),
            "acc_read": In(wiring.Signature({
                "en": Out(1), "slot": Out(slot), "addr": Out(index_shape(-(-max_rows // vector_lanes))),
                "part": Out(index_shape(self.parts)), "data": In(vector_lanes * acc_bits)})),
        })

    def start_latency(self, count: int) -> int:
        """Cycles from a command to the first word taken, when no other command is under way."""
        if self._form == "addsub":
            return Fifo.latency + self._load_words * count + 3
        return Fifo.latency + self._load_words * count + self._build_cycles + 3

    def tile_cycles(self, count: int) -> int:
        """Fewest cycles from the first word of a tile to that of the next."""
        if self._form == "addsub":  # loaded again only once the activations were copied
            return self._load_words * count + 5
        return self._load_words * count + self._build_cycles + 2

    @property
    def _build_cycles(self) -> int:
        return len(SERPENTINE) * (2 if self._form == "full27" else 1)

    @property
    def _slots(self) -> list[int]:
        """The numbers of all slots."""
        return [group << self._lane_bits | lane for group in range(self._groups) for lane in range(self._lanes)]

    def elaborate(self, platform):
        m = Module()
        m.submodules.recoder = recoder = Recoder(
            tables=self._tables, rows_per_cycle=self._rows, table_form=self._form, packing=self._packing)
        order = {slot: n for n, slot in enumerate(self._slots)}
        bases = [self._code_words * order.get(slot, 0) for slot in range(max(order) + 1)]
        m.submodules.table_control = control = TableControl(
            lanes=self._lanes, tables=self._tables, table_form=self._form, max_inputs=self._max_inputs, vector_lanes=self._vector_lanes,
            bases=bases, slot_bits=len(self.cmd.payload.slot))

        # Commands go to the tables and to the words, which each take them in their own time.
        command = self.cmd.payload
        m.submodules.to_tables = to_tables = Fifo(control.cmd.payload.shape(), COMMANDS)
        m.submodules.to_words = to_words = Fifo(command.shape(), COMMANDS)
        wiring.connect(m, to_tables.o, control.cmd)
        m.d.comb += [self.cmd.ready.eq(to_tables.i.ready & to_words.i.ready), to_words.i.payload.eq(command)]
        m.d.comb += [to_tables.i.payload[name].eq(command[name]) for name in ("inputs", "slot", "count")]
        m.d.comb += [fifo.i.valid.eq(self.cmd.valid & self.cmd.ready) for fifo in (to_tables, to_words)]

        m.submodules.words = words = WordControl(**self.word_parameters)
        wiring.connect(m, to_words.o, words.cmd)
        m.d.comb += [words.prepared.eq(control.prepared), words.valid.eq(self.weights_i.valid), self.weights_i.ready.eq(words.ready)]
        flags = words.words
        m.d.comb += [recoder.word.eq(self.weights_i.payload), recoder.enable.eq(self.weights_i.valid & self.weights_i.ready)]
        under_way, done = self.progress.under_way, Signal()
        m.d.sync += [under_way.eq(under_way + (self.cmd.valid & self.cmd.ready) - done), self.progress.done.eq(done)]
        m.d.comb += self.busy.eq(under_way != 0)

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

        fetching, writing, written = flags[self.partial_fetch], flags[self.partial_write], flags[self._written]
        m.d.comb += done.eq(written.valid & written.last_step & written.last_tile)
        after = Signal(len(written.place) + 1)
        m.d.comb += self.progress.words.eq(after * self._rows // self._vector_lanes)
        with m.If(written.valid & written.last_tile):
            m.d.sync += [after.eq(written.place + 1), self.progress.begun.eq(~done)]
        turned = self._codes(m, control, bases)
        results = []
        for lane_number in range(self._lanes):
            m.submodules[f"builder_{lane_number}"] = builder = TableBuilder(
                tables=self._tables, table_form=self._form, vector_lanes=self._vector_lanes)
            m.submodules[f"lane_{lane_number}"] = lane = LookupLane(**self._lane_parameters)
            m.submodules[f"partial_{lane_number}"] = partial = PartialMemory(
                rows_per_cycle=self._rows, acc_bits=self._acc_bits, block_rows=self._block_rows)
            m.d.comb += [
                builder.load.eq(control.load[lane_number]),
                builder.places.eq(control.places),
                builder.word.eq(turned),
                builder.clear.eq(control.clear),
                builder.operand.eq(control.operand),
                builder.subtract.eq(control.subtract),
                lane.table_write.en.eq(copy if self._form == "addsub" else control.write_en),
                lane.table_write.address.eq(control.write_address),
                lane.table_write.data.eq(builder.entries),
                lane.select.eq(recoder.select),
                lane.negate.eq(recoder.negate),
                lane.half.eq(half),
                lane.partial.eq(partial.partial),
                partial.read.eq(fetching.valid),
                partial.read_step.eq(fetching.step),
                partial.fresh.eq(fetching.first_tile),
                partial.write.eq(writing.valid & ~writing.last_tile),
                partial.write_step.eq(writing.step),
                partial.write_data.eq(lane.result),
            ]
            results.append(lane.result)
        self._results(m, [flags[n] for n in range(self.partial_write - 1, self._written + 1)], results)
        return m

    def _codes(self, m, control, bases):
        """The activations of all slots; returns the word of V that the tables' control reads, turned, two cycles after its address."""
        m.submodules.codes = store = memory.Memory(
            shape=8 * self._vector_lanes, depth=max(2, len(self._slots) * self._code_words), init=[],
            attrs={"ram_style": "ultra"} if self._ultra else {})
        write, read = store.write_port(), store.read_port()
        given = self.code_write
        m.d.comb += [
            write.en.eq(given.valid), write.addr.eq(Array(bases)[given.slot] + given.addr), write.data.eq(given.data),
            read.addr.eq(control.address),
        ]
        turned = Signal(8 * self._vector_lanes, reset_less=True)
        m.d.sync += turned.eq(Cat(read.data, read.data) >> (control.turn << 3))
        return turned

    def _results(self, m, words, results):
        """The last tile's sums, kept by slot; some lanes share a memory. `words`: the word before that of `results`, and this one."""
        shared, turns = min(self._turn_lanes, RESULT_LANES), self._turns
        # A group's lanes of a turn have `steps` steps of their own.
        bases = Array([part * self._steps for part in range(self._groups * turns)])
        step, turn = Signal(range(self._groups * turns * self._steps)), Signal()
        before, now, *_ = words
        finished = now.valid & now.last_tile
        m.d.sync += step.eq(bases[before.group * turns] + before.place)
        if turns > 1:  # no word follows one for the upper half at once
            m.d.sync += turn.eq(finished & now.upper)
            with m.If(finished & now.upper):
                m.d.sync += step.eq(bases[now.group * turns + 1] + now.place)
        lane, group = Signal(max(1, self._lane_bits)), Signal(max(1, self._group_bits))
        m.d.comb += [lane.eq(self.acc_read.slot[: self._lane_bits]), group.eq(self.acc_read.slot[self._lane_bits :])]
        upper, column = Signal(), Signal(index_shape(self._turn_lanes))
        if turns > 1:
            m.d.comb += [upper.eq(lane >= self._turn_lanes), column.eq(lane - Mux(upper, self._turn_lanes, 0))]
        else:
            m.d.comb += column.eq(lane)
        address_bases = Array([part * self._steps * self._rows // self._vector_lanes for part in range(self._groups * turns)])
        address = Signal(range(self._groups * turns * self._steps * self._rows // self._vector_lanes))
        m.d.comb += address.eq(address_bases[group * turns + upper] + self.acc_read.addr)
        memories = -(-self._turn_lanes // shared)
        chosen, s1_chosen = Signal(index_shape(memories)), Signal(index_shape(memories))
        m.d.comb += chosen.eq(column >> (shared - 1).bit_length() if memories > 1 else 0)
        m.d.sync += s1_chosen.eq(chosen)
        read = []
        for n, first in enumerate(range(0, self._turn_lanes, shared)):
            mine = list(range(first, min(first + shared, self._turn_lanes)))
            store = ResultMemory(lanes=len(mine), rows_per_cycle=self._rows, vector_lanes=self._vector_lanes, acc_bits=self._acc_bits,
                                 steps=self._groups * turns * self._steps, banks=self._banks, ultra=self._ultra)
            m.submodules[f"results_{n}"] = store
            m.d.comb += [
                store.write.eq(finished | turn), store.write_step.eq(step),
                store.read.eq(self.acc_read.en & (chosen == n)), store.lane.eq(column[: (shared - 1).bit_length()] if shared > 1 else 0),
                store.address.eq(address), store.part.eq(self.acc_read.part),
            ]
            for i, number in enumerate(mine):
                sums, later = results[number], number + self._turn_lanes
                m.d.comb += store.write_data[i].eq(sums)
                if later < self._lanes:
                    held = Signal.like(sums.as_value(), name=f"held_{later}", reset_less=True)
                    m.d.sync += held.eq(results[later])
                    with m.If(turn):
                        m.d.comb += store.write_data[i].eq(held)
            read.append(store.data)
        with m.Switch(s1_chosen):
            for i, word in enumerate(read):
                with m.Case(i) if i + 1 < len(read) else m.Default():
                    m.d.sync += self.acc_read.data.eq(word)
