"""A request: what the device has to read of one text, and what it has generated."""

from __future__ import annotations

from dataclasses import dataclass, field

from tritloom.firmware.integer import GREEDY, Sampling
from tritloom.host.drafting import PromptLookup


@dataclass(eq=False)
class Request:
    """One text on its way through a device.

    `unread`: tokens that the device has not read, the first of them at `position`; `left`: tokens still to generate; `tokens`: those
    generated; `closed`: nobody wants more of it. `lookup`: drafts its next tokens. `prompt`: what the text begins with, empty if something
    stands before it.

    `admitted`: it has a KV cache, number `cache`, and the device has read some of it or is about to. Its first `shared` positions, whole
    chunks, are another request's and lie in the cache `prefix`.
    """

    unread: list[int]
    left: int
    position: int = 0
    sampling: Sampling = GREEDY
    stop_ids: tuple[int, ...] = ()
    lookup: PromptLookup | None = None
    prompt: tuple[int, ...] = ()
    tokens: list[int] = field(default_factory=list)
    closed: bool = False
    admitted: bool = False
    cache: int = 0
    shared: int = 0
    prefix: int = 0

    @property
    def done(self) -> bool:
        return not self.left

    def close(self) -> None:
        """Generate no more of it; its cache is free from the next pass on."""
        self.left, self.closed = 0, True
