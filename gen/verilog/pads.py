"""A board's outermost module: PLL, reset, and the cells between the pins and the machine; and the file that says where the pins are.

**SDRAM.** Commands, addresses and data leave registers at the rising edge of the machine's clock. The SDRAM's clock is that clock
inverted, so that it has half a period before and after its edge. What the SDRAM sends is taken at the falling edge: it comes t_AC after
the SDRAM's own edge, through both chips' pads, so that rising edges would be too early or too late at 50 to 100 MHz.

**ECP5.** These registers are those of the pads.

**Gowin.** They are the fabric's, since nextpnr places none in a pad, and the latency of the pads' double-rate inputs is told in two ways by
their models: so the wires from and to the pads come out of those half periods. Only the SDRAM's clock leaves a double-rate output, whose
data are constant. The SDRAM in a GW2AR's package is at pads without a pin, which have names like IOL3A.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tritloom.boards.board import LEDS, Board, BoardError, Wiring

__all__ = ["PAD_LATENCY", "TOP", "Pll", "ecp5_pll", "ecp5_pins", "ecp5_top", "gowin_pins", "gowin_pll", "gowin_top"]

TOP = "board"
PAD_LATENCY = 2
"""Cycles that the pads add to a read of the SDRAM: their register on the way out, their two on the way in, less the half period that
the SDRAM's clock runs behind."""
RESET_CYCLES = 255
"""Cycles of reset after the PLL has locked or the button was let go."""

_ECP5_VCO, _ECP5_PHASE_HZ = (400e6, 800e6), 3.125e6
"""Of ECP5's PLL (FPGA-TN-02200): range of its oscillator, and least frequency at its phase detector."""
_GOWIN_VCO, _GOWIN_PHASE_HZ = (500e6, 1250e6), 3e6
"""Of GW2A's PLL at speed C8 (DS102)."""
_GOWIN_OUTPUT = (2, 4, 8, 16, 32, 48, 64, 80, 96, 112, 128)
"""Dividers that an rPLL has behind its oscillator (UG286)."""


@dataclass(frozen=True)
class Pll:
    """Divisors of a PLL whose feedback is its output: `clock_hz` = oscillator * `feedback` / `reference`, and its own oscillator runs at
    `output` times that."""

    clock_hz: float
    reference: int
    feedback: int
    output: int


def ecp5_pll(oscillator_hz: int, clock_hz: int) -> Pll:
    """Divisors of an EHXPLLL for a clock. Raises `BoardError`, which names the nearest clocks, if there are none for this very one."""
    return _pll(oscillator_hz, clock_hz, references=range(1, 129), feedbacks=range(1, 81), outputs=range(1, 129), vco=_ECP5_VCO,
                phase_hz=_ECP5_PHASE_HZ)


def gowin_pll(oscillator_hz: int, clock_hz: int) -> Pll:
    """Divisors of an rPLL for a clock. Raises `BoardError` as `ecp5_pll` does."""
    return _pll(oscillator_hz, clock_hz, references=range(1, 65), feedbacks=range(1, 65), outputs=_GOWIN_OUTPUT, vco=_GOWIN_VCO,
                phase_hz=_GOWIN_PHASE_HZ)


def _pll(oscillator_hz: int, clock_hz: int, *, references: Sequence[int], feedbacks: Sequence[int], outputs: Sequence[int],
         vco: tuple[float, float], phase_hz: float) -> Pll:
    reached = {}
    for reference in references:
        if oscillator_hz / reference < phase_hz:
            break
        for feedback in feedbacks:
            out = oscillator_hz * feedback / reference
            dividers = [d for d in outputs if vco[0] <= out * d <= vco[1]]
            if dividers:
                best = min(dividers, key=lambda d, out=out: abs(out * d - sum(vco) / 2))
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


def gowin_pins(board: Board) -> str:
    """The pins as nextpnr-himbaechel wants them for Gowin (CST)."""
    wiring = _wired(board)
    lines = []
    for name, (_, pins) in _buses(wiring).items():
        attributes = wiring.attributes | (wiring.sdram_attributes if name.startswith("sdram_") else {})
        if name == "reset":
            attributes = attributes | {"PULL_MODE": "DOWN" if wiring.reset_level else "UP"}
        for bit, pin in enumerate(pins):
            port = _bit(name, bit, pins)
            lines += [f'IO_LOC "{port}" {pin};', f'IO_PORT "{port}" {" ".join(f"{k}={v}" for k, v in attributes.items())};']
    return "\n".join(lines) + "\n"


def ecp5_top(board: Board, clock_hz: int) -> str:
    """Verilog of module `board` around module `top` (`rtl.board.BoardTop`)."""
    wiring = _wired(board)
    pll = ecp5_pll(wiring.oscillator_hz, clock_hz)

    def output(name: str, pins: tuple[str, ...]) -> list[str]:
        return [f"  OFS1P3DX {name}_pad{bit} (.D({_bit(f'{name}_o', bit, pins)}), .SP(1'b1), .SCLK(clk), .CD(1'b0), "
                f".Q({_bit(name, bit, pins)}));" for bit in range(len(pins))]

    def both(name: str, pins: tuple[str, ...]) -> list[str]:
        cells = [f"  wire {_width(pins)}{name}_o, {name}_i, {name}_held, {name}_in;", f"  wire {name}_oe;", f"  reg {name}_drive = 0;",
                 f"  always @(posedge clk) {name}_drive <= {name}_oe;"]
        for bit in range(len(pins)):
            cells += [f"  OFS1P3DX {name}_pad{bit} (.D({name}_o[{bit}]), .SP(1'b1), .SCLK(clk), .CD(1'b0), .Q({name}_held[{bit}]));",
                      f"  BB {name}_buffer{bit} (.I({name}_held[{bit}]), .T(~{name}_drive), .O({name}_in[{bit}]), .B({name}[{bit}]));",
                      f"  IDDRX1F {name}_input{bit} (.D({name}_in[{bit}]), .SCLK(clk), .RST(1'b0), .Q1({name}_i[{bit}]));"]
        return cells

    return _top(board, clock_hz, output=output, both=both, clock="""\
  ODDRX1F sdram_clk_pad (.D0(1'b0), .D1(1'b1), .SCLK(clk), .RST(1'b0), .Q(sdram_clk));""", reset="""\
  DCCA reset_net (.CLKI(units_reset), .CE(1'b1), .CLKO(units_reset_everywhere));""", pll=f"""\
  (* FREQUENCY_PIN_CLKI="{wiring.oscillator_hz / 1e6:g}", FREQUENCY_PIN_CLKOP="{clock_hz / 1e6:g}",
     ICP_CURRENT="12", LPF_RESISTOR="8", MFG_ENABLE_FILTEROPAMP="1", MFG_GMCREF_SEL="2" *)
  EHXPLLL #(.CLKI_DIV({pll.reference}), .CLKFB_DIV({pll.feedback}), .CLKOP_DIV({pll.output}), .CLKOP_CPHASE({pll.output - 1}),
            .CLKOP_FPHASE(0), .CLKOP_ENABLE("ENABLED"), .FEEDBK_PATH("CLKOP"), .OUTDIVIDER_MUXA("DIVA")) pll (
    .CLKI(clock), .CLKFB(clk), .CLKOP(clk), .LOCK(locked), .RST(1'b0), .STDBY(1'b0), .PLLWAKESYNC(1'b0), .ENCLKOP(1'b0),
    .PHASESEL0(1'b0), .PHASESEL1(1'b0), .PHASEDIR(1'b0), .PHASESTEP(1'b0), .PHASELOADREG(1'b0)
  );""")


def gowin_top(board: Board, clock_hz: int) -> str:
    """Verilog of module `board`, as that of `ecp5_top`."""
    wiring = _wired(board)
    pll = gowin_pll(wiring.oscillator_hz, clock_hz)

    def output(name: str, pins: tuple[str, ...]) -> list[str]:
        return [f"  reg {_width(pins)}{name}_pad;", f"  always @(posedge clk) {name}_pad <= {name}_o;", f"  assign {name} = {name}_pad;"]

    def both(name: str, pins: tuple[str, ...]) -> list[str]:
        width = _width(pins)
        return [f"  wire {width}{name}_o, {name}_in;", f"  wire {name}_oe;", f"  reg {width}{name}_i, {name}_held, {name}_fell;",
                f"  reg {name}_rest = 1;", "  always @(posedge clk) begin", f"    {name}_held <= {name}_o;",
                f"    {name}_rest <= ~{name}_oe;", f"    {name}_i <= {name}_fell;", "  end",
                f"  always @(negedge clk) {name}_fell <= {name}_in;",
                *(f"  IOBUF {name}_buffer{bit} (.I({name}_held[{bit}]), .OEN({name}_rest), .O({name}_in[{bit}]), .IO({name}[{bit}]));"
                  for bit in range(len(pins)))]

    return _top(board, clock_hz, output=output, both=both, clock="""\
  ODDR sdram_clk_pad (.D0(1'b0), .D1(1'b1), .TX(1'b0), .CLK(clk), .Q0(sdram_clk), .Q1());""", reset="""\
  assign units_reset_everywhere = units_reset;""", pll=f"""\
  rPLL #(.FCLKIN("{wiring.oscillator_hz / 1e6:g}"), .DEVICE("{board.device}"), .IDIV_SEL({pll.reference - 1}),
         .FBDIV_SEL({pll.feedback - 1}), .ODIV_SEL({pll.output}), .DYN_IDIV_SEL("false"), .DYN_FBDIV_SEL("false"), .DYN_ODIV_SEL("false"),
         .PSDA_SEL("0000"), .DUTYDA_SEL("1000"), .DYN_DA_EN("false"), .CLKFB_SEL("internal"), .CLKOUT_BYPASS("false")) pll (
    .CLKIN(clock), .CLKFB(1'b0), .CLKOUT(clk), .LOCK(locked), .RESET(1'b0), .RESET_P(1'b0), .IDSEL(6'd0), .FBDSEL(6'd0), .ODSEL(6'd0),
    .PSDA(4'd0), .DUTYDA(4'd0), .FDLY(4'd0), .CLKOUTP(), .CLKOUTD(), .CLKOUTD3()
  );""")


def _top(board: Board, clock_hz: int, *, pll: str, clock: str, reset: str, output: Callable[[str, tuple[str, ...]], list[str]],
         both: Callable[[str, tuple[str, ...]], list[str]]) -> str:
    """Module `board`. `pll` makes `clk` and `locked` of `clock`, `clock` the SDRAM's; `reset` carries the
    units' reset: on an ECP5 over a clock's net, as over others it takes longer to some of thousands of flip-flops than anything else.
    `output` and `both` stand between the pins of a bus, NAME, and what the machine knows of it: NAME_o; NAME_o, NAME_oe and NAME_i."""
    wiring = _wired(board)
    buses = _buses(wiring)
    ports = ",\n".join(f"  {direction} {_width(pins)}{name}" for name, (direction, pins) in buses.items())
    links = [".clk(clk)", ".rst(rst)", ".uart_rx(uart_rx)", ".uart_tx(uart_tx)", ".leds(lit)",
             ".reset_o(units_reset)", ".reset_i(units_reset_everywhere)"]
    cells = ["  wire units_reset, units_reset_everywhere;", reset]
    for name, (direction, pins) in buses.items():
        if not name.startswith("sdram_") or name == "sdram_clk":
            continue
        if direction == "output":
            links.append(f".{name}({name}_o)")
            cells += [f"  wire {_width(pins)}{name}_o;", *output(name, pins)]
        else:
            links += [f".{name}_o({name}_o)", f".{name}_oe({name}_oe)", f".{name}_i({name}_i)"]
            cells += both(name, pins)
    if "sdram_clk" in buses:
        cells.append(clock)
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
{pll}
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
