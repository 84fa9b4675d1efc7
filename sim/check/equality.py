"""The long equality run: several machines, two models, prompts of awkward lengths, every traced vector compared.

`python -m tritloom.sim.check.equality` (make equality) writes docs/results/equality.json, which holds one entry per model
and machine, with digests of what was compared (sim/bench/stored.py); entries that still hold are kept, so a run can be
resumed. tests/sim/test_results.py fails when one holds no more.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
import time
from collections.abc import Callable
from copy import copy
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from filelock import FileLock

from tritloom.boards.board import load as load_board
from tritloom.firmware.config import BuildConfig
from tritloom.gen.fit.fit import fit
from tritloom.gen.models import Checkpoint, open_checkpoint
from tritloom.gen.models.checkpoint import Grouped
from tritloom.gen.pack import pack, quantise
from tritloom.gen.verilog.generate import cached_verilog
from tritloom.host.image import open_image, write_image
from tritloom.host.tokenizer import Tokenizer
from tritloom.sim.backends import SimBackend
from tritloom.sim.bench import stored
from tritloom.sim.check.verify import compare
from tritloom.sim.integer_model import IntegerModel
from tritloom.system.files import cache, scratch, write_atomically

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "results" / "equality.json"
MODELS = ("stories-1m", "stories-4m")
ON_CHIP = (("stories-260k", "ecp5-85f"), ("stories-1m", "kv260-onchip"))
"""Models and boards of two more runs: everything in on-chip memory, the first the very machine that the ECP5 build places."""
TOKENS = 64
LONG_PROMPT = 100
LOCK_S = 60
"""Another process holds the lock for as long as it takes to write a file; who waits longer raises `filelock.Timeout`."""

MACHINES: dict[str, dict[str, Any]] = {
    "sim": dict(lanes=2, tables=13, rows_per_cycle=4, vector_lanes=8, attention_macs=32, mem_bytes=32),
    "two ports": dict(lanes=4, tables=25, rows_per_cycle=4, vector_lanes=4, attention_macs=16, attention_rows=2, mem_bytes=64,
                      mem_ports=2, table_form="full27", packing="index5"),
    "two groups": dict(lanes=3, groups=2, attention_lanes=2, tables=13, rows_per_cycle=4, vector_lanes=8, attention_macs=16, mem_bytes=32,
                       block_rows=256, result_parts=2, result_turns=2),
    "narrow": dict(lanes=1, tables=7, rows_per_cycle=2, vector_lanes=16, attention_macs=16, mem_bytes=16, table_form="addsub"),
    "many rows": dict(lanes=3, tables=3, rows_per_cycle=16, vector_lanes=2, attention_macs=8, mem_bytes=32),
    "short-list": dict(lanes=2, tables=6, rows_per_cycle=8, vector_lanes=4, attention_macs=16, attention_rows=2, mem_bytes=32, mem_ports=2,
                       shortlist=64),
}
"""What differs from BuildConfig's defaults."""
GROUPED_MODEL = "stories-4m-g128"
GROUPED_MACHINES: dict[str, dict[str, Any]] = {
    "halves of groups": dict(lanes=2, tables=22, rows_per_cycle=4, vector_lanes=8, attention_macs=32, mem_bytes=64, mem_ports=2),
    "whole groups": dict(lanes=1, tables=43, rows_per_cycle=2, vector_lanes=16, attention_macs=32, mem_bytes=64, table_form="addsub",
                         group_exponents=7),
    "five rows": dict(lanes=3, groups=2, attention_lanes=2, tables=22, rows_per_cycle=5, vector_lanes=8, attention_macs=64, mem_bytes=64,
                      mem_ports=4, block_rows=256, result_parts=2, ultra_ram=True, program_words=1024, group_exponents=3),
    "groups on the chip": dict(lanes=2, tables=22, rows_per_cycle=2, vector_lanes=8, attention_macs=32, mem_bytes=32, memory="onchip",
                               onchip_bytes=5 << 19, group_exponents=1),
    "groups of 64": dict(lanes=2, tables=6, rows_per_cycle=3, vector_lanes=4, attention_macs=8, mem_bytes=16, table_form="full27"),
}
"""The same of machines for GROUPED_MODEL."""
HALVED = "groups of 64"
"""The machine that takes the model's groups in halves, each with the scale of the whole."""


def checkpoint_of(model: str, name: str) -> Checkpoint:
    """A model, as the machine called `name` takes it."""
    checkpoint = open_checkpoint(ROOT / "models" / model)
    return _halved(checkpoint) if name == HALVED else checkpoint


def _halved(checkpoint: Checkpoint) -> Checkpoint:
    """The same model by groups half as large."""
    other, spec = copy(checkpoint), checkpoint.spec
    shape = dataclasses.replace(spec.shape, group_size=spec.shape.group_size // 2)

    def halves(groups: Grouped) -> Grouped:
        return Grouped(groups.codes, groups.scales.repeat(2, -1))

    other.spec = dataclasses.replace(spec, shape=shape)
    other.grouped = lambda layer, name: halves(checkpoint.grouped(layer, name))  # type: ignore[method-assign]
    other.grouped_blocks = lambda name: ((first, halves(rows)) for first, rows in checkpoint.grouped_blocks(name))  # type: ignore[method-assign]
    return other


def machine(checkpoint: Checkpoint, name: str) -> BuildConfig:
    """The configuration of the machine called `name` for a model."""
    if name in MACHINES or name in GROUPED_MACHINES:
        return BuildConfig(shape=checkpoint.spec.shape, **(MACHINES | GROUPED_MACHINES)[name])
    return fit(checkpoint.spec, name, lanes=load_board(name).parameters["lanes"]).config


def pairs() -> list[tuple[str, str]]:
    """Every (model, machine) that is run."""
    return [*((model, name) for model in MODELS for name in MACHINES), *ON_CHIP, *((GROUPED_MODEL, name) for name in GROUPED_MACHINES)]


def prompts(checkpoint: Checkpoint, config: BuildConfig) -> list[list[int]]:
    """The first tokens of the validation stories, `prompt_lengths` of them."""
    text = (ROOT / "models" / "validation.txt").read_text("utf-8")[:2000]
    ids = Tokenizer.from_file(checkpoint.tokenizer, checkpoint.spec.bos_id).encode(text)
    return [ids[:n] for n in prompt_lengths(config)]


def prompt_lengths(config: BuildConfig) -> list[int]:
    """1, 2, P, P+1, a whole pass (of both groups) and one token more, and 100 tokens, without duplicates."""
    whole = config.groups * config.lanes
    return sorted({1, 2, config.lanes, config.lanes + 1, whole, whole + 1, LONG_PROMPT})


def measure(model: str, name: str, report: Callable[[str], None]) -> dict[str, Any]:
    """Run one model on one machine; the entry of the results file."""
    checkpoint = checkpoint_of(model, name)
    config = machine(checkpoint, name)
    started = time.monotonic()
    verilog = cached_verilog(config)
    report(f"{model}, {name}: Verilog after {time.monotonic() - started:.0f} s")
    packed = pack(checkpoint, config)
    reference = IntegerModel.of(quantise(checkpoint), config)
    runs = []
    with scratch(cache("scratch")) as folder:
        path = folder / "image"
        write_image(path, config=config, spec=packed.spec.to_dict(), sections=packed.sections)
        backend = SimBackend.build(config, verilog, memory_bytes=packed.map.total_bytes, timing="ddr")
        report(f"{model}, {name}: compiled after {time.monotonic() - started:.0f} s")
        image = open_image(path)
        made = stored.digests(None, config, image)
        try:
            for prompt in prompts(checkpoint, config):
                found = compare(backend, image, reference, prompt, TOKENS)
                runs.append({"prompt_tokens": len(prompt), "generated_tokens": found.compared_tokens, "equal": found.equal,
                             "first_difference": found.first_difference()})
                report(f"{model}, {name}: prompt of {len(prompt)}: {'equal' if found.equal else found.first_difference()} "
                       f"after {time.monotonic() - started:.0f} s")
        finally:
            backend.close()
    return {"model": model, "machine": name, "runs": runs, "equal": all(run["equal"] for run in runs),
            "seconds": round(time.monotonic() - started), "date": datetime.now(timezone.utc).date().isoformat()} | made


def holds(entry: dict[str, Any], *, emit: bool = False) -> str:
    """stored.CURRENT, or why an entry is not what would be measured today; `emit` as `stored.state_of` takes it."""
    config = machine(checkpoint_of(entry["model"], entry["machine"]), entry["machine"])
    if stored.configuration_of(entry) != config:
        return "stale: the machine of this name is another one today"
    if [run["prompt_tokens"] for run in entry["runs"]] != prompt_lengths(config):
        return "stale: prompts of other lengths are run today"
    return stored.state_of(entry, emit=emit)


def load(path: Path = RESULTS) -> dict[str, Any]:
    return json.loads(path.read_text("utf-8")) if path.is_file() else {"command": "make equality", "kind": "rtl-simulated", "entries": []}


def store(entry: dict[str, Any], path: Path = RESULTS) -> None:
    """Replace the entry of the same model and machine, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock"), timeout=LOCK_S):
        results = load(path)
        key = (entry["model"], entry["machine"])
        kept = [e for e in results["entries"] if (e["model"], e["machine"]) != key]
        results["entries"] = sorted([*kept, entry], key=lambda e: (e["model"], e["machine"]))
        write_atomically(path.parent, {path.name: json.dumps(results, indent=1) + "\n"})


def main(arguments: list[str] | None = None) -> int:
    """Run what is not yet in the results file, or holds no more; arguments choose models, machines or `model/machine` by name."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    wanted = sys.argv[1:] if arguments is None else arguments
    failed = False
    for model, name in pairs():
        if wanted and not {model, name, f"{model}/{name}"} & set(wanted):
            continue
        entry = next((e for e in load()["entries"] if (e["model"], e["machine"]) == (model, name)), None)
        if entry is None or holds(entry, emit=True) != stored.CURRENT:
            entry = measure(model, name, logging.getLogger(__name__).info)
        store(entry)
        failed |= not entry["equal"]
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
