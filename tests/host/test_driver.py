"""The driver's guide: what docs/driver.md says of the image, and docs/driver.c on the emulator (on the RTL: test_whole_machine.py)."""

import re
import struct
import zlib

import numpy as np
import pytest

import cdriver
from synthetic import hugging_face
from tritloom.firmware.config import BuildConfig
from tritloom.firmware.registers import REGISTER
from tritloom.gen.models import open_checkpoint
from tritloom.gen.pack import pack
from tritloom.host.backends.emulator import EmulatorBackend
from tritloom.host.image import open_image, write_image
from tritloom.host.session import Session

GUIDE = cdriver.SOURCE.with_name("driver.md").read_text("utf-8")
PROMPT = [5, 6, 7, 8, 9, 10, 11]


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return cdriver.build(tmp_path_factory.mktemp("c"))


@pytest.fixture(scope="module", params=[{"mem_ports": 2}, {"memory": "onchip", "onchip_bytes": 1 << 16}], ids=["two ports", "on the chip"])
def image(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("driver")
    checkpoint = open_checkpoint(hugging_face(folder / "model"))
    config = BuildConfig(shape=checkpoint.spec.shape, lanes=2, tables=2, rows_per_cycle=2, vector_lanes=4, attention_macs=8, mem_bytes=16,
                         sampler_candidates=24, **request.param)
    packed = pack(checkpoint, config)
    return open_image(write_image(folder / "image", config=config, spec=checkpoint.spec.to_dict(), sections=packed.sections))


@pytest.fixture
def driver(library, image):
    return cdriver.Driver(library, EmulatorBackend(image.config, image.map.total_bytes), image.map.total_bytes)


@pytest.mark.slow
def test_it_writes_the_session_s_tokens(driver, image):
    with Session(EmulatorBackend(image.config, image.map.total_bytes), image) as session:
        expected = list(session.generate(PROMPT, 12))
    driver.load(image.data.tobytes())
    for _ in range(2):  # a text leaves nothing behind
        assert driver.generate(PROMPT, 12)[0] == expected
    assert driver.generate(PROMPT, 12, stop=expected[3])[0] == expected[: expected.index(expected[3]) + 1]
    long = (PROMPT * 9)[:62]  # nearly as long as the context
    with Session(EmulatorBackend(image.config, image.map.total_bytes), image) as session:
        assert driver.generate(long, 2)[0] == list(session.generate(long, 2))


def test_it_writes_what_the_session_writes_into_registers(driver, image):
    """Ports, program, descriptors and arguments, besides what concerns the memory, and resets."""
    backend = EmulatorBackend(image.config, image.map.total_bytes)
    with Session(backend, image) as session:
        list(session.generate(PROMPT, 2))
        driver.load(image.data.tobytes())
        driver.generate(PROMPT, 2)
        assert (driver._backend.program, driver._backend.descriptors) == (backend.program, backend.descriptors)
        named = [name for name in REGISTER if name.startswith("ARG") and name not in ("ARG4", "ARG6", "ARG7")] + ["ENTRY"]
        assert [driver._backend.registers[name] for name in named] == [backend.registers[name] for name in named]
    bases = [item for item in driver.written if item[0].startswith("PORT_BASE")]
    assert bases == ([("PORT_BASE0", 0), ("PORT_BASE_HIGH0", 8), ("PORT_BASE1", 4096), ("PORT_BASE_HIGH1", 8)]
                     if image.config.memory == "axi" else [])


@pytest.mark.parametrize("change, message", [
    (lambda data: b"GGUF" + data[4:], "not an image"),
    (lambda data: data[:8] + b"\3" + data[9:], "not an image of version 2"),
    (lambda data: data[:20], "not an image"),
    (lambda data: data[:-1], "truncated"),
    (lambda data: data[:60] + b"x" + data[61:], "record is damaged"),
    (lambda data: data[:12] + b"\0\0\0\0" + data[16:], "another machine"),
    (lambda data: data[:-1] + bytes([data[-1] ^ 1]), "section of the image is damaged"),
], ids=["other", "newer", "short", "cut", "record", "digest", "section"])
def test_a_wrong_image_is_refused(driver, image, change, message):
    with pytest.raises(RuntimeError, match=message):
        driver.load(change(image.data.tobytes()))


def test_errors_of_the_device_end_a_text(driver, image, monkeypatch):
    driver.load(image.data.tobytes())
    monkeypatch.setattr(driver, "_pause", lambda: setattr(driver._backend, "errors", 1))
    with pytest.raises(RuntimeError, match="the memory answered with an error"):
        driver.generate(PROMPT, 12)
    driver.reset()
    assert not driver._backend.errors
    monkeypatch.setattr(driver, "_pause", lambda: None)  # a device that comes to nothing
    with pytest.raises(RuntimeError, match="came to a halt"):
        driver.generate(PROMPT, 12)


def test_the_guide_knows_the_image(image):
    rows = re.findall(r"^\| (\d+) \| (\d+) \| (.*) \|$", GUIDE, re.M)
    data = image.data.tobytes()
    found = {text.split(":")[0]: data[int(at) : int(at) + int(size)] for at, size, text in rows}
    (magic, version, digest, size, length, crc) = found.values()
    record = data[32 : 32 + int.from_bytes(length, "little")]
    said = re.search(r"version: (\d+)", GUIDE)
    assert said and (magic, int.from_bytes(version, "little")) == (b"TRITLOOM", int(said[1]))
    assert struct.unpack("<IQI", digest + size + crc) == (image.digest, len(data), zlib.crc32(record))
    sections = set(re.findall(r"^\| `(\w+)`(?:, `(\w+)`)? \|", GUIDE, re.M))
    assert set(image.table) <= {name for pair in sections for name in pair}
    assert zlib.crc32(b"123456789") == 0xCBF43926


def test_the_guide_knows_the_stripes(image):
    c = image.config
    part = c.mem_bytes // c.mem_ports
    logical = np.arange(4 * c.mem_bytes)
    stripes = logical.reshape(-1, c.mem_ports, part)
    port, at = logical % c.mem_bytes // part, logical // c.mem_bytes * part + logical % part
    assert (stripes.transpose(1, 0, 2).reshape(c.mem_ports, -1)[port, at] == logical).all()


def test_the_guide_names_registers_that_exist():
    fields = {field.name for register in REGISTER.values() for field in register.fields}
    others = {"AXI4", "CRC", "CYCLES", "DESCRIPTOR", "JSON", "PATIENCE", "PNG", "PORT_BASE", "PORT_BASE_HIGH", "RTL", "SLVERR", "TRIT",
              "TRITLOOM", "XOR", "_HIGH", "_LOW"}
    assert {name for name in re.findall(r"\b[A-Z][A-Z_]{2,}\d?\b", GUIDE) if name not in REGISTER} <= fields | others
