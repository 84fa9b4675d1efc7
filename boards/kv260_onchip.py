"""The KV260's device with the whole model in its UltraRAM: no external memory. Verilog for the vendor's tool."""

from tritloom.boards.board import Board
from tritloom.boards.kv260 import BOARD as KV260

BOARD = Board(
    name="kv260-onchip",
    title="AMD Kria KV260, model in UltraRAM",
    family=KV260.family,
    memory="onchip",
    mem_bytes=128,
    clock_hz=KV260.clock_hz,
    device=KV260.device,
    toolchain="verilog",
    clocks=KV260.clocks,
    resources=KV260.resources,
    # 128 bytes are sixteen UltraRAMs side by side. The host writes the image: UltraRAM has no contents when the device starts.
    parameters={"lanes": 4, "ultra_ram": True},
)
