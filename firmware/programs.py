"""The programs a machine runs, generated from its configuration and memory map.

`generation` runs a prompt of any length in passes of up to `lanes` tokens and then generates, choosing
every token on the device. The host sees tokens only (docs/isa.md has the calling convention).

With ARG_DRAFTS it checks the host's guesses instead: a pass takes the newest token and up to lanes - 1 drafted ones,
and answers with the most likely token after each. What follows a wrong guess is not kept: later passes overwrite it.
"""

from __future__ import annotations

from math import ceil

from tritloom.firmware.assembler import assemble
from tritloom.firmware.config import BuildConfig
from tritloom.firmware.layout import MemoryMap, head_row_blocks

NO_STOP_TOKEN = 0xFFFFFFFF

ARG_PROMPT, ARG_TOKENS, ARG_POSITION, ARG_STOP, ARG_DRAFTS = range(5)
"""Arguments of the generation program: prompt length, tokens to generate (0: prefill only), position of the
first prompt token, the token that ends a text (NO_STOP_TOKEN for none), and whether passes of drafts follow
the prompt (1, with no tokens to generate). Each such pass is IN: its number of tokens (0 ends the program),
the position of the first, the tokens; OUT: as many tokens."""


def layer_assembly(config: BuildConfig) -> str:
    """One layer for `count` tokens from slot 0, the first at `position`, with its cache at `cache`."""
    s = config.shape

    def steps(rows: int) -> int:
        return ceil(rows / config.rows_per_cycle)

    sub = int(s.sub_norms)
    q_gains, ffn_gains = (s.q_size, s.ffn) if s.sub_norms else (0, 0)
    return f"""
        vector.param    length={s.hidden}                       ; input norm, q, k and v scales
        vector.normq    slot=r0 count=r4 length={s.hidden} source=0 norm=1
        wait            vector
        matmul          inputs={s.hidden} steps={steps(s.qkv_rows)}
        wait            matmul
        vector.qkv      slot=r0 count=r4 a=r1 b=r7
        wait            vector+writes
        dot.attend      slot=r0 count=r4 position=r1 kv_base=r7
        vector.param    length={q_gains}                        ; o_proj, while attention runs
        wait            vector+dot
        vector.normq    slot=r0 count=r4 length={s.q_size} source=1 norm={sub}
        wait            vector
        matmul          inputs={s.q_size} steps={steps(s.hidden)}
        wait            matmul
        vector.resid    slot=r0 count=r4 length={s.hidden}
        vector.param    length={s.hidden}                       ; post-attention norm, gate and up
        vector.normq    slot=r0 count=r4 length={s.hidden} source=0 norm=1
        wait            vector
        matmul          inputs={s.hidden} steps={steps(2 * s.ffn)}
        wait            matmul
        vector.glu      slot=r0 count=r4 length={s.ffn}
        vector.param    length={ffn_gains}                      ; down_proj
        vector.normq    slot=r0 count=r4 length={s.ffn} source=1 norm={sub}
        wait            vector
        matmul          inputs={s.ffn} steps={steps(s.hidden)}
        wait            matmul
        vector.resid    slot=r0 count=r4 length={s.hidden}
    """


def head_assembly(config: BuildConfig, layout: MemoryMap, slot: str, count: str) -> str:
    """From the residual stream of `count` tokens from `slot` (registers) to the logits that the sampler takes."""
    s = config.shape
    norm = f"vector.normq slot={slot} count={count} length={s.hidden} source=0 norm=1"
    text = f"""
        vector.param length={s.hidden}                  ; final norm, head scale
        {norm} dest={2 if config.shortlist else 1}
        wait    vector
        sample  r1"""
    if not config.shortlist:
        return f"""{text}
        dot.head slot={slot} count={count}
    """

    def block(rows: int, first: int = 0) -> str:
        return f"""
        matmul  inputs={s.hidden} steps={ceil(rows / config.rows_per_cycle)}
        wait    matmul
        scan    slot={slot} rows={rows} first={first}"""

    first, *others = head_row_blocks(config)
    full = sum(rows == s.max_rows for rows in others)
    text += block(first, 1)
    if full:
        text += f"""
        li      r5, {full}
    ternary_head:
        wait    matmul{block(s.max_rows)}
        addi    r5, r5, -1
        bne     r5, r0, ternary_head"""
    for rows in others[full:]:
        text += f"""
        wait    matmul{block(rows)}"""
    return f"""{text}
        li      r12, {layout.head_base}
        dot.head slot={slot} count={count} kv_base=r12
    """


def generation_assembly(config: BuildConfig, layout: MemoryMap) -> str:
    """Assembly text of the generation program. One with a short-list cannot check drafts."""
    s = config.shape
    if config.shortlist:
        verify, drafts = "", ""
    else:
        verify, drafts = "bne r13, r0, verify", _drafts_assembly(config, layout)
    return f"""
    ; r1 position  r2 prompt tokens left  r3 tokens to generate  r4 tokens in this pass  r5 slot
    ; r6 layer  r7 cache of the layer  r8 token  r9 scratch  r10 stop token  r11 prompt left after this pass  r13 drafting
        arg     r1, {ARG_POSITION}
        arg     r2, {ARG_PROMPT}
        arg     r3, {ARG_TOKENS}
        arg     r10, {ARG_STOP}
        arg     r13, {ARG_DRAFTS}
        beq     r2, r0, prefilled
    prefill:
        addi    r4, r2, 0
        li      r9, {config.lanes}
        blt     r2, r9, counted
        addi    r4, r9, 0
    counted:
        sub     r11, r2, r4
        bne     r11, r0, layers_only
        beq     r3, r0, layers_only
        stream  {layout.entry_token}
        jmp     embed
    layers_only:
        stream  {layout.entry_layers}
    embed:
        vector.param length=0                           ; embedding scale
        li      r5, 0
    next_slot:
        in      r8
        li      r12, {layout.embedding_base}
        vector.embed slot=r5 a=r8 b=r12
        add     r9, r1, r5
        li      r12, {layout.rope_base}
        vector.rope slot=r5 a=r9 b=r12
        addi    r5, r5, 1
        bne     r5, r4, next_slot
    layers:
        li      r6, {s.layers}
        li      r7, {layout.kv_base}
    layer:
        {layer_assembly(config).strip()}
        li      r9, {config.kv_layer_bytes}
        add     r7, r7, r9
        addi    r6, r6, -1
        bne     r6, r0, layer
        addi    r9, r4, -1                              ; slot of the last token
        add     r1, r1, r4
        addi    r2, r11, 0
        bne     r2, r0, prefill
        beq     r3, r0, prefilled
        {verify}
        li      r4, 1
        {head_assembly(config, layout, "r9", "r4").strip()}
        addi    r3, r3, -1
        beq     r3, r0, last
        stream  {layout.entry_token}                    ; the next token's weights, ahead of its choice
        token   r8
        out     r8
        beq     r8, r10, stopped
        vector.param length=0
        li      r12, {layout.embedding_base}
        vector.embed slot=r0 a=r8 b=r12
        li      r12, {layout.rope_base}
        vector.rope slot=r0 a=r1 b=r12
        jmp     layers
    last:
        token   r8
        out     r8
        jmp     done
    prefilled:
        {"jmp done" if config.shortlist else "beq r13, r0, done"}
        {drafts.strip()}
    stopped:
        flush
    done:
        wait    vector+matmul+dot+sampler+writes
        halt    0
    """


def _drafts_assembly(config: BuildConfig, layout: MemoryMap) -> str:
    """Passes of drafts, one after the other; each goes through `embed` and comes back to `verify`."""
    return f"""
        li      r3, 1
        li      r11, 0
        stream  {layout.entry_token}
    drafts:
        in      r4
        beq     r4, r0, stopped
        in      r1
        jmp     embed
    verify:
        {head_assembly(config, layout, "r0", "r4").strip()}
        stream  {layout.entry_token}                    ; the next pass's weights, while the host drafts
        token   r8                                      ; the sampler's choice is the first token's best
        wait    dot
        li      r5, 0
    next_best:
        best    r8, r5
        out     r8
        addi    r5, r5, 1
        bne     r5, r4, next_best
        jmp     drafts
    """


def generation(config: BuildConfig, layout: MemoryMap) -> list[int]:
    """Words of the generation program (entry 0)."""
    return assemble(generation_assembly(config, layout), limit=config.program_words)
