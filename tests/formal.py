"""Proofs for all time: what Amaranth elaborates, assertions and assumptions included, by Yosys and ABC's property-directed reachability.

Every register and memory begins in any state. The first cycles are a reset, in which assertions do not count; then anything may come that
the assumptions allow, further resets too. No depth is chosen: ABC finds the invariant that makes the assertions inductive.
"""

from __future__ import annotations

import inspect
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

import pyosys
from amaranth import Elaboratable, Module, ResetSignal, Signal, Value, ValueCastable
from amaranth.asserts import Initial
from amaranth.back import rtlil
from amaranth.hdl import Assume

from tritloom.gen.tools import yosys

ABC = Path(pyosys.__file__).parent / "yosys-abc"
LIMIT_S = 300
"""Seconds of processor time that a proof may take."""
READ = "read_rtlil design.il; hierarchy -top top; proc; flatten; setattr -unset init w:*; delete t:$meminit*; memory_map; " \
       "chformal -lower; async2sync; opt -full"
WRITE = "setundef -undriven -anyseq; techmap; opt -fast; dffunmap; aigmap; opt_clean -purge; write_aiger -B -zinit design.aig"
SOLVE = "read_aiger design.aig; fold; orpos; scleanup; scorr; pdr -f -s"


class _FromReset(Elaboratable):
    """The first cycles are a reset."""

    def __init__(self, design: Elaboratable, cycles: int) -> None:
        self.design, self.cycles = design, cycles

    def elaborate(self, platform):
        m = Module()
        m.submodules.design = self.design
        first = Initial()
        for _ in range(self.cycles):
            m.d.comb += Assume(~first | ResetSignal())
            later = Signal(reset_less=True)  # whatever it begins with, it asks for a reset in these cycles only
            m.d.sync += later.eq(first)
            first = later
        return m


def prove(design: Elaboratable, ports: Iterable[Value | ValueCastable], folder: Path, *, reset_cycles: int = 1) -> None:
    """Prove every assertion of `design` for all time after a reset of `reset_cycles`. `ports` may be anything in each cycle that the
    assumptions allow; so may further resets. Fails with a trace."""
    cycles = refutation(design, ports, folder, reset_cycles=reset_cycles)
    if cycles is not None:
        _yosys(folder, f"{_read(reset_cycles)}; sat -tempinduct-baseonly -prove-asserts -set-assumes -maxsteps {cycles} "
                       "-show-ports -show-regs top")
        trace = (folder / "log").read_text("utf-8", errors="replace").partition("Time Signal Name")[2]
        raise AssertionError(f"an assertion fails in cycle {cycles}:\n{trace}")


def refutation(design: Elaboratable, ports: Iterable[Value | ValueCastable], folder: Path, *, reset_cycles: int = 1) -> int | None:
    """None if every assertion holds for all time, else a cycle, counted from 1, in which one fails. Raises `TimeoutError` if neither is
    found."""
    text = rtlil.convert(_FromReset(design, reset_cycles), ports=[Value.cast(port) for port in ports], name="top", emit_src=False)
    (folder / "design.il").write_text(text, "utf-8")
    _yosys(folder, f"{_read(reset_cycles)}; {WRITE}")
    command = ["sh", "-c", f'ulimit -t {LIMIT_S}; exec "$0" "$@"', str(ABC), "-q", SOLVE]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if "Property proved." in done.stdout:
        return None
    found = re.search(r"was asserted in frame (\d+)", done.stdout)
    if found is None:
        raise TimeoutError(f"neither proved nor refuted within {LIMIT_S} s:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return int(found[1]) + 1


def _read(reset_cycles: int) -> str:
    return f"{READ}; chformal -assert -skip {reset_cycles}"


def _yosys(folder: Path, script: str) -> None:
    command = [str(yosys.executable()), "-q", "-l", "log", "-p", script]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def broken(module: ModuleType, right: str, wrong: str) -> ModuleType:
    """A copy of a module with one place of its source changed: what a proof must refute."""
    source = inspect.getsource(module)
    assert source.count(right) == 1, f"{source.count(right)} places read {right!r}"
    copy = ModuleType(module.__name__)
    copy.__file__ = module.__file__
    exec(compile(source.replace(right, wrong), module.__file__ or "", "exec"), copy.__dict__)
    return copy
