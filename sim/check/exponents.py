"""What exponents of groups of codes are worth: `python -m tritloom.sim.check.exponents [TOKENS] [MODEL]`.

The integer model against the float model, as `tritloom verify --float-tokens` compares them, on a model that is ternary by groups as it
is and with outliers, for several greatest exponents. Outliers are made of the model: the norms before the matrices give a group of
channels FACTOR times as much as before, and the scales of that group take it back, so that the float model is what it was; codes
with one scale a token, however, have so many bits fewer for all other groups.
"""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from tritloom.gen.models import open_checkpoint
from tritloom.sim.check.verify import default_text
from tritloom.sim.fidelity import Fidelity, measure
from tritloom.system.files import cache, scratch

__all__ = ["compare", "main", "with_outliers"]

MODEL = Path(__file__).resolve().parents[2] / "models" / "stories-4m-g128"
EXPONENTS = (0, 1, 3, 7)
FACTOR = 16
NORMS = {"input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
         "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj")}
"""Norms, and the matrices that take what they give."""


def with_outliers(model: Path, folder: Path) -> Path:
    """Write the Hugging Face model of the folder `model` to `folder` with outliers in its first group of channels."""
    from safetensors.numpy import load_file, save_file

    shape = open_checkpoint(model).spec.shape
    if not shape.group_size:
        raise ValueError(f"{model} is not ternary by groups")
    shutil.copytree(model, folder)
    path, group = folder / "model.safetensors", slice(0, shape.group_size)
    tensors = load_file(path)
    for layer in range(shape.layers):
        for norm, matrices in NORMS.items():
            gains = tensors[f"model.layers.{layer}.{norm}.weight"]
            gains[group] *= gains.dtype.type(FACTOR)
            for name in matrices:
                weights = tensors[f"model.layers.{layer}.{name}.weight"]
                weights[:, group] /= weights.dtype.type(FACTOR)
    save_file(tensors, path, metadata={"format": "pt"})
    return folder


def compare(model: Path, text: str, tokens: int, report: Callable[[str], None]) -> dict[tuple[str, int], Fidelity]:
    """Fidelity of the model as it is and with outliers, by the greatest exponent."""
    found = {}
    with scratch(cache("scratch")) as folder:
        for name, path in (("as it is", model), ("with outliers", with_outliers(model, folder / "outliers"))):
            checkpoint = open_checkpoint(path)
            for most in EXPONENTS:
                each = found[name, most] = measure(checkpoint, path, text, tokens, group_exponents=most)
                report(f"{name:14} exponents up to {most}: perplexity {each.perplexity:.4f} -> {each.integer_perplexity:.4f} "
                       f"({each.perplexity_change:+.3%}), the likeliest token of {each.argmax_agreement:.2%}, {each.tokens:,} tokens")
    return found


def main(arguments: list[str]) -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    say = logging.getLogger(__name__)
    tokens, model = int(arguments[0]) if arguments else 15_000, Path(arguments[1]) if arguments[1:] else MODEL
    text = default_text(model)
    if text is None:
        say.error("no stories beside %s", model)
        return 2
    compare(model, text.read_text("utf-8"), tokens, say.info)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
