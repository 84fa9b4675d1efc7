"""The backend for boards, at a pseudo-terminal with the model of the device and the emulator's registers behind it."""

import os

import numpy as np
import pytest

from link_model import LinkDevice
from tritloom.firmware.config import BuildConfig, ModelShape
from tritloom.firmware.errors import InputError
from tritloom.firmware.registers import IDENTIFIER
from tritloom.host.backends import uart
from tritloom.host.backends.emulator import EmulatorBackend
from tritloom.host.backends.protocol import DeviceBusy, DeviceError
from tritloom.host.backends.uart import UartBackend
from tritloom.host.commands.run import over_sections
from tritloom.host.link import LinkError
from wire import Machine, Wire


@pytest.fixture
def wire():
    wires = []

    def make(device):
        wires.append(Wire(device))
        return wires[-1]

    yield make
    for each in wires:
        each.stop()


@pytest.fixture
def machine():
    shape = ModelShape(hidden=64, ffn=96, layers=2, heads=4, kv_heads=2, head_dim=16, vocab=45, context=64, activation="relu2",
                       sub_norms=True)
    config = BuildConfig(shape=shape, lanes=1, tables=2, rows_per_cycle=1, vector_lanes=4, attention_macs=8, mem_bytes=8,
                         sampler_candidates=3)
    return EmulatorBackend(config, 1 << 16)


def test_registers_and_memory(wire, machine):
    device = LinkDevice(Machine(machine), clock_hz=61_000_000)
    path, seen = wire(device.feed).path, []
    backend = UartBackend(path, progress=lambda done, total: seen.append((done, total)))
    assert (backend.name, backend.device, backend.timed, backend.clock_hz) == ("uart", os.path.realpath(path), True, 61_000_000)
    assert backend.read("ID") == IDENTIFIER
    data = np.random.default_rng(1).integers(0, 256, 40_000, np.uint8)
    backend.load(64, data)
    assert (machine.memory[64:40_064] == data).all() and not machine.memory[40_064:].any()
    assert seen[-1] == (40_000, 40_000) and seen == sorted(seen) and seen.count(seen[-1]) == 1
    backend.write("PROGRAM_ADDRESS", 5)
    for word in range(300):
        backend.write("PROGRAM_LOW", word)
        backend.write("PROGRAM_HIGH", 7)
    asked = backend.statistics.requests
    assert backend.read("PROGRAM_ADDRESS") == 305 and machine.program[5:305] == [7 << 32 | word for word in range(300)]
    assert backend.statistics.requests == asked + 1
    assert backend.advance(1234) == 0
    with pytest.raises(DeviceError, match="refused an access to TOKEN_IN"):
        for word in range(65):
            backend.write("TOKEN_IN", word)
        backend.read("STATUS")
    assert backend.read("ID") == IDENTIFIER and len(machine.prompt) == 64
    with pytest.raises(DeviceError, match="TOKEN_OUT is ro"):
        backend.write("TOKEN_OUT", 1)
    backend.write("ENTRY", 9)
    backend.close()
    assert machine.registers["ENTRY"] == 9


def test_an_image_s_sections_are_one_progress(wire, machine):
    seen = []
    backend = UartBackend(wire(LinkDevice(Machine(machine)).feed).path)
    backend.progress = over_sections(lambda done, total: seen.append((done, total)), 30_600)
    for address, length in ((0, 20_000), (20_000, 600), (24_000, 10_000)):
        backend.load(address, np.zeros(length, np.uint8))
    assert seen[-1] == (30_600, 30_600) and seen == sorted(seen) and {total for _, total in seen} == {30_600}


def test_a_port_has_one_user(wire, machine):
    path = wire(LinkDevice(Machine(machine)).feed).path
    backend = UartBackend(path)
    with pytest.raises(DeviceBusy, match=f"another program has {path} open: end it first"):
        UartBackend(path)
    backend.close()


@pytest.mark.parametrize("make, kind, message", [
    (lambda tmp: tmp / "ttyUSB7", InputError, "there is no port .*ttyUSB7: plug the board in"),
    (lambda tmp: tmp, InputError, "cannot be opened at 3000000 baud"),
    (lambda tmp: "/dev/null", InputError, "is it a serial port?"),
])
def test_a_port_that_is_none(make, kind, message, tmp_path):
    with pytest.raises(kind, match=message) as error:
        UartBackend(str(make(tmp_path)))
    assert "\n" not in str(error.value)


def test_garbage_and_silence(wire, monkeypatch):
    made = uart.Link
    monkeypatch.setattr(uart, "Link", lambda *words, **options: made(*words, **options | {"patience_s": 0.3}))
    with pytest.raises(LinkError, match="bytes came from .*, but no answer of a board: check that it is the board's port"):
        UartBackend(wire(lambda data: data[::-1]).path)
    with pytest.raises(LinkError, match="no board answers"):
        UartBackend(wire(lambda data: b"").path)
