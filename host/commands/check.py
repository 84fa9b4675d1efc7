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

NO_MACHINE = "ok, but no machine computes it yet"


def described_alone(source: Source) -> ModelSpec | None:
    """The model of a source that has no weights and nothing else wrong, or None."""
    from tritloom.gen.models.check import NO_WEIGHTS

    if source.published:
        return source.described()
    report = source.check(need_tokenizer=False) if source.shape_only else None
    return report.spec if report is not None and [p.cause for p in report.problems] == [NO_WEIGHTS] else None


def described(spec: ModelSpec) -> list[tuple[str, Any]]:
    """What a model is, in rows."""
    s = spec.shape
    scales = f"one for {s.group_size} inputs of a row, {'also' if s.ternary_head else 'but not'} in embedding and head"
    return [
        ("model", spec.name), ("source", spec.source),
        ("shape", f"{s.layers} layers, hidden {s.hidden}, ffn {s.ffn}, {s.heads}/{s.kv_heads} heads of {s.head_dim}, {s.activation}"
                  f"{', head norms' if s.head_norms else ''}"),
        *([("scales", scales)] if s.group_size else []), *([("biases", ", ".join(spec.biases))] if spec.biases else []),
        ("vocabulary", s.vocab), ("context", s.context), *(("note", note) for note in (*spec.notes, spec.no_machine) if note is not None),
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
        rows = [*described(shape), ("weights", "missing: this is a description alone")]
        text = table([*rows, ("result", SHAPE_ALONE if shape.no_machine is None else NO_MACHINE)])
        found = {"ok": True, "weights": False, "problems": [], "spec": shape.to_dict(), "no_machine": shape.no_machine}
        console.result(found, text)
        return
    with console.step("Reading the weights") as update:
        report = source.check(need_tokenizer=not no_tokenizer, progress=update)
    data: dict[str, Any] = report.to_dict() | {"weights": not source.shape_only}
    data["problems"] = [_problem(p) for p in data["problems"]]
    if report.ok and report.spec is not None:
        text = table([*described(report.spec), ("result", "ok" if report.spec.no_machine is None else NO_MACHINE)])
    else:
        text = "\n".join(str(problem) for problem in report.problems)
    console.result(data, text)
    if not report.ok:
        raise typer.Exit(2)
