"""Colorlight i9 (v7.2) on its extension board: an ECP5-45F with 8 MiB of SDR SDRAM, 32 bits wide. Built by open tools."""

from tritloom.boards.board import Board, Wiring
from tritloom.boards.sdram import M12L64322A

BOARD = Board(
    name="colorlight-i9",
    title="Colorlight i9 v7.2: SDR SDRAM, UART",
    family="ecp5",
    memory="axi",
    mem_bytes=4,
    clock_hz=50_000_000,
    timing="sdr32",
    device="LFE5U-45F",
    package="CABGA381",
    speed="6",
    toolchain="ecp5",
    # 108 block RAMs of 16 Kibit plain data, 72 multipliers of 18x18 bits.
    resources={"lut": 43_848, "ff": 43_848, "bram": 108 * 16, "dsp": 72},
    parameters={"lanes": 1, "vector_lanes": 2},
    dram_bytes=M12L64322A.size_bytes,
    wiring=Wiring(
        clock_pin="P3",
        oscillator_hz=25_000_000,
        uart_rx="H18",
        uart_tx="J17",
        baud=1_000_000,  # to the extension board's debugger; a faster adapter at these pins wants a board file with its rate
        reset_pin="K18",  # no button is there: a pin of PMOD P2, to be pulled to ground
        reset_level=0,
        led_pins=("L2",),
        led_level=0,
        sdram=M12L64322A,
        # The board holds CKE high, CS# and DQM low.
        sdram_pins={
            "clk": ("B9",), "ras_n": ("B10",), "cas_n": ("A9",), "we_n": ("A10",), "ba": ("B11", "C8"),
            "a": ("B13", "C14", "A16", "A17", "B16", "B15", "A14", "A13", "A12", "A11", "B12"),
            "dq": ("B6", "A5", "A6", "A7", "C7", "B8", "B5", "A8", "D8", "D7", "E8", "D6", "C6", "D5", "E7", "C5",
                   "C10", "D9", "E11", "D11", "C11", "D12", "E9", "C12", "E14", "C15", "E13", "D15", "E12", "B17", "D14", "D13"),
        },
        attributes={"IO_TYPE": "LVCMOS33"},
        sdram_attributes={"PULLMODE": "NONE", "DRIVE": "4", "SLEWRATE": "FAST"},
        programmer="colorlight-i9",
    ),
)
