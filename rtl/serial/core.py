"""The serial unit's core: fetch, decode and execute, an accumulator with adder, shifter and multiplier, and the unit's memory."""

from __future__ import annotations

from amaranth import C, Cat, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from tritloom.rtl.arith import index_shape, sign_extend
from tritloom.rtl.serial.microcode import FIELDS, POINTERS, WORD_BITS, External, Op, Outlet, Predicate, Source
from tritloom.rtl.serial.parameters import FACTOR_BITS, MULTIPLICAND_BITS, PROGRAM_WORDS, STACK, TABLE_BITS, WIDTH, SerialParameters
from tritloom.rtl.serial.program import Microprogram
from tritloom.rtl.ufloat import bit_length

__all__ = ["INSTRUCTION", "SerialCore"]

INSTRUCTION = data.StructLayout({name: signed(bits) if name == "immediate" else bits for name, bits in FIELDS})
OPERAND_BITS = 36
"""Signed bits of an operand that is neither in memory nor a product."""
AMOUNT_BITS = 7
"""Signed bits of a shift."""
_NEED_ROOM = (Outlet.READ, Outlet.WRITE, Outlet.WRITE_REST, Outlet.TOKEN)


def _shifted(m: Module, value: Value, amount: Value) -> Value:
    """value >> amount, or << -amount: one shifter to the right, for what goes to the left in reversed order."""
    left = amount[-1]
    distance, fill = Signal(AMOUNT_BITS - 1), Signal()
    m.d.comb += [distance.eq(Mux(left, -amount, amount)), fill.eq(~left & value[-1])]
    level = Mux(left, value[::-1], value)
    for bit in reversed(range(AMOUNT_BITS - 1)):
        above = Signal(WIDTH, name=f"shifted_{bit}")
        m.d.comb += above.eq(Mux(distance[bit], Cat(level[1 << bit :], fill.replicate(1 << bit)), level))
        level = above
    return Mux(left, level[::-1], level)


def _allowed(m: Module, predicate: Value, less: Value, name: str) -> Value:
    """Whether an instruction of such a predicate takes effect."""
    allowed = Signal(name=name)
    with m.Switch(predicate):
        with m.Case(Predicate.LESS):
            m.d.comb += allowed.eq(less)
        with m.Case(Predicate.NOT_LESS):
            m.d.comb += allowed.eq(~less)
        with m.Default():
            m.d.comb += allowed.eq(1)
    return allowed


class SerialCore(wiring.Component):
    """Run the microprogram (rtl/serial/microcode.py has the instructions).

    Throughput: an instruction a cycle; a jump that is taken costs one more, and a beat of the stream one.

    Parameters
    ----------
    serial : SerialParameters
    program : Microprogram

    Members
    -------
    command : In(array of 32 bits)
        Operands of `microcode.External` from CODE on.
    waiting : In(2)
        Conditions of `microcode.Condition` that hold.
    beat_valid : In(1), beat_ready : Out(1), beat : In(8*mem_bytes)
        The selected stream; its beats are taken when bytes are needed.
    from_weights : Out(1)
        Which stream is selected.
    room : In(1)
        An outlet can take something.
    outlet : Out
        Bits of `microcode.Outlet`: those that act in this cycle, with `value`.
    value : Out(64), less : Out(1)
        The accumulator, and the flag N.
    fetch : Out(1), place : Out
        A result of the ternary matrices is read.
    code : Out(1), written : Out(1), target : Out
        A code is written, or a word of the unit's memory (for the trace); its address.
    result : In(acc_bits)
        Two cycles after `place`.
    """

    def __init__(self, serial: SerialParameters, program: Microprogram):
        self._p = p = serial
        self.program = program
        self.pointer_shape = unsigned(p.pointer_bits)
        super().__init__({
            "command": In(data.ArrayLayout(unsigned(32), len(External) - External.CODE)),
            "waiting": In(2),
            "beat_valid": In(1), "beat_ready": Out(1), "beat": In(8 * p.mem_bytes),
            "from_weights": Out(1),
            "room": In(1),
            "outlet": Out(len(Outlet)), "value": Out(signed(WIDTH)), "less": Out(1),
            "fetch": Out(1), "place": Out(self.pointer_shape),
            "code": Out(1), "written": Out(1), "target": Out(self.pointer_shape),
            "result": In(signed(p.acc_bits)),
        })

    def elaborate(self, platform):
        m = Module()
        p, words = self._p, self.program.words
        address_bits = index_shape(PROGRAM_WORDS)

        # Fetch.
        m.submodules.microprogram = rom = Memory(shape=WORD_BITS, depth=PROGRAM_WORDS, init=list(words))
        fetch = rom.read_port()
        pc, following = Signal(address_bits), Signal(address_bits)
        here = data.View(INSTRUCTION, fetch.data)
        valid, stall, jumping, target = Signal(), Signal(), Signal(), Signal(address_bits)
        m.d.comb += [fetch.addr.eq(pc), fetch.en.eq(~stall)]
        first, last, again = Signal(address_bits), Signal(address_bits), Signal(self.pointer_shape)
        turning = (pc == last) & again.any()
        m.d.comb += following.eq(Mux(jumping, target, Mux(turning, first, pc + 1)))
        with m.If(~stall):
            m.d.sync += [pc.eq(following), valid.eq(~jumping)]
            with m.If(turning & ~jumping):
                m.d.sync += again.eq(again - 1)

        # Decode: pointers, addresses, jumps, bytes.
        now = Signal(len(Op))  # one bit an operation
        m.d.comb += now.eq(Mux(valid, C(1, len(Op)) << here.op, 0))

        def is_op(*ops):
            return Cat(now[op] for op in ops).any()

        x = Signal(INSTRUCTION, name="executing")
        x_valid, flag, r = Signal(), Signal(), Signal(signed(WIDTH), name="r")
        m.submodules.pointers = pointers = Memory(shape=self.pointer_shape, depth=POINTERS, init=[])
        pointer_read, pointer_write = pointers.read_port(domain="comb"), pointers.write_port()
        pointer, moved = pointer_read.data, Signal(self.pointer_shape)
        m.d.comb += [pointer_read.addr.eq(here.pointer), moved.eq(pointer + Mux(now[Op.LOOP], -1, here.immediate))]
        steps = (here.source == Source.STEP) | (here.source == Source.PAIR)
        setting = x_valid & (x.op == Op.SETP)
        m.d.comb += [
            pointer_write.en.eq(setting | (valid & ~stall & (steps | is_op(Op.POINT, Op.LOOP)))),
            pointer_write.addr.eq(Mux(setting, x.pointer, here.pointer)),
            pointer_write.data.eq(Mux(setting, r, Mux(now[Op.POINT], here.immediate, moved))),
        ]
        address = Signal(self.pointer_shape)
        with m.Switch(here.source):
            with m.Case(Source.OFFSET):
                m.d.comb += address.eq(moved)
            with m.Case(Source.STEP, Source.PAIR):
                m.d.comb += address.eq(pointer)
            with m.Default():
                m.d.comb += address.eq(here.immediate)
        allowed = _allowed(m, here.predicate, flag, "allowed")

        m.submodules.stack = stack = Memory(shape=address_bits, depth=STACK, init=[])
        push, pop, depth = stack.write_port(), stack.read_port(domain="comb"), Signal(range(STACK))
        m.d.comb += [
            jumping.eq(allowed & (is_op(Op.JUMP, Op.CALL, Op.RETURN, Op.BRANCH) | (now[Op.LOOP] & moved.any()))),
            target.eq(Mux(now[Op.RETURN], pop.data, Mux(now[Op.BRANCH], r, here.immediate))),
            push.addr.eq(depth), push.data.eq(pc), push.en.eq(now[Op.CALL] & allowed), pop.addr.eq(depth - 1),
        ]
        with m.If(push.en):
            m.d.sync += depth.eq(depth + 1)
        with m.If(now[Op.RETURN]):
            m.d.sync += depth.eq(depth - 1)
        with m.If(now[Op.REPEAT]):
            m.d.sync += [first.eq(pc + 1), last.eq(here.immediate), again.eq(pointer - 1)]

        take, octets = self._bytes(m, here, valid, stall, is_op)
        x_needs_room = Signal()
        needs_room = now[Op.OUT] & Cat(here.immediate[:4] == outlet for outlet in _NEED_ROOM).any()
        m.d.comb += stall.eq((take & ~octets[1])
                             | (now[Op.WAIT] & ~self.waiting.bit_select(here.immediate[0], 1))
                             | (needs_room & (x_needs_room | ~self.room)))
        m.d.comb += [self.fetch.eq(now[Op.FETCH]), self.place.eq(address)]

        # Execute.
        x_operand, x_address, x_memory = Signal(signed(OPERAND_BITS)), Signal(self.pointer_shape), Signal()
        x_product = Signal()
        m.d.sync += [x_valid.eq(valid & ~stall), x.eq(here), x_address.eq(address), x_needs_room.eq(needs_room & ~stall),
                     x_memory.eq(Cat(here.source == s for s in (Source.ABSOLUTE, Source.OFFSET, Source.STEP)).any()),
                     x_product.eq(here.source == Source.PRODUCT)]
        amount = Signal(signed(AMOUNT_BITS))  # S
        m.submodules.table = table = Memory(shape=TABLE_BITS, depth=len(p.table), init=p.table)
        looked_up = table.read_port()
        externals = [looked_up.data, amount, self.result, *(self.command[i] for i in range(len(External) - External.CODE))]
        with m.Switch(here.source):
            with m.Case(Source.BYTES, Source.PAIR):
                m.d.sync += x_operand.eq(octets[0])
            with m.Case(Source.EXTERNAL):
                with m.Switch(here.immediate[:4]):
                    for index, external in enumerate(externals):
                        with m.Case(index):
                            m.d.sync += x_operand.eq(external)
            with m.Default():
                m.d.sync += x_operand.eq(here.immediate)
        self._execute(m, x, x_valid, x_operand, x_memory, x_product, x_address, address, flag, amount, r, looked_up)
        return m

    def _bytes(self, m, here, valid, stall, is_op):
        """One or two bytes of the selected stream: whether some are wanted; they, and whether they are there."""
        p = self._p
        beat, at, held = Signal(8 * p.mem_bytes), Signal(range(p.mem_bytes)), Signal()
        take = valid & ((here.source == Source.BYTES) | (here.source == Source.PAIR))
        pair = here.source == Source.PAIR
        two, sign = here.immediate[0] & ~pair, here.immediate[1] | pair
        half, octet, bytes_ = Signal(16), Signal(8), Signal(signed(17))
        m.d.comb += [
            half.eq(beat.word_select(at[1:], 16)), octet.eq(half.word_select(at[0], 8)),
            bytes_.eq(Mux(two, Cat(half, sign & half[-1]), Cat(octet, (sign & octet[-1]).replicate(9)))),
            self.beat_ready.eq(take & ~held),
        ]
        with m.If(take & held):
            m.d.sync += [at.eq(at + 1 + two), held.eq(at + two != p.mem_bytes - 1)]
        with m.If(self.beat_ready & self.beat_valid):
            m.d.sync += [beat.eq(self.beat), held.eq(1), at.eq(0)]
        with m.If(self.outlet[Outlet.DROP]):
            m.d.sync += held.eq(0)
        return take, (bytes_, held)

    def _execute(self, m, x, x_valid, x_operand, x_memory, x_product, x_address, address, flag, amount, r, looked_up):
        p = self._p
        now = Signal(len(Op), name="execute")
        m.d.comb += now.eq(Mux(x_valid, C(1, len(Op)) << x.op, 0))
        allowed = _allowed(m, x.predicate, flag, "x_allowed")

        init = [self.program.contents.get(i, 0) & (1 << WIDTH) - 1 for i in range(p.words)]
        m.submodules.data = store = Memory(shape=WIDTH, depth=p.words, init=init)
        write, read = store.write_port(), store.read_port()
        m.d.comb += [read.addr.eq(address), write.addr.eq(x_address), write.data.eq(r), write.en.eq(now[Op.ST] & allowed)]
        stored = read.data

        # Products: one register behind the multipliers, one behind the sum. They move with the instructions.
        low, high = Signal(signed(2 * FACTOR_BITS + 1)), Signal(signed(2 * FACTOR_BITS))
        product = Signal(signed(MULTIPLICAND_BITS + FACTOR_BITS))
        factor = Signal(signed(MULTIPLICAND_BITS), name="k")
        wide, narrow = Signal(signed(MULTIPLICAND_BITS)), Signal(signed(FACTOR_BITS))
        multiplies, fresh = x_valid & ((x.op == Op.MUL) | (x.op == Op.MULK) | (x.op == Op.MAC)), Signal()
        operand = Signal(signed(WIDTH))
        m.d.comb += [
            operand.eq(Mux(x_memory, stored,
                           Mux(x_product | (x.op == Op.MAC), sign_extend(product, WIDTH), sign_extend(x_operand, WIDTH)))),
            narrow.eq(Mux(x_memory, stored, x_operand)),
            wide.eq(Mux(x.op == Op.MAC, stored, Mux(x.op == Op.MULK, factor, r))),
        ]
        split = FACTOR_BITS - 1
        with m.If(x_valid):
            m.d.sync += fresh.eq(multiplies)
            with m.If(multiplies):
                m.d.sync += [low.eq(wide[:split] * narrow), high.eq(wide[split:].as_signed() * narrow)]
            with m.If(fresh):
                m.d.sync += product.eq(low + Cat(C(0, split), high).as_signed())

        # The accumulator.
        subtracts = (x.op == Op.SUB) | (x.op == Op.CMP)
        total = Signal(signed(WIDTH))
        m.d.comb += total.eq(Mux(subtracts, r - operand, r + operand))
        with m.If(now[Op.CMP]):
            m.d.sync += flag.eq(total[-1])
        by = Mux(x.op == Op.SHI, x.immediate[:AMOUNT_BITS].as_signed(), amount)
        shifted = _shifted(m, r, by)
        with m.If(x_valid & allowed):
            with m.Switch(x.op):
                with m.Case(Op.LD):
                    m.d.sync += r.eq(operand)
                with m.Case(Op.ADD, Op.SUB, Op.MAC):
                    m.d.sync += r.eq(total)
                with m.Case(Op.AND):
                    m.d.sync += r.eq(r & operand)
                with m.Case(Op.XOR):
                    m.d.sync += r.eq(r ^ operand)
                with m.Case(Op.SHI, Op.SHS):
                    m.d.sync += r.eq(shifted)
        with m.If(now[Op.SETK]):
            m.d.sync += factor.eq(r)
        magnitude = Signal(WIDTH - 1)
        m.d.comb += magnitude.eq(r[:-1] ^ r[-1].replicate(WIDTH - 1))
        with m.If(now[Op.SETS]):
            m.d.sync += amount.eq(r)
        with m.If(now[Op.LENGTH]):
            m.d.sync += amount.eq(bit_length(m, magnitude) - x.immediate[:AMOUNT_BITS])
        m.d.comb += [looked_up.addr.eq(r[: len(looked_up.addr)] + x.immediate), looked_up.en.eq(now[Op.TABLE])]

        m.d.comb += [
            self.value.eq(r), self.less.eq(flag), self.target.eq(x_address),
            self.code.eq(now[Op.CODE]), self.written.eq(write.en),
            self.outlet.eq(Mux(now[Op.OUT] & allowed, C(1, len(Outlet)) << x.immediate[:4], 0)),
        ]
        with m.If(self.outlet[Outlet.FROM_WEIGHTS] | self.outlet[Outlet.FROM_MEMORY]):
            m.d.sync += self.from_weights.eq(self.outlet[Outlet.FROM_WEIGHTS])
