"""Checkpoints opened and checked before anything is built.

`check` lists everything that is wrong with a checkpoint; `open_checkpoint` raises the first of it. A value is
never guessed: what a file leaves open (GGUF `bitnet` activations, I2_S layouts) has to be said.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tritloom.gen.models.checkpoint import INCOMPLETE, MATRICES, Checkpoint, matrix_shape, norm_length, norms_of
from tritloom.gen.models.gguf import I2S_BLOCKS, GgufCheckpoint, gguf_spec
from tritloom.gen.models.gguf_file import read_gguf
from tritloom.gen.models.huggingface import HuggingFaceCheckpoint, MlxCheckpoint, hugging_face_spec
from tritloom.gen.models.others import tensor_of
from tritloom.gen.models.problems import Problem, Problems
from tritloom.gen.models.safetensors import read_safetensors_folder, without_weights
from tritloom.gen.models.spec import ModelSpec
from tritloom.gen.models.vocabulary import of_folder, of_gguf

TRIED = 256
"""Positions of the cache while the numbers are tried."""
WEIGHTS_FIX = "download them; fit, generate and bench do with config.json alone"


@dataclass(frozen=True)
class CheckReport:
    """What `check` found; `spec` is there as soon as the description of the model can be read."""

    problems: list[Problem]
    spec: ModelSpec | None

    @property
    def ok(self) -> bool:
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        return {
            "ok": self.ok,
            "problems": [dataclasses.asdict(p) for p in self.problems],
            "spec": self.spec.to_dict() if self.spec else None,
            "no_machine": self.spec.no_machine if self.spec else None,
        }


def expected_shapes(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors that the description asks for."""
    s = checkpoint.spec.shape
    table, found = (s.vocab, s.hidden), {checkpoint.final_norm_name: (s.hidden,)}
    found |= {checkpoint.embedding_name: table, checkpoint.head_table: table}
    for layer in range(s.layers):
        found |= {checkpoint.norm_name(layer, n): (norm_length(s, n),) for n in norms_of(s)}
        found |= {checkpoint.matrix_name(layer, n): matrix_shape(s, n) for n in MATRICES}
        found |= {checkpoint.bias_name(layer, n): matrix_shape(s, n)[:1] for n in checkpoint.spec.biases}
    return found | checkpoint.companions()


def unsound(checkpoint: Checkpoint) -> dict[str, tuple[tuple[int, ...] | None, tuple[int, ...]]]:
    """Tensors that are missing (None) or of another shape than the description gives them: what is stored, and what should be."""
    s, found = checkpoint.spec.shape, {}
    tables = {checkpoint.embedding_name, checkpoint.head_table}
    matrices = {checkpoint.matrix_name(layer, n) for layer in range(s.layers) for n in MATRICES}
    for name, shape in expected_shapes(checkpoint).items():
        tensor = checkpoint.tensors.get(name)
        stored = None if tensor is None else (
            checkpoint.stored_table_shape(tensor) if name in tables
            else checkpoint.stored_matrix_shape(tensor) if name in matrices else tensor.shape)  # fmt: skip
        if stored != shape:
            found[name] = stored, shape
    return found


def check_shapes(checkpoint: Checkpoint, problems: Problems) -> None:
    """Every expected tensor is there with the shape that the description gives it, and no other."""
    wrong = unsound(checkpoint)
    missing = [name for name, (stored, _) in wrong.items() if stored is None]
    if missing:
        others = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        problems.add(missing[0], f"missing{others}", INCOMPLETE)
    for name, (stored, shape) in wrong.items():
        if stored is not None:
            problems.add(
                name,
                f"has shape {list(stored)}, but the model's description says {list(shape)}",
                "config and weights are of different models: take both from one place",
            )
    expected = expected_shapes(checkpoint)
    strange = [name for name in checkpoint.tensors if name not in expected and not checkpoint.known(name)]
    if strange:
        others = f" (and {len(strange) - 1} more)" if len(strange) > 1 else ""
        name, other = next(((name, other) for name in strange if (other := tensor_of(name)) is not None), (strange[0], None))
        problems.add(
            name,
            f"not part of a supported model{f': it is of {other.what}' if other else ''}{others}",
            other.fix if other else "adapters, experts, extra norms and biases that only some layers have cannot be built: use a model "
                                    "without them",
        )


def check_tokenizer(checkpoint: Checkpoint, problems: Problems) -> Checkpoint:
    """The checkpoint with its tokenizer, as far as that is without problems."""
    for key, token in [("bos_token_id", checkpoint.spec.bos_id), *(("eos_token_id", e) for e in checkpoint.spec.eos_ids)]:
        if token is not None and not 0 <= token < checkpoint.spec.shape.vocab:
            problems.add(key, f"{token} is outside the vocabulary of {checkpoint.spec.shape.vocab}", "correct it in config.json")
    return problems.catch(checkpoint.with_tokenizer) or checkpoint


def check_values(checkpoint: Checkpoint, problems: Problems, progress: Callable[[int, int], None] | None = None) -> None:
    """Read everything once that has the right shape; one problem a tensor."""
    s, wrong = checkpoint.spec.shape, unsound(checkpoint)

    def read(name: str, action: Callable[[], Any]) -> None:
        if name not in wrong and not any(other in wrong for other in checkpoint.companions_of(name)):
            problems.catch(action)

    matrix = checkpoint.grouped if s.group_size else checkpoint.ternary
    for layer in range(s.layers):
        for name in MATRICES:
            read(checkpoint.matrix_name(layer, name), partial(matrix, layer, name))
        for name in norms_of(s):
            read(checkpoint.norm_name(layer, name), partial(checkpoint.norm, layer, name))
        for name in checkpoint.spec.biases:
            read(checkpoint.bias_name(layer, name), partial(checkpoint.bias, layer, name))
        if progress:
            progress(layer + 1, s.layers + 1)
    read(checkpoint.final_norm_name, checkpoint.final_norm)
    blocks = checkpoint.grouped_blocks if s.ternary_head else checkpoint.blocks
    for table in {checkpoint.embedding_name, checkpoint.head_table}:
        read(table, lambda t=table: [None for _ in blocks(t)])
    if progress:
        progress(s.layers + 1, s.layers + 1)


def check_numbers(checkpoint: Checkpoint) -> ModelSpec:
    """Whether the machine's fixed point carries them; the description with what is to be noted of that."""
    from tritloom.gen.pack import quantise  # which imports this package

    found = quantise(checkpoint, min(checkpoint.spec.shape.context, TRIED)).spec  # a few tokens are tried, whatever the context
    return dataclasses.replace(found, shape=checkpoint.spec.shape)


NO_WEIGHTS = "no such file: the weights are missing"
"""Cause of the one problem of a description without weights."""


def _starts_with(path: Path, magic: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(magic)) == magic


def _hugging_face(
    folder: Path, problems: Problems, activation: str | None, tokenizer: Path | None
) -> tuple[ModelSpec | None, Checkpoint | None]:
    if not (folder / "config.json").is_file():
        if ggufs := sorted(folder.glob("*.gguf")):
            problems.add(str(folder), "holds no config.json, but GGUF files", f"give the file itself, such as {ggufs[0]}")
            return None, None
        if snapshots := sorted(folder.glob("snapshots/*/config.json")):
            problems.add(str(folder), "a download cache, not a model's folder", f"give {snapshots[0].parent}")
            return None, None
    if without_weights(folder):
        spec = hugging_face_spec(folder, None, activation, problems)
        problems.add(str(folder / "model.safetensors"), NO_WEIGHTS, WEIGHTS_FIX)
        return spec, None
    tensors = problems.catch(lambda: read_safetensors_folder(folder))
    spec = hugging_face_spec(folder, tensors, activation, problems)
    if spec is None or tensors is None:
        return spec, None
    kind = MlxCheckpoint if spec.scale_rule == "stored" else HuggingFaceCheckpoint
    return spec, kind(spec, tensors, partial(of_folder, folder, tokenizer, spec.shape.vocab, spec.bos_id))


def _gguf(
    path: Path, problems: Problems, activation: str | None, i2s: str | None, tokenizer: Path | None
) -> tuple[ModelSpec | None, Checkpoint | None]:
    content = problems.catch(lambda: read_gguf(path))
    if content is None:
        return None, None
    metadata, tensors = content
    if i2s is None and any(t.dtype == "I2_S" for t in tensors.values()):
        problems.add(
            str(path),
            "I2_S weights are laid out as the converting machine liked, and the file does not say how",
            "name that machine (--i2s x86 or --i2s arm), or convert to TQ2_0",
        )
    elif i2s is not None and i2s not in I2S_BLOCKS:
        problems.add("i2s", f"{i2s!r} is not a layout", f"choose {' or '.join(I2S_BLOCKS)}")
    elif i2s is not None and not any(t.dtype == "I2_S" for t in tensors.values()):
        problems.add(str(path), f"holds no I2_S weights, and so no layout of {i2s}", "leave --i2s out")
    spec = gguf_spec(path, metadata, tensors, activation, problems)
    if spec is None or problems.found:
        return spec, None
    find_tokenizer = partial(of_gguf, path, metadata, tokenizer, spec.shape.vocab)
    return spec, GgufCheckpoint(spec, tensors, find_tokenizer, metadata["general.architecture"], I2S_BLOCKS.get(i2s or "", 128))


def check_layout(folder: Path, problems: Problems, i2s: str | None) -> None:
    """A Hugging Face folder has no I2_S weights: a layout for them is a mistake."""
    if i2s is not None:
        problems.add(str(folder), f"holds no I2_S weights, and so no layout of {i2s}", "leave --i2s out")


def _load(
    path: Path, problems: Problems, activation: str | None, i2s: str | None, tokenizer: Path | None
) -> tuple[ModelSpec | None, Checkpoint | None]:
    """The description of a model, and its checkpoint with names and shapes of all tensors checked; None for what could not be read."""
    try:
        spec, checkpoint = _read(path, problems, activation, i2s, tokenizer)
    except OSError as error:
        problems.add(str(path), f"cannot be read ({error.strerror})", "check the path and its permissions")
        return None, None
    if checkpoint is not None:
        check_shapes(checkpoint, problems)
    return spec, checkpoint


def _read(
    path: Path, problems: Problems, activation: str | None, i2s: str | None, tokenizer: Path | None
) -> tuple[ModelSpec | None, Checkpoint | None]:
    if path.is_dir():
        check_layout(path, problems, i2s)
        return _hugging_face(path, problems, activation, tokenizer)
    if path.suffix == ".gguf" or (path.is_file() and _starts_with(path, b"GGUF")):
        return _gguf(path, problems, activation, i2s, tokenizer)
    if path.suffix == ".safetensors" and path.is_file():
        problems.add(str(path), "a weight file alone lacks the model's description", f"give its folder, {path.parent}")
        return None, None
    problems.add(
        str(path),
        "no such checkpoint" if not path.exists() else "neither a model folder nor a GGUF file",
        "give the folder of a Hugging Face model or a .gguf file (`tritloom models` lists those at hand)",
    )
    return None, None


def open_checkpoint(
    path: str | Path,
    *,
    context: int | None = None,
    activation: str | None = None,
    i2s: str | None = None,
    tokenizer: str | Path | None = None,
    need_tokenizer: bool = True,
) -> Checkpoint:
    """Open a checkpoint; raises CheckpointError at the first problem of its description, shapes or tokenizer.

    `context` shortens the KV cache; `activation` and `i2s` ("x86", "arm") settle what a GGUF file leaves open;
    `tokenizer` is the path of a tokenizer.json (or tokenizer.model) to use instead of the model's own; with `need_tokenizer`
    false none is read.
    """
    problems = Problems()
    _, checkpoint = _load(Path(path), problems, activation, i2s, Path(tokenizer) if tokenizer else None)
    if checkpoint is not None and need_tokenizer:
        checkpoint = check_tokenizer(checkpoint, problems)
    problems.raise_first()
    assert checkpoint is not None
    return checkpoint.with_context(context)


def open_shape(path: str | Path, *, context: int | None = None, activation: str | None = None, i2s: str | None = None) -> ModelSpec:
    """What a checkpoint is, for work that reads neither weights nor tokenizer.

    A folder may hold a config.json alone; weights that are there must match it. Arguments and errors are open_checkpoint's.
    """
    path, problems = Path(path), Problems()
    if path.is_dir() and (path / "config.json").is_file() and without_weights(path):
        spec = hugging_face_spec(path, None, activation, problems)
        check_layout(path, problems, i2s)
    else:
        spec, _ = _load(path, problems, activation, i2s, None)
    problems.raise_first()
    assert spec is not None
    return spec.with_context(context)


def check(
    path: str | Path,
    *,
    activation: str | None = None,
    i2s: str | None = None,
    tokenizer: str | Path | None = None,
    need_tokenizer: bool = True,
    values: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> CheckReport:
    """Everything that is wrong with a checkpoint; with `values`, every weight is read. Other arguments are open_checkpoint's."""
    problems = Problems()
    spec, checkpoint = _load(Path(path), problems, activation, i2s, Path(tokenizer) if tokenizer else None)
    if checkpoint is not None:
        if need_tokenizer:
            checkpoint = check_tokenizer(checkpoint, problems)
        spec = checkpoint.spec
        if values:
            check_values(checkpoint, problems, progress)
        if values and not problems.found and spec.no_machine is None:
            spec = problems.catch(partial(check_numbers, checkpoint)) or spec
    return CheckReport(problems.found, spec)
