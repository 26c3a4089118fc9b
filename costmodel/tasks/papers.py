"""``validate --suite papers``: the published numbers of the four methods against what our modules and formulas say.

The rows come from ``methods/papers_*.py``, computed from the real modules; what does not close is a row like any other.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from .. import methods
from ..errors import CostmodelError
from ..validate import Case, Validation

__all__ = ["papers_suite"]

# Unit of a row to (quantity, what one unit is in SI). The Quamba papers' GB is MiB / 1000 (METHODS.md).
_UNITS: dict[str, tuple[str, float]] = {
    "GB": ("size_bytes", 1000 * 2.0**20),
    "MB": ("saved_bytes", 1e6),
    "MiB": ("saved_bytes", 2.0**20),
    "MFLOPs": ("flops", 1e6),
    "MFLOP": ("flops", 1e6),
    "GFLOP": ("flops", 1e9),
    "ms": ("latency_s", 1e-3),
    "J": ("energy_j", 1.0),
    "%": ("accuracy", 1.0),
    "×": ("ratio", 1.0),
    "elements": ("elements", 1.0),
    "bytes": ("saved_bytes", 1.0),
    "": ("fits", 1.0),
}


def papers_suite() -> Validation:
    """Every published number that METHODS.md marks (P) or (D), beside the computed one."""
    rows: list[dict[str, Any]] = []
    for module in sorted(m.name for m in iter_modules(methods.__path__) if m.name.startswith("papers_")):
        rows += import_module(f"{methods.__name__}.{module}").rows()
    open_rows = {
        f"{r['paper']}: {r['quantity']} {r['case']} (published {r['published']} {r['unit']})": r["note"]
        for r in rows
        if r["computed"] is None
    }
    return Validation(tuple(_case(r) for r in rows if r["computed"] is not None), open_rows)


def _case(row: dict[str, Any]) -> Case:
    if row["unit"] not in _UNITS:
        raise CostmodelError(f"papers: unit {row['unit']!r} of {row['case']} is none of {', '.join(_UNITS)}")
    quantity, factor = _UNITS[row["unit"]]
    computed = float(row["computed"]) * factor
    return Case(
        model=f"{row['paper']}: {row['case']}",
        device="",
        runtime="",
        mode="",
        method=row["quantity"],
        batch=1,
        threads=1,
        dtype="",
        quantity=quantity,
        predicted=computed,
        low=computed,
        high=computed,
        published=float(row["published"]) * factor,
        note=row["note"],
    )
