"""A model as a command or a measurement names it, before it is opened.

What reads checkpoints is imported when a model is opened.
"""

from __future__ import annotations

import difflib
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tritloom.firmware.errors import InputError

if TYPE_CHECKING:
    from tritloom.gen.models import Checkpoint, CheckReport, ModelSpec


SHIPPED = Path(__file__).resolve().parents[1] / "models"
"""Trained models of a clone; the plain package has none."""
LONGEST_NAME = 100


@dataclass(frozen=True, kw_only=True)
class Source:
    """A model as it is named, with what may be said of it that its files leave open.

    `folder` or `model`, a folder or .gguf file, or a published shape's name; `activation`: of a GGUF file that does not say; `i2s`: the
    machine whose layout a GGUF file's I2_S weights have; `tokenizer`: a file instead of the model's own.
    """

    folder: Path | None = None
    model: Path | None = None
    activation: str | None = None
    i2s: str | None = None
    tokenizer: Path | None = None

    @property
    def given(self) -> bool:
        """Whether a model is named at all."""
        return self.folder is not None or self.model is not None

    @property
    def path(self) -> Path:
        """What was named. Raises `InputError` for none or two."""
        path = self.model or self.folder
        if path is None or (self.folder is not None and self.model is not None):
            raise InputError("give one model: a folder or .gguf file, as --model DIR or alone")
        return path

    @property
    def said(self) -> dict[str, Any]:
        """What was said besides the path, as `open_checkpoint` and `check` take it."""
        said = {"activation": self.activation, "i2s": self.i2s, "tokenizer": self.tokenizer}
        return {name: value for name, value in said.items() if value is not None}

    @property
    def words(self) -> str:
        """The same as it is written on the command line, each with a space before it."""
        return "".join(f" --{name} {value}" for name, value in self.said.items())

    @property
    def published(self) -> bool:
        """Whether it is a shape known by its name, without weights. Raises `InputError` if something is said of its weights."""
        from tritloom.gen.models.shapes import SHAPES

        if str(self.path) not in SHAPES or self.path.exists():
            return False
        if self.said:
            raise InputError(f"{self.path} is a shape without weights: leave{self.words} out")
        return True

    @property
    def shape_only(self) -> bool:
        """Whether there are dimensions and no weights: a published shape, or a folder with a config.json alone."""
        from tritloom.gen.models.safetensors import without_weights

        return self.published or (self.path.is_dir() and (self.path / "config.json").is_file() and without_weights(self.path))

    def open(self, context: int | None = None) -> Checkpoint:
        """The checkpoint, with a cache of `context` positions. Raises `ConfigError` for a model that no machine computes."""
        from tritloom.gen.models import open_checkpoint

        self.refuse_missing()
        if self.published:
            raise InputError(f"{self.path} is a shape without weights, which are needed here: give a model folder or .gguf file")
        checkpoint = open_checkpoint(self.path, context=context, **self.said)
        checkpoint.spec.require_machine()
        return checkpoint

    def check(self, *, need_tokenizer: bool = True, progress: Callable[[int, int], None] | None = None) -> CheckReport:
        """Everything that is wrong with the checkpoint."""
        from tritloom.gen.models import check

        return check(self.path, need_tokenizer=need_tokenizer, progress=progress, **self.said)

    def spec(self, context: int | None = None) -> ModelSpec:
        """The model's dimensions, of a checkpoint or of a published shape: enough where neither weights nor tokenizer are needed. Raises
        `ConfigError` for a model that no machine computes."""
        return self.described(context).require_machine()

    def described(self, context: int | None = None) -> ModelSpec:
        """The same, whether or not a machine computes the model."""
        from tritloom.gen.models import open_shape
        from tritloom.gen.models.shapes import published

        a_name = not self.path.exists() and self.path.name == str(self.path) and self.path.suffix != ".gguf"
        self.refuse_missing()
        if self.tokenizer is not None and not self.tokenizer.is_file():
            raise InputError(f"{self.tokenizer}: no such file; leave --tokenizer out: none is needed here")
        if self.published or a_name:
            return published(str(self.path), context)
        return open_shape(self.path, context=context, **{name: value for name, value in self.said.items() if name != "tokenizer"})

    def refuse_missing(self) -> None:
        """Raise `InputError` for a bare name of which the clone has a model, where nothing has that name here."""
        name = str(self.path)
        if self.path.name != name or len(name) > LONGEST_NAME or self.path.exists():
            return
        shipped = {path.parent.name: os.path.relpath(path.parent) for path in SHIPPED.glob("*/config.json")}
        if near := difflib.get_close_matches(name.lower(), shipped, 1):
            raise InputError(f"{name}: no such checkpoint (did you mean {shipped[near[0]]}?); `tritloom models` lists those at hand")

    def key(self) -> str:
        """Digest of the model's files and of what was said: contents, or size and time of files too large to read each time."""
        from tritloom.gen.models.gguf_file import SPLIT_NAME

        digest = hashlib.sha256(repr(sorted(self.said.items())).encode())
        path = self.path
        if path.is_dir():
            files = sorted(p for p in path.iterdir() if p.suffix in (".json", ".safetensors", ".model", ".jinja"))
        elif name := SPLIT_NAME.fullmatch(path.name):
            files = sorted(p for p in path.parent.iterdir() if (m := SPLIT_NAME.fullmatch(p.name)) and m["stem"] == name["stem"])
        else:
            files = [path]
        for file in files:
            if file.is_file():
                status = file.stat()
                digest.update(f"{file.resolve()} {status.st_size} {status.st_mtime_ns}".encode())
                if status.st_size < 64 << 20:
                    digest.update(file.read_bytes())
        return digest.hexdigest()
