"""The simulator's own tool, found by tritloom.gen.verilator: the generator lints with it too."""

from tritloom.gen.verilator import MAKE_VARIABLES, environment, root, version

__all__ = ["MAKE_VARIABLES", "environment", "root", "version"]
