"""Ternary models of other kinds: read, or refused by name with what they have."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from synthetic import (
    GROUPED,
    LLAMA,
    TINY,
    assert_problem,
    biases,
    grouped_gguf,
    grouped_weights,
    hugging_face,
    interleaved,
    mlx,
    unpacked,
    weights,
)
from tritloom.gen.models import check, open_checkpoint, open_shape
from tritloom.gen.pack import quantise

Q0 = "model.layers.0.self_attn.q_proj"
UNNAMED = {"quantization_config": None}

REFUSED = {
    "Bonsai 2": ({"architectures": ["Qwen3_5ForCausalLM"], "model_type": "qwen3_5"}, "architectures", "it has linear attention"),
    "Qwen3.5 with images": ({"architectures": ["Qwen3_5ForConditionalGeneration"]}, "architectures", "it has linear attention"),
    "hybrid": ({"layer_types": ["linear_attention", "full_attention"]}, "layer_types", "'Qwen3ForCausalLM' has linear attention"),
    "rotated": ({"quantization_config": {"hadamard_block": 128}}, "quantization_config", "weights in a rotated basis"),
    "Maple": ({"architectures": ["MapleForCausalLM"]}, "architectures", "it has a mixture of experts"),
    "experts": ({"num_experts": 64}, "num_experts", "a mixture of experts"),
    "BitCPM4": ({"architectures": ["MiniCPMForCausalLM"], "model_type": "minicpm"}, "architectures", "factors of embeddings"),
    "BitCPM4 by its fields": ({"architectures": ["MiniCPMForCausalLM"], "scale_emb": 12}, "scale_emb", "factors of embeddings"),
    "bitnet-embedding": ({"architectures": ["Qwen3Model"]}, "architectures", "no head: it makes embeddings"),
    "MatMul-free": ({"architectures": ["HGRNBitForCausalLM"]}, "architectures", "recurrence in place of attention"),
    "window": ({"use_sliding_window": True}, "use_sliding_window", "attention in a window"),
    "some windows": ({"layer_types": ["full_attention", "sliding_attention"]}, "use_sliding_window", "attention in a window"),
    "unsaid heads": ({"num_key_value_heads": None}, "num_key_value_heads", "missing"),
    "unsaid size": ({"head_dim": None}, "head_dim", "missing"),
    "other type": ({"model_type": "llama"}, "model_type", "contradicts architecture Qwen3ForCausalLM"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_configurations(tmp_path, case):
    changes, subject, cause = REFUSED[case]
    assert_problem(unpacked(tmp_path, config=changes), subject, cause)


@pytest.mark.parametrize("name, cause", [
    (f"{Q0}.norm.weight", "a norm of its own before a projection"), (f"{Q0}.rms_norm.weight", "a norm of its own before a projection"),
    ("model.layers.0.mlp.experts.3.up_proj.weight", "a mixture of experts"), (f"{Q0}.lora_A.weight", "an adapter"),
    ("model.layers.1.linear_attn.A_log", "linear attention"), ("model.layers.0.mlp.shared_expert.up_proj.weight", "a mixture of experts"),
])  # fmt: skip
def test_tensors_of_other_models_say_of_what_they_are(tmp_path, name, cause):
    """Beside one that is not known at all."""
    tensors = {"a.b": np.ones(2, np.float16), name: np.ones(2, np.float16)}
    found = assert_problem(unpacked(tmp_path, tensors=tensors), name, f"not part of a supported model: it is of {cause}")
    assert "(and 1 more)" in found.cause


@pytest.mark.needs("gguf")
@pytest.mark.parametrize("name", ["blk.0.attn_q.rms_norm.weight", "blk.0.ffn_down.norm.weight"])
def test_gguf_norms_of_projections(tmp_path, name):
    tensors: dict[str, Any] = {name: (name, (GROUPED.hidden,), 0, bytes(4 * GROUPED.hidden))}
    assert_problem(grouped_gguf(tmp_path / "m.gguf", tensors=tensors), name, "a norm of its own before a projection")


@pytest.mark.needs("numba")
@pytest.mark.parametrize("options", [
    {"form": "divide", "config": {"quantization_config": {"quant_method": "bitnet", "modules_to_not_convert": ["lm_head"]}}},
    {"form": "ternary", "config": UNNAMED | {"model_type": "llama"}},
], ids=["packed", "bfloat16"])  # fmt: skip
def test_falcon_and_llama_are_read(tmp_path, options):
    """Falcon-E and Falcon3, packed and as values; Llama3-8B-1.58; TriLM: all are Llama with a scale a matrix."""
    w = weights(LLAMA)
    path = hugging_face(tmp_path, LLAMA, w, tied=False, **options)
    report = check(path)
    assert report.ok and report.spec and report.spec.shape == LLAMA and report.spec.no_machine is None
    assert (open_checkpoint(path).ternary(0, "q_proj")[0] == w[0, "q_proj"][0]).all()


@pytest.mark.needs("numba")
def test_trilm_of_several_parts_is_read_by_groups(tmp_path):
    """Larger TriLMs have a scale for each part of the inputs or outputs that one device had: whole groups have one."""
    shape = dataclasses.replace(GROUPED, head_norms=False, ternary_head=False)
    w = grouped_weights(dataclasses.replace(shape, ternary_head=True))
    for layer in range(shape.layers):
        down = w[layer, "down_proj"]
        down.scales[:, 0], down.scales[:, 1:] = 0.25, 0.5
        w[layer, "q_proj"].scales[:128], w[layer, "q_proj"].scales[128:] = 0.125, 0.0625
    table = np.random.default_rng(0).normal(size=(shape.vocab, shape.hidden)).astype(np.float16)
    path = unpacked(tmp_path, shape, w, config={"architectures": ["LlamaForCausalLM"], "model_type": "llama"},
                    tensors={"model.embed_tokens.weight": table})  # fmt: skip
    assert check(path).ok and open_shape(path).shape == shape
    assert all(open_checkpoint(path).grouped(1, name).same(w[1, name]) for name in ("q_proj", "down_proj"))


# Biases -----------------------------------------------------------------------------------------------------


@pytest.mark.needs("numba")
def test_biases_that_config_does_not_name(tmp_path):
    """As Tequila's models have them: on the output of every matrix."""
    shape = dataclasses.replace(LLAMA, layers=2)
    w, rng = weights(shape), np.random.default_rng(0)
    lengths = {"self_attn.q_proj": shape.q_size, "self_attn.o_proj": shape.hidden, "mlp.down_proj": shape.hidden, "mlp.up_proj": shape.ffn}
    biases: dict[str, Any] = {f"model.layers.{layer}.{name}.bias": rng.normal(size=length).astype(np.float32)
              for layer in range(2) for name, length in lengths.items()}  # fmt: skip
    path = hugging_face(tmp_path, shape, w, form="ternary", config=UNNAMED, tensors=biases)
    report = check(path)
    assert report.ok and report.spec and report.spec.biases == ("q_proj", "o_proj", "up_proj", "down_proj"), report.problems
    assert report.spec.no_machine is None and not report.spec.shape.biases and not report.spec.shape.group_size
    wanted = report.spec.require_machine().shape
    assert (wanted.biases, wanted.group_size) == (("qkv", "o", "gate_up", "down"), 128)
    assert (open_checkpoint(path).bias(1, "o_proj") == biases["model.layers.1.self_attn.o_proj.bias"]).all()
    assert type(report.spec).from_json(report.spec.to_json()) == report.spec
    poisoned: dict[str, Any] = biases | {f"{Q0}.bias": np.full(shape.q_size, np.nan, np.float32)}
    path = hugging_face(tmp_path / "nan", shape, w, form="ternary", config=UNNAMED, tensors=poisoned)
    assert_problem(path, f"{Q0}.bias", "256 values are NaN or infinite")
    short: dict[str, Any] = biases | {f"{Q0}.bias": np.zeros(3, np.float32)}
    assert_problem(hugging_face(tmp_path / "short", shape, w, form="ternary", config=UNNAMED, tensors=short), f"{Q0}.bias", "has shape [3]")


def test_biases_of_bitnet_are_no_part_of_it(tmp_path):
    assert_problem(hugging_face(tmp_path, TINY, tensors={f"{Q0}.bias": np.zeros(32, np.float32)}), f"{Q0}.bias", "not part of")


def test_qwen2_has_biases(tmp_path):
    shape = dataclasses.replace(GROUPED, head_norms=False)
    config = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
    path = unpacked(tmp_path / "without", shape, config=config)
    assert_problem(path, f"{Q0}.bias", "missing (and 5 more)")


@pytest.mark.needs("gguf")
def test_a_model_with_biases_is_the_same_in_every_form(tmp_path):
    """Hugging Face, MLX, and GGUF with rows permuted and not: the integers are equal."""
    shape = dataclasses.replace(GROUPED, head_norms=False)
    w, names = grouped_weights(shape), ("q_proj", "k_proj", "v_proj")
    tensors, config = biases(shape, names), {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
    paths = [make(tmp_path / make.__name__, shape, w, tensors=tensors, config=config) for make in (unpacked, mlx)]
    for architecture in ("qwen2", "llama"):
        more: dict[str, Any] = {}
        for layer in range(shape.layers):
            for name, heads in zip(names, (shape.heads, shape.kv_heads, 0), strict=True):
                bias = tensors[f"model.layers.{layer}.self_attn.{name}.bias"].astype(np.float32)
                stored = interleaved(bias[:, None], heads)[:, 0] if architecture == "llama" and heads else bias
                key = f"blk.{layer}.attn_{name[0]}.bias"
                more[key] = key, bias.shape, 0, stored.tobytes()
        paths.append(grouped_gguf(tmp_path / f"{architecture}.gguf", shape, w, architecture=architecture, tensors=more))
    first, *others = (quantise(open_checkpoint(path)) for path in paths)
    assert first.shape.biases == ("qkv",) and first.layers[0].qkv.shape[1] == (shape.hidden + 128) // 4
    for other in others:
        for a, b in zip(first.layers, other.layers, strict=True):
            assert (a.qkv == b.qkv).all() and (a.group_scales["qkv"] == b.group_scales["qkv"]).all()
            assert a.qkv_parameters.gain_exponent == b.qkv_parameters.gain_exponent


@pytest.mark.needs("gguf")
def test_gguf_biases_have_the_order_of_their_rows(tmp_path):
    """llama files permute q and k, and what is added to them."""
    shape = dataclasses.replace(GROUPED, head_norms=False)
    bias = np.arange(shape.q_size, dtype=np.float32)
    for architecture in ("llama", "qwen2"):
        stored = interleaved(bias[:, None], shape.heads)[:, 0] if architecture == "llama" else bias
        names = [f"blk.{layer}.attn_q.bias" for layer in range(shape.layers)]
        tensors: dict[str, Any] = {name: (name, bias.shape, 0, stored.tobytes()) for name in names}
        path = grouped_gguf(tmp_path / f"{architecture}.gguf", shape, architecture=architecture, tensors=tensors)
        report = check(path)
        assert report.ok and report.spec and report.spec.biases == ("q_proj",), report.problems
        assert (open_checkpoint(path).bias(1, "q_proj") == bias).all()
