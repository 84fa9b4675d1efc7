"""Simulated backends: verilated RTL with memory models, and the whole-model integer reference."""
