"""Memory: the weight stream, AXI4 ports, on-chip memory, and who may use them."""
