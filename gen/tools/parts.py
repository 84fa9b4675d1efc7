"""A whole machine synthesised: one Yosys run for each unit and for each module that lanes share.

A shared module (rtl/once.py) is synthesised once and counted as often as it occurs; in the units that hold it,
it is a black box. So nothing is optimised across its border, and a change of one unit costs one run. Results and
mapped netlists are cached as gen/tools/synthesis.py does.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tritloom.firmware.config import BuildConfig
from tritloom.gen.tools import synthesis
from tritloom.gen.verilog.digests import digest

if TYPE_CHECKING:
    from amaranth.lib import wiring

__all__ = ["KINDS", "Part", "Synthesised", "digest_of", "parts_of", "parts_of_board", "synthesise", "synthesise_alone", "totals"]

KINDS = ("lut", "lut_ram", "ff", "dsp", "bram", "uram")
"""What is counted: LUTs (those used as RAM among them), flip-flops, multipliers, block RAMs of the family, UltraRAMs."""

MACHINE = "machine"
TIMEOUT_S = 7200.0

Progress = Callable[[int, int, str], None]
"""Told (runs done, runs in all, what runs)."""


@dataclass(frozen=True)
class Part:
    """RTLIL of a unit, or of a shared module; its top module is called `top`, but `module` where it stands in the machine.
    `holds`: parts in it, black boxes."""

    name: str
    module: str
    design: str
    holds: tuple[str, ...]


@dataclass(frozen=True)
class Synthesised:
    """`unit`: the part of the machine that it belongs to, itself if it is one; `count`: how often it occurs; `cost`: of one."""

    name: str
    unit: str
    count: int
    cost: dict[str, float]
    cells: dict[str, int]


def parts_of(config: BuildConfig) -> dict[str, Part]:
    """The parts of a machine by name: `top`, which joins the units, the units, and the shared modules."""
    from tritloom.gen.verilog import emit
    from tritloom.rtl.top import Accelerator

    return _parts(emit.to_rtlil(Accelerator(config), MACHINE))


def parts_of_board(top: wiring.Component) -> dict[str, Part]:
    """The parts of a board (`rtl.board.BoardTop`), its machine one of them: `top`, which joins them, and `link`, `sdram`, `machine`."""
    from tritloom.gen.verilog import emit

    return _parts(emit.to_rtlil(top, MACHINE))


def _parts(text: str) -> dict[str, Part]:
    modules = {m[1]: m[0] for m in re.finditer(r"(?:^attribute[^\n]*\n)*^module \\(\S+)\n.*?^end\n", text, re.S | re.M)}
    found: dict[str, Part] = {}
    roots = [name for name in modules if name.count(".") == 0 or (name.startswith(MACHINE + ".") and name.count(".") == 1)]
    inner = {name for name in roots if name != MACHINE}
    for root in roots:
        mine = {root} if root == MACHINE else {name for name in modules if name == root or name.startswith(root + ".")}
        body = "".join(modules[name] for name in modules if name in mine)
        held = [name for name in roots if name in inner and name not in mine and re.search(rf"^ *cell \\{re.escape(name)} ", body, re.M)]
        design = re.sub(rf"^module \\{re.escape(root)}$", r"module \\top", body, flags=re.M) + "".join(_box(modules[n], n) for n in held)
        name = synthesis.TOP if root == MACHINE else root.removeprefix(MACHINE + ".")
        found[name] = Part(name, root, _renumbered(design), tuple(n.removeprefix(MACHINE + ".") for n in held))
    return found


def digest_of(parts: dict[str, Part]) -> str:
    """Digest of what Yosys reads of a machine: two of the same have the same cost."""
    return digest(*(text for name in sorted(parts) for text in (name, parts[name].design)))


def _renumbered(design: str) -> str:
    """The same design whatever was emitted before it: Amaranth counts all modules' repeated names together."""
    numbers: dict[str, str] = {}
    return re.sub(r"\$\d+", lambda m: numbers.setdefault(m[0], f"${len(numbers)}"), design)


def _box(module: str, name: str) -> str:
    """A module's ports alone."""
    wires = re.findall(r"^  wire (?:.* )?(?:input|output) \d+ .*\n", module, re.M)
    return f"attribute \\blackbox 1\nmodule \\{name}\n{''.join(wires)}end\n"


def synthesise(parts: dict[str, Part], family: str, progress: Progress | None = None) -> list[Synthesised]:
    """Cost of every part of a machine (`parts_of`), units and what they hold together. A SynthesisError names the part."""
    done: dict[str, tuple[dict[str, float], dict[str, int]]] = {}
    for number, part in enumerate(parts.values()):
        if progress:
            progress(number, len(parts), part.name)
        try:
            cells = synthesis.cells_of(part.design, family, timeout_s=TIMEOUT_S)
        except synthesis.SynthesisError as error:
            raise synthesis.SynthesisError(f"{part.name}: {error}") from None
        measured = synthesis.resources(cells, family)
        cost = {kind: measured["other_ram" if kind == "uram" else kind] for kind in KINDS}
        done[part.name] = cost, cells
    counts: dict[tuple[str, str], int] = {}

    def visit(name: str, unit: str, times: int) -> None:
        counts[unit, name] = counts.get((unit, name), 0) + times
        for held in parts[name].holds:
            cell = held if f"{MACHINE}.{held}" not in done[name][1] else f"{MACHINE}.{held}"
            number = done[name][1].get(cell, 0)
            visit(held, held if name == synthesis.TOP else unit, times * number)

    visit(synthesis.TOP, synthesis.TOP, 1)
    return [Synthesised(name, unit, count, *done[name]) for (unit, name), count in counts.items() if count]


def synthesise_alone(part: Part, family: str) -> dict[str, float]:
    """Cost of one part without what it holds, by KINDS."""
    measured = synthesis.resources(synthesis.cells_of(part.design, family, timeout_s=TIMEOUT_S), family)
    return {kind: measured["other_ram" if kind == "uram" else kind] for kind in KINDS}


def totals(found: list[Synthesised]) -> dict[str, float]:
    """Of all parts together."""
    return {kind: sum(part.count * part.cost[kind] for part in found) for kind in KINDS}


def by_unit(found: list[Synthesised]) -> dict[str, dict[str, float]]:
    """The units, each with what it holds, the costliest first."""
    units = {part.unit: totals([other for other in found if other.unit == part.unit]) for part in found}
    return dict(sorted(units.items(), key=lambda item: -item[1]["lut"]))
