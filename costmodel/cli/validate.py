from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import _options as o

if TYPE_CHECKING:
    from ..validate import Validation

SUITES = ("quick", "host", "memory", "papers")


def validate(
    suite: Annotated[
        str | None, typer.Option("--suite", help="quick (minutes), host, memory or papers.", show_default=False)
    ] = None,
    against: Annotated[
        Path | None, typer.Option("--against", help="A CSV of runs by somebody else.", metavar="runs.csv")
    ] = None,
    device: o.DeviceName = "host",
    profile: o.Profile = None,
    runtime: o.RuntimeName = None,
    fit: Annotated[int | None, typer.Option("--fit", min=0, help="Fit the device to this many of the runs.")] = None,
    part: Annotated[str, typer.Option("--part", help="Of the host suite: development, frozen or all.")] = "all",
    threads: o.Threads = 1,
    dtype: o.Dtype = "float32",
    processes: Annotated[int, typer.Option("--processes", min=1, help="Fresh processes a case.")] = 2,
    allocator: Annotated[str, typer.Option("--allocator", help="pinned or default (glibc's own).")] = "pinned",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Also write the HTML there.")] = None,
    json: o.Json = False,
) -> None:
    """Hold predictions against real runs: here (--suite), or somebody else's (--against).

    Every case comes with its interval, the spread of its measurement, and what a roofline with one fitted constant
    says.
    """
    from ..errors import CostmodelError, UnknownName

    if (suite is None) == (against is None):
        raise CostmodelError("say what to validate against: --suite quick|host|memory|papers, or --against runs.csv")
    if against is not None:
        result = _against(against, device, profile, runtime, fit)
    elif suite not in SUITES:
        raise UnknownName("suite", str(suite), SUITES)
    else:
        result = _suite(str(suite), device, profile, runtime, part, threads, dtype, processes, allocator)
    if output is not None:
        from ..report import render

        render(result, "html", output)
    if json:
        from json import dumps

        print(dumps(result.as_dict()))
        return
    from ..report.text import validation_table
    from ._console import console

    console().print(validation_table(result))


def _suite(
    suite: str,
    device: str,
    profile: Path | None,
    runtime: str | None,
    part: str,
    threads: int,
    dtype: str,
    processes: int,
    allocator: str,
) -> Validation:
    from ..errors import UnknownName
    from ._progress import bar

    if suite == "papers":
        from ..tasks.papers import papers_suite

        return papers_suite()
    target = o.device_of(device, profile)
    with bar(f"validate {suite}") as progress:
        if suite == "memory":
            from ..measure.memory_suite import memory_suite

            return memory_suite(target, progress=progress)
        from ..measure.host_suite import host_groups
        from ..measure.suite import QUICK, run_suite

        if part not in ("development", "frozen", "all"):
            raise UnknownName("part of the host suite", part, ("development", "frozen", "all"))
        groups = QUICK if suite == "quick" else host_groups(part, threads, dtype)
        return run_suite(
            groups,
            target,
            runtime=runtime,
            processes=processes,
            memory=suite == "quick",
            allocator=allocator,
            progress=progress,
        )


def _against(path: Path, device: str, profile: Path | None, runtime: str | None, fit: int | None) -> Validation:
    from ..measure.against import validate_runs
    from ._progress import bar

    with bar(f"validate {path.name}") as progress:
        return validate_runs(path, o.device_of(device, profile), runtime=runtime, fit=fit, progress=progress)
