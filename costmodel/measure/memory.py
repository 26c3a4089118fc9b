"""Bytes of a real step: the peak of what tensors hold by the allocator's events, and what the process keeps resident.

Live bytes are measured in this process. Resident bytes are measured in a fresh one, `resident.py`.
"""

from __future__ import annotations

import copy
import gc
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function

from ..core.table import I8
from ..errors import CostmodelError
from ..models.step import Step

__all__ = ["LiveMeasurement", "held_bytes", "measure_live", "measure_live_peak"]

_MARK = "costmodel step"


@dataclass(frozen=True, eq=False)
class LiveMeasurement:
    """Live bytes of one run of a step.

    Attributes:
        peak: the most that tensors held at once, in bytes.
        base: what they held before the step: parameters, buffers, inputs, gradients, optimizer state, caches.
        change: (e,) bytes of each event of torch's CPU allocator during the step; negative is a free.
        drift: bytes by which the events miss the change of what is held from start to end; 0 if nothing escaped.
    """

    peak: int
    base: int
    change: I8
    drift: int

    @property
    def live(self) -> I8:
        """(e + 1,) live bytes: before the step, and after each event."""
        return self.base + np.concatenate((np.zeros(1, np.int64), np.cumsum(self.change)))


def measure_live_peak(step: Step) -> int:
    """Peak live bytes of `step` in steady state; see `measure_live`."""
    return measure_live(step).peak


def measure_live(step: Step, *, first: bool = False) -> LiveMeasurement:
    """Run `step` under torch's profiler and replay the events of its allocator.

    The profiler does not see the free of a block that was allocated before it started (the gradients of the step
    before, a cache that is replaced). So the step before is profiled too, and only the events of the last are read:
    whatever it frees was allocated under the profiler, or is never freed in steady state. Before a first step, the
    inputs by name, a cache among them, are copied under the profiler.

    Args:
        step: from `make_step`, on real tensors.
        first: measure its first run (optimizer state appears in it) instead; `step` must not have run before.

    Raises:
        CostmodelError: the profiler gave no events (a torch without it), or `first` on a step that has run.
    """
    if first and step.optimizer is not None and step.optimizer.state:
        raise CostmodelError(
            "this step has run before, so its optimizer has state; make a new one to measure its first run"
        )
    if not first:
        step.run()
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        if first:
            step.kwargs = copy.deepcopy(step.kwargs)  # a cache that the step replaces is given back where it is seen
        else:
            step.run()
        base = held_bytes(step)
        with record_function(_MARK):
            step.run()
        after = held_bytes(step)
    change = _allocator_events(profiler)
    peak = base + int(np.cumsum(change).max(initial=0))
    return LiveMeasurement(peak, base, change, base + int(change.sum()) - after)


def _allocator_events(profiler: Any) -> I8:
    """(e,) bytes of each allocation and free inside the marked step, in order."""
    events = profiler.profiler.kineto_results.events()
    marks = [e for e in events if e.name() == _MARK]
    if len(marks) != 1:
        raise CostmodelError(
            "torch's profiler recorded nothing; this build has no Kineto, so live bytes cannot be measured"
        )
    start, end = marks[0].start_ns(), marks[0].end_ns()
    inside = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]" and start <= e.start_ns() <= end]
    inside.sort(key=lambda event: event[0])  # stable: events of one nanosecond keep their order
    return np.array([size for _, size in inside], np.int64)


def held_bytes(step: Step) -> int:
    """Bytes of every storage that `step` holds between runs, each counted once."""
    sizes = {s.data_ptr(): s.nbytes() for t in _held(step) for s in (t.untyped_storage(),)}
    return sum(sizes.values())


def _held(step: Step) -> Iterator[Tensor]:
    seen: set[int] = set()
    for module in step.model.modules():
        yield from _tensors(vars(module), seen)
    for parameter in step.model.parameters():
        if parameter.grad is not None:
            yield parameter.grad
    yield from _tensors((step.args, step.kwargs, step.constants), seen)
    if step.optimizer is not None:
        for state in step.optimizer.state.values():
            yield from _tensors(dict(state), seen)


def _tensors(value: Any, seen: set[int], depth: int = 0) -> Iterator[Tensor]:
    """Tensors in nested containers and in plain objects such as caches; submodules are walked by the caller."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (dict, list, tuple, set)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item, seen, depth + 1)
    elif (
        hasattr(value, "__dict__") and not isinstance(value, (nn.Module, type)) and depth < 8 and id(value) not in seen
    ):
        seen.add(id(value))
        yield from _tensors(vars(value), seen, depth + 1)


# Kineto prints a line at every start and stop; it reads this when it is first used.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
