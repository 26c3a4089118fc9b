"""Task results and predicted costs to points of a Pareto front: each arm is traced as it was trained."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence
from pathlib import Path

from ..capture import capture
from ..device import Device
from ..errors import CostmodelError, FileError, UnknownName
from ..estimate import Estimate, Range, estimate
from ..graph import OpGraph, load
from ..pareto import Point
from . import family as family_of
from .result import Budget, TaskResult, committed, summary

__all__ = ["costs_of", "family_points", "table_points"]

Progress = Callable[[int, int, str], None]

_OPTIMIZER = "adamw"  # what the training families train with


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
    threads: int = 1,
    measure_on: str | None = "host",
    kept_only: bool = False,
    progress: Progress | None = None,
) -> tuple[list[Point], list[TaskResult]]:
    """Train or quantize every arm of a family (or find it in the cache), and price it on each device.

    Args:
        name: ``irb``, ``vit`` or ``ssm``.
        devices: where each arm's step is priced.
        budget: size of the grid.
        threads: CPU threads of the estimates.
        kept_only: use the results that ship, and train nothing that is missing.
        measure_on: the device that is this machine, where the step is also run; None for no run.
        progress: called with done, total and what is next.

    Returns:
        A point an arm and device, and the task results behind them.
    """
    task = family_of(name)
    grid = [] if kept_only else task.grid(budget)
    total = len(grid) + len({arm for arm, _ in grid})
    report = progress or (lambda *_: None)
    results = committed(name, budget) if kept_only else []
    for i, (arm, seed) in enumerate(grid):
        report(i, total, f"{name} {arm} seed {seed}")
        results.append(task.run(arm, seed=seed, budget=budget))
    points: list[Point] = []
    for j, mean in enumerate(summary(results)):
        report(len(grid) + j, total, f"pricing {mean.arm}")
        model, inputs, mode = task.build(mean.arm)
        graph = capture(model, inputs, mode=mode, optimizer=_OPTIMIZER, name=name, method=mean.arm)
        of_arm = next(r for r in results if r.arm == mean.arm)
        for device in devices:
            predicted = estimate(graph, device, threads=min(threads, device.cores))
            measured = {}
            if device.name == measure_on:
                from ..measure import measure

                run = measure(model, inputs, mode=mode, optimizer=_OPTIMIZER, seconds=0.5)
                measured = {"latency_s": run.latency_s, "peak_live_bytes": float(run.peak_live_bytes or 0)}
            points.append(
                Point(
                    name=mean.arm,
                    family=name,
                    model=of_arm.model,
                    method=mean.arm,
                    mode=mode,
                    batch=graph.meta.batch,
                    metric=mean.metric,
                    accuracy=mean.mean,
                    accuracy_error=0.0 if math.isnan(mean.stderr) else mean.stderr,
                    seeds=mean.seeds,
                    higher_is_better=mean.higher_is_better,
                    device=device.name,
                    runtime=predicted.runtime,
                    costs=costs_of(predicted),
                    measured=measured,
                    provenance=of_arm.data,
                )
            )
    return points, results


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
                    costs=costs_of(predicted),
                    provenance=f"{path.name} line {line}",
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
