"""A grid in several processes of one thread each: the numbers do not depend on how many cores there are.

What points share (a search for a learning rate, a pretrained network) one process makes, and the others wait for it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from typing import Any

import torch

from . import family as family_of
from .result import Budget, NotKept, TaskResult, only_kept

__all__ = ["run_grid"]


def run_grid(
    name: str,
    grid: Sequence[tuple[str, int]],
    budget: Budget,
    *,
    processes: int | None = None,
    first: Callable[[str], object] | None = None,
    report: Callable[[int, str], None] = lambda _done, _what: None,
) -> list[TaskResult]:
    """The result of each (arm, seed) of a family's grid, in its order: kept ones are read, the rest is run.

    Args:
        name: of the family.
        grid: points; begun in this order, so that a run cut short has whole fronts.
        budget: size of the grid.
        processes: at a time, one thread each; None: one a core. With one, points are run in this process.
        first: what else there is to do of each arm (and can be pickled); where points are run in processes of their
            own it is done there before them, so that what fails does so in the first minute.
        report: called with how many results there are and what is next.
    """
    found: dict[tuple[str, int], TaskResult] = {}
    for arm, seed in grid:
        try:
            with only_kept():
                found[arm, seed] = family_of(name).run(arm, seed=seed, budget=budget)
        except NotKept:
            continue
    missing = [point for point in grid if point not in found]
    most = min(processes or _cores(), len(missing))
    if most > 1:
        _in_processes(name, missing, budget, most, found, first, report)
    else:
        with _one_thread():
            for arm, seed in missing:
                report(len(found), f"{name} {arm} seed {seed}")
                found[arm, seed] = family_of(name).run(arm, seed=seed, budget=budget)
    return [found[point] for point in grid]


def _in_processes(
    name: str,
    missing: Sequence[tuple[str, int]],
    budget: Budget,
    most: int,
    found: dict[tuple[str, int], TaskResult],
    first: Callable[[str], object] | None,
    report: Callable[[int, str], None],
) -> None:
    """Adds to `found`; a point that fails stops the rest, and what was made is kept."""
    # a forked child of a process that has run torch may hang
    pool = ProcessPoolExecutor(most, mp_context=get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,))
    waiting: list[tuple[str, Callable[[], object], tuple[str, int] | None]] = []
    if first is not None:
        arms = dict.fromkeys(arm for arm, _ in missing)
        waiting += [(f"tracing {arm}", partial(first, arm), None) for arm in arms]
    waiting += [
        (f"{name} {arm} seed {seed}", partial(_run, name, arm, seed, budget), (arm, seed)) for arm, seed in missing
    ]
    running: dict[Future[Any], tuple[str, int] | None] = {}
    try:
        while waiting or running:
            while waiting and len(running) < most:
                what, call, point = waiting.pop(0)
                report(len(found), what)
                running[pool.submit(call)] = point
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                point, answer = running.pop(future), future.result()
                if point is not None:
                    found[point] = answer
    finally:
        pool.shutdown(cancel_futures=True)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _run(name: str, arm: str, seed: int, budget: Budget) -> TaskResult:
    return family_of(name).run(arm, seed=seed, budget=budget)


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
