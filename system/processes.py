"""Programs that this one starts, and that end with it: each in a process group of its own, so that what it starts ends too."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tritloom.system.ending import undone

__all__ = ["call", "end_with_parent", "kill", "started"]


@contextmanager
def started(command: Sequence[str | Path], **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """A running program; at the end of the block it is killed with all that it has started, if it has not ended. `options` are Popen's,
    but that stdin is empty unless given."""
    options.setdefault("stdin", subprocess.DEVNULL)

    def start() -> subprocess.Popen[Any]:
        return subprocess.Popen([str(part) for part in command], start_new_session=True, **options)

    with undone(start, _end) as process:
        yield process
        process.wait()


def _end(process: subprocess.Popen[Any]) -> None:
    kill(process)
    with suppress(subprocess.TimeoutExpired):
        process.wait(10)
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


def kill(process: subprocess.Popen[Any]) -> None:
    """End a program that was `started`, with all that it has started."""
    if process.poll() is None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)


def call(command: Sequence[str | Path], *, timeout_s: float, input: str | None = None, **options: Any) -> subprocess.CompletedProcess[Any]:
    """Run a program to its end. Raises `subprocess.TimeoutExpired` when that takes longer than `timeout_s`."""
    if input is not None:
        options["stdin"] = subprocess.PIPE
    with started(command, **options) as process:
        out, err = process.communicate(input, timeout=timeout_s)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def end_with_parent() -> None:
    """Let the kernel kill this process when the one that started it ends, where it can (Linux)."""
    import ctypes

    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
