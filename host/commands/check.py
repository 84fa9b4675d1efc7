"""tritloom check: is this checkpoint one that a machine can be built for?"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from tritloom.host.commands.common import JsonOption, Source, table
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
    source: Source,
    no_tokenizer: Annotated[bool, typer.Option("--no-tokenizer", help="Leave the tokenizer out: it is needed for texts only.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Check a checkpoint: description, shapes and every weight."""
    console = Console(json=as_json)
    with console.step("Reading the weights") as update:
        report = source.check(need_tokenizer=not no_tokenizer, progress=update)
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
