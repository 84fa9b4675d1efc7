"""tritloom check: is this checkpoint one that a machine can be built for?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from tritloom.firmware.errors import InputError
from tritloom.host.commands.common import JsonOption, table
from tritloom.host.console import Console

if TYPE_CHECKING:
    from tritloom.gen.models import ModelSpec
    from tritloom.gen.source import Source


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


SHAPE_ALONE = "enough for fit, generate, build and bench --context N; pack, run and verify need the weights"


def described_alone(source: Source) -> ModelSpec | None:
    """The model of a source that has no weights and nothing else wrong, or None."""
    from tritloom.gen.models.check import NO_WEIGHTS

    if source.published:
        return source.spec()
    report = source.check(need_tokenizer=False) if source.shape_only else None
    return report.spec if report is not None and [p.cause for p in report.problems] == [NO_WEIGHTS] else None


def described(spec: ModelSpec) -> list[tuple[str, Any]]:
    """What a model is, in rows."""
    s = spec.shape
    return [
        ("model", spec.name), ("source", spec.source),
        ("shape", f"{s.layers} layers, hidden {s.hidden}, ffn {s.ffn}, {s.heads}/{s.kv_heads} heads of {s.head_dim}, {s.activation}"),
        ("vocabulary", s.vocab), ("context", s.context), *(("note", note) for note in spec.notes),
    ]  # fmt: skip


def command(
    source: Source,
    no_tokenizer: Annotated[bool, typer.Option("--no-tokenizer", help="Leave the tokenizer out: it is needed for texts only.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Check a checkpoint: description, shapes and every weight."""
    console = Console(json=as_json)
    if no_tokenizer and source.tokenizer is not None:
        raise InputError("--no-tokenizer leaves the tokenizer out that --tokenizer names: give one of them")
    source.refuse_missing()
    if not source.path.exists() and not source.published:
        raise InputError(f"{source.path}: no such checkpoint; give the folder of a Hugging Face model or a .gguf file (`tritloom models` "
                         "lists those at hand)")
    shape = described_alone(source)
    if shape is not None:
        text = table([*described(shape), ("weights", "missing: this is a description alone"), ("result", SHAPE_ALONE)])
        console.result({"ok": True, "weights": False, "problems": [], "spec": shape.to_dict()}, text)
        return
    with console.step("Reading the weights") as update:
        report = source.check(need_tokenizer=not no_tokenizer, progress=update)
    data: dict[str, Any] = report.to_dict() | {"weights": not source.shape_only}
    data["problems"] = [_problem(p) for p in data["problems"]]
    if report.ok and report.spec is not None:
        text = table([*described(report.spec), ("result", "ok")])
    else:
        text = "\n".join(str(problem) for problem in report.problems)
    console.result(data, text)
    if not report.ok:
        raise typer.Exit(2)
