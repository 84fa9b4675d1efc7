"""What makes a machine's Verilog, and what that Verilog is, as digests: so that a result knows whether it still holds.

Comments, blank lines and docstrings count in neither; names of files, modules, functions and classes count in the Verilog
only where Amaranth writes them there (names of signals, submodules, ports and shared modules).
"""

from __future__ import annotations

import ast
import functools
import hashlib
import re
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from tritloom.firmware.config import BuildConfig

__all__ = ["digest", "plain", "source_digest", "syntax_digest", "verilog_digest"]

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "tritloom"
MAKERS = ("rtl/top.py", "gen/verilog/generate.py")
"""What the Verilog is made by, together with all that they import of this package."""
TOOLS = ("amaranth", "pyosys")


def digest(*parts: str | bytes) -> str:
    """16 hexadecimal digits of the SHA-256 of the parts, which do not run into each other."""
    whole = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        whole.update(len(data).to_bytes(8, "little") + data)
    return whole.hexdigest()[:16]


# The sources -----------------------------------------------------------------------------------


@functools.cache
def syntax_digest(makers: tuple[str, ...] = MAKERS) -> str:
    """Digest of what makes the Verilog: the syntax of `makers` and of what they import, and the tools' versions; the same on every Python.
    Takes a second."""
    found = {path.relative_to(ROOT).as_posix(): "\0".join(_syntax(tree)) for path, tree in _imported(makers).items()}
    return digest(*(f"{tool} {_version(tool)}" for tool in TOOLS), *(text for item in sorted(found.items()) for text in item))


@functools.cache
def source_digest(name: str) -> str:
    """Digest of the syntax of one file of this package."""
    return digest(*_syntax(ast.parse((ROOT / name).read_text("utf-8"))))


def _version(tool: str) -> str:
    try:
        return version(tool)
    except PackageNotFoundError:
        return "not installed"


def _imported(files: tuple[str, ...]) -> dict[Path, ast.Module]:
    """The files and all of this package that they import, wherever in them, with their syntax trees."""
    found: dict[Path, ast.Module] = {}
    pending = [ROOT / name for name in files]
    while pending:
        path = pending.pop()
        if path not in found:
            found[path] = ast.parse(path.read_text("utf-8"))
            pending += [other for node in ast.walk(found[path]) for name in _names(node, path) for other in _files(name)]
    return found


def _names(node: ast.AST, path: Path) -> list[str]:
    """Dotted names below the package that an import in `path` may mean: modules, and what may be modules in them."""
    if isinstance(node, ast.Import):
        whole = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        package = [PACKAGE, *path.relative_to(ROOT).parent.parts]
        base = package[: len(package) - node.level + 1] if node.level else []
        base += node.module.split(".") if node.module else []
        whole = [".".join(base), *(".".join([*base, alias.name]) for alias in node.names)]
    else:
        return []
    return [name.removeprefix(PACKAGE + ".") for name in whole if name.startswith(PACKAGE + ".")]


def _files(name: str) -> list[Path]:
    at = ROOT.joinpath(*name.split("."))
    return [path for path in (at.with_suffix(".py"), at / "__init__.py") if path.is_file()]


def _syntax(node: object) -> Iterator[str]:
    """A tree as text, without docstrings and what is empty: newer Pythons know more fields, which are empty here."""
    if isinstance(node, ast.AST):
        yield f"({type(node).__name__}"
        for name, value in ast.iter_fields(node):
            if isinstance(node, ast.JoinedStr):  # Python 3.12.1 adds empty pieces
                value = [piece for piece in value if not (isinstance(piece, ast.Constant) and piece.value == "")]
            if value is not None and value != []:
                yield f".{name}"
                yield from _syntax(value)
        yield ")"
    elif isinstance(node, list):
        for item in node:
            if not (isinstance(item, ast.Expr) and isinstance(item.value, ast.Constant)):
                yield from _syntax(item)
    else:
        yield repr(node)


# The Verilog -----------------------------------------------------------------------------------

_COMMENT = re.compile(r'("(?:\\.|[^"\\\n])*"|\\\S+)|//[^\n]*|/\*.*?\*/', re.S)
"""A string or an escaped name, which stay, or a comment."""


def plain(text: str) -> str:
    """Verilog or C++ without comments, blank lines and spaces at the ends of lines."""
    lines = (line.rstrip() for line in _COMMENT.sub(lambda match: match[1] or "", text).splitlines())
    return "\n".join(line for line in lines if line)


def verilog_digest(verilog: str, config: BuildConfig) -> str:
    """Digest of a machine's Verilog. The configuration's own digest, which a register shows, is left out: a configuration with a field
    more describes the same machine."""
    return digest(re.sub(rf"\b32'd{config.digest}\b", "32'd0", plain(verilog)))
