"""What the command line shows: results on stdout, everything else on stderr.

On a terminal, steps that take longer are a progress bar with elapsed and expected time; elsewhere they are
plain lines at coarse intervals; with `--json`, nothing.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

QUIET_SECONDS = 2.0
"""Steps shorter than this are not mentioned outside a terminal."""
LINE_SECONDS = 20.0

Update = Callable[..., None]


class Console:
    """Output of one command. `json`: machine-readable, without progress; `terminal`: whether stderr is one."""

    def __init__(self, *, json: bool = False, terminal: bool | None = None) -> None:
        self.json = json
        self.terminal = sys.stderr.isatty() if terminal is None else terminal

    def result(self, data: Any, text: str) -> None:
        """The command's result: `data` as JSON or `text` for people."""
        print(json.dumps(data, indent=2, allow_nan=False) if self.json else text, flush=True)

    def stream(self, text: str) -> None:
        """A piece of text as it comes."""
        if not self.json:
            print(text, end="", flush=True)

    def note(self, text: str) -> None:
        """A remark for people."""
        if not self.json:
            print(text, file=sys.stderr, flush=True)

    @contextmanager
    def step(self, title: str, *, expected: float | None = None) -> Iterator[Update]:
        """A step that may take long. The value is `update(done, total=1.0, text="")`; a step that cannot
        tell how far it is never calls it. `expected`: seconds it is known to take."""
        if self.json:
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
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[text]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=RichConsole(stderr=True), transient=True) as progress:
        task = progress.add_task(title, total=None, text=hint)
        yield lambda done, total=1.0, text="": progress.update(task, completed=done, total=total, text=text or hint)


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
