"""Full fine-tuning: every parameter trains (baseline)."""

from __future__ import annotations

from typing import Any

from torch import nn

from .structure import train_all

__all__ = ["apply"]


def apply(model: nn.Module, inputs: Any) -> nn.Module:  # noqa: ARG001  # every method takes the inputs
    """Train everything; modifies the model in place and returns it."""
    train_all(model)
    return model
