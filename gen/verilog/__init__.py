"""From a configuration to the files of its machine."""
