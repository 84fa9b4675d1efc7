"""Image files (`firmware.image` has the format): written whole, opened as a map of the file."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from tritloom.firmware.config import BuildConfig
from tritloom.firmware.image import Bytes, Encoded, Image, ImageError, encode, whole
from tritloom.system.growing import Growing, growing

BUILT = "model.image"
"""The image in a folder that `tritloom build` wrote."""

Progress = Callable[[int, int], None]


def write_image(
    path: str | Path,
    *,
    config: BuildConfig,
    spec: dict[str, Any],
    sections: Iterable[tuple[str, Bytes, int | None]],
    progress: Progress | None = None,
) -> Path:
    """Write an image in one step: the file at `path` is either the old one or the whole new one.

    `sections` are (name, bytes, address or None); `progress` is told (bytes written, bytes in all).
    """
    with growing(Path(path)) as file:
        write_pieces(file, encode(config=config, spec=spec, sections=[whole(*section) for section in sections]), progress)
    return Path(path)


def write_pieces(file: Growing, image: Encoded, progress: Progress | None = None, found: Progress | None = None) -> None:
    """Write an image piece by piece, but for those that are there. `found` is told (bytes there, bytes in all) of these, once, if there are
    any; `progress` as in `write_image`."""
    checks, there, at = [], 0, 0
    for section, offset in zip(image.sections, image.offsets, strict=True):
        crc, at = 0, offset
        for length, make in section.pieces:
            crc, was = file.piece(at, length, crc, make)
            at += length
            if was:
                there = at
            elif there:
                if found:
                    found(there, image.size)
                there = 0
            if progress:
                progress(at, image.size)
        checks.append(crc)
    file.end(image.header(checks), image.size)


def open_image(path: str | Path, *, verify: bool = True) -> Image:
    """Map an image and check it; without `verify` the sections' CRCs are left out. Raises `ImageError`."""
    path = Path(path)
    if not path.is_file():
        raise ImageError(f"{path}: no such image; pack one from a model")
    try:
        data: Bytes = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.zeros(0, np.uint8)
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None
    return Image.decode(data, str(path), verify=verify)
