"""A bare Lattice ECP5-85F with everything in its block RAM: the check that the RTL is hardware.

Pins, SDRAM and a host link are those of boards that carry this device, such as boards/ulx3s.py.
"""

from tritloom.boards.board import Board

BOARD = Board(
    name="ecp5-85f",
    title="Lattice LFE5U-85F, on-chip memory only",
    family="ecp5",
    memory="onchip",
    mem_bytes=8,
    clock_hz=50_000_000,
    device="LFE5U-85F",
    package="CABGA381",
    speed="6",
    toolchain="ecp5",
    # 208 block RAMs of 16 Kibit plain data, 156 multipliers of 18x18 bits.
    resources={"lut": 83_640, "ff": 83_640, "bram": 208 * 16, "dsp": 156},
    parameters={"lanes": 1, "vector_lanes": 2},
)
