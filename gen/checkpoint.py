"""Checkpoints: Hugging Face folders and GGUF files, read lazily and checked before anything is built.

`check` lists everything that is wrong with a checkpoint; `open_checkpoint` raises the first of it. A value is
never guessed: what a file leaves open (GGUF `bitnet` activations, I2_S layouts) has to be said.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tritloom.firmware.config import ConfigError, ModelShape
from tritloom.gen.container import (
    CheckpointError,
    Tensor,
    gguf_floats,
    i2s_trits,
    read_gguf,
    read_json,
    read_safetensors_folder,
    tq_trits,
)
from tritloom.gen.spec import ROPE_SCALINGS, ModelSpec

Trits = NDArray[np.int8]
Floats = NDArray[np.float32]

MATRICES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SUB_NORMS = ("attn_sub_norm", "ffn_sub_norm")
NORMS = ("input_layernorm", "attn_sub_norm", "post_attention_layernorm", "ffn_sub_norm")
ABSMEAN_MIN = 1e-5
ROW_BLOCK = 8192
"""Embedding rows handled at once, so that a large table never stands in memory as float32 twice."""

I2S_BLOCKS = {"x86": 128, "arm": 64}
AGAIN = "the checkpoint is damaged: download it again"
INCOMPLETE = "the checkpoint is incomplete or of another architecture than it says: download it again"
TOKENIZER_FIX = (
    "put the model's tokenizer.json there, or name it (--tokenizer); for older models transformers' AutoTokenizer.save_pretrained writes it"
)
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
    return {"attn_sub_norm": shape.q_size, "ffn_sub_norm": shape.ffn}.get(name, shape.hidden)


@dataclass(frozen=True)
class Problem:
    """One thing wrong: `subject` is a tensor, a key or a file."""

    subject: str
    cause: str
    fix: str

    def __str__(self) -> str:
        return f"{self.subject}: {self.cause}; {self.fix}"


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
        }


@dataclass
class _Problems:
    found: list[Problem] = field(default_factory=list)

    def add(self, subject: str, cause: str, fix: str) -> None:
        self.found.append(Problem(subject, cause, fix))

    def catch(self, action: Callable[[], Any]) -> Any:
        """The action's result, or None with its CheckpointError noted."""
        try:
            return action()
        except CheckpointError as error:
            self.add(error.subject, error.cause, error.fix)
            return None


class Checkpoint:
    """A readable model: `spec`, `tokenizer` (path of tokenizer.json) and tensors, read and checked on demand."""

    def __init__(self, spec: ModelSpec, tensors: dict[str, Tensor], tokenizer: Path) -> None:
        self.spec, self.tensors, self.tokenizer = spec, tensors, tokenizer

    # What a container provides -------------------------------------------------------------------

    def matrix_name(self, layer: int, name: str) -> str:
        raise NotImplementedError

    def norm_name(self, layer: int, name: str) -> str:
        raise NotImplementedError

    embedding_name = final_norm_name = head_name = ""

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

    # Tensors -------------------------------------------------------------------------------------

    def tensor(self, name: str) -> Tensor:
        if name not in self.tensors:
            raise CheckpointError(name, "missing", INCOMPLETE)
        return self.tensors[name]

    def _finite(self, name: str, values: Floats) -> Floats:
        if not np.isfinite(values).all():
            raise CheckpointError(name, f"{int((~np.isfinite(values)).sum())} values are NaN or infinite", AGAIN)
        return values

    def norm(self, layer: int, name: str) -> Floats:
        """Gains of one of NORMS."""
        tensor = self.tensor(self.norm_name(layer, name))
        return self._finite(tensor.name, self.floats(tensor))

    def final_norm(self) -> Floats:
        return self._finite(self.final_norm_name, self.floats(self.tensor(self.final_norm_name)))

    def blocks(self, name: str) -> Iterator[tuple[int, Floats]]:
        """(first row, rows) of a large table, ROW_BLOCK rows at a time."""
        tensor = self.tensor(name)
        for start in range(0, tensor.shape[0], ROW_BLOCK):
            yield start, self._finite(name, self.floats(tensor.rows(start, min(start + ROW_BLOCK, tensor.shape[0]))))

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

    # Checks --------------------------------------------------------------------------------------

    def with_context(self, context: int | None) -> Checkpoint:
        """The same checkpoint with a shorter KV cache."""
        other = copy(self)
        other.spec = self.spec.with_context(context)
        return other

    def check_shapes(self, problems: _Problems) -> None:
        """Every expected tensor is there with the shape that the description gives it, and no other."""
        s = self.spec.shape
        expected: dict[str, tuple[int, ...]] = {
            self.embedding_name: (s.vocab, s.hidden),
            self.final_norm_name: (s.hidden,),
            self.head_table: (s.vocab, s.hidden),
        }
        matrices: dict[str, tuple[int, int]] = {}
        for layer in range(s.layers):
            expected |= {self.norm_name(layer, n): (norm_length(s, n),) for n in NORMS if s.sub_norms or n not in SUB_NORMS}
            matrices |= {self.matrix_name(layer, n): matrix_shape(s, n) for n in MATRICES}
        missing = [name for name in (*expected, *matrices) if name not in self.tensors]
        if missing:
            others = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
            problems.add(missing[0], f"missing{others}", INCOMPLETE)
        for name, shape in (expected | matrices).items():
            if name not in self.tensors:
                continue
            stored = self.tensors[name].shape if name in expected else self.stored_matrix_shape(self.tensors[name])
            if stored != shape:
                problems.add(
                    name,
                    f"has shape {list(stored)}, but the model's description says {list(shape)}",
                    "config and weights are of different models: take both from one place",
                )
        strange = [name for name in self.tensors if name not in expected and name not in matrices and not self.known(name)]
        if strange:
            others = f" (and {len(strange) - 1} more)" if len(strange) > 1 else ""
            problems.add(
                strange[0],
                f"not part of a supported model{others}",
                "biases, adapters, experts and extra norms cannot be built: use a model without them",
            )

    def check_tokenizer(self, problems: _Problems) -> None:
        data = problems.catch(lambda: read_tokenizer(self.tokenizer))
        if data is None:
            return
        vocabulary = data.get("model", {}).get("vocab", {})
        ids = list(vocabulary.values()) if isinstance(vocabulary, dict) else [len(vocabulary) - 1]
        top = max([*ids, *(t.get("id", 0) for t in data.get("added_tokens", []))], default=-1)
        if top >= self.spec.shape.vocab:
            problems.add(
                str(self.tokenizer),
                f"has token id {top}, but the model's vocabulary ends at {self.spec.shape.vocab - 1}",
                "take tokenizer.json from the same model",
            )
        for key, token in [("bos_token_id", self.spec.bos_id), *(("eos_token_id", e) for e in self.spec.eos_ids)]:
            if token is not None and not 0 <= token < self.spec.shape.vocab:
                problems.add(key, f"{token} is outside the vocabulary of {self.spec.shape.vocab}", "correct it in config.json")

    def check_values(self, problems: _Problems, progress: Callable[[int, int], None] | None = None) -> None:
        """Read everything once; one problem a tensor."""
        s = self.spec.shape
        for layer in range(s.layers):
            for name in MATRICES:
                problems.catch(partial(self.ternary, layer, name))
            for name in NORMS:
                if s.sub_norms or name not in SUB_NORMS:
                    problems.catch(partial(self.norm, layer, name))
            if progress:
                progress(layer + 1, s.layers + 1)
        problems.catch(self.final_norm)
        for table in {self.embedding_name, self.head_table}:
            problems.catch(lambda t=table: [None for _ in self.blocks(t)])
        if progress:
            progress(s.layers + 1, s.layers + 1)


def read_tokenizer(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(str(path), "no such file", TOKENIZER_FIX)
    return read_json(path)


def _scale(name: str, value: float, divide: bool = False) -> float:
    if not math.isfinite(value) or value <= 0:
        raise CheckpointError(
            name, f"scale is {value}", "a scale must be positive and finite; the checkpoint is damaged: download it again"
        )
    return 1 / value if divide else value


def _single_magnitude(name: str, w: Floats) -> tuple[Trits, float]:
    """Trits and scale of floats that are -s, 0 and s already."""
    scale = _scale(name, float(np.abs(w).max(initial=0)))
    trits = np.rint(w / scale).astype(np.int8)
    if (np.abs(w - trits * scale) > scale * 2**-10).any():
        values = len(np.unique(np.abs(w)))
        raise CheckpointError(name, f"not ternary: {values} different magnitudes", MASTER)
    return trits, scale


def _absmean(name: str, w: Floats) -> tuple[Trits, float]:
    """Ternary weights of master weights: mean|W|, rounded half to even, clamped to -1..1."""
    scale = max(float(np.abs(w).mean(dtype=np.float64)), ABSMEAN_MIN)
    return np.clip(np.rint(w / np.float32(scale)), -1, 1).astype(np.int8), _scale(name, scale)


def _unpack_rows(name: str, packed: NDArray[np.uint8]) -> Trits:
    """Trits [4*n, inputs] of packed [n, inputs]: row r + i*n in bits 2i..2i+1, stored as t + 1."""
    if (packed & packed >> 1 & 0x55).any():
        raise CheckpointError(name, "not ternary: holds code 3", "the checkpoint is damaged or packed another way: download it again")
    return np.concatenate([(packed >> 2 * i & 3).astype(np.int8) - 1 for i in range(4)])


# Hugging Face ------------------------------------------------------------------------------------


class HuggingFaceCheckpoint(Checkpoint):
    embedding_name, final_norm_name, head_name = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"

    def __init__(self, spec: ModelSpec, tensors: dict[str, Tensor], tokenizer: Path) -> None:
        super().__init__(spec, tensors, tokenizer)
        self.old_names = any(name.endswith(("inner_attn_ln.weight", "ffn_layernorm.weight")) for name in tensors)

    def matrix_name(self, layer: int, name: str) -> str:
        return f"model.layers.{layer}.{'self_attn' if name[0] in 'qkvo' else 'mlp'}.{name}.weight"

    def norm_name(self, layer: int, name: str) -> str:
        sub = {
            "attn_sub_norm": ("self_attn.attn_sub_norm", "self_attn.inner_attn_ln"),
            "ffn_sub_norm": ("mlp.ffn_sub_norm", "mlp.ffn_layernorm"),
        }
        return f"model.layers.{layer}.{sub[name][self.old_names] if name in sub else name}.weight"

    def stored_matrix_shape(self, tensor: Tensor) -> tuple[int, ...]:
        return (4 * tensor.shape[0], *tensor.shape[1:]) if tensor.dtype == "U8" else tensor.shape

    def known(self, name: str) -> bool:
        matrix = name.removesuffix(".weight_scale") + ".weight"
        return (name.endswith(".weight_scale") and matrix in self.tensors) or name.endswith("rotary_emb.inv_freq") or name == self.head_name

    def ternary(self, layer: int, name: str) -> tuple[Trits, float]:
        tensor = self.tensor(self.matrix_name(layer, name))
        scale_name = tensor.name + "_scale"
        if tensor.dtype == "U8" or scale_name in self.tensors:
            stored = self.tensor(scale_name).floats().reshape(-1)
            if len(stored) != 1:
                raise CheckpointError(
                    scale_name, f"{len(stored)} scales, where one per matrix is supported", "use a model with a scale per tensor"
                )
            scale = _scale(scale_name, float(stored[0]), self.spec.scale_rule == "divide")
            if tensor.dtype == "U8":
                return _unpack_rows(tensor.name, tensor.data.reshape(tensor.shape)), scale
            w = self._finite(tensor.name, tensor.floats())
            if not np.isin(w, (-1, 0, 1)).all():
                raise CheckpointError(tensor.name, "not ternary, although it has a weight_scale", MASTER)
            return w.astype(np.int8), scale
        w = self._finite(tensor.name, tensor.floats())
        return (_absmean if self.spec.scale_rule == "absmean" else _single_magnitude)(tensor.name, w)


ARCHITECTURES = {"BitNetForCausalLM": True, "BitnetForCausalLM": True, "LlamaForCausalLM": False}
"""Supported architectures; whether they have sub-norms."""


def _number(config: dict[str, Any], key: str, problems: _Problems, default: Any = None, kind: type = int) -> Any:
    value = config.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else kind) or value <= 0:
        problems.add(key, "missing" if value is None else f"must be a positive number, not {value!r}", "correct config.json")
        return None
    return value


def _rope(config: dict[str, Any], problems: _Problems) -> tuple[float, dict[str, Any] | None]:
    """Rotary base and scaling, in the old (rope_theta, rope_scaling) or new (rope_parameters) form."""
    record = dict(config.get("rope_parameters") or {}) | dict(config.get("rope_scaling") or {})
    default = 500000.0 if config["architectures"][0] == "BitNetForCausalLM" else 10000.0
    theta = record.pop("rope_theta", None) or config.get("rope_theta") or default
    kind = record.get("rope_type", record.get("type", "default"))
    if kind == "default" or (kind == "linear" and record.get("factor") == 1):
        scaling = None
    elif kind in ROPE_SCALINGS:
        scaling = {k: v for k, v in record.items() if k != "type"} | {"rope_type": kind}
        keys = ("factor",) if kind == "linear" else ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
        for key in keys:
            if not isinstance(scaling.get(key), (int, float)):
                problems.add(f"rope_scaling.{key}", f"missing, but {kind} scaling needs it", "correct config.json")
    else:
        problems.add("rope_scaling", f"type {kind!r} is not supported", f"supported are default, {', '.join(ROPE_SCALINGS)}")
        scaling = None
    if config.get("partial_rotary_factor", 1) not in (1, 1.0) or record.get("partial_rotary_factor", 1) not in (1, 1.0):
        problems.add(
            "partial_rotary_factor", "only part of a head would be rotated, which is not supported", "use a model that rotates whole heads"
        )
    return float(theta), scaling


def _shape(problems: _Problems, **values: Any) -> ModelShape | None:
    if any(v is None for v in values.values()):
        return None
    if values["head_dim"] % 2:
        problems.add("head_dim", f"{values['head_dim']} is odd, but rotary embedding turns pairs", "use a model with an even head_dim")
    if values["heads"] % values["kv_heads"]:
        problems.add(
            "num_key_value_heads", f"{values['kv_heads']} does not divide the {values['heads']} attention heads", "correct config.json"
        )
    try:
        return ModelShape(**values)
    except ConfigError as error:
        if not problems.found:
            problems.add("config.json", str(error), "correct config.json")
        return None


def _eos(*values: Any) -> tuple[int, ...]:
    ids: list[int] = []
    for value in values:
        ids += value if isinstance(value, list) else [] if value is None else [value]
    return tuple(sorted(set(ids)))


def _hugging_face_spec(folder: Path, tensors: dict[str, Tensor] | None, problems: _Problems) -> ModelSpec | None:
    config = problems.catch(lambda: read_json(folder / "config.json"))
    if config is None:
        return None
    architecture = (config.get("architectures") or [None])[0]
    if architecture not in ARCHITECTURES:
        problems.add("architectures", f"{architecture!r} is not supported", f"supported are {', '.join(ARCHITECTURES)}")
        return None
    activation = config.get("hidden_act", "relu2" if architecture == "BitNetForCausalLM" else "silu")
    if activation not in ("relu2", "silu"):
        problems.add("hidden_act", f"{activation!r} is not supported", "supported are relu2, silu (both gated)")
    for key in ("attention_bias", "mlp_bias"):
        if config.get(key):
            problems.add(key, "biases are not supported", "use a model without biases")
    hidden, heads = _number(config, "hidden_size", problems), _number(config, "num_attention_heads", problems)
    head_dim = config.get("head_dim")
    if head_dim is None and hidden and heads:
        head_dim = hidden // heads
        if hidden % heads:
            problems.add("hidden_size", f"{hidden} is not a multiple of {heads} heads and no head_dim is given", "correct config.json")
    theta, scaling = _rope(config, problems)
    eps = _number(config, "rms_norm_eps", problems, 1e-5 if ARCHITECTURES[architecture] else 1e-6, float)

    quantization = config.get("quantization_config") or {}
    method = quantization.get("quant_method", "bitnet")
    if method != "bitnet":
        problems.add("quantization_config.quant_method", f"{method!r} is not supported", "supported is bitnet")
    if quantization.get("use_rms_norm"):
        problems.add(
            "quantization_config.use_rms_norm", "an extra norm before every matrix is not supported", "use a model with use_rms_norm false"
        )
    kept = [m for m in quantization.get("modules_to_not_convert") or [] if m not in ("lm_head", "model.embed_tokens", "embed_tokens")]
    if kept:
        problems.add(
            "quantization_config.modules_to_not_convert",
            f"leaves {', '.join(kept)} unquantised, which is not supported",
            "every matrix of a layer must be ternary",
        )
    linear_class = quantization.get("linear_class", "bitlinear")
    if linear_class not in ("bitlinear", "autobitlinear"):
        problems.add("quantization_config.linear_class", f"{linear_class!r} is not supported", "supported are bitlinear, autobitlinear")
    packed = any(t.dtype == "U8" for t in (tensors or {}).values()) or any(n.endswith(".weight_scale") for n in tensors or {})
    if packed and not quantization:
        problems.add(
            "quantization_config",
            "missing, and without it nobody knows whether weight_scale multiplies or divides",
            "restore it in config.json: linear_class autobitlinear multiplies, bitlinear divides",
        )
    if packed:
        rule, form = ("multiply" if linear_class == "autobitlinear" else "divide"), f"packed, {linear_class}"
    elif quantization or ARCHITECTURES[architecture]:
        rule, form = "absmean", "master weights, quantised on load"
    else:
        rule, form = "ternary", "unpacked ternary weights"
    notes = ()
    if rule == "ternary":
        notes = ("the checkpoint names no activation quantisation: this machine quantises activations to int8 per token",)

    shape = _shape(
        problems,
        hidden=hidden,
        ffn=_number(config, "intermediate_size", problems),
        layers=_number(config, "num_hidden_layers", problems),
        heads=heads,
        kv_heads=_number(config, "num_key_value_heads", problems, heads),
        head_dim=head_dim,
        vocab=_number(config, "vocab_size", problems),
        context=_number(config, "max_position_embeddings", problems, 2048),
        activation=activation,
        sub_norms=ARCHITECTURES[architecture],
    )
    if shape is None or problems.found:
        return None
    generation = {}
    if (folder / "generation_config.json").is_file():
        generation = problems.catch(lambda: read_json(folder / "generation_config.json")) or {}
    bos = config.get("bos_token_id")
    return ModelSpec(
        name=folder.resolve().name,
        source=f"Hugging Face {architecture}, {form}",
        shape=shape,
        rms_eps=float(eps),
        rope_theta=theta,
        rope_scaling=scaling,
        tied_embeddings=bool(config.get("tie_word_embeddings", False)),
        bos_id=bos[0] if isinstance(bos, list) else bos,
        eos_ids=_eos(config.get("eos_token_id"), generation.get("eos_token_id")),
        scale_rule=rule,
        notes=notes,
    )


# GGUF --------------------------------------------------------------------------------------------

_GGUF_NAMES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
GGUF_MATRICES: dict[str, str] = dict(zip(MATRICES, _GGUF_NAMES, strict=True))
GGUF_NORMS = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "attn_sub_norm": "attn_sub_norm",
    "ffn_sub_norm": "ffn_sub_norm",
}
GGUF_ARCHITECTURES: dict[str, tuple[str | None, bool, bool]] = {
    "llama": ("silu", False, True),
    "bitnet": (None, True, False),
    "bitnet-b1.58": ("relu2", True, False),
    "bitnet-25": ("relu2", True, False),
}
"""Activation (None: the file does not say), sub-norms, q and k rows stored permuted for interleaved rotary pairs."""


class GgufCheckpoint(Checkpoint):
    embedding_name, final_norm_name, head_name = "token_embd.weight", "output_norm.weight", "output.weight"

    def __init__(self, spec: ModelSpec, tensors: dict[str, Tensor], tokenizer: Path, permuted: bool, i2s_block: int) -> None:
        super().__init__(spec, tensors, tokenizer)
        self.permuted, self.i2s_block = permuted, i2s_block

    def matrix_name(self, layer: int, name: str) -> str:
        return f"blk.{layer}.{GGUF_MATRICES[name]}.weight"

    def norm_name(self, layer: int, name: str) -> str:
        return f"blk.{layer}.{GGUF_NORMS[name]}.weight"

    def known(self, name: str) -> bool:
        return name.endswith(".scale") and name.removesuffix(".scale") + ".weight" in self.tensors

    def floats(self, tensor: Tensor) -> Floats:
        return gguf_floats(tensor)

    def ternary(self, layer: int, name: str) -> tuple[Trits, float]:
        tensor = self.tensor(self.matrix_name(layer, name))
        trits, scale = self._ternary(tensor)
        extra = tensor.name.removesuffix(".weight") + ".scale"
        if extra in self.tensors:
            scale *= _scale(extra, float(self.tensors[extra].floats().reshape(-1)[0]))
        if self.permuted and name in ("q_proj", "k_proj"):
            s = self.spec.shape
            trits = trits.reshape(-1, s.head_dim // 2, 2, s.hidden).swapaxes(1, 2).reshape(-1, s.hidden)
        return np.ascontiguousarray(trits), scale

    def _ternary(self, tensor: Tensor) -> tuple[Trits, float]:
        if tensor.dtype == "I2_S":
            trits, scale = i2s_trits(tensor, self.i2s_block)
            scales = np.array([scale], np.float32)
        elif tensor.dtype in ("TQ1_0", "TQ2_0"):
            trits, scales = tq_trits(tensor)
            zero = ~trits.reshape(len(scales), -1).any(-1)
            scales = scales[~zero] if not zero.all() else scales[:0]
        elif tensor.floating:
            return _single_magnitude(tensor.name, self._finite(tensor.name, tensor.floats()))
        else:
            raise CheckpointError(
                tensor.name,
                f"stored as {tensor.dtype}, which is not ternary",
                "supported are TQ1_0, TQ2_0, I2_S and unpacked ternary floats",
            )
        if (trits > 1).any():
            raise CheckpointError(tensor.name, "not ternary: holds code 3", "the file is damaged or laid out another way: convert it again")
        if len(scales) == 0:
            raise CheckpointError(tensor.name, "every weight is zero", "the checkpoint is damaged: convert it again")
        for scale in scales[[0, int(np.argmin(scales)), int(np.argmax(scales))]]:
            _scale(tensor.name, float(scale))
        if scales.min() != scales.max():
            raise CheckpointError(
                tensor.name,
                f"{len(np.unique(scales))} different block scales, where one per matrix is supported",
                "the weights were not ternary before conversion: convert from the ternary checkpoint",
            )
        return trits, float(scales[0])


def _gguf_spec(
    path: Path, metadata: dict[str, Any], tensors: dict[str, Tensor], activation: str | None, problems: _Problems
) -> ModelSpec | None:
    architecture = metadata.get("general.architecture")
    if architecture not in GGUF_ARCHITECTURES:
        problems.add("general.architecture", f"{architecture!r} is not supported", f"supported are {', '.join(GGUF_ARCHITECTURES)}")
        return None
    own_activation, sub_norms, _ = GGUF_ARCHITECTURES[architecture]
    if own_activation is None and activation is None:
        problems.add(
            "general.architecture",
            f"{architecture!r} does not say whether the model gates with silu or relu2",
            "name it (--activation silu for 1bitLLM's models, relu2 for 2B-4T's kind)",
        )
    elif own_activation and activation not in (None, own_activation):
        problems.add("activation", f"{activation!r} contradicts architecture {architecture!r}, which has {own_activation}", "leave it out")
    keys = {k.removeprefix(architecture + "."): v for k, v in metadata.items() if k.startswith(architecture + ".")}
    hidden, heads = _number(keys, "embedding_length", problems), _number(keys, "attention.head_count", problems)
    head_dim = keys.get("attention.key_length", hidden // heads if hidden and heads else None)
    if keys.get("rope.dimension_count", head_dim) != head_dim:
        problems.add(
            "rope.dimension_count",
            f"only {keys['rope.dimension_count']} of {head_dim} elements would be rotated",
            "use a model that rotates whole heads",
        )
    kind, factor = keys.get("rope.scaling.type", "none"), keys.get("rope.scaling.factor", 1.0)
    scaling = {"rope_type": "linear", "factor": factor} if kind == "linear" and factor != 1 else None
    if kind not in ("none", "linear"):
        problems.add("rope.scaling.type", f"{kind!r} is not supported", "supported are none, linear")
    if "rope_freqs.weight" in tensors:
        problems.add(
            "rope_freqs.weight", "per-frequency rotary factors are not supported in GGUF", "use the Hugging Face checkpoint of this model"
        )
    for name in tensors:
        if name.endswith(".bias"):
            problems.add(name, "biases are not supported", "use a model without biases")
            break
    embedding = tensors.get(GgufCheckpoint.embedding_name)
    kv_heads = _number(keys, "attention.head_count_kv", problems, heads)
    shape = _shape(
        problems,
        hidden=hidden,
        ffn=_number(keys, "feed_forward_length", problems),
        layers=_number(keys, "block_count", problems),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab=keys.get("vocab_size") or (embedding.shape[0] if embedding else None),
        context=_number(keys, "context_length", problems, 2048),
        activation=own_activation or activation or "silu",
        sub_norms=sub_norms,
    )
    eps = _number(keys, "attention.layer_norm_rms_epsilon", problems, None, float)
    if shape is None or problems.found:
        return None
    dtype = tensors[f"blk.0.{GGUF_MATRICES['q_proj']}.weight"].dtype if f"blk.0.{GGUF_MATRICES['q_proj']}.weight" in tensors else "unknown"
    return ModelSpec(
        name=path.stem,
        source=f"GGUF {architecture}, {dtype}",
        shape=shape,
        rms_eps=float(eps),
        rope_theta=float(keys.get("rope.freq_base", 10000.0)),
        rope_scaling=scaling,
        tied_embeddings=GgufCheckpoint.head_name not in tensors,
        bos_id=metadata.get("tokenizer.ggml.bos_token_id"),
        eos_ids=_eos(metadata.get("tokenizer.ggml.eos_token_id")),
        scale_rule="stored",
        notes=("block scales are fp16",) if dtype in ("TQ1_0", "TQ2_0") else (),
    )


# Opening -----------------------------------------------------------------------------------------


def _starts_with(path: Path, magic: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(magic)) == magic


def _load(path: Path, problems: _Problems, activation: str | None, i2s: str | None, tokenizer: Path | None) -> Checkpoint | None:
    """The checkpoint with its description and shapes checked, or None."""
    if path.is_dir():
        if not (path / "config.json").is_file() and (ggufs := sorted(path.glob("*.gguf"))):
            problems.add(str(path), "holds no config.json, but GGUF files", f"give the file itself, such as {ggufs[0]}")
            return None
        tensors = problems.catch(lambda: read_safetensors_folder(path))
        spec = _hugging_face_spec(path, tensors, problems)
        if spec is None or tensors is None:
            return None
        checkpoint: Checkpoint = HuggingFaceCheckpoint(spec, tensors, tokenizer or path / "tokenizer.json")
    elif path.suffix == ".gguf" or (path.is_file() and _starts_with(path, b"GGUF")):
        content = problems.catch(lambda: read_gguf(path))
        if content is None:
            return None
        metadata, tensors = content
        if i2s is None and any(t.dtype == "I2_S" for t in tensors.values()):
            problems.add(
                str(path),
                "I2_S weights are laid out as the converting machine liked, and the file does not say how",
                "name that machine (--i2s x86 or --i2s arm), or convert to TQ2_0",
            )
        elif i2s is not None and i2s not in I2S_BLOCKS:
            problems.add("i2s", f"{i2s!r} is not a layout", f"choose {' or '.join(I2S_BLOCKS)}")
        spec = _gguf_spec(path, metadata, tensors, activation, problems)
        if spec is None or problems.found:
            return None
        permuted = GGUF_ARCHITECTURES[metadata["general.architecture"]][2]
        checkpoint = GgufCheckpoint(spec, tensors, tokenizer or path.with_name("tokenizer.json"), permuted, I2S_BLOCKS.get(i2s or "", 128))
    elif path.suffix == ".safetensors" and path.is_file():
        problems.add(str(path), "a weight file alone lacks the model's description", f"give its folder, {path.parent}")
        return None
    else:
        problems.add(
            str(path),
            "no such checkpoint" if not path.exists() else "neither a model folder nor a GGUF file",
            "give the folder of a Hugging Face model or a .gguf file",
        )
        return None
    checkpoint.check_shapes(problems)
    checkpoint.check_tokenizer(problems)
    return checkpoint


def open_checkpoint(
    path: str | Path,
    *,
    context: int | None = None,
    activation: str | None = None,
    i2s: str | None = None,
    tokenizer: str | Path | None = None,
) -> Checkpoint:
    """Open a checkpoint; raises CheckpointError at the first problem of its description or shapes.

    `context` shortens the KV cache; `activation` and `i2s` ("x86", "arm") settle what a GGUF file leaves open;
    `tokenizer` is the path of tokenizer.json where it is not beside the weights.
    """
    problems = _Problems()
    checkpoint = _load(Path(path), problems, activation, i2s, Path(tokenizer) if tokenizer else None)
    if problems.found or checkpoint is None:
        first = problems.found[0]
        raise CheckpointError(first.subject, first.cause, first.fix)
    return checkpoint.with_context(context)


def check(
    path: str | Path,
    *,
    activation: str | None = None,
    i2s: str | None = None,
    tokenizer: str | Path | None = None,
    values: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> CheckReport:
    """Everything that is wrong with a checkpoint; with `values`, every weight is read."""
    problems = _Problems()
    checkpoint = _load(Path(path), problems, activation, i2s, Path(tokenizer) if tokenizer else None)
    if checkpoint is not None and values and not problems.found:
        checkpoint.check_values(problems, progress)
    return CheckReport(problems.found, checkpoint.spec if checkpoint else None)


__all__ = [
    "MATRICES",
    "NORMS",
    "SUB_NORMS",
    "CheckReport",
    "Checkpoint",
    "CheckpointError",
    "Problem",
    "check",
    "matrix_shape",
    "norm_length",
    "open_checkpoint",
    "read_tokenizer",
]
