"""The outermost module of a board with DDR3: a LiteDRAM core, which makes the machine's clock, and the machine."""

from __future__ import annotations

from tritloom.boards.board import LEDS, Board, BoardError
from tritloom.gen.tools.litedram import Core
from tritloom.gen.tools.litedram_core import MODULE
from tritloom.gen.verilog import pads

__all__ = ["ddr3_top"]

PORT = "user_port_0_"
FIXED = {"wb_ctrl_we": "1'b1", "wb_ctrl_sel": "4'hF", "wb_ctrl_cti": "3'd0", "wb_ctrl_bte": "2'd0", f"{PORT}arid": "1'b0",
         f"{PORT}awid": "1'b0", "sim_trace": "1'b0"}
"""Inputs of the core that never change. Whatever else it has and is not named here is left open."""


def ddr3_top(board: Board, core: Core) -> str:
    """Verilog of module `board` around modules `top` (`rtl.board.BoardTop`) and `litedram_core`; the pins of the memory that the board does
    not wire, and those of a simulated core, which has none, are left out."""
    wiring = board.wiring
    if wiring is None:
        raise BoardError(f"board {board.name} says nothing of its pins: its file needs `wiring`")
    pins = {name: pins for name, pins in wiring.sdram_pins.items() if f"ddram_{name}" in core.ports}
    ports = ["input clock", "input reset", "input uart_rx", "output uart_tx"]
    if wiring.led_pins:
        ports.append(f"output {_width(len(wiring.led_pins))}leds")
    ports += [f"{'inout' if name in ('dq', 'dqs_p') else 'output'} {_width(len(each))}sdram_{name}" for name, each in pins.items()]
    joined = {
        "clk": "clock", "rst": "pressed", "user_clk": "clk", "user_rst": "core_rst", "wb_ctrl_cyc": "wb_cyc", "wb_ctrl_stb": "wb_cyc",
        "wb_ctrl_adr": "wb_adr", "wb_ctrl_dat_w": "wb_dat_w", "wb_ctrl_ack": "wb_ack",
        **{f"ddram_{name}": f"sdram_{name}" for name in pins},
    }
    wires = []
    links = [".clk(clk)", ".rst(rst)", ".uart_rx(uart_rx)", ".uart_tx(uart_tx)", ".leds(lit)", ".wb_adr(wb_adr)", ".wb_dat_w(wb_dat_w)",
             ".wb_cyc(wb_cyc)", ".wb_ack(wb_ack)"]
    for name, width in core.ports.items():
        signal = name.removeprefix(PORT)
        if name != signal and name not in FIXED and signal not in ("rid", "bid"):
            joined[name] = f"core_{signal}"
            wires.append(f"  wire {_width(ADDRESS if signal in ('araddr', 'awaddr') else width)}core_{signal};")
            links.append(f".core_{signal}(core_{signal})")
    connections = [f".{name}({FIXED.get(name) or _narrowed(joined[name], core.ports[name])})" for name in core.ports
                   if name in FIXED or name in joined]
    count, shown = len(wiring.led_pins), min(len(wiring.led_pins), len(LEDS))
    lit = f"lit[{shown - 1}:0]" if count <= shown else f"{{{count - shown}'d0, lit}}"
    leds = f"  assign leds = {'' if wiring.led_level else '~'}{lit};\n" if count else ""
    newline = "\n"
    return f"""
// {board.title}: DDR3 by LiteDRAM, whose clock is the machine's.
module {pads.TOP}(
  {(","+newline+"  ").join(ports)}
);
  wire clk, core_rst, wb_cyc, wb_ack;
  wire [29:0] wb_adr;
  wire [31:0] wb_dat_w;
  wire pressed = reset == 1'b{wiring.reset_level};
  wire [{len(LEDS) - 1}:0] lit;
{newline.join(wires)}
  reg [1:0] held = 3;
  reg [{pads.RESET_CYCLES.bit_length() - 1}:0] waited = 0;
  reg rst = 1;
  always @(posedge clk) begin
    held <= {{held[0], pressed | core_rst}};
    if (held[1]) waited <= 0;
    else if (waited != {pads.RESET_CYCLES}) waited <= waited + 1'b1;
    rst <= waited != {pads.RESET_CYCLES};
  end
{leds}  {MODULE} memory (
    {(","+newline+"    ").join(connections)}
  );
  top machine (
    {(","+newline+"    ").join(links)}
  );
endmodule
"""


ADDRESS = 40
"""Bits of the machine's addresses; the core takes the lower ones."""


def _narrowed(name: str, width: int) -> str:
    return f"{name}[{width - 1}:0]" if name in ("core_araddr", "core_awaddr") else name


def _width(bits: int) -> str:
    return f"[{bits - 1}:0] " if bits > 1 else ""
