"""What units publish of their memories is what elaboration instantiates."""

from collections import Counter
from dataclasses import replace

import pytest

import inventory
from tritloom.firmware.config import BuildConfig, ModelShape
from tritloom.rtl.machine import MachineParameters
from tritloom.rtl.top import Accelerator

SHAPE = ModelShape(hidden=64, ffn=96, layers=2, heads=4, kv_heads=2, head_dim=16, vocab=45, context=64, activation="relu2", sub_norms=True)
SMALL = BuildConfig(shape=SHAPE, lanes=1, tables=2, rows_per_cycle=1, vector_lanes=4, attention_macs=8, mem_bytes=8, sampler_candidates=3)
GROUPS = replace(SHAPE, ffn=128, group_size=64, head_norms=True, ternary_head=True)
MACHINES = {
    "one lane": SMALL,
    "results in two turns, of lanes that do not divide": replace(
        SMALL, lanes=7, groups=2, rows_per_cycle=2, tables=5, result_turns=2, result_parts=2, block_rows=32, vector_lanes=8,
        attention_macs=16, mem_bytes=16, mem_ports=2),
    "UltraRAM, four reads": replace(SMALL, lanes=6, rows_per_cycle=4, mem_bytes=32, ultra_ram=True, table_form="full27"),
    "a short-list": replace(SMALL, lanes=2, shortlist=8, table_form="addsub", attention_lanes=1),
    "on the chip": replace(SMALL, memory="onchip", onchip_bytes=1 << 16, shape=replace(SHAPE, activation="silu", sub_norms=False)),
    "one element at a time": replace(SMALL, vector_lanes=1),
    "one element at a time, more ids than words of memory": replace(SMALL, vector_lanes=1, shape=replace(SHAPE, vocab=5000)),
    "scales by groups": replace(SMALL, lanes=3, groups=2, rows_per_cycle=2, tables=5, block_rows=16, vector_lanes=8, mem_bytes=16,
                                group_exponents=3, shape=GROUPS),
    "scales by groups, of which a step's take two beats": replace(SMALL, rows_per_cycle=8, tables=1, mem_bytes=8, shape=replace(
        GROUPS, activation="silu", ternary_head=False)),
    "on the chip, in UltraRAM": replace(SMALL, memory="onchip", onchip_bytes=1 << 16, ultra_ram=True),
}
JOINED = {"reads", "dot_reads"}
"""Submodules of the top that are published as what joins the units."""


@pytest.mark.slow
@pytest.mark.parametrize("name", MACHINES)
def test_units_publish_the_memories_that_they_instantiate(name):
    config = MACHINES[name]
    found: dict[str, Counter] = {}
    for memory, count in inventory.instantiated(Accelerator(config)).items():
        unit, _, inner = memory.name.partition(".")
        place, path = ("routing", memory.name) if unit in JOINED else (unit, inner)
        found.setdefault(place, Counter())[replace(memory, name=path)] += count
    said = {unit: inventory.published(memories) for unit, memories in MachineParameters.of(config).memories().items() if memories}
    assert said == found
