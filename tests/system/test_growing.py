"""Files that grow piece by piece: what is whole is gone on with, whatever ended the process."""

import errno
import resource
import subprocess
import sys
import zlib

import pytest

from tritloom.system.growing import JOURNAL, PARTIAL, clear, growing

PIECES = [bytes([n]) * (1000 + n) for n in range(5)]
WHOLE = b"head" + bytes(4) + b"".join(PIECES)


def write(path, key="key", fail_at=None, made=None):
    """Write the pieces; the error comes when that one is made. `made`: takes the numbers of those that are."""

    def make(n):
        if n == fail_at:
            raise KeyboardInterrupt
        if made is not None:
            made.append(n)
        return PIECES[n]

    with growing(path, key) as file:
        if file.noted is None:
            file.note({"decided": 1})
        at, crc = 8, 0
        for n, piece in enumerate(PIECES):
            crc, _ = file.piece(at, len(piece), crc, lambda n=n: make(n))
            at += len(piece)
        assert crc == zlib.crc32(b"".join(PIECES)) and file.noted == {"decided": 1}
        file.end(b"head", at)


@pytest.fixture
def half(tmp_path):
    """The path of a file with three of its pieces."""
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "image", fail_at=3)
    assert [path.name for path in tmp_path.iterdir()] == ["image" + PARTIAL]
    return tmp_path / "image"


def finished(path, **options):
    """The numbers of the pieces that are made when it is written again."""
    made = []
    write(path, made=made, **options)
    assert path.read_bytes() == WHOLE and [each.name for each in path.parent.iterdir()] == ["image"]
    return made


def test_what_is_there_is_not_made_again(half):
    assert finished(half) == [3, 4]


def test_another_key_begins_anew(half):
    with growing(half, "other") as file:
        assert file.others and file.noted is None
        file.note(1)
        file.piece(0, 3, 0, lambda: b"new")
        file.end(b"", 3)
    assert half.read_bytes() == b"new"


@pytest.mark.parametrize("damage, made", [
    (lambda data, journal: (data[:-1], journal), [2, 3, 4]),
    (lambda data, journal: (data + b"torn", journal), [3, 4]),
    (lambda data, journal: (data[:1500] + b"?" + data[1501:], journal), [1, 2, 3, 4]),
    (lambda data, journal: (b"", journal), [0, 1, 2, 3, 4]),
    (lambda data, journal: (data, journal[:-1]), [2, 3, 4]),
    (lambda data, journal: (data, journal[:-9]), [2, 3, 4]),
    (lambda data, journal: (data, journal + b'[1, "'), [3, 4]),
    (lambda data, journal: (data, journal.replace(b"1001", b"1002")), [1, 2, 3, 4]),
    (lambda data, journal: (data, journal[:3]), [0, 1, 2, 3, 4]),
    (lambda data, journal: (data, b""), [0, 1, 2, 3, 4]),
])
def test_nothing_is_trusted_that_is_not_whole(half, damage, made):
    folder = half.with_name("image" + PARTIAL)
    files = folder / "image", folder / JOURNAL
    for file, content in zip(files, damage(*(file.read_bytes() for file in files)), strict=True):
        file.write_bytes(content)
    with pytest.raises(KeyboardInterrupt):
        write(half, fail_at=made[-1])  # twice interrupted
    assert finished(half) == made[-1:]


def test_a_full_disk_leaves_what_is_whole(half):
    """A limit on the size of files stands for it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4500, before[1]))
    try:
        with pytest.raises(OSError) as caught:
            write(half)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.errno == errno.EFBIG and caught.value.filename == str(half)
    assert finished(half) == [4]


def test_a_second_process_makes_it_apart_and_clearing_leaves_it(half):
    with growing(half, "key") as file:
        made = []
        write(half, made=made)
        assert made == [0, 1, 2, 3, 4] and half.read_bytes() == WHOLE
        clear(half.parent.parent, half.parent.name)
        assert file.piece(8, 1000, 0, lambda: b"")[1]  # its pieces are still there
        file.end(b"", 1)
    assert half.read_bytes() == bytes(1)


def test_clearing_removes_what_nobody_makes(half):
    clear(half.parent.parent, half.parent.name)
    assert list(half.parent.iterdir()) == []


def test_a_killed_process(tmp_path):
    script = ("import os, signal, sys; from pathlib import Path; from tritloom.system.growing import growing\n"
              "with growing(Path(sys.argv[1]), 'key') as file:\n"
              "    file.note({'decided': 1}); file.piece(8, 1000, 0, lambda: bytes(1000)); os.kill(os.getpid(), signal.SIGKILL)")
    assert subprocess.run([sys.executable, "-c", script, tmp_path / "image"]).returncode < 0
    assert finished(tmp_path / "image") == [1, 2, 3, 4]


def test_without_a_key_nothing_stays(tmp_path):
    with pytest.raises(ZeroDivisionError), growing(tmp_path / "new" / "image") as file:
        file.note(1)
        file.piece(0, 3, 0, lambda: b"new")
        _ = 1 / 0
    assert list(tmp_path.iterdir()) == []
