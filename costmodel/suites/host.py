"""Many models on this machine, half of them never looked at while the model was made."""

from __future__ import annotations

from ..device import Device
from ..errors import UnknownName
from ..validate import Validation
from . import Options, Progress


def run(device: Device, options: Options, progress: Progress) -> Validation:
    """Latency of each job."""
    from ..measure.host_suite import host_groups
    from ..measure.suite import run_suite

    if options.part not in ("development", "frozen", "all"):
        raise UnknownName("part of the host suite", options.part, ("development", "frozen", "all"))
    return run_suite(
        host_groups(options.part, options.threads, options.dtype),
        device,
        runtime=options.runtime,
        processes=options.processes or 2,
        seconds=options.seconds or 1.0,
        memory=False,
        allocator=options.allocator,
        progress=progress,
    )
