"""tritloom models: the models there are, by the names that --model takes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from tritloom.host.commands.common import JsonOption, columns
from tritloom.host.console import Console

if TYPE_CHECKING:
    from tritloom.gen.models import ModelSpec


def command(as_json: JsonOption = False) -> None:
    """List models: trained ones of this clone, published shapes, and families that are read."""
    from tritloom.gen.models import open_shape
    from tritloom.gen.models.gguf import GGUF_ARCHITECTURES
    from tritloom.gen.models.huggingface import ARCHITECTURES
    from tritloom.gen.models.shapes import SHAPES
    from tritloom.gen.source import SHIPPED

    folders = sorted((path.parent for path in SHIPPED.glob("*/config.json")), key=lambda path: path.stat().st_size)
    found = [(os.path.relpath(path), open_shape(path), True) for path in folders]
    found = sorted(found, key=lambda entry: parameters(entry[1])) + [(name, spec, False) for name, spec in SHAPES.items()]
    data = [{"name": name, "weights": weights, "parameters": parameters(spec), "source": spec.source,
             "no_machine": spec.no_machine} | spec.to_dict()["shape"]
            for name, spec, weights in found]
    heading = ["--model", "parameters", "layers", "hidden", "vocabulary", "context", "weights"]
    families = {"folders": list(ARCHITECTURES), "gguf": list(GGUF_ARCHITECTURES)}
    rows = [[each["name"], f"{each['parameters'] / 1e6:,.4g} M", str(each["layers"]), f"{each['hidden']:,}", f"{each['vocab']:,}",
             f"{each['context']:,}", ("trained, in this clone" if each["weights"] else f"none: {each['source']}") +
             ("; no machine yet" if each["no_machine"] else "")] for each in data]
    text = (f"{columns([heading, *rows])}\n\nalso read: folders, with or without weights, of {', '.join(families['folders'])}\n"
            f"and GGUF files of {', '.join(families['gguf'])}; `tritloom check MODEL` says whether a model is one of these")
    Console(json=as_json).result({"models": data, "families": families}, text)


def parameters(spec: ModelSpec) -> int:
    """Weights of the matrices and their biases, of the tables of embeddings and of the norms."""
    s: Any = spec.shape
    norms = s.layers * (2 * s.hidden + (s.q_size + s.ffn if s.sub_norms else 0) + (2 * s.head_dim if s.head_norms else 0)) + s.hidden
    rows = {"q": s.q_size, "k": s.kv_size, "v": s.kv_size, "o": s.hidden, "gate": s.ffn, "up": s.ffn, "down": s.hidden}
    biases = s.layers * sum(rows[name.removesuffix("_proj")] for name in spec.biases)
    tables = s.vocab * s.hidden * (1 if spec.tied_embeddings else 2)
    return s.layers * s.hidden * (s.qkv_rows + s.q_size + 3 * s.ffn) + tables + norms + biases
