"""tritloom flash, with a stand-in for openFPGALoader."""

import json
import re
import stat

import pytest

from tritloom.gen.tools import bitstream
from tritloom.host.cli import main

LOADER = """#!/bin/sh
echo "$@" >> {said}
echo "first line"
echo "{text}"
exit {status}
"""


@pytest.fixture
def folder(tmp_path):
    built = tmp_path / "built"
    built.mkdir()
    (built / "report.json").write_text(json.dumps({"board": "ulx3s"}))
    (built / "machine.bit").write_bytes(b"bits")
    return built


@pytest.fixture
def loader(tmp_path, monkeypatch):
    def make(status=0, text="Done"):
        program = tmp_path / "loader"
        program.write_text(LOADER.format(said=tmp_path / "said", status=status, text=text))
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setattr(bitstream, "tool", lambda name: str(program))
        return tmp_path / "said"

    return make


@pytest.mark.parametrize("words, option", [((), "-m"), (("--keep",), "-f")])
def test_the_loader_is_given_board_and_bitstream(folder, loader, words, option, capsys):
    said = loader()
    assert main(["flash", str(folder), *words]) == 0
    assert said.read_text() == f"-b ulx3s {option} {folder / 'machine.bit'}\n"
    assert "ULX3S" in capsys.readouterr().err
    (folder / "model.image").write_bytes(b"")
    assert main(["flash", str(folder)]) == 0
    assert f"next: tritloom run --image {folder / 'model.image'} --backend uart --port PORT" in capsys.readouterr().err


def test_a_gowin_s_bitstream_has_another_name(folder, loader):
    said = loader()
    (folder / "report.json").write_text(json.dumps({"board": "tang-nano-20k"}))
    (folder / "machine.bit").rename(folder / "machine.fs")
    assert main(["flash", str(folder)]) == 0
    assert said.read_text() == f"-b tangnano20k -m {folder / 'machine.fs'}\n"


def test_what_the_loader_says_is_shown(folder, loader, capsys):
    loader(1, "unable to open ftdi device")
    assert main(["flash", str(folder)]) == 1
    assert "first line unable to open ftdi device; check the cable" in capsys.readouterr().err


@pytest.mark.parametrize("change, message", [
    (lambda folder: (folder / "machine.bit").unlink(), "machine.bit: missing; the build did not meet its clock, see"),
    (lambda folder: (folder / "report.json").unlink(), "no report.json of a build is there; give the folder of `tritloom build --out`"),
    (lambda folder: (folder / "report.json").write_text("[]"), "not what `tritloom build` writes; build again"),
    (lambda folder: (folder / "report.json").write_text('{"board": "ecp5-85f"}'), "board ecp5-85f has no pins wired"),
    (lambda folder: (folder / "report.json").write_text('{"board": "mine"}'), "mine.*give the path of a board file"),
])
def test_what_cannot_be_flashed(folder, loader, change, message, capsys):
    said = loader()
    change(folder)
    assert main(["flash", str(folder)]) == 2
    assert re.search(message, capsys.readouterr().err) and not said.exists()


def test_a_build_for_another_board_is_refused(folder, loader, capsys):
    said = loader()
    assert main(["flash", str(folder), "--board", "kv260"]) == 2
    assert "is for board ulx3s, not kv260: leave --board kv260 out" in capsys.readouterr().err and not said.exists()
