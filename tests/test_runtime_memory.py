"""What a runtime keeps resident: fitted to fresh processes, kept in a profile, and read from it again."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from costmodel.device import load_device
from costmodel.errors import CostmodelError
from costmodel.footprint import runtime_bytes
from costmodel.host import detect, write_host_profile
from costmodel.measure.memory_runs import read_runs
from costmodel.measure.memory_suite import CALIBRATION, half_of
from costmodel.measure.resident import MemoryJob
from costmodel.measure.runtime_memory import largest_of, measure_runtime_memory, probes, with_runtime_memory

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="resident bytes are read from /proc")
KEPT = Path(__file__).parents[1] / "traces/runs/epyc-zen4-vm-2c/memory.jsonl"


def test_probes_are_of_the_half_that_constants_may_be_set_on() -> None:
    assert {half_of(job) for job in probes()} == {CALIBRATION}
    assert set(probes(quick=True)) < set(probes())


def test_a_fit_to_processes_is_kept_in_a_profile(tmp_path: Path) -> None:
    kept = read_runs(KEPT).resident
    small = [job for job in probes() if job.model in ("mlp-small", "conv-small") and job.name in kept]
    if len(small) < 2:
        pytest.skip("the kept processes are of another torch or Python")
    fitted = with_runtime_memory(detect(), "torch-eager", {job: kept[job.name] for job in small})
    device = load_device(write_host_profile(fitted, tmp_path / "host.toml"))
    runtime = device.runtime["torch-eager"]
    assert set(runtime.resident_bytes) == {"default", "train", "shared_default", "shared_train"}
    assert runtime.resident_bytes["default"].kind == "measured"
    assert "2 jobs" in device.sources[runtime.resident_bytes["default"].source]
    for job in small:
        found, peak = largest_of(job, device, "torch-eager"), np.median([run.peak for run in kept[job.name]])
        assert found.memory.peak_rss.low <= peak <= found.memory.peak_rss.high
        assert found.memory.peak_rss.point == pytest.approx(peak, rel=0.05)
        assert 0 < found.footprint.shared < found.footprint.resident["runtime"]
        assert runtime_bytes(found.graph, runtime).kind == "measured"
    before = largest_of(small[0], detect(), "torch-eager").memory.peak_rss
    after = largest_of(small[0], device, "torch-eager").memory.peak_rss
    assert after.high / after.low < before.high / before.low  # what was not measured has a wider interval


@pytest.mark.slow
def test_fresh_processes_are_measured_once(tmp_path: Path) -> None:
    into, job = tmp_path / "memory.jsonl", MemoryJob("mlp-small", batch=2)
    jobs = (job, MemoryJob("no-such-model"))
    device = measure_runtime_memory(detect(), "torch-eager", jobs=jobs, into=into)
    again = measure_runtime_memory(detect(), "torch-eager", jobs=jobs, into=into)
    assert device.runtime == again.runtime
    assert 100e6 < device.runtime["torch-eager"].resident_bytes["default"].value < 1e9
    with pytest.raises(CostmodelError, match="no-such-model"):
        measure_runtime_memory(detect(), "torch-eager", jobs=jobs[1:])
