"""`make digests`: docs/results/digests.json of today's sources, and which results are stale. It can be interrupted and goes on.

    python -m tritloom.sim.bench.current [PROCESSES]
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed

from tritloom.gen.verilog.digests import syntax_digest
from tritloom.sim.bench import stored
from tritloom.sim.bench.boards import listed_digests
from tritloom.system.files import write_atomically

PROCESSES = 2


def main(arguments: Sequence[str]) -> int:
    """Make docs/results/digests.json of today's sources, and say which results are stale. Exit status 1 if a machine cannot be emitted."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    say, started = logging.getLogger(__name__).info, time.monotonic()
    wanted = stored.machines()
    table = {name: found for name, config in wanted.items() if (found := stored.known(config))}
    missing = [name for name in wanted if name not in table]
    say("%d machines have results, %d of them must be emitted", len(wanted), len(missing))
    with ProcessPoolExecutor(int(arguments[0]) if arguments else PROCESSES) as pool:
        running = {pool.submit(stored.emitted, wanted[name]): name for name in missing}
        for done, future in enumerate(as_completed(running), 1):
            table[running[future]] = future.result()
            config, passed = wanted[running[future]], time.monotonic() - started
            say("%d of %d after %.0f s: %s, hidden %d, %d lanes", done, len(missing), passed, running[future], config.shape.hidden,
                config.lanes)
    made = {"command": "make digests", "sources": syntax_digest(), "verilog": dict(sorted(table.items())), "boards": listed_digests()}
    text = json.dumps(made, indent=1) + "\n"
    write_atomically(stored.DIGESTS.parent, {stored.DIGESTS.name: text})
    states = {place: stored.state_of(entry) for place, entry in stored.entries().items()}
    for place, state in states.items():
        if state != stored.CURRENT:
            say("%s: %s", place, state)
    say("%d of %d results are current", sum(state == stored.CURRENT for state in states.values()), len(states))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
