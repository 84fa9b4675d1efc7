"""Wrong inputs to every verb: one line, status 2, nothing built and nothing written; with --json one document."""

import dataclasses
import errno
import json
import os
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from synthetic import LLAMA, hugging_face
from tritloom.gen.kit import core
from tritloom.gen.tools import bitstream, parts
from tritloom.host import console as console_module
from tritloom.host.cli import explain, main, verbs
from tritloom.sim import backends, prepare
from tritloom.sim.check import verify

MODEL = Path(__file__).resolve().parents[2] / "models" / "stories-260k"
NEEDED = {
    "check": (), "fit": (), "generate": ("--out", "{out}"), "build": ("--board", "ecp5-85f", "--out", "{out}"), "pack": ("--out", "{out}"),
    "run": ("--backend", "emulator"), "verify": (), "bench": (),
}  # fmt: skip
OPTIONS = {verb: {o: p for p in verbs().commands[verb].params for o in p.opts} for verb in NEEDED}
NUMBERS = [(verb, option) for verb in NEEDED for option, p in OPTIONS[verb].items()
           if {"int", "float"} & set(str(p.type_descriptor.annotation).replace("[", " ").replace("]", " ").replace("'>", " ").split())
           or p.type_descriptor.annotation in (int, float)]  # fmt: skip
UNBOUNDED = {("run", "--temperature"), ("verify", "--float-tokens")}
"""Where a huge number is right: any temperature is one, and of tokens there are so many at most."""


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("TRITLOOM_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(console_module, "QUIET_SECONDS", 3600)

    def heavy(*_, **__):
        raise AssertionError("something was built")

    for place, name in ((prepare, "open_simulation"), (backends.SimBackend, "build"), (bitstream, "generate_verilog"),
                        (core, "generate_core"), (parts, "synthesise"), (verify, "pack"), (prepare, "write_image_of")):  # fmt: skip
        monkeypatch.setattr(place, name, heavy)


@pytest.fixture
def place(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder.gguf").mkdir()
    for name, content in (("empty", ""), ("empty.gguf", ""), ("text", "hello"), ("text.gguf", "hello" * 20)):
        (tmp_path / name).write_text(content)
    return tmp_path


def refused(capsys, place, verb, *arguments):
    """What was said of a command that must be refused; nothing is left beside it."""
    before = sorted(path.name for path in place.iterdir())
    pairs = zip(NEEDED[verb][::2], NEEDED[verb][1::2], strict=True)
    needed = [each.format(out=place / "out") for pair in pairs if pair[0] not in arguments for each in pair]
    given = [verb, *map(str, arguments), *needed]
    status = main(given)
    out, err = capsys.readouterr()
    assert status == 2, (given, status, err)
    if verb != "check" or err:  # check's findings are its result
        assert out == "" and err.startswith("tritloom: ") and err.count("\n") == 1 and "internal" not in err, (given, out, err)
    assert main([*given, "--json"]) == 2
    data = json.loads(capsys.readouterr().out)
    assert ("error" in data and data["status"] == 2) or data["problems"]
    assert sorted(path.name for path in place.iterdir()) == before
    return out + err


@pytest.mark.parametrize("verb", NEEDED)
def test_models_that_are_none(capsys, place, verb):
    for name in ("missing", "missing.gguf", "empty", "empty.gguf", "folder", "folder.gguf", "text", "text.gguf"):
        assert name.removesuffix(".gguf") in refused(capsys, place, verb, "--model", place / name)
    refused(capsys, place, verb, "--model", "")
    if verb not in ("fit", "generate", "build"):
        for name in ("missing", "empty", "folder", "text"):
            assert name in refused(capsys, place, verb, MODEL, "--tokenizer", place / name)


ODD = dataclasses.replace(LLAMA, ffn=544)
"""Of vectors that have no groups."""


def biased(folder, weights=True):
    """A model whose query and key matrices add a bias; without weights, its description."""
    names = [f"model.layers.0.self_attn.{name}.bias" for name in ("q_proj", "k_proj", "v_proj", "o_proj")]
    lengths = ODD.q_size, ODD.kv_size, ODD.kv_size, ODD.hidden
    biases: dict[str, Any] = {name: np.ones(length, np.float32) for name, length in zip(names, lengths, strict=True)}
    path = hugging_face(folder, ODD, form="ternary", config={"quantization_config": None, "attention_bias": True}, tensors=biases)
    if not weights:
        (path / "model.safetensors").unlink()
    return path


@pytest.mark.parametrize("verb", [verb for verb in NEEDED if verb != "check"])
def test_models_that_no_machine_computes(capsys, place, verb):
    """One line, the same from every verb; nothing is packed, fitted or built."""
    line = "has biases (q_proj, k_proj, v_proj, o_proj), which take inputs in groups of 64, but of hidden (256), queries (256) and ffn"
    assert f"biased {line}" in refused(capsys, place, verb, "--model", biased(place / "biased"))
    if verb in ("fit", "generate", "build", "bench"):
        assert f"described {line}" in refused(capsys, place, verb, "--model", biased(place / "described", weights=False))


def test_models_that_no_machine_computes_are_checked(capsys, place):
    whole, described = biased(place / "biased"), biased(place / "described", weights=False)
    for model, result in ((whole, "no machine computes it yet"), (described, "description alone")):
        assert main(["check", str(model)]) == 0
        out = capsys.readouterr().out
        assert "q_proj, k_proj, v_proj, o_proj" in out and "not all are multiples" in out and result in out
        assert main(["check", str(model), "--json"]) == 0
        data = json.loads(capsys.readouterr().out)
        assert data["ok"] and not data["problems"] and data["no_machine"].endswith("take another model of `tritloom models`")
        assert data["spec"]["biases"] == ["q_proj", "k_proj", "v_proj", "o_proj"]
    assert main(["check", str(MODEL), "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert plain["no_machine"] is None and "group_size" not in plain["spec"]["shape"] and "biases" not in plain["spec"]


def test_models_with_scales_by_groups_are_checked(capsys):
    for model, result in ((MODEL.with_name("stories-4m-g128"), "ok"), ("Ternary-Bonsai-8B", "description alone")):
        assert main(["check", str(model)]) == 0
        out = capsys.readouterr().out
        assert "one for 128 inputs of a row, also in embedding and head" in out and "no machine" not in out and result in out
        assert main(["check", str(model), "--json"]) == 0
        data = json.loads(capsys.readouterr().out)
        assert data["ok"] and data["no_machine"] is None and data["spec"]["shape"]["group_size"] == 128


@pytest.mark.parametrize("verb, option", NUMBERS)
def test_numbers_that_are_none(capsys, place, verb, option):
    whole = "int" in str(OPTIONS[verb][option].type_descriptor.annotation)
    for value in ("x", "", "-1", "nan", *(["1e999", "0.5"] if whole else ["-inf"])):
        assert option in refused(capsys, place, verb, MODEL, option, value) or value in ("-1", "nan", "-inf")
    if (verb, option) not in UNBOUNDED:
        refused(capsys, place, verb, MODEL, option, "9" * 30)


@pytest.mark.parametrize("verb", [verb for verb in NEEDED if "--set" in OPTIONS[verb]])
def test_fields_and_boards_that_are_none(capsys, place, verb):
    for setting in ("lanes=x", "lanes=-1", "lanes=0", "lanes=" + "9" * 18, "lanes=", "=2", "wheels=2", "table_form=x", "ultra_ram=3"):
        assert setting.partition("=")[0] in refused(capsys, place, verb, MODEL, "--set", setting)
    for board in ("nothing", "", place / "missing.py", place / "folder"):
        assert str(board) in refused(capsys, place, verb, MODEL, "--board", board)
    if "--config" in OPTIONS[verb]:
        for name in ("missing", "empty", "folder", "text"):
            assert name in refused(capsys, place, verb, MODEL, "--config", place / name)


@pytest.mark.parametrize("verb, option", [(v, o) for v in NEEDED for o in ("--out", "--html") if o in OPTIONS[v]])
def test_places_that_cannot_be_written(capsys, place, verb, option):
    more = ("--stored",) if option == "--html" else (MODEL,)
    for name in ("text/x", "text/x/y", "/proc/nowhere/x", "x" * 300, "a/" * 3000 + "b"):
        refused(capsys, place, verb, *more, option, place / name)
    wrong = "text" if verb in ("generate", "build") else "folder"
    assert wrong in refused(capsys, place, verb, *more, option, place / wrong)


def test_images_and_texts_that_are_none(capsys, place):
    for name in ("missing", "empty", "folder", "text"):
        assert name in refused(capsys, place, "run", "--image", place / name)
    for name in ("missing", "folder"):
        assert name in refused(capsys, place, "run", MODEL, "--prompt-file", place / name)
        assert name in refused(capsys, place, "verify", MODEL, "--text", place / name)


def test_a_full_disk_is_status_1_and_names_the_place(capsys, place, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setenv("TRITLOOM_CACHE", str(place / "cache"))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    try:
        status = main(["pack", str(MODEL), "--context", "64", "--out", str(place / "new" / "story.img")])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    _, err = capsys.readouterr()
    assert status == 1 and f"tritloom: {place / 'new' / 'story.img'}: File too large; make room there" in err
    assert [path.name for path in (place / "new").iterdir()] == ["story.img.partial"] and "the same command continues" in err


@pytest.mark.parametrize("number, status", [
    (errno.ENOSPC, 1), (errno.EDQUOT, 1), (errno.EIO, 1), (errno.EROFS, 1), (errno.ENAMETOOLONG, 2), (errno.ENOTDIR, 2), (errno.EACCES, 2),
])
def test_errors_of_the_system_name_the_path(number, status):
    text, got = explain(OSError(number, os.strerror(number), "/a/" + "b" * 9000))
    assert got == status and text.startswith("/a/bbb") and len(text) < 400
    assert ("make room" in text) is (number in (errno.ENOSPC, errno.EDQUOT))


@pytest.mark.parametrize("given", [
    ("generate", "--model", MODEL, "--out", ""), ("generate", "--model", MODEL, "--out="), ("run", "--image", ""), ("run", ""),
    ("run", "--model", MODEL, "--prompt-file", ""), ("pack", "--model", MODEL, "--out", ""),
], ids=str)  # fmt: skip
def test_an_empty_path_is_not_the_current_folder(capsys, place, given):
    assert "is empty" in refused(capsys, place, *given)
