"""Estimates × runs to errors: each case beside the baseline, its interval and the noise of its measurement."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from .core.table import F8
from .device import Interval
from .errors import CostmodelError

if TYPE_CHECKING:
    from .estimate import Estimate
    from .runs import Run

__all__ = [
    "MOST_SPREAD", "QUANTITIES", "Ablated", "Case", "ClassError", "Summary", "Validation", "binomial_interval",
    "cases_of", "class_errors", "conformal", "fit_baseline", "summarize", "validate",
]  # fmt: skip

# A case whose own measurement is spread over processes by more than this is listed and not scored.
MOST_SPREAD = 0.05

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
        noise: mean |ln ratio| of two processes that measured it, or None.
        spread: median over processes over their minimum, less one, or None: above `MOST_SPREAD` it is not scored.
        processor: processor seconds where `measured` is wall seconds, or None.
        wall: wall seconds as they passed, where `measured` is at the speed of the calibration, or None.
        size: of one sample, ``3x224x224`` or ``seq128``; empty where it is the model's own.
        setting: what differs from the usual (``bfloat16``, ``channels_last``), or empty.
        group: part of a suite that it is of, or empty.
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
    spread: float | None = None
    processor: float | None = None
    wall: float | None = None
    size: str = ""
    setting: str = ""
    group: str = ""

    @property
    def scored(self) -> bool:
        """Whether the measurement agrees with itself well enough to hold a prediction against it."""
        return self.spread is None or self.spread <= MOST_SPREAD

    @property
    def truth(self) -> float:
        """What the prediction is held against."""
        value = self.measured if self.measured is not None else self.published
        if value is None:
            raise CostmodelError(f"case {self.name} has neither a measured nor a published value")
        return value

    @property
    def name(self) -> str:
        return " ".join(
            filter(None, (self.model, self.method, self.mode, f"b{self.batch}", self.size, self.setting, self.quantity))
        )

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
    interval_coverage_ci: tuple[float, float]


@dataclass(frozen=True)
class Ablated:
    """Errors in one phase (``infer`` or ``train``) with a term taken out, as fractions.

    `free_mape` is the error with one factor of its own, fitted on the other models: without the bias.
    """

    name: str
    phase: str
    n: int
    mape: float
    median_ape: float
    within_10: float
    worst: float
    free_mape: float | None


@dataclass(frozen=True)
class ClassError:
    """All ops of one algorithm class in measured steps of one phase.

    Attributes:
        kind: the class; phase: ``infer`` or ``train``; ops: how many.
        share: of the measured time of all ops.
        signed: predicted over measured seconds of all of them, less one.
        absolute: sum over ops of |predicted - measured| over the measured sum.
    """

    kind: str
    phase: str
    ops: int
    share: float
    signed: float
    absolute: float


@dataclass(frozen=True)
class Validation:
    """Cases, and what was skipped with the reason.

    Attributes:
        ablation: what each term of the model buys, where that was asked for.
        classes: errors of single ops by class, where they were timed.
        provenance: what the figures rest on, by what it is.
    """

    cases: tuple[Case, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)
    ablation: tuple[Ablated, ...] = ()
    classes: tuple[ClassError, ...] = ()
    provenance: Mapping[str, str] = field(default_factory=dict)

    @property
    def summary(self) -> dict[str, Summary]:
        """One summary a quantity, in the order of `QUANTITIES`, of the scored cases of the first group."""
        groups: dict[str, list[Case]] = {}
        for case in self.cases:
            if case.scored and case.group == self.cases[0].group:
                groups.setdefault(case.quantity, []).append(case)
        return {q: summarize(groups[q]) for q in QUANTITIES if q in groups}

    def as_dict(self) -> dict[str, Any]:
        """The object that ``validate --json`` prints."""
        optional = {"measured", "published", "note", "spread", "processor", "wall", "size", "setting", "group"}
        return {
            "schema": 1,
            "cases": [
                {k: v for k, v in asdict(c).items() if k not in optional or v not in (None, "")}
                | ({} if c.scored else {"scored": False})
                for c in self.cases
            ],
            "summary": {q: asdict(s) for q, s in self.summary.items()},
            "skipped": dict(self.skipped),
            **({"ablation": [asdict(a) for a in self.ablation]} if self.ablation else {}),
            **({"classes": [asdict(c) for c in self.classes]} if self.classes else {}),
            **({"provenance": dict(self.provenance)} if self.provenance else {}),
        }


def summarize(cases: Sequence[Case]) -> Summary:
    """Errors of `cases`, which share a quantity.

    The noise floor is the mean |ln ratio| of two processes that measured the same: no predictor can be seen to be
    better. `interval_coverage_ci` is where the coverage lies with 95 % confidence.
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
        interval_coverage_ci=binomial_interval(sum(inside), len(inside)),
    )


def binomial_interval(hits: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Where the share behind `hits` of `n` lies (Clopper and Pearson 1934): never too narrow.

    >>> low, high = binomial_interval(36, 40)
    >>> round(low, 3), round(high, 3)
    (0.763, 0.972)
    """
    from scipy.stats import beta

    tail = 0.5 * (1.0 - confidence)
    low = float(beta.ppf(tail, hits, n - hits + 1)) if hits else 0.0
    high = float(beta.ppf(1.0 - tail, hits + 1, n - hits)) if hits < n else 1.0
    return low, high


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


def class_errors(
    kinds: Sequence[str], phases: Sequence[str], predicted_s: F8, measured_s: F8
) -> tuple[ClassError, ...]:
    """Errors of single ops by class and phase, the largest share of the time first.

    Args:
        kinds, phases: of each op.
        predicted_s, measured_s: (n,) seconds of each op.
    """
    kind, phase = np.array(kinds), np.array(phases)
    found = []
    for p in dict.fromkeys(phases):
        total = float(measured_s[phase == p].sum())
        for k in dict.fromkeys(kinds):
            here = (kind == k) & (phase == p)
            measured = float(measured_s[here].sum())
            if measured > 0:
                found.append(
                    ClassError(
                        kind=k,
                        phase=p,
                        ops=int(here.sum()),
                        share=measured / total,
                        signed=float(predicted_s[here].sum()) / measured - 1.0,
                        absolute=float(np.abs(predicted_s[here] - measured_s[here]).sum()) / measured,
                    )
                )
    return tuple(sorted(found, key=lambda c: (c.phase, -c.share)))


def conformal(cases: Sequence[Case], source: str, coverage: float = 0.9) -> Interval:
    """The interval of a prediction, from how far others were off (split conformal, symmetric in ln).

    With n cases the half width is the ⌈(n + 1) · coverage⌉-th smallest |ln(measured / predicted)|: a case like them
    falls inside with at least `coverage`, whatever the distribution.

    Raises:
        CostmodelError: so few cases that no width has that coverage.
    """
    n = len(cases)
    rank = math.ceil((n + 1) * coverage - 1e-9)
    if rank > n:
        needed = math.ceil(coverage / (1.0 - coverage) - 1e-9)
        raise CostmodelError(f"an interval of {coverage:.0%} needs at least {needed} scored cases, not {n}")
    width = sorted(abs(math.log(c.truth / c.predicted)) for c in cases)[rank - 1]
    return Interval(low=-width, high=width, coverage=coverage, cases=n, kind="measured", source=source)


def fit_baseline(cases: Iterable[Case]) -> tuple[Case, ...]:
    """Give the roofline its one constant a device and mode: the one that fits the other cases best.

    Leave-one-out: the constant of a case is the median ratio of measured to roofline over the other cases, so the
    baseline is as good as a one-constant model can be without having seen the case. Only scored cases teach it.
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
            others = [ratio[j] for j in members if j != i and cases[j].scored]
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
