"""tritloom verify: RTL, emulator, integer model and float model side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tritloom.firmware.errors import InputError
from tritloom.host.commands.common import (
    BoardOption,
    JsonOption,
    Plan,
    SettingsOption,
    saturation_text,
    table,
    text_in,
)
from tritloom.host.console import Console

if TYPE_CHECKING:
    from tritloom.gen.source import Source


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
    board: BoardOption = None,
    settings: SettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare RTL, emulator, integer model and float model; name the first difference. Also how often a short-list misses."""
    from tritloom.sim.check.verify import verify

    console = Console(json=as_json)
    if text is not None and not text.is_file():
        raise InputError(f"{text}: no such text file; give --text a UTF-8 file or leave it out")
    words = None if text is None else text_in(text)
    plan = Plan.of(board, None, settings)
    with console.step("Verifying") as update:
        result = verify(source, words, tokens, update, board=plan.board, settings=plan.settings, float_tokens=float_tokens, floor=floor)
    rows = [("equal", "yes" if result["equal"] else "no"), ("compared tokens", result["compared_tokens"])]
    if result["first_difference"]:
        rows.append(("first difference", ", ".join(f"{k} {v}" for k, v in result["first_difference"].items())))
    if result["saturations"]:
        rows.append(("saturations", saturation_text(result["saturations"])))
    if float_tokens:
        rows += float_rows(result["float"]) if result.get("float") else [("float model", "not compared")]
    if result.get("short_list"):
        rows += short_list_rows(result["short_list"])
    console.result(result, table(rows))
    if not result["equal"]:
        raise typer.Exit(1)


def float_rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    """The comparison with the float model, for people."""
    rows = [
        ("float model", f"{found['reference']}; {found['tokens']:,} tokens of {found['stories']:,} texts"),
        ("perplexity", f"float {found['perplexity']:.4f}, integer {found['integer_perplexity']:.4f} "
                       f"({100 * found['perplexity_change']:+.3f} %)"),
        ("same likeliest token", f"{100 * found['argmax_agreement']:.2f} % of the tokens"),
    ]  # fmt: skip
    if found["argmax_floor"] is not None:
        rows.append(("float model, rounded", f"agrees with itself at {100 * found['argmax_floor']:.2f} % of the tokens"))
    return [*rows, ("error of a logit", f"mean {found['mean_logit_error']:.3g}, worst {found['max_logit_error']:.3g}")]


def short_list_rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    """How often the short-list misses, for people."""
    return [
        (f"short-list of {found['shortlist']}", f"misses the int8 head's choice {found['missed']:,} times in {found['tokens']:,} tokens "
                                               f"({100 * found['disagreement']:.3f} %) of {found['stories']:,} texts"),
        ("rank of that choice", f"mean {found['mean_rank']:.2f}, worst {found['worst_rank']:,}, from 0"),
    ]  # fmt: skip
