"""Seconds of every op inside a real step, to hold a model's terms against, class by class.

A dispatch mode runs below autograd, where capture listens, and times what each op takes; what Python does between the
ops is left out. The low quantile over repeats of each op counts.
"""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ..capture import IGNORED_NAMESPACES, IGNORED_OPS
from ..core.table import F8
from ..errors import CostmodelError
from ..graph import OpGraph
from .job import Job
from .latency import LOW_QUANTILE
from .worker import Workers

__all__ = ["measure_op_times", "read_op_times", "seconds_of_trace", "time_ops"]


class _Timer(TorchDispatchMode):
    """Times every op that a trace records."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.nanoseconds: list[int] = []
        self._known: dict[Any, str] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = self._known.get(func)
        if name is None:
            name = func.name()
            if name.split("::", 1)[0] in IGNORED_NAMESPACES or name.split(".", 1)[0] in IGNORED_OPS:
                name = ""
            self._known[func] = name
        clock = time.perf_counter_ns
        t0 = clock()
        result = func(*args, **(kwargs or {}))
        t1 = clock()
        if name:
            self.names.append(name)
            self.nanoseconds.append(t1 - t0)
        return result


def time_ops(job: Job, *, repeats: int = 9) -> tuple[list[str], F8]:
    """Names (with overload) and seconds of the ops of a step, in their order, run in this process.

    Raises:
        CostmodelError: two runs of the step were of different ops.
    """
    torch.set_num_threads(job.threads)
    step = job.step()
    step.run()
    step.run()
    names: list[str] = []
    rows: list[list[int]] = []
    gc.collect()
    gc.disable()
    try:
        for _ in range(repeats):
            timer = _Timer()
            with timer:
                step.run()
            if names and timer.names != names:
                raise CostmodelError(f"{job.name}: its steps are not of the same ops, so their times do not pair")
            names = timer.names
            rows.append(timer.nanoseconds)
    finally:
        gc.enable()
    return names, np.quantile(np.array(rows, float), LOW_QUANTILE, axis=0) / 1e9


def seconds_of_trace(graph: OpGraph, names: Sequence[str], seconds: F8) -> F8:
    """(n,) measured seconds of each op of a trace of the same step.

    A trace has gradients added in place (``add_`` for ``add``) and not the last ``detach`` of a real step.

    Raises:
        CostmodelError: the ops are others.
    """
    found = np.zeros(len(graph))
    position = 0
    for name, time_s in zip(names, seconds):
        here = graph.op_name[position] if position < len(graph) else ""
        if name == here or name.replace("add.", "add_.") == here:
            found[position] = time_s
            position += 1
        elif name != "aten::detach":
            raise CostmodelError(f"{graph.meta.model}: op {position} is {name} in the step and {here} in its trace")
    if position != len(graph):
        raise CostmodelError(f"{graph.meta.model}: the trace has {len(graph)} ops, the step {position} of them")
    return found


def measure_op_times(
    jobs: Sequence[Job], path: Path, *, progress: Callable[[int, int, str], None] | None = None
) -> dict[str, str]:
    """Time the ops of every job that `path` does not hold, each in a fresh process; what ends is added at once.

    Returns:
        Why a job could not be run, by its name.
    """
    done = read_op_times(path)
    skipped: dict[str, str] = {}
    with Workers() as workers:  # the allocator is set where a process starts
        for number, job in enumerate(jobs):
            if job in done:
                continue
            if progress is not None:
                progress(number, len(jobs), job.name)
            try:
                names, seconds = workers.of(job).time_ops(job)
            except CostmodelError as error:
                skipped[job.name] = str(error)
                continue
            _add(path, job, names, seconds)
    return skipped


def _add(path: Path, job: Job, names: Sequence[str], seconds: Sequence[float]) -> None:
    """Append the ops of one step to a file of JSON lines."""
    number = {name: i for i, name in enumerate(dict.fromkeys(names))}
    line = {
        "job": job.as_dict(),
        "names": list(number),
        "ops": [number[n] for n in names],
        "seconds": [float(f"{s:.5g}") for s in seconds],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(line, separators=(",", ":")) + "\n")


def read_op_times(path: Path) -> dict[Job, tuple[list[str], F8]]:
    """Names and seconds of the ops of each step; a line that a kill cut off is left out."""
    found: dict[Job, tuple[list[str], F8]] = {}
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                raw = json.loads(line)
            except ValueError:
                continue
            names = [raw["names"][i] for i in raw["ops"]]
            found[Job(**raw["job"])] = (names, np.array(raw["seconds"], float))
    return found
