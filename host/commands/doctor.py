"""tritloom doctor: is everything here that the other verbs need?"""

from __future__ import annotations

import typer

from tritloom.host.commands.common import JsonOption
from tritloom.host.console import Console
from tritloom.host.doctor import findings


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
    lines.append("all that `tritloom run` needs is here" if ok else "`tritloom run` cannot work yet: see MISSING above")
    console.result({"ok": ok, "findings": rows}, "\n".join(lines))
    if not ok:
        raise typer.Exit(1)
