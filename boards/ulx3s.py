"""Radiona ULX3S with an ECP5-85F: 32 MiB of SDR SDRAM, a host link over the board's USB serial port. Built by open tools."""

from tritloom.boards.board import Board, Wiring
from tritloom.boards.ecp5_85f import BOARD as ECP5_85F
from tritloom.boards.sdram import ULX3S

BOARD = Board(
    name="ulx3s",
    title="Radiona ULX3S-85F: SDR SDRAM, UART",
    family=ECP5_85F.family,
    memory="axi",
    mem_bytes=8,
    clock_hz=50_000_000,
    timing="sdr16",
    device=ECP5_85F.device,
    package=ECP5_85F.package,
    speed=ECP5_85F.speed,
    toolchain=ECP5_85F.toolchain,
    resources=ECP5_85F.resources,
    parameters={"lanes": 1, "vector_lanes": 2},
    dram_bytes=ULX3S.size_bytes,
    wiring=Wiring(
        clock_pin="G2",
        oscillator_hz=25_000_000,
        uart_rx="M1",
        uart_tx="L4",
        baud=3_000_000,  # the fastest of the board's FT231X
        reset_pin="R1",  # button FIRE 1
        led_pins=("B2", "C2", "C1", "D2", "D1", "E2", "E1", "H3"),
        tied={"L2": 1},  # the ESP32's GPIO0: low, and it takes the board over
        sdram=ULX3S,
        sdram_pins={
            "clk": ("F19",), "cke": ("F20",), "cs_n": ("P20",), "ras_n": ("R20",), "cas_n": ("T19",), "we_n": ("T20",),
            "ba": ("P19", "N20"), "dqm": ("U19", "E20"),
            "a": ("M20", "M19", "L20", "L19", "K20", "K19", "K18", "J20", "J19", "H20", "N19", "G20", "G19"),
            "dq": ("J16", "L18", "M18", "N18", "P18", "T18", "T17", "U20", "E19", "D20", "D19", "C20", "E18", "F18", "J18", "J17"),
        },
        attributes={"IO_TYPE": "LVCMOS33"},
        sdram_attributes={"PULLMODE": "NONE", "DRIVE": "4", "SLEWRATE": "FAST"},
        programmer="ulx3s",
    ),
)
