"""Text to tokens and back, with the model's own tokenizer.json."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer as _Tokenizer

from tritloom.host.backend import InputError

REPLACEMENT = "\ufffd"
LONGEST_CHARACTER = 4
"""Tokens that may share one character: the bytes of the longest UTF-8 sequence."""
CONTEXT = 8
"""Tokens before a stream that decide about its first space."""


class Tokenizer:
    """A model's tokenizer. `bos_id`: the token that starts a text, if the model wants one."""

    def __init__(self, tokenizer: _Tokenizer, bos_id: int | None = None) -> None:
        self._tokenizer, self.bos_id = tokenizer, bos_id

    @classmethod
    def from_file(cls, path: str | Path, bos_id: int | None = None) -> Tokenizer:
        try:
            return cls.from_bytes(Path(path).read_bytes(), bos_id)
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}; a model folder needs its tokenizer.json") from None
        except InputError as error:
            raise InputError(f"{path}: {error}") from None

    @classmethod
    def from_bytes(cls, data: bytes, bos_id: int | None = None) -> Tokenizer:
        try:
            return cls(_Tokenizer.from_buffer(data), bos_id)
        except Exception as error:  # the library raises plain Exceptions
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(f"not a tokenizer ({reason}); take tokenizer.json from the model's source") from None

    def __len__(self) -> int:
        return self._tokenizer.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """Tokens of a text, with the start token if there is one."""
        if not text:
            raise InputError("the prompt is empty: give at least one character")
        ids = list(self._tokenizer.encode(text).ids)
        if self.bos_id is not None and ids[:1] != [self.bos_id]:
            ids.insert(0, self.bos_id)
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text of tokens, without the special ones."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)

    def stream(self, before: Iterable[int] = ()) -> TextStream:
        """Text piece by piece, of tokens that follow `before`."""
        return TextStream(self, before)


class TextStream:
    """Decodes token by token: a piece is text that later tokens cannot change, so no character is ever torn."""

    def __init__(self, tokenizer: Tokenizer, before: Iterable[int]) -> None:
        self._tokenizer = tokenizer
        self._ids = list(before)[-CONTEXT:]
        self._start = 0
        self._shown = len(self._ids)
        self._shown_text = tokenizer.decode(self._ids)

    def push(self, token: int) -> str:
        """Text that is complete with this token (often none within a character)."""
        self._ids.append(token)
        text = self._tokenizer.decode(self._ids[self._start :])
        if text.endswith(REPLACEMENT) and len(self._ids) - self._shown < LONGEST_CHARACTER:
            return ""
        return self._advance(text)

    def finish(self) -> str:
        """What is left, with replacement characters for torn ones."""
        return self._advance(self._tokenizer.decode(self._ids[self._start :]))

    def _advance(self, text: str) -> str:
        piece = text[len(self._shown_text) :]
        if len(self._ids) > self._shown:
            self._start = self._shown
            self._shown = len(self._ids)
            self._shown_text = self._tokenizer.decode(self._ids[self._start :])
        return piece
