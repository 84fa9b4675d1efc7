"""Colorlight i5 (v7.0) on its extension board: as the i9, with an ECP5-25F, machines with one arithmetic unit, and the LED elsewhere."""

from dataclasses import replace

from tritloom.boards.colorlight_i9 import BOARD as I9
from tritloom.boards.sdram import EM638325

assert I9.wiring is not None
BOARD = replace(
    I9,
    name="colorlight-i5",
    title="Colorlight i5 v7.0: SDR SDRAM, UART",
    device="LFE5U-25F",
    clock_hz=40_000_000,  # with one seed such a machine reached 52.5 MHz on an ULX3S
    parameters=I9.parameters | {"vector_lanes": 1},
    # 56 block RAMs of 16 Kibit plain data, 28 multipliers of 18x18 bits.
    resources={"lut": 24_288, "ff": 24_288, "bram": 56 * 16, "dsp": 28},
    wiring=replace(I9.wiring, led_pins=("U16",), sdram=EM638325, programmer="colorlight-i5"),
)
