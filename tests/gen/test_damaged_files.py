"""Files that are damaged, hostile, unfinished or other than their names: each is named for what it is, in one line and at once."""

import dataclasses
import json
import struct
import time

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from synthetic import LLAMA, TINY, gguf, hugging_face, weights
from tritloom.gen.models import CheckpointError, check, open_checkpoint, open_shape
from tritloom.gen.models.files import parse_json

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258da\nsize 12345\n"
PAGE = b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>"
STRANGE = {
    "pointer": (LFS, "a Git LFS pointer"),
    "page": (PAGE, "a web page"),
    "page without a type": (b"\n  <HTML lang=en>", "a web page"),
    "xml": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "an XML answer"),
    "refusal": (b'{"error": "Repository not found"}', "a server's refusal"),
    "plain refusal": (b"Entry not found", "a server's refusal"),
    "zip": (b"PK\x03\x04" + bytes(100), "a zip archive"),
    "gzip": (b"\x1f\x8b\x08\x00abcdefgh", "a compressed file"),
    "zeros": (bytes(4096), "nothing but zeros"),
    "empty": (b"", "empty"),
}


def assert_refused(path, subject, cause):
    found = check(path).problems
    assert [p for p in found if subject in p.subject and cause in p.cause], found
    assert all("\n" not in str(p) and p.fix for p in found)


@pytest.mark.parametrize("kind", STRANGE)
@pytest.mark.parametrize("file", ["model.safetensors", "m.gguf", "config.json", "generation_config.json", "model.safetensors.index.json"])
def test_what_stands_where_a_file_should(tmp_path, kind, file):
    data, cause = STRANGE[kind]
    if file == "config.json" and kind == "refusal":
        pytest.skip("JSON that lacks what a model needs")
    if file == "m.gguf":
        path = tmp_path / file
    else:
        path = hugging_face(tmp_path / "m")
        if "index" in file:
            (path / "model.safetensors").unlink()
    (path if file == "m.gguf" else path / file).write_bytes(data)
    if kind == "refusal" and file.endswith(".json"):
        cause = "missing" if "index" in file else ""
    assert not cause or assert_refused(path, "" if cause == "missing" else file, cause) is None


def test_unfinished_downloads(tmp_path):
    path = hugging_face(tmp_path / "m")
    (path / "model.safetensors").rename(path / "model.safetensors.incomplete")
    assert_refused(path, "model.safetensors", "download is not finished (found model.safetensors.incomplete)")
    with pytest.raises(CheckpointError, match="not finished"):
        open_shape(path)
    cache = path / ".cache" / "huggingface" / "download"
    cache.mkdir(parents=True)
    (path / "model.safetensors.incomplete").rename(cache / "model.safetensors.Zx1=.4d7a2146.incomplete")
    assert_refused(path, "model.safetensors", "download is not finished (found model.safetensors.Zx1=.4d7a2146.incomplete)")
    file = gguf(tmp_path / "m.gguf")
    part = file.rename(tmp_path / "m.gguf.part")
    assert_refused(file, "m.gguf", "download is not finished (found m.gguf.part)")
    part.write_bytes(b"\1" * 100)
    assert_refused(part, "m.gguf.part", "neither a model folder nor a GGUF file")
    next(cache.iterdir()).unlink()
    (path / "model.safetensors").symlink_to("../../blobs/4d7a")
    assert_refused(path, "model.safetensors", "a link to ../../blobs/4d7a, which is not there")


OPTIONAL = ["generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
            "model.safetensors.index.json"]  # fmt: skip


@pytest.mark.parametrize("file", OPTIONAL)
def test_a_file_that_a_model_may_lack_was_to_be_there(tmp_path, file):
    path = hugging_face(tmp_path / "m")
    (path / file).unlink(missing_ok=True)
    assert check(path).ok
    (path / file).symlink_to("../../blobs/4d7a")
    assert_refused(path, file, "a link to ../../blobs/4d7a, which is not there")
    (path / file).unlink()
    (path / (file + ".incomplete")).write_bytes(b"{")
    assert_refused(path, file, "download is not finished")
    (path / file).mkdir()
    assert_refused(path, file, "not")


@pytest.mark.parametrize("name", [".", "/"])
def test_a_folder_without_a_name_is_no_file(tmp_path, name):
    (problem,) = check(hugging_face(tmp_path / "m"), tokenizer=name).problems
    assert "not a file" in problem.cause


def test_a_file_far_too_large_is_not_read(tmp_path):
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        path = hugging_face(tmp_path / name)
        with (path / name).open("wb") as file:
            file.write(b"{")
            file.truncate(8 << 30)
        start = time.process_time()
        assert_refused(path, name, "larger than any such file")
        assert time.process_time() - start < 1


def test_a_download_cache_is_not_a_folder_of_a_model(tmp_path):
    hugging_face(tmp_path / "models--a--b" / "snapshots" / "4d7a")
    assert_refused(tmp_path / "models--a--b", "models--a--b", "a download cache")
    assert_refused(tmp_path / ("x" * 5000), "x", "cannot be read")


def test_a_file_cut_short_names_what_is_beside_it(tmp_path):
    path = hugging_face(tmp_path / "m")
    data = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(data[:-10])
    (path / "model.safetensors.part").write_bytes(b"")
    assert_refused(path, "model.safetensors", "truncated")
    assert_refused(path, "model.safetensors", "(found model.safetensors.part beside it)")


# JSON --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, cause",
    [
        ('{"a": NaN}', "NaN is not a number"),
        ('{"a": 1e999}', "number 1e999 is out of range"),
        ('{"a": ' + "9" * 5000 + "}", "not JSON"),
        ('{"a": 1, "b": 2, "a": 3}', "key 'a' twice"),
        ("[" * 100_000, "nested deeper"),
        ('{"a": ' + "[" * 100 + "]" * 100 + "}", "nested deeper than 64"),
        ("[1, 2]", "not a JSON object"),
        ("\ufeff{}", "begins with a byte order mark"),
        ("\udcff\udcfe{\0}\0", "begins with a byte order mark"),
        ('{"a": "\udcff"}', "not JSON"),
        ("{" + "," * (5 << 20) + "}", "larger than any"),
    ],
)
def test_json(text, cause):
    start = time.process_time()
    with pytest.raises(CheckpointError) as error:
        parse_json(text.encode("utf-8", "surrogateescape"), "file")
    assert cause in error.value.cause and "\n" not in str(error.value) and len(str(error.value)) < 400
    assert time.process_time() - start < 1


# safetensors -------------------------------------------------------------------------------------


def container(header, data=b"\0" * 8):
    body = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(body)) + body + data


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


SAFETENSORS = {
    "a list": (container(b"[1, 2]"), "not a safetensors file"),
    "no entry": (container({"a": 5}), "must be a record"),
    "no type": (container({"a": {"shape": [2], "data_offsets": [0, 8]}}), "missing"),
    "three offsets": (container({"a": entry(offsets=(0, 4, 8))}), "at most 2"),
    "text in a shape": (container({"a": entry(shape=["2"])}), "must be a valid integer"),
    "negative shape": (container({"a": entry(shape=[-2])}), "greater than or equal to 0"),
    "a flag in a shape": (container({"a": entry(shape=[True, 2])}), "must be a valid integer"),
    "unknown type": (container({"a": entry("Q4")}), "a type that safetensors does not have"),
    "backwards": (container({"a": entry(offsets=(8, 0))}), "-8 bytes do not hold"),
    "too few bytes": (container({"a": entry(shape=[3])}), "8 bytes do not hold F32 [3]"),
    "beyond the file": (container({"a": entry(shape=[4], offsets=(0, 16))}), "truncated"),
    "overlap": (container({"a": entry(), "b": entry(shape=[1], offsets=(4, 8))}), "overlaps another tensor"),
    "a hole": (container({"a": entry(shape=[1], offsets=(4, 8))}), "leaves 4 bytes unused"),
    "bytes at the end": (container({"a": entry(shape=[1], offsets=(0, 4))}), "4 bytes follow the last tensor"),
    "twice": (container(b'{"a": {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]}, "a": {}}'), "key 'a' twice"),
    "long header": (struct.pack("<Q", 1 << 40) + b"{}", "not a safetensors file"),
    "huge": (container({"a": entry(shape=[1 << 40] * 4)}), "do not hold"),
    "lines in a name": (container({"a\nb\x1b[31m": 5}), "must be a record"),
}


@pytest.mark.parametrize("case", SAFETENSORS)
def test_safetensors(tmp_path, case):
    data, cause = SAFETENSORS[case]
    path = hugging_face(tmp_path)
    (path / "model.safetensors").write_bytes(data)
    found = check(path).problems
    assert len(found) == 1 and cause in found[0].cause and str(found[0]).isprintable(), found


@pytest.mark.parametrize(
    "change, cause",
    [
        (lambda w: {"a": 5}, "must be a valid string"),
        (lambda w: w | {"a": "../m/model-1.safetensors"}, "which is not a file of this folder"),
        (lambda w: w | {"a": "/etc/passwd"}, "which is not a file of this folder"),
        (lambda w: w | {"a": ".."}, "which is not a file of this folder"),
        (lambda w: w | {"a": "a\\b"}, "which is not a file of this folder"),
        (lambda w: w | {"a": ""}, "which is not a file of this folder"),
        (lambda w: w | {"a": "model-1.safetensors"}, "the index places it in model-1.safetensors, which lacks it"),
        (lambda w: {k: v for k, v in w.items() if "norm.weight" not in k}, "where the index does not place it"),
        (lambda w: w | {"model.norm.weight": "model-9.safetensors"}, "no such file"),
        (lambda w: {}, "names 0 files"),
        (None, "names other files than model.safetensors, which is there too"),
    ],
)
def test_index(tmp_path, change, cause):
    path = hugging_face(tmp_path)
    tensors = load_file(path / "model.safetensors")
    save_file(tensors, path / "model-1.safetensors")
    if change is not None:
        (path / "model.safetensors").unlink()
    change = change or dict
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": change(dict.fromkeys(tensors, "model-1.safetensors"))}))
    found = check(path).problems
    assert found and cause in found[0].cause, found


# GGUF --------------------------------------------------------------------------------------------


def text(s):
    s = s if isinstance(s, bytes) else s.encode()
    return struct.pack("<Q", len(s)) + s


def header(values=(), tensors=(), version=3):
    return b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(values)) + b"".join(values) + b"".join(tensors)


ARCHITECTURE = text("general.architecture") + struct.pack("<I", 8) + text("llama")


def info(name="a", dims=(2,), kind=0, offset=0):
    return text(name) + struct.pack("<I", len(dims)) + b"".join(struct.pack("<Q", d) for d in dims) + struct.pack("<IQ", kind, offset)


def padded(data, body=b"\0" * 64):
    return data + bytes(-len(data) % 32) + body


GGUF = {
    "nested": (header([text("k") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 3000 + struct.pack("<IQ", 4, 0)]), "a list of lists"),
    "no end of lists": (header([text("k") + struct.pack("<IIQ", 9, 8, 1 << 60)]), "items in k"),
    "long list": (header([text("k") + struct.pack("<IIQ", 9, 0, 1 << 19)]), "truncated"),
    "long text": (header([text("k") + struct.pack("<IQ", 8, 1 << 60)]), "truncated"),
    "unknown type": (header([text("k") + struct.pack("<IQ", 77, 0)]), "stored as metadata type 77"),
    "unknown item": (header([text("k") + struct.pack("<IIQ", 9, 77, 1)]), "a list of metadata type 77"),
    "not a number": (header([text("k") + struct.pack("<If", 6, float("nan"))]), "nan is not a number"),
    "no numbers": (header([text("k") + struct.pack("<IIQf", 9, 6, 1, float("inf"))]), "not numbers"),
    "name not UTF-8": (header([text(b"\xff") + struct.pack("<II", 4, 1)]), "is not UTF-8"),
    "long name": (header([struct.pack("<Q", 1 << 20)]), "bytes in a name"),
    "twice": (header([ARCHITECTURE, ARCHITECTURE]), "twice in the metadata"),
    "many values": (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 60), "metadata values"),
    "many tensors": (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0), "1152921504606846976 tensors"),
    "no dimensions": (header([ARCHITECTURE], [info(dims=())]), "has 0 dimensions"),
    "many dimensions": (header([ARCHITECTURE], [info(dims=(1,) * 9)]), "has 9 dimensions"),
    "empty tensor": (padded(header([ARCHITECTURE], [info(dims=(0,))])), "has shape [0]"),
    "unknown tensor type": (padded(header([ARCHITECTURE], [info(kind=999)])), "tensor type number 999"),
    "rows": (padded(header([ARCHITECTURE], [info(dims=(31,), kind=8)])), "not whole Q8_0 blocks"),
    "beyond the file": (padded(header([ARCHITECTURE], [info(offset=1 << 40)])), "truncated"),
    "huge": (padded(header([ARCHITECTURE], [info(dims=(1 << 60, 1 << 60))])), "truncated"),
    "overlap": (padded(header([ARCHITECTURE], [info("a", (16,)), info("b", (8,), offset=32)])), "overlaps another tensor"),
    "gap": (padded(header([ARCHITECTURE], [info("a", (8,)), info("b", (8,), offset=64)])) + bytes(64), "the tensors before it end at 32"),
    "unaligned": (padded(header([ARCHITECTURE], [info(offset=4)])), "no multiple of 32"),
    "one name": (padded(header([ARCHITECTURE], [info(), info(offset=32)])), "twice in m.gguf"),
    "alignment": (header([text("general.alignment") + struct.pack("<II", 4, 0)]), "must be a power of two"),
    "alignment's type": (header([text("general.alignment") + struct.pack("<I?", 7, True)]), "must be of metadata type 4, not 7"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "old version": (header(version=1), "GGUF version 1"),
    "old format": (b"tjgg" + bytes(32), "an old GGML file"),
}


@pytest.mark.needs("gguf")
@pytest.mark.parametrize("case", GGUF)
def test_gguf(tmp_path, case):
    data, cause = GGUF[case]
    (tmp_path / "m.gguf").write_bytes(data)
    start = time.process_time()
    found = check(tmp_path / "m.gguf").problems
    assert found and cause in found[0].cause and str(found[0]).isprintable(), found
    assert time.process_time() - start < 1


def test_metadata_has_types(tmp_path):
    (tmp_path / "m.gguf").write_bytes(header([ARCHITECTURE, text("llama.attention.key_length") + struct.pack("<I", 8) + text("64")]))
    assert_refused(tmp_path / "m.gguf", "attention.key_length", "must be a valid integer, not '64'")


def split(path, parts, count=None, numbers=None, total=None):
    """A GGUF file cut into files, as its own tools do."""
    from gguf import GGUFReader

    reader, data = GGUFReader(path), path.read_bytes()
    tensors, kv = list(reader.tensors), [f for f in reader.fields.values() if not f.name.startswith("GGUF.")]
    values = [data[f.offset : f.offset + sum(len(p.tobytes()) for p in f.parts)] for f in kv]
    for index in range(parts):
        mine, body, infos = tensors[index::parts], b"", []
        for t in mine:
            infos.append(info(t.name, [int(d) for d in t.shape], int(t.tensor_type), len(body)))
            raw = data[t.data_offset : t.data_offset + t.n_bytes]
            body += raw + bytes(-len(raw) % 32)
        number = (numbers or range(parts))[index]
        mark = [text("split.no") + struct.pack("<IH", 2, number), text("split.count") + struct.pack("<IH", 2, count or parts),
                text("split.tensors.count") + struct.pack("<Ii", 5, len(tensors) if total is None else total)]  # fmt: skip
        name = path.with_name(f"s-{index + 1:05d}-of-{parts:05d}.gguf")
        name.write_bytes(padded(header([*values, *mark] if index == 0 else mark, infos), body))
    return path.with_name(f"s-00001-of-{parts:05d}.gguf")


def test_split_gguf_is_read_whole(tmp_path):
    w = weights(LLAMA)
    path = gguf(tmp_path / "m.gguf", LLAMA, w)
    first = split(path, 3)
    whole, parts = open_checkpoint(path), open_checkpoint(first)
    assert parts.spec.shape == LLAMA and parts.tensors.keys() == whole.tensors.keys()
    assert all((parts.tensors[name].data == whole.tensors[name].data).all() for name in whole.tensors)
    second = first.with_name("s-00002-of-00003.gguf")
    assert_refused(second, "s-00002", "file 2 of a model in 3 files")
    assert "s-00001-of-00003.gguf" in check(second).problems[0].fix
    other = first.rename(tmp_path / "other.gguf")
    assert_refused(other, "other.gguf", "under another name")
    other.rename(first)
    third = first.with_name("s-00003-of-00003.gguf")
    third.rename(third.with_name(third.name + ".part"))
    assert_refused(first, "s-00003", "download is not finished")
    third.with_name(third.name + ".part").unlink()
    assert_refused(first, "s-00003", "no such file: the model is in 3 files")


@pytest.mark.parametrize(
    "options, cause",
    [({"numbers": [0, 2, 1]}, "says that it is file 3 of 3"), ({"total": 5}, "tensors, not 5"), ({"count": 4}, "under another name")],
)
def test_split_gguf_that_contradicts_itself(tmp_path, options, cause):
    assert_refused(split(gguf(tmp_path / "m.gguf"), 3, **options), "s-0000", cause)


# A head beside the embedding ---------------------------------------------------------------------


def test_a_head_of_its_own_is_used_although_the_config_says_tied(tmp_path):
    w = weights(TINY)
    path = hugging_face(tmp_path / "own", TINY, w, tied=False, config={"tie_word_embeddings": True})
    checkpoint = open_checkpoint(path)
    assert not checkpoint.spec.tied_embeddings and (checkpoint.head() == w["head"]).all()
    assert any("a head of their own" in note for note in checkpoint.spec.notes)
    for head in (w["embedding"], w["embedding"].astype(np.float64)):
        path = hugging_face(tmp_path / head.dtype.name, TINY, w, tensors={"lm_head.weight": head})
        assert open_checkpoint(path).spec.tied_embeddings and check(path).ok
    path = hugging_face(tmp_path / "short", TINY, w, tensors={"lm_head.weight": w["head"][:-1]})
    assert_refused(path, "lm_head.weight", "has shape [69, 32]")


# The activation ----------------------------------------------------------------------------------

BITNET = dataclasses.replace(LLAMA, sub_norms=True, activation="relu2")


@pytest.mark.parametrize(
    "values, chosen, got",
    [
        ({}, None, "relu2"),
        ({}, "silu", "silu"),
        ({"hidden_activation": "silu"}, None, "silu"),
        ({"hidden_activation": "silu"}, "silu", "silu"),
        ({"hidden_act": "swish"}, None, "silu"),
        ({"feed_forward_activation": "silu"}, None, "silu"),
        ({"activation_function": "silu", "hidden_act": "relu2"}, None, "hidden_act: contradicts bitnet-b1.58.activation_function"),
        ({"ffn_act": "gelu"}, None, "bitnet-b1.58.ffn_act: 'gelu' is not supported"),
        ({"hidden_activation": "silu"}, "relu2", "activation: 'relu2' contradicts the file's hidden_activation, silu"),
        ({"hidden_activation": "silu", "hidden_act": "relu2"}, None, "hidden_activation: contradicts hidden_act"),
        ({"hidden_activation": "gelu"}, None, "hidden_activation: 'gelu' is not supported"),
        ({}, "gelu", "activation: 'gelu' is not supported"),
        ({"architecture": "bitnet"}, None, "activation: the file does not say"),
        ({"architecture": "bitnet", "hidden_activation": "relu2"}, None, "relu2"),
        ({"architecture": "bitnet"}, "silu", "silu"),
    ],
)
def test_activation_of_a_gguf_file(tmp_path, values, chosen, got):
    architecture = values.get("architecture", "bitnet-b1.58")
    fields = {f"{architecture}.{name}": value for name, value in values.items() if name != "architecture"}
    path = gguf(tmp_path / "m.gguf", BITNET, architecture=architecture, fields=fields)
    if ":" not in got:
        assert open_checkpoint(path, activation=chosen).spec.shape.activation == got
        return
    with pytest.raises(CheckpointError) as error:
        open_checkpoint(path, activation=chosen)
    assert got in str(error.value)


def test_activation_of_a_folder(tmp_path):
    path = hugging_face(tmp_path / "a", config={"hidden_act": None})
    assert open_shape(path).shape.activation == "relu2" and open_shape(path, activation="silu").shape.activation == "silu"
    path = hugging_face(tmp_path / "b", config={"hidden_act": "silu"})
    assert open_shape(path).shape.activation == "silu"
    with pytest.raises(CheckpointError, match="contradicts the file's hidden_act, silu"):
        open_shape(path, activation="relu2")
