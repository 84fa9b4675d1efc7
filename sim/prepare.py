"""What a run of a model needs, made once and kept: its image and its simulation."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tritloom.boards.board import Board, load
from tritloom.firmware.config import BuildConfig
from tritloom.firmware.errors import InputError
from tritloom.firmware.image import SELF_TEST, Image, ImageError, SelfTest, encode
from tritloom.gen.fit.fit import predict
from tritloom.host.backends.emulator import EmulatorBackend
from tritloom.host.image import open_image, write_image, write_pieces
from tritloom.host.session import Session
from tritloom.host.tokenizer import Tokenizer
from tritloom.sim.backends import SimBackend
from tritloom.sim.board import SimulatedBoard
from tritloom.sim.waves import Waves
from tritloom.system.files import cache
from tritloom.system.growing import PARTIAL, discard, growing
from tritloom.system.steps import Steps, timed_step

if TYPE_CHECKING:
    from tritloom.gen.models import Checkpoint
    from tritloom.gen.source import Source

SELF_TEST_TEXT, SELF_TEST_TOKENS = "Once upon a time", 8
"""What a self-test's tokens follow, and how many there are: a model of billions of weights takes the emulator minutes for them."""


def _sources_key(*packages: str) -> str:
    """Digest of the package's own code: what it made with other code is made again."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for package in packages:
        for path in sorted((root / package).rglob("*.py")):
            digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def image_of(source: Source, checkpoint: Checkpoint, config: BuildConfig, steps: Steps) -> Image:
    """The weight image, from the cache if neither model nor packer has changed."""
    folder = cache("images")
    name, code = f"{config.digest:08x}-{_model_key(source, checkpoint, config)[:16]}", _sources_key("gen", "firmware")[:16]
    path = folder / f"{name}-{code}.img"
    if path.is_file():
        try:
            return open_image(path)
        except ImageError:
            steps.note("the cached image is damaged: packing again")
    write_image_of(path, source, checkpoint, config, steps)
    for older in folder.glob(f"{name}-*.img"):
        if older != path:
            older.unlink(missing_ok=True)
    for older in folder.glob(f"{name}-*.img{PARTIAL}"):
        discard(older)
    return open_image(path)


def _model_key(source: Source, checkpoint: Checkpoint, config: BuildConfig) -> str:
    """Digest of a model and of what it is packed for."""
    described = f"{config.to_json()}{checkpoint.spec.to_json()}{source.key()}".encode()
    return hashlib.sha256(described + checkpoint.tokenizer.read_bytes()).hexdigest()


def write_built_image(path: Path, image: Image, board: Board, steps: Steps) -> None:
    """Write an image for a machine that is built for `board`, with what its self-test must give; what is there already stays."""
    if path.is_file():
        try:
            there = open_image(path)
            if there.self_test and {s.name: s.crc32 for s in there.table.values() if s.name != SELF_TEST} == {
                    s.name: s.crc32 for s in image.table.values()} and there.config == image.config and there.spec == image.spec:
                return
        except ImageError:
            pass  # another one takes its place
    with steps.step("Recording the tokens of the self-test") as update:
        test = self_test_of(image, board, lambda done, total: update(done, total))
    sections = [(s.name, image.section(s.name), s.address) for s in image.table.values()]
    write_image(path, config=image.config, spec=image.spec, sections=[*sections, (SELF_TEST, test.to_bytes(), None)])


def self_test_of(image: Image, board: Board, progress: Callable[[int, int], None]) -> SelfTest:
    """The tokens that an image's machine must write, by the emulator, and what its projection on `board` says."""
    config = image.config
    try:
        prompt = Tokenizer.from_bytes(image.tokenizer, image.bos_id).encode(SELF_TEST_TEXT, config.shape.vocab)[: config.shape.context]
    except InputError:  # of a vocabulary that cannot say it any token will do
        prompt = [image.bos_id or 0]
    count = min(SELF_TEST_TOKENS, config.shape.context + 1 - len(prompt))
    with Session(EmulatorBackend(config, image.map.total_bytes), image) as session:
        tokens = []
        for token in session.generate(prompt, count):
            tokens.append(token)
            progress(len(tokens), count)
    predicted, *_ = predict(config, image.map, board, len(prompt) + count // 2)
    return SelfTest(prompt, tokens, predicted["decode_cycles_per_token"])


def write_image_of(path: Path, source: Source, checkpoint: Checkpoint, config: BuildConfig, steps: Steps) -> None:
    """Pack a model for a configuration into `path`. What is done when it is interrupted stays beside it, and is continued the next time."""
    from tritloom.gen.pack import as_trained, check_shape, pack, with_scaling
    from tritloom.gen.scaling import Scaling, choose, measure

    key = _model_key(source, checkpoint, config) + _sources_key("gen", "firmware", "host")
    try:
        with growing(path, key) as file, steps.step("Packing the weights") as update:
            if file.others:
                steps.note(f"{path}{PARTIAL} was of another model, machine or version of tritloom: it is removed")
            model = as_trained(checkpoint, min(config.shape.context, checkpoint.spec.shape.context))
            check_shape(model.spec, config)
            if (noted := file.noted) is None:
                chosen = choose(model, measure(model))
                noted = file.note([chosen.residual, chosen.gates, chosen.scores])
            residual, gates, scores = noted
            packed = pack(with_scaling(model, Scaling(residual, tuple(gates), tuple(scores))), config)
            image = encode(config=packed.config, spec=packed.spec.to_dict(), sections=packed.contents)
            write_pieces(file, image, progress=update, found=lambda done, total: steps.note(f"continues at {100 * done // total} %"))
    except (KeyboardInterrupt, OSError):
        if path.with_name(path.name + PARTIAL).is_dir():
            steps.note(f"{path}{PARTIAL} holds what is done: the same command continues, and without it the folder can be removed")
        raise


def open_simulation(config: BuildConfig, memory_bytes: int, timing: str, steps: Steps, waves: Waves | None = None) -> SimBackend:
    """The machine's Verilog, compiled and reset, with its memory; it writes `waves`, if there are any to write."""
    from tritloom.gen.verilog.generate import cached_verilog

    with timed_step(steps, "Generating Verilog"):
        verilog = cached_verilog(config)
    with timed_step(steps, "Compiling the simulation") as update:
        return SimBackend.build(
            config, verilog, memory_bytes=memory_bytes, timing=timing, waves=waves,
            progress=lambda fraction, text: update(fraction, 1.0, text),
        )


def open_board(config: BuildConfig, board: str, steps: Steps) -> SimulatedBoard:
    """The machine's whole board at its pins, compiled and switched on."""
    with timed_step(steps, "Compiling the board's simulation") as update:
        return SimulatedBoard(config, load(board), progress=lambda fraction, text: update(fraction, 1.0, text))
