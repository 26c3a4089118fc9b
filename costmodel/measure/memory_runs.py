"""Measured memory kept on disk, a JSON line a measurement, so that a suite that is cut off goes on where it was.

A line has the job's ``name``, the ``machine``, and either ``stages``, ``private``, ``shared``, ``pss`` and ``files`` of
a fresh process (`Resident`; earlier lines have no last two, and as shared what others mapped at that moment) or
``live``: peaks of live bytes of the first step and in steady state.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import FileError
from . import machine
from .resident import Mapped, MemoryJob, Resident, Stage

__all__ = ["Kept", "add_live", "add_run", "read_runs"]


@dataclass
class Kept:
    """What a file holds of this build of torch and Python, by the job's name, in the order of measurement."""

    resident: dict[str, list[Resident]] = field(default_factory=dict)
    live: dict[str, tuple[int, int]] = field(default_factory=dict)


def read_runs(path: Path) -> Kept:
    """What `path` holds; nothing if there is no such file.

    Raises:
        FileError: a line that is no measurement.
    """
    kept = Kept()
    if not path.exists():
        return kept
    here = machine()
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            row = json.loads(line)
            name, build = str(row["name"]), (row["machine"]["torch"], row["machine"]["python"])
            if build != (here["torch"], here["python"]):
                continue
            if "live" in row:
                first, steady = map(int, row["live"])
                kept.live[name] = (first, steady)
            else:
                stages = {stage: Stage(**found) for stage, found in row["stages"].items()}
                files = {file: Mapped(*map(int, of_file)) for file, of_file in row.get("files", {}).items()}
                run = Resident(stages, int(row["private"]), int(row["shared"]), int(row.get("pss", 0)), files)
                kept.resident.setdefault(name, []).append(run)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise FileError(path, f"line {number}", f"is no measurement ({error}); delete the line") from None
    return kept


def add_run(path: Path, job: MemoryJob, run: Resident) -> None:
    """Append what a fresh process had resident."""
    _add(path, job, asdict(run))


def add_live(path: Path, job: MemoryJob, first: int, steady: int) -> None:
    """Append peaks of live bytes: of the first step, and of one in steady state."""
    _add(path, job, {"live": [first, steady]})


def _add(path: Path, job: MemoryJob, found: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps({"name": job.name, "machine": machine()} | found) + "\n")
