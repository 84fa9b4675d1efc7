"""Models in GGUF files, of llama.cpp's and bitnet.cpp's architectures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tritloom.gen.models.checkpoint import MATRICES, Checkpoint, Floats, Trits, scale_of, single_magnitude
from tritloom.gen.models.fields import end_tokens, number, shape_of
from tritloom.gen.models.files import Tensor
from tritloom.gen.models.gguf_file import gguf_floats, i2s_trits, tq_trits
from tritloom.gen.models.problems import CheckpointError, Problems
from tritloom.gen.models.spec import ModelSpec

I2S_BLOCKS = {"x86": 128, "arm": 64}
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
            scale *= scale_of(extra, float(self.tensors[extra].floats().reshape(-1)[0]))
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
            return single_magnitude(tensor.name, self._finite(tensor.name, tensor.floats()))
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
            scale_of(tensor.name, float(scale))
        if scales.min() != scales.max():
            raise CheckpointError(
                tensor.name,
                f"{len(np.unique(scales))} different block scales, where one per matrix is supported",
                "the weights were not ternary before conversion: convert from the ternary checkpoint",
            )
        return trits, float(scales[0])


def gguf_spec(
    path: Path, metadata: dict[str, Any], tensors: dict[str, Tensor], activation: str | None, problems: Problems
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
    hidden, heads = number(keys, "embedding_length", problems), number(keys, "attention.head_count", problems)
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
    kv_heads = number(keys, "attention.head_count_kv", problems, heads)
    shape = shape_of(
        problems,
        hidden=hidden,
        ffn=number(keys, "feed_forward_length", problems),
        layers=number(keys, "block_count", problems),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab=keys.get("vocab_size") or (embedding.shape[0] if embedding else None),
        context=number(keys, "context_length", problems, 2048),
        activation=own_activation or activation or "silu",
        sub_norms=sub_norms,
    )
    eps = number(keys, "attention.layer_norm_rms_epsilon", problems, None, float)
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
        eos_ids=end_tokens(metadata.get("tokenizer.ggml.eos_token_id")),
        scale_rule="stored",
        notes=("block scales are fp16",) if dtype in ("TQ1_0", "TQ2_0") else (),
    )
