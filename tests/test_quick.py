"""`make quick` leaves out the tests that compile a simulation, and fails one that does it unseen."""

import importlib
import os

import pytest

import conftest
import harness
from tritloom.gen import verilator
from tritloom.sim.compile import compile_verilog


def helper(text):
    return [compile_verilog(each, "name") for each in text]


def by_module():
    harness.run(None, "name", __name__)


def by_helper():
    return lambda: helper("")


def not_at_all():
    return harness.describe(8), verilator.MAKE_VARIABLES


@pytest.mark.parametrize("function, compiles", [(by_module, True), (helper, True), (by_helper, True), (not_at_all, False)])
def test_tests_that_compile_are_told_by_what_they_call(function, compiles):
    assert conftest.calls(function, frozenset(conftest.COMPILING)) is compiles


@pytest.mark.parametrize("module, name", sorted(conftest.COMPILING | conftest.LONG | conftest.MACHINES))
def test_what_is_told_by_its_name_has_it(module, name):
    assert getattr(importlib.import_module(module), name).__module__ == module


def test_a_quick_test_that_calls_verilator_fails_and_is_told_the_mark(monkeypatch):
    monkeypatch.setattr(verilator, "root", verilator.root)
    monkeypatch.setenv("VERILATOR_ROOT", "")
    conftest.forbid_verilator()
    with pytest.raises(pytest.fail.Exception, match="mark it `@pytest.mark.compiles`"):
        verilator.environment()
    assert not os.path.exists(os.environ["VERILATOR_ROOT"])  # what a process that a test starts is told
