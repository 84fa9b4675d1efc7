"""DDR3 memories: a core of LiteDRAM for a board's chip, and what initialises it (rtl/memory/litedram.py)."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from tritloom.boards.board import Board, BoardError
from tritloom.boards.sdram import DdrChip
from tritloom.firmware.errors import TritloomError
from tritloom.gen.tools.litedram_core import MODULE
from tritloom.rtl.memory.parameters import Levelling, LiteDramParameters, Write
from tritloom.system import files, processes

__all__ = ["MEM_BYTES", "Core", "LiteDramError", "core_of"]

PHYS = {"ecp5": "ECP5DDRPHY"}
"""LiteDRAM's way to the pins, by family."""
MEM_BYTES = {16: 16}
"""Bytes of a beat at the core's port, by the chip's data pins: one burst of eight."""
INIT_HZ = 25e6
"""Of the clock that the core's delay-locked loop is set up with."""
LEAST_WAIT = 512
"""Cycles after a command: LiteDRAM counts waits in turns of a processor's loop, which takes several, so that some are too short by cycles.
DDR3's own are 512 of its clocks at most."""
TIMEOUT_S = 300
CONTROL = {"SEL": 1, "CKE": 2, "ODT": 4, "RESET_N": 8}
COMMAND = {"CS": 1, "WE": 2, "CAS": 4, "RAS": 8}
"""Bits of LiteDRAM's registers `sdram_dfii_control` and `sdram_dfii_pi0_command`."""


class LiteDramError(TritloomError):
    """LiteDRAM did not make a core; the message says why, or what to install."""


@dataclass(frozen=True)
class Core:
    """`verilog`: module `MODULE` and all that it needs; `ports`: its ports and their widths; `start`: what brings it up."""

    verilog: str
    ports: dict[str, int]
    start: LiteDramParameters


def core_of(board: Board, clock_hz: int, *, simulated: bool = False) -> Core:
    """The core for the chip that `board` wires, whose machine runs at `clock_hz`. `simulated`: LiteDRAM's model in place of the pins and of
    all behind them. It is kept, by what it is made from. Raises `BoardError` for a board that has none, `LiteDramError`."""
    wiring = board.wiring
    if wiring is None or not isinstance(wiring.sdram, DdrChip):
        raise BoardError(f"board {board.name} wires no DDR3 memory")
    if board.family not in PHYS:
        raise BoardError(f"board {board.name}: DDR3 is reached on {', '.join(PHYS)}, not on {board.family}")
    chip = wiring.sdram
    settings = {
        "cpu": None, "device": f"{board.device}-{board.speed}", "memtype": "DDR3", "sdram_module": chip.name,
        "sdram_module_nb": chip.width // 8, "sdram_rank_nb": 1, "sdram_phy": PHYS[board.family],
        "input_clk_freq": float(wiring.oscillator_hz), "sys_clk_freq": float(clock_hz), "init_clk_freq": INIT_HZ, "cmd_buffer_depth": 16,
        "csr_data_width": 32, "user_ports": {"0": {"type": "axi", "id_width": 1, "block_until_ready": False}}, "simulated": simulated,
    }  # fmt: skip
    made = _made(settings)
    start = LiteDramParameters(mem_bytes=MEM_BYTES[chip.width], writes=tuple(_writes(made)), levelling=_levelling(made))
    verilog = re.sub(r"^( +)input( +wire .*\bddram_dqs?(?:_p)?,)$", r"\1inout\2", made["verilog"], flags=re.M)  # LiteX leaves that open
    return Core(verilog, _ports(verilog), start)


def _made(settings: dict[str, Any]) -> dict[str, Any]:
    """What gen/tools/litedram_core.py makes of settings, once."""
    try:
        made_by = [f"{name} {version(name)}" for name in ("litex", "litedram", "migen", "liteeth", "litescope")]
    except PackageNotFoundError as error:
        raise LiteDramError(f"the package {error.name} is missing, which makes memory controllers for DDR3: run `make setup` or "
                            "`pip install 'tritloom[build]'`") from None
    text = json.dumps(settings, sort_keys=True)
    place = files.cache("verilog") / f"litedram-{hashlib.sha256(chr(0).join([text, *made_by]).encode()).hexdigest()[:24]}.json"
    kept = files.kept(place)
    if kept is None:
        command = [sys.executable, "-m", "tritloom.gen.tools.litedram_core"]
        try:
            done = processes.call(command, timeout_s=TIMEOUT_S, input=text, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        except subprocess.TimeoutExpired:
            raise LiteDramError(f"LiteDRAM did not make a core within {TIMEOUT_S} s") from None
        if done.returncode:
            raise LiteDramError(f"LiteDRAM made no core: {(done.stderr.strip().splitlines() or ['no reason given'])[-1][:300]}")
        kept = done.stdout.encode()
        files.keep(place, kept)
    return json.loads(kept)


def _bits(text: str) -> tuple[bool, int]:
    """Whether a step of the sequence is one of the control register, and its bits: `DFII_CONTROL_CKE|DFII_CONTROL_ODT`."""
    names = text.split("|")
    controls = names[0].startswith("DFII_CONTROL_")
    known = CONTROL if controls else COMMAND
    return controls, sum(known[name.removeprefix("DFII_CONTROL_" if controls else "DFII_COMMAND_")] for name in names)


def _writes(made: dict[str, Any]) -> Iterator[Write]:
    """The memory's initialisation by the registers for software, then the controller's start."""
    at = made["registers"]
    for address, bank, text, loops in made["sequence"]:
        controls, bits = _bits(text)
        yield Write(address=at["sdram_dfii_pi0_address"], value=address)
        yield Write(address=at["sdram_dfii_pi0_baddress"], value=bank)
        wait = max(loops, LEAST_WAIT)
        if controls:
            yield Write(address=at["sdram_dfii_control"], value=bits, cycles=wait)
        else:
            yield Write(address=at["sdram_dfii_pi0_command"], value=bits)
            yield Write(address=at["sdram_dfii_pi0_command_issue"], value=1, cycles=wait)
    yield Write(address=at["sdram_dfii_control"], value=CONTROL["SEL"], cycles=LEAST_WAIT)


def _levelling(made: dict[str, Any]) -> Levelling | None:
    at, reads = made["registers"], made["reads"]
    if reads is None or "ddrphy_dly_sel" not in at:
        return None
    return Levelling(select=at["ddrphy_dly_sel"], delay_reset=at["ddrphy_rdly_dq_rst"], delay=at["ddrphy_rdly_dq_inc"],
                     slip_reset=at["ddrphy_rdly_dq_bitslip_rst"], slip=at["ddrphy_rdly_dq_bitslip"], **reads)


def _ports(verilog: str) -> dict[str, int]:
    """Names and widths of the core's ports."""
    head = verilog[verilog.index(f"module {MODULE} ("):]
    found = re.findall(r"^ +(?:input|output|inout) +(?:wire|reg) +(?:\[(\d+):0\])? *(\w+)", head[:head.index(");")], re.M)
    return {name: int(high or 0) + 1 for high, name in found}
