"""Wall energy of the AGX Xavier's CPU: constants from other families of models."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..device import load_device
from ..errors import CostmodelError
from ..validate import Case
from . import Progress
from ._devices_bar import Bar

FILE, DEVICE, RUNTIME = "mlperf_edge_v07_v11.csv.gz", "jetson-agx-xavier", "tflite"


def energy(progress: Progress) -> Iterator[tuple[Bar, list[Case], dict[str, str]]]:
    """Joules of a request at maximum power: idle power over its measured time, its operations, its bytes."""
    from scipy.optimize import nnls

    from ..fewshot import family_of
    from ..measure.published import reference, runs_of, without_families
    from ..measure.rebuild import estimate_of_run

    device = load_device(DEVICE)
    found, skipped = [], {}
    runs = [r for r in runs_of(reference() / FILE) if r.energy_j and "AGX Xavier" in r.device and "tflite" in r.runtime]
    for i, run in enumerate(runs):
        progress(i, len(runs), run.name)
        if "power.0" not in run.runtime:
            skipped[f"energy {run.name} {run.runtime}"] = "is of another power mode, which has one or two rows"
            continue
        try:
            e = estimate_of_run(run, device, RUNTIME)
        except CostmodelError as error:
            skipped[f"energy {run.name}"] = str(error)
            continue
        found.append((run, np.array([run.latency_s, float(e.flops), float(e.bytes_moved)])))
    joules = np.array([run.energy_j or 0.0 for run, _ in found])
    terms = np.array([t for _, t in found])
    predicted, constant = np.empty(len(found)), np.empty(len(found))
    size = terms.max(axis=0)
    for train, test in without_families([family_of(run.model) for run, _ in found]):
        weights = nnls(terms[train] / size / joules[train, None], np.ones(len(train)))[0]
        predicted[test] = terms[test] / size @ weights
        constant[test] = terms[test, 0] * np.median(joules[train] / terms[train, 0])
    name = "AGX Xavier CPU, energy"
    out = [
        Case(
            model=run.model, device=run.device, runtime=RUNTIME, mode=run.mode, method=None, batch=run.batch or 1,
            threads=device.cores, dtype=run.dtype, quantity="energy_j", predicted=float(p), low=0.9 * float(p),
            high=1.1 * float(p), published=float(j), baseline=float(b), size=run.input_size, group=name,
        )
        for (run, _), p, j, b in zip(found, predicted, joules, constant)
    ]  # fmt: skip
    split = "time as measured; constants from other families; the baseline is one average power"
    yield Bar(name, split, "mape", None), out, skipped
