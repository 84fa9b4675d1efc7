"""Unit tests of emitted Verilog: `run` builds a component once and runs cocotb coroutines on it.

A test file holds pytest functions and, beside them, cocotb coroutines:

    import cocotb, harness, streams

    @cocotb.test()
    async def passes(dut):
        p = streams.parameters()
        await streams.start(dut)
        streams.send(dut, "i", p["values"], stall=p["stall"])
        streams.report(got=await streams.receive(dut, "o", len(p["values"]), stall=p["stall"]))

    def test_queue():
        values = [1, 2, 3]
        result = harness.run(Queue(), "queue", __name__, parameters={"values": values, "stall": "random"})
        assert result["got"] == values

`TRITLOOM_SEED=7 pytest ...` repeats a run with seed 7; `TRITLOOM_WAVES=1` writes `dump.vcd` into the run's folder.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import xml.etree.ElementTree as xml
from collections.abc import Callable, Iterator
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import cocotb_tools.config
import pytest
from amaranth.hdl import Shape
from amaranth.lib import data, stream, wiring
from cocotb_tools.runner import Verilator

from seed import seed_from_environment
from tritloom.gen import verilator
from tritloom.gen.verilog.emit import to_verilog
from tritloom.sim.compile import compiler
from tritloom.system.files import scratch, write_atomically

BUILD = Path(__file__).resolve().parent.parent / "build" / "tests"
OPTIMISATION = "-O0"
"""Of the simulation: unit tests spend longer in the compiler, and then in Python, than in the model."""


translate: Callable[[str, str], str] | None = None
"""What is simulated in place of the Verilog of a module, from both (tests/rtl/netlists.py sets it)."""


_verilog = functools.cache(to_verilog)


unit: Callable[..., Any] = functools.cache(lambda kind, *parameters: kind(*parameters))
"""unit(kind, *parameters): a component, which is emitted once for all tests that ask for it."""


def emit(component: Any, name: str) -> Path:
    """Write `component` as Verilog module `name` below build/tests/<name>/, one folder per design and set of tools."""
    text = _verilog(component, name)
    if translate is not None:
        text = translate(text, name)
    tools = (version("cocotb"), verilator.version(), OPTIMISATION, os.environ.get("TRITLOOM_WAVES", ""), sys.prefix)
    key = hashlib.sha256("\0".join((text, *tools)).encode()).hexdigest()[:12]
    path = BUILD / name / key / f"{name}.v"
    if not path.exists():
        write_atomically(path.parent, {path.name: text})
    return path


def run(
    component: Any,
    name: str,
    test_module: str,
    *,
    parameters: dict[str, Any] | None = None,
    testcase: str | None = None,
    seed: int | None = None,
    timeout_s: float = 120,
) -> dict[str, Any]:
    """Run the cocotb tests of `test_module` (or only `testcase`) on `component`; return what they `streams.report`ed.

    `parameters` reach the coroutines as `streams.parameters()`: JSON and numpy values. `seed` defaults to
    `TRITLOOM_SEED`. The compiled simulation is kept and used again while the Verilog stays the same.
    Fails the pytest test with the coroutine's message, the end of the log and the seed.
    """
    __tracebackhide__ = True
    seed = seed_from_environment() if seed is None else seed
    source = emit(component, name)
    _build(source, name)

    test = re.sub(r"\W+", "_", os.environ.get("PYTEST_CURRENT_TEST", "run").split(" ")[0].rsplit("::")[-1])
    folder = source.parent / f"{test[:100]}-{os.getpid()}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    task = {"parameters": parameters or {}, "streams": layouts(component), "seed": seed}
    (folder / "task.json").write_text(json.dumps(task, default=_plain), encoding="utf-8")
    log = folder / "log.txt"

    try:
        os.environ["SIM_CMD_PREFIX"] = f"timeout -k 5 {timeout_s}"
        Verilator().test(
            test_module=test_module,
            hdl_toplevel=name,
            hdl_toplevel_lang="verilog",
            testcase=testcase,
            seed=seed,
            build_dir=source.parent / "sim",
            test_dir=folder,
            log_file=log,
            results_xml=str(folder / "results.xml"),
            waves=bool(os.environ.get("TRITLOOM_WAVES")),
            extra_env={"TRITLOOM_TEST_FOLDER": str(folder), "NO_COLOR": "1", "COCOTB_ANSI_OUTPUT": "0",
                       "COCOTB_REWRITE_ASSERTION_FILES": "cocotb_*.py test_*.py streams.py", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        )
        failure = ""
    except (SystemExit, RuntimeError) as error:
        failure = str(error)
    finally:
        del os.environ["SIM_CMD_PREFIX"]
    messages = _failures(folder / "results.xml")
    if failure or messages:
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-40:]) if log.exists() else ""
        limit = f"\n(the simulation was stopped after timeout_s={timeout_s} s)" if "124" in failure or "137" in failure else ""
        message = f"{name}: {'; '.join(messages) or failure}{limit}\n--- {log}\n{tail}"
        pytest.fail(f"{message}\n--- repeat with TRITLOOM_SEED={seed}; inputs in {folder}/task.json", pytrace=False)
    reported = folder / "report.json"
    result = json.loads(reported.read_text(encoding="utf-8")) if reported.exists() else {}
    if not os.environ.get("TRITLOOM_WAVES"):
        shutil.rmtree(folder)
    return result


def layouts(component: Any) -> dict[str, Any]:
    """Payload description and direction of every stream port of `component`, by port prefix."""
    flows = {path: member.flow for path, member, _ in component.signature.flatten(component)}
    return {
        "__".join(map(str, path)): {"layout": describe(signature.members["payload"].shape), "input": flows[(*path, "payload")] == wiring.In}
        for path, signature in _streams(component.signature, ())
    }


def describe(shape: Any) -> Any:
    """A shape as JSON: ["unsigned", width], ["signed", width], {"struct": {...}} or {"array": [element, length]}."""
    if isinstance(shape, data.StructLayout):
        return {"struct": {key: describe(field.shape) for key, field in shape}}
    if isinstance(shape, data.ArrayLayout):
        return {"array": [describe(shape.elem_shape), shape.length]}
    if isinstance(shape, type) and issubclass(shape, data.Struct):
        return describe(shape.as_shape())
    plain = Shape.cast(shape)
    return ["signed" if plain.signed else "unsigned", plain.width]


def _streams(signature: Any, path: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    for name, member in signature.members.items():
        if member.is_signature:
            for index in product(*map(range, member.dimensions)):
                inner = (*path, name, *index)
                if isinstance(member.signature, stream.Signature):
                    yield inner, member.signature
                else:
                    yield from _streams(member.signature, inner)


HEADERS = ("libgen.h", "memory", "string", "verilated.h", "verilated_vpi.h")
"""What every simulation includes, before anything else."""


def _build(source: Path, name: str) -> None:
    """Compile the simulation beside its Verilog, unless another run or process has.

    A design and cocotb's main program are compiled as one file, after headers that are compiled before, and linked with Verilator's own
    sources, which are the same for every design: 2 s of processor time for TLMM, against 5 s by cocotb's runner and Verilator's makefile.
    """
    from filelock import FileLock  # not above: each simulation imports this module, and never builds

    done = source.parent / "sim" / "built"
    with FileLock(source.parent / "lock"):
        if done.exists():
            return
        shutil.rmtree(done.parent, ignore_errors=True)
        done.parent.mkdir()
        log = source.parent / "build.log"
        trace = ["--trace"] if os.environ.get("TRITLOOM_WAVES") else []
        common = _runtime(bool(trace))
        options = ["--vpi", "--public-depth", "1", "--no-timing", "-Wno-fatal", "--x-assign", "fast", *trace]
        _call([str(verilator.root() / "bin" / "verilator_bin"), "--cc", *options, "--prefix", "Vtop", "--top-module", name, "--Mdir", ".",
               str(source)], done.parent, log)  # fmt: skip
        main = cocotb_tools.config.share_dir / "lib" / "verilator" / "verilator.cpp"
        parts = [main, *sorted(done.parent.glob("*.cpp"))]
        (done.parent / "all.cc").write_text("".join(f'#include "{part}"\n' for part in parts), encoding="utf-8")
        libraries = str(cocotb_tools.config.libs_dir)
        _call([*_compiler(bool(trace)), OPTIMISATION, "-I.", "-include", str(common / "headers.h"), "all.cc", *map(str, common.glob("*.o")),
               f"-L{libraries}", f"-Wl,-rpath,{libraries}", "-lcocotbvpi_verilator", "-o", name], done.parent, log)  # fmt: skip
        done.touch()


def _compiler(trace: bool) -> list[str]:
    include = verilator.root() / "include"
    settings = {"VERILATOR": 1, "VM_COVERAGE": 0, "VM_SC": 0, "VM_TIMING": 0, "VM_TRACE": int(trace), "VM_TRACE_VCD": int(trace)}
    return [compiler(), "-w", f"-I{include}", f"-I{include / 'vltstd'}", *(f"-D{key}={value}" for key, value in settings.items())]


def _runtime(trace: bool) -> Path:
    """The folder of what is the same for every design: the headers, compiled, and Verilator's own sources."""
    from filelock import FileLock

    command = _compiler(trace)
    key = hashlib.sha256("\0".join((verilator.version(), OPTIMISATION, *command)).encode()).hexdigest()[:12]
    folder = BUILD / "runtime" / key
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not folder.exists():
            with scratch(folder.parent) as made:
                log = folder.with_suffix(".log")
                (made / "headers.h").write_text("".join(f"#include <{header}>\n" for header in HEADERS), encoding="utf-8")
                _call([*command, OPTIMISATION, "-x", "c++-header", "headers.h", "-o", "headers.h.gch"], made, log)
                sources = ["verilated", "verilated_vpi", "verilated_threads", *["verilated_vcd_c"] * trace]
                _call([*command, "-Os", "-c", *(str(verilator.root() / "include" / f"{name}.cpp") for name in sources)], made, log)
                made.rename(folder)
    return folder


def _call(command: list[str], folder: Path, log: Path) -> None:
    with open(log, "a", encoding="utf-8") as output:
        output.write(shlex.join(command) + "\n")
        output.flush()
        done = subprocess.run(command, cwd=folder, env=verilator.environment(), stdout=output, stderr=output, timeout=600)
    if done.returncode:
        tail = "\n".join(log.read_text("utf-8", errors="replace").splitlines()[-40:])
        pytest.fail(f"{Path(command[0]).name} fails (status {done.returncode})\n--- {log}\n{tail}", pytrace=False)


def _failures(results: Path) -> list[str]:
    if not results.exists():
        return ["the simulation left no results"]
    cases = xml.parse(results).getroot().iter("testcase")
    bad = [(case.get("name"), mark) for case in cases for mark in (*case.iter("failure"), *case.iter("error"))]
    return [f"{case}: {mark.get('error_msg') or mark.get('message') or 'failed'}" for case, mark in bad]


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is not JSON: {value!r}")


def tests_on_path() -> None:
    """Simulations import test modules by name: keep their folders importable in them."""
    here = Path(__file__).parent
    sys.path[:0] = [str(folder) for folder in (here, here / "rtl") if str(folder) not in sys.path]


tests_on_path()
