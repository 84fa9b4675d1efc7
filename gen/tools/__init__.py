"""Yosys, nextpnr and what is read from their reports."""
