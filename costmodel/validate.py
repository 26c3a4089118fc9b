"""Estimates × runs to errors: each case beside the baseline, its interval and the noise of its measurement."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import CostmodelError

if TYPE_CHECKING:
    from .estimate import Estimate
    from .runs import Run

__all__ = ["QUANTITIES", "Case", "Summary", "Validation", "cases_of", "fit_baseline", "summarize", "validate"]

QUANTITIES = (
    "latency_s", "peak_live_bytes", "peak_reserved_bytes", "peak_rss_bytes", "saved_bytes", "size_bytes", "flops",
    "energy_j", "accuracy", "fits", "ratio", "elements",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One figure predicted and measured (or published).

    Attributes:
        quantity: one of `QUANTITIES`; its unit is in its name.
        predicted, low, high: the estimate and its interval.
        measured: what was measured on the device, or None.
        published: what a paper or a table says, or None.
        baseline: what the one-constant roofline says, or None.
        noise: relative spread of the measurement over processes, or None.
    """

    model: str
    device: str
    runtime: str
    mode: str
    method: str | None
    batch: int
    threads: int
    dtype: str
    quantity: str
    predicted: float
    low: float
    high: float
    measured: float | None = None
    published: float | None = None
    baseline: float | None = None
    noise: float | None = None
    note: str = ""

    @property
    def truth(self) -> float:
        """What the prediction is held against."""
        value = self.measured if self.measured is not None else self.published
        if value is None:
            raise CostmodelError(f"case {self.name} has neither a measured nor a published value")
        return value

    @property
    def name(self) -> str:
        return " ".join(filter(None, (self.model, self.method, self.mode, f"b{self.batch}", self.quantity)))

    @property
    def error(self) -> float:
        """Signed relative error, predicted / truth - 1; 0 where both are 0."""
        return self.predicted / self.truth - 1.0 if self.truth else float(self.predicted != 0)


@dataclass(frozen=True)
class Summary:
    """Errors of all cases of one quantity; shares and errors as fractions."""

    n: int
    mape: float
    median_ape: float
    within_10: float
    worst: float
    kendall_tau: float | None
    interval_coverage: float
    noise_floor: float | None
    baseline_mape: float | None


@dataclass(frozen=True)
class Validation:
    """Cases, and what was skipped with the reason."""

    cases: tuple[Case, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)

    @property
    def summary(self) -> dict[str, Summary]:
        """One summary a quantity, in the order of `QUANTITIES`."""
        groups: dict[str, list[Case]] = {}
        for case in self.cases:
            groups.setdefault(case.quantity, []).append(case)
        return {q: summarize(groups[q]) for q in QUANTITIES if q in groups}

    def as_dict(self) -> dict[str, Any]:
        """The object that ``validate --json`` prints (DESIGN.md §8)."""
        keys = {"measured", "published", "note"}
        return {
            "schema": 1,
            "cases": [{k: v for k, v in asdict(c).items() if k not in keys or v not in (None, "")} for c in self.cases],
            "summary": {q: asdict(s) for q, s in self.summary.items()},
            "skipped": dict(self.skipped),
        }


def summarize(cases: Sequence[Case]) -> Summary:
    """Errors of `cases`, which share a quantity.

    The noise floor is the mean relative spread of the measurements: no predictor can be seen to be better.
    """
    if not cases:
        raise CostmodelError("there are no cases to summarize")
    error = np.abs([c.error for c in cases])
    truth = np.array([c.truth for c in cases])
    inside = [c.low <= c.truth <= c.high for c in cases]
    noise = [c.noise for c in cases if c.noise is not None]
    baseline = [abs(c.baseline / c.truth - 1.0) for c in cases if c.baseline is not None and c.truth]
    return Summary(
        n=len(cases),
        mape=float(error.mean()),
        median_ape=float(np.median(error)),
        within_10=float((error <= 0.10).mean()),
        worst=float(error.max()),
        kendall_tau=_kendall([c.predicted for c in cases], truth),
        interval_coverage=float(np.mean(inside)),
        noise_floor=float(np.mean(noise)) if noise else None,
        baseline_mape=float(np.mean(baseline)) if baseline else None,
    )


def _kendall(predicted: Sequence[float], truth: Any) -> float | None:
    """Kendall's τ over pairs whose sizes are within a factor of two: easy pairs say nothing about a ranking."""
    agree = total = 0
    for i in range(len(predicted)):
        for j in range(i):
            small, large = sorted((truth[i], truth[j]))
            if small > 0 and large <= 2 * small and large != small:
                total += 1
                agree += 1 if (predicted[i] - predicted[j]) * (truth[i] - truth[j]) > 0 else -1
    return agree / total if total >= 3 else None


def fit_baseline(cases: Iterable[Case]) -> tuple[Case, ...]:
    """Give the roofline its one constant a device and mode: the one that fits the other cases best.

    Leave-one-out: the constant of a case is the median ratio of measured to roofline over the other cases, so the
    baseline is as good as a one-constant model can be without having seen the case.
    """
    cases = tuple(cases)
    groups: dict[tuple[str, str, str, int], list[int]] = {}
    for i, case in enumerate(cases):
        if case.quantity == "latency_s" and case.baseline:
            groups.setdefault((case.device, case.runtime, case.mode, case.threads), []).append(i)
    fitted = list(cases)
    for members in groups.values():
        ratio = {i: math.log(cases[i].truth / (cases[i].baseline or 1.0)) for i in members}
        for i in members:
            others = [ratio[j] for j in members if j != i]
            if others:
                fitted[i] = replace(cases[i], baseline=(cases[i].baseline or 0.0) * math.exp(float(np.median(others))))
    return tuple(fitted)


def cases_of(estimate: Estimate, run: Run) -> list[Case]:
    """One case for each quantity that the estimate and the run share."""
    meta = estimate.graph.meta
    for what, ours, theirs in (("mode", meta.mode, run.mode), ("batch", meta.batch, run.batch)):
        if theirs is not None and ours != theirs:
            raise CostmodelError(f"the estimate has {what} {ours!r}, the run {theirs!r}; compare the same step")
    pairs = (
        ("latency_s", estimate.latency_s, run.latency_s, estimate.baseline_latency_s, run.noise),
        ("peak_live_bytes", estimate.memory.peak_live, run.peak_live_bytes, None, None),
        ("peak_rss_bytes", estimate.memory.peak_rss, run.peak_rss_bytes, None, None),
        ("energy_j", estimate.energy_j, run.energy_j, None, None),
    )
    return [
        Case(
            model=run.model or meta.model,
            device=estimate.device.name,
            runtime=estimate.runtime,
            mode=meta.mode,
            method=meta.method,
            batch=meta.batch,
            threads=estimate.threads,
            dtype=meta.dtype,
            quantity=quantity,
            predicted=predicted.point,
            low=predicted.low,
            high=predicted.high,
            measured=measured,
            baseline=baseline,
            noise=noise,
        )
        for quantity, predicted, measured, baseline, noise in pairs
        if predicted is not None and measured is not None
    ]


def validate(
    estimates: Estimate | Sequence[Estimate], runs: Run | Sequence[Run], skipped: Mapping[str, str] | None = None
) -> Validation:
    """Hold estimates against runs, pair by pair."""
    from .estimate import Estimate

    pairs_of_estimates = [estimates] if isinstance(estimates, Estimate) else list(estimates)
    from .runs import Run

    pairs_of_runs = [runs] if isinstance(runs, Run) else list(runs)
    if len(pairs_of_estimates) != len(pairs_of_runs):
        raise CostmodelError(
            f"{len(pairs_of_estimates)} estimates against {len(pairs_of_runs)} runs; give one run an estimate, in order"
        )
    cases = [c for e, r in zip(pairs_of_estimates, pairs_of_runs) for c in cases_of(e, r)]
    return Validation(fit_baseline(cases), dict(skipped or {}))
