"""The sequencer: arithmetic and branches against a Python model, commands, waits and STOP in every state."""

import itertools
import random
from dataclasses import replace

import cocotb
import pytest
from cocotb.triggers import FallingEdge

import harness
import streams
from tritloom.firmware.assembler import Program, assemble
from tritloom.firmware.isa import SCRATCH_WORDS, DotOp, Op, Unit, VectorOp
from tritloom.firmware.registers import MEMORY_FAILED
from tritloom.rtl.control.parameters import SequencerParameters
from tritloom.rtl.control.sequencer import Sequencer

WORDS = 64
PARAMETERS = SequencerParameters(program_words=WORDS, lanes=3)
near_and_far = pytest.mark.parametrize("parameters", [PARAMETERS, replace(PARAMETERS, spread=True)], ids=["near", "far"])
PORTS = ("token_o", "vector", "matmul", "dot", "sampler", "stream_start")
INPUTS = ("program__en", "program__addr", "program__data", "start", "entry", "stop", "fault", "flushing", "unit_busy", "args")


async def begin(dut, program):
    for name in INPUTS:
        getattr(dut, name).value = 0
    bench = await streams.start(dut)
    await load(dut, program)
    return bench


async def load(dut, program):
    dut.program__en.value = 1
    for address, word in enumerate(program):
        dut.program__addr.value, dut.program__data.value = address, word
        await FallingEdge(dut.clk)
    dut.program__en.value = 0


async def pulse(dut, name):
    port = getattr(dut, name)
    port.value = 1
    await FallingEdge(dut.clk)
    port.value = 0


async def ended(dut, limit=5000):
    for _ in range(limit):
        if dut.running.value == 0:
            return
        await FallingEdge(dut.clk)
    raise TimeoutError(f"still running at {int(dut.pc.value)}")


@cocotb.test()
async def runs(dut):
    """Run programs with tokens both ways, each twice."""
    await begin(dut, [])
    results = []
    for job in streams.parameters()["jobs"]:
        await load(dut, job["program"])
        dut.args.value = sum(value << 32 * i for i, value in enumerate(job["args"]))
        for _ in range(2):
            sent = streams.send(dut, "prompt_i", job["prompt"], stall=job["stall"])
            received = streams.receive(dut, "token_o", job["count"], stall=job["stall"])
            dut.entry.value = job["entry"]
            await pulse(dut, "start")
            dut.entry.value = 0
            assert dut.running.value == 1
            await received
            await sent
            await ended(dut)
            assert dut.halted.value == 1 and dut.stopped.value == 0
            results.append([received.result(), int(dut.halt_code.value)])
    streams.report(results=results)


def echo():
    program = assemble("""
            halt    99
            arg     r1, 7           ; entry 1: count
    next:   in      r2
            addi    r2, r2, -3
            out     r2
            addi    r1, r1, -1
            bne     r1, r0, next
            li      r0, 5           ; r0 stays zero
            out     r0
            halt    0xabcd1234
    """)
    prompt = [1, 2, 3, 4, 0xFFFFFFFF]
    tokens = [(value - 3) & 0xFFFFFFFF for value in prompt] + [0]
    return {"program": program, "prompt": prompt, "args": [0] * 7 + [5], "entry": 1}, [tokens, 0xABCD1234]


def arithmetic_and_branches():
    rng = random.Random(3)
    values = [0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, rng.getrandbits(32), rng.getrandbits(32)]
    pairs = [(a, b) for a in values for b in values]
    p = Program(WORDS)
    p.li(5, len(pairs))
    p.label("next")
    p.in_(14)
    p.in_(15)
    p.add(1, 14, 15)
    p.sub(2, 14, 15)
    p.out(1)
    p.out(2)
    p.li(3, 0)
    for name, bit in (("beq", 1), ("bne", 2), ("blt", 4), ("bge", 8)):
        taken, on = p.unique(), p.unique()
        getattr(p, name)(14, 15, taken)
        p.jmp(on)
        p.label(taken)
        p.addi(3, 3, bit)
        p.label(on)
    p.out(3)
    p.addi(5, 5, -1)
    p.bne(5, 0, "next")
    p.halt()
    wanted = []
    for a, b in pairs:
        wanted += [(a + b) & 0xFFFFFFFF, (a - b) & 0xFFFFFFFF, (a == b) | (a != b) << 1 | (a < b) << 2 | (a >= b) << 3]
    return {"program": p.encode(), "prompt": sum(pairs, ()), "args": [0] * 8, "entry": 0}, [wanted, 0]


def unknown_instruction():
    return {"program": [len(Op)], "prompt": [], "args": [0] * 8, "entry": 0}, [[], 0xFFFFFFFF]


def scratch_memory():
    """All words written upwards, read downwards through a negative offset."""
    size = 3 * SCRATCH_WORDS
    program = assemble(f"""
            li      r2, {size}
    fill:   in      r1
            addi    r2, r2, -1
            store   r1, r2, 0
            bne     r2, r0, fill
            load    r0, r0, 3       ; r0 stays zero
            out     r0
            li      r3, {size + 7}
            li      r4, 7
    next:   load    r1, r2, 0
            out     r1
            load    r1, r3, -8
            out     r1
            addi    r3, r3, -1
            addi    r2, r2, 1
            bne     r3, r4, next
            halt    0
    """)
    values = [random.Random(4).getrandbits(32) for _ in range(size)]
    pairs = zip(reversed(values), values, strict=True)
    return {"program": program, "prompt": values, "args": [0] * 8, "entry": 0}, [[0, *sum(pairs, ())], 0]


@near_and_far
def test_programs(parameters):
    programs = (echo, arithmetic_and_branches, scratch_memory, unknown_instruction)
    cases = [(make(), stall) for make in programs for stall in ("none", "random")]
    jobs = [job | {"count": len(wanted[0]), "stall": stall} for (job, wanted), stall in cases]
    result = harness.run(harness.unit(Sequencer, parameters), "sequencer", __name__, parameters={"jobs": jobs}, testcase="runs")
    assert result["results"] == [wanted for (_, wanted), _ in cases for _ in range(2)]


@cocotb.test()
async def commands(dut):
    """Every unit command, the sampler's token, and the cycle of each."""
    p = streams.parameters()
    bench = await begin(dut, p["program"])
    ports = ("vector", "matmul", "scan", "dot", "sampler", "stream_start")
    agents = {name: streams.receive(dut, name, 1, stall=p["stall"]) for name in ports}
    started = bench.cycle + 1
    await pulse(dut, "start")
    streams.send(dut, "token_i", [77], stall=p["stall"])
    tokens = await streams.receive(dut, "token_o", 1)
    await ended(dut)
    got = {name: (await agent)[0] for name, agent in agents.items()}
    taken = [agents[name].cycles[0] for name in ports[:5]]  # one after the other
    apart = [after - before for before, after in itertools.pairwise(taken)]
    streams.report(got=got, tokens=tokens, latency=taken[0] - started, apart=apart)


@near_and_far
@pytest.mark.parametrize("stall", ["none", "periodic"])
def test_commands(stall, parameters):
    p = Program(WORDS)
    p.vector(VectorOp.QKV, slot=11, count=12, a=13, b=14, length=0xBEEF, source=1, norm=0, dest=1)
    for register, value in ((11, 0x1A1), (12, 0x1B2), (13, 0x13131313), (14, 0xF4F4F4F4)):
        p.li(register, value)
    p.vector(VectorOp.GLU, slot=11, count=12, a=13, b=14, length=0xBEEF, source=1, norm=0, dest=2, bank=2, follow=5)
    p.matmul(inputs=0x1234, steps=0xFEDC, slot=11, count=12, at=14)
    p.scan(slot=12, rows=0xABCD, first=1, at=14)
    p.dot(DotOp.HEAD, slot=11, count=12, position=13, kv_base=14)
    p.sample(slot=11, noise=13, temperature=14, limits=12)
    p.token(6)
    p.stream(200)
    p.out(6)
    p.halt()
    words = p.encode()[1:]
    result = harness.run(harness.unit(Sequencer, replace(parameters, short_list=True)), "sequencer", __name__, testcase="commands",
                         parameters={"program": words, "stall": stall})
    assert result["got"] == {
        "vector": {"op": 6, "source": 1, "norm": 0, "dest": 2, "slot": 0xA1, "count": 0xB2, "length": 0xBEEF, "bank": 2, "follow": 5,
                   "a": 0x13131313, "b": 0xF4F4F4F4},
        "matmul": {"inputs": 0x1234, "steps": 0xFEDC, "slot": 0xA1, "count": 0xB2, "at": 0xF4F4},
        "scan": {"slot": 0xB2, "rows": 0xABCD, "first": 1, "at": 0xF4F4},
        "dot": {"op": 1, "slot": 0xA1, "count": 0xB2, "position": 0x13131313, "kv_base": 0xF4F4F4F4},
        "sampler": {"slot": 0xA1, "noise": 0x13131313, "temperature": 0xF4F4F4F4, "limits": 0x1B2},
        "stream_start": 200,
    }
    assert result["tokens"] == [77]
    if stall == "none":
        assert result["latency"] == 4 * 4 + SequencerParameters.latency
        assert result["apart"] == [parameters.command_cycles] * 4


@cocotb.test()
async def waits(dut):
    """Units busy from the cycle after their command: WAIT must see them, and only those it names."""
    p = streams.parameters()
    bench = await begin(dut, p["program"])
    reports = []
    for length in p["lengths"]:
        reports.append(await wait_once(dut, bench, {"vector": length, "matmul": 1000}))
        dut.unit_busy.value = 0
        await ended(dut)
    streams.report(out=reports)


async def wait_once(dut, bench, times):
    agents = {name: streams.receive(dut, name, 1) for name in times}
    out = streams.receive(dut, "token_o", 2)
    await pulse(dut, "start")
    busy_until = {}
    while len(out.cycles) < 2:
        mask = 0
        for bit, (name, length) in enumerate(times.items()):
            if agents[name].cycles:
                busy_until[name] = agents[name].cycles[0] + length
                mask |= (bench.cycle <= busy_until[name]) << bit
        # The vector unit's writes show two cycles after it is idle.
        if "vector" in busy_until and 2 < bench.cycle - busy_until["vector"] < 30:
            mask |= Unit.WRITES
        dut.unit_busy.value = int(mask)
        await FallingEdge(dut.clk)
    return [cycle - busy_until["vector"] for cycle in out.cycles]


@near_and_far
def test_wait_sees_a_unit_at_once(parameters):
    p = Program(WORDS)
    p.matmul(inputs=1, steps=1)
    p.vector(VectorOp.PARAM)
    p.wait(Unit.VECTOR)
    p.out(0)
    p.wait(Unit.VECTOR | Unit.WRITES)
    p.out(0)
    p.halt()
    result = harness.run(harness.unit(Sequencer, parameters), "sequencer", __name__, testcase="waits",
                         parameters={"program": p.encode(), "lengths": [1, 2, 5, 40]})
    for first, second in result["out"]:
        assert 0 < first < 12, "the first wait ends with the vector unit, not with matmul"
        assert 30 <= second < 45, "the second wait also waits for the writes"


GAP = 2
"""Cycles between a unit's last busy one and the first in which its work shows at the write port."""


async def hands_on(dut, length, ended):
    """Busy for `length` cycles, idle for a gap, writing for 20; returns whether `ended()` was true before the writes were over."""
    early = False
    for cycle in range(length + GAP + 20):
        dut.unit_busy.value = int(Unit.VECTOR if cycle < length else Unit.WRITES if cycle >= length + GAP else 0)
        await FallingEdge(dut.clk)
        early |= ended()
    dut.unit_busy.value = 0
    return early


@cocotb.test()
async def hands_over(dut):
    """Whenever a unit hands its work on: a wait for both goes on, and so does a stop."""
    p = streams.parameters()
    await begin(dut, p["program"])
    for length, stop in itertools.product(range(8, 13), (False, True)):
        dut.unit_busy.value = int(Unit.VECTOR)
        await pulse(dut, "start")
        if stop:
            await pulse(dut, "stop")
            assert not await hands_on(dut, length, lambda: dut.flush.value == 1), f"flushed {length=}"
        else:
            out = streams.receive(dut, "token_o", 1)
            assert not await hands_on(dut, length, lambda out=out: bool(out.cycles)), f"went on {length=}"
            await out
        await ended(dut, 20)
        assert dut.stopped.value == stop


@near_and_far
def test_work_that_is_handed_on_is_waited_for(parameters):
    p = Program(WORDS)
    p.wait(Unit.VECTOR | Unit.WRITES)
    p.out(0)
    p.halt()
    harness.run(harness.unit(Sequencer, parameters), "sequencer", __name__, testcase="hands_over", parameters={"program": p.encode()})


@cocotb.test()
async def stops(dut):
    """STOP, or an error of the memory: nothing more is issued, busy units are waited for, the streamer is flushed."""
    p = streams.parameters()
    await begin(dut, [])
    for (program, after), cause in itertools.product(p["programs"], (("stop",), ("fault",), ("stop", "fault"))):
        await load(dut, program)
        dut.unit_busy.value = Unit.DOT
        await pulse(dut, "start")
        await streams.cycles(dut, after)
        for name in cause:
            await pulse(dut, name)
        for _ in range(30):
            assert dut.running.value == 1 and dut.flush.value == 0
            await FallingEdge(dut.clk)
        assert dut.draining.value == 1
        assert all(getattr(dut, f"{port}__valid").value == 0 for port in PORTS), "something is offered"
        await streams.send(dut, "token_i", [5])  # a token that nobody wants is dropped
        dut.unit_busy.value = Unit.WRITES
        await streams.cycles(dut, 5)
        assert dut.flush.value == 0
        dut.unit_busy.value = 0
        while dut.flush.value == 0:
            await FallingEdge(dut.clk)
        await FallingEdge(dut.clk)
        dut.flushing.value = 1
        for _ in range(10):
            await FallingEdge(dut.clk)
            assert dut.flush.value == 0 and dut.running.value == 1
        dut.flushing.value = 0
        await ended(dut, 10)
        failed = "fault" in cause
        assert dut.stopped.value == (not failed) and dut.halted.value == failed and dut.draining.value == 0
        assert (int(dut.halt_code.value) == MEMORY_FAILED) == failed
        for name in ("stop", "fault"):  # without effect
            await pulse(dut, name)
        await streams.cycles(dut, 5)
        assert dut.running.value == 0 and dut.stopped.value == (not failed)
        await load(dut, assemble("halt 6"))
        await pulse(dut, "start")
        await ended(dut)
        assert int(dut.halt_code.value) == 6 and dut.halted.value == 1
        dut.fault.value = 1  # an error that nobody has forgotten yet
        await pulse(dut, "start")
        dut.unit_busy.value = 0
        await ended(dut)
        assert int(dut.halt_code.value) == MEMORY_FAILED and dut.halted.value == 1
        dut.fault.value = 0
        await load(dut, assemble("halt 7"))
        await pulse(dut, "start")
        await ended(dut)
        assert int(dut.halt_code.value) == 7


@near_and_far
def test_stop_in_every_instruction(parameters):
    blocked = ("in r1", "out r1", "token r1", "stream 3", "wait dot", "vector.param length=3", "matmul", "dot.head", "sample noise=r1")
    programs = [(assemble(f"{text}\n halt 1"), 20) for text in blocked for _ in range(2)]
    programs += [(assemble("loop: jmp loop"), after) for after in range(5)]
    harness.run(harness.unit(Sequencer, parameters), "sequencer", __name__, testcase="stops", parameters={"programs": programs})


@cocotb.test()
async def flushes(dut):
    """FLUSH waits for the streamer; a STOP meanwhile still waits for the units; START while running is ignored."""
    p = streams.parameters()
    await begin(dut, p["program"])
    for stop in (False, True):
        dut.unit_busy.value = Unit.MATMUL
        await pulse(dut, "start")
        while dut.flush.value == 0:
            await FallingEdge(dut.clk)
        await FallingEdge(dut.clk)
        dut.flushing.value = 1
        await pulse(dut, "stop" if stop else "start")
        await streams.cycles(dut, 10)
        assert int(dut.pc.value) == 1
        dut.flushing.value = 0
        await streams.cycles(dut, 20)
        if stop:
            assert dut.running.value == 1
            dut.unit_busy.value = 0
        await ended(dut, 20)
        assert dut.stopped.value == stop and dut.halted.value != stop


@near_and_far
def test_flush(parameters):
    harness.run(harness.unit(Sequencer, parameters), "sequencer", __name__, testcase="flushes",
                parameters={"program": assemble("li r1, 3\nflush\nhalt 0")})


def test_every_opcode_is_known():
    assert set(Op) == set(range(24))


def test_parameters_are_validated():
    with pytest.raises(ValueError, match="program_words must be a power of two from 2, not 100"):
        SequencerParameters(program_words=100, lanes=1)
