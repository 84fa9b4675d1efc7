"""tritloom fit: the configuration for a model on a board, and what it will cost and do."""

from __future__ import annotations

from typing import Any

import typer

from tritloom.host.commands.common import (
    BoardOption,
    ContextOption,
    JsonOption,
    Plan,
    SettingsOption,
    Source,
    table,
)
from tritloom.host.console import Console


def _shown(value: Any) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def _gain(more: dict[str, Any]) -> str:
    return (f"decode ×{more['decode']:.2f}, first token ×{more['first_token']:.2f}, {more['lut']:+,} LUT"
            + ("" if more["fits"] else ": does not fit"))


def command(
    source: Source,
    board: BoardOption = None,
    context: ContextOption = None,
    settings: SettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fit a model to a board."""
    from tritloom.gen.fit import fit, relaxations

    console = Console(json=as_json)
    with console.step("Fitting"):
        plan = Plan.of(board, context, settings)
        spec = source.spec(context)
        result = fit(spec, plan.board, **plan.settings)
        more = relaxations(spec, plan.board, result, **plan.settings)
    config = result.config.to_dict() | {"digest": f"{result.config.digest:08x}"} if result.config else None
    data = {"fits": result.fits, "binds": result.binds, "batch_binds": result.batch_binds, "config": config, "predicted": result.predicted,
            "relaxations": [each.to_dict() for each in more]}
    rows: list[tuple[str, Any]] = [("fits", "yes" if result.fits else "no"), ("bound by", result.binds)]
    if result.batch_binds:
        rows.append(("a full batch bound by", result.batch_binds))
    if config:
        rows += [(name, value) for name, value in config.items() if name != "shape"]
    rows += [(f"predicted {name}", _shown(value)) for name, value in (result.predicted or {}).items()]
    rows += [(f"with {each.change}", _gain(each.to_dict())) for each in more]
    console.result(data, table(rows))
    if not result.fits:
        raise typer.Exit(1)
