"""Quamba2's latency cells on an RTX A5000 and an Orin Nano: bytes or operations over one fitted constant."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..validate import Case
from . import Progress
from ._devices_bar import Bar

_PHASES = {"TPOT": "decode", "TTFT": "prefill", "SSD kernel": "prefill"}


def quamba2(progress: Progress) -> Iterator[tuple[Bar, list[Case], dict[str, str]]]:
    """Each cell by its precision's constant, and decode without the batch that is predicted."""
    from ..methods.papers_ssm import decode_cells, fit_efficiency, rows

    progress(0, 1, "Quamba2's sizes on the meta device")
    name, found, skipped = "Quamba2 cells", [], {}
    for row in rows():
        if row["quantity"] in _PHASES and row["paper"] == "Quamba2":
            if row["note"].endswith("fitted on 1 cell"):
                skipped[f"{row['quantity']} {row['case']}"] = "is the only cell of its constant: no test"
            else:
                found.append(_case(row["case"], _PHASES[row["quantity"]], name, row["computed"], row["published"]))
    yield (
        Bar(name, "one constant per precision and phase, fitted on the cells themselves", "worst", 0.15),
        found,
        skipped,
    )
    name, found = "Quamba2 decode, batch left out", []
    cells = decode_cells()
    for (device, bits), of_batch in cells.items():
        others = [
            np.log(ms / bound) for (d, b), c in cells.items() if (d, b) != (device, bits) for bound, ms in c.values()
        ]
        for batch, (bound, published) in of_batch.items():
            rest = {b: both for b, both in of_batch.items() if b != batch}
            if rest:
                share = fit_efficiency({b: r[0] for b, r in rest.items()}, {b: r[1] for b, r in rest.items()})
                case = f"mamba2-8b {bits} batch {batch} {device}"
                constant = float(np.exp(np.median(others)))
                found.append(_case(case, "decode", name, bound / share, published, bound * constant))
    yield (
        Bar(name, "the constant of a precision from its other batches; roofline: from other precisions", "worst", None),
        found,
        {},
    )


def _case(case: str, mode: str, group: str, predicted: float, published: float, baseline: float | None = None) -> Case:
    """One cell; milliseconds."""
    return Case(
        model=case, device="", runtime="quamba2", mode=mode, method=None, batch=1, threads=1, dtype=case.split(" ")[1],
        quantity="latency_s", predicted=1e-3 * predicted, low=1e-3 * predicted, high=1e-3 * predicted,
        published=1e-3 * published, baseline=None if baseline is None else 1e-3 * baseline, group=group,
    )  # fmt: skip
