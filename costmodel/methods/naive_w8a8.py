"""The baseline: static per-tensor W8A8 with maxima everywhere, no percentile, no rotation (METHODS.md §3)."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..errors import CostmodelError
from .quamba.build import quantize
from .quamba.recipe import BlockRecipe, Recipe

__all__ = ["apply"]


def apply(model: nn.Module, inputs: Any, *, samples: int = 512, seed: int = 0) -> nn.Module:
    """A naive W8A8 copy of a `transformers` Mamba or Mamba-2, on the kernels of Quamba; `model` is not changed.

    Args:
        inputs: token ids to calibrate on, (sequences, length) or a list or dict of such.
        samples, seed: at most so many sequences, drawn by the seed.
    """
    config: Any = getattr(model, "config", None)
    if getattr(config, "model_type", "") not in ("mamba", "mamba2"):
        raise CostmodelError(f"naive_w8a8 quantizes Mamba and Mamba-2 of transformers, not {type(model).__name__}")
    block = BlockRecipe(rotate=False, state="float16")
    return quantize(model, inputs, Recipe("naive_w8a8", (block,) * config.num_hidden_layers), 100.0, samples, seed)
