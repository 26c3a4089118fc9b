"""What a job pays once, measured here: fitted to fresh processes, kept in a profile, used by a whole job."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from costmodel.device import load_device
from costmodel.errors import CostmodelError
from costmodel.estimate import estimate
from costmodel.host import detect, write_host_profile
from costmodel.job import training_job
from costmodel.measure.job import Job
from costmodel.measure.start_up import Start, measure_start, measure_start_up, storage_bytes_per_s, with_start_up

from . import report_cases as cases

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="this machine is read from /proc")
STARTS = (Start(4.0, 0.3, 0.1, 1000), Start(5.0, 0.9, 0.1, 2000), Start(4.4, 0.05, 0.1, 100))


def test_a_start_is_what_a_job_of_that_profile_pays(tmp_path: Path) -> None:
    device = load_device(
        write_host_profile(with_start_up(detect(), "torch-eager", STARTS, 4e8), tmp_path / "host.toml")
    )
    runtime = device.runtime["torch-eager"]
    assert runtime.start_s is not None
    assert runtime.first_op_s is not None
    assert (runtime.start_s.value, runtime.first_op_s.value) == (4.4, pytest.approx(2e-4))
    assert "3 fresh processes" in device.sources[runtime.start_s.source]
    step = estimate(cases.graph(), device)
    job = training_job(step, epochs=1, samples=2, sample_s=0.0)
    held = sum(b for b, r in zip(step.graph.storage_bytes, step.graph.storage_role) if r in ("parameter", "buffer"))
    assert job.part("start-up").point == pytest.approx(4.4 + held / 4e8 + 2e-4 * len(step.graph), rel=1e-9)
    assert "start-up" not in job.gaps
    assert "measured: 3 fresh processes" in next(p.source for p in job.parts if p.name == "start-up")


def test_the_interval_holds_every_process_that_was_measured() -> None:
    runtime = with_start_up(detect(), "torch-eager", STARTS, 4e8).runtime["torch-eager"]
    assert runtime.start_s is not None
    assert runtime.first_op_s is not None
    interval = runtime.interval["start_up"]
    for start in STARTS:
        predicted = runtime.start_s.value + start.ops * runtime.first_op_s.value
        took = start.start_s + start.ops * start.first_op_s
        assert predicted * 2.718281828**interval.low < took < predicted * 2.718281828**interval.high


def test_a_first_step_is_never_cheaper_than_a_later_one() -> None:
    assert Start(1.0, 0.1, 0.2, 10).first_op_s == 0.0


def test_the_file_of_weights_is_gone_afterwards(tmp_path: Path) -> None:
    assert 1e6 < storage_bytes_per_s(tmp_path, size=1 << 20) < 1e11
    assert not os.listdir(tmp_path)


def test_a_process_that_fails_says_why() -> None:
    with pytest.raises(CostmodelError, match="no-such-model"):
        measure_start(Job("no-such-model"))


@pytest.mark.slow
def test_a_process_is_measured() -> None:
    device = measure_start_up(detect(), "torch-eager", jobs=[Job("mlp-small", "train", batch=2)])
    runtime = device.runtime["torch-eager"]
    assert runtime.start_s is not None
    assert device.memory.storage_bytes_per_s is not None
    assert 0.2 < runtime.start_s.value < 300
