"""Settings that every test shares, and what is left out where only the plain package is installed (make plain)."""

import ast
import functools
import importlib.util
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
