"""The short-list unit against integer.short_list: sizes, blocks, ties and orders, under stalls, twice in a row, after an abandoned list."""

import cocotb
import numpy as np
import pytest

import harness
import streams
from tritloom.firmware import integer
from tritloom.rtl.head.parameters import ShortListParameters
from tritloom.rtl.head.shortlist import ShortList
from tritloom.rtl.ternary.parameters import TernaryParameters

LATENCY = 2


class Accumulators:
    """Answers `acc_read` LATENCY cycles later; the greatest value where nothing was written."""

    def __init__(self, dut, width, bits, parts):
        self.dut, self.width, self.bits, self.parts, self.slot, self.rows, self.origin = dut, width, bits, parts, 0, [], 0

    async def drive(self):
        history, reads = [0] * LATENCY, [(0, 0)] * self.parts
        while True:
            await streams.cycles(self.dut)
            self.dut.acc_read__data.value = history.pop(0)
            address, part = int(self.dut.acc_read__addr.value), int(self.dut.acc_read__part.value)
            read = self.dut.acc_read__en.value == 1 and self.dut.acc_read__slot.value == self.slot
            # A word is there with its last part, if the parts before were read just before.
            reads = [*reads[1 - self.parts :], (address, part)] if self.parts > 1 else [(address, part)]
            whole = read and reads == [(address, n) for n in range(self.parts)]
            rows = self.rows[(address - self.origin) * self.width :][: self.width] if whole and address >= self.origin else []
            rows = rows + [(1 << self.bits - 1) - 1] * (self.width - len(rows))
            history.append(sum((value & (1 << self.bits) - 1) << i * self.bits for i, value in enumerate(rows)))


@cocotb.test()
async def lists(dut):
    p = streams.parameters()
    bench = await streams.start(dut, idle_limit=20_000)
    accumulators = Accumulators(dut, p["width"], p["bits"], p["parts"])
    cocotb.start_soon(accumulators.drive())
    got, cycles = [], []
    for case in p["cases"]:
        start, begun = 0, bench.cycle
        for i, rows in enumerate(case["blocks"]):
            accumulators.slot, accumulators.rows = case["slot"], case["logits"][start : start + rows]
            accumulators.origin = case["origin"] * (i % 2)
            await streams.send(dut, "cmd", [{"slot": case["slot"], "rows": rows, "first": int(i == 0),
                                             "at": accumulators.origin * p["width"] // p["result_step"]}])
            while dut.busy.value == 1:
                await streams.cycles(dut)
            accumulators.rows = []
            await streams.cycles(dut, case["between"])
            start += rows
        cycles.append(bench.cycle - begun)
        if case["taken"]:
            got.append(list(await streams.receive(dut, "ids_o", case["taken"], stall=case["stall"])))
        if case["taken"] == p["count"]:
            await streams.cycles(dut, 50)
            assert dut.ids_o__valid.value == 0
    streams.report(got=got, cycles=cycles)


def case(rng, vocab, count, *, hidden=32, most=64, order="random", slot=0, stall="none", between=3, taken=None, origin=0):
    top = 127 * hidden
    logits = rng.integers(-top, top + 1, vocab)
    if order == "ties":
        logits = rng.integers(-2, 3, vocab)
    elif order == "equal":
        logits[:] = rng.choice([-top, 0, top])
    elif order != "random":
        logits = np.sort(logits)[:: 1 if order == "rising" else -1]
    if order == "late":  # nothing enters for long, then the last row of all does
        logits, between = np.roll(logits, -1), 200
    blocks = []
    while sum(blocks) < vocab:
        blocks.append(int(min(vocab - sum(blocks), rng.integers(1, most + 1) if order == "random" else most)))
    return {"logits": logits.tolist(), "blocks": blocks, "slot": slot, "stall": stall, "between": between, "origin": origin,
            "taken": count if taken is None else taken}


def parameters(*, width, rows_per_cycle, bits, max_rows, parts, hidden, **short_list):
    step = 1 << rows_per_cycle.bit_length() - 1  # rows of the results that are written at once
    ternary = TernaryParameters(lanes=2, tables=1, rows_per_cycle=rows_per_cycle, table_form="symmetric14", packing="index5", mem_bytes=32,
                                max_inputs=hidden, max_rows=max_rows, block_rows=max_rows, acc_bits=bits, vector_lanes=width,
                                result_banks=max(1, width // step) // parts, group_size=hidden if step < rows_per_cycle else 0)
    return ShortListParameters(hidden=hidden, ternary=ternary, **short_list)


def check(cases, *, vocab, count, queue, width, hidden=32, bits=18, most=64, parts=1, rows_per_cycle=2):
    p = parameters(vocab=vocab, count=count, queue=queue, hidden=hidden, width=width, rows_per_cycle=rows_per_cycle, bits=bits,
                   max_rows=2 * most, parts=parts)
    assert (p.ternary.acc_read_latency, p.ternary.result_reads) == (LATENCY, parts)
    result = harness.run(harness.unit(ShortList, p), "shortlist", __name__, parameters={
        "cases": cases, "width": width, "bits": bits, "count": count, "parts": parts, "result_step": p.ternary.result_step})
    expected = [integer.short_list(np.array(c["logits"]), count).tolist()[: c["taken"]] for c in cases if c["taken"]]
    assert result["got"] == expected
    return p, result["cycles"]


@pytest.mark.parametrize("vocab, count, queue, width, parts", [
    (300, 16, 64, 8, 2), (100, 2, 4, 4, 1), (64, 64, 8, 16, 1), (70, 4, 1, 2, 1), (5, 4, 16, 8, 2),
])
def test_lists(vocab, count, queue, width, parts):
    rng = np.random.default_rng([vocab, count])
    orders = ("random", "ties", "rising", "falling", "late", "equal")
    cases = [case(rng, vocab, count, order=order, slot=int(rng.integers(2)), stall=stall, between=int(rng.choice([0, 3, 200])),
                  origin=64 // width)
             for stall in streams.STALLS for order in orders]
    check(cases, vocab=vocab, count=count, queue=queue, width=width, parts=parts)


def test_a_row_a_cycle_more_than_a_power_of_two():
    rng = np.random.default_rng(200)
    cases = [case(rng, 200, 8, order=order, origin=64 // 8) for order in ("random", "rising", "falling")]
    check(cases, vocab=200, count=8, queue=16, width=8, parts=2, rows_per_cycle=3, bits=29)


def test_an_abandoned_list_leaves_no_trace():
    rng = np.random.default_rng(3)
    cases = []
    for taken in (0, 1, 7, 0, 15):
        cases.append(case(rng, 200, 16, order="falling", taken=taken, between=0))
        if not taken:
            cases[-1]["blocks"] = cases[-1]["blocks"][:2]
        cases.append(case(rng, 200, 16, order="rising"))
    check(cases, vocab=200, count=16, queue=64, width=8)


def test_rows_that_do_not_enter_pass_at_full_rate():
    rng = np.random.default_rng(4)
    one = case(rng, 1024, 4, order="falling", most=1024, between=0)
    p, cycles = check([one], vocab=1024, count=4, queue=64, width=8, most=1024)
    # The first 64 fill the queue before the heap's threshold is known; the rest takes a cycle a word.
    assert 1024 / 8 <= cycles[0] <= 1024 / 8 + 2 * 64 + 4 * p.entry_cycles + 100


@pytest.mark.parametrize("change, message", [
    (dict(count=6), "count must be a power of two from 2 to 300, not 6"), (dict(count=512), "count must be a power of two from 2 to 300"),
    (dict(bits=12), "acc_bits must be 13 or more for 32 inputs, not 12"), (dict(queue=0), "queue must be a positive integer, not 0"),
])
def test_parameters_are_validated(change, message):
    good = dict(vocab=300, count=16, queue=64, hidden=32, width=8, rows_per_cycle=2, bits=18, max_rows=64, parts=1)
    with pytest.raises(ValueError, match=message):
        parameters(**(good | change))
