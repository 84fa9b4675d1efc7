"""The tokenizer of a checkpoint: which one it is, whether it is this model's, what starts a text and what ends one.

A Hugging Face folder is read as transformers does: tokenizer.json alone says what stands around a prompt; without it, tokenizer.model
and tokenizer_config.json. A GGUF file is read as llama.cpp does: its own vocabulary and settings. Whatever the source, the tokenizer
goes on as the contents of a tokenizer.json.
"""

from __future__ import annotations

import base64
import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer
from tokenizers.processors import TemplateProcessing

from tritloom.gen.models.files import missing, read_json, there
from tritloom.gen.models.pieces import (
    CONTROL,
    NORMAL,
    Piece,
    VocabularyError,
    checked_charsmap,
    gguf_pieces,
    read_gguf_vocabulary,
    read_sentencepiece,
)
from tritloom.gen.models.problems import CheckpointError, shown
from tritloom.gen.models.spec import ModelSpec
from tritloom.system.silence import silence

SIZE_LIMIT = 64 << 20
"""Bytes of a tokenizer's file; the largest known have a third of it."""
MISSING = "put the model's tokenizer.json or tokenizer.model there, or name it (--tokenizer FILE)"
OWN = "take the tokenizer of this model (--tokenizer FILE)"

END_NAMES = (
    "</s>", "<eos>", "[EOS]", "<|endoftext|>", "<|end_of_text|>", "<｜end▁of▁sentence｜>", "<end_of_utterance>",
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<turn|>", "<EOT>", "_<EOT>", "[EOT]", "<|eom_id|>",
    "<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]", "<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>",
    "<|file_sep|>",
)  # fmt: skip
"""Tokens that end a text, a turn or a file by their names, whatever else a checkpoint says: llama.cpp stops at the same."""
GGUF_ENDS = ("eos_token_id", "eot_token_id", "eom_token_id", "fim_pad_token_id", "fim_rep_token_id", "fim_sep_token_id")
GGUF_SPECIAL = (*GGUF_ENDS, "bos_token_id", "unknown_token_id", "padding_token_id", "seperator_token_id", "mask_token_id")

UNHEEDED = ("suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "forced_bos_token_id", "forced_eos_token_id", "sequence_bias")
"""Settings of a text's choice of tokens, in generation_config.json or config.json, that the sampler does not have."""


@dataclass(frozen=True)
class Vocabulary:
    """A model's tokenizer. `str()` says where it comes from.

    `data`: contents of a tokenizer.json; `start`: the token that it puts in front of a prompt; `ends`: tokens that end a text by the
    tokenizer's own files; `notes`: what a user should know.
    """

    source: str
    data: bytes
    start: int | None = None
    ends: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.source

    def read_bytes(self) -> bytes:
        return self.data

    def described(self, spec: ModelSpec) -> ModelSpec:
        """The model's description, with what its tokenizer says about starts and ends of texts."""
        ends = tuple(sorted({*spec.eos_ids, *self.ends}))
        return dataclasses.replace(spec, bos_id=self.start, eos_ids=ends, notes=(*spec.notes, *self.notes))


UNREAD = Vocabulary("no tokenizer was read", b"")
"""Stands where a checkpoint was opened without its tokenizer."""


# Files -----------------------------------------------------------------------------------------------


def _contents(path: Path) -> bytes:
    if not path.is_file():
        error = missing(path)
        raise CheckpointError(error.subject, error.cause, MISSING) if error.cause == "no such file" else error
    if (size := path.stat().st_size) > SIZE_LIMIT:
        raise CheckpointError(str(path), f"{size} bytes are no tokenizer's", OWN)
    return path.read_bytes()


def _guarded(source: str, action: Callable[[], Any]) -> Any:
    """What an action of the library gives; whatever it ends with (it has a BaseException of its own) is a CheckpointError."""
    try:
        with silence():
            return action()
    except CheckpointError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(source, reason if isinstance(error, VocabularyError) else f"not a tokenizer ({reason})", OWN) from None


def _from_json(path: Path) -> Tokenizer:
    """The tokenizer of a tokenizer.json, whose parts have been tried."""
    data = _contents(path)
    record = read_json(path)  # says better than the library what is wrong with a file that is no JSON

    def load() -> Tokenizer:
        for part in _parts(record.get("normalizer")):
            if part.get("type") == "Precompiled":
                checked_charsmap(base64.b64decode(part.get("precompiled_charsmap") or "", validate=True))
        for part in _parts(record.get("post_processor")):
            if part.get("type") == "TemplateProcessing":
                used = {item["SpecialToken"]["id"] for item in part["single"] if "SpecialToken" in item}
                if missing := sorted(used - set(part["special_tokens"])):
                    raise VocabularyError(f"its template names {missing[0]}, which it does not explain")
        library = Tokenizer.from_buffer(data)
        library.no_truncation()
        library.no_padding()
        bare = Tokenizer(library.model)
        bare.normalizer, bare.pre_tokenizer = library.normalizer, library.pre_tokenizer  # type: ignore[reportAttributeAccessIssue]
        if not set(bare.encode("a").ids) <= set(library.encode("a").ids):
            raise VocabularyError("what it makes of a text leaves the text out (post_processor)")
        model = record.get("model")
        if isinstance(vocab := model.get("vocab") if isinstance(model, dict) else None, dict) and len(set(vocab.values())) < len(vocab):
            id, count = Counter(vocab.values()).most_common(1)[0]
            raise VocabularyError(f"id {id} stands for {count} of its tokens")
        return library

    return _guarded(str(path), load)


def _parts(record: Any) -> list[dict[str, Any]]:
    """A component of a tokenizer.json and what it is made of, at any depth (which parse_json limits)."""
    if not isinstance(record, dict):
        return []
    return [record, *(part for key in ("normalizers", "processors") for inside in record.get(key) or () for part in _parts(inside))]


def _text_of(token: Any) -> str | None:
    """The text of a token as configurations name it: a string, or a record with `content`."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _settings(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json with what older folders keep beside it."""
    settings: dict[str, Any] = {}
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if there(folder / name) and (name == "tokenizer_config.json" or "added_tokens_decoder" not in settings):
            settings |= read_json(folder / name)
    if there(folder / "added_tokens.json") and "added_tokens_decoder" not in settings:
        settings["added_tokens_decoder"] = {str(i): {"content": text} for text, i in read_json(folder / "added_tokens.json").items()}
    if there(folder / "chat_template.jinja"):
        settings["chat_template"] = _contents(folder / "chat_template.jinja").decode("utf-8", "replace")
    return settings


def _unheeded(file: str, settings: dict[str, Any], names: Iterable[str]) -> list[str]:
    """What a file says of texts that no machine does."""
    said = [name for name in names if not (settings.get(name) is None or settings[name] is False or settings[name] in ([], {}))]
    return [f"{file} says {name} {shown(settings[name])}, which is not done: texts may differ from other programs'" for name in said]


# Starts and ends -------------------------------------------------------------------------------------


def _around(library: Tokenizer) -> tuple[list[int], list[int]]:
    """Tokens that the tokenizer puts in front of a text and after it."""
    plain, whole = library.encode("a", add_special_tokens=False).ids, library.encode("a").ids
    for start in range(len(whole) - len(plain) + 1):
        if plain and whole[start : start + len(plain)] == plain:
            return whole[:start], whole[start + len(plain) :]
    return whole, []


def _surround(library: Tokenizer, start: int | None, end: int | None) -> None:
    """Make the tokenizer put these tokens around a text, and no others."""
    names = {token: library.id_to_token(token) for token in (start, end) if token is not None}
    before, after = ("" if token is None else names[token] for token in (start, end))
    pattern = [*([before] if before else []), "$A", *([after] if after else [])]
    library.post_processor = TemplateProcessing(  # type: ignore[reportAttributeAccessIssue]  # the stubs know no setter
        single=pattern, pair=[*pattern, "$B"], special_tokens=[(name, token) for token, name in names.items()]
    )


_FOLLOWS = re.compile(
    r"\{%-?\s*(?:if|elif|else)\b(?P<condition>[^%]*)%\}"
    r"|content['\"]?\s*\]?(?:\s*\|\s*\w+|\.\w+\(\))*\s*\)?\s*(?:[+~]\s*|-?\}\}\s*(?:\{\{-?\s*)?)['\"]?(?:\\n|\s)*(?P<then>)"
)
"""A condition of a chat template, or a message's content and what is put between it and the next text."""
_ROLE = re.compile(r"['\"](user|system|tool|assistant)['\"]")


def template_ends(template: str, tokens: Iterable[str]) -> set[str]:
    """Tokens that follow the content of an assistant's message in a chat template.

    The template is read, not run. Where it treats roles one by one, only the assistant's counts.
    """
    tokens = [token for token in tokens if token in template]
    ends, roles = set(), set()
    for match in _FOLLOWS.finditer(template):
        if match["then"] is None:
            roles = set(_ROLE.findall(match["condition"]))
        elif not roles or "assistant" in roles:
            ends |= {token for token in tokens if template.startswith(token, match.end())}
    return ends


def _templates(value: Any) -> list[str]:
    """Chat templates of a tokenizer_config.json: one text, or records with names."""
    if isinstance(value, str):
        return [value]
    records = value if isinstance(value, list) else []
    return [record["template"] for record in records if isinstance(record, dict) and isinstance(record.get("template"), str)]


def _ends(templates: list[str], ids: dict[str, int]) -> set[int]:
    """Ids of tokens that end a text by their names, or by their place in a chat template. `ids`: those of tokens that may."""
    names = {name for name in END_NAMES if name in ids}
    for template in templates:
        names |= template_ends(template, ids)
    return {ids[name] for name in names}


# The model and its tokenizer -------------------------------------------------------------------------


def _number(value: int) -> str:
    return f"{value:,}"


def _sizes(source: str, library: Tokenizer, vocab: int) -> list[str]:
    """What a user should know about a tokenizer that is smaller or larger than the model's vocabulary; far from it is refused."""
    ids = set(library.get_vocab(with_added_tokens=False).values())
    extra = {id: token.content for id, token in library.get_added_tokens_decoder().items()}
    if (top := max(ids - set(extra), default=-1)) >= vocab:
        raise CheckpointError(source, f"has token id {top}, but the model's vocabulary ends at {vocab - 1}", OWN)
    named = len([id for id in ids | set(extra) if id < vocab])
    if 3 * named < vocab:
        raise CheckpointError(source, f"has {_number(named)} tokens, but the model's vocabulary {_number(vocab)}", OWN)
    notes = [] if named == vocab else [f"the tokenizer has {_number(named)} of the model's {_number(vocab)} tokens"]
    if beyond := sorted(id for id in extra if id >= vocab):
        notes.append(f"{extra[beyond[0]]} (token {beyond[0]}) is beyond the model's {_number(vocab)} tokens: a prompt cannot hold it")
    return notes


def _finished(source: str, library: Tokenizer, vocab: int, ends: set[int], notes: list[str]) -> Vocabulary:
    before, after = _around(library)
    for token in (*before, *after):
        if token >= vocab:
            raise CheckpointError(source, f"puts token {token} around a prompt, but the model's vocabulary ends at {vocab - 1}", OWN)
    if after:
        notes = [*notes, f"the tokenizer ends every prompt with {library.id_to_token(after[-1])}"]
    data = library.to_str().encode()
    _guarded(source, lambda: Tokenizer.from_buffer(data))  # what is written is what is read
    return Vocabulary(source, data, before[0] if before else None, tuple(sorted(id for id in ends if id < vocab)), tuple(notes))


def of_folder(folder: Path, named: Path | None, vocab: int, bos_id: int | None = None) -> Vocabulary:
    """The tokenizer of a Hugging Face folder, or the file that the user named. `bos_id`: the start token that config.json names.

    Raises CheckpointError where there is none, where it cannot be loaded and where it does not fit a vocabulary of `vocab`.
    """
    path, library, ends, notes = _of_file(folder, named, vocab)
    chosen = [note for name in ("config.json", "generation_config.json") if there(folder / name)
              for note in _unheeded(name, read_json(folder / name), UNHEEDED)]
    if bos_id is not None and not notes and not _around(library)[0]:
        notes = [f"the model names start token {bos_id}, but its tokenizer puts none in front of a prompt"]
    return _finished(str(path), library, vocab, ends, [*notes, *chosen])


def _of_file(folder: Path, named: Path | None, vocab: int) -> tuple[Path, Tokenizer, set[int], list[str]]:
    """A tokenizer's file, the tokenizer, ids that end a text by the settings beside the file, and notes."""
    path = named or folder / "tokenizer.json"
    if named is None and not there(path) and there(folder / "tokenizer.model"):
        path = folder / "tokenizer.model"
    settings, notes = _settings(path.parent), []
    if path.suffix == ".model":
        library = _from_model(path, settings)
    else:
        library = _from_json(path)
        _add_named(str(path), library, settings)
        adds, puts = settings.get("add_bos_token"), bool(_around(library)[0])
        if isinstance(adds, bool) and adds != puts:
            said, does = f"add_bos_token {str(adds).lower()}", "puts one in front" if puts else "puts none in front"
            notes.append(f"tokenizer_config.json says {said}, but tokenizer.json, which decides, {does}")
    eos = _text_of(settings.get("eos_token"))
    if eos is not None and library.token_to_id(eos) is None:
        raise CheckpointError(str(path), f"has no token {shown(eos)}, the eos_token of {path.parent / 'tokenizer_config.json'}", OWN)
    notes += _sizes(str(path), library, vocab) + _unheeded("tokenizer_config.json", settings, ["split_special_tokens"])
    added = {token.content: id for id, token in library.get_added_tokens_decoder().items()}
    ends = _ends(_templates(settings.get("chat_template")), added)
    if eos is not None and (end := library.token_to_id(eos)) is not None:
        ends.add(end)
    return path, library, ends, notes


def _add_named(source: str, library: Tokenizer, settings: dict[str, Any]) -> None:
    """Tokens that tokenizer_config.json adds to a tokenizer.json, and those that it says are special, as transformers takes them."""
    added = settings.get("added_tokens_decoder") or {}
    if not isinstance(added, dict) or not all(re.fullmatch("[0-9]{1,9}", id) and _text_of(token) for id, token in added.items()):
        raise CheckpointError(source, "the settings beside it name added tokens in no known way (added_tokens_decoder)", OWN)
    for id, token in sorted((int(id), token) for id, token in added.items()):
        text = str(_text_of(token))
        have = library.token_to_id(text)
        if have is None:
            special = isinstance(token, dict) and bool(token.get("special"))
            (library.add_special_tokens if special else library.add_tokens)([AddedToken(text, special=special, normalized=False)])
            have = library.token_to_id(text)
        if have != id:
            raise CheckpointError(source, f"has token {shown(text)} as id {have}, but the settings beside it as {id}", OWN)
    named = [settings.get(f"{name}_token") for name in ("bos", "eos", "unk", "pad", "sep", "cls", "mask")]
    for more in (settings.get("additional_special_tokens"), settings.get("extra_special_tokens")):
        named += more if isinstance(more, list) else more.values() if isinstance(more, dict) else ()
    _mark(library, [name for name in map(_text_of, named) if name is not None])


def _mark(library: Tokenizer, names: Iterable[str]) -> None:
    """Make tokens of the vocabulary special: whole in a text, and no part of a decoded one."""
    special = {token.content for token in library.get_added_tokens_decoder().values() if token.special}
    wanted = [name for name in names if name not in special and library.token_to_id(name) is not None]
    library.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in wanted])


def _from_model(path: Path, settings: dict[str, Any]) -> Tokenizer:
    """The tokenizer of a SentencePiece file, with the tokens and the start that the settings add."""
    library, start, end = _guarded(str(path), lambda: read_sentencepiece(_contents(path)))
    _add_named(str(path), library, settings)

    def around(key: str, name: str, piece: int) -> int | None:
        if settings.get(key) is not True:
            return None
        text = _text_of(settings.get(name))
        id = piece if text is None else library.token_to_id(text)
        if id is None or library.id_to_token(id) is None:
            raise CheckpointError(str(path), f"has no {name}, although the settings beside it say {key}", OWN)
        return id

    _surround(library, around("add_bos_token", "bos_token", start), around("add_eos_token", "eos_token", end))
    return library


# GGUF ------------------------------------------------------------------------------------------------


def _difference(pieces: list[Piece], library: Tokenizer) -> str | None:
    """The first token that a tokenizer spells otherwise than the GGUF file's own list."""
    for i, piece in enumerate(pieces):
        other = library.id_to_token(i)
        if other != piece.text and piece.kind == NORMAL and not (other is None and piece.text.startswith(("[PAD", "<unused", "[EMPTY_"))):
            return f"token {i} is {shown(piece.text)} in the file, {shown(other)} there"
    if (top := max(library.get_vocab().values(), default=-1)) >= len(pieces):
        return f"the file has {_number(len(pieces))} tokens, that one has number {top}"
    return None


def of_gguf(path: Path, metadata: dict[str, Any], named: Path | None, vocab: int) -> Vocabulary:
    """The tokenizer that a GGUF file carries; the tokenizer.json beside it, or the file that the user named, must spell its tokens.

    Raises CheckpointError as `of_folder` does, and where the file's vocabulary cannot be used.
    """
    pieces = _guarded(str(path), lambda: gguf_pieces(metadata))
    special = _gguf_ids(metadata, vocab if pieces is None else len(pieces))
    notes: list[str] = []
    if pieces is None:
        if named is None and not any(there(path.parent / name) for name in ("tokenizer.json", "tokenizer.model")):
            raise CheckpointError(str(path), "carries no vocabulary, and no tokenizer.json lies beside it", MISSING)
        source, library, ends, notes = _of_file(path.parent, named, vocab)
        starts = None
    else:
        source, library, starts = _of_pieces(path, metadata, named, pieces)
        if starts is not None and metadata.get("tokenizer.ggml.model") == "gpt2" and "tokenizer.ggml.pre" not in metadata:
            notes = ["the file names no pre-tokenizer: the default one may cut words otherwise than the model was taught"]
        control = {piece.text: i for i, piece in enumerate(pieces) if piece.kind == CONTROL}
        ends = _ends([], {piece.text: i for i, piece in enumerate(pieces)})
        ends |= _ends(_templates(metadata.get("tokenizer.chat_template")), control)
        _mark(library, [pieces[id].text for id in sorted({*special.values(), *ends})])
        notes += _sizes(str(source), library, vocab)
    ends |= {special[key] for key in GGUF_ENDS if key in special}
    notes += _unheeded("the file", metadata, ["tokenizer.ggml.suppress_tokens"])
    _surround_as_said(path, library, metadata, special, starts)
    return _finished(str(source), library, vocab, ends, notes)


def _of_pieces(path: Path, metadata: dict[str, Any], named: Path | None, pieces: list[Piece]) -> tuple[Path, Tokenizer, bool | None]:
    """Source, tokenizer, and whether prompts get a start token where the file does not say (None: what the tokenizer does)."""
    if named is not None:
        library = _from_json(named)
        if difference := _difference(pieces, library):
            raise CheckpointError(str(named), f"is another model's tokenizer: {difference}", OWN)
        return named, library, None
    found = problem = None
    try:
        found = _guarded(str(path), lambda: read_gguf_vocabulary(metadata, pieces))
    except CheckpointError as error:
        problem = error.cause
    # What the file leaves open, a tokenizer.json beside it may say, if it is of the same tokens.
    beside = path.with_name("tokenizer.json")
    if (problem or metadata.get("tokenizer.ggml.model") == "gpt2" and "tokenizer.ggml.pre" not in metadata) and beside.is_file():
        library = _from_json(beside)
        difference = _difference(pieces, library)
        if difference is None:
            return beside, library, None
        problem = problem and f"{problem}; {beside.name} is another model's tokenizer: {difference}"
    if found is None:
        raise CheckpointError(str(path), str(problem), "give the model's tokenizer.json (--tokenizer FILE), or convert the model again")
    return path, *found


def _gguf_ids(metadata: dict[str, Any], count: int) -> dict[str, int]:
    """Ids of special tokens by their keys in GGUF metadata, checked."""
    ids = {}
    for key in GGUF_SPECIAL:
        id = metadata.get(f"tokenizer.ggml.{key}")
        if id is None:
            continue
        if isinstance(id, bool) or not isinstance(id, int) or not 0 <= id < count:
            raise CheckpointError(f"tokenizer.ggml.{key}", f"{shown(id)} is outside the vocabulary of {count}", "convert the model again")
        ids[key] = id
    return ids


def _surround_as_said(path: Path, library: Tokenizer, metadata: dict[str, Any], special: dict[str, int], starts: bool | None) -> None:
    """Put in front of a prompt and after it what the metadata says; `starts`: where they do not (None: what the tokenizer does)."""
    adds = {key: metadata.get(f"tokenizer.ggml.add_{key}_token") for key in ("bos", "eos")}
    for key, value in adds.items():
        if value is not None and not isinstance(value, bool):
            raise CheckpointError(f"tokenizer.ggml.add_{key}_token", f"must be true or false, not {shown(value)}",
                                  "convert the model again")
    if starts is None and adds["bos"] is None and adds["eos"] is None:
        return
    before, after = _around(library)
    wanted = {
        "bos": adds["bos"] if adds["bos"] is not None else bool(before) if starts is None else starts,
        "eos": adds["eos"] if adds["eos"] is not None else bool(after) if starts is None else False,
    }
    for key, value in wanted.items():
        if value and f"{key}_token_id" not in special:
            cause = f"prompts want {'a start' if key == 'bos' else 'an end'} token, but tokenizer.ggml.{key}_token_id is missing"
            raise CheckpointError(str(path), cause, "convert the model again")
    _surround(library, *(special[f"{key}_token_id"] if value else None for key, value in wanted.items()))
