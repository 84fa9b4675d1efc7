"""What a configuration costs in a fabric: projections, calibrated on synthesis of the real units.

A unit's LUTs, flip-flops and multipliers are a sum of terms (lanes, look-ups, bytes of a beat, ...) with
coefficients per family in COEFFICIENTS, fitted to the measured points in docs/results/unit_costs.json.
Memories are counted one by one: each goes to block RAM or to LUTs as Yosys would map it.

`calibrate` measures the points again; `fit_coefficients` makes the table.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from tritloom.firmware.config import BuildConfig, ConfigError
from tritloom.firmware.isa import SCRATCH_WORDS

__all__ = ["FAMILIES", "POINTS", "UNITS", "Memory", "calibrate", "fit_coefficients", "memories", "resources", "terms", "unit_resources"]

POINTS = Path(__file__).resolve().parent.parent / "docs" / "results" / "unit_costs.json"
UNITS = ("matmul", "vector", "dot", "sampler", "memory", "control")
"""Top-level units; control is the sequencer, the registers and the routers."""
KINDS = ("lut", "ff", "dsp")
FAMILIES = ("xcup", "ecp5", "gowin", "ice40")
SCALED = {"gowin": 1.0, "ice40": 1.15}
"""Families without points of their own: LUTs as a multiple of ecp5's (all have 4-input LUTs with carry; ice40 has no wide muxes)."""


@dataclass(frozen=True)
class Memory:
    """`count` memories of `depth` words of `width` bits; `rom`: cannot become LUT RAM."""

    width: int
    depth: int
    count: int = 1
    rom: bool = False


BLOCK_SHAPES = {
    "xcup": ((72, 512), (36, 1024), (18, 2048), (9, 4096), (4, 8192), (2, 16384), (1, 32768)),
    "ecp5": ((36, 512), (18, 1024), (9, 2048), (4, 4096), (2, 8192), (1, 16384)),
}
BLOCK_KIBIT = {"xcup": 36, "ecp5": 16}
LUTRAM = {"xcup": (14, 32, 8), "ecp5": (4, 16, 6)}
"""Bits, words and LUTs of one LUT RAM cell."""
CELLS_PER_BLOCK = {"xcup": 14, "ecp5": 28}
"""LUT RAM cells at which Yosys takes a block RAM instead."""


def blocks(family: str, memory: Memory) -> float:
    """Block RAMs of one memory; halves of a 36-Kibit block count (xcup)."""
    if family == "xcup":
        halves = [(w // 2 if w > 1 else 1, d if w > 1 else d // 2) for w, d in BLOCK_SHAPES["xcup"]]
        return min(ceil(memory.width / w) * ceil(memory.depth / d) for w, d in halves) / 2
    return min(ceil(memory.width / w) * ceil(memory.depth / d) for w, d in BLOCK_SHAPES["ecp5"])


def lutram_cells(family: str, memory: Memory) -> int:
    bits, words, _ = LUTRAM[family]
    return ceil(memory.width / bits) * ceil(memory.depth / words)


def memory_cost(family: str, memory: Memory) -> tuple[float, float]:
    """(LUTs, block RAMs) of memories of one kind."""
    cells, need = lutram_cells(family, memory), blocks(family, memory)
    if memory.rom or cells >= CELLS_PER_BLOCK[family] * need:
        return 0.0, memory.count * need
    return memory.count * cells * LUTRAM[family][2], 0.0


def memories(config: BuildConfig) -> dict[str, list[Memory]]:
    """The memories of each unit, as rtl/ declares them."""
    c, s = config, config.shape
    v, p, m, a = c.vector_lanes, c.lanes, c.mem_bytes, c.attention_macs
    banks = max(1, v // c.rows_per_cycle)
    steps = ceil(s.max_rows / c.rows_per_cycle)
    matmul = [Memory(8 * v, ceil(s.max_inputs / v), p), Memory(c.rows_per_cycle * c.acc_bits, ceil(steps / banks), banks * p)]
    if c.table_form != "addsub":
        depth = 32 if c.table_form == "symmetric14" else 64
        matmul.append(Memory(10, depth, p * c.tables * c.rows_per_cycle))
    widest = max(s.hidden, s.q_size)
    vector = [
        Memory(16 * v, ceil(max(s.hidden, s.ffn) / v) + 2 * p),
        Memory(32 * v, p * ceil(s.hidden / v)), Memory(32 * v, p * ceil(max(s.ffn, s.q_size) / v)),
        Memory(8 * m + 65, 8), Memory(64, 2), Memory(28, p, 2),
    ]
    dot = [
        Memory(8 * a, p * ceil(widest / a)), Memory(26, p * s.heads), Memory(8 * m, ceil(64 / m) * 2), Memory(8 * m, max(2, m // a)),
        Memory(26, 32), Memory(8 * a, ceil(widest / a), p), Memory(17, 32, p), Memory(22, 32, p), Memory(16, 1024, p, rom=True),
        Memory(35 * min(v, a), max(2, s.head_dim // v), p), Memory(44 * p, 16),
    ]
    ids = 44 + s.vocab.bit_length()
    sampler = [Memory(16, 1024, rom=True), Memory(ids, p * c.sampler_candidates), Memory(32, 512, 2, rom=True), Memory(41, 32),
               Memory(82, p), Memory(ids, p, 2), Memory(17 + 33, p), Memory(26, p)]
    control = [Memory(64, c.program_words), Memory(32, 16, 3), Memory(32, SCRATCH_WORDS * p), Memory(32, 63), Memory(64, 63), Memory(17, 8)]
    memory = [Memory(64, 256), Memory(48, 8)]
    if c.memory == "onchip":
        memory += [Memory(8, c.onchip_bytes // m, m), Memory(8 * m + 2, c.weight_fifo_beats), Memory(8 * m, c.read_fifo_beats)]
    else:
        port = m // c.mem_ports
        memory += [Memory(8 * port + 2, c.weight_fifo_beats, c.mem_ports), Memory(8 * port, c.read_fifo_beats, c.mem_ports),
                   Memory(3, 16, c.mem_ports)]
    return {"matmul": matmul, "vector": vector, "dot": dot, "sampler": sampler, "memory": memory, "control": control}


def terms(config: BuildConfig) -> dict[str, dict[str, float]]:
    """What a unit's logic grows with."""
    c = config
    p, t, q, v, a, m = c.lanes, c.tables, c.rows_per_cycle, c.vector_lanes, c.attention_macs, c.mem_bytes
    return {
        "matmul": {"lookup": p * t * q, "table": p * t, "code": t * q, "row": p * max(q, v), "one": 1},
        "vector": {"element": v, "slot": p, "beat": m, "one": 1},
        "dot": {"mac": p * a, "slot": p, "beat": m, "one": 1},
        "sampler": {"candidate": c.sampler_candidates, "one": 1},
        "memory": {"beat": m, "port": c.mem_ports if c.memory == "axi" else 0, "one": 1},
        "control": {"beat": m, "one": 1},
    }


COEFFICIENTS: dict[str, dict[str, dict[str, dict[str, float]]]] = {
    "ecp5": {
        "matmul": {
            "lut": {"lookup": 100.333, "table": 0.0, "code": 29.167, "row": 0.0, "one": 0.0},
            "ff": {"lookup": 81.75, "table": 0.0, "code": 17.333, "row": 0.0, "one": 0.0},
            "dsp": {"lookup": 0.0, "table": 0.0, "code": 0.0, "row": 0.0, "one": 0.0},
        },
        "vector": {
            "lut": {"element": 1986.917, "slot": 1090.667, "beat": 0.0, "one": 0.0},
            "ff": {"element": 1207.333, "slot": 682.333, "beat": 0.0, "one": 0.0},
            "dsp": {"element": 7.583, "slot": 0.333, "beat": 0.0, "one": 0.0},
        },
        "dot": {
            "lut": {"mac": 807.125, "slot": 107.0, "beat": 0.0, "one": 0.0},
            "ff": {"mac": 506.75, "slot": 0.0, "beat": 240.5, "one": 0.0},
            "dsp": {"mac": 2.25, "slot": 0.0, "beat": 1.25, "one": 0.0},
        },
        "sampler": {
            "lut": {"candidate": 3.5, "one": 2849.0},
            "ff": {"candidate": 4.25, "one": 2079.0},
            "dsp": {"candidate": 0.0, "one": 13.0},
        },
        "memory": {
            "lut": {"beat": 138.875, "port": 572.5, "one": 0.0},
            "ff": {"beat": 95.875, "port": 491.5, "one": 0.0},
            "dsp": {"beat": 0.0, "port": 0.0, "one": 0.0},
        },
        "control": {
            "lut": {"beat": 0.0, "one": 3815.628},
            "ff": {"beat": 7.75, "one": 2115.0},
            "dsp": {"beat": 0.0, "one": 0.0},
        },
    },
    "xcup": {
        "matmul": {
            "lut": {"lookup": 17.276, "table": 30.509, "code": 0.0, "row": 0.0, "one": 186.631},
            "ff": {"lookup": 42.862, "table": 37.162, "code": 0.0, "row": 0.0, "one": 194.684},
            "dsp": {"lookup": 0.0, "table": 0.0, "code": 0.0, "row": 0.0, "one": 0.0},
        },
        "vector": {
            "lut": {"element": 1301.25, "slot": 815.5, "beat": 0.0, "one": 0.0},
            "ff": {"element": 1141.25, "slot": 583.0, "beat": 0.0, "one": 0.0},
            "dsp": {"element": 4.5, "slot": 0.5, "beat": 0.0, "one": 0.0},
        },
        "dot": {
            "lut": {"mac": 145.792, "slot": 1602.333, "beat": 0.0, "one": 0.0},
            "ff": {"mac": 180.167, "slot": 1788.333, "beat": 0.0, "one": 0.0},
            "dsp": {"mac": 1.333, "slot": 5.667, "beat": 0.0, "one": 0.0},
        },
        "sampler": {
            "lut": {"candidate": 3.625, "one": 1860.0},
            "ff": {"candidate": 0.0, "one": 2129.459},
            "dsp": {"candidate": 0.0, "one": 11.0},
        },
        "memory": {
            "lut": {"beat": 0.0, "port": 730.997, "one": 0.0},
            "ff": {"beat": 13.917, "port": 650.333, "one": 0.0},
            "dsp": {"beat": 0.0, "port": 0.0, "one": 0.0},
        },
        "control": {
            "lut": {"beat": 24.5, "one": 1633.0},
            "ff": {"beat": 34.0, "one": 1762.0},
            "dsp": {"beat": 0.0, "one": 0.0},
        },
    },
}
"""By family, unit and kind: coefficient of each term. Made by `fit_coefficients`."""

FORM_LUTS = {"symmetric14": 1.0, "full27": 1.0, "addsub": 1.0}
"""Logic of a look-up in other table forms, relative to symmetric14 (docs/results: bench --unit tlmm --synth)."""


def unit_resources(config: BuildConfig, family: str) -> dict[str, dict[str, float]]:
    """LUTs, flip-flops, block RAM (Kibit) and multipliers by unit."""
    if family not in FAMILIES:
        raise ConfigError(f"no costs for family {family!r}: there are {', '.join(FAMILIES)}")
    known = "xcup" if family == "xcup" else "ecp5"
    scale = SCALED.get(family, 1.0)
    grows, kept = terms(config), memories(config)
    result: dict[str, dict[str, float]] = {}
    for unit in UNITS:
        cost = {kind: sum(COEFFICIENTS[known][unit][kind][name] * value for name, value in grows[unit].items()) for kind in KINDS}
        stored = [memory_cost(known, memory) for memory in kept[unit]]
        lut_ram, bram = (sum(part) for part in zip(*stored, strict=True))
        result[unit] = {"lut": (cost["lut"] + lut_ram) * scale, "ff": cost["ff"], "bram": bram * BLOCK_KIBIT[known], "dsp": cost["dsp"]}
    return result


def resources(config: BuildConfig, family: str) -> dict[str, int]:
    """Projected LUTs, flip-flops, block RAM in Kibit and multipliers of the whole machine."""
    units = unit_resources(config, family).values()
    return {kind: round(sum(unit[kind] for unit in units)) for kind in ("lut", "ff", "bram", "dsp")}


# Calibration --------------------------------------------------------------------------------------------


def unit_designs(config: BuildConfig) -> dict[str, list[str]]:
    """RTLIL of each unit of a machine, its top module called `top`; several texts where a unit has several parts."""
    from tritloom.gen import emit
    from tritloom.rtl.top import Accelerator

    text = emit.to_rtlil(Accelerator(config), "machine")
    modules = {m[1]: m[0] for m in re.finditer(r"(?:^attribute[^\n]*\n)*^module \\(\S+)\n.*?^end\n", text, re.S | re.M)}
    shared = [body for name, body in modules.items() if name.partition(".")[0] != "machine"]
    parts: dict[str, list[str]] = {unit: [] for unit in UNITS}
    for name in sorted(n for n in modules if n.count(".") == 1):
        inside = [body for other, body in modules.items() if other == name or other.startswith(name + ".")]
        design = re.sub(rf"^module \\{re.escape(name)}$", r"module \\top", "".join(inside + shared), flags=re.M)
        unit = name.partition(".")[2]
        parts[unit if unit in UNITS else "control"].append(design)
    return parts


def calibrate(configs: Iterable[tuple[str, BuildConfig, str]], path: Path = POINTS, progress: Callable[[str], None] | None = None) -> None:
    """Synthesise every unit of (name, configuration, family) and add the points to `path`; those it has are left."""
    from tritloom.gen import synth

    points = json.loads(path.read_text(encoding="utf-8"))["points"] if path.exists() else []
    for name, config, family in configs:
        if any(p["config"] == config.to_dict() and p["family"] == family for p in points):
            continue
        units: dict[str, dict[str, float]] = {}
        for unit, designs in unit_designs(config).items():
            units[unit] = {kind: 0.0 for kind in ("lut", "lut_ram", "ff", "bram", "dsp")}
            for design in designs:
                if progress:
                    progress(f"{name} {family} {unit}")
                command = synth.FAMILIES[family].command.format(top="top")
                script = f"read_rtlil design; rename -hide w:*[[]*; {command}; tee -q -o stat.json stat -json"
                cost = synth.resources(synth._run(design, script, 7200), family)
                for kind in units[unit]:
                    units[unit][kind] += cost[kind]
        points.append({"name": name, "family": family, "config": config.to_dict(), "units": units})
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"command": "gen.cost.calibrate", "points": points}, indent=1) + "\n", encoding="utf-8")


def fit_coefficients(points: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """Non-negative coefficients with the least squared relative error, from measured points."""
    table: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    for family in sorted({p["family"] for p in points}):
        mine = [(terms(BuildConfig.from_dict(p["config"])), p["units"]) for p in points if p["family"] == family]
        for unit in UNITS:
            names = list(mine[0][0][unit])
            grows = np.array([[t[unit][name] for name in names] for t, _ in mine], float)
            for kind in KINDS:
                measured = np.array([u[unit][kind] - (u[unit]["lut_ram"] if kind == "lut" else 0) for _, u in mine], float)
                found = _non_negative(grows / np.maximum(measured, 1)[:, None], measured / np.maximum(measured, 1))
                rounded = [round(x, 3) for x in found.tolist()]
                table.setdefault(family, {}).setdefault(unit, {})[kind] = dict(zip(names, rounded, strict=True))
    return table


def _non_negative(a: np.ndarray, b: np.ndarray, rounds: int = 20000) -> np.ndarray:
    """Least squares with x >= 0, one coordinate after the other."""
    x, norms = np.zeros(a.shape[1]), (a * a).sum(0)
    left = b.copy()
    for _ in range(rounds):
        for i in np.flatnonzero(norms):
            step = max(x[i] + a[:, i] @ left / norms[i], 0.0) - x[i]
            x[i] += step
            left -= step * a[:, i]
    return x
