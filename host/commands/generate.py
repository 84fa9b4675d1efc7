"""tritloom generate: a machine as an IP core for any AXI system."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tritloom.host.commands.common import BoardOption, JsonOption, MachineOptions, check_folder, table
from tritloom.host.console import Console

if TYPE_CHECKING:
    from tritloom.gen.source import Source


def command(
    source: Source,
    *,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the files; made if needed.")],
    board: BoardOption = None,
    machine: MachineOptions,
    as_json: JsonOption = False,
) -> None:
    """Write a machine as an IP core: Verilog with AXI ports, register map, files for Vivado and FuseSoC."""
    from tritloom.gen.kit.core import write_core

    console = Console(json=as_json)
    check_folder(out, "--out")
    plan = machine.plan(board)
    config = plan.configuration(source.spec(plan.context), console.note)
    with console.step("Generating Verilog") as update:
        paths = write_core(config, out, update)
    data = {"digest": f"{config.digest:08x}", "files": [str(path) for path in paths]}
    console.result(data, table([("digest", data["digest"]), *(("wrote", name) for name in data["files"])]))
