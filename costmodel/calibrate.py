"""A profile for this machine: peaks, isolated ops, a few synthetic nets, and what they say of their own error.

What is measured is kept as it comes: an interrupted calibration goes on where it stopped.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from platformdirs import user_cache_path

from .device import Device, Fit, Interval, Runtime
from .errors import CostmodelError, FileError
from .host import cpu_name
from .opfit import fit_kinds, fit_whole
from .validate import Case, Validation, conformal

__all__ = ["Calibration", "calibrate", "host_device", "refit", "refuse_if_busy", "with_intervals"]

Progress = Callable[[int, int, str], None]

# Points of isolated ops, and seeds of each synthetic net, by how long one may take.
_FULL, _QUICK = (1900, 2), (480, 1)
_NETS = ("synthetic-residual", "synthetic-inverted", "synthetic-transformer")
# One net of each on maps so small that overhead is most of the time.
_SMALL = "3x42x42"
_PHASES = (("infer", 1), ("train", 4))


@dataclass(frozen=True)
class Calibration:
    """What a calibration found.

    Attributes:
        device: the profile, with the fit in its runtime ``torch-eager``.
        path: where it was written.
        fit: the constants of this thread count.
        nets: (name, predicted, measured) seconds of the synthetic nets, after the phase factors.
    """

    device: Device
    path: Path
    fit: Fit
    nets: tuple[tuple[str, float, float], ...]


def refuse_if_busy(most: float = 0.25) -> float:
    """Share of one-millisecond spins that something else disturbed; raises if a calibration would be worthless.

    A spin is disturbed if it takes 1.3 times as long as the calm ones.
    """
    from .measure.latency import disturbed_share

    share = disturbed_share()
    if share > most:
        raise CostmodelError(
            f"this machine is too busy to calibrate: {share:.0%} of one-millisecond spins were disturbed (at most "
            f"{most:.0%}); stop what else runs (load is {os.getloadavg()[0]:.1f}), or use --force and a wider interval"
        )
    return share


def calibrate(
    *,
    threads: int = 1,
    dtype: str = "float32",
    quick: bool = False,
    force: bool = False,
    fresh: bool = False,
    again: bool = False,
    progress: Progress | None = None,
) -> Calibration:
    """Measure this machine and write its profile ``host``.

    Args:
        threads, dtype: of torch.
        quick: a minute instead of several; fewer points a class.
        force: measure even if the machine is busy.
        fresh: forget what an interrupted calibration had measured.
        again: fit the ops of the last calibration again, after a formula changed; only the nets are run.
        progress: called with done, total and what is next.

    Raises:
        CostmodelError: the machine is too busy, or has fewer cores than `threads`.
    """
    from .host import write_host_profile
    from .measure.micro import measure_points

    cores = len(os.sched_getaffinity(0))
    if threads > cores:
        raise CostmodelError(f"this process may use {cores} cores; calibrate at most as many threads (or see taskset)")
    if not force:
        refuse_if_busy()
    points, seeds = _QUICK if quick else _FULL
    report = progress or (lambda *_: None)
    report(0, 100, "peaks and bandwidths")
    device = _measured_peaks()
    path = _points_file(threads, dtype)
    done = path.with_suffix(".done.jsonl")
    if fresh:
        path.unlink(missing_ok=True)
    if not again:
        measure_points(
            path,
            points=points,
            train=True,
            threads=threads,
            dtype=dtype,
            progress=lambda done, total, what: report(5 + round(70 * done / max(total, 1)), 100, what),
        )
        path.replace(done)  # the next calibration measures anew; these can be fitted again
    report(76, 100, "fitting")
    fit = refit(device, threads=threads, dtype=dtype)
    source = f"costmodel calibrate, {fit.points} isolated ops, {threads} thread(s), {dtype}"
    fit, nets = _whole(device, fit, source, seeds, threads, dtype, report)
    fitted = _with_fit(device, fit, source, nets)
    final = None if fresh else _with_once_only(fitted, _on_disk(fit))
    if final is None:
        final = _with_start_up(_with_runtime_memory(fitted, quick, threads, fresh, report), report)
    written = write_host_profile(final)
    return Calibration(final, written, fit, nets)


def _with_runtime_memory(device: Device, quick: bool, threads: int, fresh: bool, report: Progress) -> Device:
    """`device` with what a process has resident beside tensors, in fresh processes; as it is where none can be run."""
    from .measure.runtime_memory import measure_runtime_memory, probes

    into = _points_file(threads, "memory")
    if fresh:
        into.unlink(missing_ok=True)
    try:
        found = measure_runtime_memory(
            device,
            "torch-eager",
            jobs=probes(quick),
            threads=threads,
            into=into,
            progress=lambda done, total, what: report(97 + round(2 * done / total), 100, what),
        )
    except CostmodelError as error:
        return device.model_copy(update={"notes": f"{device.notes}; memory of the runtime is not measured: {error}"})
    into.unlink(missing_ok=True)
    return found


def _with_start_up(device: Device, report: Progress) -> Device:
    """`device` with what a job pays once; as it is where no fresh process can be run."""
    from .measure.start_up import measure_start_up

    try:
        return measure_start_up(device, "torch-eager", progress=lambda _done, _total, what: report(99, 100, what))
    except CostmodelError as error:
        return device.model_copy(update={"notes": f"{device.notes}; start-up is not measured: {error}"})


def refit(device: Device, *, threads: int = 1, dtype: str = "float32") -> Fit:
    """The isolated ops of the last calibration of this machine, fitted again under the formulas of the moment.

    Raises:
        CostmodelError: no ops are kept for this thread count and dtype.
    """
    from .measure.micro import FLUSH_BYTES, read_points

    path = _points_file(threads, dtype).with_suffix(".done.jsonl")
    raw = read_points(path)
    if not raw:
        raise CostmodelError(f"there is nothing to fit again: {path} is missing; calibrate without --refit first")
    return fit_kinds(
        raw,
        threads=threads,
        dtype=dtype,
        lanes=device.lanes,
        flush_bytes=FLUSH_BYTES,
        source="calibration",
        device_s_per_byte=_seconds_per_byte(device),
        device_bytes={f"L{c.level}": c.bytes.value for c in device.cpu[0].cache},
        torch=version("torch"),
        cpu=cpu_name(),
    )


def host_device() -> Device:
    """This machine: its calibrated profile if it has one, else what can be detected, with peaks measured now."""
    from .device import devices, load_device

    return load_device("host") if "host" in devices() else _measured_peaks()


def with_intervals(device: Device, found: Validation, runtime: str | None, what: str) -> Device:
    """`device` with what measured models say of it: the factor of a whole step over its ops, which a few synthetic
    nets told first, and intervals from how far off the models are with it, widened for models never looked at: by mode,
    and the widest for other modes.

    Args:
        found: of models that the constants were not fitted on; cases that are not scored say nothing.
        runtime: of the device; its default otherwise.
        what: the models are, for the source of the intervals.

    Raises:
        CostmodelError: too few scored cases of a mode.
    """
    name = runtime or device.default_runtime
    cases = [c for c in found.cases if c.quantity == "latency_s" and c.scored and not c.setting]
    key = "conformal"
    constants, forward = _recentred(device.runtime[name], [c for c in cases if c.mode != "train"], "infer")
    constants, train = _recentred(constants, [c for c in cases if c.mode == "train"], "train")
    by_mode = {mode: _for_unseen(forward, key) for mode in ("infer", "prefill")} if forward else {}
    if train:
        by_mode["train"] = _for_unseen(train, key)
    if not by_mode:
        raise CostmodelError("there are no scored latencies to take an interval from")
    by_mode["default"] = max(by_mode.values(), key=lambda i: i.high)
    changed = constants.model_copy(update={"interval": {**constants.interval, **by_mode}})
    of = f"{len(cases)} steps, times {_UNSEEN:g}"
    said = f"costmodel validate, {what}, {date.today().isoformat()}: |ln(measured / predicted)| of {of}"
    return device.model_copy(
        update={"runtime": {**device.runtime, name: changed}, "sources": {**device.sources, key: said}}
    )


# By how much errors of cases never looked at exceed, in ln, those of cases that the form was chosen on: the second
# frozen half of the host suite against the development half, less the steps of classes that had no isolated points.
_UNSEEN = 1.6


def _for_unseen(cases: list[Case], source: str) -> Interval:
    """The conformal interval of `cases`, as much wider as cases never looked at are off by more."""
    seen = conformal(cases, source)
    return seen.model_copy(update={"low": _UNSEEN * seen.low, "high": _UNSEEN * seen.high})


def _recentred(runtime: Runtime, cases: list[Case], mode: str) -> tuple[Runtime, list[Case]]:
    """`runtime` with the factor of `mode` under which half of the cases are above; the cases as it predicts them."""
    mine = {(c.threads, c.dtype) for c in cases}
    if len(mine) != 1 or len(cases) < 5:
        return runtime, cases
    factor = float(np.median([c.truth / c.predicted for c in cases]))
    fits = tuple(
        f.model_copy(update={"whole": {**f.whole, mode: f.whole.get(mode, 1.0) * factor}})
        if (f.threads, f.dtype) in mine
        else f
        for f in runtime.fit
    )
    if fits == runtime.fit:
        return runtime, cases
    return runtime.model_copy(update={"fit": fits}), [replace(c, predicted=c.predicted * factor) for c in cases]


def _measured_peaks() -> Device:
    """This machine as detected, with its peaks and bandwidths measured: seconds, no calibration."""
    from .host import detect, quick_peaks, with_peaks

    detected = detect()
    one = quick_peaks(detected, 1)
    return with_peaks(detected, one, quick_peaks(detected, detected.cores) if detected.cores > 1 else None)


def _points_file(threads: int, dtype: str) -> Path:
    key = re.sub(r"[^\w.]+", "-", f"torch-{version('torch')}-{cpu_name()}-t{threads}-{dtype}")
    return user_cache_path("costmodel", appauthor=False) / "calibration" / f"{key}.jsonl"


def _seconds_per_byte(device: Device) -> dict[str, float]:
    """Measured seconds a byte of one core, by way and level: what fitted rates shrink to."""
    m = device.memory
    found: dict[str, float] = {}
    for way, core, total in (
        ("read", m.core_read_bytes_per_s, m.read_bytes_per_s),
        ("write", m.core_write_bytes_per_s, m.write_bytes_per_s or m.read_bytes_per_s),
    ):
        found[f"{way} dram"] = 1.0 / (core or total).value
        for cache in device.cpu[0].cache:
            rate = cache.read_bytes_per_s if way == "read" else cache.write_bytes_per_s or cache.read_bytes_per_s
            if cache.level == 3 and rate is not None:
                found[f"{way} L3"] = 1.0 / rate.value
    return found


def _with_fit(
    device: Device,
    fit: Fit,
    source: str,
    nets: tuple[tuple[str, float, float], ...] = (),
) -> Device:
    """`device` with the fit beside those of other thread counts and dtypes, and what the nets say of its error."""
    document = device.model_dump(by_alias=True)
    document["sources"]["calibration"] = source
    document["notes"] = f"calibrated {fit.date} with torch {fit.torch} on {fit.cpu}"
    runtime: dict[str, Any] = document["runtime"]["torch-eager"]
    others = [f for f in _fits_on_disk(fit) if (f["threads"], f["dtype"]) != (fit.threads, fit.dtype)]
    runtime["fit"] = [*others, fit.model_dump()]
    if nets:
        ratio = np.array([np.log(measured / predicted) for _, predicted, measured in nets])
        # so few cases say little of a tail: the largest error, and a fifth more
        wide = max(float(1.2 * np.abs(ratio).max()), 0.05)
        runtime["interval"]["default"] = {
            "low": -wide, "high": wide, "coverage": 0.9, "cases": len(nets), "kind": "fitted", "source": "calibration",
        }  # fmt: skip
    return Device.model_validate(document)


def _on_disk(fit: Fit) -> Device | None:
    """The profile that this machine already has, if its fits are for the same torch and processor."""
    from .device import load_device, user_profiles

    path = user_profiles() / "host.toml"
    if not path.exists():
        return None
    try:
        before = load_device(path)
    except FileError:  # written by another version of this package: it is replaced
        return None
    fits = before.runtime["torch-eager"].fit if "torch-eager" in before.runtime else ()
    return before if any((f.torch, f.cpu) == (fit.torch, fit.cpu) for f in fits) else None


def _fits_on_disk(fit: Fit) -> list[dict[str, Any]]:
    """Fits that this machine already has, if they are for the same torch and processor and of this model form."""
    before = _on_disk(fit)
    fits = before.runtime["torch-eager"].fit if before else ()
    return [f.model_dump() for f in fits if (f.torch, f.cpu) == (fit.torch, fit.cpu)]


# Of a runtime, what a process has resident and what a job pays once: the same at every calibration.
_ONCE = ("resident_bytes", "shared_files", "start_s", "first_op_s")
_ONCE_INTERVALS = ("peak_rss", "start_up")


def _with_once_only(device: Device, before: Device | None) -> Device | None:
    """`device` with what `before` was measured with once; None if it was not."""
    if before is None or not before.runtime["torch-eager"].resident_bytes or not before.memory.storage_bytes_per_s:
        return None
    old, new = before.runtime["torch-eager"], device.runtime["torch-eager"]
    kept = {key: i for key, i in old.interval.items() if key in _ONCE_INTERVALS}
    changed = new.model_copy(update={**{key: getattr(old, key) for key in _ONCE}, "interval": {**new.interval, **kept}})
    memory = device.memory.model_copy(update={"storage_bytes_per_s": before.memory.storage_bytes_per_s})
    return device.model_copy(
        update={
            "memory": memory,
            "runtime": {**device.runtime, "torch-eager": changed},
            "sources": {**before.sources, **device.sources},
        }
    )


def _whole(
    device: Device, fit: Fit, source: str, seeds: int, threads: int, dtype: str, report: Progress
) -> tuple[Fit, tuple[tuple[str, float, float], ...]]:
    """A factor and a time between ops for each phase, on synthetic nets; then how near the nets are."""
    from .estimate import estimate
    from .measure.job import Job
    from .measure.suite import Measured
    from .measure.worker import Worker

    jobs = [
        Job(f"{net},seed={seed}", mode, batch=batch, input_size=size, threads=threads, dtype=dtype)
        for mode, batch in _PHASES
        for net in _NETS
        for seed, size in (*((s, None) for s in range(seeds)), (seeds, _SMALL))
    ]
    fitted = _with_fit(device, fit, source)
    predicted, measured, ops = [], [], []
    with Worker(threads) as first, Worker(threads) as second:
        for i, job in enumerate(jobs):
            report(78 + round(18 * i / len(jobs)), 100, f"net {job.name}")
            graph = job.trace()
            ops.append(len(graph))
            predicted.append(estimate(graph, fitted, threads=threads, allocator=job.allocator).latency_s.point)
            raw = first.run([job], seconds=0.7) + second.run([job], seconds=0.7)
            measured.append(Measured.of(raw).at_speed(fit.spin_s))
    modes = [job.mode for job in jobs]
    whole, between_s = fit_whole(np.array(predicted), np.array(measured), np.array(ops), modes)
    nets = tuple(
        (job.name, p * whole[job.mode] + n * between_s[job.mode], m)
        for job, p, n, m in zip(jobs, predicted, ops, measured)
    )
    return fit.model_copy(update={"whole": whole, "between_s": between_s}), nets
