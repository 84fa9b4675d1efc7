"""What README.md and docs/ print can be typed: commands are parsed, the cheap ones run, the Python example runs as it stands."""

import io
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tritloom.host.cli import main, verbs

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), ROOT / "models" / "README.md"]
TEXT = "\n".join(page.read_text("utf-8") for page in PAGES)


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.M | re.S)


COMMANDS = [shlex.split(line, comments=True) for block in blocks("sh") for line in block.splitlines()]
TRITLOOM = [words[1:] for words in COMMANDS if words[:1] == ["tritloom"]]
NAMED = [shlex.split(text)[1:] for text in re.findall(r"`(tritloom [a-z][^`]*)`", TEXT) if "..." not in text and " -" in text]
"""Commands within the text."""
RUN = [words for words in TRITLOOM if words[0] == "run"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with the models, as a clone has them."""
    (tmp_path / "models").symlink_to(ROOT / "models")
    (tmp_path / "prompt.txt").write_text("One day")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRITLOOM_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("words", TRITLOOM + NAMED, ids=" ".join)
def test_commands_parse(words, here):
    arguments = words[: words.index("<")] if "<" in words else words
    arguments = [{"SHAPE": "bitnet_b1_58-large", "M": "models/stories-1m"}.get(word, word) for word in arguments]
    group = verbs()
    with group.make_context("tritloom", list(arguments)) as context:
        name, verb, rest = group.resolve_command(context, list(arguments))
        verb.make_context(name, rest).close()


def test_every_verb_is_shown():
    assert {words[0] for words in TRITLOOM} >= set(verbs().commands)


QUICK = [words for words in TRITLOOM if words[0] in ("check", "models", "boards") or words[0] == "fit" and "models/stories-1m" in words]


@pytest.mark.slow
@pytest.mark.parametrize("words", QUICK, ids=" ".join)
def test_what_takes_seconds_runs(words, here, capsys):
    assert main(words) == 0 and capsys.readouterr().out


@pytest.mark.slow
def test_texts_and_images_on_the_emulator(here, capsys, monkeypatch):
    """The lines of `pack` and `run` as they stand, in their order, but for the backend and the number of tokens."""
    for words in TRITLOOM:
        if words[0] == "pack":
            assert main(words) == 0
        if words[0] == "run" and not {"--vcd", "--port"} & set(words):  # waves are the simulation's, ports are boards'
            if "<" in words:
                monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(Path(words[-1]).read_bytes())))
                words = words[: words.index("<")]
            words = [word for n, word in enumerate(words) if "--tokens" not in words[max(n - 1, 0) : n + 1]]
            assert main([*words, "--tokens", "2", "--backend", "emulator"]) == 0
    assert len(RUN) >= 4 and "Once upon a time" in capsys.readouterr().out


@pytest.mark.slow
def test_the_drafts_example_gains_what_it_says(here, capsys):
    ((words, passes),) = [(shlex.split(line, comments=True)[1:], re.search(r"(\d+) tokens in (\d+) passes", line))
                          for block in blocks("sh") for line in block.splitlines() if "--drafts" in line]
    assert passes and main([*words, "--backend", "emulator", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert len(data["tokens"]) == int(passes[1]) and abs(data["passes"] - int(passes[2])) <= 1 and int(passes[1]) > 2 * int(passes[2])


@pytest.mark.slow
def test_the_python_example_runs_as_printed(here):
    (pack,) = [words for words in TRITLOOM if words[0] == "pack"]
    assert main(pack) == 0
    (example,) = blocks("python")
    run = subprocess.run([sys.executable, "-c", example], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    text, tokens = run.stdout.rsplit("\n", 2)[0], run.stdout.splitlines()[-1]
    assert len(text) > 80 and re.fullmatch(r"\d+ tokens", tokens)


def test_make_knows_what_is_named():
    targets = set(re.findall(r"^([a-z-]+):(?!=)", (ROOT / "Makefile").read_text("utf-8"), re.M))
    named = re.findall(r"`make ([a-z-]+)", TEXT) + [words[1] for words in COMMANDS if words[:1] == ["make"]]
    assert set(named) <= targets and {"demo", "test"} <= set(named)


def test_links_lead_somewhere():
    for page in [*PAGES, *sorted(ROOT.glob("docs/decisions/*.md")), *sorted(ROOT.glob("docs/boards/*.md"))]:
        for link in re.findall(r"\]\((?!https?:)([^)#\s]+)", page.read_text("utf-8")):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_the_front_page_is_one_screen_and_a_half():
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 90


def test_every_decision_has_a_status_and_stands_in_the_list():
    index = (ROOT / "docs" / "decisions" / "README.md").read_text("utf-8")
    for page in sorted(ROOT.glob("docs/decisions/0*.md")):
        assert f"({page.name})" in index and re.search(r"^\*\*Status\.\*\* \w", page.read_text("utf-8"), re.M), page.name
