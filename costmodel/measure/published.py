"""Published tables under honest splits: predicted without the family, or without the device, that is predicted."""

from __future__ import annotations

import hashlib
import math
import os
import random
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..core.table import F8
from ..device import Device, Number
from ..errors import CostmodelError
from ..fewshot import Prior, Row, choose_rows, family_of, fit_table, row_of
from ..runs import Run, Skip, stream_runs
from ..validate import Case
from .rebuild import estimate_of_run

__all__ = [
    "Table", "at_clock", "cases", "from_others", "held_out", "one_constant", "reference", "runs_of", "table_of",
    "without_families",
]  # fmt: skip

_FOLDS = 8
_NORMAL_90 = 1.645


@dataclass(frozen=True)
class Table:
    """Rows of one device and runtime, each with the seconds of its classes and what the roofline says of it."""

    device: Device
    runtime: str
    rows: tuple[Row, ...]
    roofline: F8
    skipped: dict[str, str]

    @property
    def measured(self) -> F8:
        return np.array([row.run.latency_s for row in self.rows])

    @property
    def families(self) -> list[str]:
        return [family_of(row.run.model) for row in self.rows]

    def picked(self, keep: Collection[int]) -> Table:
        """The rows with these numbers."""
        index = sorted(keep)
        return Table(self.device, self.runtime, tuple(self.rows[i] for i in index), self.roofline[index], self.skipped)


def reference() -> Path:
    """The folder of published tables, which are not part of the project: ``$COSTMODEL_REFERENCE``, else beside it."""
    own = os.environ.get("COSTMODEL_REFERENCE")
    return Path(own) if own else Path(__file__).parents[3] / "shared" / "reference"


def table_of(
    file: str | Path,
    device: Device,
    runtime: str,
    keep: Callable[[Run], bool] = lambda _: True,
    *,
    sample: int | None = None,
    minimum: bool = False,
    progress: Callable[[int, int, str], None] | None = None,
) -> Table:
    """Price the rows of a published table as `device` runs them.

    Args:
        file: name in `reference()`, or a path.
        keep: which rows.
        sample: so many of them, drawn by a hash of the model's name: tables of the same models share their traces.
        minimum: take the fastest repeat, where a row's note has it.
    """
    runs = [run for run in runs_of(reference() / file) if keep(run)]
    if sample is not None:
        runs = sorted(runs, key=_draw)[:sample]
    rows, roofline, skipped = [], [], {}
    for i, run in enumerate(runs):
        if progress is not None:
            progress(i, len(runs), run.name)
        try:
            estimate = estimate_of_run(run, device, runtime)
        except CostmodelError as error:
            skipped[run.name] = str(error)
            continue
        rows.append(row_of(_fastest(run) if minimum else run, estimate))
        roofline.append(estimate.baseline_latency_s)
    return Table(device, runtime, tuple(rows), np.array(roofline), skipped)


def held_out(table: Table, k: int | None, prior: Prior | None = None) -> tuple[F8, F8]:
    """Predicted seconds of each row, by the profile fitted to k rows (all without k) of other families; and spreads.

    Families of a large table are held out in eight groups, so that each fit leaves out an eighth of them.
    """
    predicted, spread = np.empty(len(table.rows)), np.empty(len(table.rows))
    for train, test in without_families(table.families):
        rows = [table.rows[i] for i in train]
        spreads = prior or Prior()
        chosen = range(len(rows)) if k is None else choose_rows(rows, k, spreads)
        fit = fit_table([rows[i] for i in chosen], spreads)
        for i in test:
            predicted[i], spread[i] = fit.seconds(table.rows[i]), fit.spread(table.rows[i])
    return predicted, spread


def from_others(table: Table, train: Sequence[int], test: Sequence[int]) -> F8:
    """The roofline's seconds of `test` with the one constant that fits `train` best."""
    constant = np.median(np.log(table.measured[list(train)] / table.roofline[list(train)]))
    return np.asarray(table.roofline[list(test)] * math.exp(float(constant)))


def one_constant(table: Table) -> F8:
    """The roofline's seconds of each row, its constant from the rows of other families."""
    found = np.empty(len(table.rows))
    for train, test in without_families(table.families):
        found[test] = from_others(table, train, test)
    return found


def without_families(families: Sequence[str]) -> Iterable[tuple[list[int], list[int]]]:
    """(train, test) row numbers: one family at a time, or an eighth of many."""
    names = sorted(set(families))
    parts = [{name} for name in names]
    if len(names) > 4 * _FOLDS:
        random.Random(0).shuffle(names)
        parts = [set(names[i::_FOLDS]) for i in range(_FOLDS)]
    for part in parts:
        test = [i for i, family in enumerate(families) if family in part]
        yield [i for i in range(len(families)) if i not in set(test)], test


def cases(
    table: Table, group: str, predicted: F8, roofline: F8, spread: F8 | None = None, note: str = ""
) -> list[Case]:
    """One case a row, for a validation."""
    width = np.exp(_NORMAL_90 * (spread if spread is not None else np.full(len(predicted), 0.3)))
    return [
        Case(
            model=row.run.model,
            device=row.run.device or table.device.name,
            runtime=table.runtime,
            mode=row.run.mode,
            method=row.run.method,
            batch=row.run.batch or 1,
            threads=row.run.threads or int(table.device.cpu[0].cores.value),
            dtype=row.run.dtype,
            quantity="latency_s",
            predicted=float(p),
            low=float(p / w),
            high=float(p * w),
            published=row.run.latency_s,
            baseline=float(b),
            size=row.run.input_size,
            note=note,
            group=group,
        )
        for row, p, b, w in zip(table.rows, predicted, roofline, width, strict=True)
    ]


def at_clock(device: Device, clock_hz: float | Sequence[float], cores: int | None = None) -> Device:
    """A board with the same cores at another clock: caches go with it, memory does not.

    With one clock, slower clusters keep their ratio to the fastest.
    """
    own = [cluster.clock_hz.value for cluster in device.cpu]
    clocks = [clock_hz * c / own[0] for c in own] if isinstance(clock_hz, float) else clock_hz
    clusters = []
    for cluster, clock in zip(device.cpu, clocks, strict=True):
        ratio = clock / cluster.clock_hz.value
        scaled = [
            cache.model_copy(
                update={
                    way: _times(getattr(cache, way), ratio)
                    for way in ("read_bytes_per_s", "write_bytes_per_s")
                    if getattr(cache, way) is not None
                }
            )
            for cache in cluster.cache
        ]
        update = {"clock_hz": _times(cluster.clock_hz, ratio), "cache": tuple(scaled)}
        if cores is not None:
            update["cores"] = cluster.cores.model_copy(update={"value": float(cores)})
        clusters.append(cluster.model_copy(update=update))
    return device.model_copy(update={"cpu": tuple(clusters)})


def _times(number: Number, ratio: float) -> Number:
    return number.model_copy(update={"value": number.value * ratio})


def _draw(run: Run) -> bytes:
    return hashlib.sha256(f"{run.model} {run.input_size}".encode()).digest()


def runs_of(path: Path) -> list[Run]:
    """All rows of a table that are runs, of all its devices, in the file's order."""
    return [item for item in stream_runs(path) if not isinstance(item, Skip)]


def _fastest(run: Run) -> Run:
    note = dict(part.split("=", 1) for part in run.meta.get("note", "").split("; ") if "=" in part)
    return replace(run, latency_s=1e-3 * float(note["min"])) if "min" in note else run
