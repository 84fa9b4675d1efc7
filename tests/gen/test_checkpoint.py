import dataclasses
import json
import math
import struct

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from synthetic import LLAMA, TINY, assert_problem, gguf, gguf_i2s, hugging_face, hugging_face_tensors, weights, write_tokenizer
from tritloom.firmware.config import ConfigError
from tritloom.gen.models import CheckpointError, ModelSpec, check, open_checkpoint, open_shape
from tritloom.gen.models.checkpoint import MATRICES, NORMS, SUB_NORMS

MODELS = ("stories-260k", "stories-1m", "stories-4m", "stories-27m")
BITLINEAR = {"quantization_config": {"quant_method": "bitnet"}}
UNNAMED = {"quantization_config": None}
Q0 = "model.layers.0.self_attn.q_proj.weight"


def assert_holds(checkpoint, w, tolerance=1e-6):
    shape = checkpoint.spec.shape
    for layer in range(shape.layers):
        for name in MATRICES:
            trits, scale = checkpoint.ternary(layer, name)
            assert trits.dtype == np.int8 and (trits == w[layer, name][0]).all(), (layer, name)
            assert scale == pytest.approx(w[layer, name][1], rel=tolerance), (layer, name)
        for name in NORMS:
            if shape.sub_norms or name not in SUB_NORMS:
                assert (checkpoint.norm(layer, name) == w[layer, name]).all(), (layer, name)
    assert (checkpoint.final_norm() == w["norm"]).all()


@pytest.mark.parametrize("name", MODELS)
def test_shipped_models(request, name):
    report = check(request.config.rootpath / "models" / name)
    assert report.ok, report.problems
    assert report.spec and report.spec.tied_embeddings and report.spec.scale_rule == "multiply" and report.spec.eos_ids == (1,)


@pytest.mark.parametrize(
    "shape, options",
    [
        (TINY, {}),
        (TINY, {"form": "divide", "config": BITLINEAR}),
        (TINY, {"old_names": True, "config": {"architectures": ["BitnetForCausalLM"], "hidden_act": "silu"}}),
        (LLAMA, {"form": "divide", "config": BITLINEAR, "tied": False}),
        (LLAMA, {"form": "ternary", "config": UNNAMED}),
    ],
    ids=["autobitlinear", "bitlinear", "old-names", "llama", "unpacked"],
)
def test_hugging_face(tmp_path, shape, options):
    w = weights(shape)
    path = hugging_face(tmp_path / "m", shape, w, **options)
    assert check(path).ok, check(path).problems
    checkpoint = open_checkpoint(path)
    assert_holds(checkpoint, w)
    assert (checkpoint.embedding() == w["embedding"]).all()
    assert (checkpoint.head() == w["embedding" if options.get("tied", True) else "head"]).all()


def test_master_weights(tmp_path):
    rng = np.random.default_rng(1)
    master = rng.normal(0, 0.02, (TINY.q_size, TINY.hidden)).astype(np.float16)
    w = weights(TINY)
    quantization = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"}
    path = hugging_face(tmp_path, TINY, w, form="ternary", tensors={Q0: master}, config={"quantization_config": quantization})
    trits, scale = open_checkpoint(path).ternary(0, "q_proj")
    m = np.abs(master.astype(np.float64)).mean()
    assert scale == pytest.approx(m) and (trits == np.clip(np.rint(master / m), -1, 1)).all()
    assert open_checkpoint(path).spec.scale_rule == "absmean"


def test_shards(tmp_path):
    w = weights(TINY)
    path = hugging_face(tmp_path, TINY, w)
    tensors = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    names = list(tensors)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in shards.items():
        save_file({n: tensors[n] for n in part}, path / file)
    index = {"weight_map": {n: file for file, part in shards.items() for n in part}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_holds(open_checkpoint(path), w)
    (path / "model-00002-of-00002.safetensors").unlink()
    assert_problem(path, "model-00002-of-00002.safetensors", "no such file")


@pytest.mark.parametrize("kind", ["TQ1_0", "TQ2_0", "F16", "F32"])
def test_gguf_llama(tmp_path, kind):
    w = weights(LLAMA)
    path = gguf(tmp_path / "m.gguf", LLAMA, w, kind=kind)
    assert check(path).ok, check(path).problems
    checkpoint = open_checkpoint(path)
    assert checkpoint.spec.shape == LLAMA and not checkpoint.spec.tied_embeddings and checkpoint.spec.eos_ids == (2,)
    assert_holds(checkpoint, w)
    assert (checkpoint.embedding() == w["embedding"].astype(np.float16)).all()
    assert np.abs(checkpoint.head() - w["head"]).max() < 0.03


def test_gguf_bitnet_needs_the_activation(tmp_path):
    shape = dataclasses.replace(LLAMA, sub_norms=True, activation="relu2")
    w = weights(shape)
    path = gguf(tmp_path / "m.gguf", shape, w, architecture="bitnet")
    assert_problem(path, "activation", "silu or relu2")
    checkpoint = open_checkpoint(path, activation="relu2")
    assert checkpoint.spec.shape == shape
    assert_holds(checkpoint, w)


@pytest.mark.needs("gguf")
@pytest.mark.parametrize("i2s, block", [("x86", 128), ("arm", 64)])
def test_gguf_i2s(tmp_path, i2s, block):
    shape = dataclasses.replace(LLAMA, sub_norms=True, activation="relu2")
    w = weights(shape)
    path = gguf_i2s(tmp_path / "m.gguf", shape, w, block=block)
    assert_problem(path, "m.gguf", "I2_S weights are laid out as")
    assert check(path, i2s=i2s).ok
    assert_holds(open_checkpoint(path, i2s=i2s), w)
    assert open_checkpoint(path, i2s=i2s).spec.shape == shape


def test_gguf_several_scales(tmp_path):
    w = weights(LLAMA)
    path = gguf(tmp_path / "m.gguf", LLAMA, w)
    data = bytearray(path.read_bytes())
    d = struct.pack("<e", w[0, "down_proj"][1])
    data[data.rindex(d) : data.rindex(d) + 2] = struct.pack("<e", 3.0)
    path.write_bytes(data)
    assert_problem(path, "blk.0.ffn_down.weight", "2 different block scales")


def test_gguf_truncated_anywhere(tmp_path):
    path = gguf(tmp_path / "m.gguf")
    data = path.read_bytes()
    for size in (0, 3, 20, 100, 600, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:size])
        report = check(path)
        assert len(report.problems) == 1 and "m.gguf" in report.problems[0].subject, (size, report.problems)


CONFIGS = {
    "architecture": ({"architectures": ["GPT2LMHeadModel"]}, "architectures", "'GPT2LMHeadModel' is not supported"),
    "no architecture": ({"architectures": None}, "architectures", "missing"),
    "activation": ({"hidden_act": "gelu"}, "hidden_act", "'gelu' is not supported"),
    "odd head": ({"head_dim": 7}, "head_dim", "odd"),
    "heads": ({"num_key_value_heads": 3}, "num_key_value_heads", "does not divide"),
    "bias": ({"attention_bias": True}, "self_attn.q_proj.bias", "missing (and 7 more)"),
    "missing size": ({"hidden_size": None}, "hidden_size", "missing"),
    "negative size": ({"intermediate_size": -1}, "intermediate_size", "greater than 0, not -1"),
    "longrope": ({"rope_scaling": {"rope_type": "longrope", "factor": 4}}, "rope_scaling", "'longrope' is not supported"),
    "other name": ({"model_type": "mistral"}, "model_type", "'mistral' contradicts architecture BitNetForCausalLM"),
    "two activations": ({"hidden_activation": "silu"}, "hidden_act", "contradicts hidden_activation"),
    "another key": ({"activation_function": "silu"}, "hidden_act", "contradicts activation_function"),
    "inside": ({"text_config": {"hidden_act": "silu"}}, "hidden_act", "contradicts text_config.hidden_act"),
    "many layers": ({"num_hidden_layers": 10**7}, "num_hidden_layers", "less than or equal to 4096, not 10000000"),
    "text": ({"head_dim": "16"}, "head_dim", "must be a valid integer, not '16'"),
    "a list": ({"hidden_size": [32]}, "hidden_size", "must be a valid integer, not [32]"),
    "a flag": ({"vocab_size": True}, "vocab_size", "must be a valid integer, not True"),
    "a fraction": ({"num_attention_heads": 4.0}, "num_attention_heads", "must be a valid integer, not 4.0"),
    "eps": ({"rms_norm_eps": 1.0}, "rms_norm_eps", "less than 1"),
    "bos": ({"bos_token_id": "<s>"}, "bos_token_id", "must be a valid integer, not '<s>'"),
    "no bos": ({"bos_token_id": []}, "bos_token_id", "at least 1"),
    "several bos": ({"bos_token_id": [1, 2]}, "bos_token_id", "at most 1"),
    "negative eos": ({"eos_token_id": [2, -1]}, "eos_token_id.1", "greater than or equal to 0"),
    "quantization": ({"quantization_config": "bitnet"}, "quantization_config", "must be a record"),
    "kept modules": ({"quantization_config": {"modules_to_not_convert": 5}}, "modules_to_not_convert", "must be a valid list, not 5"),
    "architectures": ({"architectures": {"a": 1}}, "architectures", "must be a valid list"),
    "no architectures": ({"architectures": []}, "architectures", "at least 1"),
    "tied": ({"tie_word_embeddings": "yes"}, "tie_word_embeddings", "must be a valid boolean"),
    "incomplete llama3": ({"rope_scaling": {"rope_type": "llama3", "factor": 4}}, "rope_scaling.low_freq_factor", "missing"),
    "partial": ({"partial_rotary_factor": 0.5}, "partial_rotary_factor", "part of a head"),
    "method": ({"quantization_config": {"quant_method": "gptq"}}, "quant_method", "'gptq'"),
    "unsaid rule": ({"quantization_config": None}, "quantization_config", "multiplies or divides"),
    "inner norm": ({"quantization_config": {"use_rms_norm": True}}, "use_rms_norm", "extra norm"),
    "kept": ({"quantization_config": {"modules_to_not_convert": ["model.layers.0"]}}, "modules_to_not_convert", "model.layers.0"),
    "shapes": ({"intermediate_size": 64}, "gate_proj", "has shape [48, 32], but the model's description says [64, 32]"),
    "vocabulary": ({"vocab_size": 71}, "embed_tokens", "has shape [70, 32]"),
    "layers": ({"num_hidden_layers": 3}, "model.layers.2", "missing"),
    "fewer layers": ({"num_hidden_layers": 1}, "model.layers.1", "not part of"),
    "untied": ({"tie_word_embeddings": False}, "lm_head.weight", "missing"),
    "eos": ({"eos_token_id": [2, 900]}, "eos_token_id", "900 is outside"),
}  # fmt: skip


@pytest.mark.parametrize("case", CONFIGS)
def test_bad_config(tmp_path, case):
    changes, subject, cause = CONFIGS[case]
    path = hugging_face(tmp_path, config=changes)
    assert_problem(path, subject, cause)
    with pytest.raises(CheckpointError):
        open_checkpoint(path)


def poisoned(name, value):
    tensor = hugging_face_tensors(TINY, weights(TINY))[name].copy()
    tensor.flat[-1] = value
    return {name: tensor}


TENSORS = {
    "code 3": (poisoned(Q0, 0b00110000), Q0, "holds code 3"),
    "scale nan": ({Q0 + "_scale": np.array([math.nan], np.float32)}, Q0 + "_scale", "nan"),
    "scale inf": ({Q0 + "_scale": np.array([math.inf], np.float32)}, Q0 + "_scale", "inf"),
    "scale zero": ({Q0 + "_scale": np.array([0], np.float32)}, Q0 + "_scale", "0.0"),
    "scale negative": ({Q0 + "_scale": np.array([-1], np.float32)}, Q0 + "_scale", "-1.0"),
    "scale missing": ({Q0 + "_scale": None}, Q0 + "_scale", "missing"),
    "scales": ({Q0 + "_scale": np.ones(8, np.float32)}, Q0 + "_scale", "8 scales"),
    "norm nan": (poisoned("model.norm.weight", math.nan), "model.norm.weight", "1 values are NaN"),
    "embedding inf": (poisoned("model.embed_tokens.weight", math.inf), "embed_tokens", "infinite"),
    "missing": ({Q0: None}, Q0, "missing"),
    "bias": ({Q0.replace("weight", "bias"): np.zeros(32, np.float32)}, "q_proj.bias", "not part of"),
    "int embedding": ({"model.embed_tokens.weight": np.zeros((70, 32), np.int32)}, "embed_tokens", "I32"),
}  # fmt: skip


@pytest.mark.parametrize("case", TENSORS)
def test_bad_tensor(tmp_path, case):
    tensors, subject, cause = TENSORS[case]
    assert_problem(hugging_face(tmp_path, tensors=tensors), subject, cause)


def test_float_llama_is_refused(tmp_path):
    w = weights(LLAMA)
    full = np.random.default_rng(0).normal(size=(LLAMA.q_size, LLAMA.hidden)).astype(np.float32)
    path = hugging_face(tmp_path, LLAMA, w, form="ternary", config=UNNAMED, tensors={Q0: full})
    assert_problem(path, Q0, "not ternary")


def test_bad_files(tmp_path):
    assert_problem(tmp_path / "nowhere", "nowhere", "no such checkpoint")
    assert_problem(tmp_path, "config.json", "no such file")
    path = hugging_face(tmp_path / "m")
    (path / "tokenizer.json").unlink()
    assert_problem(path, "tokenizer.json", "no such file")
    write_tokenizer(path, TINY.vocab + 5)
    assert_problem(path, "tokenizer.json", "token id 74")
    assert check(path, tokenizer=hugging_face(tmp_path / "other") / "tokenizer.json").ok
    assert_problem(path / "model.safetensors", "model.safetensors", "alone")
    data = (path / "model.safetensors").read_bytes()
    for size, cause in ((len(data) - 1, "truncated"), (100, "truncated"), (4, "not a safetensors"), (0, "empty")):
        (path / "model.safetensors").write_bytes(data[:size])
        assert_problem(path, "model.safetensors", cause)
    (path / "model.safetensors").unlink()
    assert_problem(path, "model.safetensors", "no such file")
    (path / "config.json").write_text("{")
    assert_problem(path, "config.json", "not JSON")


def test_spec():
    spec = ModelSpec(name="m", source="s", shape=TINY, rms_eps=1e-5, rope_theta=1e4, eos_ids=(1, 2), bos_id=0)
    assert ModelSpec.from_json(spec.to_json()) == spec
    assert spec.with_context(16).shape.context == 16
    with pytest.raises(ConfigError, match="from 1 to the model's 64"):
        spec.with_context(65)
    with pytest.raises(ConfigError, match="rope_scaling"):
        dataclasses.replace(spec, rope_scaling={"rope_type": "yarn"})


@pytest.mark.parametrize("changes", [{}, {"architectures": ["BitnetForCausalLM"], "hidden_act": "silu"}, {"quantization_config": None}])
def test_a_description_without_weights_is_a_shape(tmp_path, changes):
    path = hugging_face(tmp_path / "m", TINY, config=changes)
    for file in path.iterdir():
        if file.name != "config.json":
            file.unlink()
    spec = open_shape(path, context=32)
    assert spec.shape == dataclasses.replace(TINY, activation=changes.get("hidden_act", "relu2"), context=32)
    assert_problem(path, "model.safetensors", "the weights are missing")
    checked = check(path).spec
    assert checked is not None and checked.with_context(32) == spec


def test_a_shape_needs_no_tokenizer_but_weights_that_match(tmp_path):
    path = hugging_face(tmp_path / "m")
    (path / "tokenizer.json").unlink()
    assert open_shape(path).shape == TINY
    file = gguf(tmp_path / "m.gguf")
    (tmp_path / "tokenizer.json").unlink()
    assert open_shape(file).shape == LLAMA
    (path / "config.json").write_text((path / "config.json").read_text().replace('"num_hidden_layers": 2', '"num_hidden_layers": 3'))
    with pytest.raises(CheckpointError, match="layers.2"):
        open_shape(path)
