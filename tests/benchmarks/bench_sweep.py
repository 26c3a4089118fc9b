"""Pricing with tables resolved: ``python tests/benchmarks/bench_sweep.py``.

Bars: a 1,000-op graph in 100 µs; 10,000 device variants × 1,000 ops at 2e7 op prices a second.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np

from costmodel.capture import capture
from costmodel.core.cpu import price_cpu, sweep_cpu
from costmodel.core.table import OpTable
from costmodel.core.traffic import reuse_distance
from costmodel.device import load_device
from costmodel.lower import cpu_rates, lower
from costmodel.models import load_model

OPS, VARIANTS = 1_000, 10_000


def first(table: OpTable, n: int) -> OpTable:
    """The first n ops of a table."""
    terms, uses = int(table.term_ptr[n]), int(table.use_ptr[n])
    return OpTable(
        kind=table.kind[:n],
        unit=table.unit[:n],
        flops=table.flops[:n],
        work=table.work[:n],
        calls=table.calls[:n],
        outputs=table.outputs[:n],
        code=table.code[:n],
        term_ptr=table.term_ptr[: n + 1],
        term=table.term[:terms],
        amount=table.amount[:terms],
        use_ptr=table.use_ptr[: n + 1],
        use_storage=table.use_storage[:uses],
        use_bytes=table.use_bytes[:uses],
        use_write=table.use_write[:uses],
    )


def times(run: Callable[[], object], repeats: int) -> list[float]:
    run()
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return found


def main() -> None:
    loaded = load_model("timm:efficientnet_b0,num_classes=10", mode="train", batch=8)
    lowered = lower(capture(loaded.model, loaded.inputs, mode="train"))
    board = load_device("raspberry-pi-4b")
    rates = cpu_rates(board, board.runtime["torch-eager"], lowered)
    table = first(lowered.table, OPS)
    storages = len(lowered.graph.storage_bytes) + 1
    distance = reuse_distance(table.use_storage, table.use_bytes, storages)
    code_distance = lowered.code_distance[:OPS]
    rng = np.random.default_rng(0)
    scales = np.exp(rng.uniform(-1, 1, (4, VARIANTS)))
    cases = {
        f"price_cpu, {OPS:,} ops": (times(lambda: price_cpu(table, distance, code_distance, rates), 300), OPS),
        f"reuse_distance, {OPS:,} ops": (
            times(lambda: reuse_distance(table.use_storage, table.use_bytes, storages), 100),
            OPS,
        ),
        f"sweep_cpu, {VARIANTS:,} × {OPS:,}": (
            times(lambda: sweep_cpu(table, distance, code_distance, rates, *scales), 5),
            OPS * VARIANTS,
        ),
    }
    print(f"{len(table.use_bytes):,} operands; one core")
    print(f"{'':30s}{'median':>14s}{'min':>14s}{'op prices/s':>14s}{'repeats':>9s}")
    for name, (s, prices) in cases.items():
        print(
            f"{name:30s}{1e6 * statistics.median(s):11,.1f} µs{1e6 * min(s):11,.1f} µs"
            f"{prices / statistics.median(s):14.2e}{len(s):9d}"
        )


if __name__ == "__main__":
    main()
