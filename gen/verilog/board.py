"""Verilog of a whole board: the machine, its memory controller and its link, and what stands between them and the pins."""

from __future__ import annotations

from dataclasses import dataclass

from tritloom.boards.board import Board, BoardError
from tritloom.boards.sdram import DdrChip, SdramChip
from tritloom.firmware.config import BuildConfig, ConfigError
from tritloom.gen.tools import litedram
from tritloom.gen.verilog import pads
from tritloom.gen.verilog.ddr3 import ddr3_top
from tritloom.rtl.memory.parameters import SdramParameters

__all__ = ["BoardVerilog", "board_verilog", "sdram_of"]


FAMILIES = {"ecp5": (pads.ecp5_top, pads.ecp5_pins), "gowin": (pads.gowin_top, pads.gowin_pins)}
"""Devices whose pads can be written: what writes the outermost module, and where its pins are."""


@dataclass(frozen=True)
class BoardVerilog:
    """`machine`: module `top`; `pins`: module `board` around it; `constraints`: where the pins are, for the tools that place them;
    `others`: modules that the outermost one has besides."""

    machine: str
    pins: str
    constraints: str
    others: str = ""

    @property
    def text(self) -> str:
        """All modules."""
        return self.machine + self.pins + self.others


def sdram_of(config: BuildConfig, board: Board) -> SdramParameters | None:
    """What the board's memory controller is built from; None for a machine whose memory is on the chip."""
    wiring = board.wiring if config.memory == "axi" else None
    if wiring is None or not isinstance(wiring.sdram, SdramChip):
        return None
    masked = "dqm" in wiring.sdram_pins
    if not (masked or config.writes_whole_beats):
        raise ConfigError(f"board {board.name} does not wire its SDRAM's DQM, so that memory is written in whole words: it takes "
                          f"mem_bytes 4 (not {config.mem_bytes}) and a head_dim that is a multiple of 4 (not {config.shape.head_dim})")
    return SdramParameters.of(wiring.sdram, config.clock_hz, mem_bytes=config.mem_bytes, pad_latency=pads.PAD_LATENCY, masked=masked)


def board_verilog(config: BuildConfig, board: Board, *, simulated: bool = False) -> BoardVerilog:
    """The Verilog of `config` on `board`. `simulated`: where a core for DDR3 is another one then, that one. Raises `BoardError` if the
    board does not say how it is wired, or its clock or its family's pads cannot be made, and `LiteDramError`."""
    from tritloom.gen.verilog import emit
    from tritloom.gen.verilog.generate import header
    from tritloom.rtl.board import BoardTop
    from tritloom.rtl.link.parameters import LinkParameters

    if board.wiring is None:
        raise BoardError(f"board {board.name} says nothing of its pins: its file needs `wiring`")
    if board.family not in FAMILIES:
        raise BoardError(f"board {board.name}: gen/verilog/pads.py has no pads of family {board.family} yet, only of {', '.join(FAMILIES)}")
    if config.mem_ports != 1:
        raise ConfigError(f"board {board.name} has one memory, not {config.mem_ports} ports: leave mem_ports at 1")
    link = LinkParameters(clock_hz=config.clock_hz, baud=board.wiring.baud)
    write_top, write_pins = FAMILIES[board.family]
    constraints, others = write_pins(board), ""  # before what takes long
    if isinstance(board.wiring.sdram, DdrChip):
        core = litedram.core_of(board, config.clock_hz, simulated=simulated)
        memory, pins, others = core.start, ddr3_top(board, core), core.verilog
        if config.mem_bytes != memory.mem_bytes:
            raise ConfigError(f"board {board.name}: a beat of its memory has {memory.mem_bytes} bytes: leave mem_bytes at that")
    else:
        memory, pins = sdram_of(config, board), write_top(board, config.clock_hz)
    return BoardVerilog(header(config) + emit.to_verilog(BoardTop(config, link=link, sdram=memory), "top"), pins, constraints, others)
