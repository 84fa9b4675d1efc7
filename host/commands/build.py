"""tritloom build: a bitstream, or what the board's toolchain needs to make one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tritloom.firmware.errors import InputError
from tritloom.host.commands.common import JsonOption, MachineOptions, check_folder, table
from tritloom.host.console import Console

if TYPE_CHECKING:
    from tritloom.gen.source import Source


def command(
    source: Source,
    *,
    board: Annotated[str, typer.Option("--board", metavar="NAME", help="Board to build for.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the results; made if needed.")] = Path("build"),
    seeds: Annotated[
        list[int] | None,
        typer.Option("--seed", min=0, max=(1 << 31) - 1, metavar="N", help="Seed of the placement; several are tried in order."),
    ] = None,
    machine: MachineOptions,
    as_json: JsonOption = False,
) -> None:
    """Synthesise, place and route a machine; or, for a board of the vendor's tools, write the kit that they take."""
    from tritloom.boards.board import load
    from tritloom.gen.tools.bitstream import TimingFailure, build, report_text

    console = Console(json=as_json)
    check_folder(out, "--out")
    plan = machine.plan(board)
    spec = source.spec(plan.context)
    config = plan.configuration(spec)
    if load(plan.board).toolchain == "vivado":
        if seeds:
            raise InputError("--seed is that of the open tools' placement: leave it out, Vivado places this machine")
        from tritloom.firmware.layout import memory_map
        from tritloom.gen.kit.kv260 import memory_plan, write_kit

        layout, target = memory_map(config, tied=spec.tied_embeddings), load(plan.board)
        with console.step(f"Writing the kit for {plan.board}") as update:
            paths = write_kit(config, layout, target, out, update)
        data = {"digest": f"{config.digest:08x}", "memory_bytes": layout.total_bytes, "files": [str(path) for path in paths]}
        rows = [("digest", data["digest"]), *(("wrote", name) for name in data["files"])]
        console.result(data, f"{table(rows)}\n\n{memory_plan(config, layout, target)}"
                             f"\nnext: vivado -mode batch -source {out / 'vivado' / 'build.tcl'}; docs/boards/kv260.md has the rest")
        return
    try:
        with console.step(f"Building for {plan.board}") as update:
            report = build(config, out, update, board=plan.board, seeds=seeds or [1])
    except TimingFailure as failure:
        console.result(failure.report, report_text(failure.report))
        raise
    console.result(report, report_text(report))
