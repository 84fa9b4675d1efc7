"""What stands before and behind the layers: parameters, embeddings, and the head, as assembly text."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil

from tritloom.firmware.config import BuildConfig
from tritloom.firmware.layout import MemoryMap, head_row_blocks
from tritloom.firmware.programs.layer import routine, steps_of


def begin_assembly(config: BuildConfig) -> str:
    """The parameters with which every pass begins."""
    return f"""vector.param length=0 bank=3                    ; embedding scale
        vector.param length={config.shape.gains_before("qkv")} bank=0                    ; norms of the first layer"""


def embed_token(layout: MemoryMap, slot: str, position: str) -> str:
    """`token` becomes the slot's residual stream, with the rotary row of its position."""
    return routine("embed", "base=r12", f"""
        li      base, {layout.embedding_base}
        vector.embed slot={slot} a=token b=base bank=3
        li      base, {layout.rope_base}
        vector.rope slot={slot} a={position} b=base""")


def grouped_head_assembly(config: BuildConfig, slot: str, count: str, scans: Callable[[int, bool, str], str]) -> str:
    """From the codes of `count` tokens from `slot` (registers) to the sampler's logits, for a head that is ternary by groups: block after
    block of its rows, one of which the sampler takes while the next streams. `scans`: commands for the results of so many rows of all
    slots, the first block's or not, from the step in register `complete`; labels begin with the name of a register or end with what it is
    given."""
    s = config.shape
    half = ceil(config.head_block_rows / config.result_step)

    def block(rows: int) -> str:
        return f"matmul inputs={s.hidden} {steps_of(config, rows)} slot={slot} count={count} at=streams"

    swap = """
        wait    matmul
        addi    complete, streams, 0
        sub     streams, half, streams"""
    first, *others = head_row_blocks(config)
    full = sum(rows == first for rows in others)
    text = f"""
        li      half, {half}
        li      streams, 0
        {block(first)}{swap}"""
    before = scans(first, True, "first")
    if full:
        text += f"""
        {block(first)}
        {before}{swap}"""
        before = scans(first, False, "full")
    if full > 1:
        text += f"""
        li      left, {full - 1}
    {slot}_head_blocks:
        {block(first)}
        {scans(first, False, "next")}{swap}
        addi    left, left, -1
        bne     left, zero, {slot}_head_blocks"""
    for rows in others[full:]:
        text += f"""
        {block(rows)}
        {before}{swap}"""
        before = scans(rows, False, "rest")
    return f"""{text}
        {before}
    """


def head_assembly(config: BuildConfig, layout: MemoryMap, slot: str, count: str, samples: str) -> str:
    """From the residual stream of `count` tokens from `slot` (registers) to the logits that the sampler takes; `samples`: commands
    for the sampler, which must wait for the vector unit. A short-list takes one token; its blocks of rows lie in one half of
    the results and the other in turn, and one is scanned while the next streams."""
    s = config.shape
    norm = f"""
        vector.normq slot={slot} count={count} length={s.hidden} norm=1 dest={2 if config.shortlist or s.ternary_head else 1}
        {samples.strip()}"""
    if s.ternary_head:
        text = grouped_head_assembly(config, slot, count, lambda rows, first, _:
                                     f"scan slot={slot} rows={rows} first={int(first)} at=complete")
        return norm + routine("grouped_head", "left=r5 complete=r10 half=r12 streams=r15", text)
    if not config.shortlist:
        return f"""{norm}
        dot.head slot={slot} count={count}
    """
    half = ceil(config.head_block_rows / config.result_step)

    def block(rows: int) -> str:
        return f"matmul inputs={s.hidden} {steps_of(config, rows)} slot={slot} count={count} at=streams"

    def scan(rows: int, first: int = 0) -> str:
        return f"scan slot={slot} rows={rows} first={first} at=complete"

    swap = """
        addi    complete, streams, 0
        sub     streams, half, streams"""
    first, *others = head_row_blocks(config)
    full = sum(rows == config.head_block_rows for rows in others)
    text = f"""
        li      half, {half}
        li      streams, 0
        {block(first)}
        wait    matmul{swap}"""
    before = scan(first, 1)
    if full:
        text += f"""
        {block(config.head_block_rows)}
        {before}
        wait    matmul{swap}"""
        before = scan(config.head_block_rows)
    if full > 1:
        text += f"""
        li      left, {full - 1}
    ternary_head:
        {block(config.head_block_rows)}
        {before}
        wait    matmul{swap}
        addi    left, left, -1
        bne     left, zero, ternary_head"""
    for rows in others[full:]:
        text += f"""
        {block(rows)}
        {before}
        wait    matmul{swap}"""
        before = scan(rows)
    text += f"""
        {before}
        li      base, {layout.head_base}
        dot.head slot={slot} count={count} kv_base=base"""
    return norm + routine("ternary_head", "left=r5 complete=r10 half=r12 base=r12 streams=r15", text)
