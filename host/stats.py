"""What a generation cost: the device's counters and the tokens' cycle stamps."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from tritloom.host.backends.protocol import Backend
from tritloom.host.device import MASK32, UNITS, Counters
from tritloom.host.scheduler import Scheduler


@dataclass(frozen=True)
class Stats:
    """What the last generation cost. Cycle counts are None on a device without time, and where there is nothing to count.

    `prefill_cycles`: from the start to the first token; `decode_cycles`: of each token after it; `memory_share`:
    beats of data moved per cycle, from the first token on (over everything when there is only one token);
    `weight_share`: the same of the weight stream alone; `busy`: cycles in which each unit was at work.
    """

    prompt_tokens: int
    tokens: int
    cycles: int | None
    prefill_cycles: int | None
    decode_cycles: tuple[int, ...]
    weight_beats: int
    data_beats: int
    memory_share: float | None
    weight_share: float | None
    saturations: int
    busy: dict[str, int]
    wall_s: float
    first_token_s: float | None
    passes: int | None = None
    """Passes over the weights that gave tokens, of a batch or with drafts; else None."""

    @property
    def decode_cycles_per_token(self) -> float | None:
        return sum(self.decode_cycles) / len(self.decode_cycles) if self.decode_cycles else None


@dataclass
class Generation:
    """One run of a program: what it was given, what came of it, and when. `keeps`: the session's text goes on with it."""

    prompt: Sequence[int]
    new: int = 0
    scheduler: Scheduler | None = None
    keeps: bool = True
    taken: list[int] = field(default_factory=list)
    stamps: list[int] = field(default_factory=list)
    first: Counters | None = None
    last: Counters | None = None
    start_s: float = field(default_factory=time.monotonic)
    first_s: float | None = None
    end_s: float | None = None

    def token(self, token: int, stamp: int, b: Backend) -> None:
        if self.first is None:
            self.first, self.first_s = Counters.read(b), time.monotonic()
        self.taken.append(token)
        self.stamps.append(stamp)

    def stats(self, b: Backend) -> Stats:
        now = self.last or Counters.read(b)
        first = self.first if len(self.taken) > 1 else None
        cycles, weights, data = now.cycles, now.weight_beats, now.data_beats
        if first:
            cycles, weights, data = cycles - first.cycles, weights - first.weight_beats, (data - first.data_beats) & MASK32
        share = b.timed and cycles > 0
        return Stats(
            prompt_tokens=len(self.prompt),
            tokens=len(self.taken),
            cycles=now.cycles if b.timed else None,
            prefill_cycles=self.first.cycles - (self.first.cycles - self.stamps[0] & MASK32) if b.timed and self.first else None,
            decode_cycles=tuple(y - x & MASK32 for x, y in zip(self.stamps, self.stamps[1:], strict=False)) if b.timed else (),
            weight_beats=now.weight_beats,
            data_beats=now.data_beats,
            memory_share=(weights + data) / cycles if share else None,
            weight_share=weights / cycles if share else None,
            saturations=now.saturations,
            busy=dict(zip((unit.lower() for unit in UNITS), now.busy, strict=True)),
            wall_s=(self.end_s or time.monotonic()) - self.start_s,
            first_token_s=self.first_s - self.start_s if self.first_s else None,
            passes=self.scheduler.passes if self.scheduler else None,
        )
