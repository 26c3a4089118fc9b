"""Which device numbers an estimate hangs on: each is moved a little and the step priced again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from ..core.table import F8
from ..core.timeline import two_queues
from ..device import Device, Number
from ..estimate import Estimate, price_ops
from ..fusion import Fused, fuse
from ..lower import lower

__all__ = ["Hinge", "hinges"]

_STEP = 1.01


@dataclass(frozen=True)
class Hinge:
    """A device number and how the latency moves with it.

    Attributes:
        place: where it stands in the profile, for example ``cpu[0].clock_hz``.
        number: value, kind and source.
        elasticity: relative change of the latency by relative change of the number; -1 is "twice the number, half the
            time", 0 is "does not matter here".
    """

    place: str
    number: Number
    elasticity: float


def hinges(estimate: Estimate) -> list[Hinge]:
    """Every number of the estimate's device, the ones that its latency hangs on first.

    A number of another runtime, of an idle cluster or of the other engine has elasticity 0.
    """
    device, name = estimate.device, estimate.runtime
    fused = fuse(lower(estimate.graph, estimate.threads, device.lanes), device.runtime[name].fuse)
    base = _total_s(device, name, fused, estimate.fresh)
    found = []
    for place, number in device.numbers():
        elasticity = 0.0
        if _is_used(place, name) and base > 0:
            nudged = number.model_copy(update={"value": number.value * _STEP})
            moved = _total_s(_with(device, number, nudged), name, fused, estimate.fresh)
            elasticity = (moved / base - 1.0) / (_STEP - 1.0)
        found.append(Hinge(place, number, elasticity))
    return sorted(found, key=lambda h: (-abs(round(h.elasticity, 6)), h.place))


def _is_used(place: str, runtime: str) -> bool:
    """Whether a number can matter for a latency under `runtime`: the other runtimes' cannot."""
    if place.startswith("runtime."):
        return place.startswith(f"runtime.{runtime}.")
    return not place.startswith("energy.")


def _with(value: Any, old: Number, new: Number) -> Any:
    """`value` with the one object `old` in it replaced; what does not hold it is returned as it is."""
    if value is old:
        return new
    if isinstance(value, BaseModel):
        for key in type(value).model_fields:
            part = getattr(value, key)
            swapped = _with(part, old, new)
            if swapped is not part:
                return value.model_copy(update={key: swapped})
    elif isinstance(value, dict):
        for key, part in value.items():
            swapped = _with(part, old, new)
            if swapped is not part:
                return {**value, key: swapped}
    elif isinstance(value, tuple):
        for i, part in enumerate(value):
            swapped = _with(part, old, new)
            if swapped is not part:
                return (*value[:i], swapped, *value[i + 1 :])
    return value


def _total_s(device: Device, runtime: str, fused: Fused, fresh: F8 | None) -> float:
    """Seconds of the step as `estimate` prices it."""
    constants = device.runtime[runtime]
    scale = constants.scale.get(fused.lowered.graph.meta.mode) or constants.scale.get("default")
    seconds, _, _, issue_s = price_ops(fused, device, constants, fresh=fresh)
    _, end = two_queues(seconds, issue_s)
    return (scale.value if scale else 1.0) * (float(end[-1]) if len(end) else 0.0)
