"""The head reader against integer.grouped_logits: slots in any mixture, blocks, ids, under stalls of the sampler, twice in a row."""

import cocotb
import numpy as np
import pytest

import harness
import inventory
import streams
from tritloom.firmware import integer
from tritloom.rtl.head.parameters import HeadReaderParameters
from tritloom.rtl.head.reader import HeadReader
from tritloom.rtl.ternary.parameters import TernaryParameters

LATENCY = 2
BITS = 23


class Accumulators:
    """Answers `acc_read` LATENCY cycles later with words of `rows` by slot; ones where no whole word was asked for."""

    def __init__(self, dut, width, parts):
        self.dut, self.width, self.parts, self.rows = dut, width, parts, {}

    async def drive(self):
        history, reads = [0] * LATENCY, [None] * self.parts
        while True:
            await streams.cycles(self.dut)
            self.dut.acc_read__data.value = history.pop(0)
            slot, address, part = (int(getattr(self.dut, f"acc_read__{name}").value) for name in ("slot", "addr", "part"))
            read = self.dut.acc_read__en.value == 1
            assert not read or self.dut.busy.value == 1
            # A word is there with its last part, if the parts before were read just before.
            reads = [*reads[1:], (slot, address, part) if read else None]
            rows = self.rows.get(slot, [])[address * self.width :][: self.width] if reads == [
                (slot, address, n) for n in range(self.parts)] else []
            rows = rows + [-1] * (self.width - len(rows))
            history.append(sum((value & (1 << BITS) - 1) << i * BITS for i, value in enumerate(rows)))


@cocotb.test()
async def blocks(dut):
    p = streams.parameters()
    bench = await streams.start(dut)
    accumulators = Accumulators(dut, p["width"], p["parts"])
    cocotb.start_soon(accumulators.drive())
    got, cycles = [], []
    for case in p["cases"]:
        place = case["at"] * p["rows_per_cycle"]
        accumulators.rows = {case["slot"]: [1] * place + case["results"]}
        begun = bench.cycle
        taken = streams.receive(dut, "logits_o", len(case["results"]), stall=case["stall"])
        command = {"slot": case["slot"], "rows": len(case["results"]), "first": case["first"], "at": case["at"]}
        await streams.send(dut, "cmd", [command])
        logits = await taken
        got.append([(each["logit"], each["id"], each.get("slot", 0)) for each in logits])
        cycles.append([logits.cycles[0] - begun, logits.cycles[-1] - begun])
        while dut.busy.value == 1:
            await streams.cycles(dut)
        accumulators.rows = {}
        await streams.cycles(dut, case["between"])
        assert dut.logits_o__valid.value == 0
    streams.report(got=got, cycles=cycles)


def parameters(*, vocab, width, rows_per_cycle=2, lanes=2, groups=1, parts=1, max_rows=64):
    ternary = TernaryParameters(
        lanes=lanes, groups=groups, tables=22, rows_per_cycle=rows_per_cycle, table_form="symmetric14", packing="index5", mem_bytes=64,
        max_inputs=64, max_rows=max_rows, block_rows=max_rows, acc_bits=BITS, vector_lanes=width,
        result_banks=max(1, width // rows_per_cycle) // parts, group_size=64, scale_drop=8)
    return HeadReaderParameters(vocab=vocab, ternary=ternary)


def check(p, cases):
    """Every slot's rows in order, under ids of its own; returns cycles to the first and to the last logit."""
    t = p.ternary
    assert (t.acc_read_latency, t.result_reads) == (LATENCY, max(1, t.vector_lanes // t.rows_per_cycle) // t.result_banks)
    result = harness.run(harness.unit(HeadReader, p), "reader", __name__, parameters={
        "cases": cases, "width": t.vector_lanes, "parts": t.result_reads, "rows_per_cycle": t.rows_per_cycle})
    following: dict[int, int] = {}
    for number, (case, got) in enumerate(zip(cases, result["got"], strict=True)):
        lane = case["slot"] & (1 << t.lane_bits) - 1
        start = 0 if case["first"] else following[lane]
        logits = integer.grouped_logits(np.array(case["results"])).tolist()
        assert [tuple(each) for each in got] == [(logit, start + i, lane) for i, logit in enumerate(logits)], f"command {number}"
        following[lane] = start + len(logits)
    return result["cycles"]


def case(rng, rows, *, slot=0, first=0, at=0, stall="none", between=1):
    most = (1 << BITS - 1) - 1
    results = rng.integers(-most, most + 1, rows) >> rng.integers(0, BITS, rows)
    results[:1] = rng.choice([-most - 1, most, 0])
    return {"results": results.tolist(), "slot": slot, "first": first, "at": at, "stall": stall, "between": between}


@pytest.mark.parametrize("width, rows_per_cycle, lanes, groups, parts", [
    (8, 2, 3, 1, 1), (8, 2, 2, 2, 2), (4, 4, 1, 1, 1), (2, 4, 2, 1, 1), (16, 2, 4, 1, 2), (8, 4, 3, 2, 2),
])
def test_blocks_of_several_slots(width, rows_per_cycle, lanes, groups, parts):
    """Rows from the results' first half and their second in turn, of each slot; the last block has any number of rows."""
    rng = np.random.default_rng([width, lanes])
    p = parameters(vocab=150, width=width, rows_per_cycle=rows_per_cycle, lanes=lanes, groups=groups, parts=parts)
    group, cases = int(rng.integers(groups)) << p.ternary.lane_bits, []
    for stall in streams.STALLS:
        for number, rows in enumerate((32, 16, 32, int(rng.integers(1, 33)))):
            for lane in rng.permutation(lanes).tolist():
                cases.append(case(rng, rows, slot=group | lane, first=int(number == 0), at=number % 2 * 32 // rows_per_cycle, stall=stall,
                                  between=int(rng.choice([0, 1, 20]))))
    check(p, cases)


@pytest.mark.parametrize("rows", [1, 2, 7, 8, 9, 16, 17])
def test_one_block(rows):
    """Less than a word, words, and a rest, one head after the other."""
    rng = np.random.default_rng(rows)
    p = parameters(vocab=20, width=8)
    check(p, [case(rng, rows, slot=n % 2, first=1, stall=stall) for n, stall in enumerate(("none", "random", "periodic", "none"))])


@pytest.mark.parametrize("width, parts", [(4, 1), (8, 1), (8, 2), (16, 2), (16, 4)])
def test_latency_and_throughput(width, parts):
    rng = np.random.default_rng(1)
    p = parameters(vocab=300, width=width, parts=parts, max_rows=512)
    (first, only), (_, last) = check(p, [case(rng, 1, first=1), case(rng, 250, first=1)])
    assert first - 1 == LATENCY + parts + 3 and only <= p.cycles(1) + 1  # the command is taken a cycle after its work starts
    assert 250 <= last <= p.cycles(250) + 1


@pytest.mark.parametrize("lanes", [1, 3])
def test_memories(lanes):
    p = parameters(vocab=150, width=8, lanes=lanes)
    assert inventory.published(p.memories()) == inventory.instantiated(HeadReader(p))


def test_parameters_are_validated():
    with pytest.raises(ValueError, match="vocab must be a positive integer, not 0"):
        parameters(vocab=0, width=8)
    ternary = parameters(vocab=1, width=8).ternary
    with pytest.raises(ValueError, match="acc_bits must be 28 or less, not 29"):
        HeadReaderParameters(vocab=1, ternary=TernaryParameters(**{**ternary.__dict__, "acc_bits": 29}))
