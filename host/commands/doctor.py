"""tritloom doctor: is everything here that the other verbs need?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tritloom.firmware.errors import InputError
from tritloom.host.commands.common import JsonOption, Plan, board_of
from tritloom.host.console import Console
from tritloom.host.doctor import PURPOSES, findings


def command(
    *,
    board: Annotated[str | None, typer.Option("--board", metavar="NAME", help="Look at the machine on this board (kv260).")] = None,
    image_file: Annotated[Path | None, typer.Option("--image", metavar="FILE", help="What is to run on it, as `pack` wrote it.")] = None,
    config_file: Annotated[Path | None, typer.Option("--config", metavar="FILE", help="Or config.json of the kit.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Say what is installed, what is missing, and how to get it; or the same of a machine on a board."""
    console = Console(json=as_json)
    if board is None and (image_file or config_file):
        raise InputError("--image and --config are those of a machine on a board: give --board too")
    with console.step("Looking"):
        rows = findings() if board is None else _of_board(board, image_file, config_file)
    ok = all(row["ok"] for row in rows if row["required"])
    width = max(len(row["name"]) for row in rows)
    lines = []
    for row in rows:
        missing = f"{'MISSING' if board is None else 'NOT READY'} ({row['detail']}), needed for {row['needed_for']}: {row['fix']}"
        lines.append(f"{row['name']:<{width}}  {row['detail'] if row['ok'] else missing}")
    lines += _conclusion(rows) if board is None else ["the machine can run" if ok else "the machine cannot run yet: see NOT READY above"]
    console.result({"ok": ok, "findings": rows}, "\n".join(lines))
    if not ok:
        raise typer.Exit(1)


def _of_board(name: str, image_file: Path | None, config_file: Path | None) -> list[dict[str, Any]]:
    from tritloom.boards.board import load
    from tritloom.gen.kit import kv260
    from tritloom.host.board_doctor import board_findings
    from tritloom.host.image import open_image

    if load(name).toolchain != "vivado":
        raise InputError(f"board {name} has no processor beside the machine to look from: --board kv260 does")
    if (image_file is None) == (config_file is None):
        raise InputError("which machine is on the board? give --image FILE, as `pack` wrote it, or --config FILE, config.json of the kit")
    image = open_image(image_file) if image_file else None
    if image and image_file:
        board_of(image.config, name, image_file)
    config = image.config if image else Plan.of(name, None, None, config_file).machine
    assert config is not None
    return board_findings(config, image, registers=kv260.REGISTERS,
                          windows=[(kv260.LOW, kv260.LOW_BYTES), (kv260.HIGH, kv260.HIGH_BYTES)])


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
