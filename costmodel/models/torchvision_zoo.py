"""``torchvision:NAME``: classification, segmentation, detection, video and optical flow, random weights."""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CostmodelError
from ._compat import require
from .inputs import Loaded, Wanted, image, make_on, refuse, unknown

__all__ = ["build", "family_of", "names"]

_KINDS = ("segmentation", "detection", "video", "optical_flow", "quantization")
# [C, H, W] or [C, T, H, W] where the published weights do not say a crop: torchvision's own reference recipes.
_SIZES = {
    "classification": (3, 224, 224),
    "quantization": (3, 224, 224),
    "segmentation": (3, 520, 520),
    "detection": (3, 800, 800),
    "optical_flow": (3, 520, 960),
    "video": (3, 16, 112, 112),
}


def names() -> list[str]:
    """Every model of the installed torchvision."""
    require("torchvision")
    from torchvision.models import list_models

    return list(list_models())


def family_of(name: str) -> str:
    """The file of torchvision that defines `name`."""
    torchvision = require("torchvision")
    return str(torchvision.models.get_model_builder(name).__module__)


def build(name: str, options: dict[str, Any], wanted: Wanted) -> Loaded:
    """The torchvision model `name` with ``weights=None``; detectors get a list of images, RAFT two."""
    torchvision = require("torchvision")
    spec = f"torchvision:{name}"
    if name not in names():
        unknown("torchvision model", name, names(), "torchvision")
    refuse(spec, wanted, seq="reads images", cache="reads images")
    builder = torchvision.models.get_model_builder(name)
    kind = next((k for k in _KINDS if f".{k}." in builder.__module__), "classification")
    size = wanted.input_size or _own_size(torchvision, name, kind)
    if len(size) != len(_SIZES[kind]):
        raise CostmodelError(f"{spec} takes {len(_SIZES[kind])} numbers such as {'x'.join(map(str, _SIZES[kind]))}")
    model = _create(torchvision, name, builder, kind, options, wanted, size)
    return Loaded(spec, model, _inputs(kind, name, size, wanted), {}, "image", f"torchvision {torchvision.__version__}")


def _own_size(torchvision: Any, name: str, kind: str) -> tuple[int, ...]:
    """The evaluation size of the published weights, read from their recipe; nothing is downloaded."""
    size = _SIZES[kind]
    try:
        recipe = torchvision.models.get_model_weights(name).DEFAULT.transforms
    except (AttributeError, ValueError):  # models that have no published weights
        return size
    crop = getattr(recipe, "keywords", {}).get("crop_size")
    if crop is None:
        return size
    height, width = (crop, crop) if isinstance(crop, int) else crop
    return (*size[:-2], height, width)


def _create(
    torchvision: Any,
    name: str,
    builder: Any,
    kind: str,
    options: dict[str, Any],
    wanted: Wanted,
    size: tuple[int, ...],
) -> nn.Module:
    settings: dict[str, Any] = {"weights": None, **options}
    if kind in {"segmentation", "detection"}:
        settings.setdefault("weights_backbone", None)  # its default downloads
    if name.removeprefix("quantized_") in {"googlenet", "inception_v3"}:
        settings.setdefault("init_weights", False)  # its default warns that it will change
    if "image_size" in _takes(torchvision, builder) and wanted.input_size is not None:
        settings.setdefault("image_size", size[-1])
    try:
        model = make_on(wanted.device, partial(torchvision.models.get_model, name, **settings))
    except TypeError as error:
        raise CostmodelError(f"torchvision:{name} does not take {options}: {error}") from error
    module: Any
    for module in model.modules():
        if hasattr(module, "cell_anchors"):  # plain tensors, whose values a meta device would lose
            with torch.device("cpu"):
                module.cell_anchors = [
                    module.generate_anchors(s, r) for s, r in zip(module.sizes, module.aspect_ratios)
                ]
    return model


def _takes(torchvision: Any, builder: Any) -> set[str]:
    """What can be set beyond the builder's own arguments; only the vision transformers' size matters here."""
    if builder.__module__.endswith("vision_transformer"):
        return set(inspect.signature(torchvision.models.VisionTransformer).parameters)
    return set()


def _inputs(kind: str, name: str, size: tuple[int, ...], wanted: Wanted) -> tuple[Any, ...]:
    batch = image(wanted, *size)
    if kind == "detection":
        images: list[Tensor] = list(batch)
        if wanted.mode != "train":
            return (images,)
        return images, [_target(name, *size[-2:]) for _ in images]
    if kind == "optical_flow":
        return batch, image(wanted, *size)
    return (batch,)


OBJECTS = 8  # in each image of a detector's training step; COCO has 7 on average (Lin et al. 2014, section 5)


def _target(name: str, height: int, width: int) -> dict[str, Tensor]:
    """What a detector trains on: boxes of growing size, their classes, and masks or key points where it has them."""
    far = torch.linspace(0.2, 0.9, OBJECTS)
    near = torch.full((OBJECTS,), 0.1)
    boxes = torch.stack((near * width, near * height, far * width, far * height), 1)
    target = {"boxes": boxes, "labels": torch.ones(OBJECTS, dtype=torch.long)}
    if name.startswith("maskrcnn"):
        target["masks"] = torch.ones(OBJECTS, height, width, dtype=torch.uint8)
    if name.startswith("keypointrcnn"):
        target["keypoints"] = torch.ones(OBJECTS, 17, 3)
    return target
