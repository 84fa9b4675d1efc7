"""The programs a machine runs, generated from its configuration and memory map.

`generation` runs a prompt of any length in passes of up to `lanes` tokens and then generates, choosing
every token on the device. The host sees tokens only (docs/isa.md has the calling convention).

`passes` takes one pass of segments after the other from the host, each of some consecutive tokens of one of the sequences
whose caches the memory holds: a token each of several sequences, a token and guesses at what follows it, a piece of a
prompt, or any mixture that the lanes hold. It answers with the token sampled after each token from a given one on. What follows a
wrong guess is not kept: later passes overwrite it.
"""

from __future__ import annotations

from math import ceil

from tritloom.firmware.assembler import assemble
from tritloom.firmware.config import BuildConfig
from tritloom.firmware.isa import SCRATCH_WORDS
from tritloom.firmware.layout import MemoryMap

NO_STOP_TOKEN = 0xFFFFFFFF

ENTRY_GENERATION, ENTRY_PASSES = range(2)
"""Where the two programs begin."""

ARG_PROMPT, ARG_TOKENS, ARG_POSITION, ARG_STOP, ARG_TEMPERATURE, ARG_LIMITS, ARG_SEED = range(7)
"""Arguments of the generation program: prompt length, tokens to generate (0: prefill only), position of the
first prompt token, the token that ends a text (NO_STOP_TOKEN for none), and the sampling: `Sampling.words` and the seed.

`passes` has none. A pass is IN: its number of tokens (0 ends the program), and the first of them to answer (their number: none
is); then, segment by segment, `segment_words` and the segment's tokens. OUT: the answers."""


def segment_words(cache: int, position: int, count: int, noise: int, temperature: int, limits: int) -> tuple[int, ...]:
    """A segment of `count` tokens, the first at `position`, of the sequence whose cache begins at byte `cache`.

    `noise`: seed + position of the token after the first; `temperature`, `limits`: of `Sampling.words`.
    """
    return cache, position, count, noise & 0xFFFFFFFF, temperature, limits


ONE_SEQUENCE = """
        wait            matmul
        vector.qkv      slot=r0 count=r4 a=r1 b=r7
        wait            vector+writes
        dot.attend      slot=r0 count=r4 position=r1 kv_base=r7
"""
"""Keys, values and attention of `r4` tokens from slot 0, the first at position `r1`, in the cache at `r7`."""


def layer_assembly(config: BuildConfig, attention: str = ONE_SEQUENCE) -> str:
    """One layer for `r4` tokens from slot 0; `attention` is what depends on their sequences."""
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
        {attention.strip()}
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


def generation_assembly(config: BuildConfig, layout: MemoryMap) -> str:
    """Assembly text of the generation program."""
    s = config.shape
    return f"""
    ; r1 position  r2 prompt tokens left  r3 tokens to generate  r4 tokens in this pass  r5 slot
    ; r6 layer  r7 cache of the layer  r8 token  r9 scratch  r10 stop token  r11 prompt left after this pass
    ; r12 base, noise  r13 temperature  r14 limits
    generation:
        arg     r1, {ARG_POSITION}
        arg     r2, {ARG_PROMPT}
        arg     r3, {ARG_TOKENS}
        arg     r10, {ARG_STOP}
        beq     r2, r0, done
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
        beq     r3, r0, done
        vector.param length={s.hidden}                  ; final norm, head scale
        li      r4, 1
        vector.normq slot=r9 count=r4 length={s.hidden} source=0 norm=1 dest=1
        arg     r12, {ARG_SEED}
        add     r12, r12, r1
        arg     r13, {ARG_TEMPERATURE}
        arg     r14, {ARG_LIMITS}
        wait    vector
        sample  slot=r9 noise=r12 temperature=r13 limits=r14
        dot.head slot=r9 count=r4
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
    stopped:
        flush
    done:
        wait    vector+matmul+dot+sampler+writes
        halt    0
    """


def passes_assembly(config: BuildConfig, layout: MemoryMap, head_lanes: int) -> str:
    """Assembly text of the program of passes. A dot.head serves `head_lanes` slots; for more, the head's rows are streamed again.

    Scratch words: of segment i its cache, first position and number of tokens from 4 i on; of slot i its noise, temperature and
    limits from 4 (lanes + i) on.
    """
    s = config.shape
    stride = SCRATCH_WORDS // 2
    each_segment = """
        li      r5, 0
        li      r2, 0
    {label}:
        load    r7, r2, 0
        add     r7, r7, r10
        load    r1, r2, 1
        load    r3, r2, 2
        wait    {units}
        {command}
        add     r5, r5, r3
        addi    r2, r2, {stride}
        bne     r5, r4, {label}
    """
    attention = (
        each_segment.format(label="write", units="matmul", stride=stride, command="vector.qkv slot=r5 count=r3 a=r1 b=r7")
        + each_segment.format(label="attend", units="vector+writes", stride=stride,
                              command="dot.attend slot=r5 count=r3 position=r1 kv_base=r7")
    )
    return f"""
    ; r1 position  r2 scratch address  r3 segment's or run's tokens, address of the slot  r4 tokens in this pass  r5 slot
    ; r6 layer, end of the segment, answers of a run  r7 cache  r8 token  r9 scratch  r10 layer's place in a cache  r11 slot to answer next
    ; r12 base  r13 noise  r14 temperature  r15 limits
    passes:
        stream  {layout.entry_layers}                   ; the next pass's weights, while the host decides
    next_pass:
        in      r4
        beq     r4, r0, ended
        in      r11
        beq     r11, r4, begin
        stream  {layout.entry_head}
    begin:
        vector.param length=0                           ; embedding scale
        li      r5, 0
        li      r2, 0
        li      r3, {stride * config.lanes}
    segment:
        in      r7
        store   r7, r2, 0
        in      r1
        store   r1, r2, 1
        in      r6
        store   r6, r2, 2
        addi    r2, r2, {stride}
        in      r13
        in      r14
        in      r15
        add     r6, r6, r5
    slot:
        store   r13, r3, 0
        store   r14, r3, 1
        store   r15, r3, 2
        addi    r3, r3, {stride}
        addi    r13, r13, 1
        in      r8
        li      r12, {layout.embedding_base}
        vector.embed slot=r5 a=r8 b=r12
        li      r12, {layout.rope_base}
        vector.rope slot=r5 a=r1 b=r12
        addi    r1, r1, 1
        addi    r5, r5, 1
        bne     r5, r6, slot
        bne     r5, r4, segment
        li      r6, {s.layers}
        li      r10, 0
    passes_layer:
        {layer_assembly(config, attention).strip()}
        li      r9, {config.kv_layer_bytes}
        add     r10, r10, r9
        addi    r6, r6, -1
        bne     r6, r0, passes_layer
        beq     r11, r4, passes
        add     r2, r11, r11                            ; times the stride of 4
        add     r2, r2, r2
        addi    r2, r2, {stride * config.lanes}
    answers:
        sub     r6, r4, r11
        li      r9, {head_lanes}
        blt     r6, r9, some
        addi    r6, r9, 0
    some:
        vector.param length={s.hidden}                  ; final norm, head scale
        vector.normq slot=r11 count=r6 length={s.hidden} source=0 norm=1 dest=1
        add     r3, r11, r6
        addi    r5, r11, 0
    choice:
        load    r13, r2, 0
        load    r14, r2, 1
        load    r15, r2, 2
        wait    vector
        sample  slot=r5 noise=r13 temperature=r14 limits=r15
        addi    r2, r2, {stride}
        addi    r5, r5, 1
        bne     r5, r3, choice
        dot.head slot=r11 count=r6
        beq     r3, r4, last_answers
        stream  {layout.entry_head}
    answer:
        token   r8
        out     r8
        addi    r11, r11, 1
        bne     r11, r3, answer
        jmp     answers
    last_answers:
        stream  {layout.entry_layers}
    last_answer:
        token   r8
        out     r8
        addi    r11, r11, 1
        bne     r11, r4, last_answer
        jmp     next_pass
    ended:
        flush
        wait    vector+matmul+dot+sampler+writes
        halt    0
    """


def generation(config: BuildConfig, layout: MemoryMap, head_lanes: int | None = None) -> list[int]:
    """Words of both programs, which begin at ENTRY_GENERATION and ENTRY_PASSES. `head_lanes`: lanes of the dot engine, by default all."""
    entries = "jmp generation\njmp passes\n"
    passes = passes_assembly(config, layout, head_lanes or config.lanes)
    return assemble(entries + generation_assembly(config, layout) + passes, limit=config.program_words)
