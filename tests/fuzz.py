"""Mutated model files and images, by the hundred thousand: every reader either refuses them in its own words or reads what they hold.

`make fuzz` runs FILES of them and stores docs/results/fuzz.json. A file is a kind of model with a few random edits: of bytes, of JSON,
of GGUF's metadata and tensor table, with lengths and checksums put right again, so that damage lies behind the first check too.
What a reader accepts is compared with other programs' reading of the same bytes (safetensors, gguf, plain struct and json).

A failure is an error of another kind than the readers' own, one that is not a line of printable text, more than SECOND_LIMIT of processor
time, more than MEMORY_LIMIT of memory, or something accepted that the other reading does not have.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import faulthandler
import hashlib
import io
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import warnings
import zlib
from collections import Counter
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import sentencepiece
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader, GGUFWriter
from gguf.quants import dequantize
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer as Library

import synthetic
from tritloom.firmware.config import BuildConfig, ConfigError, ModelShape
from tritloom.firmware.errors import InputError
from tritloom.firmware.image import HEADER, ImageError
from tritloom.firmware.layout import memory_map
from tritloom.gen.models import CheckpointError, check, open_checkpoint, open_shape
from tritloom.gen.models.checkpoint import MATRICES, NORMS, SUB_NORMS
from tritloom.gen.models.gguf_file import read_gguf
from tritloom.gen.models.vocabulary import of_folder, of_gguf
from tritloom.host.image import open_image, write_image
from tritloom.host.tokenizer import Tokenizer
from tritloom.system.files import write_atomically

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results" / "fuzz.json"
FILES = 100_000
SAMPLE = 400
"""Files whose outcomes are the digest of what the readers do."""
BLOCK = 500
"""Files that one process takes."""
SECOND_LIMIT = 1.0
MEMORY_LIMIT = 1 << 30
OWN_ERRORS = (CheckpointError, ConfigError, ImageError, InputError)

SMALL = synthetic.TINY
WIDE = ModelShape(hidden=256, ffn=256, layers=1, heads=4, kv_heads=1, head_dim=64, vocab=12, context=32, activation="silu", sub_norms=False)
BITNET = dataclasses.replace(SMALL, hidden=64, heads=4, head_dim=16, ffn=64)
CONFIG = BuildConfig(shape=SMALL, vector_lanes=4, attention_macs=8)

VOCABULARY = 512
"""Tokens of the vocabularies that are read by themselves."""
TEXT = "Once upon a time, there was a ball."

Files = dict[str, bytes]
Edit = tuple[str, int]
"""An operation and the seed of its choices."""


# What is mutated ---------------------------------------------------------------------------------


def sources(folder: Path) -> dict[str, Files]:
    """Files of each kind."""

    def contents(path: Path) -> Files:
        return {p.name: p.read_bytes() for p in sorted(path.iterdir())}

    out: dict[str, Files] = {}
    generation = json.dumps({"bos_token_id": 1, "eos_token_id": [2, 3], "do_sample": True}).encode()
    path = synthetic.hugging_face(folder / "folder", SMALL)
    (path / "generation_config.json").write_bytes(generation)
    out["folder"] = contents(path)
    llama = dataclasses.replace(WIDE, hidden=64, ffn=48, heads=4, head_dim=16)
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
    path = synthetic.hugging_face(folder / "llama", llama, form="divide", tied=False,
                                  config={"quantization_config": {"quant_method": "bitnet"}, "rope_scaling": scaling})  # fmt: skip
    out["llama folder"] = contents(path)
    path = synthetic.hugging_face(folder / "unpacked", llama, form="ternary", config={"quantization_config": None})
    tensors = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    names = [f"model-{i:05d}-of-00003.safetensors" for i in (1, 2, 3)]
    for i, name in enumerate(names):
        save_file({k: tensors[k] for k in list(tensors)[i::3]}, path / name)
    places = {k: names[i % 3] for i, k in enumerate(tensors)}
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    out["shards"] = contents(path)
    for kind, shape, architecture in (("TQ1_0", WIDE, "llama"), ("TQ2_0", WIDE, "llama"), ("F16", BITNET, "bitnet-b1.58"),
                                      ("F32", dataclasses.replace(llama, vocab=20), "llama")):  # fmt: skip
        (folder / kind).mkdir()
        synthetic.gguf(folder / kind / "m.gguf", shape, kind=kind, architecture=architecture)
        out[f"GGUF {kind}"] = contents(folder / kind)
    (folder / "I2_S").mkdir()
    shape = dataclasses.replace(BITNET, heads=4, head_dim=16)
    synthetic.gguf_i2s(folder / "I2_S" / "m.gguf", shape, synthetic.weights(shape), block=128)
    out["GGUF I2_S"] = contents(folder / "I2_S")
    whole = Gguf.parse(out["GGUF F16"]["m.gguf"])
    out["GGUF split"] = {"tokenizer.json": out["GGUF F16"]["tokenizer.json"]} | whole.split(2)
    layout = memory_map(CONFIG)
    plain = [("program", np.arange(4).astype("<u8").view(np.uint8), None),
             ("descriptors", np.array(layout.descriptor_words(), "<u8").view(np.uint8), None),
             ("memory_map", np.frombuffer(layout.to_json().encode(), np.uint8), None),
             ("tokenizer", np.frombuffer(out["folder"]["tokenizer.json"], np.uint8), None)]  # fmt: skip
    loaded = [(name, np.arange(r.length).astype(np.uint8), r.base) for name, r in layout.regions.items() if r.loaded]
    write_image(folder / "image" / "m.img", config=CONFIG, spec={"name": "m", "bos_id": 1, "eos_ids": [2]}, sections=[*loaded, *plain])
    out["image"] = contents(folder / "image")
    stories = json.loads((ROOT / "models" / "stories-260k" / "tokenizer.json").read_text("utf-8"))
    out["tokenizer"] = {"tokenizer.json": json.dumps(stories).encode()}
    return out | vocabularies(folder / "vocabularies", stories)


def vocabularies(folder: Path, stories: dict[str, Any]) -> dict[str, Files]:
    """GGUF metadata of both kinds of vocabulary, a folder with tokenizer.model, and one with tokenizer.json and settings."""
    folder.mkdir()
    written = io.BytesIO()  # trained on lines and written into memory: a model file holds the paths of its files
    lines = (ROOT / "models" / "validation.txt").read_text("utf-8").splitlines()[:500]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=written, vocab_size=VOCABULARY, model_type="bpe", byte_fallback=True,
        minloglevel=2, num_threads=1)  # fmt: skip
    model = written.getvalue()
    theirs = sentencepiece.SentencePieceProcessor(model_proto=model)
    tokens = {id: token for token, id in stories["model"]["vocab"].items()} | {t["id"]: t["content"] for t in stories["added_tokens"]}
    ids = range(VOCABULARY)
    values: dict[str, dict[str, Any]] = {
        "gpt2": {"pre": "gpt-2", "tokens": [tokens[id] for id in ids], "token_type": [3] * 3 + [1] * (VOCABULARY - 3),
                 "merges": [pair if isinstance(pair, str) else " ".join(pair) for pair in stories["model"]["merges"]]},
        "llama": {"tokens": [theirs.id_to_piece(id) for id in ids], "scores": [theirs.get_score(id) for id in ids],
                  "token_type": [2, 3, 3, *(6 if theirs.is_byte(id) else 1 for id in ids[3:])]},
    }  # fmt: skip
    out = {}
    for kind, lists in values.items():
        writer = GGUFWriter(folder / f"{kind}.gguf", "llama")
        for key, value in (lists | {"model": kind}).items():
            (writer.add_string if isinstance(value, str) else writer.add_array)(f"tokenizer.ggml.{key}", value)
        writer.add_bos_token_id(0 if kind == "gpt2" else 1)
        writer.add_eos_token_id(1 if kind == "gpt2" else 2)
        writer.add_add_bos_token(True)
        writer.add_chat_template("{% for m in messages %}{{ m['content'] + eos_token }}{% endfor %}")
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        out[f"vocabulary {kind}"] = {"m.gguf": (folder / f"{kind}.gguf").read_bytes()}
    settings: dict[str, Any] = {"add_bos_token": True, "bos_token": "<s>", "eos_token": {"content": "</s>"}}
    out["vocabulary pieces"] = {"tokenizer.model": model, "tokenizer_config.json": json.dumps(settings).encode()}
    settings = {"eos_token": "<|eos|>", "bos_token": "<|bos|>", "split_special_tokens": False,
                "added_tokens_decoder": {"0": {"content": "<|bos|>", "special": True}, str(VOCABULARY): {"content": "<|im_end|>"}},
                "chat_template": [{"name": "a", "template": "{{ message['content'] + '<|im_end|>' }}"}]}  # fmt: skip
    beside: dict[str, Any] = {
        "tokenizer.json": stories, "tokenizer_config.json": settings, "generation_config.json": {"suppress_tokens": [3], "eos_token_id": 1},
        "special_tokens_map.json": {"pad_token": "<|pad|>"}, "added_tokens.json": {"<|im_end|>": VOCABULARY},
    }  # fmt: skip
    return out | {"vocabulary settings": {name: json.dumps(record).encode() for name, record in beside.items()}}


@dataclasses.dataclass
class Gguf:
    """A GGUF file in parts, for edits; written without any check. Values are their bytes, type number first."""

    values: list[tuple[bytes, bytes]]
    tensors: list[tuple[bytes, list[int], int, int]]
    data: bytes
    header_bytes: int = 0

    @classmethod
    def parse(cls, file: bytes) -> Gguf:
        """Parts of a well-formed file."""
        at = 24
        tensor_count, value_count = struct.unpack_from("<QQ", file, 8)

        def text() -> bytes:
            nonlocal at
            length = struct.unpack_from("<Q", file, at)[0]
            at += 8 + length
            return file[at - length : at]

        def skip(kind: int) -> None:
            nonlocal at
            item, count = kind, 1
            if kind == 9:
                item, count = struct.unpack_from("<IQ", file, at)
                at += 12
            if item == 8:
                for _ in range(count):
                    text()
            else:
                at += count * {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}[item]

        values, tensors = [], []
        for _ in range(value_count):
            key, start = text(), at
            at += 4
            skip(struct.unpack_from("<I", file, start)[0])
            values.append((key, file[start:at]))
        for _ in range(tensor_count):
            name, count = text(), struct.unpack_from("<I", file, at)[0]
            dims = list(struct.unpack_from(f"<{count}Q", file, at + 4))
            kind, offset = struct.unpack_from("<IQ", file, at + 4 + 8 * count)
            at += 16 + 8 * count
            tensors.append((name, dims, kind, offset))
        return cls(values, tensors, file[at + -at % 32 :], at)

    def bytes(self) -> bytes:
        def text(s: bytes) -> bytes:
            return struct.pack("<Q", len(s)) + s

        head = b"GGUF" + struct.pack("<IQQ", 3, len(self.tensors), len(self.values))
        head += b"".join(text(key) + value for key, value in self.values)
        for name, dims, kind, offset in self.tensors:
            head += text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)
        return head + bytes(-len(head) % 32) + self.data

    def split(self, count: int) -> Files:
        """The same model in several files."""
        ends = sorted(offset for *_, offset in self.tensors) + [len(self.data)]
        files = {}
        for number in range(count):
            mine, data = [], b""
            for name, dims, kind, offset in self.tensors[number::count]:
                mine.append((name, dims, kind, len(data)))
                data += self.data[offset : ends[ends.index(offset) + 1]]
            marks = [(b"split.no", struct.pack("<IH", 2, number)), (b"split.count", struct.pack("<IH", 2, count)),
                     (b"split.tensors.count", struct.pack("<Ii", 5, len(self.tensors)))]  # fmt: skip
            files[f"m-{number + 1:05d}-of-{count:05d}.gguf"] = Gguf((self.values if number == 0 else []) + marks, mine, data).bytes()
        return files


# Edits -------------------------------------------------------------------------------------------

NUMBERS = (0, 1, -1, 2, 3, 7, 63, 64, 127, 255, 256, 32767, 65535, 2**20, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53, 2**63 - 1)
ODD: tuple[Any, ...] = (
    None, True, False, *NUMBERS, -2, 10**30, -(10**30), 0.5, 0.0, -0.0, 1e-320, 1e308, -1e308, "", "1", "silu", "relu2", "linear", "yarn",
    "llama3", "default", "LlamaForCausalLM", "BitNetForCausalLM", "../../x", "/", "a\nb\x1b[31m", "\u2028", "9" * 300, "F32", "U8", "I64",
    "BF16",
    [], {}, [1], [1, 2], [[]], {"a": 1}, {"rope_type": "linear", "factor": 2.0}, [None], ["a"],
)  # fmt: skip
STRANGE = (
    b"", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", b"<!DOCTYPE html><html></html>", b"{}", b"[]", b"[" * 5000,
    b'{"a":' * 3000, bytes(64), b"GGUF", b"PK\x03\x04", b"TRITLOOM", b"\xff" * 64, b'{"error":"Not found"}', b"null", b"1e999", b'"\xff"',
)  # fmt: skip


def odd_value(rng: random.Random) -> Any:
    value = copy.deepcopy(rng.choice(ODD))
    for _ in range(rng.choice((0,) * 12 + (1, 5, 63, 64, 200, 900))):
        value = [value]
    return value


def edit_tree(value: Any, rng: random.Random) -> Any:
    """A JSON value with one place in it changed, removed, renamed or repeated."""
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        if len(places) > 3000:
            return
        for key in list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
            places.append((node, key))
            walk(node[key])

    walk(value)
    if not places or rng.random() < 0.02:
        return odd_value(rng)
    near = [p for p in places if p[0] is value]
    node, key = rng.choice(near if rng.random() < 0.5 else places)
    match rng.randrange(5):
        case 0:
            del node[key]
        case 1 if isinstance(node, dict):
            node[rng.choice(("x", "", "model.norm.weight", "lm_head.weight", "split.count", str(key) + "x"))] = node.pop(key)
        case 2:
            other, name = rng.choice(places)
            if (isinstance(other, dict) and name in other) or (isinstance(other, list) and name < len(other)):
                node[key] = copy.deepcopy(other[name])
        case 3 if isinstance(node[key], (int, float)) and not isinstance(node[key], bool):
            node[key] = node[key] + rng.choice((1, -1, 2, -2, 8, 0.5)) if rng.random() < 0.5 else node[key] * rng.choice((0, -1, 2, 10**6))
        case _:
            node[key] = odd_value(rng)
    return value


def dumps(value: Any) -> bytes:
    try:
        return json.dumps(value).encode()
    except (RecursionError, ValueError):
        return b"[" * 3000


def edit_json(files: Files, name: str, rng: random.Random) -> None:
    """Change the JSON of a file, be it the whole, a header or an image's record, with lengths and checksums that fit again."""
    data = files[name]
    try:
        if name.endswith(".json"):
            files[name] = dumps(edit_tree(json.loads(data), rng))
        elif name.endswith(".safetensors"):
            length = struct.unpack_from("<Q", data)[0]
            body = dumps(edit_tree(json.loads(data[8 : 8 + length]), rng))
            files[name] = struct.pack("<Q", len(body)) + body + data[8 + length :]
        elif name.endswith(".img"):
            *fields, length, _ = HEADER.unpack(data[: HEADER.size])
            record = edit_tree(json.loads(data[HEADER.size : HEADER.size + length]), rng)
            body = dumps(record)
            try:
                fields[2] = BuildConfig.from_dict(record["config"]).digest
            except Exception:
                pass
            if HEADER.size + len(body) <= 8192:
                files[name] = HEADER.pack(*fields, len(body), zlib.crc32(body)) + body + data[HEADER.size + len(body) :]
        elif name.endswith(".gguf"):
            edit_gguf(files, name, rng)
    except (ValueError, struct.error, RecursionError, TypeError, KeyError, AttributeError, OverflowError):
        pass  # an earlier edit left nothing to read


LIST = struct.pack("<I", 9)


def edit_list(value: bytes, rng: random.Random) -> bytes:
    """Change, remove or repeat one item of a list of texts, or some bytes of another one."""
    item, count = struct.unpack_from("<IQ", value, 4)
    if item != 8 or not count:
        at = rng.randrange(16, len(value)) if len(value) > 16 else 4
        return value[:at] + rng.randbytes(rng.choice((1, 4))) + value[at + 4 :]
    items, at = [], 16
    for _ in range(count):
        length = struct.unpack_from("<Q", value, at)[0]
        items.append(value[at + 8 : at + 8 + length])
        at += 8 + length
    at = rng.randrange(count)
    match rng.randrange(4):
        case 0:
            del items[at]
        case 1:
            items.insert(at, rng.choice(items))
        case 2:
            items[at] = rng.choice(items)
        case _:
            items[at] = rng.choice((b"", b"\xff", b"a b", b"a b c", b"<0x0A>", "▁".encode(), b"</s>", b"\n\x1b", b"x" * 5000))
    return value[:8] + struct.pack("<Q", len(items)) + b"".join(struct.pack("<Q", len(text)) + text for text in items)


def edit_gguf(files: Files, name: str, rng: random.Random) -> None:
    """Change one value or one tensor's entry."""
    parts = Gguf.parse(files[name])
    if parts.values and (rng.random() < 0.6 or not parts.tensors):
        at = rng.randrange(len(parts.values))
        key, value = parts.values[at]
        kind = rng.choice((0, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 99))
        form = {0: "B", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}.get(kind)
        number = rng.choice(NUMBERS)
        match rng.randrange(6):
            case _ if value[:4] == LIST and rng.random() < 0.5:
                parts.values[at] = key, edit_list(value, rng)
            case 0:
                del parts.values[at]
            case 1:
                parts.values.insert(at, parts.values[rng.randrange(len(parts.values))])
            case 2 if len(value) >= 8:
                tail = struct.pack("<I", rng.choice(NUMBERS) & 0xFFFFFFFF)
                parts.values[at] = key, value[:4] + tail + value[8:]
            case 3:
                other = rng.choice(parts.values)[1]
                parts.values[at] = key, other
            case 4:
                new = rng.choice((b"llama.rope.scaling.type", b"llama.rope.scaling.factor", b"llama.expert_count", b"general.alignment",
                                  b"llama.attention.key_length", b"llama.hidden_activation", b"split.count", b"\xff", b"",
                                  b"tokenizer.ggml.pre", b"tokenizer.ggml.suppress_tokens", b"tokenizer.ggml.scores",
                                  b"tokenizer.ggml.token_type", b"tokenizer.ggml.eot_token_id", b"tokenizer.chat_template"))  # fmt: skip
                parts.values[at] = new, value
            case _:
                text = rng.choice((b"", b"llama", b"linear", b"yarn", b"silu", b"\xff\xfe", b"9" * 50))
                body = struct.pack("<Q", len(text)) + text
                if kind == 9:
                    body = struct.pack("<IQ", rng.choice((0, 4, 6, 8, 9, 99)), rng.choice(NUMBERS) & (2**64 - 1)) + body
                elif form in ("f", "d"):
                    body = struct.pack("<" + form, rng.choice((0.0, 1.0, -1.0, 1e-5, 1e4, float("nan"), float("inf"), 1e30)))
                elif form:
                    size = struct.calcsize(form)
                    body = (number & (2 ** (8 * size) - 1)).to_bytes(size, "little")
                parts.values[at] = key, struct.pack("<I", kind) + body
    elif parts.tensors:
        at = rng.randrange(len(parts.tensors))
        name_, dims, kind, offset = parts.tensors[at]
        match rng.randrange(7):
            case 0:
                del parts.tensors[at]
            case 1:
                parts.tensors.insert(at, rng.choice(parts.tensors))
            case 2:
                kind = rng.choice((0, 1, 2, 8, 14, 24, 26, 30, 34, 35, 36, 42, 99))
            case 3:
                others = rng.choice(parts.tensors)[3], rng.choice(NUMBERS) % 2**63
                offset = rng.choice((offset + 32, offset + 1, max(0, offset - 32), *others))
            case 4:
                dims = [*dims]
                dims[rng.randrange(len(dims))] = rng.choice((*NUMBERS, dims[0] * 2, dims[-1] // 2)) % 2**63
            case 5:
                dims = dims[::-1] if rng.random() < 0.5 else [*dims, 1]
            case _:
                other = rng.choice(parts.tensors)[0]
                name_ = rng.choice((b"rope_freqs.weight", b"output.weight", b"a\nb", b"\xff", b"blk.0.attn_q.bias", other))
        if at < len(parts.tensors):
            parts.tensors[at] = name_, dims, kind, offset
    files[name] = parts.bytes()


def edit_bytes(files: Files, name: str, rng: random.Random) -> None:
    """Change some bytes, most of them near the beginning."""
    data = bytearray(files[name])
    reach = len(data) if rng.random() < 0.3 else min(len(data), rng.choice((16, 64, 512, 4096)))
    at = rng.randrange(reach) if reach else 0
    match rng.randrange(8):
        case 0 if data:
            data[at] ^= 1 << rng.randrange(8)
        case 1 if data:
            data[at] = rng.choice((0, 0xFF, 0x7F, 0x80, ord('"'), ord("{"), ord("9"), rng.randrange(256)))
        case 2:
            size = rng.choice((2, 4, 8))
            data[at : at + size] = (rng.choice(NUMBERS) & (2 ** (8 * size) - 1)).to_bytes(size, "little")
        case 3:
            del data[at : at + rng.choice((1, 2, 8, 100, len(data)))]
        case 4:
            data[at:at] = rng.randbytes(rng.choice((1, 4, 32)))
        case 5:
            start = rng.randrange(len(data)) if data else 0
            data[at:at] = data[start : start + rng.choice((1, 8, 64))]
        case 6:
            del data[rng.randrange(len(data) + 1) :]
        case _:
            data += bytes(rng.choice((1, 32, 1000)))
    files[name] = bytes(data)


def edit_folder(files: Files, name: str, rng: random.Random) -> None:
    """Another file under a file's name, a file gone, or something else altogether."""
    match rng.randrange(4):
        case 0:
            del files[name]
        case 1:
            files[name] = files[rng.choice(sorted(files))]
        case 2:
            files[rng.choice((name + ".incomplete", name + ".part"))] = files.pop(name)
        case _:
            files[name] = rng.choice(STRANGE)


EDITS = {"bytes": edit_bytes, "json": edit_json, "folder": edit_folder}
WEIGHTS = {"bytes": 40, "json": 55, "folder": 5}


def edited(files: Files, edits: list[Edit]) -> Files:
    out = dict(files)
    for operation, seed in edits:
        rng = random.Random(seed)
        if out:
            EDITS[operation](out, rng.choice(sorted(out)), rng)
    return out


def random_edits(seed: int) -> list[Edit]:
    rng = random.Random(seed)
    count = rng.choice((1, 1, 1, 2, 2, 3, 5))
    return [(rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0], rng.getrandbits(32)) for _ in range(count)]


# Outcomes ----------------------------------------------------------------------------------------


class Wrong(AssertionError):
    """What a reader accepted and should not have."""


def require(condition: bool, what: str) -> None:
    if not condition:
        raise Wrong(what)


def read(kind: str, folder: Path) -> str | None:
    """What the readers make of the files of a folder: None if they refuse it, or a digest of what they read, which was compared."""
    if kind == "image":
        return read_image(folder / "m.img")
    if kind == "tokenizer":
        return read_tokenizer(folder / "tokenizer.json")
    if kind.startswith("vocabulary"):
        return read_vocabulary(folder)
    path = folder if not kind.startswith("GGUF") else folder / ("m-00001-of-00002.gguf" if kind == "GGUF split" else "m.gguf")
    options: dict[str, Any] = {"i2s": "x86"} if kind == "GGUF I2_S" else {}
    report = check(path, **options)
    for problem in report.problems:
        one_line(str(problem))
    try:
        spec = open_shape(path, **options)
        checkpoint = open_checkpoint(path, **options)
    except OWN_ERRORS as error:
        one_line(str(error))
        require(not report.ok, f"check accepts what cannot be opened: {error}")
        return None
    if not report.ok:
        return None
    require(spec.shape == checkpoint.spec.shape, "open_shape and open_checkpoint differ")
    others = other_tensors(path)
    require(set(others) == set(checkpoint.tensors), "names of tensors differ")
    digest = hashlib.sha256(checkpoint.spec.to_json().encode())
    for name, tensor in checkpoint.tensors.items():
        dtype, shape, data = others[name]
        require((tensor.dtype, list(tensor.shape)) == (dtype, shape), f"{name} is {tensor.dtype} {tensor.shape}, elsewhere {dtype} {shape}")
        require(tensor.data.tobytes() == data, f"{name} has other bytes")
        digest.update(data)
    compare_weights(checkpoint, kind)
    compare_description(path, checkpoint.spec.shape)
    return digest.hexdigest()[:16]


def one_line(text: str) -> None:
    require(text.isprintable() and len(text) < 1200, f"not a line: {text[:200]!r}")


def other_tensors(path: Path) -> dict[str, tuple[str, list[int], bytes]]:
    """Types, shapes and bytes by the formats' own libraries."""
    if path.is_dir():
        files = [path / "model.safetensors"]
        if not files[0].is_file():
            files = [path / name for name in set(json.loads((path / "model.safetensors.index.json").read_bytes())["weight_map"].values())]
        return {name: (t["dtype"], list(t["shape"]), bytes(t["data"]))
                for file in files for name, t in safetensors.deserialize(file.read_bytes())}  # fmt: skip
    files = sorted(path.parent.glob("m-*.gguf")) if path.name != "m.gguf" else [path]
    out = {}
    for file in files:
        parts = Gguf.parse(data := file.read_bytes())
        if any(kind == 36 for _, _, kind, _ in parts.tensors):  # which the library does not know
            alignment = int.from_bytes(dict(parts.values).get(b"general.alignment", b"1234\x20")[4:], "little")
            start = -(-parts.header_bytes // alignment) * alignment
            for name, dims, kind, offset in parts.tensors:
                (block, size), dtype = ((4, 1), "I2_S") if kind == 36 else (GGML_QUANT_SIZES[kind := GGMLQuantizationType(kind)], kind.name)
                size = int(np.prod(dims)) // block * size + 32 * (dtype == "I2_S")
                out[name.decode()] = dtype, dims[::-1], data[start + offset : start + offset + size]
        else:
            out |= {t.name: (t.tensor_type.name, [int(d) for d in t.shape][::-1], data[t.data_offset : t.data_offset + t.n_bytes])
                    for t in GGUFReader(file).tensors}  # fmt: skip
    return out


def compare_weights(checkpoint: Any, kind: str) -> None:
    """Trits and scales against other code's values."""
    shape = checkpoint.spec.shape
    for layer in range(shape.layers):
        for name in MATRICES:
            trits, scale = checkpoint.ternary(layer, name)
            require(trits.dtype == np.int8 and bool(np.isin(trits, (-1, 0, 1)).all()) and 0 < scale < np.inf, f"{name} is not ternary")
            tensor = checkpoint.tensors[checkpoint.matrix_name(layer, name)]
            if tensor.dtype == "U8":
                require(synthetic.packed_rows(trits).tobytes() == tensor.data.tobytes(), f"{name} was unpacked otherwise")
            elif tensor.dtype in ("TQ1_0", "TQ2_0"):
                stored = dequantize(np.array(tensor.data).reshape(tensor.shape[0], -1), GGMLQuantizationType[tensor.dtype])
                if checkpoint.permuted and name in ("q_proj", "k_proj"):
                    trits = synthetic.interleaved(trits, shape.heads if name == "q_proj" else shape.kv_heads)
                require(np.array_equal(stored, trits * np.float32(scale)), f"{name} holds other weights")
        for name in NORMS:
            if shape.sub_norms or name not in SUB_NORMS:
                require(np.isfinite(checkpoint.norm(layer, name)).all(), f"{name} is not finite")
    require(np.isfinite(checkpoint.embedding()).all() and np.isfinite(checkpoint.head()).all(), "a table is not finite")


HUGGING_FACE = {"hidden": "hidden_size", "ffn": "intermediate_size", "layers": "num_hidden_layers", "heads": "num_attention_heads",
                "vocab": "vocab_size"}  # fmt: skip
GGUF = {"hidden": "embedding_length", "ffn": "feed_forward_length", "layers": "block_count", "heads": "attention.head_count",
        "context": "context_length"}  # fmt: skip


def compare_description(path: Path, shape: ModelShape) -> None:
    """The dimensions that the description gives in so many words."""
    if path.is_dir():
        stated: dict[str, Any] = json.loads((path / "config.json").read_bytes())
        names = HUGGING_FACE
    else:
        values = {k.decode(): v for k, v in Gguf.parse(path.read_bytes()).values}
        architecture = values["general.architecture"][12:].decode()
        stated = {k.removeprefix(architecture + "."): int.from_bytes(v[4:], "little") for k, v in values.items() if len(v) <= 12}
        names = GGUF
    for ours, theirs in names.items():
        require(getattr(shape, ours) == stated[theirs], f"{ours} is {getattr(shape, ours)}, the file says {stated[theirs]}")


def read_image(path: Path) -> str | None:
    try:
        image = open_image(path)
    except OWN_ERRORS as error:
        one_line(str(error))
        return None
    data = path.read_bytes()
    length = struct.unpack_from("<I", data, HEADER.size - 8)[0]
    record = json.loads(data[HEADER.size : HEADER.size + length])
    require(image.config == BuildConfig.from_dict(record["config"]), "another configuration")
    for section in record["sections"]:
        content = data[section["offset"] : section["offset"] + section["length"]]
        require(len(content) == section["length"] and zlib.crc32(content) == section["crc32"], f"section {section['name']} is damaged")
        require(image.section(section["name"]).tobytes() == content, f"section {section['name']} has other bytes")
    spans = sorted((s["address"], s["address"] + s["length"]) for s in record["sections"] if s["address"] is not None)
    require(all(a[1] <= b[0] for a, b in zip(spans, spans[1:], strict=False)), "sections overlap in memory")
    require(all(end <= image.map.total_bytes for _, end in spans), "a section is past the memory")
    require(len(image.program) * 8 == len(image.section("program")) and image.descriptors == image.map.descriptor_words(), "other programs")
    return hashlib.sha256(data).hexdigest()[:16]


def read_tokenizer(path: Path) -> str | None:
    try:
        tokenizer = Tokenizer.from_file(path, 0)
        ids = tokenizer.encode(TEXT)
        text = tokenizer.decode(ids)
    except OWN_ERRORS as error:
        one_line(str(error))
        return None
    require(isinstance(text, str) and len(ids) < 1000, "an odd text")
    return hashlib.sha256(repr(ids).encode()).hexdigest()[:16]


def read_vocabulary(folder: Path) -> str | None:
    """A model's tokenizer from the files that it may come from; its tokens are compared with the file's."""
    path = folder / "m.gguf"
    try:
        if path.exists() or not any(folder.glob("tokenizer*")):
            vocabulary = of_gguf(path, read_gguf(path)[0], None, VOCABULARY)
        else:
            vocabulary = of_folder(folder, None, VOCABULARY + 1, 1)
        ids = Tokenizer.from_file(vocabulary, vocabulary.start).encode(TEXT)
    except OWN_ERRORS as error:
        one_line(str(error))
        return None
    for note in vocabulary.notes:
        one_line(note)
    special = [*vocabulary.ends, *([] if vocabulary.start is None else [vocabulary.start])]
    require(all(0 <= token <= VOCABULARY for token in special), f"special tokens {special}")
    require(len(ids) < 1000, "an odd text")
    library, model = Library.from_str(vocabulary.data.decode()), folder / "tokenizer.model"
    stated: list[str] = []
    if path.exists():
        fields = GGUFReader(path).fields
        if (tokens := fields.get("tokenizer.ggml.tokens")) is not None:
            kinds = fields["tokenizer.ggml.token_type"].contents() if "tokenizer.ggml.token_type" in fields else None
            texts = tokens.contents()
            stated = [text if kinds is None or kinds[i] == 1 else "" for i, text in enumerate(texts)]
    elif model.exists() and not (folder / "tokenizer.json").exists():
        try:
            theirs = sentencepiece.SentencePieceProcessor(model_proto=model.read_bytes())
        except RuntimeError as error:
            require("charsmap" in str(error), f"sentencepiece refuses it: {error}")  # whose units are not looked at one by one
            return None
        stated = [theirs.id_to_piece(id) for id in range(theirs.get_piece_size())]
    for id, text in enumerate(stated):
        require(not text or library.id_to_token(id) == text, f"token {id} is {library.id_to_token(id)!r}, the file says {text!r}")
    return hashlib.sha256(repr((ids, special)).encode()).hexdigest()[:16]


# Runs --------------------------------------------------------------------------------------------


class Corpus:
    """The files that are mutated, by kind, and a folder to write mutations into."""

    def __init__(self, folder: Path) -> None:
        (folder / "sources").mkdir()
        self.sources, self.folder = sources(folder / "sources"), folder / "case"
        self.kinds = sorted(self.sources)

    def outcome(self, kind: str, edits: list[Edit]) -> str | None:
        """`read` of a kind's files after edits."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        for name, data in edited(self.sources[kind], edits).items():
            (self.folder / name).write_bytes(data)
        return read(kind, self.folder)

    def case(self, index: int) -> tuple[str, list[Edit]]:
        return self.kinds[index % len(self.kinds)], random_edits(index)


def temporary() -> tempfile.TemporaryDirectory[str]:
    """In memory, where the system has such a place."""
    memory = Path("/dev/shm")
    return tempfile.TemporaryDirectory(prefix="tritloom-fuzz-", dir=memory if memory.is_dir() and os.access(memory, os.W_OK) else None)


class Hang(BaseException):
    """A reader that took too long."""


def _alarm(*_: object) -> None:
    raise Hang


def outcome_or_failure(corpus: Corpus, index: int) -> tuple[str, bool, str | None, float]:
    """(kind, accepted, failure, seconds of processor time) of one file."""
    kind, edits = corpus.case(index)
    start = time.process_time()
    signal.setitimer(signal.ITIMER_PROF, 2 * SECOND_LIMIT)
    accepted, failure = False, None
    try:
        accepted = corpus.outcome(kind, edits) is not None
    except Hang:
        failure = "took too long"
    except BaseException as error:  # the tokenizers library has errors that are no Exceptions
        if isinstance(error, KeyboardInterrupt):
            raise
        failure = f"{type(error).__name__}: {str(error)[:300]}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    spent = time.process_time() - start
    if failure is None and spent > SECOND_LIMIT:
        failure = f"took {spent:.1f} s"
    return kind, accepted, failure, spent


def block(corpus: Corpus, first: int, count: int, pipe: Any) -> None:
    """Files first..first+count-1, in a process of its own: each is told before and after, so that one that kills it is known."""
    warnings.simplefilter("error")
    signal.signal(signal.SIGPROF, _alarm)
    faulthandler.dump_traceback_later(1800, exit=True)
    used = resource.getpagesize() * int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_LIMIT, resource.RLIM_INFINITY))
    for index in range(first, first + count):
        pipe.send((index, None))
        pipe.send((index, outcome_or_failure(corpus, index)))
    pipe.send((None, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))


def run(corpus: Corpus, files: int, first: int = 0, progress: Any = None) -> dict[str, Any]:
    """Outcomes of `files` files by kind, and the failures."""
    context = multiprocessing.get_context("fork")
    counts, failures, longest, peak = Counter[tuple[str, str]](), [], 0.0, 0
    at = first
    while at < first + files:
        here, there = context.Pipe(duplex=False)
        count = min(BLOCK, first + files - at)
        process = context.Process(target=block, args=(corpus, at, count, there))
        process.start()
        there.close()
        started = None
        try:
            while True:
                index, what = here.recv()
                if index is None:
                    peak = max(peak, what)
                elif what is None:
                    started = index
                else:
                    kind, accepted, failure, spent = what
                    counts[kind, "failed" if failure else "accepted" if accepted else "refused"] += 1
                    longest = max(longest, spent)
                    if failure:
                        failures.append({"file": index, "kind": kind, "failure": failure})
                    started, at = None, index + 1
        except EOFError:
            process.join()
        if started is not None:
            failures.append({"file": started, "kind": "", "failure": f"ended the process with status {process.exitcode}"})
            at = started + 1
        if progress:
            progress(at - first, len(failures))
    kinds = sorted({kind for kind, _ in counts})
    table = {kind: {what: counts[kind, what] for what in ("accepted", "refused", "failed")} for kind in kinds}
    return {"files": files, "first": first, "kinds": table, "failures": failures, "longest_s": round(longest, 3), "peak_bytes": peak}


def behaviour(corpus: Corpus, files: int = SAMPLE) -> str:
    """Digest of what the readers make of the first files: which are accepted, and what is read from those."""
    digest = hashlib.sha256()
    for index in range(files):
        digest.update(f"{index} {corpus.outcome(*corpus.case(index))}\n".encode())
    return digest.hexdigest()[:16]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--files", type=int, default=FILES)
    parser.add_argument("--first", type=int, default=0, help="number of the first file: a number decides about its edits")
    parser.add_argument("--store", action="store_true", help=f"write {RESULTS.relative_to(ROOT)}")
    options = parser.parse_args(arguments)
    start = time.monotonic()

    def progress(done: int, failed: int) -> None:
        print(f"\r{done} of {options.files} files, {failed} failures, {time.monotonic() - start:.0f} s", end="", flush=True)

    with temporary() as folder:
        corpus = Corpus(Path(folder))
        result = run(corpus, options.files, options.first, progress)
        digest = behaviour(corpus) if options.store else ""
    print()
    for failure in result["failures"][:50]:
        print(f"file {failure['file']} ({failure['kind']}): {failure['failure']}")
    if options.store:
        record = {"date": datetime.now(timezone.utc).date().isoformat(), "command": "make fuzz", "seconds": round(time.monotonic() - start),
                  "behaviour": digest} | result  # fmt: skip
        write_atomically(RESULTS.parent, {RESULTS.name: json.dumps(record, indent=1) + "\n"})
    return int(bool(result["failures"]))


if __name__ == "__main__":
    sys.exit(main())
