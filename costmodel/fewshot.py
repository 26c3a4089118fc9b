"""A few whole-model runs to a device's constants: class scales that shrink to one device scale, that to the prior.

Seconds of a run are linear in the scales: each algorithm class has the seconds that the profile gives it, and a factor
that is 1 until a run says otherwise. With p the logarithms of the factors,

    minimise  Σ runs ρ((ln T(p) − ln measured) / noise)
              + (p_device / σ_device)² + Σ classes ((p_class − p_device) / σ_class)²

so that no run gives the profile as it is, one run moves mostly the device, and many move each class. Which runs are
worth measuring is chosen before any is: greedily, the one that takes most variance from the predictions of all
(Bayesian experimental design, A-optimality on the linearised model; Chaloner and Verdinelli, 1995).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .core.table import F8
from .device import Device, Interval, Number, Runtime
from .errors import CostmodelError, UnknownName
from .estimate import Estimate
from .lower import class_scale_of, packing_s
from .runs import Run

__all__ = [
    "CLASSES", "FewShot", "Prior", "Row", "Step", "choose_rows", "family_of", "fit_rows", "leave_families_out",
    "row_of", "sample_seconds",
]  # fmt: skip

# A class of the fit, and the algorithm classes (with all that are kinds of them) that share its factor.
CLASSES: dict[str, tuple[str, ...]] = {
    "matmul": ("gemm", "gemv", "bmm", "attention", "lstm", "gru", "rnn", "scan"),
    "conv": ("conv",),
    "pointwise": ("conv_1x1", "conv_pointwise"),
    "pointwise_backward": ("conv_1x1_backward", "conv_1x1_strided_backward", "conv_pointwise_gemm_backward"),
    "depthwise": ("conv_depthwise", "conv_grouped"),
    "depthwise_backward": ("conv_depthwise_backward", "conv_depthwise_strided_backward"),
    "norm": ("batch_norm_train",),
    "norm_backward": ("batch_norm_train_backward",),
    "memory": ("default",),
}
# Not algorithm classes: calls into a library, whatever they do; packing of weights; reading of samples.
OVERHEAD, PACKING, SAMPLE = "overhead", "packing", "sample"
_NAMES = (*CLASSES, OVERHEAD, PACKING, SAMPLE)
_CLASS_OF = {kind: name for name, kinds in CLASSES.items() for kind in kinds}
_NORMAL_90 = 1.645
_EXTREME = 0.2  # share of rows at each end of predicted seconds that are measured last


@dataclass(frozen=True)
class Prior:
    """Standard deviations of the logarithms, before any run: of the device, of a class around it, of a run.

    The defaults are wide, for a profile of guesses: the Pi 4's was off by 1.7, its classes by 1.7 around that.
    """

    device: float = 0.5
    classes: float = 0.5
    run: float = 0.1

    @classmethod
    def of(cls, runtime: Runtime) -> Prior:
        """Wide for a runtime whose class constants are guesses, narrow for one that was fitted."""
        known = [n.kind for n in (*runtime.class_scale.values(), *runtime.efficiency.values())]
        return cls(0.15, 0.15) if "fitted" in known or runtime.fit else cls()


@dataclass(frozen=True)
class Row:
    """A run, and the seconds that the profile gives to each class of `_NAMES` in the step it measured."""

    run: Run
    seconds: F8

    @property
    def predicted(self) -> float:
        return float(self.seconds.sum())


@dataclass(frozen=True)
class Step:
    """One measured run more: which, what spread of a prediction it leaves, and the error on the runs not used."""

    run: str
    spread: float
    mape_of_rest: float | None


@dataclass(frozen=True)
class FewShot:
    """Factors on a profile, and what they rest on.

    Attributes:
        device_scale: seconds of the whole device over the profile's.
        scales: the same of each class, `device_scale` included.
        chosen: the rows that were used, in the order of their worth.
        steps: what each bought.
        covariance: of the logarithms of the scales, after the fit.
        mape: of the chosen rows themselves.
    """

    device_scale: float
    scales: Mapping[str, float]
    chosen: tuple[Row, ...]
    steps: tuple[Step, ...]
    covariance: F8
    mape: float
    prior: Prior = field(default_factory=Prior)

    def seconds(self, row: Row) -> float:
        """Predicted seconds of a row with these scales."""
        return float(row.seconds @ [self.scales[name] for name in _NAMES])

    def spread(self, row: Row) -> float:
        """Standard deviation of the logarithm of that prediction, the noise of a run included."""
        share = row.seconds * [self.scales[name] for name in _NAMES]
        gradient = np.append(0.0, share / share.sum())
        return math.sqrt(float(gradient @ self.covariance @ gradient) + self.prior.run**2)

    def applied(self, device: Device, runtime: str, source: str) -> Device:
        """`device` with the scales written into `runtime`, and an interval for the modes of the runs from the fit's own
        spread."""
        r = device.runtime[runtime]
        key = re.sub(r"\W+", "-", f"fewshot-{source}").strip("-").lower()
        text = f"{len(self.chosen)} runs of {source}: {', '.join(row.run.model for row in self.chosen) or 'none'}"
        kinds = {*r.class_scale, *_CLASS_OF}
        fitted = {
            kind: Number(value=class_scale_of(r, kind) * self.scales[_class_of(kind)], kind="fitted", source=key)
            for kind in sorted(kinds)
        }
        scale = self.scales

        def times(number: Number | None, factor: float) -> Number | None:
            return number and Number(value=number.value * factor, kind="fitted", source=key)

        width = _NORMAL_90 * float(np.median([self.spread(row) for row in self.chosen] or [self._prior_spread()]))
        interval = Interval(low=-width, high=width, cases=len(self.chosen), kind="fitted", source=key)
        update = {
            "class_scale": fitted,
            "overhead_s": times(r.overhead_s, scale[OVERHEAD]),
            "issue_s": times(r.issue_s, scale[OVERHEAD]),
            "pack_bytes_per_s": times(r.pack_bytes_per_s, 1.0 / scale[PACKING]),
            "sample_s": times(r.sample_s, scale[SAMPLE]),
            "interval": r.interval | dict.fromkeys({"default", *(row.run.mode for row in self.chosen)}, interval),
        }
        return device.model_copy(
            update={
                "runtime": {**device.runtime, runtime: r.model_copy(update=update)},
                "sources": {**device.sources, key: text},
            }
        )

    def _prior_spread(self) -> float:
        return math.sqrt(self.prior.device**2 + self.prior.classes**2 / 3 + self.prior.run**2)


def row_of(run: Run, estimate: Estimate) -> Row:
    """The seconds by class of an estimate of what `run` measured.

    A row that says it includes reading its samples gets the runtime's `sample_s` for each.
    """
    seconds = dict.fromkeys(_NAMES, 0.0)
    busy = (estimate.end - estimate.start).sum()
    waits = float(estimate.end[-1] - busy) if len(estimate.end) else 0.0
    overhead = np.minimum(estimate.parts[:, 0], estimate.seconds)
    if estimate.device.runtime[estimate.runtime].engine == "gpu":
        overhead = overhead * (estimate.seconds <= estimate.parts[:, 0])  # a floor, not a part of longer kernels
    pack = packing_s(estimate.lowered, estimate.device.runtime[estimate.runtime])
    for cost, total, calls, packing in zip(estimate.lowered.costs, estimate.seconds, overhead, pack):
        seconds[_class_of(cost.kind)] += float(total - calls - packing)
        seconds[OVERHEAD] += float(calls)
        seconds[PACKING] += float(packing)
    seconds[OVERHEAD] += max(waits, 0.0)
    seconds[SAMPLE] = sample_seconds(run, estimate.device.runtime[estimate.runtime])
    return Row(run, np.array([seconds[name] for name in _NAMES]))


def sample_seconds(run: Run, runtime: Runtime) -> float:
    """Seconds that reading and decoding its samples takes, of a run whose note says that it includes that; else 0."""
    if runtime.sample_s is None or "data loading" not in run.meta.get("note", ""):
        return 0.0
    return runtime.sample_s.value * (run.batch or 1)


def fit_rows(
    device: Device,
    runtime: str,
    rows: Iterable[Run],
    graphs: Iterable[Estimate],
    k: int | None = None,
    prior: Prior | None = None,
) -> FewShot:
    """Fit the scales of `runtime` on `device` to k of the runs, chosen for what they tell; to all without k.

    Args:
        device, runtime: the profile that the estimates were made with.
        rows: measured runs.
        graphs: an estimate of each, with the same device and runtime, in the same order.
        k: how many runs may be measured; 0 gives the prior.
        prior: spreads before any run; `Prior.of` the runtime otherwise.
    """
    if runtime not in device.runtime:
        raise UnknownName(f"runtime of {device.name}", runtime, device.runtime)
    table = [row_of(run, estimate) for run, estimate in zip(rows, graphs, strict=True)]
    if k is not None and not 0 <= k <= len(table):
        raise CostmodelError(f"fit takes 0 to {len(table)} runs (there are so many), not {k}")
    spreads = prior or Prior.of(device.runtime[runtime])
    return _fit_chosen(table, choose_rows(table, len(table) if k is None else k, spreads), spreads)


def choose_rows(table: Sequence[Row], k: int, prior: Prior | None = None) -> list[int]:
    """Which k rows to measure: greedily, each takes most of the mean variance of ln T that is left over all rows.

    Nothing measured is looked at. The smallest and largest fifth of the steps are taken last: a design for a linear
    model loves extremes, and that is where the model is least linear (on the i9 table 10 rows chosen among all leave
    a median error of 25 %, among the middle 16 %).
    """
    spreads = prior or Prior()
    gradients = _gradients(table)
    covariance = _prior_covariance(spreads)
    order = np.argsort([row.predicted for row in table], kind="stable")
    edge = int(len(table) * _EXTREME)
    left = [int(i) for i in order[edge : len(table) - edge]]
    extremes = [int(i) for i in (*order[:edge], *order[len(table) - edge :])]
    chosen: list[int] = []
    for _ in range(k):
        if not left:
            left, extremes = extremes, []
        seen = gradients @ covariance  # (rows, p)
        gain = ((seen @ gradients.T) ** 2).sum(axis=0) / (np.einsum("ij,ij->i", seen, gradients) + spreads.run**2)
        best = max(left, key=lambda i: gain[i])
        covariance = covariance - np.outer(seen[best], seen[best]) / (seen[best] @ gradients[best] + spreads.run**2)
        chosen.append(best)
        left.remove(best)
    return chosen


def leave_families_out(table: Sequence[Row], k: int | None, prior: Prior | None = None) -> F8:
    """ln(predicted / measured) of every row, by a fit on k rows (or all) of the other families of models."""
    spreads = prior or Prior()
    families = [family_of(row.run.model) for row in table]
    errors = np.empty(len(table))
    for family in sorted(set(families)):
        others = [row for row, f in zip(table, families) if f != family]
        size = len(others) if k is None else min(k, len(others))
        scales = _solve(others, choose_rows(others, size, spreads), spreads)[0]
        for i, row in enumerate(table):
            if families[i] == family:
                errors[i] = math.log(float(row.seconds @ np.exp(scales[1:]))) - math.log(row.run.latency_s)
    return errors


def family_of(model: str) -> str:
    """The family a model belongs to: what is left of its name without sizes, versions and where it comes from.

    >>> [family_of(m) for m in ("timm:mobilenetv3_small_100", "caffe-resnet50", "tf_efficientnet_b0")]
    ['mobilenet', 'resnet', 'efficientnet']
    """
    bare = model.split(":")[-1].split(",")[0].lower()
    bare = re.sub(r"^(tf|caffe|ncnn|legacy|test|seresnext|ecaresnet|gc)[_-]", "", bare)
    letters = re.match(r"[a-z]+", bare)
    return re.sub(r"v$", "", letters.group()) if letters else bare


def _class_of(kind: str) -> str:
    name = kind
    while name and name not in _CLASS_OF:
        name = name.rpartition("_")[0]
    return _CLASS_OF[name or "default"]


def _fit_chosen(table: Sequence[Row], chosen: list[int], prior: Prior) -> FewShot:
    log_scale, covariance = _solve(table, chosen, prior)
    steps = []
    for n in _milestones(len(chosen)):
        partial, after = _solve(table, chosen[:n], prior)
        rest = [row for i, row in enumerate(table) if i not in chosen[:n]]
        spread = np.sqrt(np.einsum("ij,jk,ik->i", g := _gradients(table), after, g) + prior.run**2)
        steps.append(
            Step(table[chosen[n - 1]].run.name, float(np.mean(spread)), _mape(rest, partial) if rest else None)
        )
    used = tuple(table[i] for i in chosen)
    return FewShot(
        device_scale=math.exp(log_scale[0]),
        scales={name: math.exp(value) for name, value in zip(_NAMES, log_scale[1:])},
        chosen=used,
        steps=tuple(steps),
        covariance=covariance,
        mape=_mape(used, log_scale) if used else 0.0,
        prior=prior,
    )


def _milestones(k: int) -> list[int]:
    """Numbers of rows after which to say what was bought: each of the first ten, then every doubling, and the last."""
    doublings = [10 * 2**i for i in range(1, 20) if 10 * 2**i < k]
    return sorted({*range(1, min(k, 10) + 1), *doublings, *([k] if k else [])})


def _mape(rows: Sequence[Row], log_scale: F8) -> float:
    scale = np.exp(log_scale[1:])
    return float(np.mean([abs(float(row.seconds @ scale) / row.run.latency_s - 1.0) for row in rows]))


def _prior_precision(prior: Prior) -> F8:
    """(1 + c, 1 + c) of p = (device, classes): the device around 0, each class around the device."""
    n = len(_NAMES)
    precision = np.zeros((n + 1, n + 1))
    tight = 1.0 / prior.classes**2
    precision[0, 0] = 1.0 / prior.device**2 + n * tight
    precision[0, 1:] = precision[1:, 0] = -tight
    precision[range(1, n + 1), range(1, n + 1)] = tight
    return precision


def _prior_covariance(prior: Prior) -> F8:
    return np.asarray(np.linalg.inv(_prior_precision(prior)), np.float64)


def _gradients(table: Sequence[Row], scale: F8 | None = None) -> F8:
    """(rows, 1 + c) derivative of ln T by p: the share of each class in the seconds (the device acts through them)."""
    seconds = np.array([row.seconds for row in table]).reshape(len(table), len(_NAMES))
    seconds = seconds if scale is None else seconds * scale
    share = seconds / np.maximum(seconds.sum(axis=1, keepdims=True), 1e-300)
    return np.hstack([np.zeros((len(table), 1)), share])


def _solve(table: Sequence[Row], chosen: Sequence[int], prior: Prior) -> tuple[F8, F8]:
    """Most likely p = (device, classes) given the chosen rows, and its covariance."""
    n = len(_NAMES)
    precision = _prior_precision(prior)
    if not chosen:
        return np.zeros(n + 1), _prior_covariance(prior)
    from scipy.optimize import least_squares

    rows = [table[i] for i in chosen]
    seconds = np.array([row.seconds for row in rows])
    measured = np.log([row.run.latency_s for row in rows])
    noise = np.array([math.hypot(prior.run, row.run.noise or 0.0) for row in rows])
    root = np.linalg.cholesky(precision).T

    def ratio(p: F8) -> F8:
        return np.asarray((np.log(seconds @ np.exp(p[1:])) - measured) / noise)

    def residual(p: F8) -> F8:
        r = ratio(p)
        misfit = np.sign(r) * np.sqrt(2.0 * (np.sqrt(1.0 + r * r) - 1.0))  # pseudo-Huber: an outlier pulls, not drags
        return np.concatenate([misfit, root @ p])

    def slope(p: F8) -> F8:
        r = ratio(p)
        h = np.sqrt(1.0 + r * r)
        by_ratio = np.sqrt((h + 1.0) / 2.0) / h  # of the misfit: r / (h · misfit), which is 1 at r = 0
        return np.vstack([by_ratio[:, None] * _gradients(rows, np.exp(p[1:])) / noise[:, None], root])

    fitted: Any = least_squares(residual, np.zeros(n + 1), jac=slope)
    gradient = _gradients(rows, np.exp(fitted.x[1:])) / noise[:, None]
    return np.asarray(fitted.x), np.asarray(np.linalg.inv(precision + gradient.T @ gradient), np.float64)
