"""tritloom doctor: is everything here that the other verbs need?"""

from __future__ import annotations

from typing import Any

import typer

from tritloom.host.commands.common import JsonOption
from tritloom.host.console import Console
from tritloom.host.doctor import PURPOSES, findings


def command(as_json: JsonOption = False) -> None:
    """Say what is installed, what is missing, and how to get it."""
    console = Console(json=as_json)
    with console.step("Looking"):
        rows = findings()
    ok = all(row["ok"] for row in rows if row["required"])
    width = max(len(row["name"]) for row in rows)
    lines = []
    for row in rows:
        missing = f"MISSING ({row['detail']}), needed for {row['needed_for']}: {row['fix']}"
        lines.append(f"{row['name']:<{width}}  {row['detail'] if row['ok'] else missing}")
    lines += _conclusion(rows)
    console.result({"ok": ok, "findings": rows}, "\n".join(lines))
    if not ok:
        raise typer.Exit(1)


def _conclusion(rows: list[dict[str, Any]]) -> list[str]:
    """What works, and for each purpose that lacks something, what it lacks."""
    lacking: dict[str, list[str]] = {}
    for row in rows:
        if not row["ok"]:
            lacking.setdefault(row["needed_for"], []).append(row["name"])
    if all(row["ok"] for row in rows if row["required"]):
        found = ["all that `tritloom run` needs is here"]
    elif PURPOSES[""] in lacking:
        found = ["`tritloom run` cannot work yet: see MISSING above"]
    else:
        found = ["`tritloom run --backend emulator` works, the simulated machine cannot yet: see MISSING above"]
    return found + [f"not complete: {purpose} ({', '.join(names)})" for purpose, names in lacking.items() if purpose != PURPOSES[""]]
