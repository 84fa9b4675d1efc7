"""Requests to passes and back, without any device: the answers are made up here."""

import itertools
import random

import pytest

from seed import seed_from_environment
from synthetic import TINY
from tritloom.firmware.config import CHUNK, BuildConfig
from tritloom.firmware.errors import InputError
from tritloom.firmware.layout import memory_map
from tritloom.host.prefix import Prefix, common_length
from tritloom.host.scheduler import Scheduler, Segment, attention_groups

LANES, SEQUENCES = 4, 5
CONFIG = BuildConfig(shape=TINY, lanes=LANES, sequences=SEQUENCES, tables=2, rows_per_cycle=2, vector_lanes=4, attention_macs=8,
                     mem_bytes=16)
LAYOUT = memory_map(CONFIG, tied=True)


def scheduler(**changes):
    return Scheduler(CONFIG, LAYOUT, timed=True, **changes)


class Oracle:
    """A device that needs no weights: a token is a hash of all before it, as the caches have it."""

    def __init__(self):
        self.caches = [{} for _ in range(SEQUENCES)]
        self.cycle = 0

    def tokens(self, segment):
        """The answers to a segment's tokens. What a wrong draft left in a cache is overwritten before it is read."""
        request, answers = segment.request, []
        for position, token in enumerate(segment.tokens, request.position):
            assert position >= request.shared
            self.caches[request.cache][position] = token
            seen = tuple(self.caches[request.prefix if i < request.shared else request.cache][i] for i in range(position + 1))
            answers.append(hash(seen) % TINY.vocab)
        return answers

    def answers(self, step):
        """What the program of passes answers, with cycle stamps."""
        all_tokens = list(itertools.chain.from_iterable(self.tokens(segment) for segment in step.segments))
        assert step.words[:2] == [len(all_tokens), len(all_tokens) - step.answers] and len(all_tokens) == step.slots <= LANES
        self.cycle += 1000 + 10 * step.slots
        return [(token, self.cycle + i) for i, token in enumerate(all_tokens[len(all_tokens) - step.answers :])]


def alone(prompt, count, stop_ids=()):
    seen, out = list(prompt), []
    while len(out) < count and (not out or out[-1] not in stop_ids):
        out.append(hash(tuple(seen)) % TINY.vocab)
        seen.append(out[-1])
    return out


def run(s, device):
    """All requests to their ends; the number of passes."""
    passes = 0
    while (step := s.next_pass()) is not None:
        s.settle(step, device.answers(step))
        passes += 1
    return passes


@pytest.mark.parametrize("turn", range(30))
def test_any_mixture_gives_what_each_gives_alone(turn):
    rng = random.Random(seed_from_environment() * 1000 + turn)
    heads = [[rng.randrange(TINY.vocab) for _ in range(40)] for _ in range(2)]
    s, device, requests = scheduler(), Oracle(), []
    for n in range(12):
        prompt = [*rng.choice(heads)[: rng.randrange(40)], *([n + 1, 5] * 3)[: rng.randint(1, 6)]]
        count, stop_ids = rng.randint(1, 10), [rng.randrange(TINY.vocab) for _ in range(4)]
        while len(s.requests) == SEQUENCES or rng.random() < 0.5 and s.requests:
            step = s.next_pass()
            assert step is not None
            s.settle(step, device.answers(step))
        requests.append((s.add(prompt, count, stop_ids=stop_ids, drafts=rng.choice((0, 3))), alone(prompt, count, stop_ids)))
    run(s, device)
    s.collect()
    assert s.caches.users == [0] * SEQUENCES
    for request, expected in requests:
        assert request.tokens == expected and request.done


def test_texts_of_one_token_share_every_pass():
    s = scheduler()
    for n in range(LANES):
        s.add([n + 1], 10)
    assert run(s, Oracle()) == 10 == s.passes and s.read == 10 * LANES


def test_a_prompt_takes_the_room_that_is_left():
    s = scheduler()
    s.add([1], 3)
    s.add(list(range(1, 8)), 1)
    step = s.next_pass()
    assert step is not None
    assert [(segment.count, segment.answers, segment.first) for segment in step.segments] == [(3, False, 0), (1, True, 3)]
    assert step.answers == 1 and step.slots == LANES


def test_a_common_prefix_waits_and_is_shared_in_whole_chunks():
    s, device = scheduler(), Oracle()
    head = [3 + n % 7 for n in range(2 * CHUNK + 5)]
    first, second = s.add(head, 4), s.add([*head, 1], 2)
    step = s.next_pass()
    assert step is not None and [segment.request for segment in step.segments] == [first] and not second.admitted
    run(s, device)
    assert (second.shared, second.prefix) == (2 * CHUNK, first.cache) and second.tokens == alone([*head, 1], 2)


def test_a_machine_without_a_free_cache_says_so():
    s = scheduler()
    requests = [s.add([n + 1], 2) for n in range(SEQUENCES)]
    with pytest.raises(InputError, match="all 5 caches of this machine are taken"):
        s.add([1], 1)
    requests[0].close()
    assert s.add([9], 1) in s.requests
    with pytest.raises(InputError, match="whole chunks of 16"):
        requests[1].close()
        s.add([1], 1, position=20, like=requests[2], shared=5)


def test_attention_groups_hold_one_prefix_and_as_many_tokens_as_the_engine_has_lanes():
    s = scheduler()
    requests = [s.add([n + 1], 4) for n in range(LANES)]
    s.next_pass()
    segments = [Segment(request, 1, True, Prefix(0, 0) if n < 2 else None) for n, request in enumerate(requests)]
    for groups in (attention_groups(segments, CONFIG), attention_groups(segments[:2], CONFIG)):
        assert all(len({piece.segment.prefix for piece in group}) == 1 for group in groups)
        assert all(sum(len(piece.tokens) for piece in group) <= CONFIG.dot_lanes for group in groups)
    assert [piece.segment for group in attention_groups(segments, CONFIG) for piece in group] == segments


def test_cycles_of_passes_are_learnt_from_a_device_with_time_alone():
    for timed in (True, False):
        s = Scheduler(CONFIG, LAYOUT, timed=timed)
        s.add([1, 2], 4)
        run(s, Oracle())
        assert bool(s.pass_cycles) == timed


def test_common_length():
    assert [common_length([1, 2, 3], other) for other in ([], [1, 2], [1, 2, 3, 4], [2])] == [0, 2, 3, 0]
