from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import _options as o


def measure(
    model: o.ModelName,
    mode: o.Mode = "infer",
    method: o.Method = None,
    batch: o.Batch = 1,
    input_size: o.InputSize = None,
    seq: o.Seq = None,
    dtype: o.Dtype = "float32",
    threads: o.Threads = 1,
    optimizer: o.Optimizer = "sgd",
    processes: Annotated[int, typer.Option("--processes", min=1, help="Fresh processes; their spread is noise.")] = 2,
    seconds: Annotated[float, typer.Option("--seconds", min=0.05, help="Of timing in each process.")] = 1.0,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Add the run to this CSV.", metavar="FILE")
    ] = None,
    json: o.Json = False,
) -> None:
    """Run one step here, in fresh processes, and say how long it takes and what its tensors hold at the peak."""
    from .. import units
    from ..measure.job import Job
    from ..measure.suite import measure_job
    from ._progress import bar

    if o.is_trace(model):
        raise typer.BadParameter("a saved trace cannot be run; give the model that it is of")
    job = Job(model, mode, method, batch, input_size, seq, dtype, threads, optimizer)
    with bar("measure") as progress:
        run = measure_job(job, processes=processes, seconds=seconds, progress=progress)
    if output is not None:
        from ..runs import append_runs

        append_runs(output, [run])
    if json:
        from dataclasses import asdict
        from json import dumps

        print(dumps({"schema": 1, **asdict(run)}))
        return
    spread = "one process" if run.noise is None else f"{processes} processes within {units.percent(run.noise)}"
    print(
        f"{job.name}: {units.seconds(run.latency_s)} a step (processor {units.seconds(run.cpu_s or 0.0)}), "
        f"{spread}, "
        f"peak of live tensors {units.size(run.peak_live_bytes or 0)}"
    )
