"""tritloom cache: what is kept between runs, and how to be rid of it."""

from __future__ import annotations

from typing import Annotated

import typer

from tritloom.firmware.errors import InputError, TritloomError
from tritloom.firmware.names import unknown
from tritloom.host.commands.common import JsonOption, table
from tritloom.host.console import Console
from tritloom.system import files, growing


def command(
    kinds: Annotated[list[str] | None, typer.Argument(metavar="KIND...", help="Only these of the kinds that are listed.")] = None,
    clear: Annotated[bool, typer.Option("--clear", help="Remove what is kept; it is made again when it is needed.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show what is kept between runs, or remove it."""
    console = Console(json=as_json)
    for kind in kinds or ():
        if kind not in files.KINDS:
            raise InputError(unknown("kind of kept files", kind, files.KINDS))
    root = files.cache_root()
    if root is None:
        raise TritloomError("there is no home folder, and so no cache: set TRITLOOM_CACHE to a folder")
    if root.exists() and not root.is_dir():
        raise InputError(f"{root}: is a file; set TRITLOOM_CACHE to a folder")
    found = {kind: size for kind, size in files.sizes(root).items() if not kinds or kind in kinds}
    if clear:
        with console.step("Clearing the cache"):
            for kind in found:
                growing.clear(root, kind)
    data = {"folder": str(root), "cleared": clear, "kinds": {kind: {"files": n, "bytes": size} for kind, (n, size) in found.items()}}
    rows = [("folder", str(root))] + [(kind, f"{n:,} files, {size / 1e6:,.1f} MB") for kind, (n, size) in found.items()]
    total = sum(size for _, size in found.values())
    rows.append(("removed" if clear else "in all", f"{total / 1e6:,.1f} MB"))
    console.result(data, table(rows))
