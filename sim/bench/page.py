"""The page of measured numbers: one HTML file with its drawings inside, which asks nothing of a network.

It shows what bounds a token (roofline), which unit works when (timeline), where the cycles go (stacked), how that compares with
what others have published, and every row of the measurement. It is well-formed XML, too.

Here is what it shows, and where its lines stand; templates/ has its HTML, drawings, words and looks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil, floor, hypot, log2
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from tritloom.sim.bench import timeline as course
from tritloom.sim.bench.bounds import Bounds, bounds, what
from tritloom.sim.bench.peers import DESIGNS, MARKS
from tritloom.sim.bench.report import number

__all__ = ["page"]

UNITS = {
    course.WEIGHTS: "weight stream", "vector": "vector", "matmul": "matmul", "dot": "dot", "sampler": "sampler", "writes": "writes",
    course.NONE: "no unit",
}  # fmt: skip
WHAT = {
    course.WEIGHTS: "a beat of weights arrives", "vector": "norms, rotation, activation", "matmul": "ternary matrices",
    "dot": "attention and head", "sampler": "choice of the token", "writes": "keys and values to memory", course.NONE: "sequencer alone",
}  # fmt: skip
ACTIVITIES = {
    "matmul": "ternary matrices", "dot": "attention", "sampler": "head: logits and the choice of a token",
    "vector": "vector unit alone: norms, rotation, activation", "writes": "keys and values on their way to memory", course.NONE: "no unit",
}  # fmt: skip
"""What a cycle is drawn as, by colour: the first of these whose unit is at work; the dot engine beside the sampler works for the head."""
ARRIVES = (("", "weights arrive"), (" reading", "keys and values arrive"), (" idle", "nothing arrives: the memory is idle"))
"""How what arrives from memory is drawn, and said."""
LIMITS = 0.8
"""Share of the measured cycles from which a bound counts as what limits."""
LEAST_SHOWN = 0.0005
"""Share of the cycles from which a combination of units is in the table."""
LABELLED = 0.055
"""Share from which a segment carries its number."""
RESOURCES = (("lut", "LUT"), ("dsp", "DSP"), ("bram", "BRAM"), ("uram", "URAM"))


def page(rows: Sequence[Mapping[str, Any]], results: Sequence[tuple[Mapping[str, Any], str]]) -> str:
    """The HTML of measured `rows`, and of `results`: entries as sim/bench/results.py keeps them, each with its state. Of machines that were
    synthesised the comparison has the resources, unless they are stale."""
    found = [Result(entry, state) for entry, state in results]
    synthesised = [result for result in found if result.entry["what"] == "synthesis" and not result.stale]
    drawn = [result for result in found if result.entry["what"] in ("decode", "prefill") or "texts" in result.m]
    environment = Environment(loader=FileSystemLoader(Path(__file__).with_name("templates")), autoescape=True, undefined=StrictUndefined,
                              trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(number=number, format=format)
    heading = drawn[0].title if len(drawn) == 1 else "Measured tokens" if drawn else "Measured numbers"
    return environment.get_template("page.html").render(
        heading=heading, rows=rows, results=drawn, synthesised=synthesised, designs=DESIGNS, marks=MARKS, resources=RESOURCES,
        activities={name: said for name, said in ACTIVITIES.items() if any(name in result.stack.activities for result in drawn)},
        arrives=ARRIVES, nothing=course.NONE, limits=LIMITS)


@dataclass(frozen=True)
class Result:
    """A stored result, as the templates ask for it."""

    entry: Mapping[str, Any]
    state: str

    @property
    def m(self) -> Mapping[str, Any]:
        return self.entry["measured"]

    @property
    def stale(self) -> bool:
        return self.state.startswith("stale")

    @property
    def said_state(self) -> str:
        if self.stale:
            return self.state
        return f"current, {self.state if self.entry['date'] in self.state else 'measured on ' + self.entry['date']}"

    @property
    def title(self) -> str:
        e, lanes = self.entry, self.entry["configuration"]["lanes"]
        head = f"short-list of {k}, " if (k := e["configuration"]["shortlist"]) else ""
        measured = f"decode at {e['count']:,} positions"
        if e["what"] == "prefill":
            measured = f"prefill of {e['count']:,} tokens"
        elif "texts" in self.m:
            common = f", {self.m['shared']} of them shared" if self.m["shared"] else ""
            measured = f"{self.m['texts']} texts together, {measured}{common}"
        return f"{e['model']} on {e['board']}, {lanes} lane{'s' if lanes > 1 else ''}, {head}{measured}"

    @property
    def what(self) -> str:
        return what(self.entry)

    @property
    def tokens(self) -> int:
        """Tokens that it read or gave."""
        return self.entry["count"] if self.entry["what"] == "prefill" else self.m.get("texts", 1)

    @property
    def unit(self) -> str:
        return f"{'prompt ' if self.entry['what'] == 'prefill' else ''}tokens/s"

    @property
    def speed(self) -> str:
        return f"{self.m['tokens_per_s']:,.1f} {self.unit}"

    @property
    def memory(self) -> str:
        return "on the chip" if self.entry["configuration"]["memory"] == "onchip" else str(self.entry["timing"])

    @property
    def machine(self) -> str:
        c = self.entry["configuration"]
        return (f"T×Q {c['tables']}×{c['rows_per_cycle']}, V {c['vector_lanes']}, A {c['attention_macs']}, "
                f"M {c['mem_bytes']} ({c['mem_ports']} port{'s' if c['mem_ports'] != 1 else ''})")

    @property
    def gigabytes_per_s(self) -> float:
        return sum(self.m["bytes"].values()) * self.entry["clock_hz"] / self.m["cycles"] / 1e9

    def resources(self, synthesised: Sequence[Result]) -> Result | None:
        """The synthesis of a machine that differs in the context alone."""
        return next((other for other in synthesised if other._configuration == self._configuration), None)

    @property
    def _configuration(self) -> dict[str, Any]:
        config = dict(self.entry["configuration"])
        return config | {"shape": config["shape"] | {"context": 0}}

    @cached_property
    def stack(self) -> Stack:
        return Stack.of(self.entry)

    @cached_property
    def bounds(self) -> Bounds:
        return bounds(self.entry)

    @property
    def roofline(self) -> Roofline:
        return Roofline.of(self.bounds)

    @property
    def timelines(self) -> list[TimelineView] | str:
        """The drawings of who works when, or why there are none: "missing", "unreadable" or "empty"."""
        kept = self.m.get("timeline")
        if kept is None:
            return "missing"
        try:
            whole = course.unpack(kept["whole"])
            layer = course.unpack(kept["layer"]) if "layer" in kept else None
        except (KeyError, TypeError, ValueError):
            return "unreadable"
        if not len(whole.cycles):
            return "empty"
        clock, title = self.entry["clock_hz"], f"The whole {self.what}"
        if layer is None or not len(layer.cycles):
            return [TimelineView.of(whole, title, clock)]
        start, layers = kept["layer"]["start"], self.entry["configuration"]["shape"]["layers"]
        return [TimelineView.of(whole, title, clock, window=(start, int(layer.cycles.sum()))),
                TimelineView.of(layer, f"One layer, number {kept['layer']['number']} of {layers}", clock, start)]


# Stacked cycles -------------------------------------------------------------------------------------------


def arrivals(entry: Mapping[str, Any]) -> dict[str, tuple[int, int, int]]:
    """Cycles by units at work, the most first: those in which weights arrive, keys and values, nothing.

    Counted are the beats of weights by units, and all beats of data; the dot engine waits for these while it attends, and so they are
    among its cycles without a beat of weights.
    """
    m, beat = entry["measured"], entry["configuration"]["mem_bytes"]
    busy = {name: tuple(pair) for name, pair in m["busy_cycles"].items()}
    attending = {name: pair[1] for name, pair in busy.items() if {"dot", "sampler"} & set(name.split("+")) == {"dot"}}
    data = m["beats"]["data"] if "beats" in m else m["bytes"]["cache"] * m.get("tokens", 1) / beat
    share = min(1.0, data / max(1, sum(attending.values())))
    read = {name: round(share * attending.get(name, 0)) for name in busy}
    found = {name: (pair[0], read[name], pair[1] - read[name]) for name, pair in busy.items()}
    return dict(sorted(found.items(), key=lambda item: -sum(item[1])))


def _activity(name: str) -> str:
    """What units at work are drawn as."""
    units = set(name.split("+"))
    if {"dot", "sampler"} <= units:
        return "sampler"
    return next((unit for unit in ACTIVITIES if unit in units), course.NONE)


@dataclass(frozen=True)
class Segment:
    """Of a bar: cycles of an activity, and what arrives meanwhile."""

    style: str
    said: str
    cycles: int
    share: float

    @property
    def labelled(self) -> bool:
        return self.share >= LABELLED


@dataclass(frozen=True)
class Stack:
    """All cycles of a result as a bar: `activities` by their share, `table` rows of (units, cycles by what arrives, share)."""

    segments: tuple[Segment, ...]
    activities: Mapping[str, float]
    table: tuple[tuple[str, tuple[int, int, int], float], ...]

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> Stack:
        found, total = arrivals(entry), entry["measured"]["counted_cycles"] or 1
        sums = {activity: [sum(parts[n] for name, parts in found.items() if _activity(name) == activity) for n in range(3)]
                for activity in ACTIVITIES}
        segments = [Segment(f"u-{activity}{kind}", f"{ACTIVITIES[activity]}; {arrives}", cycles, cycles / total)
                    for activity, parts in sums.items() for cycles, (kind, arrives) in zip(parts, ARRIVES, strict=True) if cycles]
        table = [(name.replace("+", " + "), parts, sum(parts) / total) for name, parts in found.items()
                 if sum(parts) >= LEAST_SHOWN * total]
        return cls(tuple(segments), {activity: sum(parts) / total for activity, parts in sums.items() if any(parts)}, tuple(table))

    @property
    def said(self) -> str:
        return "; ".join(f"{ACTIVITIES[activity]} {share:.1%}" for activity, share in self.activities.items())


# Roofline -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Roofline:
    """Where the lines and points of a roofline stand, in the drawing's own units: MAC per byte to the right, MAC per cycle upwards, both
    in powers of two. `xs` and `ys` are the grid's, `stream` the diagonal's ends, its middle's direction and where its name begins."""

    bounds: Bounds
    x0: int
    x1: int
    y0: int
    y1: int
    left: int = 46
    right: int = 350
    top: int = 14
    bottom: int = 238

    @classmethod
    def of(cls, b: Bounds) -> Roofline:
        points = (b.whole, *b.phases)
        xs = [log2(p.intensity) for p in points]
        ys = [log2(p.rate) for p in points] + [log2(p.peak) for p in b.phases]
        x0 = floor(min(xs) - 0.6)
        x1 = ceil(max([max(xs) + 0.8, *(log2(p.peak / b.beat_bytes) + 1.8 for p in b.phases)]))  # roofs long enough for their names
        return cls(b, x0, x1, floor(min(*ys, log2(b.beat_bytes) + x0) - 0.1), ceil(max(ys) + 0.5))

    def x(self, value: float) -> float:
        return self.left + (self.right - self.left) * (log2(value) - self.x0) / (self.x1 - self.x0)

    def y(self, value: float) -> float:
        return self.bottom - (self.bottom - self.top) * (log2(value) - self.y0) / (self.y1 - self.y0)

    @property
    def xs(self) -> list[float]:
        return [2.0**power for power in range(self.x0, self.x1 + 1)]

    @property
    def ys(self) -> list[float]:
        return [2.0**power for power in range(self.y0, self.y1 + 1, ceil((self.y1 - self.y0) / 6))]

    @property
    def stream(self) -> dict[str, float]:
        """The diagonal from the left edge to the top."""
        beat = self.bounds.beat_bytes
        start, end = 2.0**self.x0, min(2.0**self.x1, 2.0**self.y1 / beat)
        ax, ay, bx, by = self.x(start), self.y(beat * start), self.x(end), self.y(beat * end)
        length = hypot(bx - ax, by - ay) or 1
        cos, sin = (bx - ax) / length, (by - ay) / length
        return {"ax": ax, "ay": ay, "bx": bx, "by": by, "cos": cos, "sin": sin, "tx": ax + 0.06 * (bx - ax) + 6 * sin,
                "ty": ay + 0.06 * (by - ay) - 6 * cos}


# Timelines ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TimelineView:
    """Who works when: `rows` of (unit, its name, what it does, share of the cycles, outline), `window` (left, width) in percent is what
    another one shows in detail."""

    title: str
    total: int
    time: str
    bins: int
    rows: tuple[tuple[str, str, str, float, str], ...]
    window: tuple[float, float] | None
    ticks: tuple[tuple[int, str], ...]

    @classmethod
    def of(cls, line: course.Timeline, title: str, clock_hz: int, start: int = 0, window: tuple[int, int] | None = None) -> TimelineView:
        total, cycles = int(line.cycles.sum()), line.cycles.tolist()
        rows = tuple((name, UNITS[name], WHAT[name], sum(row) / total, "".join(_area(row, cycles, total)))
                     for name, row in zip(course.ROWS, line.rows.tolist(), strict=True))
        ticks = tuple((25 * n, _short(start + total * n / 4)) for n in range(5))
        part = (100 * window[0] / total, 100 * window[1] / total) if window else None
        return cls(title, total, _time(total / clock_hz), len(cycles), rows, part, ticks)

    @property
    def said(self) -> str:
        return ", ".join(f"{name} {share:.1%}" for _, name, _, share, _ in self.rows)


def _area(row: Sequence[int], cycles: Sequence[int], total: int) -> Iterator[str]:
    """A step line of shares, closed at the bottom."""
    at, height = 0, 100
    yield "M0 100"
    for value, length in zip(row, cycles, strict=True):
        new = round(100 - 100 * value / length)
        if new != height:
            yield f"H{1000 * at / total:.1f}V{new}"
            height = new
        at += length
    yield "H1000V100Z"


def _short(cycles: float) -> str:
    if not cycles:
        return "0"
    if cycles >= 1e6:
        return f"{cycles / 1e6:.2f} M"
    return f"{cycles / 1e3:.3g} k" if cycles < 1e5 else f"{cycles / 1e3:.0f} k"


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} µs"
