"""The sequencer: runs programs of firmware/isa.py and hands commands to the units."""

from __future__ import annotations

from amaranth import Cat, Module, Mux, Signal
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out

from tritloom.firmware.assembler import ARGUMENTS, REGISTERS
from tritloom.firmware.commands import DOT, MATMUL, MATMUL_PADDED, SAMPLE, SCAN, VECTOR
from tritloom.firmware.isa import Op, Unit
from tritloom.firmware.registers import MEMORY_FAILED, UNKNOWN_INSTRUCTION
from tritloom.rtl.commands import command_layout
from tritloom.rtl.control.parameters import SequencerParameters

__all__ = ["Sequencer", "UNITS", "loader_signature"]

COMMANDS = {"vector": VECTOR, "matmul": MATMUL, "dot": DOT, "sampler": SAMPLE, "scan": SCAN}
"""The command of each port to a unit."""

UNITS = len(Unit)
"""Bits of `unit_busy`, in the order of firmware.isa.Unit."""

INSTRUCTION = data.StructLayout({"op": 8, "rd": 4, "rs": 4, "rt": 4, "ru": 4, "flags": 8, "imm": 32})


def loader_signature(addr_bits: int) -> wiring.Signature:
    """Write port of a memory of 64-bit words, always accepting."""
    return wiring.Signature({"addr": Out(addr_bits), "data": Out(64), "en": Out(1)})


class Sequencer(wiring.Component):
    """Run a program: arithmetic, branches, tokens from and to the host, commands to the units.

    A command is offered once its unit is ready, so that STOP can abandon any instruction without breaking a
    stream. What offers it, and what takes a token, is a register: no path leads through here from one unit to
    another. WAIT and the end of a stop look at `unit_busy` over three cycles: a unit may
    hand its work to the write port with a gap of two cycles between its `busy` and `writes_pending`.

    Latency: 4 cycles from `start` to the first instruction's command (`SequencerParameters.latency`).

    With `spread`, an instruction sees that a unit is ready a cycle later, and goes on in the cycle after the one in which its command is
    taken: no path leads from a unit's `ready` to the state either. A unit falls back to not being ready long before the next look at it.

    Throughput: one instruction every 4 cycles (LOAD 5, what is handed out `command_cycles`), plus what it waits for.

    Parameters
    ----------
    parameters : SequencerParameters

    Members
    -------
    program : In
        Write port of the program memory. Not to be used while `running`.
    start : In(1), entry : In
        Pulse: run from `entry`. Ignored while `running`.
    stop : In(1)
        Pulse: end the program before its next instruction, wait until all units are idle, flush the weight streamer.
    fault : In(1)
        The memory has answered with an error: ends a program as `stop` does, but it counts as halted with the code MEMORY_FAILED.
    running, halted, stopped : Out(1)
        A program runs or is being stopped; how the last one ended.
    draining : Out(1)
        The program is being stopped: the sampler gives up, its tokens are dropped.
    halt_code : Out(32), pc : Out
    args : In(array of 32)
    prompt_i : In(stream(32)), token_o : Out(stream(32))
        IN and OUT.
    vector, matmul, dot, sampler, scan : Out(stream)
        Commands.
    token_i : In(stream(32))
        TOKEN: from the sampler.
    stream_start : Out(stream(8)), flush : Out(1), flushing : In(1)
        STREAM and FLUSH.
    unit_busy : In(5)
        In the order of firmware.isa.Unit.
    """

    def __init__(self, parameters: SequencerParameters):
        self.parameters, bits = parameters, parameters.address_bits
        self._commands = COMMANDS | ({"matmul": MATMUL_PADDED} if parameters.padded else {})
        super().__init__({
            "program": In(loader_signature(bits)),
            "start": In(1), "entry": In(bits), "stop": In(1), "fault": In(1),
            "running": Out(1), "halted": Out(1), "stopped": Out(1), "draining": Out(1),
            "halt_code": Out(32), "pc": Out(bits),
            "args": In(data.ArrayLayout(32, ARGUMENTS)),
            "prompt_i": In(stream.Signature(32)),
            "token_o": Out(stream.Signature(32)),
            **{unit: Out(stream.Signature(command_layout(command))) for unit, command in self._commands.items()},
            "token_i": In(stream.Signature(32)),
            "stream_start": Out(stream.Signature(8)),
            "flush": Out(1), "flushing": In(1),
            "unit_busy": In(UNITS),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.program = program = memory.Memory(shape=64, depth=self.parameters.program_words, init=[])
        load, fetch = program.write_port(), program.read_port()
        m.submodules.registers = registers = memory.Memory(shape=32, depth=REGISTERS, init=[])
        write_back = registers.write_port()
        fetched = data.View(INSTRUCTION, fetch.data)
        operand = {}
        for name in ("rd", "rs", "rt", "ru"):
            port = registers.read_port()
            m.d.comb += port.addr.eq(fetched[name])
            operand[name] = port.data
        m.d.comb += [
            load.addr.eq(self.program.addr), load.data.eq(self.program.data), load.en.eq(self.program.en),
            fetch.addr.eq(self.pc),
        ]

        instruction = Signal(INSTRUCTION)
        result, writes, taken = Signal(32), Signal(), Signal()
        m.submodules.scratch = scratch = memory.Memory(shape=32, depth=self.parameters.scratch_words, init=[])
        store, loaded = scratch.write_port(), scratch.read_port()
        place = (operand["rs"] + instruction.imm)[:len(store.addr)]
        m.d.comb += [store.addr.eq(place), store.data.eq(operand["rt"]), loaded.addr.eq(place)]
        m.d.comb += [write_back.addr.eq(instruction.rd), write_back.data.eq(result)]
        self._payloads(m, instruction, operand)

        stopping, failed = Signal(), Signal()
        m.d.sync += [stopping.eq((stopping | self.stop | self.fault) & self.running), failed.eq((failed | self.fault) & self.running)]
        busy, busy_before, busy_recently = Signal(UNITS), Signal(UNITS), Signal(UNITS)
        m.d.sync += [busy.eq(self.unit_busy), busy_before.eq(busy), busy_recently.eq(self.unit_busy | busy | busy_before)]

        # High in RETIRE alone, until the command is taken; a token stands until then.
        outlets = {Op.OUT: self.token_o, Op.STREAM: self.stream_start, Op.VECTOR: self.vector, Op.MATMUL: self.matmul, Op.DOT: self.dot,
                   Op.SAMPLE: self.sampler} | ({Op.SCAN: self.scan} if self.parameters.short_list else {})
        offers, takes = Signal(len(outlets)), Signal(2)
        if self.parameters.spread:
            accepts = Signal(len(outlets))
            m.d.comb += accepts.eq(Cat(port.ready for port in outlets.values()))
            ready, waiting = Signal.like(accepts), offers.any()
            m.d.sync += [ready.eq(accepts), offers.eq(offers & ~accepts), takes.eq(0)]
        else:
            ready = [port.ready for port in outlets.values()]
            waiting = Cat(offer & ~port.ready for port, offer in zip(outlets.values(), offers, strict=True)).any()
            m.d.sync += [offers.eq(0), takes.eq(0)]
        m.d.comb += [port.valid.eq(offer) for port, offer in zip(outlets.values(), offers, strict=True)]
        m.d.comb += [self.running.eq(1), self.prompt_i.ready.eq(takes[0]), self.token_i.ready.eq(takes[1] | self.draining)]
        ending, flushed = Signal(), Signal()
        m.d.comb += self.draining.eq(ending)
        with m.FSM():
            with m.State("IDLE"):
                m.d.comb += self.running.eq(0)
                with m.If(self.start):
                    m.d.sync += [self.pc.eq(self.entry), self.halted.eq(0), self.stopped.eq(0)]
                    m.next = "FETCH"
            with m.State("FETCH"):
                m.next = "DECODE"
                with m.If(stopping):
                    m.next = "DRAIN"
            with m.State("DECODE"):  # the registers are read
                m.d.sync += [instruction.eq(fetched), writes.eq(0), taken.eq(0)]
                m.next = "EXECUTE"
            with m.State("EXECUTE"):
                with m.If(stopping):
                    m.next = "DRAIN"
                with m.Else():
                    handed_out = list(zip(outlets, ready, offers, strict=True))
                    self._execute(m, instruction, operand, result, writes, taken, busy_recently, store, handed_out, takes)
            with m.State("LOADED"):
                m.d.sync += [result.eq(loaded.data), writes.eq(1)]
                m.next = "RETIRE"
            with m.State("RETIRE"):
                m.d.comb += write_back.en.eq(writes & (instruction.rd != 0))
                with m.If(~waiting):
                    m.d.sync += self.pc.eq(Mux(taken, instruction.imm, self.pc + 1))
                    m.next = "FETCH"
                if not self.parameters.spread:
                    with m.Else():
                        m.d.sync += offers.eq(offers)
            with m.State("FLUSH"):
                m.d.comb += self.flush.eq(1)
                m.d.sync += flushed.eq(0)
                m.next = "FLUSHING"
            with m.State("FLUSHING"):  # `flushing` rises a cycle after `flush`
                m.d.sync += flushed.eq(1)
                with m.If(flushed & ~self.flushing):
                    m.next = "RETIRE"
                    with m.If(ending):
                        m.d.sync += [self.stopped.eq(~failed), self.halted.eq(failed), ending.eq(0)]
                        with m.If(failed):
                            m.d.sync += self.halt_code.eq(MEMORY_FAILED)
                        m.next = "IDLE"
            with m.State("DRAIN"):
                m.d.sync += ending.eq(1)
                with m.If(busy_recently == 0):
                    m.next = "FLUSH"
        return m

    def _payloads(self, m: Module, instruction, operand) -> None:
        """Commands made of the instruction and its registers."""
        for unit, command in self._commands.items():
            payload = getattr(self, unit).payload
            # The vector unit's registers come last: only the order of the emitted assignments depends on it.
            fields = sorted(command.fields, key=lambda field: field.in_register) if command is VECTOR else command.fields
            for field in fields:
                given = operand[field.source] if field.in_register else instruction[field.source][field.low:]
                m.d.comb += payload[field.name].eq(given)
        m.d.comb += [self.stream_start.payload.eq(instruction.imm), self.token_o.payload.eq(operand["rs"])]

    def _execute(self, m: Module, instruction, operand, result, writes, taken, busy, store, handed_out, takes) -> None:
        def put(value):
            m.d.sync += [result.eq(value), writes.eq(1)]
            m.next = "RETIRE"

        def branch(condition):
            m.d.sync += taken.eq(condition)
            m.next = "RETIRE"

        def take(port, mark):
            with m.If(port.valid):
                m.d.sync += mark.eq(1)
                put(port.payload)

        def halt(code):
            m.d.sync += [self.halt_code.eq(code), self.halted.eq(1)]
            m.next = "IDLE"

        rs, rt, imm = operand["rs"], operand["rt"], instruction.imm
        with m.Switch(instruction.op):
            with m.Case(Op.HALT):
                halt(imm)
            with m.Case(Op.LI):
                put(imm)
            with m.Case(Op.ADD):
                put(rs + rt)
            with m.Case(Op.ADDI):
                put(rs + imm)
            with m.Case(Op.SUB):
                put(rs - rt)
            with m.Case(Op.JMP):
                branch(1)
            with m.Case(Op.BEQ):
                branch(rs == rt)
            with m.Case(Op.BNE):
                branch(rs != rt)
            with m.Case(Op.BLT):
                branch(rs < rt)
            with m.Case(Op.BGE):
                branch(rs >= rt)
            with m.Case(Op.ARG):
                put(self.args[imm[:3]])
            with m.Case(Op.IN):
                take(self.prompt_i, takes[0])
            with m.Case(Op.WAIT):
                with m.If((busy & imm) == 0):
                    m.next = "RETIRE"
            with m.Case(Op.FLUSH):
                m.next = "FLUSH"
            with m.Case(Op.TOKEN):
                take(self.token_i, takes[1])
            with m.Case(Op.LOAD):
                m.next = "LOADED"
            with m.Case(Op.STORE):
                m.d.comb += store.en.eq(1)
                m.next = "RETIRE"
            for op, ready, mark in handed_out:
                with m.Case(op):
                    with m.If(ready):
                        m.d.sync += mark.eq(1)
                        m.next = "RETIRE"
            with m.Default():
                halt(UNKNOWN_INSTRUCTION)
