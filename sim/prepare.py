"""What a run of a model needs, made once and kept: its image and its simulation."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from tritloom.boards.board import load
from tritloom.firmware.config import BuildConfig
from tritloom.firmware.image import Image, ImageError
from tritloom.host.image import open_image, write_image
from tritloom.sim.backends import SimBackend
from tritloom.sim.board import SimulatedBoard
from tritloom.sim.waves import Waves
from tritloom.system.files import cache
from tritloom.system.steps import Steps, timed_step

if TYPE_CHECKING:
    from tritloom.gen.models import Checkpoint
    from tritloom.gen.source import Source


def _sources_key(*packages: str) -> str:
    """Digest of the package's own code: what it made with other code is made again."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for package in packages:
        for path in sorted((root / package).rglob("*.py")):
            digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def image_of(source: Source, checkpoint: Checkpoint, config: BuildConfig, steps: Steps) -> Image:
    """The weight image, from the cache if neither model nor packer has changed."""
    folder = cache("images")
    described = f"{config.to_json()}{checkpoint.spec.to_json()}{source.key()}".encode()
    content = hashlib.sha256(described + checkpoint.tokenizer.read_bytes()).hexdigest()[:16]
    name = f"{config.digest:08x}-{content}"
    path = folder / f"{name}-{_sources_key('gen', 'firmware')[:16]}.img"
    if path.is_file():
        try:
            return open_image(path)
        except ImageError:
            steps.note("the cached image is damaged: packing again")
    write_image_of(path, checkpoint, config, steps)
    for older in folder.glob(f"{name}-*.img"):
        if older != path:
            older.unlink(missing_ok=True)
    return open_image(path)


def write_image_of(path: Path, checkpoint: Checkpoint, config: BuildConfig, steps: Steps) -> None:
    """Pack a model for a configuration into `path`."""
    from tritloom.gen.pack import pack

    with steps.step("Packing the weights") as update:
        packed = pack(checkpoint, config, progress=lambda done, total: update(0.9 * done, total))
        write_image(
            path,
            config=packed.config,
            spec=packed.spec.to_dict(),
            sections=packed.sections,
            progress=lambda done, total: update(0.9 + 0.1 * done / total),
        )


def open_simulation(config: BuildConfig, memory_bytes: int, timing: str, steps: Steps, waves: Waves | None = None) -> SimBackend:
    """The machine's Verilog, compiled and reset, with its memory; it writes `waves`, if there are any to write."""
    from tritloom.gen.verilog.generate import cached_verilog

    with timed_step(steps, "Generating Verilog"):
        verilog = cached_verilog(config)
    with timed_step(steps, "Compiling the simulation") as update:
        return SimBackend.build(
            config, verilog, memory_bytes=memory_bytes, timing=timing, waves=waves,
            progress=lambda fraction, text: update(fraction, 1.0, text),
        )


def open_board(config: BuildConfig, board: str, steps: Steps) -> SimulatedBoard:
    """The machine's whole board at its pins, compiled and switched on."""
    with timed_step(steps, "Compiling the board's simulation") as update:
        return SimulatedBoard(config, load(board), progress=lambda fraction, text: update(fraction, 1.0, text))
