"""What is said about a name that nothing has."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """One line: that no `kind` is called `name`, which of the known ones may be meant, and all of them."""
    names = list(known)
    near = difflib.get_close_matches(name.lower(), names, 1)
    return f"no {kind} called {name!r}{f' (did you mean {near[0]}?)' if near else ''}: choose {', '.join(names)}"
