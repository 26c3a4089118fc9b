"""What a process keeps resident: a job run alone in a fresh process, watched through /proc.

``python -m costmodel.measure.resident`` reads one job as JSON and writes one answer. Only what the job needs is
imported there, so that the figure is that of a user's own program: this package's kernels, and numba with them,
come in only with a method that uses them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ..errors import CostmodelError

if TYPE_CHECKING:
    from ..graph import OpGraph
    from ..models.step import Step

__all__ = ["MemoryJob", "Resident", "Stage", "measure_rss", "measure_rss_peak"]

_STAGES = ("start", "imported", "loaded", "first", "steady")


@dataclass(frozen=True)
class MemoryJob:
    """One step as words; the fields of `Job`, and how gradients are kept.

    `steps` runs follow one another in the process; `accumulate` and `keep_gradients` are those of `make_step`.
    """

    model: str
    mode: str = "infer"
    method: str | None = None
    batch: int = 1
    input_size: str | None = None
    seq: int | None = None
    dtype: str = "float32"
    threads: int = 1
    optimizer: str = "sgd"
    accumulate: int = 1
    keep_gradients: bool = False
    steps: int = 3

    @property
    def setting(self) -> str:
        """What sets this job apart from others of its model, mode and method."""
        parts = (
            self.input_size or "",
            f"seq {self.seq}" if self.seq else "",
            self.optimizer if self.mode == "train" else "",
            "gradients kept" if self.keep_gradients else "",
            f"{self.accumulate} micro-batches" if self.accumulate > 1 else "",
        )
        return ", ".join(filter(None, parts))

    @property
    def name(self) -> str:
        """What a progress bar and a report say."""
        return " ".join(filter(None, (self.model, self.method, self.mode, f"b{self.batch}", self.setting)))

    def _built(self) -> tuple[Any, Any]:
        """The model with its method applied, and its inputs."""
        from ..models.load import load_model

        # a decode step reads one token, but a method that calibrates needs a sequence; `make_step` takes one of it
        mode = "prefill" if self.mode == "decode" else self.mode
        loaded = load_model(
            self.model, mode=mode, batch=self.batch, input_size=self.input_size, seq=self.seq, dtype=self.dtype
        )
        model, inputs = loaded.model, loaded.inputs
        del loaded
        if self.method is not None:
            from ..methods import apply_method

            model = apply_method(self.method, model, inputs)
        return model, inputs

    def step(self) -> Step:
        """The step on real tensors."""
        from ..models.step import make_step

        model, inputs = self._built()
        return make_step(
            model,
            inputs,
            mode=self.mode,
            optimizer=self.optimizer,
            seq=self.seq,
            accumulate=self.accumulate,
            keep_gradients=self.keep_gradients,
        )

    def trace(self) -> OpGraph:
        """The op graph of the same step."""
        from ..capture import capture

        model, inputs = self._built()
        return capture(
            model,
            inputs,
            mode=self.mode,
            optimizer=self.optimizer,
            seq=self.seq,
            accumulate=self.accumulate,
            keep_gradients=self.keep_gradients,
            name=self.model,
            method=self.method,
        )


@dataclass(frozen=True)
class Stage:
    """Bytes of a process at one moment, from /proc/self/status and malloc's own count.

    Attributes:
        rss: resident; `anonymous` of it is the process's own, `file` is mapped from files (libraries).
        peak: the most that was resident so far (VmHWM).
        heap, mapped: what malloc's main arena and its mappings hold.
    """

    rss: int
    anonymous: int
    file: int
    peak: int
    heap: int
    mapped: int


@dataclass(frozen=True)
class Resident:
    """What a fresh process had resident.

    Attributes:
        stages: ``start`` (Python and torch), ``imported`` (the model's library), ``loaded`` (model and inputs),
            ``first`` (one step) and ``steady`` (all steps).
        private, shared: bytes at the end that only this process maps, and that others map too.
    """

    stages: dict[str, Stage]
    private: int
    shared: int

    @property
    def peak(self) -> int:
        """The most bytes that were ever resident."""
        return self.stages["steady"].peak


def measure_rss_peak(job: MemoryJob, *, timeout_s: float = 600.0) -> int:
    """Peak resident bytes of `job` in a fresh process; see `measure_rss`."""
    return measure_rss(job, timeout_s=timeout_s).peak


def measure_rss(job: MemoryJob, *, timeout_s: float = 600.0) -> Resident:
    """Build and run `job` in a fresh process and read what was resident at each stage.

    Raises:
        CostmodelError: not Linux; the job cannot be built or run (its own message); it took more than `timeout_s`.
    """
    if not sys.platform.startswith("linux"):
        raise CostmodelError("resident bytes are read from /proc, which only Linux has")
    threads = str(job.threads)
    environment = {
        **os.environ,
        **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), threads),
    }
    command = [sys.executable, "-m", "costmodel.measure.resident"]
    try:
        done = subprocess.run(
            command, input=json.dumps(asdict(job)), capture_output=True, text=True, env=environment, timeout=timeout_s
        )
    except subprocess.TimeoutExpired:
        raise CostmodelError(f"{job.model} {job.mode} took more than {timeout_s:.0f} s; raise the limit") from None
    answer = done.stdout.strip().rpartition("\n")[2]
    if done.returncode or not answer:
        said = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        raise CostmodelError(f"{job.model} {job.mode} could not be measured: {said}")
    found = json.loads(answer)
    return Resident({s: Stage(**found[s]) for s in _STAGES}, found["private"], found["shared"])


# In the fresh process


def _now() -> Stage:
    with open("/proc/self/status") as file:
        fields = {k: v.split() for k, _, v in (line.partition(":") for line in file)}

    def kib(key: str) -> int:
        return int(fields[key][0]) * 1024

    heap, mapped = _malloc_bytes()
    return Stage(kib("VmRSS"), kib("RssAnon"), kib("RssFile"), kib("VmHWM"), heap, mapped)


def _malloc_bytes() -> tuple[int, int]:
    """Bytes of malloc's main arena and of its mappings; zeros where the C library does not say."""
    import ctypes

    names = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    info_type = type("mallinfo2", (ctypes.Structure,), {"_fields_": [(name, ctypes.c_size_t) for name in names]})
    try:
        mallinfo2 = ctypes.CDLL(None).mallinfo2
    except (AttributeError, OSError):
        return 0, 0
    mallinfo2.restype = info_type
    info = mallinfo2()
    return int(info.arena), int(info.hblkhd)


def _private_and_shared() -> tuple[int, int]:
    with open("/proc/self/smaps_rollup") as file:
        fields = {k: v.split() for k, _, v in (line.partition(":") for line in file)}
    private = sum(int(fields[k][0]) for k in ("Private_Clean", "Private_Dirty"))
    return private * 1024, int(fields["Rss"][0]) * 1024 - private * 1024


def run(job: MemoryJob) -> dict[str, Any]:
    """Run `job` in this process."""
    stages = {"start": _now()}
    import torch

    torch.set_num_threads(job.threads)
    family = job.model.partition(":")[0]
    if family in ("timm", "torchvision", "transformers"):
        from ..models._compat import require

        require(family)
    if job.method is not None:
        from .. import methods as _methods  # noqa: F401  its share of the stage
    stages["imported"] = _now()
    step = job.step()
    stages["loaded"] = _now()
    step.run()
    stages["first"] = _now()
    for _ in range(job.steps - 1):
        step.run()
    stages["steady"] = _now()
    private, shared = _private_and_shared()
    return {**{name: asdict(stage) for name, stage in stages.items()}, "private": private, "shared": shared}


if __name__ == "__main__":
    print(json.dumps(run(MemoryJob(**json.load(sys.stdin)))))  # noqa: T201  the answer to the parent
