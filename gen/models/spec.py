"""What a checkpoint is, without its weights: the plain record that the rest of the generator reads."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from tritloom.firmware.config import BIASES, GROUP_SIZES, ConfigError, ModelShape
from tritloom.gen.models.problems import shown
from tritloom.gen.models.rope import KINDS, scaling_of

BIASED = {"q_proj": "qkv", "k_proj": "qkv", "v_proj": "qkv", "o_proj": "o", "gate_proj": "gate_up", "up_proj": "gate_up",
          "down_proj": "down"}
"""What `ModelShape.biases` calls a matrix."""

SCALE_RULES = ("multiply", "divide", "absmean", "ternary", "stored")
"""How a matrix gets its scale: its weight_scale multiplies or divides; mean|W| of master weights; the one
magnitude of weights that are ternary already (one a group, where the shape has groups); stored beside the trits (GGUF, MLX)."""


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A model as its checkpoint describes it.

    `source`: the container and weight format, for people; `rope_scaling`: None, or the record of one of
    gen/models/rope.py's kinds; `bos_id`: None when prompts get no start token; `eos_ids`: every
    token that ends a text; `notes`: what a reader of the numbers should know; `biases`: matrices (q_proj, ...) that have a bias, which is
    added to their product.
    """

    name: str
    source: str
    shape: ModelShape
    rms_eps: float
    rope_theta: float
    rope_scaling: dict[str, Any] | None = None
    tied_embeddings: bool = True
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    scale_rule: str = "multiply"
    notes: tuple[str, ...] = ()
    biases: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.rms_eps < 1:
            raise ConfigError(f"spec.rms_eps must be between 0 and 1, not {self.rms_eps!r}")
        if not self.rope_theta > 1:
            raise ConfigError(f"spec.rope_theta must be above 1, not {self.rope_theta!r}")
        if self.scale_rule not in SCALE_RULES:
            raise ConfigError(f"spec.scale_rule must be one of {', '.join(SCALE_RULES)}, not {self.scale_rule!r}")
        try:
            scaling_of(self.rope_scaling)
        except ValueError:
            raise ConfigError(f"spec.rope_scaling must be a whole record of {', '.join(KINDS)}, not {shown(self.rope_scaling)}") from None

    @property
    def no_machine(self) -> str | None:
        """Why no machine of today computes this model, with what to do, in one line; None where one can be built."""
        if not self.biases or self._group_size:
            return None
        s, size = self.shape, GROUP_SIZES[1]
        return (f"{self.name} has biases ({', '.join(self.biases)}), which take inputs in groups of {size}, but of hidden ({s.hidden}), "
                f"queries ({s.q_size}) and ffn ({s.ffn}) not all are multiples: take another model of `tritloom models`")

    @property
    def _group_size(self) -> int:
        """Inputs that share a scale in the machine: biases come with groups, which may all have their matrix' scale."""
        s = self.shape
        fitting = (size for size in GROUP_SIZES[:0:-1] if not any(length % size for length in (s.hidden, s.q_size, s.ffn)))
        return s.group_size or (next(fitting, 0) if self.biases else 0)

    def require_machine(self) -> ModelSpec:
        """The description of the model as its machine has it: with the biases in its shape, and groups where they need them. Raises
        `ConfigError` with `no_machine`: the one place that refuses."""
        if self.no_machine is not None:
            raise ConfigError(self.no_machine)
        named = {BIASED[name] for name in self.biases}
        shape = dataclasses.replace(self.shape, group_size=self._group_size, biases=tuple(name for name in BIASES if name in named))
        return dataclasses.replace(self, shape=shape)

    def with_context(self, context: int | None) -> ModelSpec:
        """The same model with a shorter KV cache."""
        if context is None or context == self.shape.context:
            return self
        if not 0 < context <= self.shape.context:
            raise ConfigError(f"context must be from 1 to the model's {self.shape.context} positions, not {context}")
        return dataclasses.replace(self, shape=dataclasses.replace(self.shape, context=context))

    def to_dict(self) -> dict[str, Any]:
        """For JSON; what later versions added is left out where it says nothing, as in the shape's."""
        data = dataclasses.asdict(self) | {"shape": self.shape.to_dict()}
        return data if self.biases else {name: value for name, value in data.items() if name != "biases"}

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ModelSpec:
        unknown = sorted(set(data) - {f.name for f in dataclasses.fields(cls)})
        if unknown:
            raise ConfigError(f"unknown model field(s): {', '.join(unknown)}")
        try:
            return cls(
                **(
                    data
                    | {
                        "shape": ModelShape(**data["shape"]),
                        "eos_ids": tuple(data.get("eos_ids", ())),
                        "notes": tuple(data.get("notes", ())),
                        "biases": tuple(data.get("biases", ())),
                    }
                )
            )
        except (KeyError, TypeError) as error:
            raise ConfigError(f"incomplete model record: {error}") from None

    @classmethod
    def from_json(cls, text: str) -> ModelSpec:
        try:
            return cls.from_dict(json.loads(text))
        except json.JSONDecodeError as error:
            raise ConfigError(f"model record is not JSON: {error}") from None
