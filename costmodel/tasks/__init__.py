"""Small real tasks that give the accuracy axis of a Pareto report: train or quantize, then evaluate.

Each family is a file here (`irb`, `vit`, `ssm`) with the same three doors:

* `grid(budget)` lists the points, (arm, seed); an arm is a method as `apply_method` takes it;
* `run(arm, seed=…, budget=…)` trains or quantizes, evaluates, and returns a `TaskResult`, from the cache when it
  was run before;
* `build(arm)` returns (model, inputs, mode): the model that `run` trains, for the cost side to trace.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, Protocol, cast

from costmodel.errors import UnknownName
from costmodel.tasks.result import Budget, Progress, TaskResult

__all__ = ["Budget", "Family", "Progress", "TaskResult", "families", "family"]


class Family(Protocol):
    """What each family's module offers."""

    def grid(self, budget: Budget) -> list[tuple[str, int]]: ...

    def run(self, arm: str, *, seed: int, budget: Budget, progress: Progress | None = None) -> TaskResult: ...

    def build(self, arm: str, seed: int = 0) -> tuple[Any, Any, str]: ...


def families() -> list[str]:
    """Names of the families: the modules here that start with the line of a family's docstring."""
    here = Path(__file__).parent
    return [
        module.name
        for module in iter_modules([str(here)])
        if (here / f"{module.name}.py").read_text(encoding="utf-8").startswith('"""Task family ')
    ]


def family(name: str) -> Family:
    """The family's module. Raises UnknownName."""
    if name not in families():
        raise UnknownName("task family", name, families())
    return cast(Family, import_module(f"costmodel.tasks.{name}"))
