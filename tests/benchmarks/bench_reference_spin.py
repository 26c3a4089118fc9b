"""Does a reference spin make latencies of separate processes agree better? (DESIGN.md §4, LATENCY.md: 22 µs did not.)

Each process times a step in turn with two spins of some 2 ms: a Python loop, and fp32 GEMMs that stay in L2. If the
clock or a neighbour slowed the process, the spins saw it too, and seconds divided by the spin's should agree better
between processes than seconds. Printed: mean |ln ratio| of two processes, over models, of each statistic.

    python tests/benchmarks/bench_reference_spin.py --processes 5 [--into FILE]     # goes on where it was stopped
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from costmodel.measure.job import Job
from costmodel.measure.latency import LOW_QUANTILE, _spin, pinned_allocator, time_interleaved
from costmodel.measure.suite import pairwise_noise

JOBS = (
    Job("timm:mobilenetv2_100"),
    Job("timm:resnet18"),
    Job("timm:vit_tiny_patch16_224"),
    Job("transformers:bert-mini", seq=128),
    Job("timm:mobilenetv3_small_100", "train", batch=4),
)
# The same work in every process: some 2 ms of each on this machine.
PYTHON_LOOPS, GEMM_LOOPS = 40_000, 14


def _gemms(loops: int) -> None:
    import torch

    a = _gemms.__dict__.setdefault("a", torch.randn(192, 192))
    with torch.no_grad():
        for _ in range(loops):
            torch.mm(a, a)


def one_process(number: int) -> list[float]:
    """(repeats, 6): wall and CPU seconds of the step and of each spin, in turn."""
    step = JOBS[number].step()
    spins = (lambda: _spin(PYTHON_LOOPS), lambda: _gemms(GEMM_LOOPS))
    samples = time_interleaved([step.run, *spins], seconds=0.4, repeats=(7, 60))
    return [[list(s.wall_s), list(s.cpu_s)] for s in samples]  # type: ignore[misc]


def low(values: np.ndarray) -> float:
    return float(np.quantile(values, LOW_QUANTILE))


STATISTICS: dict[str, Callable[[np.ndarray], float]] = {
    "wall p20": lambda x: low(x[0, 0]),
    "wall median": lambda x: float(np.median(x[0, 0])),
    "CPU p20": lambda x: low(x[0, 1]),
    "wall p20 / Python spin p20": lambda x: low(x[0, 0]) / low(x[1, 0]),
    "wall p20 / GEMM spin p20": lambda x: low(x[0, 0]) / low(x[2, 0]),
    "p20 of wall / Python spin beside it": lambda x: low(x[0, 0] / x[1, 0]),
    "p20 of wall / GEMM spin beside it": lambda x: low(x[0, 0] / x[2, 0]),
    "median of wall / GEMM spin beside it": lambda x: float(np.median(x[0, 0] / x[2, 0])),
    "Python spin p20": lambda x: low(x[1, 0]),
    "GEMM spin p20": lambda x: low(x[2, 0]),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--processes", type=int, default=5)
    parser.add_argument("--into", type=Path, default=Path("/tmp/reference-spin.jsonl"))
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one is not None:
        print(json.dumps(one_process(asked.one)))
        return
    found: dict[int, list[np.ndarray]] = {i: [] for i in range(len(JOBS))}
    if asked.into.exists():
        for line in asked.into.read_text().splitlines():
            number, values = json.loads(line)
            found[number].append(np.array(values))
    for process in range(asked.processes):
        for number, job in enumerate(JOBS):
            if len(found[number]) > process:
                continue
            print(f"process {process + 1}: {job.name}", file=sys.stderr)
            answer = subprocess.run(
                [sys.executable, __file__, "--one", str(number)],
                capture_output=True,
                text=True,
                check=True,
                env={**os.environ, "OMP_NUM_THREADS": "1", **pinned_allocator()},
            )
            values = json.loads(answer.stdout.strip().splitlines()[-1])
            with open(asked.into, "a") as file:
                file.write(json.dumps([number, values]) + "\n")
            found[number].append(np.array(values))
    print(f"{asked.processes} processes, {len(JOBS)} steps: mean |ln ratio| of two processes")
    for name, statistic in STATISTICS.items():
        noise = [pairwise_noise(np.array([statistic(x) for x in runs])) for runs in found.values()]
        print(f"  {name:38s} mean {np.mean(noise):6.2%}  " + " ".join(f"{n:6.2%}" for n in noise))


if __name__ == "__main__":
    main()
