"""Designs as what synthesis makes of them: a netlist of ECP5 or Gowin cells, simulated with the cells' own models.

The netlist is made by the commands that the bitstream is placed from (gen/tools/bitstream.py). Its cells are simulated by the
models that come with Yosys, but for block RAM and multipliers, of which it has only the ports: cells_ecp5.v, cells_gowin.v.

`make netlist` (`python netlist.py --store`) runs tests of every unit on its netlist (tests/rtl/netlists.py), then the whole ECP5 machine
of a model, whose vectors and tokens must be those of the emulator and of the integer model, then the BOARDS: the very file that a board's
bitstream is placed from, with a host at its UART and the model of its SDRAM, must write the tokens of the emulator, in the cycles that its
Verilog takes. docs/results/netlist.json keeps what came of machine and boards; tests/rtl/test_netlist.py says when that holds no more.
`python netlist.py ulx3s` runs one board alone.
"""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyosys

from tritloom.boards.board import Board, load
from tritloom.gen import verilator
from tritloom.gen.models import open_checkpoint
from tritloom.gen.pack import pack, quantise
from tritloom.gen.tools import synthesis, yosys
from tritloom.gen.tools.bitstream import Design, check_board, synthesised
from tritloom.gen.tools.scan import ports
from tritloom.gen.verilog.contents import without_zero_contents
from tritloom.gen.verilog.digests import digest, plain
from tritloom.gen.verilog.generate import cached_verilog
from tritloom.host.backends.emulator import EmulatorBackend
from tritloom.host.image import Image, open_image, write_image
from tritloom.host.session import Session
from tritloom.sim.backends import SimBackend
from tritloom.sim.bench import boards, stored
from tritloom.sim.board import BoardBackend, SimulatedBoard
from tritloom.sim.check import equality
from tritloom.sim.check.verify import compare
from tritloom.sim.integer_model import IntegerModel
from tritloom.sim.prepare import image_of
from tritloom.system import files, processes
from tritloom.system.steps import Unseen

HERE = Path(__file__).resolve().parent
RESULTS = equality.ROOT / "docs" / "results" / "netlist.json"
FAMILY = "ecp5"
MODEL, BOARD = "stories-260k", "ecp5-85f"
PROMPT, TOKENS = 8, 8
SYNTHESIS_S = 3600
BOARDS = (boards.Row(board="ulx3s", model=MODEL, settings={"vector_lanes": 1}), boards.Row(board="tang-nano-20k", model=MODEL),
          boards.Row(board="colorlight-i5", model=MODEL))
BOARD_PROMPT, BOARD_TOKENS = (1, 50, 60, 70), 3
SENT = 256
"""Bytes of each part of an image that a board gets over the line; the rest is put into its SDRAM directly."""


YOSYS_MODELS = {"ecp5": ("lattice/common_sim.vh", "lattice/ccu2c_sim.vh"), "gowin": ("gowin/cells_sim.v",)}
OUR_MODELS = {"ecp5": ("cells_ecp5.v", "pads_ecp5.v"), "gowin": ("cells_gowin.v",)}
"""By family, Verilog of the cells: Yosys' models, and ours of those that it has none of, or none that Verilator takes."""


def netlist(verilog: str, top: str, name: str) -> tuple[str, dict[str, int]]:
    """Verilog of the netlist of module `top`, which becomes module `name`, and how many cells of each kind it has. Kept; takes from half
    a minute to ten. Yosys puts its models in place of the cells: thousands of modules with parameters take Verilator minutes."""
    text = plain(without_zero_contents(verilog))
    how: dict[str, Any] = {"read": "read_verilog", "top": top, "timeout_s": SYNTHESIS_S}
    counts = synthesis.cells_of(text, FAMILY, **how)
    with files.scratch(files.cache("scratch")) as at:
        (at / "netlist.il").write_text(synthesis.netlist_of(text, FAMILY, **how), encoding="utf-8")
        return _with_models(at, "read_rtlil netlist.il", FAMILY, top, name), counts


def board_netlist(design: Design, board: Board) -> tuple[str, dict[str, int]]:
    """The same of a whole board's module: of the file that it is placed from."""
    with files.scratch(files.cache("scratch")) as at:
        synthesised(design, check_board(board), at, time.monotonic() + SYNTHESIS_S)
        cells = json.loads((at / "machine.json").read_text("utf-8"))["modules"][design.top]["cells"].values()
        counts = Counter(cell["type"] for cell in cells if not cell["type"].startswith("$"))
        return _with_models(at, "read_json machine.json", board.family, design.top, design.top), dict(counts)


def _with_models(at: Path, read: str, family: str, top: str, name: str) -> str:
    """Verilog of a netlist in folder `at`."""
    ours = "".join((HERE / path).read_text("utf-8") for path in OUR_MODELS[family])
    pads = (boards.CELLS / f"{family}.v").read_text("utf-8")
    share = Path(pyosys.__file__).parent / "share"
    known = " ".join(f"read_verilog -DNO_INCLUDES {share / path};" for path in YOSYS_MODELS[family])
    kept = " ".join(f"={cell}" for cell in re.findall(r"^module (\w+)", ours + pads, re.MULTILINE))
    script = (f"{read}; delete t:$scopeinfo =A:blackbox; {known} delete {kept}; hierarchy -top {top}; proc; flatten -wb; opt_expr; "
              f"opt_clean -purge; rename {top} {name}; write_verilog -noattr {name}.v")
    done = processes.call([yosys.executable(), "-q", "-p", script], timeout_s=600, cwd=at, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, f"Yosys cannot write the netlist: {done.stderr}"
    return (at / f"{name}.v").read_text("utf-8") + ours


def as_netlist(verilog: str, top: str) -> str:
    """Verilog whose module `top` has the pins of the design's, and the netlist within: so that only the pins are seen from outside."""
    pins = ports(verilog, top)
    declared = "\n".join(f"  {direction} {f'[{width - 1}:0] ' * (width > 1)}{name} ;" for direction, name, width in pins)
    names = [name for _, name, _ in pins]
    outside = (f"module {top}({', '.join(names)});\n{declared}\n"
               f"  {top}_cells cells({', '.join(f'.{name}({name})' for name in names)});\nendmodule\n")
    return outside + netlist(verilog, top, f"{top}_cells")[0]


# The whole machine -----------------------------------------------------------------------------


def tools(family: str = FAMILY, count: int = 1) -> dict[str, str]:
    """Versions, and the digest of the first `count` files of our models: a machine has no pads."""
    ours = [(HERE / path).read_bytes() for path in OUR_MODELS[family][:count]]
    return {"yosys": version("pyosys"), "verilator": verilator.version(), "models": digest(*ours)}


def holds(entry: dict[str, Any]) -> str:
    """stored.CURRENT, or why the machine's entry is not what would be measured today."""
    if entry["tools"] != tools():
        return f"stale: made with other tools or cell models than {tools()}"
    return stored.state_of(entry)


def measure(report: Callable[[str], None]) -> dict[str, Any]:
    """Synthesise the machine, compile the netlist, and compare it; the entry of the results file."""
    started = time.monotonic()

    def tell(what: str) -> None:
        report(f"{time.monotonic() - started:5.0f} s: {what}")

    checkpoint = open_checkpoint(equality.ROOT / "models" / MODEL)
    config = equality.machine(checkpoint, BOARD)
    tell("Verilog")
    verilog = cached_verilog(config)
    tell("synthesis (two minutes or more)")
    text, counts = netlist(verilog, "top", "top")
    tell(f"a netlist of {sum(counts.values())} cells; compiling it")
    packed = pack(checkpoint, config)
    prompt = equality.prompts(checkpoint, config)[-1][:PROMPT]
    with files.scratch(files.cache("scratch")) as folder:
        write_image(folder / "image", config=config, spec=checkpoint.spec.to_dict(), sections=packed.sections)
        image = open_image(folder / "image")
        made = stored.digests(None, config, image)
        backend = SimBackend.build(config, text, memory_bytes=packed.map.total_bytes, timing="ideal",
                                   progress=lambda share, what: tell(f"compiled {share:.0%}: {what}"))
        tell("running")
        try:
            found = compare(backend, image, IntegerModel.of(quantise(checkpoint), config), prompt, TOKENS)
            cycles = backend.machine.cycles
        finally:
            backend.close()
    tell("equal" if found.equal else str(found.first_difference()))
    return {"model": MODEL, "machine": BOARD, "prompt_tokens": len(prompt), "generated_tokens": found.compared_tokens, "equal": found.equal,
            "first_difference": found.first_difference(), "cycles": cycles, "cells": dict(sorted(counts.items())), "tools": tools(),
            "seconds": round(time.monotonic() - started), "date": datetime.now(timezone.utc).date().isoformat()} | made


# Boards ----------------------------------------------------------------------------------------


class _Partly(BoardBackend):
    """The beginning of each part of an image goes over the line, and the rest is put into the SDRAM directly."""

    def load(self, address: int, data: Any) -> None:
        """At a byte address."""
        super().load(address, data[:SENT])
        memory, new = np.frombuffer(self.board.memory(), np.uint8), np.frombuffer(data, np.uint8)
        memory[address + SENT : address + len(new)] = new[SENT:]


def written(simulated: SimulatedBoard, image: Image) -> tuple[list[int], int]:
    """What a board writes after `BOARD_PROMPT`, and in how many cycles since it was switched on."""
    simulated.run(int(boards.START_S * simulated.clock_hz))
    with Session(_Partly(simulated), image) as session:
        memory = np.frombuffer(simulated.memory(), np.uint8)
        for address, data in image.memory():
            assert (memory[address : address + len(data)] == np.frombuffer(data, np.uint8)).all(), f"not as it was sent: 0x{address:x}"
        tokens = list(session.generate(list(BOARD_PROMPT), BOARD_TOKENS))
        return tokens, simulated.cycles


def board_holds(entry: dict[str, Any]) -> str:
    """stored.CURRENT, or why a board's entry is not what would be measured today."""
    row = next(row for row in BOARDS if row.board == entry["board"])
    now = board_tools(row)
    if entry["tools"] != now:
        return f"stale: made with other tools or cell models than {now}"
    return boards.state_of(entry, boards.decode_digests(row, row.fitted()))


def board_tools(row: boards.Row) -> dict[str, str]:
    """Those of a board's netlist."""
    family = load(row.board).family
    return tools(family, len(OUR_MODELS[family]))


def measure_board(row: boards.Row, report: Callable[[str], None]) -> dict[str, Any]:
    """Synthesise a board, let its Verilog and its netlist write, and compare; the entry of the results file."""
    started = time.monotonic()

    def tell(what: str) -> None:
        report(f"{time.monotonic() - started:5.0f} s: {what}")

    def compiled(share: float, what: str) -> None:
        tell(f"compiled {share:.0%}: {what}")

    board, result = load(row.board), row.fitted()
    config, digests = result.config, boards.decode_digests(row, result)
    image = image_of(row.source, row.source.open(), config, Unseen())
    with Session(EmulatorBackend(config, image.map.total_bytes), image) as session:
        expected = list(session.generate(list(BOARD_PROMPT), BOARD_TOKENS))
    tell(f"{row.board}: its Verilog")
    rtl = written(SimulatedBoard(config, board, progress=compiled), image)
    tell(f"wrote {rtl[0]} in {rtl[1]:,} cycles; synthesis (some minutes)")
    text, counts = board_netlist(Design.of(config, board), board)
    tell(f"a netlist of {sum(counts.values())} cells; compiling it")
    simulated = SimulatedBoard(config, board, verilog=text, progress=compiled)
    tell("running")
    tokens, cycles = written(simulated, image)
    equal = tokens == expected and (tokens, cycles) == rtl
    tell(f"wrote {tokens} in {cycles:,} cycles: {'equal' if equal else f'DIFFERENT, {expected} by the emulator'}")
    return {"model": row.model, "board": row.board, "settings": row.settings, "prompt": list(BOARD_PROMPT), "tokens": tokens,
            "equal": equal, "cycles": cycles, "cells": dict(sorted(counts.items())), "tools": board_tools(row),
            "seconds": round(time.monotonic() - started), "date": datetime.now(timezone.utc).date().isoformat(),
            "digests": digests, "configuration": config.to_dict()}


def read() -> dict[str, Any]:
    """The results file."""
    return json.loads(RESULTS.read_text("utf-8"))


def main(arguments: list[str]) -> int:
    """Run the units' tests, the machine and the boards, or the boards that are named; `--store` keeps what came of them."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    say = logging.getLogger(__name__).info
    named = [name for name in arguments if name != "--store"]
    if unknown := set(named) - {row.board for row in BOARDS}:
        raise SystemExit(f"no netlist of {', '.join(sorted(unknown))}")
    results: dict[str, Any] = {"command": "make netlist", "kind": "netlist-simulated"} | (read() if RESULTS.is_file() else {})
    if not named:
        command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", str(HERE / "rtl" / "netlists.py")]
        if status := subprocess.run(command, cwd=HERE.parent).returncode:
            return status
        results["entries"] = [measure(say)]
    made = {row.board: measure_board(row, say) for row in BOARDS if not named or row.board in named}
    there = {entry["board"]: entry for entry in results.get("boards", [])} | made
    results["boards"] = [there[row.board] for row in BOARDS if row.board in there]
    if "--store" in arguments:
        files.write_atomically(RESULTS.parent, {RESULTS.name: json.dumps(results, indent=1) + "\n"})
    return int(not all(entry["equal"] for entry in (*results.get("entries", ()), *made.values())))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
