"""A folder for a KV260: Vivado makes the bitstream of it, and the board's Linux loads it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tritloom.boards.board import Board
from tritloom.firmware.config import BuildConfig, ConfigError, round_up
from tritloom.firmware.layout import MemoryMap
from tritloom.firmware.registers import ADDRESS_BITS, PAGE_BYTES
from tritloom.gen.fit.cost import board_resources
from tritloom.gen.fit.fit import CONTEXT_FOR_SPEED, Clock, at_clocks, needs, slowest_path, warnings
from tritloom.gen.kit.core import TOP, core_files, filled, generate_core
from tritloom.system import files

__all__ = ["BUFFER", "REGISTERS", "build_plan", "kit_files", "memory_plan", "stripe_bytes", "write_kit"]

Progress = Callable[..., None]
"""Called with (done, total, text)."""

DEVICE, PART, BOARD_PART = "XCK26", "xck26-sfvc784-2LV-c", "xilinx.com:kv260_som:part0"
REGISTERS = 0xA000_0000
"""Where the processing system sees the registers: the first address of M_AXI_HPM0_FPD."""
LOW, LOW_BYTES, HIGH, HIGH_BYTES = 0, 2 << 30, 0x8_0000_0000, 2 << 30
"""The board's DRAM as its ports address it."""
PORTS, WIDTHS = 4, (32, 64, 128)
"""S_AXI_HP0 to 3, and the bits that each may have."""
BUFFER = "tritloom"
"""Names of the buffers: this and the port's number."""
RESERVE = 64 << 20
"""What Linux's own drivers take of the contiguous memory."""


def stripe_bytes(layout: MemoryMap, config: BuildConfig) -> int:
    """Bytes of one memory port's stripe."""
    return round_up(-(-layout.total_bytes // config.mem_ports), PAGE_BYTES)


def memory_plan(config: BuildConfig, layout: MemoryMap, board: Board) -> str:
    """What the model takes of the board's memory, and what Linux must be told for that."""
    mib = 1 << 20
    cache = layout.regions["kv"].length
    stripe = stripe_bytes(layout, config)
    total = stripe * config.mem_ports
    cma = round_up(total + RESERVE, 4 * mib) // mib
    rows = [("weights, tables and embedding", layout.total_bytes - cache),
            (f"keys and values, {config.sequences} x {config.shape.context} positions", cache),
            (f"each of {config.mem_ports} stripes, a buffer of its own", stripe), ("all stripes", total),
            ("contiguous memory below 2 GiB, of which Linux needs a part", board.window_bytes)]
    width = max(len(name) for name, _ in rows)
    verdict = f"Linux needs cma={cma}M on its command line (docs/boards/kv260.md, step 3)."
    if cma * mib > board.window_bytes * 3 // 4:
        verdict += (" That leaves Linux less than a quarter of the lower 2 GiB: reserve the upper half of the memory for the stripes, "
                    "or take a smaller --context.")
    return "".join(f"{name:<{width}}  {size / mib:9,.1f} MiB\n" for name, size in rows) + "\n" + verdict + "\n"


def build_plan(config: BuildConfig, layout: MemoryMap, board: Board) -> str:
    """What is worth knowing of a machine before hours of synthesis: what it takes of the device, whether it may route, how fast it is at
    which clock, and what it takes of the board's memory."""
    cost = board_resources(config, board)
    found, clock = needs(config, layout, board, cost), Clock.of(config.clock_hz, slowest_path(board, config, cost["lut"]))
    rows = [f"{need}, {need.used / need.available:.0%}" for kind, need in found.items() if kind in board.resources and need.available]
    context = min(CONTEXT_FOR_SPEED, config.shape.context)
    speeds = [f"{each['hz'] / 1e6:5g} MHz  slack {each['slack_ns']:+.2f} ns  {each['decode_tokens_per_s']:8.4g} tokens/s  "
              f"first token after {each['ttft_s']:.3f} s"
              for each in at_clocks(config, cost["lut"], layout, board, context)]
    warned = [f"WARNING, {each}" for each in warnings(found, clock, board)] or ["No warning: it is likely to route at its clock."]
    return "\n".join([
        f"Device, projected by the cost model ({config.lanes} lanes, {config.vector_lanes} vector lanes):", *rows, "",
        f"Clock of this build: {config.clock_hz / 1e6:g} MHz. Slack is estimated from cells and an allowance for nets; speeds,",
        f"at {context} positions and after a prompt of {context}, are projected from cycles:", *speeds, "", *warned, "",
        "Memory:", memory_plan(config, layout, board)])


def kit_files(config: BuildConfig, layout: MemoryMap, board: Board) -> dict[str, str | bytes]:
    """The files of a kit but its Verilog, by path."""
    if board.device != DEVICE:
        raise ConfigError(f"board {board.name} has a {board.device or 'device without a name'}: the kit is written for a KV260's {DEVICE}; "
                          "`tritloom generate` writes an IP core for any board")
    width = 8 * config.mem_bytes // config.mem_ports
    if config.memory != "axi" or config.mem_ports > PORTS or width not in WIDTHS:
        raise ConfigError(f"a KV260 has {PORTS} memory ports of 32, 64 or 128 bits, not {config.mem_ports} of {width}: "
                          "leave mem_ports and mem_bytes to the board")
    stripe = stripe_bytes(layout, config)
    buffers = "".join(f"""
\t{BUFFER}{port}: {BUFFER}-buffer{port} {{
\t\tcompatible = "ikwzm,u-dma-buf";
\t\tdevice-name = "{BUFFER}{port}";
\t\tsize = <{stripe:#x}>;
\t\tsync-mode = <1>; /* cached; the driver of the machine synchronises */
\t\tsync-direction = <1>;
\t}};
""" for port in range(config.mem_ports))
    afi = {128: 0, 64: 1, 32: 2}[width]
    values = {
        "name": BUFFER, "top": TOP, "digest": f"{config.digest:08x}", "part": PART, "board_part": BOARD_PART, "ports": config.mem_ports,
        "data_width": width, "clock_hz": config.clock_hz, "clock_mhz": f"{config.clock_hz / 1e6:g}", "registers": f"{REGISTERS:#x}",
        "registers_hex": f"{REGISTERS:x}", "registers_size": f"{1 << ADDRESS_BITS:#x}", "registers_bytes": f"{(1 << ADDRESS_BITS) >> 10}K",
        "low": f"{LOW:#x}", "low_bytes": f"{LOW_BYTES >> 30}G", "high": f"{HIGH:#x}", "high_bytes": f"{HIGH_BYTES >> 30}G",
        "stripes": buffers,
        "afi": ", ".join([*(f"<{register} {afi if 4 <= register < 4 + 2 * config.mem_ports else 0}>" for register in range(14)),
                          "<14 0x0>", "<15 0x0>"]),
    }  # fmt: skip
    core = core_files(config)
    return {
        **{name: core[name] for name in ("registers.h", "registers.json", "config.json")},
        "plan.txt": build_plan(config, layout, board),
        "vivado/build.tcl": filled("build.tcl", values),
        f"kria/{BUFFER}.dtso": filled("overlay.dtso", values),
        **{f"kria/{name}": filled(name, values) for name in ("shell.json", "install.sh", "remove.sh")},
    }


def write_kit(config: BuildConfig, layout: MemoryMap, board: Board, out_dir: str | Path, progress: Progress | None = None) -> list[Path]:
    """Write the kit into `out_dir`; nothing if it cannot be made."""
    report = progress or (lambda *_: None)
    others = kit_files(config, layout, board)
    report(0.0, 1.0, "Verilog")
    paths: list[Path] = []
    machine: dict[str, str | bytes] = {f"{TOP}.v": generate_core(config)}
    report(0.9, 1.0, "kit")
    folders: dict[Path, dict[str, str | bytes]] = {}
    for name, text in (machine | others).items():
        path = Path(out_dir) / name
        folders.setdefault(path.parent, {})[path.name] = text
    for folder, contents in folders.items():
        paths += files.write_atomically(folder, contents)
    for path in paths:
        if path.suffix == ".sh":
            path.chmod(0o755)
    report(1.0, 1.0, "written")
    return paths
