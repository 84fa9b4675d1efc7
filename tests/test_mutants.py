"""The list of mutations is of this source, and the stored run of this list (`make mutants` is that run)."""

import pytest

import mutants
from mutants import MUTANTS, Mutant, NotFound

QUICK = "tests/rtl/"
"""Tests of a unit."""


def test_every_mutation_applies_and_has_its_tests():
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 66
    for mutant in MUTANTS:
        assert mutant.find() and mutant.line != mutant.change and "\n" not in mutant.line + mutant.change, mutant.name
        assert bool(mutant.nodes()) != bool(mutant.equivalent), f"{mutant.name}: tests or a reason"


def test_every_room_of_rtl_has_mutations():
    rooms = {path.parent for path in (mutants.ROOT / "rtl").rglob("*.py")}
    assert {mutant.find().parent for mutant in MUTANTS} == rooms


def test_what_is_not_there_once_is_an_error(tmp_path):
    (tmp_path / "rtl" / "head").mkdir(parents=True)
    (tmp_path / "rtl" / "head" / "one.py").write_text("a = 1\nb = 2\n")
    (tmp_path / "rtl" / "head" / "other.py").write_text("b = 2\n")
    assert Mutant("name", "head", "a = 1", "a = 2").find(tmp_path).name == "one.py"
    for line, where in (("b = 2", "one.py 1 times, .*other.py 1 times"), ("c = 3", "nowhere"), (" = ", "one.py 2 times")):
        with pytest.raises(NotFound, match=f"must stand once in rtl/head, and stands .*{where}"):
            Mutant("name", "head", line, "").find(tmp_path)
    with pytest.raises(NotFound, match="not one file test_nothing.py"):
        mutants.node("test_nothing::test_it")
    with pytest.raises(NotFound, match="has no test_nothing"):
        mutants.node("test_mutants::test_nothing[1]")


def test_the_stored_run_is_of_this_list():
    """Run `make mutants` when this fails: what is changed, or what should see it, is another."""
    results = mutants.stored()
    assert {name: result["key"] for name, result in results.items()} == {m.name: m.key for m in MUTANTS if not m.equivalent}
    for name, result in results.items():
        assert result["killed_by"], f"{name} survives"
        mutants.node(result["killed_by"].partition(", after")[0])


def test_units_tests_see_nearly_all():
    quick = [m for m in MUTANTS if m.tests and all(node.startswith(QUICK) for node in m.nodes())]
    assert len(quick) >= 0.95 * len(MUTANTS)
