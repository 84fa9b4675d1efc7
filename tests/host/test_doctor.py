"""The doctor finds what is here and names a remedy for what is not."""

import shutil
import stat

import pytest

from tritloom.host import doctor
from tritloom.host.cli import main

pytestmark = pytest.mark.compiles  # the doctor asks Verilator and tries the compiler


@pytest.mark.needs("amaranth", "torch", "cocotb")
def test_this_environment_is_healthy():
    rows = doctor.findings()
    assert [row for row in rows if not row["ok"]] == []
    assert {"python", "g++", "numpy", "amaranth", "verilator", "torch", "yosys runs", "verilator runs"} <= {row["name"] for row in rows}


def test_missing_things_come_with_a_remedy(monkeypatch):
    have = doctor.version
    monkeypatch.setattr(doctor, "_pinned", lambda: [("numpy", "0.0.1", ""), ("no-such-package", "1.2", "build")])
    monkeypatch.setattr(shutil, "which", lambda name: None if name in ("g++", "perl") else f"/usr/bin/{name}")
    monkeypatch.setenv("YOSYS", "/nowhere/yosys")
    rows = {row["name"]: row for row in doctor.findings()}
    assert rows["numpy"]["ok"] and rows["numpy"]["detail"] == f"{have('numpy')} (tried with 0.0.1)"
    assert not rows["g++"]["ok"] and rows["g++"]["required"] and rows["g++"]["fix"] == "apt install g++"
    assert rows["make"]["ok"]
    assert not rows["no-such-package"]["required"] and "pip install no-such-package==1.2" in rows["no-such-package"]["fix"]
    assert not rows["yosys runs"]["ok"] and "/nowhere/yosys" in rows["yosys runs"]["detail"]


def test_a_compiler_named_by_the_environment_counts(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler -m64")
    row = next(row for row in doctor.findings() if row["name"] == "g++")
    assert not row["ok"] and "no-such-compiler" in row["detail"]


@pytest.mark.needs("verilator")
def test_a_compiler_that_does_not_compile_is_none(monkeypatch, tmp_path):
    compiler = tmp_path / "clang++"
    compiler.write_text("#!/bin/sh\necho \"fatal error: 'cstdint' file not found\" >&2; exit 1\n")
    compiler.chmod(compiler.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CXX", str(compiler))
    row = next(row for row in doctor.findings() if row["name"] == "g++")
    assert not row["ok"] and "cstdint" in row["detail"]


def test_requirements_are_those_of_this_python(monkeypatch):
    lines = ["numpy==2.4.6; python_version >= '3.11'", 'numpy==2.2.6; python_version < "3.11"', "rich==15.0.0",
             'typer==0.29.1; python_version < "3.11" and extra == "plain"', "tritloom[plain]; extra == 'test'"]
    monkeypatch.setattr(doctor, "requires", lambda _: lines)
    for version, expected in (((3, 10), [("numpy", "2.2.6", ""), ("rich", "15.0.0", ""), ("typer", "0.29.1", "plain")]),
                              ((3, 13), [("numpy", "2.4.6", ""), ("rich", "15.0.0", "")])):
        monkeypatch.setattr(doctor.sys, "version_info", (*version, 0, "final", 0))
        assert doctor._pinned() == expected


def test_what_is_not_installed_as_a_package_is_not_called_complete(monkeypatch):
    monkeypatch.setattr(doctor, "_pinned", list)
    row = next(row for row in doctor.findings() if row["name"] == "tritloom")
    assert not row["ok"] and row["required"] and "pip install" in row["fix"]


@pytest.mark.parametrize("missing, says", [
    ((), ["all that `tritloom run` needs is here"]),
    ((("pyosys", "gen"), ("perl", "sim")), ["`tritloom run --backend emulator` works", "generate, GGUF files (pyosys)", "machine (perl)"]),
    ((("numpy", ""),), ["`tritloom run` cannot work yet"]),
    ((("torch", "test"),), ["all that `tritloom run` needs is here", "not complete: make test (torch)"]),
])
def test_the_last_lines_say_what_works(monkeypatch, capsys, missing, says):
    def row(name, part, ok):
        return {"name": name, "ok": ok, "detail": "", "fix": "", "needed_for": doctor.PURPOSES[part], "required": part in doctor.NEEDED}

    rows = [row("rich", "", True), *(row(name, part, False) for name, part in missing)]
    monkeypatch.setattr("tritloom.host.commands.doctor.findings", lambda: rows)
    assert main(["doctor"]) == int(any(part in doctor.NEEDED for _, part in missing))
    out = capsys.readouterr().out
    assert all(text in out for text in says)
