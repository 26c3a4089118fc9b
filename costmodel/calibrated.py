"""What the calibrations of a runtime say of an op: which one counts, the constants of its class, how far they reach."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import NamedTuple

from .costs import Cost
from .device import Fit, KindFit, Runtime

__all__ = ["UNPRICED", "Beyond", "beyond_calibration", "constants_of", "fit_for"]

# The class of an op without a formula: priced by the bytes of its inputs and outputs, and listed by name.
UNPRICED = "unpriced"
# How many times the largest value of a calibration a term may have before it is told.
_FAR = 10.0


def fit_for(runtime: Runtime, threads: int, dtype: str) -> Fit | None:
    """The calibration for this thread count and dtype, else for the nearest thread count."""
    fits = [f for f in runtime.fit if f.dtype == dtype]
    return min(fits, key=lambda f: abs(f.threads - threads), default=None)


def constants_of(fit: Fit, kind: str) -> KindFit | None:
    """The fitted constants of a class, or of the most alike one that was measured, or None.

    ``conv_depthwise_backward_k4`` takes those of ``_k3``; a backward never takes a forward's; what has no formula is
    priced as an elementwise op.
    """
    if kind in fit.kinds:
        return fit.kinds[kind]
    if kind == UNPRICED:
        return fit.kinds.get("elementwise")
    family = kind.split("_")[0]
    alike = [k for k in fit.kinds if k.split("_")[0] == family and ("backward" in k) == ("backward" in kind)]
    best = max(alike, key=lambda k: len(os.path.commonprefix([k, kind])), default=None)  # noqa: RUF071  names, not paths
    return fit.kinds[best] if best else None


class Beyond(NamedTuple):
    """Ops of a class that are further out than any it was calibrated on.

    Attributes:
        kind, term: the class, and which of its terms is beyond.
        ops: how many ops are.
        times: the largest value over the largest that was calibrated.
        seconds: what the term adds to these ops.
    """

    kind: str
    term: str
    ops: int
    times: float
    seconds: float


def beyond_calibration(
    costs: Iterable[Cost], runtime: Runtime, *, threads: int, dtype: str, mode: str
) -> tuple[Beyond, ...]:
    """Terms of a step's ops that are over `_FAR` times what any point of the calibration had, the dearest first: a line
    through near points may lead anywhere there."""
    fit = fit_for(runtime, threads, dtype)
    if fit is None:
        return ()
    split = fit.of_mode(mode)[0] * fit.threads / threads
    found: dict[tuple[str, str], Beyond] = {}
    for cost in costs:
        constants = constants_of(fit, cost.kind) or KindFit()
        for term, most in constants.most.items():
            value = cost.terms.get(term, 0.0)
            if value > _FAR * most:
                before = found.get((cost.kind, term), Beyond(cost.kind, term, 0, 0.0, 0.0))
                found[cost.kind, term] = Beyond(
                    cost.kind,
                    term,
                    before.ops + 1,
                    max(before.times, value / most),
                    before.seconds + split * constants.term_s[term] * value,
                )
    return tuple(sorted(found.values(), key=lambda b: -b.seconds))
