"""The programs a machine runs, generated from its configuration and memory map.

`generation` runs a prompt of any length in passes of up to `lanes` tokens and then generates, choosing
every token on the device. The host sees tokens only (docs/isa.md has the calling convention).

`passes` takes one pass of segments after the other from the host, each of some consecutive tokens of one of the sequences
whose caches the memory holds: a token each of several sequences, a token and guesses at what follows it, a piece of a
prompt, or any mixture that the lanes hold. Segments may attend together, and after a prefix that they share. It answers with
the token sampled after each token from a given one on. What follows a wrong guess is not kept: later passes overwrite it.
"""

from __future__ import annotations

from math import ceil

from tritloom.firmware.assembler import assemble
from tritloom.firmware.config import RESULT_BLOCKS, BuildConfig
from tritloom.firmware.integer import Sampling, noise_word, noise_words
from tritloom.firmware.isa import MOST_FOLLOWED, SCRATCH_WORDS
from tritloom.firmware.layout import MemoryMap, head_row_blocks

NO_STOP_TOKEN = 0xFFFFFFFF

ENTRY_GENERATION, ENTRY_PASSES = range(2)
"""Where the two programs begin."""

ARG_PROMPT, ARG_TOKENS, ARG_POSITION, ARG_STOP, ARG_TEMPERATURE, ARG_LIMITS, ARG_NOISE, ARG_NOISE_STEP = range(8)
"""Arguments of the generation program: prompt length, tokens to generate (0: prefill only), position of the
first prompt token, the token that ends a text (NO_STOP_TOKEN for none), and the sampling: `Sampling.words`, `integer.noise_word` of the
first token to generate, and the step of `integer.noise_words`.

`passes` has none. A pass is IN: its number of tokens (0 ends the program), and the first of them to answer (their number: none
is); then, segment by segment, `segment_words` and the segment's tokens. OUT: the answers."""


NOISE = 0
"""Scratch word in which the generation program keeps the noise of the next token."""
SEGMENT_WORDS, SLOT_WORDS = 5, 3
"""Words of the scratch memory for each segment and for each slot; a pass has as many of both as there are lanes, or fewer."""
assert SEGMENT_WORDS + SLOT_WORDS <= SCRATCH_WORDS
JOINS = 1


def segment_words(cache: int, count: int, position: int, *, joins: bool, shared: int = 0, prefix: int = 0,
                  sampling: Sampling) -> tuple[int, ...]:
    """A segment of `count` tokens, at most as many as the dot engine has lanes, the first at `position`, of the sequence whose cache
    begins at byte `cache`.

    `joins`: it attends together with the next segment; segments that do so are as many tokens as there are lanes or fewer, and have the
    same first `shared` positions, whole chunks, in the cache at `prefix`; `cache` has those from there on. `sampling`: of the answers.
    """
    last_shared = JOINS if joins else max(shared - 1, 0)
    noise, (_, step) = noise_word(sampling.seed, position + 1), noise_words(sampling.seed)
    return cache, position - shared, count, prefix, last_shared, position, noise, step, *sampling.words


class _Layer:
    """Pieces of a layer as assembly text, for `count` tokens from `slot` (both registers).

    A layer is four matrices with vector work before each: `codes` (norm of the residual stream), `attention`, `gate`, `glu` and
    `activated`, each of which ends with the codes of the next matrix, and `add` after the last. Banks of parameters: 0 for the input
    norm and the scales of q, k and v, 1 for o_proj, 2 for gate and up, 3 for down_proj.
    """

    def __init__(self, config: BuildConfig) -> None:
        self.config, self.shape = config, config.shape
        self.sub = int(config.shape.sub_norms)

    def parameters(self, bank: int) -> str:
        """Load what stands before the matrix that is next in the stream."""
        s = self.shape
        gains = (s.hidden, s.q_size * self.sub, s.hidden, s.ffn * self.sub)[bank]
        return f"vector.param bank={bank} length={gains}"

    def matrix(self, rows: int, inputs: int, slot: str, count: str, at: int = 0) -> str:
        """Command all blocks of a matrix, whose results begin at step `at`. Uses r15."""
        lines = []
        for block in self.config.blocks(rows):
            steps = ceil(block / self.config.rows_per_cycle)
            if at:
                lines.append(f"li r15, {at}")
            lines.append(f"matmul inputs={inputs} steps={steps} slot={slot} count={count}" + (" at=r15" if at else ""))
            at += steps
        return "\n".join(lines)

    def kv(self, slot: str, count: str) -> str:
        """Keys and values, whose results stand behind those of the queries."""
        return self.matrix(2 * self.shape.kv_size, self.shape.hidden, slot, count, self.shape.q_size // self.config.rows_per_cycle)

    def q(self, slot: str, count: str) -> str:
        return self.matrix(self.shape.q_size, self.shape.hidden, slot, count)

    @property
    def before_q(self) -> int:
        """`follow` of the keys and values when those of the queries are commanded too."""
        return min(MOST_FOLLOWED, 1 + len(self.config.blocks(self.shape.q_size)))

    def o(self, slot: str, count: str) -> str:
        return self.matrix(self.shape.hidden, self.shape.q_size, slot, count)

    def gate_up(self, slot: str, count: str, pieces: range) -> str:
        """Some pieces of the matrix (`BuildConfig.gate_up_blocks`); they take the places of those RESULT_BLOCKS before. Uses r15."""
        rows = self.config.gate_up_blocks
        at = [ceil(self._place(piece) / self.config.rows_per_cycle) for piece in pieces]
        return "\n".join(self.matrix(rows[piece], self.shape.hidden, slot, count, first) for piece, first in zip(pieces, at, strict=True))

    def _place(self, piece: int) -> int:
        """The first row of the results of a piece of gate and up."""
        return piece % RESULT_BLOCKS * self.config.gate_up_blocks[0]

    def glu(self, slot: str, count: str, pieces: range, follow: int = 0) -> str:
        """Activate some pieces. Uses r8, r12."""
        pairs = 2 * self.config.vector_lanes
        rows, text = self.config.gate_up_blocks, ""
        while pieces:
            # Pieces whose results lie one behind the other are activated together.
            some = pieces[: RESULT_BLOCKS - pieces[0] % RESULT_BLOCKS]
            text += f"""
        li      r12, {sum(rows[: some[0]]) // pairs}
        li      r8, {self._place(some[0]) // self.config.vector_lanes}
        vector.glu      slot={slot} count={count} length={sum(rows[piece] for piece in some) // 2} a=r12 b=r8 bank=2 follow={follow}
"""
            pieces = pieces[len(some) :]
        return text

    @property
    def rounds(self) -> list[tuple[range, range]]:
        """Pieces of gate and up that are commanded together, and those that are activated meanwhile: at least so many that the results of
        the next round have room, and two for each that streams, which takes no longer. At last those that remain."""
        end = len(self.config.gate_up_blocks)
        most = max(1, min(RESULT_BLOCKS, end) - 1), 1
        rounds, streamed, activated = [], 0, 0
        while streamed < end:
            pieces = range(streamed, min(end, streamed + most[0]))
            most = most[::-1]
            room = min(end, pieces.stop + most[0]) - RESULT_BLOCKS
            beside = range(activated, max(room, min(streamed, activated + 2 * len(pieces))))
            rounds.append((pieces, beside))
            streamed, activated = pieces.stop, beside.stop
        return [*rounds, (range(0), range(activated, end))]

    def down(self, slot: str, count: str) -> str:
        return self.matrix(self.shape.hidden, self.shape.ffn, slot, count)

    def codes(self, slot: str, count: str, bank: int = 0) -> str:
        return f"vector.normq slot={slot} count={count} length={self.shape.hidden} norm=1 bank={bank}"

    def attention(self, slot: str, count: str, position: str, name: str, meanwhile: str = "", early: str = "", queries: str = "") -> str:
        """Attention of tokens from `position` over the cache at r7, as many at a time as the dot engine has lanes: while it
        attends for some, the vector unit works on those before and after, and at last does `meanwhile`; beside the first of them it does
        `early`, which may use r15. `queries`: operands of vector.qkv. Labels begin with `name`; uses r2, r5, r8, r9, r10, r12, r15."""
        c, length = self.config, self.shape.q_size
        normalise = f"length={length} source=1 norm={self.sub} bank=1"
        if c.lanes <= c.dot_lanes:
            return f"""
        vector.qkv      slot={slot} count={count} a={position} b=r7 {queries}
        wait            vector+writes
        dot.attend      slot={slot} count={count} position={position} kv_base=r7
        {early}
        {meanwhile}
        wait            dot
        vector.normq    slot={slot} count={count} {normalise}"""
        return f"""
        addi    r2, {slot}, 0
        addi    r9, {slot}, 0
        addi    r12, {position}, 0
        add     r8, r2, {count}
        li      r10, {c.dot_lanes}
    {name}_next:
        sub     r5, r8, r9
        blt     r5, r10, {name}_some
        addi    r5, r10, 0
    {name}_some:
        vector.qkv      slot=r9 count=r5 a=r12 b=r7 {queries}
        wait            vector+writes
        dot.attend      slot=r9 count=r5 position=r12 kv_base=r7     ; begins when the one before is done
        bne     r9, r2, {name}_later
        {early}
        jmp     {name}_first
    {name}_later:
        sub     r15, r9, r10
        vector.normq    slot=r15 count=r10 {normalise}
    {name}_first:
        add     r9, r9, r5
        add     r12, r12, r5
        bne     r9, r8, {name}_next
        {meanwhile}
        wait            dot
        sub     r15, r9, r5
        vector.normq    slot=r15 count=r5 {normalise}"""

    @property
    def ffn_parameters(self) -> str:
        return f"{self.parameters(2)}\n{self.parameters(3)}"

    def gate(self, slot: str, count: str, follow: int = 0) -> str:
        return f"""
        vector.resid    slot={slot} count={count} length={self.shape.hidden} bank=1 follow={follow}
        {self.codes(slot, count, bank=2)}"""

    def activated(self, slot: str, count: str) -> str:
        return f"vector.normq slot={slot} count={count} length={self.shape.ffn} source=1 norm={self.sub} bank=3"

    def gate_up_and_activate(self, slot: str, count: str, beside: str = "") -> str:
        """The matrix and what follows, but for `activate_rest`; pieces are activated while others stream. `beside` comes beside the
        first. Uses r8, r12, r15."""
        text = ""
        for pieces, activated in self.rounds[:-1]:
            text += f"""
        {self.gate_up(slot, count, pieces)}
        {beside}{self.glu(slot, count, activated)}
        wait            matmul+vector"""
            beside = ""
        return text

    def activate_rest(self, slot: str, count: str) -> str:
        """Activate what `gate_up_and_activate` leaves. Uses r8, r12."""
        return f"""{self.glu(slot, count, self.rounds[-1][1])}
        {self.activated(slot, count)}"""

    def gate_up_and_follow(self, slot: str, count: str) -> str:
        """The matrix, piece by piece, and the activation, which follows it. Uses r8, r12, r15."""
        pieces = (range(n, n + 1) for n in range(len(self.config.gate_up_blocks)))
        text = "".join(f"\n{self.gate_up(slot, count, piece)}{self.glu(slot, count, piece, follow=1)}" for piece in pieces)
        return f"""{text}
        {self.activated(slot, count)}"""

    def add(self, slot: str, count: str, follow: int = 0) -> str:
        return f"vector.resid slot={slot} count={count} length={self.shape.hidden} bank=3 follow={follow}"


def layer_assembly(config: BuildConfig, write: str, attention: str, slot: str = "r0") -> str:
    """One layer for r4 tokens from `slot`. The vector unit follows the matrices: it takes keys and values while the queries stream.

    `write`: keys and values into the cache; `attention`: from the results of the queries to the codes of o_proj, and the FFN's
    parameters.
    """
    p = _Layer(config)
    group = (slot, "r4")
    return f"""
        {p.codes(*group)}
        wait            vector
        {p.parameters(1)}
        {p.kv(*group)}
        {p.q(*group)}
        {write.strip()}
        {attention.strip()}
        wait            vector
        {p.o(*group)}
        {p.gate(*group, follow=1)}
        wait            vector
        {p.gate_up_and_follow(*group).strip()}
        wait            vector
        {p.parameters(0)}
        {p.down(*group)}
        {p.add(*group, follow=1)}
    """


def two_groups_assembly(config: BuildConfig) -> str:
    """All layers for two groups of tokens, the last one up to the writing of keys and values: r4 from slot 0 at position r1, and r14 from
    the second group's first slot, behind them.

    While one group's matrix streams, the vector unit and the dot engine work for the other; beside the second group's attention, which
    is longer than the first one's o, some of the first one's gate and up. r13 tells whether a layer is behind the second group, whose
    last addition is made up in the next layer. Leaves the slot of the last token in r11.
    """
    p = _Layer(config)
    a, b = ("r0", "r4"), ("r11", "r14")
    done = "wait matmul+vector+dot"
    ahead, end = config.gate_up_ahead, len(config.gate_up_blocks)
    early = f"""
        wait            matmul
        {p.gate(*a)}
        wait            vector
        {p.gate_up(*a, range(ahead))}"""
    # Beside the second group's o and what follows it: the first group's other pieces, and what of the others must have been activated.
    text, activated, streamed = "", 0, ahead
    beside = p.gate(*b)
    while True:
        some = range(streamed, min(end, streamed + max(1, RESULT_BLOCKS - 1)))
        room = max(activated, some.stop - RESULT_BLOCKS)
        text += f"""{p.glu(*a, range(activated, room))}
        {done}
        {p.gate_up(*a, some)}
        {beside}"""
        beside, activated, streamed = "", room, some.stop
        if streamed == end:
            break
    return f"""
        li      r11, {config.group_slots}
        li      r13, 0
        {p.codes(*a)}
        wait            vector
    twice:
        addi    r6, r6, -1
        {p.parameters(1)}
        {p.kv(*a)}
        {p.q(*a)}
        beq     r13, r0, twice_first
        {p.add(*b)}
    twice_first:
        {p.codes(*b)}
        {done}
        {p.kv(*b)}
        {p.q(*b)}
        beq     r6, r0, twice_last
        {p.attention(*a, "r1", "attention_a")}
        {done}
        {p.ffn_parameters}
        {p.o(*a)}
        add     r13, r1, r4
        {p.attention(*b, "r13", "attention_b", early=early)}
        {done}
        {p.o(*b)}
        {text.strip()}
        {done}
        {p.gate_up_and_activate(*b, p.glu(*a, range(activated, end)) + p.activated(*a)).strip()}
        {p.parameters(0)}
        {p.down(*a)}
        {p.activate_rest(*b).strip()}
        {done}
        {p.down(*b)}
        {p.add(*a)}
        {p.codes(*a)}
        {done}
        li      r13, 1
        li      r9, {config.kv_layer_bytes}
        add     r7, r7, r9
        jmp     twice
    twice_last:
        vector.qkv      slot=r0 count=r4 a=r1 b=r7
        {done}
        add     r1, r1, r4
        vector.qkv      slot=r11 count=r14 a=r1 b=r7
        add     r1, r1, r14
        add     r11, r11, r14
        addi    r11, r11, -1
    """


def _count_assembly(config: BuildConfig, layout: MemoryMap) -> str:
    """How many of the r2 prompt tokens left go into this pass, and its weights: r4 in the first group, r14 in the second."""
    if config.groups == 1:
        return f"""
        addi    r4, r2, 0
        li      r14, 0
        li      r9, {config.lanes}
        bge     r9, r2, counted
        addi    r4, r9, 0
    counted:
        bne     r2, r4, layers_only
        beq     r3, r0, layers_only
        stream  {layout.entry_token}
        jmp     embed
    layers_only:
        stream  {layout.entry_prompt}"""
    return f"""
        addi    r4, r2, 0
        li      r14, 0
        li      r9, {config.lanes}
        bge     r9, r2, one_group
        addi    r4, r9, 0
        sub     r14, r2, r9
        bge     r9, r14, two_groups
        addi    r14, r9, 0
    two_groups:
        add     r9, r4, r14
        bne     r2, r9, two_groups_only
        beq     r3, r0, two_groups_only
        stream  {layout.entry_token_twice}
        jmp     embed
    two_groups_only:
        stream  {layout.entry_prompt_twice}
        jmp     embed
    one_group:
        beq     r3, r0, layers_only
        stream  {layout.entry_token}
        jmp     embed
    layers_only:
        stream  {layout.entry_prompt}"""


def _embed_token(layout: MemoryMap, slot: str, position: str) -> str:
    """Token r8 becomes the slot's residual stream, with the rotary row of its position. Uses r12."""
    return f"""li      r12, {layout.embedding_base}
        vector.embed slot={slot} a=r8 b=r12 bank=3
        li      r12, {layout.rope_base}
        vector.rope slot={slot} a={position} b=r12"""


def _embed_assembly(config: BuildConfig, layout: MemoryMap) -> str:
    """Embeddings and rotary rows of the tokens of a pass, which come from the host, from position r1 on."""
    second = "" if config.groups == 1 else f"""
        beq     r14, r0, layers
        beq     r10, r0, layers
        li      r10, 0
        li      r5, {config.group_slots}
        add     r15, r5, r14
        jmp     next_slot"""
    return f"""
        li      r5, 0
        addi    r9, r1, 0
        addi    r15, r4, 0
        li      r10, 1
    next_slot:
        in      r8
        {_embed_token(layout, "r5", "r9")}
        addi    r9, r9, 1
        addi    r5, r5, 1
        bne     r5, r15, next_slot{second}"""


def head_assembly(config: BuildConfig, layout: MemoryMap, slot: str, count: str, samples: str) -> str:
    """From the residual stream of `count` tokens from `slot` (registers) to the logits that the sampler takes; `samples`: commands
    for the sampler, which must wait for the vector unit. A short-list takes one token; its blocks of rows lie in one half of
    the results and the other in turn, and one is scanned while the next streams. Uses r5, r10, r12, r15."""
    s = config.shape
    text = f"""
        vector.normq slot={slot} count={count} length={s.hidden} norm=1 dest={2 if config.shortlist else 1}
        {samples.strip()}"""
    if not config.shortlist:
        return f"""{text}
        dot.head slot={slot} count={count}
    """
    half = ceil(config.head_block_rows / config.rows_per_cycle)

    def block(rows: int) -> str:
        return f"matmul inputs={s.hidden} steps={ceil(rows / config.rows_per_cycle)} slot={slot} count={count} at=r15"

    def scan(rows: int, first: int = 0) -> str:
        return f"scan slot={slot} rows={rows} first={first} at=r10"

    # r10: the half that is complete, r15: the half that streams.
    swap = """
        addi    r10, r15, 0
        sub     r15, r12, r15"""
    first, *others = head_row_blocks(config)
    full = sum(rows == config.head_block_rows for rows in others)
    text += f"""
        li      r12, {half}
        li      r15, 0
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
        li      r5, {full - 1}
    ternary_head:
        {block(config.head_block_rows)}
        {before}
        wait    matmul{swap}
        addi    r5, r5, -1
        bne     r5, r0, ternary_head"""
    for rows in others[full:]:
        text += f"""
        {block(rows)}
        {before}
        wait    matmul{swap}"""
        before = scan(rows)
    return f"""{text}
        {before}
        li      r12, {layout.head_base}
        dot.head slot={slot} count={count} kv_base=r12
    """


def _begin_assembly(config: BuildConfig) -> str:
    """The parameters with which every pass begins."""
    return f"""vector.param length=0 bank=3                    ; embedding scale
        vector.param length={config.shape.hidden} bank=0                    ; input norm of the first layer"""


def generation_assembly(config: BuildConfig, layout: MemoryMap) -> str:
    """Assembly text of the generation program. Of the last layer, only a prompt's last token takes more than keys and values."""
    s, p = config.shape, _Layer(config)
    begin = _begin_assembly(config)
    sample = f"""
        load    r12, r0, {NOISE}
        arg     r13, {ARG_NOISE_STEP}
        add     r13, r12, r13
        store   r13, r0, {NOISE}
        arg     r13, {ARG_TEMPERATURE}
        arg     r14, {ARG_LIMITS}
        wait    vector
        sample  slot=r11 noise=r12 temperature=r13 limits=r14"""
    two_groups = "" if config.groups == 1 else f"""
        beq     r14, r0, one_group_layers
        {two_groups_assembly(config).strip()}
        jmp     pass_done
    one_group_layers:"""
    attention = f"""
        li      r9, 1
        beq     r6, r9, last_layer
        {p.attention("r11", "r4", "r1", "attention", p.ffn_parameters, queries="dest=1 follow=1").strip()}
    attended:"""
    write = f"vector.qkv slot=r11 count=r4 a=r1 b=r7 dest=2 follow={p.before_q}"
    return f"""
    ; r1 position  r2 prompt tokens left  r3 tokens to generate  r4 tokens of the first group in this pass  r14 of the second
    ; r6 layers left  r7 cache of the layer  r8 token  r11 first slot  r5, r9, r10, r12, r13, r15 scratch
    generation:
        arg     r1, {ARG_POSITION}
        arg     r2, {ARG_PROMPT}
        arg     r3, {ARG_TOKENS}
        arg     r12, {ARG_NOISE}
        store   r12, r0, {NOISE}
        beq     r2, r0, done
    prefill:
        {_count_assembly(config, layout).strip()}
    embed:
        {begin}
        {_embed_assembly(config, layout).strip()}
    layers:
        li      r6, {s.layers}
        li      r7, {layout.kv_base}{two_groups}
        li      r11, 0
    layer:
        {layer_assembly(config, write, attention, "r11").strip()}
        li      r9, {config.kv_layer_bytes}
        add     r7, r7, r9
        addi    r6, r6, -1
        bne     r6, r0, layer
        jmp     head
    last_layer:
        add     r1, r1, r4
        addi    r11, r4, -1                             ; slot of the last token
        vector.qkv slot=r11 count=r9 dest=1 follow=1
    pass_done:
        arg     r2, {ARG_POSITION}
        arg     r12, {ARG_PROMPT}
        add     r12, r12, r2                            ; position after the prompt
        sub     r2, r12, r1
        blt     r1, r12, prefill
        beq     r3, r0, done
        li      r4, 1
        li      r6, 1
        addi    r13, r1, -1
        wait    vector+writes
        dot.attend slot=r11 count=r4 position=r13 kv_base=r7
        {p.ffn_parameters}
        wait    dot
        vector.normq slot=r11 count=r4 length={s.q_size} source=1 norm={p.sub} bank=1
        jmp     attended
    head:
        {head_assembly(config, layout, "r11", "r4", sample).strip()}
        addi    r3, r3, -1
        beq     r3, r0, last
        stream  {layout.entry_token}                    ; the next token's weights, ahead of its choice
        {begin}
        token   r8
        out     r8
        arg     r10, {ARG_STOP}
        beq     r8, r10, stopped
        li      r14, 0
        {_embed_token(layout, "r0", "r1")}
        jmp     layers
    last:
        token   r8
        out     r8
        jmp     done
    stopped:
        wait    vector+dot                      ; the head's last rows are none of the vocabulary's, but come
        flush
    done:
        wait    vector+matmul+dot+sampler+writes
        halt    0
    """


def passes_assembly(config: BuildConfig, layout: MemoryMap) -> str:
    """Assembly text of the program of passes. A dot.head serves as many slots as the dot engine has lanes; for more, the head's rows are
    streamed again.

    Scratch words: of segment i the first SEGMENT_WORDS of `segment_words` from SEGMENT_WORDS i on; of slot i its noise, temperature and
    limits from SEGMENT_WORDS lanes + SLOT_WORDS i on. Segments that attend together are a group: while the dot engine attends for
    one, the vector unit works on those before and after.
    """
    s, p = config.shape, _Layer(config)
    slots_at = SEGMENT_WORDS * config.lanes
    segment = """load    r7, r2, 0
        add     r7, r7, r10
        load    r1, r2, 1
        load    r3, r2, 2
        load    r12, r2, 4"""
    normalise = f"""sub     r14, r5, r9
        vector.normq slot=r14 count=r9 length={s.q_size} source=1 norm={p.sub} bank=1"""
    write = f"""
        li      r8, 0
        li      r2, 0
    keys:
        {segment}
        vector.qkv slot=r8 count=r3 a=r1 b=r7 dest=2 follow={p.before_q}
        add     r8, r8, r3
        addi    r2, r2, {SEGMENT_WORDS}
        bne     r8, r4, keys"""
    attention = f"""
        li      r5, 0
        li      r13, 0
        li      r9, 0
        li      r15, {JOINS}
    group:
        addi    r2, r13, 0
        addi    r8, r5, 0
    queries:
        {segment}
        vector.qkv slot=r8 count=r3 dest=1 follow=1
        add     r8, r8, r3
        addi    r2, r2, {SEGMENT_WORDS}
        beq     r12, r15, queries
        wait    vector+writes
        addi    r2, r13, 0
        addi    r8, r5, 0
    join:
        {segment}
        bne     r12, r15, joined
        dot.join slot=r8 count=r3 position=r1 kv_base=r7
        add     r8, r8, r3
        addi    r2, r2, {SEGMENT_WORDS}
        jmp     join
    joined:
        beq     r12, r0, attend
        load    r14, r2, 3
        add     r14, r14, r10
        dot.share position=r12 kv_base=r14
    attend:
        dot.attend slot=r8 count=r3 position=r1 kv_base=r7
        add     r8, r8, r3
        addi    r13, r2, {SEGMENT_WORDS}
        beq     r9, r0, first_group
        {normalise}
    first_group:
        sub     r9, r8, r5
        addi    r5, r8, 0
        bne     r5, r4, group
        {p.ffn_parameters}
        wait    dot
        {normalise}"""
    return f"""
    ; r1 position  r2 scratch address  r3 segment's or run's tokens, address of the slot  r4 tokens in this pass  r5 slot, the group's first
    ; r6 layer, end of the segment, answers of a run  r7 cache  r8 token, slot in a group  r9 tokens of the group before
    ; r10 layer's place in a cache  r11 slot to answer next  r12 base, last shared position  r13 noise, scratch address of the group
    ; r14 temperature, prefix, slot to normalise  r15 limits, JOINS
    passes:
        stream  {layout.entry_layers}                   ; the next pass's weights, while the host decides
    next_pass:
        in      r4
        beq     r4, r0, ended
        in      r11
        beq     r11, r4, begin
        stream  {layout.entry_head}
    begin:
        {_begin_assembly(config)}
        li      r5, 0
        li      r2, 0
        li      r3, {slots_at}
    segment:
        in      r7
        store   r7, r2, 0
        in      r7
        store   r7, r2, 1
        in      r6
        store   r6, r2, 2
        in      r7
        store   r7, r2, 3
        in      r7
        store   r7, r2, 4
        addi    r2, r2, {SEGMENT_WORDS}
        in      r1
        in      r13
        in      r7
        in      r14
        in      r15
        add     r6, r6, r5
    slot:
        store   r13, r3, 0
        store   r14, r3, 1
        store   r15, r3, 2
        addi    r3, r3, {SLOT_WORDS}
        add     r13, r13, r7
        in      r8
        {_embed_token(layout, "r5", "r1")}
        addi    r1, r1, 1
        addi    r5, r5, 1
        bne     r5, r6, slot
        bne     r5, r4, segment
        li      r6, {s.layers}
        li      r10, 0
    passes_layer:
        {layer_assembly(config, write, attention).strip()}
        li      r9, {config.kv_layer_bytes}
        add     r10, r10, r9
        addi    r6, r6, -1
        bne     r6, r0, passes_layer
        beq     r11, r4, passes
        add     r2, r11, r11                            ; times SLOT_WORDS
        add     r2, r2, r11
        addi    r2, r2, {slots_at}
    answers:
        sub     r6, r4, r11
        li      r9, {config.dot_lanes}
        blt     r6, r9, some
        addi    r6, r9, 0
    some:
        vector.normq slot=r11 count=r6 length={s.hidden} norm=1 dest=1
        add     r3, r11, r6
        addi    r5, r11, 0
    choice:
        load    r13, r2, 0
        load    r14, r2, 1
        load    r15, r2, 2
        wait    vector
        sample  slot=r5 noise=r13 temperature=r14 limits=r15
        addi    r2, r2, {SLOT_WORDS}
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
        wait    dot                             ; the head's last rows are none of the vocabulary's, but come
        flush
        wait    vector+matmul+dot+sampler+writes
        halt    0
    """


def generation(config: BuildConfig, layout: MemoryMap) -> list[int]:
    """Words of both programs, which begin at ENTRY_GENERATION and ENTRY_PASSES. A machine with a short-list has no program of passes."""
    text = "jmp generation\njmp passes\n" + generation_assembly(config, layout)
    text += "passes: halt 1" if config.shortlist else passes_assembly(config, layout)
    return assemble(text, limit=config.program_words)
