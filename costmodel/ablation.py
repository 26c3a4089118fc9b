"""What each term of the CPU time model buys: measured runs scored with the term taken out.

A variant that changes what is fitted (classes, features) is fitted again to the isolated ops of the calibration; one
that drops a constant keeps the others. Beside each error stands that of the variant with one free factor a mode, fitted
on the other models: what is left when the bias is taken away.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import numpy as np

from .core.table import F8
from .costs import Cost, rewritten
from .device import Device, Fit
from .errors import CostmodelError
from .estimate import price_ops, roofline
from .fusion import fuse
from .graph import OpGraph
from .lower import Lowered, lower
from .placement import placed_distances
from .validate import Ablated

__all__ = ["Measurement", "Variant", "ablate", "variants"]

Refit = Callable[[], Fit]
_FAR = 1e18  # bytes: beyond any cache
# What every op paid of its cold code before it had a distance of its own (reports/diary.md: kappa).
_SHARE = 0.2
_LEVELS = ("L2", "L3", "dram")


@dataclass(frozen=True, eq=False)
class Measurement:
    """A traced step and its measured seconds."""

    graph: OpGraph
    seconds: float

    @property
    def phase(self) -> str:
        """``train``, or ``infer`` for everything that only runs forward."""
        return "train" if self.graph.meta.mode == "train" else "infer"


@dataclass(frozen=True)
class Variant:
    """The model with something taken out.

    Attributes:
        name: what was done.
        cost: change to every formula, which is then fitted again; None changes none.
        fit: change to the fitted constants.
        distances: of a lowered graph, those that are other: ``distance`` of operands, ``code_distance`` of ops.
    """

    name: str
    cost: Callable[[Cost], Cost] | None = None
    fit: Callable[[Fit], Fit] = lambda fit: fit
    distances: Callable[[Lowered], dict[str, F8]] = lambda _: {}


def variants() -> tuple[Variant, ...]:
    """The terms of the model, each taken out of the whole."""
    return (
        Variant("all terms"),
        Variant("without algorithm branches (a class a family, fitted again)", cost=_family_only),
        Variant("without the posynomial (one term a class, fitted again)", cost=_one_term),
        Variant("without cold code", fit=_without_cold),
        Variant(f"a fixed share of cold code ({_SHARE:g} of the coldest)", fit=_fixed_share),
        Variant("all code cold", distances=lambda lowered: {"code_distance": np.full(len(lowered.graph), _FAR)}),
        Variant(
            "cache levels by an op's own footprint", distances=lambda lowered: {"distance": _own_footprint(lowered)}
        ),
        Variant("without cache levels", distances=lambda lowered: {"distance": np.zeros_like(lowered.table.use_bytes)}),
        Variant(
            "all data from DRAM", distances=lambda lowered: {"distance": np.full_like(lowered.table.use_bytes, _FAR)}
        ),
        Variant(
            "without the factor of the whole and the time between ops",
            fit=lambda fit: fit.model_copy(update={"whole": {}, "between_s": {}}),
        ),
    )


def _family_only(cost: Cost) -> Cost:
    """``conv_1x1_backward`` to ``conv_backward``; a feature that one branch alone has still tells it apart."""
    return replace(cost, kind=cost.kind.split("_")[0] + ("_backward" if "backward" in cost.kind else ""))


def _one_term(cost: Cost) -> Cost:
    """The features of a class to its operations; of a class that computes nothing, to the first of them."""
    work = float(cost.flops if cost.work is None else cost.work)
    return replace(cost, terms={"work": work} if work else dict(list(cost.terms.items())[:1]))


def _without_cold(fit: Fit) -> Fit:
    return _with_cold(fit, lambda _: {})


def _fixed_share(fit: Fit) -> Fit:
    """Every op pays one share of what it pays with its code in DRAM, wherever its code is."""
    return _with_cold(fit, lambda cold: dict.fromkeys(_LEVELS, _SHARE * max(cold.values(), default=0.0)))


def _with_cold(fit: Fit, changed: Callable[[Mapping[str, float]], dict[str, float]]) -> Fit:
    kinds = {name: kind.model_copy(update={"cold_s": changed(kind.cold_s)}) for name, kind in fit.kinds.items()}
    return fit.model_copy(update={"kinds": kinds})


def _own_footprint(lowered: Lowered) -> F8:
    """(u,) bytes of all operands of the op that each operand is of: as if nothing else had run in between."""
    table = lowered.table
    counts = np.diff(table.use_ptr)
    total = np.concatenate(([0.0], np.cumsum(table.use_bytes)))
    own = total[table.use_ptr[1:]] - total[table.use_ptr[:-1]]
    return np.asarray(np.repeat(own, counts))


def ablate(
    measured: Sequence[Measurement],
    device: Device,
    *,
    threads: int = 1,
    refit: Refit | None = None,
    only: Sequence[Variant] | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> tuple[Ablated, ...]:
    """Score measured steps under every variant of the fit in `device`, and under the one-constant roofline.

    Args:
        measured: steps of one dtype.
        device: with a calibration for `threads`.
        threads: of the steps.
        refit: fits the isolated ops of the calibration again, under the formulas of the moment; without it the
            variants that need it are left out.
        only: these variants instead of `variants`.
        progress: called with variants done, their total, and what is next.

    Raises:
        CostmodelError: the device has no calibration.
    """
    name = next((n for n, r in device.runtime.items() if r.engine == "cpu" and r.fit), None)
    if name is None or not measured:
        raise CostmodelError(f"{device.name} has no calibration to take terms out of; run `costmodel calibrate`")
    dtype = measured[0].graph.meta.dtype
    base = next((f for f in device.runtime[name].fit if (f.threads, f.dtype) == (threads, dtype)), None)
    if base is None:
        raise CostmodelError(f"{device.name} has no calibration for {threads} thread(s) and {dtype}")
    wanted = [v for v in (variants() if only is None else only) if v.cost is None or refit is not None]
    rows: list[Ablated] = []
    for number, variant in enumerate(wanted):
        if progress is not None:
            progress(number, len(wanted) + 1, variant.name)
        around: AbstractContextManager[None] = nullcontext() if variant.cost is None else rewritten(variant.cost)
        with around:
            fit = base
            if variant.cost is not None and refit is not None:
                fit = refit().model_copy(update={"whole": base.whole, "between_s": base.between_s})
            one = _with_only(device, name, variant.fit(fit))
            rows += _rows(variant.name, measured, [_price(m.graph, one, name, threads, variant) for m in measured])
    one = _with_only(device, name, base)
    bare = [roofline(lower(m.graph, threads, one.lanes), one, one.runtime[name]) for m in measured]
    rows += _rows("one-constant roofline", measured, _one_constant(measured, bare))
    return tuple(rows)


def _with_only(device: Device, runtime: str, fit: Fit) -> Device:
    """`device` with `fit` as its one calibration."""
    changed = device.runtime[runtime].model_copy(update={"fit": (fit,)})
    return device.model_copy(update={"runtime": {**device.runtime, runtime: changed}})


def _price(graph: OpGraph, device: Device, runtime: str, threads: int, variant: Variant) -> float:
    fused = fuse(lower(graph, threads, device.lanes), device.runtime[runtime].fuse, workspaces=True)
    placed = dict(zip(("distance", "code_distance"), placed_distances(fused.lowered)))
    used = placed | variant.distances(fused.lowered)
    seconds, *_ = price_ops(fused, device, device.runtime[runtime], (used["distance"], used["code_distance"]))
    return float(seconds.sum())


def _one_constant(measured: Sequence[Measurement], bare: Sequence[float]) -> list[float]:
    """The roofline with its one constant a phase, from the other models."""
    logs = np.array([math.log(m.seconds / b) for m, b in zip(measured, bare)])
    return [b * math.exp(_median_of_others(logs, measured, i)) for i, b in enumerate(bare)]


def _median_of_others(logs: F8, measured: Sequence[Measurement], i: int) -> float:
    others = [logs[j] for j, m in enumerate(measured) if j != i and m.phase == measured[i].phase]
    return float(np.median(others)) if others else 0.0


def _rows(name: str, measured: Sequence[Measurement], predicted: Sequence[float]) -> list[Ablated]:
    """One row a phase."""
    truth, guess = np.array([m.seconds for m in measured]), np.array(predicted)
    logs = np.log(truth / guess)
    free = guess * np.exp([_median_of_others(logs, measured, i) for i in range(len(measured))])
    phase = np.array([m.phase for m in measured])
    rows = []
    for one in dict.fromkeys(phase):
        here = phase == one
        error = np.abs(guess[here] / truth[here] - 1.0)
        rows.append(
            Ablated(
                name=name,
                phase=str(one),
                n=int(here.sum()),
                mape=float(error.mean()),
                median_ape=float(np.median(error)),
                within_10=float((error <= 0.10).mean()),
                worst=float(error.max()),
                free_mape=float(np.abs(free[here] / truth[here] - 1.0).mean()) if here.sum() > 1 else None,
            )
        )
    return rows
