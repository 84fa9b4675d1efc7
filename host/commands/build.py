"""tritloom build: a bitstream, or what the board's toolchain needs to make one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tritloom.firmware.errors import InputError
from tritloom.host.commands.common import JsonOption, MachineOptions, check_folder, table
from tritloom.host.console import Console
from tritloom.host.image import BUILT

if TYPE_CHECKING:
    from tritloom.boards.board import Board
    from tritloom.firmware.image import Image
    from tritloom.gen.source import Source


def command(
    source: Source,
    *,
    board: Annotated[str, typer.Option("--board", metavar="BOARD", help="Board to build for: a name, or the path of a board file.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the results; made if needed.")] = Path("build"),
    seeds: Annotated[
        list[int] | None,
        typer.Option("--seed", min=0, max=(1 << 31) - 1, metavar="N", help="Seed of the placement; several are tried in order."),
    ] = None,
    machine: MachineOptions,
    as_json: JsonOption = False,
) -> None:
    """Synthesise, place and route a machine; or, for a board of the vendor's tools, write the kit they take. With the model's image."""
    from tritloom.boards.board import load
    from tritloom.gen.tools.bitstream import TimingFailure, build, check_board, report_text
    from tritloom.sim.prepare import image_of

    console = Console(json=as_json)
    check_folder(out, "--out")
    plan = machine.plan(board)
    target = load(plan.board)
    if target.toolchain == "vivado" and seeds:
        raise InputError("--seed is that of the open tools' placement: leave it out, Vivado places this machine")
    checkpoint = None if source.shape_only else source.open(plan.context)
    spec = checkpoint.spec if checkpoint else source.spec(plan.context)
    config = plan.configuration(spec, console.note)
    if target.toolchain != "vivado":
        check_board(target)
    image = image_of(source, checkpoint, config, console) if checkpoint else None  # what cannot be packed is said before the long steps
    if target.toolchain == "vivado":
        from tritloom.firmware.layout import memory_map
        from tritloom.gen.kit.kv260 import build_plan, write_kit

        layout = memory_map(config, tied=spec.tied_embeddings)
        with console.step(f"Writing the kit for {plan.board}") as update:
            paths = write_kit(config, layout, target, out, update)
        files = [*map(str, paths), *_image(out, image, target, console)]
        data = {"digest": f"{config.digest:08x}", "memory_bytes": layout.total_bytes, "files": files}
        rows = [("digest", data["digest"]), *(("wrote", name) for name in files)]
        console.result(data, f"{table(rows)}\n\n{build_plan(config, layout, target)}"
                             f"\nnext: vivado -mode batch -source {out / 'vivado' / 'build.tcl'}; docs/boards/kv260.md has the rest")
        return
    try:
        with console.step(f"Building for {plan.board}") as update:
            report = build(config, out, update, board=plan.board, seeds=seeds or [1])
    except TimingFailure as failure:
        (out / BUILT).unlink(missing_ok=True)
        console.result(failure.report, report_text(failure.report))
        raise
    report["files"] += _image(out, image, target, console)
    console.result(report, report_text(report))


def _image(out: Path, image: Image | None, board: Board, console: Console) -> list[str]:
    """The step of the image, whose path it gives. A shape has none."""
    from tritloom.sim.prepare import write_built_image

    path = out / BUILT
    if image is None:
        path.unlink(missing_ok=True)
        console.note(f"no image: a shape has no weights; `tritloom pack MODEL --config {out / 'config.json'} --out {path}` packs a model's")
        return []
    write_built_image(path, image, board, console)
    return [str(path)]
