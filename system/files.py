"""Files that are whole or not there, folders that do not outlive their process, and what is kept between runs.

A file is written in a scratch folder beside its place and then renamed. A scratch folder holds a file that its process has locked:
what a killed process has left is known by that, whatever has the process's number now, and goes when the next one writes there.
"""

from __future__ import annotations

import atexit
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import platformdirs

from tritloom.system.ending import undone

__all__ = ["KINDS", "CacheWarning", "cache", "cache_root", "clear", "damaged", "keep", "kept", "replaced", "replacing", "scratch", "seal",
           "sizes", "sound", "sweep", "write_atomically"]

PREFIX = ".tritloom-"
LOCK = "lock"
OLD_S = 3600.0
"""Age at which a scratch folder without a lock is nobody's: its process died while it made it, or the file system knows no locks."""
KINDS = ("images", "verilog", "verilated", "synth", "builds", "digests", "timings", "loops", "scratch")
"""What is kept: weight images, Verilog, compiled simulations, synthesised parts, digests of Verilog, how long steps took, compiled loops;
and folders of running processes."""
DIGEST = ".sha256"


class CacheWarning(UserWarning):
    """Nothing can be kept; the message says why and what to do."""


# Scratch folders -----------------------------------------------------------------------------------------


@contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """A new folder in `folder` that is gone at the end of the block, however that ends."""
    sweep(folder)

    def make() -> Path:
        return Path(tempfile.mkdtemp(prefix=PREFIX, dir=folder))

    with undone(make, lambda path: shutil.rmtree(path, ignore_errors=True)) as path, ExitStack() as stack:
        with suppress(OSError):  # no locks on this file system
            lock = os.open(path / f"{LOCK}.new", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            stack.callback(os.close, lock)
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.rename(path / f"{LOCK}.new", path / LOCK)
        work = path / "work"
        work.mkdir()
        yield work


def sweep(folder: Path) -> None:
    """Remove the scratch folders of processes that are no more."""
    with suppress(OSError):
        for path in [each for each in folder.iterdir() if each.name.startswith(PREFIX)]:
            if _left_behind(path):
                shutil.rmtree(path, ignore_errors=True)


def _left_behind(path: Path) -> bool:
    try:
        lock = os.open(path / LOCK, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        with suppress(OSError):
            return path.is_dir() and time.time() - path.stat().st_mtime > OLD_S
        return False
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(lock)
    return True


# Whole files ---------------------------------------------------------------------------------------------


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A scratch folder; at the end of the block all that is in it takes its place in `folder`.

    If the block fails, `folder` is as it was; if it was missing, it is missing again. An `OSError` names the file in `folder`.
    """
    folder = Path(folder)
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with scratch(folder) as work:
            yield work
            made = sorted(work.iterdir())
            for path in made:
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
            for path in made:
                os.replace(path, folder / path.name)
    except BaseException as error:
        for each in missing:
            with suppress(OSError):
                each.rmdir()
        if isinstance(error, OSError) and (error.filename is None or PREFIX in str(error.filename)):
            error.filename = str(folder / Path(error.filename or "").name)
        raise


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Where to write what will be at `path` at the end of the block; see `replacing`."""
    path = Path(path)
    try:
        with replacing(path.parent) as work:
            yield work / path.name
    except OSError as error:
        if error.filename == str(path.parent):
            error.filename = str(path)
        raise


def write_atomically(folder: Path, files: Mapping[str, str | bytes]) -> list[Path]:
    """Write files into `folder`, made if needed. All are complete before the first one takes its place."""
    with replacing(folder) as work:
        for name, content in files.items():
            (work / name).write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    return [Path(folder) / name for name in files]


# What is kept --------------------------------------------------------------------------------------------

_instead: ExitStack | None = None
_instead_at: dict[str, Path] = {}


def cache_root() -> Path | None:
    """Where things are kept: TRITLOOM_CACHE, else `tritloom` in the user's cache folder; None for a user without a home."""
    named = os.environ.get("TRITLOOM_CACHE")
    if named:
        return Path(named)
    try:
        return platformdirs.user_cache_path("tritloom")
    except RuntimeError:
        return None


def cache(kind: str) -> Path:
    """The folder of what is kept of a kind. If it cannot be written, a folder of this process alone, with a `CacheWarning`."""
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, not {kind!r}")
    root = cache_root()
    if root is None:
        return _private(kind, "no home folder", "set TRITLOOM_CACHE to a folder that can be written")
    folder = root / kind
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(0, "not writable")
    except OSError as error:
        return _private(kind, f"{folder}: {error.strerror}", "set TRITLOOM_CACHE to a folder that can be written")
    return folder


def _private(kind: str, cause: str, fix: str) -> Path:
    global _instead
    if cause not in _instead_at:
        warnings.warn(f"nothing is kept for the next run ({cause}): {fix}", CacheWarning, stacklevel=3)
        _instead = _instead or ExitStack()
        _instead_at[cause] = _instead.enter_context(scratch(Path(tempfile.gettempdir())))
        atexit.register(_instead.close)
    folder = _instead_at[cause] / kind
    folder.mkdir(exist_ok=True)
    return folder


def keep(path: Path, content: bytes) -> None:
    """Write what `kept` will find."""
    write_atomically(path.parent, {path.name: content, path.name + DIGEST: hashlib.sha256(content).hexdigest()})


def kept(path: Path) -> bytes | None:
    """What `keep` wrote; None if it is not there, or damaged."""
    try:
        content = path.read_bytes()
        digest = path.with_name(path.name + DIGEST).read_text("ascii")
    except (OSError, ValueError):
        return None
    return content if hashlib.sha256(content).hexdigest() == digest else None


SEAL = "sealed.json"


def seal(folder: Path) -> None:
    """Note the contents of the files in a folder, for `sound` and `damaged`."""
    listed = {path.name: _digest(path) for path in folder.iterdir() if path.is_file() and not path.name.startswith(SEAL)}
    made = folder / f"{SEAL}.{os.getpid()}"
    made.write_text(json.dumps(listed), "utf-8")
    os.replace(made, folder / SEAL)


def sound(folder: Path) -> bool:
    """Whether a folder is there whole, as it was sealed."""
    return (folder / SEAL).is_file() and not damaged(folder)


def damaged(folder: Path) -> list[Path]:
    """What is no more in a folder as it was sealed: files, or the seal. Nothing in one without a seal."""
    seal = folder / SEAL
    try:
        listed = json.loads(seal.read_text("utf-8"))
        return [folder / name for name, digest in listed.items() if _digest_of(folder / name) != digest]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, AttributeError):
        return [seal]


def _digest_of(path: Path) -> str | None:
    try:
        return _digest(path)
    except OSError:
        return None


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def sizes(root: Path) -> dict[str, tuple[int, int]]:
    """(files, bytes) of each kind that is kept below `root`."""
    found = {}
    for kind in KINDS:
        listed = [path.stat() for path in (root / kind).rglob("*") if path.is_file() and not path.is_symlink()]
        if (root / kind).is_dir():
            found[kind] = len(listed), sum(status.st_size for status in listed)
    return found


def clear(root: Path, kind: str) -> None:
    """Remove what is kept of a kind, but for what running processes are making."""
    sweep(root / kind)
    for path in (root / kind).iterdir():
        if not path.name.startswith(PREFIX):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
