"""Quamba: W8A8 for Mamba-1, static scales, percentile x, Hadamard-rotated y (arXiv 2410.13229; METHODS.md §3)."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from ...errors import CostmodelError
from .build import quantize
from .model import GenerationCache, LanguageOutput, QuantizedMamba, load, save
from .recipe import BlockRecipe, Recipe, Sizes

__all__ = [
    "BlockRecipe", "GenerationCache", "LanguageOutput", "QuantizedMamba", "Recipe", "Sizes", "apply", "load",
    "paper_percentile", "save",
]  # fmt: skip


def apply(
    model: nn.Module,
    inputs: Any,
    *,
    percentile: float | None = None,
    samples: int = 512,
    seed: int = 0,
    state: Literal["float32", "float16"] = "float16",
    rotate: bool = True,
) -> nn.Module:
    """A W8A8 copy of a `transformers` Mamba-1: int8 blocks, fp16 embedding and head; `model` is not changed.

    Args:
        model: ``MambaForCausalLM``, real, or fake or meta (then the result is, too, and nothing is calibrated).
        inputs: token ids to calibrate on, (sequences, length) or a list or dict of such.
        percentile: of |x| in per cent, above which it is clamped; the paper's 99.999 (130M) to 99.9 (2.8B) by size
            otherwise.
        samples, seed: at most so many sequences, drawn by the seed.
        state: type of the recurrent state between tokens.
        rotate: the Hadamard transform of y; without it and with percentile=100 this is `naive_w8a8`.

    Raises:
        CostmodelError: not such a model, or calibration data that cannot give scales; nothing is changed.
    """
    config: Any = getattr(model, "config", None)
    if getattr(config, "model_type", "") != "mamba":
        raise CostmodelError(f"quamba quantizes Mamba-1 of transformers, not {type(model).__name__}; see quamba2")
    percent = paper_percentile(model) if percentile is None else percentile
    block = BlockRecipe(rotate=rotate, state=state)
    return quantize(model, inputs, Recipe("quamba", (block,) * config.num_hidden_layers), percent, samples, seed)


def paper_percentile(model: nn.Module) -> float:
    """99.999 % for 130M parameters to 99.9 % for 2.8B (the ends are published; between them by decades of size)."""
    parameters = sum(p.numel() for p in model.parameters())
    return 99.999 if parameters < 3e8 else 99.99 if parameters < 2e9 else 99.9
