"""Run the RTL, the emulator and the integer model side by side, and say where they first differ.

The RTL's trace port shows every vector its units produce; the emulator produces the same vectors with
their layer and stage. So a difference is named by layer, stage, unit, slot and element.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tritloom.boards.board import load
from tritloom.firmware.emulator import TraceEvent
from tritloom.firmware.errors import InputError
from tritloom.firmware.image import Image
from tritloom.firmware.integer import GREEDY, Sampling
from tritloom.firmware.isa import TraceUnit
from tritloom.gen.pack import pack, quantise
from tritloom.host.backends.emulator import EmulatorBackend
from tritloom.host.image import open_image, write_image
from tritloom.host.session import Session
from tritloom.host.tokenizer import Tokenizer
from tritloom.sim.backends import SimBackend
from tritloom.sim.integer_model import IntegerModel
from tritloom.system.files import cache, scratch

if TYPE_CHECKING:
    from tritloom.gen.source import Source

PROMPT_TOKENS = 24
"""Prompt of `verify`: the first tokens of the text."""

Progress = Callable[[float, float, str], None]
"""Called with (done, total, what)."""

UNITS = {"residual": TraceUnit.RESIDUAL, "codes": TraceUnit.CODES, "activations": TraceUnit.ACTIVATIONS,
         "attention": TraceUnit.ATTENTION, "logits": TraceUnit.LOGITS}
"""Trace units by the emulator's names; its keys and values have no trace port (they show in the attention)."""


@dataclass(frozen=True)
class Difference:
    """The first element that is not what the emulator has. `index` counts elements of the unit's vector;
    `token` is the number of tokens whose processing had begun before."""

    layer: int
    stage: str
    unit: str
    slot: int
    index: int
    expected: int
    got: int | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        where = f"layer {self.layer} {self.stage}" if self.stage else ("embedding" if self.layer < 0 else "head")
        got = "nothing" if self.got is None else str(self.got)
        return f"{where}, {self.unit} of slot {self.slot}, element {self.index}: expected {self.expected}, got {got}"


class TraceReader:
    """Takes vectors out of a recorded RTL trace, unit by unit and slot by slot.

    `events` is `Verilated.trace()`'s structured array: unit, slot, index (V-word), data (V words of 32 bits).
    """

    def __init__(self, events: NDArray[Any], vector_lanes: int) -> None:
        self._lanes = vector_lanes
        self._events: dict[tuple[int, int], NDArray[Any]] = {}
        self._next: dict[tuple[int, int], int] = defaultdict(int)
        keys = events["unit"].astype(np.int64) << 8 | events["slot"]
        for key in np.unique(keys):
            self._events[int(key >> 8), int(key & 0xFF)] = events[keys == key]

    def take(self, unit: TraceUnit, slot: int, length: int) -> NDArray[np.int64]:
        """The unit's next vector of `length` elements; shorter when the trace ends."""
        key = (int(unit), slot)
        words = length if unit == TraceUnit.LOGITS else -(-length // self._lanes)
        start = self._next[key]
        self._next[key] = start + words
        part = self._events[key][start:start + words] if key in self._events else None
        if part is None or not len(part):
            return np.zeros(0, np.int64)
        data = part["data"].astype(np.int64)
        if unit == TraceUnit.LOGITS:
            return (data[:, 1] << 32 | data[:, 0] & 0xFFFFFFFF)
        out = np.zeros((words, self._lanes), np.int64)
        order = part["index"].astype(np.int64)
        valid = order < words
        out[order[valid]] = data[valid, : self._lanes]
        return out[:len(part)].reshape(-1)[:length] if len(part) < words else out.reshape(-1)[:length]


def first_difference(expected: Sequence[TraceEvent], got: TraceReader) -> Difference | None:
    """Compare the emulator's events, in order, with an RTL trace."""
    for event in expected:
        unit = UNITS.get(event.unit)
        if unit is None:
            continue
        have = got.take(unit, event.slot, len(event.data))
        same = len(have) == len(event.data) and np.array_equal(have, event.data)
        if not same:
            n = min(len(have), len(event.data))
            wrong = np.flatnonzero(have[:n] != event.data[:n])
            index = int(wrong[0]) if len(wrong) else n
            value = int(have[index]) if index < len(have) else None
            return Difference(event.layer, event.stage, event.unit, event.slot, index, int(event.data[index]), value)
    return None


@dataclass(frozen=True)
class Comparison:
    """Tokens of the three, the first difference between RTL and emulator vectors (None when there is none), and how many elements
    each of these two clamped."""

    prompt: list[int]
    rtl: list[int]
    emulator: list[int]
    integer: list[int]
    difference: Difference | None
    saturations: int
    rtl_saturations: int

    @property
    def equal(self) -> bool:
        return self.difference is None and self.rtl == self.emulator == self.integer and self.rtl_saturations == self.saturations

    @property
    def compared_tokens(self) -> int:
        return min(len(self.rtl), len(self.emulator), len(self.integer))

    def first_difference(self) -> dict[str, Any] | None:
        """For people and programs: the element, or, where no vector differs, the token."""
        if self.difference is not None:
            return self.difference.to_dict()
        for name, other in (("integer model", self.integer), ("RTL", self.rtl)):
            for index, (expected, got) in enumerate(zip(self.emulator, other, strict=False)):
                if expected != got:
                    return {"layer": None, "stage": "", "unit": f"token of the {name}", "slot": 0, "index": index,
                            "expected": expected, "got": got}
        if self.rtl_saturations != self.saturations:
            return {"layer": None, "stage": "", "unit": "SATURATIONS", "slot": 0, "index": 0,
                    "expected": self.saturations, "got": self.rtl_saturations}
        return None


def compare(backend: SimBackend, image: Image, reference: IntegerModel, prompt: Sequence[int], tokens: int,
            sampling: Sampling = GREEDY, progress: Progress | None = None) -> Comparison:
    """Generate on all three and compare every vector of the RTL's units with the emulator's.

    `backend` must be a machine for `image`; `reference` is reset.
    """
    done = progress or (lambda fraction, total, text: None)
    total = 3 * tokens
    reference.reset()
    integer = reference.generate(list(prompt), tokens, sampling, image.config.sampler_candidates)
    done(tokens, total, "integer model")
    events: list[TraceEvent] = []
    software = EmulatorBackend(image.config, image.map.total_bytes, trace=events.append)
    with Session(software, image) as session:
        emulated = list(session.generate(prompt, tokens, sampling=sampling))
        saturations = session.stats().saturations
    done(2 * tokens, total, "emulator")
    machine = backend.machine
    with Session(backend, image) as session:
        machine.trace_enable(True)
        machine.trace(clear=True)
        rtl = []
        for token in session.generate(prompt, tokens, sampling=sampling):
            rtl.append(token)
            done(2 * tokens + len(rtl), total, "RTL")
        rtl_saturations = session.stats().saturations
    machine.trace_enable(False)
    difference = first_difference(events, TraceReader(machine.trace(), image.config.vector_lanes))
    machine.trace(clear=True)
    return Comparison(list(prompt), rtl, emulated, integer, difference, saturations, rtl_saturations)


def default_text(model: Path) -> Path | None:
    """The stories shipped beside the models."""
    path = model.parent / "validation.txt"
    return path if path.is_file() else None


def verify(source: Source, text: str | None, tokens: int, progress: Progress | None = None, *, board: str = "sim",
           settings: dict[str, Any] | None = None, float_tokens: int = 1000, floor: bool = False) -> dict[str, Any]:
    """What `tritloom verify` reports: RTL = emulator = integer model over `tokens` generated tokens, what they clamped, and the
    integer model against the float model over `float_tokens` tokens of `text` (0: leave that out); with a short-list,
    how often it misses the int8 head's choice over as many tokens."""
    from tritloom.gen.fit.fitted import fitted
    from tritloom.gen.verilog.generate import cached_verilog
    from tritloom.sim.fidelity import measure, short_list_quality

    done = progress or (lambda fraction, total, text: None)
    checkpoint = source.open()
    spec = checkpoint.spec
    config = fitted(spec, board, settings or {}).config
    shipped = default_text(source.path)
    known = text or (shipped.read_text("utf-8") if shipped else None)
    if float_tokens and known is None:
        raise InputError("no text to compare with the float model on: give --text FILE, or --float-tokens 0 to leave that out")
    words = known or "Once upon a time"
    tokenizer = Tokenizer.from_file(checkpoint.tokenizer, spec.bos_id)
    prompt = tokenizer.encode(words[:400])[:PROMPT_TOKENS]
    room = spec.shape.context - len(prompt) + 1
    if tokens > room:
        raise InputError(f"{tokens} tokens after a prompt of {len(prompt)} go past the context of {spec.shape.context}: "
                         f"ask for at most {room}")
    done(0, 1, "packing the weights")
    with scratch(cache("scratch")) as folder:
        packed = pack(checkpoint, config)
        write_image(folder / "image", config=packed.config, spec=packed.spec.to_dict(), sections=packed.sections)
        image = open_image(folder / "image")
        done(0, 1, "generating Verilog")
        verilog = cached_verilog(config)
        backend = SimBackend.build(config, verilog, memory_bytes=image.map.total_bytes, timing=load(board).timing,
                                   progress=lambda fraction, text: done(fraction, 1, f"compiling: {text}"))
        try:
            found = compare(backend, image, IntegerModel.of(quantise(checkpoint), config), prompt, tokens, progress=done)
        finally:
            backend.close()
    fidelity = missed = None
    if float_tokens and known:
        fidelity = measure(checkpoint, source.path, words, float_tokens, floor=floor, group_exponents=config.group_exponents,
                           progress=lambda n, total: done(n, total, "float model")).to_dict()
    if float_tokens and known and config.shortlist:
        missed = short_list_quality(checkpoint, words, float_tokens, config.shortlist,
                                    progress=lambda n, total: done(n, total, "short-list")).to_dict()
    return {"equal": found.equal, "compared_tokens": found.compared_tokens, "first_difference": found.first_difference(),
            "saturations": found.saturations,
            "config": config.to_dict() | {"digest": f"{config.digest:08x}"}, "float": fidelity,
            "short_list": missed}
