"""tritloom check: is this checkpoint one that a machine can be built for?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tritloom.host.commands.common import JsonOption, table
from tritloom.host.console import Console


def _problem(problem: dict[str, Any]) -> dict[str, Any]:
    """A problem as scripts know it: `tensor` or `key`, `cause`, `detail`, `fix`."""
    if "subject" not in problem:
        return problem
    subject = problem["subject"]
    return {
        "tensor" if subject.endswith((".weight", ".weight_scale")) else "key": subject,
        "cause": problem["cause"],
        "detail": problem.get("detail") or problem["cause"],
        "fix": problem["fix"],
    }


def command(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Model folder (Hugging Face) or .gguf file.")],
    activation: Annotated[
        str | None, typer.Option("--activation", help="Activation of a GGUF file that does not say: relu2 or silu.")
    ] = None,
    i2s: Annotated[str | None, typer.Option("--i2s", help="Layout of I2_S weights: x86 or arm.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Check a checkpoint: description, shapes and every weight."""
    from tritloom.gen.models import check

    console = Console(json=as_json)
    with console.step("Reading the weights") as update:
        report = check(model, activation=activation, i2s=i2s, progress=update)
    data = report.to_dict()
    data["problems"] = [_problem(p) for p in data["problems"]]
    if report.ok and report.spec is not None:
        s = report.spec.shape
        text = table([
            ("model", report.spec.name), ("source", report.spec.source),
            ("shape", f"{s.layers} layers, hidden {s.hidden}, ffn {s.ffn}, {s.heads}/{s.kv_heads} heads of {s.head_dim}, {s.activation}"),
            ("vocabulary", s.vocab), ("context", s.context), *(("note", note) for note in report.spec.notes), ("result", "ok"),
        ])  # fmt: skip
    else:
        text = "\n".join(str(problem) for problem in report.problems)
    console.result(data, text)
    if not report.ok:
        raise typer.Exit(2)
