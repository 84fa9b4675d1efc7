"""A whole board at its pins: a model goes in over the UART, lies in the SDRAM, and its tokens come out over the UART."""

import contextlib
import dataclasses
import threading

import numpy as np
import pytest

from machines import ROOT, TINY
from tritloom.boards.board import LEDS, load
from tritloom.firmware.image import ImageError
from tritloom.gen.models import open_checkpoint
from tritloom.gen.pack import pack
from tritloom.host.backends.emulator import EmulatorBackend
from tritloom.host.backends.protocol import DeviceError
from tritloom.host.backends.uart import UartBackend
from tritloom.host.commands.run import SIMULATED_PACE
from tritloom.host.image import open_image, write_image
from tritloom.host.session import Session
from tritloom.sim.board import BoardBackend, SimulatedBoard, Terminal
from tritloom.sim.check.synthetic import hugging_face

pytestmark = [pytest.mark.slow, pytest.mark.needs("amaranth", "verilator")]

BOARD = load("ulx3s")
CONFIG = dataclasses.replace(TINY, board="ulx3s", memory="axi", mem_bytes=8, vector_lanes=2, tables=2, rows_per_cycle=2,
                             clock_hz=BOARD.clock_hz)
PROMPT = [5, 17, 3, 40]


def packed(folder, config):
    checkpoint = open_checkpoint(hugging_face(folder / "model", config.shape))
    sections = pack(checkpoint, config).sections
    return open_image(write_image(folder / "image", config=config, spec=checkpoint.spec.to_dict(), sections=sections))


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    return packed(tmp_path_factory.mktemp("board"), CONFIG)


def switched_on(config, board):
    from filelock import FileLock

    build = ROOT / "build" / "verilated"
    build.mkdir(parents=True, exist_ok=True)
    with FileLock(build / f"{board.name}.lock", timeout=600):  # else each process would compile it
        return SimulatedBoard(config, board, build_dir=build)


@pytest.fixture
def board():
    with switched_on(CONFIG, BOARD) as simulated:
        simulated.run(1000)  # its reset
        yield simulated


def tokens(backend, image, count=6):
    with Session(backend, image) as session:
        return list(session.generate(PROMPT, count))


@pytest.fixture(scope="module")
def expected(image):
    return tokens(EmulatorBackend(CONFIG, image.map.total_bytes), image)


def test_tokens_come_through_the_pins(board, image, expected):
    backend = BoardBackend(board)
    assert backend.clock_hz == CONFIG.clock_hz
    seen = []
    backend.progress = lambda done, total: seen.append(done / total)
    with Session(backend, image) as session:
        memory = np.frombuffer(board.memory(), np.uint8)
        for address, data in image.memory():
            assert (memory[address : address + len(data)] == np.frombuffer(data, np.uint8)).all()
        for _ in range(2):
            assert list(session.generate(PROMPT, len(expected))) == expected
    data, start = np.random.default_rng(1).bytes(16 << 10), board.cycles
    backend.load(0, data)
    assert 10 * len(data) / board.baud > 0.85 * (board.cycles - start) / board.clock_hz and bytes(board.memory())[: len(data)] == data
    assert 1 in seen and backend.statistics.resent == backend.statistics.timeouts == 0
    assert board.leds["link"] and board.leds["memory"] and not board.leds["error"]
    assert board.framing_errors == 0


def test_the_doctor_at_the_pins(board, image, tritloom, monkeypatch):
    monkeypatch.setattr("tritloom.sim.prepare.open_board", lambda *_: board)
    words = ("doctor", "--board", "ulx3s", "--port", "sim", "--image", image.name)
    status, out, _ = tritloom(*words)
    assert status == 0 and out.count(" OK: ") == 9 and f"digest {CONFIG.digest:08x}" in out and "requests, all answered" in out


OTHERS = {
    "colorlight-i9": {},  # a narrower beat, a wider SDRAM of which CKE, CS# and DQM are not wired, one LED, a button that is active low
    "tang-nano-20k": dict(vector_lanes=1),  # the small machine; another family's pads, LEDs that are lit when low
    "ecpix5": dict(attention_macs=8, rows_per_cycle=4),  # DDR3: LiteDRAM's core and its own model of PHY and memory
}


@pytest.mark.long
@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.needs("litedram") if name == "ecpix5" else ()) for name in OTHERS])
def test_another_board_is_a_file_of_data(name, tmp_path):
    other = load(name)
    assert other.wiring is not None
    other = dataclasses.replace(other, wiring=dataclasses.replace(other.wiring, baud=5_000_000))  # a byte in 100 cycles
    assert other.wiring is not None
    config = dataclasses.replace(CONFIG, board=other.name, clock_hz=other.clock_hz, mem_bytes=other.mem_bytes, **OTHERS[name])
    image = packed(tmp_path, config)
    expected = tokens(EmulatorBackend(config, image.map.total_bytes), image)
    with switched_on(config, other) as simulated:
        assert tokens(BoardBackend(simulated), image) == expected
        assert list(simulated.leds) == list(LEDS[: len(other.wiring.led_pins)])


@pytest.mark.long
def test_the_button_ends_a_session_and_a_new_one_begins(board, image, expected):
    backend = BoardBackend(board)
    session = Session(backend, image)
    run = session.generate(PROMPT, len(expected))
    assert next(run) == expected[0]
    board.press(True)
    board.run(1000)
    board.press(False)
    board.run(100_000)
    with pytest.raises(DeviceError, match="was reset or lost power: what was loaded is lost: start again"):
        list(run)
    with contextlib.suppress(DeviceError):
        session.close()
    assert tokens(BoardBackend(board), image, len(expected)) == expected


def test_a_cable_that_is_out_is_said(board, image):
    backend = BoardBackend(board, patience_s=0.02)
    board.connect(False)
    with pytest.raises(DeviceError, match="has not answered for .* check cable and power, then start again"):
        backend.read("ID")


def test_another_baud_rate_is_said():
    with SimulatedBoard(CONFIG, BOARD, baud=1_000_000, build_dir=ROOT / "build" / "verilated") as simulated:
        with pytest.raises(DeviceError, match="no board answers on .*: check cable and port"):
            BoardBackend(simulated, patience_s=0.02)


@pytest.mark.long
def test_a_terminal_is_a_port_of_the_board(board, image, expected):
    """The way of `board-sim`: another program opens the pseudo-terminal. One after the other."""
    terminal, ends = Terminal(board), threading.Event()

    def serve():
        while not ends.is_set():
            terminal.serve(0.1)

    served = threading.Thread(target=serve)
    served.start()
    try:
        for _ in range(2):
            backend = UartBackend(terminal.path, baud=board.baud, pace=SIMULATED_PACE)
            assert tokens(backend, image, len(expected)) == expected
            backend.close()
    finally:
        ends.set()
        served.join()
        terminal.close()


def test_another_machine_s_image_is_refused(board, image):
    other = dataclasses.replace(CONFIG, weight_fifo_beats=32)
    with pytest.raises(ImageError, match="weight_fifo_beats 32 .machine: 16.; pack the model"):
        Session(BoardBackend(board), dataclasses.replace(image, config=other))


@pytest.mark.long
def test_a_damaged_byte_changes_nothing(board, image, expected):
    """Of 5,000 bytes to the board one is damaged, or left out, or sent twice."""
    backend = BoardBackend(board)
    rng, send = np.random.default_rng(1), board.send

    def faulty(data: bytes) -> None:
        out = bytearray()
        for byte in data:
            if rng.random() < 2e-4:
                out += [b"", bytes([byte, byte]), bytes([byte ^ 1 << rng.integers(8)])][rng.integers(3)]
            else:
                out.append(byte)
        send(bytes(out))

    board.send = faulty
    assert tokens(backend, image, len(expected)) == expected
    assert backend.statistics.resent > 0
