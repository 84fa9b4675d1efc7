"""The serial unit's microinstructions and their assembler.

An instruction is fetched, decoded (where it reads its pointer, addresses the memory, takes bytes and jumps) and executed, one a cycle. It
has an accumulator of 64 bits, R, and one operand. What an instruction makes is there for the next one's execution, and for its decoding one
later: the assembler puts a NOP where that is too soon.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import IntEnum

__all__ = ["FIELDS", "IMMEDIATE_BITS", "POINTERS", "WORD_BITS", "Assembler", "Condition", "External", "Instruction", "Op", "Outlet",
           "Predicate", "Source"]

POINTERS = 8
IMMEDIATE_BITS = 18


class Op(IntEnum):
    """What an instruction does with its operand o. N is the last CMP's flag, P the last product, S the shift register, K the factor."""

    NOP = 0
    LD = 1  # R = o
    ADD = 2  # R += o
    SUB = 3  # R -= o
    AND = 4
    XOR = 5
    CMP = 6  # N = R < o
    SHI = 7  # R >>= immediate, R <<= -immediate
    SHS = 8  # R >>= S, R <<= -S
    LENGTH = 9  # S = bits of R, or of ~R if it is negative, less the immediate
    SETS = 10  # S = R
    SETK = 11  # K = R
    SETP = 12  # pointer = R
    MUL = 13  # P = R * o
    MULK = 14  # P = K * o
    MAC = 15  # R += P; P = M[pointer] * byte
    ST = 16  # M[...] = R
    CODE = 17  # code[...] = R
    FETCH = 18  # results[...] are fetched
    TABLE = 19  # table[R + immediate] is fetched
    OUT = 20  # outlet
    POINT = 21  # pointer = immediate
    LOOP = 22  # pointer -= 1; jump unless it is 0
    JUMP = 23
    CALL = 24
    RETURN = 25
    BRANCH = 26  # jump to R
    REPEAT = 27  # the instructions up to the immediate, as often as the pointer says
    WAIT = 28  # until the condition


class Source(IntEnum):
    """Where an operand comes from, or which address is meant: of a pointer p and an immediate i, M[i], M[p + i], M[p] (and p += i)."""

    IMMEDIATE = 0
    ABSOLUTE = 1
    OFFSET = 2
    STEP = 3
    BYTES = 4  # of a stream; bit 0 of the immediate: two of them, the first at an even place; bit 1: signed
    PRODUCT = 5
    EXTERNAL = 6
    PAIR = 7  # M[p] and a signed byte of the stream; p += i


class Predicate(IntEnum):
    """When an instruction takes effect."""

    ALWAYS = 0
    LESS = 1  # N
    NOT_LESS = 2


class External(IntEnum):
    """Operands that are not in memory."""

    TABLE = 0
    SHIFT = 1
    RESULT = 2
    CODE = 3  # of the command
    FLAGS = 4
    RS = 5
    RT = 6
    RU = 7
    IMM = 8


class Outlet(IntEnum):
    """What OUT does."""

    READ_ADDRESS = 0
    READ = 1  # R beats
    WRITE_ADDRESS = 2
    WRITE = 3  # a byte
    WRITE_REST = 4
    TOKEN = 5
    FROM_WEIGHTS = 6
    FROM_MEMORY = 7
    DROP = 8  # the rest of a beat
    BEYOND = 9  # all elements that follow count as clamped, or not, as N says
    CLAMPED = 10
    ELEMENT = 11
    DONE = 12


class Condition(IntEnum):
    """What WAIT waits for."""

    COMMAND = 0
    RESULTS = 1


FIELDS = (("op", 5), ("source", 3), ("pointer", 3), ("predicate", 2), ("immediate", IMMEDIATE_BITS))
"""Fields of an instruction and their bits, the lowest first; an immediate is signed."""
WORD_BITS = sum(bits for _, bits in FIELDS)

_MEMORY = (Source.ABSOLUTE, Source.OFFSET, Source.STEP)
_POINTED = (Op.POINT, Op.LOOP, Op.REPEAT)


@dataclass(frozen=True)
class Instruction:
    """One microinstruction. `immediate`: a number, or a label until it is assembled."""

    op: Op
    source: Source = Source.IMMEDIATE
    pointer: int = 0
    predicate: Predicate = Predicate.ALWAYS
    immediate: int | str = 0

    def encode(self) -> int:
        """The word of WORD_BITS."""
        word = place = 0
        for name, bits in FIELDS:
            value = getattr(self, name)
            if name == "immediate":
                if not -(1 << (bits - 1)) <= value < 1 << (bits - 1):
                    raise ValueError(f"{value} does not fit an immediate of {bits} bits")
                value &= (1 << bits) - 1
            word |= value << place
            place += bits
        return word

    @property
    def uses_pointer(self) -> bool:
        return self.source in (Source.OFFSET, Source.STEP, Source.PAIR) or self.op in _POINTED


def _too_soon(before: Instruction, after: Instruction) -> bool:
    """Whether `after` needs in its decoding, or of the multiplier, what `before` makes in its execution."""
    if before.op == Op.ST and after.op != Op.ST and after.source in (*_MEMORY, Source.PAIR):
        both = before.source == after.source == Source.ABSOLUTE
        apart = Source.ABSOLUTE in (before.source, after.source) and not both  # names and vectors never overlap
        if not apart and (not both or before.immediate == after.immediate):
            return True
    if before.op in (Op.MUL, Op.MULK, Op.MAC) and after.source == Source.PRODUCT:
        return True
    if before.op == Op.SETP and after.uses_pointer:
        return True
    if before.op == Op.CMP and after.op in (Op.JUMP, Op.CALL) and after.predicate:
        return True
    if after.op == Op.BRANCH and before.op in (Op.LD, Op.ADD, Op.SUB, Op.AND, Op.XOR, Op.SHI, Op.SHS):
        return True
    if before.op == Op.OUT and before.immediate in (Outlet.FROM_WEIGHTS, Outlet.FROM_MEMORY, Outlet.DROP):
        return after.source in (Source.BYTES, Source.PAIR)
    makers = {External.TABLE: (Op.TABLE,), External.SHIFT: (Op.LENGTH, Op.SETS), External.RESULT: (Op.FETCH,)}
    return after.source == Source.EXTERNAL and before.op in makers.get(after.immediate, ())  # type: ignore[arg-type]


class Assembler:
    """Collects instructions and labels; `words` has them encoded."""

    def __init__(self) -> None:
        self._instructions: list[Instruction] = []
        self._labels: dict[str, int] = {}
        self._unique = 0
        self._repeating = False

    def emit(self, op: Op, source: Source = Source.IMMEDIATE, *, pointer: int = 0, predicate: Predicate = Predicate.ALWAYS,
             immediate: int | str = 0, settled: bool = False) -> None:
        """Append an instruction, and a NOP before it where it needs one and is not `settled` in what it takes."""
        if op in (Op.MUL, Op.MULK) and source == Source.PRODUCT:
            raise ValueError("a product is no factor: load it first")
        instruction = Instruction(op, source, pointer, predicate, immediate)
        if self._instructions and not settled and _too_soon(self._instructions[-1], instruction):
            self._instructions.append(Instruction(Op.NOP))
        self._instructions.append(instruction)

    def label(self, name: str) -> None:
        """Name the place of the next instruction."""
        if name in self._labels:
            raise ValueError(f"there are two labels {name}")
        self._labels[name] = len(self._instructions)

    def fresh(self, name: str) -> str:
        """A label that is not used yet."""
        self._unique += 1
        return f"{name}.{self._unique}"

    @contextmanager
    def repeat(self, pointer: int) -> Iterator[None]:
        """Repeat what is emitted inside as often as the pointer says, which is once at least. No repetition stands inside another."""
        if self._repeating:
            raise ValueError("a repetition inside another")
        self._repeating = True
        end = self.fresh("repeated")
        self.emit(Op.REPEAT, pointer=pointer, immediate=end)
        self._instructions.append(Instruction(Op.NOP))
        start = len(self._instructions)
        yield
        if _too_soon(self._instructions[-1], self._instructions[start]):
            self._instructions.append(Instruction(Op.NOP))
        self._labels[end] = len(self._instructions) - 1
        self._repeating = False

    def words(self) -> list[int]:
        """The encoded program."""
        words = []
        for instruction in self._instructions:
            if isinstance(instruction.immediate, str):
                if instruction.immediate not in self._labels:
                    raise ValueError(f"there is no label {instruction.immediate}")
                instruction = replace(instruction, immediate=self._labels[instruction.immediate])
            words.append(instruction.encode())
        return words
