"""Published designs that run ternary or small quantised language models, as their authors describe them.

Marks of a figure: [P] read in the primary text, [S] second-hand or without a note of where it was read, [C] calculated here from others.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["DESIGNS", "MARKS", "Design", "Figure"]

MARKS = {"P": "read in the primary text", "S": "second-hand", "C": "calculated here"}

Figure = tuple[str, str]
"""What is said, and its mark."""


@dataclass(frozen=True, kw_only=True)
class Design:
    """`decode`: tokens per second of one sequence unless said otherwise; `source`: where the figures marked [P] are from."""

    name: str
    source: str
    platform: str
    model: str
    decode: tuple[Figure, ...] = ()
    prefill: tuple[Figure, ...] = ()
    power: tuple[Figure, ...] = ()
    resources: tuple[Figure, ...] = ()
    memory: tuple[Figure, ...] = ()


DESIGNS = (
    Design(
        name="TeLLMe v2", source="arXiv 2510.15926", platform="KV260, 250 MHz [S]", model="BitNet 0.73B, W1.58A8",
        decode=(("25 tok/s", "P"),), prefill=(("143 tok/s", "P"), ("0.45–0.96 s for 64–128 tokens", "P")), power=(("4.8 W", "P"),),
        resources=(("98,303 LUT, 136,721 FF, 610 DSP, 98.5 BRAM, 60 URAM", "S"),), memory=(("4 GB/s, 21–23 % of peak", "C"),),
    ),
    Design(
        name="TeLLMe v1", source="arXiv 2504.16266", platform="KV260", model="BitNet 0.7B",
        decode=(("9 tok/s", "P"),), prefill=(("0.55–1.15 s for 64–128 tokens", "P"),), power=(("below 7 W", "S"),),
    ),
    Design(
        name="PD-Swap", source="arXiv 2512.11550", platform="KV260", model="BitNet 0.73B",
        decode=(("27 tok/s", "P"),), power=(("4.9 W", "S"),), resources=(("102,102 LUT, 750 DSP", "S"),),
    ),
    Design(
        name="bitnet-kv260", source="repository of MerlijnW70", platform="KV260, 250 MHz", model="BitNet b1.58 2B-4T",
        decode=(("16.8 tok/s with a short context, 13.9 at 1,800", "P"), ("24 tok/s for 4 sequences together", "P")),
        prefill=(("28.8 tok/s", "P"),), power=(("6.2 W", "S"),), resources=(("42,271 LUT, 0 DSP, 95 BRAM, 40 URAM", "S"),),
        memory=(("12.7–16.0 GB/s", "P"),),
    ),
    Design(
        name="llama-fpga", source="DATE 2025", platform="KV260", model="LLaMA2-7B, 4 bit",
        decode=(("5 tok/s", "P"),), prefill=(("token by token", "S"),), memory=(("84 % of bandwidth", "S"),),
    ),
    Design(
        name="Hummingbird", source="arXiv 2507.03308", platform="KV260, 300 MHz", model="LLaMA3-8B, 4 bit",
        decode=(("4.8 tok/s", "S"),), power=(("3.8 W", "S"),), memory=(("93–94 % of bandwidth", "S"),),
    ),
    Design(
        name="Torch2RISCV", source="its repository", platform="KV260, 100 MHz", model="SmolLM2-135M, W8A8",
        decode=(("27 tok/s", "P"),), prefill=(("73.6 tok/s", "S"),),
    ),
    Design(
        name="TerEffic", source="arXiv 2502.16473", platform="U280", model="MatMul-free 370M on chip; 2.7B in HBM",
        decode=(("16,300 tok/s (370M)", "P"), ("727 tok/s (2.7B)", "P")), power=(("46 W (2.7B)", "S"),),
    ),
    Design(name="TernaryCore", source="its repository", platform="Arty A7-100T", model="0.6B ternary", decode=(("0.35 tok/s", "P"),)),
    Design(
        name="ternfpga", source="repository of Neumann-Labs", platform="Arty A7-35T, 100 MHz", model="BitNet b1.58 2B-4T, layers only",
        power=(("0.49 W, an estimate", "S"),), memory=(("1.42 GB/s read, 89 % of peak", "P"),),
    ),
    Design(name="T-MAC", source="its repository", platform="Raspberry Pi 5, 2 threads", model="BitNet 3B", decode=(("11.1 tok/s", "P"),)),
    Design(
        name="bitnet.cpp", source="its repository", platform="Ryzen 5950X, 16 threads", model="BitNet b1.58 2B-4T",
        decode=(("28.4 tok/s", "P"),), power=(("121 W", "S"),),
    ),
)  # fmt: skip
