"""Resident bytes of a fresh process, and the suite that compares them."""

from __future__ import annotations

import sys

import pytest

from costmodel.device import load_device
from costmodel.errors import CostmodelError
from costmodel.measure.memory_suite import memory_cases, memory_suite
from costmodel.measure.resident import MemoryJob, measure_rss

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="resident bytes are read from /proc")


def test_cases_are_many_and_apart() -> None:
    jobs = memory_cases()
    assert len(jobs) >= 40
    assert len({job.name for job in jobs}) == len(jobs)
    assert {job.mode for job in jobs} == {"infer", "train", "prefill", "decode"}
    assert {job.optimizer for job in jobs if job.mode == "train"} == {"sgd", "momentum", "adamw"}


@pytest.mark.slow
def test_a_small_job_in_a_fresh_process() -> None:
    job = MemoryJob("mlp-small", "train", batch=64)
    found = measure_rss(job)
    rss = [stage.rss for stage in found.stages.values()]
    assert rss == sorted(rss)
    assert found.peak >= rss[-1]
    assert found.private + found.shared == pytest.approx(rss[-1], rel=0.05)
    result = memory_suite(load_device("host"), jobs=(job, MemoryJob("no-such-model")))
    assert [case.quantity for case in result.cases] == ["peak_live_bytes", "peak_rss_bytes"]
    assert abs(result.cases[0].error) < 1e-3
    assert abs(result.cases[1].error) < 0.25
    assert "no-such-model" in next(iter(result.skipped.values()))


@pytest.mark.slow
def test_a_job_that_cannot_run_says_why() -> None:
    with pytest.raises(CostmodelError, match="no-such-model"):
        measure_rss(MemoryJob("no-such-model"))
