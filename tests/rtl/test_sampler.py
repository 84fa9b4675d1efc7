"""The sampler against integer.sample: every mode, vocabulary and list length, under stalls."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from amaranth.sim import Simulator

import golden
import harness
import streams
from tritloom.firmware import integer
from tritloom.rtl.head.parameters import SamplerParameters
from tritloom.rtl.head.sampler import Log2, Mix32, Sampler

MODES = ("greedy", "plain", "top_k", "top_p", "both")


def packed(scale):
    return int(scale.m) | (int(scale.e) & 1023) << 16


def make(rng, vocab, mode, candidates, stall="none", order="random", logits=None, scale=None):
    """One case and the token it must give."""
    spread = float(rng.choice([0.3, 2.0, 8.0]))
    if logits is None:
        scale = integer.uf_from_float(float(2.0 ** rng.uniform(-30, -8)))
        logits = np.rint(rng.normal(0, spread, vocab) / scale.value())
    assert scale is not None, "logits come with their scale"
    logits = np.clip(np.array(logits, np.int64), -(1 << 43), (1 << 43) - 1)
    if order == "ties":
        logits = rng.choice(logits[:4], vocab)
    elif order != "random":
        logits = np.sort(logits)[:: -1 if order == "falling" else 1]
    warmth = float(rng.choice([1e-9, 1e-4, 0.2, 0.7, 1.0, 3.0, 1000.0]))
    top_k = int(rng.integers(1, candidates + 4)) if mode in ("top_k", "both") else 0
    top_p = int(rng.integers(1, 65536)) if mode in ("top_p", "both") else 65536
    heat = integer.GREEDY.temperature_scale
    if mode != "greedy":
        heat = integer.uf_from_float(2.0**integer.LOGIT_DROP * np.log2(np.e) / warmth)
    noise = int(rng.integers(0, 1 << 32))
    settings = integer.Sampling(heat, top_k, top_p, 0)
    temperature, limits = settings.words
    command = {"slot": 0, "noise": noise, "temperature": temperature, "limits": limits}
    slot = {"command": command, "logit_scale": packed(scale), "scale": float(scale.value()), "temperature": warmth if heat.m else 0.0}
    case = {"slots": [slot], "stall": stall,
            "logits": [{"logit": int(logit), "id": i, "slot": 0} for i, logit in enumerate(logits)]}
    return case, [integer.sample(logits, scale, settings, noise, candidates)]


def together(rng, pairs, first, shuffled):
    """One case of several slots from `first` on: the logits in random mixture, each slot's in any order if `shuffled`."""
    slots, queues = [], []
    for slot, (case, _) in enumerate(pairs, first):
        (one,) = case["slots"]
        slots.append(one | {"command": one["command"] | {"slot": slot}})
        queues.append([logit | {"slot": slot} for logit in case["logits"]])
        if shuffled:
            rng.shuffle(queues[-1])
    turns = rng.permutation(np.repeat(np.arange(len(queues)), len(queues[0])))
    case = {"slots": slots, "logits": [queues[turn].pop(0) for turn in turns], "stall": pairs[0][0]["stall"]}
    return case, [token for _, (token,) in pairs]


def check(vocab, candidates, pairs, **shape):
    cases = [case for case, _ in pairs]
    result = harness.run(harness.unit(Sampler, SamplerParameters(vocab=vocab, candidates=candidates, **shape)), "sampler",
                         "cocotb_sampler", parameters={"cases": cases})
    wanted = [tokens for case, tokens in pairs if not case.get("abandon")]
    assert result["tokens"] == wanted
    compared([case for case in cases if not case.get("abandon")], result["tokens"], candidates).check()
    return result


def compared(cases, chosen, candidates):
    """The tokens chosen against PyTorch's softmax and Gumbel noise of the same uniform numbers."""
    shares = golden.Shares()
    for case, tokens in zip(cases, chosen, strict=True):
        for slot, token in zip(case["slots"], tokens, strict=True):
            command = slot["command"]
            of_slot = sorted((logit["id"], logit["logit"]) for logit in case["logits"] if logit["slot"] == command["slot"])
            ids, logits = np.array(of_slot).T
            top_k, top_p = command["limits"] & 0xFFFF, ((command["limits"] >> 16) + 1) / 65536
            share = golden.choice(ids.tolist().index(token), golden.tensor(logits), slot["scale"], slot["temperature"],
                                  golden.uniform(command["noise"], ids), top_k, top_p, candidates)
            what = "top-p" if top_p < 1 else "sampling" if slot["temperature"] else "greedy"
            shares.compare(what, golden.tensor(share), golden.Near(golden.tensor(0), golden.tensor(1)))
    return shares


@pytest.mark.parametrize("vocab, candidates, stalls", [(37, 4, streams.STALLS), (64, 8, ("none", "random")), (300, 64, ("none",)),
                                                       (3, 8, ("none", "random")), (1, 1, ("none",))])
def test_every_mode(vocab, candidates, stalls):
    rng = np.random.default_rng(vocab)
    check(vocab, candidates, [make(rng, vocab, mode, candidates, stall, order)
                              for stall in stalls for mode in MODES for order in ("random", "ties", "rising", "falling")
                              for _ in range(1 if stall == "rare" else 2)])


WRONG = {
    "no temperature": ("sampling", "log_softmax", lambda logits, temperature: F.log_softmax(logits, -1)),
    "noise of 1 - u": ("sampling", "gumbel", lambda u: -torch.log(-torch.log(1 - u))),
    "softmax in base 2": ("top-p", "log_softmax", lambda logits, temperature: F.log_softmax(logits / temperature * np.log(2), -1)),
}
"""Errors that the comparison with PyTorch must see (golden.check)."""


@pytest.mark.parametrize("top_p", [1.0, 0.6])
def test_tokens_are_drawn_from_pytorch_s_softmax(top_p):
    rng = np.random.default_rng(11)
    draws, temperature, scale = 300, 0.8, integer.uf_from_float(2.0**-20)
    natural = np.concatenate([rng.normal(0, 1, 4) + 3, rng.normal(0, 1, 33)])
    logits = np.rint(natural / scale.value()).astype(np.int64)
    heat = integer.uf_from_float(2.0**integer.LOGIT_DROP * np.log2(np.e) / temperature)
    pairs = []
    for position in range(draws):
        settings, noise = integer.Sampling(heat, 0, round(top_p * 65536), 5), integer.noise_word(5, position)
        (word, limits), (case, _) = settings.words, make(rng, 37, "plain", 4, logits=logits, scale=scale)
        case["slots"][0] |= {"command": {"slot": 0, "noise": noise, "temperature": word, "limits": limits}, "temperature": temperature}
        pairs.append((case, [integer.sample(logits, scale, settings, noise, 4)]))
    tokens = check(37, 4, pairs)["tokens"]
    cases = [case for case, _ in pairs]
    golden.check(lambda: compared(cases, tokens, 4), {name: wrong for name, wrong in WRONG.items() if (wrong[0] == "top-p") == (top_p < 1)})

    def improbability(temperature):
        p = torch.softmax(golden.tensor(logits) * float(scale.value()) / temperature, 0)
        order = torch.argsort(-p)
        p[order[int((p[order].cumsum(0) < top_p).sum()) + 1 :]] = 0
        return golden.improbability(golden.tensor(np.bincount(np.ravel(tokens), minlength=37)), p / p.sum())

    assert improbability(temperature) > 1e-6 > improbability(2 * temperature)


@pytest.mark.parametrize("slots, vocab, candidates", [(2, 37, 4), (3, 16, 8), (5, 20, 1)])
def test_slots_have_settings_and_tokens_of_their_own(slots, vocab, candidates):
    rng = np.random.default_rng(slots)
    pairs = []
    for stall in ("none", "random"):
        for _ in range(12):
            count = int(rng.integers(1, slots + 1))
            shuffled = bool(rng.integers(2))
            modes = ("greedy", "plain", "top_k") if shuffled else MODES
            parts = [make(rng, vocab, str(rng.choice(modes)), candidates, stall, str(rng.choice(("random", "ties"))))
                     for _ in range(count)]
            pairs.append(together(rng, parts, int(rng.integers(slots - count + 1)), shuffled))
    check(vocab, candidates, pairs, slots=slots)


def test_a_short_list_in_any_order():
    """Candidates instead of the whole vocabulary: fewer logits, of any ids."""
    rng = np.random.default_rng(8)
    pairs = []
    for mode in ("greedy", "top_k", "greedy"):
        case, _ = make(rng, 1000, mode, 8, order="ties")
        case["logits"] = [case["logits"][i] for i in rng.choice(1000, 12, replace=False)]
        best = min(case["logits"], key=lambda logit: (-logit["logit"], logit["id"]))
        if mode == "top_k":
            case["slots"][0]["command"]["limits"] = 1 | 0xFFFF << 16
        pairs.append((case, [best["id"]]))
    check(1000, 8, pairs, logits=12)


def test_greedy_tokens_of_many_slots_follow_each_other():
    rng = np.random.default_rng(9)
    pairs = [together(rng, [make(rng, 20, "greedy", 4) for _ in range(4)], 0, False) for _ in range(2)]
    result = check(20, 4, pairs, slots=4)
    assert result["cycles"] == [[SamplerParameters.latency + 3 * i for i in range(4)]] * 2


def test_extremes():
    rng = np.random.default_rng(5)
    pairs = []
    for mode in MODES:
        for logits in ([-(1 << 43)] * 37, [(1 << 43) - 1] * 37, [(1 << 43) - 1, -(1 << 43)] * 18 + [0], [0] * 36 + [1]):
            for scale in (1.0, 2.0**-60, 2.0**-80, 0.0):
                pairs.append(make(rng, 37, mode, 4, logits=logits, scale=integer.uf_from_float(scale)))
    check(37, 4, pairs)


def test_a_logit_s_half_unit_is_rounded_up():
    """Token 1 wins by the one unit of 2**-NOISE_BITS that its half is rounded up to; rounded down, it ties with token 0 and loses."""
    scale, one = integer.uf_from_float(2.0 ** -(integer.NOISE_BITS + 1)), integer.uf_from_float(1.0)  # a logit is 1/2 unit
    settings, pairs = integer.Sampling(one, 0, 65536, 0), []
    temperature, limits = settings.words
    for noise in range(5):
        of_0, of_1 = integer.gumbel(noise, np.arange(2)).tolist()
        halves = np.array([2 * (of_1 - of_0), 1] + [-(1 << 30)] * 35)
        logits = halves << integer.LOGIT_DROP
        token = integer.sample(logits, scale, settings, noise, 4)
        assert token == 1
        command = {"slot": 0, "noise": noise, "temperature": temperature, "limits": limits}
        slot = {"command": command, "logit_scale": packed(scale), "scale": float(scale.value()),
                "temperature": 2.0**integer.LOGIT_DROP * np.log2(np.e)}
        pairs.append(({"slots": [slot], "stall": "none",
                       "logits": [{"logit": int(logit), "id": i, "slot": 0} for i, logit in enumerate(logits)]}, [token]))
    check(37, 4, pairs)


def edge_of_top_p(logits, top_p, closed):
    """Cases with base-2 logits of the given values and the noise that lets the second of the list win if it is in the list: it is,
    unless `closed`. With an entry more or less the token is another."""
    logits = np.rint(np.array(logits) * 65536).astype(np.int64)  # 8 bits of a logit are dropped, and its scale has 8
    scale, pairs = integer.uf_from_float(2.0**-8), []
    first, second = np.argsort(-logits, kind="stable")[:2]
    settings = integer.Sampling(integer.uf_from_float(1.0), 0, top_p, 0)
    temperature, limits = settings.words
    noises = (noise for noise in range(100) if integer.sample(logits[[first, second]], scale, integer.Sampling(
        settings.temperature_scale, 0, 65536, 0), noise, 4, np.array([first, second])) == second)
    for noise in itertools.islice(noises, 3):
        token = integer.sample(logits, scale, settings, noise, 4)
        assert token == (first if closed else second)
        command = {"slot": 0, "noise": noise, "temperature": temperature, "limits": limits}
        slot = {"command": command, "logit_scale": packed(scale), "scale": float(scale.value()), "temperature": 1.0}
        pairs.append(({"slots": [slot], "stall": "none",
                       "logits": [{"logit": int(logit), "id": i, "slot": 0} for i, logit in enumerate(logits)]}, [token]))
    assert len(pairs) == 3
    return pairs


def test_top_p_is_exact():
    """The list ends with the entry whose mass just suffices, and what is far below the maximum weighs nothing."""
    pairs = edge_of_top_p([2, 2] + [-90] * 70, 32768, True) + edge_of_top_p([2, 2] + [-90] * 70, 32769, False)
    pairs += edge_of_top_p([0] * 70 + [70, 70], 32768, True)  # the maximum rises by 70: by 6, the first ones were 1.1 of 3.1
    pairs += edge_of_top_p([40, 40] + [8] * 70, 32768, True)  # 32 below the maximum: by 0, they were 70 of 72
    check(72, 4, pairs)


def test_latency_and_throughput():
    rng = np.random.default_rng(6)
    modes = ["greedy"] * 3 + ["plain"] * 3
    result = check(37, 4, [make(rng, 37, mode, 4) for mode in modes])
    noisy = SamplerParameters.latency - 1 + SamplerParameters.drain
    assert result["cycles"] == [[SamplerParameters.latency if mode == "greedy" else noisy] for mode in modes]
    assert result["total"] < 6 * 37 + 3 * 12 + 3 * 50


def test_abandoned_commands_leave_no_trace():
    rng = np.random.default_rng(7)
    pairs = []
    for abandoned in MODES:
        for at, mode in zip((1, 2, 7, 30, 36), MODES, strict=True):
            case, token = make(rng, 37, abandoned, 4)
            pairs += [(case | {"abandon": at, "after": 0}, token), make(rng, 37, mode, 4)]
    scale = integer.uf_from_float(2.0**-30)
    for after in range(7):  # while the fifth logit takes the first place of the list; all are larger than those of the next command
        case, token = make(rng, 37, "both", 4, order="rising", logits=(1 << 42) + np.arange(37), scale=scale)
        pairs += [(case | {"abandon": 5, "after": after}, token), make(rng, 37, "both", 4)]
    check(37, 4, pairs)


def pipelined(dut, values):
    """What `dut` makes of a value a cycle, in Amaranth's simulator, after its latency."""
    got = []

    async def process(ctx):
        for cycle in range(len(values) + dut.latency):
            ctx.set(dut.i, int(values[min(cycle, len(values) - 1)]))
            if cycle >= dut.latency:
                got.append(ctx.get(dut.o))
            await ctx.tick()

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(process)
    simulator.run()
    return got


def test_logarithm_and_hash():
    rng = np.random.default_rng(3)
    values = np.array([1, 2, 3, (1 << 38) - 1, (1 << 32) - 1, 1 << 32] + [1 << bit for bit in range(38)]
                      + [int(value) >> int(rng.integers(38)) | 1 for value in rng.integers(1, 1 << 38, 60)])
    assert pipelined(Log2(), values) == integer.log2_fixed(values).tolist()
    words = rng.integers(0, 1 << 32, 60)
    assert pipelined(Mix32(), words) == integer.mix32(words).tolist()


def test_parameters_are_validated():
    with pytest.raises(ValueError, match="vocab must be a positive integer, not 0"):
        SamplerParameters(vocab=0, candidates=4)
    with pytest.raises(ValueError, match="candidates must be from 1 to 65535, not 0"):
        SamplerParameters(vocab=4, candidates=0)
