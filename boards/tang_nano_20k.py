"""Sipeed Tang Nano 20K: a Gowin GW2AR-18 with 8 MiB of SDR SDRAM in its package, 32 bits wide. Built by open tools."""

from tritloom.boards.board import Board, Wiring
from tritloom.boards.sdram import EM638325

BOARD = Board(
    name="tang-nano-20k",
    title="Sipeed Tang Nano 20K: SDR SDRAM, UART",
    family="gowin",
    memory="axi",
    mem_bytes=4,
    clock_hz=40_500_000,
    timing="sdr32",
    device="GW2AR-18C",
    package="QN88",
    speed="C8/I7",
    toolchain="gowin",
    # 46 block RAMs of 18 Kibit, 48 multipliers of 18x18 bits.
    resources={"lut": 20_736, "ff": 15_552, "bram": 46 * 18, "dsp": 48},
    parameters={"lanes": 1, "vector_lanes": 1},
    dram_bytes=EM638325.size_bytes,
    wiring=Wiring(
        clock_pin="4",
        oscillator_hz=27_000_000,
        uart_rx="70",
        uart_tx="69",
        baud=3_000_000,  # through the board's BL616, which stands for an FT2232
        reset_pin="88",  # button S1
        led_pins=("15", "16", "17", "18", "19", "20"),
        led_level=0,
        sdram=EM638325,
        # Pads that end inside the package.
        sdram_pins={
            "clk": ("IOR11B",), "cke": ("IOL13A",), "cs_n": ("IOL14B",), "ras_n": ("IOL13B",), "cas_n": ("IOL14A",), "we_n": ("IOL12B",),
            "ba": ("IOR13A", "IOR12A"), "dqm": ("IOL12A", "IOR11A", "IOL18A", "IOR15B"),
            "a": ("IOR14A", "IOR13B", "IOR14B", "IOR15A", "IOL16B", "IOL17B", "IOL16A", "IOL17A", "IOL15B", "IOL15A", "IOR12B"),
            "dq": ("IOL3A", "IOL3B", "IOL8A", "IOL8B", "IOL9A", "IOL9B", "IOL11A", "IOL11B",
                   "IOR9B", "IOR9A", "IOR5B", "IOR6A", "IOR5A", "IOR4B", "IOR3B", "IOR3A",
                   "IOL39B", "IOL39A", "IOL35B", "IOL35A", "IOL30B", "IOL30A", "IOL20A", "IOL18B",
                   "IOR17A", "IOR16A", "IOR16B", "IOR17B", "IOR18A", "IOR18B", "IOR44A", "IOR44B"),
        },
        attributes={"IO_TYPE": "LVCMOS33"},
        sdram_attributes={"PULL_MODE": "NONE", "DRIVE": "8"},
        programmer="tangnano20k",
    ),
)
