"""What the other folders ask of the operating system: files that are whole or not there, programs that end with this one."""
