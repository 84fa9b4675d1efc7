"""Mutation of rtl/: single lines are changed one at a time, and the test named for each must fail (`make mutants`).

`python mutants.py [names...]` applies the mutations of those names, or all, in a copy of the tree below build/mutants, after a run of
their tests without any. Exit status 1 if one survives that is not known as equivalent. `--store` notes the results in
docs/results/mutants.json, a mutation at a time, so that a run that was interrupted goes on with `--missing`.

A stored result stands as long as the mutation and its tests are what they were (`Mutant.key`): moving a line within its room, or from
one file of it to another, changes nothing. test_mutants.py holds that every mutation still applies.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
import xml.etree.ElementTree as xml
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from itertools import count
from pathlib import Path
from queue import SimpleQueue

from filelock import FileLock, Timeout

from mutations import MUTATIONS

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results" / "mutants.json"
COPIED = ("firmware", "gen", "host", "sim", "boards", "system", "rtl", "src", "tests", "docs", "pyproject.toml")
"""What a copy of the tree has; models are linked."""
SECONDS = 600
"""A test that takes longer has failed."""


class NotFound(Exception):
    """A mutation, or a test of one, is not in the source exactly once."""


@dataclass(frozen=True)
class Mutant:
    """`line`, which the files of `room` (a folder below rtl/, "." for the files beside the rooms) hold once, becomes `change`.

    `tests`: what must fail, as `test_file::function[parameters]`, apart by spaces. `equivalent`: why nothing can fail, instead.
    """

    name: str
    room: str
    line: str
    change: str
    tests: str = ""
    equivalent: str = ""

    @property
    def key(self) -> str:
        """Digest of the mutation and its tests."""
        return hashlib.sha256("\0".join((self.room, self.line, self.change, self.tests, self.equivalent)).encode()).hexdigest()[:12]

    def find(self, root: Path = ROOT) -> Path:
        """The file that has the line."""
        found = [(path, count) for path in sorted((root / "rtl" / self.room).glob("*.py"))
                 if (count := path.read_text("utf-8").count(self.line))]
        if [count for _, count in found] != [1]:
            places = ", ".join(f"{path.relative_to(root)} {count} times" for path, count in found) or "nowhere"
            raise NotFound(f"{self.name}: {self.line!r} must stand once in rtl/{self.room}, and stands {places}: correct mutations.py")
        return found[0][0]

    def nodes(self, root: Path = ROOT) -> list[str]:
        """The tests as pytest knows them."""
        return [node(name, root) for name in self.tests.split()]


def node(name: str, root: Path = ROOT) -> str:
    """pytest's name of `test_file::function[parameters]`; the file is found by its name."""
    file, _, rest = name.partition("::")
    found = sorted((root / "tests").rglob(f"{file}.py"))
    if len(found) != 1:
        raise NotFound(f"{name}: there is not one file {file}.py below tests, but {len(found)}")
    function = rest.partition("[")[0]
    if rest and f"\ndef {function}(" not in found[0].read_text("utf-8"):
        raise NotFound(f"{name}: {found[0].relative_to(root)} has no {function}")
    return f"{found[0].relative_to(root)}{'::' if rest else ''}{rest}"


MUTANTS = [Mutant(**mutation) for mutation in MUTATIONS]


class Tree:
    """A copy of the tree that tests run in; of several, the first that no other run has."""

    def __init__(self):
        for number in count():
            self.root = ROOT / "build" / "mutants" / str(number)
            self.root.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self.root / "lock")
            with suppress(Timeout):
                self._lock.acquire(blocking=False)
                break
        ignored = shutil.ignore_patterns("__pycache__")
        for name in COPIED:
            source, target = ROOT / name, self.root / name
            if source.is_dir():
                shutil.rmtree(target, ignore_errors=True)
                shutil.copytree(source, target, symlinks=True, ignore=ignored)
            else:
                shutil.copy(source, target)
        (self.root / "build").mkdir(exist_ok=True)
        models = self.root / "models"
        if not models.exists():
            models.symlink_to(ROOT / "models")

    @contextmanager
    def mutated(self, mutant: Mutant):
        """With the line changed, and whatever was built of it thrown away afterwards."""
        path, built = mutant.find(self.root), set(self._built())
        text = path.read_text("utf-8")
        self._write(path, text.replace(mutant.line, mutant.change))
        try:
            yield
        finally:
            self._write(path, text)
            for folder in set(self._built()) - built:
                shutil.rmtree(folder, ignore_errors=True)

    def _write(self, path: Path, text: str) -> None:
        """With the bytecode thrown away: it would pass for that of another text of this second and size."""
        path.write_text(text, "utf-8")
        shutil.rmtree(path.parent / "__pycache__", ignore_errors=True)

    def _built(self):
        build = self.root / "build"
        return [*build.glob("tests/*/*"), *build.glob("verilog/*"), *build.glob("verilated/*")]

    def run(self, nodes: list[str]) -> str | None:
        """The first of these tests that fails, or None. They run in a fork, which has the libraries loaded but nothing of the tree."""
        report = self.root / "build" / "report.xml"
        report.unlink(missing_ok=True)
        process = multiprocessing.get_context("fork").Process(target=_pytest, args=(self.root, report, nodes))
        process.start()
        process.join(SECONDS)
        if process.exitcode is None:
            assert process.pid is not None
            os.killpg(process.pid, signal.SIGKILL)
            process.join()
            return f"{nodes[0]}, after {SECONDS} s"
        if process.exitcode == 0:
            return None
        if process.exitcode == 1 and report.exists():
            for case in xml.parse(report).getroot().iter("testcase"):
                if case.find("failure") is not None or case.find("error") is not None:
                    *_, file = case.get("classname", "").split(".")
                    return f"{file}::{case.get('name')}"
        log = (self.root / "build" / "log").read_text("utf-8", errors="replace")
        raise RuntimeError(f"pytest ended with status {process.exitcode} on {' '.join(nodes)}:\n{log[-5000:]}")


LOADED = ("numpy", "pytest", "hypothesis", "amaranth.sim", "amaranth.back.rtlil", "cocotb_tools.runner", "torch")
"""Libraries that most tests need."""


def _pytest(root: Path, report: Path, nodes: list[str]) -> None:
    """In a process of its own: pytest on a copy of the tree."""
    os.setpgid(0, 0)
    os.chdir(root)
    log = os.open(root / "build" / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.environ["PYTHONPATH"] = str(root / "src")
    os.environ.pop("TRITLOOM_WAVES", None)
    sys.path[:] = [str(root / "src"), *(path for path in sys.path if Path(path).resolve() not in (ROOT / "src", ROOT / "tests"))]
    import pytest

    options = ["-q", "-x", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning", f"--rootdir={root}"]
    status = pytest.main([*options, f"--junitxml={report}", *nodes])
    sys.stdout.flush()
    os._exit(int(status))


def attempt(tree: Tree, mutant: Mutant) -> dict:
    """What came of one mutation: what killed it, if anything."""
    start = time.monotonic()
    with tree.mutated(mutant):
        by = tree.run(mutant.nodes(tree.root))
    date = datetime.now(timezone.utc).date().isoformat()
    return {"key": mutant.key, "killed_by": by, "seconds": round(time.monotonic() - start, 1), "date": date}


def stored() -> dict[str, dict]:
    """Results by the mutations' names."""
    return json.loads(RESULTS.read_text("utf-8"))["mutants"] if RESULTS.exists() else {}


def store(name: str, result: dict) -> None:
    """Add a result to those of the mutations that there are."""
    results = stored() | {name: result}
    kept = {mutant.name: results[mutant.name] for mutant in MUTANTS if mutant.name in results}
    scratch = RESULTS.with_suffix(".tmp")  # not by system.files: tests run in forks of this process, which must have nothing of the tree
    scratch.write_text(json.dumps({"command": "make mutants", "mutants": kept}, indent=1) + "\n", "utf-8")
    scratch.replace(RESULTS)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", help="mutations, or rooms; all without any")
    parser.add_argument("--store", action="store_true", help=f"write {RESULTS.relative_to(ROOT)}")
    parser.add_argument("--missing", action="store_true", help="only those without a stored result")
    parser.add_argument("--jobs", type=int, default=1, help="mutations at a time")
    options = parser.parse_args(arguments)
    known, start = {mutant.name for mutant in MUTANTS} | {mutant.room for mutant in MUTANTS}, time.monotonic()
    if unknown := sorted(set(options.names) - known):
        parser.error(f"no such mutation or room: {', '.join(unknown)}")
    chosen = [mutant for mutant in MUTANTS if not options.names or {mutant.name, mutant.room} & set(options.names)]
    if options.missing:
        results = stored()
        chosen = [mutant for mutant in chosen if results.get(mutant.name, {}).get("key") != mutant.key]
    for mutant in chosen:
        mutant.find()
        mutant.nodes()
    tested = [mutant for mutant in chosen if not mutant.equivalent]
    trees, survivors = SimpleQueue(), []
    for _ in range(options.jobs):
        trees.put(Tree())
    for name in LOADED:
        importlib.import_module(name)

    def one(work):
        tree = trees.get()
        try:
            return work(tree)
        finally:
            trees.put(tree)

    with ThreadPoolExecutor(options.jobs) as pool:
        nodes = sorted({each for mutant in tested for each in mutant.nodes()})
        print(f"{len(tested)} mutations of {len(chosen)} have tests; the {len(nodes)} tests without a mutation", flush=True)
        if nodes and (failed := one(lambda tree: tree.run(nodes))):
            print(f"{failed} fails without a mutation")
            return 1
        attempts = pool.map(lambda mutant: one(lambda tree: attempt(tree, mutant)), tested)
        for done, (mutant, result) in enumerate(zip(tested, attempts, strict=True), 1):
            by = result["killed_by"]
            print(f"{done} of {len(tested)}, {time.monotonic() - start:.0f} s: {mutant.name} "
                  f"{f'killed by {by}' if by else 'SURVIVES'} ({result['seconds']} s)", flush=True)
            if not by:
                survivors.append(mutant)
            if options.store:
                store(mutant.name, result)
    for mutant in survivors:
        print(f"survives: {mutant.name}: {mutant.line!r} made {mutant.change!r} in {mutant.find().relative_to(ROOT)}")
    print(f"{len(tested) - len(survivors)} killed, {len(survivors)} survive, {len(chosen) - len(tested)} known as equivalent")
    return int(bool(survivors))


if __name__ == "__main__":
    sys.exit(main())
