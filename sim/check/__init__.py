"""Comparing: Verilog, emulator and integer model, on chosen and random machines."""
