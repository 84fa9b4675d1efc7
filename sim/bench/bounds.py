"""What bounds a token: the bytes that must be streamed, and the engines' work, in cycles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any

from tritloom.firmware.config import ModelShape, round_up
from tritloom.firmware.packing import tile_inputs

__all__ = ["Bounds", "Phase", "bounds", "what"]


@dataclass(frozen=True)
class Phase:
    """Work of one kind: multiply-accumulates, the bytes they read, the cycles that they took, and what the engine could do in one."""

    name: str
    macs: float
    bytes: float
    cycles: float
    peak: float

    @property
    def intensity(self) -> float:
        return self.macs / self.bytes

    @property
    def rate(self) -> float:
        return self.macs / self.cycles


@dataclass(frozen=True)
class Bounds:
    """Least cycles of a measured token (or prompt) by the stream alone and by the engines alone, and what it took."""

    stream: float
    ternary: float
    dot: float
    measured: float
    beat_bytes: int
    phases: tuple[Phase, ...]
    whole: Phase

    @property
    def named(self) -> dict[str, float]:
        """Within a layer each engine needs what the other made, so both take the sum of their times."""
        return {"stream of weights and cache": self.stream, "ternary engine": self.ternary, "dot engine": self.dot,
                "both engines, in turn": self.ternary + self.dot}

    @property
    def limit(self) -> str:
        """The highest of them."""
        return max(self.named, key=lambda name: self.named[name])

    @property
    def least(self) -> float:
        return self.named[self.limit]


def bounds(entry: Mapping[str, Any]) -> Bounds:
    """The bounds of a result that sim/bench/results.py keeps."""
    config, m = entry["configuration"], entry["measured"]  # as it was when measured: maybe no longer a valid one
    s, lanes, count = ModelShape(**config["shape"]), config["lanes"], entry["count"]
    prompt, texts, shared = count if entry["what"] == "prefill" else 0, m.get("texts", 1), m.get("shared", 0)
    passes = [min((n + 1) * lanes, prompt) for n in range(ceil(prompt / lanes))] or [count]  # the last position of each
    used = min(lanes, prompt or texts)
    weights = s.layers * (s.qkv_rows * s.hidden + s.hidden * s.q_size + 2 * s.ffn * s.hidden + s.hidden * s.ffn)
    ternary_peak, head = tile_inputs(config["tables"], s.group_size) * config["rows_per_cycle"], s.vocab * s.hidden
    data, short_list, ternary_head, head_rows = m["bytes"], config.get("shortlist", 0), 0, m["bytes"]["head"]
    if short_list:  # the vocabulary goes through the ternary engine, and only its rows through the dot engine
        head_rows = short_list * (config["mem_bytes"] + round_up(s.hidden, config["mem_bytes"]))
        ternary_head, head = head, short_list * s.hidden
    elif s.ternary_head:
        ternary_head, head, head_rows = (1 if prompt else texts) * head, 0, 0
    dot_lanes = config.get("attention_lanes", 0) or lanes
    # Positions whose keys and values a layer's heads read: of several texts, each by itself, or those that they share once for all.
    if prompt:
        read = s.group * ceil(used / dot_lanes) * sum(passes)
    else:
        read = min(texts * ceil(s.group / dot_lanes) * count, s.group * ceil(texts / dot_lanes) * (shared + texts * (count - shared)))
    attention_lanes = min(dot_lanes, used if prompt else max(s.group, texts))
    attended = sum(range(1, prompt + 1)) if prompt else texts * count
    turns = ceil(texts / dot_lanes)
    dot_macs = texts * head + s.layers * s.q_size * 2 * attended
    dot = (turns * head + s.layers * s.kv_heads * read * 2 * s.head_dim) / config["attention_macs"]

    def busy(unit: str) -> float:
        return sum(sum(pair) for name, pair in m["busy_cycles"].items() if unit in name.split("+")) / m.get("tokens", 1)

    ternary_macs = weights * (prompt or texts) + ternary_head
    ternary = Phase("ternary matrices", ternary_macs, data["layers"] + data["head"] - head_rows, busy("matmul"), ternary_peak * used)
    products = Phase("attention and head", dot_macs, head_rows + data["cache"], busy("dot"), config["attention_macs"] * attention_lanes)
    total = sum(data.values())
    whole = Phase(f"the whole {what(entry)}", ternary_macs + dot_macs, total, m["cycles"], 0.0)
    ternary_cycles = (len(passes) * weights + ternary_head) / ternary_peak
    return Bounds(m["roofline_share"] * m["cycles"], ternary_cycles, dot, m["cycles"], config["mem_bytes"],
                  tuple(phase for phase in (ternary, products) if phase.cycles and phase.macs), whole)


def what(entry: Mapping[str, Any]) -> str:
    """What was measured, in a word."""
    return "prompt" if entry["what"] == "prefill" else "pass" if "texts" in entry["measured"] else "token"
