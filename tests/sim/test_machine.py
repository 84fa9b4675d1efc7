"""The simulated machine (sim/compile.py, sim/machine.py): registers, memory, counting, protocol checks, and the streamer's rate."""

import functools
import shutil

import numpy as np
import pytest
from amaranth import Cat, Module, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from harness import BUILD
from tritloom.firmware.isa import Descriptor, DescriptorOp, Destination, TraceUnit
from tritloom.gen.verilog.emit import to_verilog
from tritloom.rtl.memory.axi import axi_members
from tritloom.rtl.memory.axi_memory import AxiMemory
from tritloom.rtl.memory.parameters import AxiParameters
from tritloom.sim.bench.timeline import counts
from tritloom.sim.compile import BuildError, compile_verilog, default_build_dir
from tritloom.sim.dram import DDR, IDEAL, KV260, MemoryTiming, TimingError, preset
from tritloom.sim.machine import BusError, SimulationError, SimulationTimeout, Verilated

DESCRIPTOR, START, EXPECT, SUM, BEATS = 0x000, 0x010, 0x014, 0x018, 0x01C
READ, WRITE, STATUS, FAULT, HANG = 0x020, 0x028, 0x030, 0x038, 0x040
PAGE, CHANGE = 1, 2


class Top(wiring.Component):
    """A memory system behind registers. It adds up the stream's 32-bit words, and raises `irq` after EXPECT beats.

    Register FAULT breaks the bus protocol: PAGE (bursts cross 4 KiB) or CHANGE (a waiting address changes).
    """

    def __init__(self, *, mem_bytes, mem_ports):
        self.mem_bytes, self.mem_ports = mem_bytes, mem_ports
        lite = {"awvalid": In(1), "awready": Out(1), "awaddr": In(12), "wvalid": In(1), "wready": Out(1), "wdata": In(32), "wstrb": In(4),
                "bvalid": Out(1), "bready": In(1), "bresp": Out(2), "arvalid": In(1), "arready": Out(1), "araddr": In(12),
                "rvalid": Out(1), "rready": In(1), "rdata": Out(32), "rresp": Out(2)}  # fmt: skip
        trace = {f"{unit}_{name}": width for unit in ("codes", "logits")
                 for name, width in (("valid", 1), ("slot", 8), ("index", 32), ("data", 8 * mem_bytes))}
        super().__init__({
            **{f"s_axi_{name}": member for name, member in lite.items()},
            **axi_members(mem_bytes=mem_bytes, mem_ports=mem_ports),
            **{f"trace_{name}": Out(width) for name, width in trace.items()},
            "irq": Out(1), "unit_busy": Out(8), "weight_beat": Out(1),
        })  # fmt: skip

    def elaborate(self, platform):
        m = Module()
        m.submodules.memory = memory = AxiMemory(AxiParameters(
            mem_bytes=self.mem_bytes, mem_ports=self.mem_ports, weight_fifo_beats=256))
        for name, member in axi_members(mem_bytes=self.mem_bytes, mem_ports=self.mem_ports).items():
            inner, outer = getattr(memory, name), getattr(self, name)
            m.d.comb += outer.eq(inner) if member.flow == Out else inner.eq(outer)
        fault, toggle = Signal(2), Signal()
        m.d.sync += toggle.eq(~toggle)
        with m.If(fault == PAGE):
            m.d.comb += self.m0_axi_araddr.eq(memory.m0_axi_araddr + 1024)
        with m.If(fault == CHANGE):
            m.d.comb += self.m0_axi_araddr.eq(memory.m0_axi_araddr ^ (toggle << 12))

        words = data.View(data.ArrayLayout(32, self.mem_bytes // 4), memory.weights_o.payload.data)
        beats, expect, total = Signal(32), Signal(32), Signal(32)
        folded = 0
        for word in words:
            folded = folded ^ word
        taken = Signal()
        m.d.comb += [
            memory.weights_o.ready.eq(1),
            taken.eq(memory.weights_o.valid),
            self.irq.eq((expect != 0) & (beats == expect)),
            self.weight_beat.eq(memory.weight_beat),
            self.unit_busy.eq(Cat(memory.active, ~memory.weights_o.valid)),
        ]
        for unit in ("codes", "logits"):
            dest = TraceUnit[unit.upper()]
            m.d.comb += [
                getattr(self, f"trace_{unit}_valid").eq(taken & (beats[:4] == 0) & (memory.weights_o.payload.dest == (int(dest) & 3))),
                getattr(self, f"trace_{unit}_slot").eq(beats[4:12]),
                getattr(self, f"trace_{unit}_index").eq(beats),
                getattr(self, f"trace_{unit}_data").eq(memory.weights_o.payload.data),
            ]
        with m.If(taken):
            m.d.sync += [beats.eq(beats + 1), total.eq(total + folded)]
        self.registers(m, memory, beats, expect, total, fault)
        return m

    def registers(self, m, memory, beats, expect, total, fault):
        write, address = Signal(), self.s_axi_awaddr
        held, last_read = Signal(32), Signal(32)
        m.d.comb += [
            write.eq(self.s_axi_awvalid & self.s_axi_wvalid & ~self.s_axi_bvalid & (address != HANG)),
            self.s_axi_awready.eq(write),
            self.s_axi_wready.eq(write),
            self.s_axi_arready.eq(self.s_axi_arvalid & ~self.s_axi_rvalid),
            memory.descriptor.addr.eq(address[3:]),
            memory.descriptor.data.eq(Cat(held, self.s_axi_wdata)),
            memory.descriptor.en.eq(write & address[11]),
            memory.start.payload.eq(self.s_axi_wdata),
            memory.start.valid.eq(write & (address == START)),
            memory.read_request.payload.addr.eq(self.s_axi_wdata),
            memory.read_request.payload.beats.eq(1),
            memory.read_request.valid.eq(write & (address == READ)),
            memory.read_data.ready.eq(1),
            memory.write.payload.addr.eq(held),
            memory.write.payload.data.eq(Cat((self.s_axi_wdata + i)[:32] for i in range(self.mem_bytes // 4))),
            memory.write.payload.strb.eq(~0),
            memory.write.valid.eq(write & (address == WRITE)),
        ]
        with m.If(memory.read_data.valid):
            m.d.sync += last_read.eq(memory.read_data.payload)
        with m.If(self.s_axi_bready):
            m.d.sync += self.s_axi_bvalid.eq(0)
        with m.If(write):
            m.d.sync += [self.s_axi_bvalid.eq(1), self.s_axi_bresp.eq(0)]
            with m.Switch(address):
                with m.Case(DESCRIPTOR):
                    m.d.sync += held.eq(self.s_axi_wdata)
                with m.Case(EXPECT):
                    m.d.sync += [expect.eq(self.s_axi_wdata), beats.eq(0), total.eq(0)]
                with m.Case(FAULT):
                    m.d.sync += fault.eq(self.s_axi_wdata)
                with m.Case(0x7FC):
                    m.d.sync += self.s_axi_bresp.eq(2)
        with m.If(self.s_axi_rready):
            m.d.sync += self.s_axi_rvalid.eq(0)
        with m.If(self.s_axi_arvalid & self.s_axi_arready):
            m.d.sync += [self.s_axi_rvalid.eq(1), self.s_axi_rresp.eq(0)]
            with m.Switch(self.s_axi_araddr):
                with m.Case(SUM):
                    m.d.sync += self.s_axi_rdata.eq(total)
                with m.Case(BEATS):
                    m.d.sync += self.s_axi_rdata.eq(beats)
                with m.Case(READ):
                    m.d.sync += self.s_axi_rdata.eq(last_read)
                with m.Case(STATUS):
                    m.d.sync += self.s_axi_rdata.eq(Cat(memory.active, memory.writes_pending))
                with m.Default():
                    m.d.sync += self.s_axi_rresp.eq(2)


@functools.cache
def built(mem_bytes, mem_ports):
    text = to_verilog(Top(mem_bytes=mem_bytes, mem_ports=mem_ports), "top")
    return compile_verilog(text, f"memory-{mem_bytes}-{mem_ports}", BUILD / "verilated")


def machine(timing=IDEAL, *, mem_bytes=32, mem_ports=1, seed=1):
    return Verilated(built(mem_bytes, mem_ports), memory_bytes=1 << 22, timing=timing, seed=seed)


def load(sim, descriptors):
    for index, descriptor in enumerate(descriptors):
        word = descriptor.encode()
        sim.csr_write(DESCRIPTOR, word & 0xFFFFFFFF)
        sim.csr_write(0x800 + 8 * index, word >> 32)


def stream(sim, beats, mem_bytes=32, max_cycles=1_000_000):
    """Stream `beats` random beats; return cycles and whether their sum was right."""
    bits = np.random.default_rng(7).integers(0, 1 << 32, beats * mem_bytes // 4, dtype=np.uint32)
    base = 96
    sim.mem_write(base * mem_bytes, bits)
    run = Descriptor(DescriptorOp.STREAM, beats, Destination(1))
    load(sim, [Descriptor(DescriptorOp.BASE, base * mem_bytes), run, Descriptor(DescriptorOp.END)])
    sim.csr_write(EXPECT, beats)
    sim.clear_statistics()
    sim.csr_write(START, 0)
    cycles = sim.wait(max_cycles)
    folded = np.bitwise_xor.reduce(bits.reshape(beats, -1), axis=1)
    assert sim.csr_read(SUM) == int(folded.sum(dtype=np.uint64)) % 2**32
    return cycles


@pytest.mark.parametrize("mem_bytes, mem_ports", [pytest.param(32, 1, marks=pytest.mark.long), (16, 4)])
def test_a_stream_is_summed_and_counted(mem_bytes, mem_ports):
    with machine(mem_bytes=mem_bytes, mem_ports=mem_ports) as sim:
        for _ in range(2):
            cycles = stream(sim, 5000, mem_bytes)
            assert 5000 <= cycles < 5050
        statistics = [sim.port_statistics(port) for port in range(mem_ports)]
        assert {s.read_beats for s in statistics} == {5000} and {s.ready_waits for s in statistics} == {0}
        busy = sim.histogram()
        assert busy[:, 1].sum() == 5000 and busy.sum() >= 5000


@pytest.mark.parametrize("bins", [4, 1 << 14])
def test_a_recording_has_every_cycle_of_the_histogram(bins):
    with machine(DDR) as sim:
        stream(sim, 5000)  # clears the statistics
        before, start = sim.histogram(), sim.cycles
        sim.record(bins=bins)
        sim.run(3000)
        sim.csr_read(BEATS)
        sim.run(10)
        line = sim.recorded()
        assert line.cycles.sum() == sim.cycles - start and len(line.cycles) <= bins
        assert (line.rows.sum(axis=1) == counts(sim.histogram() - before)[:-1]).all()
        stream(sim, 5000)  # begins anew
        assert sim.recorded().rows[0].sum() == 5000
        sim.record(False)
        with pytest.raises(SimulationError, match="call record"):
            sim.recorded()


def test_rate_with_ddr_timing():
    beats = 60_000
    with machine(DDR) as sim:
        rate = beats / stream(sim, beats)
    print(f"{rate:.4f} of {DDR.beat_rate:.4f} beats per cycle")
    assert rate > 0.99 * DDR.beat_rate


def test_rate_with_the_kv260s_memory():
    beats = 40_000
    with machine(KV260, mem_bytes=64, mem_ports=4) as sim:
        rate = beats / stream(sim, beats, 64)
        done = sim.dram_statistics()
        assert done is not None
        assert done.reads >= beats and done.refreshes == pytest.approx(sim.cycles / 1950, abs=2) and done.activates < beats / 50
        waits = [sim.port_statistics(port).refresh_waits for port in range(4)]
    print(f"{rate:.4f} beats per cycle, {waits} cycles lost to refreshes")
    assert rate > 0.98


def test_same_seed_same_cycles():
    def cycles(seed):
        with machine(MemoryTiming(latency=30, jitter=200, outstanding=2), seed=seed) as sim:
            return stream(sim, 3000)

    assert cycles(3) == cycles(3) != cycles(4)


@pytest.mark.parametrize("timing, mem_bytes, mem_ports", [(DDR, 32, 1), (DDR, 16, 4), (KV260, 16, 4), (KV260, 32, 1)])
def test_reads_and_writes_of_the_machine(timing, mem_bytes, mem_ports):
    with machine(timing, mem_bytes=mem_bytes, mem_ports=mem_ports) as sim:
        sim.mem_write(3, bytes(range(200)))
        assert sim.mem_read(3, 200) == bytes(range(200))
        sim.csr_write(READ, 2 * mem_bytes)
        sim.run(200)
        assert sim.csr_read(READ) == int.from_bytes(sim.mem_read(2 * mem_bytes, 4), "little")
        sim.csr_write(DESCRIPTOR, 5 * mem_bytes)
        sim.csr_write(WRITE, 1000)
        assert sim.csr_read(STATUS) == 2
        sim.run(200)
        assert sim.csr_read(STATUS) == 0
        assert sim.mem_read(5 * mem_bytes, mem_bytes) == np.arange(1000, 1000 + mem_bytes // 4, dtype="<u4").tobytes()
        assert sim.mem_read(6 * mem_bytes, 3) == bytes(range(6 * mem_bytes - 3, 6 * mem_bytes))


@pytest.mark.parametrize("timing", [DDR, KV260])
def test_trace(timing):
    with machine(timing) as sim:
        sim.trace_enable()
        stream(sim, 100)
        events = sim.trace(clear=True)
        assert events["index"].tolist() == list(range(0, 100, 16)) and set(events["unit"]) == {1}
        assert events["slot"].tolist() == [i // 16 for i in range(0, 100, 16)]
        assert events["data"].astype("<i4").tobytes() == b"".join(sim.mem_read((96 + i) * 32, 32) for i in range(0, 100, 16))
        assert (np.diff(events["cycle"].astype(np.int64)) >= 16).all() and len(sim.trace()) == 0
        sim.trace_enable(max_bytes=100)
        stream(sim, 100)
        with pytest.raises(SimulationError, match="did not fit"):
            sim.trace()


def test_waits_are_bounded():
    with machine() as sim:
        with pytest.raises(SimulationTimeout, match="no interrupt within 5000 cycles: cycle"):
            sim.wait(5000)
        with pytest.raises(SimulationTimeout, match="not answered within 100 cycles"):
            sim.csr_write(HANG, 1, max_cycles=100)
        with pytest.raises(BusError, match="read of register 0x7fc"):
            sim.csr_read(0x7FC)
        with pytest.raises(BusError, match="write of 0x00000007 to register 0x7fc"):
            sim.csr_write(0x7FC, 7)
        with pytest.raises(IndexError, match="beyond"):
            sim.mem_write((1 << 22) - 1, b"ab")
        with pytest.raises(IndexError, match="1 memory port"):
            sim.port_statistics(1)
    with pytest.raises(SimulationError, match="closed"):
        sim.run(1)


@pytest.mark.parametrize("fault, message", [(PAGE, "burst crosses 4 KiB"), (CHANGE, "request changed while it waited")])
def test_protocol_violations_are_seen(fault, message):
    with machine(MemoryTiming(latency=4, outstanding=1)) as sim:
        sim.csr_write(FAULT, fault)
        with pytest.raises(SimulationError, match=message):
            stream(sim, 500)


def test_access_beyond_memory_is_an_error():
    with machine() as sim:
        sim.csr_write(READ, 1 << 22)
        with pytest.raises(SimulationError, match="beyond the memory"):
            sim.run(100)


SMALL = "module top(input clk, input rst, output reg irq); always @(posedge clk) irq <= !rst; endmodule\n"


def test_ports_may_be_absent(tmp_path):
    for runtime in (BUILD / "verilated").glob("runtime-*"):
        shutil.copytree(runtime, tmp_path / runtime.name)
    told = []
    library = compile_verilog(SMALL, "small", tmp_path, progress=lambda fraction, text: told.append((fraction, text)))
    assert told[0] == (0.0, "Verilator") and told[-1] == (1.0, "built") and told == sorted(told, key=lambda entry: entry[0])
    assert compile_verilog(SMALL, "small", tmp_path, progress=lambda fraction, text: pytest.fail("built again")) == library
    assert {path.name.split("-")[0] for path in tmp_path.iterdir()} == {"runtime", "small"}
    with Verilated(library) as sim:
        assert sim.wait(10) == 1
        for action in (lambda: sim.csr_read(0), lambda: sim.mem_read(0, 1), sim.trace_enable):
            with pytest.raises(SimulationError, match="no register port|no memory ports|without trace"):
                action()


def test_bad_builds_say_why(tmp_path, monkeypatch):
    with pytest.raises(BuildError, match="Verilator rejected the Verilog.*in .*bad-.*log"):
        compile_verilog("module top(input clk; endmodule", "bad", tmp_path)
    with pytest.raises(BuildError, match="no port rst"):
        compile_verilog("module top(input clk, output o); assign o = clk; endmodule", "bad", tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".log"}
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(BuildError, match="apt install g"):
        compile_verilog(SMALL, "small", tmp_path)


def test_timing_presets():
    assert preset("ddr") is DDR and round(DDR.beat_rate, 3) == 0.955
    with pytest.raises(TimingError, match="choose ideal, ddr"):
        preset("fast")
    with pytest.raises(ValueError, match="latency must be"):
        MemoryTiming(latency=0)
    assert default_build_dir().name == "verilated"
