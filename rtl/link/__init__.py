"""The link from a serial port to the registers."""
