"""What reaches the command line and what it writes: encodings, closed and full streams, pipes, and names that nothing has."""

import io
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tritloom.host.cli import main
from tritloom.host.commands.verify import float_rows, short_list_rows
from tritloom.host.console import Console
from tritloom.host.image import open_image, write_image

MODEL = Path(__file__).resolve().parents[2] / "models" / "stories-260k"
pytestmark = pytest.mark.usefixtures("environment")
TRITLOOM = [sys.executable, "-m", "tritloom.host.cli"]
RUN = ["run", "--model", str(MODEL), "--backend", "emulator", "--context", "64", "--tokens", "3"]


def one_line(err):
    assert err.startswith("tritloom: ") and err.count("\n") == 1 and "Traceback" not in err and "internal" not in err
    return err


# Encodings ---------------------------------------------------------------------------------------------


def as_the_shell_gives(data: bytes) -> str:
    return data.decode("ascii", "surrogateescape")


def test_a_prompt_is_utf_8_whatever_the_locale(tritloom, tmp_path):
    """In the POSIX locale Python takes each byte that is not ASCII for a lone surrogate."""
    wanted = json.loads(tritloom(*RUN, "--prompt", "é 漢", "--json")[1])
    assert json.loads(tritloom(*RUN, "--prompt", as_the_shell_gives("é 漢".encode()), "--json")[1])["tokens"] == wanted["tokens"]
    for data, where in ((b"Hi \xff there", "byte 0xff at 3"), (b"\xc3", "byte 0xc3 at 0"), (b"\xed\xa0\x80", "byte 0xed at 0")):
        status, out, err = tritloom(*RUN, "--prompt", as_the_shell_gives(data))
        assert status == 2 and out == "" and "the prompt is not UTF-8: " + where in one_line(err)
        (tmp_path / "file").write_bytes(data)
        status, _, err = tritloom(*RUN, "--prompt-file", tmp_path / "file")
        assert status == 2 and f"{tmp_path / 'file'} is not UTF-8: {where}" in one_line(err)


def test_a_foreign_byte_elsewhere_is_one_line(tritloom, tmp_path):
    for arguments in (("fit", "--model", "m\udcff"), ("fit", MODEL, "--set", "l\udcff=2"), ("f\udcff",), ("fit", "--\udcff"),
                      (*RUN, "--board", "\udcff"), ("run", MODEL, "--timing", "\udcff")):  # fmt: skip
        status, out, err = tritloom(*arguments)
        assert status == 2 and out == "" and "\\udcff" in one_line(err), arguments
        assert json.loads(tritloom(*arguments, "--json")[1])["status"] == 2
    folder = tmp_path / as_the_shell_gives(b"model \xff")
    folder.symlink_to(MODEL)
    assert tritloom("check", folder)[0] == 0


@pytest.mark.slow
@pytest.mark.parametrize("encoding, shown", [("latin-1", "\\u6f22 é"), ("ascii", "\\u6f22 \\xe9"), ("utf-8", "漢 é")])
def test_terminals_of_any_encoding(monkeypatch, encoding, shown):
    out, err = io.BytesIO(), io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding=encoding))
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(err, encoding=encoding))
    assert main([*RUN, "--prompt", "漢 é"]) == 0
    assert out.getvalue().decode(encoding).startswith(shown)
    assert main(["fit", str(MODEL), "--board", "sim"]) == 0
    assert main(["fit", "--board", "漢"]) == 2


def test_our_own_characters_have_plain_forms():
    assert "3 × 5 µs → 漢".encode("ascii", "tritloom.plain") == b"3 x 5 us -> \\u6f22"


# Texts from files and stdin ------------------------------------------------------------------------------


def test_prompts_from_stdin_and_files(tritloom, tmp_path, monkeypatch):
    file = tmp_path / "prompt"
    file.write_bytes(b"\xef\xbb\xbfOnce upon\r\n")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Tom had\n\n")))
    status, out, _ = tritloom(*RUN, "--prompt", "-", "--prompt-file", file, "--prompt", "One", "--json")
    assert status == 0 and [text["prompt"] for text in json.loads(out)["texts"]] == ["Tom had\n", "One", "Once upon"]
    assert "give it once" in one_line(tritloom(*RUN, "--prompt", "-", "--prompt", "-")[2])
    monkeypatch.setattr(sys, "stdin", None)
    assert "stdin is closed" in one_line(tritloom(*RUN, "--prompt", "-")[2])
    file.write_bytes(b"\n")
    assert "the prompt is empty" in one_line(tritloom(*RUN, "--prompt-file", file)[2])
    for wrong in (tmp_path, tmp_path / "missing"):
        status, _, err = tritloom(*RUN, "--prompt-file", wrong)
        assert status == 2 and str(wrong) in one_line(err)


# Streams -------------------------------------------------------------------------------------------------


def shell(command, **variables):
    """A command line in which T stands for tritloom; (status, stdout, stderr)."""
    line = f'T() {{ "{sys.executable}" -m tritloom.host.cli "$@"; }}; set -o pipefail; {command}'
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=300, env=os.environ | variables)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.slow
def test_streams_that_are_closed_or_full(tmp_path):
    status, _, err = shell("T --help >&-")
    assert status == 1 and "stdout is closed" in one_line(err)
    status, _, err = shell("T --help > /dev/full")
    assert status == 1 and "No space left on device" in one_line(err)
    assert shell("T fit --model x 2>&-; echo $?; T fit --model x --json 2>/dev/full < /dev/null | head -c 1; T --help >&- 2>&-; echo $?") \
        == (0, "2\n{1\n", "")  # fmt: skip
    status, out, err = shell("T --help | head -n 1")
    assert out.startswith("Usage") and err == "" and status in (0, 1)


def test_a_dumb_terminal_has_plain_lines(monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    for term, bar in (("xterm", True), ("dumb", False), ("unknown", False), ("", False), (None, False)):
        monkeypatch.delenv("TERM", raising=False)
        if term is not None:
            monkeypatch.setenv("TERM", term)
        assert Console().terminal is bar


@pytest.mark.slow
@pytest.mark.parametrize("variables", [{"NO_COLOR": "1"}, {"COLUMNS": "4", "LINES": "1"}, {"COLUMNS": "0"}, {"PYTHONIOENCODING": "ascii"}])
def test_progress_on_terminals_of_any_kind(variables):
    code = ("import time; from tritloom.host.console import *; prepare_streams()\n"
            "with Console().step('Packing [/x]') as update: update(1, 4, 'a [b]'); time.sleep(0.2)")  # fmt: skip
    leader, follower = pty.openpty()
    environment = os.environ | {"TERM": "xterm-256color"} | variables
    subprocess.run([sys.executable, "-c", code], stdout=follower, stderr=follower, check=True, timeout=60, env=environment)
    shown = os.read(leader, 1 << 20).decode()
    os.close(leader)
    os.close(follower)
    assert "Traceback" not in shown and ("\x1b[3" not in shown.replace("\x1b[38", "\x1b[3") or "NO_COLOR" not in variables)
    if variables.get("PYTHONIOENCODING"):
        assert shown.isascii() and "\\u" not in shown


# Names that nothing has ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "/nowhere", "--board", "kv206"), "no board called 'kv206' (did you mean kv260?): choose "),
        (("run", "/nowhere", "--timing", "dddr"), "no memory timing called 'dddr' (did you mean ddr?): choose ideal, ddr"),
        (("run", "/nowhere", "--timing", "ddr", "--backend", "emulator"), "--timing is that of the simulated memory"),
        (("bench", "--model", str(MODEL), "--timing", "kv206"), "did you mean kv260?"),
        (("bench", "--model", str(MODEL), "--timing", "kv206", "--context", "40"), "did you mean kv260?"),
        (("fit", "/nowhere", "--set", "lane=2"), "no field called 'lane' (did you mean lanes?)"),
        (("fit", "/nowhere", "--set", "lanes=2", "--set", "lanes=3"), "lanes is set twice"),
        (("fit", "/nowhere", "--set", "lanes=" + "9" * 50), "lanes is a number"),
        (("fit", "/nowhere", "--set", "lanes=" + "9" * 5000), "--set lanes: 5,006 characters are more than any field and value have"),
        (("fit", "/nowhere", "--set", "lanes=²"), "lanes is a number"),
        (("generate", "/nowhere", "--out", "x", "--board", "KV260"), "did you mean kv260?"),
        (("pack", "/nowhere", "--out", "x", "--board", "sims"), "did you mean sim?"),
        (("verify", "/nowhere", "--board", "sims"), "did you mean sim?"),
        (("verify", "/nowhere", "--set", "tabels=2"), "did you mean tables?"),
        (("fit", "bitnet_b1_58_large"), "did you mean bitnet_b1_58-large?"),
    ],
)
def test_unknown_names_are_refused_before_anything_is_read(tritloom, arguments, message):
    status, out, err = tritloom(*arguments)
    assert status == 2 and out == "" and message in one_line(err)


def test_board_files_that_do_not_run(tritloom, tmp_path):
    file = tmp_path / "board.py"
    for content in ("BOARD = 1 / 0", "BOARD = (", "raise SystemError('no')", "", "BOARD = 3"):
        file.write_text(content)
        status, _, err = tritloom("fit", MODEL, "--board", file)
        assert status == 2 and str(file) in one_line(err)


@pytest.mark.parametrize("content", ["[]", "3", "null", "[" * 5000, '{"shape": []}', '{"lanes": NaN}', "\ufeff{}", "{"])
def test_configurations_that_are_none(tritloom, tmp_path, content):
    file = tmp_path / "config.json"
    file.write_text(content)
    status, _, err = tritloom(*RUN, "--config", file)
    assert status == 2 and str(file) in one_line(err) and "tritloom generate" in err


# Images --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["--config", "--prompt-file"])
def test_a_file_without_end_is_refused_at_once(tritloom, tmp_path, option):
    with (tmp_path / "large").open("wb") as large:
        large.truncate(8 << 30)
    for file in ("/dev/zero", tmp_path / "large"):
        status, out, err = tritloom(*RUN, option, file)
        assert (status, out) == (2, "") and f"{file}: more than" in one_line(err)


@pytest.mark.slow
def test_an_image_is_run_without_its_checkpoint(tritloom, tmp_path):
    image = tmp_path / "story.img"
    assert tritloom("pack", MODEL, "--context", 64, "--set", "sequences=2", "--out", image)[0] == 0
    run = ("run", "--image", image, "--backend", "emulator", "--tokens", 5, "--json")
    for prompts in (("--prompt", "Tom"), ("--prompt", "Tom", "--prompt", "One day")):
        with_model = json.loads(tritloom(*RUN[:-2], "--tokens", 5, "--json", *prompts)[1])
        with_image = json.loads(tritloom(*run, *prompts)[1])
        assert with_image.get("tokens") == with_model.get("tokens")
        assert [t["tokens"] for t in with_image.get("texts", ())] == [t["tokens"] for t in with_model.get("texts", ())]
    opened = open_image(image)
    assert opened.stop_ids == tuple(opened.spec["eos_ids"]) != ()
    for more in (("--model", MODEL), (MODEL,), ("--set", "lanes=2"), ("--context", 9), ("--i2s", "x86"), ("--config", image)):
        assert "leave MODEL" in one_line(tritloom(*run[:-1], *more)[2])
    assert "is for board sim: leave --board kv260 out" in one_line(tritloom(*run[:-1], "--board", "kv260")[2])
    assert "past the context of 64" in one_line(tritloom("run", "--image", image, "--tokens", 64, "--prompt", "Tom had")[2])
    for wrong in (tmp_path, tmp_path / "missing", MODEL / "config.json"):
        status, _, err = tritloom("run", "--image", wrong)
        assert status == 2 and str(wrong) in one_line(err)


@pytest.mark.parametrize("changes, section, message", [
    ({"eos_ids": None}, None, "which tokens end a text"), ({"eos_ids": [-1]}, None, "eos_ids: token -1 is not in the vocabulary"),
    ({"eos_ids": [True]}, None, "eos_ids: token True is not in the vocabulary"), ({"bos_id": 1 << 40}, None, "bos_id: token 1099511627776"),
    ({}, b"{}", "the tokenizer in"),
])  # fmt: skip
def test_an_image_that_lacks_something_says_so(tritloom, tmp_path, changes, section, message):
    good, bad = tmp_path / "good.img", tmp_path / "bad.img"
    assert tritloom("pack", MODEL, "--context", 64, "--out", good)[0] == 0
    image = open_image(good)
    sections = [(name, image.section(name), part.address) for name, part in image.table.items()]
    if section is not None:
        sections = [(name, np.frombuffer(section, np.uint8) if name == "tokenizer" else data, address) for name, data, address in sections]
    write_image(bad, config=image.config, spec={k: v for k, v in (image.spec | changes).items() if v is not None}, sections=sections)
    status, _, err = tritloom("run", "--image", bad, "--backend", "emulator")
    assert status == 2 and message in one_line(err) and str(bad) in err


# verify --------------------------------------------------------------------------------------------------


def test_verify_prints_numbers_that_a_person_reads():
    found = {"reference": "transformers 5 X, float32", "stories": 3, "tokens": 15041,
             "perplexity": 3.980612345, "integer_perplexity": 3.98141,
             "argmax_agreement": 0.98604, "argmax_floor": 0.9917, "max_logit_error": 0.5812345, "mean_logit_error": 0.0441234,
             "perplexity_change": 0.0002004}  # fmt: skip
    assert float_rows(found) == [
        ("float model", "transformers 5 X, float32; 15,041 tokens of 3 texts"),
        ("perplexity", "float 3.9806, integer 3.9814 (+0.020 %)"), ("same likeliest token", "98.60 % of the tokens"),
        ("float model, rounded", "agrees with itself at 99.17 % of the tokens"), ("error of a logit", "mean 0.0441, worst 0.581"),
    ]  # fmt: skip
    missed = {"shortlist": 256, "stories": 3, "tokens": 2000, "missed": 3, "worst_rank": 1300, "mean_rank": 1.26789, "disagreement": 0.0015}
    assert short_list_rows(missed)[0][1] == "misses the int8 head's choice 3 times in 2,000 tokens (0.150 %) of 3 texts"


def test_a_text_to_verify_with_must_be_text(tritloom, tmp_path):
    (tmp_path / "text").write_bytes(b"Once \xff")
    status, _, err = tritloom("verify", MODEL, "--text", tmp_path / "text")
    assert status == 2 and "byte 0xff at 5" in one_line(err)
