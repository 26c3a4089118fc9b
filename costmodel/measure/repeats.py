"""Raw repeats on disk, a line a process and job: a measurement that was killed goes on, and can be scored again.

A line is ``{"job": {…}, "torch": …, "cpu": …, "date": …, "wall_s": […], "cpu_s": […], "preempted": […]}``; of the job,
what differs from its defaults. Lines of one job are its processes, in the order of their end.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..errors import CostmodelError, FileError
from ..host import cpu_name
from .job import Job

__all__ = ["Raw", "add_repeats", "read_repeats", "refuse_another_machine"]

Raw = dict[str, Any]
"""What one process says of one job: ``wall_s``, ``cpu_s``, ``preempted``, and where and when it ran."""


def read_repeats(path: Path) -> dict[Job, list[Raw]]:
    """Processes of each job, in the order of the file; a last line that a kill cut off is left out.

    Raises:
        FileError: a line that is no such object.
    """
    found: dict[Job, list[Raw]] = {}
    if not path.exists():
        return found
    lines = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines[:-1], 1):  # the last piece is empty, or was cut off
        try:
            raw = json.loads(line)
            job = Job(**raw.pop("job"))
            lengths = {
                len(raw[key]) for key in ("wall_s", "cpu_s", "preempted", "spin_s") if key != "spin_s" or key in raw
            }
        except (ValueError, TypeError, KeyError, AttributeError, CostmodelError) as error:
            raise FileError(path, f"line {number}", f"is no measured job ({type(error).__name__}: {error})") from None
        if len(lengths) != 1 or lengths == {0}:
            raise FileError(path, f"line {number}", f"has {sorted(lengths)} repeats by wall, cpu and preempted")
        found.setdefault(job, []).append(raw)
    return found


def add_repeats(path: Path, job: Job, raw: Mapping[str, Any]) -> None:
    """Append what a process measured, after the last whole line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    line = {
        "job": _changed(job),
        **_here(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **{key: [float(f"{v:.6g}") for v in raw[key]] for key in ("wall_s", "cpu_s", "spin_s") if raw.get(key)},
        "preempted": [int(p) for p in raw["preempted"]],
        **({} if raw.get("peak_live_bytes") is None else {"peak_live_bytes": raw["peak_live_bytes"]}),
    }
    with open(path, "a+b") as file:
        file.seek(0)
        old = file.read()
        if old and not old.endswith(b"\n"):
            file.truncate(old.rfind(b"\n") + 1)
        file.write(json.dumps(line, separators=(",", ":")).encode() + b"\n")


def refuse_another_machine(path: Path, known: Mapping[Job, list[Raw]]) -> None:
    """Raise if `path` holds runs of another processor or torch: repeats of one job must be of one thing."""
    here = _here()
    for runs in known.values():
        for raw in runs:
            there = {key: raw.get(key, "") for key in here}
            if there != here:
                raise FileError(path, "", f"has runs of {_said(there)}; here is {_said(here)}: give another file")


def _here() -> dict[str, str]:
    return {"torch": version("torch"), "cpu": cpu_name()}


def _said(machine: Mapping[str, str]) -> str:
    return f"torch {machine['torch'] or '(unknown)'} on {machine['cpu'] or 'an unknown processor'}"


def _changed(job: Job) -> dict[str, Any]:
    values = job.as_dict()
    return {f.name: values[f.name] for f in fields(Job) if f.name == "model" or values[f.name] != f.default}
