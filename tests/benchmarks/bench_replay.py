"""Replay of 10,000 allocation events: ``python tests/benchmarks/bench_replay.py``. Bar: 1 ms after compilation."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np

from costmodel.core.allocator import CACHING, EXPANDABLE, caching_allocator
from costmodel.core.malloc import MALLOC, PINNED_MALLOC, glibc_malloc
from costmodel.core.memory import allocation_events, live_bytes

REPEATS = 200


def training_events(n: int) -> tuple[np.ndarray, ...]:
    """Lifetimes of a training step of n ops: an activation and a temporary an op, freed in reverse and soon."""
    rng = np.random.default_rng(0)
    half = n // 2
    sizes = np.exp(rng.uniform(np.log(1e3), np.log(2e7), 24)).astype(np.int64)
    birth = np.concatenate((np.arange(half), np.arange(n)))
    death = np.concatenate((n - np.arange(half), np.minimum(np.arange(n) + 2, n)))
    size = rng.choice(sizes, len(birth))
    workspace = np.where(np.arange(n) % 4 == 0, rng.choice(sizes, n), 0)
    return size, birth, death, workspace


def main() -> None:
    n = 2860
    size, birth, death, workspace = training_events(n)
    used = np.flatnonzero(workspace)
    block = np.concatenate((size, workspace[used]))
    born, dies = np.concatenate((birth, used)), np.concatenate((death, used + 1))
    event = allocation_events(born, dies, born, n, 2)[:10_000]
    cases: dict[str, Callable[[], object]] = {
        "live_bytes": lambda: live_bytes(size, birth, death, workspace),
        "allocation_events": lambda: allocation_events(born, dies, born, n, 1),
        "caching allocator": lambda: caching_allocator(event, block, CACHING, 0),
        "caching, expandable": lambda: caching_allocator(event, block, EXPANDABLE, 0),
        "glibc malloc": lambda: glibc_malloc(event, block, MALLOC),
        "glibc malloc, pinned": lambda: glibc_malloc(event, block, PINNED_MALLOC),
    }
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for run in cases.values():
        run()
    for _ in range(REPEATS):
        for name, run in cases.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    print(f"{len(event):,} events, {REPEATS} repeats, interleaved; ms")
    print(f"{'':24s}{'median':>9s}{'min':>9s}")
    for name, s in seconds.items():
        print(f"{name:24s}{1e3 * statistics.median(s):9.3f}{1e3 * min(s):9.3f}")


if __name__ == "__main__":
    main()
