"""The float model that integers are compared with: transformers' where it has the very one, the published formulas' elsewhere."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from synthetic import GROUPED, LLAMA, TINY, gguf, hugging_face, unpacked, weights
from tritloom.gen.models import open_checkpoint
from tritloom.gen.pack import quantise
from tritloom.host.cli import main
from tritloom.host.tokenizer import Tokenizer
from tritloom.sim.check import exponents
from tritloom.sim.fidelity import FidelityError, FloatReference, OtherModel, float_reference, measure
from tritloom.sim.integer_model import IntegerModel
from tritloom.sim.paper_model import PaperModel

MODELS = Path(__file__).parents[2] / "models"
SILU = dataclasses.replace(TINY, activation="silu")
NEW = {"architectures": ["BitNetForCausalLM"], "model_type": "bitnet"}
OLD = {"architectures": ["BitnetForCausalLM"], "model_type": "llama"}
IDS = [1, 5, 9, 33, 2, 38, 7, 8, 21, 12, 30, 3]


def assert_close(a, b, correlation=0.9999):
    """Equal but for int8 roundings that flip."""
    assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > correlation, np.corrcoef(a.ravel(), b.ravel())[0, 1]


@pytest.mark.needs("torch", "transformers")
def test_the_formulas_are_transformers_on_a_trained_model():
    path = MODELS / "stories-260k"
    checkpoint = open_checkpoint(path)
    ids = Tokenizer.from_file(checkpoint.tokenizer, checkpoint.spec.bos_id).encode("Once upon a time, there was a little girl named Lily.")
    reference = float_reference(checkpoint, path)
    assert isinstance(reference, FloatReference) and "transformers" in reference.name
    got, expected = PaperModel(checkpoint).logits(ids), reference.logits(ids)
    assert_close(got, expected)
    assert (got.argmax(-1) == expected.argmax(-1)).all()


@pytest.mark.needs("torch", "transformers")
@pytest.mark.parametrize("scaling", [None, {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}])
@pytest.mark.parametrize("kind", ["divide", "ternary"])
def test_the_formulas_are_transformers_on_llama(tmp_path, kind, scaling):
    quantization = {"quant_method": "bitnet"} if kind == "divide" else None
    path = hugging_face(tmp_path, LLAMA, form=kind, tied=False,
                        config={"model_type": "llama", "quantization_config": quantization, "rope_scaling": scaling})  # fmt: skip
    checkpoint = open_checkpoint(path)
    reference = float_reference(checkpoint, path)
    assert isinstance(reference, FloatReference)
    expected = reference.logits(IDS)
    assert_close(PaperModel(checkpoint).logits(IDS), expected)
    integer, scale = IntegerModel(quantise(checkpoint)).forward(IDS)
    assert_close(integer * scale.value()[:, None], expected, 0.99)


@pytest.mark.needs("torch", "transformers")
def test_the_formulas_are_transformers_on_a_trained_qwen3():
    """A hundred tokens of a model that is ternary by groups: logits of up to 23 differ by 1.2e-5 at most."""
    path = MODELS / "stories-4m-g128"
    checkpoint = open_checkpoint(path)
    text = (MODELS / "validation.txt").read_text("ascii")[:600]
    ids = Tokenizer.from_file(checkpoint.tokenizer, checkpoint.spec.bos_id).encode(text)[:100]
    reference = float_reference(checkpoint, path)
    assert isinstance(reference, FloatReference) and "Qwen3ForCausalLM" in reference.name
    got, expected = PaperModel(checkpoint).logits(ids), reference.logits(ids)
    assert np.abs(expected).max() > 20 and np.abs(got - expected).max() < 1e-4
    assert (got.argmax(-1) == expected.argmax(-1)).all()


BIASES = {"Qwen3ForCausalLM": ("q_proj", "k_proj", "v_proj", "o_proj"), "Qwen2ForCausalLM": ("q_proj", "k_proj", "v_proj")}


@pytest.mark.needs("torch", "transformers")
@pytest.mark.parametrize("architecture", BIASES)
def test_the_formulas_are_transformers_with_biases(tmp_path, architecture):
    shape = dataclasses.replace(GROUPED, head_norms=architecture.startswith("Qwen3"))
    rng = np.random.default_rng(0)
    lengths = {"q_proj": shape.q_size, "k_proj": shape.kv_size, "v_proj": shape.kv_size, "o_proj": shape.hidden}
    tensors = {f"model.layers.{layer}.self_attn.{name}.bias": rng.normal(size=lengths[name]).astype(np.float16)
               for layer in range(shape.layers) for name in BIASES[architecture]}  # fmt: skip
    config = {"architectures": [architecture], "model_type": architecture[:5].lower(), "attention_bias": True}
    path = unpacked(tmp_path, shape, config=config, tensors=tensors)
    checkpoint = open_checkpoint(path)
    assert checkpoint.spec.shape == shape and checkpoint.spec.biases == BIASES[architecture]
    reference = float_reference(checkpoint, path)
    assert isinstance(reference, FloatReference)
    got, expected = PaperModel(checkpoint).logits(IDS), reference.logits(IDS)
    assert np.abs(got - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.needs("torch", "transformers")
def test_1bitllm_s_models_have_the_formulas_for_reference(tmp_path):
    """transformers would load them as plain Llama; under BitNet's own names it computes the same."""
    w = weights(TINY)
    new = hugging_face(tmp_path / "new", TINY, w, config=NEW | {"hidden_act": "silu", "rope_theta": 10000.0})
    old = hugging_face(tmp_path / "old", TINY, w, old_names=True, config=OLD | {"hidden_act": "silu", "rope_theta": 10000.0})
    reference = float_reference(open_checkpoint(old), old)
    assert isinstance(reference, PaperModel) and "published formulas (transformers has no BitnetForCausalLM" in reference.name
    assert_close(reference.logits(IDS), FloatReference(new).logits(IDS))
    with pytest.raises(OtherModel):
        FloatReference(old)


@pytest.mark.slow
def test_gguf_files_have_the_formulas_for_reference(tmp_path):
    shape = dataclasses.replace(LLAMA, sub_norms=True, activation="relu2")
    w = weights(shape)
    w["embedding"] = w["embedding"].astype(np.float16).astype(np.float32)
    file = gguf(tmp_path / "m.gguf", shape, w, kind="F32", architecture="bitnet-b1.58")
    folder = hugging_face(tmp_path / "m", shape, w, tied=False, config=NEW | {"eos_token_id": 2})
    reference = float_reference(open_checkpoint(file), file)
    assert "published formulas (transformers has no ternary models in GGUF)" in reference.name
    assert_close(reference.logits(IDS), FloatReference(folder).logits(IDS), 0.999)  # the file's head is Q8_0


@pytest.mark.needs("torch", "transformers")
@pytest.mark.parametrize(
    "options, reason",
    [
        ({"old_names": True, "config": NEW}, "missing keys"),
        ({"config": {"architectures": ["BitNetForCausalLM"]}}, "no BitNetForCausalLM of type None"),
        ({"form": "ternary", "config": NEW | {"quantization_config": None}}, "takes these weights as they are"),
    ],
)
def test_what_transformers_would_load_otherwise_is_not_compared_with_it(tmp_path, options, reason):
    path = hugging_face(tmp_path, TINY, **options)
    reference = float_reference(open_checkpoint(path), path)
    assert isinstance(reference, PaperModel) and reason in reference.name


@pytest.mark.needs("torch", "transformers")
def test_a_head_of_its_own_is_transformers_head(tmp_path):
    path = hugging_face(tmp_path, TINY, tied=False, config=NEW | {"tie_word_embeddings": True})
    checkpoint = open_checkpoint(path)
    expected = FloatReference(path).logits(IDS)
    assert_close(PaperModel(checkpoint).logits(IDS), expected)
    integer, scale = IntegerModel(quantise(checkpoint)).forward(IDS)
    assert_close(integer * scale.value()[:, None], expected, 0.99)


@pytest.mark.needs("torch", "transformers")
def test_a_text_without_a_story_is_not_a_comparison(tmp_path):
    path = hugging_face(tmp_path, TINY, config=NEW)
    with pytest.raises(FidelityError, match="no story that fits"):
        measure(open_checkpoint(path), path, " \n", 10)


def test_verify_does_not_leave_the_float_model_out_silently(tmp_path, capsys):
    path = hugging_face(tmp_path / "m", TINY, config=NEW)
    assert main(["verify", str(path), "--tokens", "4"]) == 2
    assert "no text to compare with the float model on: give --text FILE, or --float-tokens 0" in capsys.readouterr().err


@pytest.mark.needs("torch", "transformers")
def test_outliers_change_nothing_in_floating_point_and_cost_less_with_exponents(tmp_path):
    model = MODELS / "stories-4m-g128"
    other = exponents.with_outliers(model, tmp_path / "outliers")
    assert (FloatReference(model).logits(IDS) == FloatReference(other).logits(IDS)).all()
    text = (MODELS / "validation.txt").read_text("utf-8")
    without, with_them = (measure(open_checkpoint(other), other, text, 100, group_exponents=most) for most in (0, 3))
    assert with_them.mean_logit_error < 0.8 * without.mean_logit_error
