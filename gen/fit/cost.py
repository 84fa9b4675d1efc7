"""What a configuration costs in a fabric: projections, calibrated on synthesis of the real units.

A unit's LUTs, flip-flops and multipliers are a sum of terms (lanes, look-ups, bytes of a beat, ...) with
coefficients per family in coefficients.json, fitted to the measured points in docs/results/unit_costs.json.
The memories are those that the units' parameter records publish, counted one by one: each goes to block RAM, to LUTs or, where LUTs are
no RAM, to flip-flops as Yosys would map it.

`python -m tritloom.gen.fit.calibrate` measures the points, makes the coefficients, and compares both.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import NamedTuple

from tritloom.firmware.config import CHUNK, KEPT_BITS, BuildConfig, ConfigError
from tritloom.rtl.machine import MachineParameters
from tritloom.rtl.parameters import MemoryUse

__all__ = ["COEFFICIENTS", "FAMILIES", "KINDS", "UNITS", "memories", "memory_cost", "resources", "terms", "unit_resources"]

UNITS = ("matmul", "vector", "dot", "sampler", "memory", "control", "shortlist")
"""Top-level units; control is the sequencer, the registers, the routers and what joins all."""
KINDS = ("lut", "ff", "dsp")
FAMILIES = ("xcup", "ecp5", "gowin", "ice40")


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


def blocks(family: str, memory: MemoryUse) -> float:
    """Block RAMs of one memory; halves of a 36-Kibit block count (xcup). Each read port has a copy of its own."""
    rom = memory.kind == "rom" and family != "ice40"
    copies = ceil(memory.read_ports / 2) if rom else memory.read_ports  # the port that writes is free to read a ROM
    if family == "xcup":
        halves = [(w // 2 if w > 1 else 1, d if w > 1 else d // 2) for w, d in BLOCK_SHAPES["xcup"]]
        return copies * min(ceil(memory.width / w) * ceil(memory.depth / d) for w, d in halves) / 2
    return copies * min(ceil(memory.width / w) * ceil(memory.depth / d) for w, d in BLOCK_SHAPES[family])


def lutram_cells(family: str, memory: MemoryUse) -> int:
    """LUT RAM cells of one memory."""
    bits, words, _ = LUTRAM[family]
    return memory.read_ports * ceil(memory.width / bits) * ceil(memory.depth / words)


SLOWEST_PATH_NS = {"xcup": (3.97, 3.97), "ecp5": (16.72, None)}
"""The slowest path of machines of a family, for one text and for several, which hardly depends on their size: xcup, of those in
docs/results that were synthesised (`tritloom bench --synth`, cell delays and an allowance for routing, with the clock's uncertainty); ecp5,
of the one that was placed and routed (`tritloom build --model models/stories-260k --board ecp5-85f`). None: not known."""

ULTRA_SHAPE, ULTRA_KIBIT = (72, 4096), 288
"""Width and words of an UltraRAM (xcup), and its Kibit."""


def memory_cost(family: str, memory: MemoryUse) -> Stored:
    """What memories of one kind cost."""
    n, parts = memory.count, memory.write_parts
    if memory.kind == "ultra" and family == "xcup":
        width, depth = ULTRA_SHAPE
        bits = memory.width if parts == 1 else memory.width * 9 // 8  # nine bits for each byte that is written alone
        return Stored(uram=n * ceil(bits / width) * ceil(memory.depth / depth))
    if parts > 1:
        return memory_cost(family, replace(memory, width=memory.width // parts, count=n * parts, write_parts=1))
    need = blocks(family, memory)
    if family in LUTRAM:
        cells = lutram_cells(family, memory)
        small = memory.kind == "async" or (memory.kind != "rom" and cells < CELLS_PER_BLOCK[family] * need)
        return Stored(lut=n * cells * LUTRAM[family][2]) if small else Stored(bram=n * need)
    bits = memory.width * memory.depth
    if memory.kind == "async" or (memory.kind != "rom" and bits <= BITS_PER_BLOCK[family] * need):
        # A flip-flop a bit, with its own enable; four words to choose from take two 4-input LUTs a bit, and so on as a tree.
        return Stored(lut=n * memory.read_ports * memory.width * ceil(2 * (memory.depth - 1) / 3), ff=n * bits)
    return Stored(bram=n * need)


UNIT_OF = {"sequencer": "control", "registers": "control", "routing": "control"}
"""Units that count together, by submodule of the top; the others count alone."""


def memories(config: BuildConfig) -> dict[str, list[MemoryUse]]:
    """The memories of each of UNITS, as their parameter records publish them."""
    found: dict[str, list[MemoryUse]] = {unit: [] for unit in UNITS}
    for name, published in MachineParameters.of(config).memories().items():
        found[UNIT_OF.get(name, name)] += published
    found["vector"], found["dot"] = _vector(config), _dot(config)
    return found


def _vector(config: BuildConfig) -> list[MemoryUse]:
    c, s = config, config.shape
    v, p, m, kind = c.vector_lanes, c.lanes, c.mem_bytes, "ultra" if c.ultra_units else "ram"
    slots, beat_words = c.groups * p, max(1, m // (2 * v))
    gains = 2 * s.hidden + (s.q_size + s.ffn if s.sub_norms else 0)
    found = [
        MemoryUse(name="coefficients", width=16 * v, depth=ceil((gains + slots * s.head_dim) / v / beat_words), count=beat_words),
        MemoryUse(name="x", width=32 * v, depth=slots * ceil(s.hidden / v), kind=kind),
        MemoryUse(name="h", width=32 * v, depth=p * ceil(max(s.ffn, s.q_size) / v), kind=kind),
        MemoryUse(name="kv.rows", width=9 * m + 33, depth=c.write_fifo_beats), MemoryUse(name="kv.scales", width=64, depth=c.kv_write_rows),
        MemoryUse(name="code_scale", width=28, depth=slots), MemoryUse(name="work_scale", width=28, depth=p),
        MemoryUse(name="residual_left", width=5, depth=slots), MemoryUse(name="scale", width=28, depth=4, count=5),
        MemoryUse(name="gain_exponent", width=12, depth=4),
    ]
    if c.result_parts > 1:
        found.append(MemoryUse(name="kept", width=v * c.acc_bits, depth=max(2, s.head_dim // v) << KEPT_BITS))
    if s.activation == "silu":
        found.append(MemoryUse(name="gated.sigmoid", width=27, depth=1024, read_ports=v // 2, kind="rom"))
    return found


def _dot(config: BuildConfig) -> list[MemoryUse]:
    c, s = config, config.shape
    p, m, a, d, word = c.lanes, c.mem_bytes, c.attention_macs, c.dot_lanes, c.attention_macs // c.attention_rows
    widest, scale_beats = max(s.hidden, s.q_size), c.kv_scale_block_bytes // m
    return [
        MemoryUse(name="activations", width=8 * a, depth=p * ceil(widest / a)), MemoryUse(name="query_scales", width=26, depth=p * s.heads),
        MemoryUse(name="key_scales", width=8 * m, depth=2 * scale_beats),
        MemoryUse(name="value_beats", width=8 * m, depth=max(2, scale_beats)),
        MemoryUse(name="value_scales", width=26, depth=32), MemoryUse(name="dot.vector", width=8 * a, depth=ceil(widest / a), count=d),
        MemoryUse(name="dot.weights", width=17 * c.attention_rows, depth=32 // c.attention_rows, count=d),
        MemoryUse(name="score.scores", width=22, depth=32, count=d),
        MemoryUse(name="softmax.table", width=16, depth=1024, count=d, kind="rom"),
        MemoryUse(name="dot.outputs", width=35 * word, depth=max(2, s.head_dim // word), count=d),
        MemoryUse(name="logits", width=44 * d, depth=16),
        MemoryUse(name="control.job_queue", width=10 + (CHUNK + d - 1).bit_length() + d, depth=16),
        MemoryUse(name="control.runs", width=s.context.bit_length() + 33 + d, depth=d + 1),
        *([MemoryUse(name="ids", width=(s.vocab - 1).bit_length(), depth=64)] if c.shortlist else []),
    ]


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


Coefficients = dict[str, dict[str, dict[str, dict[str, float]]]]

FILE = Path(__file__).resolve().parent / "coefficients.json"
COEFFICIENTS: Coefficients = json.loads(FILE.read_text(encoding="utf-8"))["coefficients"]
"""By family, unit and kind: coefficient of each term. Made by `python -m tritloom.gen.fit.calibrate`."""

FORM_LUTS = {"symmetric14": 1.0, "full27": 1.0, "addsub": 1.0}
"""Logic of a look-up in other table forms, relative to symmetric14 (docs/results: bench --unit tlmm --synth)."""


def unit_resources(config: BuildConfig, family: str, coefficients: Coefficients = COEFFICIENTS) -> dict[str, dict[str, float]]:
    """LUTs, flip-flops, block RAM and UltraRAM (Kibit) and multipliers by unit."""
    if family not in FAMILIES:
        raise ConfigError(f"no costs for family {family!r}: there are {', '.join(FAMILIES)}")
    grows, kept = terms(config), memories(config)
    result: dict[str, dict[str, float]] = {}
    for unit in UNITS:
        # A term that is new has no coefficient until the model is fitted again.
        each = coefficients[family][unit]
        cost = {kind: sum(each[kind].get(name, 0) * value for name, value in grows[unit].items()) for kind in KINDS}
        result[unit] = _with_memories(family, cost, kept[unit])
    return result


def stored(family: str, kept: Iterable[MemoryUse]) -> Stored:
    """What memories cost together."""
    return Stored(*(sum(part) for part in zip(*(memory_cost(family, memory) for memory in kept), strict=True)))


def _with_memories(family: str, logic: dict[str, float], kept: Iterable[MemoryUse]) -> dict[str, float]:
    spent = stored(family, kept)
    return {"lut": logic["lut"] + spent.lut, "ff": logic["ff"] + spent.ff, "bram": spent.bram * BLOCK_KIBIT[family],
            "uram": spent.uram * ULTRA_KIBIT, "dsp": logic["dsp"]}


def resources(config: BuildConfig, family: str, coefficients: Coefficients = COEFFICIENTS) -> dict[str, int]:
    """Projected LUTs, flip-flops, block RAM and UltraRAM in Kibit, and multipliers of the whole machine."""
    units = unit_resources(config, family, coefficients).values()
    return {kind: round(sum(unit[kind] for unit in units)) for kind in ("lut", "ff", "bram", "uram", "dsp")}
