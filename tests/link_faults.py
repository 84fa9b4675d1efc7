"""The link under faults: the host's end and the model of the device, with a line between them that damages bytes both ways.

A run is a number: requests of all kinds, at 1 to 20 damaged bytes of 1,000, late answers, and in some runs the board is reset, the port
unplugged or another program takes the board. What was executed must be what was asked for, each once and in order, up to the end or to the
error that says why there is none; every value must be the right one. `make link-faults` (`python link_faults.py --store`) injects FAULTS
faults and stores docs/results/link.json; tests/rtl/test_link.py holds the hardware to the model. One run again: `--first N --faults 1`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import sys
import time
from collections import Counter
from datetime import datetime, timezone
from pathlib import Path

from line import Line
from link_model import COUNTER, FIFO, LinkDevice, Registers
from tritloom.firmware import link
from tritloom.host.link import Link, LinkError
from tritloom.system.files import write_atomically

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results" / "link.json"
FAULTS = 1_000_000
REQUESTS = 300
"""Of a run."""
RATES = ((1e-3, link.REQUEST_WORDS), (5e-3, 40), (2e-2, 6))
"""Part of the bytes that are damaged, longest request in words."""
ENDS = {None: (), "reset": ("was reset",), "take": ("another program",), "unplug": (), "unplug_and_reset": ("lost power",),
        "unplug_for_good": ("was unplugged",), "die": ("has not answered",)}
"""By what happens to the board in a run, what the host may say; it may always end well, if that came too late."""
CHECKED = 30
"""Runs that the suite compares with the stored ones."""


class Wrong(AssertionError):
    """Something wrong was accepted."""


def states(registers: Registers) -> list[tuple[list[int], int]]:
    """What was written, and how often read: now, and before the board was reset, if it was."""
    return [(registers.written, registers.reads), *([registers.lost] if registers.lost else [])]


def run(number: int) -> tuple[int, str, dict]:
    """Faults, how it ended, the host's statistics."""
    chance = random.Random(number)
    rate, longest = RATES[number % len(RATES)]
    registers, sent = Registers(), []
    line = Line(LinkDevice(registers), rate=rate, seed=number, latency_s=chance.choice((0.0005, 0.008)), late_s=chance.choice((0, 0, 0.3)))
    host, what = None, None
    try:
        # At 2 % of damaged bytes a board that lives is not heard for 20 s in one run of some thousand.
        host = Link(line.open, name="port", baud=line.baud, clock=line.clock, sleep=line.sleep, chance=chance, patience_s=60)
        event = chance.choice((None, None, None, line.reset, line.take, line.unplug, line.unplug_and_reset, line.unplug_for_good,
                               line.die))
        what = event.__name__ if event else None
        if event:
            line.events.append((line.carried + chance.randrange(200, 40_000), event))
        for _ in range(REQUESTS):
            words = [chance.getrandbits(32) for _ in range(chance.randrange(1, longest))]
            kind = chance.random()
            if kind < 0.8:
                sent += words
                host.fill(FIFO, words)
            else:
                sent.append(words[0])
                read, before = link.read_item(COUNTER), registers.reads
                values = host.ask([link.write_item(FIFO, words[0]), read, link.wait_item(1000), read], 1000)
                waited = values[1] & (1 << link.WAIT_BITS) - 1
                if values[0::2] != (before + 1, before + 2) or waited != 1000 or (sent, before + 2) not in states(registers):
                    raise Wrong(f"run {number}: {values} after {before} reads")
        host.flush()
        if sent not in [written for written, _ in states(registers)]:
            raise Wrong(f"run {number}: {len(registers.written)} words of {len(sent)}")
        end = "done"
    except LinkError as error:
        said = [said for said in ENDS[what] if said in str(error)]
        if any(written != sent[: len(written)] for written, _ in states(registers)) or not said:
            raise Wrong(f"run {number}, {what}: {error}") from error
        end = said[0]
    return line.faults, end, vars(host.statistics) if host else {}


def behaviour() -> str:
    """Digest of the first runs."""
    return hashlib.sha256(json.dumps([run(number) for number in range(CHECKED)]).encode()).hexdigest()[:16]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--first", type=int, default=0, help="number of the first run")
    parser.add_argument("--faults", type=int, default=FAULTS, help="faults to inject")
    parser.add_argument("--store", action="store_true", help="write docs/results/link.json")
    options = parser.parse_args(arguments)
    start, faults, number, ends, resent, requests = time.monotonic(), 0, options.first, Counter(), 0, 0
    while faults < options.faults:
        more, end, statistics = run(number)
        faults, number = faults + more, number + 1
        ends[end] += 1
        resent, requests = resent + statistics.get("resent", 0), requests + statistics.get("requests", 0)
    record = {"date": datetime.now(timezone.utc).date().isoformat(), "command": "make link-faults",
              "seconds": round(time.monotonic() - start), "behaviour": behaviour() if options.store else "", "first": options.first,
              "runs": number - options.first, "faults": faults, "requests": requests, "resent": resent, "ends": dict(ends)}
    print(json.dumps(record, indent=1))
    if options.store:
        write_atomically(RESULTS.parent, {RESULTS.name: json.dumps(record, indent=1) + "\n"})
    return 0


if __name__ == "__main__":
    sys.exit(main())
