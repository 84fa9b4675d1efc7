"""The programs a machine runs, generated from its configuration and memory map.

`generation` runs a prompt of any length in passes of up to `lanes` tokens and then generates, choosing every token on the device; the host
sees tokens only. `passes` takes passes of several sequences from the host. docs/isa.md has the instructions, `convention` how the programs
are called.
"""

from __future__ import annotations

import re

from tritloom.firmware.assembler import assemble
from tritloom.firmware.config import BuildConfig
from tritloom.firmware.layout import MemoryMap
from tritloom.firmware.programs.generation import generation_assembly
from tritloom.firmware.programs.passes import passes_assembly


def _text(config: BuildConfig, layout: MemoryMap) -> str:
    text = "jmp generation\njmp passes\n" + generation_assembly(config, layout)
    return text + ("passes: halt 1" if config.shortlist else passes_assembly(config, layout))


def machine_program(config: BuildConfig, layout: MemoryMap) -> list[int]:
    """Words of both programs, which begin at ENTRY_GENERATION and ENTRY_PASSES. A machine with a short-list has no program of passes."""
    return assemble(_text(config, layout), limit=config.program_words)


def program_length(config: BuildConfig, layout: MemoryMap) -> int:
    """How many these words are, counted in the text, which takes a tenth of the time."""
    statements = (re.split("[;#]", line, maxsplit=1)[0].rpartition(":")[2].strip() for line in _text(config, layout).splitlines())
    return sum(bool(each) and not each.startswith((".registers", ".routine", ".end")) for each in statements)
