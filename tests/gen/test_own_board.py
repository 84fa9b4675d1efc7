"""docs/boards/own.md: the board file that the page makes, block by block, and the commands on it."""

import re
import shlex

import pytest

from machines import ROOT
from tritloom.boards.board import BoardError, load
from tritloom.gen.fit.fitted import fitted
from tritloom.gen.models import open_checkpoint
from tritloom.gen.verilog.board import board_verilog
from tritloom.host.cli import main, verbs

PAGE = (ROOT / "docs" / "boards" / "own.md").read_text("utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)
COMMANDS = [shlex.split(line)[1:] for block in re.findall(r"^```sh\n(.*?)^```", PAGE, re.M | re.S) for line in block.splitlines()]


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "models").symlink_to(ROOT / "models")
    (tmp_path / "myboard.py").write_text("\n".join(BLOCKS))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_each_block_leaves_a_board(here):
    for count in range(1, len(BLOCKS) + 1):
        (here / "myboard.py").write_text("\n".join(BLOCKS[:count]))
        board = load("./myboard.py")
        assert (board.name, board.memory) == ("myboard", "axi" if count == len(BLOCKS) else "onchip")
    assert board.wiring is not None and board.wiring.sdram is not None


def test_the_pins_are_those_of_an_ulx3s(here):
    mine, there = load("./myboard.py").wiring, load("ulx3s").wiring
    assert mine is not None and there is not None
    assert (mine.sdram_pins, mine.tied, mine.clock_pin, mine.uart_rx) == (there.sdram_pins, there.tied, there.clock_pin, there.uart_rx)


def test_a_mistake_is_named(here):
    text = (here / "myboard.py").read_text()
    (here / "myboard.py").write_text(text.replace('uart_rx="M1"', 'uart_rx="L4"'))
    with pytest.raises(BoardError, match="board myboard: pin 'L4' is wired 2 times"):
        load("./myboard.py")


@pytest.mark.slow
@pytest.mark.parametrize("number", [n for n, words in enumerate(COMMANDS) if words[0] == "fit"])
def test_fit_answers(here, capsys, number):
    assert main(COMMANDS[number]) == 0 and "fits" in capsys.readouterr().out


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_the_commands_parse(here, words):
    group = verbs()
    with group.make_context("tritloom", list(words)) as context:
        name, verb, rest = group.resolve_command(context, list(words))
        verb.make_context(name, rest).close()


@pytest.mark.slow
@pytest.mark.needs("amaranth")
def test_its_outermost_module_is_made(here):
    spec = open_checkpoint(ROOT / "models" / "stories-260k").spec
    made = board_verilog(fitted(spec, "./myboard.py", {}).config, load("./myboard.py"))
    assert 'LOCATE COMP "sdram_dq[15]" SITE "J17";' in made.constraints and "EHXPLLL" in made.pins


@pytest.mark.long
@pytest.mark.needs("amaranth", "verilator")
def test_tokens_come_through_its_pins(here, capsys):
    (words,) = [words for words in COMMANDS if "sim" in words]
    assert main(words) == 0 and capsys.readouterr().out.startswith("One day")
