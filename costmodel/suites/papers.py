"""Published tables of the methods' papers against what is counted here."""

from __future__ import annotations

from ..device import Device
from ..validate import Validation
from . import Options, Progress


def run(device: Device, options: Options, progress: Progress) -> Validation:
    """The papers' devices are not this one: `device` and `options` are not used."""
    from ..tasks.papers import papers_suite

    del device, options, progress
    return papers_suite()
