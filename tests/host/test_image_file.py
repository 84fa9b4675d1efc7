import dataclasses
import json
import os
import zlib

import numpy as np
import pytest

from tritloom.firmware.config import BuildConfig, ModelShape
from tritloom.firmware.image import HEADER, ImageError, differing_fields
from tritloom.firmware.layout import memory_map
from tritloom.gen.models import ModelSpec, open_checkpoint
from tritloom.gen.pack import pack
from tritloom.host.image import open_image, write_image

SHAPE = ModelShape(hidden=32, ffn=48, layers=2, heads=4, kv_heads=2, head_dim=8, vocab=70, context=64, activation="relu2", sub_norms=True)
CONFIG = BuildConfig(shape=SHAPE, vector_lanes=4, attention_macs=8)
SPEC = {"name": "tiny", "bos_id": 1, "eos_ids": [2]}


MAP = memory_map(CONFIG)


def sections():
    text = np.frombuffer(MAP.to_json().encode(), np.uint8)
    loaded = [(name, np.arange(r.length).astype(np.uint8), r.base) for name, r in MAP.regions.items() if r.loaded]
    return [*loaded, ("program", np.array([1, 2**63], "<u8").view(np.uint8), None),
            ("descriptors", np.array(MAP.descriptor_words(), "<u8").view(np.uint8), None),
            ("memory_map", text, None), ("tokenizer", np.frombuffer(b"{}", np.uint8), None)]  # fmt: skip


@pytest.fixture
def path(tmp_path):
    return write_image(tmp_path / "tiny.img", config=CONFIG, spec=SPEC, sections=sections())


def test_round_trip(path):
    image = open_image(path)
    assert image.config == CONFIG and image.spec == SPEC and image.map == memory_map(CONFIG)
    assert image.program == [1, 2**63] and image.descriptors == MAP.descriptor_words() and image.tokenizer == b"{}"
    assert [(a, d.tolist()) for a, d in image.memory()] == [(a, d.tolist()) for _, d, a in sections()[:2]]
    assert isinstance(image.section("weights"), np.memmap) and all(s.offset % 4096 == 0 for s in image.table.values())
    with pytest.raises(ImageError, match="has no section nothing; pack the model again"):
        image.section("nothing")


def test_same_contents_same_bytes(path, tmp_path):
    other = write_image(tmp_path / "again.img", config=CONFIG, spec=SPEC, sections=sections())
    assert other.read_bytes() == path.read_bytes()


def change(data, at, value):
    return data[:at] + value + data[at + len(value) :]


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda d: b"", "not a tritloom image"),
        (lambda d: b"GGUF" + d[4:], "not a tritloom image"),
        (lambda d: d[:20], "truncated: 20 bytes"),
        (lambda d: d[:-1], "truncated: .* of .* bytes"),
        (lambda d: d + b"x", "1 bytes follow its end"),
        (lambda d: b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (lambda d: change(d, 8, b"\x09"), "image version 9, this tritloom reads version 2; update tritloom"),
        (lambda d: change(d, 8, b"\x01"), "image version 1, this tritloom reads version 2; pack the model again"),
        (lambda d: change(d, 12, b"\x00\x00\x00\x00"), "digest 00000000 is not its configuration's"),
        (lambda d: change(d, 60, b"?"), r"record is damaged \(CRC\)"),
        (lambda d: change(d, 8192, b"\xff"), r"section weights is damaged \(CRC\)"),
    ],
)
def test_damage(path, damage, message):
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ImageError, match=message) as error:
        open_image(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def other_record(data, change):
    """The image with its record changed, and a CRC that fits."""
    *fields, length, _ = HEADER.unpack(data[: HEADER.size])
    record = json.loads(data[HEADER.size : HEADER.size + length])
    change(record)
    body = json.dumps(record).encode()
    return (HEADER.pack(*fields, len(body), zlib.crc32(body)) + body).ljust(4096, b"\0") + data[4096:]


def assign(*path, value):
    def change(record):
        for key in path[:-1]:
            record = record[key]
        record[path[-1]] = value

    return change


@pytest.mark.parametrize(
    "change, message",
    [
        (assign("sections", value=None), "sections is missing or of another kind"),
        (assign("sections", 0, value=5), "a section is not a record"),
        (assign("sections", 0, "offset", value=-4096), "offset is missing or of another kind"),
        (assign("sections", 0, "offset", value=0), "section 'weights' lies outside the file or in another section"),
        (assign("sections", 0, "length", value=1 << 60), "section 'weights' lies outside the file"),
        (assign("sections", 1, "offset", value=4096), "section 'rope' lies outside the file or in another section"),
        (assign("sections", 1, "name", value="weights"), "section 'weights' twice"),
        (assign("sections", 0, "address", value=1 << 20), "section weights is not where its configuration has it"),
        (lambda record: record["sections"][4].pop("address"), "address is missing"),
        (assign("sections", 0, "address", value=None), "section weights is not where its configuration has it"),
        (assign("sections", 1, "name", value="head"), "section head is not where its configuration has it"),
        (assign("sections", 2, "name", value="firmware"), "has no section program"),
        (assign("config", value=[]), "config is missing or of another kind"),
        (assign("config", "lanes", value="4"), "lanes must be a positive integer"),
        (assign("spec", "eos_ids", value=[70]), "eos_ids: token 70 is not in the vocabulary"),
        (assign("spec", "eos_ids", value=5), "eos_ids: token None is not in the vocabulary"),
        (assign("spec", "bos_id", value="1"), "bos_id: token '1' is not in the vocabulary"),
    ],
)
def test_records_that_are_not_its_own(path, change, message):
    path.write_bytes(other_record(path.read_bytes(), change))
    with pytest.raises(ImageError, match=message) as error:
        open_image(path)
    assert "\n" not in str(error.value)


def test_missing(tmp_path):
    with pytest.raises(ImageError, match="no such image"):
        open_image(tmp_path / "none.img")


def test_failed_write_leaves_the_old_image(path):
    before = path.read_bytes()

    def fail(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_image(path, config=CONFIG, spec={}, sections=sections(), progress=fail)
    assert path.read_bytes() == before and os.listdir(path.parent) == [path.name]


def test_mismatch_names_the_fields(path):
    image = open_image(path)
    image.require_digest(CONFIG.digest)
    machine = dataclasses.replace(CONFIG, lanes=8, shape=dataclasses.replace(SHAPE, context=32))
    assert differing_fields(CONFIG, machine) == [("shape.context", 64, 32), ("lanes", 4, 8)]
    with pytest.raises(ImageError, match=r"shape.context 64 \(machine: 32\), lanes 4 \(machine: 8\); pack the model for this machine"):
        image.require_digest(machine.digest, machine)
    with pytest.raises(ImageError, match="the machine has 00000001; pack"):
        image.require_digest(1, machine)


def test_shipped_model(request, tmp_path):
    checkpoint = open_checkpoint(request.config.rootpath / "models" / "stories-260k", context=64)
    config = BuildConfig(shape=checkpoint.spec.shape, attention_macs=16)
    packed = pack(checkpoint, config)
    image = open_image(write_image(tmp_path / "s.img", config=config, spec=packed.spec.to_dict(), sections=packed.sections))
    assert ModelSpec.from_dict(image.spec) == packed.spec and image.map == packed.map and tuple(image.program) == packed.program
    assert image.tokenizer == checkpoint.tokenizer.read_bytes()
    for (a, x), (b, y) in zip(image.memory(), packed.memory(), strict=True):
        assert a == b and (x == y).all()
