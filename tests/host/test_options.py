"""One set of options: every verb that opens a model takes what its files leave open, in the same words."""

import ast
import dataclasses
import json
import re
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from synthetic import LLAMA, gguf, gguf_i2s, hugging_face, weights
from tritloom.gen.models.gguf import I2S_BLOCKS
from tritloom.gen.source import Source
from tritloom.host.cli import verbs
from tritloom.host.commands.common import SourceOptions
from tritloom.host.image import open_image

ROOT = Path(__file__).resolve().parents[2]
BITNET = dataclasses.replace(LLAMA, sub_norms=True, activation="relu2")
VERBS = verbs().commands
OPTIONS = {name: {option for parameter in verb.params for option in parameter.opts} for name, verb in VERBS.items()}
SOURCE = {"--model", "--activation", "--i2s", "--tokenizer"}


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    monkeypatch.setenv("TRITLOOM_CACHE", str(tmp_path / "cache"))


def test_every_verb_that_opens_a_model_takes_the_same_words():
    others = {"boards", "cache", "flash", "models"}
    assert {name for name, options in OPTIONS.items() if "--model" in options} == set(VERBS) - others
    for name, options in OPTIONS.items():
        assert SOURCE <= options or not SOURCE & options, name
    fields = {f.name for f in dataclasses.fields(SourceOptions)}
    assert fields == {f.name for f in dataclasses.fields(Source)}
    assert {"--" + name for name in fields - {"folder"}} == SOURCE
    assert set(get_args(get_args(get_type_hints(SourceOptions)["i2s"])[0])) == set(I2S_BLOCKS)


@pytest.mark.slow
@pytest.mark.needs("gguf")
@pytest.mark.parametrize("words, make", [
    (("--i2s", "arm"), lambda path: gguf_i2s(path, BITNET, weights(BITNET), block=64)),
    (("--activation", "relu2"), lambda path: gguf(path, BITNET, weights(BITNET), architecture="bitnet")),
])
def test_what_a_gguf_file_leaves_open_is_said_to_any_verb(tritloom, tmp_path, words, make):
    path = make(tmp_path / "m.gguf")
    verbs = {
        "check": ("check", path), "fit": ("fit", "--model", path),
        "run": ("run", path, "--backend", "emulator", "--prompt", "w3", "--tokens", 2),
        "pack": ("pack", "--model", path, "--out", tmp_path / "image"),
    }  # fmt: skip
    for verb, arguments in verbs.items():
        status, out, err = tritloom(*arguments)
        assert status == 2 and words[0] in out + err, verb
        assert tritloom(*arguments, *words)[0] == 0, verb
        assert tritloom(*arguments, words[0], "abacus")[0] == 2, verb


@pytest.mark.needs("gguf")
def test_another_layout_is_not_answered_from_the_cache(tritloom, tmp_path):
    path = gguf_i2s(tmp_path / "m.gguf", BITNET, weights(BITNET), block=64)
    for layout in ("arm", "x86", "arm"):
        assert tritloom("run", path, "--backend", "emulator", "--prompt", "w3", "--tokens", 1, "--i2s", layout)[0] == 0
    images = [open_image(each) for each in (tmp_path / "cache" / "images").iterdir()]
    assert len({image.section("weights").tobytes() for image in images}) == len(images) == 2


def test_a_tokenizer_elsewhere(tritloom, tmp_path):
    folder = hugging_face(tmp_path / "m")
    elsewhere = (folder / "tokenizer.json").rename(tmp_path / "t.json")
    run = ("run", folder, "--backend", "emulator", "--prompt", "w3", "--tokens", 2)
    assert tritloom("check", folder)[0] == tritloom(*run)[0] == 2
    assert tritloom("check", folder, "--tokenizer", elsewhere)[0] == tritloom(*run, "--tokenizer", elsewhere)[0] == 0
    assert tritloom("check", folder, "--no-tokenizer")[0] == tritloom("fit", folder)[0] == 0
    elsewhere.write_text(elsewhere.read_text().replace('"w3": 3', '"w3": 5').replace('"w5": 5', '"w5": 3'))
    assert tritloom(*run, "--tokenizer", elsewhere)[0] == 0
    first, second = (json.loads(tritloom(*run[:-4], "--prompt", word, "--tokens", 1, "--tokenizer", elsewhere, "--json")[1])["tokens"]
                     for word in ("w3", "w5"))  # fmt: skip
    assert first != second


@pytest.mark.parametrize("words", [("--i2s", "x86"), ("--activation", "silu")])
def test_what_does_not_concern_a_model_is_refused(tritloom, tmp_path, words):
    folder = hugging_face(tmp_path / "m")
    for path in (folder, "bitnet_b1_58-large"):
        status, out, err = tritloom("fit", path, *words)
        assert status == 2 and words[0] in err and "leave" in err
    status, _, err = tritloom("fit", gguf(tmp_path / "n.gguf"), *words)
    assert (status == 2 and "leave --i2s out" in err) if words[0] == "--i2s" else status == 0


def test_a_shape_has_no_text(tritloom):
    status, _, err = tritloom("run", "bitnet_b1_58-large")
    assert status == 2 and "a shape without weights" in err
    err = tritloom("fit", "bitnet_b1_58-larg")[2]
    assert "no model called" in err and "`tritloom models` lists" in err


@pytest.mark.parametrize("verb", sorted(set(VERBS) - {"boards", "cache", "doctor", "flash", "models"}))
def test_a_model_is_named_once(tritloom, verb):
    needed = ("--out", "x") if "--out" in OPTIONS[verb] else ()
    for arguments in ((), ("one", "--model", "two")):
        status, _, err = tritloom(verb, *needed, *(("--board", "sim") if verb in ("build", "board-sim") else ()), *arguments)
        assert status == 2 and err.startswith("tritloom: ") and ("give one model" in err or "give --model" in err)


# What messages advise ----------------------------------------------------------------------------------

FOREIGN = ("pip install", "verilator", "yosys", "python3")
"""Programs of others: what messages say of their options is theirs."""


def advised(source: str):
    """Options named in the texts of a module: no docstrings, and no arguments of other programs, which stand alone."""
    tree = ast.parse(source)
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs and " " in node.value:
            text = node.value
            if not any(name in text for name in FOREIGN):
                yield from ((option, node.lineno) for option in re.findall(r"(?<![\w:;{-])(?<!var\()--[a-z][\w-]*", text))


@pytest.mark.slow
def test_no_message_advises_an_option_that_does_not_exist():
    known = set().union(*OPTIONS.values(), {"--debug", "--version", "--help"})
    found = set()
    for folder in ("boards", "firmware", "gen", "host", "sim"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            found |= {(option, f"{path.relative_to(ROOT)}:{line}") for option, line in advised(path.read_text("utf-8"))}
    assert len(found) > 50 and not {(option, where) for option, where in found if option not in known}


def test_an_option_that_does_not_exist_would_be_seen():
    assert [*advised('raise X(f"name it (--tokeniser {x})")\n"""--doc string"""\nf(["--freq", "x"])')] == [("--tokeniser", 1)]
