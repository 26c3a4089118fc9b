"""Linear probing: only the last layer trains, everything before it is forward only (baseline)."""

from __future__ import annotations

from typing import Any

from torch import nn

from .structure import head, train_all

__all__ = ["apply"]


def apply(model: nn.Module, inputs: Any) -> nn.Module:
    """Freeze all but the layer that runs last; modifies the model in place and returns it."""
    train_all(model, False)
    train_all(model.get_submodule(head(model, inputs)))
    return model
