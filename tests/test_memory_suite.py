"""Resident bytes of a fresh process, and the suite that compares them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from costmodel.device import load_device
from costmodel.errors import CostmodelError, FileError
from costmodel.measure.memory_runs import Kept, add_live, add_run, read_runs
from costmodel.measure.memory_suite import CALIBRATION, HELD_OUT, half_of, memory_cases, memory_suite
from costmodel.measure.resident import MemoryJob, Resident, Stage, measure_rss

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="resident bytes are read from /proc")


def test_cases_are_many_and_apart() -> None:
    jobs = memory_cases()
    assert len(jobs) >= 40
    assert len({job.name for job in jobs}) == len(jobs)
    assert {job.mode for job in jobs} == {"infer", "train", "prefill", "decode"}
    assert {job.optimizer for job in jobs if job.mode == "train"} == {"sgd", "momentum", "adamw"}


def test_halves_are_of_the_name_and_both_there() -> None:
    halves = [half_of(job) for job in memory_cases()]
    assert {halves.count(HELD_OUT), halves.count(CALIBRATION)} == {24, 26}
    assert half_of(MemoryJob("mlp-small")) == half_of(MemoryJob("mlp-small"))


def test_runs_are_kept_and_read(tmp_path: Path) -> None:
    path, job = tmp_path / "deep" / "runs.jsonl", MemoryJob("mlp-small")
    assert read_runs(path) == Kept()
    stage = Stage(rss=5, anonymous=3, file=2, peak=6, heap=1, mapped=0)
    run = Resident(dict.fromkeys(("start", "imported", "loaded", "first", "steady"), stage), private=4, shared=1)
    add_run(path, job, run)
    add_run(path, job, run)
    add_live(path, job, 7, 8)
    assert read_runs(path) == Kept({job.name: [run, run]}, {job.name: (7, 8)})
    lines = path.read_text().splitlines()
    path.write_text(lines[0].replace('"torch": "', '"torch": "0.') + "\n" + lines[1])
    assert read_runs(path) == Kept({job.name: [run]})  # of another build: measured again
    path.write_text(lines[0] + "\n" + lines[1][:40])
    with pytest.raises(FileError, match="line 2"):
        read_runs(path)


@pytest.mark.slow
def test_a_small_job_in_a_fresh_process(tmp_path: Path) -> None:
    job = MemoryJob("mlp-small", "train", batch=64)
    found = measure_rss(job)
    rss = [stage.rss for stage in found.stages.values()]
    assert rss == sorted(rss)
    assert found.peak >= rss[-1]
    assert found.private + found.shared == pytest.approx(rss[-1], rel=0.05)
    kept = tmp_path / "runs.jsonl"
    add_run(kept, job, found)
    result = memory_suite(load_device("host"), jobs=(job, MemoryJob("no-such-model")), into=kept)
    assert [case.quantity for case in result.cases] == ["peak_live_bytes", "peak_live_bytes", "peak_rss_bytes"]
    assert [case.setting.endswith("first step") for case in result.cases] == [False, True, False]
    assert all(abs(case.error) < 1e-3 for case in result.cases[:2])
    assert result.cases[2].measured == found.peak  # what is kept is not measured again
    assert abs(result.cases[2].error) < 0.1
    assert "malloc held" in result.cases[2].note
    assert len(kept.read_text().splitlines()) == 2  # and the live bytes
    assert "no-such-model" in next(iter(result.skipped.values()))


@pytest.mark.slow
def test_a_job_that_cannot_run_says_why() -> None:
    with pytest.raises(CostmodelError, match="no-such-model"):
        measure_rss(MemoryJob("no-such-model"))
