"""tritloom run: text from a model, on a board, a simulated machine or the emulator."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tritloom.firmware.config import BuildConfig
from tritloom.firmware.errors import InputError
from tritloom.firmware.image import Image
from tritloom.firmware.integer import GREEDY, Sampling
from tritloom.host.backends.protocol import Backend
from tritloom.host.backends.uart import UartBackend
from tritloom.host.commands.common import (
    BoardOption,
    JsonOption,
    MachineOptions,
    Plan,
    board_of,
    check_file,
    check_memory,
    saturation_text,
    seconds,
    table,
    texts_of,
)
from tritloom.host.console import Console
from tritloom.host.image import open_image
from tritloom.host.request import Request
from tritloom.host.session import Session, check_drafts, sampling
from tritloom.host.stats import Stats
from tritloom.host.tokenizer import Tokenizer
from tritloom.system.ending import undone

if TYPE_CHECKING:
    from tritloom.gen.source import Source
    from tritloom.sim.waves import Waves

BACKENDS = ("sim", "emulator", "axi", "pynq", "uart")
SIMULATED_PORT = "sim"
"""Instead of a port: the board's pins are simulated in this process."""
SIMULATED_PACE = 100
"""Behind a pseudo-terminal is a simulated board (`board-sim`): it is given so many times as long as a board."""
DEFAULT_TOKENS = 64
DEFAULT_PROMPT = "Once upon a time"


def command(
    source: Source,
    *,
    image_file: Annotated[
        Path | None, typer.Option("--image", metavar="FILE", help="Image that `pack` wrote; it holds all that is needed of the model.")
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option("--prompt", metavar="TEXT", help=f"Text to go on from ({DEFAULT_PROMPT!r} by default), - for that on stdin; "
                                                       "several of them are written together."),
    ] = None,
    prompt_file: Annotated[
        list[Path] | None,
        typer.Option("--prompt-file", metavar="FILE", help="UTF-8 file with such a text; the end of its last line is no part of it."),
    ] = None,
    tokens: Annotated[int | None, typer.Option("--tokens", min=1, metavar="N", help="Tokens to generate at most (64 by default).")] = None,
    backend: Annotated[str, typer.Option("--backend", metavar="|".join(BACKENDS), help="Simulated RTL, the bit-exact emulator, the machine "
                                         "on this board (UIO, or PYNQ), or a board at a UART.")] = "sim",
    port: Annotated[
        str | None,
        typer.Option("--port", metavar="PORT", help=f"Serial port of the board, such as /dev/ttyUSB0, or {SIMULATED_PORT}: the board's own "
                                                    "pins are simulated."),
    ] = None,
    overlay: Annotated[
        Path | None, typer.Option("--overlay", metavar="FILE", help="Bitstream for --backend pynq, its .hwh beside it.")
    ] = None,
    board: BoardOption = None,
    temperature: Annotated[float | None, typer.Option("--temperature", metavar="X", help="0 is greedy, the default.")] = None,
    top_k: Annotated[int | None, typer.Option("--top-k", metavar="K", help="Choose among the K likeliest tokens.")] = None,
    top_p: Annotated[
        float | None, typer.Option("--top-p", metavar="P", help="Choose among the likeliest tokens of total probability P.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", metavar="S", help="Seed of the choice, 0 by default.")] = None,
    drafts: Annotated[
        int, typer.Option("--drafts", metavar="N", help="Guess up to N tokens from the text and check them in one pass.")
    ] = 0,
    ignore_stop: Annotated[bool, typer.Option("--ignore-stop", help="Go on after the model's end of text.")] = False,
    timing: Annotated[
        str | None, typer.Option("--timing", metavar="NAME", help="Timing of the simulated memory (the board's by default).")
    ] = None,
    vcd: Annotated[
        Path | None, typer.Option("--vcd", metavar="FILE", help="Also write the simulated machine's waves, which grow fast: few tokens.")
    ] = None,
    machine: MachineOptions,
    as_json: JsonOption = False,
) -> None:
    """Generate text, with a model or with an image that `pack` wrote."""
    from tritloom.sim.dram import timing_of

    console = Console(json=as_json)
    if backend not in BACKENDS:
        raise InputError(f"no backend {backend}: choose {', '.join(BACKENDS[:-1])} or {BACKENDS[-1]}")
    if (port is None) == (backend == "uart"):
        raise InputError("--backend uart needs --port, such as --port /dev/ttyUSB0" if backend == "uart" else
                         "--port is that of a board: leave it out, or take --backend uart")
    if (overlay is None) == (backend == "pynq"):
        raise InputError("--backend pynq needs --overlay, such as --overlay tritloom.bit" if backend == "pynq" else
                         "--overlay is PYNQ's: leave it out, or take --backend pynq")
    if timing is not None:
        if backend != "sim":
            raise InputError("--timing is that of the simulated memory: leave it out, or take --backend sim")
        timing = timing_of(timing)
    if vcd is not None:
        if backend != "sim":
            raise InputError("--vcd is the simulated machine's waves: leave it out, or take --backend sim")
        check_file(vcd, "--vcd")
    choice = sampling(temperature, top_k, top_p, seed)
    if seed is not None and choice == GREEDY:
        console.note("--seed changes nothing, the choice is greedy: give --temperature, --top-k or --top-p too")
    prompts = texts_of(prompt, prompt_file) or [DEFAULT_PROMPT]
    named = any(each.startswith("sequences=") for each in machine.settings or ())
    several = [f"sequences={len(prompts)}"] if len(prompts) > 1 and machine.config_file is None and not named else []
    if image_file is not None:
        if source.given or source.said or machine.settings or machine.config_file or machine.context is not None:
            raise InputError("an image holds a model for one machine: beside --image leave MODEL, --activation, --i2s, --tokenizer, "
                             "--context, --set and --config out")
        found = in_image(image_file, board, console)
    else:
        found = in_checkpoint(source, machine.plan(board, *several), console)
    if backend == "sim":
        timing = timing_of(timing, found.board)
    ids = [found.tokenizer.encode(text, found.config.shape.vocab) for text in prompts]
    counts = [length(len(each), tokens, found.config.shape.context) for each in ids]
    check_drafts(drafts, found.config)
    if len(prompts) > found.config.sequences:
        raise InputError(f"{len(prompts)} prompts need as many caches, this machine has {found.config.sequences}: give --set sequences=N")
    image = found.image()
    with recording(vcd, console) as waves:
        device = (open_port(port, found.board, image, console) if port else open_overlay(overlay, image) if overlay else
                  open_backend(backend, image, timing or "", console, waves))
        try:
            with console.step("Loading the machine") as update:
                if isinstance(device, UartBackend):
                    device.progress = over_sections(update, sum(len(data) for _, data in image.memory()))
                session = Session(device, image)
            with session:
                stop_ids = () if ignore_stop else found.stop_ids
                if len(prompts) > 1:
                    together(session, found.tokenizer, prompts, ids, counts, stop_ids, choice, drafts, console)
                else:
                    generate(session, found.tokenizer, prompts[0], ids[0], counts[0], stop_ids, choice, drafts, console)
        finally:
            device.close()


def over_sections(update: Callable[[int, int], None], total: int) -> Callable[[int, int], None]:
    """What is told the bytes of one section after the other, and tells `update` those of all, `total`."""
    before = 0

    def progress(done: int, length: int) -> None:
        nonlocal before
        update(before + done, total)
        if done == length:
            before += length

    return progress


@dataclass(frozen=True)
class Found:
    """A model with its machine. `image` packs the weights, if that has not been done."""

    board: str
    tokenizer: Tokenizer
    stop_ids: tuple[int, ...]
    config: BuildConfig
    image: Callable[[], Image]


def in_image(path: Path, board: str | None, console: Console) -> Found:
    with console.step("Reading the image"):
        image = open_image(path)
    board = board_of(image.config, board, path)
    try:
        tokenizer = Tokenizer.from_bytes(image.tokenizer, image.bos_id)
    except InputError as error:
        raise InputError(f"the tokenizer in {path}: {error}") from None
    return Found(board, tokenizer, image.stop_ids, image.config, lambda: image)


def in_checkpoint(source: Source, plan: Plan, console: Console) -> Found:
    from tritloom.sim.prepare import image_of

    with console.step("Reading the model"):
        checkpoint = source.open(plan.context)
        tokenizer = Tokenizer.from_file(checkpoint.tokenizer, checkpoint.spec.bos_id)
        config = plan.configuration(checkpoint.spec)
    for note in checkpoint.tokenizer.notes:
        console.note(f"note: {note}")
    return Found(plan.board, tokenizer, checkpoint.spec.eos_ids, config, lambda: image_of(source, checkpoint, config, console))


def length(prompt: int, tokens: int | None, context: int) -> int:
    """Tokens to generate; what the session would refuse is refused before minutes of compilation."""
    if prompt > context:
        raise InputError(f"the prompt of {prompt} tokens is longer than the context of {context}: shorten it")
    room = context - prompt + 1
    if tokens is None:
        return min(DEFAULT_TOKENS, room)
    if tokens > room:
        raise InputError(f"{tokens} tokens after a prompt of {prompt} go past the context of {context}: ask for at most {room}")
    return tokens


@contextmanager
def recording(path: Path | None, console: Console) -> Iterator[Waves | None]:
    """The waves for a run to write, if there is a path for them; however it ends they are whole, and their size is said."""
    if path is None:
        yield None
        return
    from tritloom.sim.waves import Waves

    waves = Waves(path)
    try:
        with undone(lambda: waves, Waves.close):
            yield waves
        waves.check()
    finally:
        if waves.bytes and not waves.failed:
            console.note(f"Waves: {path}, {waves.bytes / 1e6:,.1f} MB of {waves.cycles:,} cycles")


def open_backend(name: str, image: Image, timing: str, console: Console, waves: Waves | None = None) -> Backend:
    memory_bytes = image.map.total_bytes
    if name == "emulator":
        from tritloom.host.backends.emulator import EmulatorBackend

        return EmulatorBackend(image.config, memory_bytes)
    if name == "axi":
        from tritloom.host.backends.axi import AxiBackend

        return AxiBackend(image.config, memory_bytes)
    from tritloom.sim.prepare import open_simulation

    return open_simulation(image.config, memory_bytes, timing, console, waves)


def open_overlay(bitstream: Path, image: Image) -> Backend:
    """The machine of a bitstream on this board, by PYNQ."""
    from tritloom.host.backends.pynq import PynqBackend

    return PynqBackend(image.config, image.map.total_bytes, bitstream)


def pace_of(port: str) -> float:
    """Times as long as a board's that the one at a port may take."""
    return SIMULATED_PACE if os.path.realpath(port).startswith("/dev/pts/") else 1


def open_port(port: str, board: str, image: Image, console: Console) -> UartBackend:
    """The board at a serial port, or one whose pins are simulated."""
    from tritloom.boards.board import load

    wiring = load(board).wiring
    if wiring is None:
        raise InputError(f"board {board} has no UART: give the --board, or the image, of the board at the port, such as ulx3s")
    check_memory(image.config, image.map.total_bytes, board)
    if port != SIMULATED_PORT:
        return UartBackend(port, baud=wiring.baud, pace=pace_of(port))
    from tritloom.sim.board import BoardBackend
    from tritloom.sim.prepare import open_board

    return BoardBackend(open_board(image.config, board, console))


def generate(
    session: Session,
    tokenizer: Tokenizer,
    prompt: str,
    ids: list[int],
    tokens: int,
    stop_ids: tuple[int, ...],
    choice: Sampling,
    drafts: int,
    console: Console,
) -> None:
    """Stream the text, then show what it cost."""
    text = tokenizer.stream(ids)
    out: list[int] = []
    pieces: list[str] = []
    start = time.monotonic()

    def show(piece: str) -> None:
        pieces.append(piece)
        console.stream(piece)

    with console.step("Reading the prompt") as update:
        run = session.generate(ids, tokens, sampling=choice, stop_ids=stop_ids, drafts=drafts, progress=update)
        first = next(run)
    console.stream(prompt)
    try:
        for token in itertools.chain([first], run):
            out.append(token)
            show(text.push(token))
        show(text.finish())
    except BaseException:
        console.stream("\n")  # what is said of it begins a line
        raise
    wall = time.monotonic() - start
    stats = session.stats()
    data = {"text": "".join(pieces), "tokens": out, **summary(session, stats, wall)}
    console.stream("\n")
    console.summary(data, "\n" + report(stats, data))


def together(
    session: Session,
    tokenizer: Tokenizer,
    prompts: list[str],
    ids: list[list[int]],
    tokens: list[int],
    stop_ids: tuple[int, ...],
    choice: Sampling,
    drafts: int,
    console: Console,
) -> None:
    """Write the texts together, then show them and what they cost. Each is what it would be alone, the second and later ones with
    the seeds that follow."""
    start, total, done = time.monotonic(), sum(tokens), 0

    def written(request: Request) -> str:
        stream = tokenizer.stream(ids[requests.index(request)])
        return "".join(stream.push(token) for token in request.tokens) + stream.finish()

    with session.batch() as batch, console.step(f"Writing {len(prompts)} texts") as update:
        requests = []
        for n, (each, count) in enumerate(zip(ids, tokens, strict=True)):
            own = choice._replace(seed=choice.seed + n & 0xFFFFFFFF)
            requests.append(batch.add(each, count, sampling=own, stop_ids=stop_ids, drafts=drafts))
        for _ in batch:
            done += 1
            update(done, total)
        shown = [written(request) for request in requests]
    wall = time.monotonic() - start
    stats = session.stats()
    listed = [{"prompt": prompt, "text": text, "tokens": each.tokens, "shared": each.shared}
              for prompt, text, each in zip(prompts, shown, requests, strict=True)]
    data = {"texts": listed, **summary(session, stats, wall)}
    for n, (prompt, text) in enumerate(zip(prompts, shown, strict=True), 1):
        console.stream(f"[{n}] {prompt}{text}\n")
    console.summary(data, "\n" + report(stats, data))


def summary(session: Session, stats: Stats, wall: float) -> dict[str, Any]:
    """The numbers of a run. Times are null on a backend that has none."""
    per_token = stats.decode_cycles_per_token
    clock = session.config.clock_hz
    return {
        "backend": session.backend.name,
        "prompt_tokens": stats.prompt_tokens,
        "prefill_cycles": stats.prefill_cycles,
        "decode_cycles_per_token": per_token,
        "clock_hz": clock,
        "tokens_per_s_at_clock": clock / per_token if per_token else None,
        "memory_share": stats.memory_share,
        "passes": stats.passes,
        "saturations": stats.saturations,
        "wall_s": wall,
        "wall_tokens_per_s": stats.tokens / wall if wall else None,
        "digest": f"{session.config.digest:08x}",
    }


def report(stats: Stats, data: dict[str, Any]) -> str:
    clock = data["clock_hz"]
    at = f"at {clock / 1e6:g} MHz"
    rows: list[tuple[str, Any]] = []
    if (cycles := stats.prefill_cycles) is not None:
        rows.append((f"prefill, {stats.prompt_tokens} tokens", f"{cycles:,} cycles ({seconds(cycles / clock)} {at})"))
    if (cycles := stats.decode_cycles_per_token) is not None:
        rows.append(("decode", f"{cycles:,.0f} cycles per token ({data['tokens_per_s_at_clock']:,.1f} tokens/s {at})"))
    if stats.passes:
        rows.append(("passes", f"{stats.tokens / stats.passes:.2f} tokens for each pass over the weights"))
    if stats.memory_share is not None:
        rows.append(("memory", f"a beat in {100 * stats.memory_share:.1f} % of the cycles"))
    rows.append(("wall clock", f"{seconds(data['wall_s'])}, {data['wall_tokens_per_s']:.2f} tokens/s on backend {data['backend']}"))
    if stats.saturations:
        rows.append(("saturations", saturation_text(stats.saturations)))
    return table(rows)
