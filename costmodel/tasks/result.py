"""What a task run is, and where it is kept: found again by its content, so that a grid goes on after a kill."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, cast

from platformdirs import user_cache_path
from pydantic import ConfigDict, TypeAdapter, ValidationError

from costmodel.errors import FileError
from costmodel.graph import write_atomic
from costmodel.runs import locked

__all__ = [
    "SEEDS",
    "Budget",
    "NotKept",
    "Progress",
    "Scalar",
    "Summary",
    "TaskResult",
    "cached",
    "cached_json",
    "committed",
    "kept_file",
    "key_of",
    "only_kept",
    "paired",
    "publish",
    "published",
    "summary",
    "widened",
]

Budget = Literal["demo", "quick", "wide", "full"]
"""Of a grid: ``wide`` trains as ``quick`` does, with every arm and seed of ``full``."""
SEEDS: dict[Budget, tuple[int, ...]] = {
    "demo": (0,),
    "quick": (0, 1, 2),
    "wide": (0, 1, 2, 3, 4),
    "full": (0, 1, 2, 3, 4),
}
Progress = Callable[[float, str], None]
"""Called with the share done (0 to 1) and what is going on."""

Scalar = str | int | float | bool | None
_SCHEMA = 1
_LOOKING: ContextVar[bool] = ContextVar("_LOOKING", default=False)
_COMMITTED = Path(__file__).resolve().parents[2] / "traces" / "runs" / "tasks"


class NotKept(Exception):
    """Raised by `cached` inside `only_kept`."""


@dataclass(frozen=True)
class TaskResult:
    """One point's run: an arm (method spec) of a family, one seed, evaluated once on the held-out test set.

    `train_s` and `train_cpu_s` are this run's wall and CPU seconds on the machine that ran it (the search for the
    learning rate not included); they are not a device's cost: the cost side traces `build(arm)` for that.
    `per_item` holds the metric of each test item where runs should be compared in pairs (ssm: bits/byte by window);
    `key` is the content key that it is kept under.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    family: str
    arm: str
    seed: int
    budget: Budget
    metric: str
    value: float
    higher_is_better: bool
    train_s: float
    train_cpu_s: float
    data: str
    model: str
    settings: dict[str, Scalar]
    per_item: list[float] = field(default_factory=list)
    key: str = ""


@dataclass(frozen=True)
class Summary:
    """A point over its seeds: mean, standard error of the mean (nan for one seed), and how many."""

    arm: str
    metric: str
    mean: float
    stderr: float
    seeds: int
    higher_is_better: bool


_RESULT = TypeAdapter(TaskResult)


def key_of(**what: object) -> str:
    """Content key: 16 hex digits of the SHA-256 of the options, whatever order they are given in.

    >>> key_of(a=1, b="x") == key_of(b="x", a=1) != key_of(a=2, b="x")
    True
    """
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:16]


def cache_folder() -> Path:
    """The user's folder for task results, checkpoints and unpacked data."""
    return user_cache_path("costmodel") / "tasks"


def cached(key: str, compute: Callable[[], TaskResult]) -> TaskResult:
    """The result under `key` from the user's cache, else from traces/runs/tasks/, else computed and kept."""
    file = cache_folder() / "results" / f"{key}.json"
    if file.is_file():
        return replace(_read(file.read_bytes(), file), key=key)
    if key in (shelf := _committed_by_key()):
        return shelf[key]
    if (wide := _wide(key)) in shelf:  # the same run
        return replace(shelf[wide], budget="quick", key=key)
    if _LOOKING.get():
        raise NotKept(key)
    result = replace(compute(), key=key)
    write_json(file, asdict(result))
    return result


def widened(quick: TaskResult) -> TaskResult:
    """A result of the quick recipe as a point of the wide grid."""
    return cached(_wide(quick.key), lambda: replace(quick, budget="wide"))


def _wide(key: str) -> str:
    """The key of a quick result as a point of the wide grid."""
    return f"{key}-wide"


@contextmanager
def only_kept() -> Iterator[None]:
    """Inside, `cached` computes nothing: it raises `NotKept` for what is not kept."""
    token = _LOOKING.set(True)
    try:
        yield
    finally:
        _LOOKING.reset(token)


def cached_json(kind: str, key: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A small intermediate answer (a learning-rate search, say) under `key`, computed once; other processes wait."""
    file = cache_folder() / kind / f"{key}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    with locked(file):
        if file.is_file():
            return cast("dict[str, Any]", json.loads(file.read_text(encoding="utf-8")))
        answer = compute()
        write_json(file, answer)
    return answer


def write_json(file: Path, content: object) -> None:
    """Write as a whole or not at all."""
    write_atomic(file, (json.dumps(content, indent=1, sort_keys=True) + "\n").encode())


def publish(family: str, budget: Budget, results: Iterable[TaskResult]) -> Path:
    """Write results of `cached` as the committed file of this family and budget, traces/runs/tasks/<...>.json."""
    file = published(family, budget)
    write_json(file, {"schema": _SCHEMA, "results": [asdict(result) for result in results]})
    _committed_by_key.cache_clear()
    return file


def published(family: str, budget: Budget) -> Path:
    """Where the results of a family and budget ship."""
    return _COMMITTED / f"{family}-{budget}.json"


def kept_file(result: TaskResult) -> Path:
    """The file that holds a result of `cached`: the user's, else the one that ships."""
    own = cache_folder() / "results" / f"{result.key}.json"
    return own if own.is_file() else published(result.family, result.budget)


def committed(family: str, budget: Budget | None = None) -> list[TaskResult]:
    """The results that ship in traces/runs/tasks/ for a family."""
    found = _committed_by_key().values()
    return [r for r in found if r.family == family and budget in (None, r.budget)]


def summary(results: Iterable[TaskResult]) -> list[Summary]:
    """Mean and standard error over the seeds of each arm, arms in the order in which they come."""
    by_arm: dict[str, list[TaskResult]] = {}
    for result in results:
        by_arm.setdefault(result.arm, []).append(result)
    points = []
    for arm, runs in by_arm.items():
        values = [run.value for run in runs]
        n, mean = len(values), math.fsum(values) / len(values)
        spread = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1) / n) if n > 1 else math.nan
        points.append(Summary(arm, runs[0].metric, mean, spread, n, runs[0].higher_is_better))
    return points


def paired(results: Iterable[TaskResult], baseline: str) -> list[Summary]:
    """As `summary`, of each run's difference from the baseline arm's run with the same seed.

    Seeds that the baseline has not run are left out. The spread between seeds that all arms share (another language
    model each) drops out, so that differences much smaller than it are seen.
    """
    runs = list(results)
    base = {run.seed: run.value for run in runs if run.arm == baseline}
    return summary(replace(run, value=run.value - base[run.seed]) for run in runs if run.seed in base)


@lru_cache(maxsize=1)
def _committed_by_key() -> dict[str, TaskResult]:
    shelf: dict[str, TaskResult] = {}
    for file in sorted(_COMMITTED.glob("*.json")):
        content = json.loads(file.read_text(encoding="utf-8"))
        if content.get("schema") != _SCHEMA:
            raise FileError(file, "schema", f"is {content.get('schema')!r} where {_SCHEMA} is read; run the grid again")
        for entry in content["results"]:
            result = _read(json.dumps(entry).encode(), file)
            shelf[result.key] = result
    return shelf


def _read(text: bytes, file: Path) -> TaskResult:
    try:
        return _RESULT.validate_json(text)
    except ValidationError as bad:
        first = bad.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise FileError(file, where, f"{first['msg']}; delete the file and run again") from bad
