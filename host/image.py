"""Image files (`firmware.image` has the format): written whole, opened as a map of the file."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from tritloom.firmware.config import BuildConfig
from tritloom.firmware.image import Bytes, Image, ImageError, encode
from tritloom.system.files import replaced

BUILT = "model.image"
"""The image in a folder that `tritloom build` wrote."""
WRITTEN_BYTES = 16 << 20
"""Bytes that are written at once."""


def write_image(
    path: str | Path,
    *,
    config: BuildConfig,
    spec: dict[str, Any],
    sections: Iterable[tuple[str, Bytes, int | None]],
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write an image in one step: the file at `path` is either the old one or the whole new one.

    `sections` are (name, bytes, address or None); `progress` is told (bytes written, bytes in all).
    """
    path, image = Path(path), encode(config=config, spec=spec, sections=sections)
    with replaced(path) as place, open(place, "wb") as file:
        for offset, data in image.pieces:
            file.seek(offset)
            array = np.frombuffer(data, np.uint8)
            for start in range(0, len(array), WRITTEN_BYTES):
                file.write(array[start : start + WRITTEN_BYTES].data)
            if progress:
                progress(offset + len(data), image.size)
        file.truncate(image.size)
    return path


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
