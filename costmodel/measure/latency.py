"""Seconds of a step on this machine: warmed up, interleaved, with what disturbed each repeat kept beside it.

A shared machine has fast and slow states that last seconds: another guest on the core's other half or in its cache.
`reference_spin` beside each repeat says how fast the machine was at that moment; seconds are told at one speed of it.
"""

from __future__ import annotations

import gc
import os
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..errors import CostmodelError

__all__ = [
    "LOW_QUANTILE",
    "Samples",
    "allocator_here",
    "disturbed_share",
    "pinned_allocator",
    "reference_spin",
    "time_interleaved",
]

# The statistic of every latency here, fixed before any model was fitted: a low quantile of the undisturbed repeats.
LOW_QUANTILE = 0.2
# A step that takes longer brings in more than a cache holds, whatever was there.
_SHORT_S = 0.02


@dataclass(frozen=True)
class Samples:
    """Raw repeats of one step.

    Attributes:
        wall_s, cpu_s: seconds of each repeat, by the clock and by the processor (all threads).
        preempted: whether another process took the core during the repeat (an involuntary context switch).
        spin_s: what `reference_spin` took right before each repeat; empty if it was not run.
    """

    wall_s: tuple[float, ...]
    cpu_s: tuple[float, ...]
    preempted: tuple[bool, ...]
    spin_s: tuple[float, ...] = ()

    def _kept(self, values: Sequence[float]) -> list[float]:
        calm = [v for v, p in zip(values, self.preempted) if not p]
        return calm if len(calm) >= 3 else list(values)

    @property
    def latency_s(self) -> float:
        """`LOW_QUANTILE` of the wall seconds of the repeats that were not preempted (all, if fewer than 3 were)."""
        return float(np.quantile(self._kept(self.wall_s), LOW_QUANTILE))

    def at_speed(self, spin_s: float) -> float:
        """Median of the undisturbed repeats, as seconds would be where the spin takes `spin_s`.

        Not a low quantile: of a few repeats that would be the one whose spin was disturbed.

        >>> Samples((2.0, 2.0, 3.0), (2.0, 2.0, 3.0), (False,) * 3, (1e-3, 1e-3, 1.5e-3)).at_speed(2e-3)
        4.0
        """
        values = [wall * spin_s / spin for wall, spin in zip(self.wall_s, self.spin_s)]
        return float(np.median(self._kept(values)))

    @property
    def processor_s(self) -> float:
        """The same quantile of processor seconds."""
        return float(np.quantile(self._kept(self.cpu_s), LOW_QUANTILE))

    @property
    def spread(self) -> float:
        """Half the interquartile range of the wall seconds over their median, as a fraction."""
        low, mid, high = np.quantile(self.wall_s, (0.25, 0.5, 0.75))
        return float(0.5 * (high - low) / mid)


def pinned_allocator() -> dict[str, str]:
    """Environment under which glibc keeps freed memory: no page faults in steady state, so repeats are alike.

    Plain integers: glibc reads ``64M`` as 64.
    """
    return {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40), "MALLOC_TOP_PAD_": str(64 << 20)}


def allocator_here() -> str:
    """``pinned`` if this process was started with `pinned_allocator`, else ``default``."""
    wanted = pinned_allocator()
    return "pinned" if all(os.environ.get(key) == value for key, value in wanted.items()) else "default"


def time_interleaved(
    steps: Sequence[Callable[[], object]],
    *,
    seconds: float = 1.0,
    repeats: tuple[int, int] = (5, 200),
    threads: int = 1,
    spin: bool = False,
    progress: Callable[[int], None] | None = None,
) -> list[Samples]:
    """Time several steps in turn, so that what drifts on the machine hits them alike.

    A short step runs once untimed before its turn, because the others and the spin have taken its caches: what is timed
    is a step after one of its own, as in a run of one model.

    Args:
        steps: callables that run one step each.
        seconds: time for each step, warm-up not included.
        repeats: fewest and most repeats of each.
        threads: threads that torch may use.
        spin: run `reference_spin` before each repeat.
        progress: called after each round with the number of rounds done.

    Returns:
        One `Samples` a step.
    """
    cores = len(os.sched_getaffinity(0))  # threads that wait for each other on one core take a hundred times as long
    if threads > cores:
        raise CostmodelError(
            f"this process may use {cores} cores; measure with at most as many threads (or see taskset)"
        )
    torch.set_num_threads(threads)
    for step in steps:  # twice: the first creates optimizer state, caches of the libraries and grown heaps
        step()
        step()
    wall: list[list[float]] = [[] for _ in steps]
    cpu: list[list[float]] = [[] for _ in steps]
    preempted: list[list[bool]] = [[] for _ in steps]
    spins: list[list[float]] = [[] for _ in steps]
    clock, cpu_clock = time.perf_counter_ns, time.process_time_ns
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        rounds = 0
        while rounds < repeats[1]:
            for i, step in enumerate(steps):
                if spin:
                    spins[i].append(reference_spin())
                if (spin or len(steps) > 1) and (not rounds or wall[i][-1] < _SHORT_S):
                    step()
                before = resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw
                c0 = cpu_clock()
                t0 = clock()
                step()
                t1 = clock()
                c1 = cpu_clock()
                after = resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw
                wall[i].append((t1 - t0) / 1e9)
                cpu[i].append((c1 - c0) / 1e9)
                preempted[i].append(after != before)
            rounds += 1
            if progress is not None:
                progress(rounds)
            if rounds >= repeats[0] and sum(sum(w) for w in wall) > seconds * len(steps):
                break
    finally:
        if collecting:
            gc.enable()
    every = zip(wall, cpu, preempted, spins)
    return [Samples(tuple(w), tuple(c), tuple(p), tuple(s)) for w, c, p, s in every]


# Products of matrices that stay in L2: some 2 ms on a desktop's core, 15 ms on a Raspberry Pi 4's. A loop of Python, or
# of multiply-adds in registers, does not see what a neighbour does to the caches (reports/diary.md, reference spin).
_SIDE, _PRODUCTS, _PARTS = 192, 5, 3


def reference_spin() -> float:
    """Seconds of a fixed piece of work, on torch's threads: how fast the machine is at this moment.

    Its parts count by their median, so that an interrupt in one does not.
    """
    a = reference_spin.__dict__.setdefault("a", torch.ones(_SIDE, _SIDE))
    result = reference_spin.__dict__.setdefault("result", torch.empty(_SIDE, _SIDE))
    parts = []
    with torch.no_grad():
        for _ in range(_PARTS):
            t0 = time.perf_counter_ns()
            for _ in range(_PRODUCTS):
                torch.mm(a, a, out=result)
            parts.append(time.perf_counter_ns() - t0)
    return _PARTS * sorted(parts)[_PARTS // 2] / 1e9


def disturbed_share(spins: int = 400, seconds: float = 1e-3) -> float:
    """Share of spins of `seconds` that took 1.3 times as long as the calm ones: how busy the machine is.

    Shorter spins say more of the clock than of the neighbours (22 µs ones had two modes of their own).
    """
    clock = time.perf_counter_ns
    loops = 200
    t0 = clock()
    _spin(loops)
    loops = max(1, int(loops * seconds * 1e9 / max(clock() - t0, 1)))
    times = np.empty(spins)
    for i in range(spins):
        t0 = clock()
        _spin(loops)
        times[i] = clock() - t0
    return float((times > 1.3 * np.quantile(times, 0.1)).mean())


def _spin(loops: int) -> int:
    total = 0
    for i in range(loops):
        total += i * i
    return total
