from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write into.")] = Path("reports/demo"),
) -> None:
    """Capture, estimate, measure, validate, Pareto: the whole loop on small cases; ends with what to open."""
    from rich.rule import Rule

    from ..calibrate import host_device
    from ..device import load_device
    from ..estimate import estimate as price
    from ..measure.job import Job
    from ..measure.suite import run_suite
    from ..pareto import pareto as fronts_of
    from ..report import render, report_of
    from ..report.text import estimate_table, front_table, validation_table
    from ..tasks.points import family_points
    from ._console import console
    from ._progress import bar, working

    out = console()
    pi = load_device("raspberry-pi-4b")
    with working("this machine: peaks and bandwidths"):
        host = host_device()

    job = Job("mobilenet-v3-small,num_classes=10", "train", batch=8)
    out.print(Rule("1  capture: one training step, traced without computing anything"))
    with working(f"tracing {job.name}"):
        graph = job.trace()
    trace = graph.save(output / "mobilenet-v3-small-train.json.gz")
    out.print(f"{graph!r} → {trace}\n")

    out.print(Rule("2  estimate: what the step costs on a Raspberry Pi 4, four threads"))
    on_pi = price(graph, pi, threads=4)
    out.print(estimate_table(on_pi, top=6))

    out.print(Rule("3  measure and validate: the same step, and MobileTL's, run here"))
    groups = (
        (
            Job("mobilenet-v3-small,num_classes=10", "infer"),
            job,
            Job("mobilenet-v3-small,num_classes=10", "train", "mobiletl:blocks=3", batch=8),
        ),
        (Job("transformers:mamba2-tiny", "decode", seq=32), Job("transformers:mamba2-tiny", "prefill", seq=32)),
    )
    with bar("validate") as progress:
        validation = run_suite(groups, host, processes=1, seconds=0.7, progress=progress)
    out.print(validation_table(validation))

    out.print(Rule("4  Pareto: fine-tune for real, set accuracy against predicted cost"))
    with bar("pareto") as progress:
        points, results = family_points("irb", [host, pi], budget="demo", progress=progress)
    out.print(f"data: {results[0].data}")
    fronts = fronts_of(points)
    out.print(front_table(fronts))

    page = render(
        report_of([on_pi, price(graph, host), validation, *fronts.values()]),
        "html",
        output / "index.html",
        title="costmodel demo",
    )
    pictures = [render(front, "png", output / f"pareto-{front.device}.png") for front in fronts.values()]
    timeline = render(on_pi, "perfetto", output / "step.perfetto.json")
    out.print(Rule("open these"))
    for path, what in (
        (page, "everything, interactive"),
        *((p, "the front, for a paper") for p in pictures),
        (timeline, "the predicted step as a timeline, for ui.perfetto.dev"),
        (trace, "the trace: costmodel estimate it on any device, without torch"),
    ):
        out.print(f"  {path}  [dim]{what}[/dim]")
