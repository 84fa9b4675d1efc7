"""The verbs of the command line, one a file: each has `command`, which imports the generator and the simulator only when called."""
