"""The sampler against integer.sample: every mode, vocabulary and list length, under stalls."""

import gc

import cocotb
import numpy as np
import pytest
from cocotb.triggers import FallingEdge

import harness
import streams
from tritloom.firmware import integer
from tritloom.rtl.sampler import Sampler

MODES = ("greedy", "plain", "top_k", "top_p", "both")


@cocotb.test()
async def samples(dut):
    p = streams.parameters()
    dut.abandon.value = 0
    bench = await streams.start(dut)
    tokens, cycles = [], []
    for case in p["cases"]:
        for name in ("temperature_scale", "logit_scale", "top_k", "top_p", "seed"):
            getattr(dut, name).value = case[name]
        await streams.send(dut, "cmd", [{"position": case["position"]}])
        for name in ("temperature_scale", "logit_scale", "top_k", "top_p", "seed"):
            getattr(dut, name).value = 0
        assert dut.busy.value == 1
        logits = [{"logit": logit, "id": token} for logit, token in zip(case["logits"], case["ids"], strict=True)]
        if case.get("abandon"):
            await streams.send(dut, "logits_i", logits[:case["abandon"]])
            dut.abandon.value = 1
            await streams.send(dut, "logits_i", logits[case["abandon"]:])
            dut.abandon.value = 0
            await FallingEdge(dut.clk)
            assert dut.busy.value == 0
            continue
        sent = streams.send(dut, "logits_i", logits, stall=case["stall"])
        got = await streams.receive(dut, "token_o", 1, stall=case["stall"])
        tokens.append(got[0])
        cycles.append(got.cycles[0] - (await sent)[-1])
        assert dut.busy.value == 0
    streams.report(tokens=tokens, cycles=cycles, total=bench.cycle)


def packed(scale):
    return int(scale.m) | (int(scale.e) & 1023) << 16


def make(rng, vocab, mode, candidates, stall="none", order="random", logits=None, scale=None, ids=None):
    """One case and the token it must give; `ids`: of the logits, in their order."""
    ids = np.arange(vocab) if ids is None else ids
    spread = float(rng.choice([0.3, 2.0, 8.0]))
    if logits is None:
        scale = integer.uf_from_float(float(2.0 ** rng.uniform(-30, -8)))
        logits = np.rint(rng.normal(0, spread, vocab) / scale.value())
    logits = np.clip(np.array(logits, np.int64), -(1 << 43), (1 << 43) - 1)
    if order == "ties":
        logits = rng.choice(logits[:4], vocab)
    elif order != "random":
        logits = np.sort(logits)[:: -1 if order == "falling" else 1]
    temperature = float(rng.choice([0.2, 0.7, 1.0, 3.0]))
    top_k = int(rng.integers(1, candidates + 4)) if mode in ("top_k", "both") else 0
    top_p = int(rng.integers(0, 65536)) if mode in ("top_p", "both") else 65536
    heat = integer.GREEDY.temperature_scale
    if mode != "greedy":
        heat = integer.uf_from_float(2.0**integer.LOGIT_DROP * np.log2(np.e) / temperature)
    seed, position = int(rng.integers(0, 1 << 32)), int(rng.integers(0, 1 << 20))
    settings = integer.Sampling(heat, top_k, top_p, seed)
    case = {"temperature_scale": packed(heat), "logit_scale": packed(scale), "top_k": top_k, "top_p": top_p, "seed": seed,
            "position": position, "logits": logits.tolist(), "ids": ids.tolist(), "stall": stall}
    return case, integer.sample(logits, scale, settings, position, candidates, ids)


def check(vocab, candidates, pairs, logits=0):
    cases = [case for case, _ in pairs]
    result = harness.run(Sampler(vocab=vocab, candidates=candidates, logits=logits), "sampler", __name__, parameters={"cases": cases})
    wanted = [token for case, token in pairs if not case.get("abandon")]
    assert result["tokens"] == wanted
    return result


@pytest.mark.parametrize("vocab, candidates, stalls", [(37, 4, streams.STALLS), (64, 8, ("none", "random")), (300, 64, ("none",)),
                                                       (3, 8, ("none", "random")), (1, 1, ("none",))])
def test_every_mode(vocab, candidates, stalls):
    rng = np.random.default_rng(vocab)
    check(vocab, candidates, [make(rng, vocab, mode, candidates, stall, order)
                              for stall in stalls for mode in MODES for order in ("random", "ties", "rising", "falling")
                              for _ in range(1 if stall == "rare" else 2)])


def test_a_part_of_the_vocabulary_in_any_order():
    rng = np.random.default_rng(9)
    pairs = [make(rng, 16, mode, 4, stall, order, ids=rng.permutation(37)[:16])
             for stall in ("none", "random") for mode in MODES for order in ("random", "ties", "rising", "falling")]
    check(37, 4, pairs, logits=16)


def test_extremes():
    rng = np.random.default_rng(5)
    pairs = []
    for mode in MODES:
        for logits in ([-(1 << 43)] * 37, [(1 << 43) - 1] * 37, [(1 << 43) - 1, -(1 << 43)] * 18 + [0], [0] * 36 + [1]):
            for scale in (integer.uf_from_float(1.0), integer.uf_from_float(2.0**-60), integer.uf_from_float(0.0)):
                pairs.append(make(rng, 37, mode, 4, logits=logits, scale=scale))
    check(37, 4, pairs)


def test_latency_and_throughput():
    rng = np.random.default_rng(6)
    modes = ["greedy"] * 3 + ["plain"] * 3
    result = check(37, 4, [make(rng, 37, mode, 4) for mode in modes])
    noisy = Sampler.latency - 1 + Sampler.drain
    assert result["cycles"] == [Sampler.latency if mode == "greedy" else noisy for mode in modes]
    assert result["total"] < 6 * 37 + 3 * 12 + 3 * 50


def test_abandoned_commands_leave_no_trace():
    rng = np.random.default_rng(7)
    pairs = []
    for abandoned in MODES:
        for at, mode in zip((1, 2, 7, 30, 36), MODES, strict=True):
            case, token = make(rng, 37, abandoned, 4)
            pairs += [(case | {"abandon": at}, token), make(rng, 37, mode, 4)]
    check(37, 4, pairs)


@pytest.mark.filterwarnings("ignore::amaranth.hdl._ir.UnusedElaboratable")
def test_parameters_are_validated():
    with pytest.raises(ValueError, match="vocab must be a positive integer, not 0"):
        Sampler(vocab=0, candidates=4)
    with pytest.raises(ValueError, match=r"logits must be from 0 to vocab \(4\), not 5"):
        Sampler(vocab=4, candidates=1, logits=5)
    with pytest.raises(ValueError, match="candidates must be from 1 to 65535, not 0"):
        Sampler(vocab=4, candidates=0)
    gc.collect()  # within the filter: Amaranth complains of components that nobody used
