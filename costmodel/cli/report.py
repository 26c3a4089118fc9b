from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

# Machines of ours, the newest first: the report is of the first that has a profile and on which arms were run.
_OURS = ("epyc-zen3-vm-2c", "epyc-zen4-vm-2c")


def report(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write into.")] = Path("reports"),
    traces: Annotated[Path, typer.Option("--traces", help="Folder of saved traces to price.")] = Path("traces"),
    runs: Annotated[Path, typer.Option("--runs", help="Folder of measured runs, a subfolder a device.")] = Path(
        "traces/runs"
    ),
    device: Annotated[
        list[str] | None, typer.Option("--device", "-d", help="Price the traces on these; as often as you like.")
    ] = None,
    family: Annotated[
        list[str] | None, typer.Option("--family", help="Fronts of these families, from results that are kept.")
    ] = None,
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="Of the whole jobs shown for training traces.")] = 3,
    samples: Annotated[int, typer.Option("--samples", min=1, help="Of an epoch of those jobs.")] = 50_000,
) -> None:
    """Write one HTML page: saved traces priced, saved runs against predictions, fronts (as pictures and tables, too).

    Nothing is measured or trained: what the page shows is in --traces, --runs and the kept task results.
    """
    from ..device import devices as known
    from ..device import load_device
    from ..errors import CostmodelError
    from ..graph import write_atomic
    from ..job import training_job
    from ..report import render, report_of
    from ..report._fronts_page import fronts_page
    from ..tasks.arms import runs_file
    from ..tasks.collect import fronts_of_results, priced_traces, validated_runs
    from ..tasks.ordering import orderings
    from ._progress import bar

    here = next((name for name in _OURS if name in known() and runs_file(name).is_file()), _OURS[-1])
    devices = [load_device(name) for name in device or ("raspberry-pi-4b", here, "jetson-orin-nano-8g")]
    with bar("report") as progress:
        progress(0, 3, "traces")
        estimates = priced_traces(traces, devices)
        jobs = [training_job(e, epochs=epochs, samples=samples) for e in estimates if e.graph.meta.mode == "train"]
        progress(1, 3, "runs")
        validation, files = validated_runs(runs)
        progress(2, 3, "fronts")
        fronts, results = fronts_of_results(family, devices)
    if not (estimates or validation or fronts):
        raise CostmodelError(f"nothing to report: no traces in {traces}, no runs in {runs}, no task results")
    whole = report_of([*jobs, *estimates, *([validation] if validation else []), *fronts, *files])
    title = "costmodel: what it costs, and how sure we are"
    page = render(whole, "html", output / "index.html", title=title)
    figures = render(whole, "json", output / "index.json", title=title)
    pictures = [
        render(f, kind, output / f"pareto-{f.points[0].family}-{f.device}-{f.axis}.{kind}")
        for f in fronts
        for kind in ("png", "svg")
    ]
    tables = []
    if fronts:
        text = fronts_page(fronts, orderings(results), devices)
        tables = [
            write_atomic(output / "fronts.md", text.encode()),
            render(fronts, "markdown", output / "fronts-tables.md"),
        ]
    print("wrote", ", ".join(str(p) for p in (page, figures, *tables)), f"and {len(pictures)} pictures beside them")
