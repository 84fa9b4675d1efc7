"""Proofs by induction: Yosys' own SAT solver on what Amaranth elaborates, assertions and assumptions included."""

import subprocess
from pathlib import Path

from amaranth import Elaboratable, Value, ValueCastable
from amaranth.back import rtlil

from tritloom.gen.tools import yosys


def prove(design: Elaboratable, ports: list[ValueCastable | Value], folder: Path, *, depth: int) -> None:
    """Prove every assertion of `design` for all time: none fails within `depth` cycles of reset, and none after up to `depth` good cycles
    from any state. `ports` may be anything in each cycle that the assumptions allow; so may the reset. Fails with the solver's trace."""
    text = rtlil.convert(design, ports=[Value.cast(port) for port in ports], name="top", emit_src=False, platform="formal")
    (folder / "design.il").write_text(text, "utf-8")
    script = (f"read_rtlil design.il; hierarchy -top top; proc; flatten; memory_map; chformal -lower; async2sync; opt -full; "
              f"sat -tempinduct -prove-asserts -set-assumes -maxsteps {depth} -verify -show-ports -show-regs top")
    command = [str(yosys.executable()), "-q", "-l", "log", "-p", script]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)
    log = (folder / "log").read_text("utf-8", errors="replace") if (folder / "log").exists() else done.stderr
    assert done.returncode == 0 and "Induction step proven: SUCCESS!" in log, \
        f"not proven within {depth} cycles:\n" + "\n".join(log.splitlines()[-150:])
