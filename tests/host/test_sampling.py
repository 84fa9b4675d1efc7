"""The sampler's arithmetic alone: what distribution it draws from, at any temperature, and what seeds have in common."""

from typing import Any

import numpy as np
import pytest
import torch

from tritloom.firmware import integer
from tritloom.firmware.integer import GREEDY, Sampling, noise_word, noise_words
from tritloom.host.session import LEAST_TEMPERATURE, sampling

VOCAB = 128_256


def test_of_equal_logits_the_first_is_hardly_favoured():
    """Exactly, from the probability of every value of the noise that can win among 128,256: ties go to the lowest id."""
    u = (1 << 32) - 1 - 2 * np.arange(1 << 20)  # the greatest, of 2**31; one below all of these wins once in e**63 times
    noise = ((32 << integer.LOG2_BITS) - integer.log2_fixed((32 << integer.LOG2_BITS) - integer.log2_fixed(u))) \
        >> (integer.LOG2_BITS - integer.NOISE_BITS)
    assert (np.diff(noise) <= 0).all() and noise[0] < 32 << integer.NOISE_BITS
    _, counts = np.unique(-noise, return_counts=True)
    above = np.cumsum(counts) / 2.0**31
    first, last = (np.sum(counts * np.exp((VOCAB - 1) * np.log1p(-x))) for x in (above - counts / 2.0**31, above))
    assert 1 <= first / last < 1.0002


def test_seeds_have_no_noise_in_common():
    """Not at the same positions, nor a text's shifted: neighbours, seeds that share a step, and any others."""
    positions = 1 << 12
    twin = next(s for s in range(1 << 16) if integer.mix32(np.array(s)) >> 31)
    seeds = [*range(40), (1 << 32) - 1, 1 << 31, *np.random.default_rng(0).integers(0, 1 << 32, 20).tolist()]
    words = [{noise_word(seed, p) for p in range(positions)} for seed in seeds]
    assert all(len(w) == positions for w in words)
    shared = [len(words[i] & words[j]) for i in range(len(seeds)) for j in range(i)]
    assert max(shared) <= 1 and sum(shared) < 20  # pairs of 2**12 words each of 2**32
    start, step = noise_words(twin)
    assert noise_word(twin, 7) == (start + 7 * step) % (1 << 32) and step % 2


def test_no_two_seeds_have_a_step_and_a_stretch_in_common():
    """mix32 is one to one, so a step belongs to two of its values, of which one is 2**31 more; their words are 2**31 positions apart."""
    def inverse(h):
        """Of mix32."""
        def unshift(x, n):
            y = x
            for _ in range(32 // n):
                y = x ^ y >> n
            return y
        h = unshift(h, 16) * pow(0xC2B2AE35, -1, 1 << 32) % (1 << 32)
        h = unshift(h, 13) * pow(0x85EBCA6B, -1, 1 << 32) % (1 << 32)
        return unshift(h, 16)

    for mixed in np.random.default_rng(1).integers(0, 1 << 31, 50).tolist():
        (one, step), (other, same) = (noise_words(inverse(mixed | top << 31)) for top in (0, 1))
        assert step == same and (one - other) * pow(step, -1, 1 << 32) % (1 << 32) == 1 << 31


def drawn(logits, scale, settings, count, candidates=64):
    tokens = [integer.sample(logits, scale, settings, noise_word(11, position), candidates) for position in range(count)]
    return np.bincount(tokens, minlength=len(logits))


def chi_square(counts, p):
    """Standard deviations from what `p` gives; entries that come less than five times are one."""
    expected = p * counts.sum()
    rare = expected < 5
    observed = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    assert counts[p == 0].sum() == 0
    observed, expected = observed[expected > 0], expected[expected > 0]
    return float((((observed - expected) ** 2 / expected).sum() - (len(observed) - 1)) / np.sqrt(2 * max(len(observed) - 1, 1)))


@pytest.mark.parametrize("temperature", [1e-7, 1e-6, 5e-4, 1e-3, 0.02, 0.7, 1.0, 30.0, 1000.0])
@pytest.mark.parametrize("limits", [{}, {"top_k": 5}, {"top_p": 0.9}], ids=str)
def test_the_distribution_is_softmax_at_any_temperature(temperature, limits):
    rng = np.random.default_rng(3)
    scale = integer.uf_from_float(2.0**-37)
    unit = float(scale.value())
    natural = np.concatenate([rng.normal(-5, 8, 50), 25 + min(temperature, 4.0) * rng.normal(0, 1.2, 10)])  # ten compete, where it is low
    logits = np.rint(natural / unit).astype(np.int64)
    assert np.abs(logits).max() < 1 << 43
    settings = sampling(temperature, seed=11, **limits)
    p = torch.softmax(torch.from_numpy(logits).double() * unit / temperature, 0).numpy()
    order = np.argsort(-p, kind="stable")
    if "top_k" in limits:
        p[order[5:]] = 0
    elif "top_p" in limits:
        p[order[int(np.searchsorted(np.cumsum(p[order]), 0.9)) + 1 :]] = 0
    assert abs(chi_square(drawn(logits, scale, settings, 4000), p / p.sum())) < 4


def test_logits_that_differ_keep_their_order_at_the_least_temperature():
    """However large they and their scale are: nothing saturates."""
    logits = np.array([-(1 << 43), 0, (1 << 43) - 512, (1 << 43) - 1, 5])
    every: list[dict[str, Any]] = [{}, {"top_p": 0.99}, {"top_k": 4}]
    for scale in (2.0**-60, 2.0**-30, 1.0, 2.0**20):
        for limits in every:
            settings = sampling(LEAST_TEMPERATURE, **limits)
            assert drawn(logits, integer.uf_from_float(scale), settings, 200)[3] == 200
    z = integer.sampling_logits(np.arange(-5, 5) << integer.LOGIT_DROP, integer.uf_from_float(2.0**100))
    assert (np.diff(z) >= 64 << integer.NOISE_BITS).all() and np.abs(integer.gumbel(3, np.arange(1000))).max() < 32 << integer.NOISE_BITS


def test_equal_logits_stay_equal_at_a_low_temperature():
    counts = drawn(np.array([0, 1 << 40, 1 << 40, 5]), integer.uf_from_float(2.0**-36), sampling(1e-6), 2000)
    assert counts[0] == counts[3] == 0 and abs(int(counts[1]) - 1000) < 150


def test_below_what_can_be_told_from_greedy_it_is_greedy():
    for temperature in (5e-324, 1e-45, LEAST_TEMPERATURE / 2):
        assert sampling(temperature) is GREEDY and sampling(temperature, top_p=0.5, seed=4) is GREEDY
    least, words = sampling(LEAST_TEMPERATURE), sampling(LEAST_TEMPERATURE).words
    assert least.temperature_scale.m and Sampling.of_words(*words) == least._replace(seed=0)
    assert -512 <= int(least.temperature_scale.e) < 512  # of which the sampler takes ten bits
