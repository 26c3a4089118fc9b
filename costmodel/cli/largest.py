from __future__ import annotations

from typing import Annotated

import typer

from . import _options as o


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
    answer fits by the upper end of its interval, and the next size does not.
    """
    from ..budget import quantity
    from ..errors import UnknownName
    from ..estimate import Estimate, estimate
    from ..footprint import largest_that_fits

    if vary not in ("batch", "seq"):
        raise UnknownName("size to vary", vary, ("batch", "seq"))
    if o.is_trace(model):
        from ..errors import CostmodelError

        raise CostmodelError("a saved trace has one size; give the model that it was traced from")
    target = o.device_of(device, profile)

    def priced(size: int) -> Estimate:
        graph = o.graph_of(
            model,
            mode=mode,
            method=method,
            batch=size if vary == "batch" else batch,
            input_size=input_size,
            seq=size if vary == "seq" else seq,
            dtype=dtype,
            optimizer=optimizer,
        )
        return estimate(graph, target, runtime=runtime, threads=threads)

    engine = target.runtime[runtime or target.default_runtime].engine
    room = target.usable_bytes(engine) if within is None else quantity(within, "bytes")

    def peak(size: int) -> int:
        memory = priced(size).memory
        return int((memory.peak_reserved if engine == "gpu" else memory.peak_rss).high)

    found = largest_that_fits(peak, room, (1, 2) if vary == "batch" else (32, 64))
    if json:
        from dataclasses import asdict
        from json import dumps

        print(dumps({"schema": 1, "model": model, "device": target.name, "vary": vary, "capacity_bytes": room}
                    | asdict(found)))  # fmt: skip
        return
    from rich.table import Table

    from ..units import count, percent, size
    from ._console import console

    what = "reserved" if engine == "gpu" else "resident"
    answer = f"{vary} {count(found.size)}" if found.size else f"not even {vary} 1"
    why = {"memory": "", "model": "; the model takes no larger one", "limit": "; no larger one was tried"}
    console().print(f"{answer} of {model} fits in {size(room)} on {target.title}{why[found.bound_by]}.")
    table = Table(vary, f"peak {what}, upper end", "fits", box=None, pad_edge=False)
    for k, bytes_ in found.traced.items():
        table.add_row(count(k), size(bytes_), "yes" if bytes_ <= room else "no")
    console().print(table)
    console().print(
        f"The line through the first two, {size(found.fixed_bytes)} and {size(found.bytes_each)} a {vary}, "
        f"was off by {percent(abs(found.error), 1)} at the third."
    )
