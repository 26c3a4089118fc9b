"""Optional libraries, imported in the order and the state in which they work beside a CPU build of torch."""

from __future__ import annotations

import logging
import sys
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor

from ..errors import MissingExtra

__all__ = ["require"]

# Compiled ops of torchvision that its models run, as its C++ declares them. It registers fakes for the first two
# without asking whether they were loaded.
_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "roi_align(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width, "
    "int sampling_ratio, bool aligned) -> Tensor",
    "_roi_align_backward(Tensor grad, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width, "
    "SymInt batch_size, SymInt channels, SymInt height, SymInt width, int sampling_ratio, bool aligned) -> Tensor",
)
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
    load nothing is declared twice. Declared ops can be traced; running them raises torch's own error.
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
        _use_declared_ops()


def _declare_schemas() -> None:
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _SCHEMAS:
        if not torch._C._dispatch_has_kernel(f"torchvision::{schema.partition('(')[0]}"):
            library.define(schema)
    _declared.append(library)


def _use_declared_ops() -> None:
    """Let torchvision call the declared ops as where it is compiled, with fakes and the gradient that they have there.

    Where a class of boxes is suppressed at a time, how many classes there are depends on data: of fake tensors, all
    classes are suppressed at once, which is what torchvision itself does with few boxes.
    """
    boxes: Any = import_module("torchvision.ops.boxes")
    roi: Any = import_module("torchvision.ops.roi_align")
    boxes._assert_has_ops = roi._assert_has_ops = lambda: None
    roi._has_ops = lambda: True
    by_class, at_once = boxes._batched_nms_vanilla, boxes._batched_nms_coordinate_trick

    def suppress(found: torch.Tensor, *rest: Any) -> Any:
        return (at_once if isinstance(found, FakeTensor) else by_class)(found, *rest)

    boxes._batched_nms_vanilla = suppress
    torch.library.register_fake("torchvision::roi_align", _roi_align_shape)
    torch.library.register_fake("torchvision::_roi_align_backward", _roi_align_backward_shape)
    torch.library.register_autograd("torchvision::roi_align", _roi_align_gradient, setup_context=_keep_for_gradient)


def _roi_align_shape(x: torch.Tensor, rois: torch.Tensor, _scale: float, height: int, width: int, *_: Any) -> Any:
    return x.new_empty((rois.shape[0], x.shape[1], height, width))


def _roi_align_backward_shape(grad: torch.Tensor, *rest: Any) -> Any:
    return grad.new_empty(rest[4:8])  # after the boxes, their scale and the pooled height and width


def _keep_for_gradient(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:  # noqa: ARG001
    x, rois, *ctx.settings = inputs
    ctx.size = x.shape
    ctx.save_for_backward(rois)


def _roi_align_gradient(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
    (rois,) = ctx.saved_tensors
    scale, height, width, ratio, aligned = ctx.settings
    backward = torch.ops.torchvision._roi_align_backward
    return backward(grad, rois, scale, height, width, *ctx.size, ratio, aligned), *[None] * 6


def _quiet_kernel_notices() -> None:
    """transformers tells at each Mamba block that CUDA kernels are absent; on a CPU that is no news."""
    for name in ("integrations.hub_kernels", "models.mamba.modeling_mamba", "models.mamba2.modeling_mamba2"):
        logging.getLogger(f"transformers.{name}").setLevel(logging.ERROR)
