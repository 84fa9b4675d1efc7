"""Measure again every stored result that holds no more: `make results`.

`python -m tritloom.sim.bench.remeasure [JOBS]` says which results hold (sim/bench/stored.py), runs what made the others, JOBS (2)
at a time, the most telling first: comparisons with the integer model, then syntheses, then whole tokens, the quick ones first. What
each job prints is in build/results/. A job stores its result as it ends, so what was done stays when this is interrupted, and the
next run goes on.
"""

from __future__ import annotations

import logging
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tritloom.sim.bench import current, stored
from tritloom.sim.check import equality

__all__ = ["Job", "main", "run", "stale"]

JOBS = 2
LIMIT_S = 12 * 3600.0
"""For one job."""
SIGN_OF_LIFE_S, POLL_S = 60.0, 0.2
LOGS = stored.ROOT / "build" / "results"
ORDER = ("comparison", "synthesis", "tokens")


@dataclass(frozen=True)
class Job:
    """A command in `folder` of the tree; `kind`: one of ORDER; `seconds`: about what it takes, for the order."""

    name: str
    kind: str
    command: tuple[str, ...]
    folder: str = "."
    seconds: float = 0.0


def stale() -> list[Job]:
    """What must be run, the most telling first. Seeds of `make random` are looked at by its own command, which skips those that hold."""
    python = sys.executable
    kept = {(entry["model"], entry["machine"]): entry for entry in equality.load()["entries"]}
    jobs = [Job(f"equality {model}, {name}", "comparison", (python, "-m", "tritloom.sim.check.equality", f"{model}/{name}"),
                seconds=kept.get((model, name), {}).get("seconds", 0))
            for model, name in equality.pairs() if (model, name) not in kept or equality.holds(kept[model, name]) != stored.CURRENT]
    jobs.append(Job("random machines", "comparison", (python, "-m", "tritloom.sim.check.random_machines"), seconds=1e3))
    commands: dict[str, Job] = {}
    for entry in stored.entries().values():
        if "command" in entry and stored.state_of(entry) != stored.CURRENT:
            commands.setdefault(entry["command"], _bench(entry))
    return sorted([*jobs, *commands.values()], key=lambda job: (ORDER.index(job.kind), job.seconds))


def _bench(entry: dict[str, Any]) -> Job:
    program, *arguments = shlex.split(entry["command"])
    if program != "tritloom":
        raise ValueError(f"{entry['command']!r}: not a command of tritloom")
    kind = "synthesis" if entry["what"] == "synthesis" else "tokens"
    command = (sys.executable, "-m", "tritloom.host.cli", *arguments, "--store")
    return Job(entry["command"], kind, command, seconds=entry["measured"].get("simulated_s", 0))


def run(jobs: Sequence[Job], at_once: int, say: Callable[[str], None]) -> list[Job]:
    """Run the jobs; those that failed. What they print goes to LOGS. When this is interrupted, so are they."""
    LOGS.mkdir(parents=True, exist_ok=True)
    started = said = time.monotonic()
    waiting, done, failed = list(jobs), 0, []
    running: list[tuple[Job, subprocess.Popen[bytes], float]] = []

    def progress(text: str) -> None:
        say(f"{done} of {len(jobs)} done after {(time.monotonic() - started) / 60:.0f} min, {text}")

    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                job = waiting.pop(0)
                progress(f"starting: {job.name}")
                running.append((job, _start(job), time.monotonic()))
            time.sleep(POLL_S)
            now = time.monotonic()
            for item in list(running):
                job, process, since = item
                if process.poll() is None and now - since < LIMIT_S:
                    continue
                if process.poll() is None:
                    process.kill()
                    process.wait()
                running.remove(item)
                done += 1
                if process.returncode:
                    failed.append(job)
                    progress(f"failed with status {process.returncode}: {job.name} (see {_log(job)})")
            if running and now - said >= SIGN_OF_LIFE_S:
                said = now
                progress("running: " + "; ".join(f"{job.name} ({(now - since) / 60:.0f} min)" for job, _, since in running))
    finally:
        for _, process, _ in running:
            process.terminate()
        for _, process, _ in running:
            process.wait()
    return failed


def _start(job: Job) -> subprocess.Popen[bytes]:
    with _log(job).open("wb") as log:
        return subprocess.Popen(job.command, cwd=stored.ROOT / job.folder, stdout=log, stderr=subprocess.STDOUT)


def _log(job: Job) -> Path:
    return LOGS / (re.sub(r"[^\w.-]+", "-", job.name)[:100].strip("-") + ".log")


def main(arguments: Sequence[str]) -> int:
    """Status 1 if a job failed or a result still is stale."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    say = logging.getLogger(__name__).info
    at_once = int(arguments[0]) if arguments else JOBS
    current.main([str(at_once)])
    try:
        failed = run(stale(), at_once, say)
    except KeyboardInterrupt:
        say("interrupted: what was measured is stored, and the next run goes on")
        return 130
    current.main([str(at_once)])
    for job in failed:
        say("failed: %s (see %s)", job.name, _log(job))
    return int(bool(failed) or any(stored.state_of(entry) != stored.CURRENT for entry in stored.entries().values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
