"""The assembler: text, builder and words agree, and mistakes are named."""

import random
from pathlib import Path

import pytest

from tritloom.firmware.assembler import EXAMPLE, FORMS, AssemblyError, Program, assemble, disassemble, parse, reference
from tritloom.firmware.isa import DotOp, Instruction, Op, Unit, VectorOp

ISA = Path(__file__).parents[2] / "docs" / "isa.md"


def random_word(rng: random.Random) -> int:
    form = rng.choice(FORMS)
    word = form.fixed
    for operand in form.operands:
        bits = 8 if operand.kind == "label" else operand.width
        word |= rng.getrandbits(bits) << operand.low
    return word


@pytest.mark.parametrize("seed", range(20))
def test_round_trip(seed):
    rng = random.Random(seed)
    words = [random_word(rng) if rng.random() < 0.9 else rng.getrandbits(64) for _ in range(100)]
    assert assemble(disassemble(words)) == words


def test_builder_matches_the_instruction_record():
    p = Program()
    p.label("start")
    p.li(3, 0xFFFFFFFF)
    p.addi(4, 3, -5)
    p.bne(3, 4, "end")
    p.vector(VectorOp.NORMQ, slot=1, count=2, a=3, b=4, length=640, source=1, norm=1, dest=1)
    p.matmul(inputs=640, steps=99)
    p.dot(DotOp.HEAD, slot=1, count=2, position=3, kv_base=4)
    p.sample(slot=4, noise=5, temperature=6, limits=7)
    p.wait(Unit.DOT | Unit.WRITES)
    p.jmp("start")
    p.label("end")
    p.halt(7)
    assert [Instruction.decode(word) for word in p.encode()] == [
        Instruction(Op.LI, rd=3, imm=0xFFFFFFFF),
        Instruction(Op.ADDI, rd=4, rs=3, imm=0xFFFFFFFB),
        Instruction(Op.BNE, rs=3, rt=4, imm=9),
        Instruction(Op.VECTOR, rd=1, ru=2, rs=3, rt=4, flags=VectorOp.NORMQ | 1 << 3 | 1 << 4 | 1 << 5, imm=640),
        Instruction(Op.MATMUL, imm=640 | 99 << 16),
        Instruction(Op.DOT, rd=1, ru=2, rs=3, rt=4, flags=1),
        Instruction(Op.SAMPLE, rd=4, rs=5, rt=6, ru=7),
        Instruction(Op.WAIT, imm=20),
        Instruction(Op.JMP, imm=0),
        Instruction(Op.HALT, imm=7),
    ]


def test_every_opcode_has_a_form_and_a_method():
    assert {form.fixed & 0xFF for form in FORMS} == set(Op)
    for op in Op:
        name = "in_" if op is Op.IN else op.name.lower()
        assert callable(getattr(Program, name))


@pytest.mark.parametrize("text, message", [
    ("jmp nowhere", "line 1: jmp: unknown label 'nowhere'"),
    ("\nadd r1, r2, r16", "line 2: add: rt: register r16 does not exist; there are r0 to r15"),
    ("li r1, 0x100000000", "line 1: li: imm: 4294967296 is out of range -2147483648 to 4294967295"),
    ("arg r1, 8", "line 1: arg: index: 8 is out of range 0 to 7"),
    ("jmp 512", "line 1: jmp: target: 512 is out of range 0 to 511"),
    ("matmul inputs=65536", "line 1: matmul: inputs: 65536 is out of range 0 to 65535"),
    ("a:\na:", "line 2: label 'a' is defined twice"),
    ("add r1, r2", "line 1: add takes 3 operands (rd, rs, rt), not 2"),
    ("spin r1", "line 1: unknown instruction 'spin'"),
    ("li r1, x", "line 1: 'x' is not a number"),
    ("in 5", "line 1: rd: '5' is not a register; registers are r0 to r15"),
    ("wait all", "line 1: units: unknown unit 'all'; units are vector, matmul, dot, sampler, writes, none"),
    ("vector.glu width=3",
     "line 1: vector.glu: 'width=3' is not name=value with one of slot, count, a, b, length, source, norm, dest, bank, follow"),
    ("flush\n" * 513, "the program has 513 instructions, but program_words is 512: raise program_words"),
])
def test_mistakes_are_named(text, message):
    with pytest.raises(AssemblyError) as error:
        assemble(text)
    assert str(error.value) == message


def test_registers_have_names():
    named = """
        .registers position=r1 left=r2
        .routine down left step=r9
        li step, 1
        .routine inner step
        addi step, step, 1
        .end
        sub left, left, step
        add zero, left, position
        .end
        .registers left=r5
        out left"""
    assert assemble(named) == assemble("li r9, 1\naddi r9, r9, 1\nsub r2, r2, r9\nadd r0, r2, r1\nout r5")


@pytest.mark.parametrize("text, message", [
    (".routine f r2\nli r3, 1\n.end", "line 2: li: routine f writes r3, which it does not declare"),
    (".registers left=r3\n.routine f r2\nin left\n.end", "line 3: in: routine f writes left (r3), which it does not declare"),
    (".routine f r2\n.routine g step=r3\nli step, 1\n.end\n.end", "line 3: li: routine f writes step (r3), which it does not declare"),
    (".registers a=r1\n.routine f a=r2\n.end", "line 2: routine f: a is r1 here, not r2: take another name"),
    (".routine f r2\n.registers a=r1\n.end", "line 2: .registers within routine f: end it first"),
    (".routine f r2", "routine f has no .end"),
    (".end", "line 1: .end without .routine"),
    (".registers a=r1 a=r2", "line 1: register a is named twice"),
    (".registers a=b", "line 1: 'a=b' is not a register, nor name=register"),
    (".registers a=r16", "line 1: 'a=r16' is not a register, nor name=register"),
    (".routine f left", "line 1: 'left' is not a register, nor name=register"),
    (".registers r1=r2", "line 1: r1 names r1 already"),
    (".registers a=r1\n.registers b=r1\nout a", "line 3: rs: 'a' is not a register; registers are r0 to r15"),
])
def test_a_register_that_a_routine_may_not_write_is_an_error(text, message):
    with pytest.raises(AssemblyError) as error:
        assemble(text)
    assert str(error.value) == message


def test_instructions_that_write_a_register_say_so():
    assert {form.mnemonic for form in FORMS if form.writes} == {"li", "add", "addi", "sub", "arg", "in", "token", "load"}


def test_builder_names_the_instruction():
    p = Program()
    p.flush()
    with pytest.raises(AssemblyError, match="instruction 1: in: rd: register r-1 does not exist"):
        p.in_(-1)


def test_example_and_labels():
    program = parse(EXAMPLE)
    assert program.labels == {"next": 0, "done": 5}
    assert disassemble(program.encode()).splitlines()[1].split() == ["beq", "r1,", "r0,", "L5"]


def test_reference_is_current():
    assert ISA.read_text(encoding="utf-8") == reference(), "run tests/firmware/test_assembler.py as a script to write docs/isa.md"


if __name__ == "__main__":
    ISA.write_text(reference(), encoding="utf-8")
