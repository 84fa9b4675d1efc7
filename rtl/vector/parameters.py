"""The vector unit's parameters: what it is built from, what it instantiates, how long it takes."""

from __future__ import annotations

from dataclasses import dataclass

from tritloom.firmware.config import ACTIVATIONS, BIAS_CODES, KEPT_BITS, PARAM_HEADER_BYTES, BuildConfig
from tritloom.firmware.integer import BIAS_BITS, GROUP_DIGITS, SILU_TAIL
from tritloom.firmware.isa import VectorOp
from tritloom.firmware.packing import SCALE_BITS as GROUP_SCALE_BITS
from tritloom.rtl.parameters import MemoryUse, index_bits, require, require_positive, require_power_of_two
from tritloom.rtl.ternary.parameters import TernaryParameters

__all__ = ["ACTIVATION_BITS", "ALIGNER_BITS", "GAIN_EXPONENT_BITS", "HEADER", "HEAD_HEADER", "LEFT_BITS", "SCALE_BITS", "TAIL_BITS",
           "TAIL_STEP_BITS", "VectorParameters"]

ACTIVATION_BITS = 24
"""Signed bits of the first operand of the lanes' multipliers."""
ALIGNER_BITS = 55
"""Width of the aligning shifter: a residual enters 23 bits up, shifts right by at most 31, and ACTIVATION_BITS leave."""

SCALE_BITS = 28
"""Bits of a scale inside the unit (`scales.INNER`)."""
LEFT_BITS = 5
"""Bits of how far a residual stream is shifted left."""
HEADER = ("inverse_count", "eps", "scale0", "scale1", "scale2")
"""Scales of a parameter block's header, in their order; the gains' exponent comes behind them."""
HEAD_HEADER = "head_eps"
"""Behind HEADER and the gains' exponent, with norms of heads: their eps. The exponents of their gains stand in the low halves of the words
around it."""
GAIN_EXPONENT_BITS = 12
"""Signed bits of the exponent of a bank of gains."""
DIGITS_BITS = 6 + GROUP_DIGITS
"""Bits of a maximum's length and digits."""
BIAS_SHIFTS = BIAS_BITS + 4
"""Cycles at most from a vector's scale to the first code that stands for one."""
BIAS_WAIT = 25 + BIAS_SHIFTS
"""The same from before the reciprocal of that scale."""
TAIL_BITS, TAIL_STEP_BITS = 15, 12
"""Bits of an entry of the table of silu's tail, and of the signed step to the next one."""


@dataclass(frozen=True, kw_only=True)
class VectorParameters:
    """Parameters of `rtl.vector.unit.VectorUnit`.

    lanes : int
        P, tokens of a group.
    groups : int
        Groups of tokens.
    vector_lanes : int
        V, elements a cycle; a power of two of at least 2.
    mem_bytes : int
        M, bytes of a memory beat; a power of two of at least 4 and V.
    hidden, ffn, heads, kv_heads, head_dim : int
        The model's; V divides hidden, ffn and head_dim.
    activation : str
        "relu2" or "silu", of the gates.
    sub_norms : bool
        Whether there are gains for the attention's output and for the gated activations.
    acc_bits : int
        Signed bits of a result of the ternary matrices.
    acc_read_latency : int
        Cycles from the last part of `acc_read.addr` to `acc_read.data`, 1 or 2.
    acc_parts : int
        Reads that V results take, 1 or 2.
    attention_macs, attention_rows : int
        A and R: how rows of keys and values lie in memory.
    group_rows, head_row_bytes, head_group_bytes : int
        Embedding table: rows that share a beat of scales, bytes of a row, bytes of such a group with its scales.
    rope_row_bytes : int
        Bytes of one position's cosines and sines.
    kv_scale_block_bytes, kv_half_bytes, kv_head_bytes : int
        Cache: bytes of a chunk's scales, of the keys of a chunk, of a head.
    kv_write_rows : int
        Rows of keys and values that may wait to be written.
    write_fifo_beats : int
        Beats of them.
    ultra : bool
        Keep residual streams and work vectors in UltraRAM.
    spread : bool
        With `ultra`, results come from memories deeper than an UltraRAM: they pass a register before anything else, and registers say what
        else is decided far away.
    head_norms : bool
        Whether query and key heads are normed before they are rotated.
    embedding_group : int
        0: the embedding has int8 rows; else they are ternary, and so many consecutive elements share a scale.
    embedding_row_bytes, embedding_scale_pieces : int
        Of a ternary embedding: bytes of a row, pieces of V trits that a group's scale takes.
    code_group, group_exponents : int
        Codes that share an exponent, and the greatest one; zeros without. With an int8 head its codes have none.
    bias_inputs : int
        Codes behind those of a normed residual stream that stand for one, for the biases of the matrices that take them; 0: none.
    residual_biases : tuple of bool
        Whether the results of o, and of down, have a bias that is added to the residual stream.
    """

    lanes: int
    groups: int
    vector_lanes: int
    mem_bytes: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    activation: str
    sub_norms: bool
    acc_bits: int
    acc_read_latency: int = 1
    acc_parts: int = 1
    attention_macs: int
    attention_rows: int
    group_rows: int
    head_row_bytes: int
    head_group_bytes: int
    rope_row_bytes: int
    kv_scale_block_bytes: int
    kv_half_bytes: int
    kv_head_bytes: int
    kv_write_rows: int
    write_fifo_beats: int
    ultra: bool = False
    spread: bool = False
    head_norms: bool = False
    embedding_group: int = 0
    embedding_row_bytes: int = 0
    embedding_scale_pieces: int = 0
    code_group: int = 0
    group_exponents: int = 0
    bias_inputs: int = 0
    residual_biases: tuple[bool, bool] = (False, False)

    @classmethod
    def of(cls, config: BuildConfig) -> VectorParameters:
        """Those of a configuration's machine."""
        c, s, ternary = config, config.shape, TernaryParameters.of(config)
        return cls(
            lanes=c.lanes, groups=c.groups, vector_lanes=c.vector_lanes, mem_bytes=c.mem_bytes, hidden=s.hidden, ffn=s.ffn, heads=s.heads,
            kv_heads=s.kv_heads, head_dim=s.head_dim, activation=s.activation, sub_norms=s.sub_norms, acc_bits=c.acc_bits,
            acc_read_latency=ternary.acc_read_latency, acc_parts=ternary.result_reads,
            attention_macs=c.attention_macs, attention_rows=c.attention_rows, group_rows=c.group_rows, head_row_bytes=c.head_row_bytes,
            head_group_bytes=c.head_group_bytes, rope_row_bytes=c.rope_row_bytes, kv_scale_block_bytes=c.kv_scale_block_bytes,
            kv_half_bytes=c.kv_half_bytes, kv_head_bytes=c.kv_head_bytes, kv_write_rows=c.kv_write_rows,
            write_fifo_beats=c.write_fifo_beats, ultra=c.ultra_units, spread=c.ultra_units and s.group_size > 0,
            head_norms=s.head_norms,
            **({"embedding_group": s.group_size, "embedding_row_bytes": c.embedding_row_bytes,
                "embedding_scale_pieces": c.embedding_scale_pieces} if s.ternary_head else {}),
            **({"code_group": s.group_size, "group_exponents": c.group_exponents} if c.group_exponents else {}),
            bias_inputs=s.bias_inputs, residual_biases=("o" in s.biases, "down" in s.biases))

    def __post_init__(self) -> None:
        require_positive(self, ("lanes", "groups", "hidden", "ffn", "heads", "kv_heads", "head_dim", "kv_write_rows", "write_fifo_beats"))
        for name in ("vector_lanes", "mem_bytes"):
            require_power_of_two(self, name, 2)
        require(self.mem_bytes >= max(4, self.vector_lanes),
                f"mem_bytes must be at least 4 and vector_lanes ({self.vector_lanes}), not {self.mem_bytes}")
        for name in ("hidden", "ffn", "head_dim"):
            require(getattr(self, name) % self.vector_lanes == 0,
                    f"vector_lanes ({self.vector_lanes}) must divide {name} ({getattr(self, name)})")
        require(self.activation in ACTIVATIONS, f"activation must be {' or '.join(ACTIVATIONS)}, not {self.activation!r}")
        require(9 <= self.acc_bits <= ACTIVATION_BITS, f"acc_bits must be from 9 to {ACTIVATION_BITS}, not {self.acc_bits}")
        for name in ("acc_read_latency", "acc_parts"):
            require(getattr(self, name) in (1, 2), f"{name} must be 1 or 2, not {getattr(self, name)}")
        require(not self.spread or (self.ultra and self.acc_read_latency == 2),
                "a unit that is spread has UltraRAMs and acc_read_latency 2")
        require(not self.group_exponents or (self.code_group > 0 and self.code_group % self.vector_lanes == 0),
                f"with exponents vector_lanes ({self.vector_lanes}) must divide code_group ({self.code_group})")
        require(not self.bias_inputs or (self.bias_inputs >= BIAS_CODES and BIAS_CODES % self.vector_lanes == 0),
                f"vector_lanes ({self.vector_lanes}) must divide {BIAS_CODES}, and bias_inputs be that or more, not {self.bias_inputs}")

    # Sizes ------------------------------------------------------------------------------------------

    @property
    def silu(self) -> bool:
        """Whether gates are in fixed point and pass a sigmoid; else they are accumulators."""
        return self.activation == "silu"

    @property
    def max_inputs(self) -> int:
        """Elements of the longest vector that is quantised."""
        return max(self.hidden, self.q_size, self.ffn)

    @property
    def code_words(self) -> int:
        """Words of V codes of the longest vector that a ternary matrix takes."""
        return max(self.max_inputs, self.hidden + self.bias_inputs) // self.vector_lanes

    @property
    def adds_biases(self) -> bool:
        """Whether there is an operation that adds a bias to the residual stream."""
        return any(self.residual_biases)

    @property
    def max_rows(self) -> int:
        """Rows of the longest ternary matrix."""
        return max((self.heads + 2 * self.kv_heads) * self.head_dim, self.hidden, 2 * self.ffn)

    @property
    def q_size(self) -> int:
        """Elements of all query heads."""
        return self.heads * self.head_dim

    @property
    def residual_words(self) -> int:
        """Words of V elements of a token's residual stream."""
        return self.hidden // self.vector_lanes

    @property
    def work_words(self) -> int:
        """Words of V elements of a lane's work vector."""
        return max(self.ffn, self.q_size) // self.vector_lanes

    @property
    def head_words(self) -> int:
        """Words of V elements of a head."""
        return self.head_dim // self.vector_lanes

    @property
    def lane_bits(self) -> int:
        """Address bits of an element within a word."""
        return (self.vector_lanes - 1).bit_length()

    @property
    def token_bits(self) -> int:
        """Bits of a lane's number within a slot's."""
        return (self.lanes - 1).bit_length()

    @property
    def slot_bits(self) -> int:
        """Bits of a slot's number: group * 2**token_bits + lane."""
        return max(1, self.token_bits + (self.groups - 1).bit_length())

    @property
    def slots(self) -> int:
        """Slots that a number reaches; those behind a group's lanes are not used."""
        return 1 << self.slot_bits

    @property
    def word_bits(self) -> int:
        """Bits of the index of a word of V results, elements or gains of a bank."""
        return index_bits(max(self.max_rows, self.hidden + self.head_gains, *self.bank_lengths) // self.vector_lanes)

    @property
    def place_bits(self) -> int:
        """Address bits of the memories of residual streams and of work vectors."""
        return index_bits(max(self.lanes * self.groups * self.residual_words, self.lanes * self.work_words))

    @property
    def head_word_bits(self) -> int:
        """Bits of a word's index within a head."""
        return index_bits(self.head_words)

    # Coefficients: gains by bank, then each slot's cosines and sines --------------------------------------

    @property
    def beat_words(self) -> int:
        """Words of V coefficients that a beat brings; vectors of them begin at multiples."""
        return max(1, self.mem_bytes // (2 * self.vector_lanes))

    @property
    def norm_gains(self) -> list[int]:
        """Gains of the norms before qkv, o, gate and up, and down."""
        return [self.hidden + self.head_gains, self.q_size if self.sub_norms else 0, self.hidden, self.ffn if self.sub_norms else 0]

    @property
    def bank_lengths(self) -> list[int]:
        """Gains of each bank, and the biases behind them."""
        biased = (False, self.residual_biases[0], False, self.residual_biases[1])
        return [gains + self.hidden * bias for gains, bias in zip(self.norm_gains, biased, strict=True)]

    @property
    def bank_words(self) -> list[int]:
        """Words of each bank."""
        return [self.whole_beats(length // self.vector_lanes) for length in self.bank_lengths]

    @property
    def exponent_bits(self) -> int:
        """Bits of the exponent of a group of codes."""
        return self.group_exponents.bit_length()

    @property
    def code_groups(self) -> int:
        """Groups of the longest vector that is quantised."""
        return self.max_inputs // self.code_group

    @property
    def code_bits(self) -> int:
        """Signed bits of an element of the embedding: a code, or a trit times its group's scale."""
        return 8 if not self.embedding_group else GROUP_SCALE_BITS + 1

    @property
    def head_gains(self) -> int:
        """Gains of the norms of a query head and of a key head, behind those of qkv's inputs."""
        return 2 * self.head_dim if self.head_norms else 0

    @property
    def bank_bases(self) -> list[int]:
        """First word of each bank."""
        return [sum(self.bank_words[:i]) for i in range(len(self.bank_words))]

    @property
    def bias_bases(self) -> list[int]:
        """First word of each bank's bias."""
        return [base + gains // self.vector_lanes for base, gains in zip(self.bank_bases, self.norm_gains, strict=True)]

    @property
    def gain_words(self) -> int:
        """Words of all banks."""
        return sum(self.bank_words)

    @property
    def coefficient_words(self) -> int:
        """Words of all gains, and of the cosines and sines of every slot."""
        return self.gain_words + self.lanes * self.groups * self.whole_beats(self.head_words)

    def whole_beats(self, words: int) -> int:
        """Words of coefficients in the beats that bring `words` of them."""
        return words + -words % self.beat_words

    @property
    def coefficient_bits(self) -> int:
        """Address bits of a word of coefficients."""
        return index_bits(self.coefficient_words)

    # Timing -----------------------------------------------------------------------------------------

    @property
    def head_cycles(self) -> int:
        """Cycles that QKV takes for each head, at most."""
        return max(95 if self.head_norms else 25, 2 * self.acc_parts * self.head_words + 10)

    def cycles(self, op: VectorOp, *, length: int = 0, heads: int = 0, norm: bool = False) -> int:
        """Cycles that an operation takes at most, of each slot, if no stream stalls.

        `length`: elements of the vector, of NORMQ (with `norm`, a short one waits for its scale); gains of PARAM; pairs of GLU.
        `heads`: of QKV. EMBED and ROPE wait for memory: ValueError.
        """
        words = length // self.vector_lanes
        if op == VectorOp.PARAM:
            return words + -(-PARAM_HEADER_BYTES // self.mem_bytes) + 4
        if op == VectorOp.NORMQ:
            codes = self.bias_inputs // self.vector_lanes
            wait = BIAS_WAIT if self.bias_inputs else 0
            return max(2 * words + 60 + bool(codes) * (codes + BIAS_SHIFTS), words + 100 + wait + codes if norm else 0)
        if op == VectorOp.RESID:
            return self.acc_parts * self.residual_words + 16
        if op == VectorOp.BIAS:
            return self.residual_words + 22
        if op == VectorOp.GLU:
            return 2 * self.acc_parts * words + (26 if self.silu else 20)  # gates of SiLU wait for their scale
        if op == VectorOp.QKV:
            return heads * self.head_cycles + 50 + (3 * self.head_words + 8 if self.head_norms else 0)
        raise ValueError(f"the cycles of {op.name} are the memory's")

    # Memories ---------------------------------------------------------------------------------------

    def memories(self) -> tuple[MemoryUse, ...]:
        """What the unit instantiates."""
        word, banks, kind = 32 * self.vector_lanes, len(self.bank_bases), "ultra" if self.ultra else "ram"
        found = [
            MemoryUse(name="kv.rows", width=9 * self.mem_bytes + 33, depth=self.write_fifo_beats),
            MemoryUse(name="kv.scales", width=64, depth=self.kv_write_rows),
            MemoryUse(name="code_scale", width=SCALE_BITS, depth=self.slots),
            MemoryUse(name="work_scale", width=SCALE_BITS, depth=self.lanes),
            MemoryUse(name="residual_left", width=LEFT_BITS, depth=self.slots),
            *(MemoryUse(name=name, width=SCALE_BITS, depth=banks) for name in HEADER),
            MemoryUse(name="gain_exponent", width=GAIN_EXPONENT_BITS, depth=banks),
            MemoryUse(name="coefficients", width=16 * self.vector_lanes, depth=max(2, self.coefficient_words // self.beat_words),
                      count=self.beat_words, write_parts=2),
            MemoryUse(name="x", width=word, depth=self.lanes * self.groups * self.residual_words, kind=kind),
            MemoryUse(name="h", width=word, depth=self.lanes * self.work_words, kind=kind),
        ]
        if self.acc_parts > 1:
            found.append(MemoryUse(name="kept", width=self.vector_lanes * self.acc_bits, depth=1 << (KEPT_BITS + self.head_word_bits)))
        if self.head_norms:
            found += [MemoryUse(name=HEAD_HEADER, width=SCALE_BITS, depth=banks),
                      *(MemoryUse(name=f"{name}_exponent", width=GAIN_EXPONENT_BITS, depth=banks) for name in ("query", "key")),
                      MemoryUse(name="turned", width=32 * self.vector_lanes, depth=2 * self.head_words)]
        if self.group_exponents:
            found.append(MemoryUse(name="group_exponents.store", width=DIGITS_BITS, depth=max(2, self.code_groups)))
        if self.silu:
            found.append(MemoryUse(name="gated.tail", width=TAIL_BITS + TAIL_STEP_BITS, depth=len(SILU_TAIL) - 1,
                                   read_ports=self.vector_lanes // 2, kind="rom"))
        return tuple(found)
