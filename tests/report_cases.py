"""What the tests of reports show: real graphs priced on shipped profiles, and points and runs made up for drawing.

The accuracies and "measured" values here are test values, labelled as such in their provenance; no report of the
project holds them.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

import torch

from costmodel.budget import Check, Entry, check
from costmodel.capture import capture
from costmodel.compare import Comparison, compare
from costmodel.device import load_device
from costmodel.estimate import Estimate, estimate
from costmodel.graph import OpGraph
from costmodel.models import load_model
from costmodel.pareto import Front, Point, pareto
from costmodel.report import Report
from costmodel.sources import source_of
from costmodel.validate import Case, Validation, fit_baseline

__all__ = [
    "checks", "comparison", "fronts", "gap_estimate", "gpu_estimate", "graph", "infer_estimate", "page",
    "train_estimate", "validation",
]  # fmt: skip


@cache
def graph(name: str = "mobilenet-v3-small", mode: str = "train", batch: int = 2) -> OpGraph:
    loaded = load_model(name, mode=mode, batch=batch)
    return capture(loaded.model, (loaded.args, loaded.kwargs), mode=mode, name=name)


@cache
def train_estimate() -> Estimate:
    return estimate(graph(), load_device("raspberry-pi-4b"), threads=4)


@cache
def infer_estimate() -> Estimate:
    return estimate(graph("conv-small", "infer", 1), load_device("raspberry-pi-5"))


@cache
def gpu_estimate() -> Estimate:
    return estimate(graph(), load_device("jetson-nano"))


@torch.library.custom_op("reporttest::gap", mutates_args=())
def _gap(x: torch.Tensor) -> torch.Tensor:
    return x + 1


@_gap.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


class _WithGap(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(64, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _gap(_gap(self.linear(x)))


@cache
def gap_estimate() -> Estimate:
    """A step with two ops that nobody has a formula for, and a name that a careless page would run as a script."""
    traced = capture(_WithGap(), torch.zeros(8, 64), mode="infer", name="<script>alert(1)</script>|x_*&")
    return estimate(traced, load_device("raspberry-pi-4b"))


@cache
def fronts() -> tuple[Front, ...]:
    """Four models on two devices, two axes, a budget; accuracies are test values."""
    models = {"conv-small": 0.61, "mobilenet-v3-small": 0.80, "caffe-squeezenet": 0.795, "mlp-small": 0.52}
    points = []
    for name, accuracy in models.items():
        for device in ("raspberry-pi-4b", "jetson-nano"):
            e = estimate(graph(name, "infer", 1), load_device(device))
            costs = {
                "latency_s": e.latency_s,
                "peak_live_bytes": e.memory.peak_live,
                "peak_rss_bytes": e.memory.peak_rss,
            }
            points.append(
                Point(
                    name=name, family="test", model=name, method="full" if accuracy > 0.6 else "bias", mode="infer",
                    batch=1, metric="accuracy", accuracy=accuracy,
                    accuracy_error=0.004 if name != "mlp-small" else math.nan, seeds=3 if name != "mlp-small" else 1,
                    higher_is_better=True, device=device, runtime=e.runtime, costs=costs,
                    measured={"latency_s": 1.2 * e.latency_s.point} if device == "raspberry-pi-4b" else {},
                    provenance="test value, not an accuracy of this model",
                )
            )  # fmt: skip
    budget = {"latency_s": 0.5, "peak_rss_bytes": 2.0**29}
    by_axis = [pareto(points, axis=axis, budget=budget) for axis in ("latency_s", "peak_live_bytes")]
    return tuple(front for by_device in by_axis for front in by_device.values())


@cache
def validation() -> Validation:
    """Predictions of real steps against test values near them."""
    cases = []
    for i, e in enumerate((train_estimate(), infer_estimate(), gap_estimate(), gpu_estimate())):
        meta = e.graph.meta
        base = Case(
            model=meta.model, device=e.device.name, runtime=e.runtime, mode=meta.mode, method=meta.method,
            batch=meta.batch, threads=e.threads, dtype=meta.dtype, quantity="latency_s", predicted=e.latency_s.point,
            low=e.latency_s.low, high=e.latency_s.high, measured=e.latency_s.point * (0.8 + 0.2 * i),
            baseline=e.baseline_latency_s, noise=0.03, note="test value",
        )  # fmt: skip
        live = e.memory.peak_live
        cases.append(base)
        cases.append(
            replace(
                base, quantity="peak_live_bytes", predicted=live.point, low=live.low, high=live.high,
                measured=live.point, baseline=None, noise=None, note="",
            )
        )  # fmt: skip
    return Validation(fit_baseline(cases), {"mamba decode": "there is no kernel of it here"})


@cache
def comparison() -> Comparison:
    return compare(train_estimate(), gpu_estimate())


@cache
def checks() -> tuple[Check, ...]:
    entries = [
        Entry(model="mobilenet-v3-small", device="raspberry-pi-4b", mode="train", batch=2, threads=4, latency="1 ms",
              memory="3 GiB", energy="9 J"),
    ]  # fmt: skip
    return tuple(replace(c, file="budget.toml", line=3) for c in check(entries, [train_estimate()]))


@cache
def page() -> Report:
    """Everything at once."""
    return Report(
        estimates=(train_estimate(), gpu_estimate(), infer_estimate(), gap_estimate()),
        validation=validation(),
        fronts=fronts(),
        comparison=comparison(),
        checks=checks(),
        sources=(source_of(__file__, "accuracies: test values"),),
        title="A page of the tests",
    )
