"""What is measured again: only results that hold no more, each command once, the most telling first."""

import logging
import sys
from collections import defaultdict

import pytest

from tritloom.firmware.errors import TritloomError
from tritloom.host.cli import main
from tritloom.sim import prepare
from tritloom.sim.bench import current, measure, remeasure, stored
from tritloom.sim.bench import results as kept
from tritloom.sim.check import equality

FAILS = (sys.executable, "-c", "print('why'); raise SystemExit(3)")
ENDS = (sys.executable, "-c", "print('done')")


def entry(command, what="decode", state="stale: its Verilog changed", seconds=1.0):
    return {"command": f"tritloom bench {command}", "what": what, "state": state, "measured": {"simulated_s": seconds}}


@pytest.fixture
def results(monkeypatch, tmp_path):
    """Stored results that say themselves whether they hold."""
    found = {}
    kept = [{"model": "m", "machine": "quick", "seconds": 5, "state": "stale"}, {"model": "m", "machine": "holds", "state": stored.CURRENT},
            {"model": "m", "machine": "slow", "seconds": 9, "state": "stale"}]
    monkeypatch.setattr(stored, "entries", lambda: found)
    monkeypatch.setattr(stored, "state_of", lambda entry: entry["state"])
    monkeypatch.setattr(equality, "holds", lambda entry: entry["state"])
    monkeypatch.setattr(equality, "load", lambda: {"entries": kept})
    monkeypatch.setattr(equality, "pairs", lambda: [("m", "slow"), ("m", "quick"), ("m", "holds"), ("m", "new")])
    monkeypatch.setattr(remeasure, "LOGS", tmp_path / "logs")
    return found


def test_what_holds_no_more_is_run_once_in_order(results):
    results |= {"a": entry("--synth --model m", "synthesis"), "b": entry("--context 9", seconds=50.0),
                "c": entry('--drafts 3 --prompt "a b"', "drafts-ordinary"), "d": entry('--drafts 3 --prompt "a b"', "drafts-rewrite"),
                "e": entry("--context 8", state=stored.CURRENT), "random.json 1": {"state": "stale"}}
    jobs = remeasure.stale()
    assert [job.name for job in jobs] == [
        "equality m, new", "equality m, quick", "equality m, slow", "random machines", "tritloom bench --synth --model m",
        'tritloom bench --drafts 3 --prompt "a b"', "tritloom bench --context 9"]
    assert jobs[1].command[1:] == ("-m", "tritloom.sim.check.equality", "m/quick") and jobs[3].folder == "."
    assert jobs[5].command[1:] == ("-m", "tritloom.host.cli", "bench", "--drafts", "3", "--prompt", "a b", "--store")


@pytest.mark.slow
def test_a_command_stores_the_results_that_name_it_and_no_others(monkeypatch):
    def stop(*_, **__):
        raise TritloomError("enough")

    files, written = defaultdict(set), set()
    for name, found in stored.entries().items():
        if "command" in found:
            files[found["command"]].add(stored.RESULTS / name)
    result_path = kept.result_path
    monkeypatch.setattr(kept, "result_path", lambda *what: (written.add(result_path(*what)), result_path(*what))[1])
    for place, name in ((stored, "digests"), (prepare, "image_of"), (measure.RandomImage, "of")):
        monkeypatch.setattr(place, name, stop)
    for command, named in files.items():
        written.clear()
        assert main([*remeasure._bench({"command": command, "what": "", "measured": {}}).command[3:]]) == 1
        assert written == named, command


def test_only_a_command_of_tritloom_is_run(results):
    results["a"] = entry("") | {"command": "rm -r results"}
    with pytest.raises(ValueError, match="not a command of tritloom"):
        remeasure.stale()


def test_a_job_that_fails_does_not_stop_the_others(results):
    said = []
    jobs = [remeasure.Job("one", "tokens", ENDS), remeasure.Job("two, three", "tokens", FAILS), remeasure.Job("four", "tokens", ENDS)]
    assert remeasure.run(jobs, 2, said.append) == [jobs[1]]
    logs = {path.name: path.read_text() for path in remeasure.LOGS.iterdir()}
    assert logs == {"one.log": "done\n", "two-three.log": "why\n", "four.log": "done\n"}
    assert said[0].startswith("0 of 3 done after 0 min, starting: one")
    assert any("failed with status 3: two, three (see " in line for line in said)


class Process:
    """Ends when it is asked for the second time; or, `stuck`, when it is killed."""

    live: list["Process"] = []

    def __init__(self, stuck=False):
        self.returncode, self._asked, self._stuck = None, 0, stuck
        Process.live.append(self)

    def poll(self):
        self._asked += 1
        if self._asked > 2 and self.returncode is None and not self._stuck:
            self.end(0)
        return self.returncode

    def end(self, status):
        self.returncode = status
        Process.live.remove(self)

    def kill(self):
        self.end(-9)

    def terminate(self):
        self.end(-15)

    def wait(self):
        assert self.returncode is not None


@pytest.fixture
def processes(results, monkeypatch):
    """Stands for starting a process; how many ran when each began."""
    seen = []

    def start(job):
        process = Process(stuck=job.name == "stuck")
        seen.append(len(Process.live))
        return process

    monkeypatch.setattr(remeasure, "_start", start)
    monkeypatch.setattr(remeasure, "POLL_S", 0)
    Process.live.clear()
    return seen


def test_so_many_jobs_run_at_once_as_asked_for(processes):
    assert remeasure.run([remeasure.Job(f"{n}", "tokens", ENDS) for n in range(6)], 3, lambda text: None) == []
    assert len(processes) == 6 and max(processes) == 3 and not Process.live


def test_a_job_that_never_ends_is_ended(processes, monkeypatch):
    monkeypatch.setattr(remeasure, "LIMIT_S", 0.01)
    stuck = remeasure.Job("stuck", "tokens", ENDS)
    assert remeasure.run([stuck], 2, lambda text: None) == [stuck] and not Process.live


def test_an_interrupt_ends_the_jobs(processes, monkeypatch):
    def interrupt(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(remeasure.time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        remeasure.run([remeasure.Job("stuck", "tokens", ENDS)] * 2, 2, lambda text: None)
    assert len(processes) == 2 and not Process.live


@pytest.mark.parametrize(("state", "status"), [(stored.CURRENT, 0), ("stale: its Verilog changed", 1)])
def test_the_status_says_whether_all_holds_now(results, monkeypatch, caplog, state, status):
    caplog.set_level(logging.INFO)
    digests = []
    monkeypatch.setattr(current, "main", digests.append)
    monkeypatch.setattr(remeasure, "stale", lambda: [])
    results["a"] = entry("", state=state)
    assert remeasure.main(["3"]) == status and digests == [["3"], ["3"]]
