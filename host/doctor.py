"""What this machine has of what tritloom needs. Prints nothing; `tritloom doctor` shows it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Any

from tritloom.firmware.errors import TritloomError

OLDEST = (3, 10)
"""Python that pyproject.toml asks for."""

PURPOSES = {
    "": "everything",
    "gen": "tritloom generate, GGUF files",
    "sim": "tritloom run on the simulated machine",
    "build": "tritloom build",
    "plain": "make plain",
    "test": "make test",
}
"""What each optional part of the package is for."""

NEEDED = ("", "gen", "sim")
"""Parts without which `tritloom run` cannot work on the simulated machine."""

SYSTEM_TOOLS = {"g++": "g++", "make": "make", "perl": "perl"}
"""Programs the simulator needs, and the Debian package of each."""


def findings() -> list[dict[str, Any]]:
    """One row for each requirement: name, ok, detail (what was found), fix, needed_for, required.

    `fix` says what to install where `ok` is false. `required` rows must be ok for the demo to run;
    the others only for what `needed_for` names.
    """
    rows = [_python()]
    for tool, package in SYSTEM_TOOLS.items():
        rows.append(_row(tool, "sim", _compiler if tool == "g++" else lambda tool=tool: _tool(tool), f"apt install {package}"))
    pinned = _pinned()
    if not pinned:
        rows.append(_row("tritloom", "", _not_installed, "make setup, or pip install the folder of tritloom's pyproject.toml"))
    rows += [_package(name, version, part) for name, version, part in pinned]
    rows.append(_row("yosys runs", "gen", _yosys, "make setup, or pip install --force-reinstall pyosys"))
    rows.append(_row("verilator runs", "sim", _verilator, "apt install perl, then make setup"))
    rows.append(_row("libpython", "test", _libpython, f"apt install libpython3.{sys.version_info.minor}"))
    return rows


class _Missing(TritloomError):
    """What was looked for is not there; the message says what was seen."""


def _row(name: str, part: str, look: Callable[[], str], fix: str) -> dict[str, Any]:
    try:
        ok, detail = True, look()
    except (_Missing, OSError, subprocess.SubprocessError, ImportError) as error:
        ok, detail = False, " ".join(str(error).split()) or type(error).__name__
    row = {"name": name, "ok": ok, "detail": detail, "fix": "" if ok else fix}
    return row | {"needed_for": PURPOSES.get(part, part), "required": part in NEEDED}


def _python() -> dict[str, Any]:
    def look() -> str:
        if sys.version_info < OLDEST:
            raise _Missing(f"{sys.version.split()[0]} is too old")
        return sys.version.split()[0]

    wanted = ".".join(map(str, OLDEST))
    return _row("python", "", look, f"install Python {wanted} or newer, then make distclean and make PYTHON=python{wanted} demo")


def _tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise _Missing(f"{name} is not on PATH")
    return found


def _compiler() -> str:
    """CXX or g++, if it compiles: a compiler may be there without the library's headers."""
    found = _tool(os.environ.get("CXX", "").strip() or "g++")
    run = subprocess.run([found, "-x", "c++", "-std=gnu++17", "-fsyntax-only", "-"], input="#include <cstdint>\n", capture_output=True,
                         text=True, timeout=60)  # fmt: skip
    if run.returncode:
        raise _Missing(f"{found} does not compile C++17: {run.stderr.strip()[:200]}")
    return found


def _not_installed() -> str:
    raise _Missing("not installed as a package: what it needs is not known")


def _pinned() -> list[tuple[str, str, str]]:
    """Name, version and part of every package that pyproject.toml pins."""
    try:
        lines = requires("tritloom") or []
    except PackageNotFoundError:
        return []
    rows = []
    for line in lines:
        match = re.match(r"([\w.-]+)(?:\[[^]]*\])?\s*==\s*([^\s;]+)(?:.*extra == [\"'](\w+)[\"'])?", line)
        if match and _for_this_python(line):
            rows.append((match[1], match[2], match[3] or ""))
    return rows


def _for_this_python(requirement: str) -> bool:
    """Whether a requirement's marker, such as python_version >= '3.11', holds here."""
    for sign, text in re.findall(r"python_version\s*(<|>=)\s*[\"']([\d.]+)[\"']", requirement):
        if (sys.version_info[:2] < tuple(map(int, text.split(".")))) != (sign == "<"):
            return False
    return True


def _package(name: str, pinned: str, part: str) -> dict[str, Any]:
    def look() -> str:
        try:
            found = version(name)
        except PackageNotFoundError:
            raise _Missing("not installed") from None
        # A local label such as +cpu names a build of the same version.
        return found if found.split("+")[0] == pinned else f"{found} (tried with {pinned})"

    return _row(name, part, look, f"make setup, or pip install {name}=={pinned}")


def _yosys() -> str:
    from tritloom.gen.tools import yosys

    command = os.environ.get("YOSYS") or str(yosys.executable())
    return subprocess.run([command, "-V"], check=True, capture_output=True, text=True, timeout=120).stdout.strip()


def _verilator() -> str:
    from tritloom.gen import verilator

    return verilator.version()


def _libpython() -> str:
    """cocotb embeds Python into the simulation: the interpreter must exist as a shared library."""
    from find_libpython import find_libpython

    path = find_libpython()
    if path is None:
        raise _Missing("this Python has no shared library")
    return path
