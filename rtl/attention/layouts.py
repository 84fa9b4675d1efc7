"""What passes between the parts of the dot engine."""

from __future__ import annotations

from amaranth.lib import data

from tritloom.firmware.config import CHUNK
from tritloom.rtl.arith import index_shape
from tritloom.rtl.attention.parameters import AttentionParameters

__all__ = ["HEAD", "KEYS", "VALUES", "VALUE_SCALES", "job_layout", "run_layout", "step_layout"]

VALUE_SCALES, KEYS, VALUES, HEAD = range(4)
"""Kinds of jobs."""


def run_layout(attention: AttentionParameters) -> data.StructLayout:
    """A run of tokens of one cache: the last one's position, the cache's address, their lanes; `last` of the command."""
    p = attention
    return data.StructLayout({"position": range(p.context + p.lanes), "kv_base": 32, "active": p.lanes, "last": 1})


def job_layout(attention: AttentionParameters) -> data.StructLayout:
    """A read and what it is for: `kind`, visible `rows` less one, `last` of its pass, and what `step_layout` says.

    With a short-list, `head_row`: the place of a head row among the `group_rows` that share a beat of scales.
    """
    head_row = {"head_row": index_shape(attention.group_rows)} if attention.short_list else {}
    return data.StructLayout({
        "kind": 2, "rows": 4, "remaining": range(CHUNK + attention.lanes), "first": 1, "last": 1, "parity": 1, "bank": 1,
        "active": attention.lanes, **head_row,
    })


def step_layout(attention: AttentionParameters) -> data.StructLayout:
    """What the multipliers do in a cycle: a word of each of R keys or values side by side, with its place in the work.

    `values`: add the rows, times their weights, to the output; else take their dot products. `rescale`: only shift
    the output word. `fresh`: the output word starts from zero. `first`, `last`: the rows' first, last word.
    `row`: the first of the rows; `parts`: which of them are there. `head`: all of the bytes are of one row of the
    vocabulary, whose logit is wanted if `emit`. `ends_half`, `ends_pass`: the last of a chunk's keys, of a
    pass's values. `remaining`: positions from the chunk's first to the furthest lane's own, limited. `active`: the lanes whose
    chunk it is.
    """
    return data.StructLayout({
        "valid": 1, "values": 1, "rescale": 1, "fresh": 1, "first": 1, "last": 1,
        "word": index_shape(max(attention.head_words, attention.row_words)), "bank": 1,
        "row": index_shape(max(attention.group_rows, CHUNK)),
        "parts": attention.rows, "parity": 1, "head": 1, "emit": 1, "ends_half": 1, "ends_pass": 1,
        "remaining": range(CHUNK + attention.lanes), "active": attention.lanes,
    })
