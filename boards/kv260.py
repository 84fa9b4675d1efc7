"""AMD Kria KV260: Zynq UltraScale+ XCK26, four 128-bit ports to DDR4. A kit for Vivado and the board's Linux."""

from tritloom.boards.board import Board

BOARD = Board(
    name="kv260",
    title="AMD Kria KV260 (XCK26)",
    family="xcup",
    memory="axi",
    mem_bytes=64,
    mem_ports=4,
    clock_hz=250_000_000,
    timing="kv260",
    device="XCK26",
    toolchain="vivado",
    # 144 block RAMs of 36 Kibit and 64 UltraRAMs of 288 Kibit.
    resources={"lut": 117_120, "ff": 234_240, "bram": 144 * 36, "uram": 64 * 288, "dsp": 1248},
    # Ports reach all of it, the upper 2 GiB from 0x8_0000_0000 on; but Linux gives contiguous memory from the lower 2 GiB, whose last MiB
    # is the platform firmware's, and needs a part of the rest.
    # 200 and 250 MHz are known from a board (bitnet-kv260's pages); 150 is a tenth of an IOPLL at 1500.
    clocks=(150_000_000, 200_000_000),
    dram_bytes=4 << 30,
    window=(0, 0x7FF0_0000),
    # A data read takes some 115 cycles from request to beat. The results of 16 lanes are 36 UltraRAMs wide, a bank; two parts spare one.
    # While weights stream, DRAM takes few writes: keys and values wait in a block RAM's depth.
    parameters={"lanes": 16, "groups": 2, "attention_lanes": 4, "block_rows": 1792, "result_parts": 2, "ultra_ram": True,
                "read_fifo_beats": 256, "write_fifo_beats": 512},
)
