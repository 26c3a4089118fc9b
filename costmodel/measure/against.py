"""Somebody else's runs: rebuilt, traced, priced, and held against what they measured.

Rows are priced one by one, and of an estimate only its figures are kept: a table of thousands fits in memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from ..device import Device, load_device
from ..errors import CostmodelError, FileError, UnknownName
from ..estimate import Estimate
from ..fewshot import FewShot, Row, fit_priced, row_of
from ..runs import Run, Runs, read_runs
from ..validate import Case, Validation, cases_of, fit_baseline
from .rebuild import estimate_of_run

__all__ = ["calibrate_from", "price_runs", "validate_runs"]

Progress = Callable[[int, int, str], None]


def price_runs(
    read: Runs, device: Device, skipped: dict[str, str], *, runtime: str | None = None, progress: Progress | None = None
) -> Iterator[tuple[Run, Estimate]]:
    """Rebuild and price every run that can be, one by one; why the others cannot goes into `skipped`."""
    for i, run in enumerate(read.runs):
        if progress is not None:
            progress(i, len(read.runs), run.name)
        try:
            estimate = estimate_of_run(run, device, runtime)
        except CostmodelError as error:
            skipped[run.name] = str(error)
        else:
            yield run, estimate


def _table(
    path: str | Path, device: Device, skipped: dict[str, str], runtime: str | None, progress: Progress | None
) -> tuple[str, list[Row]]:
    """The runtime that a file's runs are of, and what a fit needs of each."""
    read = read_runs(path, device)
    skipped |= read.skipped
    names, rows = set[str](), list[Row]()
    for run, estimate in price_runs(read, device, skipped, runtime=runtime, progress=progress):
        names.add(estimate.runtime)
        rows.append(row_of(run, estimate))
    if not rows:
        raise _none_usable(path, skipped)
    if len(names) > 1:
        raise CostmodelError(
            f"the runs are of several runtimes ({', '.join(sorted(names))}); choose one with --runtime"
        )
    return names.pop(), rows


def _none_usable(path: str | Path, skipped: dict[str, str]) -> FileError:
    reasons = Counter(skipped.values()).most_common(1)
    return FileError(path, "", f"no row can be used; {reasons[0][0] if reasons else 'it has none'}")


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
        path: a CSV with columns of `runs.COLUMNS`.
        device: the device they were made on.
        runtime: of the device; the one that a row's framework means otherwise.
        fit: first fit the device to this many of the runs, chosen by what they tell; they are not scored.
        progress: called with done, total and the run.

    Raises:
        FileError: none of its rows can be used; says why the most common one cannot.
    """
    skipped: dict[str, str] = {}
    if fit:
        runtime, rows = _table(path, device, skipped, runtime, progress)
        found = fit_priced(rows, fit, device.runtime[runtime])
        used = {row.run.case for row in found.chosen}
        skipped |= {row.run.name: "used for the fit" for row in found.chosen}
        read = Runs(tuple(row.run for row in rows if row.run.case not in used))
        device = found.applied(device, runtime, Path(path).name)
    else:
        read = read_runs(path, device)
        skipped |= read.skipped
    cases: list[Case] = []
    for run, estimate in price_runs(read, device, skipped, runtime=runtime, progress=progress):
        cases += cases_of(estimate, run)
    if not cases and not fit:
        raise _none_usable(path, skipped)
    return Validation(fit_baseline(cases), skipped)


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
    skipped: dict[str, str] = {}
    found: FewShot
    if measured_on is None:
        name, rows = _table(path, target, skipped, runtime, progress)
        found = fit_priced(rows, fit, target.runtime[name])
    else:
        name = runtime or next(n for n, r in target.runtime.items() if r.engine == "cpu")
        target = target.before_fit(name)
        _, rows = _table(path, _running(load_device(measured_on), target, name), skipped, name, progress)
        found = fit_priced(rows, fit, target.runtime[name]).moved()
    written = write_host_profile(found.applied(target, name, Path(path).name))
    lines = [f"{written}: fitted to {len(found.chosen)} of {len(rows)} runs, device scale {found.device_scale:.3f}"]
    lines += [f"  {name}: ×{value:.3f}" for name, value in found.scales.items()]
    for step in found.steps:
        rest = "" if step.mape_of_rest is None else f", mean error of the runs not used {step.mape_of_rest:.1%}"
        lines.append(f"  + {step.run}: spread of a prediction {step.spread:.1%}{rest}")
    if found.left_out is not None:
        lines.append(f"  each run predicted without its family of models: mean error {found.left_out:.1%}")
    if skipped:
        lines.append(f"  skipped {len(skipped)} rows; `costmodel validate --against` lists why")
    return "\n".join(lines)
