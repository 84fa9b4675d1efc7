"""Who may import what (architecture.md, section 7), read from the source of every module."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OUTSIDE_WORLD = {"glob", "io", "os", "pathlib", "select", "shutil", "signal", "socket", "subprocess", "sys", "tempfile", "threading"}
"""Parts of the standard library that reach files, terminals and processes."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """What a folder's modules may import: `ours` are folders of this tree, `others` third parties.

    `lazy_*` only inside functions. A pure layer knows neither files nor terminals.
    """

    ours: set[str]
    others: set[str]
    lazy_ours: set[str] = field(default_factory=set)
    lazy_others: set[str] = field(default_factory=set)
    pure: bool = False


LAYERS = {
    "rtl": Layer(ours={"rtl", "firmware"}, others={"amaranth", "numpy"}, pure=True),
    **{f"rtl/{room}parameters.py": Layer(ours={"rtl", "firmware"}, others=set(), pure=True)  # asked by gen/fit, in the plain package too
       for room in ("", "attention/", "control/", "head/", "memory/", "ternary/", "vector/")},
    "firmware": Layer(ours={"firmware"}, others={"numpy"}, pure=True),
    "system": Layer(ours={"system"}, others=set()),
    "boards": Layer(ours={"boards", "firmware"}, others=set()),
    "gen": Layer(
        ours={"gen", "rtl", "firmware", "boards", "system"},
        others={"amaranth", "gguf", "numpy", "pydantic", "pyosys", "safetensors", "tokenizers"},
    ),
    "gen/fit/calibrate.py": Layer(ours={"gen", "firmware", "system"}, others={"numpy"}, lazy_others={"scipy"}),
    "host": Layer(ours={"host", "firmware", "boards", "system"}, others={"numpy", "rich", "tokenizers", "typer"}),
    "host/commands": Layer(
        ours={"host", "firmware", "boards", "system"},
        others={"numpy", "rich", "tokenizers", "typer"},
        lazy_ours={"gen", "sim"},
    ),
    # Asks the tools whether they run, cocotb's among them.
    "host/doctor.py": Layer(ours={"host", "firmware"}, others=set(), lazy_ours={"gen"}, lazy_others={"find_libpython"}),
    "sim": Layer(
        ours={"sim", "host", "gen", "rtl", "firmware", "boards", "system"},
        others={"jinja2", "numpy"},
        lazy_others={"amaranth", "tokenizers", "torch", "transformers"},  # a demo runs without PyTorch
    ),
}
MAY_PRINT = {"gen/fit/calibrate.py", "host/cli.py", "host/console.py", "gen/tools/yosys.py"}
"""Commands and what they write with; all other code is a library."""


def modules() -> list[str]:
    folders = {name.split("/")[0] for name in LAYERS}
    return sorted(str(path.relative_to(ROOT)) for folder in folders for path in (ROOT / folder).rglob("*.py"))


def imports(node: ast.AST, module: str, lazy: bool = False) -> Iterator[tuple[str, bool, int]]:
    """Dotted names imported below `node`, whether inside a function, and the line. What only type checkers see is left out."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, ast.Import):
            yield from ((alias.name, lazy, child.lineno) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            package = ["tritloom", *Path(module).parent.parts]
            base = ".".join(package[: len(package) - child.level + 1]) + "." if child.level else ""
            name = base + (child.module or "")
            if name.rstrip(".") == "tritloom":
                yield from ((f"tritloom.{alias.name}", lazy, child.lineno) for alias in child.names)
            else:
                yield name, lazy, child.lineno
        else:
            inside = lazy or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            yield from imports(child, module, inside)


def violations(module: str, source: str) -> list[str]:
    """What `source`, as the file `module` of this tree, imports or calls and must not."""
    path = Path(module)
    layer = next(LAYERS[str(place)] for place in (path, *path.parents) if str(place) in LAYERS)
    tree = ast.parse(source)
    found = []
    for name, lazy, line in imports(tree, module):
        top, *rest = name.split(".")
        if top == "tritloom":
            allowed = not rest or rest[0] in layer.ours | (layer.lazy_ours if lazy else set())
        elif top in sys.stdlib_module_names:
            allowed = not (layer.pure and top in OUTSIDE_WORLD)
        else:
            allowed = top in layer.others | (layer.lazy_others if lazy else set())
        if not allowed:
            found.append(f"{module}:{line}: {'' if lazy else 'top-level '}import of {name}")
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name):
            if call.func.id == "print" and module not in MAY_PRINT:
                found.append(f"{module}:{call.lineno}: print in a library")
            if call.func.id in ("open", "input") and layer.pure:
                found.append(f"{module}:{call.lineno}: {call.func.id} in {module.split('/')[0]}")
    return found


@pytest.mark.parametrize("module", modules())
def test_imports(module):
    assert violations(module, (ROOT / module).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "module, source",
    [
        ("rtl/ternary/tlmm.py", "from pathlib import Path"),
        ("rtl/ternary/tlmm.py", "import torch"),
        ("rtl/ternary/parameters.py", "import amaranth"),
        ("rtl/ternary/tlmm.py", "def f():\n    from tritloom.gen import pack"),
        ("rtl/ternary/tlmm.py", "from ...gen import pack"),
        ("rtl/ternary/tlmm.py", "from ... import host"),
        ("firmware/isa.py", "import amaranth.lib.data"),
        ("firmware/isa.py", "with open('x') as f: pass"),
        ("gen/pack.py", "from tritloom.sim import backends"),
        ("gen/pack.py", "print('done')"),
        ("host/session.py", "import amaranth"),
        ("host/session.py", "def f():\n    import tritloom.sim.backends"),
        ("host/commands/run.py", "from tritloom.sim.backends import SimBackend"),
        ("sim/fidelity.py", "try:\n    import torch\nexcept ImportError:\n    pass"),
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
    ],
)
def test_what_is_allowed_passes(module, source):
    assert violations(module, source) == []


def test_a_machine_is_fitted_without_amaranth():
    code = "import sys, tritloom.gen.fit.fit; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    assert "amaranth" not in run.stdout.split()


def test_the_command_line_starts_without_generator_and_simulator():
    code = "import sys, tritloom.host.cli; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    assert {"amaranth", "torch", "tritloom.gen", "tritloom.rtl", "tritloom.sim"} & set(run.stdout.split()) == set()
