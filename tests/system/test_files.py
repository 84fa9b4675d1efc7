"""Files that are whole or not there, scratch folders that do not outlive their process, and what is kept."""

import errno
import os
import pwd
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tritloom.system import files
from tritloom.system.files import CacheWarning, cache, keep, kept, replaced, scratch, seal, sound, sweep, write_atomically


def test_files_are_replaced_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "new" / "folder"
    with pytest.raises(ZeroDivisionError), replaced(folder / "a") as place:
        place.write_text("half")
        _ = 1 / 0
    assert list(tmp_path.iterdir()) == []
    write_atomically(folder, {"a": "one", "b": b"two"})
    wrong: Any = {"a": "other", "b": 3}
    with pytest.raises(TypeError):
        write_atomically(folder, wrong)
    assert {path.name: path.read_text() for path in folder.iterdir()} == {"a": "one", "b": "two"}
    assert (folder / "a").stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_full_disk_names_the_file_and_leaves_nothing(tmp_path):
    """A limit on the size of files stands for it: the error differs, its way does not."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    (tmp_path / "image").write_text("old")
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    try:
        with pytest.raises(OSError) as caught, replaced(tmp_path / "image") as place, open(place, "wb") as file:
            file.write(bytes(1 << 20))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.errno == errno.EFBIG and caught.value.filename == str(tmp_path / "image")
    assert [path.name for path in tmp_path.iterdir()] == ["image"] and (tmp_path / "image").read_text() == "old"


@pytest.mark.parametrize("place", ["file/x", "file/x/y", "folder"])
def test_what_cannot_be_written_is_named(tmp_path, place):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder" / "x").mkdir(parents=True)
    with pytest.raises(OSError) as caught, replaced(tmp_path / place) as at:
        at.write_text("new")
    assert str(tmp_path / place.split("/")[0]) in str(caught.value.filename) and files.PREFIX not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_what_a_killed_process_left_is_swept(tmp_path):
    code = ("import os, sys, pathlib; from tritloom.system.files import scratch\n"
            "with scratch(pathlib.Path(sys.argv[1])) as folder:\n    (folder / 'half').write_text('x'); print('ready', flush=True)\n"
            "    sys.stdin.read()")  # fmt: skip
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    with scratch(tmp_path) as own:
        sweep(tmp_path)
        assert own.exists() and len(list(tmp_path.iterdir())) == 2, "a running process keeps its folder"
        process.kill()
        process.communicate()
        sweep(tmp_path)
        assert list(tmp_path.iterdir()) == [own.parent]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_a_lock_is_swept_when_it_is_old(tmp_path):
    young, old, other = tmp_path / ".tritloom-a", tmp_path / ".tritloom-b", tmp_path / "mine"
    for each in (young, old, other):
        each.mkdir()
    then = time.time() - 2 * files.OLD_S
    os.utime(old, (then, then))
    sweep(tmp_path)
    assert young.exists() and other.exists() and not old.exists()


def test_what_is_kept_is_checked(tmp_path):
    path = tmp_path / "a.v"
    assert kept(path) is None
    keep(path, b"module")
    assert kept(path) == b"module"
    path.write_bytes(b"modul")
    assert kept(path) is None
    folder = tmp_path / "machine"
    folder.mkdir()
    (folder / "a.so").write_bytes(b"code")
    assert not sound(folder)
    seal(folder)
    assert sound(folder)
    (folder / "a.so").write_bytes(b"cod")
    assert not sound(folder)
    (folder / "a.so").unlink()
    assert not sound(folder)
    (folder / files.SEAL).write_text("[]")
    assert not sound(folder)


def test_damaged_files_of_a_sealed_folder(tmp_path):
    for name in "abc":
        (tmp_path / name).write_text(name)
    assert files.damaged(tmp_path) == []
    seal(tmp_path)
    (tmp_path / "d").write_text("newer than the seal")
    assert files.damaged(tmp_path) == []
    (tmp_path / "a").write_text("")
    (tmp_path / "b").unlink()
    assert sorted(files.damaged(tmp_path)) == [tmp_path / "a", tmp_path / "b"]
    (tmp_path / files.SEAL).write_text("{")
    assert files.damaged(tmp_path) == [tmp_path / files.SEAL]
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a", "c", "d", files.SEAL]


@pytest.fixture
def private(monkeypatch):
    monkeypatch.setattr(files, "_instead_at", {})
    monkeypatch.setattr(files, "_instead", None)


@pytest.mark.skipif(sys.platform != "linux", reason="the user's cache folder is another one")
@pytest.mark.parametrize("environment, place", [
    ({"TRITLOOM_CACHE": "/t", "XDG_CACHE_HOME": "/x"}, "/t"), ({"XDG_CACHE_HOME": "/x"}, "/x/tritloom"), ({}, "/h/.cache/tritloom"),
    ({"XDG_CACHE_HOME": ""}, "/h/.cache/tritloom"), ({"XDG_CACHE_HOME": "relative/is/void"}, "/h/.cache/tritloom"),
], ids=lambda value: value if isinstance(value, str) else "-".join(value))  # fmt: skip
def test_the_place_of_the_cache(monkeypatch, environment, place):
    for name in ("TRITLOOM_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in ({"HOME": "/h"} | environment).items():
        monkeypatch.setenv(name, value)
    assert files.cache_root() == Path(place)


@pytest.mark.parametrize("root", ["file", "file/x", "/proc/x", None])
def test_without_a_cache_folder_a_private_one_does(monkeypatch, tmp_path, private, root):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(files.tempfile, "tempdir", str(tmp_path))
    if root is None:
        monkeypatch.delenv("TRITLOOM_CACHE", raising=False)
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.delenv("HOME", raising=False)
        monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)
    else:
        monkeypatch.setenv("TRITLOOM_CACHE", root if root[0] == "/" else str(tmp_path / root))
    with pytest.warns(CacheWarning, match="set TRITLOOM_CACHE") as warned:
        folder = cache("images")
        assert cache("images") == folder and folder.is_dir() and len(warned) == 1
    assert files._instead is not None
    files._instead.close()
    assert not folder.exists() and [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_read_only_cache_folder(monkeypatch, tmp_path, private):
    monkeypatch.setenv("TRITLOOM_CACHE", str(tmp_path))
    monkeypatch.setattr(files.os, "access", lambda *_: False)
    with pytest.warns(CacheWarning, match="images: not writable"):
        assert tmp_path not in cache("images").parents
    assert files._instead is not None
    files._instead.close()


def test_sizes_and_clearing(tmp_path):
    for name in ("images/a.img", "verilated/m/a.so", "verilated/m/b/c", "mine/file"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(bytes(10))
    assert files.sizes(tmp_path) == {"images": (1, 10), "verilated": (2, 20)}
    with scratch(tmp_path / "images") as running:
        for kind in files.sizes(tmp_path):
            files.clear(tmp_path, kind)
        assert running.exists()
    assert files.sizes(tmp_path) == {"images": (0, 0), "verilated": (0, 0)} and (tmp_path / "mine" / "file").exists()
    shutil.rmtree(tmp_path / "mine")
