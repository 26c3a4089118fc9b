"""Predicted FLOPs, saved bytes and peaks of whole training steps against what a real step is seen to do."""

from __future__ import annotations

import pytest
from torch import nn

from costmodel.device import load_device
from costmodel.estimate import estimate
from costmodel.measure.counted import count_step, product_flops, product_modules, saved_bytes
from costmodel.measure.job import Job
from costmodel.measure.memory import measure_live_peak

SMALL = [
    Job("timm:vit_tiny_patch16_224,depth=2,num_classes=10", "train", "lbp_wht:order=3", batch=2),
    Job("mobilenet-v3-small", "train", "mobiletl:blocks=3", batch=4, input_size="3x128x128"),
]
TEN = ",num_classes=10"
WHOLE = [
    Job(f"timm:vit_tiny_patch16_224{TEN}", "train", "lbp_wht:order=3", batch=2),
    Job(f"timm:swin_tiny_patch4_window7_224{TEN}", "train", "lbp_wht:order=4,stage=last"),
    Job(f"timm:deit_tiny_distilled_patch16_224{TEN}", "train", "lbp_wht:order=2,padding=reflect", batch=2),
    Job(f"timm:efficientformer_l1{TEN}", "train", "lbp_wht:order=6", batch=2),
    *(
        Job(model, "train", "mobiletl:blocks=5", batch=4)
        for model in (
            "torchvision:mobilenet_v2", "torchvision:mobilenet_v3_small", "torchvision:mobilenet_v3_large",
            "torchvision:mnasnet1_0", "proxyless-nas", "timm:tf_efficientnet_lite0",
        )
    ),
]  # fmt: skip


def check(job: Job) -> None:
    step, graph = job.step(), job.trace()
    counted, predicted = count_step(step), estimate(graph, load_device("epyc-zen4-vm-2c"))
    assert product_flops(graph, set(product_modules(step.model))) == counted.product_flops > 0
    assert predicted.flops == counted.flops > counted.product_flops
    assert saved_bytes(graph) == pytest.approx(counted.saved_bytes, rel=5e-3)
    assert predicted.memory.peak_live.point == pytest.approx(measure_live_peak(step), rel=5e-3)


@pytest.mark.parametrize("job", SMALL, ids=lambda job: job.method)
def test_a_small_step_does_what_was_predicted(job):
    check(job)


@pytest.mark.slow
@pytest.mark.parametrize("job", WHOLE, ids=lambda job: job.model)
def test_a_whole_net_does_what_was_predicted(job):
    check(job)


def test_the_count_sees_what_was_left_out():
    """A layer that the prediction does not know of is a difference, so equality means something."""
    job = SMALL[1]
    step, graph = job.step(), job.trace()
    names = set(product_modules(step.model))
    assert product_flops(graph, names - {next(iter(names))}) < product_flops(graph, names)
    head = next(n for n, m in step.model.named_modules() if isinstance(m, nn.Linear))
    step.model.get_submodule(head).bias.requires_grad_(False)
    assert count_step(step).flops < estimate(graph, load_device("epyc-zen4-vm-2c")).flops
