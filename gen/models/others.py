"""Ternary models that are known and not read: what they have that is not built, by what their files say and by their tensors' names."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

_PLAIN = "such as Ternary-Bonsai, the first"


@dataclass(frozen=True)
class Other:
    """What a model has that keeps it from being read, and what to do, each in a part of a line."""

    what: str
    fix: str


HYBRID = Other("linear attention beside attention, which is not built", f"use a model with attention only, {_PLAIN}")
RECURRENT = Other("recurrence in place of attention, which is not built", "use a model with attention")
EXPERTS = Other("a mixture of experts, which is not built", "use a dense model")
SCALED = Other("factors of embeddings, residuals and logits (scale_emb, scale_depth), which are not built", "use another model")
ROTATED = Other("weights in a rotated basis (Hadamard), which is not built: read as they are they would write gibberish",
                f"use a model in the plain basis, {_PLAIN}")  # fmt: skip
HEADLESS = Other("no head: it makes embeddings of texts and writes none", "use a model that writes text")
INNER_NORM = Other("a norm of its own before a projection, which is not built", "use a model without norms in its projections")
ADAPTER = Other("an adapter", "merge it into the weights first")

ARCHITECTURES = (
    (r"Qwen3_5\w*|Qwen3Next\w*|qwen35\w*|qwen3next", HYBRID), (r"HGRNBit\w*", RECURRENT), (r"(?i).*(moe|mixtral|maple)\w*", EXPERTS),
    (r"(?i)minicpm\w*", SCALED), (r"(?i)\w+Model|.*embedding.*|.*bert.*", HEADLESS),
)  # fmt: skip
"""By patterns of their names, in config.json and in GGUF metadata."""
TENSORS = (
    (r"(.*\.)?(experts|shared_experts?|router)\..*|.*_(exps|shexp)(\..*)?|.*ffn_gate_inp.*", EXPERTS),
    (r".*(_proj|attn_[qkv]|attn_output|ffn_(gate|up|down))\.(rms_?)?norm(\.weight)?", INNER_NORM),
    (r".*\.(linear_attn|conv1d|ssm_\w+)(\..*)?", HYBRID), (r".*lora_[abAB]\b.*", ADAPTER),
)  # fmt: skip
"""By patterns of the names of tensors that no supported model has."""
ROTATION = "prism.hadamard."
"""How the keys begin by which a GGUF file says that its weights are rotated."""


def known_as(architecture: str) -> Other | None:
    """What an architecture that is not supported is known to have."""
    return next((other for pattern, other in ARCHITECTURES if re.fullmatch(pattern, architecture)), None)


def tensor_of(name: str) -> Other | None:
    """What a tensor that is not part of a supported model belongs to."""
    return next((other for pattern, other in TENSORS if re.fullmatch(pattern, name)), None)


def said_otherwise(config: dict[str, Any]) -> tuple[str, Other] | None:
    """A key of config.json that says that the model computes otherwise than its architecture's name tells, and what it says."""
    inside = config.get("text_config")
    for key, value in [*config.items(), *(inside.items() if isinstance(inside, dict) else ())]:
        if "hadamard" in key.lower() or isinstance(value, dict) and any("hadamard" in name.lower() for name in value):
            return key, ROTATED
        if re.fullmatch(r"(num|n)_((local|routed|shared)_)?experts", key) and isinstance(value, int) and value > 0:
            return key, EXPERTS
        if key == "layer_types" and isinstance(value, list) and any("linear" in str(kind) for kind in value[:4096]):
            return key, HYBRID
        if key in ("scale_emb", "scale_depth", "dim_model_base") and value not in (None, 0, 1):
            return key, SCALED
    return None
