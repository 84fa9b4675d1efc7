"""Measuring: whole tokens in simulated RTL, syntheses, their tables and pages."""
