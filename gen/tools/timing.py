"""The slowest paths of a machine's mapped netlist by cell delays and an allowance for routing (xcup).

Nothing is placed: this ranks paths and says which cannot make the clock; it promises no frequency. The netlist is that of
`gen.tools.parts`, put together again, so that paths cross units and lanes.

**Calibration.** routed_paths.json has the slowest paths of five designs that others routed for the KV260's own device and speed grade
(xck26, -2LV): three with 36, 72 and 73 % of the LUTs taken at 250 MHz, two of 11 and 12 % at 200 MHz; cells and nets as Vivado printed
them. The delays below are means of these; those marked -1 are of grade -1 (xczu3eg, report_timing in
github.com/gussmith23/lakeroad-evaluation, vivado-synth-opt-place-route/{lpm.futil-ultrascale,inlining.futil-vanilla,
pow.futil-ultrascale}-timing-route.v), whose other numbers are within a fifth of these; those marked assumed are in no report. A net costs
by its fan-out, by how full the device is, and more beside a memory block, whose columns stand apart.

**How far to trust it.** `published` estimates each of those paths as if it were a machine's. The eight of 250 MHz took 91 to 116 % of the
estimate, the four of 200 MHz 88 to 167 %: Vivado shortens a path only until it is short enough, and these designs gave it more time. So a
path that is estimated a tenth shorter than the period is likely to close, not sure to. Not calibrated: Vivado maps logic otherwise than
Yosys, and duplicates drivers of many sinks; congestion of a part of the device.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from math import sqrt
from pathlib import Path
from typing import Any, TypedDict

from tritloom.firmware.config import BuildConfig
from tritloom.gen.tools import parts, synthesis, yosys
from tritloom.system.files import cache, scratch
from tritloom.system.processes import call

__all__ = ["DELAYS", "PathRow", "Timing", "net_delay", "published", "slowest", "worst_paths"]

FAMILY = "xcup"
DELAYS: dict[str, float] = {
    "clock to flip-flop": 0.114, "flip-flop setup": -0.044, "flip-flop enable or reset setup": 0.1,
    "LUT": 0.105, "wide multiplexer": 0.095,
    "carry, select to sum": 0.25, "carry, data to sum": 0.189, "carry through 4 bits": 0.015,  # -1
    "carry, select to carry": 0.232, "carry, data to carry": 0.171, "carry, carry to sum": 0.114,
    "multiplier": 1.923, "multiplier, addend": 0.84, "multiplier's output register setup": -0.146,  # -1
    # Memory blocks without output registers.
    "clock to block RAM": 1.208, "block RAM setup": 0.462, "clock to UltraRAM": 1.667, "UltraRAM setup": 0.629,
    "clock to LUT RAM": 0.7, "LUT RAM setup": 0.2,  # assumed, both
    "clock uncertainty": 0.13, "clock skew": 0.15,  # of a clock from the processing system; the mean, of 0.05 to 0.28
}
"""Nanoseconds, no nets."""

NET, NET_PER_FILL, NET_PER_ROOT, NET_MOST, NET_AT_MEMORY, NET_TO_CARRY = 0.05, 0.10, 0.055, 0.5, 0.15, 0.03
"""Allowance for a net: the least; more for the share of the device that is full, and by the root of the number of sinks; the most of these
together, where nets of more than 40 sinks have 0.2 to 1.1 ns; more beside a memory block; from a LUT to the carry beside it."""
ROUTED = Path(__file__).resolve().parent / "routed_paths.json"
MEMORY_BLOCKS = ("bram", "uram")


def net_delay(sinks: int, fill: float, *, at_memory: bool = False) -> float:
    """Allowance in ns for a net, with the share `fill` of the device's LUTs taken."""
    return min(NET_MOST, NET + NET_PER_FILL * fill + NET_PER_ROOT * sqrt(sinks)) + NET_AT_MEMORY * at_memory


def published() -> list[tuple[float, float]]:
    """What each path in routed_paths.json took, and what is estimated for it, in ns, both with its own clock's uncertainty and skew."""
    data = json.loads(ROUTED.read_text("utf-8"))
    found = []
    for design in data["designs"]:
        fill = design["luts"] / data["device_luts"]
        for path in design["paths"]:
            clock = path["uncertainty"] + path["skew"]
            took = sum(ns for _, ns in path["cells"]) + sum(ns for *_, ns in path["nets"]) + clock
            estimate = sum(DELAYS[cell] for cell, _ in path["cells"]) + clock + sum(
                NET_TO_CARRY if kind == "carry" else net_delay(sinks, fill, at_memory=kind == "memory") for sinks, kind, _ in path["nets"])
            found.append((took, estimate))
    return found


class PathRow(TypedDict):
    """A register's slowest path, `count` such registers (lanes, elements and bits) taken together. `logic` and `nets` add up to `delay`."""

    unit: str
    start: str
    end: str
    delay: float
    logic: float
    nets: float
    cells: list[str]
    count: int


class Timing(TypedDict):
    """`period`: what the clock leaves for a path, less its uncertainty and skew; `failing`: end points whose path takes longer."""

    period: float
    failing: int
    paths: list[PathRow]
    units: dict[str, float]
    delays: dict[str, float]
    allowance: str


def netlist(config: BuildConfig) -> dict[str, Any]:
    """Module of the machine's flat netlist, as Yosys writes it in JSON. The parts must have been synthesised."""
    found = parts.parts_of(config)
    with scratch(cache("scratch")) as at:
        commands = []
        for number, part in enumerate(found.values()):
            name = part.name if part.name == synthesis.TOP else part.module
            text = re.sub(r"^module \\top$", lambda _, name=name: f"module \\{name}", synthesis.netlist_of(part.design, FAMILY), flags=re.M)
            (at / f"{number}.il").write_text(re.sub(r"^ *attribute \\top 1\n", "", text, flags=re.M), encoding="utf-8")
            commands.append(f"read_rtlil {number}.il")
        commands += [f"hierarchy -top {synthesis.TOP}", "flatten", "opt_clean", "delete t:$scopeinfo", "write_json flat.json"]
        done = call([yosys.executable(), "-q", "-p", "; ".join(commands)], timeout_s=parts.TIMEOUT_S, cwd=at, stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            raise synthesis.SynthesisError(f"Yosys cannot join the parts: {' '.join(done.stdout.split())[-300:]}")
        return json.loads((at / "flat.json").read_text(encoding="utf-8"))["modules"][synthesis.TOP]


OUTPUTS = re.compile(r"O|Q|CO|LO|P|DO.*")


def _class(cell: str) -> str:
    for pattern, name in ((r"FD..?E?", "ff"), (r"LUT\d|INV", "lut"), (r"MUXF\d", "mux"), (r"CARRY4", "carry"), (r"DSP48E2", "dsp"),
                          (r"RAMB\d+E2", "bram"), (r"URAM288", "uram"), (r"RAM\d+M\d*|RAM\d+X1.", "lutram"), (r"SRL.*", "srl")):
        if re.fullmatch(pattern, cell):
            return name
    raise synthesis.SynthesisError(f"no delays for cell {cell}: add it to gen/tools/timing.py")


def _through(kind: str, pins: dict[str, list[Any]], port: str, index: int) -> Iterator[tuple[Any, float]]:
    """(input net, delay) of the arcs to a cell's output; none if it begins at the clock."""
    d = DELAYS
    if kind in ("lut", "mux"):
        for name, nets in pins.items():
            if name != port:
                yield nets[0], d["LUT" if kind == "lut" else "wide multiplexer"]
    elif kind == "carry":
        to = "carry" if port == "CO" else "sum"
        for bit in range(index + 1):
            if bit <= index:
                yield pins["S"][bit], d[f"carry, select to {to}"]
            if port == "CO" or bit < index:
                yield pins["DI"][bit], d[f"carry, data to {to}"]
        yield pins["CYINIT"][0], d[f"carry, select to {to}"]
        yield pins["CI"][0], d["carry through 4 bits"] if port == "CO" else d["carry, carry to sum"]
    elif kind == "dsp":
        for name in "AB":
            for net in pins.get(name, ()):
                yield net, d["multiplier"]
        for net in pins.get("C", ()):
            yield net, d["multiplier, addend"]
    elif kind == "lutram":
        for name in ("ADDR" + port[2:3], *(f"A{i}" for i in range(8)), *(f"DPRA{i}" for i in range(8))):
            for net in pins.get(name, ()):
                yield net, d["LUT"]
    elif kind == "srl":
        for name in ("A", "A0", "A1", "A2", "A3"):
            for net in pins.get(name, ()):
                yield net, d["LUT"]


BEGINS = {"ff": "clock to flip-flop", "bram": "clock to block RAM", "uram": "clock to UltraRAM", "lutram": "clock to LUT RAM",
          "srl": "clock to LUT RAM"}
ENDS = {"bram": "block RAM setup", "uram": "UltraRAM setup", "lutram": "LUT RAM setup", "srl": "LUT RAM setup"}


def slowest(module: dict[str, Any], clock_hz: int, fill: float, count: int = 10) -> Timing:
    """The slowest paths between registers of a flat netlist that takes the share `fill` of its device's LUTs, one row for all those that
    differ in lanes, elements and bits alone."""
    cells = {name: (_class(cell["type"]), cell["type"], cell["connections"]) for name, cell in module["cells"].items()}
    driver: dict[int, tuple[str, str, int]] = {}
    sinks: Counter[int] = Counter()
    for name, (_, _, pins) in cells.items():
        for port, nets in pins.items():
            for index, net in enumerate(nets):
                if not isinstance(net, int):
                    continue
                if OUTPUTS.fullmatch(port):
                    driver[net] = name, port, index
                else:
                    sinks[net] += 1
    called: dict[int, str] = {}
    for name, wire in sorted(module["netnames"].items(), key=lambda item: (item[1].get("hide_name", 0), "." not in item[0], len(item[0]))):
        for net in wire["bits"]:
            called.setdefault(net, name)

    def nets_delay(net: int, into: str) -> float:
        source = cells[driver[net][0]][0]
        if into == "carry":
            if source == "carry" and driver[net][1] == "CO":
                return 0.0
            if source == "lut" and sinks[net] <= 2:
                return NET_TO_CARRY
        return net_delay(sinks[net], fill, at_memory=source in MEMORY_BLOCKS or into in MEMORY_BLOCKS)

    arrival: dict[int, tuple[float, float, int | None]] = {}
    """By net: when it stands, how much of that are nets, and the net that its path comes from."""

    def arrive(net: int) -> tuple[float, float, int | None]:
        pending = [net]
        while pending:
            here = pending[-1]
            if here in arrival:
                pending.pop()
                continue
            name, port, index = driver[here]
            kind, _, pins = cells[name]
            best = (DELAYS[BEGINS[kind]], 0.0, None) if kind in BEGINS else (0.0, 0.0, None)
            missing = []
            for before, delay in _through(kind, pins, port, index):
                if not isinstance(before, int) or before not in driver:
                    continue
                if before not in arrival:
                    missing.append(before)
                    continue
                wire = nets_delay(before, kind)
                when = arrival[before][0] + wire + delay
                if when > best[0]:
                    best = when, arrival[before][1] + wire, before
            if missing:
                pending += missing
            else:
                arrival[here] = best
                pending.pop()
        return arrival[net]

    def label(net: int) -> str:
        name, port, _ = driver[net]
        named = called.get(net, "")
        if not named or named.startswith("$"):
            named = f"{name.partition('.')[0] if '.' in name else ''}.{cells[name][1]}.{port}".lstrip(".")
        return re.sub(r"\$\d+|\d+", "#", named.lstrip("\\"))

    period = 1e9 / clock_hz - DELAYS["clock uncertainty"] - DELAYS["clock skew"]
    worst: dict[tuple[str, str], tuple[float, int, float, float]] = {}
    number: Counter[tuple[str, str]] = Counter()
    failing = 0
    for kind, kind_name, pins in cells.values():
        if kind not in BEGINS:
            continue
        for port, nets in pins.items():
            if OUTPUTS.fullmatch(port) or "CLK" in port or port == "C":
                continue
            setup = DELAYS[ENDS[kind]] if kind in ENDS else DELAYS["flip-flop setup" if port == "D" else "flip-flop enable or reset setup"]
            for net in nets:
                if not isinstance(net, int) or net not in driver:
                    continue
                when, wires, _ = arrive(net)
                wire = nets_delay(net, kind)
                if kind == "ff" and port == "D" and sinks[net] == 1 and cells[driver[net][0]][0] == "dsp":
                    wire, setup = 0.0, DELAYS["multiplier's output register setup"]  # Vivado takes the one within
                total = when + wire + setup
                failing += total > period
                if kind == "ff":
                    q = pins["Q"][0]
                    end = (label(q) if isinstance(q, int) and q in driver else kind_name) + ("" if port == "D" else f" ({port})")
                else:
                    end = f"{kind_name}.{port}"
                start = net
                while (before := arrival[start][2]) is not None:
                    start = before
                key = label(start), end
                number[key] += 1
                if key not in worst or total > worst[key][0]:
                    worst[key] = total, net, wires + wire, setup
    rows: list[PathRow] = []
    for (start, end), (total, net, wires, _) in sorted(worst.items(), key=lambda item: -item[1][0]):
        chain: list[str] = []
        at: int | None = net
        while at is not None:
            chain.append(cells[driver[at][0]][1])
            at = arrival[at][2]
        chain.reverse()
        folded = [f"{n}x{c}" if n > 1 else c for c, n in _runs(chain)]
        source = start if end.partition(".")[0] in ("RAM32M16", "RAM64M8", "RAMB36E2", "RAMB18E2", "SRL16E") else end
        rows.append({"unit": source.partition(".")[0], "start": start, "end": end, "delay": round(total, 3),
                     "logic": round(total - wires, 3), "nets": round(wires, 3), "cells": folded, "count": number[start, end]})
    units: dict[str, float] = {}
    for item in rows:
        units.setdefault(item["unit"], item["delay"])
    allowance = (f"{NET + NET_PER_FILL * fill:.3f} ns a net at a fill of {fill:.0%}, {NET_PER_ROOT} ns times the root of its sinks, "
                 f"{NET_MOST} ns at most, {NET_AT_MEMORY} ns more beside a memory block, {NET_TO_CARRY} ns from a LUT to its carry")
    return {"period": round(period, 3), "failing": failing, "paths": rows[:count], "units": units, "delays": DELAYS, "allowance": allowance}


def _runs(items: list[str]) -> Iterator[tuple[str, int]]:
    last, times = "", 0
    for item in [*items, ""]:
        if item == last:
            times += 1
        else:
            if times:
                yield last, times
            last, times = item, 1


def worst_paths(config: BuildConfig, fill: float, count: int = 10) -> Timing:
    """The slowest paths of a machine that gen.parts has synthesised for xcup and that takes the share `fill` of its device's LUTs."""
    return slowest(netlist(config), config.clock_hz, fill, count)
