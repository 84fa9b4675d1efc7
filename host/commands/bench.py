"""tritloom bench: measured numbers, each with its kind of evidence and its command."""

from __future__ import annotations

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
    model: Annotated[
        str | None, typer.Option("--model", metavar="NAME", help="Model folder, or a published shape such as bitnet_b1_58-large.")
    ] = None,
    board: Annotated[str, typer.Option("--board", metavar="NAME")] = "sim",
    context: Annotated[
        int | None, typer.Option("--context", min=2, metavar="N", help="Measure a decode token that reads N positions of the cache.")
    ] = None,
    prefill: Annotated[
        int | None, typer.Option("--prefill", min=1, metavar="N", help="Measure the time to the first token of a prompt of N tokens.")
    ] = None,
    tokens: Annotated[int, typer.Option("--tokens", min=1, metavar="N", help="Tokens to generate after a text, without --context.")] = 8,
    timing: Annotated[
        str | None, typer.Option("--timing", metavar="PRESET", help="Simulated memory (the board's by default; see sim/memory.py).")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Take a stored result of the same machine and code.")] = False,
    stored: Annotated[bool, typer.Option("--stored", help="Show all stored results, and which of them are stale.")] = False,
    settings: SettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a unit or the whole machine."""
    from tritloom.gen.bench import rows, table

    console = Console(json=as_json)
    if unit is None and model is None and not stored:
        raise InputError("nothing to measure: give --model NAME, or --unit tlmm --synth")
    measured = rows(unit=unit, synth=synth, model=model, board=board, tokens=tokens, context=context, prefill=prefill, timing=timing,
                    resume=resume, stored=stored, settings=settings_of(settings), console=console)  # fmt: skip
    console.result(measured, table(measured))
