"""tritloom board-sim: a board at whose pins nobody sits, behind a pseudo-terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from tritloom.host.commands.common import MachineOptions
from tritloom.host.console import Console

if TYPE_CHECKING:
    from tritloom.gen.source import Source

EVERY_S = 2.0
"""Between two looks at the LEDs."""


def command(
    source: Source,
    *,
    board: Annotated[str, typer.Option("--board", metavar="BOARD", help="Board to simulate: a name, or the path of a board file.")],
    machine: MachineOptions,
) -> None:
    """Simulate a whole board at its pins; a serial port leads to it. Ends by Ctrl-C."""
    from tritloom.sim.board import Terminal
    from tritloom.sim.prepare import open_board

    console = Console()
    plan = machine.plan(board)
    config = plan.configuration(source.spec(plan.context))
    with open_board(config, plan.board, console) as simulated:
        terminal = Terminal(simulated)
        console.stream(f"{simulated.board.title}, simulated: {terminal.path}\n")
        model = f"{source.path}{source.words}{machine.words}"
        console.note(f"in another terminal: tritloom run {model} --board {board} --backend uart --port {terminal.path}")
        shown = None
        try:
            while True:
                terminal.serve(EVERY_S, idle_s=0.01)
                lit = ", ".join(name for name, on in simulated.leds.items() if on and name != "alive") or "none"
                if lit != shown:
                    console.note(f"{simulated.cycles / simulated.clock_hz:.3f} s on the board; LEDs lit: {lit}")
                shown = lit
        finally:
            terminal.close()
