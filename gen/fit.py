"""Choose a configuration for a model and a board, and say what it will cost.

`fit` enumerates the shapes of the ternary engine that the board's memory can feed and takes the one with
the fewest cycles per token, then the fewest lookups; lanes go down until the device's resources suffice.
Predictions are projections: cycles from the units' documented latencies, resources from `gen.cost`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from math import ceil
from typing import Any

from tritloom.boards.board import Board, load
from tritloom.firmware.config import CHUNK, TRITS, BuildConfig, ConfigError, ModelShape
from tritloom.firmware.layout import MemoryMap, memory_map
from tritloom.gen.cost import resources
from tritloom.gen.spec import ModelSpec

CONTEXT_FOR_SPEED = 128
"""Positions in the cache for which decode speed is predicted."""
PROMPT_FOR_SPEED = 64
"""Prompt length for which the time to the first token is predicted."""
MEMORY_EFFICIENCY = {"ddr": 0.95, "ideal": 1.0, "kv260": 0.99, "kv260-optimistic": 0.99, "kv260-pessimistic": 0.8}
"""Share of the beat rate that long sequential reads reach (sim/memory.py)."""
BUILD_CYCLES = 14
"""Cycles that building a symmetric table takes (full tables: twice)."""


@dataclass(frozen=True)
class FitResult:
    """`binds`: what limits it (an exceeded resource when it does not fit, else what bounds the decode speed);
    `predicted`: projected resources and speed; `available`: the device's resources."""

    fits: bool
    binds: str
    config: BuildConfig
    memory_map: MemoryMap
    predicted: dict[str, float]
    available: dict[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {"fits": self.fits, "binds": self.binds, "config": self.config.to_dict() | {"digest": f"{self.config.digest:08x}"},
                "predicted": self.predicted, "available": self.available, "memory_bytes": self.memory_map.total_bytes}


def cycles_per_pass(config: BuildConfig, context: int, tokens: int, head: bool) -> dict[str, float]:
    """Projected cycles per unit of one pass of `tokens` tokens, the last at position context-1."""
    c, s = config, config.shape
    build = {"symmetric14": BUILD_CYCLES, "full27": 2 * BUILD_CYCLES, "addsub": 0}[c.table_form]
    tile_cycles = TRITS * c.tables + build + 2

    def matmul(rows: int, inputs: int) -> float:
        return tile_cycles + ceil(inputs / (TRITS * c.tables)) * max(ceil(rows / c.rows_per_cycle), tile_cycles) + 12

    def gains(length: int) -> float:
        return ceil(2 * length / c.mem_bytes) + ceil(32 / c.mem_bytes) + 4

    v = c.vector_lanes
    vector = s.layers * (
        2 * gains(s.hidden) + gains(s.ffn if s.sub_norms else 0)
        + tokens * (2 * (2 * s.hidden / v + 60) + (2 * s.q_size / v + 60) + (2 * s.ffn / v + 60)
                    + max(s.qkv_rows / v, 20 * (s.heads + 2 * s.kv_heads)) + s.qkv_rows / v + 2 * (s.hidden / v + 15) + s.ffn * 2 / v + 15))
    passes = s.kv_heads * (ceil(s.group / c.lanes) if tokens == 1 else s.group)
    chunks = ceil(context / CHUNK)
    dot = s.layers * passes * (2 * context * s.head_dim / c.attention_macs + 25 * chunks + 40)
    result = {
        "matmul": s.layers * sum(matmul(rows, inputs) for rows, inputs in (
            (s.qkv_rows, s.hidden), (s.hidden, s.q_size), (2 * s.ffn, s.hidden), (s.hidden, s.ffn))),
        "vector": vector,
        "attention": dot,
    }
    if head:
        result["head"] = ceil(s.vocab / c.group_rows) * c.head_group_bytes / c.attention_macs
    return result


def predict(config: BuildConfig, layout: MemoryMap, board: Board, context: int | None = None) -> tuple[dict[str, float], str]:
    """Projected decode speed and time to first token, and what bounds decode ("memory" or the busiest unit)."""
    context = min(CONTEXT_FOR_SPEED, config.shape.context) if context is None else context
    efficiency = MEMORY_EFFICIENCY[board.timing] if config.memory == "axi" else 1.0
    token = cycles_per_pass(config, context, 1, head=True)
    beats = layout.token_beats / efficiency
    units = sum(token.values())
    decode = max(beats, units)
    prompt = min(PROMPT_FOR_SPEED, config.shape.context)
    first, done = 0.0, 0
    while done < prompt:
        count = min(config.lanes, prompt - done)
        done += count
        last = done == prompt
        one = sum(cycles_per_pass(config, done, count, head=last).values())
        first += max(one, (layout.token_beats if last else layout.layers_beats) / efficiency)
    predicted = {
        "decode_cycles_per_token": decode,
        "decode_tokens_per_s": config.clock_hz / decode,
        "ttft_s": first / config.clock_hz,
        "memory_share": layout.token_beats / decode,
    }
    stream = layout.token_beats / efficiency
    binds = "memory" if stream > 0.8 * decode else max(token, key=lambda unit: token[unit])
    return predicted, binds


def _largest_power(limit: int, *multiples: int) -> int:
    """The largest power of two up to `limit` that divides every one of `multiples`."""
    value = 1
    while 2 * value <= limit and all(m % (2 * value) == 0 for m in multiples):
        value *= 2
    return value


def _engine_shapes(shape_config: dict[str, Any], packing: str, mem_bytes: int) -> list[tuple[int, int]]:
    """(tables, rows_per_cycle) pairs whose word fits a beat, none dominated by one more table."""
    pairs = []
    for rows in (1, 2, 4, 8, 16):
        best = 0
        for tables in range(1, 65):
            n = tables * rows
            size = ceil(5 * n / 8) if packing == "index5" else 3 * (n // 5) + min(n % 5, 3)
            if size <= mem_bytes:
                best = tables
                pairs.append((tables, rows))
        if not best:
            break
    return pairs


def _dot_shape(shape: ModelShape, mem_bytes: int, fixed: dict[str, Any]) -> tuple[int, int]:
    """(attention_macs, attention_rows): the most multipliers a beat can feed, with as few rows side by side as head_dim allows."""
    lanes = int(fixed.get("vector_lanes", 2))
    most = _largest_power(min(mem_bytes, 64), shape.hidden)
    choices = [(macs, rows) for macs in (most >> i for i in range(most.bit_length())) for rows in (1, 2, 4, 8, 16)
               if fixed.get("attention_macs", macs) == macs and fixed.get("attention_rows", rows) == rows
               and lanes <= macs // rows and shape.head_dim % (macs // rows) == 0 and shape.head_dim * rows // macs >= rows
               and rows <= macs // rows and (rows == 1 or 4 * rows <= mem_bytes)]
    if choices:
        return choices[0]
    return int(fixed.get("attention_macs", most)), int(fixed.get("attention_rows", 1))  # BuildConfig says what is wrong


def _merged(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    return first | second


def fit(spec: ModelSpec, board: Board | str, **overrides: Any) -> FitResult:
    """The configuration for `spec` on `board`; `overrides` fix any field of BuildConfig.

    Raises ConfigError when no configuration exists at all, BoardError for an unknown board.
    """
    board = load(board) if isinstance(board, str) else board
    s = spec.shape
    fixed: dict[str, Any] = {
        "shape": s, "board": board.name, "clock_hz": board.clock_hz, "mem_bytes": board.mem_bytes, "mem_ports": board.mem_ports,
        "memory": board.memory,
    } | board.parameters | {k: v for k, v in overrides.items() if v is not None}
    unknown = sorted(set(fixed) - {f.name for f in dataclasses.fields(BuildConfig)})
    if unknown:
        raise ConfigError(f"unknown configuration field(s): {', '.join(unknown)}")
    mem = int(fixed["mem_bytes"])
    macs, rows = _dot_shape(s, mem, fixed)
    fixed |= {"attention_macs": macs, "attention_rows": rows}
    fixed.setdefault("vector_lanes", _largest_power(min(max(8, mem // 4), macs // rows), s.hidden, s.ffn, s.head_dim))
    if board.memory == "onchip":
        fixed.setdefault("weight_fifo_beats", 16)
        fixed.setdefault("read_fifo_beats", 16)
        fixed.setdefault("sampler_candidates", 16)
    packing = str(fixed.setdefault("packing", "trit5"))

    def build(lanes: int) -> FitResult:
        best: tuple[tuple[float, int], BuildConfig, MemoryMap] | None = None
        error: ConfigError | None = None
        pairs = _engine_shapes(fixed, packing, mem)
        if "tables" in fixed or "rows_per_cycle" in fixed:
            pairs = [(t, q) for t, q in pairs if fixed.get("tables", t) == t and fixed.get("rows_per_cycle", q) == q]
            if not pairs:
                pairs = [(int(fixed.get("tables", 1)), int(fixed.get("rows_per_cycle", 1)))]
        for tables, rows in pairs:
            values = _merged(fixed, {"tables": tables, "rows_per_cycle": rows, "lanes": lanes})
            try:
                if board.memory == "onchip" and "onchip_bytes" not in fixed:
                    draft = BuildConfig(**_merged(values, {"onchip_bytes": mem}))
                    values["onchip_bytes"] = memory_map(draft, tied=spec.tied_embeddings).total_bytes
                config = BuildConfig(**values)
                layout = memory_map(config, tied=spec.tied_embeddings)
            except ConfigError as problem:
                error = problem
                continue
            cycles = cycles_per_pass(config, 1, 1, head=False)["matmul"]
            key = (cycles, tables * rows)
            if best is None or key < best[0]:
                best = key, config, layout
        if best is None:
            raise error or ConfigError(f"no engine shape fits {mem} bytes per cycle")
        _, config, layout = best
        predicted, binds = predict(config, layout, board)
        cost = resources(config, board.family)
        over = [name for name, have in board.resources.items() if cost.get(name, 0) > have]
        predicted = {**cost, **predicted}
        if over:
            binds = ", ".join(f"{name}: {cost[name]:.0f} of {board.resources[name]}" for name in over)
        return FitResult(not over, binds, config, layout, predicted, board.resources)

    if "lanes" in fixed:
        return build(int(fixed["lanes"]))
    for lanes in (4, 2, 1):
        result = build(lanes)
        if result.fits:
            return result
    return result
