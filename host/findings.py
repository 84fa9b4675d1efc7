"""What a doctor finds: a row for each thing that it looks at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tritloom.firmware.errors import TritloomError


class Wrong(TritloomError):
    """What was looked for is not as it should be."""


class Findings:
    """Rows with name, ok, detail (what was seen), fix (what to do where `ok` is false), needed_for, required (the others may fail)."""

    def __init__(self, needed_for: str) -> None:
        self._needed_for = needed_for
        self.rows: list[dict[str, Any]] = []

    def look(self, name: str, check: Callable[[], str], fix: str = "", *, required: bool = True) -> bool:
        """Add a row: `check` returns what it saw, or raises. `fix`: where the error has no advice of its own."""
        ok, detail = True, ""
        try:
            detail, fix = check(), ""
        except PermissionError as error:
            ok, detail, fix = False, f"{error.filename}: {error.strerror}", "run as root: sudo"
        except TritloomError as error:
            ok, detail, fix = False, error.what, error.mend or fix
        except (OSError, ValueError) as error:
            ok, detail = False, str(error)
        self.rows.append({"name": name, "ok": ok, "detail": " ".join(detail.split()), "fix": fix, "needed_for": self._needed_for,
                          "required": required})
        return ok
