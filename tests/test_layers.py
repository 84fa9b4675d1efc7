"""Who may import what: the table of docs/architecture.md, held against the imports of every module, tests included; and no circles."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("boards", "firmware", "gen", "host", "rtl", "sim", "system", "tests")
OUTSIDE_WORLD = {"glob", "io", "os", "pathlib", "select", "shutil", "signal", "socket", "subprocess", "sys", "tempfile", "threading"}
"""Parts of the standard library that reach files, terminals and processes."""


@cache
def table() -> dict[str, set[str]]:
    """Of each place in the table (a folder, a room, a file), the places it may import besides itself."""
    rows = re.findall(r"^\| (`.*?) \|.*\| (.*?) \|$", (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"), re.M)
    found: dict[str, set[str]] = {}
    for places, allowed in rows:
        names = [name.rstrip("/") for name in re.findall(r"`([a-z_/.]+)`", places)]
        if names and (ROOT / names[0]).exists():
            own = set(re.findall(r"`([a-z_/.]+?)/?`", allowed)) | set(names)
            found |= dict.fromkeys(names, own)
    return found


@cache
def place_of(module: str) -> str:
    """The place of a module: the innermost one in the table."""
    path = Path(module)
    return next(str(place) for place in (path, *path.parents) if str(place) in table())


@dataclass(frozen=True, kw_only=True)
class Others:
    """Third parties that a place may import, `lazy` only inside functions. A pure place knows neither files nor terminals."""

    others: set[str]
    lazy: set[str] = field(default_factory=set)
    pure: bool = False


THIRD_PARTIES = {
    "rtl": Others(others={"amaranth", "numpy"}, pure=True),
    **{f"rtl/{room}parameters.py": Others(others=set(), pure=True)  # asked by gen/fit, in the plain package too
       for room in ("", "attention/", "control/", "head/", "link/", "memory/", "ternary/", "vector/")},
    "firmware": Others(others={"numpy"}, pure=True),
    "system": Others(others={"platformdirs"}),
    "boards": Others(others=set()),
    "gen": Others(others={"amaranth", "gguf", "numpy", "pydantic", "pyosys", "safetensors", "tokenizers"}),
    "gen/loops.py": Others(others={"numba", "numpy"}),
    "gen/fit/calibrate.py": Others(others={"numpy"}, lazy={"scipy"}),
    "gen/tools/litedram_core.py": Others(others=set(), lazy={"litedram", "litex"}),  # a process of its own
    "host": Others(others={"numpy", "rich", "serial", "tokenizers", "typer"}),
    "host/doctor.py": Others(others=set(), lazy={"find_libpython"}),  # asks the tools whether they run, cocotb's among them
    # A demo runs without PyTorch.
    "sim": Others(others={"filelock", "jinja2", "numpy"}, lazy={"amaranth", "safetensors", "tokenizers", "torch", "transformers"}),
}
LAZY = {"host": {"gen", "sim"}}
"""Places that import others of ours inside functions only: the command line starts without them."""
MAY_PRINT = {"gen/fit/calibrate.py", "host/cli.py", "host/console.py", "gen/tools/yosys.py"}
"""Commands and what they write with; all other code is a library."""


def modules(folders: tuple[str, ...] = FOLDERS) -> list[str]:
    return sorted(path.relative_to(ROOT).as_posix() for folder in folders for path in (ROOT / folder).rglob("*.py"))


@dataclass(frozen=True)
class Import:
    """`name` is dotted; `lazy`: inside a function; `typing`: only type checkers see it."""

    name: str
    line: int
    lazy: bool
    typing: bool


def imports(node: ast.AST, module: str, lazy: bool = False, typing: bool = False) -> Iterator[Import]:
    """What is imported below `node`; names of a package of ours are those of its modules where there are such modules."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, child.lineno, lazy, typing) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            package = ["tritloom", *Path(module).parent.parts]
            base = ".".join(package[: len(package) - child.level + 1]) + "." if child.level else ""
            name = (base + (child.module or "")).rstrip(".")
            for alias in child.names:
                inner = f"{name}.{alias.name}"
                yield Import(inner if name == "tritloom" or file_of(inner) else name, child.lineno, lazy, typing)
        else:
            inside = lazy or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            checked = typing or isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            yield from imports(child, module, inside, checked)


@cache
def file_of(name: str) -> str | None:
    """The file of a dotted name of ours, or of a test's helper."""
    first, *rest = name.split(".")
    stem = "/".join(rest) if first == "tritloom" else f"tests/{first}"
    return next((path for path in (f"{stem}.py", f"{stem}/__init__.py") if (ROOT / path).is_file()), None)


def violations(module: str, source: str) -> list[str]:
    """What `source`, as the file `module` of this tree, imports or calls and must not."""
    place, test = place_of(module), module.startswith("tests/")
    path, tree, found = Path(module), ast.parse(source), []
    others = next((THIRD_PARTIES[str(p)] for p in (path, *path.parents) if str(p) in THIRD_PARTIES), Others(others=set()))
    for each in imports(tree, module):
        top = each.name.partition(".")[0]
        if each.typing:
            continue
        if top == "tritloom":
            file = file_of(each.name) or file_of(each.name.rpartition(".")[0])
            target = place_of(file) if file else each.name
            allowed = each.name == "tritloom" or target in table()[place]
            allowed = allowed and (each.lazy or test or target not in LAZY.get(module.split("/")[0], ()))
        elif test:
            allowed = file_of(each.name) is None or "tests" in table()[place]
        elif top in sys.stdlib_module_names:
            allowed = not (others.pure and top in OUTSIDE_WORLD)
        else:
            allowed = top in others.others | (others.lazy if each.lazy else set())
        if not allowed:
            found.append(f"{module}:{each.line}: {'' if each.lazy else 'top-level '}import of {each.name}")
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and not test:
            if call.func.id == "print" and module not in MAY_PRINT:
                found.append(f"{module}:{call.lineno}: print in a library")
            if call.func.id in ("open", "input") and others.pure:
                found.append(f"{module}:{call.lineno}: {call.func.id} in {module.split('/')[0]}")
    return found


def test_every_module_imports_what_the_table_allows():
    assert set(FOLDERS) <= set(table()), "a folder has no row in docs/architecture.md"
    assert [line for module in modules() for line in violations(module, (ROOT / module).read_text(encoding="utf-8"))] == []


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Names that lead to each other, each such group once."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        order[name] = low[name] = len(order)
        stack.append(name)
        for other in sorted(edges.get(name, ())):
            if other not in order:
                visit(other)
            if other in stack:
                low[name] = min(low[name], low[other])
        if low[name] == order[name]:
            group = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(group) > 1:
                found.append(sorted(group))

    for name in sorted(edges):
        if name not in order:
            visit(name)
    return found


def test_no_circles():
    """Neither between modules, imports inside functions counted, nor between places, those for type checkers counted too."""
    between_modules: dict[str, set[str]] = {}
    between_places: dict[str, set[str]] = {}
    for module in modules():
        for each in imports(ast.parse((ROOT / module).read_text(encoding="utf-8")), module):
            file = file_of(each.name) or file_of(each.name.rpartition(".")[0])
            if file is None or file == module:
                continue
            if not each.typing:
                between_modules.setdefault(module, set()).add(file)
            if place_of(file) != place_of(module):
                between_places.setdefault(place_of(module), set()).add(place_of(file))
    assert circles(between_modules) == []
    assert circles(between_places) == []


def test_circles_are_seen():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]
    assert circles({"a": {"b", "c"}, "b": {"c"}}) == []


@pytest.mark.parametrize(
    "module, source",
    [
        ("rtl/ternary/tlmm.py", "from pathlib import Path"),
        ("rtl/ternary/tlmm.py", "import torch"),
        ("rtl/ternary/tlmm.py", "def f():\n    from tritloom.gen import pack"),
        ("rtl/ternary/tlmm.py", "from ...gen import pack"),
        ("rtl/ternary/tlmm.py", "from ... import host"),
        ("firmware/isa.py", "import amaranth.lib.data"),
        ("firmware/isa.py", "with open('x') as f: pass"),
        ("gen/pack.py", "from tritloom.sim import backends"),
        ("gen/pack.py", "from tritloom.host.image import open_image"),
        ("gen/pack.py", "print('done')"),
        ("host/session.py", "import amaranth"),
        ("host/session.py", "def f():\n    import tritloom.sim.backends"),
        ("host/session.py", "from tritloom.host.console import Console"),
        ("host/commands/run.py", "from tritloom.sim.backends import SimBackend"),
        ("sim/fidelity.py", "try:\n    import torch\nexcept ImportError:\n    pass"),
        ("sim/fidelity.py", "def f():\n    from tritloom.host.commands import common"),
        ("sim/fidelity.py", "from tritloom.host.cli import main"),
        ("tests/firmware/test_isa.py", "from tritloom.host import session"),
    ],
)
def test_violations_are_seen(module, source):
    assert len(violations(module, source)) == 1


@pytest.mark.parametrize(
    "module, source",
    [
        ("rtl/ternary/tlmm.py", "from .tables import Table\nfrom ...firmware import isa\nfrom tritloom import firmware\nimport math"),
        ("host/commands/run.py", "def f():\n    from tritloom.sim.backends import SimBackend"),
        ("host/commands/run.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from tritloom.gen.models.spec import ModelSpec"),
        ("sim/fidelity.py", "def f():\n    import torch"),
        ("sim/fidelity.py", "from tritloom.host.session import Session"),
        ("tests/firmware/test_isa.py", "from synthetic import TINY\nfrom tritloom.firmware import isa"),
    ],
)
def test_what_is_allowed_passes(module, source):
    assert violations(module, source) == []


def test_the_command_line_starts_without_generator_and_simulator():
    code = "import sys, tritloom.host.cli; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    assert {"amaranth", "torch", "tritloom.gen", "tritloom.rtl", "tritloom.sim"} & set(run.stdout.split()) == set()
