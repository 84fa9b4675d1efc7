"""A device without texts: a program that adds 1 to each word, on the emulator."""

import numpy as np
import pytest

from link_model import LinkDevice
from synthetic import TINY
from tritloom.firmware.assembler import EXAMPLE, assemble
from tritloom.firmware.config import BuildConfig
from tritloom.firmware.image import Image, encode, whole
from tritloom.firmware.layout import memory_map
from tritloom.host.backends.emulator import EmulatorBackend
from tritloom.host.backends.protocol import DeviceBusy, DeviceFault, DeviceTimeout
from tritloom.host.backends.uart import UartBackend
from tritloom.host.device import Device
from wire import Machine, Wire

CONFIG = BuildConfig(shape=TINY, tables=2, rows_per_cycle=2, vector_lanes=4, attention_macs=8, mem_bytes=16)


@pytest.fixture
def image():
    layout = memory_map(CONFIG, tied=True)
    loaded = [(name, np.zeros(region.length, np.uint8), region.base) for name, region in layout.regions.items() if region.loaded]
    words = {"program": np.array(assemble(EXAMPLE), "<u8"), "descriptors": np.array(layout.descriptor_words(), "<u8"),
             "memory_map": np.frombuffer(layout.to_json().encode(), np.uint8), "tokenizer": np.frombuffer(b"{}", np.uint8)}
    sections = [*loaded, *((name, data.view(np.uint8), None) for name, data in words.items())]
    return Image.decode(encode(config=CONFIG, spec={}, sections=[whole(*section) for section in sections]).bytes(), "image")


@pytest.fixture
def device(image):
    device = Device(EmulatorBackend(CONFIG, image.map.total_bytes), image, timeout_s=60, annotate=lambda: {"page": 3})
    device.start(0, {})
    yield device
    device.release()


def test_words_in_and_tokens_out(device):
    device.push([5, 6, 7])
    assert [token for token, _ in device.pull(3)] == [6, 7, 8]
    device.push([0])
    device.finish()
    device.start(0, {})
    assert [token for token, _ in device.exchange([8, 9, 0], 2, "a token", None)] == [9, 10]


def test_a_machine_at_a_serial_port(image):
    machine = EmulatorBackend(CONFIG, image.map.total_bytes)
    wire = Wire(LinkDevice(Machine(machine)).feed)
    backend = UartBackend(wire.path)
    device = Device(backend, image, timeout_s=60)
    for _ in range(2):
        device.start(0, {})
        assert [token for token, _ in device.exchange([8, 9, 0], 2, "a token", None)] == [9, 10]
    device.release()
    backend.close()
    wire.stop()


def test_a_stop_ends_an_exchange(device):
    run = device.exchange([1], 1, "a token", None)
    assert next(run)[0] == 2
    device.stop()
    assert list(run) == []


def test_what_is_no_token_and_what_never_comes_are_errors_with_the_state(device):
    device.patience = 1 << 16
    with pytest.raises(DeviceTimeout, match=r"the emulator device did not come to a token within 65536 cycles.*prompt_room.*page 3\]"):
        device.pull(1)
    device.push([TINY.vocab])
    with pytest.raises(DeviceFault, match=f"the device sent {TINY.vocab + 1} as token 1 of 1"):
        device.pull(1)
    device.push([0])
    with pytest.raises(DeviceFault, match="the program ended before its last token"):
        device.pull(1)


def test_one_user_at_a_time(device, image):
    with pytest.raises(DeviceBusy):
        Device(device.backend, image, timeout_s=60)
    device.release()
    Device(device.backend, image, timeout_s=60).release()
