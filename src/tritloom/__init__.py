"""tritloom: ternary language models on FPGAs, from checkpoint to Verilog to tokens."""

__version__ = "0.1.0"
