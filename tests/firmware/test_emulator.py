"""The emulator says what a machine cannot do, instead of doing something else."""

import re

import numpy as np
import pytest

from synthetic import TINY
from tritloom.firmware.assembler import assemble
from tritloom.firmware.config import BuildConfig
from tritloom.firmware.emulator import Emulator, EmulatorError, _ten_bits
from tritloom.firmware.integer import UFloat
from tritloom.firmware.isa import Descriptor, DescriptorOp, Destination

CONFIG = BuildConfig(shape=TINY, lanes=2, attention_lanes=1, tables=3, rows_per_cycle=4, vector_lanes=4, attention_macs=8, mem_bytes=8,
                     block_rows=48)
MEMORY_BEATS = 1024
STREAM = [Descriptor(DescriptorOp.STREAM, MEMORY_BEATS, Destination.MATMUL), Descriptor(DescriptorOp.END)]


def emulated(program: str) -> Emulator:
    return Emulator(CONFIG, np.zeros(MEMORY_BEATS * CONFIG.mem_bytes, np.uint8), assemble(program, limit=CONFIG.program_words),
                    [descriptor.encode() for descriptor in STREAM])


@pytest.mark.parametrize("program, message", [
    ("li r1, 0", "program counter 1 is past the program's 1 words"),
    ("li r1, 16\nload r2, r1, 0", "scratch word 16 of 16"),
    ("matmul inputs=32 steps=4 slot=r0 count=r1", "the matmul unit waits for 16 weight beats, but no stream is running"),
    ("stream 0\nvector.param length=0 bank=0", "the vector unit takes 4 beats, but the stream holds 1024 for matmul"),
    ("stream 0\nmatmul inputs=32 steps=13 slot=r0 count=r0", "a block of 13 steps is longer than the machine's 48 rows"),
    ("stream 0\nli r2, 20\nmatmul inputs=32 steps=8 slot=r0 count=r0 at=r2", "results of steps 20 to 27, but a slot holds 96 rows"),
    ("stream 0\nli r1, 1\nmatmul inputs=32 steps=4 slot=r0 count=r1", "slot 0 has 0 codes, the matrix 32 inputs"),
    ("li r1, 1\nvector.normq slot=r0 count=r1 length=32 norm=1 bank=2", "NORMQ takes parameters from bank 2, which has none"),
    ("li r1, 10000\nvector.rope slot=r0 a=r0 b=r1", "read of 16 bytes at 0x2710 is past the memory's 8192 bytes"),
    ("li r1, 14\ndot.share position=r1 kv_base=r0", "tokens share whole chunks, not positions up to 14"),
    ("li r1, 2\ndot.attend slot=r0 count=r1 position=r0 kv_base=r0", "attention of 2 tokens at once, but the dot engine has 1 lanes"),
    ("li r1, 1\nscan slot=r0 rows=4 first=1 at=r0", "SCAN on a machine without a short-list"),
    ("token r1", "TOKEN without SAMPLE and head rows: the machine would wait for ever"),
])
def test_what_the_machine_cannot_do_is_said(program, message):
    with pytest.raises(EmulatorError, match=re.escape(message)):
        list(emulated(program).run())


def test_a_scale_beyond_ten_bits_is_refused():
    for e in (-513, 512):
        with pytest.raises(EmulatorError, match="does not fit an exponent of ten bits"):
            _ten_bits(UFloat(np.array([1 << 15]), np.array([e])))
    assert _ten_bits(UFloat(np.array([1 << 15, 0]), np.array([511, -512]))).e.tolist() == [511, -512]


def test_a_program_that_the_machine_can_do_ends():
    machine = emulated("li r1, 20\nstream 0\nli r2, 16\nmatmul inputs=32 steps=8 slot=r0 count=r0 at=r2\nout r1\nhalt 3")
    assert list(machine.run()) == [20] and machine.halt_code == 3 and machine.weight_beats == 4 * 8
