"""Ternary matmul: weights looked up in tables of partial sums."""
