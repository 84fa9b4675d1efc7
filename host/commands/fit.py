"""tritloom fit: the configuration for a model on a board, and what it will cost and do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from tritloom.firmware.config import ConfigError
from tritloom.host.commands.common import (
    BoardOption,
    ClockOption,
    ContextOption,
    FillOption,
    JsonOption,
    Plan,
    SettingsOption,
    columns,
    seconds,
    size,
    table,
)
from tritloom.host.console import Console

if TYPE_CHECKING:
    from tritloom.boards.board import Board
    from tritloom.gen.fit.fit import FitResult, Relaxation
    from tritloom.gen.models import ModelSpec
    from tritloom.gen.source import Source


def command(
    source: Source,
    board: BoardOption = None,
    context: ContextOption = None,
    fill: FillOption = None,
    clock: ClockOption = None,
    settings: SettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fit a model to a board."""
    from tritloom.boards.board import load
    from tritloom.gen.fit.fit import CONTEXT_FOR_SPEED, FitResult, at_clocks, fit, predict, relaxations

    console = Console(json=as_json)
    with console.step("Fitting"):
        plan = Plan.of(board, context, settings, fill=fill, clock=clock)
        target, spec, fixed = load(plan.board), source.spec(context), plan.settings
        whole = spec.shape.context
        result = fit(spec, target, at=whole, **fixed)
        more = relaxations(spec, target, result, **fixed)
        speeds = [predict(result.config, result.memory_map, target, at)[0] for at in sorted({min(CONTEXT_FOR_SPEED, whole), whole})]
        others = [] if result.fits else boards_for(spec, fixed)
    clocks = at_clocks(result.config, result.predicted["lut"], result.memory_map, target, min(CONTEXT_FOR_SPEED, whole))
    data = FitResult.to_dict(result) | {"speeds": speeds, "clocks": clocks, "fits_on": others,
                                        "relaxations": [each.to_dict() for each in more]}
    console.result(data, text(result, target, speeds, clocks, more, others))
    if not result.fits:
        raise typer.Exit(1)


def boards_for(spec: ModelSpec, settings: dict[str, Any]) -> list[str]:
    """The boards in the tree that the model fits, with the same settings."""
    from tritloom.boards.board import names
    from tritloom.gen.fit.fit import fit

    def fits(name: str) -> bool:
        try:
            return fit(spec, name, **settings).fits
        except ConfigError:
            return False

    return [name for name in names() if fits(name)]


def text(result: FitResult, board: Board, speeds: list[dict[str, float]], clocks: list[dict[str, Any]], more: list[Relaxation],
         others: list[str]) -> str:
    """What people read: whether it fits, what it takes, how fast it is, what more would bring, and the configuration."""
    c, p = result.config, result.predicted
    rows: list[tuple[str, Any]] = [("fits", "yes" if result.fits else "no")]
    rows += [("needs", need) for need in result.needs.values() if need.lacks]
    rows += [("warning", warned) for warned in result.warnings]
    if result.fits:
        rows.append(("bound by", result.binds))
    else:
        rows += [("fits with", f"{options(each)}: {each.change}") for each in more if each.fits][:1]
        rows += [("fits on", ", ".join(others))] if others else []
    if result.batch_binds and result.fits:
        rows.append(("a full batch bound by", result.batch_binds))
    for kind in ("lut", "ff", "bram", "uram", "dsp"):
        if need := result.needs.get(kind):
            rows.append((f"predicted {kind}", f"{need}{'' if need.available is None else f': {need.used / need.available:.0%}'}"))
    rows += [("image", size(p["image_bytes"])),
             ("cache", f"{size(p['cache_bytes'])}: {c.sequences} text{'s' if c.sequences > 1 else ''} of {c.shape.context:,} positions")]
    memory = size(p["memory_bytes"])
    if c.memory == "onchip":
        memory += ", on the chip"
    elif board.real:
        memory += f" of {size(board.window_bytes)}: {p['memory_bytes'] / board.window_bytes:.0%}"
        if board.dram_bytes:
            memory += f"; the board has {size(board.dram_bytes)} of DRAM"
        if board.window:
            memory += f", a machine reaches those from {board.window[0]:#010x} to {sum(board.window) - 1:#010x}"
    rows.append(("memory", memory))
    slack, clock = "the slowest path is not known before synthesis", result.clock
    if clock.slack_ns is not None and clock.slowest_path_ns is not None:
        slack = f"slowest path about {clock.slowest_path_ns:.2f} ns, as in machines built so far: slack {clock.slack_ns:+.2f} ns"
        slack += f": too slow, it takes {int(1e3 / clock.slowest_path_ns)} MHz (--clock)" if clock.slack_ns < 0 else f", {clock.spare:.0%}"
    rows.append(("clock", f"{clock.hz / 1e6:g} MHz, {clock.period_ns:.2f} ns; {slack}"))
    parts = [table(rows), columns(speed_rows(speeds))]
    if clocks:
        parts.append(columns(clock_rows(clocks)))
    if more:
        parts.append(columns(gain_rows(more, int(p["context"]), int(p.get("batch_texts", 1)))))
    config = [(name, value) for name, value in c.to_dict().items() if name != "shape"]
    return "\n\n".join([*parts, table([*config, ("digest", f"{c.digest:08x}")])])


def rate(speed: float) -> str:
    """Tokens a second for people."""
    return f"{speed:,.0f} tokens/s" if speed >= 1000 else f"{speed:,.4g} tokens/s"


def speed_rows(speeds: list[dict[str, float]]) -> list[list[str]]:
    """A column for each number of positions."""
    rows = [["predicted speed", *(f"at {speed['context']:,} positions" for speed in speeds)],
            ["one text", *(rate(speed["decode_tokens_per_s"]) for speed in speeds)],
            ["memory busy", *(f"{speed['memory_share']:.0%}" for speed in speeds)]]
    if "batch_texts" in speeds[0]:
        rows.append([f"{speeds[0]['batch_texts']} texts together", *(
            f"{rate(speed['batch_tokens_per_s'])} (×{speed['batch_speed_up']:.2f})" for speed in speeds)])
    return [*rows, ["first token after a prompt of as many", *(seconds(speed["ttft_s"]) for speed in speeds)]]


def clock_rows(clocks: list[dict[str, Any]]) -> list[list[str]]:
    """A column for each clock."""
    return [[f"projected at {clocks[0]['context']:,} positions", *(f"{each['hz'] / 1e6:g} MHz" for each in clocks)],
            ["slack", *("not known" if each["slack_ns"] is None else f"{each['slack_ns']:+.2f} ns" for each in clocks)],
            ["one text", *(rate(each["decode_tokens_per_s"]) for each in clocks)],
            ["first token after a prompt of as many", *(seconds(each["ttft_s"]) for each in clocks)]]


def options(change: Relaxation) -> str:
    """What asks for it."""
    return f"--context {change.context}" if change.context else " ".join(f"--set {name}={value}" for name, value in change.settings.items())


def gain_rows(more: list[Relaxation], at: int, texts: int) -> list[list[str]]:
    """A row for each change; what it does to the speeds at `at` positions, a shorter context at its own end."""
    batch = [f"{texts} texts"] if texts > 1 else []
    rows = [[f"more of one thing, at {at:,} positions", "one text", *batch, "first token", "LUTs", "how"]]
    for each in more:
        how = options(each)
        gains = [each.decode, *([each.batch] if batch else []), each.first_token]
        change = f"{each.change}, at {min(at, each.context):,} positions" if each.context else each.change
        rows.append([change, *("–" if gain is None else f"×{gain:.2f}" for gain in gains), f"{each.lut:+,}",
                     how if each.fits else f"{how}: does not fit, {each.lacks}"])
    return rows
