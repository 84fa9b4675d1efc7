"""The register bank over AXI4-Lite, and what is generated from its declaration."""

import json
import shutil
import subprocess
from pathlib import Path

import cocotb
import pytest
from cocotb.triggers import FallingEdge

import harness
import streams
from tritloom.firmware.config import BuildConfig, ModelShape
from tritloom.firmware.registers import FIFO_DEPTH, IDENTIFIER, MAP_VERSION, REGISTER, REGISTERS, WRITE_CYCLES
from tritloom.gen.verilog import registers as exports
from tritloom.rtl.control.parameters import RegisterParameters
from tritloom.rtl.control.registers import ControlRegisters
from tritloom.rtl.ternary.parameters import TernaryParameters
from tritloom.sim.machine import RESET_CYCLES

DOC = Path(__file__).parents[2] / "docs" / "registers.md"
DIGEST = 0x89ABCDEF
OKAY, SLVERR = 0, 2
INPUTS = ("running", "halted", "stopped", "flushing", "halt_code", "pc", "unit_busy", "weight_beat", "data_beat", "memory_error",
          "memory_busy", "saturated")


async def write(dut, address, value, strobes=15, skew=0):
    """One write; the address leads the data by `skew` cycles (or follows it, if negative). Returns the response."""
    address = address if isinstance(address, int) else REGISTER[address].address
    dut.s_axi_awaddr.value, dut.s_axi_wdata.value, dut.s_axi_wstrb.value = address, value & 0xFFFFFFFF, strobes
    dut.s_axi_awvalid.value, dut.s_axi_wvalid.value = skew >= 0, skew <= 0
    await streams.cycles(dut, abs(skew))
    dut.s_axi_awvalid.value = dut.s_axi_wvalid.value = 1
    while not dut.s_axi_awready.value:
        await FallingEdge(dut.clk)
    assert dut.s_axi_wready.value == 1
    await FallingEdge(dut.clk)
    dut.s_axi_awvalid.value = dut.s_axi_wvalid.value = 0
    dut.s_axi_awaddr.value, dut.s_axi_wdata.value, dut.s_axi_wstrb.value = 0xFFF, 0xDEADBEEF, 0
    while not dut.s_axi_bvalid.value:
        await FallingEdge(dut.clk)
    await streams.cycles(dut, abs(skew))
    assert dut.s_axi_bvalid.value == 1
    response = int(dut.s_axi_bresp.value)
    dut.s_axi_bready.value = 1
    await FallingEdge(dut.clk)
    dut.s_axi_bready.value = 0
    return response


async def look(dut, address, wait=0):
    """One read: response and data."""
    address = address if isinstance(address, int) else REGISTER[address].address
    dut.s_axi_araddr.value, dut.s_axi_arvalid.value = address, 1
    while not dut.s_axi_arready.value:
        await FallingEdge(dut.clk)
    await FallingEdge(dut.clk)
    dut.s_axi_arvalid.value, dut.s_axi_araddr.value = 0, 0xFFF
    while not dut.s_axi_rvalid.value:
        await FallingEdge(dut.clk)
    await streams.cycles(dut, wait)
    assert dut.s_axi_rvalid.value == 1
    result = int(dut.s_axi_rresp.value), int(dut.s_axi_rdata.value)
    dut.s_axi_rready.value = 1
    await FallingEdge(dut.clk)
    dut.s_axi_rready.value = 0
    return result


async def read(dut, address):
    response, value = await look(dut, address)
    assert response == OKAY, f"{address} answers {response}"
    return value


async def begin(dut):
    for name in INPUTS:
        getattr(dut, name).value = 0
    for name in ("awvalid", "wvalid", "bready", "arvalid", "rready", "awaddr", "wdata", "wstrb", "araddr"):
        getattr(dut, f"s_axi_{name}").value = 0
    return await streams.start(dut)


@cocotb.test()
async def registers(dut):
    """Resets, storage, access rights, unknown addresses, strobes."""
    ports = streams.parameters()["ports"]
    await begin(dut)
    assert [await read(dut, name) for name in ("ID", "VERSION", "DIGEST")] == [IDENTIFIER, MAP_VERSION, DIGEST]
    exists = {r.address: r for r in REGISTERS if not r.name.startswith("PORT_BASE") or int(r.name[-1]) < ports}
    stored = {}
    for address in range(0, 0x140, 4):
        register = exists.get(address)
        assert (await look(dut, address))[0] == (OKAY if register and register.access != "wo" else SLVERR), hex(address)
        if register is None or register.access == "ro":
            assert await write(dut, address, 1) == SLVERR, hex(address)
        elif register.access == "rw":
            assert await read(dut, address) == register.reset
            value = 0x9E3779B1 * (address + 1) & 0xFFFFFFFF
            assert await write(dut, address, value, skew=address % 5 - 2) == OKAY
            stored[address] = value & (1 << register.width) - (1 << register.low)
            assert await write(dut, address, ~value, strobes=7) == SLVERR
    for address, value in stored.items():
        assert await look(dut, address + 3, wait=address % 3) == (OKAY, value)
    for address in (0x800, 0xFFC, 0x410):
        assert (await look(dut, address))[0] == SLVERR and await write(dut, address, 0) == SLVERR
    assert int(dut.args.value) == sum(stored[0x40 + 4 * i] << 32 * i for i in range(8))
    assert int(dut.port_base.value) == sum((stored[0xC0 + 4 * i] | stored[0xE0 + 4 * i] << 32) << 40 * i for i in range(ports))


@cocotb.test()
async def tokens(dut):
    """The FIFOs to the brim and beyond, both ways, with cycle stamps."""
    bench = await begin(dut)
    room = REGISTER["STATUS"]["PROMPT_ROOM"]
    for turn in range(2):
        for i in range(FIFO_DEPTH):
            assert room.get(await read(dut, "STATUS")) == FIFO_DEPTH - i
            assert await write(dut, "TOKEN_IN", 0xF0000000 + i) == OKAY
        assert room.get(await read(dut, "STATUS")) == 0
        assert await write(dut, "TOKEN_IN", 99) == SLVERR
        if turn == 0:
            assert await streams.receive(dut, "prompt_o", FIFO_DEPTH, stall="random") == [0xF0000000 + i for i in range(FIFO_DEPTH)]
    del bench.monitors["prompt_o"]  # CLEAR withdraws what is offered
    await write(dut, "CONTROL", 4)
    assert room.get(await read(dut, "STATUS")) == FIFO_DEPTH
    assert await read(dut, "TOKEN_OUT") == 0 and await read(dut, "TOKEN_LEVEL") == 0
    assert dut.irq.value == 0

    dut.running.value = 1
    start = bench.cycle
    sent = streams.send(dut, "token_i", range(1000, 1000 + FIFO_DEPTH + 1), stall="random")
    while len(sent.cycles) < FIFO_DEPTH:
        await FallingEdge(dut.clk)
    await streams.cycles(dut, 20)
    assert len(sent.cycles) == FIFO_DEPTH and dut.irq.value == 1
    for i in range(FIFO_DEPTH + 1):
        assert await read(dut, "TOKEN_LEVEL") == (FIFO_DEPTH if i < 2 else FIFO_DEPTH + 1 - i)
        stamp = await read(dut, "TOKEN_CYCLE")
        assert stamp == max(sent.cycles[i] - start - 2, 0), i
        assert await read(dut, "TOKEN_OUT") == 1 << 31 | 1000 + i
    assert await read(dut, "TOKEN_OUT") == 0
    await streams.cycles(dut, 2)
    assert dut.irq.value == 0


@cocotb.test()
async def tokens_while_read(dut):
    """A token that comes in any cycle of a read that finds none is there for the next one."""
    await begin(dut)
    dut.running.value = 1

    async def comes(after, token):
        await streams.cycles(dut, after)
        await streams.send(dut, "token_i", [token])

    for after in range(12):
        cocotb.start_soon(comes(after, after))
        found = [await read(dut, "TOKEN_OUT") for _ in range(6)]
        assert [token for token in found if token] == [1 << 31 | after], after


async def watch(dut, seen):
    """Notes every pulse on the outputs towards the machine."""
    while True:
        await FallingEdge(dut.clk)
        for name in ("start", "stop"):
            if getattr(dut, name).value:
                seen.append(name)
        for name in ("program", "descriptor"):
            if getattr(dut, f"{name}__en").value:
                seen.append((name, int(getattr(dut, f"{name}__addr").value), int(getattr(dut, f"{name}__data").value)))


@cocotb.test()
async def control(dut):
    """Commands, loading, memory writes, status, counters."""
    mem_bytes = streams.parameters()["mem_bytes"]
    await begin(dut)
    seen = []
    cocotb.start_soon(watch(dut, seen))
    for value in (1, 2, 3):
        await write(dut, "CONTROL", value)
    await streams.cycles(dut, 2)
    assert seen == ["start", "stop", "start", "stop"]
    seen.clear()
    for name in ("PROGRAM", "DESCRIPTOR"):
        await write(dut, f"{name}_ADDRESS", 5)
        for i in range(3):
            await write(dut, f"{name}_LOW", 0x11111111 * i)
            assert await write(dut, f"{name}_HIGH", 0xA0000000 + i) == OKAY
        assert await read(dut, f"{name}_ADDRESS") == 8
    assert await write(dut, "PORT_BASE0", 0x7000) == OKAY
    dut.running.value = 1
    for name in ("PROGRAM_HIGH", "DESCRIPTOR_HIGH", "MEMORY_DATA", "PORT_BASE0"):
        assert await write(dut, name, 0) == SLVERR
    dut.running.value = 0
    assert await read(dut, "PORT_BASE0") == 0x7000
    await streams.cycles(dut, 2)
    assert seen == [(name, 5 + i, (0xA0000000 + i) << 32 | 0x11111111 * i) for name in ("program", "descriptor") for i in range(3)]

    await write(dut, "MEMORY_ADDRESS", 0x1000)
    got = streams.receive(dut, "memory_write", 20, stall="random")
    for i in range(20):
        assert await write(dut, "MEMORY_DATA", i * 0x01010101) == OKAY
    memory = {}
    for beat in await got:
        assert beat["addr"] % mem_bytes == 0 and bin(beat["strb"]).count("1") == 4
        for byte in range(mem_bytes):
            if beat["strb"] >> byte & 1:
                memory[beat["addr"] + byte] = beat["data"] >> 8 * byte & 255
    assert memory == {0x1000 + i: i // 4 for i in range(80)}
    assert await read(dut, "MEMORY_ADDRESS") == 0x1050

    for name, value in (("halt_code", 0x12345678), ("pc", 0x3F), ("halted", 1), ("flushing", 1), ("unit_busy", 0b10101)):
        getattr(dut, name).value = value
    status = await read(dut, "STATUS")
    assert [REGISTER["STATUS"][name].get(status) for name in ("RUNNING", "HALTED", "STOPPED", "FLUSHING", "MEMORY_ERROR", "UNIT_BUSY")] \
        == [0, 1, 0, 1, 0, 0b10101]
    assert await read(dut, "HALT_CODE") == 0x12345678 and await read(dut, "PC") == 0x3F and dut.irq.value == 1
    assert await read(dut, "BUSY_DOT") == 0, "counts only while a program runs"
    dut.memory_error.value = 1
    await FallingEdge(dut.clk)
    dut.memory_error.value = 0

    before = await read(dut, "CYCLES_LOW")
    dut.running.value, dut.saturated.value, dut.weight_beat.value = 1, 33, 1
    await streams.cycles(dut, 100)
    dut.running.value, dut.saturated.value, dut.weight_beat.value, dut.unit_busy.value = 0, 0, 0, 0
    dut.data_beat.value = 1
    await streams.cycles(dut, 7)
    dut.data_beat.value = 0
    names = ("CYCLES_LOW", "CYCLES_HIGH", "WEIGHT_BEATS_LOW", "WEIGHT_BEATS_HIGH", "DATA_BEATS", "SATURATIONS",
             "BUSY_VECTOR", "BUSY_MATMUL", "BUSY_DOT", "BUSY_SAMPLER")
    assert before > 0
    assert [await read(dut, name) for name in names] == [before + 100, 0, 100, 0, 7, 3300, 100, 0, 100, 0]
    assert REGISTER["STATUS"]["MEMORY_ERROR"].get(await read(dut, "STATUS")) == 1
    dut.running.value = 1
    await write(dut, "CONTROL", 4)
    dut.running.value = 0
    assert await read(dut, "SATURATIONS") == 3300, "CLEAR is ignored while a program runs"
    await write(dut, "CONTROL", 4)
    assert [await read(dut, name) for name in names] == [0] * len(names)
    assert REGISTER["STATUS"]["MEMORY_ERROR"].get(await read(dut, "STATUS")) == 0


def ports(word):
    return {name: REGISTER["MEMORY_PORTS"][name].get(word) for name in ("READING", "WRITING", "READ_ERROR", "WRITE_ERROR")}


@cocotb.test()
async def errors(dut):
    """An error of any port stays until CLEAR, and drops tokens from then on."""
    bench = await begin(dut)
    for bit in range(4):
        streams.send(dut, "token_i", [100])
        await streams.cycles(dut, 8)
        dut.memory_error.value = 1 << bit
        await FallingEdge(dut.clk)
        dut.memory_error.value = 0
        await streams.cycles(dut, 2)
        assert dut.fault.value == 1
        await streams.send(dut, "token_i", [101])
        assert REGISTER["STATUS"]["MEMORY_ERROR"].get(await read(dut, "STATUS")) == 1
        for _ in range(2):
            await write(dut, "CONTROL", 1)
            found = ports(await read(dut, "MEMORY_PORTS"))
            assert found == {"READING": 0, "WRITING": 0, "READ_ERROR": (1 << bit) & 3, "WRITE_ERROR": 1 << bit >> 2}
        assert await read(dut, "TOKEN_LEVEL") == 1 and await read(dut, "TOKEN_OUT") == 1 << 31 | 100
        assert await read(dut, "TOKEN_OUT") == 0
        await write(dut, "CONTROL", 4)
        assert await read(dut, "MEMORY_PORTS") == 0 and dut.fault.value == 0
    bench.moved()


@cocotb.test()
async def resets(dut):
    """A RESET waits for the memory ports; until it is done, nothing starts and nothing is written."""
    bench = await begin(dut)
    del bench.monitors["prompt_o"]  # RESET withdraws what is offered
    resetting, seen, cycles = REGISTER["STATUS"]["RESETTING"], [], streams.parameters()["reset_cycles"]
    cocotb.start_soon(watch(dut, seen))
    for busy in (0, 0b0001, 0b1000):
        assert await write(dut, "TOKEN_IN", 5) == OKAY
        await streams.send(dut, "token_i", [7])
        dut.memory_busy.value, dut.running.value = busy, 1
        await write(dut, "CONTROL", 8 | 1)
        assert dut.hold.value == 1
        for _ in range(20 if busy else 0):
            bench.moved()
            assert resetting.get(await read(dut, "STATUS")) == 1 and dut.reset.value == 0
            assert ports(await read(dut, "MEMORY_PORTS")) == {"READING": busy & 3, "WRITING": busy >> 2, "READ_ERROR": 0, "WRITE_ERROR": 0}
            for name, value in (("CONTROL", 1), ("CONTROL", 4)):
                assert await write(dut, name, value) == OKAY
            for name in ("TOKEN_IN", "MEMORY_DATA", "PROGRAM_HIGH", "PORT_BASE1"):
                assert await write(dut, name, 0) == SLVERR
        dut.memory_busy.value = 0
        while dut.reset.value == 0:
            await FallingEdge(dut.clk)
        for _ in range(cycles):
            assert dut.reset.value == 1 and dut.hold.value == 1
            await FallingEdge(dut.clk)
        dut.running.value = 0
        while dut.reset.value == 1:
            await FallingEdge(dut.clk)
        assert dut.hold.value == 0 and resetting.get(await read(dut, "STATUS")) == 0
        assert await read(dut, "TOKEN_LEVEL") == 0 and dut.prompt_o__valid.value == 0
    assert seen == []
    await write(dut, "CONTROL", 1)
    await streams.cycles(dut, 2)
    assert seen == ["start"]


@cocotb.test()
async def gives_up(dut):
    """A memory that takes no write: the write fails after a while, and is withdrawn."""
    bench = await begin(dut)
    del bench.monitors["memory_write"]
    dut.memory_write__ready.value = 0
    await write(dut, "MEMORY_ADDRESS", 0x40)
    waiting = cocotb.start_soon(write(dut, "MEMORY_DATA", 1))
    for _ in range(WRITE_CYCLES + 20):
        bench.moved()
        await FallingEdge(dut.clk)
    assert waiting.done() and waiting.result() == SLVERR and dut.memory_write__valid.value == 0
    assert await read(dut, "MEMORY_ADDRESS") == 0x40


def run(testcase, mem_bytes=32, mem_ports=2, **changes):
    p = RegisterParameters(mem_bytes=mem_bytes, mem_ports=mem_ports, program_words=64, digest=DIGEST, **changes)
    harness.run(harness.unit(ControlRegisters, p), "csr", __name__, testcase=testcase,
                parameters={"ports": mem_ports, "mem_bytes": mem_bytes, "reset_cycles": p.reset_cycles})


@pytest.mark.parametrize("testcase", ["registers", "tokens", "tokens_while_read", "control", "errors", "resets", "gives_up"])
def test_bank(testcase):
    run(testcase)


@pytest.mark.parametrize("testcase", ["tokens", "tokens_while_read"])
def test_a_token_is_read_once_in_a_machine_that_is_spread(testcase):
    run(testcase, spread=True)


@pytest.mark.parametrize("tables, cycles", [(43, 16), (86, 32)])
def test_a_reset_pushes_out_what_is_on_its_way_through_the_matmul(tables, cycles):
    shape = ModelShape(hidden=512, ffn=512, layers=1, heads=4, kv_heads=4, head_dim=128, vocab=512, context=64, activation="silu",
                       sub_norms=False, group_size=128)
    config = BuildConfig(shape=shape, tables=tables, rows_per_cycle=2, vector_lanes=8, attention_macs=16, mem_bytes=512, mem_ports=4,
                         table_form="addsub", group_exponents=7)
    latency = TernaryParameters.of(config).latency
    assert cycles // 2 < latency <= RegisterParameters.of(config).reset_cycles == cycles
    deepest = TernaryParameters(lanes=1, tables=1024, rows_per_cycle=3, table_form="addsub", packing="trit5", mem_bytes=1 << 13,
                                max_inputs=4096, max_rows=64, block_rows=64, acc_bits=64, vector_lanes=8, result_banks=1, group_size=4096,
                                group_exponents=7)
    assert latency <= deepest.latency <= RESET_CYCLES
    if cycles > 16:
        run("resets", reset_cycles=cycles)


def test_narrow_memory():
    run("control", mem_bytes=4, mem_ports=1)


def test_document_is_current():
    assert DOC.read_text(encoding="utf-8") == exports.to_markdown(), "run this file as a script to write docs/registers.md"


def test_json_lists_every_register():
    listed = {r["name"]: r["address"] for r in json.loads(exports.to_json())["registers"]}
    assert listed == {name: register.address for name, register in REGISTER.items()}


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_header_compiles(tmp_path):
    (tmp_path / "registers.h").write_text(exports.to_c_header())
    source = '#include "registers.h"\n_Static_assert(TRITLOOM_STATUS == 0x14 && TRITLOOM_STATUS_PROMPT_ROOM_MASK == 0xffff0000u, "map");\n'
    subprocess.run(["cc", "-std=c11", "-Wall", "-Werror", "-fsyntax-only", "-x", "c", "-I", str(tmp_path), "-"],
                   input=source, text=True, check=True)


@pytest.mark.parametrize("changes, message", [
    ({"mem_bytes": 6}, "mem_bytes must be a power of two from 4, not 6"),
    ({"mem_ports": 9}, "mem_ports must be from 1 to 8, not 9"),
    ({"program_words": 0}, "program_words must be a power of two from 2, not 0"),
    ({"digest": -1}, "digest must be a 32-bit number, not -1"),
    ({"reset_cycles": 20}, "reset_cycles must be a power of two from 2, not 20"),
])
def test_parameters_are_validated(changes, message):
    with pytest.raises(ValueError, match=message):
        RegisterParameters(**({"mem_bytes": 32, "mem_ports": 1, "program_words": 64, "digest": 0} | changes))


if __name__ == "__main__":
    DOC.write_text(exports.to_markdown(), encoding="utf-8")
