"""The plain package: driver, emulator and command line, with what generator and simulator need kept out of reach."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tritloom.host import cli
from tritloom.sim import traffic
from tritloom.sim.compile import BOARD, MACHINE

pytestmark = pytest.mark.slow  # a process a command

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "models" / "stories-260k"
HIDDEN = sorted({*cli.EXTRAS, "cocotb", "safetensors", "scipy"})
WITHOUT = f"import sys; sys.modules.update(dict.fromkeys({HIDDEN})); from tritloom.host.cli import main; sys.exit(main(sys.argv[1:]))"
"""The command line of an installation that has none of them."""


@pytest.fixture
def tritloom(tmp_path, monkeypatch):
    """Runs a command far from the sources; gives exit status, stdout and stderr."""
    monkeypatch.setenv("TRITLOOM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("VERILATOR_ROOT", raising=False)

    def run(*arguments):
        command = [sys.executable, "-c", WITHOUT, *map(str, arguments)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        return done.returncode, done.stdout, done.stderr

    return run


def test_a_model_becomes_an_image_and_text(tritloom, tmp_path):
    assert tritloom("check", MODEL)[0] == 0
    assert tritloom("fit", "--model", "bitnet_b1_58-large", "--board", "kv260")[0] == 0
    assert tritloom("pack", "--model", MODEL, "--context", 64, "--out", "story.img")[0] == 0
    texts = []
    for source in (("--image", "story.img"), ("--model", MODEL, "--context", 64)):
        status, out, _ = tritloom("run", *source, "--backend", "emulator", "--tokens", 6, "--json")
        assert status == 0
        texts.append(json.loads(out)["tokens"])
    assert len(texts[0]) == 6 and texts[0] == texts[1]


@pytest.mark.parametrize("arguments, extra", [
    (("generate", "--model", MODEL, "--out", "machine"), "gen"),
    (("build", "--model", MODEL, "--board", "ecp5-85f", "--out", "machine"), "gen"),
    (("run", "--model", MODEL), "gen"),
    (("pack", "--model", MODEL.with_name("stories-4m-g128"), "--board", "kv260", "--out", "story.img"), "gen"),  # by groups
    (("verify", "--model", MODEL, "--tokens", "2", "--float-tokens", "0"), "gen"),
    (("bench", "--model", MODEL, "--tokens", "1"), "gen"),
    (("bench", "--unit", "tlmm", "--synth"), "gen"),
], ids=lambda value: value[0] if isinstance(value, tuple) else "")
def test_what_needs_more_names_the_extra(tritloom, arguments, extra):
    status, out, err = tritloom(*arguments)
    line = [line for line in err.splitlines() if line.startswith("tritloom:")]
    assert (status, out) == (1, "") and len(line) == 1 and f"pip install 'tritloom[{extra}]'" in line[0]


def test_its_tests_are_collected(tmp_path):
    """As `make plain` collects them: the package is elsewhere, without docs/, and the packages that it does without are missing."""
    shutil.copytree(ROOT / "src" / "tritloom", tmp_path / "tritloom", ignore=shutil.ignore_patterns("__pycache__", "docs"))
    hidden = sorted({*HIDDEN, "cocotb_tools", "sentencepiece", "torch", "transformers"})
    script = (f"import sys; sys.modules.update(dict.fromkeys({hidden})); import pytest, tritloom.firmware; "
              f"assert tritloom.firmware.__file__.startswith({str(tmp_path)!r}); "
              "sys.exit(pytest.main(['-q', '--collect-only', '-p', 'no:cacheprovider', 'tests']))")
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True,
                          text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "tests/firmware/test_packing.py" in done.stdout and "tests/rtl/test_tlmm.py" not in done.stdout.partition("left out:")[0]


def test_doctor_says_what_is_missing(tritloom):
    status, out, _ = tritloom("doctor")
    assert status in (0, 1) and "Traceback" not in out


def test_the_simulator_s_sources_are_in_the_package():
    assert all(path.is_file() for path in (*MACHINE.paths, *BOARD.paths, *traffic.SOURCES))


def test_every_file_of_the_package_that_is_no_python_is_declared():
    tomllib = pytest.importorskip("tomllib")  # Python 3.10 has none
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]["package-data"]
    for folder in ("boards", "firmware", "gen", "host", "rtl", "sim"):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and path.suffix not in (".py", ".pyc"):
                name = path.relative_to(ROOT)
                patterns = settings.get(".".join(("tritloom", *name.parent.parts)), ())
                assert any(path.match(pattern) for pattern in patterns), f"{name} would not be in the wheel"
