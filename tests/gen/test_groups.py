"""Models that are ternary by groups, in every form: the forms of one model are equal, bit for bit."""

import dataclasses
import json

import numpy as np
import pytest

from synthetic import (
    GGUF_FORMS,
    GROUPED,
    LLAMA,
    Weights,
    assert_problem,
    base_3,
    bfloat16,
    gguf,
    grouped_gguf,
    grouped_weights,
    mlx,
    qwen3_names,
    two_bits,
    unpacked,
)
from tritloom.gen.models import CheckpointError, check, open_checkpoint, open_shape
from tritloom.gen.models.checkpoint import MATRICES, norms_of
from tritloom.gen.models.files import Tensor
from tritloom.gen.models.groups import BLOCKS, Grouped, of_affine, of_blocks, of_floats

pytestmark = pytest.mark.needs("numba")

SMALL = dataclasses.replace(GROUPED, group_size=64, hidden=192, ffn=320)
Q0 = "model.layers.0.self_attn.q_proj"
GGUF = sorted(set(GGUF_FORMS) - {"old Q2_0"})


def shipped(root):
    """stories-4m-g128, whose file is read here by other means, as `grouped_weights` gives a model."""
    from safetensors.numpy import load_file

    path = root / "models" / "stories-4m-g128"
    tensors, shape = load_file(path / "model.safetensors"), open_shape(path).shape

    def matrix(name):
        values = tensors[name + ".weight"]
        assert values.dtype == np.float16
        return Grouped.of(np.sign(values).astype(np.int8), np.abs(values).reshape(len(values), -1, 128).max(-1))

    w: Weights = {"embedding": matrix("model.embed_tokens"), "norm": tensors["model.norm.weight"].astype(np.float32)}
    for layer in range(shape.layers):
        for name in (*MATRICES, *norms_of(shape)):
            place = "self_attn." if name[0] in "qkvo" else "mlp." if name in MATRICES else ""
            full = f"model.layers.{layer}.{place}{name}"
            w[layer, name] = matrix(full) if name in MATRICES else tensors[full + ".weight"].astype(np.float32)
    return path, shape, w


def assert_holds(checkpoint, w, rounded=False):
    """`rounded`: norms are stored as float16."""
    shape = checkpoint.spec.shape
    for layer in range(shape.layers):
        for name in MATRICES:
            got = checkpoint.grouped(layer, name)
            assert got.trits.dtype == np.int8 and got.scales.dtype == np.float16 and got.group_size == shape.group_size
            assert got.same(w[layer, name]), (layer, name)
        for name in norms_of(shape):
            assert (checkpoint.norm(layer, name) == (w[layer, name].astype(np.float16) if rounded else w[layer, name])).all(), (layer, name)
    tables = {checkpoint.embedding_name: w["embedding"]} | ({} if checkpoint.spec.tied_embeddings else {checkpoint.head_name: w["head"]})
    for name, table in tables.items():
        rows = [(start, len(rows.codes)) for start, rows in checkpoint.grouped_blocks(name)]
        assert [start for start, _ in rows] == [sum(n for _, n in rows[:i]) for i in range(len(rows))]
        parts = [rows for _, rows in checkpoint.grouped_blocks(name)]
        whole = Grouped(*(np.concatenate([getattr(part, field) for part in parts]) for field in ("codes", "scales")))
        assert whole.same(table) and (np.concatenate([rows for _, rows in checkpoint.blocks(name)]) == table.floats()).all()


def test_the_shipped_model(request):
    path, shape, w = shipped(request.config.rootpath)
    report = check(path)
    assert report.ok and report.spec, report.problems
    assert (shape.group_size, shape.head_norms, shape.ternary_head) == (128, True, True) and report.spec.eos_ids == (1,)
    assert_holds(open_checkpoint(path), w)


@pytest.mark.needs("gguf")
@pytest.mark.parametrize("form", ["Q2_0", "PQ2_0", "PTQ1_0", "F16", "mlx"])
def test_other_forms_of_the_shipped_model(request, tmp_path, form):
    """Trits and scales of a trained model, equal bit for bit to its `-unpacked` form."""
    path, shape, w = shipped(request.config.rootpath)
    other = mlx(tmp_path / "m", shape, w) if form == "mlx" else grouped_gguf(tmp_path / "m.gguf", shape, w, form=form)
    assert check(other, tokenizer=path / "tokenizer.json").ok
    a, b = open_checkpoint(path), open_checkpoint(other, need_tokenizer=False)
    assert a.spec.shape == b.spec.shape and a.spec.rms_eps == pytest.approx(b.spec.rms_eps) and a.spec.rope_theta == b.spec.rope_theta
    for layer in range(shape.layers):
        for name in MATRICES:
            assert a.grouped(layer, name).same(b.grouped(layer, name)), (layer, name)
    assert all(x.same(y) for (_, x), (_, y) in zip(a.grouped_blocks(a.embedding_name), b.grouped_blocks(b.embedding_name), strict=True))
    assert_holds(b, w)


@pytest.mark.needs("gguf")
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("form", GGUF)
def test_gguf(tmp_path, form, tied):
    w = grouped_weights()
    path = grouped_gguf(tmp_path / "m.gguf", GROUPED, w, form=form, tied=tied)
    assert check(path).ok, check(path).problems
    checkpoint = open_checkpoint(path)
    assert checkpoint.spec.shape == GROUPED and checkpoint.spec.source == f"GGUF qwen3, {form}, ternary in groups of 128"
    assert_holds(checkpoint, w)


@pytest.mark.needs("gguf")
@pytest.mark.parametrize("form", ["Q2_0", "F16"])
def test_gguf_of_64(tmp_path, form):
    w = grouped_weights(SMALL)
    path = grouped_gguf(tmp_path / "m.gguf", SMALL, w, form=form, tied=False)
    assert check(path).ok, check(path).problems
    assert open_checkpoint(path).spec.shape == SMALL
    assert_holds(open_checkpoint(path), w)


@pytest.mark.needs("gguf")
def test_gguf_of_groups_that_are_64_in_one_matrix_alone(tmp_path):
    """Files of Q2_0 have 64 where 128 would do; a matrix whose scales differ within 128 is found wherever it is."""
    w = grouped_weights()
    path = grouped_gguf(tmp_path / "m.gguf", GROUPED, w, form="Q2_0")
    data = bytearray(path.read_bytes())
    at = data.index(two_bits(w[1, "up_proj"], 64)) + 18 * (300 * GROUPED.hidden // 64 + 1)  # the second block of row 300
    data[at : at + 2] = np.float16(3).tobytes()
    path.write_bytes(data)
    found = assert_problem(path, "blk.1.ffn_up.weight", "1 groups of 128 inputs have scales of their own for each 64")
    assert "the first is group 0 of row 300" in found.cause and len(check(path).problems) == 1


@pytest.mark.needs("gguf")
def test_gguf_llama_has_other_rows(tmp_path):
    shape = dataclasses.replace(GROUPED, head_norms=False)
    w = grouped_weights(shape)
    path = grouped_gguf(tmp_path / "m.gguf", shape, w, architecture="llama")
    assert_holds(open_checkpoint(path), w)


@pytest.mark.needs("gguf")
def test_gguf_of_mixed_types(tmp_path):
    """What is not ternary in a file does no harm where it need not be: the embedding, as Q8_0, F16 and BF16."""
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    w, rng = grouped_weights(), np.random.default_rng(1)
    forms = {"blk.0.attn_q": "F16", "blk.0.ffn_down": "PTQ1_0", "blk.1.ffn_up": "BF16", "blk.1.attn_k": "Q2_0", "blk.1.attn_v": "F32"}
    table = rng.normal(size=(GROUPED.vocab, GROUPED.hidden)).astype(np.float16).astype(np.float32)
    rough = (table.view(np.uint32) >> 16).astype(np.uint16)
    stored = {"Q8_0": (8, quantize(table, GGMLQuantizationType.Q8_0).tobytes()), "F16": (1, table.astype(np.float16).tobytes()),
              "BF16": (30, rough.tobytes())}  # fmt: skip
    for kind, (number, content) in stored.items():
        path = grouped_gguf(tmp_path / f"{kind}.gguf", GROUPED, w, forms=forms,
                            tensors={"token_embd": ("token_embd.weight", table.shape, number, content)})  # fmt: skip
        assert check(path).ok, check(path).problems
        checkpoint = open_checkpoint(path)
        assert checkpoint.spec.shape == dataclasses.replace(GROUPED, ternary_head=False)
        assert checkpoint.grouped(0, "q_proj").same(w[0, "q_proj"]) and checkpoint.grouped(1, "k_proj").same(w[1, "k_proj"])
        assert np.abs(checkpoint.embedding() - table).max() < (0.02 if kind != "F16" else 1e-9)


@pytest.mark.needs("gguf")
def test_gguf_sizes_are_those_of_all_types(tmp_path):
    """Groups of 64 in values beside blocks of 128; a ternary embedding beside matrices that have one scale each."""
    w, fine = grouped_weights(), grouped_weights(dataclasses.replace(GROUPED, group_size=64), seed=1)
    path = grouped_gguf(tmp_path / "m.gguf", GROUPED, w | {(1, "up_proj"): fine[1, "up_proj"]}, forms={"blk.1.ffn_up": "F16"})
    assert check(path).ok, check(path).problems
    checkpoint = open_checkpoint(path)
    assert checkpoint.spec.shape.group_size == 64 and checkpoint.grouped(1, "up_proj").same(fine[1, "up_proj"])
    assert checkpoint.grouped(0, "q_proj").same(w[0, "q_proj"].in_groups("", 64))
    one = {key: Grouped(m.codes, np.full_like(m.scales, 0.0625)) for key, m in w.items() if isinstance(key, tuple) and key[1] in MATRICES}
    path = grouped_gguf(tmp_path / "o.gguf", GROUPED, w | one, form="F16", forms={"token_embd": "PTQ1_0"})
    checkpoint = open_checkpoint(path)
    assert checkpoint.spec.shape == dataclasses.replace(GROUPED, group_size=0, ternary_head=False) and check(path).ok
    assert (checkpoint.embedding() == w["embedding"].floats()).all() and checkpoint.ternary(0, "q_proj")[1] == 0.0625


@pytest.mark.needs("gguf")
def test_gguf_matrices_of_8_bits_are_read_where_they_are_exact(tmp_path):
    w = grouped_weights()
    trits, scales = w[0, "q_proj"].trits.reshape(-1, 32), np.repeat(w[0, "q_proj"].scales, 4, 1).reshape(-1, 1)
    exact = np.concatenate([scales.view(np.uint8), trits.view(np.uint8)], 1).tobytes()
    rounded = np.concatenate([(scales / np.float16(127)).view(np.uint8), (trits * 127).astype(np.int8).view(np.uint8)], 1).tobytes()
    name, shape = "blk.0.attn_q.weight", w[0, "q_proj"].trits.shape
    path = grouped_gguf(tmp_path / "m.gguf", GROUPED, w, tensors={"blk.0.attn_q": (name, shape, 8, exact)})
    assert check(path).ok
    assert_holds(open_checkpoint(path), w)
    path = grouped_gguf(tmp_path / "m.gguf", GROUPED, w, tensors={"blk.0.attn_q": (name, shape, 8, rounded)})
    assert_problem(path, name, "are no float16 values")


@pytest.mark.needs("gguf")
def test_gguf_vocabulary_is_the_file_s(tmp_path, request):
    """gpt2 with the pre-tokenizer qwen2; without a tokenizer.json beside it. More rows are said than there are."""
    record = json.loads((request.config.rootpath / "models" / "stories-4m" / "tokenizer.json").read_text())
    ids = record["model"]["vocab"] | {token["content"]: token["id"] for token in record["added_tokens"]}
    tokens = sorted(ids, key=ids.__getitem__)
    merges = [m if isinstance(m, str) else " ".join(m) for m in record["model"]["merges"]]
    shape = dataclasses.replace(GROUPED, vocab=len(tokens), layers=1)
    said = {"model": "gpt2", "pre": "qwen2", "tokens": tokens, "merges": merges, "add_bos_token": False,
            "token_type": [3 if token.startswith("<|") else 1 for token in tokens]}  # fmt: skip
    values = {f"tokenizer.ggml.{name}": value for name, value in said.items()} | {"qwen3.vocab_size": len(tokens) + 267}
    path = grouped_gguf(tmp_path / "m.gguf", shape, values=values, vocabulary=True)
    assert check(path).ok, check(path).problems
    spec = open_checkpoint(path).spec
    assert spec.shape.vocab == len(tokens) and spec.bos_id is None and any("4,363 tokens, but it lists 4,096" in n for n in spec.notes)


@pytest.mark.parametrize("tied, dtype, shards", [(True, "float16", 1), (False, "bfloat16", 3), (False, "float32", 1)])
@pytest.mark.parametrize("shape", [GROUPED, SMALL], ids=["128", "64"])
def test_unpacked(tmp_path, shape, tied, dtype, shards):
    w = grouped_weights(shape)
    path = unpacked(tmp_path / "m", shape, w, tied=tied, dtype=dtype, shards=shards)
    assert check(path).ok, check(path).problems
    checkpoint = open_checkpoint(path)
    assert checkpoint.spec.shape == shape and checkpoint.spec.tied_embeddings == tied and not checkpoint.quantises_activations
    assert_holds(checkpoint, w, rounded=True)


def test_unpacked_with_a_float_embedding(tmp_path):
    table = np.random.default_rng(0).normal(size=(GROUPED.vocab, GROUPED.hidden)).astype(np.float16)
    path = unpacked(tmp_path, tensors={"model.embed_tokens.weight": table})
    assert check(path).ok and open_checkpoint(path).spec.shape == dataclasses.replace(GROUPED, ternary_head=False)
    assert (open_checkpoint(path).embedding() == table).all()


def test_unpacked_with_one_magnitude_a_matrix_has_no_groups(tmp_path):
    w = grouped_weights()
    w |= {key: Grouped(m.codes, np.full_like(m.scales, 0.0625)) for key, m in w.items() if isinstance(key, tuple) and key[1] in MATRICES}
    spec = open_shape(unpacked(tmp_path, GROUPED, w))
    assert (spec.shape.group_size, spec.shape.head_norms, spec.shape.ternary_head) == (0, True, False)
    assert spec.no_machine is None


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("shape", [GROUPED, SMALL], ids=["128", "64"])
def test_mlx(tmp_path, shape, flipped):
    w = grouped_weights(shape)
    path = mlx(tmp_path / "m", shape, w, tied=flipped, flipped=flipped)
    assert check(path).ok, check(path).problems
    checkpoint = open_checkpoint(path)
    assert checkpoint.spec.shape == shape and not checkpoint.quantises_activations
    assert checkpoint.spec.source == f"Hugging Face Qwen3ForCausalLM, MLX, two bits a weight, ternary in groups of {shape.group_size}"
    assert_holds(checkpoint, w, rounded=True)


def test_mlx_in_groups_of_32(tmp_path):
    """They are groups of 64 or 128 where their scales are equal, and refused where not."""
    w = grouped_weights()

    def finer(times, factor=1.0):
        found = {key: Grouped(m.codes, np.repeat(m.scales, times, 1)) if isinstance(m, Grouped) else m for key, m in w.items()}
        found[0, "q_proj"].scales[:, ::times] *= np.float16(factor)
        return found

    path = mlx(tmp_path / "joined", GROUPED, finer(4))
    assert check(path).ok and open_shape(path).shape == GROUPED
    assert_holds(open_checkpoint(path), w, rounded=True)
    path = mlx(tmp_path / "64", GROUPED, finer(2, 2.0))
    assert check(path).ok and open_shape(path).shape.group_size == 64
    path = mlx(tmp_path / "32", GROUPED, finer(4, 2.0))
    assert "supported are groups of 64 and 128" in assert_problem(path, f"{Q0}.weight", "has scales of its own for each 32 inputs").fix


@pytest.mark.parametrize("bits", [4, 8])
def test_mlx_with_a_wider_embedding(tmp_path, bits):
    rng, per = np.random.default_rng(0), 32 // bits
    codes = rng.integers(0, 1 << bits, (GROUPED.vocab, GROUPED.hidden // per, per)).astype(np.uint32)
    words = (codes << np.arange(0, 32, bits, dtype=np.uint32)).sum(-1, dtype=np.uint32)
    scales, biases = (rng.normal(size=(GROUPED.vocab, GROUPED.hidden // 64)).astype(np.float16) for _ in range(2))
    name = "model.embed_tokens"
    path = mlx(tmp_path, tensors={f"{name}.weight": words, f"{name}.scales": scales, f"{name}.biases": biases})
    assert check(path).ok, check(path).problems
    checkpoint = open_checkpoint(path)
    assert checkpoint.spec.shape == dataclasses.replace(GROUPED, ternary_head=False)
    wide = [np.repeat(v.astype(np.float32), 64, 1) for v in (scales, biases)]
    assert np.allclose(checkpoint.embedding(), codes.reshape(GROUPED.vocab, -1) * wide[0] + wide[1])


# What the formats hold ---------------------------------------------------------------------------------------


def test_every_byte_of_base_3():
    """Against the definition: digits of a byte are those of the number that it is stored for, first digit first."""
    numbers = np.arange(243)
    digits = numbers[:, None] // 3 ** np.arange(4, -1, -1) % 3
    for place in range(16):
        trits = np.zeros((243, 128), np.int8)
        trits[:, place : 80 : 16] = digits - 1
        matrix = Grouped.of(trits, np.ones((243, 1), np.float16))
        data = np.frombuffer(base_3(matrix), np.uint8)
        assert (data.reshape(-1, 28)[:, place] == -(-numbers * 256 // 243)).all()
        assert of_blocks(Tensor("m", "PTQ1_0", (243, 128), data)).same(matrix)


@pytest.mark.parametrize("kind", BLOCKS)
def test_large_matrices_are_read_in_pieces(kind):
    rng = np.random.default_rng(0)
    trits = rng.integers(-1, 2, (700, 1024)).astype(np.int8)
    matrix = Grouped.of(trits, rng.uniform(0.01, 1, (700, 8)).astype(np.float16))
    data = np.frombuffer(GGUF_FORMS[kind][1](matrix), np.uint8)
    assert of_blocks(Tensor("m", kind, trits.shape, data)).in_groups("m", 128).same(matrix)
    floats = Tensor("m", "F16", trits.shape, matrix.floats().astype(np.float16).reshape(-1).view(np.uint8))
    assert of_floats(floats, 128).same(matrix) and of_floats(floats, 64).in_groups("m", 128).same(matrix)


def test_signed_zeros_and_unused_scales():
    values = np.zeros((2, 128), np.float16)
    values[0, ::3], values[0, 1::3], values[1] = 0.5, -0.5, -0.0
    found = of_floats(Tensor("m", "F16", (2, 128), values.reshape(-1).view(np.uint8)), 64)
    assert (found.floats() == values).all() and found.scales.tolist() == [[0.5, 0.5], [0, 0]] and not found.trits[1].any()
    block = np.array([0, 0, *[0b10_01_00_10] * 32], np.uint8)
    assert not of_blocks(Tensor("m", "PQ2_0", (1, 128), block)).trits.any()  # under a scale of 0
    block[1] = 0x80
    assert of_blocks(Tensor("m", "PQ2_0", (1, 128), block)).scales.view(np.uint16).tolist() == [[0]]


def test_same_is_of_trits_and_of_scales_that_count():
    a = Grouped.of(np.eye(1, 64, dtype=np.int8), np.array([[1, 2]], np.float16))
    b = Grouped(a.codes, np.array([[1, 0]], np.float16))
    c = Grouped(a.codes, np.array([[2, 2]], np.float16))
    assert a.same(b) and not a.same(c) and not a.same(Grouped.of(-a.trits, a.scales))
    assert not a.same(Grouped(a.codes, np.array([[1]], np.float16)))


def test_affine_groups_that_are_ternary_and_those_that_are_not():
    codes = np.array([[sum((0, 1, 2, 1)[i % 4] << 2 * i for i in range(16))] * 2], np.uint32)

    def read(scale, bias, codes=codes):
        return of_affine("m", codes, np.array([[scale]], np.float32), np.array([[bias]], np.float32))

    pattern = np.tile(np.array([-1, 0, 1, 0], np.int8), 8)
    assert (read(0.5, -0.5).trits == pattern).all() and read(0.5, -0.5).scales[0, 0] == 0.5
    assert (read(-0.5, 0.5).trits == -pattern).all() and read(-0.5, 0.5).scales[0, 0] == 0.5
    higher = codes + np.uint32(0x55555555)
    assert (read(0.5, -1.0, higher).trits == pattern).all()
    assert not read(0.0, 0.0).trits.any()
    for scale, bias in ((0.5, -0.25), (0.5, 0.0), (0.5, -1.0), (0.0, 1.0)):
        with pytest.raises(CheckpointError, match="1 groups hold other values than 0 and one magnitude, the first is group 0 of row 0"):
            read(scale, bias)
    with pytest.raises(CheckpointError, match="code 3, which stands for .2, 16 times, the first in row 0, column 1"):
        read(0.5, -0.5, codes | np.uint32(0x55555555) << 1)


# What is wrong ----------------------------------------------------------------------------------------------


def with_code_3(path, w, name, places, size=128):
    """The file with code 3 in these elements of a matrix."""
    data, block = bytearray(path.read_bytes()), size // 4 + 2
    original = GGUF_FORMS["PQ2_0" if size == 128 else "Q2_0"][1](w)
    at = data.index(original)
    for row, column in places:
        index = row * w.trits.shape[1] + column
        data[at + index // size * block + 2 + index % size // 4] |= 3 << 2 * (index % 4)
    path.write_bytes(data)


@pytest.mark.needs("gguf")
@pytest.mark.parametrize("form, size", [("PQ2_0", 128), ("Q2_0", 64)])
def test_all_problems_in_one_pass(tmp_path, form, size):
    """Codes 3 with place and count, in matrices and in the embedding; a scale that is none; a missing tensor; a wrong tokenizer."""
    w = grouped_weights()
    path = grouped_gguf(tmp_path / "m.gguf", GROUPED, w, form=form, tensors={"blk.1.attn_v": None})
    with_code_3(path, w[0, "gate_proj"], "blk.0.ffn_gate", [(3, 5), (3, 6), (200, 255)], size)
    with_code_3(path, w[1, "down_proj"], "blk.1.ffn_down", [(255, 383)], size)
    with_code_3(path, w["embedding"], "token_embd", [(69, 128)], size)
    data, original = bytearray(path.read_bytes()), GGUF_FORMS[form][1](w[1, "o_proj"])
    at = data.index(original)
    data[at : at + 2] = np.float16(np.nan).tobytes()
    path.write_bytes(data)
    (tmp_path / "tokenizer.json").write_text("{}")
    problems = {p.subject: p.cause for p in check(path).problems}
    assert problems["blk.0.ffn_gate.weight"] == "not ternary: holds code 3, which stands for +2, 3 times, the first in row 3, column 5"
    assert problems["blk.1.ffn_down.weight"] == "not ternary: holds code 3, which stands for +2, 1 times, the first in row 255, column 383"
    assert problems["token_embd.weight"] == "not ternary: holds code 3, which stands for +2, 1 times, the first in row 69, column 128"
    assert problems["blk.1.attn_output.weight"] == "1 scales are negative or not finite, the first is nan (group 0 of row 0)"
    assert problems["blk.1.attn_v.weight"] == "missing" and len(problems) == 6, problems


@pytest.mark.needs("gguf")
def test_old_files_have_groups_of_128_under_the_number_of_q2_0(tmp_path):
    path = grouped_gguf(tmp_path / "m.gguf", form="old Q2_0")
    found = assert_problem(path, ".weight", "weights in groups of 128, as old files have them under type 42")
    assert "PQ2_0 file (type 142)" in found.fix and len(check(path).problems) == 1
    last = grouped_gguf(tmp_path / "l.gguf", forms={"blk.1.ffn_down": "old Q2_0"})
    assert_problem(last, "blk.1.ffn_down.weight", "weights in groups of 128")
    sherry = ("token_embd.weight", (GROUPED.vocab, GROUPED.hidden), 42, bytes(GROUPED.vocab * 42))
    assert_problem(grouped_gguf(tmp_path / "s.gguf", tensors={"token_embd": sherry}), "token_embd.weight", "STQ1_0 weights under type 42")
    path = grouped_gguf(tmp_path / "t.gguf", form="Q2_0")
    path.write_bytes(path.read_bytes()[:-40])
    assert_problem(path, "t.gguf", "truncated")


@pytest.mark.needs("gguf")
@pytest.mark.parametrize("changes, subject, cause", [
    ({"prism.hadamard.block_size": 128}, "prism.hadamard.block_size", "weights in a rotated basis"),
    ({"general.architecture": "qwen35"}, "general.architecture", "'qwen35' is not supported: it has linear attention"),
    ({"general.architecture": "qwen3moe"}, "general.architecture", "a mixture of experts"),
    ({"general.architecture": "minicpm"}, "general.architecture", "factors of embeddings"),
    ({"qwen3.expert_count": 8}, "expert_count", "8 is not supported"),
    ({"qwen3.attention.sliding_window": 4096}, "attention.sliding_window", "4096 is not supported"),
])  # fmt: skip
def test_other_models_are_refused_by_what_the_file_says(tmp_path, changes, subject, cause):
    assert_problem(grouped_gguf(tmp_path / "m.gguf", values=changes), subject, cause)


def test_values_that_are_not_ternary(tmp_path):
    w = grouped_weights()
    values = w[0, "q_proj"].floats().astype(np.float16)
    values[7, 130] *= 2
    other = w[1, "up_proj"].floats().astype(np.float16)
    other[0, 0], other[383, 255] = np.inf, 1
    path = unpacked(tmp_path / "a", GROUPED, w, tensors={f"{Q0}.weight": values, "model.layers.1.mlp.up_proj.weight": other})
    assert open_shape(path).shape == GROUPED
    found = assert_problem(path, f"{Q0}.weight", "not ternary in groups of 128")
    assert "row 7, column" in found.cause
    assert_problem(path, "model.layers.1.mlp.up_proj.weight", "values are NaN or infinite")
    tiny = bfloat16(np.full((256, 256), 2.0**-30))
    path = unpacked(tmp_path / "b", GROUPED, w, dtype="bfloat16", tensors={f"{Q0}.weight": tiny})
    assert_problem(path, f"{Q0}.weight", "512 scales are no float16 values, the first is 9.31322575e-10")
    rng = np.random.default_rng(0)
    floats = {name: rng.normal(size=m.trits.shape).astype(np.float16) for name, m in qwen3_names(GROUPED, w).items() if ".layers.0." in name
              and isinstance(m, Grouped)}  # fmt: skip
    assert_problem(unpacked(tmp_path / "c", GROUPED, w, tensors=floats), f"{Q0}.weight", "nor is any other matrix of its layer")


@pytest.mark.parametrize("tensors, config, subject, cause", [
    ({f"{Q0}.scales": np.ones((256, 3), np.float16)}, {}, f"{Q0}.scales", "has shape [256, 3]"),
    ({f"{Q0}.biases": np.ones((256, 2), np.float16)}, {}, f"{Q0}.weight", "hold other values than 0"),
    ({f"{Q0}.scales": np.full((256, 2), np.nan, np.float16)}, {}, f"{Q0}.weight", "NaN or infinite"),
    ({}, {"quantization": None}, "quantization", "missing, although weights are packed"),
    ({}, {"quantization": {"bits": 4, "group_size": 32, "mode": "mxfp4"}}, "quantization.mode", "'mxfp4' is not ternary"),
])  # fmt: skip
def test_mlx_that_is_not_ternary(tmp_path, tensors, config, subject, cause):
    assert_problem(mlx(tmp_path, tensors=tensors, config=config), subject, cause)


def test_a_plain_llama_gguf_has_no_groups(tmp_path):
    assert open_checkpoint(gguf(tmp_path / "m.gguf", LLAMA, kind="F16")).spec.shape == LLAMA
