"""The serial unit's microprogram: every command of the vector unit, the dot engine and the sampler, as `firmware.integer` says.

Scales are pairs of words, `name.m` and `name.e`. `norm` takes most results; routines return in R what they say. A pointer has its use:
`COUNT` counts repetitions, `BANK` holds the command's parameters, `OUTER` and `INNER` count loops around routines.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

from tritloom.firmware.config import CHUNK, KV_SCALE_BYTES
from tritloom.firmware.integer import (
    EXPONENT_MIN,
    GAIN_ONE,
    LOG2_BITS,
    LOG2_TABLE_BITS,
    LOGIT_DROP,
    MANTISSA_BITS,
    NOISE_BITS,
    RESIDUAL_BITS,
    ROPE_BITS,
    RUNNING_MAX_MIN,
    SCORE_BITS,
    SILU_BITS,
    UF_INV127,
    UF_ONE,
    WEIGHT_DROP,
)
from tritloom.firmware.isa import DotOp, VectorOp
from tritloom.rtl.serial.microcode import IMMEDIATE_BITS, Assembler, Condition, External, Op, Outlet, Predicate, Source
from tritloom.rtl.serial.parameters import BANK_WORDS, BANKS, NAMED_WORDS, PROGRAM_WORDS, SerialParameters

__all__ = ["DOT_CODES", "SAMPLE_CODE", "Microprogram", "microprogram"]

DOT_CODES, SAMPLE_CODE = 8, 12
"""Codes of commands: those of VectorOp from 0 on, those of DotOp, SAMPLE."""
CODES = 16

A, B, C, D, BANK, INNER, OUTER, COUNT = range(8)
"""The pointers."""
LESS, NOT_LESS = Predicate.LESS, Predicate.NOT_LESS

_BYTE, _SIGNED_BYTE, _HALF, _SIGNED_HALF = 0, 2, 1, 3

LOGIT = "logit"
"""Where each logit of the head is stored, once."""


@dataclass(frozen=True)
class Microprogram:
    """`words`: instructions; `contents`: of the unit's memory, by address; `logit`: where each logit is stored."""

    words: tuple[int, ...]
    contents: dict[int, int]
    logit: int


@functools.lru_cache(maxsize=8)
def microprogram(parameters: SerialParameters) -> Microprogram:
    """The microprogram of a machine."""
    return _Writer(parameters).write()


class _Operand:
    """Where an operand comes from, or which address is meant."""

    def __init__(self, source: Source, immediate: int | str = 0, pointer: int = 0):
        self.source, self.immediate, self.pointer = source, immediate, pointer


def at(pointer: int, offset: int = 0) -> _Operand:
    """The word `offset` behind a pointer's."""
    return _Operand(Source.OFFSET, offset, pointer)


def step(pointer: int, by: int = 1) -> _Operand:
    """The word at a pointer, which then moves."""
    return _Operand(Source.STEP, by, pointer)


def stream(kind: int) -> _Operand:
    """Bytes of the selected stream."""
    return _Operand(Source.BYTES, kind)


def external(what: External) -> _Operand:
    return _Operand(Source.EXTERNAL, what)


PRODUCT = _Operand(Source.PRODUCT)
TABLE, SHIFT, RESULT = external(External.TABLE), external(External.SHIFT), external(External.RESULT)
RS, RT, RU, IMM, FLAGS = (external(x) for x in (External.RS, External.RT, External.RU, External.IMM, External.FLAGS))

Given = int | str | _Operand


class _Writer(Assembler):
    def __init__(self, parameters: SerialParameters):
        super().__init__()
        self.p, self._names, self.contents = parameters, {}, {}
        self.places = {name: place for name, (place, _) in parameters.vectors.items()}

    # Operands ---------------------------------------------------------------------------------------

    def name(self, name: str) -> int:
        """The word of a named number."""
        if name not in self._names:
            self._names[name] = len(self._names)
            if len(self._names) > NAMED_WORDS:
                raise ValueError(f"more than {NAMED_WORDS} names")
        return self._names[name]

    def constant(self, value: int) -> int | str:
        """A number of any size: an immediate, or the name of a word that holds it."""
        if -(1 << IMMEDIATE_BITS - 1) <= value < 1 << IMMEDIATE_BITS - 1:
            return value
        name = f"constant {value}"
        self.contents[self.name(name)] = value
        return name

    def do(self, op: Op, given: Given = 0, when: Predicate = Predicate.ALWAYS) -> None:
        """An instruction with a number, a named word or another operand."""
        if isinstance(given, _Operand):
            self.emit(op, given.source, pointer=given.pointer, predicate=when, immediate=given.immediate)
        elif isinstance(given, str):
            self.emit(op, Source.ABSOLUTE, predicate=when, immediate=self.name(given))
        else:
            constant = self.constant(int(given))
            if isinstance(constant, str):
                self.emit(op, Source.ABSOLUTE, predicate=when, immediate=self.name(constant))
            else:
                self.emit(op, predicate=when, immediate=constant)

    def ld(self, given: Given, when: Predicate = Predicate.ALWAYS) -> None:
        self.do(Op.LD, given, when)

    def add(self, given: Given, when: Predicate = Predicate.ALWAYS) -> None:
        self.do(Op.ADD, given, when)

    def sub(self, given: Given, when: Predicate = Predicate.ALWAYS) -> None:
        self.do(Op.SUB, given, when)

    def st(self, given: Given, when: Predicate = Predicate.ALWAYS) -> None:
        self.do(Op.ST, given, when)

    def cmp(self, given: Given) -> None:
        self.do(Op.CMP, given)

    def shift(self, right: int) -> None:
        """R >>= right, or <<= -right."""
        self.emit(Op.SHI, immediate=right)

    def by_shift(self) -> None:
        self.emit(Op.SHS)

    def shift_register(self) -> None:
        self.emit(Op.SETS)

    def mul(self, given: Given) -> None:
        self.do(Op.MUL, given)

    def pointer(self, pointer: int) -> None:
        """The pointer takes R."""
        self.emit(Op.SETP, pointer=pointer)

    def point(self, pointer: int, where: int | str) -> None:
        """The pointer takes a number, or the first word of a vector."""
        self.emit(Op.POINT, pointer=pointer, immediate=self.places[where] if isinstance(where, str) else where)

    def out(self, outlet: Outlet, when: Predicate = Predicate.ALWAYS) -> None:
        self.emit(Op.OUT, predicate=when, immediate=outlet)

    def jump(self, label: str, when: Predicate = Predicate.ALWAYS) -> None:
        self.emit(Op.JUMP, predicate=when, immediate=label)

    def call(self, label: str) -> None:
        self.emit(Op.CALL, immediate=label)

    def back(self) -> None:
        self.emit(Op.RETURN)

    def loop(self, pointer: int, label: str) -> None:
        self.emit(Op.LOOP, pointer=pointer, immediate=label)

    # Pieces -----------------------------------------------------------------------------------------

    def move(self, to: str, source: str) -> None:
        """Copy a scale."""
        for part in (".m", ".e"):
            self.ld(source + part)
            self.st(to + part)

    def set_one(self, to: str) -> None:
        self.ld(int(UF_ONE.m))
        self.st(f"{to}.m")
        self.ld(int(UF_ONE.e))
        self.st(f"{to}.e")

    def multiply(self, a: str, b: tuple[Given, Given] | str) -> None:
        """norm = a * b (`integer.uf_mul`)."""
        m, e = (f"{b}.m", f"{b}.e") if isinstance(b, str) else b
        self.ld(f"{a}.m")
        self.mul(m)
        self.ld(f"{a}.e")
        self.add(e)
        self.st("norm.e")
        self.ld(PRODUCT)
        self.call("normalise")

    def scale_of_bank(self, number: int) -> tuple[Given, Given]:
        """A scale of the command's bank: 0 the inverse count, 1 eps, then those of matrices."""
        return at(BANK, 2 * number), at(BANK, 2 * number + 1)

    def magnitude(self) -> None:
        """R = |R|."""
        self.cmp(0)
        self.do(Op.XOR, -1, LESS)
        self.add(1, LESS)

    def keep_greatest(self, name: str) -> None:
        self.cmp(name)
        self.st(name, NOT_LESS)

    def most(self, value: int) -> None:
        """R = min(R, value)."""
        self.cmp(value + 1)
        self.ld(value, NOT_LESS)

    def clamp(self, bits: int) -> None:
        """R clamped to signed `bits`, which is counted (`integer.saturate`)."""
        top = 1 << bits - 1
        self.cmp(top)
        self.out(Outlet.CLAMPED, NOT_LESS)
        self.ld(top - 1, NOT_LESS)
        self.cmp(-top)
        self.out(Outlet.CLAMPED, LESS)
        self.ld(-top, LESS)

    def fixed(self) -> None:
        """R = round(P * 2**(e + bits)), when `fixed shift` has been called (`integer.scale_to_fixed`)."""
        self.ld(PRODUCT)
        self.shift(-8)
        self.add("half")
        self.by_shift()

    def fixed_shift(self, scale: str, bits: int, *, counted: bool = False) -> None:
        """Prepare `fixed` for products with a scale's mantissa."""
        self.ld(8 - bits)
        self.sub(f"{scale}.e")
        self.call("counted fixed shift" if counted else "fixed shift")

    def field(self, given: _Operand, low: int, bits: int) -> None:
        """R = bits of a command's word."""
        self.ld(given)
        if low:
            self.shift(low)
        self.do(Op.AND, (1 << bits) - 1)

    def begin(self) -> None:
        """The command's parameters, and its length."""
        self.field(IMM, 16, 2)
        self.shift(-(BANK_WORDS - 1).bit_length())
        self.add(self.places["banks"])
        self.pointer(BANK)
        self.field(IMM, 0, 16)
        self.st("length")

    def look_up(self, table: int) -> None:
        """up = entry R of a table, R = the step to the next one."""
        self.st("index")
        self.emit(Op.TABLE, immediate=table)
        self.ld(TABLE)
        self.st("up")
        self.ld("index")
        self.emit(Op.TABLE, immediate=table + 1)
        self.ld(TABLE)
        self.sub("up")

    def repetitions(self, given: Given) -> None:
        self.ld(given)
        self.pointer(COUNT)

    def request(self, beats: Given) -> None:
        """Read from the address in R."""
        self.out(Outlet.READ_ADDRESS)
        self.ld(beats)
        self.out(Outlet.READ)
        self.out(Outlet.FROM_MEMORY)

    def times(self, factor: int) -> None:
        """R *= factor."""
        self.mul(factor)
        self.ld(PRODUCT)

    def scales_of_chunk(self, where: str) -> None:
        self.point(A, where)
        self.point(COUNT, CHUNK)
        with self.repeat(COUNT):
            self.ld(stream(_HALF))
            self.st(step(A))
            self.ld(stream(_SIGNED_HALF))
            self.st(step(A))
        self.skip((self.p.kv_scale_block_bytes - KV_SCALE_BYTES * CHUNK) // 2)

    def skip(self, halves: int) -> None:
        """Drop so many halves of the stream, which end a beat."""
        if halves:
            self.point(COUNT, halves)
            with self.repeat(COUNT):
                self.ld(stream(_HALF))

    def dot(self, vector: Given, length: int) -> None:
        """R = sum of the words from a pointer's on times signed bytes of the stream. `vector` is the first word's address."""
        self.ld(vector)
        self.pointer(A)
        self.ld(0)
        self.mul(0)
        self.point(COUNT, length)
        with self.repeat(COUNT):
            self.emit(Op.MAC, Source.PAIR, pointer=A, immediate=1)
        for _ in range(2):  # the last two products
            self.raw_add_product()

    def raw_add_product(self) -> None:
        self.emit(Op.ADD, Source.PRODUCT, settled=True)

    def beyond_all(self, length: Given) -> None:
        """Count all of a vector's elements, if they are beyond what the shifter does."""
        end = self.fresh("within")
        self.ld("beyond")
        self.cmp(1)
        self.jump(end, LESS)
        self.repetitions(length)
        with self.repeat(COUNT):
            self.out(Outlet.ELEMENT)
        self.label(end)

    # Program ----------------------------------------------------------------------------------------

    def write(self) -> Microprogram:
        self.name(LOGIT)
        commands: dict[int, Callable[[], None]] = {
            VectorOp.PARAM: self.param, VectorOp.EMBED: self.embed, VectorOp.ROPE: self.rope, VectorOp.NORMQ: self.normq,
            VectorOp.RESID: self.resid, VectorOp.QKV: self.qkv, VectorOp.GLU: self.glu,
            DOT_CODES + DotOp.ATTEND: self.attend, DOT_CODES + DotOp.HEAD: self.head, DOT_CODES + DotOp.SHARE: self.share,
            SAMPLE_CODE: self.sample,
        }
        for bank, place in enumerate(range(self.places["gain_places"], self.places["gain_places"] + BANKS)):
            self.contents[place] = self.places[f"gains{bank}"]
        for place in range(self.places["list_end"], self.places["list_end"] + 2):
            self.contents[place] = 1 << 60
        self.label("next")
        self.emit(Op.WAIT, immediate=Condition.COMMAND)
        self.ld(external(External.CODE))
        self.add(6)  # where the table begins
        self.emit(Op.BRANCH)
        while len(self._instructions) < 6:
            self.emit(Op.NOP)
        for code in range(CODES):
            self.jump(commands[code].__name__ if code in commands else "finish")
        self.label("finish")
        self.out(Outlet.DONE)
        self.jump("next")
        for command in commands.values():
            self.label(command.__name__)
            command()
        self.routines()
        if len(self._instructions) > PROGRAM_WORDS:
            raise ValueError(f"the microprogram has {len(self._instructions)} instructions, at most {PROGRAM_WORDS} are possible")
        return Microprogram(tuple(self.words()), self.contents, self.name(LOGIT))

    def param(self) -> None:
        self.begin()
        self.out(Outlet.FROM_WEIGHTS)
        self.field(IMM, 16, 2)
        self.add(self.places["gain_places"])
        self.pointer(A)
        self.ld(at(A))
        self.pointer(A)
        self.point(COUNT, 6)
        with self.repeat(COUNT):
            self.ld(stream(_HALF))
            self.st(step(BANK))
            self.ld(stream(_SIGNED_HALF))
            self.st(step(BANK))
        self.skip((max(32, self.p.mem_bytes) - 24) // 2)
        self.ld("length")
        self.cmp(1)
        self.jump("finish", LESS)
        self.pointer(COUNT)
        with self.repeat(COUNT):
            self.ld(stream(_SIGNED_HALF))
            self.st(step(A))
        self.out(Outlet.DROP)
        self.jump("finish")

    def rope(self) -> None:
        p = self.p
        self.ld(RS)
        self.times(p.rope_row_bytes)
        self.add(RT)
        self.request(p.rope_row_bytes // p.mem_bytes)
        self.point(A, "rope")
        self.point(COUNT, p.head_dim)
        with self.repeat(COUNT):
            self.ld(stream(_SIGNED_HALF))
            self.st(step(A))
        self.skip(p.rope_row_bytes // 2 - p.head_dim)
        self.jump("finish")

    def embed(self) -> None:
        p = self.p
        self.begin()
        self.ld(RS)
        self.shift((p.group_rows - 1).bit_length())
        self.times(p.head_group_bytes)
        self.add(RT)
        self.st("address")
        self.request(1)
        self.ld(RS)
        self.do(Op.AND, p.group_rows - 1)
        self.add(1)
        self.pointer(COUNT)
        with self.repeat(COUNT):
            self.ld(stream(_HALF))
        self.st("norm.m")
        self.out(Outlet.DROP)
        self.ld(0)
        self.st("norm.e")
        self.ld("norm.m")
        self.call("normalise")
        self.multiply("norm", self.scale_of_bank(2))
        self.fixed_shift("norm", RESIDUAL_BITS, counted=True)
        self.ld("norm.m")
        self.emit(Op.SETK)
        self.ld(RS)
        self.do(Op.AND, p.group_rows - 1)
        self.times(p.head_row_bytes)
        self.add("address")
        self.add(p.mem_bytes)
        self.request(p.head_row_bytes // p.mem_bytes)
        self.point(A, "x")
        self.point(COUNT, p.hidden)
        with self.repeat(COUNT):
            self.do(Op.MULK, stream(_SIGNED_BYTE))
            self.fixed()
            self.clamp(32)
            self.st(step(A))
        self.out(Outlet.DROP)
        self.beyond_all(p.hidden)
        self.jump("finish")

    def resid(self) -> None:
        self.begin()
        self.emit(Op.WAIT, immediate=Condition.RESULTS)
        self.multiply("code", self.scale_of_bank(2))
        self.fixed_shift("norm", RESIDUAL_BITS, counted=True)
        self.point(A, 0)
        self.point(B, "x")
        self.repetitions("length")
        with self.repeat(COUNT):
            self.do(Op.FETCH, step(A))
            self.ld(RESULT)
            self.mul("norm.m")
            self.fixed()
            self.add(at(B))
            self.clamp(32)
            self.st(step(B))
        self.beyond_all("length")
        self.jump("finish")

    def normq(self) -> None:
        self.begin()
        self.field(FLAGS, 0, 1)
        self.cmp(1)
        self.jump("align residual", LESS)
        # Work elements: the greatest exponent, then mantissas shifted to it.
        self.ld(-128)
        self.st("exponent")
        self.point(A, "work")
        self.repetitions("length")
        with self.repeat(COUNT):
            self.ld(step(A))
            self.shift(-56)
            self.shift(56)
            self.keep_greatest("exponent")
        self.point(A, "work")
        self.point(B, "y")
        self.repetitions("length")
        with self.repeat(COUNT):
            self.ld(at(A))
            self.shift(-56)
            self.shift(56)
            self.st("t")
            self.ld("exponent")
            self.sub("t")
            self.most(31)
            self.shift_register()
            self.ld(step(A))
            self.shift(8)
            self.by_shift()
            self.st(step(B))
        self.move("scale", "work")
        self.jump("aligned")
        self.label("align residual")
        self.ld(0)
        self.st("top")
        self.point(A, "x")
        self.repetitions("length")
        with self.repeat(COUNT):
            self.ld(step(A))
            self.cmp(0)
            self.do(Op.XOR, -1, LESS)
            self.keep_greatest("top")
        self.ld("top")
        self.emit(Op.LENGTH, immediate=MANTISSA_BITS)
        self.point(A, "x")
        self.point(B, "y")
        self.ld(SHIFT)
        self.sub(RESIDUAL_BITS)
        self.st("exponent")
        self.repetitions("length")
        with self.repeat(COUNT):
            self.ld(step(A))
            self.by_shift()
            self.st(step(B))
        self.set_one("scale")
        self.label("aligned")
        self.ld(0)
        self.st("top")
        self.st("squares")
        self.field(FLAGS, 1, 1)
        self.cmp(1)
        self.jump("without gains", LESS)
        self.field(IMM, 16, 2)
        self.add(self.places["gain_places"])
        self.pointer(B)
        self.ld(at(B))
        self.pointer(B)
        self.point(A, "y")
        self.repetitions("length")
        with self.repeat(COUNT):
            self.ld(at(A))
            self.mul(step(B))
            self.shift(6)
            self.st("t")
            self.ld(PRODUCT)
            self.st(step(A))
            self.magnitude()
            self.keep_greatest("top")
            self.ld("t")
            self.mul("t")
            self.ld("squares")
            self.add(PRODUCT)
            self.st("squares")
        self.ld("exponent")
        self.add(at(BANK, 11))
        self.st("exponent of y")
        self.jump("multiplied")
        self.label("without gains")
        self.point(A, "y")
        self.repetitions("length")
        with self.repeat(COUNT):
            self.ld(at(A))
            self.shift(-GAIN_ONE)
            self.st(step(A))
            self.magnitude()
            self.keep_greatest("top")
        self.ld("exponent")
        self.sub(GAIN_ONE)
        self.st("exponent of y")
        self.label("multiplied")
        self.call("scale of maximum")
        self.multiply("norm", "scale")
        self.field(FLAGS, 1, 1)
        self.cmp(1)
        self.jump("scaled", LESS)
        self.move("t", "norm")
        self.ld("exponent")
        self.add(6)
        self.shift(-1)
        self.st("norm.e")
        self.ld("squares")
        self.call("normalise")
        self.multiply("norm", self.scale_of_bank(0))
        self.move("mean", "norm")
        self.multiply("scale", "scale")
        self.multiply("norm", "mean")
        self.call("add eps")
        self.call("square root")
        self.call("reciprocal")
        self.multiply("norm", "t")
        self.label("scaled")
        self.move("code", "norm")
        self.point(A, "y")
        self.field(FLAGS, 2, 2)
        self.cmp(1)
        self.jump("to activations", NOT_LESS)
        self.point(B, 0)
        self.call("restore maximum")
        self.repetitions("length")
        with self.repeat(COUNT):
            self.quantise()
            self.do(Op.CODE, step(B))
        self.jump("finish")
        self.label("to activations")
        self.multiply("code", self.scale_of_bank(2))
        self.move("logit scale", "norm")
        self.call("restore maximum")
        self.point(B, "activations")
        self.repetitions("length")
        with self.repeat(COUNT):
            self.quantise()
            self.st(step(B))
        self.jump("finish")

    def quantise(self) -> None:
        """R = code of the y at pointer A."""
        self.ld(step(A))
        self.by_shift()
        self.mul("reciprocal")
        self.ld(PRODUCT)
        self.add(1 << 31)
        self.shift(32)

    def qkv(self) -> None:
        p = self.p
        self.begin()
        self.emit(Op.WAIT, immediate=Condition.RESULTS)
        self.field(FLAGS, 2, 2)
        self.cmp(2)
        self.jump("keys", NOT_LESS)
        self.multiply("code", self.scale_of_bank(2))
        self.move("head scale", "norm")
        self.point(C, 0)
        self.point(D, "activations")
        self.point(INNER, "query_scales")
        self.point(OUTER, p.heads)
        self.label("query head")
        self.call("rotate")
        self.call("quantise head")
        for part in (".m", ".e"):
            self.ld("norm" + part)
            self.st(step(INNER))
        self.call("restore maximum")
        self.point(A, "y")
        self.point(COUNT, p.head_dim)
        with self.repeat(COUNT):
            self.quantise()
            self.st(step(D))
        self.loop(OUTER, "query head")
        self.label("keys")
        self.field(FLAGS, 2, 2)
        self.cmp(1)
        self.jump("all heads", LESS)
        self.cmp(2)
        self.jump("finish", LESS)
        self.label("all heads")
        self.ld(RS)
        self.shift((CHUNK - 1).bit_length())
        self.times(2 * p.kv_half_bytes)
        self.add(RT)
        self.st("address")
        self.field(RS, 0, (CHUNK - 1).bit_length())
        self.st("row")
        for half, rotated in enumerate((True, False)):
            self.multiply("code", self.scale_of_bank(3 + half))
            self.move("head scale", "norm")
            self.point(C, p.q_size + half * p.kv_heads * p.head_dim)
            self.ld("address")
            if half:
                self.add(p.kv_half_bytes)
            self.st("head address")
            self.point(OUTER, p.kv_heads)
            self.label(f"written head {half}")
            self.call("rotate" if rotated else "unrotated")
            self.call("quantise head")
            self.ld("row")
            self.shift(-(KV_SCALE_BYTES - 1).bit_length())
            self.add("head address")
            self.out(Outlet.WRITE_ADDRESS)
            for part in (".m", ".e"):
                self.ld("norm" + part)
                self.out(Outlet.WRITE)
                self.shift(8)
                self.out(Outlet.WRITE)
            self.out(Outlet.WRITE_REST)
            self.ld("row")
            self.times(p.head_dim)
            self.add("head address")
            self.add(p.kv_scale_block_bytes)
            self.out(Outlet.WRITE_ADDRESS)
            self.call("restore maximum")
            self.point(A, "y")
            self.point(COUNT, p.head_dim)
            with self.repeat(COUNT):
                self.quantise()
                self.out(Outlet.WRITE)
            self.out(Outlet.WRITE_REST)
            self.ld("head address")
            self.add(p.kv_head_bytes)
            self.st("head address")
            self.loop(OUTER, f"written head {half}")
        self.jump("finish")

    def glu(self) -> None:
        silu = self.p.activation == "silu"
        self.begin()
        self.emit(Op.WAIT, immediate=Condition.RESULTS)
        self.multiply("code", self.scale_of_bank(2))
        self.move("gate scale", "norm")
        self.multiply("code", self.scale_of_bank(3))
        if silu:
            self.move("work", "norm")
            self.fixed_shift("gate scale", SILU_BITS, counted=True)
            self.ld(-SILU_BITS)
        else:
            self.move("t", "norm")
            self.multiply("gate scale", "gate scale")
            self.multiply("norm", "t")
            self.move("work", "norm")
            self.ld(0)
        self.st("exponent")
        self.ld(RT)
        self.pointer(A)
        self.ld(RS)
        self.add(self.places["work"])
        self.pointer(B)
        self.repetitions("length")
        with self.repeat(COUNT):
            self.do(Op.FETCH, step(A))
            self.ld(RESULT)
            (self.silu if silu else self.relu2)()
            self.call("pack work")
            self.st(step(B))
        if silu:
            self.beyond_all("length")
        self.jump("finish")

    def relu2(self) -> None:
        """R = relu(gate)**2 * up; the gate is in R."""
        self.cmp(0)
        self.ld(0, LESS)
        self.st("gate")
        self.do(Op.FETCH, step(A))
        self.mul("gate")
        self.ld(RESULT)
        self.st("up")
        self.ld(PRODUCT)
        self.mul("up")
        self.ld(PRODUCT)

    def silu(self) -> None:
        """R = silu(gate * scale) * up; the gate is in R."""
        tail = self.p.tables["tail"]
        self.mul("gate scale.m")
        self.ld("shift")
        self.shift_register()
        self.fixed()
        self.clamp(32)
        self.st("gate")
        self.magnitude()
        self.most((1 << 20) - 1)
        self.st("t")
        self.shift(10)
        self.look_up(tail)
        self.st("row")
        self.ld("t")
        self.do(Op.AND, 1023)
        self.mul("row")
        self.ld(PRODUCT)
        self.add(512)
        self.shift(10)
        self.add("up")
        self.st("t")
        self.ld("gate")
        self.cmp(0)
        self.ld(0, LESS)
        self.sub("t")
        self.do(Op.FETCH, step(A))
        self.st("t")
        self.ld(RESULT)
        self.st("up")
        self.ld("t")
        self.mul("up")
        self.ld(PRODUCT)

    def share(self) -> None:
        self.ld(RS)
        self.add(1)
        self.shift((CHUNK - 1).bit_length())
        self.st("shared")
        self.ld(RT)
        self.st("shared base")
        self.jump("finish")

    def attend(self) -> None:
        p, chunk_bits = self.p, (CHUNK - 1).bit_length()
        self.ld(0)
        self.cmp(0)
        self.out(Outlet.BEYOND)
        self.ld("shared")
        self.shift(-chunk_bits)
        self.add(RS)
        self.add(1)
        self.st("positions")
        self.ld(0)
        self.st("head offset")
        self.st("head of group")
        self.ld(self.places["activations"])
        self.st("query")
        self.point(C, "query_scales")
        self.point(D, "work")
        self.point(OUTER, p.heads)
        self.label("attending head")
        for name, value in (("maximum", RUNNING_MAX_MIN), ("exponent", EXPONENT_MIN), ("total", 0), ("chunk", 0)):
            self.ld(value)
            self.st(name)
        self.point(A, "out")
        self.point(COUNT, p.head_dim)
        self.ld(0)
        with self.repeat(COUNT):
            self.st(step(A))
        self.ld("shared base")
        self.add("head offset")
        self.st("address")
        self.label("chunk")
        self.ld("chunk")
        self.sub("shared")
        self.cmp(0)
        self.jump("has address", LESS)
        self.cmp(1)
        self.jump("has address", NOT_LESS)
        self.ld(RT)
        self.add("head offset")
        self.st("address")
        self.label("has address")
        self.ld("chunk")
        self.shift(-chunk_bits)
        self.st("t")
        self.ld("positions")
        self.sub("t")
        self.most(CHUNK)
        self.st("rows")
        self.times(p.head_dim)
        self.add(p.kv_scale_block_bytes + p.mem_bytes - 1)
        self.shift((p.mem_bytes - 1).bit_length())
        self.st("beats")
        self.ld("address")
        self.request("beats")
        self._scores()
        self._weights()
        self.ld("address")
        self.add(2 * p.kv_half_bytes)
        self.st("address")
        self.ld("chunk")
        self.add(1)
        self.st("chunk")
        self.shift(-chunk_bits)
        self.cmp("positions")
        self.jump("chunk", LESS)
        # Outputs over the total.
        self.ld(0)
        self.st("norm.e")
        self.ld("total")
        self.call("normalise")
        self.call("reciprocal")
        self.ld("norm.e")
        self.add(WEIGHT_DROP)
        self.add("exponent")
        self.st("exponent")
        self.point(A, "out")
        self.point(COUNT, p.head_dim)
        with self.repeat(COUNT):
            self.ld(step(A))
            self.mul("norm.m")
            self.ld(PRODUCT)
            self.call("pack work")
            self.st(step(D))
        self.ld(step(C, 2))
        self.ld("query")
        self.add(p.head_dim)
        self.st("query")
        self.ld("head of group")
        self.add(1)
        self.st("head of group")
        self.cmp(p.group)
        self.jump("same keys", LESS)
        self.ld(0)
        self.st("head of group")
        self.ld("head offset")
        self.add(p.kv_head_bytes)
        self.st("head offset")
        self.label("same keys")
        self.loop(OUTER, "attending head")
        self.set_one("work")
        self.ld(0)
        self.st("shared")
        self.jump("finish")

    def _scores(self) -> None:
        """Scores of a chunk's rows, and their greatest one."""
        p = self.p
        self.scales_of_chunk("key_scales")
        self.ld(-(1 << 21))
        self.st("top")
        self.point(B, "scores")
        self.point(BANK, "key_scales")
        self.ld("rows")
        self.pointer(INNER)
        self.label("score")
        self.dot("query", p.head_dim)
        self.st("dot")
        self.ld(at(C))
        self.mul(step(BANK))
        self.ld(at(C, 1))
        self.add(step(BANK))
        self.st("norm.e")
        self.ld(PRODUCT)
        self.call("normalise")
        self.fixed_shift("norm", SCORE_BITS)
        self.ld("dot")
        self.mul("norm.m")
        self.fixed()
        self.clamp(22)
        self.st(step(B))
        self.keep_greatest("top")
        self.loop(INNER, "score")
        self.out(Outlet.DROP)

    def _weights(self) -> None:
        """Weights of a chunk's rows, and the sums of their values."""
        p = self.p
        self.ld("top")
        self.add((1 << SCORE_BITS) - 1)
        self.shift(SCORE_BITS)
        self.cmp("maximum")
        self.ld("maximum", LESS)
        self.st("next maximum")
        self.ld("address")
        self.add(p.kv_half_bytes)
        self.request("beats")
        self.scales_of_chunk("value_scales")
        self.ld("exponent")
        self.st("next exponent")
        self.point(A, self.places["value_scales"] + 1)
        self.repetitions("rows")
        with self.repeat(COUNT):
            self.ld(step(A, 2))
            self.keep_greatest("next exponent")
        # What was summed before moves to the new maximum and exponent.
        self.ld("next maximum")
        self.sub("maximum")
        self.most(63)
        self.st("t")
        self.shift_register()
        self.ld("total")
        self.by_shift()
        self.st("total")
        self.ld("t")
        self.add("next exponent")
        self.sub("exponent")
        self.most(63)
        self.shift_register()
        self.cmp(1)
        self.jump("as before", LESS)
        self.point(A, "out")
        self.point(COUNT, p.head_dim)
        with self.repeat(COUNT):
            self.ld(at(A))
            self.by_shift()
            self.st(step(A))
        self.label("as before")
        for name in ("maximum", "exponent"):
            self.ld(f"next {name}")
            self.st(name)
        self.point(A, "scores")
        self.point(B, "value_scales")
        self.ld("rows")
        self.pointer(INNER)
        self.label("value")
        self.ld("maximum")
        self.shift(-SCORE_BITS)
        self.sub(step(A))
        self.call("power of two")
        self.st("t")
        self.add("total")
        self.st("total")
        self.ld("exponent")
        self.sub(at(B, 1))
        self.most(31)
        self.add(WEIGHT_DROP)
        self.shift_register()
        self.ld("t")
        self.mul(step(B, 2))
        self.ld(PRODUCT)
        self.by_shift()
        self.emit(Op.SETK)
        self.point(BANK, "out")
        self.point(COUNT, p.head_dim)
        with self.repeat(COUNT):
            self.do(Op.MULK, stream(_SIGNED_BYTE))
            self.ld(at(BANK))
            self.add(PRODUCT)
            self.st(step(BANK))
        self.loop(INNER, "value")
        self.out(Outlet.DROP)

    def sample(self) -> None:
        self.field(RT, 0, 16)
        self.st("temperature.m")
        self.ld(RT)
        self.shift(16)
        self.shift(-48)
        self.shift(48)
        self.st("temperature.e")
        self.ld(RU)
        self.shift(16)
        self.add(1)
        self.st("top_p")
        self.field(RU, 0, 16)
        self.cmp(1)
        self.ld(self.p.candidates, LESS)
        self.most(self.p.candidates)
        self.st("limit")
        self.ld(RS)
        self.call("mix")
        self.st("key")
        # The mode: 0 greedy, 1 of all tokens, 2 of a list.
        self.ld(1)
        self.st("mode")
        self.ld(2)
        self.st("t")
        self.field(RU, 0, 16)
        self.cmp(1)
        self.ld("t")
        self.st("mode", NOT_LESS)
        self.ld("top_p")
        self.cmp(1 << 16)
        self.ld("t")
        self.st("mode", LESS)
        self.ld("temperature.m")
        self.cmp(1)
        self.ld(0)
        self.st("mode", LESS)
        self.jump("finish")

    def head(self) -> None:
        p = self.p
        self.out(Outlet.FROM_WEIGHTS)
        self.multiply("logit scale", "temperature")
        self.move("sampling", "norm")
        self.fixed_shift("sampling", NOISE_BITS)
        for name, value in (("id", 0), ("chosen", 0), ("filled", 0), ("total", 0), ("best", -(1 << 60)), ("maximum", -(1 << 60))):
            self.ld(value)
            self.st(name)
        self.point(OUTER, -(-p.vocab // p.group_rows))
        self.label("rows of head")
        self.point(D, "row_scales")
        self.point(COUNT, p.group_rows)
        with self.repeat(COUNT):
            self.ld(stream(_HALF))
            self.st(step(D))
        self.point(D, "row_scales")
        self.point(INNER, p.group_rows)
        self.label("row of head")
        self.dot(self.places["activations"], p.hidden)
        self.mul(step(D))
        self.out(Outlet.DROP)
        self.ld("id")
        self.cmp(p.vocab)
        self.jump("next row", NOT_LESS)
        self.ld(PRODUCT)
        self.st(LOGIT)
        self.ld("mode")
        self.cmp(1)
        self.jump("greedy", LESS)
        self.cmp(2)
        self.jump("listed", NOT_LESS)
        self.call("scaled logit")
        self.st("z")
        self.ld("id")
        self.call("noise")
        self.add("z")
        self.jump("contest")
        self.label("greedy")
        self.ld(LOGIT)
        self.label("contest")
        self.st("t")
        self.ld("best")
        self.cmp("t")
        self.ld("t")
        self.st("best", LESS)
        self.ld("id")
        self.st("chosen", LESS)
        self.label("next row")
        self.ld("id")
        self.add(1)
        self.st("id")
        self.loop(INNER, "row of head")
        self.loop(OUTER, "rows of head")
        self.ld("mode")
        self.cmp(2)
        self.jump("chosen", LESS)
        self._walk()
        self.label("chosen")
        self.ld("chosen")
        self.out(Outlet.TOKEN)
        self.jump("finish")
        self._listed()

    def _listed(self) -> None:
        """A logit enters the sorted list, and the mass."""
        self.label("listed")
        self.ld("filled")
        self.cmp("limit")
        self.jump("list has room", LESS)
        self.ld("limit")
        self.shift(-1)
        self.add(self.places["list"] - 2)
        self.pointer(A)
        self.ld(at(A))
        self.cmp(LOGIT)
        self.jump("weigh", NOT_LESS)
        self.jump("make room")
        self.label("list has room")
        self.shift(-1)
        self.add(self.places["list"])
        self.pointer(A)
        self.ld("filled")
        self.add(1)
        self.st("filled")
        self.label("make room")
        self.ld(at(A, -2))
        self.cmp(LOGIT)
        self.jump("enter", NOT_LESS)
        self.st(at(A))
        self.ld(at(A, -1))
        self.st(at(A, 1))
        self.ld(step(A, -2))
        self.jump("make room")
        self.label("enter")
        self.ld(LOGIT)
        self.st(at(A))
        self.ld("id")
        self.st(at(A, 1))
        self.label("weigh")
        self.call("scaled logit")
        self.st("z")
        self.add((1 << NOISE_BITS) - 1)
        self.shift(NOISE_BITS)
        self.cmp("maximum")
        self.ld("maximum", LESS)
        self.st("next maximum")
        self.sub("maximum")
        self.most(63)
        self.shift_register()
        self.ld("total")
        self.by_shift()
        self.st("total")
        self.ld("next maximum")
        self.st("maximum")
        self.call("probability")
        self.add("total")
        self.st("total")
        self.jump("next row")

    def _walk(self) -> None:
        """The choice among a list."""
        self.ld(0)
        self.st("mass")
        self.point(D, "list")
        self.ld("filled")
        self.pointer(INNER)
        self.label("entry")
        self.ld(step(D))
        self.st(LOGIT + " listed")
        self.call("scaled listed logit")
        self.st("z")
        self.call("probability")
        self.add("mass")
        self.st("mass")
        self.ld(at(D))
        self.call("noise")
        self.add("z")
        self.st("t")
        self.ld("best")
        self.cmp("t")
        self.ld("t")
        self.st("best", LESS)
        self.ld(step(D))
        self.st("chosen", LESS)
        self.ld("total")
        self.mul("top_p")
        self.ld("mass")
        self.shift(-16)
        self.cmp(PRODUCT)
        self.ld("top_p")
        self.jump("not enough", LESS)
        self.cmp(1 << 16)
        self.jump("chosen", LESS)
        self.label("not enough")
        self.loop(INNER, "entry")

    # Routines ---------------------------------------------------------------------------------------

    def routines(self) -> None:
        self._scale_routines()
        self._division_routines()
        self._head_routines()
        self._element_routines()
        self._sampler_routines()

    def _scale_routines(self) -> None:
        self.label("normalise")  # norm = R * 2**norm.e (`integer.uf_norm`)
        self.emit(Op.LENGTH, immediate=16)
        self.by_shift()
        self.st("norm.m")
        self.ld(SHIFT)
        self.add("norm.e")
        self.st("norm.e")
        self.ld("norm.m")
        self.cmp(1)
        self.ld(EXPONENT_MIN)
        self.st("norm.e", LESS)
        self.back()

        self.label("add eps")  # norm += eps (`integer.uf_add`)
        self.ld("norm.e")
        self.cmp(at(BANK, 3))
        self.jump("eps is higher", LESS)
        self.ld(at(BANK, 2))
        self.st("low")
        self.ld("norm.e")
        self.sub(at(BANK, 3))
        self.jump("lower it")
        self.label("eps is higher")
        self.ld("norm.m")
        self.st("low")
        self.ld(at(BANK, 2))
        self.st("norm.m")
        self.ld(at(BANK, 3))
        self.sub("norm.e")
        self.st("up")
        self.add("norm.e")
        self.st("norm.e")
        self.ld("up")
        self.label("lower it")
        self.most(33)
        self.shift_register()
        self.ld("low")
        self.shift(-16)
        self.by_shift()
        self.st("low")
        self.ld("norm.e")
        self.sub(16)
        self.st("norm.e")
        self.ld("norm.m")
        self.shift(-16)
        self.add("low")
        self.jump("normalise")

        self.label("counted fixed shift")  # as below, and whether elements are beyond it (`integer.beyond_shift`)
        self.cmp(1)
        self.out(Outlet.BEYOND)
        self.st("shift")
        self.ld(0)
        self.ld(1, LESS)
        self.st("beyond")
        self.ld("shift")
        self.label("fixed shift")  # S = R clamped to 1..62, half = 1 << S - 1
        self.cmp(1)
        self.ld(1, LESS)
        self.most(62)
        self.st("shift")
        self.ld(1)
        self.sub("shift")
        self.shift_register()
        self.ld(1)
        self.by_shift()
        self.st("half")
        self.ld("shift")
        self.shift_register()
        self.back()

    def _division_routines(self) -> None:
        self.label("divide")  # R = R / denominator, of 17 bits; the denominator is given 17 bits up
        self.point(COUNT, 17)
        with self.repeat(COUNT):
            self.shift(-1)
            self.cmp("denominator")
            self.sub("denominator", NOT_LESS)
            self.add(1, NOT_LESS)
        self.do(Op.AND, (1 << 17) - 1)
        self.back()

        self.label("reciprocal")  # norm = 1 / norm (`integer.uf_recip`)
        self.ld("norm.m")
        self.shift(-17)
        self.st("denominator")
        self.ld(-31)
        self.sub("norm.e")
        self.st("norm.e")
        self.ld(1 << 31)
        self.call("divide")
        self.st("low")
        self.ld("norm.m")
        self.cmp(1)
        self.ld("low")
        self.ld(0, LESS)
        self.jump("normalise")

        self.label("square root")  # norm = sqrt(norm) (`integer.uf_sqrt`)
        self.field_of("norm.e", 1)
        self.st("odd")
        self.ld(-16)
        self.sub("odd")
        self.shift_register()
        self.ld("norm.e")
        self.sub("odd")
        self.sub(16)
        self.shift(1)
        self.st("norm.e")
        self.ld("norm.m")
        self.by_shift()
        self.st("radicand")
        self.ld(1 << 32)
        self.st("bit")
        self.ld(0)
        self.st("root")
        self.point(COUNT, 17)
        with self.repeat(COUNT):
            self.ld("root")
            self.add("bit")
            self.st("low")
            self.ld("root")
            self.shift(1)
            self.st("root")
            self.ld("radicand")
            self.cmp("low")
            self.sub("low", NOT_LESS)
            self.st("radicand")
            self.ld("root")
            self.add("bit", NOT_LESS)
            self.st("root")
            self.ld("bit")
            self.shift(2)
            self.st("bit")
        self.ld("root")
        self.jump("normalise")

        self.label("scale of maximum")  # norm: the scale of codes; `reciprocal`, `quantising shift` (`integer.quantise`)
        self.ld("top")
        self.emit(Op.LENGTH, immediate=MANTISSA_BITS)
        self.by_shift()
        self.st("top")
        self.ld(SHIFT)
        self.st("quantising shift")
        self.st("norm.e")
        self.ld("top")
        self.shift(-17)
        self.st("denominator")
        self.ld(127 << 32)
        self.call("divide")
        self.st("reciprocal")
        self.ld("top")
        self.call("normalise")
        self.multiply("norm", (int(UF_INV127.m), int(UF_INV127.e)))
        self.ld("norm.m")
        self.cmp(1)
        self.ld("norm.e")
        self.add("exponent of y", NOT_LESS)
        self.st("norm.e")
        self.back()

        self.label("restore maximum")
        self.ld("quantising shift")
        self.shift_register()
        self.back()

    def field_of(self, name: str, mask: int) -> None:
        self.ld(name)
        self.do(Op.AND, mask)

    def _head_routines(self) -> None:
        """Rotary embedding and quantisation of a head, whose results begin at pointer C."""
        p = self.p
        self.label("rotate")
        self.ld(0)
        self.st("top")
        self.point(A, "y")
        self.point(B, "rope")
        self.point(COUNT, p.head_dim // 2)
        with self.repeat(COUNT):
            for name in ("even", "odd"):
                self.do(Op.FETCH, step(C))
                self.ld(RESULT)
                self.st(name)
            for one, other, sign in (("even", "odd", Op.SUB), ("odd", "even", Op.ADD)):
                self.ld(other)
                self.mul(at(B, 1))
                self.ld(PRODUCT)
                self.st("t")
                self.ld(one)
                self.mul(at(B))
                self.ld(PRODUCT)
                self.do(sign, "t")
                self.st(step(A))
                self.magnitude()
                self.keep_greatest("top")
            self.ld(step(B, 2))
        self.back()

        self.label("unrotated")
        self.ld(0)
        self.st("top")
        self.point(A, "y")
        self.point(COUNT, p.head_dim)
        with self.repeat(COUNT):
            self.do(Op.FETCH, step(C))
            self.ld(RESULT)
            self.shift(-ROPE_BITS)
            self.st(step(A))
            self.magnitude()
            self.keep_greatest("top")
        self.back()

        self.label("quantise head")  # norm: the head's scale (`integer.quantise_heads`)
        self.ld(-ROPE_BITS)
        self.st("exponent of y")
        self.call("scale of maximum")
        self.multiply("norm", "head scale")
        self.back()

    def _element_routines(self) -> None:
        self.label("pack work")  # R = work element of R * 2**exponent (`integer.work_norm`)
        self.emit(Op.LENGTH, immediate=MANTISSA_BITS)
        self.by_shift()
        self.st("mantissa")
        self.ld(SHIFT)
        self.add("exponent")
        self.most(127)
        self.st("t")
        self.ld("mantissa")
        self.cmp(0)
        self.do(Op.XOR, -1, LESS)
        self.cmp(1)
        self.ld(-128)
        self.st("t", LESS)
        self.ld("t")
        self.cmp(-127)
        self.ld(-128, LESS)
        self.do(Op.AND, 255)
        self.st("t")
        self.ld("mantissa")
        self.ld(0, LESS)
        self.shift(-8)
        self.add("t")
        self.back()

        self.label("power of two")  # R = 2**-R (`integer.exp2_negative`)
        self.st("t")
        self.do(Op.AND, (1 << SCORE_BITS) - 1)
        self.emit(Op.TABLE, immediate=self.p.tables["exp2"])
        self.ld("t")
        self.shift(SCORE_BITS)
        self.most(31)
        self.shift_register()
        self.ld(TABLE)
        self.by_shift()
        self.back()

    def _sampler_routines(self) -> None:
        self.label("scaled logit")  # R = base-2 logit (`integer.sampling_logits`)
        self.ld(LOGIT)
        self.jump("scale it")
        self.label("scaled listed logit")
        self.ld(LOGIT + " listed")
        self.label("scale it")
        self.shift(LOGIT_DROP)
        self.mul("sampling.m")
        self.ld("shift")
        self.shift_register()
        self.ld(PRODUCT)
        self.shift(-8)
        self.add("half")
        self.by_shift()
        self.back()

        self.label("probability")  # R = 2**(z - maximum)
        self.ld("maximum")
        self.shift(-NOISE_BITS)
        self.sub("z")
        self.shift(NOISE_BITS - SCORE_BITS)
        self.jump("power of two")

        self.label("mix")  # R = hash of R (`integer.mix32`)
        for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
            self.st("t")
            self.shift(shift)
            self.do(Op.XOR, "t")
            self.mul(factor & 0xFFFF)
            self.st("low")
            self.ld(PRODUCT)
            self.st("t")
            self.ld("low")
            self.mul(factor >> 16)
            self.ld(PRODUCT)
            self.shift(-16)
            self.add("t")
            self.do(Op.AND, 0xFFFFFFFF)
        self.st("t")
        self.shift(16)
        self.do(Op.XOR, "t")
        self.back()

        self.label("noise")  # R = noise of token R (`integer.gumbel`)
        self.do(Op.XOR, "key")
        self.call("mix")
        self.do(Op.AND, -2)
        self.add(1)
        for _ in range(2):
            self.call("logarithm")
            self.st("t")
            self.ld(32 << LOG2_BITS)
            self.sub("t")
        self.shift(LOG2_BITS - NOISE_BITS)
        self.back()

        self.label("logarithm")  # R = log2 R (`integer.log2_fixed`)
        table, more = self.p.tables["log2"], LOG2_BITS - LOG2_TABLE_BITS
        self.emit(Op.LENGTH, immediate=38)
        self.by_shift()
        self.shift(6)
        self.do(Op.AND, 0x7FFFFFFF)
        self.st("t")
        self.ld(SHIFT)
        self.add(37)
        self.shift(-LOG2_BITS)
        self.st("sum")
        self.ld("t")
        self.shift(22)
        self.look_up(table)
        self.st("row")
        self.ld("up")
        self.shift(-more)
        self.add("sum")
        self.st("sum")
        self.ld("t")
        self.do(Op.AND, 0x3FFFFF)
        self.mul("row")
        self.ld(PRODUCT)
        self.shift(22 - more)
        self.add("sum")
        self.back()
