from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast, get_args

import typer

from . import _options as o


def pareto(
    family: Annotated[
        str | None, typer.Option("--family", help="irb, vit or ssm: train or quantize for real.", show_default=False)
    ] = None,
    points: Annotated[
        Path | None,
        typer.Option("--points", help="Your own table: a CSV with name, accuracy, model, method.", metavar="table.csv"),
    ] = None,
    device: Annotated[
        list[str] | None,
        typer.Option("--device", "-d", help="As often as you like.", show_default="host raspberry-pi-4b"),
    ] = None,
    axis: Annotated[
        str, typer.Option("--axis", help="Cost axis: latency_s, peak_rss_bytes, peak_live_bytes, energy_j, flops.")
    ] = "latency_s",
    limit: Annotated[
        str | None, typer.Option("--budget", help="Upper limits, such as latency=50ms,memory=256MiB.")
    ] = None,
    grid: Annotated[
        str, typer.Option("--grid", help="demo (a minute), quick (minutes), wide (an hour) or full (hours).")
    ] = "quick",
    threads: o.Threads = 1,
    processes: Annotated[
        int | None,
        typer.Option("--processes", min=1, help="That train or quantize at a time.", show_default="one a core"),
    ] = None,
    measure: Annotated[
        str | None,
        typer.Option("--measure", help="Run each arm here too; what this machine is called.", metavar="DEVICE"),
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep results, traces and runs in the checkout's traces/, for reports.")
    ] = False,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for HTML and PNG.")] = Path("reports"),
) -> None:
    """Accuracy, measured, against cost, predicted on each device: which choice is not beaten, and by how much."""
    from ..budget import limits
    from ..device import load_device
    from ..errors import CostmodelError, UnknownName
    from ..pareto import pareto as fronts_of
    from ..report import render
    from ..report.text import front_table
    from ..tasks.points import family_points, table_points
    from ..tasks.result import Budget
    from ._console import console
    from ._progress import bar

    if (family is None) == (points is None):
        raise CostmodelError("say which points: --family irb|vit|ssm, or --points table.csv")
    if grid not in get_args(Budget):
        raise UnknownName("grid", grid, get_args(Budget))
    devices = [load_device(name) for name in device or ("host", "raspberry-pi-4b")]
    budget = limits(limit) if limit else None
    with bar("pareto") as progress:
        if family is not None:
            found, _ = family_points(
                family, devices, budget=cast(Budget, grid), threads=threads, keep=keep, measure_on=measure,
                processes=processes, progress=progress,
            )  # fmt: skip
        else:
            found = table_points(cast(Path, points), devices, threads=threads)
    fronts = fronts_of(found, axis=axis, budget=budget)
    if not fronts:
        raise CostmodelError(
            f"no point has {axis}: the profiles have no sourced constants for it; choose another --axis"
        )
    console().print(front_table(fronts))
    name = family or cast(Path, points).stem
    page = render(list(fronts.values()), "html", output / f"pareto-{name}.html", title=f"costmodel: {name}")
    pictures = [render(f, "png", output / f"pareto-{name}-{f.device}.png") for f in fronts.values()]
    print("wrote", ", ".join(str(p) for p in (page, *pictures)))
