"""The calling convention of the programs (docs/isa.md): where they begin, what they are given, and a segment as words."""

from __future__ import annotations

from tritloom.firmware.integer import Sampling, noise_word, noise_words
from tritloom.firmware.isa import SCRATCH_WORDS

NO_STOP_TOKEN = 0xFFFFFFFF

ENTRY_GENERATION, ENTRY_PASSES = range(2)
"""Where the two programs begin."""

ARG_PROMPT, ARG_TOKENS, ARG_POSITION, ARG_STOP, ARG_TEMPERATURE, ARG_LIMITS, ARG_NOISE, ARG_NOISE_STEP = range(8)
"""Arguments of the generation program: prompt length, tokens to generate (0: prefill only), position of the
first prompt token, the token that ends a text (NO_STOP_TOKEN for none), and the sampling: `Sampling.words`, `integer.noise_word` of the
first token to generate, and the step of `integer.noise_words`.

`passes` has none. A pass is IN: its number of tokens (0 ends the program), and the first of them to answer (their number: none
is); then, segment by segment, `segment_words` and the segment's tokens. OUT: the answers."""


NOISE = 0
"""Scratch word in which the generation program keeps the noise of the next token."""
SEGMENT_WORDS, SLOT_WORDS = 5, 3
"""Words of the scratch memory for each segment and for each slot; a pass has as many of both as there are lanes, or fewer."""
assert SEGMENT_WORDS + SLOT_WORDS <= SCRATCH_WORDS
JOINS = 1


def segment_words(cache: int, count: int, position: int, *, joins: bool, shared: int = 0, prefix: int = 0,
                  sampling: Sampling) -> tuple[int, ...]:
    """A segment of `count` tokens, at most as many as the dot engine has lanes, the first at `position`, of the sequence whose cache
    begins at byte `cache`.

    `joins`: it attends together with the next segment; segments that do so are as many tokens as there are lanes or fewer, and have the
    same first `shared` positions, whole chunks, in the cache at `prefix`; `cache` has those from there on. `sampling`: of the answers.
    """
    last_shared = JOINS if joins else max(shared - 1, 0)
    noise, (_, step) = noise_word(sampling.seed, position + 1), noise_words(sampling.seed)
    return cache, position - shared, count, prefix, last_shared, position, noise, step, *sampling.words
