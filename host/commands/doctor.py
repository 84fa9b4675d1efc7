"""tritloom doctor: is everything here that the other verbs need?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tritloom.firmware.config import BuildConfig
from tritloom.firmware.errors import InputError
from tritloom.firmware.image import Image
from tritloom.firmware.layout import memory_map
from tritloom.host.commands.common import JsonOption, MachineOptions, board_of
from tritloom.host.commands.run import SIMULATED_PORT, pace_of
from tritloom.host.console import Console
from tritloom.host.doctor import PURPOSES, findings
from tritloom.host.image import open_image

if TYPE_CHECKING:
    from tritloom.boards.board import Board, Wiring
    from tritloom.gen.source import Source

PATIENCE_S = 0.5
"""For which a board at a serial port may be silent here."""
PROBES, SIMULATED_PROBES = 256, 4
"""Requests by which a link is judged."""


def command(
    source: Source,
    *,
    board: Annotated[str | None, typer.Option("--board", metavar="NAME", help="Look at the machine on this board.")] = None,
    port: Annotated[
        str | None,
        typer.Option("--port", metavar="PORT", help=f"Serial port of a board, such as /dev/ttyUSB0, or {SIMULATED_PORT}."),
    ] = None,
    image_file: Annotated[
        Path | None, typer.Option("--image", metavar="FILE", help="What is to run on it, as `build` or `pack` wrote it.")
    ] = None,
    machine: MachineOptions,
    as_json: JsonOption = False,
) -> None:
    """Say what is installed, what is missing, and how to get it; or the same of a machine on a board, at which nothing is changed."""
    console = Console(json=as_json)
    if board is None and (image_file or port or source.given or machine != MachineOptions()):
        raise InputError("a model, --port, --image, --config, --context and --set are those of a machine on a board: give --board too")
    if board is None:
        with console.step("Looking"):
            rows = findings()
    else:
        rows = _of_board(board, port, lambda: _asked(source, machine, board, image_file), console)
    ok = all(row["ok"] for row in rows if row["required"])
    width = max(len(row["name"]) for row in rows)
    lines = []
    for row in rows:
        if row["ok"]:
            text = row["detail"] if board is None else f"OK: {row['detail']}"
        elif board is None:
            text = f"MISSING ({row['detail']}), needed for {row['needed_for']}: {row['fix']}"
        else:
            text = f"{'NOT READY' if row['required'] else 'NOTE'} ({row['detail']}): {row['fix']}"
        lines.append(f"{row['name']:<{width}}  {text}")
    lines += _conclusion(rows) if board is None else ["the machine can run" if ok else "the machine cannot run yet: see NOT READY above"]
    console.result({"ok": ok, "findings": rows}, "\n".join(lines))
    if not ok:
        raise typer.Exit(1)


@dataclass(frozen=True)
class Asked:
    """The machine that should be on a board, the bytes that its model needs and its image, as far as they are known."""

    config: BuildConfig | None = None
    memory_bytes: int | None = None
    image: Image | None = None


def _asked(source: Source, machine: MachineOptions, board: str, image_file: Path | None) -> Asked:
    if image_file is not None:
        if source.given or machine != MachineOptions():
            raise InputError("an image holds a model for one machine: beside --image leave MODEL, --config, --context and --set out")
        image = open_image(image_file)
        board_of(image.config, board, image_file)
        return Asked(image.config, image.map.total_bytes, image)
    plan = machine.plan(board)
    if not source.given:
        if machine.settings or machine.context is not None and machine.config_file is None:
            raise InputError("--set and --context are those of a model's machine: give a model too, or leave them out")
        return Asked(plan.machine)
    spec = source.spec(plan.context)
    config = plan.configuration(spec)
    return Asked(config, memory_map(config, tied=spec.tied_embeddings).total_bytes)


def _of_board(name: str, port: str | None, asking: Callable[[], Asked], console: Console) -> list[dict[str, Any]]:
    from tritloom.boards.board import load

    board = load(name)
    if board.wiring is not None:
        if port is None:
            raise InputError(f"board {name} is looked at from its serial port: give --port, such as --port /dev/ttyUSB0")
        return _at_port(board, board.wiring, port, name, asking(), console)
    if port is not None:
        raise InputError(f"board {name} has no UART: leave --port {port} out, or give the --board at the port, such as ulx3s")
    if board.toolchain != "vivado":
        raise InputError(f"board {name} has no processor beside the machine to look from: --board kv260 does")
    asked = asking()
    if asked.config is None:
        raise InputError("which machine is on the board? give --image FILE, as `build` or `pack` wrote it, or --config FILE, config.json "
                         "of the kit")
    from tritloom.gen.kit import kv260
    from tritloom.host.board_doctor import board_findings

    with console.step("Looking"):
        return board_findings(asked.config, asked.image, registers=kv260.REGISTERS,
                              windows=[(kv260.LOW, kv260.LOW_BYTES), (kv260.HIGH, kv260.HIGH_BYTES)])


def _at_port(board: Board, wiring: Wiring, port: str, name: str, asked: Asked, console: Console) -> list[dict[str, Any]]:
    from tritloom.host.backends.uart import serial_link
    from tritloom.host.link_doctor import BAUDS, link_findings

    known: dict[str, Any] = dict(
        baud=wiring.baud, digest=asked.config.digest if asked.config else None, memory_bytes=asked.memory_bytes,
        board_bytes=board.window_bytes if board.memory == "axi" else asked.config.onchip_bytes if asked.config else 0)
    if port == SIMULATED_PORT:
        if asked.config is None:
            raise InputError("which machine is simulated? give a model, --image FILE or --config FILE")
        from tritloom.sim.board import simulated_link
        from tritloom.sim.prepare import open_board

        with open_board(asked.config, name, console) as simulated, console.step("Looking"):
            return link_findings(lambda _: simulated_link(simulated), port="simulated", others=(), probes=SIMULATED_PROBES, **known)
    pace = pace_of(port)
    others, probes = (BAUDS, PROBES) if pace == 1 else ((), SIMULATED_PROBES)
    with console.step("Looking"):
        return link_findings(lambda baud: serial_link(port, baud, pace, PATIENCE_S), port=port, others=others, probes=probes, **known)


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
