"""What a runtime keeps resident: fitted to fresh processes, kept in a profile, and read from it again."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from costmodel.calibrate import _with_once_only
from costmodel.device import Number, load_device
from costmodel.errors import CostmodelError
from costmodel.footprint import runtime_bytes
from costmodel.host import detect, write_host_profile
from costmodel.measure.memory_runs import add_run, read_runs
from costmodel.measure.memory_suite import CALIBRATION, half_of
from costmodel.measure.resident import OTHER_FILES, Mapped, MemoryJob, Resident, Stage, _mapped_files
from costmodel.measure.runtime_memory import largest_of, measure_runtime_memory, probes, with_runtime_memory
from costmodel.report import render

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


SMAPS = """\
7f00-7f10 r-xp 00000000 08:01 11 /usr/lib/libtorch_cpu.so
Rss:                3000 kB
Pss:                1500 kB
Shared_Clean:       3000 kB
Private_Dirty:         0 kB
7f10-7f20 rw-p 00001000 08:01 11 /usr/lib/libtorch_cpu.so
Rss:                1000 kB
Pss:                1000 kB
Private_Dirty:       600 kB
Shared_Dirty:        100 kB
7f20-7f30 r-xp 00000000 08:01 12 /usr/lib/libsmall.so
Rss:                  40 kB
Pss:                  10 kB
Private_Dirty:         4 kB
7f30-7f40 rw-p 00000000 00:00 0 [heap]
Rss:              900000 kB
Pss:              900000 kB
7f40-7f50 rw-p 00000000 00:00 0
Rss:              900000 kB
"""


def test_what_is_written_of_a_mapped_file_is_private() -> None:
    kib = 1024
    assert _mapped_files(SMAPS) == {
        "libtorch_cpu.so": (4000 * kib, 2500 * kib, 3300 * kib),
        OTHER_FILES: (40 * kib, 10 * kib, 36 * kib),
    }


def test_shared_files_are_kept_and_read_and_shown(tmp_path: Path) -> None:
    job, into = MemoryJob("mlp-small", batch=2), tmp_path / "memory.jsonl"
    stage = Stage(rss=400 << 20, anonymous=300 << 20, file=100 << 20, peak=400 << 20, heap=0, mapped=0)
    stages = dict.fromkeys(("start", "imported", "loaded", "first", "steady"), stage)
    files = {"libtorch_cpu.so": Mapped(90 << 20, 45 << 20, 88 << 20), OTHER_FILES: Mapped(9 << 20, 5 << 20, 8 << 20)}
    for _ in range(3):
        add_run(into, job, Resident(stages, 304 << 20, 96 << 20, 350 << 20, files))
    runs = read_runs(into).resident[job.name]
    assert runs[0].files["libtorch_cpu.so"].shared == 88 << 20
    fitted = with_runtime_memory(detect(), "torch-eager", {job: runs})
    device = load_device(write_host_profile(fitted, tmp_path / "host.toml"))
    shared = device.runtime["torch-eager"].shared_files
    assert {name: number.value for name, number in shared.items()} == {"libtorch_cpu.so": 88 << 20}
    assert shared["libtorch_cpu.so"].kind == "measured"
    found = largest_of(job, device, "torch-eager")
    assert found.footprint.shared == 96 << 20
    said = " ".join(str(render(found, "text")).split())
    assert "of which shared with other processes: 96.0 MiB of library files (the largest are libtorch_cpu.so" in said


def test_what_lies_beside_tensors_is_neither_a_tensor_nor_what_malloc_has_free() -> None:
    job, mib = MemoryJob("mlp-small", batch=2), 1 << 20
    loaded = Stage(500 * mib, 400 * mib, 100 * mib, 510 * mib, heap=150 * mib, mapped=50 * mib, free=40 * mib)
    steady = Stage(620 * mib, 510 * mib, 110 * mib, 700 * mib, heap=240 * mib, mapped=60 * mib, free=90 * mib)
    stages = {"start": loaded, "imported": loaded, "loaded": loaded, "first": steady, "steady": steady}
    fitted = with_runtime_memory(detect(), "torch-eager", {job: [Resident(stages, 500 * mib, 100 * mib)]})
    graph = largest_of(job, fitted, "torch-eager").graph
    made = sum(size for size, birth in zip(graph.storage_bytes, graph.storage_birth) if birth < 0)
    assert made > 0
    expected = 500 * mib - 40 * mib - made + (320 - 300) * mib
    assert fitted.runtime["torch-eager"].resident_bytes["default"].value == pytest.approx(expected, rel=1e-6)


def test_a_method_that_was_measured_adds_its_own_bytes_and_others_what_methods_do() -> None:
    mib = 1 << 20

    def run(beside: int) -> list[Resident]:
        stage = Stage(beside * mib, beside * mib, 0, beside * mib, heap=0, mapped=0)
        return [Resident(dict.fromkeys(("start", "imported", "loaded", "first", "steady"), stage), beside * mib, 0)]

    job = MemoryJob("mobilenet-v3-small", "train", batch=2, input_size="3x64x64")
    beside = {None: 300, "checkpoint": 370, "last_layer": 390, "mobiletl:blocks=1": 430}
    runs = {replace(job, method=method): run(mb) for method, mb in beside.items()}
    runtime = with_runtime_memory(detect(), "torch-eager", runs).runtime["torch-eager"]
    found = {key: round(number.value / mib) for key, number in runtime.resident_bytes.items() if "shared" not in key}
    assert (found["checkpoint"], found["last_layer"]) == (70, 90)
    assert (found["mobiletl"], found["method"], found["kernel"]) == (130, 80, 50)
    plain = runtime_bytes(job.trace(), runtime).value
    for method, more in (("checkpoint", 70), ("mobiletl:blocks=2", 130), ("bias", 130)):
        graph = replace(job, method=method).trace()
        assert runtime_bytes(graph, runtime).value - plain == pytest.approx(more * mib, abs=mib), method


@pytest.mark.slow
def test_fresh_processes_are_measured_once(tmp_path: Path) -> None:
    into, job = tmp_path / "memory.jsonl", MemoryJob("mlp-small", batch=2)
    jobs = (job, MemoryJob("no-such-model"))
    device = measure_runtime_memory(detect(), "torch-eager", jobs=jobs, into=into)
    again = measure_runtime_memory(detect(), "torch-eager", jobs=jobs, into=into)
    assert device.runtime == again.runtime
    assert 100e6 < device.runtime["torch-eager"].resident_bytes["default"].value < 1e9
    runs = read_runs(into).resident[replace(job, threads=1).name]
    assert runs[0].files["libtorch_cpu.so"].shared > 20e6
    assert sum(m.shared for m in runs[0].files.values()) == pytest.approx(runs[0].shared, rel=0.05)
    assert runs[0].private < runs[0].pss <= runs[0].private + runs[0].shared
    with pytest.raises(CostmodelError, match="no-such-model"):
        measure_runtime_memory(detect(), "torch-eager", jobs=jobs[1:])


def test_a_later_calibration_keeps_what_is_measured_once() -> None:
    once = Number(value=5e6, kind="measured", source="resident")
    plain = load_device("epyc-zen4-vm-2c")
    eager = plain.runtime["torch-eager"]
    known = {
        "resident_bytes": {"default": once},
        "shared_files": {"libtorch_cpu.so": once},
        "start_s": once,
        "first_op_s": once,
    }
    before = plain.model_copy(
        update={
            "runtime": {"torch-eager": eager.model_copy(update=known)},
            "memory": plain.memory.model_copy(update={"storage_bytes_per_s": once}),
        }
    )
    fresh = plain.model_copy(
        update={"runtime": {"torch-eager": eager.model_copy(update={"resident_bytes": {}, "shared_files": {}})}}
    )
    kept = _with_once_only(fresh, before)
    assert kept is not None
    assert {key: getattr(kept.runtime["torch-eager"], key) for key in known} == known
    assert kept.memory.storage_bytes_per_s == once
    assert _with_once_only(fresh, fresh) is None, "what was not measured is measured now"
    assert _with_once_only(fresh, None) is None
