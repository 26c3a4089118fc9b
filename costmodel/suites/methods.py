"""LBP-WHT for every order and MobileTL for every k: step times and speed-ups, some twenty minutes."""

from __future__ import annotations

from ..device import Device
from ..validate import Validation
from . import Options, Progress


def run(device: Device, options: Options, progress: Progress) -> Validation:
    """Latency and peak live bytes of each step, and how much faster it is than the step that it changes.

    ``--part lbp_wht`` or ``--part mobiletl`` runs one method only; ``--part counts`` times nothing and compares FLOPs,
    saved bytes and peaks with what a real step of each net was seen to do.
    """
    from dataclasses import replace

    from ..errors import UnknownName
    from ..measure.methods_suite import counted_jobs, counts, method_groups, methods_suite

    if options.part == "counts":
        return counts(counted_jobs(), device, options.runtime, progress)
    groups = [[replace(job, allocator=options.allocator) for job in group] for group in method_groups()]
    if options.part != "all":
        groups = [group for group in groups if (group[-1].method or "").startswith(options.part)]
        if not groups:
            raise UnknownName("part", options.part, ("lbp_wht", "mobiletl", "counts"))
    return methods_suite(
        device,
        groups=groups,
        runtime=options.runtime,
        processes=options.processes or 2,
        seconds=options.seconds or 1.0,
        into=options.into,
        progress=progress,
    )
