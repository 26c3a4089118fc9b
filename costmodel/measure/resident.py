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
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import CostmodelError

if TYPE_CHECKING:
    from ..graph import OpGraph
    from ..models.step import Step

__all__ = ["OTHER_FILES", "Mapped", "MemoryJob", "Resident", "Stage", "measure_rss", "measure_rss_peak"]

_STAGES = ("start", "imported", "loaded", "first", "steady")
_LARGE_FILE = 1 << 20  # smaller ones are summed
OTHER_FILES = "other files"


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
        heap, mapped: what malloc's main arena and its mappings hold; `free` of the heap is nobody's.
    """

    rss: int
    anonymous: int
    file: int
    peak: int
    heap: int
    mapped: int
    free: int = 0

    @property
    def beside(self) -> int:
        """Resident bytes that malloc does not hold."""
        return self.rss - self.heap - self.mapped


class Mapped(NamedTuple):
    """Bytes of a mapped file.

    Attributes:
        resident: in memory for this process.
        pss: each page divided by the processes that mapped it then (proportional set size).
        shared: clean pages, which every process that maps the file has in common.
    """

    resident: int
    pss: int
    shared: int


@dataclass(frozen=True)
class Resident:
    """What a fresh process had resident.

    Attributes:
        stages: ``start`` (Python and torch), ``imported`` (the model's library), ``loaded`` (model and inputs),
            ``first`` (one step) and ``steady`` (all steps).
        private: bytes at the end that are the process's own: written by it.
        shared: bytes at the end that all processes which map the same files have in common, if any did then or not.
        pss: private and a fair part of what is shared with those that ran then.
        files: the largest mapped files, and the sum of the others.
    """

    stages: dict[str, Stage]
    private: int
    shared: int
    pss: int = 0
    files: dict[str, Mapped] = field(default_factory=dict)

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
    files = {name: Mapped(*values) for name, values in found["files"].items()}
    return Resident({s: Stage(**found[s]) for s in _STAGES}, found["private"], found["shared"], found["pss"], files)


# In the fresh process


def _now() -> Stage:
    with open("/proc/self/status") as file:
        fields = {k: v.split() for k, _, v in (line.partition(":") for line in file)}

    def kib(key: str) -> int:
        return int(fields[key][0]) * 1024

    return Stage(kib("VmRSS"), kib("RssAnon"), kib("RssFile"), kib("VmHWM"), *_malloc_bytes())


def _malloc_bytes() -> tuple[int, int, int]:
    """Bytes of malloc's main arena, of its mappings, and free in the arena; zeros where the C library does not say."""
    import ctypes

    names = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    info_type = type("mallinfo2", (ctypes.Structure,), {"_fields_": [(name, ctypes.c_size_t) for name in names]})
    try:
        mallinfo2 = ctypes.CDLL(None).mallinfo2
    except (AttributeError, OSError):
        return 0, 0, 0
    mallinfo2.restype = info_type
    info = mallinfo2()
    return int(info.arena), int(info.hblkhd), int(info.fordblks)


def _owned() -> dict[str, int]:
    """Private, shared and proportional bytes of this process."""
    with open("/proc/self/smaps_rollup") as file:
        fields = {k: v.split() for k, _, v in (line.partition(":") for line in file)}
    kib = {key: int(fields[key][0]) for key in ("Rss", "Pss", "Private_Dirty", "Shared_Dirty")}
    private = kib["Private_Dirty"] + kib["Shared_Dirty"]
    return {"private": private * 1024, "shared": (kib["Rss"] - private) * 1024, "pss": kib["Pss"] * 1024}


def _mapped_files(text: str, least: int = _LARGE_FILE) -> dict[str, tuple[int, int, int]]:
    """`Mapped` of each file in the text of /proc/…/smaps, by the file's name; those below `least` bytes as one."""
    found: dict[str, list[int]] = {}
    name = ""
    for line in text.splitlines():
        key, *rest = line.split()
        if not key.endswith(":"):  # "7f12-7f34 r-xp offset device inode path"
            name = rest[4].rpartition("/")[2] if len(rest) > 4 and rest[4].startswith("/") else ""
        elif name and key in ("Rss:", "Pss:", "Private_Dirty:", "Shared_Dirty:"):
            resident, pss, shared = found.setdefault(name, [0, 0, 0])
            size = int(rest[0]) * 1024
            found[name] = [
                resident + size * (key == "Rss:"),
                pss + size * (key == "Pss:"),
                shared + (size if key == "Rss:" else -size if key.endswith("Dirty:") else 0),
            ]
    large = {name: (a, b, c) for name, (a, b, c) in found.items() if a >= least}
    rest_of = [values for name, values in found.items() if name not in large]
    if rest_of:
        a, b, c = (sum(column) for column in zip(*rest_of))
        large[OTHER_FILES] = (a, b, c)
    return large


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
    owned = _owned()
    with open("/proc/self/smaps") as file:
        files = _mapped_files(file.read())
    return {**{name: asdict(stage) for name, stage in stages.items()}, **owned, "files": files}


if __name__ == "__main__":
    print(json.dumps(run(MemoryJob(**json.load(sys.stdin)))))  # noqa: T201  the answer to the parent
