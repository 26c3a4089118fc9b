from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..suites import suites
from . import _options as o

if TYPE_CHECKING:
    from ..validate import Validation

_NAMES = ", ".join(suites())


def validate(
    suite: Annotated[
        str | None, typer.Option("--suite", help=f"{_NAMES}. quick takes minutes.", show_default=False)
    ] = None,
    against: Annotated[
        Path | None, typer.Option("--against", help="A CSV of runs by somebody else.", metavar="runs.csv")
    ] = None,
    device: o.DeviceName = "host",
    profile: o.Profile = None,
    runtime: o.RuntimeName = None,
    fit: Annotated[int | None, typer.Option("--fit", min=0, help="Fit the device to this many of the runs.")] = None,
    part: Annotated[
        str, typer.Option("--part", "--half", help="Of the host suite, such as frozen or frozen,variants.")
    ] = "all",
    threads: o.Threads = 1,
    dtype: o.Dtype = "float32",
    processes: Annotated[int | None, typer.Option("--processes", min=1, help="Fresh processes a case.")] = None,
    allocator: Annotated[str, typer.Option("--allocator", help="pinned or default (glibc's own).")] = "pinned",
    seconds: Annotated[float | None, typer.Option("--seconds", min=0.05, help="Of timing a case and process.")] = None,
    into: Annotated[
        Path | None,
        typer.Option(
            "--into", help="Where raw repeats are kept: with --processes it is added to, else scored.", metavar="FILE"
        ),
    ] = None,
    ablation: Annotated[
        bool, typer.Option("--ablation", help="Also with each term of the model taken out (host suite).")
    ] = False,
    op_times: Annotated[
        Path | None,
        typer.Option("--op-times", help="File of `measure --suite host --ops`: errors by class.", metavar="FILE"),
    ] = None,
    write_intervals: Annotated[
        bool, typer.Option("--write-intervals", help="Keep in the profile what errors say: factor and intervals.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Also write this .html or .md, or both with any other name.")
    ] = None,
    json: o.Json = False,
) -> None:
    """Hold predictions against real runs: here (--suite), or somebody else's (--against).

    Every case comes with its interval, the spread of its measurement, and what a roofline with one fitted constant
    says.
    """
    from ..errors import CostmodelError
    from ._progress import bar

    if (suite is None) == (against is None):
        raise CostmodelError(f"say what to validate against: --suite {'|'.join(suites())}, or --against runs.csv")
    if against is not None:
        result = _against(against, device, profile, runtime, fit)
    else:
        from ..suites import Options, run

        options = Options(
            runtime, part, threads, dtype, allocator, processes, seconds, into, ablation=ablation, op_times=op_times
        )
        with bar(f"validate {suite}") as progress:
            result = run(str(suite), o.device_of(device, profile), options, progress)
    if write_intervals:
        from ..calibrate import with_intervals
        from ..host import write_host_profile

        target = with_intervals(o.device_of(device, profile), result, runtime, f"{part} part of the {suite} suite")
        print(f"intervals are in {write_host_profile(target, profile)}", file=sys.stderr)
    if output is not None:
        from ..report import render

        wanted = {".html": ["html"], ".md": ["markdown"]}.get(output.suffix, ["html", "markdown"])
        for form in wanted:
            path = output if output.suffix else output / ("validation.md" if form == "markdown" else "validation.html")
            render(result, form, path, title="Predicted against measured")
    if json:
        from json import dumps

        print(dumps(result.as_dict()))
        return
    from ..report.text import validation_table
    from ._console import console

    console().print(validation_table(result))


def _against(path: Path, device: str, profile: Path | None, runtime: str | None, fit: int | None) -> Validation:
    from ..measure.against import validate_runs
    from ._progress import bar

    with bar(f"validate {path.name}") as progress:
        return validate_runs(path, o.device_of(device, profile), runtime=runtime, fit=fit, progress=progress)
