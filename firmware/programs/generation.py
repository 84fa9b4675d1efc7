"""The generation program: a prompt of any length in passes of up to `lanes` tokens, then token after token, each chosen on the device."""

from __future__ import annotations

from tritloom.firmware.config import BuildConfig
from tritloom.firmware.layout import MemoryMap
from tritloom.firmware.programs.convention import (
    ARG_LIMITS,
    ARG_NOISE,
    ARG_NOISE_STEP,
    ARG_POSITION,
    ARG_PROMPT,
    ARG_STOP,
    ARG_TEMPERATURE,
    ARG_TOKENS,
    NOISE,
)
from tritloom.firmware.programs.head import begin_assembly, embed_token, head_assembly
from tritloom.firmware.programs.layer import Layer, layer_assembly, routine, two_groups_assembly

REGISTERS = (
    "position=r1 unread=r2 start=r2 ungenerated=r3 count=r4 count_b=r14 layers_left=r6 cache=r7 token=r8 slot=r11 "
    "one=r9 layer_bytes=r9 stop=r10 noise=r12 after_prompt=r12 last=r13"
)
"""Registers by what they hold; several names of one are used one after the other."""


def _count_assembly(config: BuildConfig, layout: MemoryMap) -> str:
    """How many of the `unread` prompt tokens go into this pass, and its weights: `count` in the first group, `count_b` in the second."""
    if config.groups == 1:
        return routine("count_tokens", "count count_b most=r9", f"""
        addi    count, unread, 0
        li      count_b, 0
        li      most, {config.lanes}
        bge     most, unread, counted
        addi    count, most, 0
    counted:
        bne     unread, count, layers_only
        beq     ungenerated, zero, layers_only
        stream  {layout.entry_token}
        jmp     embed
    layers_only:
        stream  {layout.entry_prompt}""")
    return routine("count_tokens", "count count_b most=r9", f"""
        addi    count, unread, 0
        li      count_b, 0
        li      most, {config.lanes}
        bge     most, unread, one_group
        addi    count, most, 0
        sub     count_b, unread, most
        bge     most, count_b, two_groups
        addi    count_b, most, 0
    two_groups:
        add     most, count, count_b
        bne     unread, most, two_groups_only
        beq     ungenerated, zero, two_groups_only
        stream  {layout.entry_token_twice}
        jmp     embed
    two_groups_only:
        stream  {layout.entry_prompt_twice}
        jmp     embed
    one_group:
        beq     ungenerated, zero, layers_only
        stream  {layout.entry_token}
        jmp     embed
    layers_only:
        stream  {layout.entry_prompt}""")


def _embed_assembly(config: BuildConfig, layout: MemoryMap) -> str:
    """Embeddings and rotary rows of the tokens of a pass, which come from the host, from `position` on."""
    second = "" if config.groups == 1 else f"""
        beq     count_b, zero, layers
        beq     first_group, zero, layers
        li      first_group, 0
        li      at, {config.group_slots}
        add     end_slot, at, count_b
        jmp     next_slot"""
    return routine("embed_tokens", "token at=r5 place=r9 first_group=r10 end_slot=r15 r12", f"""
        li      at, 0
        addi    place, position, 0
        addi    end_slot, count, 0
        li      first_group, 1
    next_slot:
        in      token
        {embed_token(layout, "at", "place")}
        addi    place, place, 1
        addi    at, at, 1
        bne     at, end_slot, next_slot{second}""")


def generation_assembly(config: BuildConfig, layout: MemoryMap) -> str:
    """Assembly text of the generation program. Of the last layer, only a prompt's last token takes more than keys and values."""
    s, p = config.shape, Layer(config)
    begin = begin_assembly(config)
    sample = routine("sample", "noise=r12 noise_step=r13 temperature=r13 limits=r14", f"""
        load    noise, zero, {NOISE}
        arg     noise_step, {ARG_NOISE_STEP}
        add     noise_step, noise, noise_step
        store   noise_step, zero, {NOISE}
        arg     temperature, {ARG_TEMPERATURE}
        arg     limits, {ARG_LIMITS}
        wait    vector
        sample  slot=slot noise=noise temperature=temperature limits=limits""")
    two_groups = "" if config.groups == 1 else f"""
        beq     count_b, zero, one_group_layers
        {two_groups_assembly(config).strip()}
        jmp     pass_done
    one_group_layers:"""
    attention = f"""
        li      one, 1
        beq     layers_left, one, last_layer
        {p.attention("slot", "count", "position", "attention", p.ffn_parameters, queries="dest=1 follow=1").strip()}
    attended:"""
    write = f"vector.qkv slot=slot count=count a=position b=cache dest=2 follow={p.before_q}"
    return f"""
    ; position: of the next token; unread: tokens of the prompt; ungenerated: tokens to come; count, count_b: tokens of the groups in this
    ; pass; cache: of the layer; slot: the first one
    .registers {REGISTERS}
    generation:
        arg     position, {ARG_POSITION}
        arg     unread, {ARG_PROMPT}
        arg     ungenerated, {ARG_TOKENS}
        arg     noise, {ARG_NOISE}
        store   noise, zero, {NOISE}
        beq     unread, zero, done
    prefill:
        {_count_assembly(config, layout).strip()}
    embed:
        {begin}
        {_embed_assembly(config, layout).strip()}
    layers:
        li      layers_left, {s.layers}
        li      cache, {layout.kv_base}{two_groups}
        li      slot, 0
    layer:
        {layer_assembly(config, write, attention, "slot").strip()}
        li      layer_bytes, {config.kv_layer_bytes}
        add     cache, cache, layer_bytes
        addi    layers_left, layers_left, -1
        bne     layers_left, zero, layer
        jmp     head
    last_layer:
        add     position, position, count
        addi    slot, count, -1                             ; slot of the last token
        vector.qkv slot=slot count=one dest=1 follow=1
    pass_done:
        arg     start, {ARG_POSITION}
        arg     after_prompt, {ARG_PROMPT}
        add     after_prompt, after_prompt, start                            ; position after the prompt
        sub     unread, after_prompt, position
        blt     position, after_prompt, prefill
        beq     ungenerated, zero, done
        li      count, 1
        li      layers_left, 1
        addi    last, position, -1
        wait    vector+writes
        dot.attend slot=slot count=count position=last kv_base=cache
        {p.ffn_parameters}
        wait    dot
        vector.normq slot=slot count=count length={s.q_size} source=1 norm={p.sub} bank=1
        jmp     attended
    head:
        {head_assembly(config, layout, "slot", "count", sample).strip()}
        addi    ungenerated, ungenerated, -1
        beq     ungenerated, zero, last
        stream  {layout.entry_token}                    ; the next token's weights, ahead of its choice
        {begin}
        token   token
        out     token
        arg     stop, {ARG_STOP}
        beq     token, stop, stopped
        li      count_b, 0
        {embed_token(layout, "zero", "position")}
        jmp     layers
    last:
        token   token
        out     token
        jmp     done
    stopped:
        wait    vector+dot                      ; the head's last rows are none of the vocabulary's, but come
        flush
    done:
        wait    vector+matmul+dot+sampler+writes
        halt    0
    """
