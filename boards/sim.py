"""No board: the RTL in Verilator, with a modelled DDR4 memory of 32 bytes per cycle."""

from tritloom.boards.board import Board

BOARD = Board(
    name="sim",
    title="Verilated RTL, modelled DDR4",
    family="xcup",
    memory="axi",
    mem_bytes=32,
    clock_hz=250_000_000,
    timing="ddr",
    toolchain="verilator",
    # Two lanes simulate twice as fast as four.
    parameters={"lanes": 2},
)
