"""Optional libraries, imported in the order and the state in which they work beside a CPU build of torch."""

from __future__ import annotations

import logging
import sys
from functools import cache
from importlib import import_module
from types import ModuleType

import torch

from ..errors import MissingExtra

__all__ = ["require"]

# Schemas that torchvision registers fakes for without asking whether its compiled ops were loaded.
_UNGUARDED = ("nms", "qnms")
_SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_declared: list[torch.library.Library] = []  # a Library undeclares its ops when it is collected


def require(library: str) -> ModuleType:
    """Import `library` (timm, torchvision, transformers), or raise `MissingExtra` with the pip command.

    timm and transformers import torchvision when it is installed, so torchvision is made to work first.
    """
    _prepare_torchvision()
    try:
        module = import_module(library)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in {library, "torchvision"}:
            raise MissingExtra(missing, "models") from error
        raise
    if library == "transformers":
        _quiet_kernel_notices()
    return module


@cache
def _prepare_torchvision() -> None:
    """Import torchvision if it is there; declare the two schemas that it misses if that is why it fails.

    torchvision 0.28 is a CUDA build whose compiled ops do not load beside CPU torch; importing it then fails with
    ``operator torchvision::nms does not exist``. A real import is tried first, so that where the compiled ops do
    load nothing is declared twice.
    """
    try:
        import_module("torchvision")
    except ModuleNotFoundError:
        return
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        _declare_schemas()
        for name in [m for m in sys.modules if m.partition(".")[0] == "torchvision"]:
            del sys.modules[name]  # half-imported: start over
        import_module("torchvision")


def _declare_schemas() -> None:
    library = torch.library.Library("torchvision", "FRAGMENT")
    for op in _UNGUARDED:
        if not torch._C._dispatch_has_kernel(f"torchvision::{op}"):
            library.define(op + _SIGNATURE)
    _declared.append(library)


def _quiet_kernel_notices() -> None:
    """transformers tells at each Mamba block that CUDA kernels are absent; on a CPU that is no news."""
    for name in ("integrations.hub_kernels", "models.mamba.modeling_mamba", "models.mamba2.modeling_mamba2"):
        logging.getLogger(f"transformers.{name}").setLevel(logging.ERROR)
