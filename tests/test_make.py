"""The Makefile on a machine that lacks something: one line that says what to do, and no environment half made."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


@pytest.fixture
def clone(tmp_path):
    """A folder with the Makefile, in a path with spaces."""
    folder = tmp_path / "a new clone"
    (folder / "tools").mkdir(parents=True)
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    return folder


def tool(clone, name, script):
    path = clone / "tools" / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return f"tools/{name}"


def python(clone, version, *, venv="mkdir -p $3/bin && cp $0 $3/bin/python", pip="exit 0"):
    """A Python of that version which makes environments of itself and installs nothing."""
    major, minor = version.split(".")
    answers = f"""case "$*" in
  *"sys.exit(sys.version_info < (3, 10))") exit $(({minor} < 10));;
  *"sys.exit(sys.version_info < (3, 11))") exit $(({minor} < 11));;
  *"print("*) echo {version};;
  "-m venv"*) {venv};;
  "-m pip"*) {pip};;
esac"""
    return tool(clone, f"python{version}", answers)


def make(clone, *arguments):
    """Exit status and both outputs."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHON" and not name.startswith(("MAKE", "MFLAGS"))}
    run = subprocess.run(["make", "--no-print-directory", *arguments], cwd=clone, env=environment, stdout=subprocess.PIPE,
                         stderr=subprocess.STDOUT, text=True, timeout=60)
    return run.returncode, run.stdout


@pytest.mark.parametrize("target, arguments, says", [
    ("demo", {"version": "3.9"}, "Python 3.10 or newer is needed"),
    ("test", {"version": "3.10"}, "The tests need Python 3.11 or newer"),
    ("demo", {"version": "3.12", "venv": "mkdir -p $3; exit 1"}, "apt-get install python3-venv"),
    ("demo", {"version": "3.12", "pip": "echo ERROR: no route to host >&2; exit 1"}, "is there a network"),
])
def test_what_is_missing_is_said(clone, target, arguments, says):
    status, out = make(clone, target, f"PYTHON={python(clone, **arguments)}")
    assert status and says in out
    if "venv" in arguments:
        assert not (clone / ".venv").exists()


def test_a_python_that_is_not_there(clone):
    status, out = make(clone, "demo", "PYTHON=python3.99")
    assert status and "python3.99 is missing" in out


def test_an_environment_of_another_python_is_not_taken(clone):
    assert make(clone, ".venv/.stamp-python", f"PYTHON={python(clone, '3.12')}") == (0, "")
    status, out = make(clone, "demo", f"PYTHON={python(clone, '3.13')}")
    assert status and ".venv is of Python 3.12, not of tools/python3.13: make distclean first" in out
    assert make(clone, ".venv/.stamp-python", "PYTHON=tools/python3.12") == (0, "")


def test_every_python_that_the_plain_package_was_not_tested_with_is_named(clone):
    status, out = make(clone, "plain-others", "OLDEST=python3.98", "NEWEST=python3.99")
    assert status == 0 and re.findall(r"skipped: the plain package was not tested on (\S+),", out) == ["python3.98", "python3.99"]
