"""Resident bytes kept on disk, one JSON line a fresh process, so that a suite that is cut off goes on where it was."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..errors import FileError
from . import machine
from .resident import MemoryJob, Resident, Stage

__all__ = ["add_run", "read_runs"]


def read_runs(path: Path) -> dict[str, list[Resident]]:
    """Runs under this build of torch and Python by the job's name, in the order in which they were measured.

    Raises:
        FileError: a line that is not a run.
    """
    found: dict[str, list[Resident]] = {}
    if not path.exists():
        return found
    here = machine()
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            row = json.loads(line)
            stages = {name: Stage(**stage) for name, stage in row["stages"].items()}
            run = Resident(stages, int(row["private"]), int(row["shared"]))
            name, build = str(row["name"]), (row["machine"]["torch"], row["machine"]["python"])
        except (ValueError, TypeError, KeyError) as error:
            raise FileError(path, f"line {number}", f"is no memory run ({error}); delete the line") from None
        if build == (here["torch"], here["python"]):
            found.setdefault(name, []).append(run)
    return found


def add_run(path: Path, job: MemoryJob, run: Resident) -> None:
    """Append a run."""
    row: dict[str, Any] = {"name": job.name, "machine": machine(), **asdict(run)}
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")
