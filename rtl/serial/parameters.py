"""The serial unit's parameters: what it is built from, what its memory holds, what it instantiates."""

from __future__ import annotations

from dataclasses import dataclass

from tritloom.firmware.config import CHUNK, KV_SCALE_BYTES, SERIAL_LIMITS, BuildConfig
from tritloom.firmware.integer import EXP2_TABLE, LOG2_TABLE, LOGIT_DROP, SILU_TAIL
from tritloom.firmware.isa import DotOp, VectorOp
from tritloom.rtl.attention.parameters import accumulator_bits
from tritloom.rtl.parameters import MemoryUse, index_bits, require, require_positive, require_power_of_two
from tritloom.rtl.serial.microcode import POINTERS, WORD_BITS
from tritloom.rtl.ternary.parameters import TernaryParameters

__all__ = ["BANKS", "BANK_WORDS", "FACTOR_BITS", "MULTIPLICAND_BITS", "NAMED_WORDS", "PROGRAM_WORDS", "STACK", "TABLE_BITS", "WIDTH",
           "SerialParameters"]

WIDTH = 64
"""Bits of the accumulator and of a word of the unit's memory."""
MULTIPLICAND_BITS, FACTOR_BITS = 35, 18
"""Signed bits of a product's operands."""
BANKS, BANK_WORDS = 4, 16
"""Banks of parameters, and words of each one's header: mantissa and exponent of five scales, and the gains' exponent."""
NAMED_WORDS = 128
"""Words of single numbers, which come before the vectors."""
TABLE_BITS = 21
"""Bits of an entry of the tables of 2**-x, log2 and silu's tail."""
PROGRAM_WORDS = 2048
"""Instructions that the microprogram may have."""
STACK = 8
"""Calls that may be under way."""


@dataclass(frozen=True, kw_only=True)
class SerialParameters:
    """Parameters of `rtl.serial.unit.SerialUnit`.

    hidden, ffn, heads, kv_heads, head_dim, vocab, context : int
        The model's.
    activation : str
        "relu2" or "silu".
    sub_norms : bool
        Whether there are gains for the attention's output and for the gated activations.
    max_inputs, max_rows, acc_bits : int
        Codes and results of the ternary matrices, and signed bits of a result.
    acc_read_latency : int
        Cycles from the address of a result to the result: 2, for which the assembler waits.
    mem_bytes : int
        M, bytes of a memory beat.
    group_rows, head_row_bytes, head_group_bytes, rope_row_bytes : int
        Embedding and head table: rows that share a beat of scales, bytes of a row, bytes of such a group; bytes of a position's cosines and
        sines.
    kv_scale_block_bytes, kv_half_bytes, kv_head_bytes : int
        Cache: bytes of a chunk's scales, of the keys of a chunk, of a head.
    candidates : int
        Longest sorted list of the sampler.
    """

    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    context: int
    activation: str
    sub_norms: bool
    max_inputs: int
    max_rows: int
    acc_bits: int
    acc_read_latency: int
    mem_bytes: int
    group_rows: int
    head_row_bytes: int
    head_group_bytes: int
    rope_row_bytes: int
    kv_scale_block_bytes: int
    kv_half_bytes: int
    kv_head_bytes: int
    candidates: int

    @classmethod
    def of(cls, config: BuildConfig) -> SerialParameters:
        """Those of a configuration's machine."""
        c, s = config, config.shape
        return cls(
            hidden=s.hidden, ffn=s.ffn, heads=s.heads, kv_heads=s.kv_heads, head_dim=s.head_dim, vocab=s.vocab, context=s.context,
            activation=s.activation, sub_norms=s.sub_norms, max_inputs=s.max_inputs, max_rows=s.max_rows, acc_bits=c.acc_bits,
            acc_read_latency=TernaryParameters.acc_read_latency, mem_bytes=c.mem_bytes, group_rows=c.group_rows,
            head_row_bytes=c.head_row_bytes, head_group_bytes=c.head_group_bytes, rope_row_bytes=c.rope_row_bytes,
            kv_scale_block_bytes=c.kv_scale_block_bytes, kv_half_bytes=c.kv_half_bytes, kv_head_bytes=c.kv_head_bytes,
            candidates=c.sampler_candidates)

    def __post_init__(self) -> None:
        require_positive(self, ("hidden", "ffn", "heads", "kv_heads", "head_dim", "vocab", "context", "max_inputs", "max_rows",
                                "candidates"))
        require_power_of_two(self, "mem_bytes", 4, KV_SCALE_BYTES * CHUNK)
        require(self.acc_read_latency == 2, f"acc_read_latency must be 2, not {self.acc_read_latency}")
        for name, most in SERIAL_LIMITS.items():
            require(getattr(self, name) <= most, f"{name} must be at most {most}, not {getattr(self, name)}")
        # The results of gate and up, an id, a scaled logit, and the sum of all values of a context are operands of the multiplier.
        assert 127 * SERIAL_LIMITS["hidden"] < 1 << FACTOR_BITS - 1 and SERIAL_LIMITS["vocab"] < 1 << FACTOR_BITS - 1
        most_logit = 127 * 127 * SERIAL_LIMITS["hidden"] * 65535
        assert max((most_logit >> LOGIT_DROP).bit_length() + 1, accumulator_bits(SERIAL_LIMITS["context"])) <= MULTIPLICAND_BITS

    @property
    def group(self) -> int:
        """Query heads that share a key/value head."""
        return self.heads // self.kv_heads

    @property
    def q_size(self) -> int:
        return self.heads * self.head_dim

    @property
    def gains(self) -> tuple[int, ...]:
        """Gains of each bank."""
        return self.hidden, self.q_size if self.sub_norms else 0, self.hidden, self.ffn if self.sub_norms else 0

    @property
    def vectors(self) -> dict[str, tuple[int, int]]:
        """First word and words of each vector in the unit's memory."""
        lengths = {
            "banks": BANKS * BANK_WORDS, "gain_places": BANKS, "x": self.hidden, "work": max(self.ffn, self.q_size),
            "activations": max(self.q_size, self.hidden), "y": self.max_inputs, "rope": self.head_dim, "query_scales": 2 * self.heads,
            "key_scales": 2 * CHUNK, "value_scales": 2 * CHUNK, "scores": CHUNK, "out": self.head_dim, "row_scales": self.group_rows,
            "list_end": 2, "list": 2 * self.candidates,
        } | {f"gains{bank}": gains for bank, gains in enumerate(self.gains)}
        found, at = {}, NAMED_WORDS
        for name, length in lengths.items():
            found[name] = at, length
            at += length
        return found

    @property
    def words(self) -> int:
        """Words of the unit's memory."""
        return max(at + length for at, length in self.vectors.values())

    @property
    def pointer_bits(self) -> int:
        """Bits of a pointer, which is an address or a count."""
        return index_bits(max(self.words, self.max_rows + 1, self.max_inputs + 1, self.vocab + 1))

    @property
    def tables(self) -> dict[str, int]:
        """First entry of each table."""
        found, at = {}, 0
        for name, entries in (("exp2", EXP2_TABLE), ("log2", LOG2_TABLE), *([("tail", SILU_TAIL)] if self.activation == "silu" else [])):
            found[name] = at
            at += len(entries)
        return found

    @property
    def table(self) -> list[int]:
        """All entries."""
        parts = {"exp2": EXP2_TABLE, "log2": LOG2_TABLE, "tail": SILU_TAIL}
        return [int(entry) for name in self.tables for entry in parts[name]]

    def cycles(self, op: VectorOp | DotOp, *, length: int = 0, heads: int = 0, positions: int = 0) -> float:
        """Projected cycles of a command: of `length` elements, of so many `heads`, over so many `positions`.

        Counted in the microprogram; whole tokens are within a tenth of it (tests/sim/test_whole_machine_serial.py).
        """
        if isinstance(op, DotOp):  # whose numbers are also those of others
            octet = 1 + 1 / self.mem_bytes
            row = 125 + (octet + 3 + octet) * self.head_dim
            attend = self.heads * (700 + 35 * self.head_dim + row * positions)
            return {DotOp.ATTEND: attend, DotOp.HEAD: 200 + self.vocab * (41 + octet * self.hidden)}[op]
        match op:
            case VectorOp.PARAM:
                return 90 + (2 + 2 / self.mem_bytes) * length
            case VectorOp.EMBED:
                return 250 + 17 * self.hidden
            case VectorOp.ROPE:
                return 40 + 3 * self.head_dim
            case VectorOp.NORMQ:
                return 1200 + 35 * length
            case VectorOp.RESID:
                return 150 + 19 * length
            case VectorOp.QKV:
                return 100 + heads * (400 + 29 * self.head_dim)
            case VectorOp.GLU:
                return 250 + (45 if self.activation == "relu2" else 80) * length
        raise ValueError(f"no cycles are known of {op.name}")

    def memories(self) -> tuple[MemoryUse, ...]:
        """What the unit instantiates."""
        return (
            MemoryUse(name="core.microprogram", width=WORD_BITS, depth=PROGRAM_WORDS, kind="rom"),
            MemoryUse(name="core.data", width=WIDTH, depth=self.words),
            MemoryUse(name="core.table", width=TABLE_BITS, depth=len(self.table), kind="rom"),
            MemoryUse(name="core.pointers", width=self.pointer_bits, depth=POINTERS, kind="async"),
            MemoryUse(name="core.stack", width=index_bits(PROGRAM_WORDS), depth=STACK, kind="async"),
        )
