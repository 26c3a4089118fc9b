"""Limits on latency, memory and energy, tested on the upper bound of an estimate.

A ``budget.toml`` has one ``[[budget]]`` an estimate::

    schema = 1

    [[budget]]
    model = "timm:mobilenetv2_100"
    device = "raspberry-pi-4b"
    mode = "train"
    batch = 8
    threads = 4
    latency = "2.5 s"
    memory = "1 GiB"         # what must fit: resident bytes on a CPU, reserved bytes on a GPU
    memory_live = "512 MiB"
    energy = "9 J"

A whole job has its limits in an entry of its own, with what `job` needs to know::

    [[budget]]
    model = "timm:mobilenetv2_100"
    device = "raspberry-pi-4b"
    mode = "train"
    batch = 8
    epochs = 3
    samples = 50000
    job = "12 h"             # the run, with reading samples and starting up
    job_energy = "20 Wh"

    [[budget]]
    model = "transformers:mamba-130m"
    device = "raspberry-pi-5"
    prompt = 512
    generate = 128
    request = "60 s"
    first_token = "20 s"
    request_energy = "300 J"

A limit is a number in SI units or a text with its unit. Nothing here measures or draws random numbers: the same trace,
profile and budget give the same verdict on every machine.
"""

from __future__ import annotations

import math
import os
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from .errors import CostmodelError, FileError, UnknownName
from .estimate import Estimate, Range
from .job import Job, Request, TrainingJob

__all__ = ["LIMITS", "Budget", "Check", "Entry", "check", "exit_status", "limits", "load_budget", "quantity"]

SCHEMA = 1
# Limit to (dimension, the axis of `pareto` that it bounds).
LIMITS = {
    "latency": ("time", "latency_s"),
    "memory": ("bytes", "peak_rss_bytes"),
    "memory_live": ("bytes", "peak_live_bytes"),
    "memory_reserved": ("bytes", "peak_reserved_bytes"),
    "memory_rss": ("bytes", "peak_rss_bytes"),
    "energy": ("energy", "energy_j"),
    "job": ("time", "job_s"),
    "job_energy": ("energy", "job_energy_j"),
    "request": ("time", "request_s"),
    "first_token": ("time", "first_token_s"),
    "request_energy": ("energy", "request_energy_j"),
}
_OF_A_RUN = frozenset(["job", "job_energy"])
_OF_A_REQUEST = frozenset(["request", "first_token", "request_energy"])
_OF_A_STEP = frozenset(["latency", "energy"])
_UNITS = {
    "time": {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0},
    "bytes": {
        "b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2.0**10, "mib": 2.0**20, "gib": 2.0**30,
    },
    "energy": {"uj": 1e-6, "µj": 1e-6, "mj": 1e-3, "j": 1.0, "kj": 1e3, "wh": 3600.0},
}  # fmt: skip


def quantity(text: str | float, dimension: str) -> float:
    """A limit in SI units.

    Args:
        text: ``"50ms"``, ``"256 MiB"``, ``"1.5 J"``, or a number that is in SI units already.
        dimension: ``time``, ``bytes`` or ``energy``.

    Raises:
        CostmodelError: not a positive number with a unit of that dimension.

    >>> quantity("50ms", "time"), quantity("256 MiB", "bytes"), quantity(0.5, "energy")
    (0.05, 268435456.0, 0.5)
    """
    units = _UNITS[dimension]
    wanted = f"a positive number with one of the units {', '.join(units)}, as in {_EXAMPLE[dimension]!r}"
    if isinstance(text, bool) or not isinstance(text, (str, int, float)):
        raise CostmodelError(f"{text!r} is not a limit; give {wanted}")
    if isinstance(text, str):
        parsed = re.fullmatch(r"\s*([0-9.]+(?:e[+-]?[0-9]+)?)\s*([a-zµμ]*)\s*", text, re.IGNORECASE)
        unit = parsed[2].replace("μ", "µ").lower() if parsed else ""
        if parsed is None or unit not in units:
            raise CostmodelError(f"{text!r} is not a limit; give {wanted}")
        try:
            value = float(parsed[1]) * units[unit]
        except ValueError:
            raise CostmodelError(f"{text!r} is not a limit; give {wanted}") from None
    else:
        try:
            value = float(text)
        except OverflowError:
            value = math.inf
    if not (value > 0 and math.isfinite(value)):
        raise CostmodelError(f"{text!r} is not a limit; give {wanted}")
    return value


_EXAMPLE = {"time": "50 ms", "bytes": "256 MiB", "energy": "1.5 J"}


def limits(text: str) -> dict[str, float]:
    """Limits of the command line, by axis in SI units: what ``pareto(points, budget=…)`` takes.

    >>> limits("latency=50ms,memory=256MiB")
    {'latency_s': 0.05, 'peak_rss_bytes': 268435456.0}
    """
    found: dict[str, float] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        name, equals, value = part.partition("=")
        name = name.strip()
        if not equals:
            raise CostmodelError(f"{part!r} is not a limit; write name=value, as in latency=50ms,memory=256MiB")
        if name not in LIMITS:
            raise UnknownName("limit", name, LIMITS)
        dimension, axis = LIMITS[name]
        if axis in found:
            raise CostmodelError(f"two limits on {axis}; give one")
        found[axis] = quantity(value, dimension)
    if not found:
        raise CostmodelError("the budget is empty; write for example latency=50ms,memory=256MiB")
    return found


def _limit(dimension: str) -> BeforeValidator:
    def parse(value: Any) -> float:
        try:
            return quantity(value, dimension)
        except CostmodelError as error:
            raise ValueError(str(error)) from None

    return BeforeValidator(parse)


Time = Annotated[float, _limit("time")]
Bytes = Annotated[float, _limit("bytes")]
Joules = Annotated[float, _limit("energy")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Entry(_Strict):
    """What is estimated (the options of ``costmodel estimate``) and its limits; at least one limit."""

    model: str = Field(min_length=1)
    device: str = Field(min_length=1)
    runtime: str | None = None
    mode: Literal["infer", "train", "prefill", "decode"] = "infer"
    method: str | None = None
    batch: int = Field(default=1, ge=1)
    input_size: str | None = None
    seq: int | None = Field(default=None, ge=1)
    dtype: str = "float32"
    optimizer: str = "sgd"
    threads: int = Field(default=1, ge=1)
    latency: Time | None = None
    memory: Bytes | None = None
    memory_live: Bytes | None = None
    memory_reserved: Bytes | None = None
    memory_rss: Bytes | None = None
    energy: Joules | None = None
    epochs: int | None = Field(default=None, ge=1)
    samples: int | None = Field(default=None, ge=1)
    workers: int = Field(default=0, ge=0)
    sample_seconds: float | None = Field(default=None, ge=0)
    start_seconds: float | None = Field(default=None, ge=0)
    job: Time | None = None
    job_energy: Joules | None = None
    prompt: int | None = Field(default=None, ge=1)
    generate: int | None = Field(default=None, ge=1)
    request: Time | None = None
    first_token: Time | None = None
    request_energy: Joules | None = None
    file: str = Field(default="", exclude=True)
    line: int = Field(default=0, exclude=True)

    @model_validator(mode="after")
    def _limited(self) -> Entry:
        if not self.limits:
            raise ValueError(f"has no limit; give one of {', '.join(LIMITS)}")
        if (self.epochs is None) != (self.samples is None) or (self.prompt is None) != (self.generate is None):
            raise ValueError("epochs and samples go together, and so do prompt and generate; give both")
        is_run, is_request = self.epochs is not None, self.prompt is not None
        if is_run and (is_request or self.mode != "train"):
            raise ValueError('epochs and samples are of a training run: write mode = "train", and no prompt')
        for limit in self.limits:
            if limit in _OF_A_RUN and not is_run:
                raise ValueError(f"{limit} is of a training run; give epochs and samples")
            if limit in _OF_A_REQUEST and not is_request:
                raise ValueError(f"{limit} is of a request; give prompt and generate")
            if limit in _OF_A_STEP and is_request:
                raise ValueError(f"{limit} is of one step; a request has request, first_token and request_energy")
        return self

    @property
    def limits(self) -> dict[str, float]:
        """Limits that are set, by name of `LIMITS`, in SI units."""
        return {name: value for name in LIMITS if (value := getattr(self, name)) is not None}


class Budget(_Strict):
    """A budget file: its entries, in order."""

    schema_: Literal[1] = Field(alias="schema")
    budget: tuple[Entry, ...] = Field(min_length=1)


@dataclass(frozen=True)
class Check:
    """One limit tested.

    Attributes:
        model, device, runtime, mode, method, batch, threads: of the estimate.
        limit_name: one of `LIMITS`.
        limit: SI units.
        predicted: the estimate's figure; None where the profile has no sourced constants for it.
        verdict: ``within`` if the upper bound is inside the limit, ``over`` if not, ``unknown`` without a figure.
        file, line: the budget file and the line of the entry in it; empty and 0 if it came from nowhere.
    """

    model: str
    device: str
    runtime: str
    mode: str
    method: str | None
    batch: int
    threads: int
    limit_name: str
    limit: float
    predicted: Range | None
    verdict: Literal["within", "over", "unknown"]
    file: str = ""
    line: int = 0

    @property
    def over(self) -> float | None:
        """By how much the upper bound exceeds the limit, as a share of it; negative is room left."""
        return None if self.predicted is None else self.predicted.high / self.limit - 1.0

    @property
    def surely_over(self) -> bool:
        """Whether even the lower bound is over the limit."""
        return self.predicted is not None and self.predicted.low > self.limit


def load_budget(path: str | os.PathLike[str]) -> Budget:
    """Read a budget; `FileError` names the file, the key and the fix."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        document = tomllib.loads(text)
    except FileNotFoundError:
        raise FileError(path, "", "no such file; write one as in `help(costmodel.budget)`") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError, RecursionError) as error:
        raise FileError(path, "", f"is not TOML: {error}") from None
    if document.get("schema") != SCHEMA:
        raise FileError(path, "schema", f"is {document.get('schema')!r}, this version reads {SCHEMA}")
    entries = document.get("budget")
    for entry, line in zip(entries if isinstance(entries, list) else (), _lines_of_entries(text)):
        if isinstance(entry, dict):
            for key in ("file", "line"):
                if key in entry:
                    raise FileError(path, f"budget.{key}", "is not a key of a budget; remove it")
            entry |= {"file": str(path), "line": line}
    try:
        return Budget.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        given = "" if isinstance(first["input"], (dict, list)) else f" (given {first['input']!r})"
        raise FileError(path, key, f"{first['msg'].removeprefix('Value error, ')}{given}") from None


def _lines_of_entries(text: str) -> list[int]:
    """Line numbers, from 1, of the ``[[budget]]`` headers; tomllib keeps none."""
    return [n for n, line in enumerate(text.splitlines(), 1) if re.match(r"\s*\[\[\s*budget\s*\]\]", line)]


def check(budget: Budget | Sequence[Entry], estimates: Sequence[Estimate | Job]) -> list[Check]:
    """Test each limit on the upper bound of its estimate.

    Args:
        budget: the entries.
        estimates: one an entry, in order; the job of an entry that has one (`job.training_job`, `job.request`).

    Returns:
        One row a limit, in the order of the file.
    """
    entries = budget.budget if isinstance(budget, Budget) else tuple(budget)
    if len(entries) != len(estimates):
        raise CostmodelError(f"{len(estimates)} estimates for {len(entries)} budget entries; give one each, in order")
    return [row for entry, estimate in zip(entries, estimates) for row in _check(entry, estimate)]


def _check(entry: Entry, priced: Estimate | Job) -> list[Check]:
    estimate = priced.step if isinstance(priced, Job) else priced
    _is_of(entry, priced, estimate)
    return [_row(entry, estimate, name, limit, _figure(priced, estimate, name)) for name, limit in entry.limits.items()]


def _is_of(entry: Entry, priced: Estimate | Job, estimate: Estimate) -> None:
    """Raise unless what was priced is what the entry asks for."""
    meta = estimate.graph.meta
    request = isinstance(priced, Request)
    asked = [
        ("device", entry.device.removesuffix(".toml").rsplit("/", 1)[-1], estimate.device.name),
        ("mode", "prefill" if request else entry.mode, meta.mode),
        ("batch", entry.batch, meta.batch),
        ("threads", entry.threads, estimate.threads),
        ("epochs", entry.epochs, priced.epochs if isinstance(priced, TrainingJob) else None),
        ("samples", entry.samples, priced.samples if isinstance(priced, TrainingJob) else None),
        ("prompt", entry.prompt, priced.prompt if isinstance(priced, Request) else None),
        ("generate", entry.generate, priced.generate if isinstance(priced, Request) else None),
    ]
    traced = entry.model.endswith((".json", ".json.gz"))  # it says what it is of; what the entry says must agree
    for what, wanted, got in asked:
        if traced and what in ("mode", "batch") and what not in entry.model_fields_set:
            continue
        if wanted != got:
            raise CostmodelError(f"the budget for {entry.model} has {what} {wanted!r}, its estimate {got!r}")


def _figure(priced: Estimate | Job, estimate: Estimate, name: str) -> Range | None:
    """What limit `name` bounds; None where the profile has no sourced constants for it, or for a part of it."""
    if name in _OF_A_RUN | _OF_A_REQUEST:
        assert isinstance(priced, Job)
        if name == "first_token":
            assert isinstance(priced, Request)
            return priced.first_token_s
        if name.endswith("energy"):
            return None if priced.gaps.keys() - {"energy of data loading"} else priced.energy_j
        return None if priced.gaps.keys() - {"energy of data loading"} else priced.seconds
    step = priced.peak if isinstance(priced, Request) else estimate
    memory = step.memory
    gpu = step.device.runtime[step.runtime].engine == "gpu"
    figures = {
        "latency": step.latency_s,
        "memory": memory.peak_reserved if gpu else memory.peak_rss,
        "memory_live": memory.peak_live,
        "memory_reserved": memory.peak_reserved,
        "memory_rss": memory.peak_rss,
        "energy": step.energy_j,
    }
    return figures[name]


def _row(entry: Entry, estimate: Estimate, name: str, limit: float, predicted: Range | None) -> Check:
    meta = estimate.graph.meta
    return Check(
        model=entry.model,
        device=estimate.device.name,
        runtime=estimate.runtime,
        mode="request" if entry.prompt is not None else meta.mode,
        method=meta.method,
        batch=meta.batch,
        threads=estimate.threads,
        limit_name=name,
        limit=limit,
        predicted=predicted,
        verdict="unknown" if predicted is None else "within" if predicted.high <= limit else "over",
        file=entry.file,
        line=entry.line,
    )


def exit_status(rows: Sequence[Check]) -> int:
    """0 if every upper bound is within its limit, 1 if one is over, 2 if none is over but one cannot be tested."""
    verdicts = {row.verdict for row in rows}
    return 1 if "over" in verdicts else 2 if "unknown" in verdicts else 0
