"""tritloom bench: measured numbers, each with its kind of evidence and its command."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tritloom.firmware.errors import InputError
from tritloom.host.commands.common import BoardOption, JsonOption, SettingsOption, check_file, check_folder, settings_of
from tritloom.host.console import Console

if TYPE_CHECKING:
    from tritloom.gen.source import Source


def command(
    source: Source,
    unit: Annotated[
        str | None, typer.Option("--unit", metavar="NAME", help="Measure one unit, such as tlmm, instead of the machine.")
    ] = None,
    synth: Annotated[bool, typer.Option("--synth", help="Synthesise --unit tlmm or all of --model's machine.")] = False,
    board: BoardOption = None,
    context: Annotated[
        int | None, typer.Option("--context", min=2, metavar="N", help="Measure a decode token that reads N positions of the cache.")
    ] = None,
    prefill: Annotated[
        int | None, typer.Option("--prefill", min=1, metavar="N", help="Measure the time to the first token of a prompt of N tokens.")
    ] = None,
    batch: Annotated[
        int | None, typer.Option("--batch", min=2, metavar="N", help="With --context: a token each of N texts, beside the token of one.")
    ] = None,
    shared: Annotated[
        int | None, typer.Option("--shared", min=16, metavar="N", help="With --batch: positions that the texts share, in chunks of 16.")
    ] = None,
    drafts: Annotated[
        int | None, typer.Option("--drafts", min=1, metavar="N", help="Measure a text with up to N drafts against the same without.")
    ] = None,
    prompt: Annotated[str | None, typer.Option("--prompt", metavar="TEXT", help="With --drafts: text to go on from.")] = None,
    tokens: Annotated[
        int | None,
        typer.Option("--tokens", min=1, metavar="N", help="Tokens to generate after a text, without --context (8, with --drafts 64)."),
    ] = None,
    head: Annotated[
        Literal["int8", "shortlist"] | None,
        typer.Option("--head", help="LM head: int8 rows (the default), or the same as --set shortlist=256."),
    ] = None,
    timing: Annotated[
        str | None, typer.Option("--timing", metavar="PRESET", help="Simulated memory (the board's by default; see sim/dram.py).")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Take a stored result of the same machine and code.")] = False,
    store: Annotated[bool, typer.Option("--store", help="Keep the result, in place of the stored one.")] = False,
    results: Annotated[
        Path | None, typer.Option("--results", metavar="DIR", help="Folder of stored results (docs/results of a clone by default).")
    ] = None,
    stored: Annotated[
        bool, typer.Option("--stored", help="Show the stored results (of --board, of --model), and which of them are stale.")
    ] = False,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Also write a page: roofline, timeline, cycles by unit, comparison.")
    ] = None,
    settings: SettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a unit or the whole machine."""
    from tritloom.gen.fit.fit import SHORTLIST
    from tritloom.sim.bench.benchmarks import report
    from tritloom.sim.bench.report import table

    console = Console(json=as_json)
    if unit is None and not source.given and not stored:
        raise InputError("nothing to measure: give --model NAME, or --unit tlmm --synth")
    if html is not None:
        check_file(html, "--html")
    if store:
        from tritloom.sim.bench.results import results_in

        check_folder(results_in(results), "--results")
    fields = settings_of(settings)
    if head and "shortlist" in fields:
        raise InputError(f"--head {head} and --set shortlist={fields['shortlist']} both name the head: give one of them")
    if head == "shortlist":
        fields["shortlist"] = SHORTLIST
    measured = report(unit=unit, synth=synth, source=source if source.given else None, board=board,
                      tokens=tokens or (64 if drafts else 8), context=context, prefill=prefill, batch=batch, shared=shared, drafts=drafts,
                      prompt=prompt, timing=timing, resume=resume, stored=stored, store=store, folder=results, settings=fields,
                      steps=console)  # fmt: skip
    if html is not None:
        from tritloom.sim.bench.page import page
        from tritloom.system.files import write_atomically

        write_atomically(html.parent, {html.name: page(measured.rows, measured.results)})
        console.note(f"Page: {html}")
    console.result(measured.rows, table(measured.rows))

