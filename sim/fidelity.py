"""How far the machine's integers are from the float model: perplexity, argmax agreement, logit error.

The float reference is transformers' own implementation in float32 (an independent code base) wherever it has one of the very model, and
the published formulas' (paper_model.py) elsewhere; a result names which. Needs PyTorch and transformers, which nothing else here does.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tritloom.firmware.errors import TritloomError
from tritloom.firmware.integer import ternary_ranks
from tritloom.gen.models import Checkpoint
from tritloom.gen.models.files import read_json
from tritloom.gen.pack import quantise
from tritloom.host.tokenizer import Tokenizer
from tritloom.sim.integer_model import IntegerModel
from tritloom.sim.paper_model import PaperModel

STORY_SEPARATOR = "\n<|eos|>\n"
FLOOR_BITS = 16
"""The noise floor rounds the float model's residual stream to this many fraction bits, and nothing else."""

Floats = NDArray[np.float64]


class FidelityError(TritloomError):
    """The comparison cannot be made; the message says what is missing."""


@dataclass
class Fidelity:
    """Result over `tokens` predicted tokens of `stories` whole stories.

    `argmax_floor`: agreement of the float model with itself when its residual stream is rounded to
    FLOOR_BITS fraction bits (None when not asked for): int8 roundings flip under any perturbation.
    """

    reference: str
    stories: int
    tokens: int
    perplexity: float
    integer_perplexity: float
    argmax_agreement: float
    argmax_floor: float | None
    max_logit_error: float
    mean_logit_error: float

    @property
    def perplexity_change(self) -> float:
        """Relative change of perplexity, integer over float."""
        return self.integer_perplexity / self.perplexity - 1

    def to_dict(self) -> dict[str, object]:
        return {**asdict(self), "perplexity_change": self.perplexity_change}


def stories(text: str) -> list[str]:
    """Stories of a corpus file, separated by a line <|eos|>."""
    return [s for s in text.split(STORY_SEPARATOR) if s.strip()]


class OtherModel(FidelityError):
    """transformers has no model for this checkpoint, or would load another than it describes."""


def _transformers_class(folder: Path) -> str:
    """The class that transformers loads a folder as. Raises OtherModel unless it computes what the folder describes."""
    if not folder.is_dir():
        raise OtherModel("transformers has no ternary models in GGUF")
    config = read_json(folder / "config.json")
    architecture, model_type = (config.get("architectures") or [""])[0], config.get("model_type")
    if TRANSFORMERS.get(architecture) != model_type or not model_type:
        raise OtherModel(f"transformers has no {architecture} of type {model_type}")
    return architecture


TRANSFORMERS = {"BitNetForCausalLM": "bitnet", "LlamaForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2", "Qwen3ForCausalLM": "qwen3"}
"""transformers' classes and the model_type by which it chooses them."""


class FloatReference:
    """transformers' model of a Hugging Face directory, float32 on the CPU. Raises OtherModel if it has none."""

    def __init__(self, model: Path) -> None:
        expected = _transformers_class(model)
        try:
            import torch
            import torch._dynamo
            import transformers
        except ImportError as error:
            raise FidelityError(f"the float reference needs {error.name}: install it with `pip install 'tritloom[test]'`") from None
        torch._dynamo.config.disable = True
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        torch.set_num_threads(max(1, (os.cpu_count() or 2) // 2))
        self._torch = torch
        both: Any = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, output_loading_info=True)
        loaded, report = both  # as output_loading_info asks for
        left = {what: names for what, names in report.items() if names and what.endswith("_keys")}
        left = {what: [n for n in names if not str(n).endswith("rotary_emb.inv_freq")] for what, names in left.items()}
        what, names = next(((what, names) for what, names in left.items() if names), ("", []))
        if type(loaded).__name__ != expected or names:
            raise OtherModel(f"transformers' {type(loaded).__name__} has {what.replace('_', ' ')}, {names[0]}" if names else
                             f"transformers loads it as {type(loaded).__name__}")
        self._model: Any = torch.nn.Module.float(loaded).eval()  # transformers' own float() refuses a quantised model
        self.name = f"transformers {transformers.__version__} {type(loaded).__name__}, float32"

    def logits(self, tokens: list[int], residual_bits: int | None = None) -> Floats:
        """Logits [n, vocab]; with `residual_bits`, the residual stream is rounded after every layer's branches."""
        torch = self._torch
        hooks = []
        if residual_bits is not None:
            scale = float(1 << residual_bits)

            def rounded(module, inputs, output):
                if isinstance(output, tuple):
                    return (torch.round(output[0] * scale) / scale, *output[1:])
                return torch.round(output * scale) / scale

            inner = self._model.model
            hooks = [m.register_forward_hook(rounded) for m in (inner.embed_tokens, *inner.layers)]
        try:
            with torch.no_grad():
                return self._model(input_ids=torch.tensor([tokens])).logits[0].double().numpy()
        finally:
            for hook in hooks:
                hook.remove()


def float_reference(checkpoint: Checkpoint, path: Path) -> FloatReference | PaperModel:
    """What the integer model is compared with: transformers' model of the checkpoint at `path`, or the formulas' where it has none."""
    try:
        if checkpoint.spec.scale_rule == "absmean" and not _online(path):
            raise OtherModel("transformers takes these weights as they are, unquantised")
        return FloatReference(path)
    except OtherModel as error:
        reason = str(error)
    try:
        model = PaperModel(checkpoint)
    except ImportError as error:
        raise FidelityError(f"the float reference needs {error.name}: install it with `pip install 'tritloom[test]'`") from None
    model.name += f" ({reason})"
    return model


def _online(folder: Path) -> bool:
    """Whether transformers quantises master weights when it loads them."""
    quantization = read_json(folder / "config.json").get("quantization_config") or {}
    return quantization.get("linear_class") == "autobitlinear" and quantization.get("quantization_mode") == "online"


def log_softmax(logits: Floats) -> Floats:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def _sequences(checkpoint: Checkpoint, text: str, tokens: int) -> Iterator[list[int]]:
    """Whole stories with bos and eos until `tokens` predictions are reached; those past the context are left out."""
    spec = checkpoint.spec
    tokenizer, context, eos = Tokenizer.from_file(checkpoint.tokenizer, spec.bos_id), spec.shape.context, spec.eos_ids[0]
    count = 0
    for story in stories(text):
        ids = [*tokenizer.encode(story), eos]
        if len(ids) > context:
            continue
        yield ids
        count += len(ids) - 1
        if count >= tokens:
            return


@dataclass
class ShortListQuality:
    """How often a short-list of `shortlist` tokens misses the token of the greatest int8 logit, over `tokens` tokens of text.

    Ranks are those tokens' places in the order of the ternary head, from 0.
    """

    shortlist: int
    stories: int
    tokens: int
    missed: int
    worst_rank: int
    mean_rank: float

    @property
    def disagreement(self) -> float:
        """Share of positions at which greedy decoding would choose another token than with the int8 head."""
        return self.missed / self.tokens

    def to_dict(self) -> dict[str, object]:
        return {**asdict(self), "disagreement": self.disagreement}


def short_list_quality(checkpoint: Checkpoint, text: str, tokens: int, shortlist: int,
                       progress: Callable[[int, int], None] | None = None) -> ShortListQuality:
    """Compare the short-list with the int8 head over at least `tokens` tokens of `text`, on the integer model."""
    spec = checkpoint.spec
    if not spec.eos_ids:
        raise FidelityError(f"{spec.name} names no end token: the comparison runs whole stories")
    model = IntegerModel(quantise(checkpoint))
    ranks: list[NDArray[np.int64]] = []
    count = 0
    for ids in _sequences(checkpoint, text, tokens):
        model.reset()
        codes = model.head_codes(ids)[:-1]
        ranks.append(ternary_ranks(model.ternary_logits(codes), model.logits(codes).argmax(-1)))
        count += len(codes)
        if progress:
            progress(min(count, tokens), tokens)
    if not count:
        raise FidelityError("the text holds no story that fits the model's context")
    rank = np.concatenate(ranks)
    return ShortListQuality(shortlist, len(ranks), count, int((rank >= shortlist).sum()), int(rank.max()), float(rank.mean()))


def measure(checkpoint: Checkpoint, path: Path, text: str, tokens: int, *, floor: bool = False, group_exponents: int = 0,
            progress: Callable[[int, int], None] | None = None) -> Fidelity:
    """Compare the integer model of a checkpoint, which was opened at `path`, with its float reference over at least `tokens` tokens
    of `text`. `group_exponents`: as in `BuildConfig`."""
    spec = checkpoint.spec
    if not spec.eos_ids:
        raise FidelityError(f"{path} names no end token: the comparison runs whole stories")
    integer_model = IntegerModel(quantise(checkpoint), group_exponents=group_exponents)
    reference = float_reference(checkpoint, path)
    count = n_stories = agree = agree_floor = 0
    nll = nll_integer = worst = total_error = 0.0
    for ids in _sequences(checkpoint, text, tokens):
        expected = reference.logits(ids)
        integer_model.reset()
        raw, scale = integer_model.forward(ids)
        got = raw * scale.value()[:, None]
        target, at = np.array(ids[1:]), np.arange(len(ids) - 1)
        nll -= float(log_softmax(expected[:-1])[at, target].sum())
        nll_integer -= float(log_softmax(got[:-1])[at, target].sum())
        agree += int((expected[:-1].argmax(-1) == got[:-1].argmax(-1)).sum())
        if floor:
            agree_floor += int((expected[:-1].argmax(-1) == reference.logits(ids, FLOOR_BITS)[:-1].argmax(-1)).sum())
        error = np.abs(expected - got)
        worst = max(worst, float(error.max()))
        total_error += float(error[:-1].mean()) * len(target)
        count += len(target)
        n_stories += 1
        if progress:
            progress(min(count, tokens), tokens)
    if not count:
        raise FidelityError("the text holds no story that fits the model's context")
    return Fidelity(reference.name, n_stories, count, float(np.exp(nll / count)), float(np.exp(nll_integer / count)),
                    agree / count, agree_floor / count if floor else None, worst, total_error / count)
