"""What the command line shows: results and texts on stdout, everything else on stderr.

On a terminal, steps that take longer are a progress bar with elapsed and expected time; elsewhere, and on terminals that
cannot move their cursor, they are plain lines at coarse intervals.
"""

from __future__ import annotations

import codecs
import io
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from tritloom.system.ending import undone
from tritloom.system.steps import Update

QUIET_SECONDS = 2.0
"""Steps shorter than this are not mentioned outside a terminal."""
LINE_SECONDS = 20.0

PLAIN = {"µ": "u", "×": "x", "·": "-", "–": "-", "−": "-", "→": "->", "≤": "<=", "≥": ">=", "…": "..."}
"""What stands for a character of our own where an encoding lacks it; others are written as Python writes them, like \\u6f22."""



def _plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(PLAIN.get(c) or c.encode("ascii", "backslashreplace").decode("ascii") for c in lacking), error.end


codecs.register_error("tritloom.plain", _plain)


def prepare_streams() -> bool:
    """Let every text be written, whatever the terminal's encoding; False if stdout is closed.

    A standard stream that was closed is opened on the null device: else the next file would get its number, and what is
    printed would go there.
    """
    open_ = sys.stdout is not None
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="tritloom.plain")
    return open_


class Console:
    """Output of one command. `json`: results are machine-readable; `quiet`: no progress and no remarks; `terminal`: whether stderr
    is one that can move its cursor."""

    shown = False
    """Whether a result has been shown since the command line started."""

    def __init__(self, *, json: bool = False, quiet: bool = False, terminal: bool | None = None) -> None:
        self.json, self.quiet = json, quiet
        able = os.environ.get("TERM", "dumb") not in ("", "dumb", "unknown")
        self.terminal = sys.stderr.isatty() and able if terminal is None else terminal

    def result(self, data: Any, text: str) -> None:
        """The command's result: `data` as JSON or `text` for people."""
        Console.shown = True
        print(json.dumps(data, indent=2, allow_nan=False) if self.json else text, flush=True)

    def summary(self, data: Any, text: str) -> None:
        """The result of a command whose text went to stdout before: `data` as JSON, or `text` beside it, on stderr."""
        if self.json:
            self.result(data, text)
        else:
            self.note(text)

    def stream(self, text: str) -> None:
        """A piece of text as it comes."""
        if not self.json:
            print(text, end="", flush=True)

    def note(self, text: str) -> None:
        """A remark for people."""
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)

    @contextmanager
    def step(self, title: str, *, expected: float | None = None) -> Iterator[Update]:
        """A step that may take long. The value is `update(done, total=1.0, text="")`; a step that cannot
        tell how far it is never calls it. `expected`: seconds it is known to take."""
        if self.quiet:
            yield lambda *_, **__: None
        elif self.terminal:
            with _bar(title, expected) as update:
                yield update
        else:
            with _lines(title, expected) as update:
                yield update


@contextmanager
def _bar(title: str, expected: float | None) -> Iterator[Update]:
    from rich.console import Console as RichConsole
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    hint = f"usually {expected:.0f} s" if expected else ""
    console = RichConsole(stderr=True)
    columns = (
        SpinnerColumn("line" if console.options.ascii_only else "dots"),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[text]}", markup=False),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    # Progress hides the cursor, and shows it again unless it is ended by force.
    with undone(lambda: None, lambda _: _show_cursor()), Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(title, total=None, text=hint)
        yield lambda done, total=1.0, text="": progress.update(task, completed=done, total=total, text=text or hint)


def _show_cursor() -> None:
    with suppress(OSError, ValueError):
        if sys.stderr.isatty():
            os.write(sys.stderr.fileno(), b"\x1b[?25h")


@contextmanager
def _lines(title: str, expected: float | None) -> Iterator[Update]:
    start, fraction, ended = time.monotonic(), [0.0], threading.Event()

    def show(text: str) -> None:
        print(f"{title}: {text}", file=sys.stderr, flush=True)

    def watch() -> None:
        if ended.wait(QUIET_SECONDS):
            return
        show(f"usually {expected:.0f} s ..." if expected else "...")
        while not ended.wait(LINE_SECONDS):
            elapsed = time.monotonic() - start
            part = f"{100 * fraction[0]:.0f} %, " if fraction[0] else ""
            left = f", about {elapsed / fraction[0] - elapsed:.0f} s left" if fraction[0] > 0.02 else ""
            show(f"{part}{elapsed:.0f} s{left}")

    def update(done: float, total: float = 1.0, text: str = "") -> None:
        fraction[0] = done / total if total else 0.0

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield update
    finally:
        ended.set()
        watcher.join()
    elapsed = time.monotonic() - start
    if elapsed > QUIET_SECONDS:
        show(f"done in {elapsed:.1f} s")
