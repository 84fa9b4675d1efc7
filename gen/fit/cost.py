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
from math import ceil, inf
from pathlib import Path
from typing import NamedTuple

from tritloom.boards.board import Board
from tritloom.boards.sdram import SdramChip
from tritloom.firmware.config import BuildConfig, ConfigError
from tritloom.gen.tools.synthesis import SMALL
from tritloom.rtl.link.parameters import LinkParameters
from tritloom.rtl.machine import MachineParameters
from tritloom.rtl.parameters import MemoryUse

__all__ = ["AROUND", "COEFFICIENTS", "FAMILIES", "KINDS", "UNITS", "around", "board_resources", "memories", "memory_cost", "resources",
           "surroundings", "terms", "unit_resources"]

UNITS = ("matmul", "vector", "dot", "sampler", "serial", "memory", "control", "shortlist")
"""Top-level units; control is the sequencer, the registers, the routers and what joins all."""
AROUND = ("link", "sdram", "board")
"""What stands around a machine where a whole board is built; board is what joins them, and shows on its LEDs."""
KINDS = ("lut", "ff", "dsp")
FAMILIES = ("xcup", "xc7", "ecp5", "gowin", "ice40")


class Stored(NamedTuple):
    """What memories cost."""

    lut: float = 0
    ff: float = 0
    bram: float = 0
    uram: float = 0


HALVES = ("xcup", "xc7")
"""Families whose block RAMs are two halves that may be used apart."""
BLOCK_SHAPES = {
    "gowin": ((36, 512), (18, 1024), (9, 2048), (4, 4096), (2, 8192), (1, 16384)),
    "ice40": ((16, 256), (8, 512), (4, 1024), (2, 2048)),
    **dict.fromkeys(HALVES, ((72, 512), (36, 1024), (18, 2048), (9, 4096), (4, 8192), (2, 16384), (1, 32768))),
    "ecp5": ((36, 512), (18, 1024), (9, 2048), (4, 4096), (2, 8192), (1, 16384)),
}
BLOCK_KIBIT = {"xcup": 36, "xc7": 36, "ecp5": 16, "gowin": 18, "ice40": 4}
LUTRAM = {"xcup": (8, (14, 32)), "xc7": (4, (6, 32), (3, 64)), "ecp5": (6, (4, 16)), "gowin": (4, (4, 16))}
"""LUTs of one LUT RAM cell, and the bits and words that it may have; iCE40 has none."""
CELLS_PER_BLOCK = {"xcup": 14, "xc7": 28, "ecp5": 28, "gowin": 28}
"""LUT RAM cells at which Yosys takes a block RAM instead."""
for _name, _small in SMALL.items():
    for _table in (BLOCK_SHAPES, BLOCK_KIBIT, LUTRAM, CELLS_PER_BLOCK):
        _table[_small] = _table[_name]  # type: ignore[index]
BITS_PER_BLOCK = {"ice40": 64}
"""Up to so many bits for each block RAM that it would take, Yosys makes a memory of flip-flops, where LUTs are no RAM."""


def blocks(family: str, memory: MemoryUse) -> float:
    """Block RAMs of one memory; halves of a 36-Kibit block count (HALVES). Each read port has a copy of its own."""
    rom = memory.kind == "rom" and family != "ice40"
    copies = ceil(memory.read_ports / 2) if rom else memory.read_ports  # the port that writes is free to read a ROM
    if family in HALVES:
        halves = [(w // 2 if w > 1 else 1, d if w > 1 else d // 2) for w, d in BLOCK_SHAPES[family]]
        return copies * min(ceil(memory.width / w) * ceil(memory.depth / d) for w, d in halves) / 2
    return copies * min(ceil(memory.width / w) * ceil(memory.depth / d) for w, d in BLOCK_SHAPES[family])


def lutram_cells(family: str, memory: MemoryUse) -> int:
    """LUT RAM cells of one memory: a cell is written as a whole."""
    parts = memory.write_parts
    each = min(ceil(memory.width / parts / bits) * ceil(memory.depth / words) for bits, words in LUTRAM[family][1:])
    return memory.read_ports * parts * each


SLOWEST_PATH_NS: dict[str, tuple[tuple[float, float, float], ...]] = {
    "xcup": ((0.6, 8, 3.55), (1.0, 8, 3.79), (0.6, inf, 3.57), (1.0, inf, 3.87)), "xcup-groups": ((0.62, 16, 3.50),),
    "ecp5": ((1.0, inf, 15.53),), "ecp5-small": ((1.0, inf, 20.87),), "gowin-small": ((1.0, inf, 11.49),)}
"""The slowest path of machines of a family that take up to a share of the LUTs and have up to so many vector lanes, the first that
applies: xcup, of those in docs/results that were synthesised (`tritloom bench --synth`: delays of cells, an allowance for nets, the
clock's uncertainty and skew); the others, of whole boards that were routed, with the worst of their seeds (docs/results/boards);
`-small`, of machines with one arithmetic unit; `-groups`, of those for models with scales by groups."""
PASS_THROUGH = {"gowin": 0.6}
"""Share of the flip-flops before which nextpnr puts a LUT: a Gowin's have no other input, and no LUT or carry feeds 3,142 of the 5,273 of
stories-1m on a tang-nano-20k alone."""

ULTRA_SHAPE, ULTRA_KIBIT = (72, 4096), 288
"""Width and words of an UltraRAM (xcup), and its Kibit."""


def memory_cost(family: str, memory: MemoryUse) -> Stored:
    """What memories of one kind cost."""
    n, parts = memory.count, memory.write_parts
    if memory.kind == "ultra" and family == "xcup":
        width, depth = ULTRA_SHAPE
        bits = memory.width if parts == 1 else memory.width * 9 // 8  # nine bits for each byte that is written alone
        return Stored(uram=n * ceil(bits / width) * ceil(memory.depth / depth))
    if parts > 1 and memory.width == 8 * parts:  # Yosys makes a memory of each byte that is written alone, of wider parts it does not
        return memory_cost(family, replace(memory, width=8, count=n * parts, write_parts=1))
    need = blocks(family, memory)
    if family in LUTRAM:
        cells = lutram_cells(family, memory)
        small = memory.kind == "async" or (memory.kind != "rom" and cells < CELLS_PER_BLOCK[family] * need)
        return Stored(lut=n * cells * LUTRAM[family][0]) if small else Stored(bram=n * need)
    bits = memory.width * memory.depth
    if memory.kind == "async" or (memory.kind != "rom" and bits <= BITS_PER_BLOCK[family] * need):
        # A flip-flop a bit, with its own enable; four words to choose from take two 4-input LUTs a bit, and so on as a tree.
        return Stored(lut=n * memory.read_ports * memory.width * ceil(2 * (memory.depth - 1) / 3), ff=n * bits)
    return Stored(bram=n * need)


UNIT_OF = {"reader": "control", "sequencer": "control", "registers": "control", "routing": "control"}
"""Units that count together, by submodule of the top; the others count alone."""


def memories(config: BuildConfig) -> dict[str, list[MemoryUse]]:
    """The memories of each of UNITS, as their parameter records publish them."""
    found: dict[str, list[MemoryUse]] = {unit: [] for unit in UNITS}
    for name, published in MachineParameters.of(config).memories().items():
        found[UNIT_OF.get(name, name)] += published
    return found


OF_GROUPS = ("scaled", "normed", "read")
"""Terms that only models with scales by groups, norms of heads or a ternary head have."""


def terms(config: BuildConfig) -> dict[str, dict[str, float]]:
    """What a unit's logic grows with: its lanes, look-ups, multipliers, ...; `kibit`: of the memory on chip, for
    the more block RAMs stand on each other, the more outputs there are to choose from."""
    c = config
    p, t, q, v, a, m, d = c.lanes, c.tables, c.rows_per_cycle, c.vector_lanes, c.attention_macs, c.mem_bytes, c.dot_lanes
    parallel = int(not c.serial)
    # Rows whose sums meet a scale, elements of heads that are normed, results that a ternary head's reader holds.
    scaled, normed, read = (int(bool(each)) for each in (c.shape.group_size, c.shape.head_norms, c.shape.ternary_head))
    found = {
        "matmul": {"lookup": p * t * q, "table": p * t, "code": t * q, "row": p * max(q, v), "scaled": p * q * scaled, "one": 1},
        "vector": {"element": v, "slot": p, "beat": m, "normed": v * normed, "one": 1},
        "dot": {"mac": d * a, "accumulator": d * a / c.attention_rows, "element": v, "slot": d, "beat": m, "one": 1},
        "sampler": {"candidate": c.sampler_candidates, "one": 1},
        "serial": {"beat": m, "one": 1},
        "memory": {"beat": m, "port": c.mem_ports if c.memory == "axi" else 0, "kibit": c.onchip_bytes / 128, "one": 1},
        "control": {"beat": m, "read": v * read, "one": 1},
        "shortlist": {"element": v, "one": 1},
    }
    there = {"vector": parallel, "dot": parallel, "sampler": parallel, "serial": 1 - parallel, "shortlist": c.shortlist > 0}
    return {unit: grows if there.get(unit, 1) else dict.fromkeys(grows, 0) for unit, grows in found.items()}


Coefficients = dict[str, dict[str, dict[str, dict[str, float]]]]

FILE = Path(__file__).resolve().parent / "coefficients.json"
COEFFICIENTS: Coefficients = json.loads(FILE.read_text(encoding="utf-8"))["coefficients"]
"""By family, unit and kind: coefficient of each term. Made by `python -m tritloom.gen.fit.calibrate`."""

FORM_LUTS = {"symmetric14": 1.0, "full27": 1.0, "addsub": 1.0}
"""Logic of a look-up in other table forms, relative to symmetric14 (docs/results: bench --unit tlmm --synth)."""


def unit_resources(config: BuildConfig, family: str, coefficients: Coefficients = COEFFICIENTS) -> dict[str, dict[str, float]]:
    """LUTs, flip-flops, block RAM and UltraRAM (Kibit) and multipliers by unit."""
    if family not in (*FAMILIES, *SMALL.values()):
        raise ConfigError(f"no costs for family {family!r}: there are {', '.join(FAMILIES)}")
    if config.serial and family not in SMALL.values():
        if family not in SMALL:
            raise ConfigError(f"no costs of machines with vector_lanes=1 on {family!r}: there are those on {', '.join(SMALL)}")
        family = SMALL[family]
    grows, kept = terms(config), memories(config)
    result: dict[str, dict[str, float]] = {}
    for unit in UNITS:
        # A term that is new has no coefficient until the model is fitted again.
        each = coefficients.get(family, {}).get(unit, {})
        cost = {kind: sum(each.get(kind, {}).get(name, 0) * value for name, value in grows[unit].items()) for kind in KINDS}
        result[unit] = _with_memories(family, cost, kept[unit])
    return result


def surroundings(board: Board, config: BuildConfig) -> dict[str, tuple[dict[str, float], tuple[MemoryUse, ...]]]:
    """Of the units around a machine on a board, what their logic grows with, and their memories; none if no whole board is built."""
    if board.wiring is None:
        return {}
    link = LinkParameters(clock_hz=config.clock_hz, baud=board.wiring.baud)
    found: dict[str, tuple[dict[str, float], tuple[MemoryUse, ...]]] = {"link": ({"one": 1}, link.memories()), "board": ({"one": 1}, ())}
    if config.memory == "axi" and isinstance(board.wiring.sdram, SdramChip):  # a LiteDRAM core's cost is not known
        found["sdram"] = {"beat": config.mem_bytes, "pin": board.wiring.sdram.width, "one": 1}, ()
    return found


def around(board: Board, config: BuildConfig, coefficients: Coefficients = COEFFICIENTS) -> dict[str, dict[str, float]]:
    """The same of the units around a machine as `unit_resources` gives of its own."""
    result: dict[str, dict[str, float]] = {}
    for unit, (grows, kept) in surroundings(board, config).items():
        each = coefficients[board.family].get(unit, {})  # none until the model is fitted to the first such board
        cost = {kind: sum(each.get(kind, {}).get(name, 0) * value for name, value in grows.items()) for kind in KINDS}
        result[unit] = _with_memories(board.family, cost, kept)
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
    return _sum(unit_resources(config, family, coefficients))


def board_resources(config: BuildConfig, board: Board) -> dict[str, int]:
    """The same with what stands around the machine on a board, as the tool counts that places it."""
    found = _sum(unit_resources(config, board.family) | around(board, config))
    return found | {"lut": found["lut"] + round(PASS_THROUGH.get(board.family, 0) * found["ff"])}


def _sum(units: dict[str, dict[str, float]]) -> dict[str, int]:
    return {kind: round(sum(unit[kind] for unit in units.values())) for kind in ("lut", "ff", "bram", "uram", "dsp")}
