"""How long an image takes over the line to a board, in the line's own time: the host's end of the link, 3 Mbaud with an adapter's latency,
and the model of the device (tests/line.py, link_model.py).

`make upload` (`python upload.py --store`) uploads the image of stories-27m for an ULX3S and stores docs/results/upload.json. In RTL, at the
pins of a board: tests/sim/test_board.py.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from line import Line
from link_model import LinkDevice
from tritloom.firmware.registers import REGISTER
from tritloom.host.backends.uart import UartBackend
from tritloom.host.link import Link

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results" / "upload.json"
ROUND_TRIPS_MS = (1, 16)
"""Of an FT231X with the latency timer that the host asks for, and with the one that it has otherwise."""
CHECKED = 100_000
"""Random bytes that the suite uploads to compare with the stored run."""


@dataclass
class Memory:
    """The registers through which memory is loaded."""

    at: int = 0
    content: bytearray = field(default_factory=bytearray)

    def wait(self, cycles: int) -> int:
        return cycles

    def read(self, address: int) -> int:
        return 0

    def write(self, address: int, value: int) -> bool:
        if address == REGISTER["MEMORY_ADDRESS"].address:
            self.at = value
        elif address == REGISTER["MEMORY_DATA"].address:
            self.content[self.at : self.at + 4] = value.to_bytes(4, "little")
            self.at += 4
        return True


def upload(pieces: list[tuple[int, Any]], round_trip_ms: float) -> dict[str, Any]:
    """Seconds that bytes at their addresses take, and the part of the line's rate that they have. Raises if they do not arrive whole."""
    memory = Memory(content=bytearray(max(at + len(data) for at, data in pieces)))
    line = Line(LinkDevice(memory), latency_s=round_trip_ms / 2000)
    link = Link(line.open, name="line", baud=line.baud, clock=line.clock, sleep=line.sleep, chance=random.Random(1))
    backend = UartBackend("", through=link)
    start, count = line.now, sum(len(data) for _, data in pieces)
    for at, data in pieces:
        backend.load(at, data)
    for at, data in pieces:
        if memory.content[at : at + len(data)] != bytes(data):
            raise AssertionError(f"what was loaded at {at} is not there")
    return {"round_trip_ms": round_trip_ms, "bytes": count, "seconds": round(line.now - start, 3),
            "line_rate_share": round(10 * count / (line.now - start) / line.baud, 4)}


def check() -> list[dict[str, Any]]:
    """The same of random bytes, soon done."""
    return [upload([(64, random.Random(1).randbytes(CHECKED))], each) for each in ROUND_TRIPS_MS]


def main(arguments: list[str] | None = None) -> int:
    from tritloom.gen.fit.fitted import fitted
    from tritloom.gen.source import Source
    from tritloom.host.console import Console
    from tritloom.sim.prepare import image_of

    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--store", action="store_true", help="write docs/results/upload.json")
    options = parser.parse_args(arguments)
    source = Source(folder=ROOT / "models" / "stories-27m")
    checkpoint = source.open()
    image = image_of(source, checkpoint, fitted(checkpoint.spec, "ulx3s", {}).config, Console())
    record = {"date": datetime.now(timezone.utc).date().isoformat(), "command": "make upload", "model": source.path.name, "board": "ulx3s",
              "kind": "model of the device", "baud": 3_000_000, "runs": [upload(image.memory(), each) for each in ROUND_TRIPS_MS],
              "check": check()}
    print(json.dumps(record, indent=1))
    if options.store:
        from tritloom.system.files import write_atomically

        write_atomically(RESULTS.parent, {RESULTS.name: json.dumps(record, indent=1) + "\n"})
    return 0


if __name__ == "__main__":
    sys.exit(main())
