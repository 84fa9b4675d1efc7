"""Synthesis by Yosys: what a component or a Verilog text costs on a family of devices.

Results are kept in the cache folder by the design's text, the commands and the Yosys version. Costs are those of synthesis:
nothing is placed, and no clock is claimed.

LUTs count what the fabric spends, RAM and carry included: a RAM32M16 or RAM64M8 takes 8 LUTs (xcup), a RAM32M or RAM64M 4 (xc7), a
TRELLIS_DPR16X4 the LUTs of 3 slices and a CCU2C those of one (ecp5), a RAM16SDP4 4 LUTs and an ALU 1 (gowin).
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tritloom.firmware.errors import TritloomError
from tritloom.gen.tools import yosys
from tritloom.system import files, processes

__all__ = ["FAMILIES", "SynthesisError", "cells_of", "netlist_of", "resources", "synthesise", "tlmm_table"]

TOP = "top"


class SynthesisError(TritloomError):
    """Yosys failed; the message is one line: its error, and where its log is kept."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """How to synthesise for a family, and what each of its cells is: patterns of whole cell names to amounts."""

    command: str
    lut: dict[str, float]
    lutram: dict[str, float]
    ff: dict[str, float]
    bram: dict[str, float]
    dsp: dict[str, float]
    carry: dict[str, float]
    other_ram: dict[str, float]


_ICE40 = (
    "synth_ice40 -device u -run begin:coarse -top {top}",
    "opt_expr", "check", "opt_clean", "opt -nodffe -nosdff", "fsm", "opt", "wreduce", "peepopt", "opt_clean", "share",
    "techmap -map +/cmp2lut.v -D LUT_WIDTH=4", "opt_expr", "opt_clean", "memory_dff",
    "alumacc -macc-only", "maccmap -unmap", "opt_clean", "wreduce t:$mul",
    "techmap -map +/mul2dsp.v -map +/ice40/dsp_map.v -D DSP_A_MAXWIDTH=16 -D DSP_B_MAXWIDTH=16 -D DSP_A_MINWIDTH=2 -D DSP_B_MINWIDTH=2 "
    "-D DSP_Y_MINWIDTH=11 -D DSP_NAME=$__MUL16X16",
    "select a:mul2dsp", "setattr -unset mul2dsp", "opt_expr -fine", "wreduce", "select -clear",
    "chtype -set $mul t:$__soft_mul", "alumacc", "opt", "memory -nomap", "opt_clean",
    "synth_ice40 -device u -abc9 -run map_ram: -top {top}",
)
"""The steps of Yosys 0.70's `synth_ice40 -device u -dsp -abc9` without the pass `ice40_dsp`, which moves registers into the
multipliers: given two output registers it crashes, and if the inputs have registers too, it takes product and registers for unused
and deletes them all. So registers of products count as flip-flops here."""

FAMILIES = {
    "xcup": Family(
        command="synth_xilinx -family xcup -abc9 -flatten -noiopad -noclkbuf -top {top}",
        lut={r"LUT\d": 1, r"INV": 1, r"SRL16E|SRLC32E": 1},
        lutram={r"RAM32M16|RAM64M8": 8, r"RAM32M|RAM64M": 4, r"RAM(32|64)X1D": 2, r"RAM(32|64)X1S": 1, r"RAM128X1D": 4, r"RAM256X1D": 8},
        ff={r"FD[RSCP]E": 1},
        bram={r"RAMB36E2": 1, r"RAMB18E2": 0.5},
        dsp={r"DSP48E2": 1},
        carry={r"CARRY4": 1},
        other_ram={r"URAM288": 1},
    ),
    "xc7": Family(
        command="synth_xilinx -family xc7 -abc9 -flatten -noiopad -noclkbuf -top {top}",
        lut={r"LUT\d": 1, r"INV": 1, r"SRL16E|SRLC32E": 1},
        lutram={r"RAM32M|RAM64M": 4, r"RAM(32|64)X1D": 2, r"RAM(32|64)X1S": 1, r"RAM128X1D": 4, r"RAM128X1S": 2, r"RAM256X1S": 4},
        ff={r"FD[RSCP]E": 1},
        bram={r"RAMB36E1": 1, r"RAMB18E1": 0.5},
        dsp={r"DSP48E1": 1},
        carry={r"CARRY4": 1},
        other_ram={},
    ),
    "ecp5": Family(
        command="synth_ecp5 -abc9 -top {top}",
        lut={r"LUT4": 1, r"CCU2C": 2},
        lutram={r"TRELLIS_DPR16X4": 6},
        ff={r"TRELLIS_FF": 1},
        bram={r"DP16KD|PDPW16KD": 1},
        dsp={r"MULT18X18D": 1, r"MULT9X9D": 0.5},
        carry={r"CCU2C": 1},
        other_ram={},
    ),
    "gowin": Family(
        command="synth_gowin -family gw2a -abc9 -noiopads -top {top}",
        lut={r"LUT\d": 1, r"ALU": 1},
        lutram={r"RAM16S(DP)?4": 4, r"RAM16S(DP)?[12]": 4},
        ff={r"DFF.*": 1},
        bram={r"(SDPB|DPB|SPB?|pROM|SDPX9B|DPX9B|SPX9|pROMX9)": 1},
        dsp={r"MULT18X18": 1, r"MULT9X9": 0.5, r"MULTALU.*|MULTADDALU.*": 1},
        carry={r"ALU": 1},
        other_ram={},
    ),
    "ice40": Family(
        command="; ".join(_ICE40),
        lut={r"SB_LUT4": 1},
        lutram={},
        ff={r"SB_DFF.*": 1},
        bram={r"SB_RAM40_4K.*": 1},
        dsp={r"SB_MAC16": 1},
        carry={r"SB_CARRY": 1},
        other_ram={r"SB_SPRAM256KA": 1},
    ),
}

SMALL = {name: f"{name}-small" for name in ("ecp5", "gowin")}
"""Of families whose LUTs join to wider ones, the one of machines that are to be small rather than fast: LUTs of four inputs alone."""
FAMILIES |= {small: replace(FAMILIES[name], command=FAMILIES[name].command.replace(" -abc9", " -abc9 -nowidelut"))
             for name, small in SMALL.items()}


def synthesise(design: Any, family: str, *, top: str = TOP, timeout_s: float = 600, cache: Path | None = None) -> dict[str, Any]:
    """Resources of a component or of Verilog text whose top module is `top` (see `resources`)."""
    if family not in FAMILIES:
        raise ValueError(f"family must be one of {', '.join(FAMILIES)}, not {family!r}")
    if isinstance(design, str):
        text, read = design, "read_verilog"
    else:
        from tritloom.gen.verilog import emit

        text, read = emit.to_rtlil(design, top), "read_rtlil"
    return resources(cells_of(text, family, read=read, top=top, timeout_s=timeout_s, cache=cache), family)


def cells_of(text: str, family: str, *, read: str = "read_rtlil", top: str = TOP, timeout_s: float = 600,
             cache: Path | None = None) -> dict[str, int]:
    """Numbers of mapped cells by type, black boxes among them, from the cache or from a run of Yosys, which keeps the netlist."""
    script, place = _script(text, family, read, top, cache)
    found = files.kept(place)
    if found is None:
        cells, netlist = _run(text, script, timeout_s, place.with_suffix(".log"))
        files.keep(place.with_suffix(".il.gz"), gzip.compress(netlist, 4, mtime=0))
        found = json.dumps(cells).encode()
        files.keep(place, found)
    return json.loads(found)


def netlist_of(text: str, family: str, *, read: str = "read_rtlil", top: str = TOP, timeout_s: float = 600,
               cache: Path | None = None) -> str:
    """Mapped netlist (RTLIL) of a design that `cells_of` has seen; if it is damaged, that is done again."""
    place = _script(text, family, read, top, cache)[1]
    found = files.kept(place.with_suffix(".il.gz"))
    if found is None:
        place.unlink(missing_ok=True)
        cells_of(text, family, read=read, top=top, timeout_s=timeout_s, cache=cache)
        found = place.with_suffix(".il.gz").read_bytes()
    return gzip.decompress(found).decode("utf-8")


def _script(text: str, family: str, read: str, top: str, cache: Path | None) -> tuple[str, Path]:
    """Yosys's commands, and where their result is kept."""
    # The names Amaranth gives to fields, like `sum[0]`, clash with those ABC9 makes up for the bits of `sum`.
    script = (f"{read} design; rename -hide w:*[[]*; {FAMILIES[family].command.format(top=top)}; "
              f"tee -q -o stat.json stat -json; write_rtlil -selected netlist")
    key = hashlib.sha256("\0".join((text, script, version("pyosys"))).encode()).hexdigest()[:16]
    return script, (cache or files.cache("synth")) / f"{family}-{key}.json"


def resources(cells: dict[str, int], family: str) -> dict[str, Any]:
    """Amounts by kind from numbers of mapped cells: lut (of which lut_ram), ff, bram, dsp, carry, other_ram, and the cells."""
    kinds = FAMILIES[family]

    def amount(patterns: dict[str, float]) -> float:
        total = sum(count * cost for cell, count in cells.items() for pattern, cost in patterns.items() if re.fullmatch(pattern, cell))
        return int(total) if total == int(total) else total

    lut_ram = amount(kinds.lutram)
    return {
        "lut": amount(kinds.lut) + lut_ram, "lut_ram": lut_ram, "ff": amount(kinds.ff), "bram": amount(kinds.bram),
        "dsp": amount(kinds.dsp), "carry": amount(kinds.carry), "other_ram": amount(kinds.other_ram), "cells": cells,
    }


def _run(text: str, script: str, timeout_s: float, log: Path) -> tuple[dict[str, int], bytes]:
    """Cells and netlist; what Yosys said goes to `log` if it fails."""
    with files.scratch(files.cache("scratch")) as at:
        (at / "design").write_text(text, encoding="utf-8")
        command = [yosys.executable(), "-q", "-l", "log", "-p", script]
        try:
            done = processes.call(command, timeout_s=timeout_s, cwd=at, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        except subprocess.TimeoutExpired:
            raise SynthesisError(f"Yosys did not finish within {timeout_s:.0f} s") from None
        if done.returncode or not (at / "stat.json").exists():
            raise SynthesisError(_failure(done.returncode, done.stdout, at / "log", log))
        design = json.loads((at / "stat.json").read_text(encoding="utf-8"))["design"]
        cells = {cell: int(count) for cell, count in design["num_cells_by_type"].items() if not cell.startswith("$")}
        return cells, (at / "netlist").read_bytes()


def _failure(status: int, output: str, log: Path, kept: Path) -> str:
    """What went wrong, in a line; the log stays where `kept` says."""
    text = output + "\n" + (log.read_text(encoding="utf-8", errors="replace") if log.exists() else "")
    files.write_atomically(kept.parent, {kept.name: text})
    said = next((line.strip() for line in text.splitlines() if "ERROR" in line), f"it ended with status {status} and no error of its own")
    return f"Yosys failed: {said} (log: {kept})"


# The TLMM engine's table forms, compared --------------------------------------------------------------

SIZES = {"xcup": (16, 4), "ecp5": (16, 4), "gowin": (16, 4), "ice40": (7, 4)}
"""Tables and rows per cycle at which the forms are compared. ice40 has no LUTRAM: 28 tables use 28 of its 30 block RAMs."""
LOADED = 8
"""Activations in a word that the builder takes there (V)."""


def tlmm_table(
    families: tuple[str, ...] = tuple(SIZES),
    *,
    sizes: dict[str, tuple[int, int]] = SIZES,
    acc_bits: int = 21,
    progress: Callable[[str], None] | None = None,
) -> list[dict[str, Any]]:
    """Cost of one lane of the TLMM engine in every table form on every family; a row each.

    `lane` has tables, look-ups, adder trees and accumulate adders; `builder` the pre-computation of the tables
    (the loader's registers included). `lut_per_weight` is the lane's LUTs by weights per cycle,
    `lut_per_weight_built` the same with the builder. Memories of codes and accumulators are in neither.
    """
    from tritloom.rtl.ternary.parameters import TABLE_FORMS
    from tritloom.rtl.ternary.tables import LookupLane, TableBuilder

    def units() -> Iterator[tuple[str, str, int, int]]:
        for family in families:
            for form in TABLE_FORMS:
                yield family, form, *sizes[family]

    rows = []
    for family, form, tables, rows_per_cycle in units():
        if progress:
            progress(f"{family} {form}")
        lane = synthesise(LookupLane(tables=tables, rows_per_cycle=rows_per_cycle, table_form=form, acc_bits=acc_bits), family)
        builder = synthesise(TableBuilder(tables=tables, table_form=form, vector_lanes=LOADED), family)
        weights = tables * rows_per_cycle * 3
        rows.append({
            "family": family, "form": form, "tables": tables, "rows_per_cycle": rows_per_cycle, "weights_per_cycle": weights,
            "lane": lane, "builder": builder,
            "lut_per_weight": round(lane["lut"] / weights, 2),
            "lut_per_weight_built": round((lane["lut"] + builder["lut"]) / weights, 2),
        })
    return rows
