"""Several texts together are, token for token, what each of them is alone."""

import itertools
import random
from typing import Any

import pytest

from seed import seed_from_environment
from synthetic import TINY, hugging_face
from tritloom.firmware.config import BuildConfig, ConfigError
from tritloom.firmware.errors import InputError
from tritloom.firmware.layout import memory_map
from tritloom.gen.models import open_checkpoint
from tritloom.gen.pack import pack
from tritloom.host.backends.emulator import EmulatorBackend
from tritloom.host.backends.protocol import DeviceBusy
from tritloom.host.image import open_image, write_image
from tritloom.host.prefix import Prefix
from tritloom.host.scheduler import Segment, attention_groups
from tritloom.host.session import Session, sampling

LANES, SEQUENCES = 4, 5
CHOICES = (dict(), dict(temperature=0.8), dict(temperature=1.5, top_k=5), dict(top_p=0.7), dict(temperature=1.2, top_k=20, top_p=0.9))


def machine(folder, **changes):
    checkpoint = open_checkpoint(hugging_face(folder / "model"))
    config = BuildConfig(shape=checkpoint.spec.shape, tables=2, rows_per_cycle=2, vector_lanes=4, attention_macs=8, mem_bytes=16,
                         sampler_candidates=24, **changes)
    packed = pack(checkpoint, config)
    write_image(folder / "image", config=config, spec=checkpoint.spec.to_dict(), sections=packed.sections)
    image = open_image(folder / "image")
    return EmulatorBackend(config, image.map.total_bytes), image


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return machine(tmp_path_factory.mktemp("batch"), lanes=LANES, sequences=SEQUENCES)


@pytest.fixture
def session(built):
    with Session(*built) as session:
        yield session


def beginning(rng, length=40):
    return [rng.randrange(TINY.vocab) for _ in range(length)]


def request(rng, beginnings=((),)):
    """Arguments of a text: a prompt that may repeat itself after a beginning, and any sampling, stop tokens and drafts."""
    piece = [rng.randrange(TINY.vocab) for _ in range(rng.randint(1, 6))]
    prompt = [*rng.choice(beginnings)[: rng.randint(0, 40)], *(piece * 4)[: rng.randint(1, 10)]]
    return dict(prompt=prompt, max_new_tokens=rng.randint(1, 14), drafts=rng.choice((0, 0, 1, 3)),
                sampling=sampling(**rng.choice(CHOICES) | {"seed": rng.getrandbits(32)}),
                stop_ids=[rng.randrange(TINY.vocab) for _ in range(rng.choice((0, 0, 8)))])


def alone(session, wanted):
    session.reset()
    return list(session.generate(**wanted | {"drafts": 0}))


@pytest.mark.slow
@pytest.mark.parametrize("turn", [*range(5), *(pytest.param(turn, marks=pytest.mark.long) for turn in range(5, 12))])
def test_texts_that_join_and_leave_at_any_token_are_those_of_each_alone(session, turn):
    """`TRITLOOM_SEED` changes the requests; a failure names the text."""
    seed = seed_from_environment() * 1000 + turn
    rng = random.Random(seed)
    beginnings = [(), *(beginning(rng) for _ in range(rng.randint(1, 2)))]
    beginnings.append(beginnings[1][:20] + beginning(rng, 20))
    wanted, texts, got = [request(rng, beginnings) for _ in range(rng.randint(1, 9))], [], []

    def join(batch):
        texts.append(batch.add(**wanted[len(texts)]))
        got.append([])

    with session.batch() as batch:
        while len(texts) < len(wanted):
            join(batch)
            for text, token in batch:
                got[texts.index(text)].append(token)
                if len(texts) < len(wanted) and len(batch.requests) < SEQUENCES and rng.random() < 0.3:
                    join(batch)
                if rng.random() < 0.02:
                    rng.choice(texts).close()
        batch._scheduler.collect()
        assert batch._scheduler.caches.users == [0] * SEQUENCES
    for index, (text, request_) in enumerate(zip(texts, wanted, strict=True)):
        expected = alone(session, request_)
        if text.closed:
            assert got[index] == expected[: len(got[index])], f"closed text {index}, seed {seed}: {request_}"
        else:
            assert got[index] == text.tokens == expected, f"text {index}, seed {seed}: {request_}"


def test_many_texts_take_few_passes(session):
    """Four texts of 10 tokens after prompts of one token: 10 passes for 40 tokens."""
    with session.batch() as batch:
        for seed in range(LANES):
            batch.add([seed + 1], 10, sampling=sampling(temperature=1.0, seed=seed))
        assert len(list(batch)) == 10 * LANES
        stats = session.stats()
    assert stats.passes == 10 and stats.prompt_tokens == LANES and stats.tokens == 10 * LANES
    assert session.stats().weight_beats - session.image.map.token_beats * 10 in range(session.image.map.layers_beats + 1)


@pytest.mark.slow
@pytest.mark.parametrize("attention_lanes", [1, 3])
def test_a_dot_engine_with_fewer_lanes_takes_turns(tmp_path, session, attention_lanes):
    """Prompts of more tokens than it has lanes, and a head that is streamed again."""
    wanted: list[dict[str, Any]] = [
        dict(prompt=[9, 8, 7, 6, 5, 4][n:], max_new_tokens=4, sampling=sampling(temperature=1.0, seed=n)) for n in range(LANES)]
    expected = [alone(session, each) for each in wanted]
    with Session(*machine(tmp_path, lanes=LANES, sequences=SEQUENCES, attention_lanes=attention_lanes)) as other:
        with other.batch() as batch:
            texts = [batch.add(**each) for each in wanted]
            list(batch)
    assert [text.tokens for text in texts] == expected


@pytest.mark.slow
def test_a_common_beginning_is_read_once(session):
    """Texts wait for the first one's prompt; what they share are whole chunks, without the last token."""
    head = beginning(random.Random(1))
    wanted = [dict(prompt=[*head[:n], *tail], max_new_tokens=5) for n, tail in ((40, [1]), (40, [2, 3]), (32, []), (33, []), (20, [4]))]
    expected = [alone(session, each) for each in wanted]
    with session.batch() as batch:
        texts = [batch.add(**each) for each in wanted]
        list(batch)
        read = session.stats().passes
    assert [text.tokens for text in texts] == expected
    assert [text.shared for text in texts] == [0, 32, 16, 32, 16]
    assert read < 20


@pytest.mark.slow
def test_a_beginning_stays_until_nobody_needs_it(session):
    head = beginning(random.Random(2))
    with session.batch() as batch:
        first = batch.add(head, 2)
        run = iter(batch)
        next(run)
        second, third = batch.add([*head[:32], 5], 14), batch.add(head[:20], 6)
        next(iter_until(run, second))
        first.close()
        assert (second.shared, second.prefix, third.shared) == (32, first.cache, 16)
        others = [batch.add([n], 12) for n in range(SEQUENCES - 3)]
        waiting = batch.add([1], 4)
        with pytest.raises(InputError, match="all 5 caches"):
            batch.add([1], 1)
        for _text, _ in run:
            if third.done:
                break
            assert not waiting.admitted, "the first one's cache is not free"
        next(iter_until(run, waiting))
        assert waiting.cache == third.cache and not second.done
        for _text, _ in run:
            if second.done:
                break
        fourth = batch.add([*head[:32], 9], 2)
        list(run)
        assert fourth.shared == 0 and all(other.done for other in others)
    assert second.tokens == alone(session, dict(prompt=[*head[:32], 5], max_new_tokens=14))
    assert waiting.tokens == alone(session, dict(prompt=[1], max_new_tokens=4))
    assert fourth.tokens == alone(session, dict(prompt=[*head[:32], 9], max_new_tokens=2))


def iter_until(run, text):
    """`run` from the first token of `text` on."""
    return (found for found in run if found[0] is text)


def test_texts_that_share_attendattention_groups(session):
    """Segments of one prefix join as far as the dot engine has lanes; others but for the first and the last, if that reads no more."""
    config, head = session.config, beginning(random.Random(3), 32)
    with session.batch() as batch:
        texts = [batch.add([*head, n], 8) for n in range(LANES)]
        list(itertools.islice(batch, LANES + 2))
        live = [text for text in texts if not text.done]
        segments = [Segment(text, 1, True, Prefix.of(text, live)) for text in live]
        groups = attention_groups(segments, config)
        assert [text.shared for text in texts] == [0, 32, 32, 32]
        assert len(groups) == 1 and {piece.shared for piece in groups[0]} == {32}
        separate = [Segment(text, 1, True) for text in live]
        alone = [len(group) for group in attention_groups(separate, config)]
        assert alone == ([1, LANES - 2, 1] if config.shape.group == 1 else LANES * [1])


def test_more_texts_than_lanes_take_turns(session):
    with session.batch() as batch:
        texts = [batch.add([3 + i], 4) for i in range(SEQUENCES)]
        order = [texts.index(text) for text, _ in batch]
    assert sorted(order[:SEQUENCES]) == list(range(SEQUENCES)), "nobody waits for the end of another"


def test_what_a_batch_cannot_do_is_said(session):
    batch = session.batch()
    for _ in range(SEQUENCES):
        text = batch.add([1, 2], 3)
    with pytest.raises(InputError, match="all 5 caches of this machine are taken: close a text, or build the machine"):
        batch.add([1], 1)
    with pytest.raises(InputError, match="drafts must be from 0 to 3 on this machine of 4 lanes, not 4"):
        batch.add([1], 1, drafts=4)
    with pytest.raises(InputError, match="go past the context of 64"):
        batch.add([1], 65)
    with pytest.raises(DeviceBusy, match="a batch is open: close it first"):
        list(session.generate([1], 1))
    with pytest.raises(DeviceBusy, match="under way"):
        session.batch()
    text.close()
    batch.add([1], 1)
    batch.close()
    with pytest.raises(InputError, match="the batch is closed"):
        batch.add([1], 1)
    with pytest.raises(InputError, match="the batch is closed"):
        next(iter(batch))
    assert len(list(session.generate([1], 2))) == 2, "the session generates again"


def test_a_batch_goes_on_after_an_early_break(session):
    expected = alone(session, dict(prompt=[5, 6], max_new_tokens=9))
    with session.batch() as batch:
        text = batch.add([5, 6], 9)
        other = batch.add([7], 3)
        for _ in batch:
            break
        list(batch)
        assert text.tokens == expected and len(other.tokens) == 3
    assert session.position == 0


def test_caches_are_part_of_the_configuration(built):
    config = built[1].config
    alone = BuildConfig.from_dict(config.to_dict() | {"sequences": 1})
    assert BuildConfig.from_json(config.to_json()) == config and config.digest != alone.digest
    assert memory_map(config).regions["kv"].length == SEQUENCES * memory_map(alone).regions["kv"].length
    with pytest.raises(ConfigError, match="sequences must be a positive integer, not 0"):
        BuildConfig.from_dict(config.to_dict() | {"sequences": 0})


def test_one_lane_serves_several_texts(tmp_path):
    with Session(*machine(tmp_path, lanes=1, sequences=2)) as session:
        wanted = [dict(prompt=[3, 4, 5], max_new_tokens=5), dict(prompt=[9], max_new_tokens=7, sampling=sampling(top_k=3, seed=2))]
        expected = [alone(session, each) for each in wanted]
        with session.batch() as batch:
            texts = [batch.add(**each) for each in wanted]
            list(batch)
        assert [text.tokens for text in texts] == expected
