"""The dot engine's parameters: what it is built from, what it instantiates, how long it takes."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from tritloom.firmware.config import CHUNK, KV_SCALE_BYTES, LOGIT_BITS, BuildConfig
from tritloom.firmware.integer import EXP2_TABLE, PROBABILITY_BITS
from tritloom.firmware.isa import DotOp
from tritloom.rtl.parameters import MemoryUse, index_bits, require, require_positive, require_power_of_two

__all__ = ["IDS_DEPTH", "JOBS_AHEAD", "LOGIT_DEPTH", "SCORE_WIDTH", "WEIGHT_BITS", "AttentionParameters", "accumulator_bits"]

JOBS_AHEAD = 16
"""Jobs that wait for the multipliers."""
LOGIT_DEPTH = 16
"""Rows whose logits wait."""
IDS_DEPTH = 64
"""Ids of a short-list's rows on their way: those of all jobs ahead and of all logits queued, and some more."""
WEIGHT_BITS = 17
"""Bits of probability * value scale, unsigned."""
SCORE_WIDTH = 22
"""Signed bits of a score."""
SCALE_BITS = 26
"""Bits of a scale in memory (`rtl.ufloat.UFLOAT`)."""


def accumulator_bits(context: int) -> int:
    """Signed bits of a sum of `context` value codes, each times a weight."""
    return 25 + context.bit_length()


@dataclass(frozen=True, kw_only=True)
class AttentionParameters:
    """Parameters of `rtl.attention.unit.DotEngine`.

    lanes : int
        D, tokens or heads that attend at once.
    slots : int
        Slots of the buffers, at least as many as lanes; numbers of slots are cut down to them.
    macs : int
        A, multipliers of a lane; a power of two.
    rows : int
        R, keys or values that lie side by side in a beat; a power of two.
    vector_lanes : int
        V, elements that the vector unit writes and takes at once.
    mem_bytes : int
        M, bytes of a memory beat.
    heads, kv_heads, head_dim, hidden, vocab, context : int
        The model's.
    group_rows, head_row_bytes : int
        Rows of the LM head: those that share a beat of scales; bytes of one.
    kv_scale_block_bytes, kv_half_bytes, kv_head_bytes : int
        Cache: bytes of a chunk's scales, of the keys of a chunk, of a head.
    short_list : int
        Candidates of which HEAD reads the rows; 0: it takes all rows from the weight stream.
    """

    lanes: int
    slots: int
    macs: int
    rows: int
    vector_lanes: int
    mem_bytes: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    vocab: int
    context: int
    group_rows: int
    head_row_bytes: int
    kv_scale_block_bytes: int
    kv_half_bytes: int
    kv_head_bytes: int
    short_list: int = 0

    @classmethod
    def of(cls, config: BuildConfig) -> AttentionParameters:
        """Those of a configuration's machine."""
        c, s = config, config.shape
        return cls(
            lanes=c.dot_lanes, slots=c.lanes, macs=c.attention_macs, rows=c.attention_rows, vector_lanes=c.vector_lanes,
            mem_bytes=c.mem_bytes, heads=s.heads, kv_heads=s.kv_heads, head_dim=s.head_dim, hidden=s.hidden, vocab=s.vocab,
            context=s.context, group_rows=c.group_rows, head_row_bytes=c.head_row_bytes, kv_scale_block_bytes=c.kv_scale_block_bytes,
            kv_half_bytes=c.kv_half_bytes, kv_head_bytes=c.kv_head_bytes, short_list=c.shortlist)

    def __post_init__(self) -> None:
        require_positive(self, ("lanes", "slots", "macs", "rows", "vector_lanes", "mem_bytes", "heads", "kv_heads", "head_dim", "hidden",
                                "vocab", "context"))
        for name in ("macs", "rows", "vector_lanes", "mem_bytes"):
            require_power_of_two(self, name)
        macs, rows, mem_bytes, word = self.macs, self.rows, self.mem_bytes, self.macs // self.rows
        require(self.lanes <= self.slots, f"slots ({self.slots}) must be at least lanes ({self.lanes})")
        require(2 <= self.vector_lanes <= word and macs <= mem_bytes,
                f"vector_lanes ({self.vector_lanes}), macs/rows ({word}), mem_bytes ({mem_bytes}) must not fall")
        require(rows == 1 or 4 * rows <= mem_bytes, f"the scales of {rows} rows must lie in one beat of {mem_bytes} bytes")
        require(4 <= mem_bytes <= 512, f"mem_bytes must be from 4 to 512, not {mem_bytes}")
        require(self.heads % self.kv_heads == 0, f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
        require(self.head_dim % word == 0 and self.hidden % macs == 0,
                f"macs/rows ({word}) must divide head_dim ({self.head_dim}), macs ({macs}) must divide hidden ({self.hidden})")
        require(self.head_words >= rows,
                f"a head must have as many words of {word} bytes as there are rows ({rows}), not {self.head_words}")
        require(rows <= word, f"rows ({rows}) must not exceed macs/rows ({word})")
        require(CHUNK * self.head_dim % mem_bytes == 0,
                f"mem_bytes ({mem_bytes}) must divide {CHUNK}*head_dim ({CHUNK * self.head_dim})")
        require(self.group_rows == mem_bytes // 2, f"group_rows must be mem_bytes/2 ({mem_bytes // 2}), not {self.group_rows}")
        require(self.head_row_bytes == -(-self.hidden // mem_bytes) * mem_bytes,
                f"head_row_bytes ({self.head_row_bytes}) must be hidden in whole beats")
        require(self.kv_scale_block_bytes == -(-CHUNK * KV_SCALE_BYTES // mem_bytes) * mem_bytes,
                f"kv_scale_block_bytes ({self.kv_scale_block_bytes}) must be {CHUNK * KV_SCALE_BYTES} in whole beats")
        require(self.kv_half_bytes >= self.kv_scale_block_bytes + CHUNK * self.head_dim and self.kv_half_bytes % mem_bytes == 0,
                f"kv_half_bytes ({self.kv_half_bytes}) must hold the scales and {CHUNK} rows, in whole beats")
        require(0 <= self.short_list <= self.vocab, f"short_list must be from 0 to vocab ({self.vocab}), not {self.short_list}")

    # Sizes ------------------------------------------------------------------------------------------

    @property
    def group(self) -> int:
        """Query heads that share a key/value head."""
        return self.heads // self.kv_heads

    @property
    def word(self) -> int:
        """Bytes of a row in a word of A bytes: A/R."""
        return self.macs // self.rows

    @property
    def head_words(self) -> int:
        """Words of A/R bytes of a head."""
        return self.head_dim // self.word

    @property
    def row_words(self) -> int:
        """Words of A bytes of a row of the LM head."""
        return self.hidden // self.macs

    @property
    def vector_words(self) -> int:
        """Words of A bytes of a slot's activations: all its queries, or the hidden vector."""
        return -(-max(self.heads * self.head_dim, self.hidden) // self.macs)

    @property
    def scale_beats(self) -> int:
        """Beats of a chunk's scales."""
        return self.kv_scale_block_bytes // self.mem_bytes

    @property
    def beat_bits(self) -> int:
        """Address bits of the beats of a chunk's scales."""
        return (self.scale_beats - 1).bit_length()

    @property
    def head_rows(self) -> int:
        """Rows of the LM head in a job, between two beats of scales."""
        return 1 if self.short_list else self.group_rows

    # Timing -----------------------------------------------------------------------------------------

    def scan_cycles(self, positions: int) -> float:
        """Projected cycles to scan cached positions in one pass: start-up, rows, and two blocks of scales and five cycles between jobs
        a chunk."""
        chunk = 2 * self.scale_beats + 5
        return 2 * positions * self.head_dim / self.macs + chunk * ceil(positions / CHUNK) + 20 * (positions > 0)

    def cycles(self, op: DotOp, *, positions: int = 0, tokens: int = 1, shared: int | None = None) -> float:
        """Projected cycles of a command, if no stream stalls.

        ATTEND: `tokens` tokens that attend at once up to `positions` positions: of one text, or, if `shared` is given, one each of as
        many texts that have their first `shared` positions in common. HEAD, without a short-list: the logits of `tokens` slots.
        """
        if op == DotOp.HEAD:
            return ceil(self.vocab / self.group_rows) * (1 + self.group_rows * max(self.row_words, tokens))
        if op != DotOp.ATTEND:
            raise ValueError(f"{op.name} takes a few cycles before ATTEND")
        passes = self.kv_heads * (ceil(self.group / self.lanes) if tokens == 1 else self.group)
        if shared is None:
            scan = self.scan_cycles(positions)
        else:
            scan = self.scan_cycles(shared) + tokens * self.scan_cycles(positions - shared)
        return passes * (scan + 20) + 200

    # Memories ---------------------------------------------------------------------------------------

    @property
    def job_bits(self) -> int:
        """Width of a job (`layouts.job_layout`)."""
        return 10 + (CHUNK + self.lanes - 1).bit_length() + self.lanes + (index_bits(self.group_rows) if self.short_list else 0)

    @property
    def run_bits(self) -> int:
        """Width of an entry of the table of runs (`layouts.run_layout`)."""
        return (self.context + self.lanes - 1).bit_length() + 32 + self.lanes + 1

    def memories(self) -> tuple[MemoryUse, ...]:
        """What the unit instantiates."""
        vector = max(self.row_words, 2 << (self.head_words - 1).bit_length())
        found = [
            MemoryUse(name="control.job_queue", width=self.job_bits, depth=JOBS_AHEAD),
            MemoryUse(name="control.runs", width=self.run_bits, depth=self.lanes + 1),
            MemoryUse(name="activations", width=8 * self.macs, depth=max(2, self.slots << (self.vector_words - 1).bit_length()),
                      write_parts=self.macs // self.vector_lanes),
            MemoryUse(name="query_scales", width=SCALE_BITS, depth=max(2, self.slots << (self.heads - 1).bit_length())),
            MemoryUse(name="key_scales", width=8 * self.mem_bytes, depth=2 << self.beat_bits),
            MemoryUse(name="value_beats", width=8 * self.mem_bytes, depth=max(2, 1 << self.beat_bits)),
            MemoryUse(name="value_scales", width=SCALE_BITS, depth=2 * CHUNK),
            MemoryUse(name="dot.vector", width=8 * self.macs, depth=vector, count=self.lanes),
            MemoryUse(name="dot.weights", width=self.rows * WEIGHT_BITS, depth=2 * CHUNK // self.rows, count=self.lanes,
                      write_parts=self.rows),
            MemoryUse(name="score.scores", width=SCORE_WIDTH, depth=2 * CHUNK, count=self.lanes),
            MemoryUse(name="softmax.table", width=PROBABILITY_BITS + 1, depth=len(EXP2_TABLE), count=self.lanes, kind="rom"),
            MemoryUse(name="logits", width=LOGIT_BITS * self.lanes, depth=LOGIT_DEPTH),
        ]
        if self.head_words > 1:
            found.append(MemoryUse(name="dot.outputs", width=self.word * accumulator_bits(self.context), depth=self.head_words,
                                   count=self.lanes))
        if self.short_list:
            found.append(MemoryUse(name="ids", width=index_bits(self.vocab), depth=IDS_DEPTH))
        return tuple(found)
