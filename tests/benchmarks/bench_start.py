"""What a job pays once: loading libraries, and what the first step makes that later ones reuse.

Each model in fresh processes: seconds from the start of the process until its library is loaded; the first step less
a later one, and that over the ops of the step. Prints a row a model, then medians in the form of a profile:
``start_s``, ``first_op_s`` (`costmodel.job`). Weights are made, not read: `storage_bytes_per_s` is not measured here.

    python tests/benchmarks/bench_start.py [processes]
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time

CASES = (
    ("timm:mobilenetv2_100", "infer", 1),
    ("timm:mobilenetv2_100", "train", 8),
    ("timm:resnet18", "train", 8),
    ("timm:vit_tiny_patch16_224", "train", 8),
    ("timm:vit_tiny_patch16_224", "infer", 1),
)
CHILD = """
import json, os, sys, time
model, mode, batch, born = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
import torch
torch.set_num_threads(1)
from costmodel.models._compat import require
require("timm")
loaded = time.time()
from costmodel.measure.job import Job
step = Job(model, mode, batch=batch).step()
times = []
for _ in range(6):
    start = time.perf_counter()
    step.run()
    times.append(time.perf_counter() - start)
print(json.dumps({"start_s": loaded - born, "first_s": times[0], "step_s": min(times[2:])}))
"""
OPS = """
import sys
from costmodel.measure.job import Job
print(len(Job(sys.argv[1], sys.argv[2], batch=int(sys.argv[3])).trace()))
"""


def _child(code: str, *words: str) -> str:
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    return done.stdout.strip().splitlines()[-1]


def main() -> None:
    processes = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    starts, extras = [], []
    print(f"{'step':40} {'ops':>6} {'libraries':>10} {'first step':>11} {'later':>9} {'more an op':>11}")
    for model, mode, batch in CASES:
        ops = int(_child(OPS, model, mode, str(batch)))
        runs = [json.loads(_child(CHILD, model, mode, str(batch), str(time.time()))) for _ in range(processes)]
        start, first, step = (statistics.median(r[k] for r in runs) for k in ("start_s", "first_s", "step_s"))
        starts.append(start)
        extras.append((first - step) / ops)
        name = f"{model} {mode} b{batch}"
        print(f"{name:40} {ops:6} {start:8.2f} s {first:9.3f} s {step:7.3f} s {1e6 * extras[-1]:8.0f} µs", flush=True)
    print(f"start_s = {statistics.median(starts):.3g}, {min(starts):.3g} to {max(starts):.3g}")
    print(f"first_op_s = {statistics.median(extras):.3g}, {min(extras):.3g} to {max(extras):.3g}")


if __name__ == "__main__":
    main()
