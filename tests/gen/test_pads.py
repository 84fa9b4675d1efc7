"""A board's pins: what is wired where, the clock that a PLL makes, and the files that say so."""

import dataclasses
import importlib.resources
import re

import pytest

from machines import TINY
from tritloom.boards.board import LEDS, Board, BoardError, load, names
from tritloom.boards.sdram import DdrChip, SdramChip
from tritloom.firmware.config import ConfigError
from tritloom.gen.verilog import pads
from tritloom.gen.verilog.board import FAMILIES, board_verilog

ULX3S = load("ulx3s")
TANG = load("tang-nano-20k")
WIRED = [board for board in map(load, names()) if board.wiring is not None and not isinstance(board.wiring.sdram, DdrChip)]


def rewired(**changes) -> Board:
    """ULX3S with other wires."""
    assert ULX3S.wiring is not None
    return dataclasses.replace(ULX3S, wiring=dataclasses.replace(ULX3S.wiring, **changes))


@pytest.mark.parametrize("clock_hz", [50_000_000, 60_000_000, 62_500_000, 65_000_000, 75_000_000])
def test_a_pll_makes_the_very_clock(clock_hz):
    """Ranges: Lattice FPGA-TN-02200 and the ECP5 data sheet."""
    pll = pads.ecp5_pll(25_000_000, clock_hz)
    assert 25_000_000 * pll.feedback == clock_hz * pll.reference
    assert 400e6 <= clock_hz * pll.output <= 800e6 and 25e6 / pll.reference >= 3.125e6
    assert 1 <= pll.reference <= 128 and 1 <= pll.feedback <= 80 and 1 <= pll.output <= 128


@pytest.mark.parametrize("clock_hz", [40_500_000, 45_000_000, 48_000_000, 54_000_000])
def test_gowin_s_pll_makes_the_very_clock(clock_hz):
    """Ranges: Gowin UG286 and DS102, speed C8."""
    pll = pads.gowin_pll(27_000_000, clock_hz)
    assert 27_000_000 * pll.feedback == clock_hz * pll.reference
    assert 500e6 <= clock_hz * pll.output <= 1250e6 and 27e6 / pll.reference >= 3e6
    assert 1 <= pll.reference <= 64 and 1 <= pll.feedback <= 64 and pll.output in (2, 4, 8, 16, 32, 48, 64, 80, 96, 112, 128)
    cell = f".IDIV_SEL({pll.reference - 1}),\n         .FBDIV_SEL({pll.feedback - 1}), .ODIV_SEL({pll.output})"
    assert cell in pads.gowin_top(TANG, clock_hz)
    with pytest.raises(BoardError, match="no PLL of this device makes 41 MHz of 27 MHz; the nearest are 40.8913 MHz and 41.04 MHz|nearest"):
        pads.gowin_pll(27_000_000, 41_000_000)


def test_a_clock_that_no_pll_makes_is_refused_with_the_nearest():
    with pytest.raises(BoardError, match=r"61.2346 MHz of 25 MHz; the nearest are 60.7143 MHz and 62.5 MHz: give --set clock_hz"):
        pads.ecp5_pll(25_000_000, 61_234_567)


@pytest.mark.parametrize("board", WIRED, ids=lambda board: board.name)
def test_every_port_has_its_pins_and_its_cells(board):
    write_top, write_pins = FAMILIES[board.family]
    verilog, pins = write_top(board, board.clock_hz), write_pins(board)
    ports = re.findall(r"^  (input|output|inout) (?:\[(\d+):0\] )?(\w+)[,\n]", verilog, re.M)
    placed = re.findall({"ecp5": r'LOCATE COMP "(.*?)" SITE "(\w+)";', "gowin": r'IO_LOC "(.*?)" (\w+);'}[board.family], pins)
    bits = [f"{name}[{bit}]" if high else name for _, high, name in ports for bit in range(int(high or 0) + 1)]
    assert [name for name, _ in placed] == bits
    sites = [site for _, site in placed]
    assert len(set(sites)) == len(sites)
    assert len(re.findall("IOBUF PORT|IO_PORT", pins)) == len(placed)
    outputs = [name for direction, _, name in ports if direction == "output" and name.startswith("sdram_") and name != "sdram_clk"]
    for name in outputs:
        high = next(int(high or 0) for _, high, other in ports if other == name)
        if board.family == "gowin":
            assert f"always @(posedge clk) {name}_pad <= {name}_o;\n  assign {name} = {name}_pad;" in verilog
        else:
            for bit in range(high + 1):
                assert f".Q({name}[{bit}])" in verilog if high else f".Q({name})" in verilog
    dq = board.wiring.sdram.width if board.wiring.sdram else 0
    if board.family == "gowin":
        assert len(re.findall(r"^  IOBUF ", verilog, re.M)) == dq and "always @(negedge clk) sdram_dq_fell <= sdram_dq_in;" in verilog
    else:
        assert len(re.findall(r"^  BB ", verilog, re.M)) == len(re.findall(r"^  IDDRX1F ", verilog, re.M)) == dq


@pytest.mark.needs("apycula")
def test_the_pads_of_the_sdram_in_the_package():
    """Those that apicula's chip database has under the names by which Gowin's tools find them."""
    from apycula.chipdb import load_chipdb

    database = load_chipdb(str(importlib.resources.files("apycula") / "GW2A-18C.msgpack.xz"))
    theirs = {name: f"IO{'R' if column else 'L'}{row + 1}{pad}" for name, row, column, pad, _ in database.sip_cst[TANG.device]["QFN88"]}
    names = {"a": "O_sdram_addr", "we_n": "O_sdram_wen_n", "dq": "IO_sdram_dq"}
    assert TANG.wiring is not None
    ours = {names.get(signal, f"O_sdram_{signal}") + (f"[{bit}]" if len(pins) > 1 else ""): pin
            for signal, pins in TANG.wiring.sdram_pins.items() for bit, pin in enumerate(pins)}
    assert ours == theirs


def test_fewer_or_more_leds_than_there_is_to_show():
    assert f"assign leds = ~lit[{1}:0];" in pads.ecp5_top(rewired(led_pins=("A1", "A2"), led_level=0), 50_000_000)
    assert f"assign leds = {{{8 - len(LEDS)}'d0, lit}};" in pads.ecp5_top(ULX3S, 50_000_000)
    assert "leds =" not in pads.ecp5_top(rewired(led_pins=()), 50_000_000)


assert ULX3S.wiring is not None
BARE = {name: pins for name, pins in ULX3S.wiring.sdram_pins.items() if name not in SdramChip.TIED}


def test_signals_that_the_board_ties_are_no_pins():
    verilog = pads.ecp5_top(rewired(sdram_pins=BARE), 50_000_000)
    assert "sdram_ras_n" in verilog and not [name for name in SdramChip.TIED if f"sdram_{name}" in verilog]


@pytest.mark.needs("amaranth")
def test_without_masks_a_machine_writes_whole_words():
    bare = rewired(sdram_pins=BARE)
    odd = dataclasses.replace(TINY.shape, head_dim=6)
    for changes in (dict(mem_bytes=8), dict(shape=odd, vector_lanes=2, attention_macs=2)):
        with pytest.raises(ConfigError, match="does not wire its SDRAM's DQM.* it takes mem_bytes 4 .*head_dim that is a multiple of 4"):
            board_verilog(dataclasses.replace(TINY, memory="axi", **changes), bare)


@pytest.mark.parametrize("changes, message", [
    (dict(sdram_pins=BARE | {"dqm": ("U19",)}), "the SDRAM's signal dqm has 2 pins, not 1"),
    (dict(sdram_pins={name: pins for name, pins in BARE.items() if name != "we_n"}), "the SDRAM's signal we_n has 1 pins, not 0"),
    (dict(uart_rx="G2"), r"pin 'G2' is wired 2 times"),
    (dict(reset_pin=""), r"pin '' is wired 1 times"),
    (dict(led_level=2), "the level of led_level must be 0 or 1, not 2"),
    (dict(tied={"L2": -1}), "the level of L2 must be 0 or 1, not -1"),
    (dict(oscillator_hz=0), "oscillator_hz and baud must be positive"),
    (dict(sdram=None), r"the SDRAM's signal clk has 0 pins, not 1"),
    (dict(sdram_pins={}), r"the SDRAM's signal clk has 1 pins, not 0"),
    (dict(sdram=None, sdram_pins={}), "has no SDRAM: memory, mem_ports .1. and dram_bytes must say the same"),
])
def test_wires_that_cannot_be(changes, message):
    with pytest.raises(BoardError, match=f"board ulx3s: .*{message}"):
        rewired(**changes)


@pytest.mark.needs("amaranth")
def test_a_family_without_pads_is_refused():
    config = dataclasses.replace(TINY, memory="axi")
    with pytest.raises(BoardError, match="has no pads of family ice40 yet, only of ecp5, gowin"):
        board_verilog(config, dataclasses.replace(ULX3S, family="ice40"))


def test_a_board_without_wires_has_no_outermost_module():
    with pytest.raises(BoardError, match="board ecp5-85f says nothing of its pins"):
        pads.ecp5_top(load("ecp5-85f"), 50_000_000)
