"""Many models on this machine, half of them never looked at while the model was made."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ..device import Device
from ..errors import CostmodelError
from ..validate import MOST_SPREAD, Ablated, Case, ClassError, Validation, class_errors
from . import Options, Progress

if TYPE_CHECKING:
    from ..measure.job import Job
    from ..measure.suite import Measured

_STATISTIC = (
    "the median over processes of the median of a process's repeats that no other process interrupted, wall "
    "seconds at the speed of the machine at which the reference spin beside each repeat takes what it took at best in "
    "the calibration; of repeats without a spin, the smallest over processes of their 20 % quantile as they passed; "
    f"scored where the median process is within {MOST_SPREAD:.0%} of the calmest"
)


def run(device: Device, options: Options, progress: Progress) -> Validation:
    """Latency of each job, grouped by part; of the first part what each term buys, where `options` asks for it.

    With a file of repeats and no number of processes, what it holds is scored and nothing is run.
    """
    from ..measure.host_suite import host_groups, host_parts, repeats_file
    from ..measure.suite import run_suite

    cases: list[Case] = []
    skipped: dict[str, str] = {}
    measured: dict[str, dict[Job, Measured]] = {}
    parts = host_parts(options.part)
    processes = options.processes if options.processes is not None else 0 if options.into else 2
    for part in parts:
        measured[part] = {}
        found = run_suite(
            host_groups(part, options.threads, options.dtype, options.allocator),
            device,
            runtime=options.runtime,
            processes=processes,
            seconds=options.seconds or 1.0,
            memory=False,
            into=repeats_file(options.into, part),
            progress=progress,
            keep=measured[part].__setitem__,
        )
        cases += [replace(case, group=part) for case in found.cases]
        skipped |= found.skipped
    classes = _classes(device, options, skipped) if options.op_times else ()
    return Validation(
        tuple(cases),
        skipped,
        ablation=_ablation(measured[parts[0]], device, options, progress) if options.ablation else (),
        classes=classes,
        provenance=_provenance(device, options, {j: m for part in measured.values() for j, m in part.items()}),
    )


def _ablation(
    measured: dict[Job, Measured], device: Device, options: Options, progress: Progress
) -> tuple[Ablated, ...]:
    from ..ablation import Measurement, ablate
    from ..calibrate import refit
    from ..measure.rebuild import traced

    steady = [(j, m) for j, m in measured.items() if (m.spread or 0.0) <= MOST_SPREAD]
    return ablate(
        [Measurement(traced(job), m.latency_s) for job, m in steady],
        device,
        threads=options.threads,
        refit=lambda: refit(device, threads=options.threads, dtype=options.dtype),
        progress=progress,
    )


def _classes(device: Device, options: Options, skipped: dict[str, str]) -> tuple[ClassError, ...]:
    """Of every step in the file, timed op by op and priced op by op; those whose ops do not pair go to `skipped`."""
    import numpy as np

    from ..estimate import estimate
    from ..measure.op_times import read_op_times, seconds_of_trace
    from ..measure.rebuild import traced

    kinds: list[str] = []
    phases: list[str] = []
    predicted, timed = [], []
    assert options.op_times is not None
    for job, (names, seconds) in read_op_times(options.op_times).items():
        priced = estimate(traced(job), device, runtime=options.runtime, threads=job.threads, allocator=job.allocator)
        try:
            timed.append(seconds_of_trace(priced.graph, names, seconds))
        except CostmodelError as error:
            skipped[f"ops of {job.name}"] = str(error)
            continue
        predicted.append(priced.seconds)
        kinds += [cost.kind for cost in priced.lowered.costs]
        phases += ["train" if job.mode == "train" else "infer"] * len(priced.graph)
    if not kinds:
        return ()
    return class_errors(kinds, phases, np.concatenate(predicted), np.concatenate(timed))


def _provenance(device: Device, options: Options, measured: dict[Job, Measured]) -> dict[str, str]:
    raw = [r for m in measured.values() for r in m.raw]
    counts = [len(m.raw) for m in measured.values()] or [0]
    dates = sorted({str(r.get("date", ""))[:10] for r in raw} - {""})
    fits = [f for r in device.runtime.values() for f in r.fit]
    found = {
        "statistic": _STATISTIC,
        "parts": options.part,
        "processes a case": f"{min(counts)} to {max(counts)}",
        "repeats": f"{sum(len(r['wall_s']) for r in raw):,}, "
        f"{sum(map(sum, (r['preempted'] for r in raw))):,} of them interrupted",
        "measured": ", ".join(dates),
        "torch and processor": "; ".join(sorted({f"{r['torch']} on {r['cpu']}" for r in raw if "torch" in r})),
        "repeats are in": str(options.into or ""),
        "profile": f"{device.name}: {device.notes}",
    }
    for fit in fits:
        error = "" if fit.error is None else f", held-out median error of an op {fit.error:.1%}"
        noise = "" if fit.noise is None else f", spread of its repeats {fit.noise:.1%}"
        found[f"calibration, {fit.threads} thread(s), {fit.dtype}"] = (
            f"{fit.points:,} isolated ops on {fit.date} with torch {fit.torch}{error}{noise}"
        )
    for mode, interval in device.runtime[options.runtime or device.default_runtime].interval.items():
        found[f"interval, {mode}"] = (
            f"ln(measured / predicted) from {interval.low:.3f} to {interval.high:.3f}, {interval.kind} on "
            f"{interval.cases} cases: {device.sources.get(interval.source, interval.source)}"
        )
    return {key: value for key, value in found.items() if value}
