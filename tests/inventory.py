"""The memories that a component really instantiates, to compare with what its parameter record publishes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from amaranth.hdl import Fragment, MemoryInstance, Shape
from amaranth.lib.memory import Memory

from tritloom.rtl.parameters import MemoryUse


class _Platform:
    """Amaranth's hook for memories: each becomes what it would become anyway, and is known by its data, which no ResetInserter changes."""

    def __init__(self) -> None:
        self.memories: dict[int, Memory] = {}

    def get_memory(self, memory: Memory) -> Fragment:
        self.memories[id(memory.data)] = memory
        return Memory.elaborate(memory, None)


def plain(path: str) -> str:
    """A path of submodules without their numbers and without the inside of a FIFO."""
    return ".".join(re.sub(r"_?\d+$", "", name) for name in path.removesuffix(".fifo.storage").split("."))


def instantiated(component: Any) -> Counter[MemoryUse]:
    """Memories below a component (with a count of 1), and how many there are of each."""
    platform, found = _Platform(), Counter()

    def walk(fragment: Fragment, path: tuple[str, ...]) -> None:
        if isinstance(fragment, MemoryInstance):
            found[_use(".".join(path), platform.memories[id(fragment._data)])] += 1
        for inner, name, _ in fragment.subfragments:
            walk(inner, (*path, str(name)))

    walk(Fragment.get(component, platform), ())
    return found


def published(memories: Iterable[MemoryUse]) -> Counter[MemoryUse]:
    """The same of what a record publishes."""
    found: Counter[MemoryUse] = Counter()
    for memory in memories:
        found[replace(memory, name=plain(memory.name), count=1)] += memory.count
    return found


def _use(path: str, memory: Memory) -> MemoryUse:
    clocked = all(port.domain != "comb" for port in memory.read_ports)
    kind = "ultra" if memory.attrs.get("ram_style") == "ultra" else "rom" if not memory.write_ports else "ram" if clocked else "async"
    return MemoryUse(name=plain(path), width=Shape.cast(memory.shape).width, depth=memory.depth, read_ports=len(memory.read_ports),
                     write_parts=max((len(port.en) for port in memory.write_ports), default=1), kind=kind)
