"""Waves of a simulated machine: whole, readable, and of every cycle, however the run ends."""

import ctypes
import re
import resource
import threading
from itertools import pairwise

import pytest

from machines import ROOT, TINY, simulated
from synthetic import hugging_face
from tritloom.gen.models import open_checkpoint
from tritloom.host.cli import main
from tritloom.host.session import Session
from tritloom.sim.machine import Verilated
from tritloom.sim.waves import Waves

PORTS = {"rst", "irq", "s_axi_awaddr", "s_axi_rdata", "m0_axi_araddr", "m0_axi_rdata", "unit_busy"}
DECLARED = re.compile(r"\$var wire (\d+) (\S+) (\S+)(?: \[-?\d+:\d+\])? \$end")  # Verilog has no signal of no bits: it is [-1:0]


def read(path):
    """(names of the top module's signals and modules in it, times, clk at its times) of a VCD file, all lines checked."""
    header, _, body = path.read_text("ascii").partition("$enddefinitions $end\n")
    _, _, top = header.partition("\n  $scope module top $end\n")
    own = top.partition("$scope")[0]
    widths = {code: int(width) for width, code, _ in DECLARED.findall(header)}
    clk = next(code for _, code, name in DECLARED.findall(own) if name == "clk")
    times, clocks = [], []
    assert body.endswith("\n")
    for line in filter(None, body.split("\n")):
        if line[0] == "#":
            times.append(int(line[1:]))
        elif line[0] == "b":
            value, code = line[1:].split(" ")
            assert len(value) == widths[code] and int(value, 2) >= 0
        else:
            assert line[0] in "01" and widths[line[1:]] == 1
            if line[1:] == clk and times:  # what has no time stands before the first cycle
                clocks.append((times[-1], int(line[0])))
    return {name for _, _, name in DECLARED.findall(own)}, set(re.findall(r"^   \$scope module (\S+)", top, re.MULTILINE)), times, clocks


def whole(path, cycles, halves=0):
    """Whether a file has so many cycles, and half cycles after them."""
    _, _, times, clocks = read(path)
    return times == [500 * half for half in range(2 * cycles + halves)] and clocks == [(time, time // 500 % 2) for time in times]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A text of one token: folder with its image and waves, library, cycles."""
    folder = tmp_path_factory.mktemp("vcd")
    checkpoint = open_checkpoint(hugging_face(folder / "model", TINY.shape))
    waves = Waves(folder / "waves.vcd")
    image, backend = simulated(checkpoint, TINY, folder, waves=waves)
    with Session(backend, image) as session:
        assert len(list(session.generate([3], 1))) == 1
    cycles = backend.machine.cycles
    backend.close()
    assert waves.cycles == cycles and waves.bytes == waves.path.stat().st_size and not waves.failed
    return folder, backend.machine.folder / "machine.so", cycles


def test_waves_have_every_signal_in_every_cycle(run):
    folder, _, cycles = run
    signals, modules, _, _ = read(folder / "waves.vcd")
    assert PORTS <= signals and {"matmul", "sampler"} <= modules
    assert cycles > 1000 and whole(folder / "waves.vcd", cycles)


def test_waves_end_where_they_are_closed_while_the_machine_runs_on(run, tmp_path):
    waves = Waves(tmp_path / "waves.vcd")
    with Verilated(run[1], memory_bytes=1 << 20, waves=waves) as machine:
        closing = threading.Timer(0.05, waves.close)
        closing.start()
        while not waves.closed:
            machine.run(1000)
        closing.join()
        machine.run(1000)
        assert 0 < waves.cycles < machine.cycles
    assert whole(waves.path, waves.cycles) or whole(waves.path, waves.cycles, 1)


def test_a_full_disk_is_said_and_leaves_whole_lines(run, tmp_path):
    """A limit on the size of files stands for it: the error differs, its way does not."""
    waves, before = Waves(tmp_path / "waves.vcd"), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    try:
        with pytest.raises(OSError) as caught, Verilated(run[1], memory_bytes=1 << 20, waves=waves) as machine:
            machine.run(1 << 20)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.filename == str(waves.path) and waves.bytes == waves.path.stat().st_size <= 1 << 20
    _, _, times, _ = read(waves.path)
    assert len(times) > 10 and all(before < after for before, after in pairwise(times))


def test_run_writes_them_and_says_how_large_they_are(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TRITLOOM_CACHE", str(ROOT / "build"))
    vcd = tmp_path / "new" / "waves.vcd"
    assert main(["run", "--image", str(run[0] / "image"), "--prompt", "w3", "--tokens", "1", "--vcd", str(vcd)]) == 0
    said = re.search(r"^Waves: (\S+), ([\d.]+) MB of ([\d,]+) cycles$", capsys.readouterr().err, re.MULTILINE)
    assert said and said[1] == str(vcd) and float(said[2]) == round(vcd.stat().st_size / 1e6, 1)
    assert vcd.read_text("ascii").rpartition("\n#")[2].split("\n")[0] == str(1000 * int(said[3].replace(",", "")) - 500)


def test_the_emulator_has_none(capsys):
    assert main(["run", "nothing", "--backend", "emulator", "--tokens", "1", "--vcd", "waves.vcd"]) == 2
    assert capsys.readouterr().err == "tritloom: --vcd is the simulated machine's waves: leave it out, or take --backend sim\n"


def test_a_machine_compiled_without_waves_refuses_them(tmp_path):
    with pytest.raises(ValueError, match="compiled without waves"):
        Waves(tmp_path / "waves.vcd").begin(ctypes.CDLL(None))
    assert not list(tmp_path.iterdir())
