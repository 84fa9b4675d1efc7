"""The SDRAM controller against a byte array and the model of the part (sim/sdram.h), which fails at the first broken rule."""

from dataclasses import replace
from typing import Any

import pytest

import harness
from sdram_device import Timing
from tritloom.boards import sdram
from tritloom.rtl.memory.parameters import SdramParameters
from tritloom.rtl.memory.sdram import SdramController

SMALL = dict(row_bits=11, start=700)
"""So few rows that the contents can be compared, and a short wait for power."""
FORMS = {
    "w16-bl4": (sdram.AS4C16M16SA, 64e6, dict(mem_bytes=8, pad_latency=2), SMALL),
    "w32-bl2": (sdram.EM638325, 54e6, dict(mem_bytes=8, pad_latency=1), SMALL),
    "w32-bl1": (sdram.M12L64322A, 125e6, dict(mem_bytes=4, pad_latency=3), SMALL),
    "w32-bare": (sdram.M12L64322A, 50e6, dict(mem_bytes=4, pad_latency=2, masked=False), SMALL),
    "w16-bl8": (sdram.MT48LC16M16A2, 133e6, dict(mem_bytes=16, pad_latency=0), SMALL),
}


def parameters(form):
    settings: dict[str, Any]
    chip, clock_hz, settings, changes = FORMS[form]
    return replace(SdramParameters.of(chip, int(clock_hz), **settings), **changes)


def run(form, testcase, *, postponed=1, **more):
    p = parameters(form)
    task = {"timing": vars(Timing.of(p, postponed=postponed)), "delay": p.read_latency - p.cas, "mem_bytes": p.mem_bytes,
            "burst": p.burst, "start": p.start, "masked": p.masked, "stall": "none", "every": 0, "random": 0} | more  # fmt: skip
    return harness.run(harness.unit(SdramController, p), "sdram", "cocotb_sdram", parameters=task, testcase=testcase)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("stall", [pytest.param("none", marks=pytest.mark.long), "random"])
def test_bursts_and_writes_together(form, stall):
    result = run(form, "mixes", stall=stall, rounds=25)
    assert result["refreshed"] > 8


def test_a_read_sees_what_was_written():
    run("w16-bl4", "reads_what_was_answered", rounds=60)


@pytest.mark.parametrize("form", ["w16-bl4", "w32-bl1"])
def test_by_the_master_of_others(form):
    run(form, "by_others", rounds=12)


@pytest.mark.parametrize("stall", ["none", "periodic"])
def test_other_bursts_are_refused(stall):
    run("w32-bl2", "refuses", stall=stall)


def test_without_masks_beats_are_written_whole_or_not_at_all():
    run("w32-bare", "refuses_parts", stall="random")


def test_a_reset_keeps_the_contents():
    form = "w16-bl4"
    run(form, "resets", rounds=6, start=10 * parameters(form).t_refi, postponed=7)


BOUNDS = {"w16-bl4": 0.97, "w32-bl2": 0.97, "w32-bl1": 0.95, "w32-bare": 0.95, "w16-bl8": 0.97}


@pytest.mark.parametrize("form", FORMS)
def test_long_reads_take_nearly_all_of_the_bus(form):
    result = run(form, "runs", length=65536)
    assert result["words"] >= BOUNDS[form] * result["cycles"]


def test_so_they_do_with_writes_and_short_reads_between():
    form = "w16-bl4"
    result = run(form, "runs", length=65536, every=8, random=8)
    assert result["writes"] == 16 and result["words"] >= 0.9 * result["cycles"]


def test_scattered_writes():
    result = run("w16-bl4", "scattered", writes=200)
    assert result["cycles"] <= 200 * 14
