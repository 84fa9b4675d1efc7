"""The ternary matmul's parameters: what it is built from, what it instantiates, how long it takes."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from tritloom.firmware.commands import MATMUL, MATMUL_PADDED, Command
from tritloom.firmware.config import RESULT_LANES, TRITS, BuildConfig
from tritloom.firmware.packing import (
    SCALE_BITS,
    SERPENTINE,
    grouped_word_bytes,
    result_bits,
    scale_steps,
    scaled_sum_bits,
    tile_inputs,
    word_bytes,
)
from tritloom.rtl.parameters import FIFO_LATENCY, MemoryUse, index_bits, require, require_positive, require_power_of_two

__all__ = ["COMMANDS", "ENTRY_BITS", "RECODE_LATENCY", "SCALE_LATENCY", "SELECT_BITS", "TABLE_FORMS", "Reduction", "TernaryParameters",
           "table_address_bits"]

SELECT_BITS = {"symmetric14": 4, "full27": 5, "addsub": 3}
"""Bits that select one triple's value in a lane: a magnitude, a whole code, or which trits are not zero."""
TABLE_FORMS = tuple(SELECT_BITS)
ENTRY_BITS = 10
"""A signed sum of three activations."""
COMMANDS = 4
"""Commands that may wait."""
RECODE_LATENCY = 3
"""Cycles from a packed word to its selections."""
PARTIAL_READ_LATENCY = 2
"""Cycles from the fetch of a partial sum until it can be added to."""
SCALE_LATENCY = 2
"""Cycles that a row's sum takes times its group's scale."""
DRAIN_CYCLES = 16
"""Cycles that a matrix takes besides its tiles, as projected: its words on their way through recoding, tables and adders."""


def table_address_bits(table_form: str) -> int:
    """Address of an entry: the selection, with the half of the double buffer on top (1 unused bit for addsub)."""
    return 1 if table_form == "addsub" else SELECT_BITS[table_form] + 1


class Reduction:
    """The shape of one row's adder tree and where its deferred signs are spent.

    Leaves are values without their signs. Adding neighbours as s0*v0 + s1*v1 = s0*(v0 + (s0^s1)*v1)
    turns an adder into an adder-subtractor and passes s0 on, so no value is ever negated on its own.
    The leaf at an even multiple of 2**level keeps its place, so each leaf but the first is the right
    operand of exactly one adder, whose level is the number of its trailing zero bits.

    `leaves`: values summed per row; `depth`: adder levels; `entry_latency`: cycles from the selecting
    bits to the leaves, `total_latency` to the sums.
    """

    def __init__(self, table_form: str, tables: int):
        self.leaves = TRITS * tables if table_form == "addsub" else tables
        self.depth = (self.leaves - 1).bit_length()
        self.entry_latency = 0 if table_form == "addsub" else 1
        self.total_latency = self.entry_latency + self.depth

    def partner(self, leaf: int) -> int:
        """The leaf whose sign the left operand of `leaf`'s adder carries."""
        return leaf & (leaf - 1)

    def level(self, leaf: int) -> int:
        """The level at which `leaf`'s sign is spent; the first leaf's is spent after the last level."""
        return (leaf & -leaf).bit_length() - 1 if leaf else self.depth


@dataclass(frozen=True, kw_only=True)
class TernaryParameters:
    """Parameters of `rtl.ternary.tlmm.TernaryMatmul`.

    lanes, groups : int
        P, and groups of slots: slot = group * 2**ceil(log2(lanes)) + lane.
    tables, rows_per_cycle : int
        T, and Q: a power of two, or with groups one more.
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
    group_size : int
        0: a row has no scales. Else a power of two: so many consecutive inputs of a row share a scale of SCALE_BITS bits, which multiplies
        their sum.
    scale_drop : int
        With `group_size`: low bits of a row's scaled sum that its result leaves out, rounded half up. `acc_bits` is the result's width.
    group_exponents : int
        With `group_size`: a group's codes have an exponent up to this one, which they are divided by 2 to the power of; 0: they have none.
    """

    lanes: int
    groups: int = 1
    tables: int
    rows_per_cycle: int
    table_form: str
    packing: str
    mem_bytes: int
    max_inputs: int
    max_rows: int
    block_rows: int
    acc_bits: int
    vector_lanes: int
    result_banks: int
    result_turns: int = 1
    ultra: bool = False
    group_size: int = 0
    scale_drop: int = 0
    group_exponents: int = 0

    def __post_init__(self) -> None:
        require_positive(self, ("lanes", "groups", "tables", "rows_per_cycle", "mem_bytes", "max_inputs", "max_rows", "block_rows",
                                "acc_bits", "vector_lanes", "result_banks"))
        if not self.padded:
            require_power_of_two(self, "rows_per_cycle")
        require_power_of_two(self, "vector_lanes")
        require(self.table_form in TABLE_FORMS, f"table_form must be one of {', '.join(TABLE_FORMS)}, not {self.table_form!r}")
        require_power_of_two(self, "result_banks", 1, self._result_word_steps)
        require(1 <= self.result_turns <= min(2, self.lanes),
                f"result_turns must be 1, or 2 with two lanes or more, not {self.result_turns!r}")
        require(self.word_bytes <= self.mem_bytes, f"a word of {self.word_bytes} bytes does not fit mem_bytes {self.mem_bytes}")
        if self.group_size:
            require_power_of_two(self, "group_size")
        require(not self.group_exponents or (self.group_size > 0 and self.group_size % self.vector_lanes == 0),
                f"with exponents vector_lanes ({self.vector_lanes}) must divide group_size ({self.group_size})")
        require(not self.padded or (self.group_size > 0 and self.result_turns == 1 and self.result_step == self.rows_per_cycle - 1),
                f"rows_per_cycle must be a power of two, or with groups and one turn one more, not {self.rows_per_cycle}")
        needed = result_bits(self.max_inputs, self.group_size, self.scale_drop)
        require(self.acc_bits >= needed, f"acc_bits must be {needed} or more for {self.max_inputs} inputs, not {self.acc_bits}")

    @classmethod
    def of(cls, config: BuildConfig) -> TernaryParameters:
        """Those of a configuration's machine."""
        c, s = config, config.shape
        return cls(
            lanes=c.lanes, groups=c.groups, tables=c.tables, rows_per_cycle=c.rows_per_cycle, table_form=c.table_form, packing=c.packing,
            mem_bytes=c.mem_bytes, max_inputs=s.max_inputs, max_rows=c.result_rows, block_rows=c.longest_block, acc_bits=c.acc_bits,
            vector_lanes=c.vector_lanes, result_banks=c.banks, result_turns=c.result_turns, ultra=c.ultra_units, group_size=s.group_size,
            scale_drop=s.scale_drop, **({"group_exponents": c.group_exponents} if c.group_exponents else {}))

    # Sizes --------------------------------------------------------------------------------------

    @property
    def span(self) -> int:
        """Places of a tile: what its tables take."""
        return TRITS * self.tables

    @property
    def tile_inputs(self) -> int:
        """Inputs of a tile: `span`, or of a group as much as fits, halved until it does."""
        return tile_inputs(self.tables, self.group_size)

    @property
    def sum_bits(self) -> int:
        """Width of a row's sum until its last tile."""
        return scaled_sum_bits(self.max_inputs) + self.group_exponents if self.group_size else self.acc_bits

    @property
    def exponent_bits(self) -> int:
        """Bits of the exponent of a group of codes."""
        return self.group_exponents.bit_length()

    @property
    def dropped_bits(self) -> int:
        """Low bits of a row's sum that its result leaves out: sums are exact to the greatest exponent."""
        return self.scale_drop + self.group_exponents

    @property
    def scale_word(self) -> int:
        """Bits of a step's scales."""
        return SCALE_BITS * self.rows_per_cycle

    @property
    def scale_steps(self) -> int:
        """Steps whose scales are in a beat; 1 also where a step's take `scale_parts` beats."""
        return scale_steps(self.rows_per_cycle, self.mem_bytes)

    @property
    def scale_parts(self) -> int:
        """Beats that a step's scales take."""
        return ceil(self.scale_word / (8 * self.mem_bytes))

    @property
    def scale_rows(self) -> int:
        """Rows of the scales' memory, of `scale_steps` steps each: for the longest block."""
        return ceil(self.block_steps / self.scale_steps)

    @property
    def scale_beats(self) -> int:
        """Beats that the scales of the longest block take, for each group."""
        return ceil(self.block_steps / self.scale_steps) * self.scale_parts

    @property
    def padded(self) -> bool:
        """Whether rows a cycle are no power of two: a block's last step may have rows that are none."""
        return self.rows_per_cycle != self.result_step

    @property
    def result_step(self) -> int:
        """Rows of the results that are written at once: Q, or the power of two that is one less."""
        return 1 << (self.rows_per_cycle.bit_length() - 1)

    @property
    def word_bytes(self) -> int:
        """Bytes of a packed weight word."""
        if self.group_size:
            return grouped_word_bytes(self.tables, self.rows_per_cycle, self.group_size, self.packing)
        return word_bytes(self.tables * self.rows_per_cycle, self.packing)

    @property
    def code_words(self) -> int:
        """Words of V codes that a slot holds."""
        return ceil(self.max_inputs / self.vector_lanes)

    @property
    def result_words(self) -> int:
        """Words of V rows that a slot's results are."""
        return ceil(self.max_rows / self.vector_lanes)

    @property
    def _result_word_steps(self) -> int:
        """Steps whose rows are in a word of V results."""
        return max(1, self.vector_lanes // self.result_step)

    @property
    def result_reads(self) -> int:
        """Reads that a word of V results takes, one after the other."""
        return self._result_word_steps // self.result_banks

    @property
    def block_steps(self) -> int:
        """Steps of the longest block."""
        return ceil(self.block_rows / self.rows_per_cycle)

    @property
    def steps(self) -> int:
        """Steps that a slot holds the results of: whole words of V rows."""
        words = self._result_word_steps
        return ceil(ceil(max(self.max_rows, self.vector_lanes) / self.result_step) / words) * words

    @property
    def turn_lanes(self) -> int:
        """Lanes whose results are written at once."""
        return ceil(self.lanes / self.result_turns)

    @property
    def lane_bits(self) -> int:
        return (self.lanes - 1).bit_length()

    @property
    def group_bits(self) -> int:
        return (self.groups - 1).bit_length()

    @property
    def slot_bits(self) -> int:
        return max(1, self.lane_bits + self.group_bits)

    @property
    def slots(self) -> list[int]:
        """The numbers of all slots."""
        return [group << self.lane_bits | lane for group in range(self.groups) for lane in range(self.lanes)]

    @property
    def command_bits(self) -> dict[str, int]:
        """Widths of a command's fields (`firmware.commands.MATMUL`)."""
        return {"inputs": self.max_inputs.bit_length(), "steps": self.block_steps.bit_length(), "slot": self.slot_bits,
                "count": self.lanes.bit_length(), "at": index_bits(self.steps),
                **({"rest": (self.rows_per_cycle - 1).bit_length()} if self.padded else {})}

    @property
    def command(self) -> Command:
        """The command's fields."""
        return MATMUL_PADDED if self.padded else MATMUL

    # Timing -------------------------------------------------------------------------------------

    acc_read_latency = 2
    """Cycles from the last part of a result's address to the result."""

    @property
    def partial_fetch(self) -> int:
        """Cycles from a word to the fetch of its step's partial sums."""
        return self.scales_due + (SCALE_LATENCY if self.group_size else 0) - PARTIAL_READ_LATENCY

    @property
    def sums_due(self) -> int:
        """Cycles from a word to the sums of its tables."""
        return RECODE_LATENCY + Reduction(self.table_form, self.tables).total_latency

    @property
    def scales_due(self) -> int:
        """Cycles from a word to where the sums of its tables meet their scales: a cycle later if they are shifted before."""
        return self.sums_due + (self.group_exponents > 0)

    @property
    def partial_write(self) -> int:
        """Cycles from a word to the write of its step's partial sums."""
        return self.partial_fetch + PARTIAL_READ_LATENCY + 1

    @property
    def written(self) -> int:
        """Cycles from a last tile's word to the write of its results, of the last turn."""
        return self.partial_write + (1 if self.padded else self.result_turns - 1)

    @property
    def latency(self) -> int:
        """Cycles from a word to its results."""
        return self.written + 1

    @property
    def load_cycles(self) -> int:
        """Cycles that a tile's activations take to load, a lane: words of V that they may be spread over."""
        if self.group_size:  # tiles and words begin together
            return ceil(self.tile_inputs / self.vector_lanes)
        return ceil((self.span + self.vector_lanes - 1) / self.vector_lanes)

    @property
    def build_cycles(self) -> int:
        """Cycles that a tile's tables take to build."""
        return {"symmetric14": len(SERPENTINE), "full27": 2 * len(SERPENTINE), "addsub": 0}[self.table_form]

    def start_latency(self, count: int) -> int:
        """Cycles from a command of `count` slots to the first word taken, when no other command is under way."""
        return FIFO_LATENCY + self.load_cycles * count + self.build_cycles + 3

    def tile_cycles(self, count: int) -> int:
        """Fewest cycles from the first word of a tile to that of the next."""
        copied = 5 if self.table_form == "addsub" else 2  # addsub: loaded again only once the activations were copied
        return self.load_cycles * count + self.build_cycles + copied

    def cycles(self, *, rows: int, inputs: int, count: int) -> int:
        """Projected cycles of a matrix of `rows` x `inputs` for `count` slots, whose weights are there: from the command of its first block
        to the last result."""
        blocks = [min(self.block_rows, rows - first) for first in range(0, rows, self.block_rows)]
        second_turn = ceil(rows / self.rows_per_cycle) if count > self.turn_lanes else 0
        tile = self.tile_cycles(count)
        if self.padded:  # results of Q rows leave as Q-1 at a time
            second_turn = ceil(rows / self.rows_per_cycle / self.result_step)
        streamed = sum(max(ceil(block / self.rows_per_cycle), tile) for block in blocks)
        scales = sum(ceil(ceil(block / self.rows_per_cycle) / self.scale_steps) * self.scale_parts for block in blocks)
        groups = ceil(inputs / self.group_size) if self.group_size else 0
        return tile + DRAIN_CYCLES + second_turn + ceil(inputs / self.tile_inputs) * streamed + groups * scales

    # Memories -----------------------------------------------------------------------------------

    def memories(self) -> tuple[MemoryUse, ...]:
        """What the unit instantiates."""
        kind = "ultra" if self.ultra else "ram"
        step_bits, command = self.result_step * self.acc_bits, self.command_bits
        shared = min(self.turn_lanes, RESULT_LANES)
        whole, rest = divmod(self.turn_lanes, shared)
        depth = max(2, ceil(self.groups * self.result_turns * self.steps / self.result_banks))
        found = [
            MemoryUse(name="codes", width=8 * self.vector_lanes + self.exponent_bits, depth=max(2, len(self.slots) * self.code_words),
                      kind=kind),
            MemoryUse(name="partial.store", width=self.rows_per_cycle * self.sum_bits, depth=max(2, self.block_steps), count=self.lanes),
            MemoryUse(name="results.bank", width=shared * step_bits, depth=depth, count=whole * self.result_banks, kind=kind),
            MemoryUse(name="to_tables", width=sum(command[name] for name in ("inputs", "slot", "count")), depth=COMMANDS),
            MemoryUse(name="to_words", width=sum(command.values()), depth=COMMANDS),
        ]
        if rest:
            found.append(MemoryUse(name="results.bank", width=rest * step_bits, depth=depth, count=self.result_banks, kind=kind))
        if self.group_size:
            found.append(MemoryUse(name="scales", width=min(self.scale_steps * self.scale_word, 8 * self.mem_bytes),
                                   depth=max(2, self.scale_rows), count=self.scale_parts))
        if self.table_form != "addsub":
            found.append(MemoryUse(name="lane.table", width=ENTRY_BITS, depth=1 << table_address_bits(self.table_form),
                                   count=self.lanes * self.tables, read_ports=self.rows_per_cycle))
        return tuple(found)
