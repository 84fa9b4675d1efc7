"""From checkpoint and board to configuration, Verilog, weight image and bitstream."""
