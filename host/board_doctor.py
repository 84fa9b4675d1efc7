"""Whether a machine beside this processor can work: what the kit has installed on a board, and what Linux gives it. Read-only."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tritloom.firmware.config import BuildConfig
from tritloom.firmware.errors import TritloomError
from tritloom.firmware.image import Image
from tritloom.firmware.registers import IDENTIFIER, MAP_VERSION, REGISTER
from tritloom.host.backends import axi

__all__ = ["board_findings"]

INSTALL = "sudo kria/install.sh, of the kit"


class _Wrong(TritloomError):
    """What was looked for is not as it should be; the message says what was seen."""


def board_findings(config: BuildConfig, image: Image | None, *, registers: int, windows: Sequence[tuple[int, int]],
                   root: Path = Path("/"), window: Callable[[Path], axi.Registers] = axi.Window) -> list[dict[str, Any]]:
    """One row for each requirement, as `host.doctor.findings` gives them. `config`: the machine's; `image`: what is to run on it;
    `registers`: their physical address; `windows`: first address and bytes of what memory ports reach."""
    rows: list[dict[str, Any]] = []

    def look(name: str, fix: str, check: Callable[[], str]) -> bool:
        try:
            ok, detail = True, check()
        except PermissionError as error:
            ok, detail, fix = False, f"{error.filename}: {error.strerror}", "run as root: sudo"
        except (TritloomError, OSError, ValueError) as error:
            ok, detail = False, " ".join(str(error).split())
        rows.append({"name": name, "ok": ok, "detail": detail, "fix": "" if ok else fix, "needed_for": "--backend axi", "required": True})
        return ok

    def uio() -> str:
        path, address = axi.find_uio(root)
        if address != registers:
            raise _Wrong(f"{path.name} has {address:#x}, the kit says {registers:#x}")
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
            raise _Wrong(f"ID 0x{identifier:08x}, register map {version}: not a machine of this version")
        if digest != config.digest:
            raise _Wrong(f"digest {digest:08x}, {'the image' if image else 'the configuration'} has {config.digest:08x}")
        return f"digest {digest:08x}"

    def buffer(port: int) -> str:
        size, physical = axi.stripe_place(root, port, axi.stripe_bytes(config, image.map.total_bytes) if image else 0)
        if not any(low <= physical and physical + size <= low + length for low, length in windows):
            raise _Wrong(f"{size:,} bytes at {physical:#x}, where no memory port reaches all of them")
        return f"{size:,} bytes at {physical:#x}"

    def contiguous() -> str:
        text = (root / "proc/meminfo").read_text("ascii")
        found = {name: int(value) for name, value in re.findall(r"^(Cma\w+):\s+(\d+) kB", text, re.M)}
        if not found.get("CmaTotal"):
            raise _Wrong("this kernel reserves none")
        return f"{found['CmaTotal'] >> 10} MiB, {found.get('CmaFree', 0) >> 10} free"

    def load() -> str:
        busy = float((root / "proc/loadavg").read_text("ascii").split()[0])
        if busy > 0.5:
            raise _Wrong(f"{busy:g} processes want the processor's {os.cpu_count()} cores")
        return f"{busy:g}"

    if look("registers", INSTALL, uio):
        look("machine", "build the kit for this model, or take the image that was packed for this machine", machine)
    look("fabric clock", f"{INSTALL}: the overlay sets it", clock)
    rows[-1]["required"] = axi.fabric_clock(root) is not None  # where it cannot be read the backend does without
    buffers = [look(f"buffer {axi.NAME}{port}", f"modprobe u-dma-buf, cma= as the kit's memory.txt says, then {INSTALL}",
                    lambda port=port: buffer(port)) for port in range(config.mem_ports)]
    # What is left does not matter once the buffers are there.
    look("contiguous memory", "cma= on the kernel's command line, as the kit's memory.txt says", contiguous)
    rows[-1]["required"] = not all(buffers)
    look("load", "see `top`, and end what is not needed: the host's part of a token waits for it", load)
    rows[-1]["required"] = False
    return rows
