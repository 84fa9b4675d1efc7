"""Prefixes that requests share: who begins like whom, and in whose KV cache it lies.

A request that begins as another one reads only the rest of its prompt: the whole chunks that both have stay in the other's cache, which
is free only when both are done.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tritloom.firmware.config import CHUNK
from tritloom.host.request import Request


@dataclass(frozen=True)
class Prefix:
    """The first `positions` positions of some requests, which lie in the cache `cache`."""

    cache: int
    positions: int

    @classmethod
    def of(cls, request: Request, among: Sequence[Request]) -> Prefix | None:
        """What a request shares with most of the others; the one in whose cache it lies shares it too."""
        if request.shared:
            return cls(request.prefix, request.shared)
        mine = [cls(other.prefix, other.shared) for other in among
                if other.shared and other.prefix == request.cache and other.shared <= request.position]
        return max(mine, key=lambda prefix: (mine.count(prefix), prefix.positions), default=None)


def common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two texts begin with alike."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def longest_prefix(request: Request, among: Sequence[Request]) -> tuple[Prefix, int]:
    """The longest beginning of a prompt, in whole chunks, that the device has read for an admitted request, and how long it will be when
    those have read their prompts. A prompt's last token is never shared: it is read for its answer."""
    best, coming = Prefix(0, 0), 0
    for other in among:
        if not other.admitted or not other.prompt:
            continue
        common = common_length(request.prompt[:-1], [*other.prompt, *other.tokens])
        common = min(common, other.shared) if other.shared else common
        read = min(common, other.position) // CHUNK * CHUNK
        best = max(best, Prefix(other.prefix if other.shared else other.cache, read), key=lambda prefix: (prefix.positions, prefix.cache))
        coming = max(coming, min(common, len(other.prompt)) // CHUNK * CHUNK)
    return best, coming


class Caches:
    """The KV caches of a machine: `users` counts the requests that have something in each."""

    def __init__(self, count: int) -> None:
        self.users = [0] * count

    @property
    def free(self) -> int | None:
        """A cache in which nobody has anything, if there is one."""
        return next((cache for cache, users in enumerate(self.users) if not users), None)

    def admit(self, request: Request, cache: int, prefix: Prefix) -> None:
        """The request gets `cache` and, in another one, the prefix. It has been read up to there, or further."""
        request.admitted, request.cache, request.shared, request.prefix = True, cache, prefix.positions, prefix.cache
        request.position = max(request.position, prefix.positions)
        self.users[cache] += 1
        if prefix.positions:
            self.users[prefix.cache] += 1
            request.unread = request.unread[prefix.positions :] if request.prompt else request.unread

    def release(self, request: Request) -> None:
        """The request is done."""
        if request.admitted:
            self.users[request.cache] -= 1
            if request.shared:
                self.users[request.prefix] -= 1
