"""Assembler and disassembler of the sequencer's instruction set, and the builder programs are made with.

Text is one statement a line: `label:`, an instruction, or both; `;` and `#` start a comment.

    next:   in      r1                              ; registers are r0 to r15
            addi    r2, r1, -1                      ; numbers: decimal, 0x hexadecimal, negative
            bne     r2, r0, next                    ; labels or absolute addresses
            wait    vector+writes                   ; units joined by +, or `none`
            vector.normq slot=r1 count=r2 length=64 norm=1
            .word   0x1234                          ; any 64-bit word

Registers have names, and routines say which they may write; neither makes a word:

            .registers position=r1 left=r2          ; from here on, in place of the names before
            .routine count_down left step=r9        ; may write `left` and r9, which is `step` in here
            li      step, 1
            sub     left, left, step
            .end                                    ; writing any other register in between is an error

`zero` is r0. Routines nest, and the outer one must allow what the inner one writes. A name in a routine may not hide another register's.

Operands of unit commands are named, in any order, and zero when left out; all others are positional.
`assemble(text)` and `Program(...)...encode()` give 64-bit words; `disassemble(words)` gives text that
assembles to the same words, for every list of words.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from tritloom.firmware import commands
from tritloom.firmware.errors import TritloomError
from tritloom.firmware.isa import SCRATCH_WORDS, DotOp, Op, Unit, VectorOp

REGISTERS = 16
ARGUMENTS = 8
DEFAULT_WORDS = 512


class AssemblyError(TritloomError):
    """A program that cannot be encoded; the message names the place and the remedy."""


@dataclass(frozen=True)
class Operand:
    """One field of an instruction word: `width` bits from bit `low`.

    `kind`: "register", "number" (unsigned), "signed" (two's complement or unsigned), "label" or "units".
    """

    name: str
    kind: str
    low: int
    width: int
    doc: str = ""

    @property
    def mask(self) -> int:
        return (1 << self.width) - 1 << self.low

    def insert(self, value: int, most: int | None = None) -> int:
        if self.kind == "register" and not 0 <= value < REGISTERS:
            raise AssemblyError(f"{self.name}: register r{value} does not exist; there are r0 to r{REGISTERS - 1}")
        least = -(1 << self.width - 1) if self.kind == "signed" else 0
        most = (1 << self.width) - 1 if most is None else most
        if not least <= value <= most:
            raise AssemblyError(f"{self.name}: {value} is out of range {least} to {most}")
        return (value & (1 << self.width) - 1) << self.low

    def extract(self, word: int) -> int:
        value = (word & self.mask) >> self.low
        return value - (1 << self.width) if self.kind == "signed" and value >> self.width - 1 else value


@dataclass(frozen=True)
class Form:
    """A mnemonic with its fixed bits and operands; `named` operands are written name=value."""

    mnemonic: str
    fixed: int
    operands: tuple[Operand, ...]
    doc: str
    named: bool = False
    fixed_mask: int = 0xFF

    @property
    def writes(self) -> bool:
        """Whether it writes the register that its operand rd names."""
        return any(operand.name == "rd" for operand in self.operands)

    def matches(self, word: int) -> bool:
        mask = self.fixed_mask
        for operand in self.operands:
            mask |= operand.mask
        return word & self.fixed_mask == self.fixed and word & ~mask == 0


RD = Operand("rd", "register", 8, 4)
RS = Operand("rs", "register", 12, 4)
RT = Operand("rt", "register", 16, 4)
IMM = Operand("imm", "signed", 32, 32)
TARGET = Operand("target", "label", 32, 32)

def _operands(command: commands.Command, *first: str) -> tuple[Operand, ...]:
    """The operands of a unit's command in the order in which they are written: those of `first`, then the others; but not the operation,
    which the mnemonic says."""
    fields = sorted((field for field in command.fields if field.name != "op"),
                    key=lambda field: first.index(field.name) if field.name in first else len(first))
    return tuple(Operand(field.name, "register", commands.REGISTER_FIELDS[field.source], 4) if field.in_register else
                 Operand(field.name, "number", commands.NUMBER_FIELDS[field.source] + field.low, field.width) for field in fields)


_VECTOR = _operands(commands.VECTOR, "slot", "count", "a", "b", "length")
_MATMUL = _operands(commands.MATMUL_PADDED)
_DOT = _operands(commands.DOT)
_SAMPLE = _operands(commands.SAMPLE)
_VECTOR_DOC = {
    VectorOp.PARAM: "load a parameter block with `length` gains from the weight stream into `bank`, from which the others take theirs",
    VectorOp.EMBED: "X[`slot`] = embedding of token `a` from the table at `b`",
    VectorOp.ROPE: "load the rotary row of position `a` from the table at `b` for `slot`",
    VectorOp.NORMQ: "quantise X (`source` 0) or H (1), after RMSNorm if `norm`, to the ternary matmul (`dest` 0), the "
                    "dot engine (1) or both (2)",
    VectorOp.RESID: "X += accumulators, `length` rows",
    VectorOp.BIAS: "X += the bias behind the gains of `bank`, `length` elements; of machines for models with biases",
    VectorOp.QKV: "rotate and quantise queries, keys and values (`dest` 0), queries only (1), keys and values only (2); `slot` is at "
                  "position `a`; keys and values go to the cache at `b`",
    VectorOp.GLU: "H = gated activation of `length` element pairs, from word `a` of V pairs on, whose results stand from word `b` of V "
                  "rows on; those from word 0 on come first",
}
_FOLLOW_DOC = """With `follow` n, qkv,
resid and glu take the results of the n-th matmul commanded before, and wait for them: qkv and resid word by word."""
_DOT_DOC = {
    DotOp.ATTEND: "attention of `count` tokens from `slot`, the first at `position`, over the cache at `kv_base`, and of those that "
                  "joined: all together at most as many as the dot engine has lanes",
    DotOp.HEAD: "logits of `count` tokens from `slot`, at most as many as the dot engine has lanes, over the head rows of the weight "
                "stream, to the sampler; with a short-list, of one token over its candidates' rows of the table at `kv_base`",
    DotOp.JOIN: "tokens as of dot.attend, which begin with it: the next dot.attend or dot.join has the slots after these",
    DotOp.SHARE: "for the next dot.attend: before its cache each of its tokens sees positions 0 to `position`, whole chunks, of the cache "
                 "at `kv_base`, read once for all; positions of its own cache count from there",
}

FORMS: tuple[Form, ...] = (
    Form("halt", Op.HALT, (Operand("code", "number", 32, 32),), "stop; HALT_CODE = `code`"),
    Form("li", Op.LI, (RD, IMM), "`rd` = `imm`"),
    Form("add", Op.ADD, (RD, RS, RT), "`rd` = `rs` + `rt`"),
    Form("addi", Op.ADDI, (RD, RS, IMM), "`rd` = `rs` + `imm`"),
    Form("sub", Op.SUB, (RD, RS, RT), "`rd` = `rs` - `rt`"),
    Form("jmp", Op.JMP, (TARGET,), "go to `target`"),
    Form("beq", Op.BEQ, (RS, RT, TARGET), "go to `target` if `rs` == `rt`"),
    Form("bne", Op.BNE, (RS, RT, TARGET), "go to `target` if `rs` != `rt`"),
    Form("blt", Op.BLT, (RS, RT, TARGET), "go to `target` if `rs` < `rt`, unsigned"),
    Form("bge", Op.BGE, (RS, RT, TARGET), "go to `target` if `rs` >= `rt`, unsigned"),
    Form("arg", Op.ARG, (RD, Operand("index", "number", 32, 3)), "`rd` = CSR ARG`index`"),
    Form("in", Op.IN, (RD,), "`rd` = next prompt token; waits for one"),
    Form("out", Op.OUT, (RS,), "push `rs` to the host's token FIFO; waits for room"),
    Form("wait", Op.WAIT, (Operand("units", "units", 32, 5),), "wait until all named units are idle"),
    Form("stream", Op.STREAM, (Operand("entry", "number", 32, 8),),
         "start the weight streamer at descriptor `entry`; waits for room in its queue"),
    Form("flush", Op.FLUSH, (), "drop prefetched weights and queued descriptors; waits until done"),
    *(Form(f"vector.{op.name.lower()}", Op.VECTOR | op << 24, _VECTOR, _VECTOR_DOC[op], True, 0xFF | 7 << 24) for op in VectorOp),
    Form("matmul", Op.MATMUL, _MATMUL,
         "ternary matrix times the codes of `count` slots from `slot`: `inputs` inputs, `steps` row steps, of whose last one "
         "`rest` rows are padding (0 where rows a cycle are a power of two); they become the results from step `at` on; up to four wait "
         "their turn", True),
    *(Form(f"dot.{op.name.lower()}", Op.DOT | op << 24, _DOT, _DOT_DOC[op], True, 0xFF | 3 << 24) for op in DotOp),
    Form("sample", Op.SAMPLE, _SAMPLE,
         "choose a token for `slot` from the logits of the dot.head to come; one for each of its slots, in order, before it", True),
    Form("token", Op.TOKEN, (RD,), "`rd` = the sampler's next token, in the order of the slots; waits for it"),
    Form("load", Op.LOAD, (RD, RS, IMM), "`rd` = scratch word `rs` + `imm`; takes a cycle more"),
    Form("store", Op.STORE, (RT, RS, IMM), "scratch word `rs` + `imm` = `rt`"),
    Form("scan", Op.SCAN, _operands(commands.SCAN),
         "enter `rows` results of `slot`, from step `at` on, in the short-list, under the next ids (from 0 if `first`, in an empty list); "
         "`wait matmul` waits for it", True),
)
FORM = {form.mnemonic: form for form in FORMS}


def _operand(form: Form, name: str) -> Operand:
    return next(operand for operand in form.operands if operand.name == name)


@dataclass(frozen=True)
class _Pending:
    """An instruction whose label is filled in by encode()."""

    word: int
    target: str | int | None
    place: str


@dataclass(frozen=True)
class _Routine:
    """Instructions that write none but some registers, with the names that these have inside."""

    name: str
    registers: dict[str, int]
    allowed: frozenset[int]


class Program:
    """A program under construction: one method per instruction, labels, then encode().

    Registers are numbers 0 to 15; register 0 reads as zero. Targets are label names, which may be
    defined later, or addresses. Example: a loop that echoes prompt tokens until it meets token 0.

        p = Program()
        p.label("next")
        p.in_(1)
        p.out(1)
        p.bne(1, 0, "next")
        p.halt()
        words = p.encode()
    """

    def __init__(self, limit: int = DEFAULT_WORDS) -> None:
        self.limit = limit
        self.labels: dict[str, int] = {}
        self._pending: list[_Pending] = []
        self._place: str | None = None
        self._unique = 0
        self._registers: dict[str, int] = {}
        self._routines: list[_Routine] = []

    def __len__(self) -> int:
        return len(self._pending)

    @property
    def here(self) -> int:
        """Address of the next instruction."""
        return len(self._pending)

    def label(self, name: str) -> str:
        """Define `name` as the address of the next instruction."""
        if not re.fullmatch(_NAME, name):
            raise AssemblyError(f"{self._where()}: {name!r} is not a label name")
        if name in self.labels:
            raise AssemblyError(f"{self._where()}: label {name!r} is defined twice")
        self.labels[name] = self.here
        return name

    def unique(self, stem: str = "label") -> str:
        """A label name not given before, for `label` and for targets."""
        self._unique += 1
        return f"{stem}.{self._unique}"

    @property
    def names(self) -> dict[str, int]:
        """Registers by the names that they have here."""
        found = {"zero": 0} | self._registers
        for routine in self._routines:
            found |= routine.registers
        return found

    def registers(self, names: dict[str, int]) -> None:
        """Name registers, in place of the names before."""
        if self._routines:
            raise AssemblyError(f"{self._where()}: .registers within routine {self._routines[-1].name}: end it first")
        self._registers = dict(names)

    def routine(self, name: str, writes: dict[str, int]) -> None:
        """What follows, up to `end`, writes these registers alone, which go by these names in it."""
        for given, register in writes.items():
            if self.names.get(given, register) != register:
                raise AssemblyError(f"{self._where()}: routine {name}: {given} is r{self.names[given]} here, not r{register}: "
                                    "take another name")
        self._routines.append(_Routine(name, dict(writes), frozenset(writes.values())))

    def end(self) -> None:
        """The innermost routine ends."""
        if not self._routines:
            raise AssemblyError(f"{self._where()}: .end without .routine")
        self._routines.pop()

    def _check_write(self, mnemonic: str, register: int) -> None:
        for routine in reversed(self._routines):
            if register and register not in routine.allowed:
                known = [name for name, number in self.names.items() if number == register]
                shown = f"{known[-1]} (r{register})" if known else f"r{register}"
                raise AssemblyError(f"{self._where()}: {mnemonic}: routine {routine.name} writes {shown}, which it does not declare")

    def _where(self) -> str:
        return self._place or f"instruction {self.here}"

    def word(self, word: int) -> None:
        """Append any 64-bit word."""
        if not 0 <= word < 1 << 64:
            raise AssemblyError(f"{self._where()}: .word {word:#x} does not fit 64 bits")
        self._pending.append(_Pending(word, None, self._where()))

    def emit(self, mnemonic: str, values: dict[str, int | str]) -> None:
        """Append an instruction of FORMS by its operands' names."""
        form = FORM[mnemonic]
        word, target = form.fixed, None
        for name, value in values.items():
            operand = _operand(form, name)
            if operand.kind == "label":
                target = value
            else:
                assert isinstance(value, int), f"{name} must be an integer, not {value!r}"
                try:
                    word |= operand.insert(value)
                except AssemblyError as error:
                    raise AssemblyError(f"{self._where()}: {mnemonic}: {error}") from None
                if name == "rd" and form.writes:
                    self._check_write(mnemonic, value)
        self._pending.append(_Pending(word, target, f"{self._where()}: {mnemonic}"))

    def encode(self) -> list[int]:
        """The program as 64-bit words."""
        if len(self._pending) > self.limit:
            raise AssemblyError(f"the program has {len(self._pending)} instructions, but program_words is {self.limit}: "
                                "raise program_words")
        words = []
        for pending in self._pending:
            word, target = pending.word, pending.target
            if isinstance(target, str):
                if target not in self.labels:
                    raise AssemblyError(f"{pending.place}: unknown label {target!r}")
                target = self.labels[target]
            if target is not None:
                try:
                    word |= TARGET.insert(target, self.limit - 1)
                except AssemblyError as error:
                    raise AssemblyError(f"{pending.place}: {error}") from None
            words.append(word)
        return words

    # Instructions -------------------------------------------------------------------------------

    def halt(self, code: int = 0) -> None:
        self.emit("halt", {"code": code})

    def li(self, rd: int, imm: int) -> None:
        self.emit("li", {"rd": rd, "imm": _signed(imm)})

    def add(self, rd: int, rs: int, rt: int) -> None:
        self.emit("add", {"rd": rd, "rs": rs, "rt": rt})

    def addi(self, rd: int, rs: int, imm: int) -> None:
        self.emit("addi", {"rd": rd, "rs": rs, "imm": _signed(imm)})

    def mov(self, rd: int, rs: int) -> None:
        """`rd` = `rs`, as addi rd, rs, 0."""
        self.addi(rd, rs, 0)

    def sub(self, rd: int, rs: int, rt: int) -> None:
        self.emit("sub", {"rd": rd, "rs": rs, "rt": rt})

    def jmp(self, target: str | int) -> None:
        self.emit("jmp", {"target": target})

    def beq(self, rs: int, rt: int, target: str | int) -> None:
        self.emit("beq", {"rs": rs, "rt": rt, "target": target})

    def bne(self, rs: int, rt: int, target: str | int) -> None:
        self.emit("bne", {"rs": rs, "rt": rt, "target": target})

    def blt(self, rs: int, rt: int, target: str | int) -> None:
        self.emit("blt", {"rs": rs, "rt": rt, "target": target})

    def bge(self, rs: int, rt: int, target: str | int) -> None:
        self.emit("bge", {"rs": rs, "rt": rt, "target": target})

    def arg(self, rd: int, index: int) -> None:
        self.emit("arg", {"rd": rd, "index": index})

    def in_(self, rd: int) -> None:
        self.emit("in", {"rd": rd})

    def out(self, rs: int) -> None:
        self.emit("out", {"rs": rs})

    def wait(self, units: Unit | int) -> None:
        self.emit("wait", {"units": int(units)})

    def stream(self, entry: int) -> None:
        self.emit("stream", {"entry": entry})

    def flush(self) -> None:
        self.emit("flush", {})

    def vector(self, op: VectorOp, *, slot: int = 0, count: int = 0, a: int = 0, b: int = 0,
               length: int = 0, source: int = 0, norm: int = 0, dest: int = 0, bank: int = 0, follow: int = 0) -> None:
        """`slot`, `count`, `a` and `b` are registers; the others are numbers."""
        self.emit(f"vector.{VectorOp(op).name.lower()}",
                  {"slot": slot, "count": count, "a": a, "b": b, "length": length,
                   "source": int(source), "norm": int(norm), "dest": int(dest), "bank": bank, "follow": follow})

    def matmul(self, *, inputs: int, steps: int, slot: int = 0, count: int = 0, at: int = 0) -> None:
        """`slot`, `count` and `at` are registers; the others are numbers."""
        self.emit("matmul", {"inputs": inputs, "steps": steps, "slot": slot, "count": count, "at": at})

    def dot(self, op: DotOp, *, slot: int = 0, count: int = 0, position: int = 0, kv_base: int = 0) -> None:
        """All operands are registers."""
        self.emit(f"dot.{DotOp(op).name.lower()}", {"slot": slot, "count": count, "position": position, "kv_base": kv_base})

    def sample(self, *, slot: int = 0, noise: int = 0, temperature: int = 0, limits: int = 0) -> None:
        """All operands are registers."""
        self.emit("sample", {"slot": slot, "noise": noise, "temperature": temperature, "limits": limits})

    def token(self, rd: int) -> None:
        self.emit("token", {"rd": rd})

    def load(self, rd: int, rs: int, imm: int = 0) -> None:
        self.emit("load", {"rd": rd, "rs": rs, "imm": _signed(imm)})

    def store(self, rt: int, rs: int, imm: int = 0) -> None:
        self.emit("store", {"rt": rt, "rs": rs, "imm": _signed(imm)})

    def scan(self, *, slot: int, rows: int, first: int = 0, at: int = 0) -> None:
        """`slot` and `at` are registers."""
        self.emit("scan", {"slot": slot, "rows": rows, "first": int(first), "at": at})


def _signed(value: int) -> int:
    """32-bit unsigned numbers above the signed range stand for the same bits."""
    return value - (1 << 32) if 1 << 31 <= value < 1 << 32 else value


# Text -------------------------------------------------------------------------------------------

_NAME = r"[A-Za-z_][A-Za-z0-9_.]*"


def _number(text: str) -> int:
    try:
        return int(text, 0)
    except ValueError:
        raise AssemblyError(f"{text!r} is not a number") from None


def _register(text: str, names: dict[str, int]) -> int | None:
    """A register by its number (r5) or name; None if it is neither."""
    return int(text[1:]) if re.fullmatch(r"r\d+", text) else names.get(text)


def _parse_operand(operand: Operand, text: str, names: dict[str, int]) -> int | str:
    if operand.kind == "register":
        register = _register(text, names)
        if register is None:
            raise AssemblyError(f"{operand.name}: {text!r} is not a register; registers are r0 to r{REGISTERS - 1}")
        return register
    if operand.kind == "units":
        mask = 0
        for name in text.split("+"):
            if name.upper() in Unit.__members__:
                mask |= Unit[name.upper()]
            elif name != "none":
                known = ", ".join(str(unit.name).lower() for unit in Unit)
                raise AssemblyError(f"{operand.name}: unknown unit {name!r}; units are {known}, none")
        return mask
    if operand.kind == "label" and re.fullmatch(_NAME, text):
        return text
    value = _number(text)
    return _signed(value) if operand.kind == "signed" else value


def parse(text: str, limit: int = DEFAULT_WORDS) -> Program:
    """A Program from text."""
    program = Program(limit)
    for number, line in enumerate(text.splitlines(), 1):
        program._place = f"line {number}"
        statement = re.split(r"[;#]", line, maxsplit=1)[0].strip()
        if match := re.match(rf"({_NAME})\s*:\s*", statement):
            program.label(match[1])
            statement = statement[match.end():]
        if not statement:
            continue
        try:
            _parse_statement(program, statement)
        except AssemblyError as error:
            message = str(error)
            raise AssemblyError(message if message.startswith("line ") else f"line {number}: {message}") from None
    program._place = None
    if program._routines:
        raise AssemblyError(f"routine {program._routines[-1].name} has no .end")
    return program


def _declared(words: Iterable[str], names: dict[str, int]) -> dict[str, int]:
    """Registers by name, from name=r5, from names that are known, or from r5 alone."""
    found: dict[str, int] = {}
    for word in words:
        name, _, given = word.partition("=")
        register = _register(given or name, names)
        if not re.fullmatch(_NAME, name) or register is None or not 0 <= register < REGISTERS:
            raise AssemblyError(f"{word!r} is not a register, nor name=register")
        if name in found:
            raise AssemblyError(f"register {name} is named twice")
        if given and re.fullmatch(r"r\d+|zero", name):
            raise AssemblyError(f"{name} names r{name[1:]} already" if name != "zero" else "zero names r0 already")
        found[name] = register
    return found


def _parse_statement(program: Program, statement: str) -> None:
    mnemonic, _, rest = statement.partition(" ")
    mnemonic, rest = mnemonic.lower(), rest.strip()
    if mnemonic == ".word":
        program.word(_number(rest))
        return
    if mnemonic == ".registers":
        program.registers(_declared(rest.split(), {}))
        return
    if mnemonic == ".routine":
        name, *declared = rest.split() or [""]
        program.routine(name, _declared(declared, program.names))
        return
    if mnemonic == ".end":
        program.end()
        return
    form = FORM.get(mnemonic)
    if form is None:
        raise AssemblyError(f"unknown instruction {mnemonic!r}")
    values: dict[str, int | str] = {}
    if form.named:
        for part in rest.replace(",", " ").split():
            name, equals, value = part.partition("=")
            known = [operand.name for operand in form.operands]
            if not equals or name not in known:
                raise AssemblyError(f"{mnemonic}: {part!r} is not name=value with one of {', '.join(known)}")
            if name in values:
                raise AssemblyError(f"{mnemonic}: {name} is given twice")
            values[name] = _parse_operand(_operand(form, name), value, program.names)
    else:
        parts = [part.strip() for part in rest.split(",")] if rest else []
        if len(parts) != len(form.operands):
            wanted = ", ".join(operand.name for operand in form.operands) or "none"
            raise AssemblyError(f"{mnemonic} takes {len(form.operands)} operands ({wanted}), not {len(parts)}")
        values = {operand.name: _parse_operand(operand, part, program.names) for operand, part in zip(form.operands, parts, strict=True)}
    program.emit(mnemonic, values)


def assemble(text: str, limit: int = DEFAULT_WORDS) -> list[int]:
    """64-bit words of a program in text."""
    return parse(text, limit).encode()


def _format(operand: Operand, word: int, labels: dict[int, str]) -> str:
    value = operand.extract(word)
    if operand.kind == "register":
        return f"r{value}"
    if operand.kind == "units":
        return "+".join(str(unit.name).lower() for unit in Unit if value & unit) or "none"
    if operand.kind == "label":
        return labels.get(value, str(value))
    return str(value)


def _find(word: int, words: int) -> Form | None:
    for form in FORMS:
        if form.matches(word):
            target = next((o.extract(word) for o in form.operands if o.kind == "label"), 0)
            return form if target < max(words, DEFAULT_WORDS) else None
    return None


def format_instruction(word: int, labels: dict[int, str] | None = None, words: int = DEFAULT_WORDS) -> str:
    """One instruction as text; `.word` for words no instruction encodes to."""
    form = _find(word, words)
    if form is None:
        return f".word {word:#018x}"
    operands = [(o, _format(o, word, labels or {})) for o in form.operands]
    if form.named:
        text = " ".join(f"{o.name}={value}" for o, value in operands if o.extract(word))
    else:
        text = ", ".join(value for _, value in operands)
    return f"{form.mnemonic} {text}".rstrip()


def disassemble(words: Iterable[int]) -> str:
    """Text of a program, with labels L<address> where jumps within it lead."""
    words = list(words)
    targets = set()
    for word in words:
        form = _find(word, len(words))
        for operand in form.operands if form else ():
            if operand.kind == "label" and operand.extract(word) < len(words):
                targets.add(operand.extract(word))
    labels = {address: f"L{address}" for address in targets}
    lines = []
    for address, word in enumerate(words):
        start = f"{labels[address]}:" if address in labels else ""
        lines.append(f"{start:<8}{format_instruction(word, labels, len(words))}")
    return "\n".join(lines) + "\n" if lines else ""


# Documentation ------------------------------------------------------------------------------------

def reference() -> str:
    """docs/isa.md."""
    lines = [
        "# Instruction set",
        "",
        "<!-- Generated by tritloom.firmware.assembler.reference(); tests/firmware/test_assembler.py compares. -->",
        "",
        "The sequencer runs a program of 64-bit words from its program memory (`program_words` of them). It has",
        "sixteen 32-bit registers; `r0` reads as zero, the others keep their values from run to run. So does a scratch",
        f"memory of {SCRATCH_WORDS} words of 32 bits for each lane. Each START begins at the address in CSR ENTRY. Words with other",
        "opcodes than these stop the program with HALT_CODE 0xffffffff.",
        "",
        "| bits | 63:32 | 31:24 | 23:20 | 19:16 | 15:12 | 11:8 | 7:0 |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        "| field | imm | flags | ru | rt | rs | rd | op |",
        "",
        "Instructions other than unit commands take 4 cycles, plus what they wait for.",
        "A unit command waits until the unit is ready, hands the command over, and the next instruction follows at",
        "once; `wait` tells when its effects are there. STOP ends a program before its next instruction, also where",
        "`in`, `out`, `token`, `stream`, `wait` or a unit command blocks: the commands issued so far finish (the sampler",
        "gives up), then prefetched weights are dropped. So the commands issued before any instruction must be able",
        "to finish without those after it: `stream` comes before the commands that take its weights, and commands",
        "come in the order of the stream. An error of the memory ends a program in the same way, with HALT_CODE 0xfffffffe.",
        "",
        "| instruction | op | operands | effect |",
        "| --- | --- | --- | --- |",
    ]
    for form in FORMS:
        if form.operands in (_VECTOR, _DOT, _SAMPLE):
            operands = "as below"
        else:
            operands = ", ".join(_describe(operand) for operand in form.operands)
        flags = f", flags[{(form.fixed_mask >> 24).bit_length() - 1}:0] = {form.fixed >> 24}" if form.fixed_mask >> 24 else ""
        lines.append(f"| `{form.mnemonic}` | {form.fixed & 0xFF}{flags} | {operands} | {form.doc} |")
    lines += [
        "",
        "Operands of `vector`: " + ", ".join(_describe(operand) for operand in _VECTOR) + ". " + _FOLLOW_DOC,
        "",
        "Operands of `dot`: " + ", ".join(_describe(operand) for operand in _DOT) + ".",
        "",
        "Operands of `sample`: " + ", ".join(_describe(operand) for operand in _SAMPLE) + ". `noise` is what the",
        "noise is made of, `integer.noise_word` of seed and position; `temperature` the packed temperature_scale (zero: greedy); `limits`",
        "top_k in bits 15:0 (0: off), top_p - 1 in 1/65536 in 31:16 (65535: off).",
        "",
        "Operands of `vector`, `matmul`, `dot`, `sample` and `scan` are written `name=value` and are zero when left out. Units of `wait`: "
        + ", ".join(f"`{str(unit.name).lower()}` {int(unit)}" for unit in Unit) + ".",
        "",
        "## Assembler text",
        "",
        "```",
        EXAMPLE.strip("\n"),
        "```",
        "",
        "One statement a line: a label with a colon, an instruction, or both. `;` and `#` start comments. Numbers are decimal",
        "or 0x hexadecimal, and may be negative for `imm`. Targets are labels or addresses. `.word N` is any 64-bit word.",
        "",
        "`.registers left=r2 ...` names registers, in place of the names before; `zero` is r0. Between `.routine NAME left step=r9`",
        "and `.end` no register is written but those declared, which go by these names: another one is an error.",
        "",
    ]
    return "\n".join(lines)


def _describe(operand: Operand) -> str:
    field = {8: "rd", 12: "rs", 16: "rt", 20: "ru"}.get(operand.low) if operand.kind == "register" else None
    if field is not None:
        return f"`{operand.name}`" if operand.name == field else f"`{operand.name}` (register {field})"
    start, stop = operand.low, operand.low + operand.width - 1
    base, name = (32, "imm") if start >= 32 else (24, "flags")
    bits = f"[{stop - base}:{start - base}]" if stop > start else f"[{start - base}]"
    if operand.width == 32:
        bits = ""
    return f"`{operand.name}`" if operand.name == name and not bits else f"`{operand.name}` ({name}{bits})"


EXAMPLE = """
next:   in      r1                  ; a token from the host
        beq     r1, r0, done
        addi    r2, r1, 1
        out     r2
        jmp     next
done:   wait    vector+writes
        halt    0
"""
