"""Somebody else's runs: rebuilt, traced, priced, and held against what they measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..device import Device, load_device
from ..errors import CostmodelError, FileError, UnknownName
from ..estimate import Estimate
from ..fewshot import FewShot, fit_rows
from ..runs import Run, read_runs
from ..validate import Validation, validate
from .rebuild import estimate_of_run

__all__ = ["Priced", "calibrate_from", "price_runs", "validate_runs"]

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Priced:
    """Runs with an estimate each, and what was skipped with the reason."""

    runs: tuple[Run, ...]
    estimates: tuple[Estimate, ...]
    skipped: dict[str, str]


def price_runs(
    path: str | Path, device: Device, *, runtime: str | None = None, progress: Progress | None = None
) -> Priced:
    """Rebuild and price every run of a file that can be.

    Raises:
        FileError: none of its rows can be used; says why the most common one cannot.
    """
    read = read_runs(path, device)
    skipped = dict(read.skipped)
    runs, estimates = [], []
    for i, run in enumerate(read.runs):
        if progress is not None:
            progress(i, len(read.runs), run.name)
        try:
            estimates.append(estimate_of_run(run, device, runtime))
            runs.append(run)
        except CostmodelError as error:
            skipped[run.name] = str(error)
    if not runs:
        reasons = Counter(skipped.values()).most_common(1)
        raise FileError(path, "", f"no row can be used; {reasons[0][0] if reasons else 'it has none'}")
    return Priced(tuple(runs), tuple(estimates), skipped)


def _fit(priced: Priced, device: Device, runtime: str | None, k: int | None) -> FewShot:
    names = {e.runtime for e in priced.estimates}
    if len(names) > 1:
        raise CostmodelError(
            f"the runs are of several runtimes ({', '.join(sorted(names))}); choose one with --runtime"
        )
    return fit_rows(device, runtime or names.pop(), priced.runs, priced.estimates, k)


def _running(source: Device, target: Device, runtime: str) -> Device:
    """The hardware of `source`, its software as `target` describes it: factors on that mean the same on both."""
    if runtime not in target.runtime:
        raise UnknownName(f"runtime of {target.name}", runtime, target.runtime)
    return source.model_copy(update={"runtime": {runtime: target.runtime[runtime]}})


def validate_runs(
    path: str | Path,
    device: Device,
    *,
    runtime: str | None = None,
    fit: int | None = None,
    progress: Progress | None = None,
) -> Validation:
    """Hold predictions against the runs in a file.

    Args:
        path: a CSV with the columns of DESIGN.md §8.
        device: the device they were made on.
        runtime: of the device; the one that a row's framework means otherwise.
        fit: first fit the device to this many of the runs, chosen by what they tell; they are not scored.
        progress: called with done, total and the run.
    """
    priced = price_runs(path, device, runtime=runtime, progress=progress)
    if not fit:
        return validate(priced.estimates, priced.runs, priced.skipped)
    found = _fit(priced, device, runtime, fit)
    used = {id(row.run) for row in found.chosen}
    name = priced.estimates[0].runtime
    fitted = found.applied(device, name, Path(path).name)
    rest = [run for run in priced.runs if id(run) not in used]
    skipped = priced.skipped | {run.name: "used for the fit" for run in priced.runs if id(run) in used}
    return validate([estimate_of_run(run, fitted, name) for run in rest], rest, skipped)


def calibrate_from(
    path: str | Path,
    device: str,
    *,
    runtime: str | None = None,
    fit: int | None = None,
    measured_on: str | None = None,
    progress: Progress | None = None,
) -> str:
    """Fit a device to k of the runs in a file, write the profile to the user's folder, and say what each run bought.

    Args:
        measured_on: another device, on which the runs were made (``host``: this machine). How its classes stand to peak
            and bandwidth then moves to `device`, with an interval that is wider by what two devices differ by.
    """
    from ..host import write_host_profile

    target = load_device(device)
    if measured_on is None:
        priced = price_runs(path, target, runtime=runtime, progress=progress)
        name = priced.estimates[0].runtime
        found = _fit(priced, target, runtime, fit)
    else:
        name = runtime or next(n for n, r in target.runtime.items() if r.engine == "cpu")
        target = target.before_fit(name)
        priced = price_runs(path, _running(load_device(measured_on), target, name), runtime=name, progress=progress)
        found = _fit(priced, target, name, fit).moved()
    written = write_host_profile(found.applied(target, name, Path(path).name))
    lines = [
        f"{written}: fitted to {len(found.chosen)} of {len(priced.runs)} runs, device scale {found.device_scale:.3f}"
    ]
    lines += [f"  {name}: ×{value:.3f}" for name, value in found.scales.items()]
    for step in found.steps:
        rest = "" if step.mape_of_rest is None else f", mean error of the runs not used {step.mape_of_rest:.1%}"
        lines.append(f"  + {step.run}: spread of a prediction {step.spread:.1%}{rest}")
    if priced.skipped:
        lines.append(f"  skipped {len(priced.skipped)} rows; `costmodel validate --against` lists why")
    return "\n".join(lines)
