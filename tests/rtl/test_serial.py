"""The serial unit's core runs random microprograms as a model of its instructions does. Whole machines test the microprogram itself."""

import random

import pytest
from amaranth.sim import Simulator

import harness
from tritloom.rtl.serial.core import SerialCore
from tritloom.rtl.serial.microcode import Assembler, Condition, External, Instruction, Op, Outlet, Predicate, Source
from tritloom.rtl.serial.parameters import WIDTH, SerialParameters
from tritloom.rtl.serial.program import Microprogram, microprogram

PARAMETERS = SerialParameters(
    hidden=64, ffn=96, heads=4, kv_heads=2, head_dim=16, vocab=45, context=64, activation="silu", sub_norms=True, max_inputs=96,
    max_rows=192, acc_bits=15, acc_read_latency=2, mem_bytes=4, group_rows=2, head_row_bytes=64, head_group_bytes=132, rope_row_bytes=32,
    kv_scale_block_bytes=64, kv_half_bytes=320, kv_head_bytes=2560, candidates=3)
COMMAND = [7, 3, 0xFEDCBA98, 0x01234567, 0x89ABCDEF, 0x0F0F0F]
"""What the external operands from CODE on are."""


def signed(value, bits):
    return (value + (1 << bits - 1)) % (1 << bits) - (1 << bits - 1)


class Model:
    """Runs instructions one after the other, without their times. `seen`: R at every OUT TOKEN; `octets`: the stream."""

    def __init__(self, octets, words):
        self.r = self.product = self.k = self.s = 0
        self.less, self.table, self.seen, self.octets = False, 0, [], list(octets)
        self.memory, self.pointers, self.pending = dict(words), [0] * 8, 0

    def _bytes(self, two, sign):
        raw = bytes(self.octets.pop(0) for _ in range(1 + two))
        return int.from_bytes(raw, "little", signed=sign)

    def operand(self, i):
        p = i.pointer
        if i.source == Source.ABSOLUTE:
            return self.memory.get(i.immediate, 0), i.immediate
        if i.source == Source.OFFSET:
            place = self.pointers[p] + i.immediate
            return self.memory.get(place, 0), place
        if i.source in (Source.STEP, Source.PAIR):
            place = self.pointers[p]
            self.pointers[p] += i.immediate
            return self.memory.get(place, 0), place
        if i.source == Source.BYTES:
            return self._bytes(i.immediate & 1, bool(i.immediate & 2)), 0
        if i.source == Source.PRODUCT:
            return self.product, 0
        if i.source == Source.EXTERNAL:
            known = {External.TABLE: self.table, External.SHIFT: self.s}
            return known[i.immediate] if i.immediate in known else COMMAND[i.immediate - External.CODE], 0
        return i.immediate, 0

    def shifted(self, by):
        return self.r >> by if by >= 0 else self.r << -by

    def multiply(self, wide, narrow):
        return signed(wide, 35) * signed(narrow, 18)

    def run(self, i):
        allowed = {Predicate.ALWAYS: True, Predicate.LESS: self.less, Predicate.NOT_LESS: not self.less}[i.predicate]
        if i.op == Op.POINT:
            self.pointers[i.pointer] = i.immediate
            return
        value, place = (0, 0) if i.op in (Op.SHI, Op.LENGTH, Op.OUT, Op.TABLE) else self.operand(i)
        if i.op == Op.CMP:
            self.less = signed(self.r - value, WIDTH) < 0
        elif i.op in (Op.MUL, Op.MULK):
            self.product = self.multiply(self.k if i.op == Op.MULK else self.r, value)
        elif i.op == Op.MAC:
            self.r += self.product
            self.product = self.multiply(value, self._bytes(False, True))
        elif i.op == Op.SETS:
            self.s = signed(self.r, 7)
        elif i.op == Op.SETK:
            self.k = self.r
        elif i.op == Op.SETP:
            self.pointers[i.pointer] = self.r
        elif i.op == Op.LENGTH:
            self.s = signed((self.r if self.r >= 0 else ~self.r).bit_length() - i.immediate, 7)
        elif i.op == Op.TABLE:
            self.table = PARAMETERS.table[self.r + i.immediate]
        elif i.op == Op.OUT:
            self.seen.append(self.r)
        elif allowed and i.op == Op.ST:
            self.memory[place] = self.r
        elif allowed:
            results = {Op.LD: value, Op.ADD: self.r + value, Op.SUB: self.r - value, Op.AND: self.r & value, Op.XOR: self.r ^ value}
            self.r = results[i.op] if i.op in results else self.shifted(i.immediate if i.op == Op.SHI else self.s) if i.op in (
                Op.SHI, Op.SHS) else self.r
        self.r = signed(self.r, WIDTH)


def run(program, octets, cycles, words=None, stalls=0.0, seed=0):
    """R at every OUT TOKEN of the core's run of a program, which the stream of bytes is offered to with stalls."""
    core, seen, pick = SerialCore(PARAMETERS, Microprogram(tuple(program), words or {}, 0)), [], random.Random(seed)
    beats = [int.from_bytes(bytes(octets[i : i + 4]), "little") for i in range(0, len(octets), 4)]

    async def bench(ctx):
        for i, word in enumerate(COMMAND):
            ctx.set(core.command[i], word)
        ctx.set(core.room, 1)
        at = 0
        for _ in range(cycles):
            valid = at < len(beats) and pick.random() >= stalls
            ctx.set(core.beat_valid, valid)
            ctx.set(core.beat, beats[at] if valid else 0)
            taken = valid and ctx.get(core.beat_ready)
            if ctx.get(core.outlet) >> Outlet.TOKEN & 1:
                seen.append(ctx.get(core.value))
            await ctx.tick()
            at += int(taken)

    simulator = Simulator(core)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    return seen


def random_program(pick, length):
    """A straight program whose pointers stay among 16 words from 200 on, and its instructions."""
    a, done, taken = Assembler(), [], 0

    def emit(op, source=Source.IMMEDIATE, **more):
        a.emit(op, source, **more)
        done.append(Instruction(op, source, more.get("pointer", 0), more.get("predicate", Predicate.ALWAYS), more.get("immediate", 0)))

    def place():
        kind = pick.choice((Source.ABSOLUTE, Source.OFFSET, Source.STEP))
        if kind == Source.ABSOLUTE:
            return {"source": kind, "immediate": pick.randrange(4)}
        return {"source": kind, "pointer": pick.randrange(2), "immediate": pick.choice((-1, 0, 1)) if kind == Source.OFFSET else 1}

    def operand():
        nonlocal taken
        kind = pick.randrange(6)
        if kind == 0:
            return {"source": Source.IMMEDIATE, "immediate": pick.randrange(-1 << 17, 1 << 17)}
        if kind == 1:
            kind = pick.randrange(4) if taken % 2 == 0 else pick.choice((0, 2))
            taken += 1 + (kind & 1)
            return {"source": Source.BYTES, "immediate": kind}
        if kind == 2:
            return {"source": Source.PRODUCT}
        if kind == 3:
            return {"source": Source.EXTERNAL, "immediate": pick.choice([e for e in External if e != External.RESULT])}
        return place()

    for pointer in range(2):
        emit(Op.POINT, pointer=pointer, immediate=200 + 8 * pointer)
    for n in range(length):
        when = pick.choice((Predicate.ALWAYS, Predicate.ALWAYS, Predicate.LESS, Predicate.NOT_LESS))
        op = pick.choice((Op.LD, Op.LD, Op.ADD, Op.SUB, Op.AND, Op.XOR, Op.CMP, Op.SHI, Op.SHS, Op.LENGTH, Op.SETK, Op.MUL, Op.MULK, Op.ST,
                          Op.ST, Op.TABLE))
        if op == Op.SHI:
            emit(op, immediate=pick.randrange(-63, 64), predicate=when)
        elif op == Op.SHS:
            emit(op, predicate=when)
        elif op == Op.LENGTH:
            emit(op, immediate=pick.randrange(64))
        elif op == Op.SETK:
            emit(op)
        elif op == Op.TABLE:
            emit(Op.AND, immediate=1023)
            emit(op, immediate=pick.choice((0, 1024)) if pick.random() < 0.5 else 0)
        elif op == Op.ST:
            emit(op, predicate=when, **place())
        else:
            given = operand()
            if given["source"] == Source.PRODUCT and op in (Op.MUL, Op.MULK):
                given = {"source": Source.IMMEDIATE, "immediate": 5}
            emit(op, predicate=Predicate.ALWAYS if op in (Op.CMP, Op.MUL, Op.MULK) else when, **given)
        emit(Op.OUT, immediate=Outlet.TOKEN)
        if n % 8 == 7:
            for pointer in range(2):
                emit(Op.POINT, pointer=pointer, immediate=200 + 8 * pointer)
    a.label("end")
    a.emit(Op.JUMP, immediate="end")
    return a.words(), done


@pytest.mark.parametrize("stalls", [0.0, 0.6])
def test_random_programs(stalls):
    pick = random.Random(harness.seed_from_environment())
    octets = [pick.randrange(256) for _ in range(1000)]
    words = {0: 0, 1: (1 << 60) - 3, 2: -(1 << 58), 3: 77, **{200 + i: pick.randrange(-1 << 40, 1 << 40) for i in range(24)}}
    program, instructions = random_program(pick, 300)
    model = Model(octets, words)
    for instruction in instructions:
        if instruction.op == Op.TABLE and model.r + instruction.immediate >= len(PARAMETERS.table):
            pytest.fail("an index beyond the table")
        model.run(instruction)
    cycles = 3 * len(program) + (2000 if stalls else 200)
    got = run(program, octets, cycles, words, stalls)
    assert got == model.seen


def test_products_are_summed_whenever_bytes_come():
    """A dot product, twice: what one leaves does not reach the other."""
    pick = random.Random(harness.seed_from_environment() + 1)
    octets = [pick.randrange(256) for _ in range(40)]
    words = {200 + i: pick.randrange(-1 << 34, 1 << 34) for i in range(20)}
    a = Assembler()
    for _ in range(2):
        a.emit(Op.LD)
        a.emit(Op.MUL)
        a.emit(Op.POINT, pointer=0, immediate=200)
        a.emit(Op.POINT, pointer=7, immediate=20)
        with a.repeat(7):
            a.emit(Op.MAC, Source.PAIR, pointer=0, immediate=1)
        for _ in range(2):
            a.emit(Op.ADD, Source.PRODUCT, settled=True)
        a.emit(Op.OUT, immediate=Outlet.TOKEN)
    a.label("end")
    a.emit(Op.JUMP, immediate="end")
    expected = [sum(words[200 + i] * signed(octets[half + i], 8) for i in range(20)) for half in (0, 20)]
    assert [signed(value, WIDTH) for value in run(a.words(), octets, 400, words, 0.5)] == expected


def test_loops_calls_and_jumps():
    """Loops in loops, repetitions of one and of several instructions, calls out of a repetition, jumps taken and not."""
    a = Assembler()
    a.emit(Op.POINT, pointer=1, immediate=3)
    a.label("outer")
    a.emit(Op.POINT, pointer=2, immediate=2)
    a.label("inner")
    a.emit(Op.POINT, pointer=7, immediate=4)
    with a.repeat(7):
        a.emit(Op.ADD, immediate=1)
    a.emit(Op.POINT, pointer=7, immediate=1)
    with a.repeat(7):
        a.emit(Op.ADD, immediate=100)
    a.emit(Op.POINT, pointer=7, immediate=3)
    with a.repeat(7):
        a.emit(Op.ADD, immediate=1000)
        a.emit(Op.CALL, immediate="routine")
    a.emit(Op.LOOP, pointer=2, immediate="inner")
    a.emit(Op.OUT, immediate=Outlet.TOKEN)
    a.emit(Op.LOOP, pointer=1, immediate="outer")
    a.emit(Op.CMP, immediate=0)
    a.emit(Op.JUMP, immediate="wrong", predicate=Predicate.LESS)
    a.emit(Op.JUMP, immediate="right", predicate=Predicate.NOT_LESS)
    a.label("wrong")
    a.emit(Op.LD, immediate=-1)
    a.label("right")
    a.emit(Op.OUT, immediate=Outlet.TOKEN)
    a.emit(Op.LD, immediate="there")
    a.emit(Op.BRANCH)
    a.emit(Op.LD, immediate=-2)
    a.label("there")
    a.emit(Op.OUT, immediate=Outlet.TOKEN)
    a.label("end")
    a.emit(Op.JUMP, immediate="end")
    a.label("routine")
    a.emit(Op.ADD, immediate=10_000)
    a.emit(Op.CALL, immediate="deeper")
    a.emit(Op.RETURN)
    a.label("deeper")
    a.emit(Op.SUB, immediate=5)
    a.emit(Op.RETURN)
    words = a.words()
    once = 4 + 100 + 3 * (1000 + 10_000 - 5)
    *rounds, end, there = run(words, [], 600)
    assert rounds == [2 * once, 4 * once, 6 * once] and end == 6 * once
    assert there == a._labels["there"]


def test_the_assembler_waits_where_something_comes_too_soon():
    a = Assembler()
    a.emit(Op.MUL)
    a.emit(Op.LD, Source.PRODUCT)
    a.emit(Op.ST, Source.ABSOLUTE, immediate=3)
    a.emit(Op.LD, Source.ABSOLUTE, immediate=4)
    a.emit(Op.ST, Source.ABSOLUTE, immediate=3)
    a.emit(Op.LD, Source.ABSOLUTE, immediate=3)
    ops = [word & 31 for word in a.words()]
    assert ops == [Op.MUL, Op.NOP, Op.LD, Op.ST, Op.LD, Op.ST, Op.NOP, Op.LD]


def test_what_cannot_be_assembled_is_an_error():
    a = Assembler()
    a.label("here")
    with pytest.raises(ValueError, match="there are two labels here"):
        a.label("here")
    a.emit(Op.JUMP, immediate="nowhere")
    with pytest.raises(ValueError, match="there is no label nowhere"):
        a.words()
    with pytest.raises(ValueError, match="does not fit an immediate of 18 bits"):
        Instruction(Op.LD, immediate=1 << 17).encode()
    with pytest.raises(ValueError, match="a product is no factor"):
        a.emit(Op.MUL, Source.PRODUCT)
    with pytest.raises(ValueError, match="a repetition inside another"), a.repeat(1), a.repeat(2):
        pass


def test_the_microprogram_waits_only_where_it_says():
    program = microprogram(PARAMETERS)
    waits = [word for word in program.words if word & 31 == Op.WAIT]
    assert {word >> 13 for word in waits} == set(Condition)
    assert all(0 <= place < PARAMETERS.words for place in program.contents)
