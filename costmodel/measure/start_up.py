"""What a job pays once on this machine: libraries, the first step, weights from storage; fresh processes, and a file.

``python -m costmodel.measure.start_up JOB BORN`` is such a process: it loads the libraries, runs the job's step a few
times, and writes seconds and the ops of the step.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from platformdirs import user_cache_path

from ..device import Device, Interval, Number
from ..errors import CostmodelError
from .job import Job

__all__ = ["Start", "measure_start", "measure_start_up", "probes", "storage_bytes_per_s", "with_start_up"]

Progress = Callable[[int, int, str], None]

_LATER = 5  # steps after the first
_FILE_BYTES = 128 << 20
_READS = 3
_PATIENCE_S = 300.0
# Libraries that a process of ours loads beside torch: what fine-tuning an image model does.
_LIBRARIES = ("torch", "timm")


@dataclass(frozen=True)
class Start:
    """One fresh process: seconds until its libraries were loaded, of its first step, and of a later one; its ops."""

    start_s: float
    first_s: float
    step_s: float
    ops: int

    @property
    def first_op_s(self) -> float:
        """What the first step takes beyond a later one, an op."""
        return max(self.first_s - self.step_s, 0.0) / self.ops


def probes() -> tuple[Job, ...]:
    """Steps with few and many ops, of a library that is installed."""
    if find_spec("timm") is None:
        return Job("conv-small", "train", batch=8), Job("mlp-small", "train", batch=8), Job("conv-small", batch=8)
    return (
        Job("timm:mobilenetv2_100", "train", batch=8, input_size="3x96x96"),
        Job("timm:resnet18", "train", batch=4, input_size="3x96x96"),
        Job("timm:vit_tiny_patch16_224", "train", batch=1),
    )


def measure_start(job: Job) -> Start:
    """Run `job` in a fresh process.

    Raises:
        CostmodelError: it cannot be run; says why.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": str(job.threads), "MKL_NUM_THREADS": str(job.threads)}
    command = [sys.executable, "-m", "costmodel.measure.start_up", json.dumps(job.as_dict()), repr(time.time())]
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=_PATIENCE_S)
    except subprocess.TimeoutExpired as late:
        raise CostmodelError(f"a fresh process of {job.name} took more than {_PATIENCE_S:.0f} s") from late
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise CostmodelError(f"a fresh process of {job.name} failed: {said[-1] if said else 'it said nothing'}")
    return Start(**json.loads(done.stdout.strip().splitlines()[-1]))


def storage_bytes_per_s(folder: Path | None = None, size: int = _FILE_BYTES) -> float:
    """How fast `torch.load` reads a file of weights that no cache of this system holds: the median of three reads.

    The file lies where such files do, in the user's cache; a disk of a virtual machine may still be cached outside it.
    """
    import torch

    where = folder or user_cache_path("costmodel")
    where.mkdir(parents=True, exist_ok=True)
    seconds = []
    with tempfile.TemporaryDirectory(dir=where, prefix=".storage-") as place:
        path = Path(place) / "weights.pt"
        torch.save({"weight": torch.randint(0, 256, (size,), dtype=torch.uint8)}, path)
        for _ in range(_READS):
            file = os.open(path, os.O_RDONLY)
            try:
                os.fsync(file)
                os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(file)
            began = time.perf_counter()
            torch.load(path, weights_only=True)
            seconds.append(time.perf_counter() - began)
    return size / statistics.median(seconds)


def measure_start_up(
    device: Device, runtime: str, *, jobs: Sequence[Job] | None = None, progress: Progress | None = None
) -> Device:
    """`device` with ``start_s``, ``first_op_s`` and ``storage_bytes_per_s`` of this machine, and their interval.

    Raises:
        CostmodelError: a process cannot be run.
    """
    wanted = probes() if jobs is None else jobs
    starts = []
    for done, job in enumerate(wanted):
        if progress is not None:
            progress(done, len(wanted), f"start-up of {job.name}")
        starts.append(measure_start(job))
    return with_start_up(device, runtime, starts, storage_bytes_per_s())


def with_start_up(device: Device, name: str, starts: Sequence[Start], storage: float) -> Device:
    """`device` with medians of `starts` in runtime `name`, and an interval of 1.2 times the worst that they miss."""
    runtime = device.runtime[name]
    start_s = statistics.median(s.start_s for s in starts)
    first_op_s = statistics.median(s.first_op_s for s in starts)
    off = [abs(math.log((s.start_s + s.first_op_s * s.ops) / (start_s + first_op_s * s.ops))) for s in starts]
    wide = max(1.2 * max(off), 0.1)
    key = "start"

    def measured(value: float) -> Number:
        return Number(value=float(f"{value:.4g}"), kind="measured", source=key)

    changed = runtime.model_copy(
        update={
            "start_s": measured(start_s),
            "first_op_s": measured(first_op_s),
            "interval": {
                **runtime.interval,
                "start_up": Interval(low=-wide, high=wide, cases=len(starts), kind="fitted", source=key),
            },
        }
    )
    said = (
        f"{len(starts)} fresh processes that load {', '.join(_loaded())} and costmodel, files of the libraries cached; "
        f"torch.load of {_FILE_BYTES >> 20} MiB, its file not cached (costmodel.measure.start_up)"
    )
    return device.model_copy(
        update={
            "memory": device.memory.model_copy(update={"storage_bytes_per_s": measured(storage)}),
            "runtime": {**device.runtime, name: changed},
            "sources": {**device.sources, key: said},
        }
    )


def _loaded() -> list[str]:
    return [name for name in _LIBRARIES if find_spec(name) is not None]


def main() -> None:
    from ..models._compat import require

    job, born = Job(**json.loads(sys.argv[1])), float(sys.argv[2])
    for name in _loaded():
        require(name)
    start_s = time.time() - born
    import torch

    torch.set_num_threads(job.threads)
    step = job.step()
    seconds = []
    for _ in range(1 + _LATER):
        began = time.perf_counter()
        step.run()
        seconds.append(time.perf_counter() - began)
    found = {"start_s": start_s, "first_s": seconds[0], "step_s": min(seconds[1:]), "ops": len(job.trace())}
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
