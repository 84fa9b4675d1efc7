"""What a linter says of emitted Verilog although nothing is wrong: waived in the file itself, each rule with its reason."""

from __future__ import annotations

import re

__all__ = ["EVERYWHERE", "OPERATORS", "RANGES", "annotate"]

EVERYWHERE = {
    "DECLFILENAME": "one file holds all modules",
    "UNUSEDSIGNAL": "Amaranth names every field of a record and every port, also those that a configuration does not read",
    "PROCASSINIT": "registers have a reset and an initial value, as FPGAs do",
    "CASEINCOMPLETE": "a default assignment stands before each case statement",
    "VARHIDDEN": "a signal of a module may have the name of an instance in its parent",
}
"""Rules of `verilator -Wall` about declarations and case statements, waived for a whole file, with the reason."""

OPERATORS = {
    "WIDTHEXPAND": "Yosys writes constants and operands of operators in their own sizes; Amaranth has checked the widths before",
    "WIDTHTRUNC": "the other direction of WIDTHEXPAND, and conditions on whole vectors, which mean: not zero",
    "CMPCONST": "a bound that a configuration's index cannot exceed is compared all the same",
}
"""Waived where a value is computed; what only connects, ports of instances above all, stays checked."""

RANGES = {"ASCRANGE": "a field without bits, such as the index of a single lane, is written as [-1:0]; nothing reads it"}
"""Waived for declarations of [-1:0]."""

# What is left of a right-hand side without names, sized constants, parts and concatenations is operators.
_OPERANDS = re.compile(r"\\\S+ |\d+'s?[bdho][\da-fxz?]+|\[[^]]*\]|[A-Za-z_][\w$]*|[{}(),;\s]")
_ASSIGN = re.compile(r"  assign [^=]* = (.*)")
_EMPTY_RANGE = re.compile(r"  (?:wire|reg) (?:signed )?\[-1:0\] ")


def annotate(verilog: str) -> str:
    """`verilog` as Yosys writes it, with waivers as comments: a block that gives the reasons, and pairs around what needs them."""
    lines, open_rules = [], {}
    for line in verilog.splitlines():
        rules = _rules(line)
        if rules is not open_rules:
            if open_rules:
                lines.append("  /* verilator lint_restore */")
            if rules:
                lines.append(f"  /* verilator lint_save */ {_off(rules)}")
            open_rules = rules
        lines.append(line)
    narrow = OPERATORS | RANGES
    return "\n".join([
        "// `verilator --lint-only -Wall` passes: where its rules do not fit generated Verilog they are waived, here for the whole file,",
        *(f"/* verilator lint_off {rule} */ // {reason}" for rule, reason in EVERYWHERE.items()),
        "// and these where values are computed or ranges are empty, so that connections stay checked:",
        *(f"// {rule}: {reason}" for rule, reason in narrow.items()),
        *lines, "",
    ])  # fmt: skip


def _rules(line: str) -> dict[str, str]:
    assign = _ASSIGN.match(line)
    if assign and _OPERANDS.sub("", assign[1]):
        return OPERATORS
    return RANGES if _EMPTY_RANGE.match(line) else _NONE


def _off(rules: dict[str, str]) -> str:
    return " ".join(f"/* verilator lint_off {rule} */" for rule in rules)


_NONE: dict[str, str] = {}
