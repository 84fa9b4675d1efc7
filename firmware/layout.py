"""Where everything stands in the machine's memory, and the descriptor program that streams the weights.

Regions start at multiples of 4096 bytes (or of a beat, if that is larger). The weight stream is one
region in consumption order:

    embedding parameters (header only), first layer's qkv parameters
    per layer: o parameters, kv, q, gate/up and down parameters, o, gate/up, next layer's qkv or the head's parameters, down
    head groups

so a pass over the model is one sequential read. Parameters stand where they can be loaded before they are needed: those of o before kv,
because with two groups the first one's attention ends while the second one's queries stream; those of the FFN before o, because nothing
streams during attention. Parameter blocks and matrices are whole beats; a matrix of many rows is a row of blocks. A pass of two groups
of tokens reads each matrix twice before the next, except that the first group takes some pieces of gate and up before the second takes o.
Of the last layer, a prompt's pass reads qkv only; the pass with the prompt's last token reads the rest once, for that token. With a
short-list the ternary head, in blocks of rows, takes the place of the head groups; the int8 table then has a region of its own. So
does a head that is ternary by groups, whose embedding, row after row, always has a region of its own.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tritloom.firmware.config import CHUNK, PARAM_HEADER_BYTES, BuildConfig, ConfigError, round_up
from tritloom.firmware.isa import Descriptor, DescriptorOp, Destination

REGION_ALIGN = 4096
ADDRESS_LIMIT = 1 << 32
DESCRIPTOR_LIMIT = 256
"""Entries of the streamer's descriptor memory."""


def matrix_beats(config: BuildConfig, rows: int, inputs: int) -> int:
    """Weight words of a ternary matrix."""
    return sum(config.matrix_beats(ceil(block / config.rows_per_cycle), inputs) for block in config.blocks(rows))


def parameter_beats(config: BuildConfig, gains: int) -> int:
    """Beats of a parameter block: the header, then the int16 gains, each padded to a beat."""
    return (round_up(PARAM_HEADER_BYTES, config.mem_bytes) + round_up(2 * gains, config.mem_bytes)) // config.mem_bytes


def table_beats(config: BuildConfig) -> int:
    """Beats of an embedding or head table of int8 rows."""
    return ceil(config.shape.vocab / config.group_rows) * config.head_group_bytes // config.mem_bytes


def head_row_blocks(config: BuildConfig) -> list[int]:
    """Rows of each block in which the ternary head is multiplied and scanned: half of what the results hold, so that one is scanned
    while the next streams.

    With a short-list the first has no more than the queue before the heap holds: the heap fills while the second streams.
    """
    vocab, most = config.shape.vocab, config.head_block_rows
    first = min(config.shortlist_queue or most, most, vocab)
    full, rest = divmod(vocab - first, most)
    return [first, *[most] * full, *([rest] if rest else [])]


def cache_rows(config: BuildConfig) -> NDArray[np.int64]:
    """Where the bytes of a chunk's keys (or values) stand after their scales: offsets [CHUNK, head_dim].

    `attention_rows` rows lie side by side: word after word of attention_macs/attention_rows bytes, of each row in turn.
    """
    rows, dim = config.attention_rows, config.shape.head_dim
    word = config.attention_macs // rows
    offsets = np.arange(CHUNK * dim).reshape(CHUNK // rows, dim // word, rows, word)
    return offsets.transpose(0, 2, 1, 3).reshape(CHUNK, dim)


@dataclass(frozen=True)
class Block:
    """One piece of the weight stream: `beats` for `dest`. Parameters have `gains`; matrices `rows` and `inputs`."""

    name: str
    dest: Destination
    beats: int
    gains: int = 0
    rows: int = 0
    inputs: int = 0


def stream_blocks(config: BuildConfig) -> tuple[list[Block], list[Block], list[Block]]:
    """The weight stream's blocks before the layers, of one layer, and after the layers."""
    s = config.shape

    def parameters(name: str, gains: int) -> Block:
        return Block(name, Destination.VECTOR, parameter_beats(config, gains), gains=gains)

    def matrix(name: str, rows: int, inputs: int) -> Block:
        return Block(name, Destination.MATMUL, matrix_beats(config, rows, inputs), rows=rows, inputs=inputs)

    layer = [
        parameters("o_parameters", s.gains_before("o")),
        matrix("kv", 2 * s.kv_size, s.inputs_of("qkv")),
        matrix("q", s.q_size, s.inputs_of("qkv")),
        parameters("gate_up_parameters", s.gains_before("gate_up")),
        parameters("down_parameters", s.gains_before("down")),
        matrix("o", s.hidden, s.inputs_of("o")),
        matrix("gate_up", 2 * s.ffn, s.inputs_of("gate_up")),
        parameters("next_parameters", s.gains_before("qkv")),
        matrix("down", s.hidden, s.inputs_of("down")),
    ]
    head = [Block("head", Destination.DOT, table_beats(config), rows=s.vocab, inputs=s.hidden)]
    if config.shortlist or s.ternary_head:
        head = [matrix(f"ternary_head_{i}", rows, s.hidden) for i, rows in enumerate(head_row_blocks(config))]
    return [parameters("embedding_parameters", 0), parameters("qkv_parameters", s.gains_before("qkv"))], layer, head


@dataclass(frozen=True)
class Region:
    """Bytes base..base+length-1; `loaded` regions are filled from the image, the others by the machine."""

    base: int
    length: int
    loaded: bool = True

    @property
    def end(self) -> int:
        return self.base + self.length


@dataclass(frozen=True, kw_only=True)
class MemoryMap:
    """Regions by name (weights, rope, kv, with a short-list head, when not tied embedding), the descriptor program and its entries.

    `embedding_base`: first group of the embedding table (the head's when tied); `prologue_beats`, `layer_beats`,
    `epilogue_beats`: lengths of the weight stream's parts; `matrix_beats`: a layer's without its parameters; `behind_qkv_beats`,
    `behind_qkv_matrix_beats`: those of its part behind qkv; `total_bytes`: end of the last region.
    """

    mem_bytes: int
    layers: int
    regions: dict[str, Region]
    embedding_base: int
    head_base: int
    prologue_beats: int
    layer_beats: int
    matrix_beats: int
    behind_qkv_beats: int
    behind_qkv_matrix_beats: int
    epilogue_beats: int
    descriptors: tuple[Descriptor, ...]
    entry_layers: int
    entry_prompt: int
    entry_token: int
    entry_prompt_twice: int
    entry_token_twice: int
    entry_head: int

    @property
    def weights_base(self) -> int:
        return self.regions["weights"].base

    @property
    def rope_base(self) -> int:
        return self.regions["rope"].base

    @property
    def kv_base(self) -> int:
        return self.regions["kv"].base

    @property
    def total_bytes(self) -> int:
        return max(region.end for region in self.regions.values())

    def cache_base(self, config: BuildConfig, sequence: int) -> int:
        """Where the cache of sequence `sequence` begins, from 0."""
        return self.kv_base + sequence * config.kv_sequence_bytes

    @property
    def layers_beats(self) -> int:
        """Beats that the entry `entry_layers` streams."""
        return self.prologue_beats + self.layers * self.layer_beats

    @property
    def token_beats(self) -> int:
        """Beats that the entry `entry_token` streams."""
        return self.layers_beats + self.epilogue_beats

    def pass_beats(self, two_groups: bool, head: bool) -> int:
        """Beats of the weight stream in a prompt's pass of one or of two groups of tokens; `head`: with the token after them."""
        beats = self.token_beats if head else self.layers_beats - self.behind_qkv_beats
        return beats + self.layers * self.matrix_beats - self.behind_qkv_matrix_beats if two_groups else beats

    def descriptor_words(self) -> list[int]:
        return [d.encode() for d in self.descriptors]

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {
            "descriptors": [f"{word:016x}" for word in self.descriptor_words()],
            "total_bytes": self.total_bytes,
        }

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2) + "\n"


def _two_groups(config: BuildConfig, layer: list[Block]) -> list[Descriptor]:
    """A layer, every matrix for one group after the other."""
    ahead = matrix_beats(config, sum(config.gate_up_blocks[: config.gate_up_ahead]), config.shape.inputs_of("gate_up"))
    program: list[Descriptor] = []
    for dest, run in groupby(layer, key=lambda block: block.dest):
        blocks = list(run)
        beats = sum(block.beats for block in blocks)
        if dest != Destination.MATMUL:
            program.append(Descriptor(DescriptorOp.STREAM, beats, dest))
        elif [block.name for block in blocks] == ["o", "gate_up"]:
            o, gate_up = (block.beats for block in blocks)
            for back, taken in ((0, o + ahead), (o + ahead, o), (-ahead, gate_up - ahead), (gate_up, gate_up)):
                program += [Descriptor(DescriptorOp.BACK, back), Descriptor(DescriptorOp.STREAM, taken, dest)]
        else:
            program += [Descriptor(DescriptorOp.STREAM, beats, dest), Descriptor(DescriptorOp.BACK, beats),
                        Descriptor(DescriptorOp.STREAM, beats, dest)]
    return [d for d in program if d.value]


def _descriptors(config: BuildConfig, base: int, head_base: int,
                 blocks: tuple[list[Block], list[Block], list[Block]]) -> tuple[list[Descriptor], list[int]]:
    """Descriptor program and its entries: all layers; a prompt's pass without its last token; a whole token, or the prompt's last pass;
    the latter two for two groups; the head."""
    prologue, layer, epilogue = blocks
    behind = _behind_qkv(layer)
    before = [block for block in layer if block not in behind]

    def once(blocks: list[Block]) -> list[Descriptor]:
        return [Descriptor(DescriptorOp.STREAM, sum(block.beats for block in run), dest)
                for dest, run in groupby(blocks, key=lambda block: block.dest)]

    program: list[Descriptor] = []
    entries = []
    layers = config.shape.layers
    one, two, last = once(layer), _two_groups(config, layer), _two_groups(config, before)
    for body, times, rest in (
        (one, layers, []), (one, layers - 1, once(before)), (one, layers, once(epilogue)),
        (two, layers - 1, last), (two, layers - 1, [*last, *once(behind), *once(epilogue)]),
    ):
        entries.append(len(program))
        program += [Descriptor(DescriptorOp.BASE, base), *once(prologue)]
        if times:
            program += [*body, Descriptor(DescriptorOp.LOOP, times, target=len(program))]
        program += [*rest, Descriptor(DescriptorOp.END)]
    entries.append(len(program))
    program += [Descriptor(DescriptorOp.BASE, head_base), *once(epilogue), Descriptor(DescriptorOp.END)]
    if len(program) > DESCRIPTOR_LIMIT:
        raise ConfigError(f"the weight stream takes {len(program)} descriptors, but there is room for {DESCRIPTOR_LIMIT}")
    return program, entries


def _behind_qkv(layer: list[Block]) -> list[Block]:
    """What of a layer follows the writing of keys and values."""
    return layer[[block.name for block in layer].index("gate_up_parameters") :]


def memory_map(config: BuildConfig, *, tied: bool = True, limit: int | None = ADDRESS_LIMIT) -> MemoryMap:
    """The map of a configuration; `tied`: the head serves as embedding table too. Raises ConfigError beyond `limit` bytes (None: no
    machine reaches all of it, but its size is known)."""
    s = config.shape
    prologue, layer, epilogue = stream_blocks(config)
    prologue_beats, layer_beats, epilogue_beats = (sum(b.beats for b in part) for part in (prologue, layer, epilogue))
    behind = _behind_qkv(layer)
    regions: dict[str, Region] = {}

    def place(name: str, length: int, loaded: bool = True) -> int:
        base = round_up(max((r.end for r in regions.values()), default=0), max(REGION_ALIGN, config.mem_bytes))
        regions[name] = Region(base, length, loaded)
        return base

    weights = place("weights", (prologue_beats + s.layers * layer_beats + epilogue_beats) * config.mem_bytes)
    if s.ternary_head:  # the head is in the stream of weights
        head, embedding = 0, place("embedding", s.vocab * config.embedding_row_bytes)
    else:
        table = table_beats(config) * config.mem_bytes
        head = place("head", table) if config.shortlist else regions["weights"].end - table
        embedding = head if tied else place("embedding", table)
    place("rope", s.context * config.rope_row_bytes)
    place("kv", config.sequences * config.kv_sequence_bytes, loaded=False)
    total = regions["kv"].end
    if limit is not None and total > limit:
        raise ConfigError(f"the model needs {total} bytes, but the machine addresses {limit}: "
                          f"lower the context ({s.context}) or sequences ({config.sequences})")
    epilogue_base = weights + (prologue_beats + s.layers * layer_beats) * config.mem_bytes
    program, entries = _descriptors(config, weights, epilogue_base, (prologue, layer, epilogue))
    return MemoryMap(
        mem_bytes=config.mem_bytes,
        layers=s.layers,
        regions=regions,
        embedding_base=embedding,
        head_base=head,
        prologue_beats=prologue_beats,
        layer_beats=layer_beats,
        matrix_beats=sum(b.beats for b in layer if b.dest == Destination.MATMUL),
        behind_qkv_beats=sum(b.beats for b in behind),
        behind_qkv_matrix_beats=sum(b.beats for b in behind if b.dest == Destination.MATMUL),
        epilogue_beats=epilogue_beats,
        descriptors=tuple(program),
        entry_layers=entries[0],
        entry_prompt=entries[1],
        entry_token=entries[2],
        entry_prompt_twice=entries[3],
        entry_token_twice=entries[4],
        entry_head=entries[5],
    )


def flat_memory(chunks: Iterable[tuple[int, NDArray[np.uint8]]], total_bytes: int, fill: int = 0) -> NDArray[np.uint8]:
    """One array of the whole memory from (address, bytes) chunks; the rest holds `fill`."""
    memory = np.full(total_bytes, fill, np.uint8)
    for address, data in chunks:
        if address < 0 or address + len(data) > total_bytes:
            raise ValueError(f"{len(data)} bytes at {address:#x} do not fit {total_bytes} bytes of memory")
        memory[address : address + len(data)] = data
    return memory
