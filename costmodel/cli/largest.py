from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from . import _options as o

if TYPE_CHECKING:
    from ..footprint import Footprint


def largest(
    model: o.ModelName,
    device: o.DeviceName = "host",
    vary: Annotated[str, typer.Option("--vary", help="batch or seq.")] = "batch",
    within: Annotated[
        str | None, typer.Option("--within", help="Memory, such as 512MiB; the device's usable memory otherwise.")
    ] = None,
    mode: o.Mode = "infer",
    method: o.Method = None,
    batch: o.Batch = 1,
    input_size: o.InputSize = None,
    seq: o.Seq = None,
    dtype: o.Dtype = "float32",
    threads: o.Threads = 1,
    optimizer: o.Optimizer = "sgd",
    runtime: o.RuntimeName = None,
    profile: o.Profile = None,
    json: o.Json = False,
) -> None:
    """Find the largest batch or the longest sequence that fits a device's memory.

    Two sizes are traced, a line through their peaks says which size fills the memory, and a third trace checks it; the
    answer fits by the upper end of its interval, and the next size does not. Each trace is told on stderr.
    """
    from dataclasses import asdict, replace

    from ..budget import quantity
    from ..errors import UnknownName
    from ..largest import largest_that_fits
    from ..units import count, percent, size
    from ._progress import telling

    if vary not in ("batch", "seq"):
        raise UnknownName("size to vary", vary, ("batch", "seq"))
    if o.is_trace(model):
        from ..errors import CostmodelError

        raise CostmodelError("a saved trace has one size; give the model that it was traced from")
    target = o.device_of(device, profile)
    name = runtime or target.default_runtime
    if name not in target.runtime:
        raise UnknownName(f"runtime of {target.name}", name, target.runtime)
    constants = target.runtime[name]
    room = target.usable_bytes(constants.engine) if within is None else quantity(within, "bytes")

    def traced(k: int) -> Footprint:
        job = Job(model, mode, method, batch, input_size, seq, dtype, optimizer=optimizer)
        at = replace(job, batch=k) if vary == "batch" else replace(job, seq=k)
        # nothing is computed, so weights and inputs need no memory; methods that calibrate do compute
        return footprint(lower(at.trace("cpu" if method else "meta"), threads, target.lanes), constants)

    what = "reserved" if constants.engine == "gpu" else "resident"
    smallest: dict[int, Footprint] = {}
    with telling(f"looking for the largest {vary} of {model} in {size(room)}") as tell:
        # imports of seconds, so after the first word
        from ..estimate import memory_ranges
        from ..footprint import footprint
        from ..lower import lower
        from ..measure.job import Job

        def peak(k: int) -> int:
            tell(f"tracing {vary} {count(k)}")
            found = traced(k)
            if k == 1:
                smallest[k] = found
            memory = memory_ranges(found, constants)
            high = int((memory.peak_reserved if constants.engine == "gpu" else memory.peak_rss).high)
            tell(f"{vary} {count(k)}: up to {size(high)} {what}, {'fits' if high <= room else 'does not fit'}")
            return high

        found = largest_that_fits(peak, room, (1, 8) if vary == "batch" else (32, 128))
    if json:
        from json import dumps

        print(dumps({"schema": 1, "model": model, "device": target.name, "vary": vary, "capacity_bytes": room}
                    | asdict(found)))  # fmt: skip
        return
    from rich.table import Table

    from ._console import console

    if not found.size:
        base = "" if constants.engine == "gpu" else _before_tensors(smallest[1])
        console().print(
            f"Nothing fits: {vary} 1 of {model} takes up to {size(found.traced[1])} {what} on {target.title}{base}, "
            f"and there are {size(room)}."
        )
        return
    why = {"memory": "", "model": "; the model takes no larger one", "limit": "; no larger one was tried"}
    console().print(
        f"{vary} {count(found.size)} of {model} fits in {size(room)} on {target.title}{why[found.bound_by]}."
    )
    table = Table(vary, f"peak {what}, upper end", "fits", box=None, pad_edge=False)
    for k, bytes_ in found.traced.items():
        table.add_row(count(k), size(bytes_), "yes" if bytes_ <= room else "no")
    console().print(table)
    console().print(
        f"The line through the first two, {size(found.fixed_bytes)} and {size(found.bytes_each)} a {vary}, "
        f"was off by {percent(abs(found.error), 1)} at the third."
    )


def _before_tensors(found: Footprint) -> str:
    """What of a peak no size can change."""
    from ..units import size

    return f" (of which {size(found.resident['runtime'])} before it holds a tensor)"
