"""Suites of jobs: traced and priced here, run in fresh processes, held against each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..core.table import F8
from ..device import Device
from ..errors import CostmodelError
from ..estimate import Estimate, estimate
from ..runs import Run
from ..validate import Case, Validation, fit_baseline
from .job import Job
from .repeats import Raw, add_repeats, read_repeats, refuse_another_machine
from .worker import Workers

__all__ = [
    "QUICK", "Measured", "Progress", "compare", "kept_cases", "measure_groups", "measure_job", "pairwise_noise",
    "run_suite",
]  # fmt: skip

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


_BEST = 0.05  # quantile of the spins that says what the machine does undisturbed


@dataclass(frozen=True)
class Measured:
    """What the processes say of one job: a low quantile of each process, and the raw repeats.

    Attributes:
        latency_s: the median over processes of their median of wall seconds at the speed of the machine where the
            reference spin takes `spin_s`; of runs without a spin, the smallest over processes.
        wall_s, processor_s: the smallest over processes of their low quantile of wall and processor seconds.
        spin_s: what the spin takes at the machine's best in these runs; None of runs without one.
        noise: mean |ln ratio| of two processes' seconds, by `latency_s`; None of one process.
        spread: the median process over the calmest, less one; None of one process. More processes make it truer, not
            larger, as they would the range.
        peak_live_bytes: what the tensors held, where that was measured.
    """

    latency_s: float
    wall_s: float
    processor_s: float
    spin_s: float | None
    noise: float | None
    spread: float | None
    peak_live_bytes: int | None
    raw: tuple[dict[str, Any], ...]

    @classmethod
    def of(cls, raw: Sequence[dict[str, Any]]) -> Measured:
        """The statistic of every latency here, fixed before any model was fitted."""
        from .latency import Samples

        samples = [
            Samples(tuple(r["wall_s"]), tuple(r["cpu_s"]), tuple(map(bool, r["preempted"])), tuple(r.get("spin_s", ())))
            for r in raw
        ]
        wall = np.array([s.latency_s for s in samples])
        spin = min(float(np.quantile(s.spin_s, _BEST)) for s in samples) if all(s.spin_s for s in samples) else None
        latencies = wall if spin is None else np.array([s.at_speed(spin) for s in samples])
        live = [r["peak_live_bytes"] for r in raw if r.get("peak_live_bytes") is not None]
        several = len(latencies) > 1
        return cls(
            latency_s=float(latencies.min() if spin is None else np.median(latencies)),
            wall_s=float(wall.min()),
            spin_s=spin,
            processor_s=min(s.processor_s for s in samples),
            noise=pairwise_noise(latencies) if several else None,
            spread=float(np.median(latencies) / latencies.min() - 1.0) if several else None,
            peak_live_bytes=live[0] if live else None,
            raw=tuple(raw),
        )

    def at_speed(self, spin_s: float | None) -> float:
        """`latency_s` where the reference spin takes `spin_s`; as it is where either was not measured."""
        return self.latency_s * spin_s / self.spin_s if spin_s and self.spin_s else self.latency_s

    def as_run(self, job: Job) -> Run:
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
            latency_s=self.wall_s,
            cpu_s=self.processor_s,
            noise=self.noise,
            peak_live_bytes=self.peak_live_bytes,
            repeats=tuple(t for r in self.raw for t in r["wall_s"]),
            meta={**machine(), "allocator": job.allocator, "layout": job.layout, "optimizer": job.optimizer},
        )


def pairwise_noise(seconds: F8) -> float:
    """Mean |ln ratio| over all pairs: how far two measurements of one thing are apart.

    >>> round(pairwise_noise(np.array([1.0, 1.0, 2.0])), 3)
    0.462
    """
    logs = np.log(seconds)
    i, j = np.triu_indices(len(logs), 1)
    return float(np.abs(logs[i] - logs[j]).mean())


def run_suite(
    groups: Sequence[Sequence[Job]],
    device: Device,
    *,
    runtime: str | None = None,
    processes: int = 2,
    seconds: float = 1.0,
    memory: bool = True,
    into: Path | None = None,
    progress: Progress | None = None,
    keep: Callable[[Job, Measured], None] | None = None,
) -> Validation:
    """Run every job, then predict it.

    Args:
        groups: jobs of one group are timed in turn in one process; they share threads and allocator.
        device: this machine's profile.
        runtime: of the device; its default otherwise.
        processes, seconds, memory, into: as in `measure_groups`.
        progress: called before each group.
        keep: called with each job and what was measured, to save it.

    Returns:
        Latency (and peak live bytes) of each job; what could not be run is in `skipped` with the reason.
    """
    report = progress or (lambda *_: None)
    jobs = [job for group in groups for job in group]
    passes = len(groups) * processes
    raw, skipped = measure_groups(
        groups,
        processes=processes,
        seconds=seconds,
        memory=memory,
        into=into,
        progress=lambda done, _, what: report(done, passes + len(jobs), what),
    )
    cases: list[Case] = []
    for done, job in enumerate(jobs):
        report(passes + done, passes + len(jobs), f"price {job.name}")
        if job.name in skipped or job not in raw:
            continue
        measured = Measured.of(raw[job])
        if keep is not None:
            keep(job, measured)
        try:
            cases += compare(job, measured, device, runtime)
        except CostmodelError as error:
            skipped[job.name] = str(error)
    return Validation(fit_baseline(cases), skipped)


def measure_groups(
    groups: Sequence[Sequence[Job]],
    *,
    processes: int = 2,
    seconds: float = 1.0,
    memory: bool = False,
    into: Path | None = None,
    progress: Progress | None = None,
) -> tuple[dict[Job, list[Raw]], dict[str, str]]:
    """Run every job in `processes` fresh processes, all groups once before any twice.

    Those of one round are forked from one that has imported the libraries, those of another round from another.

    Args:
        groups: jobs of one group are timed in turn in one process; they share threads and allocator.
        processes: how many each job shall have; those that `into` holds count.
        seconds: of timing a job and process.
        memory: also measure the peak of live bytes, in the first process.
        into: a file of `repeats`: what ends is added at once, so that a killed run goes on where it stopped.
        progress: called with groups done, their total over all processes, and what is next.

    Returns:
        What the processes say of each job; why a job could not be run, by its name.

    Raises:
        FileError: `into` holds runs of another machine, and some are missing.
    """
    found: dict[Job, list[Raw]] = {}
    if into is not None:
        known = read_repeats(into)
        found = {job: known[job] for group in groups for job in group if job in known}
        if any(len(found.get(job, ())) < processes for group in groups for job in group):
            refuse_another_machine(into, known)
    skipped: dict[str, str] = {}
    for process in range(processes):
        with Workers() as workers:
            for number, group in enumerate(groups):
                jobs = [j for j in group if len(found.get(j, ())) <= process and j.name not in skipped]
                if not jobs:
                    continue
                if progress is not None:
                    progress(len(groups) * process + number, len(groups) * processes, f"run {jobs[0].name}")
                try:
                    answers = workers.of(jobs[0]).run(jobs, seconds=seconds, memory=memory and process == 0)
                except CostmodelError as error:
                    skipped.update({j.name: str(error) for j in jobs})
                    continue
                for job, answer in zip(jobs, answers):
                    if into is not None:
                        add_repeats(into, job, answer)
                    found.setdefault(job, []).append(answer)
    return found, skipped


def _doubts(predicted: Estimate, measured: Measured) -> str:
    """What a reader must know of a case: time without a formula, and a wall clock that others' work ran on."""
    found = []
    if predicted.coverage.time < 0.9995:
        found.append(f"{predicted.coverage.time:.1%} of the time has a formula")
    if measured.processor_s < 0.9 * measured.latency_s:
        found.append(f"processor {measured.processor_s:.4g} s: the machine was busy")
    return "; ".join(found)


def compare(job: Job, measured: Measured, device: Device, runtime: str | None = None) -> list[Case]:
    """Latency of one job, and its peak of live bytes where that was measured, against what `device` should take.

    Raises:
        CostmodelError: it cannot be traced.
    """
    from .rebuild import traced

    predicted = estimate(traced(job), device, runtime=runtime, threads=job.threads, allocator=job.allocator)
    t, m = predicted.latency_s, predicted.memory.peak_live
    fits = predicted.device.runtime[predicted.runtime].fit
    spin_s = next((f.spin_s for f in fits if f.threads == predicted.threads and f.spin_s), None)
    common: dict[str, Any] = {
        "model": job.model,
        "device": predicted.device.name,
        "runtime": predicted.runtime,
        "mode": job.mode,
        "method": job.method,
        "batch": job.batch,
        "threads": job.threads,
        "dtype": job.dtype,
        "size": job.input_size or (f"seq{job.seq}" if job.seq else ""),
        "setting": job.setting,
    }
    latency = Case(
        **common,
        quantity="latency_s",
        predicted=t.point,
        low=t.low,
        high=t.high,
        measured=measured.at_speed(spin_s),
        baseline=predicted.baseline_latency_s,
        noise=measured.noise,
        spread=measured.spread,
        processor=measured.processor_s,
        wall=measured.wall_s if measured.spin_s else None,
        note=_doubts(predicted, measured),
    )
    if measured.peak_live_bytes is None:
        return [latency]
    live = Case(
        **common,
        quantity="peak_live_bytes",
        predicted=m.point,
        low=m.low,
        high=m.high,
        measured=float(measured.peak_live_bytes),
    )
    return [latency, live]


def kept_cases(path: Path, device: Device, runtime: str | None = None) -> tuple[tuple[Case, ...], dict[str, str]]:
    """Every job in a file of `repeats` against what `device` should take; the group is the file's stem.

    Returns:
        The cases; why a job could not be priced, by its name.
    """
    cases: list[Case] = []
    skipped: dict[str, str] = {}
    for job, raw in read_repeats(path).items():
        try:
            cases += [replace(c, group=path.stem) for c in compare(job, Measured.of(raw), device, runtime)]
        except CostmodelError as error:
            skipped[job.name] = str(error)
    return fit_baseline(cases), skipped


def measure_job(job: Job, *, processes: int = 2, seconds: float = 1.0, progress: Progress | None = None) -> Run:
    """Run one job in fresh processes.

    Raises:
        CostmodelError: it cannot be built or run; the message is the model's own.
    """
    raw, skipped = measure_groups([[job]], processes=processes, seconds=seconds, memory=True, progress=progress)
    if job.name in skipped:
        raise CostmodelError(skipped[job.name])
    return Measured.of(raw[job]).as_run(job)
