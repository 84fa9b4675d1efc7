"""Designs as what synthesis makes of them: a netlist of ECP5 cells, simulated with the cells' own models.

The netlist is made by the commands that the bitstream is placed from (gen/tools/bitstream.py). Its cells are simulated by the
models that come with Yosys, but for block RAM and multipliers, of which it has only the ports: cells_ecp5.v.

`make netlist` (`python netlist.py --store`) runs tests of every unit on its netlist (tests/rtl/netlists.py), then the whole ECP5 machine
of a model, whose vectors and tokens must be those of the emulator and of the integer model. docs/results/netlist.json keeps what came
of the machine; tests/rtl/test_netlist.py says when that holds no more.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyosys

from tritloom.gen import verilator
from tritloom.gen.models import open_checkpoint
from tritloom.gen.pack import pack, quantise
from tritloom.gen.tools import synthesis, yosys
from tritloom.gen.tools.scan import ports
from tritloom.gen.verilog.contents import without_zero_contents
from tritloom.gen.verilog.digests import digest, plain
from tritloom.gen.verilog.generate import cached_verilog
from tritloom.host.image import open_image, write_image
from tritloom.sim.backends import SimBackend
from tritloom.sim.bench import stored
from tritloom.sim.check import equality
from tritloom.sim.check.verify import compare
from tritloom.sim.integer_model import IntegerModel
from tritloom.system import files, processes

HERE = Path(__file__).resolve().parent
RESULTS = equality.ROOT / "docs" / "results" / "netlist.json"
FAMILY = "ecp5"
MODEL, BOARD = "stories-260k", "ecp5-85f"
PROMPT, TOKENS = 8, 8
SYNTHESIS_S = 3600


def models() -> tuple[list[Path], Path]:
    """Verilog of the cells: Yosys' models, and ours of those that it has none of."""
    share = Path(pyosys.__file__).parent / "share" / "lattice"
    return [share / "common_sim.vh", share / "ccu2c_sim.vh"], HERE / "cells_ecp5.v"


def netlist(verilog: str, top: str, name: str) -> tuple[str, dict[str, int]]:
    """Verilog of the netlist of module `top`, which becomes module `name`, and how many cells of each kind it has. Kept; takes from half
    a minute to ten. Yosys puts its models in place of the cells: thousands of modules with parameters take Verilator minutes."""
    text = plain(without_zero_contents(verilog))
    how: dict[str, Any] = {"read": "read_verilog", "top": top, "timeout_s": SYNTHESIS_S}
    counts = synthesis.cells_of(text, FAMILY, **how)
    known, ours = models()
    with files.scratch(files.cache("scratch")) as at:
        (at / "netlist.il").write_text(synthesis.netlist_of(text, FAMILY, **how), encoding="utf-8")
        script = (f"read_rtlil netlist.il; delete t:$scopeinfo; {' '.join(f'read_verilog -DNO_INCLUDES {path};' for path in known)} "
                  f"hierarchy -top {top}; proc; flatten -wb; opt_expr; opt_clean -purge; rename {top} {name}; "
                  f"write_verilog -noattr {name}.v")
        done = processes.call([yosys.executable(), "-q", "-p", script], timeout_s=600, cwd=at, stderr=subprocess.PIPE, text=True)
        assert done.returncode == 0, f"Yosys cannot write the netlist: {done.stderr}"
        return (at / f"{name}.v").read_text("utf-8") + ours.read_text("utf-8"), counts


def as_netlist(verilog: str, top: str) -> str:
    """Verilog whose module `top` has the pins of the design's, and the netlist within: so that only the pins are seen from outside."""
    pins = ports(verilog, top)
    declared = "\n".join(f"  {direction} {f'[{width - 1}:0] ' * (width > 1)}{name} ;" for direction, name, width in pins)
    names = [name for _, name, _ in pins]
    outside = (f"module {top}({', '.join(names)});\n{declared}\n"
               f"  {top}_cells cells({', '.join(f'.{name}({name})' for name in names)});\nendmodule\n")
    return outside + netlist(verilog, top, f"{top}_cells")[0]


# The whole machine -----------------------------------------------------------------------------


def tools() -> dict[str, str]:
    return {"yosys": version("pyosys"), "verilator": verilator.version(), "models": digest(models()[1].read_bytes())}


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
            found = compare(backend, image, IntegerModel(quantise(checkpoint), config.shortlist), prompt, TOKENS)
            cycles = backend.machine.cycles
        finally:
            backend.close()
    tell("equal" if found.equal else str(found.first_difference()))
    return {"model": MODEL, "machine": BOARD, "prompt_tokens": len(prompt), "generated_tokens": found.compared_tokens, "equal": found.equal,
            "first_difference": found.first_difference(), "cycles": cycles, "cells": dict(sorted(counts.items())), "tools": tools(),
            "seconds": round(time.monotonic() - started), "date": datetime.now(timezone.utc).date().isoformat()} | made


def load() -> dict[str, Any]:
    return json.loads(RESULTS.read_text("utf-8"))


def main(arguments: list[str]) -> int:
    """Run the units' tests, then the machine; `--store` keeps what came of it."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", str(HERE / "rtl" / "netlists.py")]
    if status := subprocess.run(command, cwd=HERE.parent).returncode:
        return status
    entry = measure(logging.getLogger(__name__).info)
    if "--store" in arguments:
        results = {"command": "make netlist", "kind": "netlist-simulated", "entries": [entry]}
        files.write_atomically(RESULTS.parent, {RESULTS.name: json.dumps(results, indent=1) + "\n"})
    return int(not entry["equal"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
