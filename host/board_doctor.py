"""Whether a machine beside this processor can work: what the kit has installed on a board, what Linux gives it, what it writes.

Nothing is changed until all is found well; then, with an image in which tokens are recorded, the model is loaded and writes them."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from tritloom.firmware.config import BuildConfig
from tritloom.firmware.image import Image
from tritloom.firmware.registers import IDENTIFIER, MAP_VERSION, REGISTER
from tritloom.host.backends import axi
from tritloom.host.backends.protocol import Backend
from tritloom.host.findings import Findings, Wrong
from tritloom.host.session import Session
from tritloom.host.stats import Stats

__all__ = ["board_findings"]

SLOWEST = 0.8
"""Of the projected speed."""


def board_findings(config: BuildConfig, image: Image | None, *, registers: int, windows: Sequence[tuple[int, int]],
                   root: Path = Path("/"), window: Callable[[Path], axi.Registers] = axi.Window,
                   backend: Callable[[BuildConfig, int], Backend] | None = None) -> list[dict[str, Any]]:
    """One row for each requirement, as `host.findings` has them. `config`: the machine's; `image`: what is to run on it;
    `registers`: their physical address; `windows`: first address and bytes of what memory ports reach; `backend`: the machine, of a
    configuration and bytes of memory."""
    found, test = Findings("--backend axi"), None
    measured: list[Stats] = []
    open_machine = backend or (lambda config, memory_bytes: axi.AxiBackend(config, memory_bytes, root=root))
    look, rows = found.look, found.rows

    def uio() -> str:
        path, address = axi.find_uio(root)
        if address != registers:
            raise Wrong(f"{path.name} has {address:#x}, the kit says {registers:#x}")
        return f"{path.name} at {address:#x}"

    def clock() -> str:
        rate = axi.check_clock(root, config.clock_hz)
        if rate is None:
            raise PermissionError(errno.EACCES, "cannot be read", f"/{axi.CLOCK}")
        return f"{rate / 1e6:g} MHz"

    def machine() -> str:
        opened = window(axi.find_uio(root)[0])
        try:
            identifier, version, digest = (opened.read(REGISTER[name].address) for name in ("ID", "VERSION", "DIGEST"))
        finally:
            opened.close()
        if identifier != IDENTIFIER or version != MAP_VERSION:
            raise Wrong(f"ID 0x{identifier:08x}, register map {version}: not a machine of this version")
        if digest != config.digest:
            raise Wrong(f"digest {digest:08x}, {'the image' if image else 'the configuration'} has {config.digest:08x}")
        return f"digest {digest:08x}"

    def buffer(port: int) -> str:
        size, physical = axi.stripe_place(root, port, axi.stripe_bytes(config, image.map.total_bytes) if image else 0)
        if not any(low <= physical and physical + size <= low + length for low, length in windows):
            raise Wrong(f"{size:,} bytes at {physical:#x}, where no memory port reaches all of them")
        return f"{size:,} bytes at {physical:#x}"

    def contiguous() -> str:
        text = (root / "proc/meminfo").read_text("ascii")
        found = {name: int(value) for name, value in re.findall(r"^(Cma\w+):\s+(\d+) kB", text, re.M)}
        if not found.get("CmaTotal"):
            raise Wrong("this kernel reserves none")
        return f"{found['CmaTotal'] >> 10} MiB, {found.get('CmaFree', 0) >> 10} free"

    def load() -> str:
        busy = float((root / "proc/loadavg").read_text("ascii").split()[0])
        if busy > 0.5:
            raise Wrong(f"{busy:g} processes want the processor's {os.cpu_count()} cores")
        return f"{busy:g}"

    def self_test() -> str:
        if test is None:
            raise Wrong("the image has no tokens recorded", "tritloom build --board kv260 writes one that has them")
        assert image
        with closing(open_machine(config, image.map.total_bytes)) as device, Session(device, image) as session:
            tokens = list(session.generate(test.prompt, len(test.tokens)))
            measured.append(session.stats())
        for number, (token, expected) in enumerate(zip(tokens, test.tokens, strict=True), 1):
            if token != expected:
                raise Wrong(f"token {number} of {len(tokens)} is {token}, not {expected}", "build the kit with a lower clock, such as "
                            f"--set clock_hz={config.clock_hz * 4 // 5}: the machine does not keep up")
        return f"{len(tokens)} tokens as recorded"

    def speed() -> str:
        assert test
        cycles = measured[0].decode_cycles_per_token
        if cycles is None:
            return "one token has no speed"
        text = f"{config.clock_hz / cycles:.1f} tokens/s, projected {config.clock_hz / test.cycles_per_token:.1f}"
        if cycles * SLOWEST > test.cycles_per_token:
            raise Wrong(text, "see `top` for what else uses the memory, and that the kit's overlay is loaded: sudo kria/install.sh")
        return text

    if look("registers", uio, axi.INSTALL):
        look("machine", machine, "build the kit for this model, or take the image that was packed for this machine")
    look("fabric clock", clock, f"{axi.INSTALL}: the overlay sets it")
    rows[-1]["required"] = axi.fabric_clock(root) is not None  # where it cannot be read the backend does without
    buffers = [look(f"buffer {axi.NAME}{port}", lambda port=port: buffer(port),
                    f"modprobe u-dma-buf, cma= as the kit's plan.txt says, then {axi.INSTALL}") for port in range(config.mem_ports)]
    # What is left does not matter once the buffers are there.
    look("contiguous memory", contiguous, "cma= on the kernel's command line, as the kit's plan.txt says")
    rows[-1]["required"] = not all(buffers)
    look("load", load, "see `top`, and end what is not needed: the host's part of a token waits for it")
    rows[-1]["required"] = False
    if image and all(row["ok"] for row in rows if row["required"]):
        test = image.self_test
        if look("self-test", self_test, "sudo kria/remove.sh, sudo kria/install.sh, then again", required=test is not None):
            look("speed", speed, required=False)
    return rows
