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
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from .core.table import F8
from .device import Device, Interval, Number, Runtime
from .errors import CostmodelError, UnknownName
from .estimate import Estimate
from .lower import class_scale_of, loop_s, packing_s
from .runs import Run

__all__ = [
    "CLASSES", "FewShot", "Prior", "Row", "Step", "choose_rows", "family_of", "fit_priced", "fit_rows",
    "fit_table", "leave_families_out", "row_of", "sample_seconds",
]  # fmt: skip

# A class of the fit, and the algorithm classes (with all that are kinds of them) that share its factor.
CLASSES: dict[str, tuple[str, ...]] = {
    "matmul": ("gemm", "gemv", "bmm", "attention", "lstm", "gru", "rnn", "scan"),
    "conv": ("conv",),
    "conv_strided": ("conv_direct_strided",),
    "conv_backward": (
        "conv_direct_backward", "conv_direct_strided_backward", "conv_stem_backward", "conv_im2col_backward",
        "conv_transposed_backward", "conv_transposed_im2col_backward",
    ),
    "pointwise": ("conv_1x1", "conv_pointwise"),
    "pointwise_backward": ("conv_1x1_backward", "conv_1x1_strided_backward", "conv_pointwise_gemm_backward"),
    "depthwise": ("conv_depthwise",),
    "depthwise_strided": ("conv_depthwise_strided",),
    "depthwise_backward": ("conv_depthwise_backward", "conv_depthwise_strided_backward"),
    "grouped": ("conv_grouped",),
    "norm": ("batch_norm_train",),
    "norm_backward": ("batch_norm_train_backward",),
    "memory": ("default",),
}  # fmt: skip
# Not algorithm classes: calls into a library, whatever they do; further calls of a loop over groups; packing of
# weights; reading of samples.
OVERHEAD, LOOP, PACKING, SAMPLE = "overhead", "loop", "packing", "sample"
_NAMES = (*CLASSES, OVERHEAD, LOOP, PACKING, SAMPLE)
_CLASS_OF = {kind: name for name, kinds in CLASSES.items() for kind in kinds}
_NORMAL_90 = 1.645
_EXTREME = 0.2  # share of rows at each end of predicted seconds that are measured last
_LARGE = 12  # rows for each one to choose: a table that large has rows that stand for others
_EXCHANGES = 20
_ORDERED = 200  # rows up to which all of them are put in the order of their worth
_PARTS = 8  # in which families are left out
_NAMED = 30  # runs that a profile names as its source


@dataclass(frozen=True)
class Prior:
    """Standard deviations of the logarithms, before any run: of the device, of a class around it, of a run.

    The defaults are wide, for a profile of guesses. `widths` are of classes that are known worse than the others:
    what the classes of two devices differ by is least for arithmetic and most for what depends on threads and caches.
    """

    device: float = 0.5
    classes: float = 0.4
    run: float = 0.1
    widths: Mapping[str, float] = field(default_factory=lambda: {OVERHEAD: 0.7, PACKING: 0.7, "memory": 0.8})

    @classmethod
    def of(cls, runtime: Runtime) -> Prior:
        """Wide for a runtime whose class constants are guesses, narrow for one that was fitted."""
        known = [n.kind for n in (*runtime.class_scale.values(), *runtime.efficiency.values())]
        return cls(0.15, 0.15) if "fitted" in known or runtime.fit else cls()

    @property
    def of_classes(self) -> F8:
        """(c,) standard deviation of each class around the device, in the order of `_NAMES`."""
        return np.array([self.widths.get(name, self.classes) for name in _NAMES])


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
        left_out: the same, each by a fit without its family of models; None for rows of one family.
    """

    device_scale: float
    scales: Mapping[str, float]
    chosen: tuple[Row, ...]
    steps: tuple[Step, ...]
    covariance: F8
    mape: float
    prior: Prior = field(default_factory=Prior)
    left_out: float | None = None

    def seconds(self, row: Row) -> float:
        """Predicted seconds of a row with these scales."""
        return float(row.seconds @ [self.scales[name] for name in _NAMES])

    def spread(self, row: Row) -> float:
        """Standard deviation of the logarithm of that prediction, the noise of a run included."""
        share = row.seconds * [self.scales[name] for name in _NAMES]
        gradient = np.append(0.0, share / share.sum())
        return math.sqrt(float(gradient @ self.covariance @ gradient) + self.prior.run**2)

    def moved(self) -> FewShot:
        """These scales as another device may have them; what calls take stays its own, the spread of a device is added.

        What moves is how a runtime's kernels stand to peak and bandwidth; how far two devices differ in that is what
        the prior of one says before any run of it.
        """
        own = dict.fromkeys((OVERHEAD, LOOP, PACKING, SAMPLE), 1.0)
        return replace(self, scales={**self.scales, **own}, covariance=self.covariance + _prior_covariance(Prior()))

    def applied(self, device: Device, runtime: str, source: str) -> Device:
        """`device` with the scales written into `runtime`, and an interval for the modes of the runs from the fit's own
        spread."""
        r = device.runtime[runtime]
        key = re.sub(r"\W+", "-", f"fewshot-{source}").strip("-").lower()
        names = [row.run.model for row in self.chosen]
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        text = f"{len(names)} runs of {source}: {', '.join(names[:_NAMED]) or 'none'}{more}"
        if self.left_out is not None:
            text += f"; mean error with families of models left out {self.left_out:.1%}"
        kinds = {*r.class_scale, *_CLASS_OF}
        fitted = {
            kind: (r.class_scale.get(kind) or Number(value=class_scale_of(r, kind), kind="guess", source=key)).refitted(
                class_scale_of(r, kind) * self.scales[_class_of(kind)], key
            )
            for kind in sorted(kinds)
        }
        scale = self.scales

        def times(number: Number | None, factor: float) -> Number | None:
            return number and number.refitted(number.value * factor, key)

        width = _NORMAL_90 * float(np.median([self.spread(row) for row in self.chosen] or [self._prior_spread()]))
        interval = Interval(low=-width, high=width, cases=len(self.chosen), kind="fitted", source=key)
        update = {
            "class_scale": fitted,
            "overhead_s": times(r.overhead_s, scale[OVERHEAD]),
            "issue_s": times(r.issue_s, scale[OVERHEAD]),
            "loop_s": times(r.loop_s, scale[LOOP]),
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
    runtime = estimate.device.runtime[estimate.runtime]
    overhead = np.minimum(estimate.parts[:, 0], estimate.seconds)
    if runtime.engine == "gpu":
        overhead = overhead * (estimate.seconds <= estimate.parts[:, 0])  # a floor, not a part of longer kernels
    loops = np.minimum(loop_s(estimate.lowered, runtime), overhead)
    pack = packing_s(estimate.lowered, runtime)
    for cost, total, calls, loop, packing in zip(estimate.lowered.costs, estimate.seconds, overhead, loops, pack):
        seconds[_class_of(cost.kind)] += float(total - calls - packing)
        seconds[OVERHEAD] += float(calls - loop)
        seconds[LOOP] += float(loop)
        seconds[PACKING] += float(packing)
    seconds[OVERHEAD] += max(waits, 0.0)
    seconds[SAMPLE] = sample_seconds(run, runtime)
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
    return fit_priced(table, k, device.runtime[runtime], prior)


def fit_priced(table: Sequence[Row], k: int | None, runtime: Runtime, prior: Prior | None = None) -> FewShot:
    """As `fit_rows`, of rows that `row_of` made."""
    if k is not None and not 0 <= k <= len(table):
        raise CostmodelError(f"fit takes 0 to {len(table)} runs (there are so many), not {k}")
    spreads = prior or Prior.of(runtime)
    everything = k is None and len(table) > _ORDERED
    chosen = list(range(len(table))) if everything else choose_rows(table, len(table) if k is None else k, spreads)
    return _fit_chosen(table, chosen, spreads)


def choose_rows(table: Sequence[Row], k: int, prior: Prior | None = None) -> list[int]:
    """Which k rows to measure. Nothing measured is looked at.

    Of a large table the rows that stand for the others (`_medoids`), of a small one those that tell most (`_design`).
    A design for a linear model loves extremes, where this one is least linear: on the i9's table, 10 rows that tell
    most leave a median error of 16 to 20 %, 10 that stand for the others 13 %; of the Pi 4's 28 rows, three that tell
    most leave 10 %, three that stand for the others 15 %. The smallest and largest fifth of the steps come last.
    """
    spreads = prior or Prior()
    order = np.argsort([row.predicted for row in table], kind="stable")
    edge = int(len(table) * _EXTREME)
    middle = [int(i) for i in order[edge : len(table) - edge]]
    if k <= len(middle) and len(table) >= _LARGE * k:
        return _medoids(table, k, middle, spreads)
    extremes = [int(i) for i in (*order[:edge], *order[len(table) - edge :])]
    return _design(table, k, middle, extremes, spreads)


def _design(table: Sequence[Row], k: int, middle: list[int], extremes: list[int], prior: Prior) -> list[int]:
    """Greedily, each takes most of the mean variance of ln T that is left over all rows."""
    gradients = _gradients(table)
    covariance = _prior_covariance(prior)
    left, chosen = list(middle), list[int]()
    for _ in range(k):
        if not left:
            left, extremes = extremes, []
        seen = gradients @ covariance  # (rows, p)
        gain = ((seen @ gradients.T) ** 2).sum(axis=0) / (np.einsum("ij,ij->i", seen, gradients) + prior.run**2)
        best = max(left, key=lambda i: gain[i])
        covariance = covariance - np.outer(seen[best], seen[best]) / (seen[best] @ gradients[best] + prior.run**2)
        chosen.append(best)
        left.remove(best)
    return chosen


def _medoids(table: Sequence[Row], k: int, candidates: list[int], prior: Prior) -> list[int]:
    """The k rows with the least squared distance of all rows to the nearest of them, the one that serves most first.

    Rows are as far apart as the prior lets their predictions differ: the distance of two is the spread of the
    difference of their ln T. Greedy, then exchanges until none helps (Kaufman and Rousseeuw, 1990).
    """
    place = _gradients(table) @ np.linalg.cholesky(_prior_covariance(prior))
    square = (place**2).sum(axis=1)
    # (rows, candidates)
    far = np.maximum(square[:, None] + square[candidates] - 2.0 * place @ place[candidates].T, 0.0)
    chosen: list[int] = []
    nearest = np.full(len(table), np.inf)
    for _ in range(k):
        chosen.append(_best(far, nearest, chosen))
        nearest = np.minimum(nearest, far[:, chosen[-1]])
    for _ in range(_EXCHANGES):
        before = list(chosen)
        for slot in range(k):
            others = chosen[:slot] + chosen[slot + 1 :]
            nearest = far[:, others].min(axis=1) if others else np.full(len(table), np.inf)
            chosen[slot] = _best(far, nearest, others)
        if chosen == before:
            break
    return [candidates[i] for i in chosen]


def _best(far: F8, nearest: F8, taken: Sequence[int]) -> int:
    cost = np.minimum(nearest[:, None], far).sum(axis=0)
    cost[list(taken)] = np.inf
    return int(np.argmin(cost))


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


def fit_table(table: Sequence[Row], prior: Prior | None = None) -> FewShot:
    """Scales fitted to all rows of `table`, without what each of them bought."""
    spreads = prior or Prior()
    log_scale, covariance = _solve(table, range(len(table)), spreads)
    return FewShot(
        device_scale=math.exp(log_scale[0]),
        scales={name: math.exp(value) for name, value in zip(_NAMES, log_scale[1:])},
        chosen=tuple(table),
        steps=(),
        covariance=covariance,
        mape=_mape(table, log_scale) if table else 0.0,
        prior=spreads,
    )


def _fit_chosen(table: Sequence[Row], chosen: list[int], prior: Prior) -> FewShot:
    steps = []
    for n in _milestones(len(chosen)):
        partial, after = _solve(table, chosen[:n], prior)
        used = set(chosen[:n])
        rest = [row for i, row in enumerate(table) if i not in used]
        spread = np.sqrt(np.einsum("ij,jk,ik->i", g := _gradients(table), after, g) + prior.run**2)
        steps.append(
            Step(table[chosen[n - 1]].run.name, float(np.mean(spread)), _mape(rest, partial) if rest else None)
        )
    rows = [table[i] for i in chosen]
    return replace(fit_table(rows, prior), steps=tuple(steps), left_out=_left_out(rows, prior))


def _left_out(rows: Sequence[Row], prior: Prior) -> float | None:
    """Mean error of rows, each by a fit to those of other families of models; many families go in eight parts."""
    names = sorted({family_of(row.run.model) for row in rows})
    if len(names) < 2:
        return None
    part = {name: i % _PARTS for i, name in enumerate(names)}
    of_row = [part[family_of(row.run.model)] for row in rows]
    errors = []
    for p in sorted(set(of_row)):
        scale, _ = _solve(rows, [i for i, q in enumerate(of_row) if q != p], prior)
        tested = [row for row, q in zip(rows, of_row) if q == p]
        errors += [_mape(tested, scale)] * len(tested)
    return float(np.mean(errors))


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
    tight = 1.0 / prior.of_classes**2
    precision[0, 0] = 1.0 / prior.device**2 + tight.sum()
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
