"""Which stored results still hold: `make digests`.

A result below docs/results keeps digests of what it was measured with, and is current while today's are the same:

    verilog      the machine's Verilog, without comments
    program      words of the firmware
    descriptors  words of the weight streamer's program
    layout       where the regions of the memory stand
    reference    what the integer model makes of fixed random models
    packing      the bytes of those models' images
    memory       the simulated memory: its model, and the numbers of the timing
    delays       the estimate of paths (gen/tools/timing.py)

A result that was synthesised depends on the first and the last, cycles on all but `reference` and `packing`, texts and comparisons with the
integer model on all but `memory` (`decisive`). So a change that leaves a machine as it was leaves its results current, and so
does any renaming that Amaranth does not write into the Verilog.

All but the Verilog is made again whenever it is asked for. To emit a machine takes up to a minute: docs/results/digests.json
keeps the digests of the Verilog of all machines and boards that have a result, and of the sources that made it; `make digests`
(sim/bench/current.py) makes it again once the sources have changed.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from inspect import isfunction
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from tritloom.firmware import integer
from tritloom.firmware.config import BuildConfig, ConfigError, ModelShape
from tritloom.firmware.image import Image
from tritloom.firmware.integer import GREEDY
from tritloom.firmware.layout import MemoryMap, memory_map
from tritloom.firmware.programs import machine_program
from tritloom.gen.models import Checkpoint, ModelSpec
from tritloom.gen.models.checkpoint import matrix_shape, norm_length
from tritloom.gen.pack import pack, quantise
from tritloom.gen.quantised import QuantisedModel
from tritloom.gen.scaling import Scaling, rescaled
from tritloom.gen.verilog.digests import digest, plain, source_digest, syntax_digest, verilog_digest
from tritloom.gen.verilog.generate import cached_verilog
from tritloom.host.session import sampling
from tritloom.sim import dram
from tritloom.sim.integer_model import IntegerModel
from tritloom.system.files import cache, write_atomically

__all__ = ["CURRENT", "configuration_of", "decisive", "digests", "emitted", "entries", "files", "known", "listed", "machines",
           "memory_digest", "of_image", "reference", "stale_by", "state_of"]

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "results"
DIGESTS = RESULTS / "digests.json"
BOARDS = "boards"
"""The folder in RESULTS of whole boards (sim/bench/boards.py); the others there are named after a board and have its machines."""
CURRENT = "current"

SYNTHESIS = ("verilog", "delays")
ESTIMATE = "gen/tools/timing.py"
PARTS = ("program", "descriptors", "layout")
WORDS = {"verilog": "its Verilog", "program": "its program", "descriptors": "its descriptors", "layout": "its memory map",
         "reference": "the integer model", "packing": "the bytes of images", "memory": "the memory's model",
         "delays": "the estimate of paths"}
"""What the digests are of, as `state_of` calls it."""


def decisive(what: str | None) -> tuple[str, ...]:
    """Names of the digests on which a result depends; `what`: as its entry has it, None for a comparison with the integer model."""
    if what == "synthesis":
        return SYNTHESIS
    judged = ("reference", "packing") if what is None or what.startswith("drafts") else ()
    return ("verilog", *PARTS, *judged, *(("memory",) if what else ()))


def digests(what: str | None, config: BuildConfig, image: Image | None = None, timing: str | None = None) -> dict[str, Any]:
    """What a new entry keeps, to be asked for before it is measured: its `digests`, its `configuration`, and of `image`, which is to run,
    whether head and embedding are `tied`."""
    names = decisive(what)
    found = {"verilog": emitted(config)}
    if image is not None:
        found |= of_image(image.program, image.descriptors, image.map)
    found |= _of_models(names, timing, config.clock_hz)
    tied = {} if image is None else {"tied": image.spec["tied_embeddings"]}
    return {"digests": {name: found[name] for name in names}} | tied | {"configuration": config.to_dict()}


def state_of(entry: dict[str, Any], *, emit: bool = False) -> str:
    """CURRENT, or "stale: ..." with what has changed since. Where it is not known whether the Verilog has: stale too, or with `emit`
    the machine is emitted for it."""
    kept, names = entry.get("digests", {}), decisive(entry.get("what"))
    try:
        config = BuildConfig.from_dict(entry["configuration"])
        now: dict[str, str | None] = {"verilog": emitted(config) if emit else known(config)}
        if names != SYNTHESIS:
            layout = memory_map(config, tied=entry["tied"])
            now |= of_image(machine_program(config, layout), layout.descriptor_words(), layout)
    except ConfigError as error:
        return f"stale: its machine is none any more ({error})"
    now |= _of_models(names, entry.get("timing"), config.clock_hz)
    if changed := stale_by(kept, {name: now[name] for name in names if now[name] is not None}, entry["date"]):
        return changed
    if now["verilog"] is None:
        return f"stale: whether its Verilog changed since {entry['date']} is not known; `make digests` tells"
    return CURRENT


def stale_by(kept: dict[str, str], now: dict[str, Any], date: str, words: dict[str, str] = WORDS) -> str:
    """"stale: ..." with which of the digests were others on that date, in `words`; "" if none was."""
    changed = [words[name] for name, found in now.items() if found != kept.get(name)]
    both = " and " if changed[1:] else ""
    return f"stale: {', '.join(changed[:-1])}{both}{changed[-1]} changed since {date}" if changed else ""


def configuration_of(entry: dict[str, Any]) -> BuildConfig | None:
    """The machine that an entry was measured on; None if there is none like it any more."""
    try:
        return BuildConfig.from_dict(entry["configuration"])
    except ConfigError:
        return None


# Digests ---------------------------------------------------------------------------------------


def emitted(config: BuildConfig) -> str:
    """Digest of a machine's Verilog, which is emitted for it unless it is known what these sources make of the configuration."""
    kept = _kept(config)
    if not kept.is_file():
        found = verilog_digest(cached_verilog(config), config)
        write_atomically(kept.parent, {kept.name: found})
    return kept.read_text("utf-8")


def known(config: BuildConfig) -> str | None:
    """The same where nothing must be emitted for it: these sources have emitted the machine, here or for docs/results/digests.json."""
    kept = _kept(config)
    return kept.read_text("utf-8") if kept.is_file() else _table().get(f"{config.digest:08x}")


def _kept(config: BuildConfig) -> Path:
    return cache("digests") / syntax_digest() / f"{config.digest:08x}"


def listed() -> dict[str, Any]:
    """docs/results/digests.json: `sources` and what they make of machines (`verilog`, by the configuration's digest), and the same of whole
    boards (`boards`), each with its own `sources`."""
    return json.loads(DIGESTS.read_text("utf-8")) if DIGESTS.is_file() else {}


def _table() -> dict[str, str]:
    """Digest of the Verilog by digest of the configuration; empty when other sources made them."""
    data = listed()
    return data["verilog"] if data.get("sources") == syntax_digest() else {}


def of_image(program: Sequence[int], descriptors: Sequence[int], layout: MemoryMap) -> dict[str, str]:
    """Digests of what an image has besides weights."""
    regions = sorted((region.base, region.length, region.loaded) for region in layout.regions.values())
    return {"program": digest(np.asarray(program, "<u8").tobytes()), "descriptors": digest(np.asarray(descriptors, "<u8").tobytes()),
            "layout": digest(repr((regions, layout.embedding_base, layout.head_base)))}


def _of_models(names: Iterable[str], timing: str | None, clock_hz: int) -> dict[str, str]:
    found: dict[str, str] = {}
    if "reference" in names:
        found |= zip(("reference", "packing"), reference(), strict=True)
    if "delays" in names:
        found["delays"] = source_digest(ESTIMATE)
    if "memory" in names:
        found["memory"] = memory_digest(timing or "", clock_hz)
    return found


def memory_digest(timing: str, clock_hz: int) -> str:
    """Digest of the memory's model: its code, the harness around it, and the numbers of the preset called `timing` for a fabric at
    `clock_hz`; "" if there is none."""
    if timing not in dram.PRESETS:
        return ""
    sources = (plain((ROOT / "sim" / name).read_text("utf-8")) for name in ("dram.h", "harness.h", "harness.cpp"))
    return digest(*sources, repr(dram.preset(timing, clock_hz)))


# The reference ---------------------------------------------------------------------------------


def _no_tokenizer() -> NoReturn:
    raise AssertionError("a random model writes no text")


class _Random(Checkpoint):
    """A checkpoint of random weights, the same everywhere: integers of a generator that NumPy does not change, and their quotients."""

    embedding_name, final_norm_name, head_name = "embedding", "norm", "head"

    def __init__(self, shape: ModelShape, tied: bool) -> None:
        spec = ModelSpec(name="random", source="random", shape=shape, rms_eps=1e-5, rope_theta=1e4, tied_embeddings=tied)
        super().__init__(spec, {}, _no_tokenizer)

    def _numbers(self, name: str, low: int, high: int, shape: tuple[int, ...]) -> Any:
        return np.random.RandomState(list(name.encode())).randint(low, high + 1, shape)

    def ternary(self, layer: int, name: str) -> tuple[Any, float]:
        rows, inputs = matrix_shape(self.spec.shape, name)
        return self._numbers(f"{layer} {name}", -1, 1, (rows, inputs)).astype(np.int8), 8 / inputs

    def norm(self, layer: int, name: str) -> Any:
        return (self._numbers(f"{layer} {name}", 500, 2000, (norm_length(self.spec.shape, name),)) / 1000).astype(np.float32)

    def final_norm(self) -> Any:
        return (self._numbers("norm", 500, 2000, (self.spec.shape.hidden,)) / 1000).astype(np.float32)

    def blocks(self, name: str) -> Iterator[tuple[int, Any]]:
        yield 0, (self._numbers(name, -3000, 3000, (self.spec.shape.vocab, self.spec.shape.hidden)) / 1000).astype(np.float32)


def _models() -> Iterator[tuple[QuantisedModel, BuildConfig]]:
    """Both activations with and without sub-norms, heads shared and not, tied and not, with and without a short-list, numbers that
    are clamped; and a machine for each, of every packing."""
    common: dict[str, Any] = {"lanes": 2, "vector_lanes": 4, "attention_macs": 8}
    kinds: tuple[tuple[str, bool, int, bool, int, dict[str, Any]], ...] = (
        ("relu2", True, 1, True, 0, {"tables": 5, "mem_bytes": 16}),
        ("silu", True, 2, True, 0, {"tables": 6, "mem_bytes": 32, "packing": "index5", "attention_rows": 2}),
        ("silu", False, 2, False, 0, {"tables": 5, "mem_bytes": 16, "block_rows": 32, "shortlist": 16}),
        ("relu2", False, 1, False, 14, {"tables": 3, "mem_bytes": 8, "rows_per_cycle": 2, "groups": 2}),
    )
    for activation, sub_norms, kv_heads, tied, left, machine in kinds:
        shape = ModelShape(hidden=48, ffn=80, layers=2, heads=2, kv_heads=kv_heads, head_dim=24, vocab=150, context=48,
                           activation=activation, sub_norms=sub_norms)
        found = quantise(_Random(shape, tied))
        yield rescaled(found, Scaling(-left, (0, 0), (-left, 0))) if left else found, BuildConfig(shape=shape, **common | machine)


@contextmanager
def _watched() -> Iterator[list[bytes]]:
    """The results of all operations of firmware/integer.py, as they are asked for from outside it: what later rounding hides counts too."""
    made: list[bytes] = []
    within = False

    def watched(operation: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal within
            if within:
                return operation(*arguments, **named)
            within = True
            try:
                result = operation(*arguments, **named)
            finally:
                within = False
            made.extend(_numbers(result))
            return result

        return call

    operations = {name: found for name, found in vars(integer).items() if isfunction(found)}
    try:
        for name, operation in operations.items():
            setattr(integer, name, watched(operation))
        yield made
    finally:
        for name, operation in operations.items():
            setattr(integer, name, operation)


def _numbers(result: Any) -> Iterator[bytes]:
    if isinstance(result, tuple):
        for part in result:
            yield from _numbers(part)
    else:
        yield np.asarray(result, "<i8").tobytes()


@functools.cache
def reference() -> tuple[str, str]:
    """Digests of what the integer model makes of a few random models, greedily and sampled, operation by operation, and of the bytes of
    their images."""
    made: list[bytes] = []
    packed: list[bytes] = []
    for model, config in _models():
        prompt = np.random.RandomState(5).randint(0, config.shape.vocab, 20).tolist()
        choices = (GREEDY, sampling(temperature=1.0, seed=1), sampling(temperature=0.7, top_k=5, seed=2),
                   sampling(temperature=2.0, top_p=0.8, seed=3))
        with _watched() as results:
            one = IntegerModel.of(model, config)
            logits, scale = one.forward(prompt)
            for choice in choices:
                one.reset()
                made += _numbers((logits, *scale, one.generate(prompt, 4, choice, config.sampler_candidates)))
        made += results
        packed += [data.tobytes() for _, data, address in pack(model, config).sections if address is not None]
    return digest(*made), digest(*packed)


# All results -----------------------------------------------------------------------------------


def files(folder: Path) -> list[Path]:
    """Those of single machines below a folder laid out as RESULTS."""
    return [path for path in sorted(folder.glob("*/*.json")) if path.parent.name != BOARDS]


def entries() -> dict[str, dict[str, Any]]:
    """Every stored result by its place: a file below docs/results, or a number in one of several."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted([RESULTS / "equality.json", RESULTS / "random.json", *files(RESULTS)]):
        name = path.relative_to(RESULTS).as_posix()
        data = json.loads(path.read_text("utf-8")) if path.is_file() else {"entries": []}
        listed = {f"{name} {n}": entry for n, entry in enumerate(data["entries"], 1)} if "entries" in data else {name: data}
        found |= listed
    return found


def machines() -> dict[str, BuildConfig]:
    """Configurations with results, by digest, those that are emitted quickly first."""
    found = [config for entry in entries().values() if (config := configuration_of(entry))]
    found.sort(key=lambda config: (config.shape.hidden, config.groups * config.lanes * config.tables * config.rows_per_cycle))
    return {f"{config.digest:08x}": config for config in found}
