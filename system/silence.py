"""What native code writes to stderr beside its errors."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_alone = threading.RLock()
"""Of two threads that save and restore the same stream, one could restore the other's silence."""


@contextmanager
def silence() -> Iterator[None]:
    """Nothing is written to stderr meanwhile: a library in Rust reports a panic there before its error reaches Python."""
    with _alone:
        try:
            kept = os.dup(2)
        except OSError:  # closed: nothing is written anyway
            yield
            return
        try:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 2)
            os.close(null)
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
