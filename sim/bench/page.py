"""The page of measured numbers: one HTML file with its drawings inside, which asks nothing of a network.

It shows what bounds a token (roofline), which unit works when (timeline), where the cycles go (stacked), how that compares with
what others have published, and every row of the measurement. It is well-formed XML, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, hypot, log2
from typing import Any

from tritloom.firmware.config import TRITS, ModelShape, round_up
from tritloom.sim.bench import timeline as course
from tritloom.sim.bench.peers import DESIGNS, MARKS

__all__ = ["Bounds", "bounds", "page"]

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
SYMBOLS = ("T×Q: look-ups a cycle and lane; V: elements a cycle of the vector unit; A: products a cycle and lane of the dot engine; "
           "M: bytes a cycle from memory.")
LABELLED = 0.055
"""Share from which a segment carries its number."""
NO_TIMELINE = ("This stored result has no timeline: it was measured before timelines were kept. "
               "Measure it again with its command, without --resume.")


# What bounds a token --------------------------------------------------------------------------------------


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
    """The bounds of a result of sim/bench/measure.py."""
    config, m = entry["configuration"], entry["measured"]  # as it was when measured: maybe no longer a valid one
    s, lanes, count = ModelShape(**config["shape"]), config["lanes"], entry["count"]
    prompt, texts, shared = count if entry["what"] == "prefill" else 0, m.get("texts", 1), m.get("shared", 0)
    passes = [min((n + 1) * lanes, prompt) for n in range(ceil(prompt / lanes))] or [count]  # the last position of each
    used = min(lanes, prompt or texts)
    weights = s.layers * (s.qkv_rows * s.hidden + s.hidden * s.q_size + 2 * s.ffn * s.hidden + s.hidden * s.ffn)
    ternary_peak, head = TRITS * config["tables"] * config["rows_per_cycle"], s.vocab * s.hidden
    data, short_list, ternary_head, head_rows = m["bytes"], config.get("shortlist", 0), 0, m["bytes"]["head"]
    if short_list:  # the vocabulary goes through the ternary engine, and only its rows through the dot engine
        head_rows = short_list * (config["mem_bytes"] + round_up(s.hidden, config["mem_bytes"]))
        ternary_head, head = head, short_list * s.hidden
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
    whole = Phase(f"the whole {_what(entry)}", ternary_macs + dot_macs, total, m["cycles"], 0.0)
    ternary_cycles = (len(passes) * weights + ternary_head) / ternary_peak
    return Bounds(m["roofline_share"] * m["cycles"], ternary_cycles, dot, m["cycles"], config["mem_bytes"],
                  tuple(phase for phase in (ternary, products) if phase.cycles and phase.macs), whole)


# The page -------------------------------------------------------------------------------------------------


def page(rows: Sequence[Mapping[str, Any]], results: Sequence[tuple[Mapping[str, Any], str]]) -> str:
    """The HTML of measured `rows`, and of `results`: entries as sim/bench/measure.py keeps them, each with its state. Of machines that were
    synthesised the comparison has the resources, unless they are stale."""
    synthesised = [entry for entry, state in results if entry["what"] == "synthesis" and _state_class(state) != _state_class("stale")]
    results = [(entry, state) for entry, state in results if entry["what"] in ("decode", "prefill") or "texts" in entry["measured"]]
    titles = [_title(entry) for entry, _ in results]
    heading = titles[0] if len(titles) == 1 else "Measured tokens" if titles else "Measured numbers"
    parts = [f"<header><h1>{escape(heading)}</h1>", _lead(results), "</header>"]
    if results:
        parts.append(_stacks(results, titles))
        if len(results) == 1:
            parts.append(f"<section>{_roofline(results[0][0])}{_timelines(results[0][0])}</section>")
        else:
            each = (_result(*result, title) for result, title in zip(results, titles, strict=True))
            parts += ["<section><h2>Each result</h2>", *each, "</section>"]
        parts.append(_comparison(results, synthesised))
    parts.append(_rows(rows, bool(results)))
    return ('<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
            '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
            f"<title>{escape(heading)} · tritloom</title><style>{STYLE}</style></head>\n<body><main>\n"
            + "\n".join(parts) + "\n</main></body></html>\n")


def _title(entry: Mapping[str, Any]) -> str:
    lanes = entry["configuration"]["lanes"]
    head = f"short-list of {k}, " if (k := entry["configuration"]["shortlist"]) else ""
    m, what = entry["measured"], f"decode at {entry['count']:,} positions"
    if entry["what"] == "prefill":
        what = f"prefill of {entry['count']:,} tokens"
    elif "texts" in m:
        what = f"{m['texts']} texts together, {what}" + (f", {m['shared']} of them shared" if m["shared"] else "")
    return f"{entry['model']} on {entry['board']}, {lanes} lane{'s' if lanes > 1 else ''}, {head}{what}"


def _what(entry: Mapping[str, Any]) -> str:
    """What was measured, in a word."""
    return "prompt" if entry["what"] == "prefill" else "pass" if "texts" in entry["measured"] else "token"


def _tokens(entry: Mapping[str, Any]) -> int:
    """Tokens that it read or gave."""
    return entry["count"] if entry["what"] == "prefill" else entry["measured"].get("texts", 1)


def _per_second(entry: Mapping[str, Any]) -> str:
    of = "prompt " if entry["what"] == "prefill" else ""
    return f"{entry['measured']['tokens_per_s']:,.1f} {of}tokens/s"


def _lead(results: Sequence[tuple[Mapping[str, Any], str]]) -> str:
    if len(results) != 1:
        return "<p>Whole tokens on the simulated machine, cycle by cycle. Nothing here was measured on a board.</p>" if results else ""
    entry, m = results[0][0], results[0][0]["measured"]
    speed, _, per = _per_second(entry).partition(" ")
    figures = [(f"{m['cycles']:,.0f}", "cycles"), (speed, f"{per} at {entry['clock_hz'] / 1e6:g} MHz"),
               (f"{m['roofline_share']:.1%}", "of the stream bound")]
    tiles = "".join(f"<div><strong>{value}</strong><span>{escape(name)}</span></div>" for value, name in figures)
    return f'<div class="tiles">{tiles}</div><p>{_evidence(*results[0])}</p>'


def _evidence(entry: Mapping[str, Any], state: str) -> str:
    return (f'<span class="mark">{escape(entry["kind"])}</span> · <span class="{_state_class(state)}">{escape(_state(entry, state))}</span>'
            f" · memory {_memory(entry)} · {escape(entry['weights'])} weights · {escape(_machine(entry))}<br/>"
            f"<code>{escape(entry['command'])}</code>")


def _memory(entry: Mapping[str, Any]) -> str:
    return "on the chip" if entry["configuration"]["memory"] == "onchip" else escape(str(entry["timing"]))


def _machine(entry: Mapping[str, Any]) -> str:
    c = entry["configuration"]
    return (f"T×Q {c['tables']}×{c['rows_per_cycle']}, V {c['vector_lanes']}, A {c['attention_macs']}, "
            f"M {c['mem_bytes']} ({c['mem_ports']} port{'s' if c['mem_ports'] != 1 else ''})")


def _state(entry: Mapping[str, Any], state: str) -> str:
    if state.startswith("stale"):
        return state
    return f"current, {state if entry['date'] in state else 'measured on ' + entry['date']}"


def _state_class(state: str) -> str:
    return "stale" if state.startswith("stale") else "current"


def _result(entry: Mapping[str, Any], state: str, title: str) -> str:
    return (f'<details class="result"><summary><h3>{escape(title)}</h3>{_preset(entry)}</summary><p>{_evidence(entry, state)}</p>'
            f"{_roofline(entry)}{_timelines(entry)}</details>")


# Stacked cycles -------------------------------------------------------------------------------------------


def _arrivals(entry: Mapping[str, Any]) -> dict[str, tuple[int, int, int]]:
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


def _stacks(results: Sequence[tuple[Mapping[str, Any], str]], titles: Sequence[str]) -> str:
    drawn: set[str] = set()
    figures = []
    for (entry, state), title in zip(results, titles, strict=True):
        m, found = entry["measured"], _arrivals(entry)
        total = m["counted_cycles"] or 1
        sums = {activity: [sum(parts[n] for name, parts in found.items() if _activity(name) == activity) for n in range(3)]
                for activity in ACTIVITIES}
        cells, said = [], []
        for activity, parts in sums.items():
            for cycles, (kind, arrives) in zip(parts, ARRIVES, strict=True):
                share = cycles / total
                if cycles:
                    drawn.add(activity)
                    label = f"<b>{share:.0%}</b>" if share >= LABELLED else ""
                    cells.append(f'<i class="u-{activity}{kind}" style="width:{100 * share:.3f}%" '
                                 f'title="{escape(ACTIVITIES[activity])}; {arrives}: {cycles:,} cycles ({share:.1%})">{label}</i>')
            if any(parts):
                said.append(f"{ACTIVITIES[activity]} {sum(parts) / total:.1%}")
        lines = [f'<tr><th scope="row">{escape(name.replace("+", " + "))}</th>' + "".join(f"<td>{cycles:,}</td>" for cycles in parts)
                 + f"<td>{sum(parts) / total:.1%}</td></tr>" for name, parts in found.items() if sum(parts) >= LEAST_SHOWN * total]
        stale = ' <span class="stale">stale</span>' if state.startswith("stale") else ""
        spoken = f"{title}: {m['cycles']:,.0f} cycles, {_per_second(entry)}. {'; '.join(said)}."
        table = _table(("units at work", "weights", "keys and values", "idle", "share"), lines, "numbers")
        figures.append(f'<div class="stack"><p><span>{escape(title)}{stale}{_preset(entry)}</span>'
                       f'<span><strong>{_per_second(entry)}</strong> · {m["cycles"]:,.0f} cycles</span></p>'
                       f'<div class="bar" role="img" aria-label="{escape(spoken)}">{"".join(cells)}</div>'
                       f"<details><summary>Cycles by units at work and by what arrives from memory</summary>{table}</details></div>")
    units = "".join(f'<li><i class="u-{activity}"></i>{escape(said)}</li>' for activity, said in ACTIVITIES.items() if activity in drawn)
    kinds = "".join(f'<li><i class="u-{course.NONE}{kind}"></i>{said}</li>' for kind, said in ARRIVES)
    return ('<section><h2>Where the cycles go</h2><p>Each bar is all cycles of a token, of a pass or of a prompt. The colour says what is '
            f"at work, the pattern what arrives from memory meanwhile. {SYMBOLS}</p>"
            f'<ul class="legend">{units}</ul>'
            f'<ul class="legend">{kinds}</ul>{"".join(figures)}</section>')


def _preset(entry: Mapping[str, Any]) -> str:
    return f" <small>memory {_memory(entry)}, {escape(_machine(entry))}</small>"


# Roofline -------------------------------------------------------------------------------------------------


def _roofline(entry: Mapping[str, Any]) -> str:
    b = bounds(entry)
    clock, tokens = entry["clock_hz"], _tokens(entry)
    binds = ' class="binds"'
    lines = [f'<tr{binds if name == b.limit else ""}><th scope="row">{name}</th><td>{cycles:,.0f}</td>'
             f"<td>{clock * tokens / max(cycles, 1):,.1f}</td><td>{cycles / b.measured:.1%}</td></tr>" for name, cycles in b.named.items()]
    lines.append(f'<tr class="total"><th scope="row">measured</th><td>{b.measured:,.0f}</td>'
                 f"<td>{clock * tokens / b.measured:,.1f}</td><td>100 %</td></tr>")
    what = _what(entry)
    share = f"{b.least / b.measured:.1%} of the {b.measured:,.0f} measured"
    said = f"The highest bound of a {what} is “{b.limit}”: at least {b.least:,.0f} cycles, {share}."
    said += " This is what limits." if b.least >= LIMITS * b.measured else " Nothing limits alone: units wait for one another, as below."
    table = _table(("bound by", "least cycles", "tokens/s", "of measured"), lines, "numbers")
    points = "".join(f"<li><b>{number}</b> {escape(p.name)}: {p.intensity:,.2f} MAC per byte, {p.rate:,.1f} MAC per cycle of its work"
                     f"{f', {p.rate / p.peak:.1%} of its engine' if p.peak else ''}</li>"
                     for number, p in enumerate((b.whole, *b.phases), 1))
    return (f'<h3>Roofline</h3><p>{said}</p><div class="two"><figure>{_roofline_svg(b)}</figure>'
            f'<div>{table}<ul class="points">{points}</ul></div></div>')


def _roofline_svg(b: Bounds) -> str:
    left, right, top, bottom = 46, 350, 14, 238
    points = (b.whole, *b.phases)
    xs = [log2(p.intensity) for p in points]
    ys = [log2(p.rate) for p in points] + [log2(p.peak) for p in b.phases]
    x0 = floor(min(xs) - 0.6)
    x1 = ceil(max([max(xs) + 0.8, *(log2(p.peak / b.beat_bytes) + 1.8 for p in b.phases)]))  # roofs long enough for their names
    y1 = ceil(max(ys) + 0.5)
    y0 = floor(min(*ys, log2(b.beat_bytes) + x0) - 0.1)

    def x(value: float) -> float:
        return left + (right - left) * (log2(value) - x0) / (x1 - x0)

    def y(value: float) -> float:
        return bottom - (bottom - top) * (log2(value) - y0) / (y1 - y0)

    parts = []
    for power in range(x0, x1 + 1):
        parts.append(f'<path class="grid" d="M{x(2.0**power):.1f} {top}V{bottom}"/>'
                     f'<text x="{x(2.0**power):.1f}" y="{bottom + 15}" text-anchor="middle">{2.0**power:g}</text>')
    step = ceil((y1 - y0) / 6)
    for power in range(y0, y1 + 1, step):
        parts.append(f'<path class="grid" d="M{left} {y(2.0**power):.1f}H{right}"/>'
                     f'<text x="{left - 5}" y="{y(2.0**power) + 4:.1f}" text-anchor="end">{2.0**power:g}</text>')
    # The diagonal from the left edge to the top.
    end = min(2.0**x1, 2.0**y1 / b.beat_bytes)
    ax, ay, bx, by = x(2.0**x0), y(b.beat_bytes * 2.0**x0), x(end), y(b.beat_bytes * end)
    parts.append(f'<path class="roof s-weights" d="M{ax:.1f} {ay:.1f}L{bx:.1f} {by:.1f}"/>')
    for phase, unit in zip(b.phases, ("matmul", "dot"), strict=False):
        start = max(x(phase.peak / b.beat_bytes), left)
        name = "ternary engine" if unit == "matmul" else "dot engine"
        parts.append(f'<path class="roof s-{unit}" d="M{start:.1f} {y(phase.peak):.1f}H{right}"/>'
                     f'<text class="t-{unit}" x="{right - 3}" y="{y(phase.peak) + 14:.1f}" text-anchor="end">{name} {phase.peak:,g}</text>')
    length = hypot(bx - ax, by - ay) or 1
    cos, sin = (bx - ax) / length, (by - ay) / length
    tx, ty = ax + 0.06 * (bx - ax) + 6 * sin, ay + 0.06 * (by - ay) - 6 * cos
    parts.append(f'<text class="t-weights" transform="matrix({cos:.3f} {sin:.3f} {-sin:.3f} {cos:.3f} {tx:.1f} {ty:.1f})">'
                 f"stream {b.beat_bytes} B/cycle</text>")
    for number, (p, unit) in enumerate(zip(points, ("whole", "matmul", "dot"), strict=False), 1):
        parts.append(f'<circle class="f-{unit}" cx="{x(p.intensity):.1f}" cy="{y(p.rate):.1f}" r="8"/>'
                     f'<text class="number" x="{x(p.intensity):.1f}" y="{y(p.rate) + 4:.1f}" text-anchor="middle">{number}</text>')
    spoken = ("Roofline, multiply-accumulates per cycle over those per byte. " +
              "; ".join(f"{p.name}: {p.intensity:.2f} per byte, {p.rate:.1f} per cycle" for p in points) +
              f". The stream brings {b.beat_bytes} bytes a cycle.")
    return (f'<svg class="roofline" viewBox="0 0 360 280" role="img" aria-label="{escape(spoken)}">{"".join(parts)}'
            f'<text x="{(left + right) / 2}" y="{bottom + 34}" text-anchor="middle">MAC per byte streamed</text>'
            f'<text transform="translate(11 {(top + bottom) / 2}) rotate(-90)" text-anchor="middle">MAC per cycle</text></svg>')


# Timelines ------------------------------------------------------------------------------------------------


def _timelines(entry: Mapping[str, Any]) -> str:
    stored, title = entry["measured"].get("timeline"), "<h3>Who works when</h3>"
    if stored is None:
        return f"{title}<p>{NO_TIMELINE}</p>"
    try:
        whole = course.unpack(stored["whole"])
        layer = course.unpack(stored["layer"]) if "layer" in stored else None
    except (KeyError, TypeError, ValueError):
        return f"{title}<p>The timeline of this stored result cannot be read; measure it again with its command.</p>"
    if not len(whole.cycles):
        return f"{title}<p>The timeline is empty: no cycle ran while it was recorded.</p>"
    window = None
    name = _what(entry)
    parts = [f"{title}<p>A row is full where its unit worked in every cycle of a bin, empty where it waited. "
             "Where units overlap, they worked at once.</p>"]
    if layer is not None and len(layer.cycles):
        window = (stored["layer"]["start"], int(layer.cycles.sum()))
    parts.append(_timeline(whole, f"The whole {name}", entry["clock_hz"], 0, window))
    if window and layer is not None:
        number, layers = stored["layer"]["number"], entry["configuration"]["shape"]["layers"]
        parts.append(_timeline(layer, f"One layer, number {number} of {layers}", entry["clock_hz"], window[0], None))
    return "".join(parts)


def _timeline(line: course.Timeline, title: str, clock_hz: int, start: int, window: tuple[int, int] | None) -> str:
    total = int(line.cycles.sum())
    lines, said = [], []
    for name, row in zip(course.ROWS, line.rows.tolist(), strict=True):
        share = sum(row) / total
        said.append(f"{UNITS[name]} {share:.1%}")
        lines.append(f'<span title="{escape(WHAT[name])}">{escape(UNITS[name])}</span>'
                     f'<svg viewBox="0 0 1000 100" preserveAspectRatio="none" aria-hidden="true"><path class="f-{name}" '
                     f'd="{_area(row, line.cycles.tolist(), total)}"/></svg><span>{share:.1%}</span>')
    if window:
        left, width = 100 * window[0] / total, 100 * window[1] / total
        lines.append(f'<span>detail</span><div class="window"><i style="left:{left:.2f}%;width:{width:.2f}%"></i></div><span></span>')
    ticks = "".join(f'<i style="left:{25 * n}%">{_short(start + total * n / 4)}</i>' for n in range(5))
    spoken = escape(f"{title}, {total:,} cycles. Share of the cycles: {', '.join(said)}.")
    bins = len(line.cycles)
    return (f'<figure class="timeline"><figcaption><b>{escape(title)}</b> · {total:,} cycles, {_time(total / clock_hz)} · '
            f'a bin is about {total / bins:,.0f} cycles</figcaption><div class="rows" role="img" aria-label="{spoken}">{"".join(lines)}'
            f'<span></span><div class="axis">{ticks}</div><span></span></div></figure>')


def _area(row: Sequence[int], cycles: Sequence[int], total: int) -> str:
    """A step line of shares, closed at the bottom."""
    path, at, height = ["M0 100"], 0, 100.0
    for value, length in zip(row, cycles, strict=True):
        new = round(100 - 100 * value / length)
        if new != height:
            path.append(f"H{1000 * at / total:.1f}V{new}")
            height = new
        at += length
    return "".join([*path, "H1000V100Z"])


def _short(cycles: float) -> str:
    if not cycles:
        return "0"
    if cycles >= 1e6:
        return f"{cycles / 1e6:.2f} M"
    return f"{cycles / 1e3:.3g} k" if cycles < 1e5 else f"{cycles / 1e3:.0f} k"


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} µs"


# Tables ---------------------------------------------------------------------------------------------------


def _table(head: Iterable[str], lines: Iterable[str], kind: str) -> str:
    cells = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    return (f'<div class="scroll" tabindex="0" role="region" aria-label="Table"><table class="{kind}">'
            f'<thead><tr>{cells}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>')


def _resources(entry: Mapping[str, Any], synthesised: Sequence[Mapping[str, Any]]) -> str:
    """What the machine of a result takes, by the stored synthesis of one that differs in the context alone."""
    def machine(of: Mapping[str, Any]) -> dict[str, Any]:
        config = dict(of["configuration"])
        return config | {"shape": config["shape"] | {"context": 0}}

    for other in synthesised:
        if machine(other) == machine(entry):
            total = other["measured"]["total"]
            kinds = (("lut", "LUT"), ("dsp", "DSP"), ("bram", "BRAM"), ("uram", "URAM"))
            return (f"{', '.join(f'{total[kind]:,g} {name}' if kind == 'bram' else f'{total[kind]:,} {name}' for kind, name in kinds)} "
                    f'<span class="mark">{escape(other["kind"])}</span>')
    return "–"


def _comparison(results: Sequence[tuple[Mapping[str, Any], str]], synthesised: Sequence[Mapping[str, Any]]) -> str:
    lines = []
    for entry, state in results:
        m, decode = entry["measured"], entry["what"] != "prefill"
        mark = f'<span class="mark">{escape(entry["kind"])}</span>'
        together = f", {m['texts']} texts together" if "texts" in m else ""
        speed = f"{m['tokens_per_s']:,.1f} tok/s at {entry['count']:,} positions{together} {mark}"
        first = f"{m['tokens_per_s']:,.1f} tok/s, {m.get('first_token_s', 0):.3g} s for {entry['count']:,} tokens {mark}"
        lanes = entry["configuration"]["lanes"]
        achieved = sum(m["bytes"].values()) * entry["clock_hz"] / m["cycles"] / 1e9
        lines.append(
            f'<tr class="ours"><th scope="row">tritloom<small>{escape(entry["command"])}</small></th>'
            f"<td>{escape(entry['board'])}, {entry['clock_hz'] / 1e6:g} MHz, simulated<small>memory {_memory(entry)}; "
            f"{lanes} lane{'s' if lanes > 1 else ''}, {escape(_machine(entry))}</small></td>"
            f'<td>{escape(entry["model"])}<small>{escape(entry["weights"])} weights</small></td>'
            f"<td>{speed if decode else '–'}</td><td>{'–' if decode else first}</td><td>–</td><td>{_resources(entry, synthesised)}</td>"
            f"<td>{achieved:.3g} GB/s {mark}</td>"
            f'<td class="{_state_class(state)}">{escape(_state(entry, state))}</td></tr>')
    for d in DESIGNS:
        figures = "".join(f"<td>{_figures(f)}</td>" for f in (d.decode, d.prefill, d.power, d.resources, d.memory))
        lines.append(f'<tr><th scope="row">{escape(d.name)}</th><td>{escape(d.platform)}</td><td>{escape(d.model)}</td>{figures}'
                     f"<td>{escape(d.source)}</td></tr>")
    head = ("design", "platform", "model", "decode", "prefill", "power", "resources", "memory", "source, state")
    marks = "; ".join(f"[{mark}] {meaning}" for mark, meaning in MARKS.items())
    return (f"<section><h2>Beside what others have published</h2><p>Rows of tritloom are cycles of the simulated RTL at the clock that "
            f"the configuration names, and resources by synthesis: no board, no placed design, no power. The others ran on hardware as "
            f"their authors say. "
            f"Models differ from row to row. {marks}.</p>{_table(head, lines, 'wide')}</section>")


def _figures(figures: Sequence[tuple[str, str]]) -> str:
    return "<br/>".join(f"{escape(text)} <span class=\"mark\">[{escape(mark)}]</span>" for text, mark in figures) or "–"


def _rows(rows: Sequence[Mapping[str, Any]], folded: bool) -> str:
    from tritloom.sim.bench.report import number

    lines = [f'<tr><th scope="row">{escape(r["measure"])}</th><td>{number(r["value"])}</td><td>{escape(r["unit"])}</td>'
             f'<td>{escape(r["kind"])}</td><td>{escape(r.get("state", "measured"))}</td><td><code>{escape(r["command"])}</code></td></tr>'
             for r in rows]
    table = _table(("measure", "value", "unit", "kind", "state", "command"), lines, "wide")
    opened = "" if folded else ' open="open"'
    return f"<section><h2>Every number</h2><details{opened}><summary>{len(rows)} rows</summary>{table}</details></section>"


# Looks ----------------------------------------------------------------------------------------------------

_LIGHT = {"weights": "#475569", "matmul": "#2b6cb0", "vector": "#b45f06", "dot": "#2f7d4f", "sampler": "#7e4bb5", "writes": "#b02a70",
          "sequencer": "#6b7280"}
_DARK = {"weights": "#cbd5e1", "matmul": "#6aa9ea", "vector": "#f0a548", "dot": "#62c48f", "sampler": "#bd93ea", "writes": "#f08bbb",
         "sequencer": "#98a2b3"}


def _variables(colours: Mapping[str, str], others: str) -> str:
    return "".join(f"--{name}:{value};" for name, value in colours.items()) + others


STYLE = (
    ":root{color-scheme:light dark;" + _variables(
        _LIGHT, "--bg:#fff;--fg:#1c2430;--soft:#55606f;--line:#d5dbe3;--card:#f4f6f9;--on:#fff;--bad:#a61b1b")
    + "}@media(prefers-color-scheme:dark){:root{"
    + _variables(_DARK, "--bg:#12161c;--fg:#e7eaef;--soft:#a3adbb;--line:#313a46;--card:#1b212a;--on:#10141a;--bad:#ff9a8d") + "}}"
    + """
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--fg);font:16px/1.5 system-ui,sans-serif}
main{max-width:1080px;margin:0 auto;padding:20px 16px 60px}
h1{font-size:1.6rem;line-height:1.25;margin:.4em 0;overflow-wrap:anywhere}
h2{font-size:1.25rem;margin:2.2em 0 .6em}
h3{overflow-wrap:anywhere;font-size:1.1rem;margin:1.6em 0 .3em}
p{margin:.4em 0 .8em;max-width:75ch}
code{font-size:.85em;overflow-wrap:anywhere}
small{display:block;color:var(--soft);font-size:.8rem;font-weight:normal;overflow-wrap:anywhere}
.mark{font-size:.8em;color:var(--soft);white-space:nowrap}
.stale{color:var(--bad)}
.current{color:var(--soft)}
.tiles{display:flex;flex-wrap:wrap;gap:10px;margin:14px 0}
.tiles div{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:10px 16px;flex:1 1 150px}
.tiles strong{display:block;font-size:1.5rem;line-height:1.2;font-variant-numeric:tabular-nums}
.tiles span{color:var(--soft);font-size:.85rem}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:4px 18px;padding:0;margin:6px 0;font-size:.85rem}
.legend i{display:inline-block;width:14px;height:14px;margin-right:6px;vertical-align:-2px;border-radius:2px}
.stack{margin:14px 0}
.stack p{display:flex;flex-wrap:wrap;justify-content:space-between;gap:0 16px;margin:0 0 3px;max-width:none;font-size:.9rem}
.stack p>span:first-child{flex:1 1 18em;overflow-wrap:anywhere}
.stack p>span:last-child{font-variant-numeric:tabular-nums}
.bar{display:flex;height:32px;border-radius:4px;overflow:hidden;background:var(--card)}
.bar i{display:flex;align-items:center;justify-content:center;overflow:hidden;border-right:1px solid var(--bg);
 font-style:normal;min-width:0}
.bar b{font-size:.8rem;font-weight:600;color:var(--on)}
.bar i.idle b,.bar i.reading b{color:var(--fg);background:var(--bg);border-radius:3px;padding:0 3px}
details summary{cursor:pointer;color:var(--soft);font-size:.85rem;padding:3px 0}
summary h3{display:inline;font-size:1rem}
.result{border-top:1px solid var(--line);padding:8px 0}
.result>summary{color:var(--fg)}
.two{display:flex;flex-wrap:wrap;gap:10px 30px}
.two>*{flex:1 1 330px;min-width:0;margin:0}
.points{list-style:none;padding:0;font-size:.85rem}
.points b{display:inline-block;min-width:1.5em}
.roofline{display:block;width:100%;max-width:480px}
.roofline text{font-size:12px;fill:var(--soft)}
.roofline .grid{stroke:var(--line);fill:none}
.roofline .roof{stroke-width:2.5;fill:none}
.roofline .number{fill:var(--on);font-weight:700;font-size:11px}
.roofline circle{stroke:var(--bg);stroke-width:1.5}
.f-whole{fill:var(--fg)}
.roofline .f-whole+.number{fill:var(--bg)}
.timeline{margin:12px 0 26px}
figcaption{font-size:.9rem;margin-bottom:6px}
.rows{display:grid;grid-template-columns:7.2em minmax(0,1fr) 3.9em;gap:3px 8px;font-size:.8rem;align-items:center}
.rows svg{width:100%;height:26px;background:var(--card);display:block}
.rows>span:nth-child(3n){text-align:right;font-variant-numeric:tabular-nums}
.window{position:relative;height:8px;background:var(--card)}
.window i{position:absolute;top:0;bottom:0;background:var(--fg);min-width:3px}
.axis{position:relative;height:1.5em;color:var(--soft)}
.axis i{position:absolute;font-style:normal;transform:translateX(-50%);white-space:nowrap}
.axis i:first-child{transform:none}
.axis i:last-child{transform:translateX(-100%)}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:.85rem;width:100%}
th,td{text-align:left;vertical-align:top;padding:5px 10px 5px 0;border-bottom:1px solid var(--line)}
thead th{color:var(--soft);font-weight:600}
tbody th{font-weight:500}
.numbers td,.numbers th:not(:first-child){text-align:right;font-variant-numeric:tabular-nums}
.binds th::after{content:" (highest)";color:var(--soft)}
.binds th,.binds td,.total th,.total td{font-weight:700}
.wide{min-width:1020px}
.wide tbody th{min-width:11em}
.wide tbody th{max-width:22em}
.ours th,.ours td{background:var(--card)}
@media(max-width:520px){.rows{grid-template-columns:5.6em minmax(0,1fr) 3.4em;gap:3px 6px}
.axis i:nth-child(even){display:none}
h1{font-size:1.3rem}
.numbers td,.numbers th{padding-right:5px}}
"""
    + "".join(f".u-{n}{{background:var(--{n})}}.u-{n}.idle{{background:"
              f"repeating-linear-gradient(45deg,var(--{n}) 0 2px,var(--bg) 2px 7px)}}.u-{n}.reading{{background:"
              f"radial-gradient(var(--bg) 1.3px,transparent 1.6px) 0 0/6px 6px,var(--{n})}}"
              f".f-{n}{{fill:var(--{n})}}.s-{n}{{stroke:var(--{n})}}.roofline .t-{n}{{fill:var(--{n})}}" for n in _LIGHT)
)  # fmt: skip
