from __future__ import annotations

from . import _options as o


def estimate(
    model: o.ModelName,
    device: o.DeviceName = "host",
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
    strict: o.Strict = False,
    json: o.Json = False,
) -> None:
    """Predict latency, peak memory, FLOPs, bytes and energy of one step on a device.

    Each predicted figure comes as low - point - high. What has no formula, no source or only a guessed number is
    listed by name.
    """
    from ..estimate import estimate as price

    target = o.device_of(device, profile)
    graph = o.graph_of(
        model,
        mode=mode,
        method=method,
        batch=batch,
        input_size=input_size,
        seq=seq,
        dtype=dtype,
        optimizer=optimizer,
    )
    result = price(graph, target, runtime=runtime, threads=threads, strict=strict)
    if json:
        from json import dumps

        print(dumps(result.as_dict()))
        return
    from ..report.text import estimate_table
    from ._console import console

    console().print(estimate_table(result))
