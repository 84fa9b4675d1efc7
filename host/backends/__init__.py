"""Devices, however they are reached: what all of them answer (protocol), and those that need no RTL."""
