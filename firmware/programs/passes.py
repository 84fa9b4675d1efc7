"""The program of passes: one pass of segments after the other from the host, each of some consecutive tokens of one of the sequences whose
caches the memory holds: a token each of several sequences, a token and guesses at what follows it, a piece of a prompt, or any mixture
that the lanes hold. Segments may attend together, and after a prefix that they share. It answers with the token sampled after each token
from a given one on. What follows a wrong guess is not kept: later passes overwrite it.
"""

from __future__ import annotations

from tritloom.firmware.config import BuildConfig
from tritloom.firmware.layout import MemoryMap
from tritloom.firmware.programs.convention import JOINS, SEGMENT_WORDS, SLOT_WORDS
from tritloom.firmware.programs.head import begin_assembly, embed_token, grouped_head_assembly
from tritloom.firmware.programs.layer import Layer, layer_assembly, routine

REGISTERS = (
    "position=r1 address=r2 run=r3 slot_address=r3 answers_end=r3 count=r4 slot=r5 layers_left=r6 end=r6 answers=r6 "
    "cache=r7 value=r7 noise_step=r7 token=r8 next_slot=r8 group_tokens=r9 layer_bytes=r9 lanes=r9 layer_at=r10 "
    "answer=r11 last_shared=r12 noise=r13 group_address=r13 temperature=r14 prefix=r14 slot_before=r14 limits=r15 "
    "joins=r15"
)
"""Registers by what they hold; several names of one are used one after the other."""


def passes_assembly(config: BuildConfig, layout: MemoryMap) -> str:
    """Assembly text of the program of passes. A dot.head serves as many slots as the dot engine has lanes; for more, the head's rows are
    streamed again.

    Scratch words: of segment i the first SEGMENT_WORDS of `segment_words` from SEGMENT_WORDS i on; of slot i its noise, temperature and
    limits from SEGMENT_WORDS lanes + SLOT_WORDS i on. Segments that attend together are a group: while the dot engine attends for
    one, the vector unit works on those before and after.
    """
    s, p = config.shape, Layer(config)
    slots_at = SEGMENT_WORDS * config.lanes
    segment = """load    cache, address, 0
        add     cache, cache, layer_at
        load    position, address, 1
        load    run, address, 2
        load    last_shared, address, 4"""
    normalise = f"""sub     slot_before, slot, group_tokens
        vector.normq slot=slot_before count=group_tokens length={s.q_size} source=1 norm={p.sub} bank=1"""
    write = f"""
        li      next_slot, 0
        li      address, 0
    keys:
        {segment}
        vector.qkv slot=next_slot count=run a=position b=cache dest=2 follow={p.before_q}
        add     next_slot, next_slot, run
        addi    address, address, {SEGMENT_WORDS}
        bne     next_slot, count, keys"""
    attention = f"""
        li      slot, 0
        li      group_address, 0
        li      group_tokens, 0
        li      joins, {JOINS}
    group:
        addi    address, group_address, 0
        addi    next_slot, slot, 0
    queries:
        {segment}
        vector.qkv slot=next_slot count=run dest=1 follow=1
        add     next_slot, next_slot, run
        addi    address, address, {SEGMENT_WORDS}
        beq     last_shared, joins, queries
        wait    vector+writes
        addi    address, group_address, 0
        addi    next_slot, slot, 0
    join:
        {segment}
        bne     last_shared, joins, joined
        dot.join slot=next_slot count=run position=position kv_base=cache
        add     next_slot, next_slot, run
        addi    address, address, {SEGMENT_WORDS}
        jmp     join
    joined:
        beq     last_shared, zero, attend
        load    prefix, address, 3
        add     prefix, prefix, layer_at
        dot.share position=last_shared kv_base=prefix
    attend:
        dot.attend slot=next_slot count=run position=position kv_base=cache
        add     next_slot, next_slot, run
        addi    group_address, address, {SEGMENT_WORDS}
        beq     group_tokens, zero, first_group
        {normalise}
    first_group:
        sub     group_tokens, next_slot, slot
        addi    slot, next_slot, 0
        bne     slot, count, group
        {p.ffn_parameters}
        wait    dot
        {normalise}"""

    def scans(rows: int, first: bool, name: str) -> str:
        return f"""
        addi    slot, answer, 0
    scan_{name}:
        scan    slot=slot rows={rows} first={int(first)} at=complete
        addi    slot, slot, 1
        bne     slot, answers_end, scan_{name}"""

    head = "dot.head slot=answer count=answers"
    if s.ternary_head:
        text = grouped_head_assembly(config, "answer", "answers", scans)
        head = routine("grouped_head", "slot left=r7 complete=r9 half=r10 streams=r12", text)
    return f"""
    ; position: of the next token; address: in the scratch memory; run: a segment's tokens; count: those of the pass; slot: of a group the
    ; first; next_slot: after the segment; group_tokens: of the group before; layer_at: the layer's place in a cache; answer: slot to answer
    .registers {REGISTERS}
    passes:
        stream  {layout.entry_layers}                   ; the next pass's weights, while the host decides
    next_pass:
        in      count
        beq     count, zero, ended
        in      answer
        beq     answer, count, begin
        stream  {layout.entry_head}
    begin:
        {begin_assembly(config)}
        li      slot, 0
        li      address, 0
        li      slot_address, {slots_at}
    segment:
        in      value
        store   value, address, 0
        in      value
        store   value, address, 1
        in      end
        store   end, address, 2
        in      value
        store   value, address, 3
        in      value
        store   value, address, 4
        addi    address, address, {SEGMENT_WORDS}
        in      position
        in      noise
        in      noise_step
        in      temperature
        in      limits
        add     end, end, slot
    slot:
        store   noise, slot_address, 0
        store   temperature, slot_address, 1
        store   limits, slot_address, 2
        addi    slot_address, slot_address, {SLOT_WORDS}
        add     noise, noise, noise_step
        in      token
        {embed_token(layout, "slot", "position")}
        addi    position, position, 1
        addi    slot, slot, 1
        bne     slot, end, slot
        bne     slot, count, segment
        li      layers_left, {s.layers}
        li      layer_at, 0
    passes_layer:
        {layer_assembly(config, write, attention).strip()}
        li      layer_bytes, {config.kv_layer_bytes}
        add     layer_at, layer_at, layer_bytes
        addi    layers_left, layers_left, -1
        bne     layers_left, zero, passes_layer
        beq     answer, count, passes
        add     address, answer, answer                            ; times SLOT_WORDS
        add     address, address, answer
        addi    address, address, {slots_at}
    answers:
        sub     answers, count, answer
        li      lanes, {config.lanes if s.ternary_head else config.dot_lanes}
        blt     answers, lanes, some
        addi    answers, lanes, 0
    some:
        vector.normq slot=answer count=answers length={s.hidden} norm=1 dest={2 if s.ternary_head else 1}
        add     answers_end, answer, answers
        addi    slot, answer, 0
    choice:
        load    noise, address, 0
        load    temperature, address, 1
        load    limits, address, 2
        wait    vector
        sample  slot=slot noise=noise temperature=temperature limits=limits
        addi    address, address, {SLOT_WORDS}
        addi    slot, slot, 1
        bne     slot, answers_end, choice
        {head.strip()}
        beq     answers_end, count, last_answers
        stream  {layout.entry_head}
    answer:
        token   token
        out     token
        addi    answer, answer, 1
        bne     answer, answers_end, answer
        jmp     answers
    last_answers:
        stream  {layout.entry_layers}
    last_answer:
        token   token
        out     token
        addi    answer, answer, 1
        bne     answer, count, last_answer
        jmp     next_pass
    ended:
        wait    dot                             ; the head's last rows are none of the vocabulary's, but come
        flush
        wait    vector+matmul+dot+sampler+writes
        halt    0
    """
