from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def check(
    budget: Annotated[Path, typer.Option("--budget", help="Limits by model and device.", metavar="budget.toml")],
    format: Annotated[str, typer.Option("--format", help="text, or github for annotations.")] = "text",
) -> None:
    """Test estimates against limits, on their upper bounds: exit 0 if all hold, 1 if one is over.

    2 means that the budget cannot be used, or that a limit cannot be tested. Nothing is measured: the verdict is the
    same on every machine.
    """
    from ..budget import check as rows_of
    from ..budget import exit_status, load_budget
    from ..errors import UnknownName
    from ..estimate import estimate
    from ..report import render
    from ..report.text import checks_table
    from . import _options as o
    from ._console import console

    if format not in ("text", "github"):
        raise UnknownName("format", format, ("text", "github"))
    limits = load_budget(budget)
    estimates = []
    for entry in limits.budget:
        graph = o.graph_of(
            entry.model,
            mode=entry.mode,
            method=entry.method,
            batch=entry.batch,
            input_size=entry.input_size,
            seq=entry.seq,
            dtype=entry.dtype,
            optimizer=entry.optimizer,
        )
        target = o.device_of(entry.device, None)
        estimates.append(estimate(graph, target, runtime=entry.runtime, threads=entry.threads))
    rows = rows_of(limits, estimates)
    if format == "github":
        print(render(rows, "github"))
    else:
        console().print(checks_table(rows))
    raise typer.Exit(exit_status(rows))
