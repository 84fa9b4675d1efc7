"""The TLMM engine: ternary matrix times the activations of P token lanes, by table look-up."""

from __future__ import annotations

from typing import NamedTuple

from amaranth import Array, C, Cat, Module, Mux, Signal, unsigned
from amaranth.hdl import Assert
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import bits_for, exact_log2

from tritloom.firmware.config import RESULT_LANES
from tritloom.firmware.packing import SCALE_BITS, SERPENTINE
from tritloom.rtl.arith import index_shape
from tritloom.rtl.commands import command_layout
from tritloom.rtl.stream import Fifo
from tritloom.rtl.ternary.parameters import COMMANDS, RECODE_LATENCY, TernaryParameters, table_address_bits
from tritloom.rtl.ternary.recode import Recoder
from tritloom.rtl.ternary.tables import LookupLane, PartialMemory, ResultMemory, TableBuilder

__all__ = ["TableControl", "TernaryMatmul", "WordControl", "progress_signature"]

ROW_RETURNS_AFTER = 4
"""Cycles from the fetch of a partial sum to the first fetch that sees its update."""


def progress_signature(words: int) -> wiring.Signature:
    """How far the matrices are.

    under_way : Out
        Commands taken and not finished.
    done : Out
        Pulses when a command completes.
    begun : Out
        Whether the oldest command has written results.
    words : Out
        The address after the last whole word of V rows that the oldest command has written, of `words` at most.
    """
    return wiring.Signature({"under_way": Out(range(COMMANDS + 4)), "done": Out(1), "begun": Out(1), "words": Out(range(words + 1))})


class TableControl(wiring.Component):
    """Load and build the tables of one tile after the other, ahead of their use.

    Shared by all lanes. For each tile: fetch the activations of the lanes in use, one lane after the other and V
    activations a cycle, wait for a free half of the tables, write every entry in the order in which each is the one before
    plus or minus one activation. For addsub the loaded activations are the result, and the next tile waits until they
    were copied. Commands follow each other without a gap.

    Latency: `load_cycles` a lane to load a tile, then `build_cycles` (`TernaryParameters`).

    Parameters
    ----------
    parameters : TernaryParameters
    bases : list of int
        First word of each slot's activations.

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

    def __init__(self, parameters: TernaryParameters, *, bases: list[int]):
        self._p, self._bases = parameters, bases
        p, bits = parameters, parameters.command_bits
        super().__init__({
            "cmd": In(stream.Signature(data.StructLayout({name: bits[name] for name in ("inputs", "slot", "count")}))),
            "release": In(1),
            "prepared": Out(1),
            "address": Out(bits_for(bases[-1] + p.code_words + p.load_cycles)),
            "turn": Out(index_shape(p.vector_lanes)),
            "load": Out(p.lanes),
            "places": Out(p.span),
            "clear": Out(1),
            "operand": Out(2),
            "subtract": Out(1),
            "write_en": Out(1),
            "write_address": Out(table_address_bits(p.table_form)),
        })

    def elaborate(self, platform):
        m = Module()
        p, span, inputs = self._p, self._p.span, self._p.tile_inputs
        left, word = Signal(self.cmd.payload.inputs.shape()), Signal(index_shape(p.load_cycles))
        first_slot, last_slot, slot = (Signal.like(self.cmd.payload.slot, name=name) for name in ("first_slot", "last_slot", "slot"))
        lane = slot[: p.lane_bits]
        tile_word, turn = Signal.like(self.address), Signal.like(self.turn) if p.vector_lanes > 1 else Signal(0)
        loading, last_lane, last_word = Signal(), Signal(), Signal()
        free = Signal(2, init=1 if self._p.table_form == "addsub" else 2)
        claim, building, built = Signal(), Signal(), Signal()
        bases = Array(self._bases)
        m.d.sync += free.eq(free + self.release - claim)
        m.d.comb += [last_lane.eq(slot == last_slot), last_word.eq(word == p.load_cycles - 1)]

        def next_tile():
            m.d.comb += self.prepared.eq(1)
            m.d.sync += [left.eq(left - inputs), Cat(turn, tile_word).eq(Cat(turn, tile_word) + inputs)]
            with m.If(left <= inputs):
                m.next = "IDLE"
            with m.Else():
                m.next = first

        # The address of a lane's first word of the tile, kept a cycle ahead.
        address = Signal.like(self.address)
        m.d.comb += self.address.eq(address)
        first = "CLAIM" if self._p.table_form == "addsub" else "START"
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
                        if self._p.table_form == "addsub":
                            next_tile()
                        else:
                            m.next = "CLAIM"
            with m.State("CLAIM"):
                with m.If(free != 0):
                    m.d.comb += claim.eq(1)
                    m.next = "START" if self._p.table_form == "addsub" else "BUILD"
            if self._p.table_form != "addsub":
                with m.State("BUILD"):
                    m.d.comb += building.eq(1)
                    with m.If(built):
                        next_tile()
        if self._p.table_form != "addsub":
            self._build(m, building, built)

        # Cycle 1: turn what was read. Cycle 2: what is in it, for whom.
        carry = Cat(place + turn >= p.vector_lanes for place in range(p.vector_lanes))
        s1_load, s1_word, s1_carry = Signal(p.lanes), Signal.like(word), Signal(p.vector_lanes)
        m.d.sync += [self.turn.eq(turn), s1_word.eq(word), s1_carry.eq(carry),
                     s1_load.eq(Mux(loading, C(1, p.lanes) << lane, 0)), self.load.eq(s1_load)]
        for place in range(span):
            later = s1_carry[place % p.vector_lanes]
            m.d.sync += self.places[place].eq(s1_word == place // p.vector_lanes + later)
        return m

    def _build(self, m, building, built):
        """While building, each cycle writes one entry and makes the next. The outputs are registered."""
        last = len(SERPENTINE) - 1
        entry, negative, half = Signal(range(last + 1)), Signal(), Signal()
        with m.If(building):
            m.d.sync += entry.eq(entry + 1)
            with m.If(entry == last):
                m.d.sync += entry.eq(0)
                if self._p.table_form == "full27":
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
            self.write_address.eq(Cat(entry, negative, half) if self._p.table_form == "full27" else Cat(entry, half)),
        ]


class WordControl(wiring.Component):
    """Take the words of commands tile by tile, as tables get ready, and say what each word is while it passes the lanes.

    A step's partial sum that is fetched must have been written: a step is taken ROW_RETURNS_AFTER cycles or more after the same
    step of the tile before. Tiles of fewer steps therefore wait after their last step, however the words of either come:
    the steps of a tile are at least a cycle apart, so that the first one's wait covers them all.

    With groups, the beats of a group's scales come before its words, and are taken whether its tables are ready or not.

    Latency: none; `words[n]` is what was taken n cycles before.

    Throughput: a word or a beat of scales a cycle; between commands a cycle is lost.

    Parameters
    ----------
    parameters : TernaryParameters

    Members
    -------
    cmd : In(stream of {inputs, steps, slot, count, at})
        As TernaryMatmul's.
    scales : {en, row, part}
        With groups: what is taken is a beat of scales, not a word: `part` of those in row `row` of their memory.
    prepared : In(1)
        A tile's tables may be read from the second cycle after this one.
    valid : In(1), ready : Out(1)
        A word is there, and is taken.
    words : Out(array of written+1)
        Whether there is a word; whether it is of its tile's first or last step, of its command's first or last tile, for lanes
        whose results are written in the second turn; its step, its place in the results, its group.
    """

    def __init__(self, parameters: TernaryParameters):
        self._p = p = parameters
        flags = ("valid", "first_step", "last_step", "first_tile", "last_tile", "upper")
        self.word = data.StructLayout({name: 1 for name in flags} | {
            "step": p.command_bits["steps"], "place": p.command_bits["at"], "group": bits_for(p.groups - 1),
            **({"rest": p.command_bits["rest"]} if p.padded else {})})
        super().__init__({
            "cmd": In(stream.Signature(command_layout(p.command, **p.command_bits))),
            "prepared": In(1),
            "valid": In(1),
            "ready": Out(1),
            "words": Out(data.ArrayLayout(self.word, p.written + 1)),
        } | ({"scales": Out(wiring.Signature({
            "en": Out(1), "row": Out(index_shape(p.scale_rows)), "part": Out(index_shape(p.scale_parts))}))} if p.group_size else {}))

    def elaborate(self, platform):
        m = Module()
        command, p = self.cmd.payload, self._p
        steps, step, inputs = (Signal.like(command.steps, name="steps"), Signal.like(command.steps, name="step"),
                               Signal.like(command.inputs, name="inputs"))
        place, at = Signal.like(command.at, name="place"), Signal.like(command.at, name="at")
        group = Signal.like(self.words[0].group, name="group")
        active, ready_tiles = Signal(), Signal(2)
        wait, spacing = Signal(range(ROW_RETURNS_AFTER)), Signal(range(ROW_RETURNS_AFTER))
        first_step, first_tile, last_tile = Signal(init=1), Signal(), Signal()
        upper, pause = Signal(), Signal()
        taken, last_step = Signal(), Signal()
        rest = Signal.like(command.rest, name="rest") if p.padded else None
        m.d.comb += [
            self.ready.eq(active & ~pause & (~first_step | ((ready_tiles != 0) & (spacing == 0)))),
            taken.eq(self.valid & self.ready),
            last_step.eq(step == steps), last_tile.eq(inputs <= p.tile_inputs),
            self.cmd.ready.eq(~active),
        ]
        if p.group_size:
            scales = self._scales(m, active & ~pause, steps, inputs, taken & last_step, begins=self.cmd.valid & self.cmd.ready)
            with m.If(scales):
                m.d.comb += [self.ready.eq(active & ~pause), taken.eq(0)]
        m.d.sync += ready_tiles.eq(ready_tiles + self.prepared - (taken & first_step))
        with m.If(spacing != 0):
            m.d.sync += spacing.eq(spacing - 1)
        with m.If(self.cmd.valid & self.cmd.ready):
            m.d.sync += [
                active.eq(1), steps.eq(command.steps - 1), step.eq(0), inputs.eq(command.inputs), at.eq(command.at), place.eq(command.at),
                group.eq(command.slot[p.lane_bits :]), first_step.eq(1), first_tile.eq(1),
                wait.eq(Mux(command.steps < ROW_RETURNS_AFTER, ROW_RETURNS_AFTER - command.steps, 0)),
            ]
            if rest is not None:
                m.d.sync += rest.eq(command.rest)
            if p.result_turns > 1:
                m.d.sync += upper.eq(command.slot[: p.lane_bits] + command.count > p.turn_lanes)
        if p.padded:
            m.d.sync += pause.eq(self._turns(m, taken & last_tile, last_step, rest))
        else:
            m.d.sync += pause.eq(taken & last_tile & upper)
        with m.If(taken):
            m.d.sync += [step.eq(step + 1), place.eq(place + 1), first_step.eq(last_step)]
            with m.If(last_step):
                m.d.sync += [step.eq(0), place.eq(at), inputs.eq(inputs - p.tile_inputs), first_tile.eq(0), active.eq(~last_tile),
                             spacing.eq(wait)]

        words = [Signal(self.word, name=f"word_{i}", reset_less=i > 0) for i in range(len(self.words))]
        m.d.comb += [words[0][name].eq(value) for name, value in (
            ("valid", taken), ("first_step", first_step), ("last_step", last_step), ("first_tile", first_tile), ("last_tile", last_tile),
            ("upper", upper), ("step", step), ("place", place), ("group", group), *([("rest", rest)] if rest is not None else []))]
        for before, after in zip(words, words[1:], strict=False):
            m.d.sync += after.eq(before)
        m.d.comb += [out.eq(word) for out, word in zip(self.words, words, strict=True)]
        if platform == "formal":  # what a proof by induction must know of the registers
            with m.If(active):
                m.d.comb += [Assert(step <= steps), Assert(first_step == (step == 0)),
                             Assert(wait == Mux(steps < ROW_RETURNS_AFTER - 1, ROW_RETURNS_AFTER - 1 - steps, 0))]
        return m

    def _scales(self, m, going, steps, inputs, tile_ends, begins):
        """Whether what comes is a beat of scales. `inputs`: those left, the present tile's among them."""
        p = self._p
        due, left = Signal(init=1), Signal.like(steps)  # `left`: steps whose scales are to come, less one
        row, part = Signal.like(self.scales.row), Signal.like(self.scales.part)
        m.d.comb += [self.scales.en.eq(going & due & self.valid), self.scales.row.eq(row), self.scales.part.eq(part)]
        with m.If(self.scales.en):
            m.d.sync += part.eq(part + 1)
            with m.If(part == p.scale_parts - 1):
                m.d.sync += [part.eq(0), row.eq(row + 1), left.eq(left - p.scale_steps)]
                with m.If(left < p.scale_steps):
                    m.d.sync += [row.eq(0), left.eq(steps), due.eq(0)]
        with m.If(begins):
            m.d.sync += left.eq(self.cmd.payload.steps - 1)
        with m.If(tile_ends & (inputs[: exact_log2(p.group_size)] == p.tile_inputs % p.group_size)):
            m.d.sync += due.eq(1)
        return due

    def _turns(self, m, finished, last_step, rest):
        """Whether the results of a cycle without a word are due: of each word a row is left over, and so many make a step."""
        place = Signal(range(self._p.result_step))
        with m.If(finished):
            m.d.sync += place.eq(Mux(last_step, 0, place + 1))
        return finished & (place == self._p.result_step - 1)


class _Narrowed(NamedTuple):
    """A step of results: whether one is written, whether it is its command's last, its place, and of each lane its rows."""

    write: Signal
    complete: Signal
    place: Signal
    rows: list[Signal]


class TernaryMatmul(wiring.Component):
    """Multiply a ternary matrix, streamed as packed words, by the int8 activations of all lanes.

    A command takes ceil(inputs / tile_inputs) * steps words: for each tile of inputs, 3*tables or with groups no more than one has,
    `steps` words of `rows_per_cycle` rows, and before each group the beats of its scales (firmware/packing.py makes them). Its rows are a
    block of a matrix: they become the results of
    rows from `at` on of `count` slots from `slot`. A slot's result is the sum over the inputs of
    trit[row] * code[slot], with groups times each one's scale, without `scale_drop` low bits (rounded half up), and with exponents over
    each group's power of two before; it stays until it is
    written again; partial sums are kept apart, so that results may be read and
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
    parameters : TernaryParameters
        Latencies and cycles named above are the record's.

    Members
    -------
    cmd : In(stream of {inputs, steps, slot, count, at})
        inputs, steps, count at least 1; steps = ceil(rows / rows_per_cycle); `at` in steps. A queue of 4.
    busy : Out(1)
        From the cycle after a command until the last result of all commands is written.
    weights_i : In(stream of 8*mem_bytes bits)
    code_write : {valid, slot, addr, data}
        Write a V-code word of a slot that no command under way reads; with its group's `exponent`, if there are such.
    progress : Out of progress_signature
    acc_read : {en, slot, addr, part, data}
        Read a V-row word of a slot: its `result_reads` parts one after the other while `en`.
    """

    def __init__(self, parameters: TernaryParameters):
        self.parameters = p = parameters
        slot, address = unsigned(p.slot_bits), index_shape(p.result_words)
        super().__init__({
            "cmd": In(stream.Signature(command_layout(p.command, **p.command_bits))),
            "busy": Out(1),
            "progress": Out(progress_signature(p.result_words)),
            "weights_i": In(stream.Signature(8 * p.mem_bytes)),
            "code_write": In(wiring.Signature({
                "valid": Out(1), "slot": Out(slot), "addr": Out(index_shape(p.code_words)), "data": Out(8 * p.vector_lanes),
                **({"exponent": Out(p.exponent_bits)} if p.group_exponents else {})})),
            "acc_read": In(wiring.Signature({
                "en": Out(1), "slot": Out(slot), "addr": Out(address), "part": Out(index_shape(p.result_reads)),
                "data": In(p.vector_lanes * p.acc_bits)})),
        })

    def elaborate(self, platform):
        m, p = Module(), self.parameters
        m.submodules.recoder = recoder = Recoder(
            tables=p.tables, rows_per_cycle=p.rows_per_cycle, table_form=p.table_form, packing=p.packing,
            **({"group_size": p.group_size} if p.group_size else {}))
        order = {slot: n for n, slot in enumerate(p.slots)}
        bases = [p.code_words * order.get(slot, 0) for slot in range(max(order) + 1)]
        m.submodules.table_control = control = TableControl(p, bases=bases)

        # Commands go to the tables and to the words, which each take them in their own time.
        command = self.cmd.payload
        m.submodules.to_tables = to_tables = Fifo(control.cmd.payload.shape(), COMMANDS)
        m.submodules.to_words = to_words = Fifo(command.shape(), COMMANDS)
        wiring.connect(m, to_tables.o, control.cmd)
        m.d.comb += [self.cmd.ready.eq(to_tables.i.ready & to_words.i.ready), to_words.i.payload.eq(command)]
        m.d.comb += [to_tables.i.payload[name].eq(command[name]) for name in ("inputs", "slot", "count")]
        m.d.comb += [fifo.i.valid.eq(self.cmd.valid & self.cmd.ready) for fifo in (to_tables, to_words)]

        m.submodules.words = words = WordControl(p)
        wiring.connect(m, to_words.o, words.cmd)
        m.d.comb += [words.prepared.eq(control.prepared), words.valid.eq(self.weights_i.valid), self.weights_i.ready.eq(words.ready)]
        flags = words.words
        m.d.comb += [recoder.word.eq(self.weights_i.payload), recoder.enable.eq(self.weights_i.valid & self.weights_i.ready)]
        under_way, done = self.progress.under_way, Signal()
        m.d.sync += [under_way.eq(under_way + (self.cmd.valid & self.cmd.ready) - done), self.progress.done.eq(done)]
        m.d.comb += self.busy.eq(under_way != 0)

        # Tables are read by the word that reaches the selections; the tile's last word frees them.
        half = Signal()
        selecting, arriving = flags[RECODE_LATENCY], flags[RECODE_LATENCY - 1]
        copy = Signal()
        m.d.comb += copy.eq(arriving.valid & arriving.first_step)
        with m.If(selecting.valid & selecting.last_step):
            m.d.sync += half.eq(~half)
        if p.table_form == "addsub":
            m.d.comb += control.release.eq(copy)
        else:
            m.d.comb += control.release.eq(selecting.valid & selecting.last_step)

        fetching, writing, written = flags[p.partial_fetch], flags[p.partial_write], flags[p.written]
        if not p.padded:
            m.d.comb += done.eq(written.valid & written.last_step & written.last_tile)
        after = Signal(len(written.place) + 1)
        m.d.comb += self.progress.words.eq(after * p.result_step // p.vector_lanes)
        if not p.padded:
            with m.If(written.valid & written.last_tile):
                m.d.sync += [after.eq(written.place + 1), self.progress.begun.eq(~done)]
        (turned, exponent), scales = self._codes(m, control, bases), self._scales(m, words)
        exponents = self._exponents(m, control, exponent, copy=copy, half=half)
        results = []
        for lane_number in range(p.lanes):
            m.submodules[f"builder_{lane_number}"] = builder = TableBuilder(
                tables=p.tables, table_form=p.table_form, vector_lanes=p.vector_lanes)
            m.submodules[f"lane_{lane_number}"] = lane = LookupLane(
                tables=p.tables, rows_per_cycle=p.rows_per_cycle, table_form=p.table_form, acc_bits=p.sum_bits,
                **({"scale_bits": SCALE_BITS} if p.group_size else {}), **({"most": p.group_exponents} if exponents else {}))
            m.submodules[f"partial_{lane_number}"] = partial = PartialMemory(
                rows_per_cycle=p.rows_per_cycle, acc_bits=p.sum_bits, block_rows=p.block_rows,
                **({"start": 1 << p.dropped_bits >> 1} if p.group_size else {}))
            m.d.comb += [
                builder.load.eq(control.load[lane_number]),
                builder.places.eq(control.places),
                builder.word.eq(turned),
                builder.clear.eq(control.clear),
                builder.operand.eq(control.operand),
                builder.subtract.eq(control.subtract),
                lane.table_write.en.eq(copy if p.table_form == "addsub" else control.write_en),
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
            if p.group_size:
                m.d.comb += lane.scale.eq(scales)
            if exponents:
                m.d.comb += lane.exponent.eq(exponents[lane_number])
            results.append(lane.result)
        last_words = [flags[n] for n in range(p.partial_write - 1, p.written + 1)]
        narrow = self._results(m, last_words, results)
        if narrow is not None:
            m.d.comb += done.eq(narrow.complete)
            with m.If(narrow.write):
                m.d.sync += [after.eq(narrow.place + 1), self.progress.begun.eq(~done)]
        return m

    def _scales(self, m, words):
        """A step's scales, as they meet its sums: read as its word is taken, so that the next group's may follow at once."""
        p = self.parameters
        if not p.group_size:
            return None
        taken, given, size = words.words[0], words.scales, min(p.scale_steps * p.scale_word, 8 * p.mem_bytes)
        # Where the scales of the step that is taken are: steps come one after the other.
        row, within, s1_within = Signal.like(given.row), Signal(index_shape(p.scale_steps)), Signal(index_shape(p.scale_steps))
        m.d.sync += s1_within.eq(within)
        with m.If(taken.valid):
            m.d.sync += within.eq(within + 1)
            with m.If(taken.last_step | (within == p.scale_steps - 1)):
                m.d.sync += [within.eq(0), row.eq(Mux(taken.last_step, 0, row + 1))]
        found = []
        for n in range(p.scale_parts):
            store = memory.Memory(shape=size, depth=max(2, p.scale_rows), init=[])
            m.submodules["scales" if p.scale_parts == 1 else f"scales_{n}"] = store
            write, read = store.write_port(), store.read_port()
            m.d.comb += [write.en.eq(given.en & (given.part == n)), write.addr.eq(given.row), write.data.eq(self.weights_i.payload),
                         read.addr.eq(row)]
            found.append(read.data)
        together = Cat(found)[: p.scale_steps * p.scale_word]
        due = together.word_select(s1_within, p.scale_word) if p.scale_steps > 1 else together
        for n in range(p.scales_due - 1):
            later = Signal(p.scale_word, name=f"scales_{n + 2}", reset_less=True)
            m.d.sync += later.eq(due)
            due = later
        return due

    def _exponents(self, m, control, exponent, *, copy, half):
        """The exponent of each lane's group, as it meets its sums. `exponent`: beside the word that is turned; `copy`, `half`: as the
        tables'."""
        p = self.parameters
        if not p.group_exponents:
            return []
        built, found = Signal(), []
        if p.table_form != "addsub":
            with m.If(control.prepared):
                m.d.sync += built.eq(~built)
        for lane in range(p.lanes):
            loaded = Signal.like(exponent, name=f"exponent_loaded_{lane}", reset_less=True)
            with m.If(control.load[lane]):
                m.d.sync += loaded.eq(exponent)
            if p.table_form == "addsub":  # with the activations
                due = Signal.like(exponent, name=f"exponent_{lane}", reset_less=True)
                with m.If(copy):
                    m.d.sync += due.eq(loaded)
            else:
                halves = [Signal.like(exponent, name=f"exponent_{lane}_{n}", reset_less=True) for n in range(2)]
                with m.If(control.prepared):
                    m.d.sync += [own.eq(Mux(built == n, loaded, own)) for n, own in enumerate(halves)]
                due = Mux(half, halves[1], halves[0])
            for n in range(p.sums_due - RECODE_LATENCY):
                later = Signal.like(exponent, name=f"exponent_{lane}_after_{n + 1}", reset_less=True)
                m.d.sync += later.eq(due)
                due = later
            found.append(due)
        return found

    def _codes(self, m, control, bases):
        """The activations of all slots; returns the word of V that the tables' control reads, turned, two cycles after its address, and
        its exponent if there are such."""
        p = self.parameters
        m.submodules.codes = store = memory.Memory(
            shape=8 * p.vector_lanes + p.exponent_bits, depth=max(2, len(p.slots) * p.code_words), init=[],
            attrs={"ram_style": "ultra"} if p.ultra else {})
        write, read = store.write_port(), store.read_port()
        given = self.code_write
        m.d.comb += [
            write.en.eq(given.valid), write.addr.eq(Array(bases)[given.slot] + given.addr),
            write.data.eq(Cat(given.data, given.exponent) if p.group_exponents else given.data),
            read.addr.eq(control.address),
        ]
        if not p.group_exponents:
            turned = Signal(8 * p.vector_lanes, reset_less=True)
            m.d.sync += turned.eq(Cat(read.data, read.data) >> (control.turn << 3))
            return turned, None
        turned, word = Signal(8 * p.vector_lanes, reset_less=True), read.data[: 8 * p.vector_lanes]
        m.d.sync += turned.eq(Cat(word, word) >> (control.turn << 3))
        exponent = Signal(p.exponent_bits, reset_less=True)
        m.d.sync += exponent.eq(read.data[8 * p.vector_lanes :])
        return turned, exponent

    def _results(self, m, words, results):
        """The last tile's sums, kept by slot; some lanes share a memory. `words`: the word before that of `results`, and this one."""
        p = self.parameters
        shared, turns = min(p.turn_lanes, RESULT_LANES), p.result_turns
        # A group's lanes of a turn have `steps` steps of their own.
        bases = Array([part * p.steps for part in range(p.groups * turns)])
        step, turn = Signal(range(p.groups * turns * p.steps)), Signal()
        before, now, *_ = words
        finished, narrow = now.valid & now.last_tile, None
        if p.padded:
            narrow = self._narrow(m, before, now, finished, bases, step, results)
        else:
            m.d.sync += step.eq(bases[before.group * turns] + before.place)
        if turns > 1:  # no word follows one for the upper half at once
            m.d.sync += turn.eq(finished & now.upper)
            with m.If(finished & now.upper):
                m.d.sync += step.eq(bases[now.group * turns + 1] + now.place)
        lane, group = Signal(max(1, p.lane_bits)), Signal(max(1, p.group_bits))
        m.d.comb += [lane.eq(self.acc_read.slot[: p.lane_bits]), group.eq(self.acc_read.slot[p.lane_bits :])]
        upper, column = Signal(), Signal(index_shape(p.turn_lanes))
        if turns > 1:
            m.d.comb += [upper.eq(lane >= p.turn_lanes), column.eq(lane - Mux(upper, p.turn_lanes, 0))]
        else:
            m.d.comb += column.eq(lane)
        address_bases = Array([part * p.steps * p.result_step // p.vector_lanes for part in range(p.groups * turns)])
        address = Signal(range(p.groups * turns * p.steps * p.result_step // p.vector_lanes))
        m.d.comb += address.eq(address_bases[group * turns + upper] + self.acc_read.addr)
        memories = -(-p.turn_lanes // shared)
        chosen, s1_chosen = Signal(index_shape(memories)), Signal(index_shape(memories))
        m.d.comb += chosen.eq(column >> (shared - 1).bit_length() if memories > 1 else 0)
        enable, memory_of, lane_of, word, part = self.acc_read.en, chosen, column, address, self.acc_read.part
        if p.ultra:  # their columns are far away: the read's second cycle is spent on the way there, not behind them
            enable, memory_of, lane_of, word, part = (self._later(m, value) for value in (enable, memory_of, lane_of, word, part))
        m.d.sync += s1_chosen.eq(memory_of)
        read = []
        for n, first in enumerate(range(0, p.turn_lanes, shared)):
            mine = list(range(first, min(first + shared, p.turn_lanes)))
            store = ResultMemory(lanes=len(mine), rows_per_cycle=p.result_step, vector_lanes=p.vector_lanes, acc_bits=p.acc_bits,
                                 steps=p.groups * turns * p.steps, banks=p.result_banks, ultra=p.ultra)
            m.submodules[f"results_{n}"] = store
            m.d.comb += [
                store.write.eq(finished | turn if narrow is None else narrow.write), store.write_step.eq(step),
                store.read.eq(enable & (memory_of == n)), store.lane.eq(lane_of[: (shared - 1).bit_length()] if shared > 1 else 0),
                store.address.eq(word), store.part.eq(part),
            ]
            for i, number in enumerate(mine):
                sums = self._rounded(results[number]) if narrow is None else narrow.rows[number]
                later = number + p.turn_lanes
                m.d.comb += store.write_data[i].eq(sums)
                if later < p.lanes:
                    held = Signal(len(sums), name=f"held_{later}", reset_less=True)
                    m.d.sync += held.eq(self._rounded(results[later]))
                    with m.If(turn):
                        m.d.comb += store.write_data[i].eq(held)
            read.append(store.data)
        with m.Switch(s1_chosen):
            for i, word in enumerate(read):
                with m.Case(i) if i + 1 < len(read) else m.Default():
                    m.d["comb" if p.ultra else "sync"] += self.acc_read.data.eq(word)
        return narrow

    def _narrow(self, m, before, now, finished, bases, step, results):
        """Words of Q rows become steps of Q-1: a row of each word is held, until there are enough for a step of their own, in a cycle
        without a word. `before`: the word before `now`; `step`: to be driven, where a step goes."""
        p = self.parameters
        most, bits = p.result_step, p.acc_bits
        held, flush, ending, place = Signal(range(most)), Signal(), Signal(), Signal(range(p.steps))
        full = held == most - 1
        due = Mux(now.last_step, held + 1 > now.rest, full)  # rows are left over, for which there is no other word
        write, complete = Signal(), Signal()
        if p.ultra:  # a register: of memories deeper than an UltraRAM, which of these is written takes time
            m.d.sync += write.eq((before.valid & before.last_tile) | (finished & due))
        else:
            m.d.comb += write.eq(finished | flush)
        m.d.comb += complete.eq(Mux(flush, ending, finished & now.last_step & ~due))
        m.d.sync += [flush.eq(finished & due), ending.eq(now.last_step)]
        with m.If(finished):
            m.d.sync += held.eq(Mux(now.last_step | full, 0, held + 1))
        with m.If(write):
            m.d.sync += [step.eq(step + 1), place.eq(place + 1)]
        with m.If(before.valid & before.last_tile & before.first_step):
            m.d.sync += [step.eq(bases[before.group] + before.place), place.eq(before.place)]
        rows = []
        for number, sums in enumerate(results):
            given, kept = self._rounded(sums), Signal(most * bits, name=f"kept_{number}", reset_less=True)
            out, rest = Signal(most * bits, name=f"step_{number}"), Signal(most * bits, name=f"rest_{number}")
            with m.Switch(held):
                for n in range(most):
                    with m.Case(n):
                        together = Cat(kept[: n * bits], given)
                        m.d.comb += [out.eq(together[: most * bits]), rest.eq(together[most * bits :])]
            with m.If(finished):
                m.d.sync += kept.eq(rest)
            with m.If(flush):
                m.d.comb += out.eq(kept)
            rows.append(out)
        return _Narrowed(write, complete, place, rows)

    def _rounded(self, sums):
        """Results of a step's sums: all of them, or with groups what `dropped_bits` leaves; they began with half of what they take."""
        p = self.parameters
        if not p.group_size:
            return sums.as_value()
        return Cat(sums[row][p.dropped_bits :][: p.acc_bits] for row in range(p.rows_per_cycle))

    def _later(self, m, value):
        """The same a cycle later."""
        later = Signal.like(value)
        m.d.sync += later.eq(value)
        return later
