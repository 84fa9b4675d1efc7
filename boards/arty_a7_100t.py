"""Digilent Arty A7-100T: what a machine takes of its Artix-7, and how fast its DDR3 lets it be. Vivado builds it: no pins are described."""

from tritloom.boards.board import Board

BOARD = Board(
    name="arty-a7-100t",
    title="Digilent Arty A7-100T (XC7A100T)",
    family="xc7",
    memory="axi",
    # 16 bits of DDR3-667: the vendor's controller gives 128 bits a cycle of its user clock, an eighth of the data rate.
    mem_bytes=16,
    clock_hz=83_000_000,
    device="XC7A100T",
    package="CSG324",
    speed="1",
    toolchain="verilog",
    # 135 block RAMs of 36 Kibit.
    resources={"lut": 63_400, "ff": 126_800, "bram": 135 * 36, "dsp": 240},
    parameters={"lanes": 2},
    dram_bytes=256 << 20,
)
