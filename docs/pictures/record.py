"""A terminal's picture from a command's real output: python docs/pictures/record.py OUT.svg WIDTH COMMAND...

What the command prints on both streams, in this order, below the line that was typed; nothing is added or left out.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text


def main() -> None:
    out, width, *command = sys.argv[1:]
    settings = os.environ | {"COLUMNS": width}
    run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True, env=settings)
    console = Console(record=True, width=int(width), file=open(os.devnull, "w"))
    console.print(Text.assemble(("$ ", "green"), (shlex.join(command).replace("'", '"'), "bold")))
    console.print(Text.from_ansi(run.stdout.rstrip()))
    svg = console.export_svg(title="tritloom", theme=MONOKAI, unique_id="terminal")
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.S).replace("Fira Code", "ui-monospace, Menlo, Consolas")  # no fetched fonts
    Path(out).write_text(svg, "utf-8")


if __name__ == "__main__":
    main()
