"""Machine definition in pure Python: configuration, number formats, instruction set, programs, emulator."""
