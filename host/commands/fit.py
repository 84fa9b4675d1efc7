"""tritloom fit: the configuration for a model on a board, and what it will cost and do."""

from __future__ import annotations

from typing import Any

import typer

from tritloom.host.commands.common import (
    BoardOption,
    ContextOption,
    JsonOption,
    SettingsOption,
    ShapeOption,
    settings_of,
    spec_of,
    table,
)
from tritloom.host.console import Console


def _shown(value: Any) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def command(
    model: ShapeOption,
    board: BoardOption = "sim",
    context: ContextOption = None,
    settings: SettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fit a model to a board."""
    from tritloom.gen.fit import fit

    console = Console(json=as_json)
    with console.step("Fitting"):
        result = fit(spec_of(model, context), board, **settings_of(settings))
    config = result.config.to_dict() | {"digest": f"{result.config.digest:08x}"} if result.config else None
    data = {"fits": result.fits, "binds": result.binds, "config": config, "predicted": result.predicted}
    rows: list[tuple[str, Any]] = [("fits", "yes" if result.fits else "no"), ("bound by", result.binds)]
    if config:
        rows += [(name, value) for name, value in config.items() if name != "shape"]
    rows += [(f"predicted {name}", _shown(value)) for name, value in (result.predicted or {}).items()]
    console.result(data, table(rows))
    if not result.fits:
        raise typer.Exit(1)
