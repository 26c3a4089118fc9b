"""What can be traced and priced: every architecture of timm, torchvision and transformers, inference and training.

Nothing is computed: models are built on the meta device and traced on fake tensors, each in a forked process of its
own with a time and a memory limit. Results are appended to a file as they come, so that a run that was stopped goes
on where it was.
"""

from __future__ import annotations

import gc
import json
import os
import re
import resource
import select
import signal
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch

from ..capture import capture
from ..device import Device, load_device
from ..errors import CostmodelError, MissingExtra
from ..estimate import Estimate, estimate
from ..lower import UNPRICED
from ..models import architectures, load_model
from ..models._compat import require

__all__ = ["CLASSES", "MODES", "Case", "Result", "cases", "examine", "load_results", "run"]

LIBRARIES = ("timm", "torchvision", "transformers")
MODES = ("infer", "train")
SHALLOW = ",layers=2"  # a small configuration: two layers a stack, at the published width
# Why something is not traced. Only the last is a bug of ours.
CLASSES = {
    "data": "data-dependent control flow: which ops run depends on a tensor's values",
    "custom op": "a compiled or CUDA-only op that has no implementation here",
    "extra": "needs a library that is not installed",
    "inputs": "takes an object of the library's own (a session, a cache, a record), which no example is made of",
    "no training": "cannot be trained as it is: the library's own code or an op has no backward",
    "library": "the library's own code fails, on real tensors too",
    "limit": "over the time or the memory of a case",
    "ours": "a gap of this tool",
}
_GIB = 1 << 30


@dataclass(frozen=True)
class Case:
    """One architecture in one mode."""

    model: str
    mode: str

    @property
    def library(self) -> str:
        return self.model.partition(":")[0]


@dataclass(frozen=True)
class Result:
    """What came of one case.

    Attributes:
        seconds: of building, tracing and pricing.
        ops, flops: of the step; 0 if it was not traced.
        priced_ops, priced_flops, priced_time: shares with an explicit formula. The FLOPs of an op without one are not
            known; an operation for each element that it writes stands in for them.
        unpriced: (op, count, share of time) of what has no formula.
        failure: one of `CLASSES`, empty if it was traced.
        why: one line.
        assumed: what the trace takes for granted; empty for most.
    """

    model: str
    mode: str
    seconds: float
    ops: int = 0
    flops: int = 0
    priced_ops: float = 1.0
    priced_flops: float = 1.0
    priced_time: float = 1.0
    unpriced: list[tuple[str, int, float]] = field(default_factory=list)
    failure: str = ""
    why: str = ""
    assumed: str = ""

    @property
    def traced(self) -> bool:
        return not self.failure

    @property
    def worst(self) -> float:
        """The largest share of time that one op without a formula has."""
        return max((share for _, _, share in self.unpriced), default=0.0)


def cases(library: str, *, every: bool = False) -> list[Case]:
    """Architectures of a library in both modes: one a family, or all of them."""
    family_of = architectures(library)
    chosen = sorted(family_of) if every else one_a_family(family_of)
    settings = SHALLOW if library == "transformers" else ""
    return [Case(f"{library}:{name}{settings}", mode) for name in chosen for mode in MODES]


def one_a_family(family_of: Mapping[str, str]) -> list[str]:
    """One name of each family: the one with the longest name of a task, else the first in natural order."""
    chosen: dict[str, str] = {}
    for name in sorted(family_of, key=lambda n: (not _TASK.search(n), _natural(n))):
        chosen.setdefault(family_of[name], name)
    return sorted(chosen.values())


_TASK = re.compile(r"For(CausalLM|ConditionalGeneration|ImageClassification|ObjectDetection|CTC)$")


def _natural(name: str) -> list[Any]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def load_results(path: Path) -> dict[Case, Result]:
    """Results so far; a line that was cut off by a kill is dropped."""
    found: dict[Case, Result] = {}
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                result = Result(**json.loads(line))
            except (ValueError, TypeError):
                continue
            found[Case(result.model, result.mode)] = result
    return found


def run(
    wanted: Iterable[Case],
    path: Path,
    *,
    device: str = "raspberry-pi-4b",
    timeout_s: float = 300.0,
    memory_bytes: int = 6 * _GIB,
    again: bool = False,
) -> Iterator[Result]:
    """Examine what `path` does not have yet, a forked process a case, and append each result to it.

    Args:
        wanted: cases; those that `path` has are left out.
        device: by whose profile steps are priced.
        timeout_s, memory_bytes: limits of one case.
        again: examine once more what was not traced or not wholly priced.
    """
    known = load_results(path)
    done = {case for case, result in known.items() if not again or (result.traced and not result.unpriced)}
    todo = [case for case in wanted if case not in done]
    target = load_device(device)
    for library in sorted({case.library for case in todo} & set(LIBRARIES)):
        require(library)
    torch.set_num_threads(1)
    if todo:
        examine(Case("mlp-small", "train"), target)  # loads here what every child needs
        gc.freeze()  # children share it
    path.parent.mkdir(parents=True, exist_ok=True)
    for case in todo:
        result = _in_child(case, target, timeout_s, memory_bytes)
        _append(path, json.dumps(asdict(result)))
        yield result


def _append(path: Path, line: str) -> None:
    """Add a line, after what a kill may have left of the last one."""
    with open(path, "ab+") as file:
        file.seek(0, os.SEEK_END)
        if file.tell():
            file.seek(-1, os.SEEK_END)
            line = line if file.read(1) == b"\n" else "\n" + line
        file.write(line.encode() + b"\n")


def _in_child(case: Case, device: Device, timeout_s: float, memory_bytes: int) -> Result:
    """`examine` in a forked child: libraries are imported once, and a crash is one case's."""
    read, write = os.pipe()
    start = time.monotonic()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # forking beside idle threads: the child starts none of theirs
        child = os.fork()
    if child == 0:
        try:
            gc.disable()  # it would copy what is shared, and the child is short
            os.close(read)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(1, 2)
            resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            result = examine(case, device)
            with os.fdopen(write, "w") as pipe:
                json.dump(asdict(result), pipe)
        finally:
            os._exit(0)
    os.close(write)
    text = _read_until(read, start + timeout_s)
    seconds = time.monotonic() - start
    if text is None:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if text is None:
        return Result(case.model, case.mode, seconds, failure="limit", why=f"over {timeout_s:g} s")
    try:
        return Result(**json.loads(text))
    except ValueError:
        how = f"signal {status & 127}" if status & 127 else "an unreported end"
        return Result(case.model, case.mode, seconds, failure="limit", why=f"ended by {how} (memory?)")


def _read_until(descriptor: int, deadline: float) -> str | None:
    """All that comes until the other end closes; None past the deadline."""
    parts: list[bytes] = []
    with os.fdopen(descriptor, "rb", buffering=0) as pipe:
        while select.select([pipe], [], [], max(deadline - time.monotonic(), 0))[0]:
            part = pipe.read(1 << 16)
            if not part:
                return b"".join(parts).decode()
            parts.append(part)
    return None


def examine(case: Case, device: Device) -> Result:
    """Build, trace and price one case; every failure is classified and told in one line."""
    start = time.monotonic()
    deep = case.model.removesuffix(SHALLOW)  # what cannot be made shallow stays deep
    batch = 2 if case.mode == "train" else 1  # batch norm over one value has no variance
    for model, samples in dict.fromkeys(((case.model, batch), (deep, batch), (case.model, 1))):
        try:
            priced = _price(model, case.mode, device, samples)
            return _of_estimate(case, priced, time.monotonic() - start)
        except MemoryError:
            failure, why = "limit", "out of memory"
        except Exception as error:
            failure, why = classify(error)
        if failure not in ("ours", "library"):
            break
    return Result(case.model, case.mode, round(time.monotonic() - start, 2), failure=failure, why=why)


def _price(model: str, mode: str, device: Device, batch: int) -> Estimate:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = load_model(model, mode=mode, batch=batch, device="meta", input_device="cpu")
        graph = capture(loaded.model, loaded.inputs, mode=mode, name=model, assumed=loaded.assumed)
        return estimate(graph.check(), device)


def _of_estimate(case: Case, priced: Estimate, seconds: float) -> Result:
    graph, costs = priced.graph, priced.lowered.costs
    total = float(priced.seconds.sum()) or 1.0
    count: dict[str, int] = {}
    share: dict[str, float] = {}
    written = 0
    for k, cost in enumerate(costs):
        if cost.kind == UNPRICED:
            name = graph.op_name[k]
            count[name] = count.get(name, 0) + 1
            share[name] = share.get(name, 0.0) + float(priced.seconds[k]) / total
            written += sum(_elements(graph.tensor_shape[t]) for t in graph.op_outputs[k])
    return Result(
        case.model,
        case.mode,
        round(seconds, 2),
        ops=len(graph),
        flops=priced.flops,
        priced_ops=1.0 - sum(count.values()) / max(len(graph), 1),
        priced_flops=priced.flops / max(priced.flops + written, 1),
        priced_time=priced.coverage.time,
        unpriced=[(name, n, share[name]) for name, n in sorted(count.items(), key=lambda item: -share[item[0]])],
        assumed=graph.meta.assumed,
    )


def _elements(shape: tuple[int, ...]) -> int:
    n = 1
    for d in shape:
        n *= d
    return n


# Library code that says that it cannot run like this; matched in the message, each to a class of `CLASSES`.
_SAID = (
    ("data", "*reads a tensor's values*"),
    ("data", "*but its data is not allocated yet*"),  # numbers taken out of tensors below the dispatcher
    ("custom op", "*has no fake implementation*"),
    ("extra", "*requires the * library*"),
    ("extra", "*No module named*"),
    ("inputs", "*which costmodel makes no example of*"),
    ("library", "*builds no model*"),
    ("library", "*cannot be built with {}*"),
    ("no training", "*has nothing to train*"),
    ("no training", "*nothing to train on*"),
)


def classify(error: BaseException) -> tuple[str, str]:
    """(one of `CLASSES`, one line) of what a case raised."""
    said = " ".join(str(error).split())
    if isinstance(error, (MissingExtra, ModuleNotFoundError)):
        return "extra", said[:300]
    if isinstance(error, (CostmodelError, ImportError)):
        for name, pattern in _SAID:
            if fnmatch(said, pattern):
                return name, said[:300]
        return "ours", said[:300]
    return "ours", f"{type(error).__name__}: {said}"[:300]
