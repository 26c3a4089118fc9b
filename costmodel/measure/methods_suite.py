"""``validate --suite methods``: steps of LBP-WHT and MobileTL beside the step that they change, and the speed-up.

A method and its baseline run in turn in one process, so that the measured speed-up is a ratio of what the machine did
at the same time. Every order of LBP-WHT on a ViT, every k of MobileTL on two nets; fewer on the other nets.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..device import Device
from ..errors import CostmodelError
from ..estimate import estimate
from ..validate import Case, Validation, fit_baseline
from .counted import count_step, product_flops, product_modules, saved_bytes
from .job import Job
from .memory import measure_live_peak
from .rebuild import traced
from .repeats import Raw
from .suite import Measured, Progress, compare, measure_groups

__all__ = ["BAR", "counted_jobs", "counts", "method_groups", "methods_suite", "speed_ups"]

BAR = 0.10
"""What the error of a speed-up is held against."""

_LBP = "timm:vit_small_patch16_224,num_classes=10"
_SPEED_UP = "speed-up over training all"


def method_groups() -> tuple[tuple[Job, ...], ...]:
    """Groups whose first job is the baseline of the others."""
    orders = [f"lbp_wht:order={o}" for o in range(1, 9)] + [f"lbp_wht:order={o},family=linf" for o in (2, 3, 4)]
    last = "stage=last"
    return (
        _group(_LBP, orders, batch=2),
        _group("timm:swin_tiny_patch4_window7_224,num_classes=10", _orders(2, 4, 8), batch=2),
        _group("timm:deit_tiny_patch16_224,num_classes=10", _orders(2, 4, 8), batch=4),
        _group("timm:efficientformer_l1,num_classes=10", _orders(2, 4, 6), batch=4),
        _group(
            "timm:efficientformer_l1,num_classes=10", [f"lbp_wht:order={o},{last}" for o in (2, 4, 8)], "last_stage",
            batch=8,
        ),
        _group("mobilenet-v3-small", _blocks(range(1, 12)), batch=8),
        _group("torchvision:mobilenet_v2", _blocks(range(1, 18)), batch=4, size="3x160x160"),
        _group("torchvision:mobilenet_v3_large", _blocks((1, 3, 5, 10, 15)), batch=8, size="3x160x160"),
        _group("torchvision:mnasnet1_0", _blocks((1, 5, 10)), batch=4, size="3x160x160"),
        _group("proxyless-nas", _blocks((1, 5, 10)), batch=4, size="3x160x160"),
        _group("timm:tf_efficientnet_lite0", _blocks((1, 5, 10)), batch=4, size="3x160x160"),
    )  # fmt: skip


def counted_jobs() -> tuple[Job, ...]:
    """One whole step of each net that the methods were made for: what `counts` holds predictions against."""
    ten, blocks = ",num_classes=10", "mobiletl:blocks=5"
    vits = (
        Job(f"timm:vit_tiny_patch16_224{ten}", "train", "lbp_wht:order=3", batch=2),
        Job(f"timm:swin_tiny_patch4_window7_224{ten}", "train", "lbp_wht:order=4,stage=last"),
        Job(f"timm:deit_tiny_distilled_patch16_224{ten}", "train", "lbp_wht:order=2,padding=reflect", batch=2),
        Job(f"timm:efficientformer_l1{ten}", "train", "lbp_wht:order=6", batch=2),
    )
    nets = (
        "torchvision:mobilenet_v2", "torchvision:mobilenet_v3_small", "torchvision:mobilenet_v3_large",
        "torchvision:mnasnet1_0", "proxyless-nas", "timm:tf_efficientnet_lite0",
    )  # fmt: skip
    return (*vits, *(Job(net, "train", blocks, batch=4) for net in nets))


def counts(
    jobs: Sequence[Job], device: Device, runtime: str | None = None, progress: Progress | None = None
) -> Validation:
    """FLOPs, saved bytes and peak of live bytes of real steps in this process, predicted against counted.

    FLOPs have no interval: they are equal to the last digit or wrong. Workspaces depend on the threads that run, so
    what is predicted is a step of as many as this process has.
    """
    cases: list[Case] = []
    threads = torch.get_num_threads()
    for done, job in enumerate(jobs):
        if progress is not None:
            progress(done, len(jobs), f"count {job.name}")
        step = job.step()
        counted, peak = count_step(step), measure_live_peak(step)
        graph = traced(job)
        estimated = estimate(graph, device, runtime=runtime, threads=threads)
        live = estimated.memory.peak_live
        products = product_flops(graph, set(product_modules(step.model)))
        saved = saved_bytes(graph)
        common: dict[str, Any] = {
            "model": job.model, "device": estimated.device.name, "runtime": estimated.runtime, "mode": job.mode,
            "method": job.method, "batch": job.batch, "threads": threads, "dtype": job.dtype,
        }  # fmt: skip
        for quantity, predicted, low, high, measured, note in (
            ("flops", products, products, products, counted.product_flops, "linear layers and convolutions, by hooks"),
            ("flops", estimated.flops, estimated.flops, estimated.flops, counted.flops, "all ops, as dispatched"),
            ("saved_bytes", saved, saved, saved, counted.saved_bytes, "kept by autograd"),
            ("peak_live_bytes", live.point, live.low, live.high, peak, "events of the allocator"),
        ):
            cases.append(
                Case(
                    **common, quantity=quantity, predicted=float(predicted), low=float(low), high=float(high),
                    measured=float(measured), note=note,
                )
            )  # fmt: skip
    return Validation(tuple(cases))


def _orders(*orders: int) -> list[str]:
    return [f"lbp_wht:order={o}" for o in orders]


def _blocks(counts: Sequence[int]) -> list[str]:
    return [f"mobiletl:blocks={k}" for k in counts]


def _group(
    model: str, methods: Sequence[str], baseline: str | None = None, *, batch: int, size: str | None = None
) -> tuple[Job, ...]:
    return tuple(Job(model, "train", method, batch=batch, input_size=size) for method in (baseline, *methods))


def methods_suite(
    device: Device,
    *,
    groups: Sequence[Sequence[Job]] | None = None,
    runtime: str | None = None,
    processes: int = 2,
    seconds: float = 1.0,
    into: Path | None = None,
    progress: Progress | None = None,
) -> Validation:
    """Latency and peak of live bytes of each step, then the speed-up of each method, predicted against measured.

    Args:
        device: this machine's profile.
        groups: a baseline and its methods each; `method_groups` otherwise.
        runtime: of the device; its default otherwise.
        processes, seconds, into, progress: as in `suite.measure_groups`.
    """
    groups = method_groups() if groups is None else groups
    raw, skipped = measure_groups(
        groups, processes=processes, seconds=seconds, memory=True, into=into, progress=progress
    )
    cases: list[Case] = []
    for group in groups:
        priced: dict[Job, list[Case]] = {}
        for job in group:
            if job not in raw or job.name in skipped:
                continue
            try:
                priced[job] = compare(job, Measured.of(raw[job]), device, runtime)
            except CostmodelError as error:
                skipped[job.name] = str(error)
        cases += [case for found in priced.values() for case in found]
        cases += speed_ups(group, priced, raw)
    return Validation(fit_baseline(cases), skipped)


def speed_ups(
    group: Sequence[Job], priced: Mapping[Job, Sequence[Case]], raw: Mapping[Job, Sequence[Raw]]
) -> Iterator[Case]:
    """The ratio of baseline to method, a case a method; its interval is the bar on either side."""
    baseline, *methods = group
    for job in methods:
        if baseline not in priced or job not in priced:
            continue
        predicted = priced[baseline][0].predicted / priced[job][0].predicted
        ratios = _ratios(raw[baseline], raw[job])
        yield replace(
            priced[job][0],
            quantity="ratio",
            predicted=predicted,
            low=predicted * (1.0 - BAR),
            high=predicted * (1.0 + BAR),
            measured=float(np.median(ratios)),
            baseline=None,
            noise=float(np.ptp(np.log(ratios))) if len(ratios) > 1 else None,
            spread=None,
            processor=None,
            note=_SPEED_UP if baseline.method is None else f"speed-up over {baseline.method}",
        )


def _ratios(baseline: Sequence[Raw], method: Sequence[Raw]) -> Any:
    """(processes,) measured speed-ups, each of steps that ran in turn."""
    pairs = zip(baseline, method)
    return np.array([Measured.of([b]).wall_s / Measured.of([m]).wall_s for b, m in pairs])
