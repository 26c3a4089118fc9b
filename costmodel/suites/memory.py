"""Live and resident peaks of fifty steps on this machine."""

from __future__ import annotations

from ..device import Device
from ..validate import Validation
from . import Options, Progress


def run(device: Device, options: Options, progress: Progress) -> Validation:
    """Two cases a job."""
    from ..measure.memory_suite import memory_suite

    return memory_suite(device, runtime=options.runtime, progress=progress)
