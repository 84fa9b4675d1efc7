"""tritloom boards: the boards there are, by the names that --board takes."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from tritloom.host.commands.common import JsonOption, columns, size
from tritloom.host.console import Console

if TYPE_CHECKING:
    from tritloom.boards.board import Board

REACH = {"verilator": "simulated here", "ecp5": "bitstream, with the open tools", "gowin": "bitstream, with the open tools",
         "vivado": "kit for Vivado and Linux", "verilog": "Verilog, for the vendor's tool"}
"""How far each toolchain comes."""


def command(as_json: JsonOption = False) -> None:
    """List boards: device, memory, clock, and how far the tools come."""
    from tritloom.boards.board import load, names

    boards = [load(name) for name in names()]
    heading = ["--board", "clock", "what it is", "memory", "how far the tools come"]
    rows = [[board.name, f"{board.clock_hz / 1e6:g} MHz", board.title, memory(board), REACH[board.toolchain]] for board in boards]
    data = [dataclasses.asdict(board) | {"reach": REACH[board.toolchain]} for board in boards]
    Console(json=as_json).result(data, columns([heading, *rows]))


def memory(board: Board) -> str:
    """What a board's memory brings, and how much of it there is."""
    if board.memory == "onchip":
        return f"on the chip, {board.mem_bytes} bytes a cycle"
    if board.wiring and (chip := board.wiring.sdram):
        return f"{chip.KIND}, {chip.TRANSFERS * chip.width // 8} bytes a cycle, {size(board.window_bytes)}"
    text = f"{board.mem_bytes} bytes a cycle, {board.mem_ports} port{'s' if board.mem_ports > 1 else ''}"
    return f"{text}, {size(board.window_bytes)} of {size(board.dram_bytes)}" if board.dram_bytes else text
