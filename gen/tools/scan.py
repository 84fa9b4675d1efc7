"""The wrapper in which a machine is placed whole: all its pins are shifted in and out over two pads.

A machine with hundreds of pins so fits any package, and nothing of it is optimised away.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from tritloom.firmware.errors import TritloomError

__all__ = ["TOP", "BuildError", "ports", "scan_wrapper"]

TOP = "scan"
LEFT_OPEN = ("trace_",)
"""Outputs that only a simulation reads: the wrapper leaves them open."""


class BuildError(TritloomError):
    """A build failed; the message names the step and its log."""


def ports(verilog: str, top: str = "top") -> list[tuple[str, str, int]]:
    """(direction, name, width) of the ports of module `top`."""
    module = re.search(rf"^module {top}\(.*?^endmodule", verilog, re.S | re.M)
    if module is None:
        raise BuildError(f"the Verilog has no module {top}")
    found = re.findall(r"^\s*(input|output)\s+(?:wire\s+|reg\s+)?(?:\[(\d+):(\d+)\]\s*)?(\\?[\w$.]+)\s*;", module.group(0), re.M)
    return [(direction, name, int(high) - int(low) + 1 if high else 1) for direction, high, low, name in found]


def scan_wrapper(verilog: str, top: str = "top") -> str:
    """Verilog of module `scan`, which contains `top`: all inputs from one shift register, all outputs into another."""
    pins = [p for p in ports(verilog, top) if p[1] not in ("clk", "rst")]
    inputs = [(name, width) for direction, name, width in pins if direction == "input"]
    outputs = [(name, width) for direction, name, width in pins if direction == "output" and not name.startswith(LEFT_OPEN)]
    n_in, n_out = sum(w for _, w in inputs), sum(w for _, w in outputs)
    if not n_in or not n_out:
        raise BuildError(f"module {top} needs inputs and outputs besides clk and rst")

    def slices(named: list[tuple[str, int]], vector: str) -> Iterable[str]:
        at = 0
        for name, width in named:
            yield f"    .{name} ({vector}[{at + width - 1}:{at}])"
            at += width

    connections = ",\n".join(["    .clk(clk)", "    .rst(reset)", *slices(inputs, "in"), *slices(outputs, "out")])
    return f"""
// Shifts the machine's {n_in} inputs in and its {n_out} outputs out.
module {TOP}(input clk, input rst, input shift, input scan_in, output scan_out);
  reg reset, shifting, bit_in;
  reg [{n_in - 1}:0] in;
  reg [{n_out - 1}:0] captured;
  wire [{n_out - 1}:0] out;
  assign scan_out = captured[{n_out - 1}];
  always @(posedge clk) begin
    reset <= rst;
    shifting <= shift;
    bit_in <= scan_in;
    if (shifting) in <= {{in, bit_in}};
    if (shifting) captured <= {{captured, in[{n_in - 1}]}};
    else captured <= out;
  end
  {top} machine(
{connections}
  );
endmodule
"""
