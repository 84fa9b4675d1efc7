"""The host's port: control and status registers behind AXI4-Lite, the token FIFOs and the counters."""

from __future__ import annotations

from amaranth import Cat, Const, Module, Mux, ResetInserter, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from tritloom.firmware.assembler import ARGUMENTS
from tritloom.firmware.isa import Unit
from tritloom.firmware.registers import (
    ADDRESS_BITS,
    FIFO_DEPTH,
    IDENTIFIER,
    MAP_VERSION,
    PORT_ADDRESS_BITS,
    PORTS,
    REGISTER,
    REGISTERS,
    WRITE_CYCLES,
)
from tritloom.rtl.control.parameters import RegisterParameters
from tritloom.rtl.control.sequencer import UNITS, loader_signature
from tritloom.rtl.memory.interface import write_layout
from tritloom.rtl.stream import Fifo

__all__ = ["ControlRegisters", "axi_lite_members"]

_OKAY, _SLVERR = 0, 2

_COUNTED = ("VECTOR", "MATMUL", "DOT", "SAMPLER")
"""Units with a counter of busy cycles."""


def axi_lite_members() -> dict:
    """Signature members of the AXI4-Lite slave."""
    return {
        "s_axi_awaddr": In(ADDRESS_BITS), "s_axi_awvalid": In(1), "s_axi_awready": Out(1),
        "s_axi_wdata": In(32), "s_axi_wstrb": In(4), "s_axi_wvalid": In(1), "s_axi_wready": Out(1),
        "s_axi_bresp": Out(2), "s_axi_bvalid": Out(1), "s_axi_bready": In(1),
        "s_axi_araddr": In(ADDRESS_BITS), "s_axi_arvalid": In(1), "s_axi_arready": Out(1),
        "s_axi_rdata": Out(32), "s_axi_rresp": Out(2), "s_axi_rvalid": Out(1), "s_axi_rready": In(1),
    }


class ControlRegisters(wiring.Component):
    """Serve the registers of firmware/registers.py over AXI4-Lite.

    Whatever fails is answered with SLVERR and has no effect; docs/registers.md tells what does.

    A RESET raises `hold`, waits until no memory port is busy, and raises `reset` for some cycles before both fall.

    Latency: 3 cycles from a request to its response (`RegisterParameters.latency`); MEMORY_DATA waits for the memory besides,
    WRITE_CYCLES at most.

    Throughput: one write and one read every 4 cycles.

    Parameters
    ----------
    parameters : RegisterParameters

    Members
    -------
    s_axi_... : AXI4-Lite slave
    irq : Out(1)
        A token waits, or a program has ended.
    start, stop : Out(1), entry, args : Out; running, halted, stopped, flushing : In(1), halt_code, pc : In
        The sequencer's.
    prompt_o : Out(stream(32)), token_i : In(stream(32))
        Tokens to and from the program.
    program, descriptor : Out
        Write ports of the program memory and the weight streamer's.
    memory_write : Out(stream of write_layout)
        Writes of 32 bits each.
    port_base : Out(array of PORT_ADDRESS_BITS)
    memory_busy, memory_error : In(2 * mem_ports)
        Reads of each port, then writes: under way, answered with an error.
    fault : Out(1)
        There was an error since the last CLEAR; tokens are dropped.
    hold, reset : Out(1)
        Memory ports begin no transfer; all units are reset.
    unit_busy : In(5), weight_beat, data_beat : In(1), saturated : In(8)
        What is counted; `saturated`: how many elements in this cycle.
    """

    def __init__(self, parameters: RegisterParameters):
        self.parameters = parameters
        mem_bytes, mem_ports, bits = parameters.mem_bytes, parameters.mem_ports, exact_log2(parameters.program_words)
        missing = {f"PORT_BASE{part}{i}" for part in ("", "_HIGH") for i in range(mem_ports, PORTS)}
        self._registers = [register for register in REGISTERS if register.name not in missing]
        super().__init__(axi_lite_members() | {
            "irq": Out(1),
            "start": Out(1), "stop": Out(1), "entry": Out(bits), "args": Out(data.ArrayLayout(32, ARGUMENTS)),
            "running": In(1), "halted": In(1), "stopped": In(1), "flushing": In(1), "halt_code": In(32), "pc": In(bits),
            "prompt_o": Out(stream.Signature(32)),
            "token_i": In(stream.Signature(32)),
            "program": Out(loader_signature(bits)),
            "descriptor": Out(loader_signature(8)),
            "memory_write": Out(stream.Signature(write_layout(mem_bytes))),
            "port_base": Out(data.ArrayLayout(PORT_ADDRESS_BITS, mem_ports)),
            "memory_busy": In(2 * mem_ports), "memory_error": In(2 * mem_ports), "fault": Out(1),
            "hold": Out(1), "reset": Out(1),
            "unit_busy": In(UNITS),
            "weight_beat": In(1), "data_beat": In(1), "saturated": In(8),
        })

    def elaborate(self, platform):
        m = Module()
        changed = {r.name: Signal(r.width - r.low, init=r.reset >> r.low, name=r.name.lower()) for r in self._registers if r.access == "rw"}
        stored = {r.name: Cat(Const(0, r.low), changed[r.name]) for r in self._registers if r.access == "rw"}
        read = {"ID": IDENTIFIER, "VERSION": MAP_VERSION, "DIGEST": self.parameters.digest, "HALT_CODE": self.halt_code, "PC": self.pc}
        read |= stored
        locked = self.running | self.hold
        written, word, room, memory_done = self._write_port(m, locked)
        for name, register in changed.items():
            with m.If(written[name]):
                m.d.sync += register.eq(word >> REGISTER[name].low)

        clear = Signal()
        m.d.sync += [
            self.start.eq(written["CONTROL"] & word[0] & ~word[3] & ~self.hold),
            self.stop.eq(written["CONTROL"] & word[1]),
            clear.eq(written["CONTROL"] & word[2] & ~locked),
        ]
        self._reset(m, written["CONTROL"] & word[3])
        self._settings(m, stored)
        self._loaders(m, stored, changed, written, word, memory_done)
        cycles = self._counters(m, read, clear)
        pop = self._tokens(m, read, written, word, room, cycles, clear)

        errors = Signal(2 * self.parameters.mem_ports)
        m.d.sync += [errors.eq(Mux(clear, 0, errors | self.memory_error)), self.fault.eq(errors.any())]
        read["STATUS"] = Cat(self.running, self.halted, self.stopped, self.flushing, self.fault, self.hold, self.unit_busy_field(), room)
        read["MEMORY_PORTS"] = Cat(_field(part, PORTS) for signal in (self.memory_busy, errors)
                                   for part in (signal[:self.parameters.mem_ports], signal[self.parameters.mem_ports:]))
        m.d.sync += self.irq.eq(read["TOKEN_LEVEL"].any() | self.halted | self.stopped)

        taken = self._read_port(m, read)
        if self.parameters.spread:
            # The FIFO does not wait for the decoded address; a token that comes in the meantime was not read.
            m.d.sync += pop.eq(taken["TOKEN_OUT"] & read["TOKEN_OUT"][31])
        else:
            m.d.comb += pop.eq(taken["TOKEN_OUT"])
        for name in ("CYCLES", "WEIGHT_BEATS"):
            with m.If(taken[f"{name}_LOW"]):
                m.d.sync += read[f"{name}_HIGH"].eq(read[f"{name}_NOW"][32:])
        return m

    def unit_busy_field(self):
        """The busy bits, at bit 8 of STATUS and eight wide."""
        return Cat(Const(0, 2), _field(self.unit_busy, 8))

    def _reset(self, m: Module, asked) -> None:
        """Drain the memory ports, then reset."""
        cycles = self.parameters.reset_cycles
        left = Signal(range(cycles))
        m.d.sync += left.eq(left - 1)
        with m.FSM(name="resetting"):
            with m.State("IDLE"):
                with m.If(asked):
                    m.d.sync += [self.hold.eq(1), left.eq(cycles - 1)]
                    m.next = "DRAIN"
            with m.State("DRAIN"):
                with m.If(left == 0):
                    m.d.sync += left.eq(0)
                    with m.If(~self.memory_busy.any()):
                        m.d.sync += [self.reset.eq(1), left.eq(cycles - 1)]
                        m.next = "RESET"
            with m.State("RESET"):
                with m.If(left == 0):
                    m.d.sync += [self.reset.eq(0), self.hold.eq(0)]
                    m.next = "IDLE"

    def _write_port(self, m: Module, locked):
        """AXI writes. Returns a pulse per writable register, the word, and two signals to drive: room for a prompt token, memory done.

        The pulses are registers, so that nothing far away waits for the decoded address. That of MEMORY_DATA lasts until memory is done.
        """
        address, word, strobes = Signal(ADDRESS_BITS - 2), Signal(32), Signal(4)
        room, memory_done = Signal(16), Signal()
        written = {r.name: Signal(name=f"write_{r.name.lower()}") for r in self._registers if r.access != "ro"}
        allowed, known, waited, late = Signal(), Signal(), Signal(range(WRITE_CYCLES)), Signal()
        to_memory = written["MEMORY_DATA"]
        m.d.sync += [pulse.eq(0) for pulse in written.values()]
        with m.FSM(name="write"):
            with m.State("REQUEST"):
                m.d.sync += [address.eq(self.s_axi_awaddr[2:]), word.eq(self.s_axi_wdata), strobes.eq(self.s_axi_wstrb)]
                with m.If(self.s_axi_awvalid & self.s_axi_wvalid):
                    m.next = "ACCEPT"
            with m.State("ACCEPT"):  # the address is looked up
                m.d.comb += [self.s_axi_awready.eq(1), self.s_axi_wready.eq(1)]
                with m.Switch(address):
                    for register in self._registers:
                        if register.access != "ro":
                            with m.Case(register.address >> 2):
                                m.d.comb += allowed.eq(room.any() & ~self.hold if register.name == "TOKEN_IN"
                                                       else ~locked if register.halted else 1)
                                m.d.sync += written[register.name].eq(allowed & strobes.all())
                m.d.sync += [known.eq(allowed & strobes.all()), waited.eq(0), late.eq(0)]
                m.next = "ACT"
            with m.State("ACT"):
                m.d.sync += [self.s_axi_bresp.eq(Mux(known & (~to_memory | memory_done), _OKAY, _SLVERR)),
                             waited.eq(waited + 1), late.eq(waited == WRITE_CYCLES - 2)]
                with m.If(~to_memory | memory_done | late):
                    m.d.sync += self.s_axi_bvalid.eq(1)
                    m.next = "RESPOND"
                with m.Else():
                    m.d.sync += to_memory.eq(1)
            with m.State("RESPOND"):
                with m.If(self.s_axi_bready):
                    m.d.sync += self.s_axi_bvalid.eq(0)
                    m.next = "REQUEST"
        return written, word, room, memory_done

    def _read_port(self, m: Module, read) -> dict:
        """AXI reads of `read`, by register name. Returns a pulse per register as its value is taken."""
        address, looks = Signal(ADDRESS_BITS - 2), Signal()
        taken = {}
        with m.If(looks):
            m.d.sync += [self.s_axi_rdata.eq(0), self.s_axi_rresp.eq(_SLVERR)]
        with m.Switch(address):
            for register in self._registers:
                if register.access != "wo":
                    taken[register.name] = Signal(name=f"read_{register.name.lower()}")
                    with m.Case(register.address >> 2):
                        with m.If(looks):
                            m.d.sync += [self.s_axi_rdata.eq(read[register.name]), self.s_axi_rresp.eq(_OKAY)]
                        m.d.comb += taken[register.name].eq(looks)
        with m.FSM(name="read"):
            with m.State("REQUEST"):
                m.d.sync += address.eq(self.s_axi_araddr[2:])
                with m.If(self.s_axi_arvalid):
                    m.next = "ACCEPT"
            with m.State("ACCEPT"):
                m.d.comb += self.s_axi_arready.eq(1)
                m.next = "LOOK"
            with m.State("LOOK"):
                m.d.comb += looks.eq(1)
                m.d.sync += self.s_axi_rvalid.eq(1)
                m.next = "RESPOND"
            with m.State("RESPOND"):
                with m.If(self.s_axi_rready):
                    m.d.sync += self.s_axi_rvalid.eq(0)
                    m.next = "REQUEST"
        return taken

    def _settings(self, m: Module, stored) -> None:
        m.d.comb += [
            self.entry.eq(stored["ENTRY"]),
            *(self.args[i].eq(stored[f"ARG{i}"]) for i in range(ARGUMENTS)),
            *(self.port_base[i].eq(_joined(stored[f"PORT_BASE{part}{i}"] for part in ("", "_HIGH") if f"PORT_BASE{part}{i}" in stored))
              for i in range(self.parameters.mem_ports)),
        ]

    def _loaders(self, m: Module, stored, changed, written, word, memory_done) -> None:
        """Writes into the program memory, the streamer's and the accelerator's."""
        for name, port in (("PROGRAM", self.program), ("DESCRIPTOR", self.descriptor)):
            address = stored[f"{name}_ADDRESS"]
            m.d.sync += [port.addr.eq(address), port.data.eq(Cat(stored[f"{name}_LOW"], word)), port.en.eq(written[f"{name}_HIGH"])]
            with m.If(written[f"{name}_HIGH"]):
                m.d.sync += changed[f"{name}_ADDRESS"].eq(address + 1)
        address, beat, lane = stored["MEMORY_ADDRESS"], self.memory_write.payload, exact_log2(self.parameters.mem_bytes)
        m.d.comb += [
            beat.addr.eq(address & ~(self.parameters.mem_bytes - 1)), beat.data.eq(word.replicate(self.parameters.mem_bytes // 4)),
            beat.strb.eq(0b1111 << Cat(0, 0, address[2:lane])) if lane > 2 else beat.strb.eq(0b1111),
            self.memory_write.valid.eq(written["MEMORY_DATA"]),
            memory_done.eq(self.memory_write.ready),
        ]
        with m.If(self.memory_write.valid & self.memory_write.ready):
            m.d.sync += changed["MEMORY_ADDRESS"].eq(address + 4)

    def _counters(self, m: Module, read, clear):
        """Counters, cleared together. Adds them to `read` and returns that of cycles."""
        def count(name, width, amount):
            counter = Signal(width, name=f"count_{name.lower()}")
            m.d.sync += counter.eq(Mux(clear, 0, counter + amount))
            return counter

        # Inputs are registered, so that far units add no path.
        beats, data_beats, saturated, running, busy = Signal(), Signal(), Signal(8), Signal(), Signal(UNITS)
        m.d.sync += [beats.eq(self.weight_beat), data_beats.eq(self.data_beat), saturated.eq(self.saturated), running.eq(self.running),
                     busy.eq(self.unit_busy)]
        for name, amount in (("CYCLES", running), ("WEIGHT_BEATS", beats)):
            counter = read[f"{name}_NOW"] = count(name, 64, amount)
            read[f"{name}_LOW"] = counter[:32]
            read[f"{name}_HIGH"] = Signal(32, name=f"{name.lower()}_high")
        read["DATA_BEATS"] = count("DATA_BEATS", 32, data_beats)
        read["SATURATIONS"] = count("SATURATIONS", 32, saturated)
        for name in _COUNTED:
            read[f"BUSY_{name}"] = count(f"BUSY_{name}", 32, running & busy[exact_log2(Unit[name])])
        return read["CYCLES_NOW"]

    def _tokens(self, m: Module, read, written, word, room, cycles, clear):
        """The token FIFOs. Returns a signal to drive: pop a token."""
        stamped = data.StructLayout({"token": 32, "cycle": 32})
        m.submodules.prompt = prompt = ResetInserter(clear | self.hold)(Fifo(32, FIFO_DEPTH - 1))
        m.submodules.tokens = tokens = ResetInserter(clear | self.hold)(Fifo(stamped, FIFO_DEPTH - 1))
        pop = Signal()
        m.d.comb += [
            prompt.i.payload.eq(word), prompt.i.valid.eq(written["TOKEN_IN"]), room.eq(FIFO_DEPTH - prompt.level),
            self.prompt_o.payload.eq(prompt.o.payload), self.prompt_o.valid.eq(prompt.o.valid), prompt.o.ready.eq(self.prompt_o.ready),
            tokens.i.payload.token.eq(self.token_i.payload), tokens.i.payload.cycle.eq(cycles),
            tokens.i.valid.eq(self.token_i.valid & ~self.fault), self.token_i.ready.eq(tokens.i.ready), tokens.o.ready.eq(pop),
        ]
        read["TOKEN_LEVEL"] = tokens.level
        read["TOKEN_CYCLE"] = tokens.o.payload.cycle
        read["TOKEN_OUT"] = Mux(tokens.o.valid, Cat(tokens.o.payload.token[:31], 1), 0)
        return pop


def _joined(parts):
    """Words one above the other; one alone as it is."""
    parts = list(parts)
    return Cat(*parts) if len(parts) > 1 else parts[0]


def _field(value, width: int):
    """`value`, zero-extended."""
    return Cat(value, Const(0, width - len(value)))
