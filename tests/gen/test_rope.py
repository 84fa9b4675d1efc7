"""Rotary settings of every form: as transformers and llama.cpp take them, or refused by name."""

from math import log
from pathlib import Path

import numpy as np
import pytest

import synthetic
from tritloom.gen.models import ModelSpec, check
from tritloom.gen.models.files import Tensor
from tritloom.gen.models.gguf import gguf_spec
from tritloom.gen.models.problems import Problems
from tritloom.gen.models.rope import RopeFields, attention_factor, frequencies, hugging_face_rope, scaling_of

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
NARROW = YARN | {"original_max_position_embeddings": 1, "beta_slow": 31}
HEAD, CONTEXT = 32, 2048


def hugging_face(config, default=10000.0):
    problems = Problems()
    fields = RopeFields.model_validate(config)
    return *hugging_face_rope(fields, default, CONTEXT, HEAD, problems), problems.found


HONOURED = {
    "nothing": {},
    "base": {"rope_theta": 500000.0},
    "new form": {"rope_parameters": {"rope_theta": 20000.0, "rope_type": "default"}},
    "record's base first": {"rope_theta": 500000.0, "rope_parameters": {"rope_theta": 20000.0}},
    "base beside the record": {"rope_theta": 500000.0, "rope_scaling": {"type": "linear", "factor": 2}},
    "nulls": {"rope_scaling": None, "rope_parameters": None, "partial_rotary_factor": None},
    "linear": {"rope_scaling": {"type": "linear", "factor": 4.0}},
    "linear below 1": {"rope_scaling": {"rope_type": "linear", "factor": 0.5}},
    "dynamic": {"rope_scaling": {"type": "dynamic", "factor": 4.0}},
    "llama3": {"rope_scaling": LLAMA3},
    "llama3 in the new form": {"rope_parameters": LLAMA3 | {"rope_theta": 500000.0}},
    "llama3, original beside it": {"rope_scaling": LLAMA3, "original_max_position_embeddings": 256},
    "llama3, original left out": {"rope_scaling": {k: v for k, v in LLAMA3.items() if k[0] != "o"}},
    "yarn": {"rope_scaling": YARN},
    "yarn, original left out": {"rope_scaling": {"type": "yarn", "factor": 4.0}},
    "yarn, narrow ramp": {"rope_scaling": YARN | {"beta_fast": 8.0, "beta_slow": 7.9}},
    "yarn, ramp not rounded": {"rope_scaling": YARN | {"truncate": False, "beta_fast": 16, "beta_slow": 2}},
    "yarn, attention named": {"rope_scaling": YARN | {"attention_factor": 1.25}},
    "yarn, attention by two scales": {"rope_scaling": YARN | {"mscale": 0.707, "mscale_all_dim": 0.9}},
    "yarn, one scale is none": {"rope_scaling": YARN | {"mscale": 0.707}},
    "yarn that shrinks": {"rope_scaling": YARN | {"factor": 0.5}},
}


@pytest.mark.slow
@pytest.mark.parametrize("case", HONOURED)
def test_angles_are_transformers(case):
    transformers = pytest.importorskip("transformers")
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    transformers.logging.set_verbosity_error()
    config = transformers.LlamaConfig(hidden_size=4 * HEAD, num_attention_heads=4, max_position_embeddings=CONTEXT, **HONOURED[case])
    expected = LlamaRotaryEmbedding(config)
    theta, record, problems = hugging_face(HONOURED[case])
    assert problems == []
    assert np.allclose(frequencies(theta, HEAD, record), expected.inv_freq.numpy(), rtol=1e-5, atol=0)
    assert attention_factor(record) == pytest.approx(expected.attention_scaling)


def test_default_base_is_the_architecture_s():
    assert hugging_face({}, 500000.0)[0] == 500000.0


REFUSED = {
    "zero factor": ({"rope_scaling": {"type": "linear", "factor": 0}}, "rope_scaling.factor", "greater than 0, not 0"),
    "negative factor": ({"rope_scaling": LLAMA3 | {"factor": -8.0}}, "rope_scaling.factor", "greater than 0"),
    "infinite factor": ({"rope_scaling": {"type": "linear", "factor": float("inf")}}, "config.json", "Infinity is not a number"),
    "text": ({"rope_scaling": {"type": "linear", "factor": "4"}}, "rope_scaling.factor", "a valid number, not '4'"),
    "no factor": ({"rope_scaling": {"type": "linear"}}, "rope_scaling.factor", "missing"),
    "yarn without factor": ({"rope_scaling": {"type": "yarn"}}, "rope_scaling.factor", "missing"),
    "infinite base": ({"rope_theta": float("inf")}, "config.json", "Infinity is not a number"),
    "zero base": ({"rope_theta": 0}, "rope_theta", "greater than 1, not 0"),
    "base in the record": ({"rope_parameters": {"rope_theta": -1.0}}, "rope_parameters.rope_theta", "greater than 1"),
    "equal llama3": ({"rope_scaling": LLAMA3 | {"high_freq_factor": 1.0}}, "rope_scaling", "high_freq_factor (1) must be above"),
    "contradicting llama3": ({"rope_scaling": LLAMA3 | {"low_freq_factor": 8.0}}, "rope_scaling", "low_freq_factor (8)"),
    "contradicting yarn": ({"rope_scaling": YARN | {"beta_fast": 0.5}}, "rope_scaling", "beta_fast (0.5) must not be below"),
    "yarn without room": ({"rope_scaling": NARROW}, "rope_scaling", "ramp from pair 0 to"),
    "longrope": ({"rope_scaling": {"type": "longrope", "short_factor": [1]}}, "rope_scaling.rope_type", "'longrope' is not supported"),
    "su": ({"rope_scaling": {"type": "su"}}, "rope_scaling.rope_type", "'su' is not supported"),
    "mrope": ({"rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}}, "rope_scaling.rope_type", "'mrope' is not supported"),
    "sections": ({"rope_scaling": {"rope_type": "default", "mrope_section": [2, 3, 3]}}, "rope_scaling.mrope_section", "not understood"),
    "layers": ({"rope_parameters": {"full_attention": {"rope_theta": 1e6}}}, "rope_parameters.full_attention", "not understood"),
    "unknown": ({"rope_scaling": {"type": "linear", "factor": 2.0, "beta_fast": 3.0}}, "rope_scaling.beta_fast", "not understood"),
    "a list": ({"rope_scaling": [1]}, "rope_scaling", "must be a record"),
    "a name": ({"rope_scaling": "linear"}, "rope_scaling", "must be a record"),
    "types": ({"rope_scaling": {"rope_type": "linear", "type": "yarn", "factor": 2.0}}, "rope_scaling.rope_type", "contradicts type"),
    "two records": ({"rope_scaling": YARN, "rope_parameters": LLAMA3}, "rope_scaling", "contradicts rope_parameters"),
    "partial": ({"partial_rotary_factor": 0.5}, "partial_rotary_factor", "part of a head"),
    "partial inside": ({"rope_parameters": {"partial_rotary_factor": 0.25}}, "partial_rotary_factor", "part of a head"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_by_name(case, tmp_path):
    changes, subject, cause = REFUSED[case]
    path = synthetic.hugging_face(tmp_path, config=changes)
    found = check(path, values=False).problems
    assert [p for p in found if subject in p.subject and cause in p.cause], found


# GGUF --------------------------------------------------------------------------------------------

METADATA = {
    "context_length": CONTEXT, "embedding_length": 4 * HEAD, "block_count": 1, "feed_forward_length": 256, "attention.head_count": 4,
    "attention.layer_norm_rms_epsilon": 1e-5, "vocab_size": 64,
}  # fmt: skip
PLAIN = 10000.0 ** (-np.arange(0, HEAD, 2) / HEAD)
RAMP = np.clip((np.arange(HEAD // 2) - 1) / (8 - 1), 0, 1)  # of yarn from 512 positions, by hand: 32·ln(512/64π)/(2·ln 10⁴) = 1.62, 7.64


def gguf(changes, factors=None, architecture="llama"):
    pytest.importorskip("gguf")  # the plain package has none
    problems, tensors = Problems(), {}
    if factors is not None:
        data = np.array(factors, np.float32)
        tensors["rope_freqs.weight"] = Tensor("rope_freqs.weight", "F32", data.shape, data.view(np.uint8))
    metadata = {f"{architecture}.{k}": v for k, v in (METADATA | changes).items()} | {"general.architecture": architecture}
    return gguf_spec(Path("m.gguf"), metadata, tensors, None, problems), problems.found


def factor(value):
    return {"rope.scaling.factor": value}


YARN_KEYS = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 512}
GGUF_HONOURED = {
    "nothing": ({}, None, PLAIN, 1),
    "factor without a type": (factor(4.0), None, PLAIN / 4, 1),
    "linear": ({"rope.scaling.type": "linear"} | factor(4.0), None, PLAIN / 4, 1),
    "type without a factor": ({"rope.scaling.type": "linear"}, None, PLAIN, 1),
    "none with a factor": ({"rope.scaling.type": "none"} | factor(4.0), None, PLAIN, 1),
    "old name": ({"rope.scale_linear": 2.0}, None, PLAIN / 2, 1),
    "both names": ({"rope.scale_linear": 2.0} | factor(4.0), None, PLAIN / 4, 1),
    "zero is none": (factor(0.0), None, PLAIN, 1),
    "attention": ({"rope.scaling.attn_factor": 1.5}, None, PLAIN, 1.5),
    "factors": ({}, 1.0 + np.arange(HEAD // 2), PLAIN / (1 + np.arange(HEAD // 2)), 1),
    "factors and a scale": (factor(2.0), [4.0] * (HEAD // 2), PLAIN / 8, 1),
    "yarn": (YARN_KEYS, None, PLAIN / 4 * RAMP + PLAIN * (1 - RAMP), 0.1 * log(4) + 1),
    "yarn, attention": (YARN_KEYS | {"rope.scaling.attn_factor": 2.0}, None, PLAIN / 4 * RAMP + PLAIN * (1 - RAMP), 0.2 * log(4) + 2),
}


@pytest.mark.parametrize("case", GGUF_HONOURED)
def test_gguf_angles_are_llama_cpp_s(case):
    changes, factors, expected, attention = GGUF_HONOURED[case]
    spec, problems = gguf(changes, factors)
    assert problems == [] and spec is not None
    assert np.allclose(frequencies(spec.rope_theta, HEAD, spec.rope_scaling), expected, rtol=1e-6, atol=0)
    assert attention_factor(spec.rope_scaling) == pytest.approx(attention)
    assert ModelSpec.from_json(spec.to_json()) == spec


def test_factors_of_a_converted_llama3_model_are_its_angles():
    theta, record, _ = hugging_face({"rope_scaling": LLAMA3})
    wanted = frequencies(theta, HEAD, record)
    spec, problems = gguf({}, PLAIN / wanted)
    assert problems == [] and spec is not None
    assert np.allclose(frequencies(spec.rope_theta, HEAD, spec.rope_scaling), wanted, rtol=1e-6)


GGUF_REFUSED = {
    "negative": (factor(-4.0), None, "rope.scaling.factor", "greater than or equal to 0"),
    "text": (factor("4"), None, "rope.scaling.factor", "a valid number"),
    "old name, negative": ({"rope.scale_linear": -1.0}, None, "rope.scale_linear", "greater than or equal to 0"),
    "base": ({"rope.freq_base": 0.0}, None, "rope.freq_base", "greater than 1"),
    "type": ({"rope.scaling.type": "longrope"}, None, "rope.scaling.type", "'longrope' is not supported"),
    "type's type": ({"rope.scaling.type": 3}, None, "rope.scaling.type", "a valid string"),
    "partial": ({"rope.dimension_count": HEAD // 2}, None, "rope.dimension_count", "only 16 of 32"),
    "sections": ({"rope.dimension_sections": [4, 4, 8, 0]}, None, "rope.dimension_sections", "not supported"),
    "extrapolation": ({"rope.scaling.yarn_ext_factor": 0.5}, None, "rope.scaling.yarn_ext_factor", "0.5"),
    "multiplier": (YARN_KEYS | {"rope.scaling.yarn_log_multiplier": 0.1}, None, "rope.scaling.yarn_log_multiplier", "0.1"),
    "betas": (YARN_KEYS | {"rope.scaling.yarn_beta_fast": 0.5}, None, "rope.scaling", "beta_fast (0.5)"),
    "few factors": ({}, [1.0] * 4, "rope_freqs.weight", "4 factors for 16 pairs"),
    "zero factors": ({}, [0.0] * (HEAD // 2), "rope.scaling.factors.0", "greater than 0"),
    "factors not numbers": ({}, [np.nan] * (HEAD // 2), "rope.scaling.factors.0", "a finite number"),
    "factors and yarn": (YARN_KEYS, [1.0] * (HEAD // 2), "rope_freqs.weight", "beside yarn"),
    "window": ({"attention.sliding_window": 512}, None, "attention.sliding_window", "512 is not supported"),
    "softcap": ({"attn_logit_softcapping": 30.0}, None, "attn_logit_softcapping", "not supported"),
    "experts": ({"expert_count": 8}, None, "expert_count", "8 is not supported"),
}


@pytest.mark.parametrize("case", GGUF_REFUSED)
def test_what_is_refused_by_name_in_gguf(case):
    changes, factors, subject, cause = GGUF_REFUSED[case]
    _, problems = gguf(changes, factors)
    assert [p for p in problems if subject in p.subject and cause in p.cause], problems


def test_factors_are_llama_s_alone():
    _, problems = gguf({}, [1.0] * (HEAD // 2), architecture="bitnet-b1.58")
    assert [p for p in problems if "not part of architecture 'bitnet-b1.58'" in p.cause]


def test_neutral_fields_are_none():
    spec, problems = gguf({"attention.sliding_window": 0, "expert_count": 0, "attention.causal": True, "logit_scale": 1.0})
    assert problems == [] and spec is not None and scaling_of(spec.rope_scaling) is None
