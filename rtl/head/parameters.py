"""Parameters of the sampler and of the short-list: what they are built from, what they instantiate, how long they take."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, log

from tritloom.firmware.config import LOGIT_BITS, BuildConfig
from tritloom.firmware.integer import GROUPED_LOGIT_BITS, LOGIT_DROP, NOISE_BITS, PROBABILITY_BITS, SCORE_BITS
from tritloom.rtl.parameters import MemoryUse, index_bits, require, require_positive, require_power_of_two
from tritloom.rtl.ternary.parameters import TernaryParameters

__all__ = ["FIXED_BITS", "LOG2_LATENCY", "MIX_LATENCY", "NOISE_LATENCY", "SCALE_LATENCY", "HeadReaderParameters", "SamplerParameters",
           "ShortListParameters"]

FIXED_BITS = LOGIT_BITS - LOGIT_DROP + 23
"""Base-2 logits: the product with a 16-bit mantissa, shifted left by 7 at most."""
SCALE_BITS = 26
"""A positive scale (`rtl.ufloat.UFLOAT`)."""
MIX_LATENCY, LOG2_LATENCY = 9, 7
"""Cycles of `Mix32` and of `Log2`."""
NOISE_LATENCY = MIX_LATENCY + 2 * (LOG2_LATENCY + 1)
"""Cycles from a word to its noise."""
SCALE_LATENCY = 6
"""Cycles from an integer logit to a base-2 logit."""


@dataclass(frozen=True, kw_only=True)
class SamplerParameters:
    """Parameters of `rtl.head.sampler.Sampler`.

    vocab : int
        Ids are below this.
    candidates : int
        Longest sorted list.
    slots : int
        P.
    logits : int
        Logits per token, 0 for `vocab`.
    """

    vocab: int
    candidates: int
    slots: int = 1
    logits: int = 0

    def __post_init__(self) -> None:
        require_positive(self, ("vocab", "slots"))
        require(type(self.logits) is int and self.logits >= 0, f"logits must be a positive integer, or 0 for vocab, not {self.logits!r}")
        require(type(self.candidates) is int and 1 <= self.candidates < 1 << 16,
                f"candidates must be from 1 to 65535, not {self.candidates!r}")

    @classmethod
    def of(cls, config: BuildConfig) -> SamplerParameters:
        """Those of a configuration's machine."""
        return cls(vocab=config.shape.vocab, candidates=config.sampler_candidates, slots=config.lanes, logits=config.shortlist)

    @property
    def logits_per_token(self) -> int:
        return self.logits or self.vocab

    @property
    def place_bits(self) -> int:
        """Address bits of a place in a sorted list."""
        return (self.candidates - 1).bit_length()

    latency = 4
    """Cycles from the last logit to the first token of greedy slots."""

    drain = NOISE_LATENCY + 1
    """Cycles until a logit that was taken has won or lost against the best one."""

    @property
    def delay_cycles(self) -> int:
        """Cycles that a base-2 logit waits for its noise."""
        return NOISE_LATENCY - SCALE_LATENCY

    def memories(self) -> tuple[MemoryUse, ...]:
        """What the unit instantiates."""
        id_bits, depth = index_bits(self.vocab), max(2, self.slots)
        place = self.candidates.bit_length()
        per_slot = {
            "best": FIXED_BITS + 1 + id_bits, "levels": place + LOGIT_BITS + id_bits, "logit_scales": SCALE_BITS,
            "running": FIXED_BITS - NOISE_BITS + 1, "settings": 3 + place + 17 + 32 + 16 + 6,
            "total": (self.logits_per_token << PROBABILITY_BITS).bit_length(),
        }
        return (
            *(MemoryUse(name=name, width=width, depth=depth, kind="async") for name, width in per_slot.items()),
            MemoryUse(name="list", width=LOGIT_BITS + id_bits, depth=max(2, self.slots << self.place_bits)),
            MemoryUse(name="delay.ring", width=FIXED_BITS + id_bits + index_bits(self.slots), depth=1 << self.delay_cycles.bit_length()),
            MemoryUse(name="exp2", width=PROBABILITY_BITS + 1, depth=1 << SCORE_BITS, kind="rom"),
            *(MemoryUse(name=f"{name}.table", width=32, depth=512, kind="rom") for name in ("inner", "outer")),
        )


@dataclass(frozen=True, kw_only=True)
class HeadReaderParameters:
    """Parameters of `rtl.head.reader.HeadReader`.

    vocab : int
        Rows in all.
    ternary : TernaryParameters
        The matmul whose results are read.
    """

    vocab: int
    ternary: TernaryParameters

    def __post_init__(self) -> None:
        require_positive(self, ("vocab",))
        most = LOGIT_BITS - GROUPED_LOGIT_BITS
        require(self.ternary.acc_bits <= most, f"acc_bits must be {most} or less, not {self.ternary.acc_bits}")

    @classmethod
    def of(cls, config: BuildConfig) -> HeadReaderParameters:
        """Those of a configuration's machine, whose head is ternary by groups."""
        return cls(vocab=config.shape.vocab, ternary=TernaryParameters.of(config))

    def cycles(self, rows: int) -> int:
        """Cycles to hand out `rows` results of a slot, if the sampler takes them at once."""
        t = self.ternary
        return ceil(rows / t.vector_lanes) * max(t.vector_lanes, t.result_reads + t.acc_read_latency + 2) + t.acc_read_latency + 4

    def memories(self) -> tuple[MemoryUse, ...]:
        """What the unit instantiates."""
        return (MemoryUse(name="ids", width=self.vocab.bit_length(), depth=max(2, self.ternary.lanes), kind="async"),)


@dataclass(frozen=True, kw_only=True)
class ShortListParameters:
    """Parameters of `rtl.head.shortlist.ShortList`.

    vocab, count : int
        Rows in all; entries kept, a power of two from 2.
    queue : int
        Entries that wait for the heap.
    hidden : int
        Inputs of the head: logits are at most 127*hidden in magnitude.
    ternary : TernaryParameters
        The matmul whose results are scanned.
    """

    vocab: int
    count: int
    queue: int
    hidden: int
    ternary: TernaryParameters

    def __post_init__(self) -> None:
        require_positive(self, ("vocab", "queue", "hidden"))
        require_power_of_two(self, "count", 2, self.vocab)
        require(self.ternary.acc_bits >= self.logit_bits,
                f"acc_bits must be {self.logit_bits} or more for {self.hidden} inputs, not {self.ternary.acc_bits}")

    @classmethod
    def of(cls, config: BuildConfig) -> ShortListParameters:
        """Those of a configuration's machine, which has a short-list."""
        return cls(vocab=config.shape.vocab, count=config.shortlist, queue=config.shortlist_queue, hidden=config.shape.hidden,
                   ternary=TernaryParameters.of(config))

    @property
    def logit_bits(self) -> int:
        """Signed width of a ternary logit."""
        return (127 * self.hidden).bit_length() + 1

    @property
    def entry_cycles(self) -> int:
        """Most cycles in which the heap takes an entry, or hands one out."""
        return 2 * (self.count.bit_length() - 1) + 1

    @property
    def expected_entries(self) -> float:
        """Rows of a vocabulary in random order that enter the heap, on average."""
        return self.count * (1 + log(self.vocab / self.count))

    def scan_cycles(self, rows: int) -> float:
        """Cycles to scan `rows` results of which none enters the heap."""
        return rows * self.ternary.result_reads / self.ternary.vector_lanes

    def memories(self) -> tuple[MemoryUse, ...]:
        """What the unit instantiates."""
        entry = index_bits(self.vocab) + self.logit_bits + 1
        return (MemoryUse(name="queue", width=entry, depth=self.queue),
                MemoryUse(name="heap", width=2 * entry, depth=max(2, self.count // 2), write_parts=2, kind="async"))
