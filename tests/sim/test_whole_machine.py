"""The whole machine: verilated RTL, emulator and integer model write the same tokens, vector by vector.

One small machine is compiled for all tests here; `make equality` runs more machines and models, for longer.
"""

import itertools
import sys
from typing import Any

import numpy as np
import pytest

import axiboard
import cdriver
import harness
import oracle
import pynqboard
from machines import MODEL, SMALL, simulated
from tritloom.firmware.assembler import assemble
from tritloom.firmware.config import BuildConfig
from tritloom.firmware.errors import InputError
from tritloom.firmware.image import Image, SelfTest
from tritloom.firmware.integer import GREEDY
from tritloom.firmware.isa import Unit
from tritloom.firmware.registers import FIFO_DEPTH, MAP_VERSION, MEMORY_FAILED
from tritloom.gen.models import open_checkpoint
from tritloom.gen.pack import quantise
from tritloom.host.backends.emulator import EmulatorBackend
from tritloom.host.backends.protocol import DeviceError, DeviceFault, DeviceTimeout
from tritloom.host.backends.pynq import PynqBackend
from tritloom.host.board_doctor import board_findings
from tritloom.host.device import RESET, START, STATUS, STOP
from tritloom.host.session import Session, sampling
from tritloom.sim.backends import SimBackend
from tritloom.sim.check.verify import TraceReader, compare, first_difference
from tritloom.sim.integer_model import IntegerModel

CONTEXT = 128


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Image, machine and reference of stories-260k: two groups of three lanes, of which two attend at a time; results read in two parts
    and written in two turns, matrices in blocks, gate and up's in places of blocks before; two keys side by side, two memory ports."""
    checkpoint = open_checkpoint(MODEL, context=CONTEXT)
    config = BuildConfig(shape=checkpoint.spec.shape, **SMALL, lanes=3, groups=2, attention_lanes=2, block_rows=64, result_parts=2,
                         result_turns=2, attention_rows=2, sequences=3)
    image, backend = simulated(checkpoint, config, tmp_path_factory.mktemp("machine"))
    yield image, backend, IntegerModel(quantise(checkpoint))
    backend.close()


def prompt(length):
    return np.random.default_rng(length).integers(3, 512, length).tolist()


@pytest.mark.parametrize("length, tokens", [(1, 4), (2, 2), (3, 3), (4, 3), (6, 2), (40, 6)])
def test_greedy(built, length, tokens):
    image, backend, reference = built
    found = compare(backend, image, reference, prompt(length), tokens)
    assert found.first_difference() is None and found.equal
    assert found.compared_tokens == tokens


def test_a_driver_in_c_writes_the_same_tokens(built, tmp_path):
    """docs/driver.c, with a window for each of the machine's two ports; a prompt longer than TOKEN_IN holds."""
    image, backend, reference = built
    driver = cdriver.Driver(cdriver.build(tmp_path), backend, image.map.total_bytes)
    driver.load(image.data.tobytes())
    for length, tokens in ((5, 8), (FIFO_DEPTH + 9, 4)):
        reference.reset()
        got, stamps = driver.generate(prompt(length), tokens)
        assert got == reference.generate(prompt(length), tokens) and stamps == sorted(set(stamps))


@pytest.mark.parametrize("choice", [
    dict(temperature=1.0, seed=1), dict(temperature=0.7, top_k=5, seed=2), dict(temperature=1.5, top_p=0.8, seed=3),
], ids=str)
def test_sampling(built, choice):
    image, backend, reference = built
    found = compare(backend, image, reference, prompt(5), 6, sampling=sampling(**choice))
    assert found.first_difference() is None and found.equal


def test_a_generation_goes_on_where_the_last_one_ended(built):
    image, backend, reference = built
    first, second = prompt(6), prompt(7)
    with Session(backend, image) as session:
        got = list(session.generate(first, 3))
        got += session.generate(second, 3)
    reference.reset()
    expected = reference.generate(first, 3)
    assert got == expected + reference.generate([expected[-1], *second], 3)


@pytest.mark.parametrize(("drafts", "wrong", "passes"), [(1, 1000, 6), (2, 5, 5)])
def test_drafts_change_nothing_but_the_number_of_passes(built, drafts, wrong, passes):
    image, backend, reference = built
    reference.reset()
    expected = reference.generate(prompt(4), 12)
    with Session(backend, image) as session, oracle.foretold(prompt(4) + expected, wrong):
        got = list(session.generate(prompt(4), 12, drafts=drafts))
        assert session.stats().passes == passes
        got += session.generate(prompt(3), 3)
    assert got == expected + reference.generate([expected[-1], *prompt(3)], 3)


def test_drafts_change_nothing_of_a_sampled_text(built):
    image, backend, reference = built
    choice = sampling(temperature=1.2, top_p=0.9, seed=7)
    reference.reset()
    expected = reference.generate(prompt(4), 10, choice, image.config.sampler_candidates)
    with Session(backend, image) as session, oracle.foretold(prompt(4) + expected, 5):
        assert list(session.generate(prompt(4), 10, sampling=choice, drafts=2)) == expected
        assert session.stats().passes == 4


def test_texts_together_are_those_of_each_alone(built):
    """Joining, leaving, sampling and drafts at once, every vector of the RTL beside the emulator's."""
    image, backend, reference = built
    wanted = [dict(prompt=prompt(5), max_new_tokens=6),
              dict(prompt=prompt(1), max_new_tokens=3, sampling=sampling(temperature=0.9, seed=1)),
              dict(prompt=3 * prompt(2), max_new_tokens=7, drafts=2, sampling=sampling(top_k=4, seed=2)),
              dict(prompt=prompt(3), max_new_tokens=4, sampling=sampling(temperature=1.4, top_p=0.8, seed=3))]

    def together(device):
        with Session(device, image) as session, session.batch() as batch:
            texts = [batch.add(**each) for each in wanted[:2]]
            for text, _ in batch:
                if len(texts) < len(wanted) and len(batch.requests) < 3 and len(text.tokens) > 1:
                    texts.append(batch.add(**wanted[len(texts)]))
            return [text.tokens for text in texts]

    alone = []
    for each in wanted:
        reference.reset()
        choice = each.get("sampling", GREEDY)
        alone.append(reference.generate(each["prompt"], each["max_new_tokens"], choice, image.config.sampler_candidates))
    events, machine = [], backend.machine
    with oracle.foretold(wanted[2]["prompt"] + alone[2], 4):
        assert together(EmulatorBackend(image.config, image.map.total_bytes, trace=events.append)) == alone
        machine.trace_enable(True)
        machine.trace(clear=True)
        assert together(backend) == alone
    machine.trace_enable(False)
    difference = first_difference(events, TraceReader(machine.trace(), image.config.vector_lanes))
    machine.trace(clear=True)
    assert difference is None, str(difference)


def test_a_batch_goes_on_after_an_early_break(built):
    image, backend, reference = built
    with Session(backend, image) as session, session.batch() as batch:
        texts = [batch.add(prompt(4), 5), batch.add(prompt(2), 6, sampling=sampling(top_k=3, seed=4))]
        for _ in batch:
            break
        list(batch)
        got = [text.tokens for text in texts]
    expected = []
    for ids, count, choice in ((prompt(4), 5, GREEDY), (prompt(2), 6, sampling(top_k=3, seed=4))):
        reference.reset()
        expected.append(reference.generate(ids, count, choice, image.config.sampler_candidates))
    assert got == expected


def test_a_stopped_generation_leaves_a_working_machine(built):
    image, backend, reference = built
    with Session(backend, image) as session:
        tokens = session.generate(prompt(4), 20)
        next(tokens)
        tokens.close()
        session.reset()
        got = list(session.generate(prompt(4), 3))
    reference.reset()
    assert got == reference.generate(prompt(4), 3)


def test_the_stop_token_ends_a_generation(built):
    image, backend, reference = built
    reference.reset()
    expected = reference.generate(prompt(3), 8)
    stop = expected[4]
    with Session(backend, image) as session:
        got = list(session.generate(prompt(3), 8, stop_ids=[stop]))
        assert got == expected[: expected.index(stop) + 1]
        assert list(session.generate(prompt(2), 1)), "prefetched weights were dropped"


def test_the_last_position_of_the_context(built):
    image, backend, reference = built
    ids = prompt(CONTEXT - 1)
    found = compare(backend, image, reference, ids, 2)
    assert found.equal
    with Session(backend, image) as session, pytest.raises(InputError, match="go past the context of 128"):
        session.generate(ids, 3)


def test_a_stalled_memory_changes_cycles_and_nothing_else(built):
    """Of both ports, some reads and writes of a text take much longer."""
    image, backend, reference = built
    reference.reset()
    expected, cycles = reference.generate(prompt(5), 6), []
    with Session(backend, image) as session:
        for stall in (0, 900):
            session.reset()
            for port, write in itertools.product(range(2 if stall else 0), (False, True)):
                backend.machine.fail(port, write=write, response="okay", after=20, count=60, stall=stall)
            assert list(session.generate(prompt(5), 6)) == expected
            cycles.append(session.stats().cycles)
    backend.machine.heal()
    assert cycles[1] > cycles[0] + 900


# The memory fails ------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [
    dict(port=0, after=300), dict(port=1, after=7, response="decerr"), dict(port=1, write=True, after=60),
    dict(port=0, write=True, response="decerr"), dict(port=0, within="rope", after=3), dict(port=1, write=True, within="kv", after=9),
], ids=str)
@pytest.mark.parametrize("drafts", [0, 1])
def test_no_token_after_a_memory_error(built, fault, drafts):
    """Whatever was handed out before is right, the error has a code of its own, and it is not forgotten by the next start."""
    image, backend, reference = built
    reference.reset()
    expected, got = reference.generate(prompt(4), 8), []
    if "within" in fault:
        region = image.map.regions[fault["within"]]
        fault = fault | {"within": (region.base, region.end)}
    with Session(backend, image) as session:
        backend.machine.fail(**fault)
        channel = "writes" if fault.get("write") else "reads"
        with pytest.raises(DeviceFault, match=rf"answered with an error \({channel} at port {fault['port']}\)") as caught:
            for token in session.generate(prompt(4), 8, drafts=drafts):
                got.append(token)
        assert got == expected[: len(got)] and len(got) < 8 and backend.read("TOKEN_LEVEL") == 0
        assert caught.value.state["memory_error"] == 1
        with pytest.raises(DeviceError, match="reset the session"):
            list(session.generate(prompt(4), 1))
        session.stop()
        assert backend.read("STATUS") & STATUS["HALTED"].mask and backend.read("HALT_CODE") == MEMORY_FAILED
        session.reset()
        assert list(session.generate(prompt(4), 8)) == expected


def test_every_look_sees_a_memory_error(built):
    image, backend, reference = built

    def begun(session):
        tokens = session.generate(prompt(4), 20)
        next(tokens)
        backend.machine.fail()
        backend.machine.run(50_000, 0)
        return tokens

    actions = (lambda session, tokens: session.stop(), lambda session, tokens: tokens.close(), lambda session, tokens: session.close(),
               lambda session, tokens: next(tokens))
    for action in actions:
        session = Session(backend, image)
        tokens = begun(session)
        with pytest.raises(DeviceFault, match="answered with an error"):
            action(session, tokens)
        session.close()
    with pytest.raises(DeviceFault, match="answered with an error"), Session(backend, image) as session, session.batch() as batch:
        batch.add(prompt(4), 9)
        next(iter(batch))
        backend.machine.fail(write=True)
        batch.add(prompt(2), 9)
        list(batch)
    reference.reset()
    whole = reference.generate(prompt(3), 8)
    with Session(backend, image) as session:
        tokens = session.generate(prompt(3), 8, stop_ids=[511, whole[0]])
        assert next(tokens) == whole[0]
        backend.machine.fail()
        backend.machine.run(50_000, 0)
        with pytest.raises(DeviceFault, match="answered with an error"):
            next(tokens)
        session.reset()
        list(session.generate(prompt(3), 1))
        backend.machine.fail(write=True)
        backend.write("MEMORY_ADDRESS", image.map.regions["kv"].base)  # after the end of a program
        backend.write("MEMORY_DATA", 1)
        backend.machine.run(1000, 0)
        for action in (session.stop, session.batch, lambda: session.assume(1), lambda: next(session.generate(prompt(3), 1))):
            session.device.failed = False
            with pytest.raises(DeviceFault, match="writes at port 0"):
                action()
        session.reset()
        assert list(session.generate(prompt(3), 8)) == whole


def test_an_image_that_the_memory_does_not_take_is_an_error(built):
    """Loaded word by word, as by a host without another way to the memory."""
    image, backend, _ = built

    class ByRegisters(SimBackend):
        def load(self, address, data):
            self.write("MEMORY_ADDRESS", address)
            for word in np.frombuffer(data, "<u4")[:8].tolist():
                self.write("MEMORY_DATA", word)

    device = ByRegisters(backend.machine, backend.config, backend.port_bases)
    faults: list[dict[str, Any]] = [{}, dict(after=3, response="decerr"), dict(after=6)]
    for fault in faults:
        device.machine.fail(port=1, write=True, **fault)
        with pytest.raises(DeviceFault, match=r"writes at port 1"):
            Session(device, image)
    backend.machine.heal()
    backend.machine.fail(write=True, response="okay", stall=None)
    with pytest.raises(DeviceError, match="answered with an error"):
        for _ in range(100):
            backend.write("MEMORY_DATA", 1)
    backend.write("CONTROL", RESET)
    backend.machine.run(1000, 0)
    assert backend.read("STATUS") & STATUS["RESETTING"].mask
    backend.machine.heal()  # a session waits for the end of a reset that it finds under way
    with Session(backend, image) as session:
        assert len(list(session.generate(prompt(2), 2))) == 2


def test_ports_are_placed_by_the_host(built):
    image, backend, _ = built
    assert len(set(backend.port_bases)) == 2
    with Session(backend, image) as session:
        assert [backend.read(f"PORT_BASE{port}") for port in range(2)] == list(backend.port_bases)
        assert backend.read("VERSION") == MAP_VERSION
        assert [backend.read(f"PORT_BASE_HIGH{port}") for port in range(2)] == [0, 0]
        tokens = session.generate(prompt(2), 9)
        next(tokens)
        with pytest.raises(DeviceError, match="writing PORT_BASE0"):
            backend.write("PORT_BASE0", 0x1000)
    for wrong in ((0,), (0, 0x800), (0, 1 << 40)):
        device = SimBackend(backend.machine, backend.config)
        device.port_bases = wrong
        with pytest.raises(DeviceError, match="a multiple of 4096, for each of its 2 memory ports"):
            Session(device, image)


def test_a_machine_beside_the_processor_writes_the_same_tokens(built, tmp_path, monkeypatch):
    """Backend `axi` and the doctor's self-test on a board's Linux made of files, the RTL behind its registers and buffers; and backend
    `pynq`, where that is a stand-in for PYNQ."""
    image, backend, _ = built
    with Session(backend, image) as session:
        expected = list(session.generate(prompt(3), 6))
    bases = [0x6000_0000, 0x5000_0000]
    try:
        board = axiboard.Board(tmp_path, SimBackend(backend.machine, backend.config, bases), image.map.total_bytes, bases)
        device = board.open(image.map.total_bytes)
        with Session(device, image) as session:
            assert list(session.generate(prompt(3), 6)) == expected and board.waits
            cycles = session.stats().decode_cycles_per_token or 0.0
            assert [backend.read(f"PORT_BASE{port}") for port in range(2)] == bases
        device.close()
        monkeypatch.setattr(Image, "self_test", SelfTest(prompt(3), expected, cycles))
        monkeypatch.setattr("tritloom.host.board_doctor.MAP_VERSION", backend.read("VERSION"))
        rows = board_findings(image.config, image, registers=0xA000_0000, windows=[(0, 2 << 30)], root=tmp_path, window=lambda path: board,
                              backend=lambda config, memory_bytes: board.open(memory_bytes, config))
        assert all(row["ok"] for row in rows) and [row["name"] for row in rows[-2:]] == ["self-test", "speed"]
        assert rows[-2]["detail"] == "6 tokens as recorded" and f"projected {image.config.clock_hz / cycles:.1f}" in rows[-1]["detail"]
        pynq = pynqboard.Pynq(board)
        pynq.bases = bases
        pynq.board.read, read = lambda offset: (board.machine.advance(100), read(offset))[1], board.read  # time passes as it is looked at
        monkeypatch.setitem(sys.modules, "pynq", pynq)
        for suffix in (".bit", ".hwh"):
            (tmp_path / "tritloom").with_suffix(suffix).write_bytes(b"")
        device = PynqBackend(image.config, image.map.total_bytes, tmp_path / "tritloom.bit")
        with Session(device, image) as session:
            assert list(session.generate(prompt(3), 6)) == expected
        device.close()
    finally:
        SimBackend(backend.machine, backend.config, backend.port_bases)


def test_stripes_lie_wherever_a_port_reaches(built):
    """A machine that is simulated alone has bases of 32 bits: near the upper end of them, and across it."""
    image, backend, _ = built
    with Session(backend, image) as session:
        expected = list(session.generate(prompt(3), 6))
    near = backend.port_bases
    far = SimBackend(backend.machine, backend.config, [0x7FF0_0000, (1 << 32) - 4096])
    try:
        with Session(far, image) as session:
            assert list(session.generate(prompt(3), 6)) == expected
    finally:
        SimBackend(backend.machine, backend.config, near)


@pytest.mark.parametrize("unit", Unit, ids=str)
def test_a_reset_from_every_unit(built, unit):
    """The memory stops answering while a unit is busy: reads, writes or both, before or after a STOP. A reset waits for it; then the
    machine works."""
    image, backend, reference = built
    machine, status = backend.machine, lambda: backend.read("STATUS")
    pick, stuck = np.random.default_rng(harness.seed_from_environment() + unit), set()
    with Session(backend, image) as session:
        for channels, stop in itertools.product(((0,), (1,), (0, 1)), (False, True)):
            session.reset()
            tokens = session.generate(prompt(7), 100)
            next(tokens)
            machine.run(int(pick.integers(1, 5000)), 0)
            assert any(STATUS["UNIT_BUSY"].get(status()) & unit for _ in range(10_000))
            for port, write in itertools.product(range(2), channels):
                machine.fail(port, write=bool(write), count=1 << 40, response="okay", stall=None)
            machine.run(int(pick.choice((0, 20, 5000))), 0)
            if stop:
                backend.write("CONTROL", STOP)
                machine.run(3000, 0)
            backend.write("CONTROL", RESET)
            machine.run(2000, 0)
            ports = backend.read("MEMORY_PORTS")
            assert bool(ports) == bool(status() & STATUS["RESETTING"].mask)
            stuck.add(ports)
            machine.heal()
            machine.run(3000, 0)
            assert status() & 0xFFFF == 0 and backend.read("MEMORY_PORTS") == 0
        session.reset()
        reference.reset()
        assert list(session.generate(prompt(7), 3)) == reference.generate(prompt(7), 3)
    assert len(stuck) > 1


def test_a_reset_from_every_instruction(built):
    """Programs that wait for what never comes, STOP or not: commands without the weights that they take, too."""
    image, backend, reference = built
    machine, blocked = backend.machine, ("in r1", "out r1\n jmp 0", "token r1", "jmp 0", "halt 3", "stream 0\n jmp 0", "flush\n jmp 0",
                                         "li r1, 1\n matmul inputs=64 steps=20 count=r1\n wait matmul",
                                         "li r1, 1\n vector.param length=3 count=r1\n wait vector",
                                         "li r1, 1\n dot.head count=r1\n wait dot", "sample noise=r1\n token r2")
    for text, stop in itertools.product(blocked, (False, True)):
        backend.write("PROGRAM_ADDRESS", 0)
        for word in assemble(text):
            backend.write("PROGRAM_LOW", word & 0xFFFFFFFF)
            backend.write("PROGRAM_HIGH", word >> 32)
        backend.write("ENTRY", 0)
        backend.write("CONTROL", START)
        machine.run(3000, 0)
        if stop:
            backend.write("CONTROL", STOP)
            machine.run(3000, 0)
        backend.write("CONTROL", RESET)
        machine.run(3000, 0)
        assert backend.read("STATUS") & 0xFFFF == 0 and backend.read("MEMORY_PORTS") == 0 and backend.read("TOKEN_LEVEL") == 0, text
    reference.reset()
    with Session(backend, image) as session:
        assert list(session.generate(prompt(7), 3)) == reference.generate(prompt(7), 3)


def test_a_unit_that_waits_for_ever_is_reset_by_the_session(built):
    image, backend, reference = built
    reference.reset()
    expected = reference.generate(prompt(7), 3)
    with Session(backend, image) as session:
        program = assemble("in r1\n out r1\n li r1, 1\n matmul inputs=64 steps=20 count=r1\n wait matmul")
        backend.write("PROGRAM_ADDRESS", 0)
        for word in program:
            backend.write("PROGRAM_LOW", word & 0xFFFFFFFF)
            backend.write("PROGRAM_HIGH", word >> 32)
        session.device.patience, patience = 20_000, session.device.patience
        tokens = session.generate([5], 3)
        assert next(tokens) == 5
        with pytest.raises(DeviceTimeout, match="did not come to a stop within 20000 cycles"):
            session.stop()
        session.device.load()
        session.device.patience = patience
        session.reset()
        assert list(session.generate(prompt(7), 3)) == expected


@pytest.mark.parametrize("heals", [True, False])
def test_a_session_recovers_from_a_memory_that_stops_answering(built, heals):
    image, backend, reference = built
    reference.reset()
    expected = reference.generate(prompt(4), 6)
    with Session(backend, image) as session:
        session.device.patience, patience = 100_000, session.device.patience
        tokens = session.generate(prompt(4), 20)
        next(tokens)
        backend.machine.fail(1, count=1 if heals else 1 << 40, response="okay", stall=250_000 if heals else None)
        with pytest.raises(DeviceTimeout, match="did not come to a token within") as caught:
            list(tokens)
        assert caught.value.state["ports_reading"] & 2
        with pytest.raises(DeviceError, match="reset the session"):
            list(session.generate(prompt(4), 1))
        if not heals:
            with pytest.raises(DeviceTimeout, match="nor to the end of a reset: its memory does not answer reads of port 1; check"):
                session.reset()
            backend.machine.heal()
        session.device.patience = patience
        session.reset()
        assert list(session.generate(prompt(4), 6)) == expected


def test_the_emulator_refuses_what_the_machine_cannot_do(built):
    image, *_ = built
    software = EmulatorBackend(image.config, image.map.total_bytes)
    with Session(software, image) as session:
        software.program[0] = 16 | 4 << 24  # RESID takes parameters from bank 0, which has none
        with pytest.raises(DeviceError, match="takes parameters from bank 0, which has none"):
            list(session.generate(prompt(2), 1))
