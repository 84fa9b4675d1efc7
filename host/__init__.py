"""Host driver and command line. Needs neither Amaranth nor PyTorch."""
