"""Predicted FLOPs, saved bytes and peaks of whole training steps against what a real step is seen to do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import nn

from costmodel.device import load_device
from costmodel.estimate import estimate
from costmodel.measure.counted import count_step, product_flops, product_modules, saved_bytes
from costmodel.measure.job import Job
from costmodel.measure.memory import measure_live_peak
from costmodel.measure.methods_suite import counted_jobs, method_groups, speed_ups
from costmodel.validate import Case

SMALL = [
    Job("timm:vit_tiny_patch16_224,depth=2,num_classes=10", "train", "lbp_wht:order=3", batch=2),
    Job("mobilenet-v3-small", "train", "mobiletl:blocks=3", batch=4, input_size="3x128x128"),
]


@pytest.fixture(params=(1, 2))
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Threads of torch, which its kernels' workspaces depend on."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def check(job: Job, threads: int) -> None:
    step, graph = job.step(), job.trace()
    counted, predicted = count_step(step), estimate(graph, load_device("epyc-zen4-vm-2c"), threads=threads)
    assert product_flops(graph, set(product_modules(step.model))) == counted.product_flops > 0
    assert predicted.flops == counted.flops > counted.product_flops
    assert saved_bytes(graph) == pytest.approx(counted.saved_bytes, rel=5e-3)
    assert predicted.memory.peak_live.point == pytest.approx(measure_live_peak(step), rel=5e-3)


@pytest.mark.parametrize("job", SMALL, ids=lambda job: job.method)
def test_a_small_step_does_what_was_predicted(job, threads):
    check(job, threads)


@pytest.mark.slow
@pytest.mark.parametrize("job", counted_jobs(), ids=lambda job: job.model)
def test_a_whole_net_does_what_was_predicted(job, threads):
    check(job, threads)


def test_the_count_sees_what_was_left_out():
    """A layer that the prediction does not know of is a difference, so equality means something."""
    job = SMALL[1]
    step, graph = job.step(), job.trace()
    names = set(product_modules(step.model))
    assert product_flops(graph, names - {next(iter(names))}) < product_flops(graph, names)
    head = next(n for n, m in step.model.named_modules() if isinstance(m, nn.Linear))
    step.model.get_submodule(head).bias.requires_grad_(False)
    assert count_step(step).flops < estimate(graph, load_device("epyc-zen4-vm-2c")).flops


def test_a_speed_up_is_a_ratio_of_steps_that_ran_in_turn():
    """The median over processes of the ratio within each, predicted beside it; none without its baseline."""
    base, method = method_groups()[0][:2]
    case = Case(
        model="m", device="d", runtime="r", mode="train", method=None, batch=2, threads=1, dtype="float32",
        quantity="latency_s", predicted=3.0, low=2.0, high=4.0, measured=1.0,
    )  # fmt: skip
    priced = {base: [case], method: [replace(case, method=method.method, predicted=2.0)]}
    raw = {base: [_ran(4.0), _ran(8.0), _ran(6.0)], method: [_ran(2.0), _ran(2.0), _ran(2.0)]}
    (found,) = speed_ups((base, method), priced, raw)
    assert (found.quantity, found.predicted, found.measured) == ("ratio", 1.5, 3.0)
    assert found.error == pytest.approx(-0.5)
    assert not list(speed_ups((base, method), {method: priced[method]}, raw))


def _ran(seconds: float) -> dict[str, object]:
    return {"wall_s": [seconds] * 5, "cpu_s": [seconds] * 5, "preempted": [False] * 5, "peak_live_bytes": None}
