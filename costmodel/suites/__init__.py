"""Suites of ``costmodel validate --suite NAME``: a suite is a file of this folder, found by its name.

A file has ``run(device, options, progress) -> Validation`` and a docstring whose first line says what it compares.
Heavy imports are inside `run`.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from pkgutil import iter_modules
from typing import TYPE_CHECKING

from ..errors import UnknownName

if TYPE_CHECKING:
    from ..device import Device
    from ..validate import Validation

__all__ = ["Options", "Progress", "run", "suites"]

Progress = Callable[[int, int, str], None]
"""Called with the number of parts done, their total, and what is next."""


@dataclass(frozen=True)
class Options:
    """What a user may ask of any suite; one that has no use for an option ignores it.

    Attributes:
        runtime: of the device; its default otherwise.
        part: of a suite that is split, such as ``frozen`` or ``frozen,variants``: the first is what is summed up.
        threads, dtype, allocator: of the measured steps.
        processes: fresh processes a case; None is the suite's own number.
        seconds: of timing a case and process; None is the suite's own.
        into: file of raw repeats that a run adds to and goes on from, or a folder with a file a part.
        ablation: also score the measured steps with each term of the model taken out.
        op_times: file of timed ops, for errors by algorithm class.
    """

    runtime: str | None = None
    part: str = "all"
    threads: int = 1
    dtype: str = "float32"
    allocator: str = "pinned"
    processes: int | None = None
    seconds: float | None = None
    into: Path | None = None
    ablation: bool = False
    op_times: Path | None = None


def suites() -> dict[str, str]:
    """What there is, by name: the first line of each file's docstring."""
    found = {}
    for module in iter_modules(__path__):
        if not module.name.startswith("_"):
            text = (Path(__path__[0]) / f"{module.name}.py").read_text()
            found[module.name] = (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]
    return found


def run(name: str, device: Device, options: Options, progress: Progress) -> Validation:
    """Run the suite called `name`.

    Raises:
        UnknownName: there is no such suite.
    """
    if name not in suites():
        raise UnknownName("suite", name, suites())
    module = importlib.import_module(f".{name}", __name__)
    result: Validation = module.run(device, options, progress)
    return result
