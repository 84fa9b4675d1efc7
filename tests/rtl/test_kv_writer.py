"""The writer of keys and values in Amaranth's simulator: every byte where the layout says, rows wait while memory takes none."""

import itertools
import random
from dataclasses import replace

import numpy as np
import pytest
from amaranth.sim import Simulator

from seed import seed_from_environment
from tritloom.firmware import integer
from tritloom.firmware.config import BuildConfig, ModelShape
from tritloom.firmware.layout import cache_rows
from tritloom.rtl.vector.kv_writer import KvWriter
from tritloom.rtl.vector.parameters import VectorParameters

BASE = 0x4000


def configuration(head_dim=16, **fields):
    shape = ModelShape(layers=1, vocab=45, context=64, sub_norms=True, hidden=32, ffn=32, heads=2, kv_heads=2,
                       head_dim=head_dim, activation="relu2")
    return BuildConfig(shape=shape, tables=1, rows_per_cycle=1, lanes=1, **fields)


CONFIGS = {
    "rows alone": dict(vector_lanes=4, attention_macs=8, mem_bytes=16),
    "two side by side": dict(head_dim=24, vector_lanes=4, attention_macs=16, attention_rows=2, mem_bytes=32),
    "a beat a word": dict(vector_lanes=4, attention_macs=4, mem_bytes=4, packing="index5"),
}
ROWS = 3
"""Rows that may wait."""


def writer(c):
    return KvWriter(replace(VectorParameters.of(c), kv_write_rows=ROWS, write_fifo_beats=ROWS * c.shape.head_dim // c.vector_lanes))


async def write(ctx, dut, c, place, rng, expected):
    """A token's keys and values, each row as soon as there is room for it."""
    ctx.set(dut.chunk_address, BASE)
    ctx.set(dut.row, place)
    ctx.set(dut.begin, 1)
    await ctx.tick()
    ctx.set(dut.begin, 0)
    for half in range(2):
        for head in range(c.shape.kv_heads):
            codes = rng.integers(0, 256, c.shape.head_dim)
            scale = integer.UFloat(np.array(rng.integers(1 << 15, 1 << 16)), np.array(rng.integers(-60, 60)))
            for _ in range(1000):
                if ctx.get(dut.free):
                    break
                await ctx.tick()
            assert ctx.get(dut.free), "there is never room"
            ctx.set(dut.reserve, 1)
            await ctx.tick()
            ctx.set(dut.reserve, 0)
            for start in range(0, len(codes), c.vector_lanes):
                ctx.set(dut.valid, 1)
                ctx.set(dut.last, start + c.vector_lanes == len(codes))
                ctx.set(dut.data, int.from_bytes(codes[start : start + c.vector_lanes].astype(np.uint8).tobytes(), "little"))
                ctx.set(dut.scale, {"m": int(scale.m), "e": int(scale.e)})
                await ctx.tick()
            ctx.set(dut.valid, 0)
            at = BASE + head * c.kv_head_bytes + half * c.kv_half_bytes
            word = int(integer.uf_pack(scale))
            expected.update({at + 4 * place + i: word >> 8 * i & 255 for i in range(4)})
            expected.update({int(at + c.kv_scale_block_bytes + offset): int(code)
                             for offset, code in zip(cache_rows(c)[place], codes, strict=True)})


def memory(dut, c, may, written, order):
    """Takes writes when `may(cycle)` says."""
    async def process(ctx):
        for cycle in itertools.count():
            ctx.set(dut.o.ready, may(cycle))
            if ctx.get(dut.o.valid) and ctx.get(dut.o.ready):
                assert ctx.get(dut.busy)
                address, data, strobe = (ctx.get(getattr(dut.o.payload, name)) for name in ("addr", "data", "strb"))
                assert address % c.mem_bytes == 0 and strobe
                for i in range(c.mem_bytes):
                    if strobe >> i & 1:
                        assert address + i not in written, f"byte {address + i:#x} is written twice"
                        written[address + i] = data >> 8 * i & 255
                order.append(address)
            await ctx.tick()

    return process


def simulate(dut, *processes):
    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(processes[0])
    for process in processes[1:]:
        simulator.add_testbench(process, background=True)
    simulator.run()


@pytest.mark.parametrize("name", CONFIGS)
def test_rows_and_scales_lie_where_the_layout_says(name):
    """Memory takes writes at random: rows wait for room, and a row's scale follows it at once."""
    c, choose = configuration(**CONFIGS[name]), random.Random(seed_from_environment())
    dut, expected, written, order = writer(c), {}, {}, []

    async def process(ctx):
        for place in (0, 5, 15):
            await write(ctx, dut, c, place, np.random.default_rng(place), expected)
        for _ in range(300):
            await ctx.tick()
        assert not ctx.get(dut.busy)

    simulate(dut, process, memory(dut, c, lambda _: choose.random() < 0.3, written, order))
    assert written == expected
    scales = [address for address in order if (address - BASE) % c.kv_half_bytes < c.kv_scale_block_bytes]
    of_row = len(order) // len(scales)
    assert order[of_row - 1 :: of_row] == scales


def test_rows_wait_for_room():
    """While memory takes nothing there is room for so many rows; busy until the last write is taken."""
    c, from_cycle = configuration(**CONFIGS["rows alone"]), 150
    dut, expected, written = writer(c), {}, {}

    async def rows(ctx):
        await write(ctx, dut, c, 3, np.random.default_rng(1), expected)

    async def process(ctx):
        reserved, size = 0, 2 * c.shape.kv_heads * (c.shape.head_dim + 4)
        assert not ctx.get(dut.busy)
        for cycle in range(1000):
            if cycle < from_cycle:
                reserved += ctx.get(dut.reserve)
            if len(written) == size:
                break
            assert ctx.get(dut.busy) == (reserved > 0) or cycle == 0
            await ctx.tick()
        assert reserved == ROWS and written == expected
        await ctx.tick()
        assert not ctx.get(dut.busy)

    simulate(dut, process, rows, memory(dut, c, lambda cycle: cycle >= from_cycle, written, []))
