"""What the programs' order must hold whatever is how quick: the emulator, which does one thing after the other, cannot see it."""

import dataclasses
import re

import pytest

from synthetic import LLAMA
from tritloom.firmware.config import BuildConfig
from tritloom.firmware.layout import memory_map
from tritloom.firmware.programs import machine_program, program_length
from tritloom.firmware.programs.layer import Layer, layer_assembly, two_groups_assembly

CONFIG = BuildConfig(shape=LLAMA, lanes=2, groups=2, tables=3, rows_per_cycle=2, vector_lanes=4, attention_macs=8, mem_bytes=16)


def activations(config, text):
    """Of each GLU what it reads that is not surely there: (slot, rows) of matrices that may be under way and that it does not follow."""
    under_way, step, word, early, count = [], 0, 0, [], 0
    for line in text.splitlines():
        line = line.partition(";")[0].strip()
        if m := re.fullmatch(r"li\s+(step|row), (\d+)", line):
            step, word = (int(m[2]), word) if m[1] == "step" else (step, int(m[2]))
        elif m := re.fullmatch(r"matmul inputs=\d+ steps=(\d+) slot=(\w+) count=\w+( at=step)?", line):
            first = step * config.rows_per_cycle if m[3] else 0
            under_way.append((m[2], range(first, first + int(m[1]) * config.rows_per_cycle)))
        elif line.startswith("wait") and "matmul" in line:
            under_way = []
        elif m := re.fullmatch(r"vector\.glu\s+slot=(\w+) count=\w+ length=(\d+) a=word b=row bank=2 follow=(\d)", line):
            first, follow, count = word * config.vector_lanes, int(m[3]), count + 1
            done = len(under_way) - (follow - 1) if follow else 0
            rows = range(first, first + 2 * int(m[2]))
            early += [(slot, part) for slot, part in under_way[max(0, done) :] if slot == m[1] and set(part) & set(rows)]
    assert count
    return early


@pytest.mark.parametrize("turns", [1, 2])
@pytest.mark.parametrize("rows", [0, 8, 16, 64, 128, 136, 144, 200, 256, 512, 1024])
def test_activations_are_of_complete_matrices(rows, turns):
    """From one piece of gate and up to 128 of them."""
    config = dataclasses.replace(CONFIG, block_rows=rows, result_turns=turns)
    assert not activations(config, two_groups_assembly(config))
    assert not activations(config, layer_assembly(config, "", ""))


def test_what_is_early_is_seen(monkeypatch):
    glu = Layer.glu
    monkeypatch.setattr(Layer, "glu", lambda self, slot, count, pieces, *_: glu(self, slot, count, pieces))
    config = dataclasses.replace(CONFIG, block_rows=64)
    assert activations(config, two_groups_assembly(config)) and activations(config, layer_assembly(config, "", ""))


@pytest.mark.parametrize("changes", [{}, {"block_rows": 64}, {"groups": 1, "lanes": 1}, {"shortlist": 4}])
def test_length_is_that_of_the_program(changes):
    config = dataclasses.replace(CONFIG, program_words=4096, **changes)
    layout = memory_map(config, tied=True)
    assert program_length(config, layout) == len(machine_program(config, layout)) > 100
