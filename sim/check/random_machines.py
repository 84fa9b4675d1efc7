"""Random models on random machines with random work: `make random`, or `python -m tritloom.sim.check.random_machines SEED ...`.

A seed decides everything: shape, weights, configuration, prompts, which texts run together, sampled, with drafts or with beginnings
that they share, what registers and memories hold before the first reset, and when a text is cut off by another reset.
The results file keeps what was run; tests/sim/test_results.py says when it holds no more.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from tritloom.firmware.config import BIASES, BuildConfig, ConfigError, ModelShape
from tritloom.firmware.image import Image
from tritloom.firmware.integer import GREEDY, Sampling
from tritloom.firmware.layout import memory_map
from tritloom.firmware.registers import REGISTER
from tritloom.gen.models import Checkpoint, open_checkpoint
from tritloom.gen.models.checkpoint import MATRICES
from tritloom.gen.models.spec import BIASED as BIASED_AS
from tritloom.gen.pack import pack, quantise
from tritloom.gen.quantised import QuantisedModel
from tritloom.gen.scaling import Scaling, rescaled
from tritloom.gen.verilog.generate import cached_verilog
from tritloom.host.backends.emulator import EmulatorBackend
from tritloom.host.backends.protocol import Backend, DeviceError
from tritloom.host.image import open_image, write_image
from tritloom.host.session import Session, sampling
from tritloom.sim.backends import SimBackend
from tritloom.sim.bench import stored
from tritloom.sim.check import synthetic
from tritloom.sim.check.verify import compare
from tritloom.sim.compile import default_build_dir
from tritloom.sim.dram import LINE_BYTES, PRESETS, MemoryTiming
from tritloom.sim.integer_model import IntegerModel
from tritloom.system.files import write_atomically

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results" / "random.json"
HEAD_DIMS = (96, 100, 128, 256)
"""One after the other; with small ones between, which leave room for more heads."""
SERIAL = 100
"""From this seed on machines have one arithmetic unit that is shared in time."""
GROUPED = 500
"""From this seed on models have scales by groups."""
BIASED = 600
"""From this seed on they have biases too."""
SEEDS = (*range(12), *range(SERIAL, SERIAL + 6), *range(GROUPED, GROUPED + 6), *range(BIASED, BIASED + 4))
"""What `make random` runs."""
LARGE = 131_072
"""A vocabulary so large that the head takes nearly all of the time: such a model is narrow, and writes little."""
ON_CHIP_MOST = 1 << 20
"""Bytes on chip, which the registers write four at a time."""
CONTEXT = 64
RESET_READS = 10_000
"""Reads of STATUS within which a reset ends."""
TIMINGS = ("ideal", "ddr", "kv260", "kv260-optimistic", "kv260-pessimistic")
"""Memories that are drawn."""
CONTROL, STATUS = REGISTER["CONTROL"], REGISTER["STATUS"]


@dataclass(frozen=True)
class Case:
    """`prompts` run alone, greedily, compared vector by vector; `texts` (arguments of Batch.add) run together. Texts of odd number
    end before their time: with the token in the middle of what they would become. `timing`: of the memory behind the AXI ports."""

    seed: int
    shape: ModelShape
    config: BuildConfig
    timing: MemoryTiming
    prompts: list[list[int]]
    texts: list[dict[str, Any]]


def _shape(rng: np.random.Generator, seed: int) -> ModelShape:
    pick = lambda *values: values[rng.integers(len(values))]  # noqa: E731
    head_dim = HEAD_DIMS[seed % 4] if seed % 3 else pick(8, 12, 24, 32)
    kv_heads, group = pick(1, 2) if head_dim > 64 else pick(1, 2, 3), pick(1, 2, 3)
    vocab = LARGE if seed % 6 == 5 and seed < SERIAL else int(rng.integers(40, 700))
    hidden = int(32 * rng.integers(1, 6))
    return ModelShape(hidden=hidden if vocab < LARGE else 32, ffn=int(16 * rng.integers(2, 14)), layers=int(rng.integers(1, 3)),
                      heads=kv_heads * group, kv_heads=kv_heads, head_dim=head_dim, vocab=vocab, context=CONTEXT,
                      activation=pick("relu2", "silu"), sub_norms=bool(rng.integers(2)))


GROUPED_KINDS = ((True, True), (True, False), (False, True), (False, False), (True, True), (True, True))
"""Whether query and key heads are normed and embedding and head ternary, one after the other."""
EXPONENTS = (3, 7, 0, 1)
"""Greatest exponents of groups of codes, one after the other."""
SPREAD = 8
"""Powers of two between scales of groups, beside those that lie between random ones."""


BIASED_MATRICES = (("q_proj", "k_proj", "v_proj"), MATRICES, ("o_proj", "down_proj"), ("k_proj", "up_proj", "down_proj"))
"""Those of which a model has biases, one after the other. The last one's checkpoint has one scale a matrix, the first one's heads no
norms."""


def _biased_shape(rng: np.random.Generator, seed: int) -> ModelShape:
    kind, shape = (seed - BIASED) % len(BIASED_MATRICES), _grouped_shape(rng, seed)
    named = {BIASED_AS[name] for name in BIASED_MATRICES[kind]}
    shape = replace(shape, biases=tuple(name for name in BIASES if name in named), head_norms=kind in (1, 2))
    return replace(shape, ternary_head=False) if kind == 3 else shape


def _grouped_shape(rng: np.random.Generator, seed: int) -> ModelShape:
    pick = lambda *values: values[rng.integers(len(values))]  # noqa: E731
    size, (head_norms, ternary_head) = pick(64, 128), GROUPED_KINDS[(seed - GROUPED) % len(GROUPED_KINDS)]
    heads, kv_heads, head_dim = 1, 1, 1
    while heads * head_dim % size:
        kv_heads, head_dim = pick(1, 2), pick(16, 32, 64, 96, 128)
        heads = kv_heads * pick(1, 2, 3, 4)
    return ModelShape(hidden=int(size * rng.integers(1, 3)), ffn=int(size * rng.integers(1, 4)), layers=int(rng.integers(1, 3)),
                      heads=heads, kv_heads=kv_heads, head_dim=head_dim, vocab=int(rng.integers(40, 700)), context=CONTEXT,
                      activation=pick("silu", "silu", "relu2"), sub_norms=False, group_size=size, head_norms=head_norms,
                      ternary_head=ternary_head)


def _config(rng: np.random.Generator, shape: ModelShape) -> BuildConfig:
    """The first configuration drawn that such a model can have."""
    pick = lambda *values: values[rng.integers(len(values))]  # noqa: E731
    for _ in range(10_000):
        lanes, groups = int(rng.integers(1, 5)), pick(1, 2)
        short = pick(0, 0, 16)
        rows = pick(2, 4, 8)
        memory = pick({"mem_bytes": pick(8, 16, 32), "mem_ports": pick(1, 2)}, {"mem_bytes": pick(8, 16, 32), "mem_ports": pick(1, 2)},
                      {"mem_bytes": pick(16, 128, 512), "memory": "onchip", "onchip_bytes": 512, "ultra_ram": pick(False, True)})
        try:
            config = BuildConfig(
                shape=shape, lanes=lanes, groups=groups, attention_lanes=int(rng.integers(0, lanes + 1)),
                block_rows=pick(0, rows, 2 * rows, 3 * rows, 64, 128), result_parts=pick(1, 2), tables=int(rng.integers(1, 14)),
                rows_per_cycle=rows, vector_lanes=pick(2, 4, 8), attention_macs=pick(4, 8, 16, 32) if shape.vocab < LARGE else 16,
                attention_rows=pick(1, 2, 4), table_form=pick("symmetric14", "full27", "addsub"), packing=pick("trit5", "index5"),
                sampler_candidates=8, program_words=1 << 14 if shape.group_size else 4096, weight_fifo_beats=pick(4, 16, 64, 128),
                read_fifo_beats=pick(4, 16, 64), write_fifo_beats=pick(32, 128), shortlist=short, sequences=1 if short else pick(1, 3, 4),
                result_turns=pick(1, 1, 2), **memory)
            if shape.group_size and (shape.ternary_head or short) and config.head_block_rows > config.longest_block:
                continue  # a block of a ternary head is a word of results at least
            size = memory_map(config, tied=False).total_bytes
            if config.memory == "axi":
                return config
            if size <= ON_CHIP_MOST:
                return replace(config, onchip_bytes=size)
        except ConfigError:
            continue
    raise ConfigError(f"no machine found for {shape}")


def _odd_rows(config: BuildConfig, **changes: Any) -> BuildConfig:
    """The same machine with `changes`, a row a cycle more than a power of two, and results that come in parts, as a KV260's has."""
    for tables in range(config.tables, 0, -1):
        try:
            return replace(config, tables=tables, rows_per_cycle=3, result_turns=1, result_parts=2, block_rows=0, vector_lanes=8,
                           attention_macs=16, attention_rows=2, mem_bytes=max(16, config.mem_bytes), **changes)
        except ConfigError:
            continue
    raise ConfigError(f"no machine of odd rows for {config.shape}")


def _serial_config(rng: np.random.Generator, shape: ModelShape) -> BuildConfig:
    """The same for a machine with one arithmetic unit that is shared in time."""
    pick = lambda *values: values[rng.integers(len(values))]  # noqa: E731
    for _ in range(10_000):
        mem_bytes = pick(4, 8, 16, 64)
        memory = pick({}, {"mem_ports": pick(1, min(2, mem_bytes // 4))}, {"memory": "onchip", "onchip_bytes": mem_bytes})
        rows = pick(1, 2, 4)
        try:
            config = BuildConfig(
                shape=shape, lanes=1, vector_lanes=1, block_rows=pick(0, rows, 3 * rows, 64), tables=int(rng.integers(1, 14)),
                rows_per_cycle=rows, attention_macs=pick(2, 4, 8), table_form=pick("symmetric14", "full27", "addsub"),
                packing=pick("trit5", "index5"), sampler_candidates=pick(4, 8), program_words=4096, weight_fifo_beats=pick(4, 16, 64),
                read_fifo_beats=pick(4, 16, 64), sequences=pick(1, 3), mem_bytes=mem_bytes, **memory)
            size = memory_map(config, tied=False).total_bytes
            if config.memory == "axi":
                return config
            if size <= ON_CHIP_MOST:
                return replace(config, onchip_bytes=size)
        except ConfigError:
            continue
    raise ConfigError(f"no machine found for {shape}")


def _timing(rng: np.random.Generator, port_bytes: int) -> MemoryTiming:
    """A preset, or a memory with waits of its own, often with only one burst outstanding."""
    presets = [timing for timing in (PRESETS[name] for name in TIMINGS) if not timing.dram or port_bytes <= LINE_BYTES]
    if rng.random() < 0.4:
        return presets[rng.integers(len(presets))]
    refresh = int(rng.integers(1, 40))
    return MemoryTiming(latency=int(rng.integers(1, 100)), jitter=int(rng.integers(0, 80)), refresh_cycles=refresh,
                        refresh_interval=refresh + int(rng.integers(20, 400)), outstanding=int(rng.choice((1, 1, 2, 16))))


def _shared(rng: np.random.Generator) -> int:
    """Tokens that a text begins with as others do: none, or so many that a chunk or two are the same."""
    return int(rng.choice((0, 17, 24, 34)))


SALT = 2017
"""One of those that give every kind of machine."""


def case(seed: int) -> Case:
    rng = np.random.default_rng([seed, SALT])
    shape = (_biased_shape if seed >= BIASED else _grouped_shape if seed >= GROUPED else _shape)(rng, seed)
    config = (_serial_config if SERIAL <= seed < GROUPED else _config)(rng, shape)
    if shape.group_size:
        config = replace(config, group_exponents=EXPONENTS[(seed - GROUPED) % len(EXPONENTS)])
    if shape.biases and config.memory == "axi":  # some units with UltraRAM, whose results come later; all heads through the matmul
        short = {} if shape.ternary_head else {"shortlist": 16, "sequences": 1}
        config = _odd_rows(config, ultra_ram=seed % 2 == 0, **short)

    def prompt(longest: int) -> list[int]:
        motif = rng.integers(3, shape.vocab, rng.integers(1, longest + 1)).tolist()
        return (motif * 2)[:longest] if rng.random() < 0.5 else motif

    prompts = [prompt(1), prompt(config.lanes + 1), prompt(30)]
    texts: list[dict[str, Any]] = []
    beginning = rng.integers(3, shape.vocab, 34).tolist()
    for index in range(4 if config.sequences > 1 else 2):
        choice = (GREEDY, sampling(temperature=1.0, seed=index), sampling(temperature=0.8, top_k=4, seed=index),
                  sampling(temperature=1.3, top_p=0.8, seed=index))[rng.integers(4)]
        drafts = 0 if config.shortlist or config.lanes == 1 else int(rng.integers(config.lanes))
        words = beginning[: _shared(rng)] + prompt(12) if config.sequences > 1 else prompt(12)
        count = int(rng.integers(2, 8)) if shape.vocab < LARGE else 2
        texts.append({"prompt": words, "max_new_tokens": count, "sampling": choice, "drafts": drafts})
    return Case(seed, shape, config, _timing(rng, config.mem_bytes // config.mem_ports), prompts, texts)


def together(device: Backend, image: Image, texts: list[dict[str, Any]]) -> list[list[int]]:
    """What each text becomes: joining as soon as there is room when the machine keeps several, else one after the other."""
    with Session(device, image) as session:
        if image.config.sequences == 1:
            results = []
            for text in texts:
                session.reset()
                results.append(list(session.generate(**text)))
            return results
        with session.batch() as batch:
            running = [batch.add(**text) for text in texts[:2]]
            for _ in batch:
                if len(running) < len(texts) and len(batch.requests) < image.config.sequences:
                    running.append(batch.add(**texts[len(running)]))
            return [text.tokens for text in running]


RESETS = ["CONTROL.RESET", "reset pin"]


def interrupt(device: SimBackend, image: Image, prompt: list[int], cycles: int, by: str) -> None:
    """Begin a text and, `cycles` after its first token, cut the machine off by one of RESETS."""
    with Session(device, image) as session:
        session.reset()
        text = session.generate(prompt, 8)
        next(text)
        device.machine.run(cycles, 0)
        if by == "reset pin":
            device.machine.reset()
        else:
            device.write("CONTROL", CONTROL["RESET"].mask)
            for _ in range(RESET_READS):
                if not STATUS["RESETTING"].get(device.read("STATUS")):
                    break
            else:
                raise DeviceError(f"the reset did not end within {RESET_READS} reads of STATUS")
        text.close()


def checkpoint(what: Case, folder: Path) -> Checkpoint:
    rng = np.random.default_rng([what.seed, 7])
    seed, tied = int(rng.integers(1 << 30)), bool(rng.integers(2))
    kind = (what.seed - BIASED) % len(BIASED_MATRICES)
    biases = synthetic.biases(what.shape, BIASED_MATRICES[kind], seed) if what.shape.biases else {}
    if biases and kind == 3:
        shape = replace(what.shape, group_size=0, biases=())
        synthetic.hugging_face(folder, shape, synthetic.weights(shape, seed), tied=tied, tensors=biases)
    elif what.shape.group_size:
        synthetic.unpacked(folder, what.shape, synthetic.grouped_weights(what.shape, seed, SPREAD), tied=tied, tensors=biases)
    else:
        synthetic.hugging_face(folder, what.shape, synthetic.weights(what.shape, seed), tied=tied)
    return open_checkpoint(folder, context=CONTEXT)


def binary_points(what: Case, model: QuantisedModel) -> QuantisedModel:
    """Of a third of the models so far to the left that numbers are clamped, which must be counted alike."""
    rng = np.random.default_rng([what.seed, 13])
    if rng.integers(3):
        return model
    residual, gates, scores = rng.integers(12, 25), rng.integers(0, 16, what.shape.layers), rng.integers(0, 14, what.shape.layers)
    return rescaled(model, Scaling(-int(residual), tuple((-gates).tolist()), tuple((-scores).tolist())))


def check(what: Case, rtl: bool, report: Callable[[str], None] = lambda text: None, made: dict[str, Any] | None = None) -> str | None:
    """None if all agree, else what does not; without `rtl` the emulator against the integer model. With it, `made` gets what the results
    file keeps of machine and image."""
    with tempfile.TemporaryDirectory() as name:
        model = checkpoint(what, Path(name) / "model")
        quantised = binary_points(what, quantise(model))
        packed, reference = pack(quantised, what.config), IntegerModel.of(quantised, what.config)
        write_image(Path(name) / "image", config=what.config, spec=packed.spec.to_dict(), sections=packed.sections)
        image = open_image(Path(name) / "image")

        def alone(prompt: list[int], count: int, choice: Sampling = GREEDY) -> list[int]:
            reference.reset()
            return reference.generate(prompt, count, choice, what.config.sampler_candidates)

        expected, texts = [], []
        for index, text in enumerate(what.texts):
            tokens = alone(text["prompt"], text["max_new_tokens"], text["sampling"])
            stop = [tokens[len(tokens) // 2]] if index % 2 else []
            texts.append(text | {"stop_ids": stop})
            expected.append(tokens[: tokens.index(stop[0]) + 1] if stop else tokens)
        software = EmulatorBackend(what.config, image.map.total_bytes)
        if together(software, image, texts) != expected:
            return "texts of the emulator"
        if not rtl:
            for prompt in what.prompts:
                with Session(software, image) as session:
                    session.reset()
                    if list(session.generate(prompt, 3)) != alone(prompt, 3):
                        return f"emulator after a prompt of {len(prompt)}"
            return None
        verilog = cached_verilog(what.config)
        backend = SimBackend.build(what.config, verilog, memory_bytes=packed.map.total_bytes, timing=what.timing, undefined=True,
                                   seed=what.seed, build_dir=default_build_dir())
        if made is not None:
            made |= stored.digests(None, what.config, image)
        try:
            for prompt in what.prompts:
                found = compare(backend, image, reference, prompt, 3)
                report(f"seed {what.seed}: prompt of {len(prompt)}: {'equal' if found.equal else found.first_difference()}")
                if not found.equal:
                    return f"prompt of {len(prompt)}: {found.first_difference()}"
            if together(backend, image, texts) != expected:
                return "texts of the RTL"
            moments = np.random.default_rng([what.seed, 23])
            for by, prompt in zip(RESETS, what.prompts, strict=False):
                interrupt(backend, image, what.prompts[-1], int(moments.integers(5000)), by)
                with Session(backend, image) as session:
                    session.reset()
                    if list(session.generate(prompt, 3)) != alone(prompt, 3):
                        return f"after a {by}: prompt of {len(prompt)}"
                report(f"seed {what.seed}: after a {by}: equal")
        except DeviceError as error:
            return str(error)
        finally:
            backend.close()
    return None


def described(what: Case) -> dict[str, Any]:
    """What a case is besides its machine, as the results file has it."""
    return {"timing": dataclasses.asdict(what.timing), "prompts": [len(prompt) for prompt in what.prompts], "texts": len(what.texts),
            "undefined": True, "resets": RESETS[: len(what.prompts)]}


def holds(entry: dict[str, Any], *, emit: bool = False) -> str:
    """stored.CURRENT, or why a seed's entry is not what would be measured today; `emit` as `stored.state_of` takes it."""
    what = case(entry["seed"])
    if stored.configuration_of(entry) != what.config or {name: entry.get(name) for name in described(what)} != described(what):
        return "stale: this seed gives another case today"
    return stored.state_of(entry, emit=emit)


def load() -> dict[str, Any]:
    if RESULTS.exists():
        return json.loads(RESULTS.read_text("utf-8"))
    return {"command": "make random", "kind": "rtl-simulated", "entries": []}


def main(arguments: list[str]) -> int:
    """Run the seeds (all that the code has made stale, without arguments) and keep the results; 1 if something differs."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    say = logging.getLogger(__name__).info
    failed = 0
    for seed in map(int, arguments) if arguments else SEEDS:
        data = load()
        kept = {e["seed"]: e for e in data["entries"]}
        if not arguments and seed in kept and kept[seed]["difference"] is None and holds(kept[seed], emit=True) == stored.CURRENT:
            continue
        what, made = case(seed), {}
        say(f"seed {seed}: {what.shape}")
        difference = check(what, rtl=True, report=say, made=made)
        say(f"seed {seed}: {'equal' if difference is None else difference}")
        failed += difference is not None
        kept[seed] = {"seed": seed, "difference": difference, **described(what), "date": datetime.now(timezone.utc).date().isoformat(),
                      "configuration": what.config.to_dict(), **made}
        write_atomically(RESULTS.parent, {RESULTS.name: json.dumps(data | {"entries": [kept[s] for s in sorted(kept)]}, indent=1) + "\n"})
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
