"""A readable model whatever its container: names and sizes of its tensors, values read and checked on demand."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from copy import copy
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tritloom.firmware.config import ConfigError, ModelShape
from tritloom.gen.models.files import Tensor
from tritloom.gen.models.groups import Grouped
from tritloom.gen.models.problems import CheckpointError, Problems, shown
from tritloom.gen.models.spec import ModelSpec
from tritloom.gen.models.vocabulary import UNREAD, Vocabulary

Trits = NDArray[np.int8]
Floats = NDArray[np.float32]

MATRICES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SUB_NORMS = ("attn_sub_norm", "ffn_sub_norm")
HEAD_NORMS = ("q_norm", "k_norm")
NORMS = ("input_layernorm", "attn_sub_norm", "post_attention_layernorm", "ffn_sub_norm")
ABSMEAN_MIN = 1e-5
ROW_BLOCK = 8192
"""Embedding rows handled at once, so that a large table never stands in memory as float32 twice."""

AGAIN = "the checkpoint is damaged: download it again"
INCOMPLETE = "the checkpoint is incomplete or of another architecture than it says: download it again"
MASTER = "give the packed (offline) checkpoint, or one with a bitnet quantization_config"


def matrix_shape(shape: ModelShape, name: str) -> tuple[int, int]:
    """(rows, inputs) of a ternary matrix."""
    return {
        "q_proj": (shape.q_size, shape.hidden),
        "k_proj": (shape.kv_size, shape.hidden),
        "v_proj": (shape.kv_size, shape.hidden),
        "o_proj": (shape.hidden, shape.q_size),
        "gate_proj": (shape.ffn, shape.hidden),
        "up_proj": (shape.ffn, shape.hidden),
        "down_proj": (shape.hidden, shape.ffn),
    }[name]


def norm_length(shape: ModelShape, name: str) -> int:
    """Gains of a norm; those of HEAD_NORMS serve every head."""
    own = {"attn_sub_norm": shape.q_size, "ffn_sub_norm": shape.ffn, "q_norm": shape.head_dim, "k_norm": shape.head_dim}
    return own.get(name, shape.hidden)


def norms_of(shape: ModelShape) -> tuple[str, ...]:
    """Norms of a layer of this model."""
    return (*(n for n in NORMS if shape.sub_norms or n not in SUB_NORMS), *(HEAD_NORMS if shape.head_norms else ()))


def shape_of(problems: Problems, place: str, **values: Any) -> ModelShape | None:
    """The dimensions of a model, or None with what contradicts itself noted; a `head_dim` of None is hidden over heads."""
    if values["head_dim"] is None:
        if values["hidden"] % values["heads"]:
            what = f"{values['hidden']} is not a multiple of {values['heads']} heads and no size of a head is given"
            problems.add("hidden_size", what, f"correct {place}")
            return None
        values["head_dim"] = values["hidden"] // values["heads"]
    if values["head_dim"] % 2:
        problems.add("head_dim", f"{values['head_dim']} is odd, but rotary embedding turns pairs", "use a model with an even head_dim")
    if values["heads"] % values["kv_heads"]:
        what = f"{values['kv_heads']} does not divide the {values['heads']} attention heads"
        problems.add("num_key_value_heads", what, f"correct {place}")
    try:
        return ModelShape(**values)
    except ConfigError as error:
        if not problems.found:
            problems.add(place, str(error), f"correct {place}")
        return None


ACTIVATION_KEY = re.compile(r"(.*\.)?(hidden_|(mlp|ffn|feed_forward)_(hidden_)?)?(act|activation)(_fn|_func|_function)?")


def other_activations(data: dict[str, Any], *read: str) -> dict[str, Any]:
    """What a file's keys of other names than those that are `read` call an activation: what names one is not passed over."""
    return {key: value for key, value in data.items() if key not in read and ACTIVATION_KEY.fullmatch(key)}


ACTIVATIONS = {"relu2": "relu2", "silu": "silu", "swish": "silu"}
"""Names in files, and the activations that gate."""


def activation_of(named: dict[str, Any], chosen: str | None, default: str | None, problems: Problems) -> str:
    """The activation that gates: what the file names (`named`, by key), else what the user chose, else what the architecture means.

    What contradicts the file is refused; so is leaving it open (a `default` of None).
    """
    found = {key: name for key, name in named.items() if name is not None}
    for key, name in found.items():
        if not isinstance(name, str) or name not in ACTIVATIONS:
            problems.add(key, f"{shown(name)} is not supported", "supported are relu2, silu (both gated)")
            return "silu"
    if chosen is not None and chosen not in ACTIVATIONS:
        problems.add("activation", f"{shown(chosen)} is not supported", "supported are relu2, silu (both gated)")
        return "silu"
    names = {ACTIVATIONS[name] for name in found.values()}
    if len(names) > 1:
        problems.add(next(iter(found)), f"contradicts {' and '.join(list(found)[1:])}", "correct the file")
    elif names and chosen is not None and ACTIVATIONS[chosen] not in names:
        problems.add("activation", f"{shown(chosen)} contradicts the file's {next(iter(found))}, {names.pop()}", "leave --activation out")
        return ACTIVATIONS[chosen]
    elif not names and chosen is None and default is None:
        problems.add(
            "activation", "the file does not say whether the model gates with silu or relu2",
            "name it (--activation silu for 1bitLLM's models, relu2 for 2B-4T's kind)",
        )  # fmt: skip
    return names.pop() if names else ACTIVATIONS[chosen or default or "silu"]


class Checkpoint:
    """A readable model: `spec` and tensors, read and checked on demand, and `tokenizer`, which `with_tokenizer` reads."""

    tokenizer: Vocabulary = UNREAD

    def __init__(self, spec: ModelSpec, tensors: dict[str, Tensor], find_tokenizer: Callable[[], Vocabulary]) -> None:
        self.spec, self.tensors, self._find_tokenizer = spec, tensors, find_tokenizer

    # What a container provides -------------------------------------------------------------------

    def matrix_name(self, layer: int, name: str) -> str:
        raise NotImplementedError

    def norm_name(self, layer: int, name: str) -> str:
        raise NotImplementedError

    embedding_name = final_norm_name = head_name = ""

    @property
    def quantises_activations(self) -> bool:
        """Whether models of this kind were trained with activations rounded to int8 per token."""
        return True

    def ternary(self, layer: int, name: str) -> tuple[Trits, float]:
        """Trits [rows, inputs] of a matrix (rows in Hugging Face order) and the scale that multiplies them."""
        raise NotImplementedError

    def stored_matrix_shape(self, tensor: Tensor) -> tuple[int, ...]:
        """(rows, inputs) of a matrix as the stored tensor has it."""
        return tensor.shape

    def known(self, name: str) -> bool:
        """Whether a tensor beside the expected ones is understood, or carries nothing."""
        return False

    def floats(self, tensor: Tensor) -> Floats:
        return tensor.floats()

    def bias_name(self, layer: int, name: str) -> str:
        return self.matrix_name(layer, name).removesuffix("weight") + "bias"

    def stored_table_shape(self, tensor: Tensor) -> tuple[int, ...]:
        """(rows, inputs) of the embedding or the head as the stored tensor has it."""
        return tensor.shape

    def companions(self) -> dict[str, tuple[int, ...]]:
        """Tensors that belong to others, by name, with the shapes that they must have."""
        return {}

    def companions_of(self, name: str) -> tuple[str, ...]:
        """Tensors without which this one cannot be read."""
        return ()

    def _groups(self, name: str, start: int, stop: int) -> Grouped:
        """Rows start..stop-1, as far as there are any, of a matrix or table that is ternary by groups."""
        raise NotImplementedError

    def _in_order(self, name: str, rows: NDArray[Any]) -> NDArray[Any]:
        """Rows of a matrix, or of what belongs to them, in Hugging Face order."""
        return rows

    def _rows(self, name: str, start: int, stop: int) -> Floats:
        """Rows start..stop-1, as far as there are any, of the embedding or the head."""
        return self.floats(self.tensor(name).rows(start, stop))

    # Tensors -------------------------------------------------------------------------------------

    def grouped(self, layer: int, name: str) -> Grouped:
        """A matrix whose groups of inputs have scales of their own (`spec.shape.group_size`), rows in Hugging Face order."""
        tensor = self.tensor(self.matrix_name(layer, name))
        found = self._groups(tensor.name, 0, matrix_shape(self.spec.shape, name)[0])
        tensor.let_go()
        return Grouped(self._in_order(name, found.codes), self._in_order(name, found.scales))

    def grouped_blocks(self, name: str) -> Iterator[tuple[int, Grouped]]:
        """(first row, rows) of an embedding or head that is ternary by groups (`spec.shape.ternary_head`), ROW_BLOCK rows at a time."""
        for start in range(0, self.spec.shape.vocab, ROW_BLOCK):
            yield start, self._groups(name, start, start + ROW_BLOCK)
            self.tensor(name).rows(start, start + ROW_BLOCK).let_go()

    def bias(self, layer: int, name: str) -> Floats:
        """What is added to each row's product of a matrix, one of `spec.biases`."""
        tensor = self.tensor(self.bias_name(layer, name))
        return self._in_order(name, self._finite(tensor.name, self.floats(tensor))[:, None])[:, 0]

    def tensor(self, name: str) -> Tensor:
        if name not in self.tensors:
            raise CheckpointError(name, "missing", INCOMPLETE)
        return self.tensors[name]

    def _finite(self, name: str, values: Floats) -> Floats:
        if not np.isfinite(values).all():
            raise CheckpointError(name, f"{int((~np.isfinite(values)).sum())} values are NaN or infinite", AGAIN)
        return values

    def norm(self, layer: int, name: str) -> Floats:
        """Gains of one of NORMS or HEAD_NORMS."""
        tensor = self.tensor(self.norm_name(layer, name))
        return self._finite(tensor.name, self.floats(tensor))

    def final_norm(self) -> Floats:
        return self._finite(self.final_norm_name, self.floats(self.tensor(self.final_norm_name)))

    def blocks(self, name: str) -> Iterator[tuple[int, Floats]]:
        """(first row, rows) of a large table, ROW_BLOCK rows at a time."""
        tensor = self.tensor(name)
        for start in range(0, tensor.shape[0], ROW_BLOCK):
            yield start, self._finite(name, self._rows(name, start, start + ROW_BLOCK))

    def embedding(self) -> Floats:
        """Embedding table [vocab, hidden]."""
        return np.concatenate([rows for _, rows in self.blocks(self.embedding_name)])

    def head(self) -> Floats:
        """Output head [vocab, hidden]: the embedding table when they are tied."""
        return np.concatenate([rows for _, rows in self.blocks(self.head_table)])

    @property
    def head_table(self) -> str:
        """Name of the tensor that serves as head."""
        return self.embedding_name if self.spec.tied_embeddings else self.head_name

    def with_context(self, context: int | None) -> Checkpoint:
        """The same checkpoint with a shorter KV cache."""
        other = copy(self)
        other.spec = self.spec.with_context(context)
        return other

    def with_tokenizer(self) -> Checkpoint:
        """The same checkpoint with its tokenizer, and a description that knows what starts and ends a text."""
        other = copy(self)
        other.tokenizer = self._find_tokenizer()
        other.spec = other.tokenizer.described(self.spec)
        return other


def scale_of(name: str, value: float, divide: bool = False) -> float:
    if not math.isfinite(value) or value <= 0:
        raise CheckpointError(
            name, f"scale is {value}", "a scale must be positive and finite; the checkpoint is damaged: download it again"
        )
    return 1 / value if divide else value


def single_magnitude(name: str, w: Floats) -> tuple[Trits, float]:
    """Trits and scale of floats that are -s, 0 and s already."""
    scale = scale_of(name, float(np.abs(w).max(initial=0)))
    trits = np.rint(w / scale).astype(np.int8)
    if (np.abs(w - trits * scale) > scale * 2**-10).any():
        values = len(np.unique(np.abs(w)))
        raise CheckpointError(name, f"not ternary: {values} different magnitudes", MASTER)
    return trits, scale


def absmean(name: str, w: Floats) -> tuple[Trits, float]:
    """Ternary weights of master weights: mean|W|, rounded half to even, clamped to -1..1."""
    scale = max(float(np.abs(w).mean(dtype=np.float64)), ABSMEAN_MIN)
    return np.clip(np.rint(w / np.float32(scale)), -1, 1).astype(np.int8), scale_of(name, scale)


def unpack_rows(name: str, packed: NDArray[np.uint8]) -> Trits:
    """Trits [4*n, inputs] of packed [n, inputs]: row r + i*n in bits 2i..2i+1, stored as t + 1."""
    if (packed & packed >> 1 & 0x55).any():
        raise CheckpointError(name, "not ternary: holds code 3", "the checkpoint is damaged or packed another way: download it again")
    return np.concatenate([(packed >> 2 * i & 3).astype(np.int8) - 1 for i in range(4)])
