"""What a configuration costs in a fabric: projections, calibrated on synthesis of the real units.

A unit's LUTs, flip-flops and multipliers are a sum of terms (lanes, look-ups, bytes of a beat, ...) with
coefficients per family in coefficients.json, fitted to the measured points in docs/results/unit_costs.json.
Memories are counted one by one: each goes to block RAM, to LUTs or, where LUTs are no RAM, to flip-flops as Yosys would map it.

`python -m tritloom.gen.fit.calibrate` measures the points, makes the coefficients, and compares both.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import NamedTuple

from tritloom.firmware.config import CHUNK, KEPT_BITS, RESULT_LANES, BuildConfig, ConfigError
from tritloom.firmware.isa import SCRATCH_WORDS

__all__ = ["COEFFICIENTS", "FAMILIES", "KINDS", "UNITS", "Memory", "memories", "memory_cost", "resources", "terms", "unit_resources"]

UNITS = ("matmul", "vector", "dot", "sampler", "memory", "control", "shortlist")
"""Top-level units; control is the sequencer, the registers, the routers and what joins all."""
KINDS = ("lut", "ff", "dsp")
FAMILIES = ("xcup", "ecp5", "gowin", "ice40")


@dataclass(frozen=True)
class Memory:
    """`count` memories of `depth` words of `width` bits. `reads`: ports to read it, each with a copy of its own in RAM (block RAM of
    two ports: two with one; flip-flops are there once); `rom`: cannot become LUT RAM; `at_once`: read without a clock, so it
    cannot become block RAM; `ultra`: asks for UltraRAM."""

    width: int
    depth: int
    count: int = 1
    reads: int = 1
    rom: bool = False
    at_once: bool = False
    ultra: bool = False


class Stored(NamedTuple):
    """What memories cost."""

    lut: float = 0
    ff: float = 0
    bram: float = 0
    uram: float = 0


BLOCK_SHAPES = {
    "gowin": ((36, 512), (18, 1024), (9, 2048), (4, 4096), (2, 8192), (1, 16384)),
    "ice40": ((16, 256), (8, 512), (4, 1024), (2, 2048)),
    "xcup": ((72, 512), (36, 1024), (18, 2048), (9, 4096), (4, 8192), (2, 16384), (1, 32768)),
    "ecp5": ((36, 512), (18, 1024), (9, 2048), (4, 4096), (2, 8192), (1, 16384)),
}
BLOCK_KIBIT = {"xcup": 36, "ecp5": 16, "gowin": 18, "ice40": 4}
LUTRAM = {"xcup": (14, 32, 8), "ecp5": (4, 16, 6), "gowin": (4, 16, 4)}
"""Bits, words and LUTs of one LUT RAM cell; iCE40 has none."""
CELLS_PER_BLOCK = {"xcup": 14, "ecp5": 28, "gowin": 28}
"""LUT RAM cells at which Yosys takes a block RAM instead."""
BITS_PER_BLOCK = {"ice40": 64}
"""Up to so many bits for each block RAM that it would take, Yosys makes a memory of flip-flops, where LUTs are no RAM."""


def blocks(family: str, memory: Memory) -> float:
    """Block RAMs of one memory; halves of a 36-Kibit block count (xcup)."""
    copies = ceil(memory.reads / 2) if memory.rom and family != "ice40" else memory.reads  # the port that writes is free to read a ROM
    if family == "xcup":
        halves = [(w // 2 if w > 1 else 1, d if w > 1 else d // 2) for w, d in BLOCK_SHAPES["xcup"]]
        return copies * min(ceil(memory.width / w) * ceil(memory.depth / d) for w, d in halves) / 2
    return copies * min(ceil(memory.width / w) * ceil(memory.depth / d) for w, d in BLOCK_SHAPES[family])


def lutram_cells(family: str, memory: Memory) -> int:
    bits, words, _ = LUTRAM[family]
    return memory.reads * ceil(memory.width / bits) * ceil(memory.depth / words)


SLOWEST_PATH_NS = {"xcup": (3.97, 3.97), "ecp5": (16.72, None)}
"""The slowest path of machines of a family, for one text and for several, which hardly depends on their size: xcup, of those in
docs/results that were synthesised (`tritloom bench --synth`, cell delays and an allowance for routing, with the clock's uncertainty); ecp5,
of the one that was placed and routed (`tritloom build --model models/stories-260k --board ecp5-85f`). None: not known."""

ULTRA_SHAPE, ULTRA_KIBIT = (72, 4096), 288
"""Width and words of an UltraRAM (xcup), and its Kibit."""


def memory_cost(family: str, memory: Memory) -> Stored:
    """What memories of one kind cost."""
    n = memory.count
    if memory.ultra and family == "xcup":
        width, depth = ULTRA_SHAPE
        return Stored(uram=n * ceil(memory.width / width) * ceil(memory.depth / depth))
    need = blocks(family, memory)
    if family in LUTRAM:
        cells = lutram_cells(family, memory)
        small = memory.at_once or (not memory.rom and cells < CELLS_PER_BLOCK[family] * need)
        return Stored(lut=n * cells * LUTRAM[family][2]) if small else Stored(bram=n * need)
    bits = memory.width * memory.depth
    if memory.at_once or (not memory.rom and bits <= BITS_PER_BLOCK[family] * need):
        # A flip-flop a bit, with its own enable; four words to choose from take two 4-input LUTs a bit, and so on as a tree.
        return Stored(lut=n * memory.reads * memory.width * ceil(2 * (memory.depth - 1) / 3), ff=n * bits)
    return Stored(bram=n * need)


def memories(config: BuildConfig) -> dict[str, list[Memory]]:
    """The memories of each unit, as rtl/ declares them."""
    c, s = config, config.shape
    v, p, m, a, d, ultra = c.vector_lanes, c.lanes, c.mem_bytes, c.attention_macs, c.dot_lanes, c.ultra_units
    slots, step_bits = c.groups * p, c.rows_per_cycle * c.acc_bits
    steps = c.groups * c.result_turns * ceil(max(c.result_rows, v) / c.rows_per_cycle)
    id_bits = (s.vocab - 1).bit_length()
    together, alone = min(c.result_lanes, RESULT_LANES), c.result_lanes % min(c.result_lanes, RESULT_LANES)
    matmul = [Memory(8 * v, slots * ceil(s.max_inputs / v), ultra=ultra),
              Memory(step_bits, ceil(c.longest_block / c.rows_per_cycle), p),
              Memory(together * step_bits, ceil(steps / c.banks), c.result_lanes // together * c.banks, ultra=ultra)]
    matmul += [Memory(29, 4), Memory(11, 4)]
    if alone:
        matmul.append(Memory(alone * step_bits, ceil(steps / c.banks), c.banks, ultra=ultra))
    if c.table_form != "addsub":
        depth = 32 if c.table_form == "symmetric14" else 64
        matmul.append(Memory(10, depth, p * c.tables * c.rows_per_cycle))
    widest = max(s.hidden, s.q_size)
    beat_words = max(1, m // (2 * v))
    gains = 2 * s.hidden + (s.q_size + s.ffn if s.sub_norms else 0)
    word = a // c.attention_rows
    scale_beats = c.kv_scale_block_bytes // m
    vector = [
        Memory(16 * v, ceil((gains + slots * s.head_dim) / v / beat_words), beat_words),
        Memory(32 * v, slots * ceil(s.hidden / v), ultra=ultra), Memory(32 * v, p * ceil(max(s.ffn, s.q_size) / v), ultra=ultra),
        Memory(9 * m + 33, c.write_fifo_beats), Memory(64, c.kv_write_rows),
        Memory(28, slots), Memory(28, p), Memory(5, slots), Memory(28, 4, 5), Memory(12, 4),
    ]
    if c.result_parts > 1:
        vector.append(Memory(v * c.acc_bits, max(2, s.head_dim // v) << KEPT_BITS))
    if s.activation == "silu":
        vector.append(Memory(27, 1024, reads=v // 2, rom=True))
    dot = [
        Memory(8 * a, p * ceil(widest / a)), Memory(26, p * s.heads), Memory(8 * m, 2 * scale_beats), Memory(8 * m, max(2, scale_beats)),
        Memory(26, 32), Memory(8 * a, ceil(widest / a), d), Memory(17 * c.attention_rows, 32 // c.attention_rows, d), Memory(22, 32, d),
        Memory(16, 1024, d, rom=True), Memory(35 * word, max(2, s.head_dim // word), d), Memory(44 * d, 16),
        Memory(10 + (CHUNK + d - 1).bit_length() + d, 16), Memory(s.context.bit_length() + 33 + d, d + 1),
    ]
    entry, kept = 44 + id_bits, max(2, p)
    sampler = [Memory(16, 1024, rom=True), Memory(entry, p * c.sampler_candidates), Memory(32, 512, 2, rom=True), Memory(60 + id_bits, 32)]
    sampler += [Memory(width, kept, at_once=True) for width in (78, entry + 16, entry + 4, 26, 44, 16 + id_bits)]
    control = [Memory(64, c.program_words), Memory(32, 16, reads=4), Memory(32, SCRATCH_WORDS * p), Memory(32, 63), Memory(64, 63),
               Memory(17, 16), Memory(8 * m, 4)]
    memory = [Memory(64, 256), Memory(48, 8), Memory(8, 4)]
    if c.memory == "onchip":
        words = c.onchip_bytes // m  # each byte can be written alone: UltraRAM has nine bits for it
        memory += [Memory(9 * m, words, ultra=True) if c.ultra_ram else Memory(8, words, m),
                   Memory(8 * m + 2, c.weight_fifo_beats), Memory(8 * m, c.read_fifo_beats)]
    else:
        port = m // c.mem_ports
        memory += [Memory(8 * port + 2, c.weight_fifo_beats, c.mem_ports), Memory(8 * port, c.read_fifo_beats, c.mem_ports),
                   Memory(3, 16, c.mem_ports)]
    shortlist = []
    if c.shortlist:
        row = id_bits + (127 * s.hidden).bit_length() + 2
        shortlist = [Memory(row, c.shortlist_queue), Memory(2 * row, max(2, c.shortlist // 2), at_once=True), Memory(id_bits, 64)]
    return {"matmul": matmul, "vector": vector, "dot": dot, "sampler": sampler, "memory": memory, "control": control,
            "shortlist": shortlist}


def terms(config: BuildConfig) -> dict[str, dict[str, float]]:
    """What a unit's logic grows with: its lanes, look-ups, multipliers, ...; `kibit`: of the memory on chip, for
    the more block RAMs stand on each other, the more outputs there are to choose from."""
    c = config
    p, t, q, v, a, m, d = c.lanes, c.tables, c.rows_per_cycle, c.vector_lanes, c.attention_macs, c.mem_bytes, c.dot_lanes
    return {
        "matmul": {"lookup": p * t * q, "table": p * t, "code": t * q, "row": p * max(q, v), "one": 1},
        "vector": {"element": v, "slot": p, "beat": m, "one": 1},
        "dot": {"mac": d * a, "accumulator": d * a / c.attention_rows, "element": v, "slot": d, "beat": m, "one": 1},
        "sampler": {"candidate": c.sampler_candidates, "one": 1},
        "memory": {"beat": m, "port": c.mem_ports if c.memory == "axi" else 0, "kibit": c.onchip_bytes / 128, "one": 1},
        "control": {"beat": m, "one": 1},
        "shortlist": {"element": v, "one": 1} if c.shortlist else {"element": 0, "one": 0},
    }


COEFFICIENTS: dict[str, dict[str, dict[str, dict[str, float]]]] = json.loads(
    (Path(__file__).resolve().parent / "coefficients.json").read_text(encoding="utf-8"))["coefficients"]
"""By family, unit and kind: coefficient of each term. Made by `python -m tritloom.gen.fit.calibrate`."""

FORM_LUTS = {"symmetric14": 1.0, "full27": 1.0, "addsub": 1.0}
"""Logic of a look-up in other table forms, relative to symmetric14 (docs/results: bench --unit tlmm --synth)."""


def unit_resources(config: BuildConfig, family: str) -> dict[str, dict[str, float]]:
    """LUTs, flip-flops, block RAM and UltraRAM (Kibit) and multipliers by unit."""
    if family not in FAMILIES:
        raise ConfigError(f"no costs for family {family!r}: there are {', '.join(FAMILIES)}")
    grows, kept = terms(config), memories(config)
    result: dict[str, dict[str, float]] = {}
    for unit in UNITS:
        # A term that is new has no coefficient until the model is fitted again.
        cost = {kind: sum(COEFFICIENTS[family][unit][kind].get(name, 0) * value for name, value in grows[unit].items()) for kind in KINDS}
        result[unit] = _with_memories(family, cost, kept[unit])
    return result


def stored(family: str, kept: Iterable[Memory]) -> Stored:
    """What memories cost together."""
    return Stored(*(sum(part) for part in zip(*(memory_cost(family, memory) for memory in kept), strict=True)))


def _with_memories(family: str, logic: dict[str, float], kept: Iterable[Memory]) -> dict[str, float]:
    spent = stored(family, kept)
    return {"lut": logic["lut"] + spent.lut, "ff": logic["ff"] + spent.ff, "bram": spent.bram * BLOCK_KIBIT[family],
            "uram": spent.uram * ULTRA_KIBIT, "dsp": logic["dsp"]}


def resources(config: BuildConfig, family: str) -> dict[str, int]:
    """Projected LUTs, flip-flops, block RAM and UltraRAM in Kibit, and multipliers of the whole machine."""
    units = unit_resources(config, family).values()
    return {kind: round(sum(unit[kind] for unit in units)) for kind in ("lut", "ff", "bram", "uram", "dsp")}
