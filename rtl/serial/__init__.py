"""One arithmetic unit, shared in time by everything but the ternary matrices, under a microprogram.

`machine`: what the unit is built from, and where its memory holds what; `microcode`: instructions and their assembler; `program`: the
microprogram; `core`: registers, adder, shifter and multiplier; `unit`: the core with its ports.
"""
