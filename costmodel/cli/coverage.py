from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import _options as o


def coverage(
    library: Annotated[
        list[str] | None, typer.Option("--library", "-l", help="timm, torchvision or transformers; all if left out.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Every architecture, not one a family: hours.")] = False,
    match: Annotated[
        str, typer.Option("--match", help="Only models whose name fits this pattern, such as *Whisper*.")
    ] = "*",
    again: Annotated[bool, typer.Option("--again", help="Try what failed before once more.")] = False,
    report_only: Annotated[bool, typer.Option("--report-only", help="Write the page from what there is.")] = False,
    results: Annotated[
        Path,
        typer.Option("--results", help="Where results are kept; a run that was stopped goes on there.", metavar="FILE"),
    ] = Path(".cache/coverage.jsonl"),
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE")] = Path("reports/coverage.md"),
    device: o.DeviceName = "raspberry-pi-4b",
) -> None:
    """Trace and price what timm, torchvision and transformers have, and write what cannot be and why.

    Each model is built without weights, traced on fake tensors for inference and for a training step, and priced, in
    a process of its own with a time and a memory limit.
    """
    from fnmatch import fnmatch
    from importlib.metadata import version

    from ..errors import UnknownName
    from ..graph import write_atomic
    from ..measure.coverage import LIBRARIES, cases, load_results, run
    from ..measure.coverage_table import TIME_BAR, page
    from ._progress import bar

    libraries = library or list(LIBRARIES)
    for name in libraries:
        if name not in LIBRARIES:
            raise UnknownName("library", name, LIBRARIES)
    if not report_only:
        wanted = [c for name in libraries for c in cases(name, every=every) if fnmatch(c.model, match)]
        wanted.sort(key=lambda case: case.mode)  # inference of all of them first: a stopped run has seen every model
        with bar("coverage") as progress:
            for done, result in enumerate(run(wanted, results, device=device, again=again), 1):
                progress(done, len(wanted), result.model)
    found = list(load_results(results).values())
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", *LIBRARIES))
    written = write_atomic(output, page(found, producer=versions, device=device, command="costmodel coverage").encode())
    traced = [r for r in found if r.traced]
    bad = [r for r in found if r.failure == "ours" or r.worst > TIME_BAR]
    print(f"{written}: {len(traced)} of {len(found)} traced, {len(bad)} with a gap of this tool")
    if bad:
        raise typer.Exit(1)
