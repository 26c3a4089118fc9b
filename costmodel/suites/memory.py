"""Live and resident peaks of fifty steps on this machine."""

from __future__ import annotations

from ..device import Device
from ..validate import Validation
from . import Options, Progress


def run(device: Device, options: Options, progress: Progress) -> Validation:
    """Live bytes of a step in steady state and of the first, and resident bytes of a fresh process, of each job."""
    from ..measure.memory_suite import memory_suite

    return memory_suite(
        device, runtime=options.runtime, into=options.into, processes=options.processes or 1, progress=progress
    )
