"""What the verbs share: their options, and the way from a model and a board to a machine.

Nothing of the generator or the simulator is imported before a function here is called.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, Literal, get_type_hints

import typer

from tritloom.firmware.config import BuildConfig, ConfigError
from tritloom.firmware.errors import InputError
from tritloom.firmware.layout import memory_map
from tritloom.firmware.names import unknown
from tritloom.system.files import scratch

if TYPE_CHECKING:
    from tritloom.gen.models import ModelSpec

BoardOption = Annotated[
    str | None, typer.Option("--board", metavar="BOARD", help="Board to build for: a name, or the path of a board file (sim by default).")
]
ContextOption = Annotated[
    int | None, typer.Option("--context", min=1, metavar="N", help="Positions of the KV cache (the model's by default).")
]
SettingsOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Fix a field of the configuration, such as lanes=2. Repeatable.")
]
FillOption = Annotated[
    float | None,
    typer.Option("--fill", min=0.01, max=1.0, metavar="SHARE", help="Most of the device's LUTs to take, such as 0.85 (by default what the "
                                                                    "board's tool closes without help)."),
]  # fmt: skip
ClockOption = Annotated[float | None, typer.Option("--clock", min=1.0, metavar="MHZ", help="The machine's clock, as --set clock_hz.")]
ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="Take this configuration (config.json of `generate`) instead of fitting one."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]

FITTED_FIELDS = {f.name: f.type for f in dataclasses.fields(BuildConfig) if f.name not in ("shape", "board")}
"""Names and types of what `--set` may fix."""
CONFIGURATION_BYTES, TEXT_BYTES = 1 << 20, 64 << 20
"""Most bytes of a configuration, and of a text."""
MOST_CHARACTERS = 100
"""Of what follows `--set`."""


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """The options that name a model (`gen.source.Source`); every verb that opens one has them, through `with_options`."""

    folder: Annotated[Path | None, typer.Argument(metavar="MODEL", help="The same as --model.")] = None
    model: Annotated[
        Path | None,
        typer.Option("--model", metavar="DIR", help="Model folder (Hugging Face) or .gguf file; where no weights are needed, also a "
                                                    "published shape such as bitnet_b1_58-large."),
    ] = None  # fmt: skip
    activation: Annotated[
        Literal["relu2", "silu"] | None, typer.Option("--activation", help="Activation of a GGUF file that does not say.")
    ] = None
    i2s: Annotated[
        Literal["x86", "arm"] | None, typer.Option("--i2s", help="Machine whose layout a GGUF file's I2_S weights have.")
    ] = None
    tokenizer: Annotated[
        Path | None, typer.Option("--tokenizer", metavar="FILE", help="A tokenizer.json or tokenizer.model instead of the model's own.")
    ] = None


@dataclass(frozen=True, kw_only=True)
class MachineOptions:
    """The options that say which machine is meant, besides its board; see `SourceOptions`."""

    context: ContextOption = None
    fill: FillOption = None
    clock: ClockOption = None
    settings: SettingsOption = None
    config_file: ConfigOption = None

    def plan(self, board: str | None, *settings: str) -> Plan:
        """What they ask for, with more settings before their own. Raises as `Plan.of` does."""
        return Plan.of(board, self.context, [*settings, *(self.settings or ())], self.config_file, fill=self.fill, clock=self.clock)

    @property
    def words(self) -> str:
        """The same as it is written on the command line, each with a space before it."""
        said = [("context", self.context), *(("set", each) for each in self.settings or ()), ("config", self.config_file)]
        return "".join(f" --{name} {value}" for name, value in said if value is not None)


def _version(wanted: bool) -> None:
    if wanted:
        try:
            typer.echo(f"tritloom {version('tritloom')}")
        except PackageNotFoundError:
            typer.echo("tritloom (not installed)")
        raise typer.Exit()


def main_options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and leave.")] = False,
) -> None:
    """Options before the verb."""
    if debug:
        os.environ["TRITLOOM_DEBUG"] = "1"


def with_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """A command whose parameters of type `Source` and `MachineOptions` typer sees as the options of these groups."""
    signature = inspect.signature(command, eval_str=True, locals={"Source": SourceOptions})
    groups: dict[str, Any] = {p.name: p.annotation for p in signature.parameters.values() if dataclasses.is_dataclass(p.annotation)}
    if not groups:
        return command
    parameters = [each for p in signature.parameters.values()
                  for each in (_options(p.annotation) if p.name in groups else [p.replace(kind=inspect.Parameter.KEYWORD_ONLY)])]

    @functools.wraps(command)
    def expanded(**given: Any) -> Any:
        from tritloom.gen.source import Source

        for name, group in groups.items():
            kind: Callable[..., Any] = Source if group is SourceOptions else group
            given[name] = kind(**{field.name: given.pop(field.name) for field in dataclasses.fields(group)})
        return command(**given)

    expanded.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    expanded.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return expanded


def _options(group: Any) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=hints[f.name])
            for f in dataclasses.fields(group)]


def settings_of(pairs: Iterable[str] | None) -> dict[str, Any]:
    """FIELD=VALUE pairs as overrides of a configuration."""
    settings: dict[str, Any] = {}
    for pair in pairs or ():
        name, equals, value = pair.partition("=")
        if len(pair) > MOST_CHARACTERS:
            raise InputError(f"--set {name[:MOST_CHARACTERS]}: {len(pair):,} characters are more than any field and value have")
        if not equals or not value:
            raise InputError(f"--set {pair}: write FIELD=VALUE, such as --set lanes=2")
        if name not in FITTED_FIELDS:
            raise InputError(f"--set {pair}: {unknown('field', name, FITTED_FIELDS)}")
        if name in settings:
            raise InputError(f"--set {pair}: {name} is set twice, give it once")
        kind = FITTED_FIELDS[name]
        if kind == "int" and not re.fullmatch(r"-?[0-9]{1,18}", value):
            raise InputError(f"--set {pair}: {name} is a number, such as --set {name}=2")
        if kind == "bool" and value not in ("true", "false"):
            raise InputError(f"--set {pair}: {name} is true or false")
        settings[name] = int(value) if kind == "int" else value == "true" if kind == "bool" else value
    return settings


def board_of(config: BuildConfig, named: str | None, file: Path) -> str:
    """The board that the configuration in `file` is for: its name, or the path of its board file that was `named`."""
    from tritloom.boards.board import load

    if named is not None and load(named).name != config.board:
        raise InputError(f"{file} is for board {config.board}: leave --board {named} out")
    return config.board if named is None else named


@dataclass(frozen=True)
class Plan:
    """What is asked of a machine: a configuration to be fitted for `board`, with a cache of `context` positions and `settings` (of
    `gen.fit.fit`), or `machine`, which was read from a file and leaves nothing to be asked."""

    board: str
    context: int | None
    settings: dict[str, Any]
    machine: BuildConfig | None = None

    @classmethod
    def of(cls, board: str | None, context: int | None, settings: Iterable[str] | None, file: Path | None = None, *,
           fill: float | None = None, clock: float | None = None) -> Plan:
        """From the options of a verb, before its model is read. Raises `InputError`, `BoardError`."""
        from tritloom.boards.board import DEFAULT_BOARD, load

        settings = [*(settings or ()), *([] if clock is None else [f"clock_hz={round(clock * 1e6)}"])]
        if file is None:
            board = DEFAULT_BOARD if board is None else board
            load(board)
            return cls(board, context, settings_of(settings) | ({} if fill is None else {"fill": fill}))
        try:
            with file.open("rb") as opened:
                config = BuildConfig.from_json(bounded(opened, CONFIGURATION_BYTES, str(file)).decode("utf-8"))
        except UnicodeDecodeError:
            raise InputError(f"{file}: not a configuration; give config.json as `tritloom generate` wrote it") from None
        except ConfigError as error:
            raise InputError(f"{file}: {error}; give config.json as `tritloom generate` wrote it") from None
        if settings or fill is not None:
            raise InputError("--set, --clock and --fill are of a configuration to be fitted and cannot be used with --config: leave one of "
                             "them out")
        if context not in (None, config.shape.context):
            raise InputError(f"{file} is for a context of {config.shape.context}: leave --context {context} out")
        return cls(board_of(config, board, file), config.shape.context, {}, config)

    def configuration(self, spec: ModelSpec, warn: Callable[[str], None] | None = None) -> BuildConfig:
        """The machine for a model; why its build may not route goes to `warn`. Raises `DoesNotFit`, and `InputError` if the file's is one
        for another model."""
        if self.machine is None:
            from tritloom.gen.fit.fitted import fitted

            result = fitted(spec, self.board, self.settings)
            if warn is not None:
                for warned in result.warnings:
                    warn(f"warning, {warned}")
            return result.config
        mine = self.machine.shape
        differing = [f"{field.name} {getattr(mine, field.name)} (model: {getattr(spec.shape, field.name)})"
                     for field in dataclasses.fields(mine) if getattr(mine, field.name) != getattr(spec.shape, field.name)]
        if differing:
            raise InputError(f"the configuration is for another model: {', '.join(differing)}")
        check_memory(self.machine, memory_map(self.machine, tied=spec.tied_embeddings).total_bytes, self.board)
        return self.machine


def check_memory(config: BuildConfig, memory_bytes: int, board: str) -> None:
    """Raise `InputError` for a machine whose model needs more memory than a board has: `fit` makes none, but a file may hold one."""
    from tritloom.boards.board import load

    target = load(board)
    if config.memory == "axi" and target.real and memory_bytes > target.window_bytes:
        raise InputError(f"the machine needs {size(memory_bytes)} of memory, board {target.name} has {size(target.window_bytes)}: take a "
                         "smaller --context, fewer sequences or a smaller model")


def check_folder(path: Path, option: str) -> None:
    """Raise `InputError`, before the work instead of after it, if nothing can be written into a folder, which may have to be made."""
    there = next(each for each in (path, *path.absolute().parents) if _exists(each))
    if not there.is_dir():
        raise InputError(f"{there}: is a file; give {option} a folder")
    try:
        with scratch(there):
            pass
    except OSError as error:
        raise InputError(f"{there}: cannot be written into ({error.strerror}); give {option} another place") from None


def check_file(path: Path, option: str) -> None:
    """The same of a file, whose folder may have to be made."""
    if path.is_dir():
        raise InputError(f"{path}: is a folder; give {option} a file, such as {path / 'file'}")
    check_folder(path.parent, option)


def _exists(path: Path) -> bool:
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def texts_of(prompts: Iterable[str] | None, files: Iterable[Path] | None) -> list[str]:
    """The texts named on the command line, those in files and on stdin (-) without the end of their last line. Raises `InputError`."""
    texts, read = [], False
    for prompt in prompts or ():
        if prompt == "-":
            if read or sys.stdin is None:
                raise InputError("stdin is closed" if sys.stdin is None else "--prompt - reads stdin, which gives one text: give it once")
            texts.append(_content(bounded(sys.stdin.buffer, TEXT_BYTES, "the prompt on stdin"), "the prompt on stdin"))
            read = True
        else:  # a surrogate stands for a byte that is not of the locale's encoding
            foreign = any("\ud800" <= character <= "\udfff" for character in prompt)
            texts.append(_decoded(os.fsencode(prompt), "the prompt") if foreign else prompt)
    return [*texts, *(text_in(file) for file in files or ())]


def text_in(file: Path) -> str:
    """Text of a UTF-8 file, without the end of its last line. Raises `InputError`."""
    with file.open("rb") as opened:
        return _content(bounded(opened, TEXT_BYTES, str(file)), str(file))


def bounded(file: BinaryIO, most: int, what: str) -> bytes:
    """All of a file, which may have no end. Raises `InputError` for more than `most` bytes."""
    data = file.read(most + 1)
    if len(data) > most:
        raise InputError(f"{what}: more than {most >> 20} MiB, which is too much to be meant; check the path")
    return data


def _decoded(data: bytes, what: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{what} is not UTF-8: byte 0x{data[error.start]:02x} at {error.start}; convert it first") from None


def _content(data: bytes, what: str) -> str:
    """Text of a file: without a mark of its encoding, and without the end of its last line."""
    return _decoded(data, what).removeprefix("\ufeff").removesuffix("\n").removesuffix("\r")


def seconds(value: float) -> str:
    """A duration for people."""
    if value < 1e-3:
        return f"{value * 1e6:.3g} µs"
    return f"{value * 1e3:.3g} ms" if value < 1 else f"{value:.3g} s"


def saturation_text(count: int) -> str:
    """What the counter SATURATIONS means for the text."""
    return f"{count:,} numbers did not fit the machine's fixed point and were cut: the text may differ from the float model's"


def size(count: float) -> str:
    """A number of bytes for people."""
    for shift, unit in ((20, "MiB"), (10, "KiB")):
        if count >= 1 << shift:
            return f"{count / (1 << shift):,.1f} {unit}"
    return f"{count:,.0f} bytes"


def columns(rows: Iterable[Sequence[str]]) -> str:
    """Aligned columns, all but the first and the last to the right."""
    rows = list(rows)
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    last = len(widths) - 1
    return "\n".join("  ".join(cell.ljust(width) if n in (0, last) else cell.rjust(width)
                               for n, (cell, width) in enumerate(zip(row, widths, strict=True))).rstrip() for row in rows)


def table(rows: Iterable[tuple[str, Any]]) -> str:
    """Aligned name and value lines."""
    rows = list(rows)
    width = max((len(name) for name, _ in rows), default=0)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)
