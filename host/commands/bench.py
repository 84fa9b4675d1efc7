"""tritloom bench: measured numbers, each with its kind of evidence and its command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tritloom.host.backend import InputError
from tritloom.host.commands.common import JsonOption, SettingsOption, settings_of
from tritloom.host.console import Console


def command(
    unit: Annotated[
        str | None, typer.Option("--unit", metavar="NAME", help="Measure one unit, such as tlmm, instead of the machine.")
    ] = None,
    synth: Annotated[bool, typer.Option("--synth", help="Synthesise and count resources.")] = False,
    model: Annotated[Path | None, typer.Option("--model", metavar="DIR", help="Model folder for whole-machine measures.")] = None,
    board: Annotated[str, typer.Option("--board", metavar="NAME")] = "sim",
    tokens: Annotated[int, typer.Option("--tokens", min=1, metavar="N", help="Tokens to generate for whole-machine measures.")] = 8,
    settings: SettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a unit or the whole machine."""
    from tritloom.gen.bench import rows, table

    console = Console(json=as_json)
    if unit is None and model is None:
        raise InputError("nothing to measure: give --model DIR, or --unit tlmm --synth")
    with console.step("Measuring") as update:
        measured = rows(unit=unit, synth=synth, model=model, board=board, tokens=tokens, settings=settings_of(settings), progress=update)
    console.result(measured, table(measured))
