"""tritloom verify: RTL, emulator, integer model and float model side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tritloom.host.backend import InputError
from tritloom.host.commands.common import BoardOption, JsonOption, SettingsOption, Source, saturation_text, settings_of, table
from tritloom.host.console import Console


def command(
    source: Source,
    text: Annotated[
        Path | None, typer.Option("--text", metavar="FILE", help="Text to compare on (stories shipped with the models by default).")
    ] = None,
    tokens: Annotated[int, typer.Option("--tokens", min=1, metavar="N", help="Tokens to generate and compare.")] = 64,
    float_tokens: Annotated[
        int, typer.Option("--float-tokens", min=0, metavar="N", help="Tokens of the text for the float model and a short-list; 0: neither.")
    ] = 1000,
    floor: Annotated[
        bool, typer.Option("--floor", help="Also measure how often the float model agrees with itself under rounding.")
    ] = False,
    board: BoardOption = "sim",
    settings: SettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare RTL, emulator, integer model and float model; name the first difference. Also how often a short-list misses."""
    from tritloom.sim.verify import verify

    console = Console(json=as_json)
    if text is not None and not text.is_file():
        raise InputError(f"{text}: no such text file; give --text a UTF-8 file or leave it out")
    with console.step("Verifying") as update:
        result = verify(source, text, tokens, update, board=board, settings=settings_of(settings), float_tokens=float_tokens, floor=floor)
    rows = [("equal", "yes" if result["equal"] else "no"), ("compared tokens", result["compared_tokens"])]
    if result["first_difference"]:
        rows.append(("first difference", ", ".join(f"{k} {v}" for k, v in result["first_difference"].items())))
    if result["saturations"]:
        rows.append(("saturations", saturation_text(result["saturations"])))
    rows += [(f"float {name}", value) for name, value in (result.get("float") or {}).items()]
    rows += [(f"short-list {name}", value) for name, value in (result.get("short_list") or {}).items()]
    console.result(result, table(rows))
    if not result["equal"]:
        raise typer.Exit(1)
