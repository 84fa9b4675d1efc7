"""Session over devices without a board: text, statistics, and everything that can go wrong."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import oracle
from tritloom.firmware.assembler import assemble
from tritloom.firmware.config import BuildConfig
from tritloom.firmware.errors import InputError
from tritloom.firmware.image import ImageError
from tritloom.firmware.registers import FIFO_DEPTH, MEMORY_FAILED
from tritloom.gen.models import open_checkpoint
from tritloom.gen.pack import pack, quantise
from tritloom.host.backends.emulator import EmulatorBackend
from tritloom.host.backends.null import NullBackend
from tritloom.host.backends.protocol import DeviceBusy, DeviceError, DeviceFault, DeviceTimeout
from tritloom.host.device import LONGEST, STEP_CYCLES, STOP
from tritloom.host.drafting import COST, CREEP, SLACK, Budget, PromptLookup
from tritloom.host.image import open_image, write_image
from tritloom.host.session import Session, sampling
from tritloom.host.tokenizer import Tokenizer
from tritloom.sim.backends import SimBackend
from tritloom.sim.integer_model import IntegerModel
from tritloom.sim.machine import SimulationTimeout

MODEL = Path(__file__).resolve().parents[2] / "models" / "stories-260k"
CONTEXT = 96
PROMPT = [0, 50, 60, 70, 80]


@pytest.fixture(scope="module")
def checkpoint():
    return open_checkpoint(MODEL, context=CONTEXT)


@pytest.fixture(scope="module")
def image(checkpoint, tmp_path_factory):
    return packed(checkpoint, tmp_path_factory.mktemp("image") / "model.img")


def packed(checkpoint, path, **changes):
    config = BuildConfig(shape=checkpoint.spec.shape, tables=11, attention_macs=16, **changes)
    p = pack(checkpoint, config)
    write_image(path, config=config, spec=p.spec.to_dict(), sections=p.sections)
    return open_image(path)


@pytest.fixture(scope="module")
def emulator(image):
    return EmulatorBackend(image.config, image.map.total_bytes)


@pytest.fixture
def session(emulator, image):
    with Session(emulator, image) as session:
        yield session


def null(image, *answer, **options):
    return NullBackend(image.config, answer or (7, 8, 9), **options)


# Text ------------------------------------------------------------------------------------------------


def test_the_device_generates_what_the_integer_model_does(session, checkpoint):
    assert list(session.generate(PROMPT, 6)) == IntegerModel(quantise(checkpoint)).generate(PROMPT, 6)


def test_again_and_on_after_reset(session):
    first = list(session.generate(PROMPT, 6))
    session.reset()
    assert list(session.generate(PROMPT, 6)) == first
    session.reset()
    assert list(session.generate(PROMPT, 3)) + list(session.generate((), 3)) == first


def test_a_prompt_in_pieces_is_the_same_prompt(session):
    whole = list(session.generate(PROMPT, 4))
    session.reset()
    session.prefill(PROMPT[:1])
    session.prefill(PROMPT[1:4])
    assert session.position == 3 and session.remaining == CONTEXT - 4
    assert list(session.generate(PROMPT[4:], 4)) == whole


def test_an_assumed_position_uses_the_cache_as_it_lies(session):
    whole = list(session.generate(PROMPT, 4))
    session.assume(len(PROMPT) - 1)
    assert list(session.generate(PROMPT[-1:], 4)) == whole
    with pytest.raises(InputError, match=f"from 0 to {CONTEXT - 1}, not {CONTEXT}"):
        session.assume(CONTEXT)


@pytest.mark.slow
@pytest.mark.parametrize("taken", [1, 3])
def test_an_iterator_closed_early_forgets_what_was_not_taken(session, taken):
    whole = list(session.generate(PROMPT, 8))
    session.reset()
    run = session.generate(PROMPT, 8)
    head = [next(run) for _ in range(taken)]
    run.close()
    assert head + list(session.generate((), 8 - taken)) == whole


def test_stop_ends_the_iterator(session):
    run = session.generate(PROMPT, 8)
    head = [next(run)]
    session.stop()
    assert list(run) == []
    tail = list(session.generate((), 3))
    session.reset()
    assert list(session.generate(PROMPT, 4)) == head + tail


@pytest.mark.slow
@pytest.mark.parametrize("place", [0, 1])
def test_any_stop_token_ends_the_text_and_is_part_of_it(session, place):
    whole = list(session.generate(PROMPT, 8))
    stop = whole[3]
    end = whole.index(stop) + 1
    other = next(t for t in range(session.config.shape.vocab) if t not in whole)
    session.reset()
    assert list(session.generate(PROMPT, 8, stop_ids=[stop, other][:: -1 if place else 1])) == whole[:end]
    assert session.stats().tokens == end


def test_sampling_is_reproducible_and_depends_on_the_seed(session):
    texts = []
    for seed in (1, 1, 2):
        session.reset()
        texts.append(list(session.generate(PROMPT, 8, sampling=sampling(1.0, top_k=40, top_p=0.95, seed=seed))))
    assert texts[0] == texts[1] != texts[2]


# Drafts ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("drafts", "wrong", "passes"), [(1, 1000, 12), (3, 1000, 6), (3, 2, 12), (2, 5, 10), (3, 1, 24)])
def test_drafts_do_not_change_the_text(session, drafts, wrong, passes):
    plain = list(session.generate(PROMPT, 24))
    session.reset()
    with oracle.foretold(PROMPT + plain, wrong):
        assert list(session.generate(PROMPT, 24, drafts=drafts)) == plain
    assert session.stats().passes == passes
    session.reset()
    first = list(session.generate(PROMPT, 7, drafts=drafts))
    assert first + list(session.generate((), 1, drafts=drafts)) + list(session.generate((), 16)) == plain


@pytest.mark.slow
@pytest.mark.parametrize("choice", [dict(temperature=0.8, seed=3), dict(temperature=1.2, top_k=7, seed=4), dict(top_p=0.8, seed=5)])
@pytest.mark.parametrize("wrong", [1000, 2, 1])
def test_drafts_do_not_change_a_sampled_text(session, choice, wrong):
    plain = list(session.generate(PROMPT, 16, sampling=sampling(**choice)))
    session.reset()
    with oracle.foretold(PROMPT + plain, wrong):
        assert list(session.generate(PROMPT, 16, sampling=sampling(**choice), drafts=3)) == plain
    assert session.stats().passes == {1000: 4, 2: 8, 1: 16}[wrong]


@pytest.mark.slow
def test_drafts_end_where_the_text_ends(session):
    prompt = 3 * PROMPT
    plain = list(session.generate(prompt, 20))
    stop = plain[9]
    session.reset()
    assert list(session.generate(prompt, 20, stop_ids=[stop], drafts=3)) == plain[: plain.index(stop) + 1]
    session.reset()
    room = CONTEXT - len(prompt) + 1
    assert len(list(session.generate(prompt, room, drafts=3))) == room
    session.reset()
    tokens = session.generate(prompt, 20, drafts=3)
    assert [next(tokens) for _ in range(4)] == plain[:4]
    tokens.close()
    assert list(session.generate((), 16)) == plain[4:]


@pytest.mark.parametrize(("arguments", "message"), [
    (dict(drafts=4), "drafts must be from 0 to 3 on this machine of 4 lanes, not 4"),
    (dict(drafts=-1), "drafts must be from 0 to 3"),
])  # fmt: skip
def test_drafts_that_cannot_be(session, arguments, message):
    with pytest.raises(InputError, match=message):
        session.generate(PROMPT, 4, **arguments)


def drafted(lookup, room=9):
    """What is drafted beside one token by a generation that can afford a lot."""
    budget = Budget({})
    for _ in range(100):
        budget.settle(1, 0, 1, 0)
    return lookup.draft(room, 1, 1, budget)


def test_prompt_lookup():
    lookup = PromptLookup(8 * [1, 2, 3, 4, 5] + [1, 2], most=3)
    assert drafted(lookup) == [3, 4, 5] and drafted(lookup, 2) == [3, 4] and drafted(lookup, 0) == []
    lookup.push(9)
    assert drafted(lookup) == [], "an ending never seen"
    for token in (1, 2):
        lookup.push(token)
    assert drafted(lookup) == [9, 1, 2], "the latest place goes first"


def test_guesses_are_kept_back_while_they_are_wrong():
    """1 2 is followed by something else each time; then by the same."""
    text = [token for i in range(20) for token in (1, 2, 100 + i)]
    assert drafted(PromptLookup(text + [1, 2], most=3)) == []
    lookup = PromptLookup(text, most=3)
    counts = []
    for _ in range(8):
        for token in (1, 2, 7):
            lookup.push(token)
            counts.append(len(drafted(lookup)))
    assert counts[:4] == [0, 0, 0, 0] and counts[-1] == 3, counts
    assert drafted(PromptLookup([], 3)) == []


def test_a_pass_costs_what_was_measured():
    budget = Budget({})
    assert budget.cost(3) == pytest.approx(1 + 2 * COST)
    budget.measured(2, 115)
    assert budget.cost(1) == pytest.approx(100) and budget.cost(2) == 115
    budget.measured(4, 125)
    assert budget.cost(3) == 120 and budget.cost(1) == 110
    budget.measured(4, 100_000)
    assert budget.cost(4) == 125 * CREEP, "the host was slow"


def test_wrong_guesses_lose_no_more_than_the_slack():
    """A budget that is asked for as much as it affords, and every guess wrong."""
    budget, plain, taken = Budget({1: 100, 2: 130, 3: 140, 4: 150}), 0, 0
    for _ in range(300):
        drafts = max(n for n in range(4) if n == 0 or budget.affords(1, n))
        budget.settle(1, drafts, 1, 0)
        plain, taken = plain + 100, taken + budget.cost(1 + drafts)
        assert taken <= (1 + SLACK) * plain
    assert taken > (1 + SLACK / 2) * plain, "it did try"
    budget.settle(1, 3, 1, 3)
    assert budget.affords(1, 3), "right guesses make up for wrong ones"


def test_prompts_longer_than_the_fifo(image):
    prompt = [t % 512 for t in range(FIFO_DEPTH + 20)]
    seen = []
    with Session(null(image), image) as session:
        assert list(session.generate(prompt, 2, progress=lambda done, total: seen.append((done, total)))) == [7, 8]
    assert seen == sorted(seen) and seen[-1][1] == len(prompt)


@pytest.mark.slow
def test_a_prompt_is_read_however_long_it_takes(checkpoint, tmp_path):
    """485 tokens for devices whose FIFO is full all the time, with patience for fewer."""
    long = packed(open_checkpoint(MODEL), tmp_path / "long.img", lanes=16)
    prompt = [token % 512 for token in range(485)]
    with Session(EmulatorBackend(long.config, long.map.total_bytes), long) as session:
        session.device.patience = 4 * STEP_CYCLES
        assert len(list(session.generate(prompt, 2))) == 2
    with Session(null(long, token_cycles=1000), long) as session:
        session.device.patience = 4000
        assert list(session.generate(prompt, 3)) == [7, 8, 9]


class Counting(NullBackend):
    """Answers only after `beats` beats, one a look."""

    beats = 0

    def advance(self, limit):
        self.hang = self.registers["DATA_BEATS"] < self.beats
        self.registers["DATA_BEATS"] += 1
        return super().advance(limit)


def test_a_device_that_reads_makes_progress_but_not_for_ever(image):
    backend = Counting(image.config)
    with Session(backend, image) as session:
        session.device.patience, backend.beats = 4000, LONGEST - 4
        assert list(session.generate([1], 1)) == [0]
        backend.beats = 2 * LONGEST
        with pytest.raises(DeviceTimeout, match=f"did not come to a token within {LONGEST * 4000} cycles"):
            list(session.generate((), 1))


def test_the_context_can_be_filled_to_its_end(image):
    with Session(null(image), image) as session:
        assert len(list(session.generate([1], CONTEXT))) == CONTEXT
        assert session.position == CONTEXT and session.remaining == 0
        with pytest.raises(InputError, match="longer than the context"):
            session.generate((), 1)


# Statistics ------------------------------------------------------------------------------------------


def test_statistics_of_a_device_with_time(image):
    with Session(null(image, token_cycles=500), image) as session:
        with pytest.raises(InputError, match="before the first generation"):
            session.stats()
        list(session.generate([1, 2, 3], 4))
        stats = session.stats()
    assert stats.prompt_tokens == 3 and stats.tokens == 4
    assert stats.prefill_cycles == 1500 and stats.decode_cycles == (500, 500, 500) and stats.cycles == 3000
    assert stats.decode_cycles_per_token == 500 and stats.memory_share == 0


def test_the_emulator_claims_no_times(session):
    list(session.generate(PROMPT, 3))
    stats = session.stats()
    assert stats.cycles is stats.prefill_cycles is stats.memory_share is stats.decode_cycles_per_token is None
    passes = -(-len(PROMPT) // session.config.lanes)
    layout = session.image.map
    assert stats.weight_beats == (passes - 1) * layout.pass_beats(False, head=False) + 3 * layout.token_beats


def test_one_token_has_no_decode_time(image):
    with Session(null(image), image) as session:
        list(session.generate([1], 1))
        assert session.stats().decode_cycles_per_token is None


# Bad requests ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "tokens", "message"),
    [
        ([], 1, "the prompt is empty"),
        ([1] * (CONTEXT + 1), 1, "longer than the context of 96: shorten"),
        ([1] * 90, 8, "go past the context of 96: ask for at most 7"),
        ([512], 1, "prompt token 512 is outside the vocabulary of 512"),
        ([-1], 1, "prompt token -1 is outside"),
        ([1], 0, "at least 1, not 0"),
    ],
)
def test_requests_that_cannot_be(image, prompt, tokens, message):
    with Session(null(image), image) as session:
        with pytest.raises(InputError, match=message) as caught:
            session.generate(prompt, tokens)
        assert caught.value.exit_status == 2
        assert list(session.generate([1], 1)) == [7]


def test_stop_tokens_and_candidates_are_checked(image):
    with Session(null(image), image) as session:
        with pytest.raises(InputError, match="stop token 600"):
            session.generate([1], 1, stop_ids=[600])
        with pytest.raises(InputError, match="top-k 65 is more than the machine's 64"):
            session.generate([1], 1, sampling=sampling(top_k=65))


@pytest.mark.parametrize(
    "settings", [{"temperature": -1}, {"temperature": float("nan")}, {"top_p": 0}, {"top_p": 1.5}, {"top_k": -1}, {"seed": 1 << 32}]
)
def test_sampler_settings_that_cannot_be(settings):
    with pytest.raises(InputError):
        sampling(**settings)


def test_one_generation_at_a_time(image):
    with Session(null(image), image) as session:
        first, second = session.generate([1], 4), session.generate([1], 4)
        next(first)
        with pytest.raises(DeviceBusy, match="under way"):
            next(second)
        stale = session.generate([1], 1)
        list(first)
        with pytest.raises(InputError, match="the text has changed"):
            next(stale)


# Bad devices -----------------------------------------------------------------------------------------


def test_a_second_session_is_refused_until_the_first_is_closed(image):
    backend = null(image)
    with Session(backend, image):
        with pytest.raises(DeviceBusy, match="already has a session"):
            Session(backend, image)
    Session(backend, image).close()


def test_a_session_that_failed_to_open_leaves_the_device_free(image):
    backend = null(image)
    backend.registers["ID"] = 0
    with pytest.raises(DeviceError, match="no tritloom machine"):
        Session(backend, image)
    backend.registers["ID"] = int.from_bytes(b"TRIT", "little")
    Session(backend, image).close()


def test_a_named_device_is_locked_among_processes(image, tmp_path):
    class Named(NullBackend):
        device = f"test {os.getpid()}"

    code = f"""
import sys
from tritloom.host.backends.protocol import DeviceBusy
from tritloom.host.device import _Lock
class Other:
    name, device = "null", {Named.device!r}
try:
    _Lock(Other())
except DeviceBusy as error:
    sys.exit(str(error))
"""
    with Session(Named(image.config), image):
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert run.returncode == 1 and "another process has a session on test" in run.stderr
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_another_configuration_is_refused_with_the_fields_that_differ(checkpoint, image, tmp_path):
    backend = null(packed(checkpoint, tmp_path / "other.img", lanes=2))
    with pytest.raises(ImageError, match=r"lanes 4 \(machine: 2\)"):
        Session(backend, image)


def test_a_device_that_never_answers_times_out_with_its_state(image):
    backend = null(image, hang=True)
    with Session(backend, image) as session:
        with pytest.raises(DeviceTimeout, match="did not come to a token within") as caught:
            list(session.generate([1], 1))
        assert {"running", "prompt_room", "pc", "unit_busy", "tokens_waiting", "cycles", "weight_beats"} <= set(caught.value.state)
        assert caught.value.state["running"] == 1
        with pytest.raises(DeviceError, match="reset the session"):
            list(session.generate([1], 1))
        backend.hang = False
        session.reset()
        assert list(session.generate([1], 1)) == [7]


def test_real_time_is_bounded_too(image):
    with Session(null(image, hang=True), image, timeout_s=0) as session:
        with pytest.raises(DeviceTimeout, match="within 0 s"):
            next(session.generate([1], 1))


class Deaf(NullBackend):
    """Does not take what is written to some bits of CONTROL."""

    ears = 0

    def write(self, register, value):
        super().write(register, value & self.ears if register == "CONTROL" else value)


def test_a_device_that_does_not_stop_is_reset(image):
    backend = Deaf(image.config, hang=True)
    backend.ears = ~STOP
    with Session(backend, image) as session:
        session.device.patience = 1 << 18
        with pytest.raises(DeviceTimeout, match="a token"):
            next(session.generate([1], 1))
        assert not backend.running, "the stop that follows an error"
        session.reset()
        backend.hang = False
        tokens = session.generate([1], FIFO_DEPTH)
        next(tokens)
        backend.hang = True
        with pytest.raises(DeviceTimeout, match="a stop"):
            session.stop()
        with pytest.raises(DeviceError, match="reset the session"):
            list(session.generate((), 1))
        backend.hang = False
        session.reset()
        assert list(session.generate([1], 1)) == [0]


def test_a_device_that_does_not_stop_is_reported(image):
    class Deaf(NullBackend):
        def write(self, register, value):
            if register != "CONTROL" or not value & 2:
                super().write(register, value)

    session = Session(Deaf(image.config, hang=True), image)
    session.device.patience = 1 << 18
    with pytest.raises(DeviceTimeout, match="a token"):
        next(session.generate([1], 1))
    with pytest.raises(DeviceTimeout, match="a stop"):
        session.reset()
    session.close()


class Failing(NullBackend):
    """Its memory fails when a register is read for the n-th time."""

    register, left, write_error = "", 0, False

    def read(self, register):
        if register == self.register:
            self.left -= 1
            if not self.left:
                self.memory_fails(write=self.write_error)
        return super().read(register)


@pytest.mark.parametrize("register, left, count", [("TOKEN_OUT", 1, 0), ("TOKEN_OUT", 3, 2), ("TOKEN_LEVEL", 4, 1), ("TOKEN_CYCLE", 2, 1),
                                                   ("STATUS", 3, 0)])
@pytest.mark.parametrize("write_error", [False, True])
def test_no_token_is_handed_out_after_a_memory_error(image, register, left, count, write_error):
    backend, taken = Failing(image.config, (7, 8, 9)), []
    with Session(backend, image) as session:
        backend.register, backend.left, backend.write_error = register, left, write_error
        with pytest.raises(DeviceFault, match=r"memory answered with an error \((reads|writes) at port 0\): check the memory"):
            for token in session.generate([1], 5):
                assert not backend.errors
                taken.append(token)
        assert len(taken) == count and backend.registers["HALT_CODE"] == MEMORY_FAILED
        with pytest.raises(DeviceError, match="reset the session"):
            list(session.generate([1], 1))
        assert backend.errors, "not forgotten"
        session.reset()
        assert list(session.generate([1], 3)) == [7, 8, 9]


def test_a_memory_error_is_said_before_it_is_forgotten(image):
    backend = null(image)
    for action in (lambda s: s.close(), lambda s: s.stop(), lambda s: s.assume(3), lambda s: s.batch(), lambda s: s.prefill([1, 2]),
                   lambda s: next(s.generate([1], 1))):
        session = Session(backend, image)
        list(session.generate([1], 2))
        backend.memory_fails()
        with pytest.raises(DeviceFault, match="answered with an error"):
            action(session)
        session.close()
    with pytest.raises(ZeroDivisionError), Session(backend, image):
        backend.memory_fails()
        raise ZeroDivisionError("the first error is the one to report")


@pytest.mark.slow
def test_a_memory_error_ends_an_emulated_text(session, emulator):
    whole = list(session.generate(PROMPT, 6))
    for drafts in (0, 2):
        session.reset()
        emulator.fails_at, got = 4 * session.image.map.token_beats, []
        with pytest.raises(DeviceFault, match="answered with an error"):
            for token in session.generate(PROMPT, 6, drafts=drafts):
                got.append(token)
        assert got == whole[: len(got)] and len(got) < 6
    session.reset()
    with pytest.raises(DeviceFault, match="answered with an error"), session.batch() as batch:
        text = batch.add(PROMPT, 6)
        emulator.fails_at = 4 * session.image.map.token_beats
        list(batch)
    assert text.tokens == whole[: len(text.tokens)]
    session.reset()
    assert list(session.generate(PROMPT, 6)) == whole


def test_an_error_while_the_image_is_loaded(image):
    class Broken(NullBackend):
        def load(self, address, data):
            self.memory_fails(write=True)

    backend = Broken(image.config)
    with pytest.raises(DeviceFault, match=r"writes at port 0"):
        Session(backend, image)


@pytest.mark.parametrize(
    ("program", "error", "message"),
    [
        ("halt 3", DeviceFault, "ended with code 0x3"),
        ("loop: jmp loop", DeviceTimeout, "did not come to a token"),
        ("in r1\n in r1\n halt 0", DeviceTimeout, "did not come to a token"),
        ("in r1\n li r2, 9999\n out r2\n halt 0", DeviceFault, "sent 9999 as token 1 of 1"),
        ("in r1\n out r1\n out r1\n halt 0", DeviceFault, "sent 5 as token 2 of 1"),
        ("in r1\n token r1\n halt 0", DeviceError, "TOKEN without SAMPLE"),
    ],
)
def test_programs_that_misbehave(emulator, image, program, error, message):
    with Session(emulator, image) as session:
        emulator.program[:] = assemble(program)
        with pytest.raises(error, match=message):
            list(session.generate([5], 1))
        session.reset()


def test_a_token_that_is_none_is_not_handed_out(image):
    class Empty(NullBackend):
        def read(self, register):
            return 1 if register == "TOKEN_LEVEL" else super().read(register)

    with Session(Empty(image.config), image) as session:
        with pytest.raises(DeviceFault, match="sent nothing as token 1 of 1"):
            list(session.generate([1], 1))


def test_interruption_stops_the_device(image):
    class Interrupted(NullBackend):
        calls = 0

        def advance(self, limit):
            self.calls += 1
            if self.calls == 3:
                raise KeyboardInterrupt
            return super().advance(limit)

    backend = Interrupted(image.config, (7,))
    with Session(backend, image) as session:
        run = session.generate([1], 50)
        taken = []
        with pytest.raises(KeyboardInterrupt):
            taken.extend(iter(run.__next__, None))
        assert not backend.running and backend.stopped
        assert len(list(session.generate((), 2))) == 2


def test_a_closed_device_is_an_error(image):
    backend = null(image)
    session = Session(backend, image)
    backend.close()
    with pytest.raises(DeviceError, match="closed"):
        next(session.generate([1], 1))
    session.close()


def test_images_too_large_for_the_memory(image):
    with pytest.raises(DeviceError, match="beyond"):
        Session(EmulatorBackend(image.config, 4096), image)


class FakeMachine:
    """Stands for a verilated machine: answers registers with their address, or fails."""

    def __init__(self, axi_ports=1):
        self.axi_ports, self.written, self.memory, self.error = axi_ports, [], [], None

    def _fail(self):
        if self.error:
            raise self.error

    def csr_read(self, address):
        self._fail()
        return address

    def csr_write(self, address, value):
        self._fail()
        self.written.append((address, value))

    def run(self, limit):
        self._fail()
        return limit // 2

    def mem_write(self, address, data):
        if address >= 4096:
            raise IndexError("beyond")
        self.memory.append((address, data.tobytes()))


def test_the_simulation_is_reached_by_its_registers(image):
    machine: Any = FakeMachine()
    backend = SimBackend(machine, image.config)
    assert backend.read("PC") == 0x020 and backend.advance(10) == 5
    backend.write("ENTRY", 7)
    backend.load(64, b"abcd")
    assert machine.written == [(0x018, 7)] and machine.memory == [(64, b"abcd")]
    with pytest.raises(DeviceError, match="beyond"):
        backend.load(4096, b"abcd")
    machine.error = SimulationTimeout("no answer")
    for action in (lambda: backend.read("PC"), lambda: backend.write("ENTRY", 0), lambda: backend.advance(1)):
        with pytest.raises(DeviceError, match="no answer"):
            action()


def test_memory_on_chip_is_loaded_by_registers(image):
    machine: Any = FakeMachine(axi_ports=0)
    SimBackend(machine, image.config).load(16, bytes([1, 0, 0, 0, 2, 0]))
    assert machine.written == [(0x080, 16), (0x084, 1), (0x084, 2)]


# Text and tokens -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_file(MODEL / "tokenizer.json", 0)


@pytest.mark.parametrize("text", ["Once upon a time", "naïve café — “quotes”", "日本語 🦊🦊 end", " leading", "a\n\nb"])
def test_text_streams_without_torn_characters(tokenizer, text):
    ids = tokenizer.encode(text)
    stream = tokenizer.stream(ids[:1])
    pieces = [stream.push(token) for token in ids[1:]]
    assert "".join(pieces) + stream.finish() == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_torn_characters_show_at_the_end(tokenizer):
    ids = tokenizer.encode("ok 🦊")[:-2]
    stream = tokenizer.stream()
    assert "".join(stream.push(token) for token in ids) + stream.finish() == "ok \ufffd"


def test_start_tokens_and_bad_tokenizers(tokenizer, tmp_path):
    assert tokenizer.encode("a")[0] == 0 and tokenizer.encode("a").count(0) == 1
    with pytest.raises(InputError, match="empty"):
        tokenizer.encode("")
    with pytest.raises(InputError, match="No such file"):
        Tokenizer.from_file(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match="not a tokenizer"):
        Tokenizer.from_file(tmp_path / "tokenizer.json")


def test_load_takes_any_bytes(emulator):
    for data in (b"abcd", bytearray(b"abcd"), memoryview(b"abcd"), np.frombuffer(b"abcd", np.uint8)):
        emulator.memory[:4] = 0
        emulator.load(0, data)
        assert emulator.memory[:4].tobytes() == b"abcd"
