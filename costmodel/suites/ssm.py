"""Mamba and Mamba-2, decode and prefill in every precision at three sizes, DRAM's state read meanwhile; ten minutes."""

from __future__ import annotations

from ..device import Device
from ..validate import Validation
from . import Options, Progress


def run(device: Device, options: Options, progress: Progress) -> Validation:
    """Latency of each step. ``--part mamba``, ``mamba2`` or one size, such as ``mamba.0``, runs only that."""
    from dataclasses import replace

    from ..errors import UnknownName
    from ..measure.ssm_suite import SIZES, ssm_groups, ssm_suite

    found = {f"{base}.{i}": group for base in SIZES for i, group in enumerate(ssm_groups(base))}
    wanted = [g for name, g in found.items() if options.part in ("all", name, name.partition(".")[0])]
    if not wanted:
        raise UnknownName("part", options.part, ("all", *SIZES, *found))
    return ssm_suite(
        device,
        groups=[[replace(job, allocator=options.allocator, threads=options.threads) for job in g] for g in wanted],
        runtime=options.runtime,
        processes=options.processes or 2,
        seconds=options.seconds or 1.0,
        into=options.into,
        progress=progress,
    )
