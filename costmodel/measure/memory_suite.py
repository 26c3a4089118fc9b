"""The memory suite: live and resident peaks of models × modes, predicted from traces and measured on this machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from ..device import Device
from ..errors import CostmodelError
from ..estimate import Estimate, Range, estimate
from ..validate import Case, Validation
from .resident import MemoryJob, measure_rss

__all__ = ["memory_cases", "memory_suite"]

Progress = Callable[[int, int, str], None]

_TEN = ",num_classes=10"


def memory_cases() -> tuple[MemoryJob, ...]:
    """Models × modes: inference, training by optimizer, kept gradients, accumulation, checkpoints, methods, caches."""
    j = MemoryJob
    mobilenet, resnet = f"timm:mobilenetv2_100{_TEN}", f"timm:resnet18{_TEN}"
    vit, small = f"timm:vit_tiny_patch16_224{_TEN}", f"timm:vit_small_patch16_224{_TEN}"
    return (
        j(mobilenet),
        j(mobilenet, batch=8),
        j(mobilenet, "train", batch=8, input_size="3x160x160"),
        j(mobilenet, "train", batch=8, input_size="3x160x160", optimizer="adamw"),
        j(mobilenet, "train", batch=8, input_size="3x128x128", optimizer="momentum", keep_gradients=True),
        j(mobilenet, "train", batch=8, input_size="3x128x128", accumulate=2),
        j(mobilenet, "train", "checkpoint", batch=8, input_size="3x160x160"),
        j(mobilenet, "train", "last_layer", batch=8),
        j(resnet, batch=4),
        j(resnet, "train", batch=8, input_size="3x128x128", optimizer="momentum"),
        j(resnet, "train", batch=8, input_size="3x128x128", optimizer="adamw", keep_gradients=True),
        j(f"timm:resnet50{_TEN}"),
        j(f"timm:resnet50{_TEN}", "train", batch=4, input_size="3x128x128"),
        j(f"timm:resnet50{_TEN}", "train", "checkpoint", batch=4, input_size="3x128x128"),
        j(f"timm:efficientnet_b0{_TEN}", batch=4),
        j(f"timm:efficientnet_b0{_TEN}", "train", batch=4, input_size="3x128x128", optimizer="momentum"),
        j(f"timm:mobilenetv3_large_100{_TEN}", "train", batch=8, input_size="3x128x128", optimizer="adamw"),
        j("timm:convnext_atto", "train", batch=4, input_size="3x160x160"),
        j(vit, batch=8),
        j(vit, "train", batch=4),
        j(vit, "train", batch=4, optimizer="adamw"),
        j(vit, "train", "checkpoint", batch=8, optimizer="adamw"),
        j(vit, "train", batch=4, accumulate=4, keep_gradients=True),
        j(small, "train", batch=2, optimizer="adamw"),
        j(small, "train", "lbp_wht:order=3", batch=2, optimizer="adamw"),
        j(f"timm:swin_tiny_patch4_window7_224{_TEN}"),
        j(f"timm:swin_tiny_patch4_window7_224{_TEN}", "train", batch=2),
        j(f"timm:efficientformer_l1{_TEN}", "train", "lbp_wht:order=4", batch=4),
        j("torchvision:resnet18"),
        j("torchvision:mobilenet_v3_small", "train", batch=8, optimizer="adamw"),
        j("torchvision:squeezenet1_1", "train", batch=4),
        j("torchvision:shufflenet_v2_x1_0", batch=8),
        j("torchvision:densenet121", "train", batch=2, input_size="3x128x128"),
        j("torchvision:vgg11", batch=1),
        j("mobilenet-v3-small", "train", batch=8),
        j("mobilenet-v3-small", "train", "mobiletl:blocks=3", batch=8),
        j("mlp-small", "train", batch=64, optimizer="adamw"),
        j("conv-small", "train", batch=64, optimizer="momentum"),
        j("transformers:bert-small", seq=128),
        j("transformers:bert-small", "train", seq=128, batch=2, optimizer="adamw"),
        j("transformers:bert-small", "train", "checkpoint", seq=128, batch=4),
        j("transformers:bert-mini", "train", seq=128, batch=4, accumulate=2),
        j("transformers:distilgpt2", "prefill", seq=128),
        j("transformers:distilgpt2", "decode", seq=128),
        j("transformers:gpt2-tiny", "train", seq=64, batch=2, optimizer="momentum"),
        j("transformers:llama-tiny", "decode", seq=256),
        j("transformers:mamba-tiny", "prefill", seq=64),
        j("transformers:mamba-tiny", "decode", seq=64),
        j("transformers:mamba-tiny", "prefill", "quamba", seq=64),
        j("transformers:mamba-tiny", "decode", "quamba", seq=64),
    )


def memory_suite(
    device: Device,
    *,
    runtime: str | None = None,
    jobs: Sequence[MemoryJob] | None = None,
    progress: Progress | None = None,
) -> Validation:
    """Predict and measure live and resident peaks of every job, one after another.

    Live bytes are measured in this process, by the allocator's events of a step in steady state; resident bytes in a
    fresh process of its own, over building the model and three steps.

    Args:
        device: this machine's profile.
        runtime: one of its runtimes; its default otherwise.
        jobs: `memory_cases` otherwise.
        progress: called before each job with how many are done, their total, and what is next.

    Returns:
        Two cases a job; what could not be traced or run is in `skipped` with the reason.
    """
    jobs = memory_cases() if jobs is None else jobs
    cases: list[Case] = []
    skipped: dict[str, str] = {}
    for done, job in enumerate(jobs):
        if progress is not None:
            progress(done, len(jobs), job.name)
        try:
            cases += _compare(job, device, runtime)
        except CostmodelError as error:
            skipped[job.name] = str(error)
    return Validation(tuple(cases), skipped)


def _compare(job: MemoryJob, device: Device, runtime: str | None) -> list[Case]:
    import torch

    from .memory import measure_live

    torch.set_num_threads(job.threads)
    predicted = _predict(job, device, runtime)
    rss = predicted.memory.peak_rss
    if job.mode == "decode":  # the process has filled its cache before: a prefill of the context
        before = _predict(replace(job, mode="prefill"), device, runtime).memory.peak_rss
        rss = max(rss, before, key=lambda r: r.point)
    live = measure_live(job.step())
    resident = measure_rss(job)
    return [
        _case(job, predicted, "peak_live_bytes", predicted.memory.peak_live, live.peak, f"drift {live.drift} bytes"),
        _case(
            job,
            predicted,
            "peak_rss_bytes",
            rss,
            resident.peak,
            f"{resident.private:,} bytes private and {resident.shared:,} shared at the end",
        ),
    ]


def _predict(job: MemoryJob, device: Device, runtime: str | None) -> Estimate:
    return estimate(job.trace(), device, runtime=runtime, threads=job.threads)


def _case(job: MemoryJob, predicted: Estimate, quantity: str, value: Range, measured: int, note: str) -> Case:
    words: dict[str, Any] = {
        "model": job.model,
        "device": predicted.device.name,
        "runtime": predicted.runtime,
        "mode": job.mode,
        "method": job.method,
        "batch": job.batch,
        "threads": job.threads,
        "dtype": job.dtype,
    }
    setting = ", ".join(filter(None, (job.setting, note)))
    return Case(
        **words,
        quantity=quantity,
        predicted=value.point,
        low=value.low,
        high=value.high,
        measured=float(measured),
        note=setting,
    )
