"""How long reports take: python tests/benchmarks/bench_report.py [REPEATS]

Rows: each format of one training step, and a page of ten. Captured here, priced on a shipped profile; medians and
minima of wall seconds, the first call apart (it imports the libraries that draw).
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import costmodel as cm
from costmodel.models import load_model
from costmodel.report import Report, render


def timed(what: Callable[[], object], repeats: int) -> tuple[float, list[float]]:
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        what()
        seconds.append(time.perf_counter() - start)
    return seconds[0], seconds[1:]


def main() -> None:
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    loaded = load_model("mobilenet-v3-small", mode="train", batch=8)
    graph = cm.capture(loaded.model, (loaded.args, loaded.kwargs), mode="train", name="mobilenet-v3-small")
    estimate = cm.estimate(graph, cm.load_device("raspberry-pi-4b"), threads=4)
    print(f"{graph}; {repeats} repeats")
    print(f"{'format':24} {'first':>9} {'median':>9} {'min':>9} {'bytes':>11}")
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "report"
        rows = [(f, estimate, f) for f in ("text", "markdown", "latex", "csv", "perfetto", "html", "png", "svg")]
        rows.append(("html, ten estimates", Report(estimates=(estimate,) * 10), "html"))
        for name, what, format in rows:
            first, others = timed(lambda w=what, f=format: render(w, f, target), repeats)
            times = " ".join(f"{1e3 * t:6.1f} ms" for t in (first, statistics.median(others), min(others)))
            print(f"{name:24} {times} {target.stat().st_size:11,}")


if __name__ == "__main__":
    main()
