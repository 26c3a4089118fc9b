"""The largest size (a batch, a sequence) whose peak fits a capacity, by few traces."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

from .errors import CaptureError, CostmodelError

__all__ = ["Largest", "largest_that_fits"]


@dataclass(frozen=True)
class Largest:
    """The largest size (a batch, a sequence) whose peak is within a capacity.

    Attributes:
        size: the answer; 0 if not even 1 fits.
        peak_bytes: its peak.
        fixed_bytes, bytes_each: the affine fit through the first two sizes, ``peak = fixed + each · size``.
        error: of the fit at the third trace, relative.
        bound_by: ``memory``; or ``model``, which the next size cannot be traced with; or ``limit``.
        traced: size to peak of everything that was traced.
    """

    size: int
    peak_bytes: int
    fixed_bytes: float
    bytes_each: float
    error: float
    bound_by: str
    traced: dict[int, int]


def largest_that_fits(
    peak_bytes: Callable[[int], int], capacity_bytes: float, sizes: tuple[int, int] = (1, 2), limit: int = 1 << 20
) -> Largest:
    """Largest size whose peak fits, by two traces and an affine fit, checked by a third at the answer.

    Args:
        peak_bytes: traces one size and returns its peak (live, reserved or resident); raises `CaptureError` for a size
            that the model does not take.
        capacity_bytes: what there is.
        sizes: the two sizes to trace; the second is doubled while the peak does not grow (loading the model is more
            than the step).
        limit: no larger size is tried.

    Returns:
        The size, its traced peak, and the fit with its error at the third trace. The answer is traced and fits, and
        the next size is traced and does not: where the fit is off, it is made again through nearer sizes.

    Raises:
        CostmodelError: sizes that are not increasing and positive; a peak that does not grow.
    """
    small, large = sizes
    if not 0 < small < large:
        raise CostmodelError(f"two sizes to trace must be positive and increasing, not {small} and {large}")
    if capacity_bytes <= 0:
        raise CostmodelError(f"capacity must be more than 0 bytes, not {capacity_bytes:.0f}")
    known: dict[int, int] = {small: peak_bytes(small)}
    if known[small] > capacity_bytes and small > 1:
        small, large = 1, small
        known[1] = peak_bytes(1)
    if small == 1 and known[1] > capacity_bytes:
        return Largest(0, 0, float(known[1]), 0.0, 0.0, "memory", dict(sorted(known.items())))
    refused = limit + 1
    size, line, error = large, None, 0.0
    width = 2 * limit + 2
    while True:
        try:
            if size not in known:
                known[size] = peak_bytes(size)
        except CaptureError:
            refused = min(refused, size)
        else:
            if line is None and known[size] > known[small]:
                line = _line(known, small, size)
            elif line is not None and not error:
                error = (line[0] + line[1] * size) / known[size] - 1.0
        fits = max((k for k, peak in known.items() if peak <= capacity_bytes), default=0)
        over = min((k for k, peak in known.items() if peak > capacity_bytes), default=limit + 1)
        fails = min(over, refused)
        if fails <= fits + 1:
            break
        crept = over <= limit and 2 * (fails - fits) > width  # the curve misleads: halve what is open instead
        width = fails - fits
        size = _next_size(known, capacity_bytes, fits, fails, crept or (refused <= over and refused <= limit))
    if line is None and fits == limit:
        raise CostmodelError(f"the peak does not grow from size {small} to {limit}: does the model use what is varied?")
    fixed, each = line or (float(known.get(fits, 0)), 0.0)
    bound = "memory" if fails == over <= limit else "model" if fails == refused <= limit else "limit"
    return Largest(fits, known.get(fits, 0), fixed, each, error, bound, dict(sorted(known.items())))


def _next_size(known: dict[int, int], capacity: float, fits: int, fails: int, bisect: bool) -> int:
    """Where the curve through the three traced sizes nearest to the capacity meets it, or the line through two; within
    what is still open. Attention makes it a curve."""
    near = sorted(known, key=lambda k: abs(known[k] - capacity))
    if not bisect and len({known[k] for k in near[:3]}) == 3:
        parts = [(k, [j for j in near[:3] if j != k]) for k in near[:3]]
        curve = sum(k * prod((capacity - known[j]) / (known[k] - known[j]) for j in others) for k, others in parts)
        if fits < curve < fails:
            return min(max(int(curve), fits + 1), fails - 1)
    a, b = sorted(near[:2]) if len(known) > 1 else (fits, fits)
    if bisect or known.get(b, 0) <= known.get(a, 0):
        guess = (fits + fails) // 2 if bisect else 2 * max(known)
    else:
        fixed, each = _line(known, a, b)
        guess = int((capacity - fixed) // each)
    return min(max(guess, fits + 1), fails - 1)


def _line(known: dict[int, int], a: int, b: int) -> tuple[float, float]:
    """Bytes at size 0 and bytes a size, from two traced sizes."""
    each = (known[b] - known[a]) / (b - a)
    return known[a] - each * a, each
