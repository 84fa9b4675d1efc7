"""The one configuration record: what a generated machine is, with its digest.

A `BuildConfig` fixes every number the Verilog depends on. It is plain data: JSON both ways,
validated on construction. `ModelShape` is its model half (the dimensions the hardware is built
for); the rest are the generator's parameters. Numerics (docs/numbers.md) do not depend on the
generator's parameters: every configuration computes the same bits for the same model.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from math import ceil
from typing import Any

from tritloom.firmware.errors import InputError
from tritloom.firmware.names import unknown
from tritloom.firmware.packing import SCALE_BITS, group_beats, grouped_word_bytes, result_bits, scale_drop, tile_inputs

TRITS = 3
"""Trits per table index (G)."""

CHUNK = 16
"""Positions per KV-cache chunk: the granularity of the streaming softmax. Part of the numerics."""

KV_SCALE_BYTES = 4
"""Bytes of one stored key or value scale: u16 mantissa, s16 exponent, little endian."""

LOGIT_BITS = 44
"""Signed width of an integer logit: a dot product of hidden int8 codes with an int8 row, times the row's u16 scale."""

PARAM_HEADER_BYTES = 32
"""Bytes of the parameter block's header, before padding to a memory beat."""

RESULT_BLOCKS = 4
"""Blocks of gate and up whose results are kept at once."""
RESULT_LANES = 4
"""Lanes that share a memory of results."""
KEPT_BITS = 2
"""Heads between their passes through the vector unit are at most 2**KEPT_BITS."""

ACTIVATIONS = ("relu2", "silu")
TABLE_FORMS = ("full27", "symmetric14", "addsub")
PACKINGS = ("index5", "trit5")
MEMORIES = ("axi", "onchip")


MOST_PORTS = 8
"""Memory ports that have a register for their base address."""

MOST_BLOCKS = 1024
"""Blocks of one ternary matrix of a layer: their commands must find room in the program."""

MOST_HEAD_BLOCKS = 1 << 14
"""Blocks of a ternary head, which the program takes in a loop."""

STEP_LIMIT = 1 << 16
"""Rows of a block over `rows_per_cycle` are fewer: what the matmul instruction counts."""

BIAS_CODES = 64
"""Codes whose sum stands for one, in a vector whose matrix has a bias. Part of the numerics."""

GROUP_SIZES = (0, 64, 128)
"""Inputs that share a scale; 0: one scale a matrix."""

BIASES = ("qkv", "o", "gate_up", "down")
"""Matrices of a layer whose outputs may have a bias."""

SHAPE_NEUTRAL = {"group_size": 0, "head_norms": False, "ternary_head": False, "biases": ()}
"""Fields of a shape that came later, and what they are in models from before."""

NEUTRAL = {"group_exponents": 0}
"""Fields of a configuration that came later, and what they are in machines from before."""

SHAPE_LIMITS = {"hidden": 1 << 17, "ffn": 1 << 17, "layers": 4096, "heads": 1 << 16, "kv_heads": 1 << 16, "head_dim": 1 << 16,
                "vocab": 1 << 20, "context": 1 << 24}
"""Most of each dimension of a model: several times what any published model has."""

LIMITS = {
    "clock_hz": (1, 10**9), "lanes": (1, 64), "groups": (1, 2), "attention_lanes": (0, 64), "tables": (1, 1024),
    "rows_per_cycle": (1, 512), "block_rows": (0, 1 << 18), "result_parts": (1, 2), "result_turns": (1, 2), "vector_lanes": (1, 512),
    "attention_macs": (2, 512), "attention_rows": (1, CHUNK), "mem_bytes": (4, 512), "mem_ports": (1, MOST_PORTS),
    "onchip_bytes": (0, 1 << 32), "weight_fifo_beats": (4, 1 << 16), "read_fifo_beats": (4, 4096), "write_fifo_beats": (1, 1 << 16),
    "sampler_candidates": (1, 4096), "program_words": (2, 1 << 16), "shortlist": (0, 1 << 16), "sequences": (1, 1 << 16),
    "group_exponents": (0, 7),
}
"""Least and most of each number of a configuration: what rtl/ takes, and no more than a fabric could hold."""

SERIAL_LIMITS = {"hidden": 1024, "context": 1023, "vocab": (1 << 17) - 1}
"""Most of a model's dimensions with one vector lane (rtl/serial)."""


class ConfigError(InputError):
    """A configuration that cannot exist; the message names the field and the remedy."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def _require_number(name: str, value: object, least: int, most: int) -> None:
    """`value` is an integer from `least` to `most`."""
    if type(value) is int and least <= value <= most:
        return
    if most == least + 1:
        what = f"{least} or {most}"
    elif type(value) is not int or value < min(least, 1):
        what = "a positive integer" if least else "a positive integer, or 0 for the default"
    else:
        what = f"from {least} to {most}"
    raise ConfigError(f"{name} must be {what}, not {_shown(value)}")


def _shown(value: object) -> str:
    """A value in a message, cut if it is long."""
    if isinstance(value, int) and abs(value) >= 10**20:
        return f"a number of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _known(kind: str, data: dict[str, Any], record: type[Any]) -> None:
    names = [field.name for field in dataclasses.fields(record)]
    for name in data:
        _require(name in names, unknown(kind, name, names))


def _power_of_two(value: int) -> bool:
    return value > 0 and value & (value - 1) == 0


def round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """Dimensions of the model a machine is built for.

    `hidden`, `ffn`: widths; `heads`/`kv_heads`: query and key/value heads of `head_dim`;
    `context`: most positions the KV cache holds; `sub_norms`: norms before o_proj and down_proj.
    `group_size`: consecutive inputs of a row of a ternary matrix that share a scale, 0 for one scale a matrix; `head_norms`: RMS norms
    of each query and key head before rotation; `ternary_head`: embedding and head are ternary by groups too. `biases`: matrices, of
    BIASES and in their order, whose outputs have a bias; q, k and v have one or none together, gate and up too.
    """

    hidden: int
    ffn: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    context: int
    activation: str
    sub_norms: bool
    group_size: int = 0
    head_norms: bool = False
    ternary_head: bool = False
    biases: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.biases, list):  # as JSON has it
            object.__setattr__(self, "biases", tuple(self.biases))
        for name, most in SHAPE_LIMITS.items():
            _require_number(f"shape.{name}", getattr(self, name), 1, most)
        _require(self.activation in ACTIVATIONS, f"shape.activation must be one of {', '.join(ACTIVATIONS)}, not {_shown(self.activation)}")
        for name in ("sub_norms", "head_norms", "ternary_head"):
            _require(isinstance(getattr(self, name), bool), f"shape.{name} must be true or false, not {_shown(getattr(self, name))}")
        _require(self.heads % self.kv_heads == 0, f"shape.heads ({self.heads}) must be a multiple of shape.kv_heads ({self.kv_heads})")
        _require(self.head_dim % 2 == 0, f"shape.head_dim must be even for rotary embedding, not {self.head_dim}")
        _require(type(self.group_size) is int and self.group_size in GROUP_SIZES,
                 f"shape.group_size must be one of {', '.join(map(str, GROUP_SIZES))}, not {_shown(self.group_size)}")
        if self.group_size:
            for name in ("hidden", "q_size", "ffn"):
                _require(getattr(self, name) % self.group_size == 0,
                         f"shape.{name} ({getattr(self, name)}) must be a multiple of shape.group_size ({self.group_size})")
        _require(not self.ternary_head or self.group_size > 0, "shape.ternary_head is by groups: give shape.group_size, or leave it out")
        _require(isinstance(self.biases, tuple) and self.biases == tuple(name for name in BIASES if name in self.biases),
                 f"shape.biases must be some of {', '.join(BIASES)}, in this order, not {_shown(self.biases)}")
        _require(not self.biases or self.group_size > 0, "shape.biases are of matrices with scales by groups: give shape.group_size")

    def to_dict(self) -> dict[str, Any]:
        """For JSON, without fields of SHAPE_NEUTRAL that say nothing: results, images and digests of machines from before there were
        such fields stay what they were."""
        return {name: value for name, value in dataclasses.asdict(self).items() if SHAPE_NEUTRAL.get(name, ...) != value}

    @property
    def group(self) -> int:
        """Query heads per key/value head."""
        return self.heads // self.kv_heads

    @property
    def q_size(self) -> int:
        return self.heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.kv_heads * self.head_dim

    @property
    def qkv_rows(self) -> int:
        """Rows of the fused q, k, v matrix, in this order."""
        return self.q_size + 2 * self.kv_size

    @property
    def bias_inputs(self) -> int:
        """Inputs behind those of the residual stream that stand for one, where a matrix that follows has a bias: a group of them."""
        return self.group_size if "qkv" in self.biases or "gate_up" in self.biases else 0

    def inputs_of(self, name: str) -> int:
        """Inputs of one of BIASES' matrices, those of its bias included."""
        length = {"qkv": self.hidden, "o": self.q_size, "gate_up": self.hidden, "down": self.ffn}[name]
        return length + (self.bias_inputs if name in ("qkv", "gate_up") and name in self.biases else 0)

    def gains_before(self, name: str) -> int:
        """Numbers of 16 bits in the parameter block before one of BIASES' matrices: gains of the norm before it, of head norms, and of o
        and down, which are added to the residual stream, the bias."""
        bias = self.hidden if name in ("o", "down") and name in self.biases else 0
        return {"qkv": self.hidden + self.head_gains, "o": self.q_size * self.sub_norms, "gate_up": self.hidden,
                "down": self.ffn * self.sub_norms}[name] + bias

    @property
    def max_inputs(self) -> int:
        """Longest activation vector a ternary matrix takes."""
        return max(self.hidden + self.bias_inputs, self.q_size, self.ffn)

    @property
    def head_gains(self) -> int:
        """Gains of the norms of a query head and of a key head, which stand behind those of the norm before them."""
        return 2 * self.head_dim if self.head_norms else 0

    @property
    def max_rows(self) -> int:
        """Most rows of one ternary matrix (gate and up are interleaved into one)."""
        return max(self.qkv_rows, self.hidden, 2 * self.ffn)

    @property
    def scale_drop(self) -> int:
        """Low bits of the matrices' results that are rounded off where groups of inputs have scales. Part of the numerics."""
        return scale_drop(self.max_inputs) if self.group_size else 0

    @property
    def chunks(self) -> int:
        """KV-cache chunks per layer and key/value head."""
        return ceil(self.context / CHUNK)


@dataclass(frozen=True, kw_only=True)
class BuildConfig:
    """Everything the Verilog of one machine depends on.

    Symbols of docs/architecture.md: `lanes` P, `tables` T, `rows_per_cycle` Q, `vector_lanes` V,
    `attention_macs` A, `attention_rows` R, `mem_bytes` M over `mem_ports` ports.
    `groups`: groups of P tokens that take turns in a long prompt's passes, one's matrices beside the other's vector work;
    `vector_lanes` 1: norms, activations, attention and sampling share one arithmetic unit in time, under a microprogram (rtl/serial);
    `attention_lanes`: lanes of the dot engine, 0 for P; `block_rows`: most rows of a matrix whose partial sums are held at once,
    0 for all; `result_parts`: reads that V rows of the matrices' results take (2: half the banks); `result_turns`: cycles in which
    all lanes' results are written (2: to memories half as wide, with room for RESULT_BLOCKS pieces of gate and up); `ultra_ram`: keep a
    model on the chip in UltraRAM, or else the large memories of the units.
    `sequences`: texts whose caches the memory holds at once, each of up to `shape.context` positions.
    `weight_fifo_beats`, `read_fifo_beats`: beats that are asked for ahead, of weights and of data; to keep the memory
    busy they must cover its latency. `write_fifo_beats`: beats of keys and values that may wait to be written.
    `shortlist`: 0 for an LM head of int8 rows over the whole vocabulary; K for a ternary head whose K greatest logits are
    computed again with the int8 rows. `group_exponents`: 0, or, of a model whose groups of inputs have scales, how far the codes of a
    group may be shifted up at most where its activations are small beside others'. These two change what is computed; no other
    generator's parameter does.
    """

    shape: ModelShape
    board: str = "sim"
    clock_hz: int = 250_000_000
    lanes: int = 4
    groups: int = 1
    attention_lanes: int = 0
    tables: int = 13
    rows_per_cycle: int = 4
    block_rows: int = 0
    result_parts: int = 1
    result_turns: int = 1
    vector_lanes: int = 8
    attention_macs: int = 32
    attention_rows: int = 1
    mem_bytes: int = 32
    mem_ports: int = 1
    memory: str = "axi"
    onchip_bytes: int = 0
    ultra_ram: bool = False
    table_form: str = "symmetric14"
    packing: str = "trit5"
    weight_fifo_beats: int = 256
    read_fifo_beats: int = 128
    write_fifo_beats: int = 32
    sampler_candidates: int = 64
    program_words: int = 512
    shortlist: int = 0
    sequences: int = 1
    group_exponents: int = 0

    def __post_init__(self) -> None:
        s = self.shape
        for name, (least, most) in LIMITS.items():
            _require_number(name, getattr(self, name), least, most)
        q, odd = self.rows_per_cycle, self.rows_per_cycle - 1
        _require(_power_of_two(q) or (s.group_size > 0 and _power_of_two(odd)),
                 f"rows_per_cycle must be a power of two{', or one more' if s.group_size else ''}, not {q}")
        _require(_power_of_two(q) or self.result_turns == 1,
                 f"rows_per_cycle ({q}) takes results a turn already, between its steps: give result_turns=1")
        for name in ("vector_lanes", "attention_macs", "attention_rows", "mem_bytes", "mem_ports", "weight_fifo_beats", "read_fifo_beats",
                     "program_words"):
            _require(_power_of_two(getattr(self, name)), f"{name} must be a power of two, not {getattr(self, name)}")
        for name, known in (("table_form", TABLE_FORMS), ("packing", PACKINGS), ("memory", MEMORIES)):
            _require(getattr(self, name) in known, f"{name} must be one of {', '.join(known)}, not {_shown(getattr(self, name))}")
        _require(isinstance(self.board, str), f"board must be a name, not {_shown(self.board)}")
        _require(self.groups == 1 or self.lanes > 1, "two groups of one lane do the work of one group of two: give lanes=2, or groups=1")
        _require(self.result_turns <= self.lanes, "results of one lane are written in one turn: give lanes=2, or result_turns=1")
        _require(isinstance(self.ultra_ram, bool), f"ultra_ram must be true or false, not {_shown(self.ultra_ram)}")
        _require(self.attention_lanes <= self.lanes, f"attention_lanes ({self.attention_lanes}) must not exceed lanes ({self.lanes})")
        _require(self.block_rows % self.result_step == 0,
                 f"block_rows ({self.block_rows}) must be a multiple of rows_per_cycle ({self.result_step})")
        word = self.attention_macs // self.attention_rows
        _require(self.vector_lanes <= word,
                 f"vector_lanes must be from 1 to attention_macs/attention_rows ({word}), not {self.vector_lanes}")
        if self.serial:
            self._check_serial()
        _require(self.attention_macs <= self.mem_bytes,
                 f"attention_macs ({self.attention_macs}) must not exceed mem_bytes ({self.mem_bytes})")
        _require(self.mem_bytes // self.mem_ports >= 4,
                 f"a memory port must be 4 bytes or wider: mem_bytes {self.mem_bytes} over {self.mem_ports} ports")
        _require(self.memory != "axi" or self.mem_bytes // self.mem_ports <= 128,
                 f"an AXI4 port carries at most 128 bytes: mem_bytes {self.mem_bytes} over {self.mem_ports} ports")
        _require(self.word_bytes <= self.mem_bytes,
                 f"tables*rows_per_cycle = {self.indices_per_word} indices need {self.word_bytes} bytes a cycle as {self.packing}, "
                 f"but mem_bytes is {self.mem_bytes}: lower tables or rows_per_cycle")
        _require(s.q_size % self.result_step == 0,
                 f"rows_per_cycle ({self.result_step}) must divide the queries' rows ({s.q_size})")
        _require(s.head_dim % word == 0,
                 f"attention_macs/attention_rows ({word}) must divide head_dim ({s.head_dim}): raise attention_rows")
        _require(self.attention_rows == 1 or 4 * self.attention_rows <= min(self.mem_bytes, 4 * CHUNK),
                 f"attention_rows ({self.attention_rows}) must not exceed mem_bytes/4 ({self.mem_bytes // 4}) or {CHUNK}")
        _require(self.attention_rows <= word,
                 f"attention_rows ({self.attention_rows}) must not exceed attention_macs/attention_rows ({word})")
        _require(s.head_dim // word >= self.attention_rows,
                 f"attention_rows ({self.attention_rows}) must not exceed the words of {word} bytes in head_dim ({s.head_dim // word})")
        _require(s.hidden % self.attention_macs == 0, f"attention_macs ({self.attention_macs}) must divide hidden ({s.hidden})")
        for name in ("hidden", "ffn", "head_dim"):
            _require(getattr(s, name) % self.vector_lanes == 0,
                     f"vector_lanes ({self.vector_lanes}) must divide {name} ({getattr(s, name)})")
        _require((CHUNK * s.head_dim) % self.mem_bytes == 0,
                 f"mem_bytes ({self.mem_bytes}) must divide {CHUNK}*head_dim ({CHUNK * s.head_dim})")
        _require(self.kv_write_rows >= 1,
                 f"write_fifo_beats ({self.write_fifo_beats}) must hold a row of keys of {s.head_dim} bytes: raise it")
        _require(s.max_inputs * 127 < 2**22, f"activation vectors of {s.max_inputs} overflow the 23-bit accumulator")
        _require(127 * 127 * s.hidden * 65535 < 1 << (LOGIT_BITS - 1),
                 f"hidden ({s.hidden}) is too wide: its logits could overflow the head's {LOGIT_BITS} bits")
        k = self.shortlist
        _require(not (k and s.ternary_head), "a head that is ternary by groups needs no short-list: leave shortlist out")
        for what, there in (("biases", s.biases), ("scales by groups", s.group_size), ("norms of heads", s.head_norms)):
            _require(not (there and self.serial), f"vector_lanes 1 takes no models with {what}: give vector_lanes=2 or more")
        _require(s.group_size > 0 or not self.group_exponents,
                 "group_exponents are of models whose groups of inputs have scales: leave group_exponents out")
        _require(not self.group_exponents or s.group_size % self.vector_lanes == 0,
                 f"group_exponents are of whole words: vector_lanes ({self.vector_lanes}) must divide shape.group_size ({s.group_size})")
        _require(not s.biases or BIAS_CODES % self.vector_lanes == 0,
                 f"biases are of whole words: vector_lanes ({self.vector_lanes}) must divide {BIAS_CODES}")
        _require(k == 0 or (k >= 2 and _power_of_two(k)), f"shortlist must be 0 (int8 head) or a power of two from 2, not {k}")
        _require(k <= s.vocab, f"shortlist ({k}) must not exceed the vocabulary ({s.vocab})")
        _require(ceil(self.longest_block / self.rows_per_cycle) < STEP_LIMIT,
                 f"a block of {self.longest_block} rows takes more than {STEP_LIMIT - 1} steps of {self.rows_per_cycle} rows: "
                 "raise rows_per_cycle, or lower block_rows")
        blocks = ceil(s.max_rows / self.longest_block)
        _require(blocks <= MOST_BLOCKS,
                 f"block_rows ({self.block_rows}) cuts {s.max_rows} rows into {blocks} blocks: at most {MOST_BLOCKS}")
        whole_head = k > 0 or s.ternary_head
        _require(not whole_head or self.head_block_rows <= self.longest_block,
                 f"block_rows ({self.block_rows}) must be at least vector_lanes ({self.vector_lanes}) where the head is ternary")
        blocks = ceil(s.vocab / self.head_block_rows) if whole_head else 0
        _require(blocks <= MOST_HEAD_BLOCKS, f"block_rows ({self.block_rows}) cuts the head's {s.vocab} rows into {blocks} blocks: "
                                             f"at most {MOST_HEAD_BLOCKS}")
        _require(self.memory == "onchip" or not self.onchip_bytes,
                 f"onchip_bytes ({self.onchip_bytes}) is of a memory on the chip: leave it out, or give memory=onchip")
        if self.memory == "onchip":
            _require(self.onchip_bytes > 0 and self.onchip_bytes % self.mem_bytes == 0,
                     f"onchip_bytes must be a positive multiple of mem_bytes ({self.mem_bytes}), not {self.onchip_bytes}")
            _require(self.mem_ports == 1, f"on-chip memory has one port, not {self.mem_ports}")

    def _check_serial(self) -> None:
        """What one arithmetic unit shared in time takes."""
        s = self.shape
        for name, only in (("lanes", 1), ("attention_rows", 1), ("shortlist", 0)):
            _require(getattr(self, name) == only, f"vector_lanes 1 shares one arithmetic unit in time, which takes {name}={only}, "
                                                  f"not {getattr(self, name)}: give vector_lanes=2 or more")
        for name, most in SERIAL_LIMITS.items():
            _require(getattr(s, name) <= most, f"vector_lanes 1 shares one arithmetic unit in time, which takes shape.{name} up to {most}, "
                                               f"not {getattr(s, name)}: give vector_lanes=2 or more")
        _require(self.mem_bytes <= 64, f"vector_lanes 1 takes mem_bytes up to 64, not {self.mem_bytes}")

    # Derived widths -------------------------------------------------------------------------

    @property
    def serial(self) -> bool:
        """One arithmetic unit is shared in time by all but the ternary matrices."""
        return self.vector_lanes == 1

    @property
    def indices_per_word(self) -> int:
        """Table indices consumed per cycle: tables * rows_per_cycle, ordered row-major (row*tables + table)."""
        return self.tables * self.rows_per_cycle

    @property
    def word_bytes(self) -> int:
        """Bytes of a packed weight word; each word travels in one memory beat of mem_bytes."""
        n = self.indices_per_word
        if self.shape.group_size:
            return grouped_word_bytes(self.tables, self.rows_per_cycle, self.shape.group_size, self.packing)
        if self.packing == "index5":
            return ceil(5 * n / 8)
        return 3 * (n // 5) + min(n % 5, 3)

    @property
    def acc_bits(self) -> int:
        """Signed accumulator width: holds 127 * max_inputs, or the rounded sums of groups times their scales."""
        return result_bits(self.shape.max_inputs, self.shape.group_size, self.shape.scale_drop)

    @property
    def dot_lanes(self) -> int:
        """Lanes of the dot engine."""
        return self.attention_lanes or self.lanes

    @property
    def ultra_units(self) -> bool:
        """The units' large memories are in UltraRAM; a model on the chip has it for itself."""
        return self.ultra_ram and self.memory == "axi"

    @property
    def longest_block(self) -> int:
        """Most rows of a block."""
        return min(self.block_rows or self.shape.max_rows, self.shape.max_rows)

    @property
    def banks(self) -> int:
        """Banks of the results."""
        return max(1, self.vector_lanes // self.result_step // self.result_parts)

    @property
    def result_step(self) -> int:
        """Rows of the results that are written at once: `rows_per_cycle`, or the power of two that is one less."""
        return 1 << (self.rows_per_cycle.bit_length() - 1)

    @property
    def result_lanes(self) -> int:
        """Lanes whose results are written at once."""
        return ceil(self.lanes / self.result_turns)

    @property
    def result_rows(self) -> int:
        """Results that a slot holds: all of the longest matrix; with two turns, RESULT_BLOCKS pieces of gate and up, and a power of two."""
        s = self.shape
        if self.result_turns == 1:
            return s.max_rows
        longest = max(s.qkv_rows, s.hidden, min(2 * s.ffn, RESULT_BLOCKS * self.gate_up_blocks[0]))
        return 1 << (longest - 1).bit_length()

    @property
    def group_slots(self) -> int:
        """Distance between the slots of two groups: slot = group * group_slots + lane."""
        return 1 << (self.lanes - 1).bit_length()

    def matrix_beats(self, steps: int, inputs: int) -> int:
        """Beats of a block of a ternary matrix of so many steps of rows: its words, and the scales of its groups."""
        tiles = ceil(inputs / tile_inputs(self.tables, self.shape.group_size))
        if not self.shape.group_size:
            return tiles * steps
        return tiles * steps + inputs // self.shape.group_size * group_beats(steps, self.rows_per_cycle, self.mem_bytes)

    def blocks(self, rows: int) -> list[int]:
        """Rows of the blocks of a matrix of `rows` rows."""
        longest = self.longest_block
        return [min(longest, rows - start) for start in range(0, rows, longest)]

    @property
    def gate_up_blocks(self) -> list[int]:
        """Rows of the pieces of gate and up, each of which can be activated while the next streams: its blocks, if they are whole words
        of pairs, or all of it."""
        rows = 2 * self.shape.ffn
        return [rows] if self.longest_block % (2 * self.vector_lanes) else self.blocks(rows)

    @property
    def gate_up_ahead(self) -> int:
        """Pieces of gate and up that stream for the first of two groups before the second group's o: one less than there are, if there
        are several, and no more than hold their results at once."""
        return max(1, min(len(self.gate_up_blocks) - 1, RESULT_BLOCKS))

    @property
    def group_rows(self) -> int:
        """Head rows that share one beat of u16 row scales."""
        return self.mem_bytes // 2

    @property
    def head_row_bytes(self) -> int:
        return round_up(self.shape.hidden, self.mem_bytes)

    @property
    def head_group_bytes(self) -> int:
        return self.mem_bytes + self.group_rows * self.head_row_bytes

    @property
    def embedding_piece_bits(self) -> int:
        """Of a row of a ternary embedding by groups: its bits come in pieces of V trits of two bits."""
        return 2 * self.vector_lanes

    @property
    def embedding_scale_pieces(self) -> int:
        """Pieces that a group's scale takes, before those of its trits."""
        return ceil(SCALE_BITS / self.embedding_piece_bits)

    @property
    def embedding_row_bytes(self) -> int:
        """Bytes of a row of a ternary embedding by groups, padded to a beat."""
        group = self.embedding_scale_pieces * self.embedding_piece_bits + 2 * self.shape.group_size
        return round_up(ceil(self.shape.hidden // self.shape.group_size * group / 8), self.mem_bytes)

    @property
    def shortlist_bytes(self) -> int:
        """Bytes of the row scales and int8 rows that the head reads again for each token."""
        return self.shortlist * (self.mem_bytes + self.head_row_bytes)

    @property
    def head_block_rows(self) -> int:
        """Rows of a block of the ternary head: whole words of V results and whole steps."""
        whole = max(self.vector_lanes, self.result_step)
        return max(whole, min(self.longest_block, self.result_rows // 2) // whole * whole)

    @property
    def shortlist_queue(self) -> int:
        """Entries that wait between the scan of a ternary head's logits and the heap."""
        return 4 * self.shortlist

    @property
    def kv_scale_block_bytes(self) -> int:
        """Bytes of one chunk's scales (CHUNK of KV_SCALE_BYTES, padded to a beat)."""
        return round_up(CHUNK * KV_SCALE_BYTES, self.mem_bytes)

    @property
    def kv_half_bytes(self) -> int:
        """Bytes of the key (or value) half of a chunk block: scales, then CHUNK rows of head_dim bytes (layout.cache_rows)."""
        return self.kv_scale_block_bytes + CHUNK * self.shape.head_dim

    @property
    def kv_write_rows(self) -> int:
        """Rows of keys and values that may wait to be written: a row's beats are those of its words, or those from its first byte on."""
        word = self.attention_macs // self.attention_rows
        beats = min(self.shape.head_dim // word, self.shape.head_dim * self.attention_rows // self.mem_bytes + 2)
        return self.write_fifo_beats // beats

    @property
    def writes_whole_beats(self) -> bool:
        """Whether all bytes of each beat are written that is written at all: no memory needs byte enables then."""
        return self.mem_bytes == KV_SCALE_BYTES and self.shape.head_dim % self.mem_bytes == 0

    @property
    def kv_head_bytes(self) -> int:
        """Bytes of one layer's cache of one key/value head: chunks of (key half, value half)."""
        return self.shape.chunks * 2 * self.kv_half_bytes

    @property
    def kv_layer_bytes(self) -> int:
        return self.shape.kv_heads * self.kv_head_bytes

    @property
    def kv_sequence_bytes(self) -> int:
        """Bytes of one sequence's cache: all layers."""
        return self.shape.layers * self.kv_layer_bytes

    @property
    def rope_row_bytes(self) -> int:
        """Bytes of one position's rotary row: head_dim/2 pairs of (cos, sin) int16, padded to a beat."""
        return round_up(2 * self.shape.head_dim, self.mem_bytes)

    # JSON and digest ------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """For JSON, without fields of NEUTRAL that say nothing, as `ModelShape.to_dict`."""
        fields = {name: value for name, value in dataclasses.asdict(self).items() if NEUTRAL.get(name, ...) != value}
        return fields | {"shape": self.shape.to_dict()}

    def to_json(self) -> str:
        return json.dumps(self.to_dict() | {"digest": f"{self.digest:08x}"}, indent=2) + "\n"

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> BuildConfig:
        _require(isinstance(data, dict), "a configuration is a JSON object")
        data = {k: v for k, v in data.items() if k != "digest"}
        _known("field", data, cls)
        _require(isinstance(data.get("shape"), dict), "configuration has no shape")
        _known("field of shape", data["shape"], ModelShape)
        try:
            fields: dict[str, Any] = data | {"shape": ModelShape(**data["shape"])}
            return cls(**fields)
        except TypeError as error:
            raise ConfigError(f"incomplete configuration: {error}") from None

    @classmethod
    def from_json(cls, text: str) -> BuildConfig:
        try:
            data = json.loads(text)
        except RecursionError:
            raise ConfigError("configuration is not JSON: nested too deeply") from None
        except ValueError as error:
            raise ConfigError(f"configuration is not JSON: {error}") from None
        _require(isinstance(data, dict), "configuration is not a JSON object")
        config = cls.from_dict(data)
        if "digest" in data:
            _require(data["digest"] == f"{config.digest:08x}",
                     f"configuration digest {_shown(data['digest'])} does not match its fields ({config.digest:08x})")
        return config

    @property
    def digest(self) -> int:
        """32-bit digest of every field: stands in a CSR, in the image and beside the Verilog.

        Fields of SHAPE_NEUTRAL and NEUTRAL that say nothing are left out (`to_dict`), so that machines from before keep their digest.
        """
        canonical = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return int.from_bytes(hashlib.sha256(canonical.encode()).digest()[:4], "little")
