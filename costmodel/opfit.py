"""Isolated ops to fitted constants: for each algorithm class, a sum of non-negative terms (LATENCY.md, model form).

    t = overhead + Σ a_j · f_j(shape) + Σ levels (c_level · code + r_level · bytes read + w_level · bytes written)

Each point was timed hot, between other ops, warm and cold (or hot and in rotation with other layers), which tells where
its code came from (c: the share of it that a level serves) and where its data did. Non-negative least squares on
relative errors, reweighted towards least absolute deviations.
"""

from __future__ import annotations

import datetime
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import nnls

from .core.table import F8
from .core.traffic import CODE_BYTES, CODE_SHARE
from .costs import Cost, OpSpec, TensorSpec, formula_for
from .device import Fit, KindFit

__all__ = ["LEVELS", "Point", "fit_kinds", "fit_whole", "points_of"]

_BEST_SPIN = 0.05  # quantile of all spins of a calibration that is the machine's best
# Levels with fitted rates; what L2 serves is part of the terms.
LEVELS = ("L3", "dram")
_STATES = ("hot", "between", "warm", "cold", "rotated")
# Which quantile of a state's repeats counts: few repeats, so nearer the middle than that of whole steps.
_QUANTILE = {"hot": 0.3, "between": 0.4, "warm": 0.5, "cold": 0.5, "rotated": 0.4}
# Effective sizes that the fit chooses from: a cache shared with neighbours holds less than its datasheet says.
_CAPACITIES = {"L2": (0.5e6, 0.7e6, 1.0e6, 1.5e6, 2.0e6), "L3": (4e6, 8e6, 12e6, 16e6, 24e6, 32e6)}
# Of the size on the datasheet, at least and at most: isolated ops tell it badly (one machine's L2 as 0.5 to 2 MB, its
# L3 as 12 to 32 MB from run to run), and the last level is shared.
_EFFECTIVE = {"L2": (0.9, 1.05), "L3": (0.25, 0.5)}
_FOLDS = 5
_MIN_POINTS = 4
# A class with one of these suffixes shrinks to the class without it.
_VARIANTS = ("_channels_last", "_in_place")
# Weight of the prior of a rate, as a share of the weight of all rows.
_PRIOR = 0.3
# A rate of one kind is at most this many times that of all.
_MOST = 4.0
# Of `fit_whole`: factors, and seconds between ops that are tried; the least whose mean error is so near the best.
_WHOLE = (0.9, 1.15)
_BETWEEN_S = np.arange(0.0, 15.1e-6, 0.25e-6)
_TOLD_APART = 0.005


@dataclass(frozen=True)
class Point:
    """One isolated op: its cost, its operands, and seconds in each state.

    Attributes:
        cost: from its formula, for the thread count of the calibration.
        size: (u,) bytes of each operand; write: whether it is written; storage: which operands share memory.
        away: (u,) by state, bytes of other data that went by since the operand was touched.
        code_away: by state, bytes of other data that went by since the op's code ran.
        seconds: by state.
        noise: relative spread of the hot repeats.
    """

    cost: Cost
    size: F8
    write: Any
    storage: Any
    away: Mapping[str, F8]
    code_away: Mapping[str, float]
    seconds: Mapping[str, float]
    noise: float

    @property
    def footprint(self) -> float:
        """Bytes of distinct memory that the op touches."""
        held: dict[int, float] = {}
        for storage, size in zip(self.storage, self.size):
            held[storage] = max(held.get(storage, 0.0), float(size))
        return sum(held.values())

    def distance(self, state: str) -> F8:
        """(u,) reuse distance of each operand in a state."""
        return np.asarray(self.footprint + self.away[state])

    def code_distance(self, state: str) -> float:
        """Reuse distance of the op's code in a state."""
        return CODE_BYTES + self.footprint + self.code_away[state]


def points_of(
    raw: Sequence[Mapping[str, Any]], threads: int, lanes: int, flush_bytes: float
) -> tuple[list[Point], Counter[str]]:
    """Points from the lines that `measure.micro` wrote, and the names of ops without a formula."""
    points, gaps = [], Counter[str]()
    best = best_spin_s(raw)
    for line in raw:
        op = OpSpec(
            name=line["op"].split(".", 1)[0],
            inputs=tuple(TensorSpec(tuple(s), d, tuple(st)) for s, d, st in line["inputs"]),
            outputs=tuple(TensorSpec(tuple(s), d, tuple(st)) for s, d, st in line["outputs"]),
            attrs=line["attrs"],
            threads=threads,
            lanes=lanes,
        )
        formula = formula_for(op.name)
        if formula is None:
            gaps[op.name] += 1
            continue
        cost = formula(op)
        # the workspace is an operand as well: written, then read (lower.py lays it out the same way)
        scratch = [cost.workspace] * 2 if cost.workspace else []
        size = np.array([*cost.bytes_read(op), *cost.bytes_written(op), *scratch], float)
        hot = np.array(line["hot"])
        storage = np.array(line["storage"] + [-1] * len(scratch))
        weight = np.array([*line["weight"], *([False] * (len(op.outputs) + len(scratch)))], float)
        fresh = np.array([s not in storage[: len(op.inputs)] for s in storage])  # outputs in memory of their own
        points.append(
            Point(
                cost=cost,
                size=size,
                write=np.array([False] * len(op.inputs) + [True] * len(op.outputs) + [True, False][: len(scratch)]),
                storage=storage,
                away={
                    "hot": np.zeros(len(size)),
                    "between": weight * line["between_bytes"],
                    "warm": weight * flush_bytes,
                    "cold": np.where(fresh, float(line["cold_output"]), 1.0) * flush_bytes,
                    "rotated": weight * line.get("rotated_bytes", 0.0),
                },
                code_away={
                    "hot": 0.0,
                    "between": line["between_bytes"],
                    "warm": flush_bytes,
                    "cold": flush_bytes,
                    "rotated": 0.0,
                },
                seconds={
                    s: float(np.quantile(line[s], _QUANTILE[s])) * _speed(line, s, best) for s in _STATES if line.get(s)
                },
                noise=float(np.quantile(hot, 0.75) / np.quantile(hot, 0.25) - 1.0),
            )
        )
    return points, gaps


def best_spin_s(raw: Sequence[Mapping[str, Any]]) -> float | None:
    """What the reference spin takes where nothing disturbs it; None of points measured without one."""
    spins = [s for line in raw for of_state in line.get("spin", {}).values() for s in of_state]
    return float(np.quantile(spins, _BEST_SPIN)) if spins else None


def _speed(line: Mapping[str, Any], state: str, best: float | None) -> float:
    """Seconds at the best speed of the machine over those at its speed around the measurement of a state."""
    spins = line.get("spin", {}).get(state)
    return best / float(np.mean(spins)) if spins and best else 1.0


def _beyond(distance: F8, capacity: float) -> F8:
    """`core.traffic.beyond` on arrays."""
    cube = (distance / capacity) ** 3
    return np.asarray(cube / (1.0 + cube))


def _code_shares(point: Point, state: str, capacity: Mapping[str, float]) -> list[float]:
    """Share of the code that L2 no longer holds, and of it what L3 does not: what DRAM adds to L3."""
    d = np.array([point.code_distance(state)])
    past_l2, past_l3 = (_beyond(d, CODE_SHARE * capacity[level]) for level in ("L2", "L3"))
    return [float(past_l2[0]), float(past_l2[0] * past_l3[0])]


def _level_bytes(point: Point, state: str, capacity: Mapping[str, float]) -> list[float]:
    """Bytes read from L3 and DRAM, then bytes written to them."""
    d = point.distance(state)
    past_l2, past_l3 = _beyond(d, capacity["L2"]), _beyond(d, capacity["L3"])
    from_l3 = point.size * past_l2 * (1.0 - past_l3)
    from_dram = point.size * past_l2 * past_l3
    read, write = ~point.write, point.write
    return [from_l3[read].sum(), from_dram[read].sum(), from_l3[write].sum(), from_dram[write].sum()]


@dataclass(frozen=True)
class _Problem:
    """Rows of one kind: features, seconds, and which point each row is of."""

    columns: tuple[str, ...]
    features: F8
    seconds: F8
    point: Any


def _problem(points: Sequence[Point], capacity: Mapping[str, float]) -> _Problem:
    counted = Counter(t for p in points for t, amount in p.cost.terms.items() if amount)
    terms = sorted(t for t, n in counted.items() if n >= _MIN_POINTS)  # two points would fit a constant to themselves
    rows, seconds, number = [], [], []
    for i, p in enumerate(points):
        for state, t in p.seconds.items():
            features = [p.cost.terms.get(t, 0.0) for t in terms]
            rows.append([1.0, *_code_shares(p, state, capacity), *features, *_level_bytes(p, state, capacity)])
            seconds.append(t)
            number.append(i)
    levels = tuple(f"{way} {level}" for way in ("read", "write") for level in LEVELS)
    columns = ("overhead", "cold L3", "cold dram", *(f"term {t}" for t in terms), *levels)
    return _Problem(columns, np.array(rows, float), np.array(seconds), np.array(number))


def _solve(features: F8, seconds: F8, prior: F8 | None, strength: float) -> F8:
    """Non-negative coefficients that minimise relative errors, reweighted six times towards absolute deviations.

    `prior` (seconds a unit, nan where there is none) adds a row a column that pulls towards it.
    """
    scale = features.max(axis=0)
    unseen = scale <= 0
    scale = np.where(unseen, 1.0, scale)
    a = features / scale / seconds[:, None]
    target = np.ones(len(seconds))
    extra_a, extra_b = np.zeros((0, a.shape[1])), np.zeros(0)
    if prior is not None:
        known = np.flatnonzero(np.isfinite(prior) & (prior > 0) & ~unseen)
        extra_a = np.zeros((len(known), a.shape[1]))
        pull = strength * np.sqrt(len(seconds))
        extra_a[np.arange(len(known)), known] = pull / (prior[known] * scale[known])
        extra_b = np.full(len(known), pull)
    weight = np.ones(len(seconds))
    x = np.zeros(a.shape[1])
    for _ in range(7):
        x, _ = nnls(np.vstack((a * weight[:, None], extra_a)), np.concatenate((target * weight, extra_b)))
        residual = np.abs(a @ x - target)
        weight = 1.0 / np.sqrt(np.maximum(residual, 0.02))
        weight /= weight.mean()
    if prior is not None:  # what no point says anything about is what the prior says
        x = np.where(unseen & np.isfinite(prior), prior * scale, x)
    x = x / scale
    if prior is not None:  # a few bytes beside much else say nothing about a rate: keep it physical
        x = np.where(np.isfinite(prior), np.minimum(x, _MOST * prior), x)
    return np.asarray(x)


def _held_out(problem: _Problem, prior: F8 | None, strength: float) -> float:
    """Median relative error of points that the fit did not see."""
    fold = problem.point % _FOLDS
    errors: list[float] = []
    for f in range(_FOLDS):
        seen = fold != f
        if seen.all() or not seen.any():
            continue
        x = _solve(problem.features[seen], problem.seconds[seen], prior, strength)
        predicted = problem.features[~seen] @ x
        errors += list(np.abs(predicted / problem.seconds[~seen] - 1.0))
    return float(np.median(errors)) if errors else float("nan")


def _fit_one(points: Sequence[Point], capacity: Mapping[str, float], prior: Mapping[str, float]) -> KindFit:
    problem = _problem(points, capacity)
    wanted = np.array([prior.get(c, np.nan) for c in problem.columns])
    x = _solve(problem.features, problem.seconds, wanted, _PRIOR)
    value = dict(zip(problem.columns, (float(v) for v in x)))
    term_s = {c[5:]: v for c, v in value.items() if c.startswith("term ") and v > 0}
    return KindFit(
        overhead_s=value["overhead"],
        cold_s={"L3": value["cold L3"], "dram": value["cold L3"] + value["cold dram"]},
        term_s=term_s,
        read_s={level: value[f"read {level}"] for level in LEVELS},
        write_s={level: value[f"write {level}"] for level in LEVELS},
        most={term: max(p.cost.terms.get(term, 0.0) for p in points) for term in term_s},
        points=len(points),
        error=_held_out(problem, wanted, _PRIOR),
    )


def _groups(points: Sequence[Point]) -> dict[str, list[Point]]:
    by_kind: dict[str, list[Point]] = defaultdict(list)
    for p in points:
        by_kind[p.cost.kind].append(p)
    return {k: v for k, v in sorted(by_kind.items()) if len(v) >= _MIN_POINTS}


def _pooled_rates(
    points: Sequence[Point], capacity: Mapping[str, float], device: Mapping[str, float]
) -> dict[str, float]:
    """Seconds a byte of each level, over all kinds whose time is mostly movement: what a kind shrinks to.

    `device` is what they shrink to in turn: the bandwidths measured of the machine.
    """
    moving = [p for p in points if p.cost.kind.startswith(("elementwise", "copy"))]
    if len(moving) < _MIN_POINTS:
        return dict(device)
    fit = _fit_one(moving, capacity, device)
    rates = {f"read {k}": v for k, v in fit.read_s.items()} | {f"write {k}": v for k, v in fit.write_s.items()}
    return {k: v if v > 0 else device.get(k, np.nan) for k, v in rates.items()}


def _fit_error(points: Sequence[Point], capacity: Mapping[str, float]) -> float:
    """Mean relative error of a fit of the kinds that tell cache sizes best."""
    errors: list[float] = []
    for kind, members in _groups(points).items():
        if kind.startswith(("elementwise", "copy", "gemm", "batch_norm", "conv")):
            problem = _problem(members, capacity)
            x = _solve(problem.features, problem.seconds, None, 0.0)
            errors += list(np.abs(problem.features @ x / problem.seconds - 1.0))
    return float(np.mean(errors)) if errors else float("inf")


def choose_capacity(points: Sequence[Point], most: Mapping[str, float]) -> dict[str, float]:
    """Effective size of L2 and L3: the pair under which the fit errs least, near what `most` says they have."""
    best = {"L2": 1e6, "L3": 16e6}
    for level in ("L3", "L2"):
        sizes = list(_CAPACITIES[level])
        if level in most:
            low, high = (share * most[level] for share in _EFFECTIVE[level])
            sizes = [c for c in sizes if low <= c <= high] or [high]
        trials = [{**best, level: c} for c in sizes]
        best = min(trials, key=lambda c: _fit_error(points, c))
    return best


def fit_kinds(
    raw: Sequence[Mapping[str, Any]],
    *,
    threads: int,
    dtype: str,
    lanes: int = 16,
    flush_bytes: float,
    source: str,
    device_s_per_byte: Mapping[str, float] | None = None,
    device_bytes: Mapping[str, float] | None = None,
    torch: str = "",
    cpu: str = "",
) -> Fit:
    """Constants of every algorithm class that was measured.

    Args:
        raw: lines of `measure.micro`.
        threads, dtype: what they were measured with.
        lanes: fp32 elements of a vector of the machine (`Device.lanes`).
        flush_bytes: bytes that went by before the warm and cold states.
        source: key of the profile's ``[sources]``.
        device_s_per_byte: measured seconds a byte by ``read L3``, ``read dram``, ``write L3``, ``write dram``.
        device_bytes: size of each cache by level.
        torch, cpu: versions that the fit is for.
    """
    points, _ = points_of(raw, threads, lanes, flush_bytes)
    capacity = choose_capacity(points, device_bytes or {})
    prior = _pooled_rates(points, capacity, device_s_per_byte or {})
    kinds: dict[str, KindFit] = {}
    for kind, members in _groups(points).items():  # sorted: a class before its variants
        base = next((kinds.get(kind.removesuffix(v)) for v in _VARIANTS if kind.endswith(v)), None)
        terms = {f"term {t}": v for t, v in base.term_s.items()} if base else {}
        kinds[kind] = _fit_one(members, capacity, prior | terms)
    errors = [k.error for k in kinds.values() if k.error is not None and np.isfinite(k.error)]
    return Fit(
        threads=threads,
        dtype=dtype,
        torch=torch,
        cpu=cpu,
        date=datetime.date.today().isoformat(),
        source=source,
        points=len(points),
        error=float(np.median(errors)) if errors else None,
        noise=float(np.median([p.noise for p in points])) if points else None,
        spin_s=best_spin_s(raw),
        capacity_bytes=capacity,
        kinds=kinds,
    )


def fit_whole(
    predicted_s: F8, measured_s: F8, ops: F8, modes: Sequence[str]
) -> tuple[dict[str, float], dict[str, float]]:
    """What a model takes beside the sum of its ops in each mode, with least absolute logarithms of the ratio.

    Args:
        predicted_s: (m,) sum of each net's ops.
        measured_s: (m,) measured seconds.
        ops: (m,) ops of each net.
        modes: mode of each net.

    Returns:
        The factor of each mode on the sum, within 0.9 to 1.15, and seconds an op between ops, at most 15 µs: more of
        either would hide what the terms miss. Nets of one number of seconds an op cannot tell them apart; it is a
        factor then.
    """
    whole: dict[str, float] = {}
    between_s: dict[str, float] = {}
    for name in dict.fromkeys(modes):
        of_mode = np.array(modes) == name
        p, m, n = predicted_s[of_mode], measured_s[of_mode], ops[of_mode]
        tried = []
        for between in _BETWEEN_S:
            factor = float(np.clip(np.median((m - between * n) / p), *_WHOLE))
            tried.append((float(np.abs(np.log((factor * p + between * n) / m)).mean()), float(between), factor))
        best = min(t[0] for t in tried)
        _, between_s[name], whole[name] = next(t for t in tried if t[0] <= best + _TOLD_APART)
    return whole, between_s
