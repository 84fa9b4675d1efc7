"""DDR3 by LiteDRAM: the core for a board, what initialises it, and the outermost module around both."""

import dataclasses
import re

import pytest

from machines import TINY
from tritloom.boards.board import BoardError, load
from tritloom.firmware.config import ConfigError
from tritloom.gen.tools import litedram
from tritloom.gen.verilog import pads
from tritloom.gen.verilog.board import board_verilog
from tritloom.gen.verilog.ddr3 import ddr3_top

pytestmark = [pytest.mark.slow, pytest.mark.needs("amaranth", "litedram")]

BOARD = load("ecpix5")
SELECT, CLOCK_ENABLE = 1, 2
CONTROL, COMMAND, ISSUE, ADDRESS, BANK = 0x1000, 0x1004, 0x1008, 0x100C, 0x1010
"""Where the registers are for as long as nothing else is in the core: a version of LiteDRAM that moves them is noticed here."""
LOAD_MODE, CALIBRATE = 0b1111, 0b0011
"""RAS, CAS, WE and CS, as LiteDRAM has them in one register."""


@pytest.fixture(scope="module")
def core():
    return litedram.core_of(BOARD, BOARD.clock_hz)


def test_a_memory_is_initialised_as_jedec_wants_it(core):
    """JESD79-3: reset, 500 us without CKE, mode registers 2, 3, 1, 0, the long calibration of 512 clocks; then the controller."""
    written = [(each.address, each.value) for each in core.start.writes]
    commands = [(dict(written[max(0, i - 4) : i])[BANK], value) for i, (address, value) in enumerate(written) if address == COMMAND]
    assert commands == [(2, LOAD_MODE), (3, LOAD_MODE), (1, LOAD_MODE), (0, LOAD_MODE), (0, CALIBRATE)]
    controls = [each for each in core.start.writes if each.address == CONTROL]
    assert [each.value & CLOCK_ENABLE for each in controls[:2]] == [0, CLOCK_ENABLE] and controls[-1].value == SELECT
    assert controls[0].cycles >= 500e-6 * BOARD.clock_hz
    memory_clocks = 2
    waits = [each.cycles for each in core.start.writes if each.address == ISSUE]
    assert waits[-1] * memory_clocks >= 512 and min(waits) * memory_clocks >= 12  # tMOD


def test_both_bytes_of_the_bus_are_levelled(core):
    levels = core.start.levelling
    assert levels is not None and (levels.modules, levels.delays, levels.slips) == (2, 8, 4)
    assert len({levels.select, levels.delay, levels.delay_reset, levels.slip, levels.slip_reset}) == 5


def test_a_simulated_core_has_no_pins_and_nothing_to_level(core):
    simulated = litedram.core_of(BOARD, BOARD.clock_hz, simulated=True)
    assert simulated.start.levelling is None and not [name for name in simulated.ports if name.startswith("ddram")]
    for port in ("user_port_0_rdata", "user_port_0_wstrb", "wb_ctrl_adr"):
        assert simulated.ports[port] == core.ports[port]
    assert core.ports["user_port_0_rdata"] == 8 * core.start.mem_bytes


def test_every_pin_of_the_memory_goes_into_the_core_once(core):
    assert BOARD.wiring is not None
    text, pins = ddr3_top(BOARD, core), pads.ecp5_pins(BOARD)
    for name, sites in BOARD.wiring.sdram_pins.items():
        assert text.count(f".ddram_{name}(sdram_{name})") == 1
        for bit, site in enumerate(sites):
            port = f"sdram_{name}[{bit}]" if len(sites) > 1 else f"sdram_{name}"
            assert f'LOCATE COMP "{port}" SITE "{site}";' in pins
    assert 'IOBUF PORT "sdram_dqs_p[1]" IO_TYPE=SSTL15D_I SLEWRATE=FAST TERMINATION=OFF DIFFRESISTOR=100;' in pins
    inputs = {name for name in re.findall(r"^ +input +wire +(?:\[\d+:0\])? *(\w+)", core.verilog, re.M) if name in core.ports}
    joined = set(re.findall(r"^    \.(\w+)\(", text[text.index("litedram_core memory"):text.index("top machine")], re.M))
    assert {f"ddram_{name}" for name in ("dq", "dqs_p")} == set(re.findall(r"^ +inout +wire +\[\d+:0\] *(\w+),", core.verilog, re.M))
    assert inputs - joined == {"ddram_clk_n", "ddram_dqs_n"}  # the other half of pairs, which the pads make


def test_the_whole_board_s_verilog_is_made(core):
    config = dataclasses.replace(TINY, memory="axi", mem_bytes=16, clock_hz=BOARD.clock_hz)
    made = board_verilog(config, BOARD)
    assert made.others == core.verilog and "module top(" in made.machine and "module board(" in made.pins
    with pytest.raises(ConfigError, match="a beat of its memory has 16 bytes: leave mem_bytes at that"):
        board_verilog(dataclasses.replace(config, mem_bytes=8), BOARD)


def test_boards_without_ddr3_are_refused(monkeypatch):
    with pytest.raises(BoardError, match="board ulx3s wires no DDR3"):
        litedram.core_of(load("ulx3s"), 50_000_000)
    with pytest.raises(BoardError, match="DDR3 is reached on ecp5, not on gowin"):
        litedram.core_of(dataclasses.replace(BOARD, family="gowin"), 50_000_000)

    def missing(name):
        raise litedram.PackageNotFoundError(name)

    monkeypatch.setattr(litedram, "version", missing)
    with pytest.raises(litedram.LiteDramError, match="the package litex is missing.*make setup"):
        litedram.core_of(BOARD, 50_000_000)


def test_a_chip_that_litedram_does_not_know_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITLOOM_CACHE", str(tmp_path))
    assert BOARD.wiring is not None and BOARD.wiring.sdram is not None
    chip = dataclasses.replace(BOARD.wiring.sdram, name="MT99")
    board = dataclasses.replace(BOARD, wiring=dataclasses.replace(BOARD.wiring, sdram=chip))
    with pytest.raises(litedram.LiteDramError, match="LiteDRAM made no core: .*MT99"):
        litedram.core_of(board, 50_000_000)
