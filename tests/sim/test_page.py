"""The page of measured numbers: well-formed, complete, and whole without a network; and the timelines that it draws."""

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from tritloom.firmware.isa import Unit
from tritloom.host.cli import main
from tritloom.sim.bench import benchmarks, report, timeline
from tritloom.sim.bench.bounds import bounds
from tritloom.sim.bench.page import arrivals, page
from tritloom.sim.bench.timeline import ROWS, Timeline

RESULT = Path(__file__).parents[2] / "docs" / "results" / "kv260" / "bitnet_b1_58-large-decode-128-lanes16.json"


def course(bins=40, layers=4):
    """A token of `bins` bins: the ternary engine in its first half, the head in the second."""
    samples, h = [], np.zeros((256, 2), np.int64)
    for n in range(bins + 1):
        samples.append(timeline.counts(h))
        h[Unit.MATMUL if n < bins // 2 else Unit.DOT | Unit.SAMPLER, n % 2] += 90
        h[0, 0] += 10
    return Timeline.of(samples)


def entry(**measured):
    stored = json.loads(RESULT.read_text())
    stored["measured"].pop("timeline", None)
    stored["measured"] |= measured
    return stored


def text_of(html):
    return "".join(ElementTree.fromstring(html).itertext())


@pytest.mark.parametrize("kept, words", [
    ({}, "no timeline"), ({"timeline": timeline.view(course(), 4)}, "One layer, number 3 of 24"),
    ({"timeline": timeline.view(course(0))}, "The timeline is empty"), ({"timeline": timeline.view(course(1), 4)}, "The whole token"),
    ({"timeline": {"whole": {"cycles": "1"}}}, "cannot be read"),
])  # fmt: skip
def test_page_is_well_formed_and_has_every_value(kept, words):
    result = entry(**kept)
    rows = report.entry_rows(result, "measured")
    text = text_of(page(rows, [(result, "measured")]))
    assert words in text and all(report.number(row["value"]) in text and row["measure"] in text for row in rows)
    assert text.count("[P]") > 10 and "rtl-simulated" in text and result["command"] in text


def test_comparison_has_the_resources_of_a_machine_that_was_synthesised():
    synthesis = json.loads(RESULT.with_name("bitnet_b1_58-large-synthesis-lanes16.json").read_text())
    total = synthesis["measured"]["total"]
    lut = f"{total['lut']:,} LUT, {total['dsp']} DSP"
    assert lut in text_of(page([], [(entry(), "measured"), (synthesis, "measured")]))
    assert lut not in text_of(page([], [(entry(), "measured"), (synthesis, "stale: the machine's code changed since then")]))
    other = entry()
    other["configuration"] |= {"lanes": 8}
    assert lut not in text_of(page([], [(other, "measured"), (synthesis, "measured")]))


@pytest.mark.parametrize("name, words", [
    ("bitnet_b1_58-large-batch8-128-lanes8-sequences8", "8 texts together, decode at 128 positions"),
    ("bitnet_b1_58-large-batch8-shared112-128-lanes8-sequences8", "8 texts together, decode at 128 positions, 112 of them shared"),
])
def test_batches_are_drawn(name, words):
    stored = json.loads(RESULT.with_name(f"{name}.json").read_text())
    html = page(report.entry_rows(stored, "measured"), [(stored, "measured")])
    text, speed = text_of(html), f"{stored['measured']['tokens_per_s']:,.1f} tokens/s"
    assert words in text and f"{speed} · {stored['measured']['cycles']:,.0f} cycles" in text and "The highest bound of a pass" in text
    assert f"{speed.split()[0]} tok/s at 128 positions, 8 texts together" in text
    found = bounds(stored)
    assert 0.8 * found.measured < found.stream < found.measured and all(phase.rate <= phase.peak for phase in found.phases)
    # Eight texts share the weights and the head's rows; a text's keys and values are its own.
    alone = bounds(entry())
    assert found.ternary == alone.ternary and found.phases[0].macs == 8 * alone.phases[0].macs and found.dot > alone.dot


def test_reads_of_keys_and_values_are_not_idle():
    m = (decode := entry())["measured"]
    found, data = arrivals(decode), m["beats"]["data"]
    assert sum(parts[1] for parts in found.values()) == pytest.approx(data, rel=0.001) and data > 0
    assert {name: (parts[0], parts[1] + parts[2]) for name, parts in found.items()} == {n: tuple(p) for n, p in m["busy_cycles"].items()}
    idle = sum(parts[2] for parts in found.values()) / m["counted_cycles"]
    assert idle == pytest.approx(1 - sum(m["beats"][kind] for kind in ("weights", "data")) / m["counted_cycles"], abs=0.002)
    short = entry(beats={"weights": 1, "data": 10**9})  # never more than there are
    assert all(min(parts) >= 0 for parts in arrivals(short).values())


def test_the_legend_says_what_units_do_and_nothing_that_is_not_drawn():
    html = page([], [(entry(), "measured")])
    legend = [["".join(item.itertext()) for item in part] for part in ElementTree.fromstring(html).findall(".//ul[@class='legend']")]
    assert "attention" in legend[0] and "ternary matrices" in legend[0] and len(legend[0]) == len(set(legend[0])) <= 6
    assert legend[1] == ["weights arrive", "keys and values arrive", "nothing arrives: the memory is idle"]
    assert "+" not in "".join(legend[0])


def test_titles_name_the_short_list():
    listed = entry()
    listed["configuration"] |= {"shortlist": 256}
    text = text_of(page([], [(entry(), "measured"), (listed, "measured")]))
    assert "16 lanes, short-list of 256, decode at 128" in text and "16 lanes, decode at 128" in text


def test_page_of_several_results_marks_the_stale_ones():
    html = page([], [(entry(), "measured"), (entry(), "stale: the machine's code changed since then")])
    assert len(ElementTree.fromstring(html).findall(".//details[@class='result']")) == 2
    assert "stale: the machine's code" in text_of(html)


def test_page_escapes_names_and_asks_for_nothing_outside():
    result = entry() | {"model": "<script>&\"x\"", "command": "a < b & c"}
    html = page(report.entry_rows(result, "<i>"), [(result, "<i>")])
    assert "<script" not in html and '<script>&"x"' in text_of(html)
    assert not re.search(r"https?://|src=|@import|url\(", html)


def test_page_without_results_is_its_rows():
    html = page([report.row("lane", 6.5, "LUT", "synthesised", "c")], [])
    assert "6.5" in text_of(html) and "Roofline" not in text_of(html)


def test_bounds_of_the_07b_token():
    found = bounds(entry())
    assert found.limit == "stream of weights and cache" and found.least < found.measured
    assert found.stream == pytest.approx((141785152 + 49268352 + 9830400) / 64, rel=0.001)
    assert found.ternary == pytest.approx(24 * (4 * 1536**2 + 3 * 1536 * 4096) / (3 * 13 * 8))
    assert found.dot == pytest.approx((32002 * 1536 + 24 * 1536 * 2 * 128) / 64)
    assert all(phase.rate <= phase.peak for phase in found.phases)
    # Sixteen tokens share a reading of the weights.
    prompt = bounds(entry() | {"what": "prefill", "count": 20})
    assert prompt.ternary == 2 * found.ternary and prompt.phases[0].macs == 20 * found.phases[0].macs


def test_timelines_keep_every_cycle_when_folded_and_packed():
    line = course(1000)
    short = line.folded(240)
    assert len(short.cycles) <= 240 and short.cycles.sum() == line.cycles.sum() and (short.rows.sum(axis=1) == line.rows.sum(axis=1)).all()
    packed = timeline.pack(short)
    again = timeline.unpack(json.loads(json.dumps(packed)))
    assert (again.rows == short.rows).all() and (again.cycles == short.cycles).all()
    view = timeline.view(line, 4)
    assert view["layer"]["start"] == 25_000 and timeline.unpack(view["layer"]).cycles.sum() == 12_500
    assert set(packed["rows"]) == set(ROWS)


def test_a_layer_is_what_lies_between_times_of_writing():
    samples, h = [timeline.counts(np.zeros((256, 2), np.int64))], np.zeros((256, 2), np.int64)
    for busy in [0] * 5 + ([Unit.VECTOR, Unit.WRITES, Unit.DOT] + [Unit.MATMUL] * 5) * 4 + [Unit.DOT | Unit.SAMPLER] * 9:
        h[busy, 0] += 10
        samples.append(timeline.counts(h))
    layer = timeline.view(Timeline.of(samples), 4)["layer"]
    rows = dict(zip(ROWS, timeline.unpack(layer).rows.tolist(), strict=True))
    assert (layer["number"], layer["start"]) == (3, 50 + 2 * 80)
    assert rows["vector"] == [10, 0, 0, 0, 0, 0, 0, 0] and rows["matmul"] == [0, 0, 0, 10, 10, 10, 10, 10]


def test_html_is_written_whole_or_refused_before_anything_is_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmarks, "stored_report", lambda *_: report.report_of([(entry(), "measured")]))
    assert main(["bench", "--stored", "--json", "--html", str(tmp_path / "a.html")]) == 0
    assert json.loads(capsys.readouterr().out)[0]["unit"] == "cycles/token"
    assert [p.name for p in tmp_path.iterdir()] == ["a.html"] and "Roofline" in text_of((tmp_path / "a.html").read_text("utf-8"))
    for path, words in ((tmp_path, "is a folder"), (tmp_path / "a.html" / "b.html", "is a file")):
        assert main(["bench", "--stored", "--html", str(path)]) == 2 and words in capsys.readouterr().err
