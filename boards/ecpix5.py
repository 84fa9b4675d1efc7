"""LambdaConcept ECPIX-5 with an ECP5-5G-85F: 512 MiB of DDR3 behind a LiteDRAM core, a host link over the board's USB serial port."""

from tritloom.boards.board import Board, Wiring
from tritloom.boards.ecp5_85f import BOARD as ECP5_85F
from tritloom.boards.sdram import MT41K256M16

BOARD = Board(
    name="ecpix5",
    title="LambdaConcept ECPIX-5 85F: DDR3, UART",
    family=ECP5_85F.family,
    memory="axi",
    mem_bytes=16,  # a burst of the memory, which takes two cycles
    clock_hz=50_000_000,
    timing="ddr16",
    device="LFE5UM5G-85F",
    package="CABGA554",
    speed="8",
    toolchain=ECP5_85F.toolchain,
    resources=ECP5_85F.resources,
    parameters={"lanes": 1, "vector_lanes": 2},
    dram_bytes=MT41K256M16.size_bytes,
    wiring=Wiring(
        clock_pin="K23",
        oscillator_hz=100_000_000,
        uart_rx="R26",
        uart_tx="R24",
        baud=3_000_000,
        reset_pin="N5",
        reset_level=0,
        led_pins=("K24", "P22", "U21", "R21"),  # green, blue, red, green of the four
        led_level=0,
        sdram=MT41K256M16,
        sdram_pins={
            "clk_p": ("H3",), "cke": ("P1",), "odt": ("P3",), "ras_n": ("T3",), "cas_n": ("P2",), "we_n": ("R3",), "ba": ("U6", "N3", "N4"),
            "a": ("T5", "M3", "L3", "V6", "K2", "W6", "K3", "L1", "H2", "L2", "N1", "J1", "M1", "K1", "H1"),
            "dm": ("U4", "U1"), "dqs_p": ("V4", "V1"),
            "dq": ("T4", "W4", "R4", "W5", "R6", "P6", "P5", "P4", "R1", "W3", "T2", "V3", "U3", "W1", "T1", "W2"),
        },
        attributes={"IO_TYPE": "LVCMOS33"},
        sdram_attributes={"IO_TYPE": "SSTL15_I", "SLEWRATE": "FAST"},
        signal_attributes={
            "dq": {"TERMINATION": "75"}, "clk_p": {"IO_TYPE": "SSTL15D_I"},
            "dqs_p": {"IO_TYPE": "SSTL15D_I", "TERMINATION": "OFF", "DIFFRESISTOR": "100"},
        },
        programmer="ecpix5",
    ),
)
