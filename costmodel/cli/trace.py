from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import _options as o


def trace(
    model: o.ModelName,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write it (.json.gz).", metavar="FILE")],
    mode: o.Mode = "infer",
    method: o.Method = None,
    batch: o.Batch = 1,
    input_size: o.InputSize = None,
    seq: o.Seq = None,
    dtype: o.Dtype = "float32",
    optimizer: o.Optimizer = "sgd",
) -> None:
    """Capture one step as an op graph and save it; a saved trace is priced anywhere, without torch."""
    from .. import units

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
    written = graph.save(output)
    print(f"{written}: {len(graph):,} ops, {len(graph.storage_bytes):,} storages, {units.size(written.stat().st_size)}")
