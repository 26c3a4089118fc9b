"""Real runs on this machine: seconds and bytes of the same `Step` that is traced.

`measure` runs one step here and now; `suite.measure_job` does it in fresh processes, which is what suites count.
"""

from __future__ import annotations

import datetime
import platform
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from ..models.step import Loss, make_step
from ..runs import Run
from .latency import allocator_here, time_interleaved
from .memory import measure_live_peak

__all__ = ["machine", "measure"]


def machine() -> dict[str, str]:
    """What a run rests on: versions, processor, day."""
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "date": datetime.date.today().isoformat(),
    }


def measure(
    model: nn.Module,
    inputs: Any,
    *,
    mode: str = "infer",
    optimizer: str | Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer] = "sgd",
    loss: Loss | None = None,
    seq: int | None = None,
    threads: int = 1,
    seconds: float = 1.0,
    memory: bool = True,
    name: str | None = None,
    method: str | None = None,
) -> Run:
    """Run one step in this process, again and again for `seconds`.

    Args:
        model, inputs, mode, optimizer, loss, seq: as in `capture`; a ``train`` step updates the model's parameters.
        threads: threads that torch may use.
        seconds: of timing, after warm-up.
        memory: also measure the peak of live bytes (one more step, under torch's profiler).
        name, method: what to call the model and the method in reports.

    Returns:
        The run: a low quantile of the undisturbed repeats, the raw repeats, and the noise among them.
    """
    step = make_step(model, inputs, mode=mode, optimizer=optimizer, loss=loss, seq=seq)
    (samples,) = time_interleaved([step.run], seconds=seconds, threads=threads)
    return Run(
        model=name or type(model).__name__,
        mode=mode,
        method=method,
        batch=step.batch,
        dtype=str(next((p.dtype for p in model.parameters()), torch.float32)).removeprefix("torch."),
        device="host",
        runtime="torch-eager",
        threads=threads,
        latency_s=samples.latency_s,
        cpu_s=samples.processor_s,
        noise=samples.spread,
        peak_live_bytes=measure_live_peak(step) if memory else None,
        repeats=samples.wall_s,
        meta={**machine(), "allocator": allocator_here()},
    )
