"""``costmodel estimate TRACE`` in a fresh process: warm and cold numba cache, small and 64,000-op traces.

``python tests/benchmarks/bench_estimate.py``. Bar: 1.5 s for up to 3,000 ops with a warm cache.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from costmodel.graph import OpGraph

REPEATS = 5
LARGE = 64_000


def repeated(graph: OpGraph, ops: int) -> OpGraph:
    """The steps of `graph` one after another until there are `ops`: each with storages of its own."""
    n, times = len(graph), -(-ops // len(graph))
    big = OpGraph(meta=replace(graph.meta, model=f"{graph.meta.model} ×{times}"))
    for i in range(times):
        tensors, storages = len(big.tensor_storage), len(big.storage_bytes)
        big.op_inputs += [tuple(t + tensors for t in ts) for ts in graph.op_inputs]
        big.op_outputs += [tuple(t + tensors for t in ts) for ts in graph.op_outputs]
        big.tensor_storage += [s + storages for s in graph.tensor_storage]
        big.storage_birth += [b + i * n if b >= 0 else -1 for b in graph.storage_birth]
        big.storage_death += [d + i * n for d in graph.storage_death]
        for column in ("op_name", "op_phase", "op_module", "op_attrs"):
            getattr(big, column).extend(getattr(graph, column))
        for column in ("tensor_offset", "tensor_shape", "tensor_stride", "tensor_dtype"):
            getattr(big, column).extend(getattr(graph, column))
        for column in ("storage_bytes", "storage_role", "storage_name"):
            getattr(big, column).extend(getattr(graph, column))
    return big.check()


def seconds(trace: Path, environment: dict[str, str], device: str = "raspberry-pi-4b") -> float:
    """Wall seconds of one fresh process."""
    command = [sys.executable, "-m", "costmodel", "estimate", str(trace), "--device", device, "--json"]
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, **environment})
    return time.perf_counter() - start


def make_traces(folder: Path) -> dict[str, Path]:
    """A MobileNetV2 training step, and one of 64,000 ops."""
    from costmodel.capture import capture
    from costmodel.models import load_model

    loaded = load_model("timm:mobilenetv2_100,num_classes=10", mode="train", batch=8)
    graph = capture(loaded.model, loaded.inputs, mode="train", name="mobilenetv2_100")
    large = repeated(graph, LARGE)
    return {
        f"{len(graph):,} ops": graph.save(folder / "small.json.gz"),
        f"{len(large):,} ops": large.save(folder / "large.json.gz"),
    }


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        print(f"{'costmodel estimate, fresh process':36s}{'median s':>10s}{'min s':>8s}{'repeats':>9s}")
        for name, trace in make_traces(Path(folder)).items():
            seconds(trace, {})  # the cache on disk is warm after this
            warm = [seconds(trace, {}) for _ in range(REPEATS)]
            cold = [seconds(trace, {"NUMBA_CACHE_DIR": str(Path(folder) / f"cold {name}")})]
            for state, s in (("warm", warm), ("cold", cold)):
                print(f"{f'{name}, {state} cache':36s}{statistics.median(s):10.2f}{min(s):8.2f}{len(s):9d}", flush=True)


if __name__ == "__main__":
    main()
