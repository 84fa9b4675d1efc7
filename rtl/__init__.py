"""Amaranth components of the accelerator. No files, no terminal, no PyTorch."""
