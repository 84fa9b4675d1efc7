"""The memory system behind AXI4 ports."""

from __future__ import annotations

from amaranth import Cat, Module, Mux
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from tritloom.firmware.registers import PORT_ADDRESS_BITS
from tritloom.rtl.memory.axi import AxiReader, AxiWriter, axi_members, axi_prefix
from tritloom.rtl.memory.parameters import AxiParameters
from tritloom.rtl.memory.system import MemorySystem
from tritloom.rtl.memory.weight_stream import Requester

__all__ = ["AxiMemory"]


class AxiMemory(MemorySystem):
    """Serve weights, data reads and writes from memory behind AXI4 ports, as `MemorySystem` says.

    Logical beat b lies on every port i, at `port_base`_i + b*(mem_bytes/mem_ports), and holds bytes
    i*(mem_bytes/mem_ports) and up of the beat. Bursts are INCR, at most `burst_beats` long, and never
    cross 4 KiB. Ports run apart by what the FIFOs hold, so their stalls overlap.

    Latency: 8 cycles from `read_request` to `arvalid`, 2 from a beat to `read_data`.

    Throughput: one beat per cycle; a write every two cycles.

    Parameters
    ----------
    parameters : AxiParameters

    Members
    -------
    ... : MemorySystem
    port_base<i> : In(PORT_ADDRESS_BITS)
        Byte address of port i's stripe, a multiple of 4 KiB.
    m<i>_axi_... : AXI4 (`axi_members`)
    """

    def __init__(self, parameters: AxiParameters):
        self._p = parameters
        super().__init__(parameters, {
            **{f"port_base{port}": In(PORT_ADDRESS_BITS) for port in range(parameters.mem_ports)},
            **axi_members(mem_bytes=parameters.mem_bytes, mem_ports=parameters.mem_ports)})

    def elaborate(self, platform):
        m = Module()
        requester = self._requester(m)
        readers = self._readers(m)
        writers = self._writers(m)
        self._issue(m, requester, readers)

        # Beats: taken from all ports at once.
        width = 8 * self._p.port_bytes
        for o, parts in ((self.weights_o, [reader.weights for reader in readers]), (self.read_data, [reader.data for reader in readers])):
            m.d.comb += o.valid.eq(Cat(part.valid for part in parts).all())
            m.d.comb += [part.ready.eq(o.valid & o.ready) for part in parts]
        with m.If(self.flushing):
            m.d.comb += self.weights_o.valid.eq(0)
        m.d.comb += [
            self.weights_o.payload.data.eq(Cat(reader.weights.payload.data for reader in readers)),
            self.weights_o.payload.dest.eq(readers[0].weights.payload.dest),
            self.read_data.payload.eq(Cat(reader.data.payload for reader in readers)),
        ]

        # Writes: given to all ports at once that have bytes of it.
        ready = Cat(writer.i.ready for writer in writers).all()
        m.d.comb += [self.write.ready.eq(ready), self.writes_pending.eq(Cat(writer.pending for writer in writers).any())]
        for port, writer in enumerate(writers):
            m.d.comb += [
                writer.i.valid.eq(self.write.valid & ready & writer.i.payload.strb.any()),
                writer.i.payload.beat.eq(self.write.payload.addr >> exact_log2(self._p.mem_bytes)),
                writer.i.payload.data.eq(self.write.payload.data.word_select(port, width)),
                writer.i.payload.strb.eq(self.write.payload.strb.word_select(port, width // 8)),
            ]

        # Flush: until no weight burst is outstanding.
        with m.If(self.flush):
            m.d.sync += self.flushing.eq(1)
        with m.Elif(~Cat(reader.weights_outstanding for reader in readers).any()):
            m.d.sync += self.flushing.eq(0)
        m.d.comb += [
            self.weight_beat.eq(readers[0].weight_beat),
            self.data_beat.eq(readers[0].data_beat),
            self.busy.eq(Cat(unit.busy for unit in readers + writers)),
            self.error.eq(Cat(unit.error for unit in readers + writers)),
            *(writer.hold.eq(self.hold) for writer in writers),
        ]
        return m

    def _readers(self, m: Module) -> list[AxiReader]:
        readers = []
        for port in range(self._p.mem_ports):
            reader = AxiReader(
                data_bytes=self._p.port_bytes, beat_bits=self._p.beat_bits,
                beats_bits=max(self._p.weight_burst, self._p.read_burst).bit_length(), weight_depth=self._p.weight_fifo_beats,
                data_depth=self._p.read_fifo_beats, outstanding=self._p.outstanding)
            m.submodules[f"reader{port}"] = reader
            m.d.comb += reader.clear.eq(self.flushing)
            self._attach(m, reader, port, ("ar", "r"))
            readers.append(reader)
        return readers

    def _writers(self, m: Module) -> list[AxiWriter]:
        writers = []
        for port in range(self._p.mem_ports):
            writer = AxiWriter(data_bytes=self._p.port_bytes, beat_bits=self._p.beat_bits)
            m.submodules[f"writer{port}"] = writer
            self._attach(m, writer, port, ("aw", "w", "b"))
            writers.append(writer)
        return writers

    def _attach(self, m: Module, unit, port: int, channels: tuple[str, ...]) -> None:
        """Wire a unit's AXI signals to those of the port, and give it its base address."""
        m.d.comb += unit.base.eq(getattr(self, f"port_base{port}"))
        for name, member in self.signature.members.items():
            signal = name.removeprefix(axi_prefix(port))
            if name == signal or signal not in unit.signature.members or not signal.startswith(channels):
                continue
            outer, inner = getattr(self, name), getattr(unit, signal)
            m.d.comb += outer.eq(inner) if member.flow == Out else inner.eq(outer)

    def _issue(self, m: Module, requester: Requester, readers: list[AxiReader]) -> None:
        """Give one burst to all ports when all can take it, data before weights."""
        ready = Cat(reader.request.ready for reader in readers).all()
        weight, read = requester.weight_burst, requester.read_burst
        m.d.comb += [read.ready.eq(ready), weight.ready.eq(ready & ~read.valid & ~self.flushing)]
        for reader in readers:
            m.d.comb += reader.request.valid.eq(ready & (read.valid | (weight.valid & ~self.flushing)))
            for field in ("beat", "beats", "dest", "weight"):
                m.d.comb += getattr(reader.request.payload, field).eq(
                    Mux(read.valid, getattr(read.payload, field), getattr(weight.payload, field)))
