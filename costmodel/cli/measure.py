from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import _options as o


def measure(
    model: Annotated[
        str | None,
        typer.Argument(metavar="[MODEL]", help="As in `costmodel estimate`; or --suite host.", show_default=False),
    ] = None,
    mode: o.Mode = "infer",
    method: o.Method = None,
    batch: o.Batch = 1,
    input_size: o.InputSize = None,
    seq: o.Seq = None,
    dtype: o.Dtype = "float32",
    threads: o.Threads = 1,
    optimizer: o.Optimizer = "sgd",
    layout: Annotated[str, typer.Option("--layout", help="contiguous or channels_last.")] = "contiguous",
    allocator: Annotated[
        str | None,
        typer.Option(
            "--allocator",
            help="default (glibc's own) or pinned (keeps what is freed).",
            show_default="default; pinned with --suite",
        ),
    ] = None,
    processes: Annotated[int, typer.Option("--processes", min=1, help="Fresh processes; their spread is noise.")] = 2,
    seconds: Annotated[float, typer.Option("--seconds", min=0.05, help="Of timing in each process.")] = 1.0,
    suite: Annotated[str | None, typer.Option("--suite", help="host: the jobs of --part, into --into.")] = None,
    part: Annotated[
        str, typer.Option("--part", "--half", help="Of the suite, such as frozen or development,variants.")
    ] = "all",
    into: Annotated[
        Path | None, typer.Option("--into", help="Where raw repeats are kept; what is there counts.", metavar="FILE")
    ] = None,
    ops: Annotated[bool, typer.Option("--ops", help="With --suite: time each op of each step instead.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Add the run to this CSV.", metavar="FILE")
    ] = None,
    json: o.Json = False,
) -> None:
    """Run one step here, in fresh processes, and say how long it takes and what its tensors hold at the peak.

    With --suite host, run every job of a part of that suite until each has --processes processes in the file --into:
    stop it and run it again as you like. `costmodel validate --suite host --into FILE` scores what is there.
    """
    from .. import units
    from ..errors import CostmodelError
    from ._progress import bar

    if (model is None) == (suite is None):
        raise CostmodelError("say what to measure: a MODEL, or --suite host with --part and --into")
    if suite is not None:
        _suite(suite, part, threads, dtype, allocator or "pinned", processes, seconds, into, ops)
        return
    from ..measure.job import Job
    from ..measure.suite import measure_job

    assert model is not None
    if o.is_trace(model):
        raise typer.BadParameter("a saved trace cannot be run; give the model that it is of")
    job = Job(model, mode, method, batch, input_size, seq, dtype, threads, optimizer, layout, allocator or "default")
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


def _suite(
    suite: str,
    part: str,
    threads: int,
    dtype: str,
    allocator: str,
    processes: int,
    seconds: float,
    into: Path | None,
    ops: bool,
) -> None:
    from ..errors import CostmodelError, UnknownName
    from ..measure.host_suite import host_groups, host_parts, repeats_file
    from ..measure.op_times import measure_op_times
    from ..measure.suite import measure_groups
    from ._progress import bar

    if suite != "host":
        raise UnknownName("suite to measure alone", suite, ("host",), "(the others measure within `validate`)")
    if into is None:
        raise CostmodelError("--suite needs --into: the file (or folder, a file a part) that raw repeats are kept in")
    for one in host_parts(part):
        groups = host_groups(one, threads, dtype, allocator)
        with bar(f"measure {one}") as progress:
            if ops:
                skipped = measure_op_times([job for group in groups for job in group], into, progress=progress)
            else:
                file = repeats_file(into, one)
                _, skipped = measure_groups(groups, processes=processes, seconds=seconds, into=file, progress=progress)
        for name, why in skipped.items():
            print(f"skipped {name}: {why}")
        print(f"{len(groups) - len(skipped)} jobs of {one} are in {into}")
