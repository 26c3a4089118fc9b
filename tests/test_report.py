"""Reports: columns re-added, files checked by what reads them, nothing fetched, nothing run from a name."""

from __future__ import annotations

import base64
import csv
import doctest
import gzip
import io
import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections import defaultdict
from dataclasses import replace
from decimal import Decimal
from html.parser import HTMLParser
from importlib import import_module
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import costmodel.report
from costmodel.device import load_device
from costmodel.errors import CostmodelError, UnknownName
from costmodel.estimate import Estimate, Range, estimate
from costmodel.report import Report, formats, render, report_of, repr_html
from costmodel.report._of_comparison import changes_table, peak_table
from costmodel.report._of_estimate import (
    answer,
    fit_verdict,
    holders_table,
    memory_table,
    modules_table,
    ops_table,
    phases_table,
    single_ops_table,
)
from costmodel.report._sensitivity import hinges
from costmodel.report._series import roofline, timeline
from costmodel.report._table import Table, adding_up, before_and_after, column_in
from costmodel.report.csv import frame
from costmodel.validate import Validation

from . import report_cases as cases

ESTIMATES = {
    "train": cases.train_estimate,
    "gpu": cases.gpu_estimate,
    "infer": cases.infer_estimate,
    "gap": cases.gap_estimate,
}
estimates = pytest.mark.parametrize("which", list(ESTIMATES))


def number(text: str) -> Decimal:
    return Decimal(text.replace(",", "").replace("−", "-").replace("*", ""))


def readded(table: Table) -> int:
    """Re-add every numeric column that has a total; how many there were."""
    assert table.total is not None
    n = 0
    for i, column in enumerate(table.columns):
        if column.numeric and table.total[i].text != "–":
            total = sum((number(row[i].text) for row in table.rows), Decimal(0))
            assert total == number(table.total[i].text), f"{table.title}: {column.title}"
            n += 1
    return n


# Columns


@given(st.lists(st.floats(-1e6, 1e6), max_size=60), st.integers(0, 3))
def test_rounded_values_add_up_to_the_rounded_sum(values: list[float], decimals: int) -> None:
    rounded = adding_up(values, decimals)
    exact = sum(map(Decimal, values), Decimal(0)) * 10**decimals
    assert abs(sum(rounded) - exact) <= Decimal("0.5001")
    assert all(abs(r - v * 10**decimals) < 1 + 1e-6 for r, v in zip(rounded, values))


@given(st.lists(st.floats(0, 1e12), min_size=1, max_size=40), st.sampled_from(["time", "bytes", "flops", "count"]))
def test_a_printed_column_adds_up(values: list[float], dimension: str) -> None:
    _, cells, total = column_in(dimension, "x", values)
    assert sum((number(c.text) for c in cells), Decimal(0)) == number(total.text)


@given(st.lists(st.tuples(st.floats(0, 1e3), st.floats(0, 1e3)), min_size=1, max_size=30))
def test_before_and_after_subtract_in_each_row(pairs: list[tuple[float, float]]) -> None:
    (_, a, _), (_, b, _), (_, d, total) = before_and_after("time", [p[0] for p in pairs], [p[1] for p in pairs])
    assert all(number(y.text) - number(x.text) == number(z.text) for x, y, z in zip(a, b, d))
    assert sum((number(c.text) for c in d), Decimal(0)) == number(total.text)


@estimates
def test_tables_of_an_estimate_re_add_to_its_figures(which: str) -> None:
    e = ESTIMATES[which]()
    for table in (
        ops_table(e),
        ops_table(e, 3),
        ops_table(e, None),
        modules_table(e, 5),
        single_ops_table(e, 7),
        phases_table(e),
    ):
        assert readded(table) == 5
        time = next(i for i, c in enumerate(table.columns) if c.title.startswith("time"))
        assert table.total is not None
        assert table.total[time].value == pytest.approx(e.latency_s.point, rel=1e-9)
        assert table.total[1].value == len(e.graph)
        assert number(table.total[time + 1].text) == 100
    for table in (memory_table(e), holders_table(e, 4)):
        readded(table)
        assert table.total is not None
        held = next(i for i, c in enumerate(table.columns) if c.title.startswith("held /"))
        assert table.total[held].value == e.footprint.peak_live


def test_changes_re_add_to_the_difference() -> None:
    c = cases.comparison()
    for table in (changes_table(c.by_op), changes_table(c.by_module, "module", 3), changes_table(c.by_phase)):
        assert readded(table) == 5
        assert table.total is not None
        assert table.total[-1].value == pytest.approx(c.delta_s, rel=1e-9)
    assert readded(peak_table(c)) == 3


# What a reader re-adds is what was printed, in every format


def test_printed_text_re_adds() -> None:
    text = render(cases.train_estimate())
    assert isinstance(text, str)
    block = text[text.index("Where the time goes") : text.index("By phase")]
    rows = [re.split(r"\s{2,}", line.strip()) for line in block.splitlines() if re.search(r"\d", line)]
    *body, total = [r for r in rows if len(r) >= 6]
    assert total[0] == "total"
    assert len(body) == 11
    for i in range(1, 6):
        assert sum(number(r[i]) for r in body) == number(total[i])


def test_printed_markdown_re_adds() -> None:
    text = render(cases.page(), "markdown")
    assert isinstance(text, str)
    tables, added = re.split(r"\n\n", text), 0
    for block in tables:
        lines = [line for line in block.splitlines() if line.startswith("|")]
        if len(lines) < 3 or "**" not in lines[-1]:
            continue
        head, rule, *body, total = [[c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
        assert {len(r) for r in (rule, *body, total)} == {len(head)}
        for i, mark in enumerate(rule):
            if mark == "---:" and total[i]:
                assert sum(number(r[i]) for r in body) == number(total[i])
                added += 1
    assert added > 30


def test_printed_html_re_adds() -> None:
    page = _Tables(str(render(cases.page(), "html")))
    added = 0
    for head, body, foot in page.tables:
        for i, (title, numeric) in enumerate(head):
            if foot and numeric and foot[i]:
                assert sum(number(r[i]) for r in body) == number(foot[i]), title
                added += 1
    assert added > 60


class _Tables(HTMLParser):
    """(headings with whether they are numeric, body rows, foot) of each table."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: list[tuple[list[tuple[str, bool]], list[list[str]], list[str]]] = []
        self.scripts = self.depth = 0
        self.tag = self.place = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "table":
            self.tables.append(([], [], []))
        elif tag in ("tbody", "tfoot"):
            self.place = tag
        elif tag == "tr" and self.place == "tbody":
            self.tables[-1][1].append([])
        elif tag == "th":
            self.place = "thead"
            self.tables[-1][0].append(("", ("class", "n") in attrs))
        elif tag == "td":
            (self.tables[-1][1][-1] if self.place == "tbody" else self.tables[-1][2]).append("")
        elif tag == "script":
            self.scripts += 1
        self.tag = tag

    def handle_endtag(self, tag: str) -> None:
        self.tag = ""
        if tag == "table":
            self.place = ""

    def handle_data(self, data: str) -> None:
        if self.tag == "td":
            (self.tables[-1][1][-1] if self.place == "tbody" else self.tables[-1][2])[-1] += data
        elif self.tag == "button" and self.place == "thead":
            title, numeric = self.tables[-1][0][-1]
            self.tables[-1][0][-1] = (title + data, numeric)


# The first screen


def test_the_first_screen_says_what_must_be_said() -> None:
    e = cases.train_estimate()
    text = str(render(e))
    flat = " ".join(text.split())
    assert answer(e) in flat
    for words in (
        "memory, live", "memory, reserved", "memory, resident", "usable", "no sourced constants", "FLOPs",
        "bytes moved", "peak held by", "are guesses", "Interval:", "By phase", "bound by", "plain roofline",
    ):  # fmt: skip
        assert words in flat, words


def test_gaps_are_listed_by_name_everywhere() -> None:
    e = cases.gap_estimate()
    assert e.coverage.unpriced == {"reporttest::gap": 2}
    for format in ("text", "html", "markdown", "latex"):
        assert "reporttest::gap" in str(render(e, format)), format
    assert "reporttest::gap" in repr_html(e)
    assert "without a formula" in str(render(e))


@pytest.mark.parametrize(
    ("low", "point", "high", "words"),
    [(1, 2, 3, "fits"), (1, 2, 9, "probably fits"), (1, 8, 9, "probably does not fit"), (7, 8, 9, "does not fit")],
)
def test_whether_it_fits_is_said_with_its_doubt(low: float, point: float, high: float, words: str) -> None:
    e = cases.train_estimate()
    room = e.device.usable_bytes("cpu") / 5
    memory = replace(e.memory, peak_rss=Range(low * room, point * room, high * room))
    assert fit_verdict(replace(e, memory=memory))[0] == words


def test_of_very_many_cases_the_worst_are_shown_and_the_rest_counted() -> None:
    v = cases.validation()
    base = v.cases[0]
    many = tuple(replace(base, model=f"m{i}", measured=base.predicted * (1 + i / 100)) for i in range(100))
    skipped = {f"s{i}": "too old" if i % 3 else "no shape" for i in range(90)}
    table = " ".join(str(render(Validation(many, skipped))).split())
    assert "60 more are nearer" in table
    assert "m99" in table
    assert "m3 " not in table
    assert re.search(r"60 too old s1, s2, s4, …", table)
    page = str(render(Validation(many, skipped), "html"))
    assert "m3 " in page
    assert "s89" in page


def test_fronts_bring_the_sources_of_their_devices() -> None:
    page = str(render(cases.fronts(), "html"))
    for device in ("raspberry-pi-4b", "jetson-nano"):
        for place, _ in load_device(device).numbers():
            assert place in page


# Sensitivity


@pytest.mark.parametrize("which", ["train", "gpu"])
def test_elasticities_are_those_of_a_new_estimate(which: str) -> None:
    """Move a number in the profile itself and estimate again: the latency moves as was said."""
    e = ESTIMATES[which]()
    found = hinges(e)
    assert len(found) == len(e.device.numbers())
    assert found[0].elasticity != 0
    moved = {h.place: h for h in found}
    share = f"runtime.{e.runtime}.bandwidth_efficiency"
    runtime = e.device.runtime[e.runtime]
    assert runtime.bandwidth_efficiency is not None
    nudged = runtime.bandwidth_efficiency.model_copy(update={"value": runtime.bandwidth_efficiency.value * 1.01})
    changed = runtime.model_copy(update={"bandwidth_efficiency": nudged})
    device = e.device.model_copy(update={"runtime": {**e.device.runtime, e.runtime: changed}})
    again = estimate(e.graph, device, runtime=e.runtime, threads=e.threads)
    expected = (again.latency_s.point / e.latency_s.point - 1) / 0.01
    assert moved[share].elasticity == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert expected < 0


def test_numbers_of_other_runtimes_do_not_matter() -> None:
    for h in hinges(cases.gpu_estimate()):
        if h.place.startswith(("cpu[", "runtime.torch-eager", "energy")):
            assert h.elasticity == 0


# Series


@estimates
@pytest.mark.parametrize("steps", [40, 800, 1 << 40])
def test_a_timeline_adds_up_and_keeps_the_peak(which: str, steps: int) -> None:
    e = ESTIMATES[which]()
    line = timeline(e, steps=steps)
    np.testing.assert_array_equal(sum(line.held.values()), line.live)
    assert line.live[line.peak] == line.live.max() == e.footprint.peak_live
    assert len(line.live) <= max(min(steps + 3, len(e.graph) + 1), 1)
    assert (np.diff(line.time_s) >= 0).all()
    assert [p[0] for p in line.phases] == list(dict.fromkeys(e.graph.op_phase))
    assert all(life.start_s <= line.time_s[line.peak] <= life.end_s for life in line.lives)
    assert [life.bytes for life in line.lives] == [h.bytes for h in e.footprint.holders[: len(line.lives)]]


@estimates
def test_a_roofline_has_every_op(which: str) -> None:
    e = ESTIMATES[which]()
    r = roofline(e)
    drawn = [*r.computing, *r.moving]
    assert sum(p.count for p in drawn) + r.free == len(e.graph)
    assert sum(p.count * p.flops for p in drawn) == pytest.approx(e.flops)
    assert sum(p.count * p.seconds for p in drawn) <= e.latency_s.point * 1.001
    assert r.peaks
    assert r.bandwidths


# Formats


def test_every_format_is_a_file_and_an_unknown_one_names_the_near() -> None:
    assert formats() == ["csv", "github", "html", "json", "latex", "markdown", "perfetto", "png", "svg", "text"]
    with pytest.raises(UnknownName, match="markdown"):
        render(cases.infer_estimate(), "markdwn")


@pytest.mark.parametrize(
    ("what", "format", "words"),
    [
        (lambda: object(), "text", "cannot be rendered"),
        (lambda: cases.infer_estimate(), "png", "give a path"),
        (lambda: cases.checks(), "png", "no picture"),
        (lambda: cases.infer_estimate(), "github", "budget checks"),
        (lambda: cases.validation(), "perfetto", "shows estimates"),
        (lambda: cases.page(), "csv", "one kind"),
        (lambda: [cases.validation(), cases.validation()], "text", "one validation"),
    ],
)
def test_what_cannot_be_drawn_says_why(what, format: str, words: str) -> None:
    with pytest.raises(CostmodelError, match=words):
        render(what(), format)


def test_files_get_names_from_the_report(tmp_path) -> None:
    e = cases.infer_estimate()
    assert render(e, "html", f"{tmp_path}/new/").name == "index.html"
    assert render(e, "perfetto", tmp_path).name == "conv-small-infer-raspberry-pi-5.trace.json"
    assert render(cases.fronts()[0], "svg", tmp_path).name == "pareto-test-raspberry-pi-4b-latency_s.svg"
    assert (
        render(cases.gap_estimate(), "markdown", tmp_path).name == "script-alert-1-script-x_-infer-raspberry-pi-4b.md"
    )
    assert render(e, "text", tmp_path / "exact.log").name == "exact.log"
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


@pytest.mark.parametrize("format", ["text", "html", "markdown", "latex", "perfetto"])
def test_the_same_report_gives_the_same_text(format: str) -> None:
    assert render(cases.train_estimate(), format) == render(cases.train_estimate(), format)


def test_parts_nest_as_they_come() -> None:
    by_device = {f.device: f for f in cases.fronts()[:2]}
    whole = report_of([cases.infer_estimate(), {"irb": by_device}, [cases.validation()]])
    assert (len(whole.estimates), len(whole.fronts)) == (1, 2)
    assert whole.validation is not None
    assert isinstance(whole, Report)


# HTML


def test_the_page_is_one_file_that_fetches_nothing() -> None:
    page = str(render(cases.page(), "html"))
    assert len(page.encode()) < 6_000_000
    own = re.sub(r'<script type="text/plain" id="\w+">[^<]*</script>', "", page)
    assert not re.search(r"""\b(?:src|href|action)\s*=\s*["'](?!#|data:,)""", own)
    assert not re.search(r"@import|url\(|https?://|//cdn", own)
    assert own.count("<!doctype html>") == 1


def test_a_page_of_large_steps_stays_under_six_megabytes() -> None:
    """Forty estimates: more than any command makes."""
    many = Report(estimates=(cases.train_estimate(), cases.gpu_estimate()) * 20)
    assert len(str(render(many, "html")).encode()) < 6_000_000


def test_names_are_text_not_markup() -> None:
    page = str(render(cases.page(), "html"))
    assert "<script>alert" not in page
    assert _Tables(page).scripts == 3
    assert "<script" not in repr_html(cases.gap_estimate())
    figures = _figures(page)
    assert "alert(1)" in figures
    assert "<script" not in figures, "plotly reads markup in texts"
    markdown = str(render(cases.gap_estimate(), "markdown"))
    assert r"\<script\>alert(1)\</script\>\|x\_\*" in markdown


def test_figures_are_what_plotly_takes() -> None:
    """Its Python side checks every property and value, once colours are colours."""
    objects = pytest.importorskip("plotly.graph_objects", reason="plotly is optional and not installed")
    text = _figures(str(render(cases.page(), "html")))
    names = set(re.findall(r"var\(--(\w+)\)", text))
    style = (Path(costmodel.report.__file__).parent / "page.css").read_text()
    assert all(style.count(f"--{name}: #") == 2 for name in names), "each colour in light and in dark"
    figures = json.loads(re.sub(r"var\(--\w+\)(/[0-9.]+)?", "#102030", text))
    assert len(figures) > 12
    for figure in figures:
        objects.Figure(figure)


def _figures(page: str) -> str:
    """The figures of a page as JSON text."""
    packed = re.search(r'id="figures">([^<]+)</script>', page)
    assert packed is not None
    return gzip.decompress(base64.b64decode(packed[1])).decode()


def test_the_page_names_sources_kinds_and_skips() -> None:
    page = str(render(cases.page(), "html"))
    device = load_device("raspberry-pi-4b")
    for place, _ in device.numbers():
        assert place in page
    for source in {n.source for _, n in device.numbers()}:
        assert device.sources[source].split("'")[0].split("&")[0] in page
    assert "there is no kernel of it here" in page
    assert "test value, not an accuracy of this model" in page


# Other files


@pytest.mark.parametrize("part", ["estimate", "fronts", "validation", "comparison"])
def test_svg_is_xml_with_words(part: str) -> None:
    what = {
        "estimate": cases.infer_estimate,
        "fronts": cases.fronts,
        "validation": cases.validation,
        "comparison": cases.comparison,
    }[part]()
    root = ET.fromstring(str(render(what, "svg")))
    assert root.tag.endswith("svg")
    words = " ".join(t.text or "" for t in root.iter("{http://www.w3.org/2000/svg}text"))
    assert "/ ms" in words or "/ s" in words or "/ MiB" in words


def test_the_same_picture_has_the_same_bytes(tmp_path) -> None:
    first, second = (render(cases.comparison(), "png", tmp_path / f"{i}.png").read_bytes() for i in range(2))
    assert first == second
    assert first[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = (int.from_bytes(first[i : i + 4]) for i in (16, 20))
    assert width > 500
    assert height > 400
    assert render(cases.comparison(), "svg") == render(cases.comparison(), "svg")


def test_latex_is_balanced_and_escaped() -> None:
    text = str(render(cases.page(), "latex"))
    lines = [line for line in text.splitlines() if not line.startswith("%")]
    body = "\n".join(lines)
    assert body.count("\\begin{table}") == body.count("\\end{table}") > 8
    plain = re.sub(r"\\[{}]", "", body)
    assert plain.count("{") == plain.count("}")
    assert not re.search(r"(?<!\\)[_#%]", re.sub(r"\\label\{[^}]*\}", "", body))
    labels = re.findall(r"\\label\{([^}]*)\}", body)
    assert len(labels) == len(set(labels))
    body = body.replace(r"p{0.5\linewidth}", "p")
    for block in re.findall(r"\\begin\{tabular\}\{([rlp]+)\}(.*?)\\end\{tabular\}", body, re.DOTALL):
        rows = [r for r in block[1].splitlines() if r.rstrip().endswith("\\\\")]
        assert all(len(re.findall(r"(?<!\\)&", r)) == len(block[0]) - 1 for r in rows)
    assert not re.search(r"[^\x00-\x7f]", body), "pdflatex without inputenc stops at these"


@estimates
def test_csv_rows_add_up_to_the_estimate(which: str) -> None:
    e = ESTIMATES[which]()
    rows = list(csv.DictReader(io.StringIO(str(render(e, "csv")))))
    assert len(rows) == len(e.graph)
    assert sum(float(r["flops"]) for r in rows) == pytest.approx(e.flops)
    assert sum(float(r["latency_s"]) for r in rows) == pytest.approx(float(e.seconds.sum()))
    assert max(int(r["live_bytes"]) for r in rows) == e.footprint.peak_live
    assert rows[0]["model"] == e.graph.meta.model


def test_csv_of_other_parts_has_a_row_each() -> None:
    for part, n in (
        (cases.validation(), len(cases.validation().cases)),
        (cases.fronts(), sum(len(f.points) for f in cases.fronts())),
        (cases.comparison(), len(cases.comparison().by_op)),
        (cases.checks(), 3),
    ):
        assert len(list(csv.DictReader(io.StringIO(str(render(part, "csv")))))) == n


def test_pandas_has_the_same_rows() -> None:
    pytest.importorskip("pandas", reason="pandas is optional and not installed")
    e = cases.train_estimate()
    table = frame(e)
    assert len(table) == len(e.graph)
    assert table.groupby("phase").latency_s.sum()["backward"] == pytest.approx(
        next(r.latency_s for r in e.by_phase() if r.op == "backward")
    )


# Perfetto


@pytest.mark.parametrize("which", ["train", "gpu", "infer"])
def test_the_trace_is_what_perfetto_reads(which: str) -> None:
    """The rules of the Chrome trace format: types, units, nesting; and what must be conserved."""
    e = ESTIMATES[which]()
    document = json.loads(str(render(e, "perfetto")))
    events = document["traceEvents"]
    assert document["displayTimeUnit"] == "ms"
    slices = [v for v in events if v["ph"] == "X"]
    counters = defaultdict(list)
    for v in events:
        assert v["ph"] in "XCMi"
        assert isinstance(v["name"], str)
        assert v["name"]
        assert isinstance(v["pid"], int)
        assert isinstance(v["tid"], int)
        if v["ph"] == "M":
            assert v["name"] in ("process_name", "process_sort_index", "thread_name")
            assert len(v["args"]) == 1
            continue
        assert v["ts"] >= 0
        if v["ph"] == "X":
            assert v["dur"] > 0
        elif v["ph"] == "i":
            assert v["s"] == "t"
        else:
            assert all(isinstance(x, int) for x in v["args"].values())
            counters[v["name"]].append(v)
    ops = [v for v in slices if v["cat"] not in ("phase", "module")]
    instants = [v for v in events if v["ph"] == "i"]
    assert sorted(v["args"]["op"] for v in [*ops, *instants]) == list(range(len(e.graph)))
    assert max(v["ts"] + v["dur"] for v in slices) == pytest.approx(e.latency_s.point * 1e6, rel=1e-6, abs=0.02)
    assert {v["name"] for v in slices if v["cat"] == "phase"} == set(e.graph.op_phase)
    for op, path in zip(ops, _paths(slices)):
        k = op["args"]["op"]
        assert path[0] == e.graph.op_phase[k]
        assert path[-1] == e.graph.op_name[k]
        module = e.graph.op_module[k]
        assert path[-2] == (module or e.graph.op_phase[k])
        assert len(path) == 2 + (module.count(".") + 1 if module else 0)
    for first, second in pairwise(ops):
        assert first["ts"] + first["dur"] <= second["ts"]
    live = [c["args"]["bytes"] for c in counters["live bytes"]]
    assert max(live) == e.footprint.peak_live
    for track in counters.values():
        stamps = [c["ts"] for c in track]
        assert stamps == sorted(stamps)
        values = [c["args"]["bytes"] for c in track]
        assert all(a != b for a, b in pairwise(values))


def _paths(slices: list[dict]) -> list[tuple[str, ...]]:
    """Names from the outermost to the op, for each op: what a viewer that goes by times alone puts above each other."""
    open_: list[tuple[float, str]] = []
    found = []
    for v in sorted(slices, key=lambda v: (v["ts"], -v["dur"])):  # of equals the first is the outer
        end = v["ts"] + v["dur"]
        while open_ and open_[-1][0] <= v["ts"]:
            open_.pop()
        assert not open_ or end <= open_[-1][0], "slices overlap"
        if v["cat"] in ("phase", "module"):
            open_.append((end, v["name"]))
        else:
            found.append((v["args"]["op"], (*(name for _, name in open_), v["name"])))
    return [path for _, path in sorted(found)]


# Notebooks, laziness, documentation


def test_notebook_fragments_are_well_formed() -> None:
    for what in (cases.train_estimate(), cases.validation(), cases.fronts()[0], cases.comparison(), cases.checks(),
                 cases.graph(), cases.gap_estimate()):  # fmt: skip
        text = repr_html(what)
        root = ET.fromstring(re.sub(r"<details open>", '<details open="">', text).replace("&nbsp;", " "))
        assert root.tag == "div"
        assert next(root.iter("table"), None) is not None
        assert len(text) < 80_000


def test_reports_need_no_torch(tmp_path) -> None:
    trace = cases.graph("conv-small", "infer", 1).save(tmp_path / "t.json.gz")
    script = (
        "import sys, costmodel as cm\n"
        f"e = cm.estimate(cm.load({str(trace)!r}), cm.load_device('raspberry-pi-4b'))\n"
        "from costmodel.report import render, repr_html\n"
        "text = render(e)\n"
        "assert not {'matplotlib', 'plotly', 'jinja2', 'pandas'} & set(sys.modules), 'text needs no pictures'\n"
        f"[render(e, f, {str(tmp_path)!r} + '/out.' + f) for f in ('html', 'png', 'perfetto', 'csv')]\n"
        "repr_html(e)\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


@pytest.mark.parametrize(
    "name", ["budget", "report._table", "report.latex", "report._of_validation", "report.csv", "compare"]
)
def test_examples_in_docstrings_hold(name: str) -> None:
    assert doctest.testmod(import_module(f"costmodel.{name}")).failed == 0


@settings(max_examples=20, deadline=None)
@given(st.text(min_size=1, max_size=30))
def test_any_name_makes_a_usable_file_name(name: str) -> None:
    renamed = _renamed(cases.infer_estimate(), name)
    assert re.fullmatch(r"[A-Za-z0-9._-]+", report_of(renamed).name)
    json.loads(str(render(renamed, "perfetto")))
    ET.fromstring(re.sub(r"<details open>", '<details open="">', _xml_chars(repr_html(renamed))))


def _renamed(e: Estimate, name: str) -> Estimate:
    columns = {k: getattr(e.graph, k) for k in e.graph.__dataclass_fields__}
    graph = type(e.graph)(**{**columns, "meta": replace(e.graph.meta, model=name)})
    return replace(e, lowered=replace(e.lowered, graph=graph))


def _xml_chars(text: str) -> str:
    """Without the control characters that XML has no way to write (HTML shows nothing for them)."""
    return re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "", text)
