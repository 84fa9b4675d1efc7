"""Every unit's command: its fields, their widths, and where an instruction has them.

A command's layout stands here alone. rtl/ makes its streams of it (`rtl.commands.command_layout`), the sequencer fills them, the assembler
has its operands from it and the emulator reads instructions by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tritloom.firmware.isa import Instruction

__all__ = ["DOT", "MATMUL", "MATMUL_PADDED", "SAMPLE", "SCAN", "VECTOR", "Command", "Field"]

REGISTER_FIELDS = {"rd": 8, "rs": 12, "rt": 16, "ru": 20}
"""Lowest bit of the register numbers in an instruction word."""
NUMBER_FIELDS = {"flags": 24, "imm": 32}
"""Lowest bit of the numbers in an instruction word."""


@dataclass(frozen=True)
class Field:
    """`width` bits of a command: those of the register that the instruction's field `source` names, or those from bit `low` of the number
    in `source` on ("flags" or "imm")."""

    name: str
    width: int
    source: str
    low: int = 0

    @property
    def in_register(self) -> bool:
        return self.source in REGISTER_FIELDS

    def value(self, instruction: Instruction, registers: Sequence[int]) -> int:
        """What the unit gets."""
        number = getattr(instruction, self.source)
        return (registers[number] if self.in_register else number >> self.low) & (1 << self.width) - 1


@dataclass(frozen=True)
class Command:
    """The fields of a unit's command, the lowest bits first."""

    fields: tuple[Field, ...]

    def values(self, instruction: Instruction, registers: Sequence[int]) -> dict[str, int]:
        """The command that `instruction` hands to the unit, by field."""
        return {field.name: field.value(instruction, registers) for field in self.fields}


VECTOR = Command((
    Field("op", 3, "flags"), Field("source", 1, "flags", 3), Field("norm", 1, "flags", 4), Field("dest", 2, "flags", 5),
    Field("slot", 8, "rd"), Field("count", 8, "ru"), Field("length", 16, "imm"), Field("bank", 2, "imm", 16), Field("follow", 3, "imm", 18),
    Field("a", 32, "rs"), Field("b", 32, "rt"),
))
MATMUL = Command((
    Field("inputs", 16, "imm"), Field("steps", 16, "imm", 16), Field("slot", 8, "rd"), Field("count", 8, "ru"), Field("at", 16, "rs"),
))
MATMUL_PADDED = Command((*MATMUL.fields, Field("rest", 6, "flags")))
"""Of machines whose rows a cycle are no power of two: `rest` of the last step's rows are none of the matrix."""
DOT = Command((
    Field("op", 2, "flags"), Field("slot", 8, "rd"), Field("count", 8, "ru"), Field("position", 32, "rs"), Field("kv_base", 32, "rt"),
))
SCAN = Command((Field("slot", 8, "rd"), Field("rows", 16, "imm"), Field("first", 1, "flags"), Field("at", 16, "rs")))
SAMPLE = Command((Field("slot", 8, "rd"), Field("noise", 32, "rs"), Field("temperature", 32, "rt"), Field("limits", 32, "ru")))
