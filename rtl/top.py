"""The whole accelerator: units, memory system, sequencer and host port, joined as docs/architecture.md draws them."""

from __future__ import annotations

from amaranth import Cat, ClockDomain, DomainRenamer, Module, Mux, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from tritloom.firmware.config import BuildConfig
from tritloom.firmware.isa import Destination, TraceUnit
from tritloom.rtl.attention.parameters import AttentionParameters
from tritloom.rtl.attention.unit import DotEngine
from tritloom.rtl.control.parameters import RegisterParameters, SequencerParameters
from tritloom.rtl.control.registers import ControlRegisters, axi_lite_members
from tritloom.rtl.control.sequencer import Sequencer
from tritloom.rtl.head.parameters import HeadReaderParameters, SamplerParameters, ShortListParameters
from tritloom.rtl.head.reader import HeadReader
from tritloom.rtl.head.sampler import Sampler
from tritloom.rtl.head.shortlist import ShortList
from tritloom.rtl.memory.axi import axi_members
from tritloom.rtl.memory.axi_memory import AxiMemory
from tritloom.rtl.memory.interface import read_request_layout
from tritloom.rtl.memory.onchip import OnChipMemory
from tritloom.rtl.memory.parameters import READ_QUEUE, AxiParameters, memory_parameters
from tritloom.rtl.memory.router import ReadArbiter, WeightRouter, WriteArbiter
from tritloom.rtl.once import once
from tritloom.rtl.serial.parameters import SerialParameters
from tritloom.rtl.serial.unit import SerialUnit
from tritloom.rtl.stream import Fifo, LightSlice, Slice
from tritloom.rtl.ternary.parameters import TernaryParameters
from tritloom.rtl.ternary.tlmm import TernaryMatmul
from tritloom.rtl.vector.parameters import VectorParameters
from tritloom.rtl.vector.unit import VectorUnit

__all__ = ["Accelerator"]


@once
class Accelerator(wiring.Component):
    """One machine, as `config` describes it.

    The host reaches it over AXI4-Lite (`firmware.registers`), the machine reaches its memory over AXI4
    (or keeps it on chip).

    The registers stand in the clock domain `host`, which `rst` resets, and everything else in `sync`, which the registers reset (and
    so `rst`, for a cycle longer). Both are the machine's own: inside another design it is a module with the pins `clk` and `rst`, which
    its parent drives.

    Parameters
    ----------
    config : BuildConfig
    observed : bool
        Whether there are the ports that only a simulation reads: `unit_busy`, `weight_beat` and `trace_...`. If not, there are
        `running` and `failed`, and the memory ports' bases have all bits of an address, not 32 (version 4 of the register map, not 3).
    reset_outside : bool
        Whether the units' reset passes the parent.

    Members
    -------
    clk, rst : In(1)
        Reset is synchronous.
    s_axi_... : AXI4-Lite slave
    m<i>_axi_... : AXI4 masters, with memory "axi"
    irq : Out(1)
        A token waits, or the machine has halted.
    unit_busy : Out(8)
        Bits of `firmware.isa.Unit`.
    weight_beat : Out(1)
        A beat entered the weight FIFO.
    reset_o : Out(1), reset_i : In(1)
        With `reset_outside`: the reset of all but the registers, and what resets them: it comes back from a buffer of the device.
    running, failed : Out(1)
        A program runs; the memory has answered with an error since the last CLEAR.
    trace_<unit>_valid, ..._slot, ..._index, ..._data : Out
        A V-word a cycle of what the units produce, for each of `firmware.isa.TraceUnit`. Codes for both engines are shown once.
    """

    def __init__(self, config: BuildConfig, *, observed: bool = True, reset_outside: bool = False):
        self.config, self._observed, self._reset_outside = config, observed, reset_outside
        members = {"clk": In(1), "rst": In(1)} | axi_lite_members() | {"irq": Out(1)}
        if observed:
            members |= {
                "unit_busy": Out(8),
                "weight_beat": Out(1),
                **{f"trace_{unit.name.lower()}_{name}": Out(width) for unit in TraceUnit for name, width in (
                    ("valid", 1), ("slot", 8), ("index", 32), ("data", 32 * max(2, config.vector_lanes)))},
            }
        else:
            members |= {"running": Out(1), "failed": Out(1)}
        if reset_outside:
            members |= {"reset_o": Out(1), "reset_i": In(1)}
        if config.memory == "axi":
            members |= axi_members(mem_bytes=config.mem_bytes, mem_ports=config.mem_ports)
        super().__init__(members)

    def elaborate(self, platform):
        m = Module()
        c = self.config
        m.domains.host = host = ClockDomain()
        m.domains.sync = sync = ClockDomain()
        host.clk, host.rst, sync.clk, sync.rst = self.clk, self.rst, self.clk, Signal(init=1, name="reset")
        reset = sync.rst
        if self._reset_outside:
            sync.rst = self.reset_i
            m.d.comb += self.reset_o.eq(reset)

        memory = self._memory()
        m.submodules.memory = memory
        ternary = TernaryParameters.of(c)
        m.submodules.matmul = matmul = TernaryMatmul(ternary)
        if not c.serial:
            m.submodules.vector = vector = VectorUnit(VectorParameters.of(c))
            m.submodules.dot = dot = DotEngine(AttentionParameters.of(c))
            m.submodules.sampler = sampler = Sampler(SamplerParameters.of(c))
        m.submodules.sequencer = sequencer = Sequencer(SequencerParameters.of(c))
        registers = ControlRegisters(RegisterParameters.of(c))
        m.submodules.registers = DomainRenamer("host")(registers)
        m.d.host += reset.eq(registers.reset)

        if c.serial:
            self._join_serial(m, memory, matmul, sequencer, registers)
        else:
            scanning, logits_o = 0, dot.logits_o
            if c.shortlist:
                scanning = self._short_list(m, matmul, vector, dot, sequencer)
            elif c.shape.ternary_head:
                m.submodules.reader = reader = HeadReader(HeadReaderParameters.of(c))
                wiring.connect(m, sequencer.scan, reader.cmd)
                self._join_scan(m, reader, matmul, vector)
                m.d.comb += dot.logits_o.ready.eq(1)
                scanning, logits_o = reader.busy, reader.logits_o
            self._join_memory(m, memory, matmul, vector, dot, registers)
            self._join_units(m, matmul, vector, dot, sampler, logits_o)
            commands = {"vector": vector.cmd, "matmul": matmul.cmd, "dot": dot.cmd, "sampler": sampler.cmd}
            self._join_control(m, memory, sequencer, registers, commands, token=sampler.token_o, abandon=(sampler.abandon, dot.abandon),
                               busy=(vector.busy, matmul.busy | scanning, dot.busy, sampler.busy), writing=vector.writing,
                               saturated=vector.saturated + dot.saturated)
            if self._observed:
                self._trace(m, vector, dot, logits_o)
        if not self._observed:
            m.d.comb += [self.running.eq(sequencer.running), self.failed.eq(registers.fault)]
        return m

    def _join_serial(self, m, memory, matmul, sequencer, registers):
        """The arithmetic unit that is shared in time, in place of all but the ternary matrices."""
        c = self.config
        m.submodules.serial = serial = SerialUnit(SerialParameters.of(c))
        m.submodules.weights = weights = WeightRouter(mem_bytes=c.mem_bytes, consumers=len(Destination))
        wiring.connect(m, memory.weights_o, weights.i)
        m.d.comb += weights.clear.eq(memory.flush | memory.flushing)
        wiring.connect(m, weights.o1, matmul.weights_i)
        # Parameters and rows of the head are all the unit's.
        m.d.comb += [
            serial.weights_i.payload.eq(weights.o0.payload), serial.weights_i.valid.eq(weights.o0.valid | weights.o2.valid),
            weights.o0.ready.eq(serial.weights_i.ready), weights.o2.ready.eq(serial.weights_i.ready),
        ]
        wiring.connect(m, serial.read_request, memory.read_request)
        wiring.connect(m, memory.read_data, serial.read_data)
        self._join_writes(m, memory, serial.write, registers)
        _drive(m, serial.code_write, matmul.code_write)
        _drive(m, matmul.progress, serial.matrices)
        m.d.comb += serial.acc_read.data.eq(matmul.acc_read.data)
        m.d.comb += [getattr(matmul.acc_read, name).eq(getattr(serial.acc_read, name)) for name in ("en", "slot", "addr", "part")]
        commands = {"vector": serial.vector, "matmul": matmul.cmd, "dot": serial.dot, "sampler": serial.sampler}
        self._join_control(m, memory, sequencer, registers, commands, token=serial.token_o, abandon=(serial.abandon,),
                           busy=(serial.busy[0], matmul.busy, serial.busy[1], serial.busy[2]), writing=serial.writing,
                           saturated=serial.saturated)
        if self._observed:
            self._trace_serial(m, serial)

    def _short_list(self, m, matmul, vector, dot, sequencer):
        """The unit between the matrix engine's accumulators and the rows that the dot engine reads; returns whether it scans."""
        m.submodules.shortlist = unit = ShortList(ShortListParameters.of(self.config))
        wiring.connect(m, sequencer.scan, unit.cmd)
        wiring.connect(m, unit.ids_o, dot.candidates_i)
        self._join_scan(m, unit, matmul, vector)
        return unit.busy

    def _join_scan(self, m, unit, matmul, vector):
        """A unit that scans results of the matrices, which then the vector unit does not read."""
        m.d.comb += unit.acc_read.data.eq(matmul.acc_read.data)
        for name in ("en", "slot", "addr", "part"):
            m.d.comb += getattr(matmul.acc_read, name).eq(Mux(unit.busy, getattr(unit.acc_read, name), getattr(vector.acc_read, name)))

    def _memory(self):
        parameters = memory_parameters(self.config)
        if isinstance(parameters, AxiParameters):
            return AxiMemory(parameters)
        return OnChipMemory(parameters)

    def _join_memory(self, m, memory, matmul, vector, dot, registers):
        """Weights to their consumers, data reads and writes to theirs, AXI ports to the outside."""
        c = self.config
        m.submodules.weights = weights = WeightRouter(mem_bytes=c.mem_bytes, consumers=len(Destination))
        wiring.connect(m, memory.weights_o, weights.i)
        m.d.comb += weights.clear.eq(memory.flush | memory.flushing)
        wiring.connect(m, weights.o0, vector.weights_i)
        wiring.connect(m, weights.o1, matmul.weights_i)
        wiring.connect(m, weights.o2, dot.weights_i)

        m.submodules.reads = reads = ReadArbiter(mem_bytes=c.mem_bytes, clients=2)
        # What the units are ready for depends on much: the dot engine's beats pass a queue in LUT RAM, the vector unit's few a register.
        m.submodules.dot_reads = dot_reads = Fifo(8 * c.mem_bytes, READ_QUEUE)
        m.submodules.vector_reads = vector_reads = LightSlice(8 * c.mem_bytes)
        wiring.connect(m, dot_reads.o, dot.read_data)
        wiring.connect(m, vector_reads.o, vector.read_data)
        m.submodules.vector_requests = vector_requests = LightSlice(read_request_layout())
        wiring.connect(m, vector.read_request, vector_requests.i)
        for n, (request, data) in enumerate(((dot.read_request, dot_reads.i), (vector_requests.o, vector_reads.i))):
            wiring.connect(m, request, getattr(reads, f"request{n}"))
            wiring.connect(m, getattr(reads, f"data{n}"), data)
        wiring.connect(m, reads.memory_request, memory.read_request)
        wiring.connect(m, memory.read_data, reads.memory_data)

        self._join_writes(m, memory, vector.kv_write, registers)

    def _join_writes(self, m, memory, kv_write, registers):
        """Keys and values, and what the host writes; and the ports of the memory system."""
        c = self.config
        m.submodules.writes = writes = WriteArbiter(mem_bytes=c.mem_bytes, clients=2)
        wiring.connect(m, kv_write, writes.i0)
        wiring.connect(m, registers.memory_write, writes.i1)
        wiring.connect(m, writes.o, memory.write)
        if self._observed:
            m.d.comb += self.weight_beat.eq(memory.weight_beat)

        if c.memory == "axi":
            self._export(m, memory, axi_members(mem_bytes=c.mem_bytes, mem_ports=c.mem_ports))
            for port in range(c.mem_ports):
                m.d.comb += getattr(memory, f"port_base{port}").eq(registers.port_base[port])

    def _export(self, m, inside, members):
        """Join ports of a submodule to the ports of the same names."""
        for name, member in members.items():
            source, sink = (inside, self) if member.flow == Out else (self, inside)
            m.d.comb += getattr(sink, name).eq(getattr(source, name))

    def _join_units(self, m, matmul, vector, dot, sampler, logits_o):
        """Codes, accumulators, attention outputs and logits between the units."""
        for source, sink in ((vector.code_write, matmul.code_write), (vector.activation_write, dot.activation_write),
                             (vector.q_scale_write, dot.q_scale_write), (dot.work_write, vector.work_write),
                             (vector.logit_scale_write, sampler.logit_scale_write)):
            _drive(m, source, sink)
        m.d.comb += vector.acc_read.data.eq(matmul.acc_read.data)
        _drive(m, matmul.progress, vector.matrices)
        m.d.sync += vector.work_clear.eq(dot.work_clear)  # long before the outputs
        if not self.config.shortlist and not self.config.shape.ternary_head:
            m.d.comb += [getattr(matmul.acc_read, name).eq(getattr(vector.acc_read, name)) for name in ("en", "slot", "addr", "part")]
        # What the sampler is ready for depends on the logit's slot.
        m.submodules.logits = logits = Slice(logits_o.payload.shape())
        wiring.connect(m, logits_o, logits.i)
        wiring.connect(m, logits.o, sampler.logits_i)

    def _join_control(self, m, memory, sequencer, registers, commands, *, token, abandon, busy, writing, saturated):
        """The sequencer commands the units, the registers command the sequencer.

        `commands`: the units' ports by those of the sequencer; `busy`: of the vector unit, the matrices, the dot engine, the sampler.
        """
        self._export(m, registers, axi_lite_members() | {"irq": Out(1)})
        for name, command in commands.items():
            source = getattr(sequencer, name)
            m.d.comb += [command.valid.eq(source.valid), source.ready.eq(command.ready)]
            m.d.comb += [command.payload[field].eq(source.payload[field]) for field, _ in command.payload.shape()]
        wiring.connect(m, token, sequencer.token_i)
        wiring.connect(m, sequencer.stream_start, memory.start)
        wiring.connect(m, registers.prompt_o, sequencer.prompt_i)
        wiring.connect(m, sequencer.token_o, registers.token_i)
        _drive(m, registers.program, sequencer.program)
        _drive(m, registers.descriptor, memory.descriptor)
        busy = Cat(*busy, writing | memory.writes_pending | memory.write.valid)
        m.d.comb += [
            memory.flush.eq(sequencer.flush),
            sequencer.flushing.eq(memory.flushing),
            sequencer.start.eq(registers.start),
            sequencer.stop.eq(registers.stop),
            sequencer.fault.eq(registers.fault),
            memory.hold.eq(registers.hold),
            registers.memory_busy.eq(memory.busy),
            sequencer.entry.eq(registers.entry),
            sequencer.unit_busy.eq(busy),
            *(port.eq(sequencer.draining) for port in abandon),
            *([self.unit_busy.eq(busy)] if self._observed else []),
            registers.running.eq(sequencer.running),
            registers.halted.eq(sequencer.halted),
            registers.stopped.eq(sequencer.stopped),
            registers.flushing.eq(memory.flushing),
            registers.halt_code.eq(sequencer.halt_code),
            registers.pc.eq(sequencer.pc),
            registers.unit_busy.eq(busy),
            registers.weight_beat.eq(memory.weight_beat),
            registers.data_beat.eq(memory.data_beat),
            registers.memory_error.eq(memory.error),
            registers.saturated.eq(saturated),
        ]
        m.d.comb += [sequencer.args[i].eq(registers.args[i]) for i in range(len(registers.args))]

    def _trace(self, m, vector, dot, logit):
        v = self.config.vector_lanes

        def words(value, width):
            return Cat(*(_extend(value.word_select(i, width)) for i in range(v)))

        codes, activations = vector.code_write, vector.activation_write
        for unit, valid, slot, index, data in (
            (TraceUnit.RESIDUAL, vector.x_trace.valid, vector.x_trace.slot, vector.x_trace.addr, vector.x_trace.data),
            (TraceUnit.CODES, codes.valid, codes.slot, codes.addr, words(codes.data, 8)),
            (TraceUnit.ACTIVATIONS, activations.valid & ~codes.valid, activations.slot, activations.addr, words(activations.data, 8)),
            (TraceUnit.ATTENTION, dot.work_write.valid, dot.work_write.slot, dot.work_write.addr, self._work_words(dot.work_write.data)),
            (TraceUnit.LOGITS, logit.valid & logit.ready, logit.payload.slot, logit.payload.id,
             _extend(Value.cast(logit.payload.logit), 64)),
        ):
            for name, value in (("valid", valid), ("slot", slot), ("index", index), ("data", data)):
                m.d.comb += getattr(self, f"trace_{unit.name.lower()}_{name}").eq(value)

    def _trace_serial(self, m, serial):
        """What is written to a vector of the unit's memory, while a command makes it."""
        p, stored = serial.serial, serial.stored
        places, dotting = p.vectors, serial.busy[1]
        logits = Signal(range(p.vocab + 1))
        with m.If(~dotting):
            m.d.sync += logits.eq(0)
        with m.Elif(self.trace_logits_valid):
            m.d.sync += logits.eq(logits + 1)

        def within(name):
            first, length = places[name]
            return stored.valid & (stored.addr >= first) & (stored.addr < first + length)

        codes = serial.code_write
        for unit, valid, index, data in (
            (TraceUnit.RESIDUAL, within("x"), stored.addr - places["x"][0], stored.data),
            (TraceUnit.CODES, codes.valid, codes.addr, _extend(codes.data)),
            (TraceUnit.ACTIVATIONS, within("activations"), stored.addr - places["activations"][0], stored.data),
            (TraceUnit.ATTENTION, within("work") & dotting, stored.addr - places["work"][0], stored.data),
            (TraceUnit.LOGITS, stored.valid & (stored.addr == serial.core.program.logit), logits, stored.data),
        ):
            for name, value in (("valid", valid), ("slot", 0), ("index", index), ("data", data)):
                m.d.comb += getattr(self, f"trace_{unit.name.lower()}_{name}").eq(value)

    def _work_words(self, data):
        """Mantissa in bits 31:8, exponent in 7:0 of each word."""
        words = []
        for i in range(self.config.vector_lanes):
            words += [Value.cast(data[i].e)[:8], Value.cast(data[i].m)[:24]]
        return Cat(*words)


def _drive(m, source, sink):
    """Drive every member of `sink` by the one of `source` that has its name; all of them go one way."""
    m.d.comb += [Value.cast(getattr(sink, name)).eq(Value.cast(getattr(source, name))) for name in source.signature.members]


def _extend(value: Value, width: int = 32) -> Value:
    """Sign-extend to `width` bits."""
    return Cat(value, value[-1].replicate(width - len(value)))
