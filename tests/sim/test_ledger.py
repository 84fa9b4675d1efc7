"""docs/results.md is what the stored results say, and README's headline numbers stand in it."""

import json
import re

import pytest

from tritloom.sim.bench import ledger, stored

if not (stored.ROOT / "README.md").exists():
    pytest.skip("an installed package has no docs", allow_module_level=True)

README = (stored.ROOT / "README.md").read_text("utf-8")


def measured(name):
    return json.loads((stored.RESULTS / "kv260" / f"{name}.json").read_text("utf-8"))["measured"]


def copied(folder, change):
    """A stored result in a folder laid out as docs/results is, after a change."""
    entry = json.loads((stored.RESULTS / "kv260" / "bitnet_b1_58-large-decode-128-lanes16.json").read_text("utf-8"))
    change(entry)
    (folder / "kv260").mkdir()
    (folder / "kv260" / "result.json").write_text(json.dumps(entry), "utf-8")
    return entry


@pytest.mark.needs("amaranth")
@pytest.mark.slow
def test_the_page_is_today_s():
    """Run `make ledger` when this fails."""
    assert ledger.PAGE.read_text("utf-8") == ledger.render()


def test_a_stale_result_is_marked(tmp_path):
    entry = copied(tmp_path, lambda entry: entry["digests"].update(program="0"))
    page = ledger.render(tmp_path)
    assert "`--context 128 --set lanes=16` (stale)" in page and "its program" in page and f"{entry['measured']['cycles']:,}" in page


def test_a_result_of_an_unknown_kind_is_not_left_out(tmp_path):
    copied(tmp_path, lambda entry: entry.update(what="power"))
    with pytest.raises(ValueError, match="no table .* takes 'power'"):
        ledger.render(tmp_path)


@pytest.mark.parametrize("row, name", [
    ("0.73B (`bitnet_b1_58-large`), decode at 128 positions", "bitnet_b1_58-large-decode-128-clock_hz250000000"),
    ("the same, ternary head with a short-list", "bitnet_b1_58-large-decode-128-clock_hz250000000-shortlist256"),
    ("2B-4T (`bitnet-b1.58-2B-4T`), decode at 128 positions, short-list",
     "bitnet-b1.58-2B-4T-decode-128-lanes4-shortlist256-vector_lanes8")])
def test_headline_speeds_are_the_stored_ones(row, name):
    m = measured(name)
    (line,) = [line for line in README.splitlines() if line.startswith(f"| {row} |")]
    assert f"{m['cycles']:,} cycles, {m['tokens_per_s']:.1f} tokens/s" in line


def test_headline_prompt_and_machine_are_the_stored_ones():
    m = measured("bitnet_b1_58-large-prefill-128-clock_hz250000000-shortlist256")
    total = measured("bitnet_b1_58-large-synthesis-clock_hz250000000-shortlist256")["total"]
    assert f"{m['cycles']:,} cycles, {1000 * m['first_token_s']:.1f} ms" in README
    assert (f"{total['lut']:,} LUTs, {total['dsp']} DSPs, {total['bram']:g} block RAMs, {total['uram']} UltraRAMs") in README


def test_every_result_gives_the_command_that_measures_it():
    from tritloom.host.cli import verbs

    for entry in stored.entries().values():
        if "command" in entry and entry["command"].startswith("tritloom "):
            words = re.sub(r"^tritloom ", "", entry["command"]).split()
            name, verb, rest = verbs().resolve_command(verbs().make_context("tritloom", list(words)), list(words))
            verb.make_context(name, rest).close()
