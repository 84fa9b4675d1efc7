"""The float model that a checkpoint describes, in PyTorch, from the published formulas of BitNet b1.58, of Llama and of Qwen2 and Qwen3.

It serves where transformers has no model of its own: 1bitLLM's architecture, GGUF files, master weights that name no quantisation.
Weights come from the checkpoint's reader; what is computed with them shares no code with the integer model.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tritloom.gen.models import Checkpoint
from tritloom.gen.models.checkpoint import MATRICES, norms_of
from tritloom.gen.models.groups import Grouped
from tritloom.gen.models.rope import attention_factor, frequencies

LEAST = 1e-5
"""The smallest maximum that activations are quantised by (BitNet b1.58)."""


class PaperModel:
    """float32 on the CPU; activations are rounded to int8 per token where the checkpoint's kind was trained so. Needs PyTorch."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        import torch

        self._torch, self.spec = torch, checkpoint.spec
        self._int8 = checkpoint.quantises_activations
        shape = checkpoint.spec.shape

        def table(values: NDArray[np.float32]) -> Any:
            return torch.from_numpy(np.array(values, np.float32))

        self._layers: list[dict[str, Any]] = []
        for index in range(shape.layers):
            layer: dict[str, Any] = {}
            for name in MATRICES:
                if shape.group_size:
                    layer[name] = checkpoint.grouped(index, name)
                else:
                    trits, scale = checkpoint.ternary(index, name)
                    layer[name] = torch.from_numpy(trits), scale
            layer |= {f"{name}.bias": table(checkpoint.bias(index, name)) for name in checkpoint.spec.biases}
            layer |= {name: table(checkpoint.norm(index, name)) for name in norms_of(shape)}
            self._layers.append(layer)
        self._norm, self._embedding = table(checkpoint.final_norm()), table(checkpoint.embedding())
        self._head = self._embedding if checkpoint.spec.tied_embeddings else table(checkpoint.head())
        self.name = f"float32 PyTorch {torch.__version__.partition('+')[0]} model of the published formulas"

    def _linear(self, layer: dict[str, Any], name: str, x: Any) -> Any:
        if self._int8:
            s = 127 / x.abs().amax(-1, keepdim=True).clamp(min=LEAST)
            x = (x * s).round().clamp(-128, 127) / s
        if isinstance(layer[name], Grouped):
            y = x @ self._torch.from_numpy(layer[name].floats()).T
        else:
            trits, scale = layer[name]
            y = x @ trits.float().T * scale
        return y + layer[f"{name}.bias"] if f"{name}.bias" in layer else y

    def _rms(self, x: Any, gains: Any) -> Any:
        return x * self._torch.rsqrt(x.square().mean(-1, keepdim=True) + self.spec.rms_eps) * gains

    def _attention(self, layer: dict[str, Any], x: Any, cos: Any, sin: Any) -> Any:
        """Of the normed inputs [n, hidden], the heads' outputs [n, heads * head_dim]."""
        torch, s, n = self._torch, self.spec.shape, len(x)

        def heads(name: str, count: int) -> Any:
            return self._linear(layer, name, x).reshape(n, count, s.head_dim).transpose(0, 1)

        def rotated(y: Any) -> Any:
            first, second = y.chunk(2, -1)
            return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)

        q, k, v = heads("q_proj", s.heads), heads("k_proj", s.kv_heads), heads("v_proj", s.kv_heads)
        if s.head_norms:
            q, k = self._rms(q, layer["q_norm"]), self._rms(k, layer["k_norm"])
        q, k = rotated(q), rotated(k)
        k, v = (y.repeat_interleave(s.group, 0) for y in (k, v))
        scores = q @ k.transpose(1, 2) * s.head_dim**-0.5
        scores = scores.masked_fill(torch.ones(n, n, dtype=torch.bool).triu(1), -torch.inf)
        return (scores.softmax(-1) @ v).transpose(0, 1).reshape(n, -1)

    def logits(self, tokens: list[int], residual_bits: int | None = None) -> NDArray[np.float64]:
        """Logits [n, vocab]; with `residual_bits`, the residual stream is rounded after the embedding and after every layer."""
        torch, s = self._torch, self.spec.shape

        def stream(x: Any) -> Any:
            return x if residual_bits is None else torch.round(x * 2.0**residual_bits) / 2.0**residual_bits

        f = torch.from_numpy(frequencies(self.spec.rope_theta, s.head_dim, self.spec.rope_scaling))
        angle = torch.arange(len(tokens), dtype=torch.float64)[:, None] * f
        factor = attention_factor(self.spec.rope_scaling)
        cos, sin = ((t * factor).float() for t in (angle.cos(), angle.sin()))
        with torch.no_grad():
            x = stream(self._embedding[tokens])
            for layer in self._layers:
                y = self._attention(layer, self._rms(x, layer["input_layernorm"]), cos, sin)
                x = x + self._linear(layer, "o_proj", self._rms(y, layer["attn_sub_norm"]) if s.sub_norms else y)
                h = self._rms(x, layer["post_attention_layernorm"])
                gate, up = self._linear(layer, "gate_proj", h), self._linear(layer, "up_proj", h)
                y = (gate.relu().square() if s.activation == "relu2" else gate * gate.sigmoid()) * up
                x = stream(x + self._linear(layer, "down_proj", self._rms(y, layer["ffn_sub_norm"]) if s.sub_norms else y))
            return (self._rms(x, self._norm) @ self._head.T).double().numpy()
