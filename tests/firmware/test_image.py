"""The image format, bytes in and bytes out (tests/host/test_image.py has files)."""

import numpy as np
import pytest

from tritloom.firmware.config import BuildConfig, ModelShape
from tritloom.firmware.image import Image, ImageError, encode
from tritloom.firmware.layout import memory_map

SHAPE = ModelShape(hidden=32, ffn=48, layers=2, heads=4, kv_heads=2, head_dim=8, vocab=70, context=64, activation="relu2", sub_norms=True)
CONFIG = BuildConfig(shape=SHAPE, vector_lanes=4, attention_macs=8)
MAP = memory_map(CONFIG)
SECTIONS = [*((name, np.arange(region.length).astype(np.uint8), region.base) for name, region in MAP.regions.items() if region.loaded),
            ("program", np.array([1], "<u8").view(np.uint8), None),
            ("descriptors", np.array(MAP.descriptor_words(), "<u8").view(np.uint8), None),
            ("memory_map", np.frombuffer(MAP.to_json().encode(), np.uint8), None), ("tokenizer", np.frombuffer(b"{}", np.uint8), None)]


def test_an_image_needs_no_file():
    encoded = encode(config=CONFIG, spec={"bos_id": 1, "eos_ids": [2]}, sections=SECTIONS)
    data = np.zeros(encoded.size, np.uint8)
    for offset, piece in encoded.pieces:
        assert not data[offset:].any()  # pieces come in order, and do not overlap
        data[offset : offset + len(piece)] = np.frombuffer(piece, np.uint8)
    image = Image.decode(data, "memory")
    assert (image.config, image.program, image.bos_id, image.stop_ids, image.tokenizer) == (CONFIG, [1], 1, (2,), b"{}")
    assert [(name, section.tolist()) for name, section, _ in SECTIONS] == [(name, image.section(name).tolist()) for name in image.table]
    data[-1] ^= 1
    with pytest.raises(ImageError, match=r"^memory: section tokenizer is damaged \(CRC\)"):
        Image.decode(data, "memory")
