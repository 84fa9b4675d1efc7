"""cocotb helpers for the stream ports of an emitted component: drive, collect, check and time them.

Every cycle has two moments. At the falling edge inputs are driven; just before the rising edge, when everything
has settled, a transfer is seen where `valid` and `ready` are both 1. One loop serves all streams, so a stream costs
no coroutine of its own. Coroutines woken by `send`, `receive` and `cycles` run at the falling edge: they may write ports.

Payloads are ints for plain shapes, dicts for structs, lists for arrays; the layouts come from the component itself.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import Any

import cocotb
from cocotb.clock import Clock
from cocotb.triggers import Event, FallingEdge, ReadOnly, ReadWrite
from cocotb.types import Logic

HIGH = Logic(1)
"""Comparing with it is quicker than with 1, of which each time a `Logic` is made."""
STALLS = ("none", "rare", "random", "periodic")
"""Stall patterns: never; rarely able to move (1 cycle in 16); every other cycle at random; 3 cycles on, 2 off."""


def parameters() -> dict[str, Any]:
    """What the pytest side passed as `parameters`."""
    return _task()["parameters"]


def seed() -> int:
    return _task()["seed"]


def report(**values: Any) -> None:
    """Hand values back to the pytest side; calls add up."""
    path = _folder() / "report.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps(known | values), encoding="utf-8")


async def start(dut: Any, *, idle_limit: int = 2000, cycle_limit: int = 2_000_000) -> Bench:
    """Start the clock and the loop, idle all streams, hold reset for two cycles.

    `idle_limit`: most cycles without any transfer while something waits; `cycle_limit`: most cycles in all.
    """
    bench = Bench(dut, idle_limit, cycle_limit)
    _benches[id(dut)] = bench
    await bench.begin()
    return bench


def send(dut: Any, name: str, values: Iterable[Any], stall: Any = "none") -> Sender:
    """Offer `values` to input stream `name`; the work starts at once. Await it for the cycles of the transfers."""
    return Sender(_bench(dut), name, values, stall)


def receive(dut: Any, name: str, count: int, stall: Any = "none") -> Receiver:
    """Take `count` payloads from output stream `name`; the work starts at once.

    Await it for the list of payloads; its `cycles` attribute has the cycle of each.
    """
    return Receiver(_bench(dut), name, count, stall)


async def cycles(dut: Any, count: int = 1) -> None:
    """Wait for `count` falling edges: outputs are settled, inputs may be written."""
    for _ in range(count):
        await FallingEdge(dut.clk)


def pack(layout: Any, value: Any) -> int:
    """The bits of a payload, from its description (`harness.describe`) and value."""
    bits, at = 0, 0
    if isinstance(layout, dict):
        for field, item in _fields(layout, value):
            bits |= pack(field, item) << at
            at += width(field)
        return bits
    kind, size = layout
    low, high = (-(1 << size) >> 1, (1 << size) >> 1) if kind == "signed" else (0, 1 << size)
    if not low <= value < max(high, 1):
        raise ValueError(f"{value} does not fit {kind}({size})")
    return int(value) & ((1 << size) - 1)


def unpack(layout: Any, bits: int) -> Any:
    """The value of a payload, from its description and bits."""
    if isinstance(layout, dict) and "struct" in layout:
        result, at = {}, 0
        for key, field in layout["struct"].items():
            result[key] = unpack(field, bits >> at)
            at += width(field)
        return result
    if isinstance(layout, dict):
        element, length = layout["array"]
        return [unpack(element, bits >> (i * width(element))) for i in range(length)]
    kind, size = layout
    bits &= (1 << size) - 1
    return bits - (1 << size) if kind == "signed" and size and bits >> (size - 1) else bits


def width(layout: Any) -> int:
    if isinstance(layout, dict):
        if "struct" in layout:
            return sum(map(width, layout["struct"].values()))
        element, length = layout["array"]
        return width(element) * length
    return layout[1]


def stalls(pattern: str | Callable[[int], bool], generator: random.Random) -> Callable[[int], bool]:
    """`pattern` as a function from the cycle to "may move"."""
    if callable(pattern):
        return pattern
    if pattern == "none":
        return lambda cycle: True
    if pattern == "rare":
        return lambda cycle: generator.random() < 1 / 16
    if pattern == "random":
        return lambda cycle: generator.random() < 1 / 2
    if pattern == "periodic":
        return lambda cycle: cycle % 5 < 3
    raise ValueError(f"stall must be one of {', '.join(STALLS)} or a function, not {pattern!r}")


class Bench:
    """One clock, one loop and the agents on the streams of one device under test.

    `cycle` counts rising edges since the start. `each_cycle` functions are called before every rising edge, with
    everything settled: they may read ports and must not write them. `moved()` tells the watchdog of progress
    that no stream shows.
    """

    def __init__(self, dut: Any, idle_limit: int, cycle_limit: int) -> None:
        self.dut, self.idle_limit, self.cycle_limit = dut, idle_limit, cycle_limit
        streams: dict[str, Any] = _task()["streams"]
        self.layouts = {name: stream["layout"] for name, stream in streams.items()}
        self.inputs = {name for name, stream in streams.items() if stream["input"]}
        self.monitors = {name: Monitor(self, name) for name in streams if name not in self.inputs}
        self.agents: dict[str, Sender | Receiver] = {}
        self.each_cycle: list[Callable[[], None]] = []
        self.cycle = 0
        self._last_move = 0

    def port(self, name: str, role: str) -> Any:
        """A port of a stream, or None where it is constant and so was not emitted."""
        return getattr(self.dut, f"{name}__{role}", None)

    def moved(self) -> None:
        self._last_move = self.cycle

    async def begin(self) -> None:
        dut = self.dut
        for name in self.layouts:
            for role in ("valid", "payload") if name in self.inputs else ("ready",):
                port = self.port(name, role)
                if port is not None:
                    port.value = 0
        reset = getattr(dut, "rst", None)
        if reset is not None:
            reset.value = 1
        cocotb.start_soon(Clock(dut.clk, 2, unit="step").start(start_high=False))
        for _ in range(3):
            await FallingEdge(dut.clk)
        if reset is not None:
            reset.value = 0
        cocotb.start_soon(self._loop())
        await FallingEdge(dut.clk)

    async def _loop(self) -> None:
        falling, settled, again = FallingEdge(self.dut.clk), ReadOnly(), ReadWrite()
        while True:
            await falling
            self.cycle += 1
            finished = [name for name, agent in self.agents.items() if agent.finished]
            if finished:
                for name in finished:
                    agent = self.agents.pop(name)
                    agent.idle()
                    agent.event.set()
                await again  # whoever waited may start new work in this very cycle
            for agent in self.agents.values():
                agent.drive(self.cycle)
            await settled
            for monitor in self.monitors.values():
                monitor.sample(self.cycle)
            for agent in self.agents.values():
                if agent.sample(self.cycle):
                    self._last_move = self.cycle
            for function in self.each_cycle:
                function()
            if self.agents and self.cycle - self._last_move > self.idle_limit:
                raise TimeoutError(f"no transfer for {self.idle_limit} cycles\n{self.state()}")
            if self.cycle > self.cycle_limit:
                raise TimeoutError(f"not done after {self.cycle_limit} cycles\n{self.state()}")

    def state(self) -> str:
        """Who waits for whom: a line for each stream."""
        lines = [f"cycle {self.cycle}, last transfer in cycle {self._last_move}"]
        for name in self.layouts:
            valid, ready = ("-" if port is None else str(port.value) for port in (self.port(name, "valid"), self.port(name, "ready")))
            waits = {"11": "moves", "10": "waits for ready", "01": "waits for valid", "00": "neither side offers"}.get(valid + ready, "")
            agent = self.agents.get(name)
            work = "no work" if agent is None else f"{agent.verb} {len(agent.cycles)} of {agent.total}"
            lines.append(f"  {name:24} valid={valid} ready={ready} {waits:20} {work}")
        return "\n".join(lines)


class _Agent:
    verb = ""
    total = 0

    def __init__(self, bench: Bench, name: str, stall: Any) -> None:
        if name not in bench.layouts:
            raise KeyError(f"no stream {name!r}; there are: {', '.join(bench.layouts)}")
        if (name in bench.inputs) != isinstance(self, Sender):
            raise ValueError(f"stream {name!r} is an {'input: send' if name in bench.inputs else 'output: receive from'} it")
        if name in bench.agents:
            raise RuntimeError(f"stream {name!r} has work: await it before giving it more")
        self.bench, self.name, self.layout = bench, name, bench.layouts[name]
        self.valid, self.ready, self.payload = (bench.port(name, role) for role in ("valid", "ready", "payload"))
        self.random = random.Random(f"{seed()} {name} {bench.cycle}")
        self.may_move = stalls(stall, self.random)
        self.event = Event()
        self.cycles: list[int] = []
        bench.agents[name] = self  # type: ignore[assignment]
        bench.moved()

    @property
    def finished(self) -> bool:
        return len(self.cycles) == self.total

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._wait().__await__()

    async def _wait(self) -> Any:
        await self.event.wait()
        return self.result()

    def result(self) -> Any:
        raise NotImplementedError


class Monitor:
    """Watches one output stream always: an offer must stay as it is until it is taken."""

    def __init__(self, bench: Bench, name: str) -> None:
        self.name = name
        self.valid, self.ready, self.payload = (bench.port(name, role) for role in ("valid", "ready", "payload"))
        self.word: int | None = None
        """What is offered in this cycle; None when nothing is."""
        self.held: int | None = None

    def sample(self, cycle: int) -> None:
        if self.valid is not None and self.valid.value != HIGH:
            if self.held is not None:
                raise AssertionError(f"{self.name}: valid was dropped before ready, in cycle {cycle}")
            self.word = None
            return
        self.word = 0 if self.payload is None else int(self.payload.value)
        if self.held is not None and self.word != self.held:
            raise AssertionError(f"{self.name}: payload changed from {self.held:#x} to {self.word:#x} before ready, in cycle {cycle}")
        stalled = self.valid is not None and self.ready is not None and self.ready.value != HIGH
        self.held = self.word if stalled else None


class Sender(_Agent):
    """Drives one input stream. Between offers the payload is garbage."""

    verb = "sent"

    def __init__(self, bench: Bench, name: str, values: Iterable[Any], stall: Any) -> None:
        super().__init__(bench, name, stall)
        self.words = [pack(self.layout, value) for value in values]
        self.total = len(self.words)
        self.width = width(self.layout)
        self.offering = False

    def drive(self, cycle: int) -> None:
        if self.offering or self.finished:
            return
        if self.valid is None or self.may_move(cycle):
            self.offering = True
            if self.payload is not None:
                self.payload.value = self.words[len(self.cycles)]
            if self.valid is not None:
                self.valid.value = 1
        else:
            self.idle()

    def sample(self, cycle: int) -> bool:
        if not self.offering or not (self.ready is None or self.ready.value == HIGH):
            return False
        self.cycles.append(cycle)
        self.offering = False
        return True

    def idle(self) -> None:
        if self.valid is not None:
            self.valid.value = 0
        if self.payload is not None:
            self.payload.value = self.random.getrandbits(self.width) if self.width else 0

    def result(self) -> list[int]:
        return self.cycles


class Received(list):
    """Payloads in order of arrival; `cycles[i]` is the cycle of the i-th."""

    def __init__(self, values: Iterable[Any], cycles: list[int]) -> None:
        super().__init__(values)
        self.cycles = cycles


class Receiver(_Agent):
    """Takes from one output stream."""

    verb = "received"

    def __init__(self, bench: Bench, name: str, count: int, stall: Any) -> None:
        super().__init__(bench, name, stall)
        self.monitor = bench.monitors[name]
        self.total = count
        self.words: list[int] = []
        self.taking = False

    def drive(self, cycle: int) -> None:
        taking = self.ready is None or self.may_move(cycle)
        if self.ready is not None and taking != self.taking:
            self.ready.value = int(taking)
        self.taking = taking

    def sample(self, cycle: int) -> bool:
        if self.monitor.word is None or not self.taking:
            return False
        self.words.append(self.monitor.word)
        self.cycles.append(cycle)
        return True

    def idle(self) -> None:
        if self.ready is not None:
            self.ready.value = 0

    def result(self) -> Received:
        return Received((unpack(self.layout, word) for word in self.words), self.cycles)


_benches: dict[int, Bench] = {}


def _bench(dut: Any) -> Bench:
    if id(dut) not in _benches:
        raise RuntimeError("call `await streams.start(dut)` first")
    return _benches[id(dut)]


def _fields(layout: dict[str, Any], value: Any) -> Iterable[tuple[Any, Any]]:
    if "struct" in layout:
        fields = layout["struct"]
        unknown = set(value) - set(fields)
        missing = set(fields) - set(value)
        if unknown or missing:
            raise ValueError(f"payload fields: unknown {sorted(unknown)}, missing {sorted(missing)}")
        return [(field, value[key]) for key, field in fields.items()]
    element, length = layout["array"]
    if len(value) != length:
        raise ValueError(f"array of {length} given {len(value)} values")
    return [(element, item) for item in value]


def _folder() -> Path:
    return Path(os.environ["TRITLOOM_TEST_FOLDER"])


def _task() -> dict[str, Any]:
    if not _cache:
        _cache.update(json.loads((_folder() / "task.json").read_text(encoding="utf-8")))
    return _cache


_cache: dict[str, Any] = {}
