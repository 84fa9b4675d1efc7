"""Every error of ours is a TritloomError, so that one rule shows them all."""

import ast
import builtins
from pathlib import Path

import pytest

from tritloom.firmware.errors import InputError, TritloomError
from tritloom.host.cli import explain

ROOT = Path(__file__).parents[1]
FOLDERS = ("boards", "firmware", "gen", "host", "rtl", "sim", "system")


def strangers(source: str) -> list[str]:
    """Classes that derive from one of Python's errors; warnings are none, nor are signals."""
    found = []
    for node in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef)):
        for base in node.bases:
            kind = getattr(builtins, base.id, None) if isinstance(base, ast.Name) else None
            if isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, Warning):
                found.append(node.name)
    return found


def test_every_error_has_one_root():
    paths = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    found = {path.relative_to(ROOT).as_posix(): names for path in paths if (names := strangers(path.read_text(encoding="utf-8")))}
    assert found == {"firmware/errors.py": ["TritloomError"]}


@pytest.mark.parametrize("base", ["Exception", "ValueError", "RuntimeError", "OSError"])
def test_a_stranger_is_seen(base):
    assert strangers(f"class BoardError({base}):\n    pass") == ["BoardError"]


@pytest.mark.parametrize("root, status", [(TritloomError, 1), (InputError, 2)])
def test_any_of_them_is_shown_by_one_rule(root, status):
    kind = type("AnyError", (root,), {"__module__": "another.package"})
    assert explain(kind("what is wrong;\n what to do")) == ("what is wrong; what to do", status)
