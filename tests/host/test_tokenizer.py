"""Text and tokens: every cut of a prompt, every kind of tokenizer, and what no tokenizer can read."""

import base64
import json

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, normalizers, pre_tokenizers

from tritloom.firmware.errors import InputError
from tritloom.host.tokenizer import Tokenizer, _reason

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
TOKENS = ["<unk>", "<s>", "</s>", *BYTES, "▁", *"abcdefghijklmnopqrstuvwxyz", "▁a", "th", "字"]
SPECIAL = ["<unk>", "<s>", "</s>"]
SPACES = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]


def sentencepiece(model, normalizer=None, pre_tokenizer=None):
    library = Library(model)
    library.normalizer, library.pre_tokenizer = normalizer, pre_tokenizer
    library.decoder = decoders.Sequence([*SPACES, decoders.Strip(" ", 1, 0)])
    library.add_special_tokens(SPECIAL)
    return library


def bpe():
    vocab = {token: i for i, token in enumerate(TOKENS)}
    model = models.BPE(vocab, [("▁", "a"), ("t", "h")], unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    return sentencepiece(model, normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]))


def unigram():
    scores = [(token, 0.0 if i < 3 else -3.0 - len(token) % 2) for i, token in enumerate(TOKENS)]
    model = models.Unigram(scores, unk_id=0, byte_fallback=True)
    return sentencepiece(model, pre_tokenizer=pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False))


def words():
    library = Library(models.WordLevel({token: i for i, token in enumerate(["[UNK]", "a", "b", "c", "d"])}, unk_token="[UNK]"))
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    return library


@pytest.fixture(scope="module")
def tokenizers(request):
    byte_level = Library.from_file(str(request.config.rootpath / "models" / "stories-4m" / "tokenizer.json"))
    beside = Library.from_str(byte_level.to_str())
    beside.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    return {"byte level": byte_level, "bytes and more": beside, "bpe": bpe(), "unigram": unigram(), "words": words()}


TEXTS = st.text(st.one_of(st.sampled_from("ab th漢字🦊é\n\u200d"), st.characters(exclude_categories=["Cs"])), max_size=12)
KINDS = pytest.mark.parametrize("kind", ["byte level", "bytes and more", "bpe", "unigram", "words"])
FREQUENT = settings(deadline=None, max_examples=100)


def pieces(tokenizer, ids, cut):
    stream = tokenizer.stream(ids[:cut])
    return [*(stream.push(token) for token in ids[cut:]), stream.finish()]


@KINDS
@FREQUENT
@example("漢字漢字", 0.4)
@example("a 🦊🦊", 0.7)
@example(" a", 0.0)
@example("\x00 ", 0.0)
@given(TEXTS, st.floats(0, 1))
def test_a_text_cut_anywhere_streams_to_what_is_decoded_at_once(tokenizers, kind, text, where):
    tokenizer, library = Tokenizer(tokenizers[kind]), tokenizers[kind]
    ids = library.encode(text).ids
    cut = round(where * len(ids))
    whole = library.decode(ids)
    assume("\ufffd" not in whole)
    # What `before` says whole: its longest beginning that is one of the whole text too.
    said = next(start for end in range(cut, -1, -1) if whole.startswith(start := library.decode(ids[:end])) and "\ufffd" not in start)
    got = pieces(tokenizer, ids, cut)
    assert "".join(got) == whole[len(said) :]
    assert not any("\ufffd" in piece for piece in got)


@pytest.mark.parametrize("kind", ["byte level", "bpe", "unigram"])
@FREQUENT
@given(st.data())
def test_any_tokens_stream(tokenizers, kind, data):
    """Tokens that no text has: nothing raises, and the text is the library's wherever the tokens are UTF-8."""
    library = tokenizers[kind]
    tokenizer = Tokenizer(library)
    ids = data.draw(st.lists(st.one_of(st.integers(0, 270), st.integers(0, library.get_vocab_size() - 1)), max_size=12))
    whole = library.decode(ids)
    text = "".join(pieces(tokenizer, ids, 0))
    assert text == tokenizer.decode(ids)
    if "\ufffd" not in whole or kind == "byte level":
        assert text == whole


def test_a_bad_byte_costs_only_itself():
    tokenizer = Tokenizer(bpe())
    ids = [3 + byte for byte in b"\xe6\xbc\xa2\x80\xe5\xad\x97"] + [TOKENS.index("c")]
    assert pieces(tokenizer, ids, 0) == ["", "", "漢", "\ufffd", "", "", "字", "c", ""]


@pytest.mark.parametrize("kind", ["byte level", "bpe"])
@pytest.mark.parametrize("cut", range(-4, 0))
def test_a_replacement_character_of_the_prompt_is_no_torn_one(tokenizers, kind, cut):
    tokenizer = Tokenizer(tokenizers[kind])
    ids = tokenizer.encode("ab\ufffdcd")
    assert "".join(pieces(tokenizer, ids, len(ids) + cut)).endswith("cd"[max(cut, -2) :])
    assert pieces(tokenizer, ids, len(ids) - 2) == ["c", "d", ""]


def test_a_token_beyond_the_tokenizer_is_shown(tokenizers):
    tokenizer = Tokenizer(tokenizers["byte level"])
    assert tokenizer.decode([*tokenizer.encode("ab")[1:], 5000]) == "ab<token 5000>"


STORED = {
    "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
    "a truncation that the library fails on": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 5},
    "padding": {"strategy": {"Fixed": 32}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 2, "pad_type_id": 0,
                "pad_token": "<|pad|>"},
    "dropout": 0.9,
}  # fmt: skip


@pytest.mark.parametrize("name", STORED)
def test_what_is_stored_for_training_leaves_the_prompt_alone(tokenizers, name):
    text = "Once upon a time there was a little girl named Lily. She"
    record = json.loads(tokenizers["byte level"].to_str())
    where = record["model"] if name == "dropout" else record
    where["truncation" if "truncation" in name else name] = STORED[name]
    assert Tokenizer.from_bytes(json.dumps(record).encode()).encode(text) == tokenizers["byte level"].encode(text).ids


def test_the_start_token_is_put_in_front_once(tokenizers):
    plain = Library.from_str(tokenizers["byte level"].to_str())
    plain.post_processor = None
    assert Tokenizer(tokenizers["byte level"]).encode("a") == Tokenizer(tokenizers["byte level"], 0).encode("a")
    assert Tokenizer(plain).encode("a") == Tokenizer(plain, 0).encode("a")[1:]
    assert Tokenizer(plain, 0).encode("a") == Tokenizer(tokenizers["byte level"]).encode("a")


@pytest.mark.parametrize("text, cause", [("", "empty"), ("a\ud800b", "character 2 .* not valid Unicode"), (" ", "no part")])
def test_what_is_no_prompt(text, cause):
    with pytest.raises(InputError, match=cause):
        Tokenizer(words()).encode(text)


def test_a_prompt_holds_no_token_beyond_the_model(tokenizers):
    library = Library.from_str(tokenizers["byte level"].to_str())
    library.add_special_tokens(["<|more|>"])
    tokenizer = Tokenizer(library)
    assert tokenizer.encode("a<|more|>")[-1] == 4096
    assert tokenizer.encode("a", 4096) == tokenizer.encode("a")
    with pytest.raises(
        InputError, match="'<|more|>' in the prompt is token 4096, but the model's vocabulary ends at 4095".replace("|", "[|]")
    ):
        tokenizer.encode("a<|more|>", 4096)


def damaged(**changes):
    return json.dumps(json.loads(bpe().to_str()) | changes).encode()


@pytest.mark.parametrize("data", [
    b"", b"{", b"[1]", b"[" * 3000, damaged(model={"type": "FutureBPE"}), damaged(model=None),
    damaged(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
    damaged(post_processor={"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
                            {"Sequence": {"id": "A", "type_id": 0}}], "pair": [], "special_tokens": {}}),
])  # fmt: skip
def test_what_is_no_tokenizer(data):
    with pytest.raises(InputError, match="^not a tokenizer .*; take tokenizer.json") as error:
        Tokenizer.from_bytes(data)
    assert "\n" not in str(error.value)


def test_what_ends_the_library_in_a_prompt(tokenizers):
    """Its BaseException is an InputError; an interruption stays one."""
    trie = base64.b64encode((4).to_bytes(4, "little") + b"\xff\xff\xff\x7f").decode()
    record = json.loads(tokenizers["byte level"].to_str()) | {"normalizer": {"type": "Precompiled", "precompiled_charsmap": trie}}
    with pytest.raises(InputError, match="cannot read the prompt|not a tokenizer"):
        Tokenizer.from_bytes(json.dumps(record).encode()).encode("漢字 é a")
    with pytest.raises(KeyboardInterrupt):
        _reason(KeyboardInterrupt())
