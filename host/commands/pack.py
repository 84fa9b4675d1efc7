"""tritloom pack: a model's weight image and firmware for a machine, in one file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tritloom.host.commands.common import BoardOption, JsonOption, MachineOptions, check_file, table
from tritloom.host.console import Console
from tritloom.host.image import open_image

if TYPE_CHECKING:
    from tritloom.gen.source import Source


def command(
    source: Source,
    *,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The image to write.")],
    board: BoardOption = None,
    machine: MachineOptions,
    as_json: JsonOption = False,
) -> None:
    """Pack a model's weights, tables, firmware and tokenizer into an image. Interrupted, the same command continues."""
    console = Console(json=as_json)
    check_file(out, "--out")
    plan = machine.plan(board)
    checkpoint = source.open(plan.context)
    config = plan.configuration(checkpoint.spec)
    from tritloom.sim.prepare import write_image_of

    write_image_of(out, source, checkpoint, config, console)
    image = open_image(out, verify=False)  # its CRCs were made of what was written
    sections = {name: section.length for name, section in image.table.items()}
    data = {"image": str(out), "bytes": out.stat().st_size, "digest": f"{image.digest:08x}", "sections": sections}
    console.result(
        data,
        table(
            [
                ("image", out),
                ("bytes", f"{data['bytes']:,}"),
                ("digest", data["digest"]),
                *((f"section {name}", f"{length:,}") for name, length in sections.items()),
            ]
        ),
    )
