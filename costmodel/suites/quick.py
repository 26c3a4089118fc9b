"""Eight models and three methods on this machine, inference and training, in minutes."""

from __future__ import annotations

from ..device import Device
from ..validate import Validation
from . import Options, Progress


def run(device: Device, options: Options, progress: Progress) -> Validation:
    """Latency and peak live bytes of each job."""
    from dataclasses import replace

    from ..measure.suite import QUICK, run_suite

    return run_suite(
        [[replace(job, allocator=options.allocator) for job in group] for group in QUICK],
        device,
        runtime=options.runtime,
        processes=options.processes or 2,
        seconds=options.seconds or 1.0,
        into=options.into,
        progress=progress,
    )
