"""A board's outermost module: PLL, reset, and the cells between the pins and the machine; and the file that says where the pins are.

**SDRAM.** Commands, addresses and data leave registers in the pads at the rising edge of the machine's clock. The SDRAM's clock is that
clock inverted, so that it has half a period before and after its edge. What the SDRAM sends is taken at the falling edge: it comes
t_AC after the SDRAM's own edge, through both chips' pads, so that rising edges would be too early or too late at 50 to 100 MHz.
"""

from __future__ import annotations

from dataclasses import dataclass

from tritloom.boards.board import LEDS, Board, BoardError, Wiring

__all__ = ["PAD_LATENCY", "TOP", "Pll", "ecp5_pll", "ecp5_pins", "ecp5_top"]

TOP = "board"
PAD_LATENCY = 2
"""Cycles that the pads add to a read of the SDRAM: their register on the way out, their two on the way in, less the half period that
the SDRAM's clock runs behind."""
RESET_CYCLES = 255
"""Cycles of reset after the PLL has locked or the button was let go."""

_VCO = (400e6, 800e6)
_PHASE_HZ = 3.125e6
"""Of ECP5's PLL (FPGA-TN-02200): range of its oscillator, and least frequency at its phase detector."""


@dataclass(frozen=True)
class Pll:
    """Divisors of an EHXPLLL whose feedback is its output CLKOP: `clock_hz` = oscillator * `feedback` / `reference`."""

    clock_hz: float
    reference: int
    feedback: int
    output: int


def ecp5_pll(oscillator_hz: int, clock_hz: int) -> Pll:
    """Divisors for a clock. Raises `BoardError`, which names the nearest clocks, if there are none for this very one."""
    reached = {}
    for reference in range(1, 129):
        if oscillator_hz / reference < _PHASE_HZ:
            break
        for feedback in range(1, 81):
            out = oscillator_hz * feedback / reference
            dividers = [d for d in range(1, 129) if _VCO[0] <= out * d <= _VCO[1]]
            if dividers:
                best = min(dividers, key=lambda d, out=out: abs(out * d - 600e6))
                reached.setdefault(round(out, 3), Pll(out, reference, feedback, best))
    if clock_hz in reached:
        return reached[clock_hz]
    below, above = max((f for f in reached if f < clock_hz), default=None), min((f for f in reached if f > clock_hz), default=None)
    near = " and ".join(f"{f / 1e6:g} MHz" for f in (below, above) if f is not None)
    raise BoardError(f"no PLL of this device makes {clock_hz / 1e6:g} MHz of {oscillator_hz / 1e6:g} MHz; the nearest are {near}: "
                     "give --set clock_hz")


def _buses(wiring: Wiring) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Direction and pins of each port of the outermost module."""
    buses: dict[str, tuple[str, tuple[str, ...]]] = {"clock": ("input", (wiring.clock_pin,)), "reset": ("input", (wiring.reset_pin,)),
             "uart_rx": ("input", (wiring.uart_rx,)), "uart_tx": ("output", (wiring.uart_tx,))}
    if wiring.led_pins:
        buses["leds"] = ("output", wiring.led_pins)
    if wiring.tied:
        buses["tied"] = ("output", tuple(wiring.tied))
    return buses | {f"sdram_{name}": ("inout" if name in ("dq", "dqs_p") else "output", pins) for name, pins in wiring.sdram_pins.items()}


def ecp5_pins(board: Board) -> str:
    """The pins as nextpnr-ecp5 wants them (LPF)."""
    wiring = _wired(board)
    lines = [f'FREQUENCY PORT "clock" {wiring.oscillator_hz / 1e6:g} MHZ;']
    for name, (_, pins) in _buses(wiring).items():
        attributes = wiring.attributes
        if name.startswith("sdram_"):
            attributes = attributes | wiring.sdram_attributes | wiring.signal_attributes.get(name.removeprefix("sdram_"), {})
        if name == "reset":
            attributes = attributes | {"PULLMODE": "DOWN" if wiring.reset_level else "UP"}
        for bit, pin in enumerate(pins):
            port = f"{name}[{bit}]" if len(pins) > 1 else name
            lines += [f'LOCATE COMP "{port}" SITE "{pin}";', f'IOBUF PORT "{port}" {" ".join(f"{k}={v}" for k, v in attributes.items())};']
    return "\n".join(lines) + "\n"


def ecp5_top(board: Board, clock_hz: int) -> str:
    """Verilog of module `board` around module `top` (`rtl.board.BoardTop`)."""
    wiring = _wired(board)
    pll = ecp5_pll(wiring.oscillator_hz, clock_hz)
    buses = _buses(wiring)
    ports = ",\n".join(f"  {direction} {_width(pins)}{name}" for name, (direction, pins) in buses.items())
    links = [".clk(clk)", ".rst(rst)", ".uart_rx(uart_rx)", ".uart_tx(uart_tx)", ".leds(lit)"]
    cells = []
    for name, (direction, pins) in buses.items():
        if not name.startswith("sdram_") or name == "sdram_clk":
            continue
        width = _width(pins)
        if direction == "output":
            cells.append(f"  wire {width}{name}_o;")
            links.append(f".{name}({name}_o)")
            cells += [f"  OFS1P3DX {name}_pad{bit} (.D({_bit(f'{name}_o', bit, pins)}), .SP(1'b1), .SCLK(clk), .CD(1'b0), "
                      f".Q({_bit(name, bit, pins)}));" for bit in range(len(pins))]
        else:
            cells += [f"  wire {width}{name}_o, {name}_i, {name}_held, {name}_in;", f"  wire {name}_oe;", f"  reg {name}_drive = 0;",
                      f"  always @(posedge clk) {name}_drive <= {name}_oe;"]
            links += [f".{name}_o({name}_o)", f".{name}_oe({name}_oe)", f".{name}_i({name}_i)"]
            for bit in range(len(pins)):
                cells += [f"  OFS1P3DX {name}_pad{bit} (.D({name}_o[{bit}]), .SP(1'b1), .SCLK(clk), .CD(1'b0), .Q({name}_held[{bit}]));",
                          f"  BB {name}_buffer{bit} (.I({name}_held[{bit}]), .T(~{name}_drive), .O({name}_in[{bit}]), .B({name}[{bit}]));",
                          f"  IDDRX1F {name}_input{bit} (.D({name}_in[{bit}]), .SCLK(clk), .RST(1'b0), .Q1({name}_i[{bit}]));"]
    if "sdram_clk" in buses:
        cells.append("  ODDRX1F sdram_clk_pad (.D0(1'b0), .D1(1'b1), .SCLK(clk), .RST(1'b0), .Q(sdram_clk));")
    if wiring.led_pins:
        count, shown = len(wiring.led_pins), min(len(wiring.led_pins), len(LEDS))
        lit = f"lit[{shown - 1}:0]" if count <= shown else f"{{{count - shown}'d0, lit}}"
        cells.append(f"  assign leds = {'' if wiring.led_level else '~'}{lit};")
    if wiring.tied:
        cells.append(f"  assign tied = {len(wiring.tied)}'b{''.join(str(level) for level in reversed(wiring.tied.values()))};")
    connections = ",\n    ".join(links)
    body = "\n".join(cells)
    return f"""
// {board.title}: pins, clock ({clock_hz / 1e6:g} MHz) and reset around the machine.
module {TOP}(
{ports}
);
  wire clk, locked;
  (* FREQUENCY_PIN_CLKI="{wiring.oscillator_hz / 1e6:g}", FREQUENCY_PIN_CLKOP="{clock_hz / 1e6:g}",
     ICP_CURRENT="12", LPF_RESISTOR="8", MFG_ENABLE_FILTEROPAMP="1", MFG_GMCREF_SEL="2" *)
  EHXPLLL #(.CLKI_DIV({pll.reference}), .CLKFB_DIV({pll.feedback}), .CLKOP_DIV({pll.output}), .CLKOP_CPHASE({pll.output - 1}),
            .CLKOP_FPHASE(0), .CLKOP_ENABLE("ENABLED"), .FEEDBK_PATH("CLKOP"), .OUTDIVIDER_MUXA("DIVA")) pll (
    .CLKI(clock), .CLKFB(clk), .CLKOP(clk), .LOCK(locked), .RST(1'b0), .STDBY(1'b0), .PLLWAKESYNC(1'b0), .ENCLKOP(1'b0),
    .PHASESEL0(1'b0), .PHASESEL1(1'b0), .PHASEDIR(1'b0), .PHASESTEP(1'b0), .PHASELOADREG(1'b0)
  );
  reg [1:0] pressed = 3;
  reg [{RESET_CYCLES.bit_length() - 1}:0] waited = 0;
  reg rst = 1;
  always @(posedge clk) begin
    pressed <= {{pressed[0], (reset == 1'b{wiring.reset_level}) | ~locked}};
    if (pressed[1]) waited <= 0;
    else if (waited != {RESET_CYCLES}) waited <= waited + 1'b1;
    rst <= waited != {RESET_CYCLES};
  end
  wire [{len(LEDS) - 1}:0] lit;
{body}
  top machine (
    {connections}
  );
endmodule
"""


def _width(pins: tuple[str, ...]) -> str:
    return f"[{len(pins) - 1}:0] " if len(pins) > 1 else ""


def _bit(name: str, bit: int, pins: tuple[str, ...]) -> str:
    return f"{name}[{bit}]" if len(pins) > 1 else name


def _wired(board: Board) -> Wiring:
    if board.wiring is None:
        raise BoardError(f"board {board.name} says nothing of its pins: its file needs `wiring`")
    return board.wiring
