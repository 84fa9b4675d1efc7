"""Compiled loops are kept, and taken only as they were sealed: numba trusts what it finds."""

import shutil
from typing import Any

import pytest

pytestmark = pytest.mark.needs("numba")

INDEX, CODE = "gen_1/loops.nbi", "gen_1/loops.nbc"


@pytest.fixture
def fetch(tmp_path):
    """Gives whether loops were compiled; a stand-in for numba."""
    from tritloom.gen import loops

    def run(place=tmp_path / "loops" / "key"):
        compiled = []

        def compile_in(folder):
            if folder is None or not (folder / INDEX).exists():
                compiled.append(folder)
                if folder is not None:
                    (folder / INDEX).parent.mkdir(parents=True)
                    (folder / INDEX).write_text("index")
                    (folder / CODE).write_text("code")

        place.parent.mkdir(exist_ok=True)
        loops._fetch(place, compile_in)
        return compiled

    run.place = tmp_path / "loops" / "key"
    return run


@pytest.mark.parametrize("damage", [
    lambda place: (place / INDEX).write_text(""),
    lambda place: (place / CODE).write_text("cod"),
    lambda place: (place / CODE).unlink(),
    lambda place: (place / "gen_1/sealed.json").unlink(),
    lambda place: (place / "gen_1/sealed.json").write_text("{"),
    lambda place: shutil.rmtree(place / "gen_1"),
    lambda place: (place / "stray").write_text(""),
], ids=["index", "code", "code gone", "no seal", "seal", "empty", "stray"])
def test_what_is_not_as_it_was_sealed_is_compiled_again(fetch, damage):
    assert len(fetch()) == 1 and fetch() == []
    damage(fetch.place)
    assert len(fetch()) == 1 and fetch() == []
    assert [each.name for each in fetch.place.parent.iterdir()] == ["key"]


def test_without_room_they_are_compiled_for_this_process(fetch, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tritloom.gen.loops.scratch", full)
    assert fetch() == [None] and fetch() == [None]


class Removals:
    """Removes folders, and says whether `watched` was one."""

    def __init__(self, watched):
        self.watched, self.removed, self._remove = watched, False, shutil.rmtree

    def __call__(self, path, *arguments, **named):
        self.removed |= path == self.watched
        self._remove(path, *arguments, **named)


def test_another_process_may_be_first(fetch, monkeypatch):
    from tritloom.gen import loops

    seal = loops.seal

    def slow(inside):
        seal(inside)
        shutil.copytree(inside.parent, fetch.place)

    monkeypatch.setattr(loops, "seal", slow)
    monkeypatch.setattr(shutil, "rmtree", remove := Removals(fetch.place))
    assert len(fetch()) == 1 and fetch() == [] and not remove.removed


def test_what_is_cleared_while_it_is_read_is_compiled_again(fetch):
    from tritloom.gen import loops

    assert len(fetch()) == 1
    folders = []

    def compile_in(folder):
        folders.append(folder)
        if folder == fetch.place:
            shutil.rmtree(folder)
            raise FileNotFoundError(folder)
        (folder / INDEX).parent.mkdir(parents=True)
        (folder / INDEX).write_text("index")

    loops._fetch(fetch.place, compile_in)
    assert len(folders) == 2 and (fetch.place / INDEX).exists()


def test_other_arrays_are_refused():
    import numpy as np

    from tritloom.gen import loops

    blocks: Any = np.zeros((2, 18), np.uint8)
    with pytest.raises(TypeError, match="No matching definition"):
        loops.codes_of_blocks(blocks, np.zeros((2, 2), np.uint64), np.zeros(2, np.uint16))
