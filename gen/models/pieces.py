"""Tokenizers built from what models carry instead of a tokenizer.json: the vocabulary in GGUF metadata, and SentencePiece files.

What is built encodes as llama.cpp does from a GGUF file, and as SentencePiece does from its own.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE, Unigram

from tritloom.firmware.errors import TritloomError
from tritloom.gen.models.problems import shown

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""Kinds of pieces, numbered alike in GGUF metadata and in SentencePiece files."""
SPACE = "▁"
BYTES = frozenset(f"<0x{byte:02X}>" for byte in range(256))


class VocabularyError(TritloomError):
    """A vocabulary that no tokenizer can be built from: the reason, in one line."""


@dataclass(frozen=True)
class Piece:
    """An entry of a vocabulary. `score`: the greater, the sooner SentencePiece takes it."""

    text: str
    kind: int = NORMAL
    score: float = 0.0


def with_pieces(library: Tokenizer, pieces: Sequence[Piece]) -> Tokenizer:
    """The tokenizer, taking control and user-defined pieces whole wherever a text has them."""
    library.add_special_tokens([AddedToken(p.text, special=True, normalized=False) for p in pieces if p.kind in (CONTROL, UNKNOWN)])
    library.add_tokens([AddedToken(p.text, special=False, normalized=False) for p in pieces if p.kind == USER_DEFINED])
    return library


def ids_of(pieces: Sequence[Piece]) -> dict[str, int]:
    """Piece to id. Raises VocabularyError where a piece stands twice."""
    ids = {piece.text: i for i, piece in enumerate(pieces)}
    for i, piece in enumerate(pieces):
        if ids[piece.text] != i:
            raise VocabularyError(f"token {shown(piece.text)} stands twice, with ids {i} and {ids[piece.text]}")
    return ids


# Byte-level BPE --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PreTokenizer:
    """How a family cuts text before it merges bytes.

    `cuts`: expressions, each of which isolates its matches in what the ones before left. `whole`: a word that is a token is taken
    without merging. `starts`: prompts get a start token where the file does not say.
    """

    cuts: tuple[str, ...]
    whole: bool = False
    starts: bool = False


_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"


def _words(numbers: str, letters: str = r"\p{L}") -> str:
    inside = "".join(sorted({r"\p{L}", letters}))
    return rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[{letters}]+|{numbers}| ?[^\s{inside}\p{{N}}]+[\r\n]*|{_SPACES}"


def _cased(contractions: str, numbers: str) -> str:
    start = r"[^\r\n\p{L}\p{N}]?"
    words = rf"{start}{_UPPER}*{_LOWER}+{contractions}|{start}{_UPPER}+{_LOWER}*{contractions}"
    return rf"{words}|{numbers}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"


_FAMILIES = {
    ("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"):
        PreTokenizer((_words(r"\p{N}{1,3}"),), whole=True, starts=True),
    ("dbrx", "smaug-bpe", "glm4", "chatglm-bpe"): PreTokenizer((_words(r"\p{N}{1,3}"),)),
    ("qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez", "stablelm2", "hunyuan", "solar-open", "grok-2"):
        PreTokenizer((_words(r"\p{N}"),)),
    ("qwen35",): PreTokenizer((_words(r"\p{N}", r"\p{L}\p{M}"),)),
    ("gpt-2", "phi-2", "mpt", "olmo", "jais", "gigachat", "a.x-4.0", "mellum", "exaone4", "trillion", "granite-docling"):
        PreTokenizer((_GPT2,)),
    ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"): PreTokenizer((r"\p{N}", _GPT2)),
    ("tekken",): PreTokenizer((_cased("", r"\p{N}"),), whole=True, starts=True),
    ("gpt-4o", "llama4", "kanana2"): PreTokenizer((_cased(_CONTRACTIONS + "?", r"\p{N}{1,3}"),)),
    ("falcon",): PreTokenizer((r"[\p{P}$+<=>^~|`]+", _GPT2, "[0-9][0-9][0-9]")),
    ("default",): PreTokenizer((r"[\p{P}$+<=>^~|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
}  # fmt: skip
PRE_TOKENIZERS = {name: family for names, family in _FAMILIES.items() for name in names}
"""By the names that `tokenizer.ggml.pre` has for them."""


def byte_level(pieces: Sequence[Piece], merges: Sequence[str], pre: PreTokenizer) -> Tokenizer:
    """A byte-level BPE tokenizer. `merges`: pairs with a space between, the first to merge first."""
    pairs = []
    for merge in merges:
        left, space, right = merge[1:].partition(" ")
        if not (merge and space and right):
            raise VocabularyError(f"merge {shown(merge)} is no pair of tokens")
        pairs.append((merge[0] + left, right))
    library = Tokenizer(BPE(ids_of(pieces), pairs, ignore_merges=pre.whole))
    library.pre_tokenizer = pre_tokenizers.Sequence([
        *(pre_tokenizers.Split(Regex(cut), "isolated") for cut in pre.cuts),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    library.decoder = decoders.ByteLevel()
    return with_pieces(library, pieces)


# SentencePiece ---------------------------------------------------------------------------------------


def merges_of(pieces: Sequence[Piece]) -> list[tuple[str, str]]:
    """The merges of a SentencePiece BPE vocabulary: every way to join two pieces to a third, the best scores first."""
    ids = {piece.text: i for i, piece in enumerate(pieces) if piece.kind not in (UNKNOWN, CONTROL, BYTE)}
    found = []
    for text, i in ids.items():
        for cut in range(1, len(text)):
            if text[:cut] in ids and text[cut:] in ids:
                found.append((-pieces[i].score, i, ids[text[:cut]], ids[text[cut:]]))
    return [(pieces[left].text, pieces[right].text) for _, _, left, right in sorted(found)]


def sentencepiece(
    pieces: Sequence[Piece],
    *,
    unigram: bool = False,
    add_space: bool = True,
    one_space: bool = False,
    charsmap: bytes = b"",
    unknown: int | None = 0,
) -> Tokenizer:
    """A SentencePiece tokenizer, BPE or unigram; characters that are no pieces become bytes where the vocabulary has all of them.

    `add_space`: a space is put before a text; `one_space`: spaces around it and after another are dropped; `charsmap`: the
    normaliser's table; `unknown`: the piece for what cannot be spelt.
    """
    ids = ids_of(pieces)
    byte_fallback = ids.keys() >= BYTES
    if unknown is None or not 0 <= unknown < len(pieces):
        if not byte_fallback:
            raise VocabularyError("has neither all 256 bytes nor an unknown token: most characters could not be spelt")
        unknown = None
    if unigram:
        # Bytes only stand in for what cannot be spelt: SentencePiece never finds "<0x41>" in a text.
        last = min((piece.score for piece in pieces if piece.kind != BYTE), default=0) - 1000
        scores = [(piece.text, last if piece.kind == BYTE else piece.score) for piece in pieces]
        library = Tokenizer(Unigram(scores, unknown, byte_fallback))
    else:
        name = None if unknown is None else pieces[unknown].text
        library = Tokenizer(BPE(ids, merges_of(pieces), unk_token=name, fuse_unk=True, byte_fallback=byte_fallback))
    library.normalizer = normalizers.Sequence([
        *([normalizers.Precompiled(checked_charsmap(charsmap))] if charsmap else []),
        *([normalizers.Replace(Regex("^ +| +$"), ""), normalizers.Replace(Regex(" {2,}"), " ")] if one_space else []),
        *([normalizers.Prepend(SPACE)] if add_space else []),
        normalizers.Replace(" ", SPACE),
    ])  # fmt: skip
    library.decoder = decoders.Sequence([
        decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *([decoders.Strip(" ", 1, 0)] if add_space else []),
    ])  # fmt: skip
    return with_pieces(library, pieces)


def checked_charsmap(data: bytes) -> bytes:
    """A normaliser's table: the size of a trie in bytes (u32, little endian), the trie of u32 units, and UTF-8 text.

    The library ends its thread on a damaged one.
    """
    size = int.from_bytes(data[:4], "little")
    try:
        if len(data) < 4 or size % 4 or not 4 <= size <= len(data) - 4:
            raise ValueError
        data[4 + size :].decode()
    except ValueError:
        raise VocabularyError("the normaliser's table is damaged") from None
    return data


def _fields(data: bytes) -> dict[int, list[Any]]:
    """Fields of a protocol buffer message by number: integers, and bytes. Raises ValueError on what is none."""

    def varint() -> int:
        nonlocal at
        value = 0
        for shift in range(0, 70, 7):
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        raise ValueError

    fields: dict[int, list[Any]] = {}
    at = 0
    try:
        while at < len(data):
            number, wire = divmod(varint(), 8)
            if number == 0:
                raise ValueError
            if wire == 0:
                value: Any = varint()
                value -= (value >> 63) << 64  # negative numbers are stored in 64 bits
            else:
                size = {1: 8, 5: 4}[wire] if wire != 2 else varint()
                value, at = data[at : at + size], at + size
            fields.setdefault(number, []).append(value)
    except (IndexError, KeyError):
        raise ValueError from None
    if at > len(data):
        raise ValueError
    return fields


def read_sentencepiece(data: bytes) -> tuple[Tokenizer, int, int]:
    """The tokenizer of a SentencePiece file (its message ModelProto), and the ids of its start and end pieces, -1 for none."""
    try:
        model = _fields(data)
        trainer, normaliser = _fields(model.get(2, [b""])[-1]), _fields(model.get(3, [b""])[-1])
        pieces = []
        for entry in map(_fields, model[1]):
            (score,) = struct.unpack("<f", entry.get(2, [bytes(4)])[-1])
            pieces.append(Piece(entry[1][-1].decode(), int(entry.get(3, [NORMAL])[-1]), score))
            if "\0" in pieces[-1].text:
                raise VocabularyError("a piece holds a null character")
        algorithm, suffix, unknown, start, end = (
            int(trainer.get(number, [default])[-1]) for number, default in ((3, 1), (24, 0), (40, 0), (41, 1), (42, 2))
        )
        charsmap = bytes(normaliser.get(2, [b""])[-1])
        fallback = bool(trainer.get(35, [0])[-1])
        add_space, one_space, escape = (bool(normaliser.get(number, [1])[-1]) for number in (3, 4, 5))
    except (ValueError, KeyError, TypeError, AttributeError, struct.error):
        raise VocabularyError("not a SentencePiece file") from None
    if algorithm not in (1, 2):
        raise VocabularyError(f"SentencePiece model type {algorithm} is not supported, only unigram (1) and BPE (2)")
    if (count := sum(piece.kind == UNKNOWN for piece in pieces)) != 1:
        raise VocabularyError(f"it has {count} unknown tokens where a SentencePiece file has one")
    if {piece.text for piece in pieces if piece.kind == BYTE} != (BYTES if fallback else set()):
        raise VocabularyError("its pieces for bytes are not <0x00> to <0xFF>, or there are some without byte_fallback")
    if suffix or not escape:
        raise VocabularyError("SentencePiece files that mark a space after a word, or not at all, are not supported")
    library = sentencepiece(
        pieces, unigram=algorithm == 1, add_space=add_space, one_space=one_space, charsmap=charsmap, unknown=unknown
    )  # fmt: skip
    return library, start, end


# GGUF ------------------------------------------------------------------------------------------------


def _list(metadata: dict[str, Any], key: str, kinds: tuple[type, ...], length: int | None = None) -> list[Any] | None:
    values = metadata.get(key)
    if values is None:
        return None
    if not isinstance(values, list) or any(not isinstance(value, kinds) for value in values):
        raise VocabularyError(f"{key} is no list of {'strings' if str in kinds else 'numbers'}")
    if length is not None and len(values) != length:
        raise VocabularyError(f"{key} has {len(values)} entries for {length} tokens")
    return values


def gguf_pieces(metadata: dict[str, Any]) -> list[Piece] | None:
    """The vocabulary that a GGUF file carries, if it does."""
    tokens = _list(metadata, "tokenizer.ggml.tokens", (str,))
    if not tokens:
        return None
    kinds = _list(metadata, "tokenizer.ggml.token_type", (int,), len(tokens)) or [NORMAL] * len(tokens)
    scores = _list(metadata, "tokenizer.ggml.scores", (int, float), len(tokens)) or [0.0] * len(tokens)
    return [
        Piece(text or f"[EMPTY_{i}]", kind, float(score)) for i, (text, kind, score) in enumerate(zip(tokens, kinds, scores, strict=True))
    ]


def read_gguf_vocabulary(metadata: dict[str, Any], pieces: list[Piece]) -> tuple[Tokenizer, bool]:
    """The tokenizer of a GGUF file's vocabulary, and whether prompts get a start token where the file does not say."""
    model = metadata.get("tokenizer.ggml.model")
    if model == "gpt2":
        merges = _list(metadata, "tokenizer.ggml.merges", (str,))
        if merges is None:
            raise VocabularyError("its vocabulary has no merges (tokenizer.ggml.merges), without which text cannot be encoded")
        name = metadata.get("tokenizer.ggml.pre", "default")
        if name not in PRE_TOKENIZERS:
            raise VocabularyError(f"its pre-tokenizer {shown(name)} is not supported")
        pre = PRE_TOKENIZERS[name]
        return byte_level(pieces, merges, pre), pre.starts
    if model == "llama":
        if "tokenizer.ggml.scores" not in metadata:
            raise VocabularyError("its vocabulary has no scores (tokenizer.ggml.scores), without which text cannot be encoded")
        add_space = metadata.get("tokenizer.ggml.add_space_prefix", True)
        return sentencepiece(pieces, add_space=bool(add_space), unknown=metadata.get("tokenizer.ggml.unknown_token_id", 0)), True
    raise VocabularyError(f"its kind of tokenizer, {shown(model)}, is not supported: gpt2 and llama are")
