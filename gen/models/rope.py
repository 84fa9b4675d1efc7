"""Rotary embedding: base and scaling as checkpoints state them, and the angle per position of each pair.

Scalings are those that a table made offline holds exactly; definitions are those of transformers (modeling_rope_utils) and of
llama.cpp (llama-model.cpp, ggml's rope). What neither would compute this way is refused by name.
"""

from __future__ import annotations

from math import ceil, floor, log, pi
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, TypeAdapter, model_validator

from tritloom.gen.models.problems import Problems, shown
from tritloom.gen.models.records import Context, Record, read_record

Frequencies = NDArray[np.float64]

Base = Annotated[float, Field(gt=1, le=1e30, allow_inf_nan=False)]
Factor = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]


class Scaling(Record):
    """What changes the angles. `attention_factor` multiplies rotated queries and keys, each."""

    model_config = ConfigDict(extra="forbid")
    rope_type: str
    attention_factor: Factor = 1.0

    def apply(self, f: Frequencies, theta: float) -> Frequencies:
        """Angles per position of each pair, from the unscaled ones."""
        raise NotImplementedError


class Linear(Scaling):
    """Positions divided by a factor, and each pair's angle by one of its own (GGUF's rope_freqs), if there are any."""

    rope_type: Literal["linear"]
    factor: Factor
    factors: list[Factor] = []

    def apply(self, f: Frequencies, theta: float) -> Frequencies:
        return f / self.factor / (np.array(self.factors) if self.factors else 1.0)


class Llama3(Scaling):
    """Slow pairs' angles divided by a factor, fast ones' kept, with a ramp between."""

    rope_type: Literal["llama3"]
    factor: Factor
    low_freq_factor: Factor
    high_freq_factor: Factor
    original_max_position_embeddings: Context

    @model_validator(mode="after")
    def _ordered(self) -> Llama3:
        if self.high_freq_factor <= self.low_freq_factor:
            raise ValueError(f"high_freq_factor ({self.high_freq_factor:g}) must be above low_freq_factor ({self.low_freq_factor:g})")
        return self

    def apply(self, f: Frequencies, theta: float) -> Frequencies:
        turns = self.original_max_position_embeddings * f / (2 * pi)
        smooth = np.clip((turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor), 0, 1)
        return (1 - smooth) * f / self.factor + smooth * f


class Yarn(Scaling):
    """Pairs that turn less than `beta_slow` times in the original context interpolated, those above `beta_fast` kept."""

    rope_type: Literal["yarn"]
    factor: Factor
    original_max_position_embeddings: Context
    beta_fast: Factor = 32.0
    beta_slow: Factor = 1.0
    truncate: bool = True

    @model_validator(mode="after")
    def _ordered(self) -> Yarn:
        if self.beta_fast < self.beta_slow:
            raise ValueError(f"beta_fast ({self.beta_fast:g}) must not be below beta_slow ({self.beta_slow:g})")
        return self

    def bounds(self, theta: float, head_dim: int) -> tuple[float, float]:
        """First and last pair of the ramp."""
        original = self.original_max_position_embeddings
        low, high = (head_dim * log(original / (beta * 2 * pi)) / (2 * log(theta)) for beta in (self.beta_fast, self.beta_slow))
        if self.truncate:
            low, high = floor(low), ceil(high)
        return max(low, 0), min(high, head_dim - 1)

    def apply(self, f: Frequencies, theta: float) -> Frequencies:
        low, high = self.bounds(theta, 2 * len(f))
        kept = 1 - np.clip((np.arange(len(f)) - low) / (high - low or 0.001), 0, 1)
        return f / self.factor * (1 - kept) + f * kept


_scaling = TypeAdapter(Annotated[Linear | Llama3 | Yarn, Field(discriminator="rope_type")])
KINDS: dict[str, type[Scaling]] = {"linear": Linear, "llama3": Llama3, "yarn": Yarn}


def scaling_of(record: dict[str, Any] | None) -> Scaling | None:
    """The scaling that a ModelSpec records. Raises ValueError if it is not one."""
    return None if record is None else _scaling.validate_python(record)


def frequencies(theta: float, head_dim: int, record: dict[str, Any] | None) -> Frequencies:
    """Angle per position of each of the head_dim/2 pairs, float64."""
    f = theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    scaling = scaling_of(record)
    return f if scaling is None else scaling.apply(f, theta)


def attention_factor(record: dict[str, Any] | None) -> float:
    """What multiplies rotated queries and keys, each."""
    scaling = scaling_of(record)
    return 1.0 if scaling is None else scaling.attention_factor


def yarn_attention(factor: float, scale: float = 1.0) -> float:
    """The attention factor of a yarn scaling that names none."""
    return 1.0 if factor <= 1 else 0.1 * scale * log(factor) + 1


def checked(scaling: Scaling | None, theta: float, head_dim: int, problems: Problems, place: str) -> dict[str, Any] | None:
    """The record for a ModelSpec of a scaling that fits the model; None when it changes nothing."""
    if isinstance(scaling, Yarn):
        low, high = scaling.bounds(theta, head_dim)
        if low > high:
            problems.add(
                "rope_scaling", f"yarn's ramp from pair {low:g} to pair {high:g} is empty", f"correct its original context in {place}"
            )
    if isinstance(scaling, Linear) and scaling.factors and len(scaling.factors) != head_dim // 2:
        problems.add("rope_freqs.weight", f"{len(scaling.factors)} factors for {head_dim // 2} pairs", "take the file from its source")
    if scaling is None or (isinstance(scaling, Linear) and scaling.factor == scaling.attention_factor == 1 and not scaling.factors):
        return None
    return scaling.model_dump()


# Hugging Face ------------------------------------------------------------------------------------


class RopeRecord(Record):
    """rope_scaling or rope_parameters of a config.json, with the fields of every kind."""

    model_config = ConfigDict(extra="allow")
    rope_theta: Base | None = None
    rope_type: str | None = None
    type: str | None = None
    partial_rotary_factor: Factor | None = None
    factor: Factor | None = None
    original_max_position_embeddings: Context | None = None
    low_freq_factor: Factor | None = None
    high_freq_factor: Factor | None = None
    attention_factor: Factor | None = None
    beta_fast: Factor | None = None
    beta_slow: Factor | None = None
    mscale: Factor | None = None
    mscale_all_dim: Factor | None = None
    truncate: bool | None = None


COMMON = {"rope_theta", "rope_type", "type", "partial_rotary_factor"}
HUGGING_FACE_KINDS: dict[str, set[str]] = {
    "default": set(),
    "dynamic": {"factor", "original_max_position_embeddings"},
    "linear": {"factor"},
    "llama3": {"factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"},
    "yarn": {"factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim",
             "truncate"},
}  # fmt: skip
"""Fields of each kind beside the common ones. dynamic is default: it changes angles past max_position_embeddings, where no machine goes."""


class RopeFields(Record):
    """What a config.json says about rotary embedding."""

    rope_theta: Base | None = None
    rope_scaling: RopeRecord | None = None
    rope_parameters: RopeRecord | None = None
    partial_rotary_factor: Factor | None = None
    original_max_position_embeddings: Context | None = None


def hugging_face_rope(
    config: RopeFields, default_theta: float, context: int, head_dim: int, problems: Problems
) -> tuple[float, dict[str, Any] | None]:
    """Base and scaling of a config.json as transformers takes them: a rope_theta of the record goes before one beside it, an
    original_max_position_embeddings beside it before the record's, and the context stands in for a missing one."""
    place, records = "config.json", {}
    for key in ("rope_scaling", "rope_parameters"):
        record = getattr(config, key)
        if record is not None and record.model_dump(exclude_none=True):
            records[key] = record
    if len(set(map(repr, records.values()))) > 1:
        problems.add("rope_scaling", "contradicts rope_parameters", f"keep one of them in {place}")
    key, record = next(iter(records.items()), ("rope_scaling", RopeRecord()))
    given = record.model_dump(exclude_none=True)
    theta = record.rope_theta or config.rope_theta or default_theta
    if {record.partial_rotary_factor, config.partial_rotary_factor} - {1.0, None}:
        problems.add("partial_rotary_factor", "only part of a head would be rotated, which is not supported", "use another model")
    kind = record.rope_type or record.type or "default"
    if record.type not in (None, kind):
        problems.add(f"{key}.rope_type", f"{shown(kind)} contradicts type {shown(record.type)}", f"correct {place}")
    if kind not in HUGGING_FACE_KINDS:
        problems.add(f"{key}.rope_type", f"{shown(kind)} is not supported", f"supported are {', '.join(HUGGING_FACE_KINDS)}")
        return theta, None
    for name in given:
        if name not in COMMON | HUGGING_FACE_KINDS[kind]:
            problems.add(f"{key}.{name}", f"{shown(given[name])} is not understood in {kind} scaling", f"correct {place}")
    if kind in ("default", "dynamic"):
        return theta, None
    values = {name: given[name] for name in HUGGING_FACE_KINDS[kind] if name in given}
    if kind in ("llama3", "yarn"):
        original = config.original_max_position_embeddings or record.original_max_position_embeddings or context
        values["original_max_position_embeddings"] = original
    if kind == "yarn" and record.factor is not None:
        scale, all_dim = values.pop("mscale", None), values.pop("mscale_all_dim", None)
        ratio = yarn_attention(record.factor, scale) / yarn_attention(record.factor, all_dim) if scale and all_dim else None
        values.setdefault("attention_factor", ratio or yarn_attention(record.factor))
    scaling = read_record(KINDS[kind], values | {"rope_type": kind}, problems, place, f"{key}.")
    return theta, checked(scaling, theta, head_dim, problems, place)


# GGUF --------------------------------------------------------------------------------------------


class GgufRope(Record):
    """What the metadata of a GGUF file says about rotary embedding; names without the architecture."""

    freq_base: Base = Field(10000.0, alias="rope.freq_base")
    kind: str = Field("linear", alias="rope.scaling.type")
    factor: Annotated[float | None, Field(ge=0, le=1e6, allow_inf_nan=False, alias="rope.scaling.factor")] = None
    scale_linear: Annotated[float | None, Field(ge=0, le=1e6, allow_inf_nan=False, alias="rope.scale_linear")] = None
    attention: Factor = Field(1.0, alias="rope.scaling.attn_factor")
    original: Context | None = Field(None, alias="rope.scaling.original_context_length")
    beta_fast: Factor = Field(32.0, alias="rope.scaling.yarn_beta_fast")
    beta_slow: Factor = Field(1.0, alias="rope.scaling.yarn_beta_slow")
    extrapolation: float | None = Field(None, alias="rope.scaling.yarn_ext_factor")
    dimensions: int | None = Field(None, alias="rope.dimension_count")


def gguf_rope(
    given: GgufRope, factors: list[float], context: int, head_dim: int, problems: Problems, place: str
) -> tuple[float, dict[str, Any] | None]:
    """Base and scaling of a GGUF file as llama.cpp takes them: a scaling without a type is linear, of type none it has no factor,
    and a factor of 0 is none. `factors` are those of rope_freqs.weight."""
    theta = given.freq_base
    if given.dimensions not in (None, head_dim):
        problems.add("rope.dimension_count", f"only {given.dimensions} of {head_dim} elements would be rotated", "use another model")
    if given.extrapolation not in (None, -1.0, 1.0 if given.kind == "yarn" else 0.0):
        problems.add("rope.scaling.yarn_ext_factor", f"{given.extrapolation} is not supported", "use another model")
    factor = (given.factor if given.factor is not None else given.scale_linear) or 1.0
    values: dict[str, Any] = {"rope_type": "linear", "factor": 1.0 if given.kind == "none" else factor, "factors": factors}
    if given.kind == "yarn":
        values = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": given.original or context,
                  "beta_fast": given.beta_fast, "beta_slow": given.beta_slow}  # fmt: skip
        if factors:
            problems.add("rope_freqs.weight", "factors beside yarn scaling are not supported", "use another model")
    elif given.kind not in ("none", "linear"):
        problems.add("rope.scaling.type", f"{shown(given.kind)} is not supported", "supported are none, linear, yarn")
    values["attention_factor"] = given.attention * (yarn_attention(factor) if given.kind == "yarn" else 1.0)
    scaling = read_record(KINDS[values["rope_type"]], values, problems, place, "rope.scaling.")
    return theta, checked(scaling, theta, head_dim, problems, place)
