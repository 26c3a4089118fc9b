from __future__ import annotations

from typing import Annotated

import typer

from . import _options as o

_Side = Annotated[str, typer.Argument(help="A model, a trace, or git:REV:path of a committed one.", show_default=False)]


def compare(
    a: _Side,
    b: _Side,
    method_a: Annotated[str | None, typer.Option("--method-a", help="Method of A.")] = None,
    method_b: Annotated[str | None, typer.Option("--method-b", help="Method of B.")] = None,
    device: o.DeviceName = "host",
    profile: o.Profile = None,
    runtime: o.RuntimeName = None,
    mode: o.Mode = "infer",
    batch: o.Batch = 1,
    input_size: o.InputSize = None,
    seq: o.Seq = None,
    dtype: o.Dtype = "float32",
    threads: o.Threads = 1,
    optimizer: o.Optimizer = "sgd",
    allocator: o.Allocator = "default",
    json: o.Json = False,
) -> None:
    """Set two models, methods, traces or commits side by side: which ops got dearer, where the peak of memory moved.

    git:REV:path is a trace as it was committed; git:REV alone means the other side's path in that commit. Both are
    priced by what is installed now.
    """
    from ..compare import compare as compared
    from ..estimate import estimate
    from ..report.text import comparison_table
    from ._committed import MARK, committed_trace, sides
    from ._console import console

    target = o.device_of(device, profile)
    priced = [
        estimate(
            committed_trace(model)
            if model.startswith(MARK)
            else o.graph_of(
                model,
                mode=mode,
                method=method,
                batch=batch,
                input_size=input_size,
                seq=seq,
                dtype=dtype,
                optimizer=optimizer,
            ),
            target,
            runtime=runtime,
            threads=threads,
            allocator=allocator,
        )
        for model, method in zip(sides(a, b), (method_a, method_b), strict=True)
    ]
    result = compared(*priced)
    if json:
        from json import dumps

        print(dumps(result.as_dict()))
        return
    console().print(comparison_table(result))
