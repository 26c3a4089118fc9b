"""Suites of jobs: traced and priced here, run in fresh processes, held against each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..device import Device
from ..errors import CostmodelError
from ..estimate import Estimate, estimate
from ..runs import Run
from ..validate import Case, Validation, fit_baseline
from .job import Job
from .worker import Worker

__all__ = ["QUICK", "Measured", "Progress", "measure_job", "run_suite"]

Progress = Callable[[int, int, str], None]
"""Called with the number of groups done, their total, and what is next."""

# Jobs of one group run in one process, in turn: a method beside the model that it changes.
QUICK: tuple[tuple[Job, ...], ...] = (
    (
        Job("timm:mobilenetv2_100,num_classes=10", "infer"),
        Job("timm:mobilenetv2_100,num_classes=10", "train", batch=4, input_size="3x128x128"),
    ),
    (
        Job("mobilenet-v3-small", "infer"),
        Job("mobilenet-v3-small", "train", batch=8),
        Job("mobilenet-v3-small", "train", "mobiletl:blocks=3", batch=8),
    ),
    (
        Job("timm:vit_small_patch16_224,num_classes=10", "infer"),
        Job("timm:vit_small_patch16_224,num_classes=10", "train", batch=2),
        Job("timm:vit_small_patch16_224,num_classes=10", "train", "lbp_wht:order=3", batch=2),
    ),
    (
        Job("timm:swin_tiny_patch4_window7_224,num_classes=10", "infer"),
        Job("timm:swin_tiny_patch4_window7_224,num_classes=10", "train", batch=2),
    ),
    (
        Job("timm:resnet18,num_classes=10", "infer"),
        Job("timm:resnet18,num_classes=10", "train", batch=4, input_size="3x128x128"),
    ),
    (
        Job("transformers:bert-small", "infer", seq=128),
        Job("transformers:bert-small", "train", seq=128, batch=2, optimizer="adamw"),
    ),
    (
        Job("transformers:mamba-tiny", "prefill", seq=64),
        Job("transformers:mamba-tiny", "prefill", "quamba", seq=64),
        Job("transformers:mamba-tiny", "decode", seq=64),
        Job("transformers:mamba-tiny", "decode", "quamba", seq=64),
        Job("transformers:mamba-tiny", "train", seq=32),
    ),
    (
        Job("transformers:mamba2-tiny", "prefill", seq=64),
        Job("transformers:mamba2-tiny", "decode", seq=64),
        Job("transformers:mamba2-tiny", "train", seq=32),
    ),
)


@dataclass(frozen=True)
class Measured:
    """What the processes say of one job: a low quantile of each process, and the raw repeats."""

    latency_s: float
    processor_s: float
    noise: float | None
    peak_live_bytes: int | None
    raw: tuple[dict[str, Any], ...]

    @classmethod
    def of(cls, raw: Sequence[dict[str, Any]]) -> Measured:
        """The calmest process counts; the noise is the spread over processes of their low quantiles (None of one)."""
        from .latency import Samples

        samples = [Samples(tuple(r["wall_s"]), tuple(r["cpu_s"]), tuple(r["preempted"])) for r in raw]
        latencies = [s.latency_s for s in samples]
        live = [r["peak_live_bytes"] for r in raw if r.get("peak_live_bytes") is not None]
        return cls(
            latency_s=min(latencies),
            processor_s=min(s.processor_s for s in samples),
            noise=float(np.max(latencies) / np.min(latencies) - 1.0) if len(latencies) > 1 else None,
            peak_live_bytes=live[0] if live else None,
            raw=tuple(raw),
        )

    def as_run(self, job: Job, allocator: str) -> Run:
        """The run as it is kept in a CSV."""
        from . import machine

        return Run(
            model=job.model,
            mode=job.mode,
            method=job.method,
            batch=job.batch,
            input_size=job.input_size or (f"seq{job.seq}" if job.seq else ""),
            dtype=job.dtype,
            device="host",
            runtime="torch-eager",
            threads=job.threads,
            latency_s=self.latency_s,
            cpu_s=self.processor_s,
            noise=self.noise,
            peak_live_bytes=self.peak_live_bytes,
            repeats=tuple(t for r in self.raw for t in r["wall_s"]),
            meta={**machine(), "allocator": allocator, "optimizer": job.optimizer},
        )


def run_suite(
    groups: Sequence[Sequence[Job]],
    device: Device,
    *,
    runtime: str | None = None,
    processes: int = 2,
    seconds: float = 1.0,
    memory: bool = True,
    allocator: str = "pinned",
    progress: Progress | None = None,
    keep: Callable[[Job, Measured], None] | None = None,
) -> Validation:
    """Predict and run every job.

    Args:
        groups: jobs of one group are timed in turn in one process.
        device: this machine's profile.
        processes: fresh processes a group, all groups once before any twice.
        seconds: of timing a job and process.
        memory: also measure the peak of live bytes, in the first process.
        allocator: ``pinned`` or ``default``.
        progress: called before each group.
        keep: called with each job and what was measured, to save it.

    Returns:
        Latency and peak live bytes of each job; what could not be run is in `skipped` with the reason.
    """
    estimates: dict[Job, Estimate] = {}
    skipped: dict[str, str] = {}
    raw: dict[Job, list[dict[str, Any]]] = {}
    total = len(groups) * (processes + 1)
    for done, group in enumerate(groups):
        for job in group:
            if progress is not None:
                progress(done, total, f"trace {job.name}")
            try:
                estimates[job] = estimate(job.trace(), device, runtime=runtime, threads=job.threads)
            except CostmodelError as error:
                skipped[job.name] = str(error)
    for process in range(processes):
        for g, group in enumerate(groups):
            jobs = [j for j in group if j in estimates and j.name not in skipped]
            if not jobs:
                continue
            if progress is not None:
                progress(len(groups) * (process + 1) + g, total, f"run {jobs[0].name}")
            with Worker(jobs[0].threads, allocator) as worker:
                try:
                    answers = worker.run(jobs, seconds=seconds, memory=memory and process == 0)
                except CostmodelError as error:
                    skipped.update({j.name: str(error) for j in jobs})
                    continue
            for job, answer in zip(jobs, answers):
                raw.setdefault(job, []).append(answer)
    cases: list[Case] = []
    for job, answers in raw.items():
        if job.name in skipped:
            continue
        measured = Measured.of(answers)
        if keep is not None:
            keep(job, measured)
        cases += _cases(job, estimates[job], measured)
    return Validation(fit_baseline(cases), skipped)


def _doubts(predicted: Estimate, measured: Measured) -> str:
    """What a reader must know of a case: time without a formula, and a wall clock that others' work ran on."""
    found = []
    if predicted.coverage.time < 0.9995:
        found.append(f"{predicted.coverage.time:.1%} of the time has a formula")
    if measured.processor_s < 0.9 * measured.latency_s:
        found.append(f"processor {measured.processor_s:.4g} s: the machine was busy")
    return "; ".join(found)


def _cases(job: Job, predicted: Estimate, measured: Measured) -> list[Case]:
    common = {
        "model": job.model,
        "device": predicted.device.name,
        "runtime": predicted.runtime,
        "mode": job.mode,
        "method": job.method,
        "batch": job.batch,
        "threads": job.threads,
        "dtype": job.dtype,
    }
    t, m = predicted.latency_s, predicted.memory.peak_live
    latency = Case(
        **common,  # type: ignore[arg-type]
        quantity="latency_s",
        predicted=t.point,
        low=t.low,
        high=t.high,
        measured=measured.latency_s,
        baseline=predicted.baseline_latency_s,
        noise=measured.noise,
        note=_doubts(predicted, measured),
    )
    if measured.peak_live_bytes is None:
        return [latency]
    live = Case(
        **common,  # type: ignore[arg-type]
        quantity="peak_live_bytes",
        predicted=m.point,
        low=m.low,
        high=m.high,
        measured=float(measured.peak_live_bytes),
    )
    return [latency, live]


def measure_job(
    job: Job,
    *,
    processes: int = 2,
    seconds: float = 1.0,
    allocator: str = "pinned",
    progress: Progress | None = None,
) -> Run:
    """Run one job in fresh processes.

    Raises:
        CostmodelError: it cannot be built or run; the message is the model's own.
    """
    raw = []
    for process in range(processes):
        if progress is not None:
            progress(process, processes, f"process {process + 1} of {job.name}")
        with Worker(job.threads, allocator) as worker:
            raw += worker.run([job], seconds=seconds, memory=process == 0)
    return Measured.of(raw).as_run(job, allocator)
