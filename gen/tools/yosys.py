"""Yosys without a system installation: a command built on the pinned pyosys wheel.

`pyosys` is Yosys as a native Python extension, but it brings no `yosys` command. This module is
that command (installed as `tritloom-yosys`), with the few options Amaranth and the build flows
use, and `prepare()`, which makes Amaranth call it.
"""

from __future__ import annotations

import errno
import importlib.util
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

from tritloom.system.processes import end_with_parent

COMMAND = "tritloom-yosys"

USAGE = f"usage: {COMMAND} [-V] [-q] [-l LOGFILE] [-p COMMANDS] [-s SCRIPT] [FILE ... | -]"


def executable() -> Path:
    """The installed command, beside the running interpreter or on PATH. Raises `ModuleNotFoundError` without pyosys."""
    if importlib.util.find_spec("pyosys") is None:
        raise ModuleNotFoundError("Yosys is not installed", name="pyosys")
    beside = Path(sys.executable).parent / COMMAND
    if beside.exists():
        return beside
    found = shutil.which(COMMAND)
    if found is None:
        raise FileNotFoundError(errno.ENOENT, f"not installed beside {sys.executable}: run `make setup`, or pip install tritloom", COMMAND)
    return Path(found)


def prepare() -> None:
    """Let Amaranth's Verilog back end use this command, unless the user's environment names a Yosys."""
    if "YOSYS" not in os.environ:
        os.environ["YOSYS"] = str(executable())


def main(arguments: list[str] | None = None) -> int:
    """Run Yosys on scripts, commands and Verilog files in the order given; `-` is a script on standard input."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    end_with_parent()
    if importlib.util.find_spec("pyosys") is None:
        print(f"{COMMAND}: the package pyosys is missing: pip install 'tritloom[gen]'", file=sys.stderr)
        return 1
    if given in (["-V"], ["--version"]):
        from pyosys import libyosys  # type: ignore[attr-defined]

        print(libyosys.yosys_maybe_version())
        return 0
    try:
        quiet, log, script = _parse(given)
    except ValueError as error:
        print(f"{error}\n{USAGE}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    # Files without a name: nothing is left of them, however this ends.
    with tempfile.TemporaryFile() as commands, tempfile.TemporaryFile() as said:
        commands.write("\n".join(script).encode("utf-8", "surrogateescape") + b"\n")
        commands.flush()
        log = log or f"/dev/fd/{said.fileno()}"
        # Yosys ends its whole process on an error: a child takes that, so that the log can still be read.
        child = os.fork()
        if child == 0:
            end_with_parent()
            _run(["tee", *(["-q"] if quiet else []), "-o", log, "script", f"/dev/fd/{commands.fileno()}"])
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status != 0 and quiet and Path(log).exists():
            lines = Path(log).read_text(encoding="utf-8", errors="replace").splitlines()
            print("\n".join([line for line in lines if "ERROR" in line] or lines[-5:]), file=sys.stderr)
    return status if status >= 0 else 128 - status


def _parse(pending: list[str]) -> tuple[bool, str | None, list[str]]:
    quiet, log, script = False, None, []
    while pending:
        option = pending.pop(0)
        if option == "-q":
            quiet = True
        elif option in ("-l", "-p", "-s"):
            if not pending:
                raise ValueError(f"{option} needs a value")
            value = pending.pop(0)
            if option == "-l":
                log = value
            else:
                script.append(value if option == "-p" else Path(value).read_text("utf-8"))
        elif option == "-":
            script.append(sys.stdin.read())
        elif option.startswith("-"):
            raise ValueError(f"{option} is not supported")
        else:
            script.append(Path(option).read_text("utf-8") if option.endswith(".ys") else f'read_verilog "{option}"')
    return quiet, log, script


def _run(command: list[str]) -> NoReturn:
    """Run one Yosys command in this process, then end the process."""
    from pyosys import libyosys  # type: ignore[attr-defined]

    libyosys.Pass.call(libyosys.Design(), command)
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    raise SystemExit(main())
