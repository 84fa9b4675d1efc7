"""Machines that several test files build."""

import hashlib
import json
from pathlib import Path
from typing import Any

from tritloom.firmware.config import BuildConfig, ModelShape

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "models" / "stories-260k"

TINY = BuildConfig(
    shape=ModelShape(hidden=32, ffn=64, layers=2, heads=2, kv_heads=1, head_dim=16, vocab=64, context=64, activation="relu2",
                     sub_norms=True),
    lanes=1, tables=2, rows_per_cycle=2, vector_lanes=4, attention_macs=4, mem_bytes=4, weight_fifo_beats=16, sampler_candidates=4)
"""A machine of every unit, as small as can be."""
SMALL: dict[str, Any] = dict(tables=5, rows_per_cycle=4, vector_lanes=8, attention_macs=16, mem_bytes=16, mem_ports=2,
                             weight_fifo_beats=64, sampler_candidates=8)
"""Fields of a machine that runs `MODEL` at a good pace."""


def simulated(checkpoint, config, folder, **memory):
    """The image of a model for a machine, written to `folder`, and the machine's simulation, which is compiled once for all tests;
    `memory`: timing and seed, as `SimBackend.build` takes them."""
    from filelock import FileLock

    from tritloom.gen.pack import pack
    from tritloom.gen.verilog.generate import cached_verilog
    from tritloom.host.image import open_image, write_image
    from tritloom.sim.backends import SimBackend

    packed = pack(checkpoint, config)
    path = write_image(folder / "image", config=config, spec=checkpoint.spec.to_dict(), sections=packed.sections)
    build = ROOT / "build" / "verilated"
    build.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256(json.dumps(config.to_dict(), sort_keys=True).encode()).hexdigest()[:12]
    with FileLock(build / f"{name}.lock", timeout=600):  # else each process would compile it
        backend = SimBackend.build(config, cached_verilog(config, ROOT / "build" / "verilog"), memory_bytes=packed.map.total_bytes,
                                   build_dir=build, **memory)
    return open_image(path), backend
