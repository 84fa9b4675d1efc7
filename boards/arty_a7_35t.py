"""Digilent Arty A7-35T: as the A7-100T, with a third of its device."""

from dataclasses import replace

from tritloom.boards.arty_a7_100t import BOARD as ARTY_A7_100T

BOARD = replace(
    ARTY_A7_100T,
    name="arty-a7-35t",
    title="Digilent Arty A7-35T (XC7A35T)",
    device="XC7A35T",
    # 50 block RAMs of 36 Kibit.
    resources={"lut": 20_800, "ff": 41_600, "bram": 50 * 36, "dsp": 90},
    parameters={"lanes": 1, "vector_lanes": 2},
)
