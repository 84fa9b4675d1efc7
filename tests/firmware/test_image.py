"""The image format, bytes in and bytes out (tests/host/test_image.py has files)."""

import numpy as np
import pytest

from tritloom.firmware.config import BuildConfig, ModelShape
from tritloom.firmware.image import SELF_TEST, Image, ImageError, SelfTest, encode, whole
from tritloom.firmware.layout import memory_map

SHAPE = ModelShape(hidden=32, ffn=48, layers=2, heads=4, kv_heads=2, head_dim=8, vocab=70, context=64, activation="relu2", sub_norms=True)
CONFIG = BuildConfig(shape=SHAPE, vector_lanes=4, attention_macs=8)
MAP = memory_map(CONFIG)
SECTIONS = [*((name, np.arange(region.length).astype(np.uint8), region.base) for name, region in MAP.regions.items() if region.loaded),
            ("program", np.array([1], "<u8").view(np.uint8), None),
            ("descriptors", np.array(MAP.descriptor_words(), "<u8").view(np.uint8), None),
            ("memory_map", np.frombuffer(MAP.to_json().encode(), np.uint8), None), ("tokenizer", np.frombuffer(b"{}", np.uint8), None)]


def written(sections):
    encoded = encode(config=CONFIG, spec={"bos_id": 1, "eos_ids": [2]}, sections=[whole(*section) for section in sections])
    end = len(encoded.header([0xFFFFFFFF] * len(encoded.sections)))
    for section, offset in zip(encoded.sections, encoded.offsets, strict=True):
        assert offset >= end  # sections come in order, behind the longest header, and do not overlap
        end = offset + section.length
    assert encoded.size >= end
    return encoded.bytes()


def test_an_image_needs_no_file():
    data = written(SECTIONS)
    image = Image.decode(data, "memory")
    assert (image.config, image.program, image.bos_id, image.stop_ids, image.tokenizer) == (CONFIG, [1], 1, (2,), b"{}")
    assert [(name, section.tolist()) for name, section, _ in SECTIONS] == [(name, image.section(name).tolist()) for name in image.table]
    data[-1] ^= 1
    with pytest.raises(ImageError, match=r"^memory: section tokenizer is damaged \(CRC\)"):
        Image.decode(data, "memory")


def test_what_a_self_test_must_give():
    test = SelfTest([1, 69], [3], 12.5)
    assert Image.decode(written([*SECTIONS, (SELF_TEST, test.to_bytes(), None)]), "memory").self_test == test
    assert Image.decode(written(SECTIONS), "memory").self_test is None


@pytest.mark.parametrize("text, said", [
    (b"{", "Expecting property name"), (b"[]", "prompt is missing"),
    (b'{"prompt": [], "tokens": [1], "cycles_per_token": 1.5}', "0 and 1 tokens"),
    (b'{"prompt": [70], "tokens": [1], "cycles_per_token": 1.5}', "token 70 is not in the vocabulary"),
    (b'{"prompt": [1], "tokens": [true], "cycles_per_token": 1.5}', "token True is not"),
    (b'{"prompt": [1], "tokens": [1], "cycles_per_token": 1}', "cycles_per_token is missing or of another kind"),
])
def test_a_self_test_that_is_none(text, said):
    image = Image.decode(written([*SECTIONS, (SELF_TEST, np.frombuffer(text, np.uint8), None)]), "memory")
    with pytest.raises(ImageError, match=f"section self_test cannot be read .*{said}.*pack the model again"):
        assert image.self_test
