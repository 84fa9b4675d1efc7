"""Contents of memories in emitted Verilog."""

from __future__ import annotations

import re

__all__ = ["CONSTANT_WORDS", "without_zero_contents"]

CONSTANT_WORDS = {"registers": 0}
"""Words that are read as zero and that nothing writes, by the memory's name: r0 of the sequencer, whose zero is the memory's content."""

_ZEROS = re.compile(r"^ *initial begin\n(?= *(\S+?) ?\[)(?: *\S+ ?\[\d+\] = \d+'[dh]0+;\n)+ *end\n", re.MULTILINE)


def without_zero_contents(verilog: str) -> str:
    """The same memories, of which those that begin with zeros have no statement per word; CONSTANT_WORDS keep theirs.

    Nothing else of them is read before it is written. Yosys takes minutes over the statements of a large memory, and UltraRAM has no
    initial contents.
    """

    def constant(contents: re.Match[str]) -> str:
        word, lines = CONSTANT_WORDS.get(contents[1]), contents[0].splitlines(keepends=True)
        kept = [line for line in lines if word is not None and f"[{word}]" in line]
        return "".join([lines[0], *kept, lines[-1]]) if kept else ""

    return _ZEROS.sub(constant, verilog)
