"""Signals: what is left to be undone is undone, and the process ends in time, whatever it is doing."""

import gc
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from tritloom.system import ending, processes
from tritloom.system.ending import Terminated, signals, undone


@pytest.fixture(autouse=True)
def not_ignored():
    """A signal that is ignored from the start (SIGHUP under nohup, SIGINT in a shell's background) stays ignored: not here."""
    wanted = {signal.SIGHUP: signal.SIG_DFL, signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    before = {number: signal.signal(number, handler) for number, handler in wanted.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


SWALLOWS = """
class Lost:
    def __del__(self):  # KeyboardInterrupt in here is printed, and that is all
        time.sleep(0.01)
while True:
    Lost()
"""
CATCHES = """
while True:
    try:
        print("trying", flush=True)
        time.sleep(60)
    except BaseException:
        pass
"""
CHILD = """
import subprocess
from tritloom.system.processes import started
with started(["sh", "-c", "sleep 300 & sleep 300"]) as child:
    print(child.pid, flush=True)
    child.wait()
"""
LIBRARY = """
import ctypes, tempfile, os
source = tempfile.mkdtemp() + "/a.c"
open(source, "w").write("#include <time.h>\\nvoid busy(void) { time_t end = time(0) + 60; while (time(0) < end); }")
assert os.system(f"cc -shared -fPIC -o {source}.so {source}") == 0
library = ctypes.CDLL(source + ".so")
import shutil; shutil.rmtree(os.path.dirname(source))
print("compiled", flush=True)
library.busy()
"""


def python(code, *arguments, **environment):
    """A process that runs `code`, once it has said that it is ready."""
    # What a shell starts in the background ignores SIGINT, and so does what that starts.
    process = subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True, env=os.environ | environment,
                               preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL))  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def run(body, tmp_path):
    """A process with a scratch folder in `tmp_path` that does `body` in the block of `signals`."""
    code = ("import pathlib, sys, time, warnings\nfrom tritloom.system.ending import signals\nfrom tritloom.system.files import scratch\n"
            "with signals(lambda number: print('ended by', number, file=sys.stderr)), scratch(pathlib.Path(sys.argv[1])) as folder:\n"
            "    print('ready', flush=True)\n" + "".join(f"    {line}\n" for line in body.splitlines()))  # fmt: skip
    process = python(code, tmp_path)
    assert process.stdout is not None
    if "compiled" in body:
        assert process.stdout.readline() == "compiled\n"
    return process


@pytest.mark.slow
@pytest.mark.parametrize("body, number", [
    (SWALLOWS, signal.SIGINT), (CATCHES, signal.SIGINT), (LIBRARY, signal.SIGTERM), (CHILD, signal.SIGINT), (CHILD, signal.SIGTERM),
    (CHILD, signal.SIGHUP),
], ids=["destructor", "caught", "library", "child", "child, SIGTERM", "child, SIGHUP"])  # fmt: skip
def test_a_signal_ends_the_process_in_time_and_leaves_nothing(tmp_path, body, number):
    process = run(body, tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    assert process.stdout is not None
    group = int(process.stdout.readline()) if body is CHILD else 0
    start = time.monotonic()
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode in (128 + number, 1, -number) and time.monotonic() - start < 30
    assert "ended by" in err or "KeyboardInterrupt" in err or "Terminated" in err
    assert list(tmp_path.iterdir()) == []
    if body is CHILD:
        with pytest.raises(ProcessLookupError):
            for _ in range(100):  # what was killed is gone when somebody has asked for its status
                os.killpg(group, 0)
                time.sleep(0.1)


def test_a_second_signal_ends_the_process_at_once(tmp_path):
    process = run(CATCHES, tmp_path)
    assert process.stdout is not None
    assert process.stdout.readline() == "trying\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "trying\n"
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "ended by 2" in err and list(tmp_path.iterdir()) == []


BROKEN_OFF = """
import gc, sys, time, warnings
from tritloom.host import cli
class Unused:
    def __del__(self):
        warnings.warn("created but never used")
def work(given):
    gc.disable()
    try:
        made = [Unused() for _ in range(1000)]
        print("ready", flush=True)
        while True:
            made.append(Unused())
            time.sleep(0.01)
    finally:
        gc.enable()
cli._run = work
sys.argv = ["tritloom"]
sys.exit(cli.main())
"""


@pytest.mark.parametrize("number, status, line", [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")])
def test_what_is_broken_off_says_one_line(number, status, line):
    """And nothing of its objects, which have no turn any more."""
    process = python(BROKEN_OFF)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (status, f"tritloom: {line}\n")


GENERATES = """
import sys
from tritloom.gen.verilog import emit
from tritloom.host.cli import main
without_collection = emit._without_collection
def said():
    print("ready", flush=True)
    return without_collection()
emit._without_collection = said
sys.exit(main())
"""


@pytest.mark.slow
@pytest.mark.needs("amaranth", "tokenizers")
def test_the_generation_of_verilog_is_broken_off(tmp_path):
    model = Path(__file__).resolve().parents[2] / "models" / "stories-260k"
    process = python(GENERATES, "generate", model, "--out", tmp_path / "new" / "out", TRITLOOM_CACHE=str(tmp_path / "cache"))
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err.splitlines()[-1] == "tritloom: interrupted" and "Warning" not in err
    assert err.count("\n") <= 2 and not (tmp_path / "new").exists() and [*tmp_path.rglob(".tritloom-*")] == []


def test_nothing_is_collected_once_a_signal_has_come():
    """The collection of a machine's objects holds Python's lock for seconds, in which no thread could end the process."""
    with pytest.raises(KeyboardInterrupt), signals(lambda number: None):
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            assert gc.get_freeze_count() > 0
    assert gc.get_freeze_count() == 0


def test_what_was_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals(lambda number: None):
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_signals_raise_and_all_is_as_before():
    handlers = [signal.getsignal(number) for number in ending.ENDING]
    for number, status in ((signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)):
        with pytest.raises(KeyboardInterrupt) as caught, signals(lambda number: None):
            signal.raise_signal(number)
        assert ending.status_of(caught.value) == status and isinstance(caught.value, Terminated) is (number != signal.SIGINT)
    assert [signal.getsignal(number) for number in ending.ENDING] == handlers and not ending._left


def test_no_signal_comes_between_making_and_knowing():
    made = []
    with pytest.raises(KeyboardInterrupt), signals(lambda number: None):
        with undone(lambda: (signal.raise_signal(signal.SIGINT), made.append("made"))[1], lambda _: made.append("undone")):
            made.append("entered")
    assert made == ["made", "undone"]


def test_programs_end_with_their_block(tmp_path):
    with pytest.raises(ZeroDivisionError), processes.started(["sleep", "300"]) as process:
        _ = 1 / 0
    assert process.returncode == -signal.SIGKILL
    with pytest.raises(subprocess.TimeoutExpired):
        processes.call(["sleep", "300"], timeout_s=0.1)
    done = processes.call(["cat"], timeout_s=60, input="text", stdout=subprocess.PIPE, text=True)
    assert (done.returncode, done.stdout) == (0, "text")
