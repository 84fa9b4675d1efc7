"""What others' tools take: an IP core for any AXI system, and a folder for one board."""
