"""The slowest paths of a routed netlist, from the delays that nextpnr writes (SDF)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TypedDict

__all__ = ["WORST_PATHS", "WorstPath", "register_name", "worst_paths"]

WORST_PATHS = 10

WorstPath = TypedDict("WorstPath", {
    "from": str, "to": str, "source": str, "sink": str, "bits": int, "delay_ns": float, "slack_ns": float, "logic_ns": float,
    "routing_ns": float, "setup_ns": float, "through": list[str],
})
"""A path between registers: `from` and `to` are the registers' names in the hierarchy, `source` and `sink` the very cells
and pins, `through` the outputs of the logic cells between them, `bits` the endpoints between the same two registers."""

_INTERCONNECT = re.compile(r"\(INTERCONNECT (\S+) (\S+) \([^:)]*:[^:)]*:([^:)]*)\) \([^:)]*:[^:)]*:([^:)]*)\)\)")
_IOPATH = re.compile(r"\(IOPATH (?:\(\w+ (\S+)\)|(\S+)) (\S+) \([^:)]*:[^:)]*:([^:)]*)\) \([^:)]*:[^:)]*:([^:)]*)\)\)")
_SETUP = re.compile(r"\(SETUPHOLD \(\w+ (\S+)\) \(\w+ (\S+)\) \([^:)]*:[^:)]*:([^:)]*)\)")
_BIT = re.compile(r"(_(?:TRELLIS_FF|DFF[A-Z]*)_Q.*|_(?:LUT[1-4]|PFUMX|L6MUX21|CCU2C|ALU)_.*|\$[A-Z].*|(?:\.\d+)+|_\d+)$")


def register_name(cell: str) -> str:
    """Hierarchical name of the register or memory that a cell is a bit of."""
    while (shorter := _BIT.sub("", cell)) not in ("", cell):
        cell = shorter
    return cell


def worst_paths(sdf: Iterable[str], period_ns: float, count: int = WORST_PATHS) -> list[WorstPath]:
    """The slowest paths between registers, worst first, from the delays of the routed netlist (SDF, one item a line).

    Paths whose ends are bits of the same two registers count as one; `bits` tells how many endpoints they have.
    """
    wires: dict[str, tuple[str, float]] = {}
    cells: dict[str, list[tuple[str, float]]] = {}
    setups: dict[str, float] = {}
    clocks: set[str] = set()
    instance = ""
    for line in sdf:
        item = line.strip()
        if item.startswith("(INTERCONNECT") and (match := _INTERCONNECT.match(item)):
            wires[match[2]] = match[1], max(float(match[3]), float(match[4])) / 1000
        elif item.startswith("(IOPATH") and (match := _IOPATH.match(item)):
            through = f"{instance}/{match[1] or match[2]}", max(float(match[4]), float(match[5])) / 1000
            cells.setdefault(f"{instance}/{match[3]}", []).append(through)
        elif item.startswith("(SETUPHOLD") and (match := _SETUP.match(item)):
            pin = f"{instance}/{match[1]}"
            setups[pin] = max(setups.get(pin, -1e9), float(match[3]) / 1000)
            clocks.add(f"{instance}/{match[2]}")
        elif item.startswith("(INSTANCE"):
            instance = item[len("(INSTANCE"):].rstrip(")").strip()

    # Latest arrival at every pin, and the pin and kind of delay it came from; None where no clock launches it.
    arrivals: dict[str, tuple[float, str | None] | None] = {pin: (0.0, None) for pin in clocks}

    def causes(pin: str) -> list[tuple[str, float]]:
        return [wires[pin]] if pin in wires else cells.get(pin, [])

    def settle(end: str) -> tuple[float, str | None] | None:
        stack = [end]
        while stack:
            pin = stack[-1]
            if pin in arrivals:
                stack.pop()
                continue
            waiting = [before for before, _ in causes(pin) if before not in arrivals]
            if waiting and pin not in open_pins:
                open_pins.add(pin)
                stack.extend(waiting)
                continue
            stack.pop()
            known = [(arrived[0] + delay, before) for before, delay in causes(pin) if (arrived := arrivals.get(before))]
            arrivals[pin] = max(known) if known else None
        return arrivals[end]

    open_pins: set[str] = set()
    ends = sorted(((arrived[0] + setup, pin) for pin, setup in setups.items() if (arrived := settle(pin))), reverse=True)
    found: dict[tuple[str, str], WorstPath] = {}
    for total, pin in ends:
        points, at = [pin], pin
        logic = routing = 0.0
        while (arrived := arrivals[at]) is not None and arrived[1] is not None:
            step = arrived[0] - (arrivals[arrived[1]] or (0.0, None))[0]
            if at in wires:
                routing += step
            else:
                logic += step
            at = arrived[1]
            points.append(at)
        names = [_unescape(point) for point in reversed(points)]
        source, sink = names[1] if len(names) > 1 else names[0], names[-1]
        key = register_name(source.rpartition("/")[0]), register_name(sink.rpartition("/")[0])
        if key in found:
            found[key]["bits"] += 1
        elif len(found) < count:
            found[key] = {
                "from": key[0], "to": key[1], "source": source, "sink": sink, "bits": 1, "delay_ns": round(total, 3),
                "slack_ns": round(period_ns - total, 3), "logic_ns": round(logic, 3), "routing_ns": round(routing, 3),
                "setup_ns": round(setups[pin], 3), "through": names[3:-1:2],
            }
    return list(found.values())


def _unescape(name: str) -> str:
    return re.sub(r"\\(.)", r"\1", name)
