"""The end of the process: what must be undone before it, and signals that end it in time.

Python answers a signal with an exception in the main thread, between two of its own instructions. That may be minutes away, while a
library simulates, or in a destructor, which swallows it. So a thread that the signal itself wakes waits `GRACE` seconds for the
process to end; then it does what is left to be undone, and ends it. That thread needs Python's lock, which a garbage collection of
a machine's millions of objects holds for seconds: what is there when the signal comes is collected no more.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn, TypeVar

__all__ = ["GRACE", "Terminated", "leave", "signals", "status_of", "undone"]

GRACE = 0.5
"""Seconds that the main thread has to end the process by itself."""
UNDOING, LAST_WORDS = 0.5, 0.2
"""Seconds that what is undone by force, and the last line, may take: a lock may be held, and nobody may be reading."""
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_left: dict[object, Callable[[], None]] = {}
_holding = False
_come = False
_waiting: list[int] = []


class Terminated(KeyboardInterrupt):
    """The process is asked to end by another signal than Ctrl-C's."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def status_of(interrupt: KeyboardInterrupt) -> int:
    """The exit status by which a shell tells of a signal."""
    return 128 + (interrupt.number if isinstance(interrupt, Terminated) else signal.SIGINT)


Made = TypeVar("Made")


@contextmanager
def undone(make: Callable[[], Made], undo: Callable[[Made], None]) -> Iterator[Made]:
    """A block with what `make` gives, after which `undo` is done with it, however it ends: also if the process ends in it by a signal.
    It may be done twice. No signal is answered while `make` runs: it should not take long."""
    global _holding
    hold, _holding = _holding, _holding or threading.current_thread() is threading.main_thread()
    key = object()
    try:
        made = make()
        _left[key] = lambda: undo(made)
    finally:
        _holding = hold
    try:
        if _waiting and not _holding:
            raise _exception(_waiting.pop())
        yield made
    finally:
        undo(made)
        _left.pop(key, None)


@contextmanager
def signals(say: Callable[[int], None]) -> Iterator[None]:
    """A block of the main thread in which SIGINT, SIGTERM and SIGHUP raise KeyboardInterrupt (or `Terminated`), and end the process
    after `GRACE` seconds, or at the second one, if that has not ended it; `say` is told the signal then.

    Signals that were ignored stay ignored. Once one has come, warnings and errors of destructors are not shown (what is broken off
    has many), and the second one raises nothing.
    """
    global _come
    caught = [number for number in ENDING if signal.getsignal(number) not in (signal.SIG_IGN, None)]
    if threading.current_thread() is not threading.main_thread() or not caught:
        yield
        return
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    shown, _come = sys.unraisablehook, False
    before = {number: signal.signal(number, _raise) for number in caught}
    wake_before = signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    watch = threading.Thread(target=_watch, args=(woken, frozenset(caught), say), daemon=True)
    watch.start()
    try:
        with warnings.catch_warnings():
            yield
    finally:
        signal.set_wakeup_fd(wake_before)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(wake)
        watch.join()
        os.close(woken)
        sys.unraisablehook = shown
        if _come:
            gc.unfreeze()


def leave(status: int) -> NoReturn:
    """End the process now. What is left to be undone is undone; what else there is, a machine's objects for one, is not taken down."""
    _undo()
    os._exit(status)


def _raise(number: int, _: FrameType | None) -> None:
    global _come
    if _come:
        return
    _come = True
    gc.freeze()
    warnings.simplefilter("ignore")
    sys.unraisablehook = lambda _: None
    if _holding:
        _waiting.append(number)
    else:
        raise _exception(number)


def _exception(number: int) -> KeyboardInterrupt:
    return KeyboardInterrupt() if number == signal.SIGINT else Terminated(number)


def _watch(woken: int, caught: frozenset[int], say: Callable[[int], None]) -> None:
    """Waits for a signal, then for the end; returns when the block has ended."""
    first = None
    while True:
        if first is not None and not select.select([woken], [], [], GRACE)[0]:
            break
        numbers = os.read(woken, 1)
        if not numbers:
            return
        if numbers[0] in caught:
            if first is not None:
                break
            first = numbers[0]
    for action, seconds in ((_undo, UNDOING), (lambda: say(first), LAST_WORDS)):
        thread = threading.Thread(target=action, daemon=True)
        thread.start()
        thread.join(seconds)
    os._exit(128 + first)


def _undo() -> None:
    for action in list(_left.values())[::-1]:
        with suppress(Exception):
            action()
