"""Backends `axi` and `pynq` and the doctor of a board, the emulator behind a Linux made of files (the RTL: test_whole_machine.py)."""

import dataclasses
import os
import socket
import sys
from typing import Any

import numpy as np
import pytest

import axiboard
import pynqboard
from synthetic import hugging_face
from tritloom.firmware.config import BuildConfig
from tritloom.firmware.image import SELF_TEST, Image, SelfTest
from tritloom.firmware.registers import REGISTER
from tritloom.gen.models import open_checkpoint
from tritloom.gen.pack import pack
from tritloom.host.backends import axi
from tritloom.host.backends.emulator import EmulatorBackend
from tritloom.host.backends.protocol import DeviceError
from tritloom.host.backends.pynq import PynqBackend
from tritloom.host.board_doctor import board_findings
from tritloom.host.cli import main
from tritloom.host.image import open_image, write_image
from tritloom.host.session import Session

PROMPT = [5, 6, 7, 8, 9, 10, 11]
WINDOWS = [(0, 2 << 30), (0x8_0000_0000, 2 << 30)]


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    folder = tmp_path_factory.mktemp("axi")
    checkpoint = open_checkpoint(hugging_face(folder / "model"))
    config = BuildConfig(shape=checkpoint.spec.shape, board="kv260", lanes=2, tables=2, rows_per_cycle=2, vector_lanes=4,
                         attention_macs=8, mem_bytes=16, mem_ports=4, sampler_candidates=24)
    packed = pack(checkpoint, config)
    plain = open_image(write_image(folder / "plain", config=config, spec=checkpoint.spec.to_dict(), sections=packed.sections))
    with Session(EmulatorBackend(config, plain.map.total_bytes), plain) as session:
        test = SelfTest(PROMPT, list(session.generate(PROMPT, 6)), 1e6)
    sections = [*packed.sections, (SELF_TEST, test.to_bytes(), None)]
    return open_image(write_image(folder / "image", config=config, spec=checkpoint.spec.to_dict(), sections=sections))


@pytest.fixture
def board(image, tmp_path):
    return axiboard.Board(tmp_path, EmulatorBackend(image.config, image.map.total_bytes), image.map.total_bytes)


def test_a_session_writes_what_the_emulator_writes(image, board):
    size = image.map.total_bytes
    with Session(EmulatorBackend(image.config, size), image) as session:
        expected = list(session.generate(PROMPT, 12))
    device = board.open(size)
    for _ in range(2):
        with Session(device, image) as session:
            assert list(session.generate(PROMPT, 12)) == expected
    registers = board.machine.registers
    assert [registers[f"PORT_BASE_HIGH{p}"] << 32 | registers[f"PORT_BASE{p}"] for p in range(4)] == axiboard.BASES
    assert board.waits and device.device == str(board.root / "dev/uio1")
    device.close()
    with pytest.raises(DeviceError, match="closed"):
        device.read("STATUS")


@pytest.mark.parametrize("address, length", [(0, 64), (3, 1), (5, 50), (16, 16), (31, 2), (0, 0), (33, 400)])
def test_bytes_lie_in_stripes(image, board, address, length, monkeypatch):
    monkeypatch.setattr(axi, "CHUNK", 64)
    device = board.open(image.map.total_bytes)
    data = np.arange(1, length + 1).astype(np.uint8)
    device.load(address, data)
    expected = np.zeros(image.map.total_bytes, np.uint8)
    expected[address : address + length] = data
    assert (board.machine.memory == expected).all()
    device.close()


def test_what_the_bus_would_refuse_is_refused_before(image, board):
    device = board.open(image.map.total_bytes)
    calls = [lambda: device.read("TOKEN_IN"), lambda: device.write("STATUS", 1), lambda: device.write("PORT_BASE_HIGH4", 0),
             lambda: device.write("PORT_BASE5", 0), lambda: device.load(image.map.total_bytes, b"12")]
    for _ in range(64):
        device.write("TOKEN_IN", 1)
    calls.append(lambda: device.write("TOKEN_IN", 1))
    board.machine.running = True
    calls.append(lambda: device.write("PORT_BASE0", 0))
    for call in calls:
        with pytest.raises(DeviceError, match="cannot be|refused|full|beyond"):
            call()
    device.close()


def test_tokens_are_refused_during_a_reset(image, board, monkeypatch):
    device = board.open(image.map.total_bytes)
    monkeypatch.setattr(board.machine, "read", lambda register: REGISTER["STATUS"]["RESETTING"].mask | 64 << 16)
    with pytest.raises(DeviceError, match="writing TOKEN_IN: refused, the FIFO is full or a reset is under way"):
        device.write("TOKEN_IN", 1)


def test_the_smallest_buffer_is_the_memory_s_end(image, board):
    size = image.map.total_bytes
    board.buffer(0, axiboard.BASES[0], 2 * size)
    device = board.open(size)
    with pytest.raises(DeviceError, match=f"2 bytes at 0x{size:x} lie beyond its {size}"):
        device.load(size, b"12")
    device.close()
    for call in (lambda: device.load(0, b"12"), lambda: device.advance(1), lambda: device.read("ID")):
        with pytest.raises(DeviceError, match="closed"):
            call()


@pytest.mark.parametrize("wrong, said", [
    (lambda b: b.file("sys/class/uio/uio1/name", "gpio"), r"no UIO device is called tritloom \(there are: other, gpio\)"),
    (lambda b: b.file("sys/kernel/debug/clk/pl0_ref/clk_rate", "99999999"), "clock is 100 MHz, the machine was built for 250"),
    (lambda b: b.buffer(1, 0x8_1000_0000, 4096), "tritloom1 has 4096 bytes, the model needs"),
    (lambda b: b.buffer(1, 0x8_1000_0100, 1 << 20), "multiple of 4096"),
    (lambda b: b.buffer(1, axiboard.BASES[0] + 4096, 1 << 20), "tritloom0 and tritloom1 overlap"),
    (lambda b: os.rename(b.root / "sys/class/u-dma-buf/tritloom2", b.root / "gone"), "buffer tritloom2 is missing"),
    (lambda b: os.unlink(b.root / "dev/tritloom3"), "dev/tritloom3: No such file"),
], ids=["registers", "clock", "size", "page", "overlap", "missing", "device"])
def test_a_board_that_is_not_ready_says_what_to_do(image, board, wrong, said):
    wrong(board)
    with pytest.raises(DeviceError, match=said):
        board.open(image.map.total_bytes)


def test_on_chip_memory_is_refused(image, board):
    config = dataclasses.replace(image.config, memory="onchip", onchip_bytes=1 << 16, mem_ports=1)
    with pytest.raises(DeviceError, match="on the chip"):
        board.open(1 << 16, config)


def test_registers_are_words_of_a_mapped_device(tmp_path):
    (tmp_path / "uio0").write_bytes(bytes(4096))
    window = axi.Window(tmp_path / "uio0")
    window.write(0x10, 0x12345678)
    assert window.read(0x10) == 0x12345678
    window.close()
    assert (tmp_path / "uio0").read_bytes() == bytes(0x10) + b"\x78\x56\x34\x12" + bytes(4096 - 0x14)


def test_an_interrupt_is_unmasked_and_taken_or_missed_in_time():
    here, kernel = socket.socketpair()
    interrupt = axi.Interrupt(os.dup(here.fileno()))
    assert not interrupt.wait(0.001) and kernel.recv(4) == b"\x01\0\0\0"
    kernel.send(b"\x07\0\0\0")
    assert interrupt.wait(60)
    assert not interrupt.wait(0)
    interrupt.close()
    for end in (here, kernel):
        end.close()


def diagnosed(board, image, **changes):
    settings: dict[str, Any] = dict(registers=0xA000_0000, windows=WINDOWS, root=board.root, window=lambda path: board,
                                    backend=lambda config, memory_bytes: board.open(memory_bytes, config)) | changes
    return {row["name"]: row for row in board_findings(image.config, image, **settings)}


def test_the_doctor_finds_a_board_well(image, board):
    rows = diagnosed(board, image)
    assert list(rows) == ["registers", "machine", "fabric clock", *(f"buffer tritloom{i}" for i in range(4)), "contiguous memory", "load",
                          "self-test", "speed"]
    assert all(row["ok"] and not row["fix"] for row in rows.values()) and f"digest {image.config.digest:08x}" == rows["machine"]["detail"]


@pytest.mark.parametrize("name, wrong, said", [
    ("registers", lambda b: b.file("sys/class/uio/uio1/maps/map0/addr", "0xb0000000"), "uio1 has 0xb0000000, the kit says 0xa0000000"),
    ("machine", lambda b: b.machine.registers.update(DIGEST=7), "digest 00000007, the image has"),
    ("fabric clock", lambda b: b.file("sys/kernel/debug/clk/pl0_ref/clk_rate", "99999999"), "100 MHz, the machine was built for 250"),
    ("fabric clock", lambda b: os.unlink(b.root / axi.CLOCK), "cannot be read"),
    ("buffer tritloom1", lambda b: b.buffer(1, 0x9_0000_0000, 1 << 20), "where no memory port reaches"),
    ("buffer tritloom1", lambda b: b.buffer(1, 0x8_0000_0000, 4096), "tritloom1 has 4096 bytes, the model needs"),
    ("contiguous memory", lambda b: b.file("proc/meminfo", "MemTotal: 1 kB"), "reserves none"),
    ("load", lambda b: b.file("proc/loadavg", "1.90 1 1 1/1 1"), "1.9 processes want"),
])
def test_the_doctor_says_what_is_wrong_and_what_to_do(image, board, name, wrong, said):
    wrong(board)
    rows = diagnosed(board, image)
    assert said in rows[name]["detail"] and rows[name]["fix"]
    assert [row["name"] for row in rows.values() if not row["ok"]] == [name] and ("self-test" in rows) != rows[name]["required"]
    assert rows[name]["required"] == (said != "cannot be read" and name not in ("load", "contiguous memory"))


def loses_a_bit(board):
    """Of what is synchronised, in the first stripe only."""
    seen = board.machine.load
    board.machine.load = lambda address, data: seen(address, data ^ np.uint8(1) if data.any() else data)


@pytest.fixture
def recorded(image, monkeypatch):
    """Changes what the image has recorded; without changes it has nothing."""
    test = image.self_test
    return lambda **changes: monkeypatch.setattr(Image, "self_test", dataclasses.replace(test, **changes) if changes else None)


def test_the_self_test_compares_tokens(image, board, recorded):
    rows, tokens = diagnosed(board, image), image.self_test.tokens
    assert rows["self-test"]["detail"] == "6 tokens as recorded" and rows["speed"]["detail"].endswith("projected 250.0")
    recorded(tokens=[*tokens[:3], 1, *tokens[4:]])
    rows = diagnosed(board, image)
    assert rows["self-test"]["detail"] == f"token 4 of 6 is {tokens[3]}, not 1" and rows["self-test"]["required"]
    assert "a lower clock, such as --set clock_hz=200000000" in rows["self-test"]["fix"] and "speed" not in rows
    loses_a_bit(board)
    assert not diagnosed(board, image)["self-test"]["ok"]


def test_the_self_test_compares_speeds(image, board, recorded):
    with Session(board.open(image.map.total_bytes), image) as session:
        list(session.generate(PROMPT, 6))
        cycles = session.stats().decode_cycles_per_token or 0.0
    recorded(cycles_per_token=0.81 * cycles)
    assert diagnosed(board, image)["speed"]["ok"]
    recorded(cycles_per_token=0.79 * cycles)
    row = diagnosed(board, image)["speed"]
    assert not row["ok"] and not row["required"] and "what else uses the memory" in row["fix"]


def test_what_keeps_the_self_test_from_running(image, board, recorded):
    with Session(board.open(image.map.total_bytes), image):
        row = diagnosed(board, image)["self-test"]
    assert "another process has a session" in row["detail"] and row["required"]
    board.machine.fails_at = 3
    assert "the device's memory answered with an error" in diagnosed(board, image)["self-test"]["detail"]
    recorded()
    row = diagnosed(board, image)["self-test"]
    assert not row["required"] and "no tokens recorded" in row["detail"]


def test_doctor_of_a_board_from_the_command_line(image, tmp_path, capsys):
    """Here, where there is no such board: every line says so and what to do, and the status is not 0."""
    assert main(["doctor", "--board", "kv260", "--image", image.name]) == 1
    shown = capsys.readouterr().out
    assert "NOT READY (no UIO device is called tritloom" in shown and "cannot run yet" in shown and shown.count("\nbuffer tritloom3 ") == 1
    for arguments, said in ((["--board", "kv260"], "which machine is on the board?"),
                            (["--board", "kv260-onchip", "--image", image.name], "has no processor"),
                            (["--board", "sim", "--image", "x"], "has no processor"), (["--image", "x"], "give --board too")):
        assert main(["doctor", *arguments]) == 2
        assert said in capsys.readouterr().err


# PYNQ -----------------------------------------------------------------------------------------


@pytest.fixture
def pynq(image, tmp_path, monkeypatch):
    size = image.map.total_bytes
    made = pynqboard.Pynq(axiboard.Board(tmp_path, EmulatorBackend(image.config, size), size))
    monkeypatch.setitem(sys.modules, "pynq", made)
    for suffix in (".bit", ".hwh"):
        (tmp_path / "tritloom").with_suffix(suffix).write_bytes(b"")
    made.bitstream = tmp_path / "tritloom.bit"
    return made


def test_a_session_by_pynq_writes_what_the_emulator_writes(image, pynq):
    size = image.map.total_bytes
    with Session(EmulatorBackend(image.config, size), image) as session:
        expected = list(session.generate(PROMPT, 12))
    device = PynqBackend(image.config, size, pynq.bitstream)
    advance = pynq.board.machine.advance
    pynq.board.read, read = lambda offset: (advance(1000), read(offset))[1], pynq.board.read  # time passes while it is looked at
    for _ in range(2):
        with Session(device, image) as session:
            assert list(session.generate(PROMPT, 12)) == expected
    registers = pynq.board.machine.registers
    assert [registers[f"PORT_BASE_HIGH{p}"] << 32 | registers[f"PORT_BASE{p}"] for p in range(4)] == pynq.bases
    assert pynq.loaded == [str(pynq.bitstream)] and not pynq.freed
    device.close()
    assert pynq.freed == [0, 1, 2, 3]
    with pytest.raises(DeviceError, match="the pynq device is closed"):
        device.read("ID")


def test_it_waits_no_longer_than_it_is_told(image, pynq):
    """A program that goes on, and no token: the time has passed. Neither a program: nothing is to be waited for."""
    device = PynqBackend(image.config, image.map.total_bytes, pynq.bitstream)
    pynq.board.machine.running = True
    assert device.advance(image.config.clock_hz // 100) >= image.config.clock_hz // 100
    pynq.board.machine.running = False
    assert device.advance(3600 * image.config.clock_hz) < 3600 * image.config.clock_hz
    device.close()


@pytest.mark.parametrize("wrong, said", [
    (lambda p: p.bitstream.unlink(), "tritloom.bit: missing: copy vivado/out/tritloom.bit"),
    (lambda p: p.bitstream.with_suffix(".hwh").unlink(), "tritloom.hwh: missing: copy"),
    (lambda p: setattr(p.Clocks, "fclk0_mhz", 99.999), "clock is 99.999 MHz, the machine was built for 250: give --overlay the bitstream"),
    (lambda p: setattr(p, "cells", {"dma": {}}), "has no cell machine .there are: dma.: give --overlay the bitstream of the kit"),
    (lambda p: setattr(p, "allocate", lambda *_: (_ for _ in ()).throw(RuntimeError("Failed to allocate Memory!"))), "port 0 .*cma="),
    (lambda p: p.bases.__setitem__(2, 0x5000_0100), "multiple of 4096"),
    (lambda p: p.bases.__setitem__(2, p.bases[3]), "overlap"),
])
def test_a_bitstream_that_does_not_serve_says_what_to_do(image, pynq, wrong, said):
    wrong(pynq)
    with pytest.raises(DeviceError, match=said):
        PynqBackend(image.config, image.map.total_bytes, pynq.bitstream)
    assert len(pynq.freed) == len(pynq.allocated)


def test_without_pynq_it_is_said(image, capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pynq", None)
    run = ["run", "--image", image.name, "--prompt", "a"]
    for words, status, said in ((["--backend", "pynq", "--overlay", "x.bit"], 1, "pynq is missing: run this with the Python of PYNQ"),
                                (["--backend", "pynq"], 2, "needs --overlay, such as"), (["--overlay", "x.bit"], 2, "--overlay is PYNQ's")):
        assert main([*run, *words]) == status
        assert said in capsys.readouterr().err
