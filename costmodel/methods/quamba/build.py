"""From a float model to a quantized one: read, calibrate, fill; the model that is given is not changed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from ...errors import CostmodelError
from ...kernels.hadamard import hadamard_order
from ...kernels.pages import place_buffers
from .calibration import calibrate, token_rows
from .floats import read_model
from .model import QuantizedMamba
from .recipe import Recipe, Sizes

__all__ = ["check_recipe", "empty", "is_abstract", "quantize"]


def is_abstract(model: nn.Module) -> bool:
    """Whether the parameters have shapes only (meta device or fake tensors)."""
    p = next(model.parameters())
    return p.is_meta or isinstance(p, FakeTensor)


def tied(model: Any) -> bool:
    """Whether the head is the embedding."""
    return model.lm_head.weight is model.backbone.embeddings.weight


def check_recipe(sizes: Sizes, recipe: Recipe) -> None:
    """Raise `CostmodelError` where a size does not fit: before anything is computed."""
    if sizes.hidden % 16 or sizes.width % 16:
        raise CostmodelError(f"hidden size {sizes.hidden} and inner size {sizes.width} must be multiples of 16")
    for block in recipe.blocks:
        if block.rotate:
            hadamard_order(sizes.width)
        if block.folded:
            hadamard_order(sizes.hidden)
        if block.weight_bits == 4:
            for k in (sizes.hidden, sizes.width):
                if k % block.group:
                    raise CostmodelError(
                        f"K = {k} is not divisible by the group of {block.group} that 4-bit weights share"
                    )


def empty(model: Any, recipe: Recipe) -> QuantizedMamba:
    """The quantized model with zeros for weights, on the device (or in the fake mode) of `model`."""
    sizes = Sizes.of(model.config, tied(model))
    check_recipe(sizes, recipe)
    like: Tensor = next(model.parameters()).detach().new_empty(0, dtype=torch.float32)
    return QuantizedMamba(sizes, recipe, like).eval()


def quantize(model: Any, inputs: Any, recipe: Recipe, percentile: float, samples: int, seed: int) -> QuantizedMamba:
    """Quantize by round to nearest with static scales; the recipes of Quamba and of the naive baseline."""
    if not 0 < percentile <= 100:
        raise CostmodelError(f"percentile={percentile}: give per cent above 0, up to 100")
    quantized = empty(model, recipe)
    if is_abstract(model):
        return quantized
    rows = token_rows(inputs, samples, seed)
    floats = read_model(model)
    seen = calibrate(floats, rows)
    for block, weights, statistics in zip(quantized.blocks, floats.blocks, seen.layers):
        block.fill(weights, statistics, percentile)  # type: ignore[operator]
    quantized.fill_ends(floats, seen.head)
    place_buffers(quantized)
    return quantized
