"""``program.pt2``: what ``torch.export.save`` wrote, loaded as data."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..errors import CostmodelError, FileError
from ._pt2 import check_archive
from .inputs import Loaded, Wanted, refuse

__all__ = ["build"]


def build(name: str, options: dict[str, Any], wanted: Wanted) -> Loaded:
    """The exported module, and the inputs that it was exported with.

    Batch norm and dropout run as they did when it was exported, in training too; shapes are those of the export,
    so that batch and size cannot be chosen here. ``meta`` drops the values after loading.

    Raises:
        FileError: not an archive of ``torch.export``, damaged, or with anything in it that would be executed.
    """
    path = Path(name)
    if options:
        raise CostmodelError(f"{name} is a finished program: it takes no settings, not {options}")
    fixed = "was exported with its shapes"
    refuse(name, wanted, input_size=fixed, seq=fixed, cache="was exported as one forward pass")
    check_archive(path)
    try:
        with _quiet():
            program = torch.export.load(path)
            # guards are Python text in the file: they are not wanted here, and would be compiled
            module: nn.Module = program.module(check_guards=False)
    except Exception as error:
        raise FileError(path, "", f"torch.export cannot load it ({type(error).__name__}: {_line(error)})") from error
    if not program.example_inputs:
        raise FileError(
            path, "sample_inputs", "was saved without example inputs; export it again with torch.export.save"
        )
    args, kwargs = _pair(path, program.example_inputs)
    leaves = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    if wanted.batch != 1 and leaves and leaves[0].shape[:1] != (wanted.batch,):
        raise CostmodelError(f"{name} was exported with batch {leaves[0].shape[0]}: leave --batch out")
    _stay_as_exported(module)
    first = leaves[0] if leaves else None
    task = "other"
    if first is not None and first.dim() in {2, 4}:
        task = {2: "text", 4: "image"}[first.dim()] if first.is_floating_point() == (first.dim() == 4) else "other"
    return Loaded(name, module.to(wanted.device), args, kwargs, task, f"torch.export, torch {torch.__version__}")


@contextmanager
def _quiet() -> Iterator[None]:
    """torch logs the traceback of what it then raises; the error says it in one line."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _pair(path: Path, inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if not (
        isinstance(inputs, tuple) and len(inputs) == 2 and isinstance(inputs[0], tuple) and isinstance(inputs[1], dict)
    ):
        raise FileError(path, "sample_inputs", "is not a pair of positional and keyword arguments")
    return inputs


def _stay_as_exported(module: nn.Module) -> None:
    """An exported module raises when it is told to train or evaluate; here it just stays what it is."""

    def stay(mode: bool = True) -> nn.Module:  # noqa: ARG001
        return module

    module.train = stay  # type: ignore[method-assign]
    module.eval = stay  # type: ignore[method-assign]


def _line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), "no message")[:200]
