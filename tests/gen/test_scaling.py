"""Binary points chosen from the checkpoint: a function on another scale gives the same logits, and what none carries is refused."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from synthetic import LLAMA, TINY, hugging_face, weights
from tritloom.firmware.config import BuildConfig
from tritloom.firmware.integer import grouped_weights
from tritloom.gen import scaling
from tritloom.gen.models import CheckpointError, check, open_checkpoint
from tritloom.gen.models.codes import codes_of
from tritloom.gen.pack import pack, quantise
from tritloom.gen.scaling import Scaling, choose, measure, rescaled
from tritloom.host.backends.emulator import EmulatorBackend
from tritloom.host.image import open_image, write_image
from tritloom.host.session import Session
from tritloom.sim.integer_model import IntegerModel

MODELS = Path(__file__).resolve().parents[2] / "models"
IDS = [1, 400, 17, 260, 301, 88, 402, 99, 310, 5, 277, 130]
WRITERS = ("o_proj.weight_scale", "down_proj.weight_scale", "embed_tokens.weight")


@pytest.fixture
def story(tmp_path):
    """A variant of a story model: tensors whose names end so times a factor; the head stays; and `config` entries."""

    def make(factors, **config):
        source, folder = MODELS / "stories-260k", tmp_path / "model"
        tensors = load_file(source / "model.safetensors")
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        for name in list(tensors):
            for end, factor in factors.items():
                if name.endswith(end):
                    tensors[name] = (tensors[name].double() * factor).float()
        folder.mkdir(exist_ok=True)
        save_file(tensors, folder / "model.safetensors")
        data = json.loads((source / "config.json").read_text()) | {"tie_word_embeddings": False} | config
        (folder / "config.json").write_text(json.dumps(data))
        (folder / "tokenizer.json").write_bytes((source / "tokenizer.json").read_bytes())
        return folder

    return make


def logits(folder, ids=IDS):
    raw, scale = IntegerModel(quantise(open_checkpoint(folder))).forward(ids)
    return raw * scale.value()[:, None]


def alike(a, b):
    return np.corrcoef(a.ravel(), b.ravel())[0, 1]


def test_ordinary_models_keep_their_binary_points():
    for name in ("stories-260k", "stories-1m"):
        model = quantise(open_checkpoint(MODELS / name))
        s = model.shape
        assert choose(model, measure(model)) == Scaling(0, (0,) * s.layers, (0,) * s.layers)
        assert model.embedding_parameters.scales[0] == model.embedding.scale


@pytest.mark.parametrize("factor", [2.0**-40, 1e-5, 2.0**12, 1e5, 1e12])
def test_a_residual_stream_of_any_size(story, factor):
    """eps goes with it, so the function is the same; saturations would be counted, and small numbers lost."""
    changed = story({end: factor for end in WRITERS}, rms_norm_eps=min(0.5, 1e-5 * factor**2)) if factor < 1 else story(
        {end: factor for end in WRITERS})
    model = IntegerModel(quantise(open_checkpoint(changed)))
    raw, scale = model.forward(IDS)
    base = logits(MODELS / "stories-260k")
    assert alike(raw * scale.value()[:, None], base) > 0.999


def test_a_factor_ends_at_the_norms():
    """A power of two more or less in the stream changes nothing but its roundings."""
    model = quantise(open_checkpoint(MODELS / "stories-260k"))
    zeros = (0,) * model.shape.layers
    raw, scale = IntegerModel(model).forward(IDS)
    for k in (3, -5):
        other, its = IntegerModel(rescaled(model, Scaling(k, zeros, zeros))).forward(IDS)
        assert alike(raw * scale.value()[:, None], other * its.value()[:, None]) > 0.9995


def test_gates_of_any_size(story):
    """With gates in the thousands SiLU is relu, however large they are; with gates in the thousandths, half the gate."""
    ffn = {"hidden_act": "silu"}
    large, larger = (logits(story({"gate_proj.weight_scale": f}, **ffn)) for f in (300.0, 1e10))
    small, smaller = (logits(story({"gate_proj.weight_scale": f}, rms_norm_eps=1e-30, **ffn)) for f in (3e-4, 1e-8))
    assert alike(large, larger) > 0.995 and alike(small, smaller) > 0.995
    assert alike(large, small) < 0.99


def test_scales_as_far_apart_as_float32_has_them_fit_ten_bits(story):
    """Exponents of queries, keys, values and logits, which leave the vector unit in ten bits."""
    folder = story({"q_proj.weight_scale": 1e35, "k_proj.weight_scale": 1e-35, "model.norm.weight": 1e25, "lm_head.weight": 1e-25})
    model = IntegerModel(quantise(open_checkpoint(folder)))
    raw, scale = model.forward(IDS)
    assert alike(raw * scale.value()[:, None], logits(MODELS / "stories-260k")) > 0.999
    for layer in model._cache:
        assert layer.key_scale is not None and layer.value_scale is not None
        assert all((-512 <= s.e).all() and (s.e < 512).all() for s in (layer.key_scale, layer.value_scale, scale))


def test_large_scores_are_softened_and_noted(story):
    folder = story({"input_layernorm.weight": 100.0})
    model = quantise(open_checkpoint(folder))
    assert re.match(r"attention scores pass the machine's 2,048 \(base 2\) in \d+ layers: there they are 2\^-\d+", model.spec.notes[-1])
    report = check(folder)
    assert report.ok and report.spec is not None and report.spec.notes == model.spec.notes
    assert max(measure(model).scores) < 2**scaling.SCORE_TOP


@pytest.mark.parametrize("factors, config, message", [
    ({"input_layernorm.weight": 1e4}, {}, r"the attention scores of layer 0 reach \S+ \(base 2\), and the machine's 2,048"),
    ({"gate_proj.weight_scale": 1e8}, {}, "the activations of layer 0 are so large that their squares overflow float32"),
    ({"down_proj.weight_scale": 1e12}, {}, r"the residual stream reaches \S+, but what layer 0's attention reads is \S+: 32 bits do not"),
    ({"v_proj.weight_scale": 1e-36}, {}, r"the values of layer 0 reach \S+, beyond the machine's exponents"),
    ({"lm_head.weight": 1e-38}, {}, r"the logits are steps of \S+"),
    ({"gate_proj.weight_scale": 1e-36, "up_proj.weight_scale": 1e-36, "post_attention_layernorm.weight": 1e-36}, {},
     "the scales of layer 0's gate_proj and up_proj and the gains before them are beyond the machine's exponents"),
])
def test_what_no_binary_point_carries_is_refused(story, factors, config, message):
    """By check too, which otherwise says ok."""
    folder = story(factors, **config)
    with pytest.raises(CheckpointError, match=message):
        quantise(open_checkpoint(folder))
    (problem,) = check(folder).problems
    assert re.match(message, problem.cause) and "no binary point carries it" in problem.fix


@pytest.mark.parametrize("greatest, refused", [(1e3, False), (1e6, True)])
def test_rows_of_a_table_that_are_too_far_apart(tmp_path, greatest, refused):
    w = weights(TINY)
    w["embedding"][7] *= greatest
    folder = hugging_face(tmp_path / "model", TINY, w)
    problems = [problem.cause for problem in check(folder).problems]
    assert bool(problems) == refused
    if refused:
        assert re.match(r"rows of \S+ stand beside one of \S+: their codes would be wrong by \d\d%", problems[0])
        with pytest.raises(CheckpointError, match="row scales have 16 bits"):
            quantise(open_checkpoint(folder))


@pytest.mark.parametrize("shape", [TINY, LLAMA], ids=["tiny", "llama"])
def test_the_measure_is_of_the_machine_s_numbers(tmp_path, shape):
    """What the integer model clamps at a binary point, `measure` sees at the one before."""
    model = quantise(open_checkpoint(hugging_face(tmp_path / "model", shape, weights(shape, 3))))
    found, zeros = measure(model), (0,) * shape.layers
    too_far = Scaling(int(np.ceil(np.log2(found.residual))) - 17, zeros, zeros)
    clamped = []
    for change in (Scaling(too_far.residual + 4, zeros, zeros), too_far):
        reference = IntegerModel(rescaled(model, change))
        reference.forward(scaling._tokens(model))
        clamped.append(reference.saturations.count)
    assert clamped[0] == 0 < clamped[1]


def test_the_emulator_counts_what_the_integer_model_clamps(tmp_path):
    model = quantise(open_checkpoint(MODELS / "stories-260k", context=64))
    zeros = (0,) * model.shape.layers
    model = rescaled(model, Scaling(-12, zeros, zeros))
    config = BuildConfig(shape=model.shape, lanes=1, tables=11, attention_macs=16)
    write_image(tmp_path / "image", config=config, spec=model.spec.to_dict(), sections=pack(model, config).sections)
    image = open_image(tmp_path / "image")
    reference = IntegerModel(model)
    with Session(EmulatorBackend(config, image.map.total_bytes), image) as session:
        assert list(session.generate([5], 4)) == reference.generate([5], 4)
        assert session.stats().saturations == reference.saturations.count > 0


@pytest.mark.needs("numba")
@pytest.mark.parametrize("rows, inputs, group_size", [(5, 192, 64), (700, 2048, 128), (33, 640, 128), (2100, 256, 64)])
def test_products_of_codes_are_exact(rows, inputs, group_size):
    rng = np.random.default_rng(rows)
    given, trits = rng.integers(-127, 128, (7, inputs)), rng.integers(-1, 2, (rows, inputs), np.int8)
    scales = rng.integers(0, 1 << 16, (rows, inputs // group_size)).astype(np.uint16)
    expected = given @ grouped_weights(trits, scales).T
    assert (scaling.grouped_product(given.astype(np.float64), codes_of(trits), scales) == expected).all()
    wide = np.zeros((rows, inputs), np.uint8)
    wide[:, : inputs // 4] = codes_of(trits)
    assert (scaling.grouped_product(given.astype(np.float64), wide[:, : inputs // 4], scales) == expected).all()


@pytest.mark.needs("numba")
def test_products_of_what_does_not_fit_are_refused():
    codes, scales = np.full((4, 64), 0x55, np.uint8), np.ones((4, 2), np.uint16)
    assert scaling.grouped_product(np.ones((3, 256)), codes, scales).shape == (3, 4)
    assert scaling.grouped_product(np.ones((3, 256)), codes[:0], scales[:0]).shape == (3, 0)
    for given, few in ((np.ones((3, 128)), scales), (np.ones((3, 256)), scales[:, :1]), (np.ones((3, 256)), scales[:3])):
        with pytest.raises(ValueError, match="are not a matrix of"):
            scaling.grouped_product(given, codes, few)
