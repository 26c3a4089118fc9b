"""Task results and predicted costs to points of a Pareto front: each arm is traced as it was trained."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from ..device import Device
from ..errors import CostmodelError, FileError, UnknownName
from ..estimate import Estimate, Range, estimate
from ..graph import OpGraph, load
from ..pareto import Point
from ..sources import Source, profile_sources, source_of
from . import family as family_of
from .arms import arm_run, arm_trace, kept_runs
from .pool import run_grid
from .result import Budget, Summary, TaskResult, committed, kept_file, publish, published, summary

__all__ = ["costs_of", "family_points", "table_points"]

Progress = Callable[[int, int, str], None]


def costs_of(predicted: Estimate) -> dict[str, Range]:
    """The cost axes of an estimate; energy only where the device has sourced constants."""
    exact = float(predicted.flops)
    costs = {
        "latency_s": predicted.latency_s,
        "peak_live_bytes": predicted.memory.peak_live,
        "peak_rss_bytes": predicted.memory.peak_rss,
        "flops": Range(exact, exact, exact),
    }
    if predicted.energy_j is not None:
        costs["energy_j"] = predicted.energy_j
    return costs


def family_points(
    name: str,
    devices: Sequence[Device],
    *,
    budget: Budget = "quick",
    threads: int | None = 1,
    kept_only: bool = False,
    keep: bool = False,
    measure_on: str | None = None,
    processes: int | None = None,
    progress: Progress | None = None,
) -> tuple[list[Point], list[TaskResult]]:
    """Train or quantize every arm of a family (or find it in the cache), and price it on each device.

    Args:
        name: ``irb``, ``vit`` or ``ssm``.
        devices: where each arm's step is priced; on those that arms were run on, the runs are set beside.
        budget: size of the grid.
        threads: CPU threads of the estimates; None: as many as a kept run of the arm had, else up to four.
        kept_only: use the results and traces that ship, and train nothing that is missing.
        keep: write results, traces and runs where the shipped ones are.
        measure_on: what this machine is called; each arm is run here too.
        processes: that train or quantize at a time, one thread each; None: one a core.
        progress: called with done, total and what is next.

    Returns:
        A point an arm and device, and the task results behind them.
    """
    task = family_of(name)
    grid = [] if kept_only else task.grid(budget)
    total = len(grid) + len({arm for arm, _ in grid})
    report = progress or (lambda *_: None)
    results = (
        committed(name, budget)
        if kept_only
        else run_grid(
            name,
            grid,
            budget,
            processes=processes,
            first=partial(_priced, name, tuple(devices), threads),
            report=lambda done, what: report(done, total, what),
        )
    )
    accuracies: list[Source] = []
    if keep and not kept_only:
        accuracies = [source_of(publish(name, budget, results), "accuracies, by seed")]
    elif kept_only:
        accuracies = [source_of(published(name, budget), "accuracies, by seed")]
    points: list[Point] = []
    for j, mean in enumerate(summary(results)):
        report(len(grid) + j, total, f"pricing {mean.arm}")
        of_arm = [r for r in results if r.arm == mean.arm]
        graph = arm_trace(name, mean.arm, shipped=kept_only, keep=keep)
        if measure_on is not None:
            report(len(grid) + j, total, f"running {mean.arm}")
            arm_run(name, mean.arm, measure_on, keep=keep)
        behind = accuracies or [source_of(kept_file(r), f"accuracy, seed {r.seed}") for r in of_arm]
        points += [_point(name, mean, of_arm[0], graph, device, threads, behind) for device in devices]
    return points, results


def _priced(name: str, devices: tuple[Device, ...], threads: int | None, arm: str) -> None:
    """Trace an arm and price it: the trace is kept, and so is what numba compiles for it."""
    graph = arm_trace(name, arm)
    for device in devices:
        estimate(graph, device, threads=min(threads or 1, device.cores))


def _point(
    family: str,
    mean: Summary,
    result: TaskResult,
    graph: OpGraph,
    device: Device,
    threads: int | None,
    behind: list[Source],
) -> Point:
    """An arm on a device, with the run of it there, if it was run there with as many threads."""
    run, path = kept_runs(family, device.name).get(mean.arm, (None, None))
    wanted = threads or (run and run.threads) or 4
    predicted = estimate(graph, device, threads=min(wanted, device.cores))
    measured = {}
    sources = [*behind, source_of(graph.file, "trace"), *profile_sources(device.name)]
    if run is not None and path is not None and run.threads == predicted.threads:
        measured["latency_s"] = run.latency_s
        if run.peak_live_bytes:
            measured["peak_live_bytes"] = float(run.peak_live_bytes)
        sources.append(source_of(path, "measured cost"))
    return Point(
        name=mean.arm,
        family=family,
        model=result.model,
        method=mean.arm,
        mode=graph.meta.mode,
        batch=graph.meta.batch,
        metric=mean.metric,
        accuracy=mean.mean,
        accuracy_error=0.0 if math.isnan(mean.stderr) else mean.stderr,
        seeds=mean.seeds,
        higher_is_better=mean.higher_is_better,
        device=device.name,
        runtime=predicted.runtime,
        threads=predicted.threads,
        costs=costs_of(predicted),
        measured=measured,
        provenance=result.data,
        sources=tuple(sources),
    )


_COLUMNS = ("name", "accuracy", "model", "method", "mode", "batch", "accuracy_error", "metric", "higher_is_better")


def table_points(path: str | Path, devices: Sequence[Device], *, threads: int = 1) -> list[Point]:
    """Points from a user's table: a CSV with the columns name, accuracy, model (or a saved trace).

    Optional columns: method, mode (infer), batch (1), accuracy_error, metric (accuracy), higher_is_better (true).

    Raises:
        FileError: a column or a cell that cannot be used; names the line.
    """
    path = Path(path)
    try:
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or []
            for needed in _COLUMNS[:3]:
                if needed not in columns:
                    raise FileError(path, needed, f"this column is missing; the table needs {', '.join(_COLUMNS[:3])}")
            rows = list(reader)
    except FileNotFoundError:
        raise FileError(path, "", "no such file") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FileError(path, "", f"is not a CSV: {error}") from None
    points = []
    for line, row in enumerate(rows, start=2):
        if None in row or any(row[needed] is None for needed in _COLUMNS[:3]):
            many = "more" if None in row else "fewer"
            raise FileError(path, f"line {line}", f"has {many} cells than the header; a comma in a cell needs quotes")
        graph = _graph_of(path, line, row)
        for device in devices:
            predicted = estimate(graph, device, threads=min(threads, device.cores))
            points.append(
                Point(
                    name=row["name"],
                    family=path.stem,
                    model=row["model"],
                    method=row.get("method") or "",
                    mode=graph.meta.mode,
                    batch=graph.meta.batch,
                    metric=row.get("metric") or "accuracy",
                    accuracy=_number(path, line, "accuracy", row["accuracy"]),
                    accuracy_error=_number(path, line, "accuracy_error", row.get("accuracy_error") or "0"),
                    seeds=1,
                    higher_is_better=(row.get("higher_is_better") or "true").lower() in ("true", "1", "yes"),
                    device=device.name,
                    runtime=predicted.runtime,
                    threads=predicted.threads,
                    costs=costs_of(predicted),
                    provenance=f"{path.name} line {line}",
                    sources=(
                        source_of(path, "accuracies, as given"),
                        *([source_of(graph.file, "trace")] if graph.file else []),
                        *profile_sources(device.name),
                    ),
                )
            )
    if not points:
        raise FileError(path, "", "has no rows")
    return points


def _number(path: Path, line: int, column: str, text: str) -> float:
    try:
        value = float(text)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise FileError(path, f"line {line}, {column}", f"{text!r} is not a number (a point is the decimal mark)")
    return value


def _graph_of(path: Path, line: int, row: dict[str, str]) -> OpGraph:
    from ..measure.job import Job

    model = row["model"]
    try:
        if model.endswith((".json", ".json.gz")):
            return load(model)
        batch = int(_number(path, line, "batch", row.get("batch") or "1"))
        return Job(model, row.get("mode") or "infer", row.get("method") or None, batch).trace()
    except (FileError, UnknownName):
        raise
    except CostmodelError as error:
        raise FileError(path, f"line {line}, model", str(error)) from error
