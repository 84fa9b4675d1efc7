"""The sequencer's instruction set: one 64-bit word per instruction.

Word: op[7:0] rd[11:8] rs[15:12] rt[19:16] ru[23:20] flags[31:24] imm[63:32]. Sixteen 32-bit registers;
r0 reads as zero. docs/isa.md is generated from this file.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, IntFlag


class Op(IntEnum):
    HALT = 0
    LI = 1
    ADD = 2
    ADDI = 3
    SUB = 4
    JMP = 5
    BEQ = 6
    BNE = 7
    BLT = 8
    BGE = 9
    ARG = 10
    IN = 11
    OUT = 12
    WAIT = 13
    STREAM = 14
    FLUSH = 15
    VECTOR = 16
    MATMUL = 17
    DOT = 18
    SAMPLE = 19
    TOKEN = 20
    LOAD = 21
    STORE = 22
    SCAN = 23


class VectorOp(IntEnum):
    PARAM = 0
    EMBED = 1
    ROPE = 2
    NORMQ = 3
    RESID = 4
    QKV = 5
    GLU = 6
    BIAS = 7


class DotOp(IntEnum):
    ATTEND = 0
    HEAD = 1
    JOIN = 2
    SHARE = 3


class Unit(IntFlag):
    """Bits of WAIT's mask and of the busy vector."""

    VECTOR = 1
    MATMUL = 2
    DOT = 4
    SAMPLER = 8
    WRITES = 16


SCRATCH_WORDS = 8
"""32-bit words of the sequencer's scratch memory for each lane of the machine: a segment's and a slot's (firmware.programs)."""


class Destination(IntEnum):
    """Consumers of the weight stream."""

    VECTOR = 0
    MATMUL = 1
    DOT = 2


class DescriptorOp(IntEnum):
    END = 0
    BASE = 1
    STREAM = 2
    LOOP = 3
    BACK = 4


@dataclass(frozen=True)
class Instruction:
    op: Op
    rd: int = 0
    rs: int = 0
    rt: int = 0
    ru: int = 0
    flags: int = 0
    imm: int = 0

    def encode(self) -> int:
        return (self.op | self.rd << 8 | self.rs << 12 | self.rt << 16 | self.ru << 20 | self.flags << 24
                | (self.imm & 0xFFFFFFFF) << 32)

    @classmethod
    def decode(cls, word: int) -> Instruction:
        return cls(Op(word & 0xFF), word >> 8 & 15, word >> 12 & 15, word >> 16 & 15, word >> 20 & 15, word >> 24 & 0xFF, word >> 32)


MOST_FOLLOWED = 7
"""Greatest `follow`: no more matrices can be under way."""


@dataclass(frozen=True)
class Descriptor:
    """One 64-bit entry of the weight streamer's program: op[2:0] dest[4:3] target[15:8] value[63:32].

    BASE: value is the byte address; STREAM: value beats to `dest`; LOOP: back to `target`, value times in all; BACK: the next
    STREAM begins value beats earlier (later, if negative).
    """

    op: DescriptorOp
    value: int = 0
    dest: Destination = Destination.VECTOR
    target: int = 0

    def encode(self) -> int:
        return self.op | self.dest << 3 | self.target << 8 | (self.value & 0xFFFFFFFF) << 32

    @classmethod
    def decode(cls, word: int) -> Descriptor:
        op, value = DescriptorOp(word & 7), word >> 32
        back = op == DescriptorOp.BACK and value >> 31
        return cls(op, value - (1 << 32) if back else value, Destination(word >> 3 & 3), word >> 8 & 0xFF)


class TraceUnit(IntEnum):
    """Sources of the top level's trace port (simulation only). Elements stand in 32-bit words, V an event."""

    RESIDUAL = 0
    CODES = 1
    ACTIVATIONS = 2
    ATTENTION = 3
    LOGITS = 4
