"""The cost side of an arm: its step traced as it was trained, and run here, both kept as files.

What ships lies in ``traces/tasks/<family>-<arm>.json.gz`` and ``traces/runs/tasks/measured-<device>.csv``; what was
traced or run since lies in the user's cache, traces under a digest of all that makes them.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..capture import capture
from ..errors import FileError
from ..graph import OpGraph, load
from ..runs import Run, append_runs, read_runs
from . import family as family_of
from .result import cache_folder, key_of

__all__ = ["OPTIMIZER", "SHIPPED", "arm_run", "arm_trace", "kept_runs", "runs_file", "trace_file"]

OPTIMIZER = "adamw"
"""What the training families train with."""

SHIPPED = Path(__file__).resolve().parents[2] / "traces"
_SECONDS = 1.0  # of timing a step


def trace_file(family: str, arm: str) -> Path:
    """Where the trace of an arm ships."""
    return SHIPPED / "tasks" / f"{family}-{_slug(arm)}.json.gz"


def runs_file(device: str) -> Path:
    """Where the runs of arms on a device ship."""
    return SHIPPED / "runs" / "tasks" / f"measured-{device}.csv"


def arm_trace(family: str, arm: str, *, shipped: bool = False, keep: bool = False) -> OpGraph:
    """The step of an arm: from the user's cache, if nothing that makes traces has changed since, else traced now.

    Args:
        shipped: take the trace that ships, if there is one.
        keep: write it where the shipped ones are.
    """
    if shipped and trace_file(family, arm).is_file():
        return load(trace_file(family, arm))
    cached = cache_folder() / "traces" / f"{family}-{_slug(arm)}-{_makers(family)}.json.gz"
    graph = _loaded(cached)
    if graph is None:
        model, inputs, mode = family_of(family).build(arm)
        graph = capture(model, inputs, mode=mode, optimizer=OPTIMIZER, name=family, method=arm)
        graph.save(cached)
        graph.file = str(cached)
    if keep:
        graph.file = str(graph.save(trace_file(family, arm)))
    return graph


def arm_run(family: str, arm: str, device: str, *, keep: bool = False) -> Run:
    """Run the step of an arm on this machine, which reports call `device`, and keep the run."""
    from ..measure import measure

    model, inputs, mode = family_of(family).build(arm)
    run = measure(model, inputs, mode=mode, optimizer=OPTIMIZER, seconds=_SECONDS, name=family, method=arm)
    run = replace(run, device=device)
    append_runs(runs_file(device) if keep else _cached_runs(device), [run])
    return run


def kept_runs(family: str, device: str) -> dict[str, tuple[Run, Path]]:
    """The runs of a family's arms on a device, by arm, with the file of each; the user's own before the shipped."""
    found: dict[str, tuple[Run, Path]] = {}
    for path in (runs_file(device), _cached_runs(device)):
        if path.is_file():
            found |= {run.method or "": (run, path) for run in read_runs(path).runs if run.model == family}
    return found


def _cached_runs(device: str) -> Path:
    return cache_folder() / "runs" / f"measured-{_slug(device)}.csv"


def _loaded(path: Path) -> OpGraph | None:
    try:
        return load(path) if path.is_file() else None
    except FileError:
        path.unlink(missing_ok=True)  # an older format
        return None


def _slug(arm: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", arm).strip("-")


@cache
def _makers(family: str) -> str:
    """A digest of what makes the traces of a family: after a change of it, older ones are not read."""
    package = Path(__file__).parents[1]
    files = [package / name for name in ("capture.py", "graph.py", "inplace.py", "fakes.py", "models/step.py")]
    files += [package / "tasks" / f"{family}.py", *package.glob("methods/**/*.py"), *package.glob("kernels/*.py")]
    digest = hashlib.sha256()
    for file in sorted(f for f in files if f.is_file()):
        digest.update(file.read_bytes())
    libraries: dict[str, Any] = {name: version(name) for name in ("torch", "timm", "transformers")}
    return key_of(files=digest.hexdigest(), libraries=libraries)
