"""What is kept, put together for a report: traces priced, runs held against predictions, fronts of task results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ..device import Device, devices, load_device
from ..errors import CostmodelError
from ..estimate import Estimate, estimate
from ..graph import load
from ..measure.host_suite import PARTS
from ..measure.rebuild import estimate_of_run
from ..measure.suite import kept_cases
from ..pareto import Front, pareto
from ..runs import read_runs
from ..sources import Source, source_of
from ..validate import Case, Validation, validate
from . import families, family
from .points import family_points
from .result import Budget, TaskResult, committed

__all__ = ["fronts_of_results", "kept_grid", "priced_traces", "validated_runs"]

_SEEDS = 3  # of an arm: fewer give no standard error to go by


def priced_traces(folder: Path, targets: Sequence[Device]) -> list[Estimate]:
    """Every trace in `folder`, on every device, with all of the device's cores where it is a CPU."""
    return [
        estimate(graph, device, threads=min(4, device.cores))
        for graph in map(load, sorted(folder.glob("*.json.gz")))
        for device in targets
    ]


def validated_runs(folder: Path) -> tuple[Validation | None, tuple[Source, ...]]:
    """Runs kept in ``folder/<device>/``, each against what its device's profile says now, and their files.

    A ``.csv`` holds runs, a ``.jsonl`` called as a part of the host suite its raw repeats; the frozen half is summed
    up.
    """
    cases: list[Case] = []
    skipped: dict[str, str] = {}
    files: list[Source] = []
    paths = (*folder.glob("*/*.csv"), *(p for part in PARTS for p in folder.glob(f"*/{part}.jsonl")))
    for path in sorted(paths, key=lambda p: (p.stem != "frozen", p)):
        if path.parent.name == "tasks":
            continue  # runs of the arms of fronts, which are shown there
        if path.parent.name not in devices():
            skipped[str(path)] = f"no profile is named {path.parent.name}"
            continue
        device = load_device(path.parent.name)
        found, why = kept_cases(path, device, "torch-eager") if path.suffix == ".jsonl" else _csv_cases(path, device)
        files.append(source_of(path, f"runs on {device.name}"))
        cases += found
        skipped |= why
    return (Validation(tuple(cases), skipped) if cases else None), tuple(files)


def _csv_cases(path: Path, device: Device) -> tuple[tuple[Case, ...], dict[str, str]]:
    read = read_runs(path)
    estimates, runs, skipped = [], [], dict(read.skipped)
    for run in read.runs:
        try:
            estimates.append(estimate_of_run(run, device, "torch-eager"))
            runs.append(run)
        except CostmodelError as error:
            skipped[run.name] = str(error)
    return validate(estimates, runs).cases, skipped


def fronts_of_results(names: Sequence[str] | None, targets: Sequence[Device]) -> tuple[list[Front], list[TaskResult]]:
    """Latency, memory and energy fronts of each family that has kept results, and those results; nothing is trained."""
    fronts: list[Front] = []
    behind: list[TaskResult] = []
    for name in names or families():
        budget = kept_grid(name)
        if budget is None:
            continue
        points, results = family_points(name, targets, budget=budget, threads=None, kept_only=True)
        behind += results
        for axis in ("latency_s", "peak_live_bytes", "energy_j"):
            fronts += pareto(points, axis=axis).values()
    return fronts, behind


def kept_grid(name: str) -> Budget | None:
    """The largest grid of a family that is kept with three seeds of every arm, else what there is; None: nothing."""
    for budget in ("full", "wide", "quick"):
        seeds = Counter(result.arm for result in committed(name, budget))
        if seeds and all(seeds[arm] >= _SEEDS for arm, _ in family(name).grid(budget)):
            return budget
    return next((budget for budget in ("quick", "wide", "full") if committed(name, budget)), None)
