"""The model of the KV260's memory (sim/dram.h): rates on known patterns, refresh, order, determinism."""

import dataclasses
from typing import Any

import pytest

from harness import BUILD
from tritloom.sim.dram import DDR, DDR4_2400, KV260, KV260_OPTIMISTIC, KV260_PESSIMISTIC, SDR16, SDR32, MemoryTiming, preset
from tritloom.sim.traffic import measure

LEAD = 4
"""Bursts of 1 KiB that the machine's ports are apart at most: its FIFO holds 256 beats."""
RANDOM = {"burst_bytes": 64, "random": True}


def run(timing=KV260, **pattern):
    options: dict[str, Any] = {"bursts": 3000} | pattern
    return measure(timing, build_dir=BUILD / "verilated", **options)


def changed(**fields):
    return dataclasses.replace(KV260, dram=dataclasses.replace(DDR4_2400, **fields))


def test_a_sequential_stream_gets_the_ports_rate():
    result = run(lead=LEAD)
    assert result.beats == 4 * 3000 * 64 and result.reads == result.beats / 4
    assert result.gigabytes_per_s() == pytest.approx(16.0, rel=0.01)
    assert run(ports=1).gigabytes_per_s() == pytest.approx(4.0, rel=0.01)


def test_ports_that_run_freely_lose_little():
    assert all(15.2 < run(seed=seed).gigabytes_per_s() <= 16.0 for seed in (1, 2, 3))


def test_random_reads_open_a_row_each():
    result = run(**RANDOM, bursts=10_000)
    assert result.activates >= result.reads == 40_000
    assert 4.4 < result.gigabytes_per_s() < 8.1  # sim/dram.py derives both


def test_many_banks_reach_the_limit_of_four_activations():
    limit = 4 * 64 / (36 / 1.2) * (1 - 437 / 9360)
    assert run(changed(banks=64, stagger=16), **RANDOM, bursts=10_000).gigabytes_per_s() == pytest.approx(limit, rel=0.02)


@pytest.mark.parametrize("timing, beat, most", [(SDR16, 8, 2), (SDR32, 4, 4)])
def test_long_reads_of_sdr_sdram(timing, beat, most):
    """Two or four bytes a cycle, less refreshes and rows: what rtl/memory/sdram.py gets, within 4 %."""
    assert 0.96 * most < run(timing, ports=1, beat_bytes=beat, burst_bytes=64 * beat, bursts=1000).bytes_per_cycle < most


def test_presets_bracket_the_nominal_one():
    for pattern in ({"lead": LEAD}, RANDOM):
        low, nominal, high = (run(t, **pattern).gigabytes_per_s() for t in (KV260_PESSIMISTIC, KV260, KV260_OPTIMISTIC))
        assert low < nominal < high
    assert run(KV260_PESSIMISTIC, lead=LEAD).gigabytes_per_s() == pytest.approx(12.8, rel=0.01)


def test_refreshes_come_in_time_and_cost_what_they_last():
    usual, never = run(**RANDOM), run(changed(refresh_interval=0), **RANDOM)
    assert usual.refreshes == usual.cycles // (9360 / 4.8) and never.refreshes == 0
    assert usual.cycles / never.cycles == pytest.approx(1 / (1 - 437 / 9360), rel=0.02)


def test_latency_of_an_idle_read():
    """Closed row: tRCD, CL and 4 clocks; 52 cycles around them; at most 16 of jitter; the last of 4 beats."""
    alone = run(dataclasses.replace(KV260, jitter=0), ports=1, burst_bytes=64, bursts=1)
    assert alone.mean_latency == 60 + 3
    again = [run(ports=1, burst_bytes=64, bursts=1, seed=seed).mean_latency - alone.mean_latency for seed in range(8)]
    assert all(0 <= extra <= 16 for extra in again) and len(set(again)) > 1


def test_same_seed_same_cycles():
    assert run(seed=5, **RANDOM) == run(seed=5, **RANDOM) != run(seed=6, **RANDOM)


@pytest.mark.parametrize("fields", [{"bank_groups": 0}, {"refresh": -1}, {"refresh": 9360}, {"window": 1.5}])
def test_impossible_channels_are_refused(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        dataclasses.replace(DDR4_2400, **fields)


@pytest.mark.parametrize("mhz", [150, 200, 300])
def test_a_memory_s_time_does_not_depend_on_the_fabric_s_clock(mhz):
    """A slower fabric's ports get a beat every cycle, a faster one's no more than the DRAM has; an idle read takes as long for each."""
    timing = preset("kv260", mhz * 10**6)
    rate = run(timing, lead=LEAD).gigabytes_per_s(mhz * 1e6)
    assert rate == pytest.approx(0.064 * mhz, rel=0.01) if mhz < 250 else 16.0 < rate < 19.2 * (1 - 437 / 9360)
    alone = run(dataclasses.replace(timing, jitter=0), ports=1, burst_bytes=64, bursts=1)
    assert (alone.mean_latency - 3) / mhz == pytest.approx(60 / 250, abs=1.5 / mhz)
    assert preset("kv260", 250_000_000) is KV260 and preset("sdr16", mhz * 10**6) is SDR16


def test_what_has_no_channel_is_not_measured():
    assert preset("kv260") is KV260 and KV260.beat_rate == 1.0
    with pytest.raises(ValueError, match="channel"):
        run(DDR)
    with pytest.raises(ValueError, match="refresh_interval"):
        MemoryTiming(latency=1, refresh_interval=100, dram=DDR4_2400)
