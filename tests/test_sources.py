"""Provenance: every figure of a report names the files it was read from, and those files are there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from costmodel.device import load_device
from costmodel.estimate import estimate
from costmodel.graph import load
from costmodel.job import training_job
from costmodel.pareto import pareto
from costmodel.report import render, report_of
from costmodel.sources import place_of, profile_sources, source_of

from . import report_cases as cases

ROOT = Path(__file__).resolve().parents[1]
TRACE = ROOT / "traces" / "mobilenet-v3-small-train-b8.json.gz"
COMMITTED = ROOT / "reports" / "index.json"


def figures(value: Any, sources: tuple[str, ...] = (), place: str = "") -> Iterator[tuple[str, tuple[str, ...]]]:
    """Every number under `value` with the nearest ``sources`` above it."""
    if isinstance(value, dict):
        own = tuple(value["sources"]) if isinstance(value.get("sources"), list) else sources
        for key, item in value.items():
            yield from figures(item, own, f"{place}.{key}")
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from figures(item, sources, f"{place}[{i}]")
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield place, sources


def walked(document: dict[str, Any], root: Path) -> int:
    """Check that each figure has files and that each file is there; the number of figures."""
    files = document["files"]
    for file, what in files.items():
        assert (root / file).is_file(), f"{file} is named and not there"
        assert len(what["sha256"]) == 64
    count = 0
    for place, sources in figures({k: v for k, v in document.items() if k not in ("files", "schema")}):
        assert sources, f"no file is named for {place}"
        assert set(sources) <= set(files), f"{place} names a file that is not in files"
        count += 1
    for device in document["devices"].values():
        for number in device["numbers"]:
            assert number["source"] in device["texts"], f"{number} has a source that nobody explains"
    return count


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    """A report of a shipped trace on shipped profiles, a job of it, and a front."""
    graph = load(TRACE)
    priced = [estimate(graph, load_device(name), threads=2) for name in ("raspberry-pi-4b", "jetson-nano-5w")]
    from dataclasses import replace

    trace = source_of(TRACE, "trace")
    points = [replace(p, sources=(trace,)) for front in cases.fronts() for p in front.points]
    whole = report_of([*priced, training_job(priced[0], epochs=1, samples=8), *pareto(points).values()])
    parsed: dict[str, Any] = json.loads(str(render(whole, "json")))
    return parsed


def test_every_figure_names_files_that_are_there(document: dict[str, Any]) -> None:
    assert walked(document, ROOT) > 300
    for file, what in document["files"].items():
        assert what["sha256"] == hashlib.sha256((ROOT / file).read_bytes()).hexdigest()


def test_power_modes_and_cores_are_named_too(document: dict[str, Any]) -> None:
    sources = document["estimates"][1]["sources"]
    assert "traces/mobilenet-v3-small-train-b8.json.gz" in sources
    assert {"hwprofiles/jetson-nano-5w.toml", "hwprofiles/jetson-nano.toml"} <= set(sources)
    assert any(s.startswith("hwprofiles/cores/") for s in sources)


def test_a_figure_without_files_is_found(document: dict[str, Any]) -> None:
    broken = {**document, "estimates": [{**document["estimates"][0], "sources": []}]}
    with pytest.raises(AssertionError, match="no file is named"):
        walked(broken, ROOT)
    with pytest.raises(AssertionError, match="not there"):
        walked({**document, "files": {"traces/none.json.gz": {"sha256": "0" * 64}}}, ROOT)


@pytest.mark.skipif(not COMMITTED.is_file(), reason="reports/index.json is not in this checkout")
def test_the_committed_report_is_traceable() -> None:
    report = json.loads(COMMITTED.read_text(encoding="utf-8"))
    assert walked(report, ROOT) > 1000
    assert report["fronts"], "the committed report has fronts"
    assert report["estimates"], "and estimates"
    folders = {file.split("/")[0] for file in report["files"]}
    assert folders <= {"traces", "hwprofiles"}


def test_the_page_prints_files_and_digests() -> None:
    graph = load(TRACE)
    page = str(render(estimate(graph, load_device("raspberry-pi-4b")), "html"))
    for source in (source_of(TRACE, "trace"), *profile_sources("raspberry-pi-4b")):
        assert source.file in page
        assert source.sha256[:12] in page


def test_a_traced_step_says_that_it_is_in_no_file() -> None:
    assert "in no file" in str(render(cases.train_estimate(), "html"))


def test_places_are_from_the_root_inside_and_whole_outside(tmp_path: Path) -> None:
    assert place_of(TRACE) == "traces/mobilenet-v3-small-train-b8.json.gz"
    outside = tmp_path / "x.csv"
    outside.write_text("x")
    assert place_of(outside) == outside.resolve().as_posix()
    assert profile_sources("no-such-device") == ()
