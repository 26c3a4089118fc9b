from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import _options as o


def calibrate(
    quick: Annotated[bool, typer.Option("--quick", help="A minute instead of several; fewer points a class.")] = False,
    threads: o.Threads = 1,
    dtype: o.Dtype = "float32",
    force: Annotated[bool, typer.Option("--force", help="Measure even if the machine is busy.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget what an interrupted calibration measured.")] = False,
    refit: Annotated[
        bool, typer.Option("--refit", help="Fit the ops of the last calibration again, after a formula changed.")
    ] = False,
    device: Annotated[
        str | None, typer.Option("--device", "-d", help="With --from: the device that the runs are of.")
    ] = None,
    runs: Annotated[
        Path | None, typer.Option("--from", help="Fit to whole-model runs in a CSV instead.", metavar="runs.csv")
    ] = None,
    runtime: o.RuntimeName = None,
    fit: Annotated[int | None, typer.Option("--fit", min=0, help="Fit to this many runs, chosen for you.")] = None,
    measured_on: Annotated[
        str | None,
        typer.Option("--measured-on", help="The runs are of this other device (such as host): move its class scales."),
    ] = None,
) -> None:
    """Fit a profile: of this machine by measuring isolated ops, or of another device from a few whole-model runs.

    What is measured is kept as it comes: run the command again and it goes on where it was stopped.
    """
    from .. import units
    from ._progress import bar

    if runs is not None:
        from ..errors import CostmodelError
        from ..measure.against import calibrate_from

        if device is None:
            raise CostmodelError("--from needs --device: which device were the runs made on?")
        with bar("calibrate") as progress:
            print(calibrate_from(runs, device, runtime=runtime, fit=fit, measured_on=measured_on, progress=progress))
        return
    from ..calibrate import calibrate as calibrate_host

    with bar("calibrate") as progress:
        found = calibrate_host(
            threads=threads, dtype=dtype, quick=quick, force=force, fresh=fresh, again=refit, progress=progress
        )
    f = found.fit
    print(f"{found.path}: {f.points:,} isolated ops in {len(f.kinds)} classes, {f.threads} thread(s), {f.dtype}")
    error, noise = units.percent(f.error or 0.0), units.percent(f.noise or 0.0)
    print(f"  held-out median error of an op {error}, spread of its repeats {noise}")
    for name, predicted, measured in found.nets:
        print(f"  {name}: predicted {units.seconds(predicted)}, measured {units.seconds(measured)}")
