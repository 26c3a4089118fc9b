"""Page faults of malloc: pages of a step against a real process, their cost in an estimate, and the way around them."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest

from costmodel.core.malloc import PAGE
from costmodel.device import Device, Number, load_device
from costmodel.errors import UnknownName
from costmodel.estimate import PAGE_FAULTS, estimate
from costmodel.footprint import fresh_bytes
from costmodel.graph import OpGraph
from costmodel.measure.job import Job
from costmodel.measure.latency import allocator_here, pinned_allocator
from costmodel.peaks import page_fault_s
from costmodel.report._of_estimate import headline
from costmodel.report._sensitivity import hinges

PAGE_S = 2e-5
# Rows that a test shares with the process it starts: minor faults of each of the last steps.
COUNT = """
import json, resource, sys
from costmodel.measure.job import Job
import torch
torch.set_num_threads(1)
step = Job(**json.loads(sys.argv[1])).step()
faults = []
for _ in range(9):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step.run()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(json.dumps(faults[4:]))
"""


@pytest.fixture(scope="module")
def device() -> Device:
    """A Raspberry Pi 4 whose runtime takes 20 µs a page: as much of its step as 2 µs are of a fast core's."""
    found = load_device("raspberry-pi-4b")
    number = Number(value=PAGE_S, kind="measured", source="peaks")
    runtime = found.runtime["torch-eager"].model_copy(update={"page_fault_s": number})
    return found.model_copy(
        update={"runtime": {**found.runtime, "torch-eager": runtime}, "sources": {**found.sources, "peaks": "a test"}}
    )


@pytest.fixture(scope="module")
def graph() -> OpGraph:
    return Job("torchvision:mobilenet_v2").trace()


def test_pages_of_a_step_cost_what_the_profile_says(graph: OpGraph, device: Device) -> None:
    default, pinned = estimate(graph, device), estimate(graph, device, allocator="pinned")
    assert default.fresh is not None
    pages = default.fresh / PAGE
    assert pages.shape == (len(graph),)
    assert pages.sum() > 100
    assert default.bounds == (*pinned.bounds, PAGE_FAULTS)
    scale = default.seconds[pages == 0] / pinned.seconds[pages == 0]
    np.testing.assert_allclose(scale, 1.0)
    whole = default.latency_s.point - pinned.latency_s.point
    assert whole == pytest.approx(default.page_faults_s)
    unscaled = pages.sum() * PAGE_S
    factor = device.runtime["torch-eager"].scale
    assert whole == pytest.approx(unscaled * (factor["default"].value if "default" in factor else 1.0))
    assert pinned.page_faults_s == 0.0


def test_what_is_chaotic_widens_the_interval(graph: OpGraph, device: Device) -> None:
    default, pinned = (estimate(graph, device, allocator=a).latency_s for a in ("default", "pinned"))
    assert default.high / default.point > pinned.high / pinned.point


def test_a_profile_without_the_number_prices_no_faults(graph: OpGraph) -> None:
    bare = load_device("raspberry-pi-4b")
    default, pinned = estimate(graph, bare), estimate(graph, bare, allocator="pinned")
    assert default.latency_s == pinned.latency_s
    assert PAGE_FAULTS not in default.bounds


def test_an_unknown_allocator_is_refused(graph: OpGraph, device: Device) -> None:
    with pytest.raises(UnknownName, match=r"jemalloc.*default"):
        estimate(graph, device, allocator="jemalloc")


def test_the_report_says_what_faults_cost_and_how_to_avoid_them(graph: OpGraph, device: Device) -> None:
    default = dict(headline(estimate(graph, device)))
    assert "--allocator pinned" in default["of it, page faults"]
    assert "of it, page faults" not in dict(headline(estimate(graph, device, allocator="pinned")))


def test_a_calibration_that_did_not_measure_pages_says_so(graph: OpGraph) -> None:
    """Of Zen 4, calibrated before pages were; guesses and fits to whole runs need no such line."""
    zen4, pi = load_device("epyc-zen4-vm-2c"), load_device("raspberry-pi-4b")
    assert "not priced" in dict(headline(estimate(graph, zen4)))["of it, page faults"]
    assert "of it, page faults" not in dict(headline(estimate(graph, zen4, allocator="pinned")))
    assert "of it, page faults" not in dict(headline(estimate(graph, pi)))
    assert "changes nothing" in dict(headline(estimate(graph, pi, allocator="pinned")))["of it, page faults"]


def test_the_latency_hangs_on_the_cost_of_a_page(graph: OpGraph, device: Device) -> None:
    def elasticity(allocator: str) -> float:
        place = "runtime.torch-eager.page_fault_s"
        return next(h.elasticity for h in hinges(estimate(graph, device, allocator=allocator)) if h.place == place)

    found = estimate(graph, device)
    assert elasticity("default") == pytest.approx(found.page_faults_s / found.latency_s.point, rel=1e-3)
    assert elasticity("pinned") == 0.0


@pytest.mark.parametrize(
    "job",
    [
        Job("torchvision:mobilenet_v2", allocator="default"),
        Job("torchvision:resnet18", allocator="default"),
        Job("transformers:bert-mini", "train", seq=128, batch=4, allocator="default"),
        Job("torchvision:mobilenet_v2", allocator="pinned"),
    ],
    ids=lambda job: job.name.replace(" ", "-"),
)
def test_pages_of_real_steps(job: Job) -> None:
    """Within a factor of two, and none where there are none; median of five steps of a process."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    if job.allocator == "pinned":
        environment |= pinned_allocator()
    done = subprocess.run(
        [sys.executable, "-c", COUNT, json.dumps(job.as_dict())],
        env={**environment, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=True, timeout=300,
    )  # fmt: skip
    real = float(np.median(json.loads(done.stdout.splitlines()[-1])))
    found = estimate(job.trace(), load_device("raspberry-pi-4b"))
    predicted = float(fresh_bytes(found.lowered).sum()) / PAGE if job.allocator == "default" else 0.0
    few = 0.05 * found.footprint.resident["allocator"] / PAGE
    assert max(real, predicted) < few or abs(math.log(real / predicted)) < math.log(2.0), (real, predicted)


def test_the_system_gives_a_page_in_a_sane_time() -> None:
    assert 5e-8 < page_fault_s(0.2, 16 << 20) < 1e-4


def test_how_this_process_was_started(monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in pinned_allocator().items():
        monkeypatch.setenv(key, value)
    assert allocator_here() == "pinned"
    monkeypatch.delenv("MALLOC_MMAP_MAX_")
    assert allocator_here() == "default"
