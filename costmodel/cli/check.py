from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ..budget import Entry
    from ..estimate import Estimate
    from ..job import Job


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
    from ..report import render
    from ..report.text import checks_table
    from ._console import console

    if format not in ("text", "github"):
        raise UnknownName("format", format, ("text", "github"))
    limits = load_budget(budget)
    rows = rows_of(limits, [_priced(entry) for entry in limits.budget])
    if format == "github":
        print(render(rows, "github"))
    else:
        console().print(checks_table(rows))
    raise typer.Exit(exit_status(rows))


def _priced(entry: Entry) -> Estimate | Job:
    """The estimate that an entry asks for, or its job."""
    from functools import partial

    from ..estimate import estimate
    from ..job import request_of, training_job
    from . import _options as o

    graph_of = partial(
        o.graph_of, entry.model, method=entry.method, batch=entry.batch, input_size=entry.input_size,
        dtype=entry.dtype, optimizer=entry.optimizer,
    )  # fmt: skip
    target = o.device_of(entry.device, None)
    priced = partial(estimate, device=target, runtime=entry.runtime, threads=entry.threads)
    if entry.prompt is not None and entry.generate is not None:
        return request_of(
            lambda mode, tokens: graph_of(mode=mode, seq=tokens),
            priced, prompt=entry.prompt, generate=entry.generate, start_s=entry.start_seconds or 0.0,
        )  # fmt: skip
    step = priced(graph_of(mode=entry.mode, seq=entry.seq))
    if entry.epochs is None or entry.samples is None:
        return step
    return training_job(
        step, epochs=entry.epochs, samples=entry.samples, workers=entry.workers, sample_s=entry.sample_seconds,
        start_s=entry.start_seconds,
    )  # fmt: skip
