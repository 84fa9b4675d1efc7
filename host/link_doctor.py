"""Whether a board at a serial port can work: its port, its link and the machine behind it. Nothing is written to the machine."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tritloom.firmware import link
from tritloom.firmware.errors import InputError
from tritloom.firmware.registers import IDENTIFIER, MAP_VERSION, MEMORY_FAILED, REGISTER
from tritloom.host.backends.protocol import DeviceBusy
from tritloom.host.findings import Findings, Wrong
from tritloom.host.link import Link, LinkError, NoAnswer

__all__ = ["BAUDS", "holders", "link_findings"]

BAUDS = (3_000_000, 2_000_000, 1_000_000, 921_600, 460_800, 230_400, 115_200, 12_000_000, 4_000_000)
"""Rates at which a board that is silent at its own may have been built."""
STATUS = REGISTER["STATUS"]
RELEASE = "build and flash the board with this release: tritloom build, tritloom flash"


def holders(path: str, root: Path = Path("/proc")) -> list[str]:
    """Processes that have a port open, as far as this user may see them: their names and numbers."""
    found, target = [], os.path.realpath(path)
    for process in root.glob("[0-9]*"):
        with suppress(OSError):
            if int(process.name) != os.getpid() and any(os.path.realpath(file) == target for file in (process / "fd").iterdir()):
                found.append(f"{(process / 'comm').read_text('utf-8').strip()}, process {process.name}")
    return found


def link_findings(open_link: Callable[[int], Link], *, port: str, baud: int, digest: int | None, memory_bytes: int | None, board_bytes: int,
                  others: Sequence[int], probes: int) -> list[dict[str, Any]]:
    """One row for each thing that must be as it should be, as `host.findings` has them.

    `open_link`: opens the link at a baud rate; `baud`: the board's. `digest`, `memory_bytes`: of the machine that should be there, and what
    its model needs of the board's `board_bytes`; None: nothing was said. `others`: rates to try where nothing answers; `probes`: requests
    whose answers are compared.
    """
    found = Findings("--backend uart")
    opened: list[Link] = []

    def there() -> str:
        try:
            opened.append(open_link(baud))
        except LinkError as error:
            failed.append(error)
        except (InputError, DeviceBusy) as error:
            if isinstance(error, DeviceBusy) and (names := holders(port)):
                raise Wrong(f"{port} is open in another program ({'; '.join(names)})", "end it first") from None
            raise
        return port

    def answers() -> str:
        if failed:
            raise failed[0]
        return f"protocol {link.VERSION}, the board's clock is {opened[0].clock_hz / 1e6:g} MHz"

    def rate() -> str:
        if opened:
            return f"{baud} baud"
        for other in others:
            with suppress(LinkError):
                if other != baud:
                    open_link(other).close()
                    raise Wrong(f"the board answers at {other} baud, this board's rate is {baud}",
                                "give --board the board of this bitstream, or flash the bitstream of this board: tritloom flash DIR")
        raise Wrong(f"nothing answers at {baud} baud, nor at {len(set(others) - {baud})} other rates",
                    "load the bitstream: tritloom flash DIR; else see cable, power and the port's name")

    def version() -> str:
        identifier, version = read("ID", "VERSION")
        if identifier != IDENTIFIER:
            raise Wrong(f"ID 0x{identifier:08x}: no tritloom machine is behind the link", RELEASE)
        if version != MAP_VERSION:
            raise Wrong(f"register map {version}, this host knows {MAP_VERSION}", RELEASE)
        return f"register map {version}"

    def build() -> str:
        (there,) = read("DIGEST")
        if digest is None:
            return f"digest {there:08x}; with a model or --image it is compared"
        if there != digest:
            raise Wrong(f"digest {there:08x} on the board, {digest:08x} asked for",
                        "flash the bitstream of this model, or take the model of this bitstream: both are in one folder of tritloom build")
        return f"digest {there:08x}"

    def state() -> str:
        status, code, waiting, ports = read("STATUS", "HALT_CODE", "TOKEN_LEVEL", "MEMORY_PORTS")
        if STATUS["MEMORY_ERROR"].get(status) or code == MEMORY_FAILED:
            raise Wrong(f"the memory answered with an error (MEMORY_PORTS 0x{ports:08x})",
                        "press the board's reset button, and run again; if it comes back, the memory or its clock is not right")
        if STATUS["RESETTING"].get(status):
            raise Wrong("a reset does not end", "press the board's reset button")
        names = [name.lower() for name in ("RUNNING", "HALTED", "STOPPED") if STATUS[name].get(status)]
        return f"{', '.join(names) or 'idle'}, {waiting} tokens wait" + ("; the next run stops it" if "running" in names else "")

    def memory() -> str:
        if memory_bytes is None:
            return f"{board_bytes / (1 << 20):.1f} MiB"
        if memory_bytes > board_bytes:
            raise Wrong(f"the model needs {memory_bytes / (1 << 20):.1f} of {board_bytes / (1 << 20):.1f} MiB",
                        "build with a smaller --context, or a smaller model")
        return f"{memory_bytes / (1 << 20):.1f} of {board_bytes / (1 << 20):.1f} MiB are needed"

    def readings() -> str:
        names, times = ("ID", "VERSION", "DIGEST"), link.ANSWER_WORDS // 3
        first = read(*names)
        for _ in range(probes):
            if read(*names * times) != first * times:
                raise Wrong("two readings of the same register differ", "the machine does not keep up: build it with a lower clock_hz")
        return f"{probes * times * len(names):,} readings alike"

    def transfers() -> str:
        seen = opened[0].statistics
        if seen.resent or seen.broken_answers or seen.timeouts:
            raise Wrong(f"of {seen.requests} requests {seen.resent} were sent again, {seen.broken_answers} answers came damaged, "
                        f"{seen.timeouts} not in time", "a shorter cable, or another port of the computer: what is lost is sent again")
        return f"{seen.requests} requests, all answered at once and whole"

    def read(*registers: str) -> tuple[int, ...]:
        return opened[0].ask([link.read_item(REGISTER[name].address) for name in registers])

    failed: list[LinkError] = []
    if not found.look("port", there):
        return found.rows
    try:
        found.look("link", answers)
        if opened or isinstance(failed[0], NoAnswer):
            found.look("baud rate", rate)
        if opened and found.look("version", version):
            found.look("machine", build)
            found.look("state", state)
            found.look("memory", memory)
            found.look("registers", readings)
            found.look("transfers", transfers, required=False)
    finally:
        for each in opened:
            each.close()
    return found.rows
