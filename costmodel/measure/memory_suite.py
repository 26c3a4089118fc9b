"""The memory suite: live and resident peaks of models × modes, predicted from traces and measured on this machine."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from .. import units
from ..device import Device
from ..errors import CostmodelError
from ..estimate import Estimate, Range, estimate
from ..validate import Case, Validation
from .memory_runs import Kept, add_live, add_run, read_runs
from .resident import Mapped, MemoryJob, Resident, measure_rss
from .runtime_memory import largest_of

__all__ = ["CALIBRATION", "HELD_OUT", "half_of", "memory_cases", "memory_suite"]

# Constants of resident bytes were set on the one half of the cases, and are held against the other.
HELD_OUT, CALIBRATION = "held out", "calibration half"

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


def half_of(job: MemoryJob) -> str:
    """Which half a case is of: by a hash of its name, before anything was looked at."""
    return HELD_OUT if int(hashlib.sha256(job.name.encode()).hexdigest(), 16) % 2 else CALIBRATION


def memory_suite(
    device: Device,
    *,
    runtime: str | None = None,
    jobs: Sequence[MemoryJob] | None = None,
    into: Path | None = None,
    processes: int = 1,
    progress: Progress | None = None,
) -> Validation:
    """Predict and measure live and resident peaks of every job, one after another.

    Live bytes are measured in this process, by the allocator's events of the first step and of one in steady state;
    resident bytes in fresh processes of their own, over building the model and three steps.

    Args:
        device: this machine's profile.
        runtime: one of its runtimes; its default otherwise.
        jobs: `memory_cases` otherwise.
        into: file of measurements (`memory_runs`) that is added to; what it holds is not measured again.
        processes: fresh processes a job; those that `into` holds count.
        progress: called before each job with how many are done, their total, and what is next.

    Returns:
        Three cases a job, those of the held-out half first; what could not be traced or run is in `skipped` with the
        reason.
    """
    jobs = memory_cases() if jobs is None else jobs
    kept = Kept() if into is None else read_runs(into)
    found: list[_Compared] = []
    skipped: dict[str, str] = {}
    for done, job in enumerate(jobs):
        if progress is not None:
            progress(done, len(jobs), job.name)
        try:
            runs = list(kept.resident.get(job.name, ()))
            while len(runs) < processes:
                runs.append(measure_rss(job))
                if into is not None:
                    add_run(into, job, runs[-1])
            live = kept.live.get(job.name)
            if live is None:
                live = _measured_live(job)
                if into is not None:
                    add_live(into, job, *live)
            found.append(_compare(job, runs, live, device, runtime))
        except CostmodelError as error:
            skipped[job.name] = str(error)
    found.sort(key=lambda compared: half_of(compared.job) != HELD_OUT)
    worst = sorted(found, key=lambda compared: -abs(compared.resident.error))[:5]
    cases = [
        case
        for compared in found
        for case in (
            *compared.live,
            replace(compared.resident, note=compared.parts) if compared in worst else compared.resident,
        )
    ]
    return Validation(tuple(cases), skipped, provenance=_provenance(found, into))


@dataclass(frozen=True)
class _Compared:
    """One job: its cases, the measured runs, and of what the predicted and the measured resident bytes are made."""

    job: MemoryJob
    live: tuple[Case, Case]
    resident: Case
    runs: tuple[Resident, ...]
    parts: str


def _measured_live(job: MemoryJob) -> tuple[int, int]:
    """Peaks of live bytes of the first step and of one in steady state, in this process."""
    import torch

    from .memory import measure_live

    torch.set_num_threads(job.threads)
    step = job.step()
    first = measure_live(step, first=True).peak
    return first, measure_live(step).peak


def _compare(
    job: MemoryJob, runs: Sequence[Resident], measured: tuple[int, int], device: Device, runtime: str | None
) -> _Compared:
    first, steady = measured
    predicted = estimate(job.trace(), device, runtime=runtime, threads=job.threads)
    largest = largest_of(job, device, runtime) if job.mode == "decode" else predicted
    live = predicted.memory.peak_live
    share = predicted.footprint.first_peak_live / live.point
    first_live = Range(live.low * share, live.point * share, live.high * share)
    peaks = [run.peak for run in runs]
    resident = _case(job, predicted, "peak_rss_bytes", largest.memory.peak_rss, float(np.median(peaks)))
    if len(peaks) > 1:
        resident = replace(resident, noise=max(peaks) / min(peaks) - 1.0)
    return _Compared(
        job,
        (
            _case(job, predicted, "peak_live_bytes", live, steady),
            _case(job, predicted, "peak_live_bytes", first_live, first, "first step"),
        ),
        resident,
        tuple(runs),
        _parts(job, runs[0], largest),
    )


def _parts(job: MemoryJob, run: Resident, predicted: Estimate) -> str:
    """Which part of the resident peak is off: what malloc holds for tensors, or all else."""
    imported, steady = run.stages["imported"], run.stages["steady"]
    grown = steady.heap + steady.mapped - imported.heap - imported.mapped
    other = steady.rss - grown
    parts = predicted.footprint.resident
    return (
        f"{job.name}: malloc held {units.size(run.peak - other)} more at the peak than after the imports (predicted "
        f"{units.size(parts['allocator'] + parts['loading'])}), all else was {units.size(other)} (predicted "
        f"{units.size(parts['runtime'] + parts['scratch'])})"
    )


def _provenance(found: Sequence[_Compared], into: Path | None) -> dict[str, str]:
    """Errors of both halves and of the first step, what is private and shared, and where the runs are."""
    rows = {}
    for half in (HELD_OUT, CALIBRATION):
        errors = [abs(c.resident.error) for c in found if half_of(c.job) == half]
        if errors:
            rows[f"resident, {half}"] = (
                f"{len(errors)} cases: median {units.percent(float(np.median(errors)), 2)}, "
                f"worst {units.percent(max(errors), 1)}"
            )
    for k, name in enumerate(("steady state", "first step")):
        errors = [abs(c.live[k].error) for c in found]
        if errors:
            rows[f"live, {name}"] = (
                f"{len(errors)} cases: median {units.percent(float(np.median(errors)), 4)}, "
                f"worst {units.percent(max(errors), 2)}"
            )
    runs = [run for c in found for run in c.runs]
    if runs:
        rows["private and shared"] = (
            f"at the end a process had {units.size(min(r.private for r in runs))} to "
            f"{units.size(max(r.private for r in runs))} of its own and {units.size(min(r.shared for r in runs))} to "
            f"{units.size(max(r.shared for r in runs))} of clean pages of files, which all that map them have in common"
        )
        rows |= _by_file(runs)
        rows["resident runs"] = f"{len(runs)} fresh processes" + (f", kept in {into}" if into is not None else "")
    return rows


def _by_file(runs: Sequence[Resident], top: int = 6) -> dict[str, str]:
    """The mapped files with most resident bytes: medians over the runs that have them."""
    found: dict[str, list[Mapped]] = {}
    for run in runs:
        for name, mapped in run.files.items():
            found.setdefault(name, []).append(mapped)
    middle = {name: Mapped(*(int(np.median(column)) for column in zip(*of_file))) for name, of_file in found.items()}
    largest = sorted(middle.items(), key=lambda item: -item[1].resident)[:top]
    said = [
        f"{name} {units.size(m.resident)}, of which {units.size(m.shared)} shared (Pss {units.size(m.pss)})"
        for name, m in largest
    ]
    return {"mapped files": "; ".join(said)} if said else {}


def _case(job: MemoryJob, predicted: Estimate, quantity: str, value: Range, measured: float, setting: str = "") -> Case:
    return Case(
        model=job.model,
        device=predicted.device.name,
        runtime=predicted.runtime,
        mode=job.mode,
        method=job.method,
        batch=job.batch,
        threads=job.threads,
        dtype=job.dtype,
        quantity=quantity,
        predicted=value.point,
        low=value.low,
        high=value.high,
        measured=float(measured),
        setting=", ".join(filter(None, (job.setting, setting))),
        group=half_of(job),
    )
