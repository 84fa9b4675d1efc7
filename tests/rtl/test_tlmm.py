"""The TLMM engine equals PyTorch's matrix product in every accumulator: forms, packings, sizes, stalls, timing."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from amaranth import Elaboratable, Module
from amaranth.hdl import Assert, Assume

import formal
import harness
from tritloom.firmware.packing import group_beats, pack_grouped, pack_matrix, result_bits, scale_drop
from tritloom.rtl.ternary.parameters import TernaryParameters
from tritloom.rtl.ternary.tlmm import TernaryMatmul, WordControl

MAX_INPUTS, MAX_ROWS, ACC_BITS = 120, 88, 16


def engine(form="symmetric14", packing="trit5", tables=5, rows=4, lanes=2, vector_lanes=4, mem_bytes=32, groups=1, result_banks=None,
           result_turns=1, ultra=False) -> dict[str, Any]:
    return {"table_form": form, "packing": packing, "tables": tables, "rows_per_cycle": rows, "lanes": lanes, "vector_lanes": vector_lanes,
            "mem_bytes": mem_bytes, "max_inputs": MAX_INPUTS, "max_rows": MAX_ROWS, "block_rows": MAX_ROWS, "acc_bits": ACC_BITS,
            "groups": groups, "result_banks": result_banks or max(1, vector_lanes // (1 << rows.bit_length() - 1)),
            "result_turns": result_turns, "ultra": ultra}


@dataclass
class Job:
    """A matrix, and the codes of the slots from `slot`. Its rows become the results from step `at` on."""

    trits: np.ndarray
    codes: np.ndarray
    stall: str = "none"
    slot: int = 0
    at: int = 0
    scales: np.ndarray | None = None
    exponents: np.ndarray | None = None

    def results(self, group_size: int, drop: int, most: int) -> np.ndarray:
        """What PyTorch makes of it: [lanes, rows]."""
        codes, trits = torch.from_numpy(self.codes), torch.from_numpy(self.trits.astype(np.int64))
        if self.scales is None:
            return (codes @ trits.T).numpy()
        scaled = trits * torch.from_numpy(self.scales.astype(np.int64)).repeat_interleave(group_size, 1)
        if self.exponents is not None:  # in units of the greatest exponent's
            codes, drop = codes * 2 ** (most - torch.from_numpy(self.exponents)).repeat_interleave(group_size, 1), drop + most
        return ((codes @ scaled.T).numpy() + (1 << drop >> 1)) >> drop


def job(rows, inputs, stall="none", lanes=2, seed=0):
    rng = np.random.default_rng([seed, rows, inputs])
    return Job(rng.integers(-1, 2, (rows, inputs), np.int8), rng.integers(-127, 128, (lanes, inputs)), stall)


def extreme(rows, inputs, lanes=2):
    """Every sum at its limit, in both directions: all trits of a row equal, all codes +-127."""
    trits = np.where(np.arange(rows)[:, None] % 2, -1, 1).astype(np.int8).repeat(inputs, 1)
    return Job(trits, np.where(np.arange(lanes)[:, None] % 2, -127, 127).repeat(inputs, 1))


def check(parameters, jobs, queued=False, follow=False):
    """Run all jobs in one simulation, each after the one before or all at once; compare every result; return what was measured.

    `follow`: also read words of the first slot as soon as the engine says that they are there."""
    p = TernaryParameters(**parameters)
    dut = harness.unit(TernaryMatmul, p)
    v, q, tile, acc_bits = p.vector_lanes, p.rows_per_cycle, p.tile_inputs, p.acc_bits
    described = []
    for j in jobs:
        layout = p.tables, q, p.packing, p.mem_bytes
        beats = pack_matrix(j.trits, *layout) if j.scales is None else pack_grouped(j.trits, j.scales, p.group_size, *layout)
        exponents = [] if j.exponents is None else j.exponents.repeat(p.group_size // v, 1).tolist()
        described.append({"inputs": j.trits.shape[1], "steps": -(-len(j.trits) // q), "rest": -len(j.trits) % q, "codes": j.codes,
                          "exponents": exponents, "most": p.group_exponents, "stall": j.stall, "slot": j.slot, "at": j.at,
                          "beats": [beat[::-1].tobytes().hex() for beat in beats]})
    measured = harness.run(dut, "tlmm", "cocotb_tlmm", parameters={
        "jobs": described, "vector_lanes": v, "code_words": p.code_words, "acc_words": -(-MAX_ROWS // v),
        "latency": p.acc_read_latency, "parts": p.result_reads, "queued": queued, "follow": follow, "rows": p.result_step,
        "padded": p.padded})
    for number, (j, result) in enumerate(zip(jobs, measured["results"], strict=True)):
        got = np.array([[accumulator(int(word, 16), i, acc_bits) for word in lane for i in range(v)] for lane in result["accumulators"]])
        got = got[:, j.at * p.result_step :]
        expected = j.results(p.group_size, p.scale_drop, p.group_exponents)
        wrong = np.argwhere(got[:, : expected.shape[1]] != expected)
        assert not len(wrong), (f"job {number} {j.trits.shape} stall={j.stall}: {len(wrong)} wrong, first at lane, row {wrong[0]}: "
                                f"got {got[tuple(wrong[0])]}, expected {expected[tuple(wrong[0])]}")
        if queued:
            continue
        if follow:
            first, end = j.at * p.result_step // v, (j.at + -(-len(j.trits) // p.result_step)) * p.result_step // v
            assert result["followed"]["words"] == result["accumulators"][0][first:end], f"job {number}: read too early"
            assert result["followed"]["early"] > 0
        assert p.latency - p.padded <= result["last"] <= p.latency
        if j.stall == "none" and j.scales is None:
            assert result["first"] == p.start_latency(len(j.codes))
        tiles, steps = -(-j.trits.shape[1] // tile), -(-len(j.trits) // q)
        lane = j.slot % (1 << (parameters["lanes"] - 1).bit_length())
        turns = 1 if p.padded else 2 if lane + len(j.codes) > -(-parameters["lanes"] // parameters["result_turns"]) else 1
        streaming = (tiles - 1) * max(steps, p.tile_cycles(len(j.codes))) + turns * (steps - 1) + 1  # a word per cycle, with tables ready
        if j.stall == "none" and j.scales is None:
            assert result["streaming"] == streaming
        elif j.stall == "none" and j.scales is not None:  # from the first scales on; while tables are waited for, no more come
            scales = j.scales.shape[1] * group_beats(steps, q, p.mem_bytes)
            pauses = steps * p.padded // p.result_step
            assert streaming < result["streaming"] <= streaming + scales + p.start_latency(len(j.codes)) + pauses
    return measured["results"]


def accumulator(word, i, bits):
    value = word >> bits * i & (1 << bits) - 1
    return value - (value >> bits - 1 << bits)


def scaled(j, group_size, seed=0, most=False):
    """The job with scales of all sizes, or all the greatest."""
    rng = np.random.default_rng([seed, *j.trits.shape])
    scales = rng.integers(0, 1 << 16, (len(j.trits), j.trits.shape[1] // group_size)) >> rng.integers(0, 17, (len(j.trits), 1))
    j.scales = np.full(scales.shape, 0xFFFF, np.uint16) if most else scales.astype(np.uint16)
    return j


def shifted(j, group_size, most, seed=0):
    """The job with exponents of its codes' groups, from none to the greatest."""
    if most:
        j.exponents = np.random.default_rng([seed, *j.codes.shape]).integers(0, most + 1, (len(j.codes), j.codes.shape[1] // group_size))
    return j


def grouped(group_size, inputs=256, exponents=0, **changes):
    """An engine for scales by groups, with as many low bits dropped as a model of so many inputs needs."""
    drop = scale_drop(inputs)
    return engine(**changes) | {"max_inputs": inputs, "group_size": group_size, "scale_drop": drop, "group_exponents": exponents,
                                "acc_bits": result_bits(inputs, group_size, drop)}


@pytest.mark.parametrize("group_size, changes", [
    (64, dict(tables=22, rows=4, mem_bytes=64)),
    (128, dict(tables=22, rows=4, mem_bytes=64, vector_lanes=16)),
    (128, dict(tables=43, rows=2, mem_bytes=64, vector_lanes=8, form="addsub")),
    (128, dict(tables=6, rows=2, mem_bytes=8, vector_lanes=2, form="full27")),
    (64, dict(tables=2, rows=4, mem_bytes=8, packing="index5", vector_lanes=8)),
    (64, dict(tables=3, rows=1, mem_bytes=4, lanes=1, vector_lanes=32, exponents=3)),
    (128, dict(tables=22, rows=5, mem_bytes=64, vector_lanes=8, lanes=3, exponents=7)),
    (64, dict(tables=6, rows=3, mem_bytes=16, vector_lanes=4, form="full27", exponents=1)),
    (128, dict(tables=3, rows=8, mem_bytes=16, vector_lanes=16, exponents=3)),
    pytest.param(64, dict(tables=11, rows=9, mem_bytes=128, vector_lanes=8, lanes=5, groups=2, ultra=True, form="addsub",
                          packing="index5", exponents=6), marks=pytest.mark.long),
    (64, dict(tables=11, rows=4, mem_bytes=32, groups=2, lanes=3, vector_lanes=8, result_banks=1, result_turns=2, ultra=True)),
])
def test_scales_and_exponents_by_groups(group_size, changes):
    parameters, lanes = grouped(group_size, **changes), changes.get("lanes", 2)
    rows, step = parameters["rows_per_cycle"], TernaryParameters(**parameters).result_step
    jobs = [job(88, 256, lanes=lanes), job(rows, 128, lanes=lanes), job(1, 128, "random", lanes=lanes),
            job(2 * rows + 1, 256, "periodic", lanes=1),
            job(88, 128, "random", lanes=lanes), job(5 * rows, 128, lanes=1)]
    exponents = parameters["group_exponents"]
    most = scaled(extreme(88, 256, lanes), group_size, most=True)
    if exponents:
        most.exponents = np.zeros((lanes, 256 // group_size), int)
    check(parameters, [*(shifted(scaled(j, group_size, seed), group_size, exponents, seed) for seed, j in enumerate(jobs)), most])
    queued = [scaled(job(24, 256, lanes=lanes), group_size, seed) for seed in range(3)]
    shifted(queued[0], group_size, exponents)
    for n, j in enumerate(queued):
        j.at, j.codes, j.exponents = n * 24 // step, queued[0].codes, queued[0].exponents
    check(parameters, queued, queued=True)


@pytest.mark.parametrize("form", ["symmetric14", "full27", "addsub"])
@pytest.mark.parametrize("packing", ["trit5", "index5"])
def test_forms_and_packings(form, packing):
    parameters = engine(form, packing, tables=2, rows=2, lanes=2, vector_lanes=4)
    check(parameters, [
        job(88, 30, seed=1), job(88, 120), job(7, 17), job(80, 64, "random"), job(1, 1), job(37, 113, "periodic"),
        extreme(88, 120), job(20, 40, "rare"), extreme(3, 6), job(88, 12),
    ])


@pytest.mark.parametrize("tables, rows, vector_lanes, lanes, form, packing", [
    (5, 1, 4, 1, "symmetric14", "trit5"),
    (13, 4, 8, 2, "symmetric14", "trit5"),
    (3, 8, 2, 3, "symmetric14", "index5"),
    (1, 4, 4, 1, "full27", "trit5"),
    (4, 2, 16, 2, "addsub", "trit5"),
])
def test_shapes(tables, rows, vector_lanes, lanes, form, packing):
    parameters = engine(form, packing, tables=tables, rows=rows, lanes=lanes, vector_lanes=vector_lanes, mem_bytes=64)
    check(parameters, [
        job(88, 120, lanes=lanes), job(rows, 120, lanes=lanes), job(2 * rows + 1, 100, "random", lanes=lanes),
        extreme(88, 120, lanes), job(88, 3 * tables, "periodic", lanes=lanes), job(3 * rows, 119, lanes=lanes),
    ])


@pytest.mark.parametrize("rows, vector_lanes, banks", [(2, 8, 1), (2, 8, 4), (4, 8, 2), (4, 4, 1), (8, 4, 1)])
def test_results_are_there_when_the_progress_says_so(rows, vector_lanes, banks):
    far = (rows, banks) in ((2, 4), (4, 1))
    parameters = engine(tables=3, rows=rows, lanes=2, vector_lanes=vector_lanes, result_banks=banks, ultra=far)
    jobs = [job(88, 50, lanes=2), job(40, 60, "random", lanes=2), job(88, 20, "periodic", lanes=1), job(64, 9, "random", lanes=2, seed=1)]
    for j, at in zip(jobs, (0, 48 // rows, 0, 24 // rows), strict=True):
        j.at = at
    check(parameters, jobs, follow=True)


@pytest.mark.parametrize("ultra", [False, True])
def test_rows_that_are_left_over_are_there_when_the_progress_says_so(ultra):
    """Three rows a cycle, which leave two at a time: some blocks end with a word that is whole, others with one that is not."""
    parameters = grouped(64, 128, tables=3, rows=3, lanes=2, vector_lanes=8, mem_bytes=16, result_banks=2, ultra=ultra)
    jobs = [job(88, 128, lanes=2), job(40, 64, "random", lanes=2), job(87, 64, "periodic", lanes=1), job(64, 64, "random", lanes=2, seed=1)]
    for j, at in zip(jobs, (0, 24, 0, 12), strict=True):
        j.at = at
        scaled(j, 64)
    check(parameters, jobs, follow=True)


@pytest.mark.parametrize("rows, vector_lanes, banks, turns, lanes", [
    (2, 8, 1, 1, 6), (2, 8, 2, 1, 6), (4, 4, 1, 1, 6), (8, 4, 1, 1, 6), (2, 8, 1, 2, 6), (8, 4, 1, 2, 7),
])
def test_groups_and_blocks(rows, vector_lanes, banks, turns, lanes):
    """Results of one group and of other rows stay while others are computed; fewer slots than lanes; banks read in parts, results written
    in two turns."""
    parameters = engine(tables=3, rows=rows, lanes=lanes, groups=2, vector_lanes=vector_lanes, result_banks=banks, result_turns=turns,
                        ultra=banks == 2 or lanes == 7)  # with some, the memories' columns are far away
    jobs = [job(40, 60, lanes=6), job(24, 50, "random", lanes=5), job(88, 120, lanes=1), job(40, 60, lanes=6, seed=1)]
    jobs += [job(24, 20, lanes=3, seed=2)]
    for j, (slot, at) in zip(jobs, ((0, 0), (9, 3), (12, 0), (0, 40 // rows), (8, 0)), strict=True):
        j.slot, j.at = slot, at
    check(parameters, jobs)


def test_commands_that_wait_follow_each_other():
    """Blocks of a matrix and other slots' products, all commanded at once; every result is read afterwards."""
    parameters = engine(tables=3, rows=4, lanes=2, groups=2, vector_lanes=4)
    jobs = [job(40, 60), job(48, 60, seed=1), job(3, 60, seed=2), job(80, 20, seed=3)]
    for j, (slot, at) in zip(jobs, ((0, 0), (0, 10), (2, 0), (2, 1)), strict=True):
        j.slot, j.at = slot, at
    jobs[1].codes, jobs[3].codes = jobs[0].codes, jobs[2].codes[:, :20]
    results = check(parameters, jobs, queued=True)
    assert results


def test_few_steps_never_overtake_their_own_partial_sums():
    """Tiles of 1 to 9 steps where loading is quickest (addsub, one table)."""
    check(engine("addsub", "index5", tables=1, rows=1, lanes=1, vector_lanes=2), [job(steps, 60, lanes=1) for steps in range(1, 10)])


@pytest.mark.parametrize("form, lanes", [("addsub", 1), ("symmetric14", 2)])
def test_few_steps_never_overtake_their_own_partial_sums_when_words_come_late(form, lanes):
    """Tiles of 1 to 5 steps whose words stall inside a tile, with tables ready for the next."""
    check(engine(form, "index5", tables=1, rows=1, lanes=lanes, vector_lanes=16), [
        job(steps, 114, stall, lanes=lanes) for steps in range(1, 6) for stall in ("rare", "random", "periodic")])


def test_a_matrix_of_two_steps_under_a_rare_stall():
    check(engine(vector_lanes=16), [job(8, 114, "rare", seed=seed) for seed in range(6)])


class Overtaking(Elaboratable):
    """A step's partial sum is never fetched while an earlier word's sum of the same step is on its way to the memory."""

    def __init__(self, engine: TernaryParameters):
        self.words, self.fetch, self.write = WordControl(engine), engine.partial_fetch, engine.partial_write

    def elaborate(self, platform):
        m = Module()
        m.submodules.words = control = self.words
        command, words = control.cmd.payload, control.words
        m.d.comb += Assume((command.steps > 0) & (command.inputs > 0))
        fetched = words[self.fetch]
        for cycles in range(self.fetch + 1, self.write + 1):
            due = words[cycles]
            m.d.comb += Assert(~(fetched.valid & ~fetched.first_tile & due.valid & ~due.last_tile & (due.step == fetched.step)))
        return m


@pytest.mark.parametrize("lanes, turns", [(1, 1), (2, 2)])
def test_no_partial_sum_is_fetched_before_it_is_written_whatever_stalls(lanes, turns, tmp_path):
    parameters: dict[str, Any] = engine(tables=1, rows=1, lanes=lanes, vector_lanes=2, result_turns=turns) | {
        "max_inputs": 15, "max_rows": 8, "block_rows": 8}
    design = Overtaking(TernaryParameters(**parameters))
    words = design.words
    formal.prove(design, [words.cmd.valid, words.cmd.payload, words.prepared, words.valid], tmp_path, reset_cycles=len(words.words))


@pytest.mark.parametrize("change, message", [
    ({"rows_per_cycle": 3}, "rows_per_cycle must be a power of two, or with groups and one turn one more, not 3"),
    ({"tables": 0}, "tables must be a positive integer, not 0"),
    ({"table_form": "full"}, "table_form must be one of symmetric14, full27, addsub"),
    ({"packing": "base3"}, "packing must be index5 or trit5"),
    ({"mem_bytes": 4}, "does not fit mem_bytes 4"),
    ({"acc_bits": 14}, "acc_bits must be 15 or more for 120 inputs"),
    ({"vector_lanes": 3}, "vector_lanes must be a power of two, not 3"),
])
def test_impossible_parameters_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        TernaryParameters(**(engine() | change))
