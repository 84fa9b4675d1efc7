"""`doctor --port`: a line for each thing that must be as it should be, at a pseudo-terminal with the model of the device behind it."""

import dataclasses
import itertools
import re
import subprocess
import sys

import numpy as np
import pytest

from link_model import LinkDevice
from synthetic import hugging_face
from tritloom.firmware.config import BuildConfig
from tritloom.firmware.layout import memory_map
from tritloom.firmware.registers import REGISTER
from tritloom.gen.models import open_checkpoint
from tritloom.gen.pack import pack
from tritloom.host import link_doctor
from tritloom.host.backends import uart
from tritloom.host.backends.emulator import EmulatorBackend
from tritloom.host.backends.uart import serial_link
from tritloom.host.cli import main
from tritloom.host.image import open_image, write_image
from tritloom.host.link_doctor import holders, link_findings
from tritloom.host.tokenizer import Tokenizer
from wire import Machine, Wire

ROWS = ["port", "link", "baud rate", "version", "machine", "state", "memory", "registers", "transfers"]


@pytest.fixture(scope="module")
def image_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("doctor")
    checkpoint = open_checkpoint(hugging_face(folder / "model"))
    config = BuildConfig(shape=checkpoint.spec.shape, board="ulx3s", memory="axi", lanes=1, tables=2, rows_per_cycle=2, vector_lanes=2,
                         attention_macs=8, mem_bytes=8, sampler_candidates=3, clock_hz=50_000_000)
    packed = pack(checkpoint, config)
    return write_image(folder / "image", config=config, spec=checkpoint.spec.to_dict(), sections=packed.sections), config


class Board:
    """A board at a pseudo-terminal. `device` answers at it."""

    def __init__(self, config):
        self.machine = EmulatorBackend(config, 1 << 16)
        self.link = LinkDevice(Machine(self.machine), clock_hz=config.clock_hz)
        self.device, self.written = self.link.feed, []
        write = self.machine.write
        self.machine.write = lambda register, value: self.written.append(register) or write(register, value)
        self.wire = Wire(lambda data: self.device(data))
        self.path = self.wire.path


@pytest.fixture
def board(image_file, monkeypatch):
    monkeypatch.setattr("tritloom.host.commands.doctor.pace_of", lambda port: 1)
    monkeypatch.setattr("tritloom.host.commands.doctor.PATIENCE_S", 0.2)
    made = Board(image_file[1])
    yield made
    made.wire.stop()


def test_a_board_that_is_well(board, image_file, tritloom):
    status, out, _ = tritloom("doctor", "--board", "ulx3s", "--port", board.path, "--image", image_file[0])
    lines = out.splitlines()
    assert status == 0 and [line.split("  ")[0] for line in lines[:-1]] == ROWS and lines[-1] == "the machine can run"
    assert all(" OK: " in line for line in lines[:-1]) and f"digest {image_file[1].digest:08x}" in out
    assert "protocol 1, the board's clock is 50 MHz" in out and "3000000 baud" in out and "of 32.0 MiB are needed" in out
    assert not board.written
    status, out, _ = tritloom("doctor", "--board", "ulx3s", "--port", board.path)  # nothing is said of the machine
    assert status == 0 and "with a model or --image it is compared" in out


def other(field, value):
    return lambda board: board.machine.registers.update({field: value})


def status_of(**fields):
    word = sum(value << REGISTER["STATUS"][name].low for name, value in fields.items())

    def change(board):
        read = board.machine.read
        board.machine.read = lambda register: word if register == "STATUS" else read(register)
    return change


def damaged(board):
    """The first answer but one is damaged: the link asks again."""
    seen, feed = [], board.link.feed

    def device(data):
        answer = feed(data)
        seen.append(answer)
        return answer[:9] + bytes([answer[9] ^ 1]) + answer[10:] if len(seen) == 2 else answer
    board.device = device


def fickle(board):
    read, digests = board.machine.read, itertools.count()
    board.machine.read = lambda register: read(register) ^ (next(digests) > 50) if register == "DIGEST" else read(register)


@pytest.mark.parametrize("change, row, said", [
    (lambda b: setattr(b, "device", lambda data: b""), "link", "no board answers on .*: check cable and port"),
    (lambda b: setattr(b, "device", lambda data: data[::-1]), "link", "bytes came from .*, but no answer of a board.*: check that it is"),
    (lambda b: setattr(b, "link", LinkDevice(Machine(b.machine), version=2)) or setattr(b, "device", b.link.feed), "link",
     "speaks version 2 of the link's protocol.*: build and flash"),
    (other("ID", 7), "version", "ID 0x00000007: no tritloom machine .*: build and flash the board with this release"),
    (other("VERSION", 2), "version", "register map 2, this host knows 4.*: build and flash the board with this release"),
    (other("DIGEST", 9), "machine", "digest 00000009 on the board, .* asked for.*: flash the bitstream of this model"),
    (status_of(MEMORY_ERROR=1), "state", "the memory answered with an error .*: press the board's reset button"),
    (status_of(RESETTING=1), "state", "a reset does not end.*: press the board's reset button"),
    (damaged, "transfers", "1 answers came damaged.*: a shorter cable"),
    (fickle, "registers", "two readings of the same register differ.*: the machine does not keep up"),
], ids=["silent", "garbage", "protocol", "id", "version", "digest", "memory", "reset", "damaged", "differ"])
def test_what_is_wrong_is_one_line_with_what_to_do(board, image_file, tritloom, monkeypatch, change, row, said):
    monkeypatch.setattr(link_doctor, "BAUDS", ())
    change(board)
    status, out, _ = tritloom("doctor", "--board", "ulx3s", "--port", board.path, "--image", image_file[0])
    assert status == (row != "transfers")
    wrong = [line for line in out.splitlines()[:-1] if " OK: " not in line]
    assert [line.split("  ")[0] for line in wrong][:1] == [row]
    assert re.search(said, wrong[0])


@pytest.mark.parametrize("change, said", [
    (lambda b: setattr(b, "device", lambda data: b""), "no board answers on .*: check cable and port, and that the board has its"),
    (lambda b: setattr(b, "device", lambda data: data[::-1]), "bytes came from .*, but no answer of a board: check that it is the"),
    (lambda b: setattr(b, "device", lambda data: data), "comes back: an echo, not a board: check that it is the board's port"),
    (other("DIGEST", 9), "the machine has 00000009; pack the model for this machine, or load the machine of this model"),
    (other("ID", 9), "answers 0x00000009 instead of 0x54495254: no tritloom machine is there"),
    (other("VERSION", 2), "register map version 2, this host knows 4: build the machine again"),
    (lambda b: b.replace(board="kv260"), "board kv260 has no UART: give the --board, or the image, of the board at"),
    (lambda b: b.replace(sequences=20_000), "needs .* MiB of memory, board ulx3s has 32.0 MiB: take a smaller --context, fewer"),
], ids=["silent", "garbage", "echo", "digest", "id", "version", "board", "memory"])
def test_what_run_cannot_work_with_is_one_line(board, image_file, tritloom, monkeypatch, change, said, tmp_path):
    monkeypatch.setattr("tritloom.host.commands.run.pace_of", lambda port: 1)
    made = uart.Link
    monkeypatch.setattr(uart, "Link", lambda *words, **options: made(*words, **options | {"patience_s": 0.3}))
    monkeypatch.setattr(Tokenizer, "from_bytes", lambda *_: Tokenizer.__new__(Tokenizer))
    monkeypatch.setattr(Tokenizer, "encode", lambda *_: [5, 6])
    path, config = image_file

    def replace(**fields):  # by an image of another machine
        nonlocal path
        other, image = dataclasses.replace(config, **fields), open_image(path)
        layout = memory_map(other)
        path = write_image(tmp_path / "other", config=other, spec=image.spec, sections=[
            *((name, np.zeros(region.length, np.uint8), region.base) for name, region in layout.regions.items() if region.loaded),
            ("program", image.section("program"), None), ("tokenizer", image.section("tokenizer"), None),
            ("descriptors", np.array(layout.descriptor_words(), "<u8").view(np.uint8), None),
            ("memory_map", np.frombuffer(layout.to_json().encode(), np.uint8), None)])

    board.replace = replace
    change(board)
    status, out, err = tritloom("run", "--image", path, "--backend", "uart", "--port", board.path)
    assert status != 0 and out == "" and err.count("\n") == 1 and re.search(said, err)
    assert not board.written


def test_a_running_machine_is_left_alone(board, tritloom):
    status_of(RUNNING=1)(board)
    status, out, _ = tritloom("doctor", "--board", "ulx3s", "--port", board.path)
    assert status == 0 and "running, 0 tokens wait; the next run stops it" in out and not board.written


def test_another_rate_is_found(board):
    """As if the board had been built for 1 Mbaud: only there it answers."""
    def open_link(baud):
        board.device = board.link.feed if baud == 1_000_000 else lambda data: b""
        return serial_link(board.path, baud, patience_s=0.2)

    rows = link_findings(open_link, port=board.path, baud=3_000_000, digest=None, memory_bytes=None, board_bytes=1,
                         others=link_doctor.BAUDS, probes=1)
    assert [row["name"] for row in rows if not row["ok"]] == ["link", "baud rate"]
    assert rows[-1]["detail"] == "the board answers at 1000000 baud, this board's rate is 3000000" and "flash" in rows[-1]["fix"]


def test_a_model_larger_than_the_memory(board):
    rows = link_findings(lambda baud: serial_link(board.path, baud), port=board.path, baud=3_000_000, digest=None, memory_bytes=2 << 20,
                         board_bytes=1 << 20, others=(), probes=1)
    assert [(row["name"], row["detail"]) for row in rows if not row["ok"]] == [("memory", "the model needs 2.0 of 1.0 MiB")]


def test_who_holds_the_port_is_named(board, tritloom):
    program = "import fcntl, sys; f = open(sys.argv[1]); fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", program, board.path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout and other.stdout.readline() == "held\n"
        status, out, _ = tritloom("doctor", "--board", "ulx3s", "--port", board.path)
        assert any(f"process {other.pid}" in name for name in holders(board.path))
        assert other.stdin
        other.stdin.close()
    assert status == 1 and f"process {other.pid}" in out and "): end it first" in out


@pytest.mark.parametrize("words, said", [
    (["--port", "x"], "give --board too"), (["--board", "ulx3s"], "give --port"), (["--board", "kv260", "--port", "x"], "has no UART"),
    (["--board", "ulx3s", "--port", "sim"], "which machine is simulated"),
    (["--board", "ulx3s", "--port", "x", "--set", "lanes=1"], "give a model too"),
])
def test_words_that_do_not_go_together(capsys, words, said):
    assert main(["doctor", *words]) == 2
    assert said in capsys.readouterr().err
