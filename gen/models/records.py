"""Typed records: what a file states, with every number finite and in range before anything is computed from it."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from tritloom.gen.models.problems import Problems, shown

Size = Annotated[int, Field(gt=0, le=1 << 20)]
"""A width or a number of heads: no model comes near the limit, and a machine of it would not be built."""
Layers = Annotated[int, Field(gt=0, le=4096)]
VocabularySize = Annotated[int, Field(gt=0, le=1 << 24)]
Context = Annotated[int, Field(gt=0, le=1 << 24)]
Id = Annotated[int, Field(ge=0, lt=1 << 31)]
Positive = Annotated[float, Field(gt=0, le=1e30, allow_inf_nan=False)]
Ids = Annotated[list[Id], BeforeValidator(lambda value: value if isinstance(value, list) else [value]), Field(max_length=4096)]
"""One token or several."""


class Record(BaseModel):
    """A JSON object or a group of metadata. Types are taken as they are, never converted; null is the same as absent."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")

    @model_validator(mode="before")
    @classmethod
    def _absent(cls, data: Any) -> Any:
        return {k: v for k, v in data.items() if v is not None} if isinstance(data, dict) else data


R = TypeVar("R", bound=Record)


def read_record(kind: type[R], data: Any, problems: Problems, place: str, prefix: str = "") -> R | None:
    """`data` as a record of this kind, or None with one problem a field; `place` is the file that has to be corrected."""
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        for found in error.errors(include_url=False):
            subject = ".".join(str(part) for part in found["loc"])
            problems.add(prefix + subject if subject else prefix.rstrip(".") or place, _cause(found), f"correct {place}")
        return None


def _cause(found: Any) -> str:
    if found["type"] == "missing":
        return "missing"
    if found["type"] == "extra_forbidden":
        return f"{shown(found['input'])} here is not understood"
    if found["type"] in ("model_type", "dict_type"):
        return f"must be a record of names and values, not {shown(found['input'])}"
    if found["type"] == "value_error":
        return found["msg"].removeprefix("Value error, ")
    if found["type"] in ("too_short", "too_long"):
        bound = f"at least {found['ctx']['min_length']}" if found["type"] == "too_short" else f"at most {found['ctx']['max_length']}"
        return f"must hold {bound} values, not {shown(found['input'])}"
    return f"must be {found['msg'].removeprefix('Input should be ')}, not {shown(found['input'])}"
