"""Commands of the units: what an instruction says in its fields and registers is what the unit gets."""

import random

import pytest

from tritloom.firmware import commands
from tritloom.firmware.assembler import Program
from tritloom.firmware.isa import DotOp, Instruction, VectorOp

UNITS = {"vector": commands.VECTOR, "matmul": commands.MATMUL, "dot": commands.DOT, "sample": commands.SAMPLE, "scan": commands.SCAN}


@pytest.mark.parametrize("unit", UNITS)
def test_a_command_has_what_the_program_says(unit):
    rng = random.Random(unit)
    command = UNITS[unit]
    for _ in range(20):
        op = {"vector": rng.choice(list(VectorOp)), "dot": rng.choice(list(DotOp))}.get(unit)
        registers = [0] + [rng.getrandbits(32) for _ in range(15)]
        expected, operands = {} if op is None else {"op": op}, {}
        for field in command.fields:
            if field.name != "op":
                operands[field.name] = rng.randrange(16) if field.in_register else rng.getrandbits(field.width)
                value = registers[operands[field.name]] if field.in_register else operands[field.name]
                expected[field.name] = value % (1 << field.width)
        program = Program()
        getattr(program, unit)(*([] if op is None else [op]), **operands)
        assert command.values(Instruction.decode(program.encode()[0]), registers) == expected
