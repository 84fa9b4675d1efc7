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
from tritloom.firmware.packing import pack_matrix
from tritloom.rtl.ternary.parameters import TernaryParameters
from tritloom.rtl.ternary.tlmm import TernaryMatmul, WordControl

MAX_INPUTS, MAX_ROWS, ACC_BITS = 120, 88, 16


def engine(form="symmetric14", packing="trit5", tables=5, rows=4, lanes=2, vector_lanes=4, mem_bytes=32, groups=1, result_banks=None,
           result_turns=1, ultra=False) -> dict[str, Any]:
    return {"table_form": form, "packing": packing, "tables": tables, "rows_per_cycle": rows, "lanes": lanes, "vector_lanes": vector_lanes,
            "mem_bytes": mem_bytes, "max_inputs": MAX_INPUTS, "max_rows": MAX_ROWS, "block_rows": MAX_ROWS, "acc_bits": ACC_BITS,
            "groups": groups, "result_banks": result_banks or max(1, vector_lanes // rows),
            "result_turns": result_turns, "ultra": ultra}


@dataclass
class Job:
    """A matrix, and the codes of the slots from `slot`. Its rows become the results from step `at` on."""

    trits: np.ndarray
    codes: np.ndarray
    stall: str = "none"
    slot: int = 0
    at: int = 0


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
    v, q, span = parameters["vector_lanes"], parameters["rows_per_cycle"], 3 * parameters["tables"]
    described = []
    for j in jobs:
        beats = pack_matrix(j.trits, parameters["tables"], q, parameters["packing"], parameters["mem_bytes"])
        described.append({"inputs": j.trits.shape[1], "steps": -(-len(j.trits) // q), "codes": j.codes, "stall": j.stall,
                          "slot": j.slot, "at": j.at, "beats": [beat[::-1].tobytes().hex() for beat in beats]})
    measured = harness.run(dut, "tlmm", "cocotb_tlmm", parameters={
        "jobs": described, "vector_lanes": v, "code_words": -(-MAX_INPUTS // v), "acc_words": -(-MAX_ROWS // v),
        "latency": p.acc_read_latency, "parts": p.result_reads, "queued": queued, "follow": follow, "rows": q})
    for number, (j, result) in enumerate(zip(jobs, measured["results"], strict=True)):
        got = np.array([[accumulator(int(word, 16), i) for word in lane for i in range(v)] for lane in result["accumulators"]])
        got = got[:, j.at * q :]
        expected = (torch.from_numpy(j.codes) @ torch.from_numpy(j.trits.astype(np.int64)).T).numpy()
        wrong = np.argwhere(got[:, : expected.shape[1]] != expected)
        assert not len(wrong), (f"job {number} {j.trits.shape} stall={j.stall}: {len(wrong)} wrong, first at lane, row {wrong[0]}: "
                                f"got {got[tuple(wrong[0])]}, expected {expected[tuple(wrong[0])]}")
        if queued:
            continue
        if follow:
            first, end = j.at * q // v, (j.at + -(-len(j.trits) // q)) * q // v
            assert result["followed"]["words"] == result["accumulators"][0][first:end], f"job {number}: read too early"
            assert result["followed"]["early"] > 0
        assert result["last"] == p.latency
        assert j.stall != "none" or result["first"] == p.start_latency(len(j.codes))
        tiles, steps = -(-j.trits.shape[1] // span), -(-len(j.trits) // q)
        lane = j.slot % (1 << (parameters["lanes"] - 1).bit_length())
        turns = 2 if lane + len(j.codes) > -(-parameters["lanes"] // parameters["result_turns"]) else 1
        if j.stall == "none":  # a word per cycle while tables are ready
            assert result["streaming"] == (tiles - 1) * max(steps, p.tile_cycles(len(j.codes))) + turns * (steps - 1) + 1
    return measured["results"]


def accumulator(word, i):
    value = word >> ACC_BITS * i & (1 << ACC_BITS) - 1
    return value - (value >> ACC_BITS - 1 << ACC_BITS)


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


@pytest.mark.parametrize("rows, vector_lanes, banks, ultra", [
    (2, 8, 1, False), (2, 8, 4, True), (4, 8, 2, False), (4, 4, 1, True), (8, 4, 1, False),
])
def test_results_are_there_when_the_progress_says_so(rows, vector_lanes, banks, ultra):
    parameters = engine(tables=3, rows=rows, lanes=2, vector_lanes=vector_lanes, result_banks=banks, ultra=ultra)
    jobs = [job(88, 50, lanes=2), job(40, 60, "random", lanes=2), job(88, 20, "periodic", lanes=1), job(64, 9, "random", lanes=2, seed=1)]
    for j, at in zip(jobs, (0, 48 // rows, 0, 24 // rows), strict=True):
        j.at = at
    check(parameters, jobs, follow=True)


@pytest.mark.parametrize("rows, vector_lanes, banks, turns, lanes, ultra", [
    (2, 8, 1, 1, 6, False), (2, 8, 2, 1, 6, True), (4, 4, 1, 1, 6, False), (8, 4, 1, 1, 6, True), (2, 8, 1, 2, 6, False),
    (8, 4, 1, 2, 7, True), (2, 8, 1, 2, 6, True),
])
def test_groups_and_blocks(rows, vector_lanes, banks, turns, lanes, ultra):
    """Results of one group and of other rows stay while others are computed; fewer slots than lanes; banks read in parts, results written
    in two turns."""
    parameters = engine(tables=3, rows=rows, lanes=lanes, groups=2, vector_lanes=vector_lanes, result_banks=banks, result_turns=turns,
                        ultra=ultra)
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
    ({"rows_per_cycle": 3}, "rows_per_cycle must be a power of two, not 3"),
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
