"""Text to tokens and back, with the model's own tokenizer.json."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from tokenizers import Tokenizer as _Tokenizer

from tritloom.firmware.errors import InputError
from tritloom.system.silence import silence

LONGEST_CHARACTER = 4
"""Bytes of the longest UTF-8 sequence, and so the most tokens that share a character."""
BYTE_TOKEN = re.compile("<0x([0-9A-Fa-f]{2})>")
"""How tokenizers with byte fallback spell the token of a byte."""


class Readable(Protocol):
    """A file, or what stands for one: str() says where it comes from."""

    def read_bytes(self) -> bytes: ...


def _byte_alphabet() -> dict[str, int]:
    """The character that stands for each byte in a byte-level vocabulary: itself where it prints, else one from U+0100 on."""
    printing = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printing]
    return {chr(byte): byte for byte in printing} | {chr(256 + i): byte for i, byte in enumerate(others)}


BYTE_ALPHABET = _byte_alphabet()


def _kinds(decoder: object) -> set[str]:
    """Names of a decoder and of its parts."""
    if decoder is None:
        return set()
    state = json.loads(decoder.__getstate__())  # type: ignore[attr-defined]  # the library shows it in no other way
    return {part["type"] for part in [state, *state.get("decoders", ())]}


def _reason(error: BaseException) -> str:
    """Why the library failed, in one line. It raises plain Exceptions, and a BaseException of its own where it gives up; others pass."""
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
        raise error
    line = (str(error) or type(error).__name__).splitlines()[0][:240]
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)


class Tokenizer:
    """A model's tokenizer. `bos_id`: the token that starts a text, where tokenizer.json does not put one in front itself."""

    def __init__(self, tokenizer: _Tokenizer, bos_id: int | None = None) -> None:
        # Truncation, padding and dropout may be stored for training; a prompt is read whole and always the same.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        if getattr(tokenizer.model, "dropout", None) is not None:
            tokenizer.model.dropout = None
        self._tokenizer = tokenizer
        self.bos_id = None if bos_id in tokenizer.encode("").ids[:1] else bos_id
        kinds = _kinds(tokenizer.decoder)
        self._byte_level, self._byte_fallback = "ByteLevel" in kinds, "ByteFallback" in kinds
        self._bytes_alone = kinds == {"ByteLevel"}
        self._special = {id for id, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        plain = [id for token, id in tokenizer.get_vocab().items() if token.isascii() and token.isalnum() and id not in self._special]
        self._before = [min(plain)] if plain else []
        self._bytes: dict[int, bytes] = {}

    @classmethod
    def from_file(cls, path: str | Readable, bos_id: int | None = None) -> Tokenizer:
        try:
            return cls.from_bytes((Path(path) if isinstance(path, str) else path).read_bytes(), bos_id)
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}; a model folder needs its tokenizer.json") from None
        except InputError as error:
            raise InputError(f"{path}: {error}") from None

    @classmethod
    def from_bytes(cls, data: bytes, bos_id: int | None = None) -> Tokenizer:
        try:
            with silence():
                return cls(_Tokenizer.from_buffer(data), bos_id)
        except BaseException as error:
            raise InputError(f"not a tokenizer ({_reason(error)}); take tokenizer.json from the model's source") from None

    def __len__(self) -> int:
        return self._tokenizer.get_vocab_size()

    def encode(self, text: str, vocab: int | None = None) -> list[int]:
        """Tokens of a text, with the tokens that the tokenizer puts around it. What looks like a special token is one.

        `vocab`: the size of the model's vocabulary, beyond which no token of the tokenizer may be used.
        """
        if not text:
            raise InputError("the prompt is empty: give at least one character")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"character {error.start + 1} of the prompt is not valid Unicode: give the prompt as UTF-8") from None
        try:
            with silence():
                ids = self._tokenizer.encode(text).ids
        except BaseException as error:
            raise InputError(f"the tokenizer cannot read the prompt ({_reason(error)}): take the one of the model's source") from None
        if ids == self._tokenizer.encode("").ids:
            raise InputError("the tokenizer knows no part of the prompt: give other text, or the model's own tokenizer")
        if vocab is not None and (beyond := next((id for id in ids if id >= vocab), None)) is not None:
            token = self._tokenizer.id_to_token(beyond)
            raise InputError(f"{token!r:.60} in the prompt is token {beyond}, but the model's vocabulary ends at {vocab - 1}: leave it out")
        return ids if self.bos_id is None else [self.bos_id, *ids]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of tokens, without the special ones."""
        stream = self.stream()
        return "".join(stream.push(token) for token in ids) + stream.finish()

    def stream(self, before: Iterable[int] = ()) -> TextStream:
        """Text piece by piece, of tokens that follow `before`."""
        return TextStream(self, before)

    def whole(self, ids: list[int]) -> str:
        """Text of tokens as the library decodes them at once."""
        return self._tokenizer.decode(ids, skip_special_tokens=True)

    def token_bytes(self, id: int) -> bytes:
        """What a token adds to the text when it follows others: none if special, `<token N>` if it is not of this tokenizer."""
        if id not in self._bytes:
            self._bytes[id] = self._token_bytes(id)
        return self._bytes[id]

    def _token_bytes(self, id: int) -> bytes:
        token = self._tokenizer.id_to_token(id)
        if token is None:
            return f"<token {id}>".encode()
        if id in self._special:
            return b""
        known = self._byte_level and all(character in BYTE_ALPHABET for character in token)
        if self._bytes_alone:
            return bytes(BYTE_ALPHABET[character] for character in token) if known else token.encode()
        if self._byte_fallback and (match := BYTE_TOKEN.fullmatch(token)):
            return bytes.fromhex(match[1])
        text = self.whole([*self._before, id])[len(self.whole(self._before)) :]
        if known and "\N{REPLACEMENT CHARACTER}" in text:  # part of a character, where other steps stand beside the byte-level one
            return bytes(BYTE_ALPHABET[character] for character in token)
        return text.encode()


class TextStream:
    """Decodes token by token: a piece is text that later tokens cannot change, so no character is ever torn.

    The pieces together are what the library makes of all tokens at once, without what it makes of `before`. They differ where the
    tokens are not UTF-8: here each bad byte costs itself, there it can cost the good ones beside it. (The library's own DecodeStream
    repeats the prompt when its end cuts a character, and fails on bytes that are not UTF-8.)
    """

    def __init__(self, tokenizer: Tokenizer, before: Iterable[int]) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        before = list(before)
        for token in before[-LONGEST_CHARACTER:]:
            self._decoder.decode(tokenizer.token_bytes(token))
        self._opening: list[int] | None = None if any(map(tokenizer.token_bytes, before)) else []

    def push(self, token: int) -> str:
        """Text that is complete with this token (often none within a character)."""
        piece = self._decoder.decode(self._tokenizer.token_bytes(token))
        if self._opening is not None:  # some tokenizers leave out the space that begins a text
            self._opening.append(token)
            if piece:
                whole = self._tokenizer.whole(self._opening)
                piece, self._opening = (whole if piece.endswith(whole) else piece), None
        return piece

    def finish(self) -> str:
        """What is left: a replacement character for a torn one."""
        return self._decoder.decode(b"", final=True)
